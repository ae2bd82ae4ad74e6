"""DICOM in: which series pair, what is written of them, and that it names nobody."""

import datetime
import gzip
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from dicoms import NOON, SHAPE, Person, Study, save, voxels
from pydicom import dcmread
from pydicom.dataset import Dataset

from fusionflow.cli import main
from fusionflow.errors import ConfigurationError, MissingExtraError, NoScansError, StoreError
from fusionflow.io import dicom_convert
from fusionflow.io.bids import discover
from fusionflow.io.dicom_bids import convert_dicom
from fusionflow.io.nifti import read_volume
from fusionflow.runlock import RunLock

ERIKA = Person("Mustermann^Erika", "PID-5551234")
HEINZ = Person("Strunk^Heinz", "PID-5559876", born="19620517", accession="ACC1234567")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder for DICOM, one for BIDS, a key, and a folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def pair(folder: Path, study: Study, **tags) -> Path:
    """Write an MR and a PET of one study."""
    study.write(folder / "mr", "MR", voxels(1), **tags)
    study.write(folder / "pet", "PT", voxels(2), slopes=2.5)
    return folder


def change(path: Path, **tags) -> None:
    """Write a file with other values of some tags."""
    d = dcmread(path)
    for tag, value in tags.items():
        setattr(d, tag, value)
    save(d, path)


def convert(place: Path, **options):
    options.setdefault("key", place / "key")
    return convert_dicom(place / "dicom", place / "bids", **options)


def command(place: Path, *options: str):
    arguments = ["dicom", place / "dicom", place / "bids", "--key", place / "key", *options]
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def sidecar(place: Path, suffix: str) -> dict:
    (path,) = (place / "bids").glob(f"sub-*/ses-*/*/*_{suffix}.json")
    return json.loads(path.read_text())


def image(place: Path, suffix: str) -> nib.Nifti1Image:
    (path,) = (place / "bids").glob(f"sub-*/ses-*/*/*_{suffix}.nii.gz")
    return nib.load(path)


def by_world(image: nib.Nifti1Image) -> np.ndarray:
    """Return values with axes as DICOM's axial slices lie: (frame), slice, row, column."""
    ras = nib.as_closest_canonical(image)
    return ras.get_fdata()[::-1, ::-1].T  # columns grow to the left, rows to the back


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


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def leaks(text: bytes, secrets: set[str]) -> set[str]:
    """Return which secrets a text holds, in any case and as 8 or 16 bit characters."""
    folded = text.lower()
    forms = ("utf-8", "latin-1", "utf-16-le")
    return {s for s in secrets for form in forms if s.lower().encode(form, "replace") in folded}


class TestNobodyIsNamed:
    """Identifiers are in every field and folder; none is in what comes out."""

    @pytest.fixture
    def planted(self, place):
        people = [ERIKA, HEINZ, Person("Özdemir^Gülşen", "TC-99887766", issuer="ANKARA77")]
        studies = [Study(person, NOON + datetime.timedelta(n)) for n, person in enumerate(people)]
        for study in studies:
            folder = place / "dicom" / study.person.name / study.person.number / study.uid
            pair(folder, study)
            study.write(folder / "scout", "MR", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        # One who fails, one whose header does not hold what it should, a file that is damaged.
        bad = Study(Person("Kaputtke^Torsten", "PID-4443332", born="19511111"))
        folder = place / "dicom" / bad.person.name
        bad.write(folder / "mr", "MR")
        change(bad.write(folder / "pet", "PT")[3], ImageOrientationPatient=[1, 0, 0, 0, 0, 1])
        odd = pair(place / "dicom" / "odd", Study(Person("Wirr^Weber", "PID-777000")))
        for path in odd.rglob("*.dcm"):
            data = path.read_bytes().replace(b"71.5", b"Wirr").replace(b"20240305", b"Wirrwebe")
            path.write_bytes(data)
        whole = (odd / "mr/IM1_0000.dcm").read_bytes()
        (place / "dicom" / f"{ERIKA.name}.dcm").write_bytes(whole[:400] + b"\xff" * 400)
        secrets = {"Wirr", "Weber", "PID-777000", *bad.secrets}
        return secrets.union(*(study.secrets for study in studies))

    @pytest.mark.parametrize("verbose", ["", "-vv"])
    def test_in_no_byte_of_what_is_written_or_said(self, place, planted, verbose):
        arguments = [place / "dicom", place / "bids", "--key", place / "key", *verbose.split()]
        for again in (False, True):
            ran = subprocess.run(
                [sys.executable, "-m", "fusionflow", "dicom", *map(str, arguments)],
                capture_output=True,
                env={**os.environ, "TMPDIR": str(place / "tmp")},
            )
            assert ran.returncode == 3
            assert (b"4 sessions made" in ran.stdout) is not again
            assert b"unread 1 files: it is damaged" in ran.stdout
            said = (ran.stdout + ran.stderr).splitlines()
            told = b"\n".join(line for line in said if not line.endswith(b"(may hold names)"))
            assert leaks(told.replace(str(place).encode(), b""), planted) == set()
            assert bool(verbose) == any(b"(may hold names)" in line for line in said)
        files = [path for path in (place / "bids").rglob("*") if path.is_file()]
        assert len(files) == 4 * 4 + 4
        for path in files:
            assert leaks(content(path), planted) == set(), path.name
            assert leaks(str(path.relative_to(place)).encode(), planted) == set()
        assert list((place / "tmp").iterdir()) == []
        # The check itself finds what is there to be found.
        assert {"Mustermann", "PID-5551234"} <= leaks(
            b"".join(path.read_bytes() for path in (place / "dicom").rglob("*.dcm")), planted
        )

    def test_nor_in_what_is_raised(self, place, planted):
        (place / "dicom" / ERIKA.name).rename(place / "erika")
        for path in (place / "dicom").rglob("pet"):
            for file in path.iterdir():
                file.unlink()
        with pytest.raises(NoScansError) as raised:
            convert(place)
        text = f"{raised.value!s} {raised.value!r} {raised.value.__cause__}"
        assert leaks(text.replace(str(place), "").encode(), planted) == set()
        assert "modality" not in text
        assert "no PET goes with it" in text

    def test_headers_of_images_have_no_texts(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        for suffix in ("T1w", "pet"):
            head = image(place, suffix).header
            texts = [head[name].item() for name in ("descrip", "aux_file", "db_name")]
            assert [*texts, head["intent_name"].item()] == [b""] * 4
            assert len(head.extensions) == 0

    def test_the_label_does_not_follow_from_the_number(self, place):
        pair(place / "dicom", Study(ERIKA))
        one = convert(place).outcomes[0].label
        (place / "bids").rename(place / "other")
        assert convert(place, key=place / "another key").outcomes[0].label != one


class TestAgain:
    def test_only_what_is_new_is_converted_and_labels_stay(self, place):
        pair(place / "dicom/a", Study(ERIKA))
        (first,) = convert(place).outcomes
        before = {p: p.stat().st_mtime_ns for p in (place / "bids/sub").parent.rglob("*.nii.gz")}
        pair(place / "dicom/b", Study(HEINZ))
        pair(place / "dicom/c", Study(ERIKA, NOON + datetime.timedelta(90)))
        outcomes = {outcome.label: outcome.state for outcome in convert(place).outcomes}
        assert outcomes[first.label] == "there"
        assert sorted(outcomes.values()) == ["made", "made", "there"]
        assert len({label.split("_")[0] for label in outcomes}) == 2
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())
        assert len(discover(place / "bids").scans) == 3
        assert len((place / "bids/participants.tsv").read_text().splitlines()) == 3

    def test_columns_that_a_site_added_are_kept(self, place):
        pair(place / "dicom/a", Study(ERIKA))
        convert(place)
        path = place / "bids/participants.tsv"
        head, line = path.read_text().splitlines()
        path.write_text(f"{head}\tgroup\n{line}\tpatient\n")
        pair(place / "dicom/b", Study(HEINZ))
        convert(place)
        lines = path.read_text().splitlines()
        assert {line, lines[0]} == {line, f"{head}\tgroup"}
        assert sorted(text.split("\t")[2] for text in lines) == ["group", "n/a", "patient"]

    def test_a_key_is_made_that_nobody_else_can_read(self, place):
        pair(place / "dicom", Study(ERIKA))
        assert convert(place, key=place / "new/key").key.made
        assert stat.S_IMODE((place / "new/key").stat().st_mode) == 0o600
        assert not convert(place, key=place / "new/key").key.made

    def test_a_key_that_others_can_read_is_told(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        (place / "key").chmod(0o644)
        assert f"chmod 600 {place / 'key'}" in command(place).output

    def test_with_another_key_it_stops(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        with pytest.raises(ConfigurationError, match="made with another key"):
            convert(place, key=place / "another")

    def test_a_key_in_the_dataset_is_refused(self, place):
        pair(place / "dicom", Study(ERIKA))
        with pytest.raises(ConfigurationError, match="is in the dataset"):
            convert(place, key=place / "bids/key")
        assert not (place / "bids").exists()

    @pytest.mark.parametrize("text", ["", "short"])
    def test_a_file_that_is_no_key(self, place, text):
        pair(place / "dicom", Study(ERIKA))
        (place / "key").write_text(text)
        with pytest.raises(ConfigurationError, match="is no key"):
            convert(place)

    @pytest.mark.parametrize("name", ["notes.txt", "dataset_description.json", "sub-01/x"])
    def test_a_dataset_of_others_is_left_alone(self, place, name):
        pair(place / "dicom", Study(ERIKA))
        (place / "bids" / name).parent.mkdir(parents=True)
        (place / "bids" / name).write_text('{"GeneratedBy": [{"Name": "heudiconv"}]}')
        with pytest.raises(ConfigurationError, match="did not make"):
            convert(place)
        assert [p.name for p in (place / "bids").rglob("*") if p.is_file()] == [Path(name).name]

    def test_a_better_pet_that_comes_later_does_not_replace_what_is_there(self, place):
        study = Study(ERIKA)
        study.write(place / "dicom/a", "MR")
        study.write(place / "dicom/b", "PT", CorrectedImage=["DECY"])
        convert(place)
        before = sidecar(place, "pet")
        study.write(place / "dicom/c", "PT")
        (outcome,) = convert(place).outcomes
        assert outcome.state == "there"
        assert outcome.notes == ("its study has another PET by now; what is there is kept",)
        assert sidecar(place, "pet") == before

    def test_two_runs_at_a_time_are_refused(self, place):
        pair(place / "dicom", Study(ERIKA))
        (place / "bids").mkdir()
        with RunLock(place / "bids/run.lock", "other"):
            assert command(place).exit_code == 5
        assert command(place).exit_code == 0

    @pytest.mark.parametrize("where", ["_run_dcm2niix", "_scrub_image"])
    def test_what_is_interrupted_leaves_nothing(self, place, monkeypatch, where):
        pair(place / "dicom", Study(ERIKA))

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(dicom_convert, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(place)
        assert list((place / "tmp").iterdir()) == list((place / "bids").iterdir()) == []

    def test_what_a_run_that_died_left_is_cleaned_up(self, place):
        pair(place / "dicom", Study(ERIKA))
        (place / "bids/.unfinished-1234/anat").mkdir(parents=True)
        convert(place)
        assert not list((place / "bids").glob(".*"))
        assert len(discover(place / "bids").scans) == 1


class TestLabels:
    def table(self, place: Path, *lines: str) -> Path:
        path = place / "labels.tsv"
        path.write_text("\n".join(line.replace(" ", "\t") for line in lines) + "\n")
        return path

    def test_a_site_gives_its_own(self, place):
        study = Study(ERIKA)
        pair(place / "dicom/a", study)
        pair(place / "dicom/b", Study(HEINZ))
        table = self.table(
            place,
            "patient_id participant_id study session_id",
            f"{ERIKA.number} sub-E1 {study.uid} ses-first",
        )
        report = convert(place, labels=table)
        assert "sub-E1_ses-first" in {outcome.label for outcome in report.outcomes}
        assert report.unlabelled == 1

    def test_two_numbers_of_one_person_pair(self, place):
        Study(ERIKA).write(place / "dicom/a", "MR")
        Study(HEINZ).write(place / "dicom/b", "PT")
        table = self.table(
            place, "patient_id participant_id", f"{ERIKA.number} 01", f"{HEINZ.number} 01"
        )
        (outcome,) = convert(place, labels=table).outcomes
        assert outcome.label.startswith("sub-01_ses-")

    def test_a_scan_is_not_converted_again_under_another_label(self, place):
        pair(place / "dicom", Study(ERIKA))
        (first,) = convert(place).outcomes
        table = self.table(place, "patient_id participant_id", f"{ERIKA.number} 01")
        (outcome,) = convert(place, labels=table).outcomes
        assert outcome.state == "there"
        assert first.label in outcome.notes[0]
        assert not (place / "bids/sub-01").exists()


class TestTrouble:
    def spoil(self, place: Path, how) -> None:
        pair(place / "dicom/good", Study(HEINZ))
        study = Study(ERIKA)
        study.write(place / "dicom/bad/mr", "MR")
        how(study.write(place / "dicom/bad/pet", "PT"))

    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            (
                lambda p: change(p[3], ImageOrientationPatient=[1, 0, 0, 0, 0, 1]),
                "its slices differ in orientation",
            ),
            (lambda p: change(p[3], Rows=6), "its slices differ in size"),
            (lambda p: (p[5].unlink(), p[0].with_name("x").touch()), "no volume"),
            (
                lambda p: change(p[9], ImagePositionPatient=[-20, -24, 99]),
                "slices of it are missing",
            ),
            (
                lambda p: [change(x, ImagePositionPatient=None) for x in p],
                "do not say where its slices lie",
            ),
            (
                lambda p: [x.write_bytes(x.read_bytes()[:-200]) for x in p],
                "dcm2niix",
            ),
        ],
    )
    def test_one_bad_series_is_told_and_the_others_go_on(self, place, how, reason):
        self.spoil(place, how)
        ran = command(place)
        if reason == "no volume":  # known before anything is converted
            assert ran.exit_code == 0
            assert "left   1 series: fewer than 16 slices: no volume" in ran.output
        else:
            assert ran.exit_code == 3
            assert re.search(r"failed sub-\w+_ses-\w+\n +PET [a-z2-7]{8}: .*" + reason, ran.output)
        assert len(discover(place / "bids").scans) == 1
        assert list((place / "tmp").iterdir()) == []
        assert not list((place / "bids").glob(".*"))

    def test_where_all_fail_it_is_4_and_no_dataset_is_begun(self, place):
        self.spoil(
            place,
            lambda p: change(p[3], ImageOrientationPatient=[1, 0, 0, 0, 0, 1]),
        )
        for path in sorted((place / "dicom/good").rglob("*.dcm")):
            path.unlink()
        assert command(place).exit_code == 4
        assert not (place / "bids").exists()

    def test_nothing_to_convert_is_4(self, place):
        Study(ERIKA).write(place / "dicom", "MR")
        ran = command(place)
        assert ran.exit_code == 4
        assert "holds no pair of PET and T1-weighted MR of one patient" in ran.output

    def test_what_failed_is_tried_again(self, place):
        self.spoil(
            place,
            lambda p: change(p[3], ImageOrientationPatient=[1, 0, 0, 0, 0, 1]),
        )
        assert command(place).exit_code == 3
        for path in (place / "dicom/bad/pet").iterdir():
            change(path, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        assert command(place).exit_code == 0
        assert len(discover(place / "bids").scans) == 2

    def test_a_file_that_is_there_twice_counts_once(self, place):
        study = Study(ERIKA)
        pair(place / "dicom", study)
        for path in list((place / "dicom/pet").iterdir()):
            (place / "dicom/copy").mkdir(exist_ok=True)
            (place / "dicom/copy" / path.name).write_bytes(path.read_bytes())
        (outcome,) = convert(place).outcomes
        assert f"PET: {SHAPE[0]} files are there twice" in outcome.notes
        np.testing.assert_array_equal(by_world(image(place, "pet")), voxels(2) * 2.5)

    def test_dcm2niix_that_does_not_end_is_stopped(self, place, monkeypatch):
        pair(place / "dicom", Study(ERIKA))
        monkeypatch.setattr(dicom_convert, "TIMEOUT", 0.0)
        (outcome,) = convert(place).outcomes
        assert "dcm2niix took more than 0 s" in outcome.notes[0]
        assert list((place / "tmp").iterdir()) == []

    def test_dcm2niix_that_dies_is_told(self, place, monkeypatch):
        pair(place / "dicom", Study(ERIKA))
        monkeypatch.setattr(dicom_convert, "dcm2niix_program", lambda: "/bin/false")
        (outcome,) = convert(place).outcomes
        assert "dcm2niix failed with code 1" in outcome.notes[0]

    def test_no_room_to_work_in_stops_it_without_a_name(self, place, monkeypatch):
        pair(place / "dicom" / ERIKA.name, Study(ERIKA))

        def full(self, target):
            raise OSError(28, "No space left on device", str(target))

        monkeypatch.setattr(Path, "symlink_to", full)
        with pytest.raises(StoreError, match="No room to work in for sub-") as raised:
            convert(place)
        assert "Mustermann" not in str(raised.value)

    @pytest.mark.parametrize("module", ["dcm2niix", "pydicom"])
    def test_without_the_extra_it_names_it(self, place, monkeypatch, module):
        pair(place / "dicom", Study(ERIKA))
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            MissingExtraError, match=rf"{module}.*pip install 'fusionflow\[dicom\]'"
        ):
            convert(place)


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
