"""What tests of commands ask of an output, and how they spoil an input."""

import json
from pathlib import Path

#: Of the scan that has trouble in these tests.
BAD = "sub-02_ses-baseline"


def pet_of(bids, label=BAD):
    return next(Path(bids, *label.split("_"), "pet").glob("*_pet.nii.gz"))


def cut(path):
    """Cut a file short, as a copy that is still on its way; return how it is mended."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return lambda: path.write_bytes(whole)


def states(result):
    return {item["label"]: item["state"] for item in json.loads(result.stdout)}


def last_run(out):
    return json.loads((out / "logs/last_run.json").read_text())
