"""Where a scan stands: what is made, what is left alone, what waits, and why."""

import os
import time
from dataclasses import replace

import pytest
from strategies import published

from fusionflow import survey as surveying
from fusionflow.config import RunConfig, named_method
from fusionflow.io.bids import Discovery, Excluded, Scan
from fusionflow.ledger import OutputPaths, publish, read_attempt, write_attempt
from fusionflow.pet_info import PetInfo, pet_info
from fusionflow.records import InputFile, OutputFile, Stamp
from fusionflow.survey import new_attempt, removed_labels, request_of, standing, survey

REQUEST = "f" * 64


@pytest.fixture
def source(tmp_path):
    return tmp_path / "bids"


@pytest.fixture
def paths(tmp_path):
    return OutputPaths(tmp_path / "out")


@pytest.fixture
def scan(source):
    """A scan whose two files lie there since long."""
    files = []
    for name in ("sub-01/anat/sub-01_T1w.nii", "sub-01/pet/sub-01_pet.nii"):
        path = source / name
        path.parent.mkdir(parents=True)
        path.write_text(name)
        files.append(path)
    return Scan("01", None, *files)


@pytest.fixture
def tried(paths, scan, source):
    """Write down an attempt at the scan as it is now."""

    def write(state, **changes):
        values = {"state": state, "reason": "no voxel", "run": "r-1", "started": "then", **changes}
        attempt = replace(new_attempt(scan, source, REQUEST), **values)
        write_attempt(paths, attempt)
        return attempt

    return write


@pytest.fixture
def done(paths, scan, source):
    """Publish the scan as it is now."""
    made = paths.root / "sub-01/fused.nii.gz"
    made.parent.mkdir(parents=True)
    made.write_text("fused")
    stamps = [Stamp.of(path, source) for path in (scan.t1w, scan.pet)]
    record = published(
        request=REQUEST,
        pet_info=PetInfo(),
        facts=scan.facts,
        inputs=tuple(InputFile(x.path, x.size, x.mtime_ns, "a" * 64) for x in stamps),
        stored=(),
        outputs=(OutputFile.whole(made, "sub-01/fused.nii.gz"),),
    )
    publish(paths, record)
    return record


def append(path, text="!"):
    with path.open("a") as stream:
        stream.write(text)


def touch(path, by=1):
    then = path.stat().st_mtime_ns + by
    os.utime(path, ns=(then, then))


class TestWithoutAnAttempt:
    def test_what_was_never_made_is_new(self, paths, scan, source):
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.why, found.is_due, found.tried) == ("new", "new", True, 0)

    def test_what_is_published_is_done(self, paths, scan, source, done):
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.why, found.is_due) == ("done", "", False)
        assert found.record == done

    @pytest.mark.parametrize(
        ("change", "why"),
        [
            (lambda scan, out: append(scan.t1w), "sub-01/anat/sub-01_T1w.nii changed"),
            (lambda scan, out: append(scan.pet), "sub-01/pet/sub-01_pet.nii changed"),
            (lambda scan, out: append(out / "sub-01/fused.nii.gz"), "fused.nii.gz is missing or"),
            (lambda scan, out: (out / "sub-01/fused.nii.gz").unlink(), "fused.nii.gz is missing"),
        ],
        ids=["T1w", "PET", "edited output", "lost output"],
    )
    def test_what_changed_is_stale_and_says_what(self, paths, scan, source, done, change, why):
        change(scan, paths.root)
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.is_due, found.record) == ("stale", True, done)
        assert why in found.why

    def test_another_request_makes_it_stale(self, paths, scan, source, done):
        found = standing(paths, scan, source, "e" * 64)
        assert (found.state, found.why) == ("stale", "another method or other options")

    def test_other_metadata_make_it_stale(self, paths, scan, source, done):
        scan = replace(scan, pet_info=pet_info({"FrameDuration": [60]}))
        assert standing(paths, scan, source, REQUEST).why == "other metadata of the PET"

    def test_a_damaged_record_is_replaced_by_a_new_one(self, paths, scan, source, done):
        paths.current("sub-01").write_text("{")
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.record) == ("stale", None)
        assert str(paths.current("sub-01")) in found.why


class TestQuarantine:
    """A scan that failed for a reason of its own."""

    def test_is_not_tried_again(self, paths, scan, source, tried):
        tried("quarantined", attempt=2)
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.why, found.is_due) == ("quarantined", "no voxel", False)
        assert found.tried == 2

    @pytest.mark.parametrize("which", ["t1w", "pet"])
    @pytest.mark.parametrize("change", [append, touch, lambda p: touch(p, -1), os.unlink])
    def test_ends_when_an_input_changes(self, paths, scan, source, tried, which, change):
        """Its size or its time, to the nanosecond; or that it is there at all."""
        tried("quarantined")
        change(getattr(scan, which))
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.tried, found.is_due) == ("new", 0, True)

    def test_ends_when_another_file_takes_the_place_of_an_input(self, paths, scan, source, tried):
        tried("quarantined")
        other = scan.pet.rename(scan.pet.with_name("sub-01_run-2_pet.nii"))
        assert standing(paths, replace(scan, pet=other), source, REQUEST).state == "new"

    def test_ends_when_something_else_is_asked_for_and_comes_back_with_the_request(
        self, paths, scan, source, tried
    ):
        tried("quarantined")
        assert standing(paths, scan, source, "e" * 64).state == "new"
        assert standing(paths, scan, source, REQUEST).state == "quarantined"

    def test_ends_with_another_version_of_fusionflow(self, paths, scan, source, tried, monkeypatch):
        tried("quarantined")
        monkeypatch.setattr(surveying, "__version__", "99.0")
        assert standing(paths, scan, source, REQUEST).state == "new"

    def test_lasts_where_the_whole_input_lies_elsewhere(self, paths, scan, source, tried):
        """Names are relative to the input, so another mount point is no change."""
        tried("quarantined")
        moved = source.rename(source.with_name("mounted-here-now"))
        elsewhere = replace(
            scan, **{x: moved / getattr(scan, x).relative_to(source) for x in ("t1w", "pet")}
        )
        assert standing(paths, elsewhere, moved, REQUEST).state == "quarantined"

    def test_keeps_what_was_published_before(self, paths, scan, source, done, tried):
        append(scan.t1w)
        tried("quarantined")
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.record) == ("quarantined", done)

    def test_of_another_request_does_not_matter_to_what_is_done(
        self, paths, scan, source, done, tried
    ):
        tried("quarantined", request="e" * 64)
        assert standing(paths, scan, source, REQUEST).state == "done"

    def test_of_this_very_thing_does_not_either(self, paths, scan, source, done, tried):
        """What is published as it is asked for counts, whatever was tried before."""
        for state in ("quarantined", "failed", "running"):
            tried(state)
            assert standing(paths, scan, source, REQUEST).state == "done"


class TestOtherAttempts:
    def test_what_failed_is_tried_again_and_counted(self, paths, scan, source, tried):
        tried("failed", attempt=3)
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.is_due, found.tried) == ("failed", True, 3)
        assert found.why == "failed before: no voxel"

    def test_the_count_begins_anew_for_other_inputs(self, paths, scan, source, tried):
        tried("failed", attempt=3)
        append(scan.pet)
        assert standing(paths, scan, source, REQUEST).tried == 0

    def test_what_a_dead_run_was_making_failed(self, paths, scan, source, tried):
        tried("running", attempt=2)
        for live in (None, "another-run"):
            found = standing(paths, scan, source, REQUEST, live_run=live)
            assert (found.state, found.is_due, found.tried) == ("failed", True, 2)
            assert "cut off" in found.why

    def test_what_a_live_run_is_making_runs(self, paths, scan, source, tried):
        tried("running")
        found = standing(paths, scan, source, REQUEST, live_run="r-1")
        assert (found.state, found.why, found.is_due) == ("running", "since then", False)

    def test_an_attempt_of_no_named_run_is_not_running(self, paths, scan, source, tried):
        tried("running", run="")
        assert standing(paths, scan, source, REQUEST, live_run=None).state == "failed"

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "quarantined"}', "null"])
    def test_a_damaged_attempt_is_as_none(self, paths, scan, source, tried, content):
        tried("quarantined")
        paths.attempt("sub-01").write_text(content)
        found = standing(paths, scan, source, REQUEST)
        assert (found.state, found.attempt) == ("new", None)

    def test_both_records_damaged_is_to_be_made(self, paths, scan, source, done):
        for path in (paths.attempt("sub-01"), paths.current("sub-01")):
            path.write_text("{")
        assert standing(paths, scan, source, REQUEST).is_due

    def test_looking_changes_nothing(self, paths, scan, source, tried):
        attempt = tried("quarantined")
        before = sorted(paths.root.rglob("*"))
        list(survey(paths, source, [scan], REQUEST, settle=60))
        assert sorted(paths.root.rglob("*")) == before
        assert read_attempt(paths, "sub-01") == attempt


class TestSettling:
    def test_a_file_that_changed_just_now_is_waited_for(self, paths, scan, source):
        found = standing(paths, scan, source, REQUEST, settle=3600)
        assert (found.state, found.is_due) == ("waiting", False)
        assert "changed" in found.why
        assert found.why.endswith("s ago")

    def test_one_that_was_left_alone_is_not(self, paths, scan, source):
        wait = time.time() - max(os.stat(p).st_ctime for p in (scan.t1w, scan.pet))
        assert standing(paths, scan, source, REQUEST, settle=wait).state == "new"
        assert standing(paths, scan, source, REQUEST, settle=0).state == "new"

    @pytest.mark.parametrize("which", ["t1w", "pet"])
    def test_one_that_keeps_an_old_time_while_it_is_copied_is(
        self, paths, scan, source, which, monkeypatch
    ):
        """As `rsync -t` and `cp -p` leave them: the system's own time of change counts."""
        other = {"t1w": scan.pet, "pet": scan.t1w}[which]
        os.utime(getattr(scan, which), (0, 0))
        look = os.stat

        def since_long(path, **how):
            status = look(path, **how)
            return os.stat_result(status, {"st_ctime": 0.0}) if path == other else status

        monkeypatch.setattr(os, "stat", since_long)
        found = standing(paths, scan, source, REQUEST, settle=3600)
        assert found.state == "waiting"
        assert getattr(scan, which).name in found.why

    def test_a_sidecar_that_comes_after_its_images_is_waited_for(
        self, paths, scan, source, monkeypatch
    ):
        sidecar = scan.pet.with_suffix(".json")
        sidecar.write_text("{")
        look = os.stat

        def since_long(path, **how):
            status = look(path, **how)
            return status if path == sidecar else os.stat_result(status, {"st_ctime": 0.0})

        monkeypatch.setattr(os, "stat", since_long)
        assert standing(paths, scan, source, REQUEST, settle=3600).state == "new"
        scan = replace(scan, sidecars=(sidecar,))
        found = standing(paths, scan, source, REQUEST, settle=3600)
        assert found.state == "waiting"
        assert found.why.startswith("sub-01_pet.json changed")
        sidecar.unlink()  # as a link whose content was never fetched: a scan can do without
        assert standing(paths, scan, source, REQUEST, settle=3600).state == "new"

    def test_what_is_done_does_not_wait(self, paths, scan, source, done):
        assert standing(paths, scan, source, REQUEST, settle=3600).state == "done"

    def test_what_changed_waits_before_it_is_made_again(self, paths, scan, source, done):
        append(scan.t1w)
        found = standing(paths, scan, source, REQUEST, settle=3600)
        assert (found.state, found.record) == ("waiting", done)

    def test_what_runs_does_not_wait(self, paths, scan, source, tried):
        tried("running")
        found = standing(paths, scan, source, REQUEST, live_run="r-1", settle=3600)
        assert found.state == "running"

    def test_a_file_that_is_gone_is_waited_for_and_named(self, paths, scan, source):
        scan.pet.unlink()
        found = standing(paths, scan, source, REQUEST, settle=3600)
        assert found.state == "waiting"
        assert standing(paths, scan, source, REQUEST, settle=0).state == "new"


class TestSurvey:
    def test_one_that_cannot_be_looked_at_does_not_stop_the_others(self, paths, scan, source):
        paths.root.mkdir()
        paths.scans.mkdir()
        paths.scan("sub-00").symlink_to("sub-00")  # a link to itself
        broken = replace(scan, subject="00")
        states = {x.label: x for x in survey(paths, source, [broken, scan], REQUEST)}
        assert states["sub-01"].state == "new"
        assert states["sub-00"].is_due

    def test_is_lazy(self, paths, scan, source):
        """A cohort of ten thousand is not looked at twice before the first scan starts."""
        taken = []

        def scans():
            for number in range(3):
                taken.append(number)
                yield replace(scan, subject=f"{number}")

        next(survey(paths, source, scans(), REQUEST))
        assert taken == [0]


class TestRequest:
    def test_is_of_method_and_preparation_and_region_and_not_of_the_cluster(self):
        config = RunConfig()
        same = config.model_copy(
            update={"cluster": config.cluster.model_copy(update={"n_workers": 3})}
        )
        assert request_of(same, None) == request_of(config, None)
        for update in ({"method": named_method("average")}, {"region": "mask"}):
            assert request_of(config.model_copy(update=update), None) != request_of(config, None)


class TestRemoved:
    @pytest.fixture
    def cohort(self, paths):
        for label in ("sub-01", "sub-02_ses-a", "sub-02_ses-b", "sub-021"):
            publish(paths, published(label))
        write_attempt(paths, new_attempt_of("sub-09"))
        return paths

    def test_is_what_is_published_and_no_pair_in_the_input(self, cohort, scan, source):
        left = (Excluded("sub-021", "no pet", broken=False), Excluded("sub-02_ses-b", "x", True))
        found = removed_labels(cohort, Discovery(source, (scan,), left))
        assert set(found) == {"sub-02_ses-a", "sub-021"}

    def test_is_not_what_cannot_be_listed_now(self, cohort, scan, source):
        """A subject's folder that cannot be read holds nobody knows which sessions."""
        found = Discovery(source, (scan,), (Excluded("sub-02", "cannot be listed", broken=True),))
        assert removed_labels(cohort, found) == ("sub-021",)

    def test_is_nothing_while_a_row_of_a_manifest_cannot_be_read(self, cohort, scan, source):
        found = Discovery(source, (scan,), (Excluded("line-3", "'B_x' is no label", True),))
        assert removed_labels(cohort, found) == ()

    def test_is_nothing_without_an_output(self, tmp_path, source):
        assert removed_labels(OutputPaths(tmp_path / "none"), Discovery(source, (), ())) == ()


def new_attempt_of(label):
    from fusionflow.records import Attempt

    return Attempt(label, "failed")
