"""Whatever a file holds: a right result, or a refusal that names it; never anything else.

Another exception, a warning, a hang, a value that is not finite or memory without end is a fault.
The cases are the same every time, so that a change is not blamed for what it did not do;
``FUSIONFLOW_FUZZ=20`` makes twenty times as many, other ones each time.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import textwrap
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as as_safetensors

from fusionflow import images
from fusionflow.config import ConformOptions, RunConfig, load_config
from fusionflow.conform import conform
from fusionflow.errors import FusionflowError, ImageError, WeightsError
from fusionflow.io.bids import Scan, discover
from fusionflow.io.nifti import read_header, read_volume, write_volume
from fusionflow.luts import read_table
from fusionflow.pet_info import PetInfo, pet_info
from fusionflow.untrusted import printable
from fusionflow.weights import checked_state, find_weights, read_state, read_sums, read_tensors

TIMES = int(os.environ.get("FUSIONFLOW_FUZZ", "1"))
MB = 1 << 20


def cases(number):
    """Run a test that many times; an example takes milliseconds, so that seconds are a hang."""
    return settings(
        max_examples=number * TIMES,
        deadline=datetime.timedelta(seconds=10),
        derandomize=TIMES == 1,
        suppress_health_check=list(HealthCheck),
    )


@contextlib.contextmanager
def refused_at_most(*paths):
    """Let errors pass that are meant for people: they name a file, and fit on a line."""
    try:
        yield
    except FusionflowError as error:
        said = str(error)
        assert any(printable(path) in said for path in paths), said
        assert said.isprintable()
        assert len(said) < 4000


@contextlib.contextmanager
def memory_below(most):
    """Fail if Python and NumPy take more than that many bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all examples of all tests: each writes its files anew."""
    return tmp_path_factory.mktemp("fuzz")


def damaged(content, edits):
    """Return bytes with some flipped, cut out, put in or cut off; places are parts of the whole."""
    content = bytearray(content)
    for kind, place, new in edits:
        at = int(place * len(content))
        if kind == "flip" and content:
            content[min(at, len(content) - 1)] ^= new[0] or 1
        elif kind == "over":
            content[at : at + len(new)] = new
        elif kind == "insert":
            content[at:at] = new
        elif kind == "remove":
            del content[at : at + len(new)]
        elif kind == "end":
            del content[at:]
        elif kind == "repeat":
            content += content[at:]
    return bytes(content)


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "flip", "over", "insert", "remove", "end", "repeat"]),
        st.floats(0, 1),
        st.binary(min_size=1, max_size=12) | st.sampled_from([b"\xff" * 4, bytes(8), b"\x7f"]),
    ),
    min_size=1,
    max_size=4,
)


# ---------------------------------------------------------------------------------------- NIfTI

GRID = (9, 8, 7)


def head():
    z, y, x = np.indices(GRID[::-1])
    inside = (x - 4) ** 2 + (y - 4) ** 2 + (z - 3) ** 2 < 10
    return np.where(inside, 500 + 10 * x + y, 3 + z % 2).T.astype(np.float32)


def nifti(data, zoom, kind=nib.Nifti1Image):
    affine = np.diag([-zoom, zoom, zoom, 1.0])
    affine[:3, 3] = 4, -4, -3
    return kind(data, affine).to_bytes()


SOURCES = {
    "T1w": nifti(head(), 1.0),
    "T1w in two bytes": nifti(head().astype(np.int16), 1.0),
    "NIfTI-2": nifti(head(), 1.0, nib.Nifti2Image),
    "PET": nifti(head() * 30, 1.0),
    "PET on a coarser grid": nifti(head()[::2, ::2, ::2].copy() * 30, 2.0),
    "PET with frames": nifti(np.stack([head(), head() * 2, head() * 3], axis=-1), 1.0),
}
durations = st.none() | st.lists(
    st.sampled_from([0.0, 60.0, 5e-324, 1e308, -1.0]), min_size=3, max_size=3
)

shorts = st.sampled_from(
    [
        *range(-1, 9),
        16,
        32,
        64,
        128,
        256,
        511,
        512,
        768,
        1024,
        1280,
        1536,
        1792,
        2048,
        2304,
        32767,
        -32768,
    ]
) | st.integers(-32768, 32767)
singles = st.sampled_from(
    [
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        3.0,
        348.0,
        352.0,
        351.5,
        1e3,
        1e6,
        1e9,
        1e20,
        1e30,
        2.0**-126,
        1e-45,
        3.4028235e38,
        np.nan,
        np.inf,
        -np.inf,
    ]
).map(np.float32).map(float) | st.floats(width=32)

#: Of a NIfTI-1 header: where, of which type, how many.
FIELDS = [
    (0, "i", 1), (40, "h", 8), (70, "h", 2), (76, "f", 8), (108, "f", 1), (112, "f", 2),
    (123, "B", 1), (252, "h", 2), (256, "f", 6), (280, "f", 12), (344, "B", 4), (348, "i", 3),
]  # fmt: skip


@st.composite
def field_edits(draw):
    """Return (place, bytes) that put another number into one or more fields of a header."""
    of_type = {
        "h": shorts,
        "f": singles,
        "i": st.sampled_from([348, 540, 0, -1, 2**31 - 1, 16, 1 << 24]),
        "B": st.integers(0, 255),
    }
    changes = []
    for _ in range(draw(st.integers(1, 3))):
        at, code, count = draw(st.sampled_from(FIELDS))
        first = draw(st.integers(0, count - 1))
        number = draw(st.integers(1, count - first))
        values = draw(st.lists(of_type[code], min_size=number, max_size=number))
        order = draw(st.sampled_from("<<<>"))
        changes.append(
            (at + first * struct.calcsize(code), struct.pack(f"{order}{number}{code}", *values))
        )
    return changes


@st.composite
def affines(draw):
    """Return the bytes of an sform of any shear, turn and size."""
    scale = draw(st.sampled_from([*[1.0] * 9, 1e-7, 1e-3, 30.0, 1e5, 1e7]))
    numbers = st.floats(-2, 2, width=32) | st.sampled_from([0.0, 1.0, -1.0, 1e-7, 0.70710678])
    rows = draw(st.lists(numbers, min_size=12, max_size=12))
    if draw(st.booleans()):  # a turn and a little of that shear, so that most grids meet
        grid = np.eye(4)[list(draw(st.permutations(range(3))))] * draw(st.sampled_from([1, -1]))
        rows = (grid + 0.1 * np.reshape(rows, (3, 4))).ravel().tolist()
    return [(254, struct.pack("<h", 1)), (280, struct.pack("<12f", *(n * scale for n in rows)))]


@st.composite
def voxel_edits(draw):
    """Return (place, bytes) that put numbers of any size among the voxels."""
    number = draw(st.sampled_from([1, 1, 4, 60, 250]))
    values = draw(st.lists(singles, min_size=number, max_size=number))
    return [(352 + 4 * draw(st.integers(0, 500)), struct.pack(f"<{number}f", *values))]


def patched(content, changes):
    content = bytearray(content)
    for at, new in changes:
        content[at : at + len(new)] = new
    return bytes(content)


def run_through(folder, t1w, pet, frame_durations=None):
    """Do with a pair what a run does with it."""
    paths = folder / "sub-01_T1w.nii.gz", folder / "sub-01_pet.nii.gz"
    for path, content in zip(paths, (t1w, pet), strict=True):
        path.write_bytes(content)
    with refused_at_most(*paths):
        like = read_header(paths[0]).orientation
        info = pet_info({"FrameDuration": frame_durations})
        scan = conform(*paths, ConformOptions(registration="header"), info=info)
        for volume in (scan.mri, scan.pet):
            assert volume.shape == scan.mask.shape == like.ras_shape[::-1]
            assert volume.dtype == np.float32
            assert volume.flags.c_contiguous
            assert np.isfinite(volume).all()
        assert scan.mask.dtype == np.uint8
        assert set(np.unique(scan.mask)) <= {0, 1}
        assert scan.mask.any()
        assert np.isfinite(scan.affine).all()
        for scaling in scan.scaling.values():
            assert scaling.scale > 0
            assert np.isfinite([scaling.scale, scaling.offset]).all()
        assert "".join(scan.notes).isprintable()
        written = folder / "fused.nii"
        write_volume(written, scan.mri.T, scan.orientation)
        np.testing.assert_array_equal(read_volume(written).data.T, scan.mri)


class TestNifti:
    @given(
        which=st.sampled_from([*SOURCES]),
        changes=field_edits() | field_edits() | affines() | voxel_edits(),
        frame_durations=durations,
    )
    @cases(900)
    def test_absurd_fields(self, folder, which, changes, frame_durations):
        sources = {"T1w": SOURCES["T1w"], "PET": SOURCES["PET"]}
        sources["PET" if which.startswith("PET") else "T1w"] = patched(SOURCES[which], changes)
        run_through(folder, sources["T1w"], sources["PET"], frame_durations)

    @given(t1w=affines(), pet=affines())
    @cases(150)
    def test_any_two_grids(self, folder, t1w, pet):
        coarse = SOURCES["PET on a coarser grid"]
        run_through(folder, patched(SOURCES["T1w"], t1w), patched(coarse, pet))

    @given(which=st.sampled_from([*SOURCES]), edits=edits)
    @cases(200)
    def test_damaged_bytes(self, folder, which, edits):
        sources = {"T1w": SOURCES["T1w"], "PET": SOURCES["PET"]}
        sources["PET" if which.startswith("PET") else "T1w"] = damaged(SOURCES[which], edits)
        run_through(folder, sources["T1w"], sources["PET"])

    @given(
        edits=edits,
        cut=st.floats(0, 1),
        how=st.sampled_from(["damaged", "two members", "one damaged", "then zeros", "then text"]),
    )
    @cases(200)
    def test_damaged_gzip(self, folder, edits, cut, how):
        whole = SOURCES["T1w"]
        at = int(cut * len(whole))
        members = [gzip.compress(part, 1) for part in (whole[:at], whole[at:])]
        content = {
            "damaged": damaged(gzip.compress(whole, 1), edits),
            "two members": b"".join(members),
            "one damaged": members[0] + damaged(members[1], edits),
            "then zeros": gzip.compress(whole, 1) + bytes(100 * at),
            "then text": gzip.compress(whole, 1) + b"<!DOCTYPE html>",
        }[how]
        run_through(folder, content, SOURCES["PET"])

    @given(
        flag=st.sampled_from([bytes(4), b"\1\0\0\0", b"\xff" * 4]),
        size=st.sampled_from([0, 8, 16, 17, -16, 2**31 - 1, -(2**31)]),
        body=st.binary(max_size=64),
        offset=st.sampled_from([348, 352, 360, 368, 384, 416, 1e6, 3e9]),
    )
    @cases(100)
    def test_extensions(self, folder, flag, size, body, offset):
        whole = SOURCES["T1w"]
        extension = flag + struct.pack("<ii", size, 6) + body
        content = patched(whole[:348], [(108, struct.pack("<f", offset))])
        run_through(folder, content + extension + whole[352:], SOURCES["PET"])

    @pytest.mark.parametrize("frames", [1, 2000])
    def test_a_bomb_is_refused_before_it_takes_memory(self, tmp_path, frames):
        path = tmp_path / "a.nii.gz"
        dim = struct.pack("<8h", 4, 500, 500, 500, frames, 1, 1, 1)
        bytes_of_it = 500**3 * 4
        with gzip.open(path, "wb", 9) as stream:
            stream.write(patched(SOURCES["T1w"][:352], [(40, dim)]))
            for _ in range(bytes_of_it // 10 // MB):
                stream.write(bytes(MB))
        with memory_below(16 * MB), pytest.raises(ImageError, match=r"a\.nii\.gz"):
            read_volume(path)

    def test_what_follows_the_voxels_is_not_read_without_end(self, tmp_path):
        path = tmp_path / "a.nii.gz"
        end = gzip.compress(bytes(8 * MB), 9)
        path.write_bytes(gzip.compress(SOURCES["T1w"]) + end * 1000)
        with memory_below(64 * MB), pytest.raises(ImageError, match="long after its last voxel"):
            read_volume(path)


# ------------------------------------------------------------------------------ sidecars, names

numbers = (
    st.integers()
    | st.floats()
    | st.sampled_from([10**400, -(10**4000), 1e308, 5e-324, float("nan"), float("inf"), True])
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
names_of_fields = st.sampled_from(["FrameDuration", "Units", "TimeZero", "\ud800", ""])
SIDECAR = json.dumps({"FrameDuration": [60, 120.5, 300], "Units": "Bq/mL", "TracerName": "FDG"})


def nested(opening, closing, depth):
    return '{"FrameDuration": ' + opening * depth + closing * depth + "}"


sidecars = (
    st.dictionaries(names_of_fields, json_values).map(json.dumps).map(str.encode)
    | json_values.map(json.dumps).map(str.encode)
    | edits.map(lambda edits: damaged(SIDECAR.encode(), edits))
    | st.binary(max_size=40)
    | st.sampled_from(["utf-8-sig", "utf-16", "utf-32", "latin-1"]).map(SIDECAR.encode)
    | st.integers(1, 20000).map(lambda depth: nested("[", "]", depth).encode())
    | st.integers(1, 2000).map(lambda depth: nested('{"a":[', "]}", depth).encode())
    | st.sampled_from(
        [
            '{"FrameDuration": 1, "FrameDuration": [2, 3]}',
            '{"FrameDuration": [NaN, Infinity, -Infinity, 1e999]}',
            '{"FrameDuration": ' + "9" * 5000 + "}",
            '{"FrameDuration": [' + "9" * 400 + "]}",
            "[" * 100_000,
            "\ufeff\ufeff{}",
        ]
    ).map(str.encode)
)


class TestSidecars:
    @given(near=sidecars, far=sidecars)
    @cases(250)
    def test_any_content(self, folder, near, far):
        pet = folder / "bids/sub-01/pet"
        anat = folder / "bids/sub-01/anat"
        for place in (pet, anat):
            place.mkdir(parents=True, exist_ok=True)
        (anat / "sub-01_T1w.nii.gz").touch()
        (pet / "sub-01_pet.nii.gz").touch()
        (pet / "sub-01_pet.json").write_bytes(near)
        (folder / "bids/pet.json").write_bytes(far)
        found = discover(folder / "bids")
        (scan,) = found.scans
        assert isinstance(scan.pet_info, PetInfo)
        assert "".join(scan.notes).isprintable()
        assert len("".join(scan.notes)) < 4000
        seconds = scan.pet_info.frame_durations
        assert seconds is None or (isinstance(seconds, tuple) and np.isfinite(seconds).all())
        assert isinstance(pickle.loads(pickle.dumps(scan)), Scan)  # it goes to workers

    def test_a_large_one_takes_no_memory(self, tmp_path):
        for place, name in (("anat", "sub-01_T1w.nii"), ("pet", "sub-01_pet.nii")):
            (tmp_path / "sub-01" / place).mkdir(parents=True)
            (tmp_path / "sub-01" / place / name).touch()
        with (tmp_path / "pet.json").open("wb") as stream:
            stream.truncate(1 << 40)
        with memory_below(64 * MB):
            (scan,) = discover(tmp_path).scans
        assert "cannot be read and is left out: Larger than" in scan.notes[0]


PARTS = [
    "sub-", "ses-", "01", "2", "..", ".", "\n", "\r", "\t", "\x1b[2J", "\x07", "\u202e", "é", "٣",
    "e\u0301", "\udcff", "🧠", " ", "-", "_", "+", "a" * 60, "[/red]", "<b>", "|", "'", "\\", "%s",
    "T1w", "pet", "anat", ".nii", ".nii.gz", ".json", "sub-01_", "ses-1_", "run-1_", "run-2_",
]  # fmt: skip
file_names = (
    (
        st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map("".join)
        | st.binary(min_size=1, max_size=30).map(os.fsdecode)
    )
    .map(lambda name: name.replace("/", "").replace("\0", "")[:100])
    .filter(lambda name: name not in ("", ".", ".."))
)
common = st.sampled_from(["sub-01", "ses-1", "anat", "pet"])
places = st.lists(
    st.tuples(st.lists(common | file_names, max_size=3), file_names, st.sampled_from("fdl")),
    min_size=1,
    max_size=5,
)


class TestNames:
    @given(places=places)
    @cases(300)
    def test_any_name_anywhere(self, folder, places):
        with tempfile.TemporaryDirectory(dir=folder) as root:
            for inside, name, kind in places:
                with contextlib.suppress(OSError):
                    place = Path(root, *inside)
                    place.mkdir(parents=True, exist_ok=True)
                    if kind == "l":
                        (place / name).symlink_to("..")
                    elif kind == "d":
                        (place / name).mkdir()
                    else:
                        (place / name).write_bytes(b"{}")
            found = discover(root)
            labels = [place.label for place in (*found.scans, *found.excluded)]
            said = [*found.notes, *(note for scan in found.scans for note in scan.notes)]
            said += [place.reason for place in found.excluded]
            assert "".join((*labels, *said)).isprintable()
            for label in labels:  # it names a folder of the output, and lies in it
                assert Path("out", label).resolve().parent == Path("out").resolve()
            for scan in found.scans:
                assert scan.label.replace("-", "").replace("_", "").replace("+", "").isalnum()
                assert scan.label.isascii()


# ------------------------------------------------------------------------------- configurations

CONFIG = (Path(__file__).parents[1] / "workflows/configs/dwt-vgg19.yaml").read_text()
OPTIONS = [
    number for number, line in enumerate(CONFIG.splitlines()) if ": " in line and line[0] != "#"
]
NASTY = [
    "!!python/object/apply:os.abort []", "!!python/name:os.abort", "!!python/object:os.X {}",
    "!!int x", "!!int ''", "!!float ''", "!!bool maybe", "!!timestamp x", "!!binary x", "!!null x",
    "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "!!str [a]", "!!map []", "!!seq {}", "!x y",
    "{? [a]: b}", "{? {a: b}: c}", "{<<: {a: b}}", "{<<: [1, 2]}", "&a [*a]", "*b", "&c d", "<<",
    ".nan", ".inf", "-.inf", "1e999", "-1", "0", "0b_", "0x" + "f" * 9000, "9" * 5000, "190:20:30",
    '"\\uD800"', '"\\0"', '"\\e[2J"', "2001-02-30", "0001-01-01T00:00:00+23:59", "2001-01-01",
    "[" * 3000, "[" * 100 + "]" * 100, "- - - -", "? ? ?", "|", "null", "~", "yes", "''", "[]",
    "{}", "dwt-max", "random:0", "[relu1_1, 1, null]", "[relu1_1, relu1_1]", "{name: [[a]]}",
    "{kind: laplacian, levels: 8}", "{kind: x}", "{kind: {}}", "{levels: true}", "=", "@", "`",
]  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@st.composite
def changed_options(draw):
    """Return the example with other values for some options."""
    lines = CONFIG.splitlines()
    for _ in range(draw(st.integers(1, 2))):
        number = draw(st.sampled_from(OPTIONS))
        name = lines[number].partition(":")[0]
        lines[number] = f"{name}: {draw(st.sampled_from(NASTY) | st.text(max_size=10))}"
    return "\n".join(lines)


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.integers() | st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
options = st.dictionaries(
    st.sampled_from(["method", "conform", "region", "cluster", "Method", ""]),
    yaml_values
    | st.dictionaries(
        st.sampled_from(["name", "transform", "rule", "weights", "taps", "window", "n_workers"]),
        yaml_values,
    ),
)
configurations = (
    changed_options()
    | options.map(yaml.safe_dump)
    | yaml_values.map(yaml.safe_dump)
    | st.text(max_size=60)
    | st.sampled_from(NASTY)
).map(lambda text: text.encode("utf-8", "surrogatepass")) | edits.map(
    lambda edits: damaged(CONFIG.encode(), edits)
)


def read_config(folder, content):
    path = folder / "run.yaml"
    path.write_bytes(content)
    with refused_at_most(path):
        config = load_config(path)
        assert RunConfig.model_validate(json.loads(config.canonical())) == config
        assert len(config.method.fingerprint("0" * 64)) == 64


class TestConfigurations:
    @given(content=configurations)
    @cases(450)
    def test_any_content(self, folder, content):
        read_config(folder, content)

    @pytest.mark.parametrize(
        "content",
        [
            BOMB,
            BOMB + "method: *i\n",
            BOMB + "method: {name: *i}\n",
            MERGE_BOMB + "method: {transform: *i}\n",
            "{" + ",".join(f"a{i}" for i in range(9000)) + "}",
            "a: b\n" * 12000,
            "#" * (1 << 20),
        ],
    )
    def test_bombs(self, tmp_path, content):
        with memory_below(128 * MB):
            read_config(tmp_path, content.encode())

    def test_one_without_end(self):
        with memory_below(16 * MB), refused_at_most("/dev/zero"):
            load_config(Path("/dev/zero"))


# -------------------------------------------------------------------------------------- weights

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


# ------------------------------------------------------------------------------------- pictures


def picture(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


PICTURES = [
    picture("PNG"), picture("PNG", "P", transparency=b"\0\1\2"), picture("PNG", "RGBA"),
    picture("PNG", "L"), picture("PNG", "I;16"), picture("PNG", "1"), picture("JPEG"),
    picture("JPEG", "CMYK"), picture("JPEG", "L", progressive=True), picture("TIFF"),
    picture("TIFF", compression="tiff_lzw"), picture("TIFF", compression="jpeg"),
    picture("TIFF", "L", compression="tiff_adobe_deflate"), picture("TIFF", "F"), picture("BMP"),
    picture("BMP", "P"), picture("GIF", "P"), picture("EPS"), picture("PDF"), picture("PPM"),
    picture("TGA"), picture("PCX"), picture("SGI"), picture("JPEG2000"), picture("WEBP"),
]  # fmt: skip
PNG_SIGNATURE = PICTURES[0][:8]


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


@st.composite
def pngs(draw):
    """Return a PNG of chunks that are whole by their checksums and say anything."""
    width, height = (
        draw(st.sampled_from([0, 1, 7, 7, 7, 9, 4097, 2**16, 2**31 - 1])) for _ in range(2)
    )
    depth, colour, interlaced = (
        draw(st.sampled_from(values))
        for values in ([1, 4, 8, 8, 16, 3], [0, 2, 3, 4, 6, 7], [0, 1])
    )
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    pixels = zlib.compress(draw(st.binary(max_size=40)) + bytes(300), 9)
    other = st.tuples(
        st.sampled_from(
            b"PLTE tRNS gAMA cHRM sRGB iCCP zTXt iTXt tEXt eXIf acTL fcTL fdAT pHYs IDAT".split()
        ),
        st.binary(max_size=24)
        | st.sampled_from([zlib.compress(bytes(1 << 20)), bytes(768), b"a\0\0" + pixels]),
    )
    between = b"".join(chunk(*item) for item in draw(st.lists(other, max_size=3)))
    after = b"".join(chunk(*item) for item in draw(st.lists(other, max_size=2)))
    body = chunk(b"IDAT", pixels if draw(st.booleans()) else damaged(pixels, draw(edits)))
    return PNG_SIGNATURE + chunk(b"IHDR", head) + between + body + after + chunk(b"IEND", b"")


LUT = "level,red,green\nred,green,blue\n0,0,0\n10,20,30.5\n\n# x\n255,255,255\n"
csv_numbers = st.tuples(*[st.integers(0, 255) | st.floats(0, 255)] * 3).map(
    lambda row: ",".join(map(str, row))
)
csv_words = st.lists(
    st.sampled_from(["0", "255", "256", "-1", "nan", "inf", "1e999", "0x1", "1_0", "٣", '"', ""])
    | st.text(max_size=4),
    min_size=1,
    max_size=4,
).map(",".join)
csv_texts = (st.lists(csv_numbers, max_size=6) | st.lists(csv_numbers | csv_words, max_size=6)).map(
    "\n".join
)


class TestPictures:
    @given(
        content=st.tuples(st.sampled_from(PICTURES), edits).map(lambda both: damaged(*both))
        | pngs(),
        suffix=st.sampled_from(images.SUFFIXES),
        colour=st.sampled_from([None, "uptake", "luminance", "grey"]),
    )
    @cases(600)
    def test_any_content(self, folder, content, suffix, colour):
        mri, pet = folder / "mri.png", folder / f"pet{suffix}"
        mri.write_bytes(PICTURES[0])
        pet.write_bytes(content)
        with refused_at_most(pet):
            rgb = images.read_rgb(pet)
            assert rgb.dtype == np.uint8
            assert rgb.ndim == 3
            assert rgb.shape[2] == 3
            assert rgb.size
            sources = images.read_pair(images.PicturePair("a", mri, pet), colour)
            for image in (sources.mri, sources.pet):
                assert image.dtype == np.float32
                assert image.shape == rgb.shape[:2]
                assert (image >= 0).all()
                assert (image <= 1).all()

    @given(
        content=csv_texts.map(lambda text: text.encode(errors="surrogatepass"))
        | edits.map(lambda edits: damaged(LUT.encode(), edits))
    )
    @cases(250)
    def test_tables(self, folder, content):
        path = folder / "table.csv"
        path.write_bytes(content)
        with refused_at_most(path):
            table = read_table(path)
            assert table.colours.dtype == np.float64
            assert len(table.colours) >= 2
            assert (table.colours >= 0).all()
            assert (table.colours <= 1).all()

    def test_a_table_without_end(self, tmp_path):
        path = tmp_path / "table.csv"
        path.write_bytes(b"1," * csv.field_size_limit() * 10)
        with memory_below(16 * MB), refused_at_most(path):
            read_table(path)


#: Reads a file in a process that may take that many more bytes than it has after its imports.
IN_LITTLE_MEMORY = """
    import resource, sys
    from pathlib import Path
    from fusionflow.errors import FusionflowError
    from fusionflow.{module} import {function}

    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + {most},) * 2)
    try:
        {function}(Path(sys.argv[1]))
    except FusionflowError as error:
        print(error)
"""


def said_in_little_memory(module, function, path, most):
    code = textwrap.dedent(IN_LITTLE_MEMORY).format(module=module, function=function, most=most)
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


def test_a_picture_that_would_be_huge_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.png"
    head = struct.pack(">IIBBBBB", 10000, 10000, 8, 6, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10000 * 4 * 200), 9))
    path.write_bytes(PNG_SIGNATURE + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b""))
    said = said_in_little_memory("images", "read_rgb", path, 128 * MB)
    assert f"{path} has 10000 x 10000 pixels" in said


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
