"""The phantom cohort: what it promises to the demo and to the other tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from fusionflow.errors import ConfigurationError
from fusionflow.phantom import COHORT, TISSUES, Lesion, Phantom, make_phantom, write_cohort

SMALL = (48, 56, 48)
MEDIUM = (72, 88, 72)

PET_REQUIRED = {
    "Manufacturer",
    "ManufacturersModelName",
    "Units",
    "TracerName",
    "TracerRadionuclide",
    "InjectedRadioactivity",
    "InjectedRadioactivityUnits",
    "InjectedMass",
    "InjectedMassUnits",
    "SpecificRadioactivity",
    "SpecificRadioactivityUnits",
    "ModeOfAdministration",
    "TimeZero",
    "ScanStart",
    "InjectionStart",
    "FrameTimesStart",
    "FrameDuration",
    "AcquisitionMode",
    "ImageDecayCorrected",
    "ImageDecayCorrectionTime",
    "ReconMethodName",
    "ReconMethodParameterLabels",
    "ReconMethodParameterUnits",
    "ReconMethodParameterValues",
    "ReconFilterType",
    "ReconFilterSize",
    "AttenuationCorrection",
}


@dataclass(frozen=True)
class Scan:
    """A phantom, with what several tests measure on its T1w grid."""

    phantom: Phantom
    pet: NDArray[np.float64]  # at the T1w voxels, by way of both affines
    away: NDArray[np.bool_]  # from both lesions

    def tissue(self, name: str) -> NDArray[np.bool_]:
        return (self.phantom.labels == TISSUES[name].label) & self.away

    def distance(self, modality: str) -> NDArray[np.float64]:
        phantom = self.phantom
        centre = lesion_of(phantom, modality).centre
        return distance(phantom.t1w.shape, phantom.t1w_affine, centre)


@pytest.fixture(scope="module", params=[(1, SMALL), (2, MEDIUM), (7, SMALL)], ids=str)
def scan(request: pytest.FixtureRequest) -> Scan:
    seed, shape = request.param
    phantom = make_phantom(seed, shape=shape)
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    to_pet = np.linalg.inv(phantom.pet_affine) @ phantom.t1w_affine
    where = np.moveaxis(nib.affines.apply_affine(to_pet, voxels), -1, 0)
    away = [
        distance(shape, phantom.t1w_affine, one.centre) > one.radius + 8 for one in phantom.lesions
    ]
    return Scan(phantom, ndimage.map_coordinates(phantom.pet, where, order=1), away[0] & away[1])


@pytest.fixture(scope="module")
def phantom(scan: Scan) -> Phantom:
    return scan.phantom


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bids_dir = tmp_path_factory.mktemp("bids")
    write_cohort(bids_dir, seed=0, shape=SMALL)
    return bids_dir


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def distance(shape: tuple[int, ...], affine: NDArray[np.float64], centre: tuple[float, ...]):
    """Distance of every voxel centre from a world point, by nibabel's own mapping."""
    voxels = np.moveaxis(np.indices(shape), 0, -1)
    return np.linalg.norm(nib.affines.apply_affine(affine, voxels) - centre, axis=-1)


def lesion_of(phantom: Phantom, modality: str) -> Lesion:
    (lesion,) = (one for one in phantom.lesions if one.modality == modality)
    return lesion


class TestPhantom:
    def test_has_the_shapes_and_dtypes_it_declares(self, phantom: Phantom) -> None:
        assert phantom.t1w.shape == phantom.labels.shape
        assert phantom.t1w.dtype == phantom.pet.dtype == np.float32
        assert phantom.labels.dtype == np.uint8
        assert set(np.unique(phantom.labels)) == {one.label for one in TISSUES.values()}
        assert np.isfinite(phantom.t1w).all()
        assert np.isfinite(phantom.pet).all()
        assert phantom.pet.min() >= 0

    def test_has_two_grids_in_one_world(self, phantom: Phantom) -> None:
        for affine in (phantom.t1w_affine, phantom.pet_affine):
            assert nib.aff2axcodes(affine) == ("R", "A", "S")
        spacing = nib.affines.voxel_sizes(phantom.t1w_affine)
        assert (nib.affines.voxel_sizes(phantom.pet_affine) > 1.2 * spacing).all()
        offset = np.linalg.inv(phantom.t1w_affine) @ phantom.pet_affine[:, 3]
        assert (np.abs(offset[:3] - np.rint(offset[:3])) > 0.01).any()

    def test_the_pet_field_of_view_holds_that_of_the_t1w(self, phantom: Phantom) -> None:
        last = np.array(phantom.pet.shape) - 1
        corners = [(0, 0, 0), np.array(phantom.t1w.shape) - 1]
        to_pet = np.linalg.inv(phantom.pet_affine) @ phantom.t1w_affine
        low, high = nib.affines.apply_affine(to_pet, corners)
        assert (low >= 0).all()
        assert (high <= last).all()

    def test_the_whole_head_but_the_neck_is_in_the_picture(self, phantom: Phantom) -> None:
        brain = np.isin(phantom.labels, [TISSUES[n].label for n in ("grey", "white")])
        head = phantom.labels > 0
        assert not any(brain[edge].any() for edge in (0, -1))
        assert not any(brain[:, edge].any() for edge in (0, -1))
        assert not brain[:, :, -1].any()
        assert 0.3 < head.mean() < 0.7

    def test_the_face_looks_to_plus_y_and_the_crown_to_plus_z(self, phantom: Phantom) -> None:
        def centroid(name: str) -> NDArray[np.float64]:
            mask = phantom.labels == TISSUES[name].label
            return nib.affines.apply_affine(phantom.t1w_affine, np.argwhere(mask)).mean(axis=0)

        behind_and_below = centroid("cerebellar_grey") - centroid("deep_grey")
        assert behind_and_below[1] < -30
        assert behind_and_below[2] < -25
        assert abs(behind_and_below[0]) < 5

    def test_t1w_contrast_is_that_of_t1(self, scan: Scan) -> None:
        order = ("air", "bone", "csf", "grey", "deep_grey", "white")
        medians = [float(np.median(scan.phantom.t1w[scan.tissue(name)])) for name in order]
        assert medians == sorted(medians)
        csf, grey, white = medians[2], medians[3], medians[5]
        assert 0.55 < grey / white < 0.8
        assert csf / white < 0.45
        assert np.percentile(scan.phantom.t1w[scan.tissue("fat")], 75) > white

    def test_pet_contrast_is_that_of_fdg(self, scan: Scan) -> None:
        inner_white = ndimage.binary_erosion(scan.tissue("white"), iterations=2)
        grey, deep, scalp, air = (
            float(scan.pet[scan.tissue(name)].mean())
            for name in ("grey", "deep_grey", "fat", "air")
        )
        white = float(scan.pet[inner_white].mean())
        assert grey > 1.5 * white  # blur leaves of 1 : 0.27 what a scanner would see
        assert deep > 1.5 * white
        assert scalp < 0.25 * grey
        assert air < 0.1 * grey
        assert 5_000 < grey < 30_000  # Bq/mL

    def test_the_cortex_is_folded(self, phantom: Phantom) -> None:
        """A smooth ribbon around as much brain would have far less surface."""
        white = phantom.labels == TISSUES["white"].label
        grey = phantom.labels == TISSUES["grey"].label
        faces = sum(
            int((np.take(white, range(1, n), axis) & np.take(grey, range(n - 1), axis)).sum())
            + int((np.take(grey, range(1, n), axis) & np.take(white, range(n - 1), axis)).sum())
            for axis, n in enumerate(white.shape)
        )
        area = faces * phantom.t1w_affine[0, 0] ** 2 / 1.5  # a ball has 1.5 times its area in faces
        volume = (white | grey).sum() * phantom.t1w_affine[0, 0] ** 3
        ball = np.cbrt(36 * np.pi * volume**2)
        assert area > 1.8 * ball

    def test_white_matter_has_no_long_straight_edge(self, phantom: Phantom) -> None:
        """A core clipped at a coordinate has one in some slice, and so has a wall without folds."""
        spacing = phantom.t1w_affine[0, 0]
        z = phantom.t1w_affine[2, 3] + spacing * np.arange(phantom.labels.shape[2])
        white = (phantom.labels == TISSUES["white"].label)[:, :, (z > -14) & (z < 56)]
        for axis in (0, 1):
            for edge in (-1, 1):
                faces = np.moveaxis(np.diff(white.astype(int), axis=axis) == edge, 1 - axis, 0)
                run = longest = np.zeros(faces.shape[1:], int)
                for of_face in faces:
                    run = np.where(of_face, run + 1, 0)
                    longest = np.maximum(longest, run)
                assert longest.max() * spacing < 60


class TestLesions:
    def test_are_one_of_each_kind_and_apart(self, phantom: Phantom) -> None:
        assert [one.modality for one in phantom.lesions] == ["pet", "mri"]
        hot, dark = phantom.lesions
        assert np.linalg.norm(np.subtract(hot.centre, dark.centre)) > hot.radius + dark.radius + 15

    def test_the_pet_lesion_is_the_hottest_place_of_the_pet(self, scan: Scan) -> None:
        lesion, pet = lesion_of(scan.phantom, "pet"), scan.phantom.pet
        near = distance(pet.shape, scan.phantom.pet_affine, lesion.centre)
        assert near.flat[pet.argmax()] < lesion.radius
        grey = scan.pet[scan.tissue("grey")].mean()
        assert pet[near < lesion.radius / 2].mean() > 1.8 * grey

    def test_the_pet_lesion_is_not_in_the_t1w(self, scan: Scan) -> None:
        lesion, t1w = lesion_of(scan.phantom, "pet"), scan.phantom.t1w
        near = scan.distance("pet")
        ball, shell = near < lesion.radius, (near > lesion.radius) & (near < lesion.radius + 15)
        for name in ("grey", "white"):
            of_tissue = scan.phantom.labels == TISSUES[name].label
            within, around = t1w[of_tissue & ball], t1w[of_tissue & shell]
            if within.size > 15:
                assert np.median(within) == pytest.approx(np.median(around), rel=0.1)

    def test_the_mri_lesion_is_dark_in_white_matter(self, scan: Scan) -> None:
        lesion, t1w = lesion_of(scan.phantom, "mri"), scan.phantom.t1w
        near, white = scan.distance("mri"), scan.phantom.labels == TISSUES["white"].label
        ball, shell = near < lesion.radius, (near > lesion.radius + 4) & (near < lesion.radius + 15)
        assert white[ball].all()
        assert np.median(t1w[ball]) < 0.65 * np.median(t1w[white & shell])

    def test_the_mri_lesion_is_not_in_the_pet(self, scan: Scan) -> None:
        ball = scan.distance("mri") < lesion_of(scan.phantom, "mri").radius
        inner_white = ndimage.binary_erosion(scan.tissue("white"), iterations=2)
        contrast = scan.pet[ball].mean() - np.median(scan.pet[inner_white])
        assert abs(contrast) < 0.15 * scan.pet[scan.tissue("grey")].mean()

    def test_affines_take_the_centres_to_the_right_voxels(self, scan: Scan) -> None:
        phantom = scan.phantom
        grey = scan.pet[scan.tissue("grey")].mean()
        white = np.median(phantom.t1w[scan.tissue("white")])
        hot = np.maximum(phantom.pet - 1.3 * grey, 0)
        dark = np.maximum(0.85 * white - phantom.t1w, 0)
        for modality, contrast, affine in (
            ("pet", hot, phantom.pet_affine),
            ("mri", dark, phantom.t1w_affine),
        ):
            lesion = lesion_of(phantom, modality)
            ball = distance(contrast.shape, affine, lesion.centre) < lesion.radius + 2
            found = ndimage.center_of_mass(contrast * ball)
            expected = nib.affines.apply_affine(np.linalg.inv(affine), lesion.centre)
            assert np.linalg.norm(np.subtract(found, expected)) < 0.5

    def test_do_not_depend_on_the_grid(self) -> None:
        assert make_phantom(5, shape=SMALL).lesions == make_phantom(5, shape=(40, 60, 44)).lesions


class TestSubjectsAndSessions:
    def test_the_same_scan_twice_is_the_same_to_the_bit(self) -> None:
        one, two = (make_phantom(4, shape=SMALL, session=2) for _ in range(2))
        assert one.t1w.tobytes() == two.t1w.tobytes()
        assert one.pet.tobytes() == two.pet.tobytes()
        assert one.labels.tobytes() == two.labels.tobytes()
        assert one.lesions == two.lesions

    def test_sessions_share_the_anatomy_and_not_the_noise(self) -> None:
        first, second = (make_phantom(1, shape=SMALL, session=n) for n in (1, 2))
        assert (first.labels == second.labels).all()
        assert (first.t1w_affine == second.t1w_affine).all()
        air = ndimage.binary_erosion(first.labels == 0, iterations=3)
        assert abs(np.corrcoef(first.t1w[air], second.t1w[air])[0, 1]) < 0.05
        assert np.corrcoef(first.t1w.ravel(), second.t1w.ravel())[0, 1] > 0.95

    def test_the_pet_lesion_grows_and_heats_between_sessions(self) -> None:
        first, second = (make_phantom(1, shape=SMALL, session=n) for n in (1, 2))
        assert lesion_of(first, "mri") == lesion_of(second, "mri")
        before, after = lesion_of(first, "pet"), lesion_of(second, "pet")
        assert before.centre == after.centre
        assert before.radius < after.radius < 1.2 * before.radius
        core = distance(first.pet.shape, first.pet_affine, before.centre) < before.radius
        assert 1.02 < second.pet[core].mean() / first.pet[core].mean() < 1.4
        assert second.pet[~core].mean() / first.pet[~core].mean() == pytest.approx(1, abs=0.03)

    def test_subjects_differ_in_anatomy_and_lesions(self) -> None:
        one, two = (make_phantom(seed, shape=SMALL) for seed in (1, 2))
        head = (one.labels > 0) & (two.labels > 0)
        assert (one.labels != two.labels)[head].mean() > 0.2
        assert {lesion.centre for lesion in one.lesions}.isdisjoint(
            lesion.centre for lesion in two.lesions
        )

    @pytest.mark.parametrize(
        "wrong",
        [
            {"seed": -1},
            {"seed": 0, "session": 0},
            {"seed": 0, "shape": (8, 48, 48)},
            {"seed": 0, "shape": (48, 48)},
            {"seed": 0, "spacing": 0.0},
            {"seed": 0, "pet_spacing": -1.0},
        ],
        ids=str,
    )
    def test_what_cannot_be_drawn_is_refused(self, wrong: dict) -> None:
        with pytest.raises(ConfigurationError):
            make_phantom(**wrong)


class TestCohort:
    def test_is_laid_out_as_bids(self, cohort: Path) -> None:
        expected = {
            "README",
            ".bidsignore",
            "dataset_description.json",
            "participants.tsv",
            "participants.json",
            "lesions.tsv",
        }
        for subject, session in COHORT:
            folder, name = f"sub-{subject}/ses-{session}", f"sub-{subject}_ses-{session}"
            for ending in ("json", "nii.gz"):
                expected |= {
                    f"{folder}/anat/{name}_T1w.{ending}",
                    f"{folder}/pet/{name}_trc-FDG_pet.{ending}",
                }
        assert set(contents(cohort)) == expected

    def test_every_json_file_is_json(self, cohort: Path) -> None:
        for path in cohort.rglob("*.json"):
            assert isinstance(json.loads(path.read_text()), dict)
        description = json.loads((cohort / "dataset_description.json").read_text())
        assert description["DatasetType"] == "raw"
        assert description["BIDSVersion"] == "1.10.0"
        assert "simulated" in description["Name"]

    def test_sidecars_hold_what_bids_requires(self, cohort: Path) -> None:
        for path in cohort.rglob("*_pet.json"):
            sidecar = json.loads(path.read_text())
            assert set(sidecar) >= PET_REQUIRED
            assert sidecar["Units"] == "Bq/mL"
            assert len(sidecar["FrameTimesStart"]) == len(sidecar["FrameDuration"]) == 1
        for path in cohort.rglob("*_T1w.json"):
            assert "NonlinearGradientCorrection" in json.loads(path.read_text())

    def test_participants_are_the_folders(self, cohort: Path) -> None:
        header, *rows = (cohort / "participants.tsv").read_text().splitlines()
        columns = header.split("\t")
        assert columns[0] == "participant_id"
        assert [row.split("\t")[0] for row in rows] == sorted(p.name for p in cohort.glob("sub-*"))
        assert set(json.loads((cohort / "participants.json").read_text())) == set(columns[1:])

    def test_files_hold_the_phantom_exactly(self, cohort: Path) -> None:
        phantom = make_phantom(1, shape=SMALL, session=2)
        folder = cohort / "sub-01" / "ses-followup"
        for path, data, affine in (
            (next(folder.glob("anat/*.nii.gz")), phantom.t1w, phantom.t1w_affine),
            (next(folder.glob("pet/*.nii.gz")), phantom.pet, phantom.pet_affine),
        ):
            image = nib.load(path)
            np.testing.assert_array_equal(image.get_fdata(dtype=np.float32), data)
            np.testing.assert_allclose(image.affine, affine, atol=1e-4)
            np.testing.assert_allclose(image.get_qform(), affine, atol=1e-4)
            assert image.get_data_dtype() == np.int16
            assert image.header.get_xyzt_units()[0] == "mm"

    def test_lesions_are_written_down(self, cohort: Path) -> None:
        header, *rows = (cohort / "lesions.tsv").read_text().splitlines()
        assert header.split("\t")[-4:] == ["x", "y", "z", "radius"]
        assert len(rows) == 2 * len(COHORT)
        subject, session, modality, *numbers = rows[0].split("\t")
        lesion = make_phantom(1, shape=SMALL).lesions[0]
        assert (subject, session, modality) == ("sub-01", "ses-baseline", "pet")
        assert [float(n) for n in numbers] == pytest.approx(
            [*lesion.centre, lesion.radius], abs=0.01
        )

    def test_a_rerun_heals_and_gives_the_same_bytes(self, cohort: Path, tmp_path: Path) -> None:
        damaged = tmp_path / "sub-01" / "ses-baseline" / "anat"
        damaged.mkdir(parents=True)
        (damaged / "sub-01_ses-baseline_T1w.nii.gz").write_bytes(b"half of a fi")
        (damaged / ".sub-01_ses-baseline_T1w.nii.gz.part").write_bytes(b"half of a f")
        folders = write_cohort(tmp_path, seed=0, shape=SMALL)
        assert contents(tmp_path) == contents(cohort)
        assert folders == [tmp_path / f"sub-{sub}" / f"ses-{ses}" for sub, ses in COHORT]

    def test_another_seed_gives_other_subjects(self, cohort: Path, tmp_path: Path) -> None:
        write_cohort(tmp_path, seed=1, shape=SMALL)
        one, two = contents(cohort), contents(tmp_path)
        assert set(one) == set(two)
        assert all(one[name] != two[name] for name in one if name.endswith(".nii.gz"))
