"""Twenty times in one run of forty scans, the client is killed and started again."""

import shutil
import signal
import time

import nibabel as nib
import numpy as np
import pytest
from scene import DWT_MAX, SEED, Command, assert_recovered, dwt_max, fused_arrays

from fusionflow.events import EXIT_DONE
from fusionflow.ledger import OutputPaths, read_attempt
from fusionflow.phantom import write_cohort

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

SCANS, KILLS = 40, 20
#: (x, y, z) of the scans.
SHAPE = (24, 28, 24)


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """Forty tiny scans, no two of them alike."""
    folder = tmp_path_factory.mktemp("forty")
    first, bids = folder / "first", folder / "bids"
    write_cohort(first, shape=SHAPE)
    bids.mkdir()
    shutil.copy(first / "dataset_description.json", bids)
    for number in range(SCANS):
        of = ("02", "03")[number % 2]
        for path in sorted((first / f"sub-{of}" / "ses-baseline").rglob("*.*")):
            place = path.relative_to(first / f"sub-{of}").as_posix().replace(of, f"{number:03}", 1)
            target = bids / f"sub-{number:03}" / place
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.name.endswith("_pet.nii.gz"):  # another contrast: a scale alone is undone
                image = nib.load(path)
                data = image.get_fdata(dtype=np.float32) ** (1 + number / 100)
                nib.save(nib.Nifti1Image(data, image.affine), target)
            else:
                shutil.copy(path, target)
    return bids


def published(out):
    return {path.parent.name for path in (out / "scans").glob("*/current.json")}


def test_twenty_kills_of_the_client_change_no_bit(forty, orders, table, tmp_path):
    out, whole = tmp_path / "out", tmp_path / "whole"
    words = (*DWT_MAX, "--n-workers", 1)
    undisturbed = Command(tmp_path / "log", "run", forty, whole, *words)
    seen = []
    while undisturbed.process.is_alive():
        if not seen and published(whole):
            seen.append(time.monotonic())
        undisturbed.process.join(0.02)
    at_work = time.monotonic() - seen[0]
    assert undisturbed.end(1) == EXIT_DONE
    expected = fused_arrays(whole)
    assert len(expected) == SCANS
    assert len({array.tobytes() for array in expected.values()}) == SCANS

    # The moments lie anywhere in the work of an undisturbed run. How long it takes to start is not
    # counted, so that each of them is met; what a kill undoes is made again and adds to the work.
    rng = np.random.default_rng(SEED)
    moments = np.sort(rng.uniform(0, at_work, KILLS))
    progress, in_the_making, workers = [], 0, set()
    for turn, wait in enumerate(np.diff(moments, prepend=0.0)):
        command = Command(tmp_path / f"log-{turn}", "run", forty, out, *words)
        while "dashboard" not in command.output:
            assert command.process.is_alive(), command.output
            command.process.join(0.02)
        command.process.join(wait)
        workers |= command.descendants()
        killed = command.send(signal.SIGKILL)
        assert command.end(10) == -signal.SIGKILL
        progress.append(len(published(out)))
        attempts = (read_attempt(OutputPaths(out), label) for label in expected)
        in_the_making += sum(attempt is not None for attempt in attempts)
    assert progress == sorted(progress)
    assert progress[-1] > progress[0]
    assert in_the_making >= KILLS  # so work was cut off, not only waiting
    last = Command(tmp_path / "log-last", "run", forty, out, *words)
    assert last.end(120) == EXIT_DONE
    seconds = time.time() - killed
    finding = assert_recovered(out, expected, bids=forty, how=dwt_max(), gone=workers)
    table.add(
        f"SIGKILL of the client at {KILLS} random moments of {SCANS} scans, resumed each time",
        finding, [seconds], runs=KILLS + 1,
    )  # fmt: skip
