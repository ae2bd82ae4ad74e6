"""DICOM in: which series pair, and what is written of them."""

import json
import re

import nibabel as nib
import numpy as np
import pytest
from dicoms import (
    ERIKA,
    SHAPE,
    Person,
    Study,
    by_world,
    content,
    convert,
    image,
    leaks,
    pair,
    sidecar,
    voxels,
)
from pydicom import dcmread
from pydicom.dataset import Dataset

from fusionflow.io.bids import discover
from fusionflow.io.dicom_bids import convert_dicom
from fusionflow.io.nifti import read_volume


class TestPair:
    def test_a_pet_and_an_mr_of_one_study_are_one_session(self, place):
        pair(place / "dicom", Study(ERIKA))
        report = convert(place)
        assert [outcome.state for outcome in report.outcomes] == ["made"]
        found = discover(place / "bids")
        (scan,) = found.scans
        assert (scan.label, found.excluded, found.notes) == (report.outcomes[0].label, (), ())
        assert scan.pet.name == f"{scan.label}_trc-FDG_pet.nii.gz"
        assert re.fullmatch(r"sub-[a-z2-7]{10}_ses-[a-z2-7]{8}", scan.label)

    def test_values_are_those_of_dicom(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        np.testing.assert_array_equal(by_world(image(place, "T1w")), voxels(1))
        np.testing.assert_array_equal(by_world(image(place, "pet")), voxels(2) * 2.5)

    def test_each_slice_and_frame_with_a_slope_of_its_own(self, place):
        frames = np.stack([voxels(n) for n in (3, 4, 5)])
        slopes = [0.5 + 0.01 * n for n in range(3 * SHAPE[0])]
        study = Study(ERIKA)
        study.write(place / "dicom/a", "MR")
        study.write(place / "dicom/b", "PT", frames, slopes=slopes)
        convert(place)
        expected = frames * np.reshape(slopes, (3, -1, 1, 1))
        np.testing.assert_allclose(by_world(image(place, "pet")), expected, rtol=1e-6)
        assert sidecar(place, "pet")["FrameTimesStart"] == [0, 300, 600]
        assert discover(place / "bids").scans[0].pet_info.frame_durations == (300.0, 300.0, 300.0)

    def test_frames_are_in_the_order_of_time_or_have_no_times(self, place):
        frames = np.stack([voxels(n) for n in (3, 4, 5)])
        study = Study(ERIKA)
        study.write(place / "dicom/a", "MR")
        backwards = {"InstanceNumber": lambda f, k: (2 - f) * SHAPE[0] + k + 1}
        study.write(place / "dicom/b", "PT", frames, **backwards)
        convert(place)
        fields, got = sidecar(place, "pet"), by_world(image(place, "pet"))
        in_order = np.array_equal(got, frames)
        assert in_order == ("FrameTimesStart" in fields)
        assert in_order or np.array_equal(got, frames[::-1])

    def test_monochrome1_is_how_it_is_shown_and_not_what_it_measures(self, place):
        study = Study(ERIKA)
        study.write(place / "dicom/a", "MR")
        study.write(place / "dicom/b", "PT", voxels(2), PhotometricInterpretation="MONOCHROME1")
        convert(place)
        np.testing.assert_array_equal(by_world(image(place, "pet")), voxels(2))

    def test_the_affine_is_that_of_the_headers(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        for suffix in ("T1w", "pet"):
            ras = nib.as_closest_canonical(image(place, suffix)).affine
            _, rows, columns = SHAPE  # position -20, -24, 5 (LPS), spacing 4 x 4.5 x 3 mm
            x, y = 20 - 4.5 * (columns - 1), 24 - 4.0 * (rows - 1)
            np.testing.assert_allclose(np.diag(ras), [4.5, 4, 3, 1])
            np.testing.assert_allclose(ras[:3, 3], [x, y, 5])

    @pytest.mark.parametrize("turn", ["sagittal", "coronal", "oblique"])
    def test_every_voxel_lies_where_its_header_says(self, place, turn):
        rows, columns = {
            "sagittal": ([0, 1, 0], [0, 0, -1]),
            "coronal": ([1, 0, 0], [0, 0, -1]),
            "oblique": ([0.8, 0.6, 0], [-0.36, 0.48, 0.8]),
        }[turn]
        normal = np.cross(rows, columns)
        study = Study(ERIKA)
        files = study.write(
            place / "dicom/a",
            "MR",
            ImageOrientationPatient=[*rows, *columns],
            ImagePositionPatient=lambda _, k: np.round([9, -7, 3] - 2.5 * k * normal, 6).tolist(),
        )
        study.write(place / "dicom/b", "PT")
        convert(place)
        volume = image(place, "T1w")
        to_voxel, values = np.linalg.inv(volume.affine), volume.get_fdata()
        for path in files:
            d = dcmread(path)
            r, c = np.mgrid[: d.Rows, : d.Columns].reshape(2, -1)
            lps = np.array(d.ImagePositionPatient, float)[:, None] + (
                np.outer(rows, c) * d.PixelSpacing[1] + np.outer(columns, r) * d.PixelSpacing[0]
            )
            ras = np.vstack([-lps[:2], lps[2:], np.ones_like(lps[:1])])
            at = (to_voxel @ ras)[:3]
            np.testing.assert_allclose(at, np.rint(at), atol=1e-3)
            found = values[tuple(np.rint(at).astype(int))]
            np.testing.assert_array_equal(found, d.pixel_array.ravel())

    def test_the_same_again_gives_the_same_bytes(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        first = place / "bids"
        (place / "bids").rename(place / "first")
        convert(place)
        names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
        assert names == sorted(
            p.relative_to(place / "first") for p in (place / "first").rglob("*") if p.is_file()
        )
        for name in names:
            assert (first / name).read_bytes() == (place / "first" / name).read_bytes()


class TestSidecar:
    def test_what_bids_asks_for_is_there_as_far_as_dicom_has_it(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        fields = sidecar(place, "pet")
        assert {name: fields.get(name) for name in EXPECTED} == EXPECTED
        (note,) = discover(place / "bids").scans[0].notes
        assert note == (
            "PET sidecar lacks fields that BIDS requires: ManufacturersModelName, InjectedMass, "
            "InjectedMassUnits, SpecificRadioactivity, SpecificRadioactivityUnits, "
            "ModeOfAdministration, AcquisitionMode, AttenuationCorrection"
        )

    def test_weight_goes_to_the_participants(self, place):
        pair(place / "dicom/a", Study(ERIKA))
        pair(place / "dicom/b", Study(Person("No^Weight", "PID-1", weight=None)))
        convert(place)
        lines = (place / "bids/participants.tsv").read_text().splitlines()
        assert lines[0] == "participant_id\tweight"
        assert sorted(line.split("\t")[1] for line in lines[1:]) == ["71.5", "n/a"]
        described = json.loads((place / "bids/participants.json").read_text())
        assert described["weight"]["Units"] == "kg"

    def test_the_scanner_is_kept_unless_somebody_wrote_a_name_there(self, place):
        pair(place / "dicom", Study(ERIKA), ManufacturerModelName="Biograph mMR")
        convert(place)
        assert sidecar(place, "T1w")["ManufacturersModelName"] == "Biograph mMR"
        assert "ManufacturersModelName" not in sidecar(place, "pet")  # has the accession number

    def test_an_unknown_tracer_is_left_out_and_told(self, place):
        study = Study(ERIKA)
        study.write(place / "dicom/a", "MR")
        drug = Dataset()
        drug.Radiopharmaceutical = "Heinz' mixture"
        study.write(place / "dicom/b", "PT", RadiopharmaceuticalInformationSequence=[drug])
        (outcome,) = convert(place).outcomes
        assert "its tracer is not known here: add TracerName to the PET's sidecar" in outcome.notes
        assert not {"TracerName", "TracerRadionuclide", "InjectedRadioactivity"} & set(
            sidecar(place, "pet")
        )
        assert discover(place / "bids").scans[0].pet.name.endswith(f"{outcome.label}_pet.nii.gz")


EXPECTED = {
    "Modality": "PT",
    "Manufacturer": "Siemens",
    "Units": "Bq/mL",
    "TracerName": "FDG",
    "TracerRadionuclide": "F18",
    "InjectedRadioactivity": 185,
    "InjectedRadioactivityUnits": "MBq",
    "TimeZero": "12:00:00",
    "ScanStart": 0,
    "InjectionStart": -2700,
    "FrameTimesStart": [0],
    "FrameDuration": [300],
    "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 0,
    "ReconMethodName": "Ordered Subset Expectation Maximization",
}


@pytest.fixture(scope="module")
def made(shared, tmp_path_factory):
    """The shared series, where they come from and where they went."""
    source = shared / "data/dicom"
    if not source.is_dir():
        pytest.skip(f"no DICOM series at {source}")
    place = tmp_path_factory.mktemp("shared")
    return source, place, convert_dicom(source, place / "bids", key=place / "key")


@pytest.mark.shared
class TestSharedSeries:
    """BrainWeb as DICOM: two studies and frames of reference, one patient, aligned."""

    def test_they_pair_by_patient(self, made):
        _, place, report = made
        (outcome,) = report.outcomes
        assert outcome.state == "made"
        assert any("(0 days apart)" in note for note in outcome.notes)
        assert "PET: 96 of 258 slices are here" in outcome.notes
        assert sidecar(place, "pet")["ImageDecayCorrected"] is True
        assert "Units" not in sidecar(place, "pet")

    @pytest.mark.parametrize(("folder", "suffix"), [("MR", "T1w"), ("PT", "pet")])
    def test_values_are_pixels_times_slope(self, made, folder, suffix):
        source, place, _ = made
        slices = [dcmread(path) for path in (source / folder).iterdir()]
        slices.sort(key=lambda d: d.ImagePositionPatient[2])
        expected = np.stack([d.pixel_array * float(d.RescaleSlope) for d in slices])
        np.testing.assert_allclose(by_world(image(place, suffix)), expected, atol=1e-6)

    def test_the_head_is_in_the_same_place(self, made):
        scan = discover(made[1] / "bids").scans[0]
        mri, pet = read_volume(scan.t1w), read_volume(scan.pet)
        np.testing.assert_allclose(mri.affine, pet.affine)
        np.testing.assert_allclose(mri.affine[2, 3], 80)
        heads = [volume.data > 0.1 * volume.data.max() for volume in (mri, pet)]
        both = np.logical_and(*heads).sum()
        assert 2 * both / sum(head.sum() for head in heads) > 0.85
        centres = [np.argwhere(head).mean(axis=0) for head in heads]
        assert np.abs(centres[0] - centres[1]).max() < 5  # mm

    def test_nobody_is_named(self, made):
        _, place, _ = made
        secrets = {"Brain^Web", "BrainWeb", "08150815", "test study", "1.2.826.0.1", "20210114"}
        for path in (place / "bids").rglob("*"):
            if path.is_file():
                assert leaks(content(path), secrets) == set()
