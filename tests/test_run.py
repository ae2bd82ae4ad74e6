"""A cohort from files to published results, on real clusters of processes."""

import json
import multiprocessing
import shutil

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from PIL import Image
from runs import LABELS, config, job_of, leftovers
from scipy import ndimage

import fusionflow as ff
from fusionflow import clusters, graph, metrics
from fusionflow.config import ClusterOptions, Wavelet
from fusionflow.errors import (
    ScanNotFoundError,
    StoreError,
)
from fusionflow.events import Fused, Planned
from fusionflow.io import store
from fusionflow.io.bids import discover


class TestCohort:
    def test_every_scan_is_fused(self, fused):
        _, report, events = fused
        assert sorted(record.label for record in report.fused) == LABELS
        assert not report.failed
        assert not report.unchanged
        assert sum(isinstance(event, Fused) for event in events) == 4

    def test_opens_as_xarray(self, fused):
        out, _, _ = fused
        cohort = ff.open_cohort(out)
        assert list(cohort) == LABELS
        scan = cohort.scan("sub-02_ses-baseline")
        assert scan.fused.chunks[0] == (14, 14, 13)
        scan = scan.compute()
        assert scan.fused.dims == ("z", "y", "x")
        assert scan.fused.shape == (41, 56, 47)
        assert scan.fused.dtype == np.float32
        assert scan.attrs["method"]["name"] == "dwt-vgg19-l1"
        assert np.isfinite(scan.fused.values).all()
        # Weights of a mean lie between the sources in every band, so the mean of each slice does.
        low = np.minimum(scan.mri, scan.pet).mean().item()
        high = np.maximum(scan.mri, scan.pet).mean().item()
        assert low < scan.fused.mean().item() < high

    def test_plain_xarray_opens_a_scan(self, fused):
        out, report, _ = fused
        record = report.fused[0]
        scan = xr.open_zarr(out / "scans" / record.label / record.version)
        assert set(scan.data_vars) == {
            "mri", "pet", "mask", "fused", "metrics", "image_metrics",
        }  # fmt: skip
        assert scan.source.values.tolist() == ["mri", "pet"]
        assert scan.metric.values.tolist() == [metric.name for metric in metrics.PAIR_METRICS]

    def test_tree_and_stack(self, fused):
        out, _, _ = fused
        cohort = ff.open_cohort(out)
        assert set(cohort.tree().children) == set(LABELS)
        followed = ["sub-01_ses-baseline", "sub-01_ses-followup"]
        stacked = cohort.stack(followed)
        assert stacked.fused.dims == ("scan", "z", "y", "x")
        np.testing.assert_array_equal(
            stacked.fused.sel(scan=followed[1]).values, cohort.scan(followed[1]).fused.values
        )

    def test_a_scan_that_is_not_there(self, fused):
        with pytest.raises(ScanNotFoundError, match=r"sub-99.*It holds: sub-01_ses-baseline"):
            ff.open_cohort(fused[0]).scan("sub-99")

    def test_stored_metrics_are_those_of_the_stored_volumes(self, fused):
        scan = ff.open_cohort(fused[0]).scan(LABELS[0]).compute()
        again = metrics.slice_metrics(
            *(scan[name].values for name in ("mri", "pet", "fused", "mask"))
        )
        np.testing.assert_array_equal(scan.metrics.values, again.pair)
        np.testing.assert_array_equal(scan.image_metrics.values, again.image)

    def test_index_can_be_rebuilt(self, fused, tmp_path):
        out = shutil.copytree(fused[0], tmp_path / "out")
        before = ff.open_cohort(out).metrics
        (out / "index.json").unlink()
        xr.testing.assert_identical(ff.open_cohort(out).metrics, before)

    def test_a_folder_without_output(self, tmp_path):
        with pytest.raises(StoreError, match="holds no fused cohort"):
            ff.open_cohort(tmp_path)

    def test_nothing_is_left_behind(self, fused):
        assert leftovers(fused[0]) == []

    def test_a_task_graph_of_at_most_14_tasks(self, phantom_bids, tmp_path):
        for scan in discover(phantom_bids).scans:
            job = job_of(scan, phantom_bids, tmp_path)
            assert len(graph.scan_graph(job).dask) <= 14


class TestSummary:
    def test_cohort_figures_are_over_subjects(self, fused):
        out, report, _ = fused
        summary = ff.summarise(out)
        assert summary.attrs == {"method": "dwt-vgg19-l1", "scans": 4, "subjects": 3}
        assert summary.ssim.sel(statistic="n").values.tolist() == [3, 3]
        figures = {record.label: record.metrics["ssim"]["pet"] for record in report.fused}
        first = (figures[LABELS[0]] + figures[LABELS[1]]) / 2
        expected = np.mean([first, figures[LABELS[2]], figures[LABELS[3]]])
        found = summary.ssim.sel(statistic="mean", source="pet").item()
        assert found == pytest.approx(expected, rel=1e-12)

    def test_it_is_on_disk_too(self, fused):
        out, _, _ = fused
        cohort = xr.open_zarr(out / "group.zarr")
        expected = ff.summarise(out).to_dataset()
        xr.testing.assert_allclose(cohort.compute(), expected)
        subjects = xr.open_zarr(out / "group.zarr", group="subjects")
        assert subjects.subject.values.tolist() == ["01", "02", "03"]
        header, *rows = (out / "group_metrics.tsv").read_text().splitlines()
        assert header.split("\t") == [
            "metric", "source", "units", "n", "mean", "sd", "median", "q25", "q75",
        ]  # fmt: skip
        assert len(rows) == 2 * len(metrics.PAIR_METRICS) + len(metrics.IMAGE_METRICS) + 1
        assert len((out / "group_scans.tsv").read_text().splitlines()) == 5

    def test_the_group_level_alone(self, fused, tmp_path, phantom_bids):
        out = shutil.copytree(fused[0], tmp_path / "out")
        for name in ("group_metrics.tsv", "group_scans.tsv"):
            (out / name).unlink()
        report = ff.run(phantom_bids, out, config(), levels=("group",))
        assert report.summary is not None
        for name in ("group_metrics.tsv", "group_scans.tsv"):
            assert (out / name).read_bytes() == (fused[0] / name).read_bytes()


class TestFiles:
    def test_beside_the_store(self, fused):
        out, _, _ = fused
        folder = out / "sub-01" / "ses-followup" / "fused"
        names = {path.name for path in folder.iterdir()}
        assert names == {
            f"sub-01_ses-followup_{ending}"
            for ending in ("fused.nii.gz", "fused.json", "fused.png", "overlay.nii.gz")
        }
        sidecar = json.loads((folder / "sub-01_ses-followup_fused.json").read_text())
        assert sidecar["Units"] == "arbitrary"
        assert sidecar["Sources"][0] == (
            "bids:raw:sub-01/ses-followup/anat/sub-01_ses-followup_T1w.nii.gz"
        )
        assert sidecar["Method"]["rule"] == "l1-soft"
        picture = Image.open(folder / "sub-01_ses-followup_fused.png")
        assert min(picture.size) > 300
        assert np.asarray(picture).std() > 20
        description = json.loads((out / "dataset_description.json").read_text())
        assert description["GeneratedBy"][0]["Name"] == "fusionflow"
        assert "**/fused" in (out / ".bidsignore").read_text()

    def test_random_weights_are_said_where_they_are_seen(self, fused):
        out, report, events = fused
        planned = next(event for event in events if isinstance(event, Planned))
        assert planned.weights.is_random
        folder = out / "sub-02" / "ses-baseline" / "fused"
        sidecar = json.loads((folder / "sub-02_ses-baseline_fused.json").read_text())
        assert "RANDOM" in sidecar["Weights"]
        assert any("RANDOM" in note for note in sidecar["Warnings"])
        assert all(any("RANDOM" in note for note in record.notes) for record in report.fused)

    def test_the_nifti_holds_the_array(self, fused):
        out, _, _ = fused
        image = nib.load(out / "sub-03/ses-baseline/fused/sub-03_ses-baseline_fused.nii.gz")
        scan = ff.open_cohort(out).scan("sub-03_ses-baseline")
        canonical = nib.as_closest_canonical(image)
        np.testing.assert_array_equal(canonical.get_fdata(dtype=np.float32).T, scan.fused.values)
        np.testing.assert_allclose(canonical.affine, scan.attrs["affine"], atol=1e-5)


def sample(image, points):
    """Values of an image at world points (n, 3), trilinear."""
    voxels = nib.affines.apply_affine(np.linalg.inv(image.affine), points)
    return ndimage.map_coordinates(image.get_fdata(dtype=np.float64), voxels.T, order=1)


def assert_same_places(fused_path, t1w_path):
    """The fused image of method `mri` is the T1w, scaled, at every world point."""
    fused, t1w = nib.load(fused_path), nib.load(t1w_path)
    assert fused.shape == t1w.shape
    np.testing.assert_allclose(fused.affine, t1w.affine, atol=1e-4)
    for code in ("qform_code", "sform_code"):
        assert fused.header[code] == t1w.header[code]
    rng = np.random.default_rng(0)
    voxels = rng.uniform(1, np.array(t1w.shape) - 2, (500, 3))
    points = nib.affines.apply_affine(t1w.affine, voxels)
    ours, theirs = sample(fused, points), sample(t1w, points)
    slope, intercept = np.polyfit(theirs, ours, 1)
    np.testing.assert_allclose(ours, slope * theirs + intercept, atol=1e-4)
    assert slope > 0


class TestWorldCoordinates:
    @pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR", "ASL"])
    def test_fused_and_t1w_agree_at_world_points(self, phantom_bids, client, tmp_path, axcodes):
        bids = shutil.copytree(phantom_bids, tmp_path / "bids")
        path = bids / "sub-02/ses-baseline/anat/sub-02_ses-baseline_T1w.nii.gz"
        image = nib.load(path)
        turned = image.as_reoriented(
            nib.orientations.ornt_transform(
                nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(axcodes)
            )
        )
        nib.save(turned, path)
        ff.run(
            bids, tmp_path / "out", config("mri"), client=client, participant_labels=["02"],
            levels=("participant",),
        )  # fmt: skip
        assert nib.aff2axcodes(nib.load(path).affine) == tuple(axcodes)
        fused = tmp_path / "out/sub-02/ses-baseline/fused/sub-02_ses-baseline_fused.nii.gz"
        assert_same_places(fused, path)

    @pytest.mark.shared
    @pytest.mark.parametrize("subject", ["spm", "harvard", "juspace04"])
    def test_real_scans(self, shared, client, tmp_path, subject):
        bids = shared / "data" / "bids"
        ff.run(
            bids, tmp_path, config("mri"), client=client, participant_labels=[subject],
            levels=("participant",),
        )  # fmt: skip
        assert_same_places(
            tmp_path / f"sub-{subject}/fused/sub-{subject}_fused.nii.gz",
            bids / f"sub-{subject}/anat/sub-{subject}_T1w.nii.gz",
        )


class TestForcedWeights:
    @pytest.mark.parametrize("source", ["mri", "pet"])
    @pytest.mark.parametrize("levels", [1, 2])
    def test_a_source_comes_back_through_the_whole_graph(
        self, phantom_bids, client, tmp_path, source, levels
    ):
        wavelet = Wavelet(levels=levels)
        forced = config(source, transform=wavelet)
        ff.run(phantom_bids, tmp_path, forced, client=client, participant_labels=["03"])
        scan = ff.open_cohort(tmp_path).scan("sub-03_ses-baseline").compute()
        assert scan.sizes == {**scan.sizes, "z": 41, "x": 47}  # odd
        np.testing.assert_allclose(scan.fused.values, scan[source].values, atol=1e-5)
        other = "pet" if source == "mri" else "mri"
        assert abs(scan.fused.values - scan[other].values).max() > 0.5


class TestLargeVolumes:
    def test_several_shards_hold_the_same(self, fused, phantom_bids, client, tmp_path, monkeypatch):
        monkeypatch.setattr(store, "MOST_SLAB_BYTES", 56 * 47 * 4 * 7)
        monkeypatch.setattr(store, "MOST_SHARD_BYTES", 56 * 47 * 4 * 15)
        report = ff.run(phantom_bids, tmp_path, config(), client=client, participant_labels=["02"])
        group = tmp_path / "scans/sub-02_ses-baseline" / report.fused[0].version
        assert len(list((group / "fused" / "c").glob("*"))) == 3
        ours = ff.open_cohort(tmp_path).scan("sub-02_ses-baseline")
        assert ours.fused.chunks[0] == (7, 7, 7, 7, 7, 6)
        theirs = ff.open_cohort(fused[0]).scan("sub-02_ses-baseline")
        np.testing.assert_array_equal(ours.fused.values, theirs.fused.values)
        np.testing.assert_array_equal(ours.metrics.values, theirs.metrics.values)


class TestSameBits:
    @pytest.mark.slow
    @pytest.mark.parametrize(("workers", "threads"), [(1, 1), (1, 2)])
    def test_any_number_of_workers_and_threads(
        self, fused, phantom_bids, tmp_path, workers, threads
    ):
        here = ClusterOptions(n_workers=workers, threads_per_worker=threads)
        with clusters.connect(here) as client:
            ff.run(phantom_bids, tmp_path, config(), client=client)
        self.assert_same(fused[0], tmp_path, LABELS)

    def test_alone_or_with_others(self, fused, phantom_bids, client, tmp_path):
        ff.run(phantom_bids, tmp_path, config(), client=client, participant_labels=["sub-03"])
        self.assert_same(fused[0], tmp_path, ["sub-03_ses-baseline"])

    @staticmethod
    def assert_same(one, other, labels):
        one, other = ff.open_cohort(one), ff.open_cohort(other)
        assert list(other) == labels
        for label in labels:
            assert one.record(label).version == other.record(label).version
            for name in ("mri", "pet", "mask", "fused", "metrics"):
                np.testing.assert_array_equal(
                    one.scan(label)[name].values, other.scan(label)[name].values, err_msg=name
                )


class TestLazy:
    def test_the_same_as_the_run(self, fused, client):
        scan = ff.open_cohort(fused[0]).scan(LABELS[0])
        method = config().method
        lazy = ff.fuse(scan[["mri", "pet", "mask"]], method)
        assert lazy.fused.chunks is not None
        result = ff.compute(lazy)
        np.testing.assert_array_equal(result.fused.values, scan.fused.values)
        np.testing.assert_array_equal(result.metrics.values, scan.metrics.values)
        np.testing.assert_array_equal(result.image_metrics.values, scan.image_metrics.values)
        assert result.attrs["method"]["name"] == "dwt-vgg19-l1"

    def test_plain_numpy_input_and_a_named_method(self, client):
        rng = np.random.default_rng(0)
        scan = xr.Dataset(
            {name: (("z", "y", "x"), rng.random((5, 33, 30))) for name in ("mri", "pet")}
        )
        result = ff.compute(ff.fuse(scan, "average").fused)
        np.testing.assert_allclose(result.values, (scan.mri + scan.pet) / 2, atol=1e-6)

    def test_without_a_gpu_plain_compute_works(self, fused, client):
        scan = ff.open_cohort(fused[0]).scan(LABELS[0]).isel(z=slice(16))
        lazy = ff.fuse(scan, config().method)
        np.testing.assert_array_equal(lazy.fused.compute().values, scan.fused.values)


@pytest.mark.slow
def test_a_reader_is_never_disturbed(fused, phantom_bids, client, tmp_path):
    """A cohort that is open stays as it was, one opened anew is whole, while all is replaced."""
    out = shutil.copytree(fused[0], tmp_path / "out")
    expected = {
        "dwt-vgg19-l1": {
            label: ff.open_cohort(out).scan(label).fused.values.copy() for label in LABELS
        }
    }
    for method in ("average", "dwt-max"):
        ff.run(phantom_bids, tmp_path / method, config(method), client=client)
        cohort = ff.open_cohort(tmp_path / method)
        expected[method] = {label: cohort.scan(label).fused.values for label in LABELS}

    opened = ff.open_cohort(out)
    context = multiprocessing.get_context("spawn")
    reading, stop, found = context.Event(), context.Event(), context.Queue()
    reader = context.Process(target=_read, args=(reading, stop, found, out, expected))
    reader.start()
    try:
        assert reading.wait(timeout=120)
        for method in ("average", "dwt-max", "average"):
            report = ff.run(phantom_bids, out, config(method), client=client)
            assert len(report.fused) == 4
            for label in LABELS:
                still = opened.scan(label).fused.values
                np.testing.assert_array_equal(still, expected["dwt-vgg19-l1"][label])
    finally:
        stop.set()
    counts, problems = found.get(timeout=120)
    reader.join(timeout=120)
    assert problems == []
    assert counts["dwt-vgg19-l1"] > 4
    assert sum(counts.values()) > 40


def _read(reading, stop, found, out, expected):
    """Open the cohort and read all scans, again and again."""
    counts, problems = dict.fromkeys(expected, 0), []
    while not stop.is_set():
        try:
            cohort = ff.open_cohort(out)
            for label in cohort:
                method = cohort.record(label).method["name"]
                values = cohort.scan(label).fused.values
                counts[method] += 1
                if not np.array_equal(values, expected[method][label]):
                    problems.append(f"{label} torn")
        except Exception as error:
            problems.append(repr(error))
        reading.set()
    found.put((counts, problems))
