"""Writing a scan while other work on it goes on: the same files, read once, nothing left over."""

from __future__ import annotations

import errno
import os
import threading

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from runs import config, job_of

from fusionflow import staging
from fusionflow.conform import conform_into
from fusionflow.errors import ImageError, StoreError
from fusionflow.io import derivatives, store
from fusionflow.io.bids import discover
from fusionflow.io.nifti import read_volume
from fusionflow.overlay import pet_on_mri
from fusionflow.pictures import mosaic, slices_to_show
from fusionflow.png import png_bytes
from fusionflow.schema import MRI

SHAPE = (23, 30, 26)


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Scans as they are, and as if they were too large to be written beside other work."""
    if request.param == "large":
        monkeypatch.setattr(store, "SMALL_SCAN", 0)
        monkeypatch.setattr(derivatives, "SMALL_SCAN", 0)
        monkeypatch.setattr(store, "MOST_AT_ONCE_BYTES", 1)
    return request.param


@pytest.fixture
def scan(phantom_bids):
    return discover(phantom_bids).scans[0]


class Counted:
    """A volume that tells how often each of its slices was read."""

    def __init__(self, values):
        self.values, self.times = values, np.zeros(len(values), int)

    @property
    def shape(self):
        return self.values.shape

    def __getitem__(self, where):
        self.times[where] += 1
        return self.values[where]


class TestFilesOfAScan:
    def test_are_the_same_from_one_reading(self, scan, tmp_path, size):
        t1w = read_volume(scan.t1w)
        x, y, z = t1w.orientation.ras_shape
        draw = np.random.default_rng(0)
        values = {name: draw.random((z, y, x), np.float32) for name in ("mri", "pet", "fused")}
        values["mask"] = (values["mri"] > 0.2).astype(np.uint8)
        volumes = {name: Counted(value) for name, value in values.items()}
        names = derivatives.write_scan_files(
            tmp_path, "sub-01", volumes, 7, t1w.orientation, {"of": "sub-01"}, "title"
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
        for volume in volumes.values():
            assert (volume.times == 1).all()
        fused = read_volume(tmp_path / "sub-01_fused.nii.gz")
        assert_array_equal(fused.data.T, values["fused"])
        places = slices_to_show(values["mask"])
        rows = {
            "MRI": values["mri"],
            "PET": values["pet"],
            "fused": values["fused"],
            "PET on MRI": {z: pet_on_mri(values["mri"][z], values["pet"][z]) for z in places},
        }
        sides = np.linalg.norm(t1w.orientation.ras_affine[:3, :3], axis=0)[::-1]
        wanted = png_bytes(mosaic(rows, places, "title", tuple(sides.tolist())))
        assert (tmp_path / "sub-01_fused.png").read_bytes() == wanted

    @pytest.mark.parametrize("name", ["overlay", "fused"])
    def test_what_goes_wrong_in_one_of_them_is_said(self, scan, tmp_path, size, monkeypatch, name):
        t1w = read_volume(scan.t1w)
        values = np.zeros(t1w.orientation.ras_shape[::-1], np.float32)
        volumes = dict.fromkeys(("mri", "pet", "mask", "fused"), values)
        before, replace = threading.active_count(), type(tmp_path).replace

        def full(source, target):
            if name in target.name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return replace(source, target)

        monkeypatch.setattr(type(tmp_path), "replace", full)
        with pytest.raises(StoreError, match=rf"x_{name}\.nii\.gz cannot be written: No space"):
            derivatives.write_scan_files(tmp_path, "x", volumes, 7, t1w.orientation, {}, "")
        names = {path.name for path in tmp_path.iterdir()}
        assert names <= {"x_overlay.nii.gz", "x_fused.nii.gz"} - {f"x_{name}.nii.gz"}
        assert threading.active_count() == before


class TestVolumes:
    def test_have_the_same_bytes_however_many_chunks_are_at_work(self, tmp_path, size):
        layout = store.Layout(SHAPE, 6, 24)
        rows = np.random.default_rng(0).random(SHAPE, np.float32)
        path = tmp_path / size
        store.create_group(path, layout, (MRI,))
        store.write_rows(path, "mri", 0, rows, layout)
        assert_array_equal(store.read_rows(path, "mri", 0, len(rows)), rows)
        other = tmp_path / "other"
        store.create_group(other, layout, (MRI,))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store, "MOST_AT_ONCE_BYTES", 1)
            store.write_rows(other, "mri", 0, rows, layout)
        files = {file.relative_to(path) for file in path.rglob("*") if file.is_file()}
        assert files
        for file in files:
            assert (path / file).read_bytes() == (other / file).read_bytes()

    @pytest.mark.parametrize("name", ["mask", "mri", "pet"])
    def test_that_cannot_be_written_leave_nothing(
        self, scan, phantom_bids, tmp_path, size, monkeypatch, name
    ):
        job = job_of(scan, phantom_bids, tmp_path / "out", config("dwt-max", weights="auto"))
        write = store.write_rows

        def full(path, volume, *rest):
            if volume == name:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(path, volume, *rest)

        monkeypatch.setattr(store, "write_rows", full)
        before = threading.active_count()
        with pytest.raises(StoreError, match=r"Cannot write .*: No space left") as error:
            staging.stage_scan(job)
        assert error.value.mend == "Check space and permissions"
        assert list(job.staging.iterdir()) == []
        assert threading.active_count() == before

    def test_of_a_scan_that_turns_out_to_be_broken_leave_nothing(
        self, scan, phantom_bids, tmp_path, size, monkeypatch
    ):
        """While the MRI is still being written, the PET cannot be used."""
        job = job_of(scan, phantom_bids, tmp_path / "out", config("dwt-max", weights="auto"))
        broken, write = threading.Event(), store.write_rows

        def slow(path, volume, *rest):
            if size == "small":
                assert broken.wait(60)
            write(path, volume, *rest)

        def refuse(*given, **options):
            broken.set()
            raise ImageError("the PET is broken", "Fetch it again")

        monkeypatch.setattr(store, "write_rows", slow)
        monkeypatch.setattr("fusionflow.conform._finish_pet", refuse)
        with pytest.raises(ImageError, match="the PET is broken"):
            staging.stage_scan(job)
        assert list(job.staging.iterdir()) == []

    def test_are_there_when_the_task_ends(self, scan, phantom_bids, tmp_path, size):
        job = job_of(scan, phantom_bids, tmp_path / "out", config("dwt-max", weights="auto"))
        staging.stage_scan(job)
        volumes = {}
        conform_into(volumes.__setitem__, scan.t1w, scan.pet, job.conform, info=scan.pet_info)
        for name in ("mri", "pet", "mask"):
            found = store.read_rows(job.group, name, 0, job.layout.shape[0])
            assert_array_equal(found, volumes[name])
