"""The plan says beforehand what a run then does; the text says afterwards what it did."""

from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from runs import config
from strategies import published

import fusionflow as ff
from fusionflow import planning
from fusionflow.cli import main
from fusionflow.config import METHODS, ConformOptions, InputOptions
from fusionflow.errors import ConfigurationError, NoScansError
from fusionflow.graph import make_recipe
from fusionflow.kept import Kept
from fusionflow.methods_text import methods_text
from fusionflow.overlay import pet_on_mri
from fusionflow.planning import plan


@pytest.fixture(scope="module")
def troubled(phantom_bids, tmp_path_factory):
    """The phantom cohort with planted trouble, each for a stated rule."""
    bids = tmp_path_factory.mktemp("troubled") / "bids"
    shutil.copytree(phantom_bids, bids)
    one, two, three = (bids / f"sub-0{n}" for n in (1, 2, 3))
    # A session without T1w takes the other's; one subject has no PET; another has two T1w, of which
    # one has an entity that BIDS does not know, and a dynamic PET.
    shutil.rmtree(one / "ses-followup/anat")
    shutil.rmtree(two / "ses-baseline/pet")
    t1w = three / "ses-baseline/anat/sub-03_ses-baseline_T1w.nii.gz"
    shutil.copy(t1w, t1w.with_name("sub-03_ses-baseline_acq-b_T1w.nii.gz"))
    t1w.rename(t1w.with_name("sub-03_ses-baseline_flavour-a_T1w.nii.gz"))
    pet = three / "ses-baseline/pet/sub-03_ses-baseline_trc-FDG_pet.nii.gz"
    image = nib.load(pet)
    data = image.get_fdata(dtype=np.float32)
    nib.save(nib.Nifti1Image(np.stack([data, 3 * data], -1), image.affine), pet)
    sidecar = pet.with_name(pet.name.replace(".nii.gz", ".json"))
    content = json.loads(sidecar.read_text())
    content |= {"FrameTimesStart": [0, 300], "FrameDuration": [300, 300]}
    sidecar.write_text(json.dumps(content))
    return bids


@pytest.fixture(scope="module")
def both(troubled, client, tmp_path_factory):
    """The plan, the report of the run, and what is there afterwards."""
    out = tmp_path_factory.mktemp("planned") / "out"
    how = config("average")
    return plan(troubled, how), ff.run(troubled, out, how, client=client), ff.open_cohort(out)


class TestPlan:
    def test_agrees_with_what_the_run_then_did(self, both):
        planned, report, cohort = both
        assert sorted(item.label for item in planned.scans) == list(cohort)
        excluded = {item.label for item in planned.excluded}
        assert excluded == {item.label for item in (*report.skipped, *report.failed)}
        for item in planned.scans:
            record = cohort.record(item.label)
            assert item.shape == record.shape
            assert list(item.files.values()) == [entry.path for entry in record.inputs]
            said = any("resampled" in step for step in item.steps)
            assert said is (record.conformed["Resampled"] != "no")

    def test_each_trouble_is_met_by_its_rule(self, both):
        planned, _, cohort = both
        notes = {label: " ".join(cohort.record(label).notes) for label in cohort}
        assert "that of sub-01_ses-baseline is taken" in notes["sub-01_ses-followup"]
        third = notes["sub-03_ses-baseline"]
        assert "sub-03_ses-baseline_acq-b_T1w.nii.gz is taken" in third
        assert "mean of 2 frames over 600 s" in third
        (left,) = planned.excluded
        assert (left.label, left.broken) == ("sub-02_ses-baseline", False)
        assert "no pet image" in left.reason

    def test_memory_and_time_are_estimated(self, both):
        planned, _, _ = both
        for item in planned.scans:
            assert item.memory_bytes > 1e8
            assert item.seconds > 0

    def test_a_client_without_8_bits_has_no_estimate_and_no_scan_is_left_out(
        self, monkeypatch, troubled
    ):
        """Workers may have what a login node lacks."""
        monkeypatch.setattr(planning, "has_int8", lambda: False)
        planned = plan(troubled, config(precision="int8"))
        assert planned.scans
        assert not any(item.broken for item in planned.excluded)
        assert all(item.seconds is None for item in planned.scans)
        assert any("no convolutions of 8 bits" in note for note in planned.notes)

    def test_a_process_looks_once_how_long_slices_of_a_size_take(self, monkeypatch):
        monkeypatch.setattr(planning, "_probed", Kept())
        fused = []
        true = planning.fuse_slab
        monkeypatch.setattr(planning, "fuse_slab", lambda *a: fused.append(a) or true(*a))
        one, other = (make_recipe(config("average", temperature=t).method) for t in (0.31, 0.32))
        seconds = [
            planning.seconds_a_slice(recipe, 40, columns)
            for recipe, columns in ((one, 32), (one, 32), (one, 48), (other, 32), (one, 32))
        ]
        assert len(fused) == 3 * 2  # each but the repeated ones warms up first
        assert seconds[0] == seconds[1] == seconds[4] > 0

    def test_what_cannot_be_is_excluded_beforehand(self, troubled):
        asked = config("average").model_copy(
            update={"conform": ConformOptions(pet_units="suvr", registration="header")}
        )
        found = plan(troubled, asked)
        assert found.scans == ()
        assert all("reference region" in item.reason for item in found.excluded if item.broken)

    def test_an_option_that_means_nothing_is_refused(self, troubled):
        asked = config("average").model_copy(update={"conform": ConformOptions(mask="bet")})
        with pytest.raises(ConfigurationError, match="bet"):
            plan(troubled, asked)
        nowhere = config("average").model_copy(
            update={"input": InputOptions(derivatives=(troubled / "nowhere",))}
        )
        with pytest.raises(ConfigurationError, match="derivative"):
            plan(troubled, nowhere)

    def test_on_the_command_line(self, troubled):
        shown = CliRunner().invoke(main, ["plan", str(troubled), "--method", "average"])
        assert shown.exit_code == 0
        assert "3 would run, 1 would not" in shown.output
        told = CliRunner().invoke(main, ["plan", str(troubled), "--method", "average", "--json"])
        assert len(json.loads(told.output)["scans"]) == 3

    def test_of_nothing_ends_with_4(self, tmp_path):
        told = CliRunner().invoke(main, ["plan", str(tmp_path), "--method", "average"])
        assert told.exit_code == 4


class TestText:
    CONFORMED = {  # noqa: RUF012
        "Alignment": {"mode": "rigid", "flagged": False, "registration": {}},
        "Resampled": "PET onto the T1w grid, trilinear",
        "Frames": "40-60min",
        "Mask": "file",
        "Options": {"pet_units": "suv", "pet_window": [0, 10], "mri_percentile": 99.0},
    }

    def test_says_what_was_done(self):
        text = methods_text([published("sub-01", conformed=self.CONFORMED)])
        for words in (
            "1 subject (1 scan)", "40-60min", "rigid transform", "SUV by body weight",
            "fixed window 0 to 10", "99th percentile", "db2", "relu1_1", "Mattes", "Boellaard",
            "not quantitative PET",
        ):  # fmt: skip
            assert words in text

    @pytest.mark.parametrize(
        ("precision", "words"),
        [("float32", None), ("bfloat16", "arithmetic was bfloat16"), ("int8", "8-bit integers")],
    )
    def test_says_in_how_few_digits_a_network_ran(self, precision, words):
        method = METHODS["dwt-vgg19-l1"].model_copy(update={"precision": precision})
        text = methods_text([published("sub-01", method=method.model_dump(mode="json"))])
        assert ("arithmetic" in text) is (words is not None)
        assert words is None or words in text
        text = methods_text(
            [
                published(
                    "sub-01",
                    method={"name": "average", "rule": "average", "precision": precision},
                    weights=None,
                )
            ]
        )
        assert "arithmetic" not in text

    def test_cites_nothing_that_was_not_used(self):
        record = published("sub-01", method={"name": "average", "rule": "average"}, weights=None)
        text = methods_text([record])
        assert "Simonyan" not in text
        assert "Mattes" not in text

    def test_has_a_paragraph_for_each_way(self):
        records = [published("sub-01"), published("sub-02", request="e" * 64)]
        assert methods_text(records).count("were fused with fusionflow") == 2

    def test_of_nothing(self):
        with pytest.raises(NoScansError):
            methods_text([])


class TestOverlay:
    def test_no_uptake_is_the_mri_in_grey(self):
        mri = np.linspace(0, 1, 60).reshape(3, 4, 5)
        colours = pet_on_mri(mri, np.zeros_like(mri))
        assert np.ptp(colours.astype(int), axis=-1).max() <= 1
        assert (np.diff(colours[..., 0].ravel().astype(int)) >= 0).all()

    def test_uptake_gives_hue_and_what_is_beyond_is_cut(self):
        mri = np.full((2, 2), 0.5)
        colours = pet_on_mri(mri, np.array([[0.2, 0.9], [1.0, 9.0]]))
        assert np.ptp(colours[0, 1].astype(int)) > 60
        np.testing.assert_array_equal(colours[1, 0], colours[1, 1])
