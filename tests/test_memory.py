"""Memory: a scan takes a few bytes a voxel, and a large one fits in a small worker."""

import gzip
import threading
import tracemalloc
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import psutil
import pytest
from runs import config, job_of

import fusionflow as ff
from fusionflow import clusters, commit, planning, stages, staging
from fusionflow.config import ClusterOptions, ConformOptions
from fusionflow.io import derivatives, store
from fusionflow.io.bids import discover

LIMIT = 2147  # MB: 2 GiB, of which Dask pauses a worker at 80 % and ends it at 95 %
LARGE, PERMUTED = (512, 512, 400), (512, 400, 512)


def write_scan(folder, shape, voxel_mm, axcodes="RAS", pet_like=1.0):
    """Write a noisy head and its uptake, plane by plane; voxels of the PET may be larger."""
    rng = np.random.default_rng(0)
    for name, rings, size in (
        ("anat/sub-01_T1w.nii.gz", 9, voxel_mm),
        ("pet/sub-01_pet.nii", 7, voxel_mm * pet_like),
    ):
        affine = nib.affines.from_matvec(np.eye(3) * size, -size * (np.array(shape) - 1) / 2)
        ornt = nib.orientations.axcodes2ornt(axcodes)
        affine = affine @ nib.orientations.inv_ornt_aff(ornt, shape)
        header = nib.Nifti1Header(endianness="<")
        header.set_data_dtype(np.float32)
        header.set_data_shape(shape)
        header.set_sform(affine, 2)
        header["magic"], header["vox_offset"], header["scl_slope"] = b"n+1", 352, 1
        path = folder / "sub-01" / name
        path.parent.mkdir(parents=True)
        i, j = np.ogrid[: shape[0], : shape[1]]
        with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as sink:
            sink.write(header.binaryblock + bytes(4))
            for k in range(shape[2]):
                x, y, z = (
                    affine[row, 0] * i + affine[row, 1] * j + affine[row, 2] * k + affine[row, 3]
                    for row in range(3)
                )
                r = np.sqrt((x / 70) ** 2 + (y / 85) ** 2 + (z / 75) ** 2)
                head = 60 + 40 * np.cos(rings * r) + 20 * np.sin(x / 9) * np.sin(y / 7)
                plane = np.where(r < 1, head, 0) + 3 * np.abs(rng.standard_normal(shape[:2]))
                sink.write(plane.astype("<f4").tobytes(order="F"))
    (folder / "dataset_description.json").write_text('{"Name": "large", "BIDSVersion": "1.9.0"}')
    return folder


@contextmanager
def highest_rss():
    """Watch the worker processes below this one: which there were, and the most memory of one."""
    seen, done = {}, threading.Event()

    def watch():
        while not done.wait(0.02):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "spawn_main" in " ".join(process.cmdline()):
                        most = max(seen.get(process.pid, 0), process.memory_info().rss)
                        seen[process.pid] = most
                except psutil.Error:
                    pass

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        done.set()
        watching.join()


@contextmanager
def most_bytes():
    """Count what NumPy and Python allocate, as a list that gets the most of it."""
    most = []
    tracemalloc.start()
    try:
        yield most
        most.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


class TestBytesAVoxel:
    BLOCKS = 64e6  # what does not grow with the scan: blocks, slabs and buffers

    @pytest.mark.parametrize(
        ("registration", "axcodes", "pet_like"),
        [("header", "LPI", 1.0), ("header", "PIR", 1.05), ("rigid", "RAS", 1.0)],
    )
    @pytest.mark.parametrize("small", [True, False], ids=["small", "as if it were large"])
    def test_of_a_scan(self, registration, axcodes, pet_like, small, tmp_path, monkeypatch):
        if not small:
            for module in (store, derivatives):
                monkeypatch.setattr(module, "SMALL_SCAN", 0)
            monkeypatch.setattr(store, "MOST_AT_ONCE_BYTES", 1)
        each = planning._BYTES_A_VOXEL_OF_A_SMALL_SCAN if small else planning._BYTES_A_VOXEL
        source = write_scan(tmp_path / "bids", (160, 160, 160), 0.95, axcodes, pet_like)
        (scan,) = discover(source).scans
        how = config("dwt-max", weights=None).model_copy(
            update={"conform": ConformOptions(registration=registration)}
        )
        job = job_of(scan, source, tmp_path / "out", how)
        voxels = np.prod(job.layout.shape)
        with most_bytes() as conforming:
            staged = staging.stage_scan(job)
        slabs = []
        for start, stop in job.layout.slabs:
            fused = stages.fuse_slab(staging.decompose_staged(job, staged, start, stop), job.recipe)
            slabs.append(staging.reconstruct_staged(job, fused, start, stop))
        shards = [commit.write_shard(job, 0, slabs)]
        with most_bytes() as finishing:
            commit.commit(job, staged, shards)
        assert conforming[0] < each * voxels + self.BLOCKS
        assert finishing[0] < each * voxels + self.BLOCKS


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    return write_scan(tmp_path_factory.mktemp("aligned"), LARGE, 0.45)


@pytest.fixture(scope="module")
def apart(tmp_path_factory):
    """Two grids, in files whose planes are coronal."""
    return write_scan(tmp_path_factory.mktemp("apart"), PERMUTED, 0.45, "PIR", pet_like=1.05)


@pytest.mark.faults
@pytest.mark.timeout(1800)
class TestLarge:
    """A scan of 105 million voxels, on a worker of 2 GiB."""

    @pytest.mark.parametrize(
        ("scan", "method", "registration"),
        [
            ("aligned", "dwt-max", "rigid"),
            ("apart", "dwt-vgg19-l1", "header"),
        ],
    )
    def test_fits(self, scan, method, registration, request, tmp_path):
        source = request.getfixturevalue(scan)
        # One tap: what a network needs follows from its slabs, and those of a whole one are below.
        options = {"taps": ("relu1_1",)} if "vgg" in method else {"weights": None}
        how = config(method, **options).model_copy(
            update={"conform": ConformOptions(registration=registration)}
        )
        fits(source, how, tmp_path / "out")

    def test_fits_beside_a_whole_network(self, tmp_path):
        """On one slab of 64 slices, the most that a network is given at a time."""
        source = write_scan(tmp_path / "bids", (512, 512, 64), 0.45)
        fits(source, config("dwt-vgg19", weights="auto"), tmp_path / "out")


def fits(source, how, out):
    """Fuse a scan on a worker of 2 GiB, and make sure that it was never short of memory."""
    limit = ClusterOptions(n_workers=1, memory_mb=LIMIT)
    with highest_rss() as seen, clusters.connect(limit) as client:
        before = set(client.scheduler_info()["workers"])
        report = ff.run(source, out, how, client=client)
        assert set(client.scheduler_info()["workers"]) == before
    print(how.method.name, [f"{rss / 1e6:.0f} MB" for rss in seen.values()])
    assert [record.label for record in report.fused] == ["sub-01"]
    assert report.fused[0].attempt == 1
    assert max(seen.values()) < 0.95 * LIMIT * 1e6
