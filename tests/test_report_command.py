"""``fusionflow report``: the pages of scans and of their cohort, from an output alone."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner
from cohorts import column, data, record, write_output
from made_scans import publish_scan

from fusionflow.cli import main
from fusionflow.cohort import open_cohort
from fusionflow.errors import NoScansError, StoreError
from fusionflow.ledger import OutputPaths, publish
from fusionflow.report import scan
from fusionflow.report.cohort_page import write_cohort_report
from fusionflow.report.page import MADE_BY
from fusionflow.report.scan_pages import chosen_labels, due
from fusionflow.runlock import RunLock


@pytest.fixture
def out(tmp_path):
    """Twelve scans of six people."""
    return write_output(tmp_path / "out", [record(n) for n in range(12)])


class TestChoosing:
    def test_people_with_or_without_sub(self, out):
        labels = open_cohort(out.root).labels
        assert chosen_labels(out, labels, ["00001", "sub-00002"]) == list(labels[2:6])
        assert chosen_labels(out, labels, []) == list(labels)
        with pytest.raises(NoScansError, match="no fused scan of sub-9"):
            chosen_labels(out, labels, ["9"])

    def test_pages_that_are_older_than_their_scan_are_due(self, tmp_path):
        paths = write_output(tmp_path / "out", [record(n) for n in range(3)], pages=True)
        labels = open_cohort(paths.root).labels
        assert due(paths, labels) == []
        paths.current(labels[0]).touch()
        (paths.root / "sub-00001/ses-01/fused/sub-00001_ses-01_fused.html").unlink()
        assert due(paths, labels) == [labels[0], labels[2]]

    def test_pages_of_another_version_are_due(self, tmp_path):
        label = publish_scan(tmp_path).label
        paths = OutputPaths(tmp_path)
        page = scan.write_scan_report(tmp_path, label)
        assert due(paths, [label]) == []
        by_another = page.read_text().replace(
            MADE_BY, MADE_BY.replace("fusionflow ", "fusionflow 9.")
        )
        page.write_text(by_another)
        assert due(paths, [label]) == [label]

    def test_a_page_is_due_if_its_scan_was_published_anew_while_it_was_written(
        self, tmp_path, monkeypatch
    ):
        label = publish_scan(tmp_path).label
        paths = OutputPaths(tmp_path)
        read = scan.read_published

        def read_and_lose(*arguments):
            record = read(*arguments)
            monkeypatch.setattr(scan, "read_published", read)
            publish(paths, record)  # by a run at work
            return record

        monkeypatch.setattr(scan, "read_published", read_and_lose)
        scan.write_scan_report(tmp_path, label)
        assert due(paths, [label]) == [label]
        scan.write_scan_report(tmp_path, label)
        assert due(paths, [label]) == []


class TestCommand:
    def call(self, *arguments):
        result = CliRunner().invoke(main, ["report", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def test_of_what_is_no_output(self, tmp_path):
        result = self.call(tmp_path)
        assert result.exit_code == 4
        assert "holds no fused cohort" in result.stderr

    def test_without_scans(self, out):
        result = self.call(out.root, "--no-scans")
        assert result.exit_code == 0
        assert str(out.root / "group.html") in result.stdout
        assert (out.root / "group.html").is_file()

    def test_with_what_is_no_output_to_compare(self, out, tmp_path):
        (tmp_path / "empty").mkdir()
        result = self.call(out.root, "--no-scans", "--compare-with", tmp_path / "empty")
        assert result.exit_code == 4
        assert "empty holds no fused cohort" in result.stderr

    def test_while_a_run_is_at_work_says_so(self, out):
        with RunLock(out.run_lock, "r-1"):
            result = self.call(out.root, "--no-scans")
        assert result.exit_code == 0
        assert "A run is at work (r-1)" in result.stdout

    def test_compares_with_another_output(self, out, tmp_path):
        other = write_output(tmp_path / "other", [record(n) for n in range(12)]).root
        self.call(out.root, "--no-scans", "--compare-with", other)
        assert "12 scans of 6 people are in both" in (out.root / "group.html").read_text()
        self.call(out.root, "--no-scans")
        assert "are in both" not in (out.root / "group.html").read_text()

    @pytest.mark.parametrize("jobs", [1, 2])
    def test_writes_the_pages_of_scans_and_links_them(self, fused, tmp_path, jobs):
        root = shutil.copytree(fused[0], tmp_path / "out")
        labels = open_cohort(root).labels
        result = self.call(root, "--jobs", jobs, "--participant-label", "01", "02")
        assert result.exit_code == 0, result.output
        assert "3 of 3 pages of scans to write" in result.stdout
        assert data(root / "group.html")["reports"] == [1, 1, 1, 0]
        assert "1 of 4 pages" in self.call(root, "--jobs", jobs).stdout
        assert "0 of 4 pages" in self.call(root).stdout
        assert len(list(root.glob("sub-*/*/fused/*_fused.html"))) == len(labels)

    def test_says_which_page_could_not_be_written_and_writes_the_others(self, fused, tmp_path):
        root = shutil.copytree(fused[0], tmp_path / "out")
        paths, label = OutputPaths(root), open_cohort(root).labels[0]
        shutil.rmtree(paths.version(label, open_cohort(root).record(label).version))
        result = self.call(root)
        assert result.exit_code == 3
        assert label in result.stderr
        assert data(root / "group.html")["reports"] == [0, 1, 1, 1]

    def test_whatever_a_damaged_file_leads_to_stops_no_other_page(self, fused, tmp_path):
        root = shutil.copytree(fused[0], tmp_path / "out")
        paths, label = OutputPaths(root), open_cohort(root).labels[0]
        version = paths.version(label, open_cohort(root).record(label).version)
        for name in (".", "fused"):
            file = version / name / "zarr.json"
            file.write_text("[]".ljust(file.stat().st_size))  # zarr asks it for a key
        result = self.call(root, "--jobs", 1)
        assert result.exit_code == 3
        assert f"{label}: AttributeError" in result.stderr
        assert data(root / "group.html")["reports"] == [0, 1, 1, 1]

    def test_a_damaged_output_is_told_of(self, out):
        out.index.unlink()
        shutil.rmtree(out.scans)
        with pytest.raises(StoreError):
            write_cohort_report(out)


def test_a_run_writes_the_page_and_one_that_changes_nothing_leaves_it(fused):
    root, report, _ = fused
    page = data(root / "group.html")
    assert page["labels"] == sorted(report.fused.labels)
    assert column(page, "phantom_seed")["values"]  # from the input, which the page was told of
    before = (root / "group.html").stat().st_ino
    assert write_cohort_report(OutputPaths(root)).stat().st_ino == before
