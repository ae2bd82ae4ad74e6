"""What is done survives crashes: small files, each replaced in one step, believed only whole."""

from __future__ import annotations

import json
import os
import resource
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from strategies import figures, published

from fusionflow.errors import StoreError
from fusionflow.index import Index, Records, gather_index, read_index, write_index
from fusionflow.io.files import discard, fingerprint, read_json, write_bytes, write_json
from fusionflow.ledger import (
    OutputPaths,
    publish,
    read_attempt,
    read_published,
    scan_labels,
    write_attempt,
)
from fusionflow.records import Attempt, Published
from fusionflow.summary import metrics_dataset


@contextmanager
def files_limited_to(size):
    """Let the system refuse to write more than `size` bytes to a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def paths(tmp_path):
    return OutputPaths(tmp_path / "out")


def fail(paths, label, reason="no T1w"):
    attempt = Attempt(label, "quarantined", reason, "InputError", request="f" * 64)
    write_attempt(paths, attempt)
    return attempt


class TestWriting:
    def test_makes_the_folders_above(self, tmp_path):
        write_json(tmp_path / "a" / "b" / "c.json", {"x": 1})
        assert read_json(tmp_path / "a" / "b" / "c.json") == {"x": 1}

    def test_leaves_the_file_and_nothing_else(self, tmp_path):
        for content in ({"old": True}, {"new": True}):
            write_json(tmp_path / "c.json", content)
        assert os.listdir(tmp_path) == ["c.json"]
        assert read_json(tmp_path / "c.json") == {"new": True}

    def test_that_fails_leaves_the_old_file_and_nothing_else(self, tmp_path):
        path = tmp_path / "current.json"
        write_json(path, {"old": True})
        with files_limited_to(1000), pytest.raises(StoreError, match="Cannot write") as error:
            write_bytes(path, bytes(100_000))
        assert str(path) in str(error.value)
        assert read_json(path) == {"old": True}
        assert os.listdir(tmp_path) == ["current.json"]

    def test_that_fails_at_the_last_step_leaves_nothing(self, tmp_path):
        (tmp_path / "current.json").mkdir()
        with pytest.raises(StoreError, match="Cannot write"):
            write_json(tmp_path / "current.json", {})
        assert os.listdir(tmp_path) == ["current.json"]

    def test_below_a_file_is_an_error_that_names_it(self, tmp_path):
        (tmp_path / "out").write_text("a file")
        with pytest.raises(StoreError, match=r"Cannot write.*current\.json"):
            write_json(tmp_path / "out" / "current.json", {})

    def test_what_json_cannot_hold_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "current.json"
        write_json(path, {"old": True})
        with pytest.raises(TypeError):
            write_json(path, {"new": object()})
        assert read_json(path) == {"old": True}
        assert os.listdir(tmp_path) == ["current.json"]

    def test_readers_find_the_old_or_the_new_file_and_never_a_part(self, tmp_path):
        path = tmp_path / "current.json"
        contents = [{"version": version, "body": [version] * 5000} for version in range(20)]
        write_json(path, contents[0])
        done, seen, broken = threading.Event(), set(), []

        def watch():
            while not done.is_set():
                content = read_json(path)
                seen.add(content["version"])
                if content not in contents:
                    broken.append(content)

        reader = threading.Thread(target=watch)
        reader.start()
        for content in contents[1:]:
            write_json(path, content)
        done.set()
        reader.join()
        assert not broken
        assert seen
        assert seen <= set(range(20))

    @given(st.recursive(figures | st.text() | st.none(), lambda c: st.lists(c) | st.tuples(c)))
    def test_is_strict_json_whatever_the_figures(self, tmp_path_factory, content):
        def refuse(word):
            raise AssertionError(word)

        path = tmp_path_factory.getbasetemp() / "strict.json"
        write_json(path, content)
        json.loads(path.read_text(), parse_constant=refuse)


class TestReading:
    def test_no_file_is_none(self, tmp_path):
        assert read_json(tmp_path / "absent.json") is None

    @pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"\xff\xfe{}", b"{'a': 1}"])
    def test_a_damaged_file_is_named_with_the_mend(self, tmp_path, content):
        path = tmp_path / "current.json"
        path.write_bytes(content)
        with pytest.raises(StoreError, match="Cannot read") as error:
            read_json(path)
        assert str(path) in str(error.value)
        assert "run again" in error.value.mend

    @pytest.mark.parametrize("content", ["[]", "{}", "3", '"text"', '{"label": "sub-01"}'])
    @pytest.mark.parametrize(
        ("place", "read"),
        [
            (lambda paths: paths.current("sub-01"), lambda p: read_published(p, "sub-01")),
            (lambda paths: paths.attempt("sub-01"), lambda p: read_attempt(p, "sub-01")),
        ],
        ids=["current", "attempt"],
    )
    def test_what_is_no_record_is_named(self, paths, place, read, content):
        path = place(paths)
        write_bytes(path, content.encode())
        with pytest.raises(StoreError, match="not a record") as error:
            read(paths)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b'{"index": 99}', b'{"index": 1}'])
    def test_a_damaged_index_is_read_from_the_scans(self, paths, content, caplog):
        publish(paths, published("sub-01"))
        write_bytes(paths.index, content)
        assert [record.label for record in read_index(paths).published] == ["sub-01"]

    def test_a_damaged_record_among_good_ones_is_named(self, paths):
        publish(paths, published("sub-01"))
        write_bytes(paths.current("sub-02"), b'{"label": "sub-02"')
        index = gather_index(paths)
        assert [record.label for record in index.published] == ["sub-01"]
        (failure,) = index.failures
        assert failure.label == "sub-02"
        assert str(paths.current("sub-02")) in failure.reason
        assert "run again" in failure.reason


class TestRecord:
    def test_comes_back_as_it_was_written(self, paths):
        record = published("sub-01_ses-02")
        publish(paths, record)
        assert read_published(paths, record.label) == record

    @given(mri=figures, pet=figures, scan=figures)
    def test_figures_that_are_not_finite_come_back(self, tmp_path_factory, mri, pet, scan):
        paths = OutputPaths(tmp_path_factory.getbasetemp() / "figures")
        record = published(metrics={"psnr": {"mri": mri, "pet": pet}, "entropy_fused": scan})
        publish(paths, record)
        dataset = metrics_dataset([read_published(paths, record.label)])
        assert_array_equal(dataset["psnr"].values, [[mri, pet]])
        assert_array_equal(dataset["entropy_fused"].values, [scan])
        assert np.isnan(dataset["ssim"].values).all()

    def test_of_no_scan_is_none(self, paths):
        assert read_published(paths, "sub-01") is None
        assert read_attempt(paths, "sub-01") is None

    def test_publishing_replaces_the_old_one_and_forgets_the_failure(self, paths):
        publish(paths, published(version="v-old"))
        fail(paths, "sub-01")
        publish(paths, published(version="v-new"))
        assert read_published(paths, "sub-01").version == "v-new"
        assert read_attempt(paths, "sub-01") is None
        assert os.listdir(paths.scan("sub-01")) == ["current.json"]


class TestIndex:
    LABELS = ("sub-01", "sub-02_ses-01", "sub-02_ses-02", "sub-10")

    @pytest.fixture
    def cohort(self, paths):
        for label in reversed(self.LABELS):
            publish(paths, published(label))
        fail(paths, "sub-02_ses-01", "the last attempt")
        fail(paths, "sub-03")
        return paths

    def test_gathers_all_records_by_label(self, cohort):
        index = gather_index(cohort)
        assert [record.label for record in index.published] == list(self.LABELS)
        assert [failure.label for failure in index.failures] == ["sub-02_ses-01", "sub-03"]

    def test_comes_back_as_it_was_written(self, cohort):
        write_index(cohort)
        assert gather_index(cohort) == read_index(cohort)
        content = json.loads(cohort.index.read_text())  # others may read it as well
        assert [item["label"] for item in content["published"]] == list(self.LABELS)

    @pytest.mark.parametrize("label", ["sub-é", 'sub-"x"', "sub-a\\b", "sub-001_ses-01"])
    def test_holds_labels_of_any_kind(self, paths, label):
        publish(paths, published(label))
        write_index(paths)
        assert read_index(paths).published.labels == [label]
        assert read_index(paths).published[0].label == label

    def test_is_left_alone_where_it_would_say_the_same(self, cohort):
        write_index(cohort)
        before = cohort.index.stat()
        write_index(cohort)
        assert cohort.index.stat().st_ino == before.st_ino
        assert not [path for path in cohort.root.iterdir() if path.name.startswith(".")]

    def test_remembers_what_the_input_no_longer_has(self, cohort):
        write_index(cohort, ["sub-01", "sub-77"])
        assert read_index(cohort).removed == ("sub-01",)
        write_index(cohort)
        assert read_index(cohort).removed == ("sub-01",)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda data: data[: len(data) // 2],
            lambda data: data.replace(b"sub-01", b"sub-0X", 1),
            lambda data: data.replace(b'"index": 2', b'"index": 1'),
            lambda data: data.replace(b'], "removed"', b'], "removed', 1),
            lambda data: b"",
            lambda data: b"[]",
            lambda data: data[::-1],
        ],
    )
    def test_that_is_damaged_is_not_believed(self, cohort, damage, caplog):
        write_index(cohort)
        whole = read_index(cohort)
        cohort.index.write_bytes(damage(cohort.index.read_bytes()))
        assert read_index(cohort) == whole
        assert "the scans are read instead" in caplog.text

    def test_holds_a_sequence_of_records(self, cohort):
        records = gather_index(cohort).published
        assert records == list(records)
        assert records[1:] == [records[1], records[2], records[3]]
        assert records != []
        assert Records() == []
        assert not Records()

    def test_reads_a_record_only_when_it_is_asked_for(self, cohort, monkeypatch):
        write_index(cohort)
        monkeypatch.setattr(Published, "from_json", None)
        index = read_index(cohort)
        assert index.published.labels == list(self.LABELS)
        with pytest.raises(StoreError, match=r"Remove index\.json"):
            index.published[0]

    def test_is_rebuilt_where_there_is_none(self, cohort):
        write_index(cohort)
        written = read_index(cohort)
        cohort.index.unlink()
        assert read_index(cohort) == written
        assert not cohort.index.exists()

    def test_is_one_file_that_is_read_without_the_scans(self, cohort):
        write_index(cohort)
        written = read_index(cohort)
        discard(cohort.scans)
        assert read_index(cohort) == written

    def test_an_unfinished_scan_does_not_count(self, cohort):
        cohort.staging("sub-09", "abc").mkdir(parents=True)
        cohort.version("sub-09", "v-1").mkdir()
        (cohort.scans / ".trash").mkdir()
        (cohort.scans / "notes.txt").write_text("of the person")
        assert list(scan_labels(cohort)) == sorted((*self.LABELS, "sub-03", "sub-09"))
        assert [record.label for record in gather_index(cohort).published] == list(self.LABELS)

    def test_of_a_folder_without_a_cohort_is_refused(self, paths):
        with pytest.raises(StoreError, match="no fused cohort") as error:
            read_index(paths)
        assert str(paths.root) in str(error.value)
        assert "fusionflow run" in error.value.mend

    def test_of_no_scans_is_empty(self, paths):
        paths.scans.mkdir(parents=True)
        write_index(paths)
        assert read_index(paths) == Index()
        assert not read_index(paths).published


class TestPaths:
    def test_lie_where_the_documentation_says(self):
        paths = OutputPaths(Path("out"))
        scan = Path("out/scans/sub-01")
        assert paths.index == Path("out/index.json")
        assert paths.group_store == Path("out/group.zarr")
        assert paths.current("sub-01") == scan / "current.json"
        assert paths.attempt("sub-01") == scan / "attempt.json"
        assert paths.version("sub-01", "v-1") == scan / "v-1"

    def test_a_staging_folder_is_beside_the_versions_and_hidden(self):
        staging = OutputPaths(Path("out")).staging("sub-01", "abc")
        assert staging.parent == Path("out/scans/sub-01")
        assert staging.name.startswith(".")

    def test_discarding_what_is_not_there_is_no_error(self, tmp_path):
        discard(tmp_path / "absent")
        (tmp_path / "staging" / "deep").mkdir(parents=True)
        discard(tmp_path / "staging")
        assert os.listdir(tmp_path) == []


class TestFingerprint:
    @given(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=1, max_size=4))
    def test_is_the_same_for_the_same_texts(self, parts):
        assert fingerprint(*parts) == fingerprint(*parts)
        assert len(bytes.fromhex(fingerprint(*parts))) == 32

    @pytest.mark.parametrize("other", [("ab",), ("b", "a"), ("a", "b", ""), ("", "ab"), ("a",)])
    def test_depends_on_the_texts_their_order_and_where_they_end(self, other):
        assert fingerprint("a", "b") != fingerprint(*other)
