"""What `prune` removes, and all that it never does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from strategies import published

from fusionflow import prune as pruning
from fusionflow.errors import ConfigurationError, LockedError, StoreError
from fusionflow.history import write_last_run
from fusionflow.index import read_index
from fusionflow.ledger import OutputPaths, publish, read_published
from fusionflow.prune import prune
from fusionflow.records import OutputFile
from fusionflow.runlock import RunLock

OLD, NOW = "0123456789abcdef", "fedcba9876543210-2"


def add_scan(paths, label, **changes):
    """Publish a scan with an old version and its files in BIDS places."""
    subject, _, session = label.removeprefix("sub-").partition("_ses-")
    folder = Path(f"sub-{subject}", f"ses-{session}" if session else "", "fused")
    outputs = []
    for suffix in (".nii.gz", ".json"):
        path = paths.root / folder / f"{label}_fused{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(suffix)
        outputs.append(OutputFile.whole(path, path.relative_to(paths.root).as_posix()))
    for version in (OLD, NOW):
        group = paths.version(label, version)
        group.mkdir(parents=True)
        (group / "zarr.json").write_text(version)
    values = {"version": NOW, "outputs": tuple(outputs), "stored": (), **changes}
    publish(paths, published(label, **values))


def add_input(source, label):
    """Add a pair of images to the input; nobody reads them."""
    subject, _, session = label.partition("_ses-")
    for kind, suffix in (("anat", "T1w"), ("pet", "pet")):
        folder = source / subject / (f"ses-{session}" if session else "") / kind
        folder.mkdir(parents=True)
        (folder / f"{label}_{suffix}.nii.gz").write_text("image")


@pytest.fixture
def source(tmp_path):
    return tmp_path / "bids"


@pytest.fixture
def paths(tmp_path, source):
    """Two scans, of which the input has one."""
    paths = OutputPaths(tmp_path / "out")
    for label in ("sub-01", "sub-02_ses-a"):
        add_scan(paths, label)
    add_input(source, "sub-01")
    write_last_run(paths, {"input": str(source)})
    return paths


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.lstat().st_size if path.is_file() else -1
        for path in folder.rglob("*")
        if path.name != "index.json"
    }


class TestOldVersions:
    def test_go_and_nothing_else(self, paths):
        before = tree(paths.root)
        gone = prune(paths)
        assert [(x.label, x.path) for x in gone] == [
            (label, f"scans/{label}/{OLD}") for label in ("sub-01", "sub-02_ses-a")
        ]
        assert gone[0].size == len(OLD)
        after = tree(paths.root)
        assert before.keys() - after.keys() == {
            f"scans/{label}/{OLD}{name}"
            for label in ("sub-01", "sub-02_ses-a")
            for name in ("", "/zarr.json")
        }
        assert after.keys() <= before.keys()
        assert prune(paths) == ()

    def test_the_index_tells_of_what_is_left(self, paths):
        prune(paths, removed=True)
        assert [record.label for record in read_index(paths).published] == ["sub-01"]

    def test_a_dry_run_says_the_same_and_removes_nothing(self, paths):
        before = tree(paths.root)
        would = prune(paths, removed=True, dry_run=True)
        assert tree(paths.root) == before
        assert prune(paths, removed=True) == would

    def test_of_a_scan_that_was_never_published_go(self, paths):
        paths.current("sub-01").unlink()
        assert {x.path for x in prune(paths) if x.label == "sub-01"} == {
            f"scans/sub-01/{version}" for version in (OLD, NOW)
        }

    def test_of_a_scan_whose_record_is_damaged_stay(self, paths, caplog):
        """Nobody can say which one counts."""
        paths.current("sub-01").write_text("{")
        assert [x.label for x in prune(paths)] == ["sub-02_ses-a"]
        assert paths.version("sub-01", OLD).is_dir()
        assert "Nothing of sub-01 is removed" in caplog.text

    def test_what_a_person_put_there_stays(self, paths, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        (elsewhere / "deep").mkdir(parents=True)
        mine = paths.scan("sub-01") / "notes"
        mine.mkdir()
        (paths.scan("sub-01") / "aaaaaaaaaaaaaaaa").symlink_to(elsewhere)
        (paths.scan("sub-01") / "bbbbbbbbbbbbbbbb").write_text("a file")
        prune(paths)
        assert mine.is_dir()
        assert (elsewhere / "deep").is_dir()
        names = {"notes", "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", NOW, "current.json"}
        assert set(os.listdir(paths.scan("sub-01"))) == names

    def test_nothing_behind_a_link_goes(self, paths, tmp_path):
        moved = paths.scan("sub-01").rename(tmp_path / "moved")
        paths.scan("sub-01").symlink_to(moved)
        assert [x.label for x in prune(paths)] == ["sub-02_ses-a"]
        assert (moved / OLD / "zarr.json").is_file()

    def test_what_a_dead_run_left_goes_too(self, paths):
        for folder in (paths.scans, paths.scan("sub-01")):
            (folder / ".unfinished-1234").mkdir()
        prune(paths)
        assert list(paths.root.rglob(".unfinished-*")) == []


class TestRemovedScans:
    def test_stay_unless_they_are_asked_for(self, paths):
        prune(paths)
        assert read_published(paths, "sub-02_ses-a") is not None

    def test_go_as_a_whole_with_their_files_and_empty_folders(self, paths):
        prune(paths, removed=True)
        assert not (paths.root / "sub-02").exists()
        assert not paths.scan("sub-02_ses-a").exists()
        assert (paths.root / "sub-01/fused/sub-01_fused.nii.gz").is_file()
        assert read_published(paths, "sub-01") is not None

    def test_are_named_once_each(self, paths):
        gone = prune(paths, removed=True, dry_run=True)
        mine = [item.path for item in gone if item.label == "sub-02_ses-a"]
        assert sorted(mine) == [
            "scans/sub-02_ses-a",
            "sub-02/ses-a/fused/sub-02_ses-a_fused.json",
            "sub-02/ses-a/fused/sub-02_ses-a_fused.nii.gz",
        ]
        inside = [x.path for x in gone if x.path.startswith("scans/sub-02_ses-a/")]
        assert inside == []
        assert sum(x.size for x in gone) == len(OLD) + tree_size(paths, "sub-02_ses-a")

    def test_leave_what_others_put_beside_their_files(self, paths):
        (paths.root / "sub-02/ses-a/fused/mask.nii.gz").write_text("mine")
        prune(paths, removed=True)
        assert tree(paths.root / "sub-02").keys() == {
            "ses-a", "ses-a/fused", "ses-a/fused/mask.nii.gz",
        }  # fmt: skip

    def test_leave_another_session_of_the_subject(self, paths, source):
        add_scan(paths, "sub-02_ses-b")
        add_input(source, "sub-02_ses-b")
        prune(paths, removed=True)
        assert sorted(os.listdir(paths.root / "sub-02")) == ["ses-b"]

    def test_of_an_input_that_is_named(self, paths, tmp_path):
        add_input(tmp_path / "other", "sub-02_ses-a")
        gone = prune(paths, removed=True, source=tmp_path / "other", dry_run=True)
        assert {x.label for x in gone if x.path.count("/") < 2} == {"sub-01"}

    def test_are_not_those_that_the_last_filter_left_out(self, paths, source, tmp_path):
        add_scan(paths, "sub-03")
        add_input(source, "sub-03")
        wanted = tmp_path / "wanted.json"
        wanted.write_text('{"pet": {"subject": "01"}}')
        write_last_run(
            paths, {"input": str(source), "config": {"input": {"bids_filter": str(wanted)}}}
        )
        gone = prune(paths, removed=True, dry_run=True)
        assert [x.label for x in gone if x.path.count("/") == 1] == ["sub-02_ses-a"]

    @pytest.mark.parametrize("state", ["empty", "gone", "no pair", "not mounted"])
    def test_refuses_where_the_input_may_not_be_mounted(self, paths, source, state):
        shutil.rmtree(source)
        if state != "gone":
            source.mkdir()
        if state == "no pair":
            (source / "sub-01").mkdir()
        if state == "not mounted":
            (source / "README").write_text("mount me here")
        before = tree(paths.root)
        with pytest.raises(ConfigurationError) as error:
            prune(paths, removed=True)
        assert str(source) in str(error.value)
        assert tree(paths.root) == before

    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize("places", ["pairs", "a subject without a pair"])
    def test_refuses_an_input_that_has_none_of_them(self, paths, tmp_path, named, places):
        """Another study, named by mistake, or that a run was begun on by mistake."""
        other = tmp_path / "other"
        add_input(other, "sub-77")
        if places != "pairs":
            (other / "sub-01").mkdir()
        if not named:
            write_last_run(paths, {"input": str(other)})
        before = tree(paths.root)
        for dry_run in (True, False):
            with pytest.raises(ConfigurationError, match="none of the scans") as error:
                prune(paths, removed=True, source=other if named else None, dry_run=dry_run)
            assert str(other) in str(error.value)
        assert tree(paths.root) == before

    def test_refuses_an_input_of_another_kind(self, paths, source, tmp_path):
        table = tmp_path / "scans.tsv"
        table.write_text("participant_id\tt1w\tpet\n01\tgone.nii\tgone.nii\n")
        with pytest.raises(ConfigurationError, match=r"scans\.tsv is a manifest") as error:
            prune(paths, removed=True, source=table)
        assert f"{source}, is a BIDS dataset" in str(error.value)
        write_last_run(paths, {"input": str(tmp_path / "of last year.tsv")})
        before = tree(paths.root)
        with pytest.raises(ConfigurationError, match="bids is a BIDS dataset"):
            prune(paths, removed=True, source=source)
        assert tree(paths.root) == before

    def test_asks_nothing_of_an_output_without_any(self, paths, tmp_path):
        for label in ("sub-01", "sub-02_ses-a"):
            paths.current(label).unlink()
        add_input(tmp_path / "other", "sub-77")
        assert len(prune(paths, removed=True, source=tmp_path / "other")) == 4

    @pytest.mark.parametrize("last", [None, {}, {"input": None}, {"input": 3}])
    def test_refuses_where_no_run_says_what_the_input_is(self, paths, last):
        path = paths.logs / "last_run.json"
        path.unlink() if last is None else path.write_text(json.dumps(last))
        with pytest.raises(ConfigurationError, match="--input"):
            prune(paths, removed=True)

    def test_stay_where_their_subject_cannot_be_listed(self, paths, source, monkeypatch):
        """A folder that cannot be read is not a folder that is empty."""
        (source / "sub-02").mkdir()
        look = os.scandir

        def refuse(folder="."):
            if str(folder) == str(source / "sub-02"):
                raise PermissionError(13, "Permission denied", str(folder))
            return look(folder)

        monkeypatch.setattr(os, "scandir", refuse)
        assert {x.path for x in prune(paths, removed=True)} == {
            f"scans/{label}/{OLD}" for label in ("sub-01", "sub-02_ses-a")
        }


def tree_size(paths, label):
    """Return the bytes of a scan that is whole."""
    record = read_published(paths, label)
    folder = paths.scan(label)
    stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return stored + sum(item.size for item in record.outputs)


class TestElsewhere:
    """A record that somebody damaged, or wrote on purpose."""

    @pytest.fixture
    def treasure(self, tmp_path, paths):
        """What must be there afterwards."""
        path = tmp_path / "treasure" / "gold"
        path.parent.mkdir()
        path.write_text("gold")
        return path

    @pytest.mark.parametrize(
        "place",
        [
            "../treasure/gold", "{treasure}", "sub-02/../../treasure/gold",
            "index.json", "dataset_description.json", "sub-01/fused/sub-01_fused.nii.gz",
            "scans/sub-01/current.json", "sub-02/fused/x.nii.gz", "link/gold", "logs/last_run.json",
            "sub-02/ses-a/fused/../../../index.json", "scans", "sub-01", ".", "",
        ],
    )  # fmt: skip
    def test_a_record_that_names_other_files_does_not_remove_them(self, paths, treasure, place):
        (paths.root / "sub-02/fused").mkdir()
        (paths.root / "sub-02/fused/x.nii.gz").write_text("of the subject, not the session")
        (paths.root / "dataset_description.json").write_text("{}")
        (paths.root / "link").symlink_to(treasure.parent)
        content = json.loads(paths.current("sub-02_ses-a").read_text())
        content["outputs"][0]["path"] = place.format(treasure=treasure)
        paths.current("sub-02_ses-a").write_text(json.dumps(content))
        before = tree(paths.root)
        prune(paths, removed=True)
        assert treasure.read_text() == "gold"
        lost = before.keys() - tree(paths.root).keys()
        own = ("scans/sub-02_ses-a", "sub-02/ses-a", f"scans/sub-01/{OLD}")
        assert all(path.startswith(own) for path in lost)

    def test_a_folder_of_files_that_is_a_link_keeps_them(self, paths, treasure):
        own = paths.root / "sub-02/ses-a/fused"
        for path in own.iterdir():
            path.rename(treasure.parent / path.name)
        own.rmdir()
        own.symlink_to(treasure.parent)
        prune(paths, removed=True)
        assert len(os.listdir(treasure.parent)) == 3

    @pytest.mark.parametrize("version", ["../sub-01", "a/b", "/treasure", "..", ""])
    def test_a_version_that_leads_elsewhere_stops_the_scan(self, paths, treasure, version):
        content = json.loads(paths.current("sub-02_ses-a").read_text())
        paths.current("sub-02_ses-a").write_text(json.dumps({**content, "version": version}))
        gone = prune(paths, removed=True)
        assert {item.label for item in gone} == {"sub-01"}
        assert treasure.exists()
        assert paths.version("sub-02_ses-a", NOW).is_dir()


class TestTogether:
    def test_refuses_while_a_run_holds_the_output(self, paths):
        before = tree(paths.root)
        script = (
            "import sys\nfrom pathlib import Path\nfrom fusionflow.runlock import RunLock\n"
            "with RunLock(Path(sys.argv[1]), 'r'):\n    print(flush=True)\n    sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", script, str(paths.run_lock)]
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
            process.stdout.readline()
            for dry_run in (True, False):
                with pytest.raises(LockedError, match=f"process {process.pid}"):
                    prune(paths, dry_run=dry_run)
            process.communicate("")
        assert tree(paths.root) == before

    def test_stops_when_it_was_taken_over(self, paths, monkeypatch):
        """After a sleep: what is old now, another run may just have published."""
        remove = pruning._remove

        def sleepy(*arguments):
            remove(*arguments)
            paths.run_lock.unlink()

        monkeypatch.setattr(pruning, "_remove", sleepy)
        with pytest.raises(LockedError):
            prune(paths)
        left = [label for label in ("sub-01", "sub-02_ses-a") if paths.version(label, OLD).exists()]
        assert len(left) == 1

    def test_leaves_no_lock(self, paths):
        prune(paths)
        assert not paths.run_lock.exists()
        with RunLock(paths.run_lock, "next"):
            pass

    def test_of_what_is_no_output_is_refused(self, tmp_path):
        with pytest.raises(StoreError, match="no fused cohort"):
            prune(OutputPaths(tmp_path))
        assert os.listdir(tmp_path) == []
