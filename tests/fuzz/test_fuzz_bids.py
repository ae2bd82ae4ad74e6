"""Sidecars of any content, and names of any characters anywhere in a dataset."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
from fuzzing import MB, cases, damaged, edits, memory_below
from hypothesis import given
from hypothesis import strategies as st

from fusionflow.io.bids import Scan, discover
from fusionflow.pet_info import PetInfo

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
