"""What a run costs that finds everything done: milliseconds a scan beyond starting up.

Makes a cohort of small scans, fuses it, and runs again: on all of it, and on none of it (an input
of a single scan), whose difference is what the scans cost. Then three scans change.

    python workflows/benchmarks/second_run.py --scans 1000
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

SHAPE = (16, 16, 16)


def write_scan(folder: Path, subject: str, rng: np.random.Generator) -> None:
    """Write a T1w and a PET of a bright box in noise."""
    for datatype, suffix in (("anat", "T1w"), ("pet", "pet")):
        volume = rng.uniform(0, 20, SHAPE).astype(np.float32)
        volume[4:12, 4:12, 4:12] += rng.uniform(100, 200)
        place = folder / f"sub-{subject}" / datatype
        place.mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(volume, np.diag([4.0, 4.0, 4.0, 1.0]))
        nib.save(image, place / f"sub-{subject}_{suffix}.nii.gz")


def run(cohort: Path) -> tuple[dict[str, Any], float]:
    """Run the command; return its machine-readable summary, and the seconds of its process."""
    command = ["run", str(cohort / "bids"), str(cohort / "out"), "--method", "dwt-max"]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fusionflow", *command], check=True, capture_output=True)
    seconds = time.perf_counter() - began
    return json.loads((cohort / "out" / "logs" / "last_run.json").read_text()), seconds


def state(out: Path) -> dict[Path, int]:
    """Return the time of every file but the summary of the last run."""
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "last_run.json")
    return {path: path.stat().st_mtime_ns for path in files}


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        many, one = Path(folder) / "many", Path(folder) / "one"
        for i in range(options.scans):
            write_scan(many / "bids", f"{i:05}", rng)
        write_scan(one / "bids", "00000", rng)
        for cohort in (one, many):
            first, took = run(cohort)
            print(f"{cohort.name}: {first['counts']} in {took:.1f} s")
        before = state(many / "out")
        seconds: dict[str, list[float]] = {"one": [], "many": []}
        for _ in range(options.repeats):
            for cohort in (one, many):
                again, took = run(cohort)
                assert again["counts"]["fused"] == 0, again["counts"]
                seconds[cohort.name].append(took)
        assert state(many / "out") == before, "a file was touched"
        spent = statistics.median(seconds["many"]) - statistics.median(seconds["one"])
        print(f"again, nothing touched: {1000 * spent / (options.scans - 1):.2f} ms a scan")
        for i in (3, 141, 592):
            write_scan(many / "bids", f"{i:05}", rng)
        changed, _ = run(many)
        print(f"three changed: {changed['counts']}, {changed['fused']}")
        log = (many / "out" / "logs" / f"{changed['run']}.jsonl").read_text().splitlines()
        for line in map(json.loads, log):
            if line["event"] == "publish":
                print(f"  {line['label']}: {line['why']}")


if __name__ == "__main__":
    main()
