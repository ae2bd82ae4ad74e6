"""Weights are found where they were asked for, are what they were, and run nothing."""

from __future__ import annotations

import logging
import os
import pickle
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from networks import random_state
from safetensors.torch import save_file
from torchvision.models import VGG19_Weights

from fusionflow.backbones import BACKBONES, build_trunk, resolve_weights
from fusionflow.errors import (
    ChecksumError,
    ConfigurationError,
    WeightsError,
    WeightsNotFoundError,
)
from fusionflow.weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalisation,
    Weights,
    file_sha256,
    read_sums,
)

TAPS = ("relu1_1", "conv2_1")
CACHED_NAME = "vgg19-dcbb9e9d.pth"


@pytest.fixture(scope="module")
def state():
    return random_state(0)


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


def resolved(path: Path) -> Weights:
    return resolve_weights(str(path), "vgg19")


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


class TestReading:
    def test_a_missing_layer_is_named(self, tmp_path, state):
        path = tmp_path / "vgg19.safetensors"
        save_file({k: v for k, v in state.items() if k != "features.2.weight"}, path)
        with pytest.raises(WeightsError, match=r"features\.2\.weight") as error:
            build_trunk(resolved(path), TAPS)
        assert str(path) in str(error.value)
        assert "taps" in error.value.mend

    def test_a_layer_after_the_last_tap_is_not_missed(self, tmp_path, state):
        path = tmp_path / "vgg19.safetensors"
        save_file({k: v for k, v in state.items() if k.startswith("features.0.")}, path)
        build_trunk(resolved(path), ["conv1_1", "relu1_1"])

    def test_a_layer_of_another_shape_is_named_with_both_shapes(self, tmp_path, state):
        path = tmp_path / "vgg19.safetensors"
        save_file({**state, "features.2.weight": torch.zeros(64, 32, 3, 3)}, path)
        with pytest.raises(WeightsError) as error:
            build_trunk(resolved(path), TAPS)
        for part in (str(path), "features.2.weight", "(64, 32, 3, 3)", "(64, 64, 3, 3)"):
            assert part in str(error.value)

    def test_what_is_no_tensor_is_refused(self, tmp_path, state):
        path = tmp_path / "vgg19.pth"
        torch.save({**state, "features.2.weight": [1.0, 2.0]}, path)
        with pytest.raises(WeightsError, match=r"features\.2\.weight"):
            build_trunk(resolved(path), TAPS)

    @pytest.mark.parametrize(
        "odd",
        [
            torch.zeros(64, dtype=torch.complex64),
            torch.zeros(64, dtype=torch.int8),
            torch.zeros(64).to_sparse(),
            torch.zeros(64, device="meta"),
            torch.full((64,), 1e300, dtype=torch.float64),
        ],
        ids=["complex", "integer", "sparse", "without values", "beyond float32"],
    )
    def test_what_are_no_plain_numbers_is_refused(self, tmp_path, state, odd):
        path = tmp_path / "vgg19.pth"
        torch.save({**state, "features.0.bias": odd}, path)
        with pytest.raises(WeightsError, match=r"vgg19\.pth (have|is no)"):
            build_trunk(resolved(path), TAPS)

    @pytest.mark.parametrize(
        "content",
        [[1, 2], torch.zeros(3), 5, {1: torch.zeros(3)}],
        ids=["list", "tensor", "int", "numbered"],
    )
    def test_what_is_no_state_dict_is_refused(self, tmp_path, content):
        path = tmp_path / "vgg19.pth"
        torch.save(content, path)
        with pytest.raises(WeightsError) as error:
            build_trunk(resolved(path), TAPS)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    @pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(1000)])
    def test_what_is_no_weights_file_is_refused(self, tmp_path, suffix, content):
        path = tmp_path / f"vgg19{suffix}"
        path.write_bytes(content)
        with pytest.raises(WeightsError) as error:
            build_trunk(resolved(path), TAPS)
        assert type(error.value) is WeightsError
        assert str(path) in str(error.value)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_half_a_file_is_refused(self, tmp_path, state, suffix):
        path = tmp_path / f"vgg19{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(WeightsError) as error:
            build_trunk(resolved(path), TAPS)
        assert str(path) in str(error.value)

    def test_a_file_that_changed_since_is_refused(self, tmp_path, state):
        path = tmp_path / "vgg19.safetensors"
        save_file(state, path)
        weights = resolved(path)
        save_file({**state, "features.0.bias": torch.ones(64)}, path)
        with pytest.raises(ChecksumError) as error:
            build_trunk(weights, TAPS)
        for part in (str(path), weights.identity[:12], file_sha256(path)[:12]):
            assert part in str(error.value)

    def test_a_file_that_a_worker_does_not_have_is_named(self, tmp_path, state):
        path = tmp_path / "vgg19.safetensors"
        save_file(state, path)
        weights = resolved(path)
        path.unlink()
        with pytest.raises(WeightsNotFoundError, match="worker") as error:
            build_trunk(weights, TAPS)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_precisions_become_float32(self, tmp_path, state, dtype):
        path = tmp_path / "vgg19.safetensors"
        save_file({key: value.to(dtype) for key, value in state.items()}, path)
        trunk = build_trunk(resolved(path), TAPS)
        assert {tensor.dtype for tensor in trunk.state_dict().values()} == {torch.float32}

    def test_both_formats_give_the_same_trunk(self, tmp_path, state):
        save_file(state, tmp_path / "vgg19.safetensors")
        torch.save(state, tmp_path / "vgg19.pth")
        one, other = (
            build_trunk(resolved(tmp_path / name), TAPS).state_dict()
            for name in ("vgg19.safetensors", "vgg19.pth")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


class _RunsCode:
    """Makes a folder when it is unpickled by someone who trusts it."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


class TestSums:
    @pytest.mark.parametrize(
        "line",
        [
            f"{'0' * 64}  ../vgg19.pth",
            f"{'0' * 64}  /dev/zero",
            f"{'0' * 64}  a\0.pth",
            "0  vgg19.pth",
            f"{'x' * 64}  vgg19.pth",
            "vgg19.pth",
        ],
    )
    def test_that_are_none_or_lead_elsewhere_are_refused(self, tmp_path, line):
        (tmp_path / "SHA256SUMS").write_text(f"{'1' * 64}  a.pth\n{line}\n")
        with pytest.raises(WeightsError, match="SHA256SUMS has a line that is no SHA-256"):
            read_sums(tmp_path)

    def test_are_read_as_sha256sum_writes_and_accepts_them(self, tmp_path):
        lines = [f"{'a' * 64}  a.pth", f"{'B' * 64} *b c.pth", "", f"{'c' * 64}  ./d.pth"]
        (tmp_path / "SHA256SUMS").write_text("\n".join(lines))
        assert read_sums(tmp_path) == {"a.pth": "a" * 64, "b c.pth": "b" * 64, "./d.pth": "c" * 64}


class TestCode:
    @pytest.mark.parametrize("container", ["zip", "legacy", "bare pickle"])
    def test_in_a_pickle_is_refused_and_not_run(self, tmp_path, state, container):
        path, trace = tmp_path / "vgg19.pth", tmp_path / "trace"
        content = {**state, "extra": _RunsCode(trace)}
        if container == "bare pickle":
            path.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
        with pytest.raises(WeightsError) as error:
            build_trunk(resolved(path), TAPS)
        assert str(path) in str(error.value)
        assert not trace.exists()

    def test_would_run_if_it_were_trusted(self, tmp_path):
        trace = tmp_path / "trace"
        pickle.loads(pickle.dumps(_RunsCode(trace)))
        assert trace.exists()


class TestNormalisation:
    def test_is_torchvisions_where_a_file_says_nothing(self):
        for metadata in (None, {}, {"format": "pt"}):
            assert Normalisation.from_metadata(metadata) == Normalisation(
                1.0, IMAGENET_MEAN, IMAGENET_STD
            )
        preset = VGG19_Weights.IMAGENET1K_V1.transforms()
        assert (tuple(preset.mean), tuple(preset.std)) == (IMAGENET_MEAN, IMAGENET_STD)

    def test_is_what_the_file_says(self):
        metadata = {"scale": "255", "mean": "103.939,116.779,123.68", "std": "1,1,1"}
        assert Normalisation.from_metadata(metadata) == Normalisation(
            255.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)
        )

    @pytest.mark.parametrize(
        "metadata",
        [
            {"scale": "large"},
            {"mean": "red,green,blue"},
            {"mean": "0.5,0.5"},
            {"std": "1,1,1,1"},
            {"std": "0,0,0"},
            {"mean": "nan,0,0"},
        ],
        ids=str,
    )
    def test_that_makes_no_sense_is_refused_with_the_file(self, tmp_path, state, metadata):
        path = tmp_path / "vgg19.safetensors"
        save_file(state, path, metadata=metadata)
        with pytest.raises(WeightsError) as error:
            build_trunk(resolved(path), TAPS)
        assert str(path) in str(error.value)


def test_the_log_says_which_file_was_taken(tmp_path, state, caplog):
    path = tmp_path / "vgg19.safetensors"
    save_file(state, path)
    with caplog.at_level(logging.INFO, "fusionflow"):
        resolved(path)
    assert str(path) in caplog.text
