"""Weights are what they were, and run nothing."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import VGG19_Weights
from vgg19_files import TAPS, resolved

from fusionflow.backbones import build_trunk
from fusionflow.errors import ChecksumError, WeightsError, WeightsNotFoundError
from fusionflow.weights import IMAGENET_MEAN, IMAGENET_STD, Normalisation, file_sha256, read_sums


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
