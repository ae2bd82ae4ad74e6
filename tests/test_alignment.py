"""How the PET comes onto the MRI, in which units it is scaled, and by whose mask."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from runs import config

import fusionflow as ff
from fusionflow.config import ConformOptions
from fusionflow.conform import conform
from fusionflow.errors import ConfigurationError, GridError, ImageError
from fusionflow.events import Fused
from fusionflow.io.bids import discover
from fusionflow.io.nifti import read_header, read_volume
from fusionflow.masks import MaskRule, mask_rule
from fusionflow.pet_info import PetInfo

LABEL = "sub-02_ses-baseline"


@pytest.fixture
def pair(phantom_bids, tmp_path):
    """A T1w and a PET of the phantom, to be spoilt."""
    scan = next(scan for scan in discover(phantom_bids).scans if scan.label == LABEL)
    t1w, pet = tmp_path / "t1w.nii.gz", tmp_path / "pet.nii.gz"
    shutil.copy(scan.t1w, t1w)
    shutil.copy(scan.pet, pet)
    return t1w, pet


def turn(path, mm=0.0, degrees=0.0):
    """Put an image elsewhere in the world, by its header."""
    image = nib.load(path)
    angle = np.radians(degrees)
    move = np.eye(4)
    move[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    move[2, 3] = mm
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), move @ image.affine), path)


def header(**options):
    return ConformOptions(registration="header", **options)


class TestModes:
    def test_auto_leaves_a_good_header_alone(self, pair):
        found = conform(*pair, ConformOptions())
        as_it_is = conform(*pair, header())
        assert (found.alignment.mode, found.alignment.flagged) == ("header", False)
        assert found.alignment.registration["displacement_mm"] < 3.5
        np.testing.assert_array_equal(found.pet, as_it_is.pet)

    @pytest.mark.parametrize("mode", ["auto", "rigid"])
    def test_a_wrong_header_is_overruled(self, pair, mode):
        before = conform(*pair, header())
        turn(pair[1], mm=9, degrees=8)
        wrong = conform(*pair, header())
        found = conform(*pair, ConformOptions(registration=mode))
        assert found.alignment.mode == "rigid"
        inside = before.mask > 0
        error = np.abs(found.pet - before.pet)[inside].mean()
        assert error < 0.35 * np.abs(wrong.pet - before.pet)[inside].mean()
        assert json.loads(json.dumps(found.alignment.to_json()))["registration"]["settled"]

    def test_none_takes_voxel_for_voxel(self, pair, tmp_path):
        t1w, _ = pair
        moved = tmp_path / "moved.nii.gz"
        image = nib.load(t1w)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32), image.affine), moved)
        turn(moved, mm=50)
        found = conform(t1w, moved, ConformOptions(registration="none"))
        assert not found.resampled
        assert found.alignment.mode == "none"

    def test_none_refuses_another_number_of_voxels(self, pair):
        with pytest.raises(GridError, match="voxel for voxel"):
            conform(*pair, ConformOptions(registration="none"))

    def test_what_is_not_to_be_believed_is_flagged_or_refused(self, pair):
        """A PET of noise agrees with nothing."""
        image = nib.load(pair[1])
        noise = np.random.default_rng(0).random(image.shape, dtype=np.float32)
        nib.save(nib.Nifti1Image(noise, image.affine), pair[1])
        found = conform(*pair, ConformOptions())
        assert found.alignment.mode == "header"
        with pytest.raises(GridError, match="not to be believed"):
            conform(*pair, ConformOptions(registration="rigid"))

    def test_what_was_aligned_before_is_not_registered(self, pair):
        found = conform(*pair, ConformOptions(), pet_in_t1w_space=True)
        assert found.alignment.mode == "in T1w space"
        assert found.alignment.registration is None


class TestUnits:
    INFO = PetInfo(
        units="Bq/mL", dose_bq=2e8, weight_kg=80, decay_corrected=True, decay_seconds=0.0
    )

    def test_suv_with_a_window_is_the_same_scale_for_every_scan(self, pair):
        uptake = read_volume(pair[1]).data
        found = conform(*pair, header(pet_units="suv", pet_window=(0, 1e-3)), info=self.INFO)
        plain = conform(*pair, header())
        factor = 80_000 / 2e8
        assert found.suv_factor == pytest.approx(factor)
        assert found.units == "SUV"
        expected = plain.pet * plain.scaling["pet"].scale * factor / 1e-3
        np.testing.assert_allclose(found.pet, expected, rtol=1e-4, atol=1e-5)
        assert uptake.max() > 0

    def test_suv_that_cannot_be_had_names_what_is_missing(self, pair):
        with pytest.raises(ImageError, match="body weight") as error:
            conform(*pair, header(pet_units="suv"))
        assert str(pair[1]) in str(error.value)

    def test_missing_metadata_limit_nothing_else(self, pair):
        assert conform(*pair, header()).suv_factor is None

    def test_suvr_is_one_in_the_reference_region(self, pair, tmp_path):
        t1w = nib.load(pair[0])
        inside = conform(*pair, header()).mask.T.astype(np.float32)
        region = np.zeros_like(inside)
        region[10:20, 10:40, 10:20] = inside[10:20, 10:40, 10:20]
        like = read_header(pair[0]).orientation
        path = tmp_path / "region.nii.gz"
        nib.save(nib.Nifti1Image(region, like.ras_affine), path)
        found = conform(*pair, header(pet_units="suvr", pet_window=(0, 1)), reference=path)
        assert found.pet[region.T > 0.5].mean() == pytest.approx(1, rel=1e-4)
        assert t1w.shape == region.shape

    def test_suvr_without_a_region_says_how_to_give_one(self, pair):
        with pytest.raises(ImageError, match="reference_region"):
            conform(*pair, header(pet_units="suvr"))

    @pytest.mark.parametrize("window", [(1, 1), (2, 1), (0, float("inf"))])
    def test_a_window_that_is_none(self, window):
        with pytest.raises(ValueError, match="low must be less"):
            ConformOptions(pet_window=window)


class TestMasks:
    def test_a_file_comes_first(self, pair, tmp_path):
        like = read_header(pair[0]).orientation
        box = np.zeros(like.ras_shape, np.uint8)
        box[10:30, 10:40, 10:30] = 1
        path = tmp_path / "mask.nii.gz"
        nib.save(nib.Nifti1Image(box, like.ras_affine), path)
        found = conform(*pair, header(), mask=path)
        assert found.mask_from == "file"
        np.testing.assert_array_equal(found.mask, box.T)
        assert conform(*pair, header(mask="head"), mask=path).mask_from == "head"

    def test_a_mask_that_lies_elsewhere_is_refused_by_name(self, pair, tmp_path):
        box = np.zeros((8, 8, 8), np.uint8)
        box[2:6, 2:6, 2:6] = 1
        path = tmp_path / "mask.nii"
        nib.save(nib.Nifti1Image(box, nib.affines.from_matvec(np.eye(3), [900, 0, 0])), path)
        with pytest.raises(GridError, match=r"mask\.nii"):
            conform(*pair, header(), mask=path)

    def test_a_rule_that_nobody_offers(self, pair):
        with pytest.raises(ConfigurationError, match="No mask rule is called 'bet'"):
            conform(*pair, header(mask="bet"))

    def test_our_own_is_a_rule_like_others(self):
        assert isinstance(mask_rule("head"), MaskRule)


class TestSpace:
    def test_all_scans_get_the_grid_of_the_template(self, pair, tmp_path):
        template = tmp_path / "template.nii.gz"
        affine = np.diag([-4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = [80, -90, -70]
        nib.save(nib.Nifti1Image(np.ones((40, 46, 36), np.float32), affine), template)
        found = conform(*pair, header(space=template))
        assert found.mri.shape == found.pet.shape == found.mask.shape == (36, 46, 40)
        np.testing.assert_array_equal(found.orientation.affine, affine)
        own = conform(*pair, header())
        point = [12.0, -8.0, 10.0]

        def at(volume, grid):
            x, y, z = np.rint(nib.affines.apply_affine(np.linalg.inv(grid), point)).astype(int)
            return volume[z, y, x]

        assert at(found.mri, found.affine) == pytest.approx(at(own.mri, own.affine), abs=0.25)


class TestFacts:
    """What is known of a scan besides the content of its files."""

    def test_a_run_onto_a_template_of_another_shape(self, phantom_bids, client, tmp_path):
        template = tmp_path / "template.nii.gz"
        affine = np.diag([4.0, 4.0, 4.0, 1.0])
        affine[:3, 3] = [-80, -90, -70]
        nib.save(nib.Nifti1Image(np.ones((40, 46, 36), np.float32), affine), template)
        how = config("average").model_copy(update={"conform": header(space=template)})
        report = ff.run(
            phantom_bids, tmp_path / "out", how, client=client, participant_labels=["02", "03"]
        )
        assert [record.shape for record in report.fused] == [(36, 46, 40)] * 2
        assert ff.open_cohort(tmp_path / "out").stack().sizes["scan"] == 2

    def test_mending_a_sidecar_ends_a_quarantine(self, phantom_bids, client, tmp_path):
        bids = shutil.copytree(phantom_bids, tmp_path / "bids")
        scan = next(scan for scan in discover(bids).scans if scan.label == LABEL)
        path = scan.pet.with_name(scan.pet.name.replace(".nii.gz", ".json"))
        whole = path.read_text()
        path.write_text(json.dumps({**json.loads(whole), "Units": "furlongs"}))
        how = config("average").model_copy(update={"conform": header(pet_units="suv")})
        run = {"config": how, "client": client, "participant_labels": ["02"]}
        (failure,) = ff.run(bids, tmp_path / "out", **run).failed
        assert failure.state == "quarantined"
        assert len(ff.run(bids, tmp_path / "out", **run).quarantined) == 1
        path.write_text(whole)
        assert len(ff.run(bids, tmp_path / "out", **run).fused) == 1

    def test_another_use_of_the_same_files_is_made_again(self, pair, client, tmp_path):
        table = tmp_path / "manifest.tsv"
        rows = "participant_id\tt1w\tpet\tpet_space\n01\tt1w.nii.gz\tpet.nii.gz\t{}\n"
        out = tmp_path / "out"
        for space in ("", "T1w"):
            table.write_text(rows.format(space))
            report = ff.run(table, out, config("average"), client=client)
            assert len(report.fused) == 1
            assert ff.run(table, out, config("average"), client=client).unchanged == ["sub-01"]
        assert report.fused[0].conformed["Alignment"]["mode"] == "in T1w space"


class TestInARun:
    def test_a_misaligned_pair_is_registered_and_all_is_said(self, phantom_bids, client, tmp_path):
        bids = shutil.copytree(phantom_bids, tmp_path / "bids")
        scan = next(scan for scan in discover(bids).scans if scan.label == LABEL)
        turn(scan.pet, mm=9, degrees=8)
        run = config("average").model_copy(update={"conform": ConformOptions()})
        events = []
        out = tmp_path / "out"
        ff.run(bids, out, run, client=client, participant_labels=["02"], on_event=events.append)
        (event,) = (event for event in events if isinstance(event, Fused))
        assert event.record.conformed["Alignment"]["mode"] == "rigid"
        assert any("registered to the MRI" in note for note in event.record.notes)
        sidecar = json.loads(next(out.rglob("*_fused.json")).read_text())
        assert sidecar["Conform"]["Alignment"]["registration"]["settled"]
        assert sidecar["SkullStripped"] is False
        text = (out / "group_methods.md").read_text()
        assert "rigid transform" in text
        assert "Mattes" in text
        overlay = nib.load(next(out.rglob("*_overlay.nii.gz")))
        assert overlay.shape == nib.load(scan.t1w).shape
