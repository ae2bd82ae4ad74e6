"""Wherever a registration was tried, a person can see what it found, and judge."""

from __future__ import annotations

import shutil
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from runs import config

import fusionflow as ff
from fusionflow.alignment import Alignment
from fusionflow.config import ConformOptions
from fusionflow.io.nifti import Orientation, Volume
from fusionflow.ledger import OutputPaths, read_published
from fusionflow.masks import head_mask
from fusionflow.phantom import make_phantom
from fusionflow.prune import prune
from fusionflow.registration_picture import contours, picture_of

RED, GREEN = (255, 96, 64), (64, 224, 96)
MARGIN, LINE = 4, 18
FIGURES = {
    "displacement_mm": 12.3,
    "rotation_deg": 4.5,
    "metric_before": 0.1,
    "metric_after": 0.4,
    "overlap_before": 0.8,
    "overlap": 1.0,
}


def volume(data, affine):
    orientation = Orientation(data.shape, affine, nib.aff2axcodes(affine))
    return Volume(np.asfortranarray(data, dtype=np.float32), affine, orientation, "")


def shift(*mm):
    matrix = np.eye(4)
    matrix[:3, 3] = mm
    return matrix


def outlines(picture):
    """Where a picture is red, and where green."""
    pixels = np.asarray(picture.convert("RGB"))
    return [(pixels == ink).all(axis=-1) for ink in (RED, GREEN)]


@pytest.fixture(scope="module")
def pair():
    """A PET, an MRI and the mask of its head."""
    made = make_phantom(3, shape=(70, 85, 70))
    mri = volume(made.t1w, made.t1w_affine)
    return volume(made.pet, made.pet_affine), mri, head_mask(mri.data.T)


class TestContours:
    def test_two_rows_of_three_planes(self, pair):
        pet, mri, mask = pair
        picture = contours(pet, mri, np.eye(4), mask, height=120)
        assert picture.mode == "RGB"
        before, after = outlines(picture)
        half = picture.height // 2
        assert picture.height == 2 * (120 + 2 * MARGIN + LINE)
        assert before[:half].any()
        assert not before[half:].any()
        np.testing.assert_array_equal(before[:half], after[half:])

    def test_lines_go_with_the_pet(self, pair):
        # 12 mm up: to the top in coronal and sagittal planes, by as many pixels as that is.
        pet, mri, mask = pair
        before, after = outlines(contours(pet, mri, shift(0, 0, 12), mask))
        half = len(before) // 2
        scale = 260 / (mri.data.shape[1] * mri.affine[1, 1])
        axial = round(mri.data.shape[0] * mri.affine[0, 0] * scale) + 2 * MARGIN
        tops = [np.nonzero(lines[:, axial:])[0].min() for lines in (before[:half], after[half:])]
        assert tops[0] - tops[1] == pytest.approx(12 * scale, abs=2)

    @pytest.mark.parametrize("shape", [(1, 300, 2), (300, 1, 1), (2, 2, 90)])
    def test_no_plane_is_larger_than_asked(self, shape):
        image = volume(np.ones(shape), np.eye(4))
        picture = contours(image, image, np.eye(4), height=50)
        assert picture.height == 2 * (50 + 2 * MARGIN + LINE)
        assert picture.width <= 3 * (50 + 2 * MARGIN)

    def test_an_empty_pet_has_no_lines(self, pair):
        _, mri, _ = pair
        empty = volume(np.zeros((9, 9, 9)), np.eye(4))
        assert not any(lines.any() for lines in outlines(contours(empty, mri, np.eye(4))))


class TestWords:
    @pytest.fixture(scope="class")
    @classmethod
    def drawn(cls, pair):
        pet, mri, mask = pair
        return contours(pet, mri, shift(0, 0, 12), mask)

    @staticmethod
    def opened(drawn, **changes):
        how = {"mode": "rigid", "registration": FIGURES, "reason": "it was asked for", **changes}
        return Image.open(BytesIO(picture_of(drawn, Alignment(**how), "sub-01")))

    def test_the_outlines_are_in_it_whole(self, drawn):
        picture = self.opened(drawn)
        assert picture.format == "PNG"
        for lines, row, part in zip(outlines(picture), outlines(drawn), (0, 1), strict=True):
            half = drawn.height // 2
            wanted = row[part * half : (part + 1) * half, : drawn.width]
            rows = np.flatnonzero(wanted.any(axis=1))
            wanted = wanted[rows[0] : rows[-1] + 1]
            tops = np.flatnonzero(lines.any(axis=1))
            assert any(
                np.array_equal(lines[top : top + len(wanted), : drawn.width], wanted)
                for top in tops
            )

    @pytest.mark.parametrize(
        "change",
        [
            {"flagged": True},
            {"mode": "header"},
            {"reason": "it was not asked for"},
            {"registration": {**FIGURES, "displacement_mm": 2.3}},
            {"registration": {**FIGURES, "rotation_deg": 2.3}},
            {"registration": {**FIGURES, "metric_after": 0.5}},
            {"registration": {**FIGURES, "overlap_before": 0.9}},
        ],
        ids=str,
    )
    def test_figures_and_the_verdict_are_written(self, drawn, change):
        one, other = self.opened(drawn), self.opened(drawn, **change)
        assert one.tobytes() != other.tobytes()

    def test_a_long_reason_goes_on_below(self, drawn):
        long = self.opened(drawn, reason="because " * 60)
        assert long.width == self.opened(drawn).width
        assert long.height > self.opened(drawn).height + 3 * LINE


def run(bids, out, mode, client, *labels):
    how = config("average").model_copy(update={"conform": ConformOptions(registration=mode)})
    return ff.run(bids, out, how, client=client, participant_labels=labels)


def move(path, mm):
    """Put an image elsewhere in the world, by its header."""
    image = nib.load(path)
    moved = shift(0, 0, mm) @ image.affine
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), moved), path)


def pictures(out):
    return sorted(path.name for path in out.rglob("*_registration.png"))


class TestInARun:
    LABEL = "sub-02_ses-baseline"
    NAME = f"{LABEL}_registration.png"
    PLACE = f"sub-02/ses-baseline/fused/{NAME}"

    @pytest.fixture(scope="class")
    @classmethod
    def registered(cls, phantom_bids, client, tmp_path_factory):
        """The input and the output of a run that registered two scans, whose headers are wrong."""
        folder = tmp_path_factory.mktemp("registered")
        bids = shutil.copytree(phantom_bids, folder / "bids")
        for subject in ("02", "03"):
            move(next((bids / f"sub-{subject}").rglob("*_pet.nii.gz")), mm=9)
        assert len(run(bids, folder / "out", "rigid", client, "02", "03").fused) == 2
        return bids, folder / "out"

    def test_it_lies_beside_the_fused_image_and_is_listed(self, registered):
        _, out = registered
        assert pictures(out) == [self.NAME, "sub-03_ses-baseline_registration.png"]
        record = read_published(OutputPaths(out), self.LABEL)
        listed = {item.path: item for item in record.outputs}
        assert (out / self.PLACE).stat().st_size == listed[self.PLACE].size < 300_000

    def test_it_shows_both_rows(self, registered):
        _, out = registered
        before, after = outlines(Image.open(out / self.PLACE))
        assert np.flatnonzero(before.any(axis=1))[-1] < np.flatnonzero(after.any(axis=1))[0]
        assert min(before.sum(), after.sum()) > 500

    def test_it_is_the_same_each_time(self, registered, client, tmp_path):
        bids, out = registered
        run(bids, tmp_path / "again", "rigid", client, "02")
        assert (tmp_path / "again" / self.PLACE).read_bytes() == (out / self.PLACE).read_bytes()

    def test_a_header_that_was_kept_is_judged_by_it_too(self, phantom_bids, client, tmp_path):
        (record,) = run(phantom_bids, tmp_path, "auto", client, "02").fused
        assert record.conformed["Alignment"]["mode"] == "header"
        assert pictures(tmp_path) == [self.NAME]

    def test_it_goes_with_its_scan(self, registered, tmp_path):
        bids, out = (shutil.copytree(folder, tmp_path / folder.name) for folder in registered)
        shutil.rmtree(bids / "sub-02")
        gone = prune(OutputPaths(out), removed=True, source=bids)
        assert self.PLACE in {item.path for item in gone}
        assert pictures(out) == ["sub-03_ses-baseline_registration.png"]

    def test_without_registration_there_is_none_and_an_old_one_goes(
        self, registered, client, tmp_path
    ):
        bids, out = registered[0], shutil.copytree(registered[1], tmp_path / "out")
        (record,) = run(bids, out, "header", client, "02").fused
        assert not any(item.path.endswith("_registration.png") for item in record.outputs)
        assert pictures(out) == ["sub-03_ses-baseline_registration.png"]
