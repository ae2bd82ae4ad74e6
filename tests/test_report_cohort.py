"""The report of a cohort tells what the outputs tell, and is never out of date or in the way."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from cohorts import SITES, cells, column, data, figure, record, write_output, write_people
from numpy.testing import assert_allclose
from scipy import stats

from fusionflow.cohort import open_cohort, write_summary
from fusionflow.index import write_index
from fusionflow.io.files import write_json
from fusionflow.ledger import OutputPaths, write_attempt
from fusionflow.records import Attempt
from fusionflow.report.cohort_page import write_cohort_report
from fusionflow.report.columns import figure_columns
from fusionflow.report.participants import participants_path, read_participants
from fusionflow.report.robust import robust_z, spread
from fusionflow.report.ways_compared import comparisons, side_by_side
from fusionflow.summary import metrics_dataset

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture
def out(tmp_path):
    """Twelve scans of six people at three sites."""
    paths = write_output(tmp_path / "out", [record(n) for n in range(12)])
    write_people(paths.root, 6)
    return paths


class TestRobustZ:
    def test_is_by_median_and_mad(self):
        values = np.random.default_rng(0).standard_normal(101)
        by_hand = (values - np.median(values)) / (
            1.4826 * np.median(np.abs(values - np.median(values)))
        )
        assert_allclose(robust_z(values), by_hand)
        assert_allclose(
            spread(values).scale, stats.median_abs_deviation(values, scale="normal"), 1e-4
        )

    def test_one_far_scan_does_not_hide_itself(self):
        values = np.array([0.80, 0.81, 0.82, 0.83, 0.84, 5.0])
        assert robust_z(values)[-1] > 3.5 > np.abs(robust_z(values)[:-1]).max()

    def test_what_is_not_finite_does_not_count_and_has_none(self):
        values = np.array([1.0, 2.0, 3.0, np.nan, np.inf])
        assert_allclose(robust_z(values)[:3], robust_z(values[:3]))
        assert np.isnan(robust_z(values)[3:]).all()

    def test_a_mad_of_0_measures_nothing(self):
        values = np.array([4.0, 4.0, 4.0, 9.0])
        assert np.isnan(robust_z(values)).all()
        assert spread(values).scale == 0
        assert spread(values).differing == 1

    @pytest.mark.parametrize("values", [[], [np.nan], [1.0]])
    def test_of_hardly_any_figures(self, values):
        assert np.isnan(robust_z(np.array(values, float))).all()


class TestData:
    def test_is_the_figures_of_all_scans(self, out):
        page = data(write_cohort_report(out))
        records = open_cohort(out.root).records
        assert page["labels"] == records.labels
        metrics = metrics_dataset(records)
        for item in figure_columns():
            expected = metrics[item["metric"]]
            if item["source"]:
                expected = expected.sel(source=item["source"].lower())
            assert_allclose(figure(page, item["key"])["values"], expected.values, 1e-4)
            assert_allclose(figure(page, item["key"])["centre"], [np.median(expected)], 1e-4)

    def test_has_the_columns_of_the_people(self, out):
        page = data(write_cohort_report(out))
        assert cells(page, "site") == [SITES[n // 2 % 3] for n in range(12)]
        assert cells(page, "sex") == [*"FFMM" * 3]
        assert cells(page, "session_id") == ["ses-01", "ses-02"] * 6
        assert column(page, "age")["kind"] == "text"  # six ages: too few to draw a line over

    def test_takes_a_column_of_many_numbers_for_numbers(self, tmp_path):
        paths = write_output(tmp_path / "out", [record(n) for n in range(20)])
        write_people(paths.root, 9)  # nothing is known of the tenth
        age = column(data(write_cohort_report(paths)), "age")
        assert age["kind"] == "number"
        assert age["values"][:4] == [20, 20, 27, 27]
        assert age["values"][-2:] == [None, None]

    @pytest.mark.parametrize(
        ("cells", "kind"),
        [
            ([str(20240513 + n) for n in range(12)], "number"),  # dates keep all digits
            ([f"{n:04}" for n in range(12)], "text"),
            ([f"9007199254740{n:03}" for n in range(12)], "text"),
            ([f"1_{n}" for n in range(12)], "text"),
        ],
    )
    def test_changes_no_digit_of_the_people(self, tmp_path, cells, kind):
        paths = write_output(tmp_path / "out", [record(2 * n) for n in range(12)])
        lines = ["participant_id\tserial", *(f"{n:05}\t{cell}" for n, cell in enumerate(cells))]
        (paths.root / "participants.tsv").write_text("\n".join(lines))
        found = column(data(write_cohort_report(paths)), "serial")
        assert found["kind"] == kind
        assert sorted(map(str, found["values"])) == sorted(cells)

    def test_odd_figures_stay_what_they_are(self, tmp_path):
        made = [record(n) for n in range(3)]
        made[0].metrics["psnr"] = {"mri": float("inf"), "pet": float("nan")}
        made[1].metrics["psnr"] = {"mri": 24.0}
        page = data(write_cohort_report(write_output(tmp_path / "out", made)))
        assert figure(page, "psnr_mri")["values"][:2] == ["inf", 24]
        assert figure(page, "psnr_pet")["values"][:2] == [None, None]
        assert figure(page, "psnr_pet")["n"] == [1]

    def test_scans_are_measured_by_those_made_the_same_way(self, tmp_path):
        made = [record(n) for n in range(8)]
        made += [record(n, request="e" * 64, method={"name": "average"}) for n in range(8, 12)]
        path = write_cohort_report(write_output(tmp_path / "out", made))
        page = data(path)
        assert page["ways"] == [1] * 8 + [0] * 4
        ssim = np.array(figure(page, "ssim_mri")["values"])
        assert_allclose(
            figure(page, "ssim_mri")["centre"], [np.median(ssim[8:]), np.median(ssim[:8])]
        )
        text = path.read_text()
        assert "<b>dwt-vgg19-l1</b> (8)" in text
        assert "<b>average</b> (4)" in text
        assert "made in 2 different ways" in text

    def test_of_one_scan(self, tmp_path):
        path = write_cohort_report(write_output(tmp_path / "out", [record(0)]))
        assert figure(data(path), "ssim_mri")["scale"] == [0]

    def test_of_no_scan_but_failures(self, tmp_path):
        paths = OutputPaths(tmp_path / "out")
        write_attempt(paths, Attempt("sub-01", "failed", "the disk is full", "StoreError"))
        write_index(paths)
        path = write_cohort_report(paths)
        assert data(path)["labels"] == []
        assert "the disk is full" in path.read_text()

    def test_links_to_the_pages_that_are_there(self, out):
        folder = out.root / "sub-00001/ses-02/fused"
        folder.mkdir(parents=True)
        (folder / "sub-00001_ses-02_fused.html").write_text("x")
        page = data(write_cohort_report(out))
        assert [place for place, there in enumerate(page["reports"]) if there] == [3]


class TestTrouble:
    def test_is_counted_and_told_with_its_reason(self, out):
        for number, state in enumerate(["failed", "quarantined", "quarantined"]):
            write_attempt(out, Attempt(f"sub-9{number}", state, f"reason {number}", "ImageError"))
        write_index(out, removed=["sub-00005_ses-02"])
        text = write_cohort_report(
            out, left_out={"sub-00000_ses-01": "made another way"}
        ).read_text()
        for count, name in ((1, "failed"), (2, "quarantined"), (1, "no longer in the input")):
            assert f"<dt>{name}</dt><dd>{count}</dd>" in text
        assert all(f"reason {number}" in text for number in range(3))
        assert "1 fused and left out of the summary: made another way" in text
        assert cells(data(out.root / "group.html"), "summary") == [
            "made another way", *["part of it"] * 10, "the input no longer has it",
        ]  # fmt: skip

    def test_hostile_texts_are_texts(self, out):
        write_attempt(out, Attempt(f"sub-1{HOSTILE.replace('/', '')}", "failed", HOSTILE, HOSTILE))
        write_index(out)
        table = f"participant_id\t{HOSTILE}\nsub-00000\t{HOSTILE}\nsub-00001\t=1+1\n"
        (out.root / "participants.tsv").write_text(table)
        path = write_cohort_report(out)
        text = path.read_text()
        assert "<img" not in text
        assert cells(data(path), HOSTILE)[:3] == [HOSTILE, HOSTILE, "=1+1"]


class TestParticipants:
    def test_the_outputs_own_table_wins(self, out, tmp_path):
        write_json(out.logs / "last_run.json", {"input": str(tmp_path)})
        write_people(tmp_path, 6)
        assert participants_path(out) == out.root / "participants.tsv"
        (out.root / "participants.tsv").unlink()
        assert participants_path(out) == tmp_path / "participants.tsv"

    @pytest.mark.parametrize(
        "last", [None, {"input": 3}, {"input": "/nowhere"}, {"input": "a\0b"}, []]
    )
    def test_without_one_the_page_says_so(self, out, last):
        (out.root / "participants.tsv").unlink()
        if last is not None:
            write_json(out.logs / "last_run.json", last)
        path = write_cohort_report(out)
        assert "There is no participants.tsv" in path.read_text()
        assert len(data(path)["labels"]) == 12

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"\xff\xfe\x00", "is no table"),
            (b"name\nsub-00000\n", "has no participant_id"),
            (b"", "has no participant_id"),
            (b"participant_id\tx\nsub-1\ta\nsub-1\tb\n", "more than one line for sub-1"),
            (b"participant_id\t" + b"\t".join(b"c%d" % n for n in range(99)) + b"\nsub-1\t1\n",
             "the first 60 are here"),
        ],
        ids=["binary", "no id", "empty", "twice", "wide"],
    )  # fmt: skip
    def test_an_odd_table_is_told_of(self, out, content, expected):
        (out.root / "participants.tsv").write_bytes(content)
        assert expected in write_cohort_report(out).read_text()

    def test_ids_with_and_without_sub(self, tmp_path):
        (tmp_path / "p.tsv").write_text("participant_id\tage\n01\t30\nsub-02\tn/a\n")
        assert read_participants(tmp_path / "p.tsv").rows == {
            "sub-01": {"age": "30"}, "sub-02": {"age": ""},
        }  # fmt: skip


class TestWriting:
    def test_leaves_a_page_that_says_the_same(self, out):
        before = write_cohort_report(out).stat()
        assert write_cohort_report(out).stat().st_ino == before.st_ino

    @pytest.mark.parametrize("what", ["index", "people", "page", "left out", "damaged"])
    def test_renews_it_when_anything_changed(self, out, what):
        path = write_cohort_report(out)
        before, left_out = path.stat().st_ino, None
        if what == "index":
            write_attempt(out, Attempt("sub-7", "failed", "why"))
            write_index(out)
        elif what == "people":
            write_people(out.root, 5)
        elif what == "page":
            folder = out.root / "sub-00000/ses-01/fused"
            folder.mkdir(parents=True)
            (folder / "sub-00000_ses-01_fused.html").write_text("x")
        elif what == "left out":
            left_out = {"sub-00000_ses-01": "made another way"}
        else:
            path.write_bytes(path.read_bytes()[:-40])
        assert write_cohort_report(out, left_out=left_out).stat().st_ino != before

    def test_knows_what_it_was_compared_with(self, out, tmp_path):
        other = write_output(tmp_path / "other", [record(n) for n in range(12)])
        before = write_cohort_report(out, compare_with=[other.root]).stat().st_ino
        assert write_cohort_report(out).stat().st_ino == before  # as the next run does
        assert "Methods compared" in (out.root / "group.html").read_text()
        shutil.rmtree(other.root)
        write_cohort_report(out)
        assert "Methods compared" not in (out.root / "group.html").read_text()

    def test_the_tables_of_scans_hold_the_same(self, out):
        write_summary(out)
        text = pd.read_csv(out.root / "group_scans.tsv", sep="\t", na_values="n/a")
        packed = pd.read_parquet(out.root / "group_scans.parquet")
        assert list(text.columns) == list(packed.columns)
        assert packed["scan"].tolist() == open_cohort(out.root).records.labels
        assert_allclose(packed["ssim_mri"], text["ssim_mri"], 1e-5)

    def test_the_figures_of_the_cohort_are_those_of_the_summary(self, out):
        summary, left_out = write_summary(out)
        path = write_cohort_report(out, summary=summary, left_out=left_out)
        with_it = path.read_text()
        path.unlink()
        assert write_cohort_report(out).read_text() == with_it
        assert (
            f"<td>{float(summary['ssim'].sel(statistic='mean', source='pet')):.4g}</td>" in with_it
        )


class TestComparison:
    def other(self, folder, shift, count=12):
        made = [record(n, request="d" * 64, method={"name": "average"}) for n in range(count)]
        for item in made:
            item.metrics["ssim"] = {x: y - shift for x, y in item.metrics["ssim"].items()}
        return open_cohort(write_output(folder, made).root)

    def test_is_by_person_with_sessions_pooled(self, tmp_path):
        own = [record(n) for n in range(16)]
        paths = write_output(tmp_path / "out", own)
        other = self.other(tmp_path / "x" / "other", 0.1)
        (pair,) = comparisons(open_cohort(paths.root).records, "this output", [other])
        assert (pair.first, pair.second) == ("dwt-vgg19-l1 (this output)", "average (x/other)")
        assert (pair.scans, pair.subjects) == (12, 6)
        found = {(item.name, item.source): item for item in pair.differences}
        ssim = found["structural similarity", "MRI"]
        assert (ssim.n, ssim.higher, ssim.lower) == (6, 6, 0)
        assert_allclose([ssim.median, ssim.q25, ssim.q75], 0.1)
        assert_allclose(ssim.p, 2 / 2**6)  # all six signs the same, by both of two sides
        same = found["mutual information", "MRI"]
        assert (same.n, same.higher, same.lower, same.median) == (6, 0, 0, 0)
        assert np.isnan(same.p)
        assert same.p_text == "–"

    def test_of_ways_within_one_output_is_side_by_side(self, tmp_path):
        made = [record(n) for n in range(8)]
        made += [record(n, request="e" * 64, method={"name": "average"}) for n in range(8, 12)]
        paths = write_output(tmp_path / "out", made)
        found = side_by_side(open_cohort(paths.root).records)
        assert found.ways == {"dwt-vgg19-l1": 8, "average": 4}
        (ssim,) = [row for row in found.rows if row[:2] == ("structural similarity", "PET")]
        people = [np.mean([m.metrics["ssim"]["pet"] for m in made[n : n + 2]]) for n in (8, 10)]
        assert_allclose(ssim[2][1], (2, np.mean(people), *np.quantile(people, [0.25, 0.75])))
        assert "Within this output" in write_cohort_report(paths).read_text()

    def test_of_one_way_within_one_output_is_none(self, out):
        assert side_by_side(open_cohort(out.root).records) is None

    def test_of_few_people_has_no_p(self, tmp_path):
        paths = write_output(tmp_path / "out", [record(n) for n in range(10)])
        other = self.other(tmp_path / "other", 0.1, 10)
        (pair,) = comparisons(open_cohort(paths.root).records, "this", [other])
        assert pair.subjects == 5
        assert all(np.isnan(item.p) for item in pair.differences)

    def test_of_other_people_is_none(self, tmp_path):
        paths = write_output(tmp_path / "out", [record(n) for n in range(20, 24)])
        other = self.other(tmp_path / "other", 0.1)
        assert not list(comparisons(open_cohort(paths.root).records, "this", [other]))
