"""Disks that fill up or turn read-only, inputs that change, weights that are not what they were."""

import hashlib
import shutil
import subprocess
import time
import zlib

import nibabel as nib
import numpy as np
import pytest
import torch
from injection import Order
from runs import LABELS, config
from safetensors.torch import save_file
from scene import assert_recovered, examine, fused_arrays, run

import fusionflow as ff
from fusionflow.errors import ChecksumError, StoreError

pytestmark = [pytest.mark.faults, pytest.mark.timeout(120)]

VICTIM = "sub-02_ses-baseline"
PAGE = 4096


def pages(folder):
    """Return the bytes that a folder takes on a file system of pages."""
    sizes = (path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return sum(-(-size // PAGE) * PAGE for size in sizes)


def sequential(how):
    """Return a configuration with one scan in flight."""
    return how.model_copy(update={"cluster": how.cluster.model_copy(update={"window": 1})})


def test_the_disk_is_full(bids, cluster, disk, undisturbed, table, tmp_path):
    """What fits is published; what does not is `failed`, and made once there is space."""
    expected, how = undisturbed(), sequential(config("dwt-max"))
    trial = tmp_path / "trial"
    run(bids, trial, how, client=cluster, levels=("participant",))
    place = disk(pages(trial) - pages(trial / "scans" / LABELS[-1]) * 3 // 2)
    out = place / "out"
    told = run(bids, out, how, client=cluster, levels=("participant",))
    report = told.report
    assert 1 <= len(report.fused) < 4
    assert len(report.fused) + len(report.failed) == 4
    assert {(item.state, item.kind) for item in report.failed} == {("failed", "StoreError")}
    assert all("No space left on device" in item.reason for item in report.failed)
    begun = told.times[report.failed[0].label]
    made = {record.label for record in report.fused}
    midway = examine(out, {label: expected[label] for label in made})
    assert midway.damaged == midway.different == midway.leftovers == ()
    disk(1 << 30)
    again = run(bids, out, how, client=cluster)
    assert sorted(record.label for record in again.report.fused) == sorted(set(LABELS) - made)
    finding = assert_recovered(out, expected, bids=bids, how=how)
    table.add("the disk is full, resumed with space", finding, [again.ended - begun], runs=2)


def test_the_output_turns_read_only(bids, cluster, book, disk, undisturbed, table):
    """The run says so and stops; published scans stay, and the next one goes on."""
    expected, how = undisturbed(), sequential(config("dwt-max"))
    out = disk(1 << 30) / "out"
    out.mkdir()
    book.write(
        Order("command", "commit", VICTIM,
              arguments={"words": ["mount", "-o", "bind,ro", str(out), str(out)]})
    )  # fmt: skip
    events = []
    try:
        report = ff.run(bids, out, how, client=cluster, on_event=events.append)
        ended = report.failed
    except StoreError:
        ended = [event.failure for event in events if hasattr(event, "failure")]
    (strike,) = book.strikes
    assert ended
    assert {(item.state, item.kind) for item in ended} == {("failed", "StoreError")}
    assert "Read-only file system" in ended[0].reason
    made = {event.record.label for event in events if hasattr(event, "record")}
    assert made
    midway = examine(out, {label: expected[label] for label in made})
    assert midway.damaged == midway.different == ()
    subprocess.run(["umount", out], check=True)
    told = run(bids, out, how, client=cluster)
    assert sorted(record.label for record in told.report.fused) == sorted(set(LABELS) - made)
    finding = assert_recovered(out, expected, bids=bids, how=how)
    seconds = told.times[VICTIM] - strike["time"]
    table.add("the output turns read-only, resumed", finding, [seconds], runs=2)


def test_an_input_changes_while_it_is_read(bids, cluster, book, undisturbed, table, tmp_path):
    """Nothing is made of what was half read; the next run fuses what is there then."""
    undisturbed()
    bids = shutil.copytree(bids, tmp_path / "bids")
    pet = bids / "sub-02/ses-baseline/pet/sub-02_ses-baseline_trc-FDG_pet.nii.gz"
    other = tmp_path / "other.nii.gz"
    image = nib.load(pet)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) ** 1.5, image.affine), other)
    out, how = tmp_path / "out", config("dwt-max")
    book.write(Order("copy", "read", VICTIM, when="end",
                     arguments={"source": str(other), "target": str(pet)}))  # fmt: skip
    first = run(bids, out, how, client=cluster)
    (strike,) = book.strikes
    assert [(item.label, item.state, item.kind) for item in first.report.failed] == [
        (VICTIM, "failed", "InputChangedError")
    ]
    assert len(first.report.fused) == 3
    book.clear()
    second = run(bids, out, how, client=cluster)
    assert [record.label for record in second.report.fused] == [VICTIM]
    run(bids, tmp_path / "undisturbed", how, client=cluster)
    expected = fused_arrays(tmp_path / "undisturbed")
    assert not np.array_equal(expected[VICTIM], undisturbed()[VICTIM])
    finding = assert_recovered(out, expected, bids=bids, how=how)
    seconds = second.times[VICTIM] - strike["time"]
    table.add("an input changes while it is read, resumed", finding, [seconds], runs=2)


class TestWeights:
    @pytest.fixture
    def weights(self, request, tmp_path):
        """A file of VGG19's first layers, with its checksum beside it; no worker has seen it."""
        folder = tmp_path / "weights"
        folder.mkdir()
        torch.manual_seed(zlib.crc32(request.node.name.encode()))
        sizes = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128)}
        state = {}
        for layer, (to, of) in sizes.items():
            state[f"features.{layer}.weight"] = torch.randn(to, of, 3, 3) / (3 * of**0.5)
            state[f"features.{layer}.bias"] = torch.zeros(to)
        path = folder / "vgg19-test.safetensors"
        save_file(state, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "SHA256SUMS").write_text(f"{digest}  {path.name}\n")
        return path

    @pytest.fixture
    def damaged(self, weights, tmp_path):
        """The same file with one bit the other way."""
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        path = tmp_path / "damaged.safetensors"
        path.write_bytes(content)
        return path

    def test_damaged_before_the_run(self, bids, weights, damaged, cluster, table, tmp_path):
        """Nothing starts and nothing is written."""
        whole, out = weights.read_bytes(), tmp_path / "out"
        how = config("dwt-vgg19-l1", weights=str(weights))
        shutil.copyfile(damaged, weights)
        began = time.time()
        with pytest.raises(ChecksumError, match="The file changed or is damaged"):
            run(bids, out, how, client=cluster)
        assert not out.exists()
        weights.write_bytes(whole)
        told = run(bids, out, how, client=cluster)
        run(bids, tmp_path / "undisturbed", how, client=cluster)
        expected = fused_arrays(tmp_path / "undisturbed")
        finding = assert_recovered(out, expected, bids=bids, how=how)
        table.add("weights damaged before the run, restored", finding, [told.ended - began], 2)

    def test_damaged_during_the_run(self, bids, weights, damaged, cluster, book, table, tmp_path):
        """Workers read them once, before the first scan: the run goes on with what they were."""
        whole, out = tmp_path / "whole.safetensors", tmp_path / "out"
        shutil.copyfile(weights, whole)
        how = config("dwt-vgg19-l1", weights=str(weights))
        book.write(Order("copy", "conform",
                         arguments={"source": str(damaged), "target": str(weights)}))  # fmt: skip
        told = run(bids, out, how, client=cluster)
        (strike,) = book.strikes
        assert sorted(record.label for record in told.report.fused) == LABELS
        book.clear()
        with pytest.raises(ChecksumError, match="The file changed or is damaged"):  # the next one
            run(bids, tmp_path / "next", how, client=cluster)
        shutil.copyfile(whole, weights)
        run(bids, tmp_path / "undisturbed", how, client=cluster)
        expected = fused_arrays(tmp_path / "undisturbed")
        finding = assert_recovered(out, expected, bids=bids, how=how)
        seconds = told.times[strike["label"]] - strike["time"]
        table.add("weights damaged during the run", finding, [seconds], runs=1)
