"""Where a network runs: what goes at a time, and what happens where memory is short."""

from __future__ import annotations

import subprocess
import sys
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from runs import config, job_of
from strategies import random_stack

from fusionflow import commit, device, stages, staging
from fusionflow.backbones import resolve_weights
from fusionflow.config import METHODS, Method
from fusionflow.device import Batch, arithmetic
from fusionflow.errors import DeviceMemoryError, FusionflowError
from fusionflow.fusion import find_weights, fuse_subbands
from fusionflow.io.inputs import discover
from fusionflow.io.scans import Scan
from fusionflow.transform import decompose
from fusionflow.trunk import Trunk

ZERO_SHOT, LEARNED = METHODS["dwt-vgg19-l1"], METHODS["dwt-vgg19"]
#: Fuses in address spaces that hold so many MiB more than what there is; prints what comes of it.
CRAMPED = """
import hashlib, resource, sys
import numpy as np
from fusionflow.config import METHODS
from fusionflow.device import Batch
from fusionflow.errors import DeviceMemoryError
from fusionflow.fusion import find_weights, fuse_subbands
from fusionflow.transform import decompose

method = METHODS[sys.argv[1]].model_copy(update={"weights": sys.argv[2]})
weights = find_weights(method)
draw, shape = np.random.default_rng(0), tuple(map(int, sys.argv[3].split("x")))
sources = [decompose(draw.random(shape, np.float32), method.transform) for _ in range(2)]

def fused(batch=None):
    return np.stack([band for *_, band in fuse_subbands(*sources, method, weights, batch).bands()])

small = [source.with_bands(band[:2, :32, :32] for *_, band in source.bands()) for source in sources]
fuse_subbands(*small, method, weights)  # libraries are read at the first use
for room in sys.argv[4:]:
    with open("/proc/self/statm") as stream:
        there = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (there + (int(room) << 20), resource.RLIM_INFINITY))
    batch = Batch(method)
    try:
        print(hashlib.sha256(fused(batch)).hexdigest())
    except DeviceMemoryError:
        print("no-memory")
    if batch.halved is not None:
        print("halved")
"""
RULES = pytest.mark.parametrize("method", [ZERO_SHOT, LEARNED], ids=lambda method: method.rule)


def weights_of(method):
    if method.rule == "learned":
        return find_weights(method)
    return resolve_weights("random:1", "vgg19")


def fused_bands(method, shape=(5, 44, 52), batch=None):
    sources = [decompose(random_stack(seed, shape), method.transform) for seed in (1, 2)]
    return fuse_subbands(*sources, method, weights_of(method), batch)


def no_memory_of_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


def no_memory_of_the_processor():
    torch.empty(1 << 56, dtype=torch.uint8)  # the real message of the real allocator


def no_memory_of_onednn():
    raise RuntimeError("could not create a primitive")


def no_memory_of_winograd():
    raise RuntimeError("posix_memalign failed:Cannot allocate memory (12)")


@pytest.fixture
def short_of_memory(monkeypatch):
    """Let a trunk find no memory for more than `most` images; return what it was asked for."""

    def limit(most, refuse=no_memory_of_a_gpu):
        asked = []
        read = Trunk.reduced

        def limited(self, images, reduce):
            asked.append(len(images))
            if len(images) > most:
                refuse()
            return read(self, images, reduce)

        monkeypatch.setattr(Trunk, "reduced", limited)
        return asked

    return limit


class TestBatch:
    @given(
        count=st.integers(0, 300), pixels=st.integers(1, 1 << 23), batch=st.integers(1, 1024),
        device=st.sampled_from(["cpu", "cuda", "cuda:1"]),
    )  # fmt: skip
    def test_parts_are_all_there_in_order_and_nearly_equal(self, count, pixels, batch, device):
        of = Batch(Method(name="m", rule="max", batch=batch), device)
        parts = [list(range(count))[part] for part in of.spans(count, pixels)]
        assert [item for part in parts for item in part] == list(range(count))
        sizes = {len(part) for part in parts}
        assert max(sizes, default=1) <= of.at_once(pixels) <= batch
        assert max(sizes, default=0) - min(sizes, default=0) <= 1

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    def test_images_are_fewer_where_they_are_larger(self, device):
        of = Batch(ZERO_SHOT, device)
        at_once = [of.at_once(side**2) for side in (32, 129, 257, 513, 1025, 4097)]
        assert at_once == sorted(at_once, reverse=True)
        assert (at_once[0], at_once[-1]) == (ZERO_SHOT.batch, 1)

    def test_an_error_that_is_not_of_memory_is_not_swallowed(self):
        def forward(part):
            raise RuntimeError("shapes do not match")

        with pytest.raises(RuntimeError, match="shapes do not match"):
            Batch(ZERO_SHOT).each(5, (8, 8), forward)

    def test_what_failed_is_gone_before_it_is_tried_again(self):
        """The frames of an exception hold its tensors for as long as it lives."""
        made, alive = [], []

        def forward(part):
            alive.extend(ref() for ref in made if ref() is not None)
            features = torch.zeros(4)
            made.append(weakref.ref(features))
            if part.stop - part.start > 1:
                no_memory_of_a_gpu()

        Batch(ZERO_SHOT).each(5, (8, 8), forward)
        assert len(made) > 5
        assert alive == []


@pytest.mark.parametrize(
    ("where", "precision", "has", "told"),
    [
        ("cpu", "float32", True, "cpu"),
        ("cpu", "float32", False, "cpu (direct convolutions)"),
        ("cpu", "bfloat16", False, "cpu"),
        ("cuda", "float32", False, "cuda"),
    ],
)
def test_a_record_says_which_convolutions(monkeypatch, where, precision, has, told):
    monkeypatch.setattr(device, "has_winograd", lambda: has)
    assert device.described(where, precision) == told


def test_a_fused_slab_says_which_convolutions(phantom_bids, tmp_path, monkeypatch):
    scan: Scan = discover(phantom_bids).scans[0]
    job = job_of(scan, phantom_bids, tmp_path)
    staged = staging.stage_scan(job)
    monkeypatch.setattr(device, "has_winograd", lambda: False)
    bands = staging.decompose_staged(job, staged, *job.layout.slabs[0])
    assert stages.fuse_slab(bands, job.recipe).device == "cpu (direct convolutions)"


class TestOutOfMemory:
    @RULES
    @pytest.mark.parametrize(
        ("most", "refuse"),
        [
            (7, no_memory_of_a_gpu),
            (2, no_memory_of_the_processor),
            (2, no_memory_of_onednn),
            (2, no_memory_of_winograd),
        ],
    )
    def test_fewer_images_at_a_time_give_the_same_bits(
        self, method, refuse, most, short_of_memory, caplog
    ):
        whole = fused_bands(method)
        asked = short_of_memory(most, refuse)
        batch = Batch(method)
        found = fused_bands(method, batch=batch)
        for (*_, wanted), (*_, band) in zip(whole.bands(), found.bands(), strict=True):
            assert_array_equal(band, wanted)
        assert max(asked) > most
        assert batch.halved is not None
        assert batch.halved < method.batch
        assert f"{batch.halved} images at a time" in caplog.text
        # Once it was short it is not tried with as many again.
        after = asked[max(i for i, images in enumerate(asked) if images > most) + 1 :]
        assert len(after) > len(asked) / 2

    @RULES
    def test_without_trouble_nothing_is_told(self, method):
        batch = Batch(method)
        fused_bands(method, batch=batch)
        assert batch.halved is None

    @RULES
    def test_one_image_that_does_not_fit_is_told_with_size_device_and_mend(
        self, method, short_of_memory
    ):
        short_of_memory(0)
        with pytest.raises(DeviceMemoryError, match=r"memory of cpu .* 23 x 27 coeff") as caught:
            fused_bands(method)
        assert isinstance(caught.value, FusionflowError | MemoryError)
        assert "fewer tasks" in caught.value.mend
        assert "another device" in caught.value.mend

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform != "linux", reason="other systems limit no address space")
    @pytest.mark.parametrize(
        ("name", "weights", "shape", "tight"),
        [
            ("dwt-vgg19-l1", "random:0", "8x120x120", ["12", "24", "36"]),
            ("dwt-vgg19", "auto", "8x120x120", ["12", "24", "36"]),
            # Here it is Winograd's convolutions that find no room, mostly.
            ("dwt-vgg19-l1", "random:0", "2x240x240", ["30", "40", "50", "60", "70", "80"]),
            ("dwt-vgg19-l1", "random:0", "1x480x480", ["70", "80", "90", "110", "130", "150"]),
        ],
    )
    def test_a_process_that_really_has_no_more(self, name, weights, shape, tight):
        """Whatever library finds out, it is told as that, and what is fused has the same bits."""
        said = []
        # Not in one process: oneDNN may go on failing where it once found no room.
        for rooms in (tight, ["4096"]):
            done = subprocess.run(
                [sys.executable, "-c", CRAMPED, name, weights, shape, *rooms],
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
            said.append(done.stdout.split())
        cramped, free = said
        # Large images go one by one: there is nothing to halve.
        assert "halved" in cramped or (shape != "8x120x120" and "no-memory" in cramped)
        assert len(free) == 1
        assert {*cramped} <= {"halved", "no-memory", *free}

    def test_the_record_says_so(self, phantom_bids, tmp_path, short_of_memory):
        scan: Scan = discover(phantom_bids).scans[0]
        job = job_of(scan, phantom_bids, tmp_path)
        staged = staging.stage_scan(job)
        short_of_memory(3)
        slabs = []
        for start, stop in job.layout.slabs:
            bands = staging.decompose_staged(job, staged, start, stop)
            fused = stages.fuse_slab(bands, job.recipe)
            slabs.append(staging.reconstruct_staged(job, fused, start, stop))
        record = commit.commit_slabs(job, staged, slabs)
        assert record.software["batch"] == "2"
        (note,) = (note for note in record.notes if "Out of memory" in note)
        assert "on cpu: 2 band images at a time instead of up to 16; last bits may differ" in note

    def test_a_record_without_trouble_does_not(self, fused):
        out, _, _ = fused
        text = next(out.rglob("current.json")).read_text()
        assert "Out of memory" not in text
        assert config().method.name in text


class TestArithmetic:
    @pytest.mark.parametrize(("precision", "dtype"), [("float32", 0), ("bfloat16", 1)])
    def test_of_convolutions_is_that_of_the_method(self, precision, dtype):
        with arithmetic("cpu", precision):
            found = torch.conv2d(torch.ones(2, 1, 8, 8), torch.ones(1, 1, 3, 3))
        assert found.dtype == (torch.float32, torch.bfloat16)[dtype]
        assert found.is_inference()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestGpu:
    @RULES
    def test_gives_what_the_processor_gives(self, method):
        of_cpu, of_gpu = (
            fused_bands(method, batch=Batch(method, device)) for device in ("cpu", "cuda")
        )
        for (*_, wanted), (*_, found) in zip(of_cpu.bands(), of_gpu.bands(), strict=True):
            assert_allclose(found, wanted, rtol=0, atol=1e-4)

    @RULES
    def test_memory_that_is_short_halves_the_batch(self, method):
        method = method.model_copy(update={"batch": 1024})
        shape = (16, 512, 512)
        wanted = fused_bands(method, shape, Batch(method, "cuda"))
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        taken = torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction((taken + (1 << 30)) / total)
        batch = Batch(method, "cuda")
        try:
            found = fused_bands(method, shape, batch)
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert batch.halved is not None
        for (*_, one), (*_, other) in zip(wanted.bands(), found.bands(), strict=True):
            assert_allclose(other, one, rtol=0, atol=1e-4)

    def test_float32_is_not_shortened(self):
        images = torch.rand(4, 64, 32, 32, dtype=torch.float64)
        kernel = torch.rand(64, 64, 3, 3, dtype=torch.float64)
        wanted = torch.conv2d(images, kernel)
        with arithmetic("cuda", "float32"):
            found = torch.conv2d(images.float().cuda(), kernel.float().cuda()).cpu().double()
        assert float(((found - wanted) / wanted).abs().max()) < 1e-5
