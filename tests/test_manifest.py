"""A table as input: every row a scan or excluded with its line."""

from __future__ import annotations

import json

import pytest

from fusionflow.config import InputOptions
from fusionflow.errors import ConfigurationError
from fusionflow.io.inputs import find_scans
from fusionflow.io.manifest import read_manifest


@pytest.fixture
def images(tmp_path):
    for name in ("a_t1.nii.gz", "a_pet.nii.gz", "b_t1.nii", "b_pet.nii", "mask.nii"):
        (tmp_path / name).touch()
    (tmp_path / "a_pet.json").write_text(json.dumps({"Units": "Bq/mL", "FrameDuration": [60]}))
    return tmp_path


def table(folder, *rows, header="participant_id session_id t1w pet mask weight"):
    lines = [header, *rows]
    path = folder / "manifest.tsv"
    path.write_text("\n".join("\t".join(line.split()) for line in lines) + "\n")
    return path


def test_a_row_is_a_scan(images):
    path = table(
        images,
        "sub-01 n/a a_t1.nii.gz a_pet.nii.gz mask.nii 70",
        f"2 ses-x {images}/b_t1.nii b_pet.nii n/a n/a",
    )
    found = read_manifest(path)
    one, two = found.scans
    assert (one.label, two.label) == ("sub-01", "sub-2_ses-x")
    assert one.t1w == images / "a_t1.nii.gz"
    assert one.mask == images / "mask.nii"
    assert (one.pet_info.weight_kg, one.pet_info.units) == (70, "Bq/mL")
    assert two.t1w == images / "b_t1.nii"
    assert two.mask is None
    assert two.notes == ("b_pet.nii has no JSON sidecar",)
    assert found.excluded == ()


def test_only_three_columns_are_needed(images):
    path = table(images, "01 a_t1.nii.gz a_pet.nii.gz", header="participant_id t1w pet")
    assert [scan.label for scan in read_manifest(path).scans] == ["sub-01"]


@pytest.mark.parametrize(
    ("row", "broken", "reason"),
    [
        ("01 n/a a_t1.nii.gz n/a n/a n/a", False, "names no pet"),
        ("01 n/a gone.nii a_pet.nii.gz n/a n/a", True, "gone.nii is not there"),
        ("01 n/a . a_pet.nii.gz n/a n/a", True, "is no file"),
        ("../../x n/a a_t1.nii.gz a_pet.nii.gz n/a n/a", True, "is no label"),
        ("01 a_b a_t1.nii.gz a_pet.nii.gz n/a n/a", True, "is no label"),
        ("01 n/a a_t1.nii.gz a_pet.nii.gz gone.nii n/a", True, "the mask"),
    ],
)
def test_a_row_that_cannot_be_used_stops_no_other(images, row, broken, reason):
    path = table(images, "09 n/a b_t1.nii b_pet.nii n/a n/a", row)
    found = read_manifest(path)
    assert [scan.label for scan in found.scans] == ["sub-09"]
    (left,) = found.excluded
    assert left.broken is broken
    assert reason in left.reason
    assert f"line 3 of {path}" in left.reason


def test_two_rows_of_one_name_are_both_left_out(images):
    row = "01 n/a a_t1.nii.gz a_pet.nii.gz n/a n/a"
    found = read_manifest(table(images, row, row))
    assert found.scans == ()
    assert "lines 2 and 3" in found.excluded[0].reason


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("participant_id t1w", "lacks the column pet"),
        ("participant_id t1w pet tracer", "has a column tracer"),
    ],
)
def test_columns_that_lack_or_mean_nothing(images, header, message):
    with pytest.raises(ConfigurationError, match=message):
        read_manifest(table(images, "01 a_t1.nii.gz a_pet.nii.gz x", header=header))


@pytest.mark.parametrize(
    "content", [b"", b"participant_id\tt1w\tpet\n", b"\xff\xfe\x00", b"a\x00b\tc\nd\te"]
)
def test_a_file_that_is_no_table_is_refused_by_name(tmp_path, content):
    path = tmp_path / "manifest.tsv"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"manifest\.tsv"):
        read_manifest(path)


def test_who_was_asked_for(images):
    path = table(
        images,
        "01 a a_t1.nii.gz a_pet.nii.gz n/a n/a",
        "01 b a_t1.nii.gz a_pet.nii.gz n/a n/a",
        "02 a b_t1.nii b_pet.nii n/a n/a",
    )
    only = {"participant_labels": ["01"], "session_labels": ["ses-b"]}
    assert [scan.label for scan in read_manifest(path, **only).scans] == ["sub-01_ses-b"]
    with pytest.raises(ConfigurationError, match="sub-03 not in"):
        read_manifest(path, participant_labels=["03"])


def test_options_of_bids_mean_nothing_here(images):
    path = table(images, "01 n/a a_t1.nii.gz a_pet.nii.gz n/a n/a")
    assert len(find_scans(path, InputOptions()).scans) == 1
    for options in (InputOptions(derivatives=(images,)), InputOptions(reference_region="pons")):
        with pytest.raises(ConfigurationError, match=r"means nothing for the manifest .*reference"):
            find_scans(path, options)


def test_the_sidecar_is_a_file_of_the_scan(images):
    path = table(
        images,
        "01 n/a a_t1.nii.gz a_pet.nii.gz n/a n/a",
        "02 n/a b_t1.nii b_pet.nii n/a n/a",
    )
    one, two = read_manifest(path).scans
    assert one.sidecars == (images / "a_pet.json",)
    assert two.sidecars == ()
