"""Weights are listed, staged with their checksums, and verified."""

import re
import subprocess
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from networks import random_state
from safetensors.torch import save_file

from fusionflow import weight_store
from fusionflow.backbones import BACKBONES, resolve_weights
from fusionflow.cli import main
from fusionflow.errors import ChecksumError, ConfigurationError, WeightsError
from fusionflow.learned import shipped_models
from fusionflow.weights import SUMS_FILE, file_sha256


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch's cache with a file for alexnet whose name states its checksum, as torchvision's do."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("FUSIONFLOW_OFFLINE", "1")
    monkeypatch.delenv("FUSIONFLOW_WEIGHTS_DIR", raising=False)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    made = folder / "made.pth"
    torch.save({"features.0.weight": torch.ones(64, 3, 11, 11)}, made)
    path = made.rename(folder / f"alexnet-{file_sha256(made)[:8]}.pth")
    url = f"https://example.org/{path.name}"
    monkeypatch.setitem(BACKBONES, "alexnet", replace(BACKBONES["alexnet"], url=url))
    return path


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "trained-here.safetensors"
    save_file(random_state(0), path)
    return path


def test_what_is_known(cache):
    known = {item.backbone: item for item in weight_store.known_weights()}
    assert set(known) == set(BACKBONES)
    assert known["alexnet"].found == (cache,)
    assert known["vgg19"].found == ()
    assert known["vgg19"].digest == "dcbb9e9d"
    listed = CliRunner().invoke(main, ["weights", "list"])
    assert listed.exit_code == 0
    assert f"here     {cache}" in listed.output
    assert "548 MB, SHA-256 dcbb9e9d" in listed.output
    assert listed.output.count("licence") == len(BACKBONES) + len(shipped_models())
    assert "dwt-vgg19, trained" in listed.output


def test_stage_then_run_finds_them(cache, tmp_path, monkeypatch):
    staged = tmp_path / "shared folder"
    result = CliRunner().invoke(main, ["weights", "stage", str(staged), "alexnet"])
    assert result.exit_code == 0, result.output
    assert (staged / cache.name).read_bytes() == cache.read_bytes()
    # The standard tool agrees.
    subprocess.run(["sha256sum", "--strict", "-c", SUMS_FILE], cwd=staged, check=True)
    monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(staged))
    assert resolve_weights("auto", "alexnet").path == (staged / cache.name).resolve()


def test_stage_a_file_of_ones_own(cache, own_file, tmp_path, monkeypatch):
    staged = tmp_path / "staged"
    (path,) = weight_store.stage(staged, ["vgg19"], own_file)
    assert path.name == "vgg19-trained-here.safetensors"
    assert [item.fault for item in weight_store.verify(staged)] == [None]
    # A second one joins it.
    list(weight_store.stage(staged, ["alexnet"]))
    assert len((staged / SUMS_FILE).read_text().splitlines()) == 2
    monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(staged))
    assert resolve_weights("auto", "vgg19").path == path.resolve()


@pytest.mark.parametrize("names", [[], ["vgg19", "alexnet"]])
def test_a_file_belongs_to_one_backbone(own_file, tmp_path, names):
    with pytest.raises(ConfigurationError, match="belongs to one backbone"):
        list(weight_store.stage(tmp_path / "staged", names, own_file))
    assert not (tmp_path / "staged").exists()


def test_a_file_that_a_run_would_refuse_is_not_staged(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("no weights")
    with pytest.raises(ConfigurationError, match=r"neither a \.safetensors nor a \.pth"):
        list(weight_store.stage(tmp_path / "staged", ["vgg19"], text))
    other = tmp_path / "other.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, other)
    with pytest.raises(WeightsError, match=r"features\.0\.weight of shape"):
        list(weight_store.stage(tmp_path / "staged", ["vgg19"], other))
    assert not (tmp_path / "staged").exists()


def test_damage_is_found_by_verify_and_by_a_run(own_file, tmp_path, monkeypatch):
    staged = tmp_path / "staged"
    (path,) = weight_store.stage(staged, ["vgg19"], own_file)
    path.write_bytes(path.read_bytes()[:-1])
    result = CliRunner().invoke(main, ["weights", "verify", str(staged)])
    assert result.exit_code == 3
    assert f"BAD   {path}: its SHA-256 is not" in result.output
    monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(staged))
    with pytest.raises(ChecksumError, match="stage it again"):
        resolve_weights("auto", "vgg19")


def test_verify_names_what_is_missing_unknown_or_no_weights(own_file, tmp_path):
    staged = tmp_path / "staged"
    (good,) = weight_store.stage(staged, ["vgg19"], own_file)
    stranger = staged / "vgg16.pth"
    stranger.write_bytes(b"?")
    junk = staged / "alexnet.safetensors"
    junk.write_bytes(b"no tensors")
    with (staged / SUMS_FILE).open("a") as sums:
        sums.write(f"{file_sha256(junk)}  {junk.name}\n{'0' * 64}  gone.pth\n")
    faults = {item.path.name: item.fault for item in weight_store.verify(staged)}
    assert faults[good.name] is None
    assert "does not name it" in faults["vgg16.pth"]
    assert "Cannot read the weights" in faults["alexnet.safetensors"]
    assert "No such file" in faults["gone.pth"]


def test_verify_the_cache(cache):
    models = [weight_store.Checked(path, None) for path in shipped_models()]
    assert weight_store.verify() == [*models, weight_store.Checked(cache, None)]
    cache.write_bytes(b"damaged")
    *_, item = weight_store.verify()
    assert "its SHA-256 is not" in item.fault


def test_verify_nothing(cache, tmp_path):
    (tmp_path / "empty").mkdir()
    named = CliRunner().invoke(main, ["weights", "verify", str(tmp_path / "empty")])
    assert named.exit_code == 2  # the wrong folder
    assert f"{tmp_path / 'empty'} holds no weights" in named.output


def test_verify_what_comes_with_fusionflow():
    result = CliRunner().invoke(main, ["weights", "verify"])
    assert result.exit_code == 0, result.output
    assert re.search(r"ok +\S+/models/dwt-vgg19\.safetensors", result.output)


def test_offline_nothing_is_downloaded(cache):
    result = CliRunner().invoke(main, ["weights", "fetch", "--offline", "vgg16"])
    assert result.exit_code == 4
    assert "could not be downloaded (offline)" in result.output
    result = CliRunner().invoke(main, ["weights", "fetch", "--offline", "alexnet"])
    assert result.exit_code == 0
    assert result.output.strip() == str(cache)
