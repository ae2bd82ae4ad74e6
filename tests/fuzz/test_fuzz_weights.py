"""Weights of any content: none runs code, and none takes memory without end."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile

import pytest
import torch
from fuzzing import MB, cases, damaged, edits, refused_at_most, said_in_little_memory
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as as_safetensors

from fusionflow.errors import WeightsError
from fusionflow.weights import checked_state, find_weights, read_state, read_sums, read_tensors

LAYERS = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU())
STATE = {
    "features.0.weight": torch.linspace(-1, 1, 54).reshape(2, 3, 3, 3),
    "features.0.bias": torch.zeros(2),
}


def as_pth(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


PTH = as_pth(STATE)
OLD_PTH = as_pth(STATE, _use_new_zipfile_serialization=False)
SAFETENSORS = as_safetensors(STATE, metadata={"mean": "0.5,0.5,0.5", "std": "1,1,1"})
RAN = []


def ran():
    RAN.append("ran")


class Runs:
    """Says so when somebody unpickles it."""

    def __reduce__(self):
        return ran, ()


def with_pickle(content):
    """Return a .pth file with another pickle in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(PTH)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return buffer.getvalue()


def pickle_of(content):
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        return old.read("archive/data.pkl")


def read_weights(folder, name, content):
    path = folder / name
    path.write_bytes(content)
    RAN.clear()
    with refused_at_most(path):
        weights = find_weights(str(path), "vgg19", None)
        state, normalisation = read_state(weights)
        assert min(normalisation.std) > 0
        for tensor in checked_state(LAYERS, state, path).values():
            assert tensor.dtype == torch.float32
            assert torch.isfinite(tensor).all()
    assert not RAN


@st.composite
def headers(draw):
    """Return a safetensors file whose header says anything."""
    data = bytes(224)
    entry = st.fixed_dictionaries(
        {},
        optional={
            "dtype": st.sampled_from(
                ["F32", "F64", "F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "C64", "F4", "x", 1]
            ),
            "shape": st.just([2, 3, 3, 3])
            | st.lists(st.integers(-1, 3) | st.just(2**62), max_size=5),
            "data_offsets": st.sampled_from([[0, 216], [216, 224], [0, 0], [0, 2**62], [8, 0], []]),
        },
    )
    metadata = st.dictionaries(
        st.sampled_from(["mean", "std", "scale", "x"]),
        st.sampled_from(["1,1,1", "0,0,0", "nan,1,1", "1e999", "255", "", ",", "1,1"]) | st.just(1),
    )
    header = {}
    for name in draw(st.sets(st.sampled_from([*STATE, "a", "\n"]))):
        header[name] = draw(entry)
    if draw(st.booleans()):
        header["__metadata__"] = draw(metadata)
    text = json.dumps(header).encode()
    size = draw(st.sampled_from([len(text)] * 5 + [0, 2**63, len(text) + 300]))
    return struct.pack("<Q", size) + text + data


odd_tensors = st.sampled_from(
    [
        torch.zeros(2, dtype=torch.complex64),
        torch.zeros(2, dtype=torch.int8),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.full((2,), 1e300, dtype=torch.float64),
        torch.full((2,), torch.nan),
        torch.zeros(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(1).expand(2),
        torch.zeros(1).expand(2**40),
        torch.nn.Parameter(torch.zeros(2)),
    ]
)
odd_objects = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | odd_tensors | st.builds(Runs),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from([*STATE, 1, None, (1, 2)]), inner, max_size=3)
    ),
    max_leaves=6,
)
odd_states = st.dictionaries(st.sampled_from([*STATE, 1]), odd_tensors | st.builds(Runs))


class TestWeights:
    @given(
        content=headers()
        | edits.map(lambda edits: damaged(SAFETENSORS, edits))
        | st.tuples(st.floats(0.6, 1), st.binary(min_size=1, max_size=4)).map(
            lambda edit: damaged(SAFETENSORS, [("flip", *edit)])
        )
    )
    @cases(300)
    def test_safetensors(self, folder, content):
        read_weights(folder, "vgg19.safetensors", content)

    @given(
        content=edits.map(lambda edits: damaged(PTH, edits))
        | edits.map(lambda edits: damaged(OLD_PTH, edits))
        | edits.map(lambda edits: with_pickle(damaged(pickle_of(PTH), edits)))
        | (odd_objects | odd_states.map(lambda odd: {**STATE, **odd})).map(as_pth)
        | odd_objects.map(pickle.dumps)
    )
    @cases(400)
    def test_pth(self, folder, content):
        read_weights(folder, "vgg19.pth", content)

    def test_the_pickle_would_run(self):
        pickle.loads(pickle.dumps(Runs()))
        assert RAN

    @given(content=edits.map(lambda e: damaged(b"a" * 64 + b"  x.pth\n", e)) | st.binary())
    @cases(80)
    def test_sums(self, folder, content):
        (folder / "SHA256SUMS").write_bytes(content)
        with refused_at_most(folder / "SHA256SUMS"):
            for name, digest in read_sums(folder).items():
                assert folder in (folder / name).resolve().parents
                assert len(digest) == 64
        (folder / "SHA256SUMS").unlink()


def test_weights_that_stand_for_more_than_they_hold_take_no_memory(tmp_path):
    path = tmp_path / "vgg19.pth"
    path.write_bytes(as_pth({"features.0.bias": torch.zeros(1).expand(2**40)}))
    state, _ = read_tensors(path)
    with pytest.raises(WeightsError, match=r"of shape \(1099511627776,\)"):
        checked_state(LAYERS, {**STATE, **state}, path)
    bomb = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(PTH)) as old,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, bytes(1 << 30) if name.endswith("data/0") else old.read(name))
    path.write_bytes(bomb.getvalue())
    said = said_in_little_memory("weights", "read_tensors", path, 256 * MB)
    assert str(path) in said
