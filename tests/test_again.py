"""Runs that come again, after changes, damage, trouble and tasks that ran twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from runs import LABELS, config, job_of, leftovers

import fusionflow as ff
from fusionflow import commit, stages, staging
from fusionflow.config import Wavelet
from fusionflow.errors import (
    ConfigurationError,
    GridError,
    NoScansError,
    StoreError,
)
from fusionflow.events import Fused, Started
from fusionflow.io.bids import discover


class TestAgain:
    def test_what_is_done_is_left_alone_and_no_cluster_starts(self, fused, phantom_bids):
        out, _, _ = fused
        times = {p: p.stat().st_mtime_ns for p in (out / "scans").rglob("*") if p.is_file()}
        events = []
        again = ff.run(phantom_bids, out, config(), on_event=events.append)
        assert again.unchanged == LABELS
        assert not again.fused
        assert not any(isinstance(event, Started) for event in events)
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
        why = next(event.why for event in events if isinstance(event, Fused))
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
        why = next(event.why for event in events if isinstance(event, Fused))
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
        assert len(other.fused[0].outputs) == 4
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
        assert "missing or damaged" in next(e.why for e in events if isinstance(e, Fused))
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
        assert report.left_out[LABELS[0]] == "made another way (dwt-vgg19-l1)"
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
        job = next(
            job_of(scan, phantom_bids, tmp_path)
            for scan in discover(phantom_bids).scans
            if scan.label == "sub-02_ses-baseline"
        )
        staged = staging.stage_scan(job)
        assert staging.stage_scan(job).version == staged.version
        slabs = []
        for start, stop in job.layout.slabs:
            bands = staging.decompose_staged(job, staged, start, stop)
            fused_bands = stages.fuse_slab(bands, job.recipe)
            slabs.append(staging.reconstruct_staged(job, fused_bands, start, stop))
        commit.commit_slabs(job, staged, slabs)
        # The first run may have been cut short anywhere.
        shutil.rmtree(job.group / "source")
        (job.staging / "files" / ".half.nii.gz.part").write_bytes(b"half")
        staging.reconstruct_staged(job, fused_bands, start, stop)  # what it reads is still there
        record = commit.publish_scan(job, commit.commit_slabs(job, staged, slabs))
        assert record.version == ff.open_cohort(fused[0]).record(record.label).version
        np.testing.assert_array_equal(
            ff.open_cohort(tmp_path).scan(record.label).fused.values,
            ff.open_cohort(fused[0]).scan(record.label).fused.values,
        )
        assert leftovers(tmp_path) == []


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
