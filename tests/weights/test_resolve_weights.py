"""Weights are found where they were asked for."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from vgg19_files import TAPS, resolved

from fusionflow.backbones import BACKBONES, build_trunk, resolve_weights
from fusionflow.errors import ChecksumError, ConfigurationError, WeightsNotFoundError
from fusionflow.weights import Weights, file_sha256

CACHED_NAME = "vgg19-dcbb9e9d.pth"


@pytest.fixture
def weights_dir(tmp_path, monkeypatch):
    folder = tmp_path / "staged"
    folder.mkdir()
    monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(folder))
    return folder


@pytest.fixture
def torch_cache(tmp_path, monkeypatch):
    """The folder that torchvision's files are cached in: empty, and not the person's own."""
    monkeypatch.delenv("FUSIONFLOW_WEIGHTS_DIR", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def no_network(monkeypatch):
    """A download that fails as it does offline.

    The one thing that is replaced in these tests: whether the machine that runs them has a
    network must not decide their outcome, nor may they fetch 550 MB where it has one.
    """
    asked = []

    def download_url_to_file(url, *_args, **_kwargs):
        asked.append(url)
        raise URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download_url_to_file)
    return asked


class TestRandom:
    @pytest.mark.parametrize(
        ("spec", "identity"),
        [("random:0", "random:0"), ("random:42", "random:42"), ("random:007", "random:7")],
    )
    def test_weights_are_their_seed(self, spec, identity):
        weights = resolve_weights(spec, "vgg19")
        assert (weights.identity, weights.path, weights.is_random) == (identity, None, True)

    @pytest.mark.parametrize(
        "spec",
        [
            "random:",
            "random:-1",
            "random:1.5",
            "random:x",
            f"random:{2**63}",
            f"random:{'9' * 5000}",
            "random: 1",
        ],
    )
    def test_what_is_no_seed_is_refused(self, spec):
        with pytest.raises(ConfigurationError, match="seed") as error:
            resolve_weights(spec, "vgg19")
        assert spec in str(error.value)
        assert "random:0" in error.value.mend

    def test_the_description_warns(self):
        assert "not pretrained" in resolve_weights("random:0", "vgg19").description


class TestFile:
    @pytest.mark.parametrize("name", ["vgg19.safetensors", "anything.pth"])
    def test_is_known_by_its_checksum(self, tmp_path, state, name):
        path = tmp_path / name
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
        weights = resolved(path)
        assert weights == Weights("vgg19", file_sha256(path), path.resolve())
        assert not weights.is_random
        assert name in weights.description
        assert weights.identity[:12] in weights.description

    def test_is_absolute_so_that_it_travels_to_workers(self, tmp_path, monkeypatch):
        (tmp_path / "vgg19.pth").write_bytes(b"weights")
        monkeypatch.chdir(tmp_path)
        weights = pickle.loads(pickle.dumps(resolved(Path("vgg19.pth"))))
        assert weights.path == (tmp_path / "vgg19.pth").resolve()

    @pytest.mark.parametrize("make", [lambda path: None, Path.mkdir], ids=["missing", "a folder"])
    def test_that_is_none_is_named(self, tmp_path, make):
        path = tmp_path / "vgg19.safetensors"
        make(path)
        with pytest.raises(WeightsNotFoundError, match="No weights file") as error:
            resolved(path)
        assert str(path) in str(error.value)
        assert "random:SEED" in error.value.mend

    def test_is_not_looked_for_in_the_weights_folder(self, weights_dir):
        (weights_dir / "vgg19.pth").write_bytes(b"staged")
        with pytest.raises(WeightsNotFoundError):
            resolve_weights("vgg19.pth", "vgg19")


class TestFolder:
    @pytest.mark.parametrize(
        "name",
        ["vgg19.safetensors", "vgg19.pth", CACHED_NAME, "vgg19-conv1_1-conv3_1.safetensors"],
    )
    def test_weights_are_found_by_the_name_of_the_backbone(self, weights_dir, name):
        (weights_dir / name).write_bytes(b"weights")
        assert resolve_weights("auto", "vgg19").path == (weights_dir / name).resolve()

    @pytest.mark.parametrize(
        ("names", "chosen"),
        [
            (["vgg19-a.safetensors", "vgg19-a-rgb.safetensors"], "vgg19-a.safetensors"),
            (["vgg19-long.safetensors", "vgg19.pth"], "vgg19.pth"),
            (["vgg19-b.pth", "vgg19-a.pth"], "vgg19-a.pth"),
            (["vgg19_bn-c79401a0.pth", CACHED_NAME], CACHED_NAME),
        ],
    )
    def test_of_several_the_shortest_name_counts_then_the_alphabet(
        self, weights_dir, names, chosen
    ):
        for name in names:
            (weights_dir / name).write_bytes(b"weights")
        assert resolve_weights("auto", "vgg19").path.name == chosen

    @pytest.mark.parametrize(
        "name", ["vgg16.pth", "vgg190.pth", "vgg19bn.pth", "my-vgg19.pth", "vgg19.onnx", "vgg19"]
    )
    def test_weights_of_something_else_do_not_count(self, weights_dir, name):
        (weights_dir / name).write_bytes(b"weights")
        with pytest.raises(WeightsNotFoundError):
            resolve_weights("auto", "vgg19")

    def test_weights_of_the_net_with_batch_normalisation_do_not_count(self, weights_dir):
        (weights_dir / "vgg19_bn-c79401a0.pth").write_bytes(b"weights")
        with pytest.raises(WeightsNotFoundError):
            resolve_weights("auto", "vgg19")

    def test_an_empty_folder_is_an_error_and_nothing_is_downloaded(
        self, weights_dir, torch_cache, no_network, monkeypatch
    ):
        monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(weights_dir))
        with pytest.raises(WeightsNotFoundError, match="No weights of vgg19") as error:
            resolve_weights("auto", "vgg19")
        assert str(weights_dir) in str(error.value)
        assert "FUSIONFLOW_WEIGHTS_DIR" in str(error.value)
        assert no_network == []

    def test_a_folder_that_is_not_there_is_named(self, weights_dir):
        weights_dir.rmdir()
        with pytest.raises(WeightsNotFoundError) as error:
            resolve_weights("auto", "vgg19")
        assert str(weights_dir) in str(error.value)

    def test_the_real_weights_are_found_before_their_variant(
        self, shared, vgg19_weights, monkeypatch
    ):
        monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(shared / "weights"))
        assert resolve_weights("auto", "vgg19").path == vgg19_weights.resolve()


class TestTorchvision:
    @pytest.mark.parametrize("spec", ["auto", "torchvision"])
    def test_without_network_and_cache_the_error_names_every_way_out(
        self, torch_cache, no_network, spec
    ):
        with pytest.raises(WeightsNotFoundError, match="could not be downloaded") as error:
            resolve_weights(spec, "vgg19")
        assert no_network == [BACKBONES["vgg19"].url]
        assert "Name or service not known" in error.value.message
        for way in (
            str(torch_cache / CACHED_NAME),
            "FUSIONFLOW_WEIGHTS_DIR",
            "--weights FILE",
            "--weights random:0",
        ):
            assert way in error.value.mend

    @pytest.mark.parametrize("spec", ["auto", "torchvision"])
    @pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as torchvision has it"])
    def test_a_cached_file_is_read(self, torch_cache, no_network, state, spec, zipped, monkeypatch):
        # torchvision's VGG19 is of 2017, older than the zip format of torch 1.6:
        # https://github.com/pytorch/vision/issues/2068
        torch_cache.mkdir(parents=True)
        made = torch_cache / "made.pth"
        torch.save(state, made, _use_new_zipfile_serialization=zipped)
        # The file's name ends in the beginning of its checksum, as torchvision's do.
        cached = made.rename(torch_cache / f"vgg19-{file_sha256(made)[:8]}.pth")
        url = f"https://example.org/{cached.name}"
        monkeypatch.setitem(BACKBONES, "vgg19", replace(BACKBONES["vgg19"], url=url))
        weights = resolve_weights(spec, "vgg19")
        assert weights.path == cached.resolve()
        assert no_network == []
        trunk = build_trunk(weights, TAPS)
        assert torch.equal(trunk.bias, state["features.0.bias"])

    def test_a_cached_file_that_is_damaged_is_refused(self, torch_cache, no_network):
        torch_cache.mkdir(parents=True)
        (torch_cache / CACHED_NAME).write_bytes(b"half a download")
        with pytest.raises(ChecksumError, match=r"does not begin with dcbb9e9d.*Remove it"):
            resolve_weights("torchvision", "vgg19")

    def test_the_weights_folder_does_not_stand_in_for_it(
        self, torch_cache, no_network, weights_dir, monkeypatch
    ):
        (weights_dir / "vgg19.pth").write_bytes(b"staged")
        monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(weights_dir))
        with pytest.raises(WeightsNotFoundError):
            resolve_weights("torchvision", "vgg19")

    def test_a_cache_that_cannot_be_made_is_named(self, torch_cache, no_network):
        torch_cache.parents[1].write_text("a file where the folder should be")
        with pytest.raises(WeightsNotFoundError) as error:
            resolve_weights("torchvision", "vgg19")
        assert str(torch_cache) in str(error.value)


def test_the_log_says_which_file_was_taken(tmp_path, state, caplog):
    path = tmp_path / "vgg19.safetensors"
    save_file(state, path)
    with caplog.at_level(logging.INFO, "fusionflow"):
        resolved(path)
    assert str(path) in caplog.text


def test_a_file_that_cannot_be_read(weights_dir):
    (weights_dir / "vgg19.pth").mkdir()  # what root cannot read either
    with pytest.raises(WeightsNotFoundError, match=r"Cannot read the weights .*vgg19\.pth: Is a"):
        resolve_weights("auto", "vgg19")
