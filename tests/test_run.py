"""A cohort from files to published results, on real clusters of processes."""

import json
import multiprocessing
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from PIL import Image
from scipy import ndimage

import fusionflow as ff
from fusionflow import clusters, commit, graph, metrics, runner, stages
from fusionflow.config import METHODS, ClusterOptions, RunConfig, Wavelet
from fusionflow.errors import (
    ConfigurationError,
    GridError,
    NoScansError,
    ScanNotFoundError,
    StoreError,
)
from fusionflow.io import store
from fusionflow.io.bids import discover
from fusionflow.ledger import OutputPaths
from fusionflow.phantom import COHORT, write_cohort

LABELS = [f"sub-{subject}_ses-{session}" for subject, session in COHORT]


@pytest.fixture(scope="session")
def phantom_bids(tmp_path_factory):
    """Four small scans of three subjects."""
    folder = tmp_path_factory.mktemp("phantom") / "bids"
    write_cohort(folder, shape=(47, 56, 41))
    return folder


@pytest.fixture(scope="session")
def client():
    """Two worker processes of one thread each."""
    with clusters.connect(ClusterOptions(n_workers=2)) as client:
        yield client


def config(method="dwt-vgg19", **update):
    update = {"weights": "random:0", **update}
    return RunConfig(method=METHODS[method].model_copy(update=update))


def leftovers(out):
    return [
        path
        for path in Path(out).rglob("*")
        if path.name.startswith(".") and path.name != ".bidsignore"
    ]


@pytest.fixture(scope="session")
def fused(phantom_bids, client, tmp_path_factory):
    """The phantom cohort, fused with dwt-vgg19 on random weights."""
    out = tmp_path_factory.mktemp("fused") / "out"
    events = []
    report = ff.run(phantom_bids, out, config(), client=client, on_event=events.append)
    return out, report, events


class TestCohort:
    def test_every_scan_is_fused(self, fused):
        _, report, events = fused
        assert sorted(record.label for record in report.fused) == LABELS
        assert not report.failed
        assert not report.unchanged
        assert sum(isinstance(event, runner.Fused) for event in events) == 4

    def test_opens_as_xarray(self, fused):
        out, _, _ = fused
        cohort = ff.open_cohort(out)
        assert list(cohort) == LABELS
        scan = cohort.scan("sub-02_ses-baseline")
        assert scan.fused.chunks[0] == (16, 16, 9)
        scan = scan.compute()
        assert scan.fused.dims == ("z", "y", "x")
        assert scan.fused.shape == (41, 56, 47)
        assert scan.fused.dtype == np.float32
        assert scan.attrs["method"]["name"] == "dwt-vgg19"
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
        jobs = []
        original = graph.scan_graph
        run = runner._CohortRun(
            phantom_bids, OutputPaths(tmp_path), config(), graph.make_recipe(config().method),
            lambda _: None, runner.RunReport(),
        )  # fmt: skip
        found = discover(phantom_bids)
        jobs = list(run._planned(iter(found.scans)))
        assert all(len(original(job).dask) <= 14 for job in jobs)


class TestSummary:
    def test_cohort_figures_are_over_subjects(self, fused):
        out, report, _ = fused
        summary = ff.summarise(out)
        assert summary.attrs == {"method": "dwt-vgg19", "scans": 4, "subjects": 3}
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
            f"sub-01_ses-followup_fused{suffix}" for suffix in (".nii.gz", ".json", ".png")
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
        assert "**/fused/" in (out / ".bidsignore").read_text()

    def test_random_weights_are_said_where_they_are_seen(self, fused):
        out, report, events = fused
        planned = next(event for event in events if isinstance(event, runner.Planned))
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


class TestAgain:
    def test_what_is_done_is_left_alone_and_no_cluster_starts(self, fused, phantom_bids):
        out, _, _ = fused
        times = {p: p.stat().st_mtime_ns for p in (out / "scans").rglob("*") if p.is_file()}
        events = []
        again = ff.run(phantom_bids, out, config(), on_event=events.append)
        assert again.unchanged == LABELS
        assert not again.fused
        assert not any(isinstance(event, runner.Started) for event in events)
        assert times == {p: p.stat().st_mtime_ns for p in (out / "scans").rglob("*") if p.is_file()}

    def test_only_what_changed_runs(self, fused, phantom_bids, client, tmp_path):
        out = shutil.copytree(fused[0], tmp_path / "out")
        # Another place and, as `cp` leaves them, other times: what counts is the content.
        bids = shutil.copytree(phantom_bids, tmp_path / "bids", copy_function=shutil.copyfile)
        pet = bids / "sub-03/ses-baseline/pet/sub-03_ses-baseline_trc-FDG_pet.nii.gz"
        image = nib.load(pet)
        nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * 2, image.affine), pet)
        events = []
        again = ff.run(bids, out, config(), client=client, on_event=events.append)
        assert [record.label for record in again.fused] == ["sub-03_ses-baseline"]
        why = next(event.why for event in events if isinstance(event, runner.Fused))
        assert why == "sub-03/ses-baseline/pet/sub-03_ses-baseline_trc-FDG_pet.nii.gz changed"
        assert len(again.unchanged) == 3

    @pytest.mark.parametrize(
        "damage",
        [
            Path.unlink,
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            lambda path: path.write_bytes(path.read_bytes()[:-9] + b"same size"),
        ],
        ids=["gone", "cut", "edited in place"],
    )
    @pytest.mark.parametrize("suffix", [".nii.gz", ".json"])
    def test_a_damaged_file_is_made_again(
        self, fused, phantom_bids, client, tmp_path, damage, suffix
    ):
        out = shutil.copytree(fused[0], tmp_path / "out")
        name = f"sub-02/ses-baseline/fused/sub-02_ses-baseline_fused{suffix}"
        damage(out / name)
        events = []
        again = ff.run(phantom_bids, out, config(), client=client, on_event=events.append)
        assert [record.label for record in again.fused] == ["sub-02_ses-baseline"]
        why = next(event.why for event in events if isinstance(event, runner.Fused))
        assert why == f"{name} is missing or damaged"
        assert (out / name).read_bytes() == (fused[0] / name).read_bytes()
        assert not ff.run(phantom_bids, out, config()).fused

    def test_a_copy_without_times_is_left_alone(self, fused, phantom_bids, tmp_path):
        out = shutil.copytree(fused[0], tmp_path / "out", copy_function=shutil.copyfile)
        assert ff.run(phantom_bids, out, config()).unchanged == LABELS

    def test_files_of_another_method_are_replaced(self, fused, phantom_bids, client, tmp_path):
        """As after a crash between publishing and putting the files in place."""
        out = shutil.copytree(fused[0], tmp_path / "out")
        other = ff.run(
            phantom_bids, tmp_path / "other", config("maximum"), client=client,
            participant_labels=["02"],
        )  # fmt: skip
        assert len(other.fused[0].outputs) == 3
        for item in other.fused[0].outputs:
            shutil.copyfile(tmp_path / "other" / item.path, out / item.path)
        ff.run(phantom_bids, out, config(), client=client)
        for item in other.fused[0].outputs:
            assert (out / item.path).read_bytes() == (fused[0] / item.path).read_bytes()

    @pytest.mark.parametrize(
        "damage",
        [
            lambda version: shutil.rmtree(version / "fused"),
            lambda version: (version / "fused/c/0/0/0").write_bytes(b"x"),
            lambda version: (version / "zarr.json").unlink(),
            lambda version: (version / "zarr.json").write_text("{}"),
            lambda version: (version / "fused/zarr.json").write_text(""),
            shutil.rmtree,
        ],
        ids=["no fused", "cut shard", "no metadata", "other metadata", "empty metadata", "nothing"],
    )
    def test_a_damaged_version_is_made_again(self, fused, phantom_bids, client, tmp_path, damage):
        out = shutil.copytree(fused[0], tmp_path / "out")
        label = "sub-02_ses-baseline"
        damage(out / "scans" / label / ff.open_cohort(out).record(label).version)
        events = []
        again = ff.run(phantom_bids, out, config(), client=client, on_event=events.append)
        assert [record.label for record in again.fused] == [label]
        assert "missing or damaged" in next(e.why for e in events if isinstance(e, runner.Fused))
        self.assert_as_before(fused[0], out, label)
        assert leftovers(out) == []
        assert not ff.run(phantom_bids, out, config()).fused

    def test_damage_that_keeps_the_size_is_seen_by_readers_and_mended(
        self, fused, phantom_bids, client, tmp_path
    ):
        out = shutil.copytree(fused[0], tmp_path / "out")
        label = "sub-02_ses-baseline"
        shard = out / "scans" / label / ff.open_cohort(out).record(label).version / "fused/c/0/0/0"
        content = bytearray(shard.read_bytes())
        content[200:260] = bytes(60)
        shard.write_bytes(content)
        with pytest.raises(ValueError, match="checksum"):
            ff.open_cohort(out).scan(label).fused.values  # noqa: B018
        (out / "scans" / label / "current.json").unlink()
        ff.run(phantom_bids, out, config(), client=client)
        self.assert_as_before(fused[0], out, label)

    @staticmethod
    def assert_as_before(before, out, label):
        np.testing.assert_array_equal(
            ff.open_cohort(out).scan(label).fused.values,
            ff.open_cohort(before).scan(label).fused.values,
        )

    def test_a_run_that_made_nothing_leaves_the_summary_of_another(
        self, fused, phantom_bids, client, tmp_path
    ):
        out = shutil.copytree(fused[0], tmp_path / "out")
        deep = config("dwt-max", transform=Wavelet(levels=8))
        report = ff.run(phantom_bids, out, deep, client=client)
        assert len(report.failed) == 4
        assert report.summary is None
        assert (out / "group_metrics.tsv").read_bytes() == (
            fused[0] / "group_metrics.tsv"
        ).read_bytes()

    def test_scans_made_another_way_are_left_out_of_the_summary(
        self, fused, phantom_bids, client, tmp_path
    ):
        out = shutil.copytree(fused[0], tmp_path / "out")
        report = ff.run(
            phantom_bids, out, config("dwt-max"), client=client, participant_labels=["02"]
        )
        assert report.summary.attrs["scans"] == 1
        assert sorted(report.left_out) == [LABELS[0], LABELS[1], LABELS[3]]
        assert report.left_out[LABELS[0]] == "made another way (dwt-vgg19)"
        with pytest.raises(ConfigurationError, match="2 different ways"):
            ff.summarise(out)

    def test_a_subject_that_is_gone_or_failed_is_left_out_of_the_summary(
        self, fused, phantom_bids, client, tmp_path
    ):
        out = shutil.copytree(fused[0], tmp_path / "out")
        bids = shutil.copytree(phantom_bids, tmp_path / "bids")
        shutil.rmtree(bids / "sub-03")
        t1w = bids / "sub-02/ses-baseline/anat/sub-02_ses-baseline_T1w.nii.gz"
        t1w.write_bytes(b"damaged")
        report = ff.run(bids, out, config(), client=client)
        assert report.unchanged == LABELS[:2]
        assert report.left_out == {
            "sub-02_ses-baseline": "its last attempt failed",
            "sub-03_ses-baseline": "the input no longer has it",
        }
        table = (out / "group_scans.tsv").read_text()
        assert "sub-01" in table
        assert "sub-03" not in table


class TestTasksThatRunTwice:
    """A worker may die after any step, and the scheduler runs the task again."""

    def test_every_task_of_a_scan(self, fused, phantom_bids, tmp_path):
        scan = next(s for s in discover(phantom_bids).scans if s.label == "sub-02_ses-baseline")
        run = runner._CohortRun(
            phantom_bids, OutputPaths(tmp_path), config(), graph.make_recipe(config().method),
            lambda _: None, runner.RunReport(),
        )  # fmt: skip
        (job,) = run._planned(iter([scan]))
        staged = stages.stage_scan(job)
        assert stages.stage_scan(job).version == staged.version
        slabs = []
        for start, stop in job.layout.slabs:
            bands = stages.decompose_staged(job, staged, start, stop)
            fused_bands = stages.fuse_slab(bands, job.recipe)
            slabs.append(stages.reconstruct_staged(job, fused_bands, start, stop))
        commit.commit_slabs(job, staged, slabs)
        stages.reconstruct_staged(job, fused_bands, start, stop)  # what it reads is still there
        record = commit.publish_scan(job, commit.commit_slabs(job, staged, slabs))
        assert record.version == ff.open_cohort(fused[0]).record(record.label).version
        np.testing.assert_array_equal(
            ff.open_cohort(tmp_path).scan(record.label).fused.values,
            ff.open_cohort(fused[0]).scan(record.label).fused.values,
        )
        assert leftovers(tmp_path) == []


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


class TestTrouble:
    def test_nothing_to_fuse(self, tmp_path):
        (tmp_path / "bids").mkdir()
        with pytest.raises(NoScansError, match="no subject with both"):
            ff.run(tmp_path / "bids", tmp_path / "out", config())
        assert not (tmp_path / "out").exists()

    def test_output_into_the_input(self, phantom_bids):
        with pytest.raises(ConfigurationError, match="same folder"):
            ff.run(phantom_bids, phantom_bids, config())

    def test_output_that_is_a_file(self, phantom_bids, tmp_path):
        (tmp_path / "out").write_text("")
        with pytest.raises(StoreError, match="Cannot write"):
            ff.run(phantom_bids, tmp_path / "out", config())

    def test_a_dataset_of_something_else_is_not_overwritten(self, phantom_bids, tmp_path):
        out = tmp_path / "raw"
        out.mkdir()
        description = '{"Name": "mine", "BIDSVersion": "1.10.0", "DatasetType": "raw"}'
        (out / "dataset_description.json").write_text(description)
        with pytest.raises(ConfigurationError, match="fusionflow did not make"):
            ff.run(phantom_bids, out, config())
        assert (out / "dataset_description.json").read_text() == description
        assert len(list(out.iterdir())) == 1

    def test_what_a_killed_run_left_is_swept(self, fused, phantom_bids, client, tmp_path):
        out = shutil.copytree(fused[0], tmp_path / "out")
        killed = subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        label = "sub-02_ses-baseline"
        host = socket.gethostname()
        stale = out / "scans" / label / f".staging-{host}~{killed}~abc"
        others = out / "scans" / label / f".staging-elsewhere~{killed}~abc"
        for folder in (stale, others):
            (folder / "group").mkdir(parents=True)
        ff.run(phantom_bids, out, config("average"), client=client)
        assert not stale.exists()
        assert others.exists(), "another machine may still be at it"

    def test_absurd_frame_durations_stop_nothing(self, phantom_bids, client, tmp_path):
        bids = shutil.copytree(phantom_bids, tmp_path / "bids")
        for subject, durations in (("02", "[1" + "0" * 400 + "]"), ("03", "[NaN]")):
            place = bids / f"sub-{subject}/ses-baseline/pet"
            sidecar = place / f"sub-{subject}_ses-baseline_trc-FDG_pet.json"
            content = json.loads(sidecar.read_text())
            del content["FrameDuration"]
            text = json.dumps(content)[:-1] + f', "FrameDuration": {durations}}}'
            sidecar.write_text(text)
        out = tmp_path / "out"
        assert len(ff.run(bids, out, config("average"), client=client).fused) == 4
        assert len(ff.run(bids, out, config("average"), client=client).unchanged) == 4

    def test_a_file_in_the_way_of_one_scan_stops_only_that(self, phantom_bids, client, tmp_path):
        (tmp_path / "scans").mkdir()
        (tmp_path / "scans" / "sub-02_ses-baseline").write_text("in the way")
        report = ff.run(phantom_bids, tmp_path, config("average"), client=client)
        assert [failure.label for failure in report.failed] == ["sub-02_ses-baseline"]
        assert len(report.fused) == 3

    def test_a_script_without_a_guard_is_told(self, phantom_bids, tmp_path):
        script = tmp_path / "script.py"
        script.write_text(
            "import fusionflow as ff\n"
            f"ff.run({str(phantom_bids)!r}, {str(tmp_path / 'out')!r}, "
            "ff.RunConfig(method='average'))\n"
        )
        ended = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=False
        )
        assert ended.returncode == 1
        assert 'under `if __name__ == "__main__":`' in ended.stderr

    def test_array_query_planning_is_refused(self, phantom_bids, tmp_path):
        import dask

        with (
            dask.config.set({"array.query-planning": True}),
            pytest.raises(ConfigurationError, match="query planning"),
        ):
            ff.run(phantom_bids, tmp_path, config())

    def test_too_many_levels_fail_each_scan_with_a_reason(self, phantom_bids, client, tmp_path):
        deep = config("average", transform=Wavelet(levels=8))
        report = ff.run(phantom_bids, tmp_path, deep, client=client)
        assert len(report.failed) == 4
        assert "carry 3 levels of db2, not 8" in report.failed[0].reason
        assert leftovers(tmp_path) == []

    def test_a_failed_scan_keeps_what_was_published(self, fused, phantom_bids, client, tmp_path):
        out = tmp_path / "out"
        bids = shutil.copytree(phantom_bids, tmp_path / "bids")
        ff.run(bids, out, config("average"), client=client)
        before = ff.open_cohort(out).scan("sub-02_ses-baseline").fused.values
        t1w = bids / "sub-02/ses-baseline/anat/sub-02_ses-baseline_T1w.nii.gz"
        t1w.write_bytes(t1w.read_bytes()[:20_000])
        report = ff.run(bids, out, config("average"), client=client)
        assert [failure.label for failure in report.failed] == ["sub-02_ses-baseline"]
        assert str(t1w) in report.failed[0].reason
        cohort = ff.open_cohort(out)
        assert [failure.label for failure in cohort.failures] == ["sub-02_ses-baseline"]
        np.testing.assert_array_equal(cohort.scan("sub-02_ses-baseline").fused.values, before)
        assert leftovers(out) == []

    def test_other_grids_do_not_stack(self, phantom_bids, client, tmp_path):
        bids = shutil.copytree(phantom_bids, tmp_path / "bids")
        t1w = bids / "sub-02/ses-baseline/anat/sub-02_ses-baseline_T1w.nii.gz"
        image = nib.load(t1w)
        nib.save(image.slicer[:, :, 2:], t1w)
        ff.run(bids, tmp_path / "out", config("average"), client=client)
        cohort = ff.open_cohort(tmp_path / "out")
        with pytest.raises(GridError, match="sub-02_ses-baseline"):
            cohort.stack()
        assert set(cohort.tree().children) == set(LABELS)


class TestSameBits:
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
        assert result.attrs["method"]["name"] == "dwt-vgg19"

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


def test_a_reader_is_never_disturbed(fused, phantom_bids, client, tmp_path):
    """A cohort that is open stays as it was, one opened anew is whole, while all is replaced."""
    out = shutil.copytree(fused[0], tmp_path / "out")
    expected = {
        "dwt-vgg19": {
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
                np.testing.assert_array_equal(still, expected["dwt-vgg19"][label])
    finally:
        stop.set()
    counts, problems = found.get(timeout=120)
    reader.join(timeout=120)
    assert problems == []
    assert counts["dwt-vgg19"] > 4
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
