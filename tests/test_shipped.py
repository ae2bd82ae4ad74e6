"""The model that comes with fusionflow: whole, said what it is, found offline, and of use."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from networks import needs_int8

import fusionflow
from fusionflow import learned
from fusionflow.cli import main
from fusionflow.config import METHODS, RunConfig
from fusionflow.correlations import sum_of_correlations
from fusionflow.errors import ChecksumError, WeightsNotFoundError
from fusionflow.graph import make_recipe
from fusionflow.images import fuse_slices
from fusionflow.kept import Kept
from fusionflow.phantom import make_phantom
from fusionflow.ssim import structural_similarity

METHOD = METHODS["dwt-vgg19"]


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """The models, where they can be damaged."""
    folder = shutil.copytree(learned.MODELS, tmp_path / "models")
    monkeypatch.setattr(learned, "MODELS", folder)
    return folder / "dwt-vgg19.safetensors"


@pytest.fixture(scope="module")
def head():
    """Some axial slices of a phantom that no model was trained on: (MRI, PET)."""
    phantom = make_phantom(1, shape=(96, 112, 96))
    mri = phantom.t1w / np.percentile(phantom.t1w, 99.5)
    # The PET has voxels of its own; slices of the MRI, smoothed otherwise, do for a source.
    pet = np.roll(np.clip(1.2 - mri, 0, 1) * (mri > 0.1), 6, axis=0)
    slices = np.stack([mri[:, :, z].T for z in (40, 50, 60)])
    return slices.astype(np.float32), np.stack([pet[:, :, z].T for z in (40, 50, 60)]).astype(
        np.float32
    )


class TestFile:
    def test_it_is_the_default_and_needs_nothing_else(self, monkeypatch, tmp_path):
        monkeypatch.setenv("FUSIONFLOW_OFFLINE", "1")
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "nothing"))
        monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", "")
        assert RunConfig().method == METHOD
        weights = make_recipe(RunConfig().method).weights
        assert weights.path.parent == learned.MODELS
        assert not weights.is_random

    def test_its_card_says_what_a_user_may_ask(self):
        card = learned.read_card(learned.shipped("vgg19"))
        assert card.name == "dwt-vgg19"
        assert "Simonyan" in card.licence
        assert "CC BY 4.0" in card.licence
        made = card.training
        assert made["config"]["seed"] >= 0
        assert {source["kind"] for source in made["config"]["train"]} == {
            "phantoms",
            "volumes",
            "scans",
        }
        assert all(len(made["data"][part]["sha256"]) == 64 for part in ("train", "validation"))
        assert {"fusionflow", "torch"} <= set(made["versions"])
        assert made["validation"]["qabf"] > 0.5

    def test_it_was_made_by_the_recipe_that_is_there(self):
        recipe = Path(fusionflow.__file__).parents[1] / "workflows/training/dwt-vgg19.yaml"
        if not recipe.is_file():
            pytest.skip("an installed package has no workflows")
        written = yaml.safe_load(recipe.read_text())
        made = learned.read_card(learned.shipped("vgg19")).training["config"]
        for name in written.keys() - {"train", "validation"}:
            assert made[name] == written[name], name
        for mine, theirs in zip(made["train"], written["train"], strict=True):
            assert mine["every"] == theirs["every"]

    def test_it_is_small(self):
        size = sum(path.stat().st_size for path in learned.MODELS.iterdir())
        assert size < 5e6

    def test_the_command_shows_it(self):
        result = CliRunner().invoke(main, ["weights", "show", "dwt-vgg19"])
        assert result.exit_code == 0, result.output
        assert yaml.safe_load(result.output)["backbone"] == "vgg19"
        named = CliRunner().invoke(main, ["weights", "show", str(learned.shipped("vgg19"))])
        assert named.output == result.output

    def test_damage_is_found(self, moved):
        content = bytearray(moved.read_bytes())
        content[-100] ^= 1
        moved.write_bytes(content)
        with pytest.raises(ChecksumError, match=r"dwt-vgg19\.safetensors"):
            make_recipe(METHOD)

    def test_without_a_checksum_it_is_not_believed(self, moved):
        (moved.parent / "SHA256SUMS").write_text("")
        with pytest.raises(ChecksumError, match="Nothing says what the model"):
            make_recipe(METHOD)

    @pytest.mark.parametrize("name", ["dwt-alexnet", "dwt-densenet121"])
    def test_what_does_not_come_with_it_is_told(self, name):
        with pytest.raises(WeightsNotFoundError, match=r"No trained model comes.*fusionflow train"):
            make_recipe(METHODS[name])

    def test_a_worker_that_has_it_elsewhere(self, moved, monkeypatch):
        monkeypatch.setattr(learned, "_nets", Kept())
        weights = make_recipe(METHOD).weights
        away = replace(weights, path=Path("/nowhere/fusionflow/models") / weights.path.name)
        assert learned.load_model(away).card.name == "dwt-vgg19"
        moved.write_bytes(b"another version")
        monkeypatch.setattr(learned, "_nets", Kept())
        with pytest.raises(ChecksumError):
            learned.load_model(away)


@pytest.fixture(scope="module")
def along(head):
    """What becomes of them along the knob: balance -> fused."""
    return {
        balance: fuse_slices(*head, make_recipe(METHOD.model_copy(update={"balance": balance})))
        for balance in (0.0, 0.25, 0.5, 0.75, 1.0)
    }


class TestUse:
    def test_the_knob_goes_from_one_source_to_the_other(self, head, along):
        for source, order in zip(head, (1, -1), strict=True):
            likeness = [
                np.mean([structural_similarity(s, f) for s, f in zip(source, fused, strict=True)])
                for fused in along.values()
            ][::order]
            assert (np.diff(likeness) > 0).all()
            assert likeness[-1] > 0.999

    def test_the_middle_shows_both(self, head, along):
        """More of both than their mean, by the correlation of differences."""
        mri, pet = head
        for m, p, fused in zip(mri, pet, along[0.5], strict=True):
            assert sum_of_correlations(m, p, fused) > sum_of_correlations(m, p, (m + p) / 2) + 0.1

    @pytest.mark.parametrize("shorter", ["bfloat16", pytest.param("int8", marks=needs_int8)])
    def test_fewer_digits_give_50_db_of_all(self, head, shorter):
        exact, fast = (
            fuse_slices(
                *(source[:2] for source in head),
                make_recipe(METHOD.model_copy(update={"precision": precision})),
            ).astype(np.float64)
            for precision in ("float32", shorter)
        )
        error = np.square(exact - fast).mean(axis=(1, 2))
        assert (error > 0).all()
        assert (10 * np.log10(1 / error) >= 50).all()

    @pytest.mark.parametrize("balance", [0.25, 0.5, 0.75])
    def test_a_hot_lesion_without_a_trace_in_the_mri_stays(self, head, balance):
        mri, pet = head[0][:1], head[1][:1] * 0.3
        hot = pet.copy()
        hot[0, 50:56, 40:46] = 1.0
        recipe = make_recipe(METHOD.model_copy(update={"balance": balance}))
        before, after = (fuse_slices(mri, image, recipe) for image in (pet, hot))
        rise = np.maximum(mri, hot) - np.maximum(mri, pet)
        inside = np.s_[0, 51:55, 41:45]
        assert rise[inside].mean() > 0.1
        assert (after - before)[inside].mean() > 0.7 * rise[inside].mean()
        assert np.abs(after - before)[0, :, 80:].max() < 0.05

    def test_slices_far_brighter_than_any_training(self, head):
        recipe = make_recipe(METHOD)
        fused = fuse_slices(head[0] * 30, head[1] * 30, recipe)
        assert np.isfinite(fused).all()
        assert np.abs(fused).max() <= 2 * max(source.max() for source in head) * 30
