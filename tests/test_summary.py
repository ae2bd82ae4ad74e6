"""Cohort figures are over subjects, by reductions that are declared, and known in closed form."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from made_scans import publish_scan
from numpy.testing import assert_allclose, assert_array_equal
from strategies import published

from fusionflow.cohort import write_summary
from fusionflow.errors import ConfigurationError, NoScansError
from fusionflow.index import write_index
from fusionflow.ledger import OutputPaths
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS, SliceMetrics
from fusionflow.schema import SOURCES
from fusionflow.summary import (
    SCAN_METRICS,
    STATISTICS,
    cohort_table,
    metrics_dataset,
    scan_figures,
    scan_table,
    summarise_records,
)

PLAIN = [metric.name for metric in PAIR_METRICS if metric.quotient is None]
NAMES = [statistic.name for statistic in STATISTICS]


def scan(label, seed=0, **figures):
    """Return a scan with a figure for every metric; `figures` replaces some, (mri, pet) pairs."""
    rng = np.random.default_rng(seed)
    metrics = {
        metric.name: dict(zip(SOURCES, rng.uniform(0.1, 0.9, 2).tolist(), strict=True))
        for metric in PAIR_METRICS
    }
    metrics |= {metric.name: float(rng.uniform(0.1, 0.9)) for metric in SCAN_METRICS}
    for name, value in figures.items():
        metrics[name] = (
            dict(zip(SOURCES, value, strict=True)) if isinstance(value, tuple) else value
        )
    return published(label, metrics=metrics)


def statistics_of(values):
    """The oracle: pandas over the subjects that have a figure."""
    series = pd.Series(np.asarray(values, float)).dropna()
    return {
        "n": len(series),
        "mean": series.mean(),
        "sd": series.std(ddof=1),
        "median": series.median(),
        "q25": series.quantile(0.25),
        "q75": series.quantile(0.75),
    }


def found(summary, metric, source=None):
    column = summary.to_dataset()[metric]
    column = column.sel(source=source) if source else column
    return {name: float(column.sel(statistic=name)) for name in NAMES}


def assert_same_statistics(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert_allclose(found[name], value, rtol=1e-12, err_msg=name)


class TestCohort:
    @given(hnp.arrays(float, st.tuples(st.integers(1, 9), st.just(2)),
                      elements=st.one_of(st.floats(-1, 1), st.just(math.nan))))  # fmt: skip
    def test_statistics_are_those_of_pandas_over_subjects(self, values):
        scans = [scan(f"sub-{i:02}", ssim=tuple(row)) for i, row in enumerate(values.tolist())]
        summary = summarise_records(scans)
        for index, source in enumerate(SOURCES):
            column = found(summary, "ssim", source)
            wanted = statistics_of(values[:, index])
            for name in NAMES:
                assert_allclose(column[name], wanted[name], rtol=1e-9, atol=1e-12, err_msg=name)

    def test_every_metric_has_every_statistic(self):
        scans = [scan(f"sub-{i:02}", seed=i) for i in range(7)]
        summary = summarise_records(scans)
        for metric in SCAN_METRICS:
            wanted = statistics_of([record.metrics[metric.name] for record in scans])
            assert_same_statistics(found(summary, metric.name), wanted)
        for name in set(PLAIN) - {"psnr", "rmse"}:
            for source in SOURCES:
                wanted = statistics_of([record.metrics[name][source] for record in scans])
                assert_same_statistics(found(summary, name, source), wanted)

    def test_known_figures(self):
        scans = [
            scan(f"sub-{i}", ssim=(value, 0.5)) for i, value in enumerate((0.1, 0.2, 0.4, 0.9))
        ]
        assert_same_statistics(
            found(summarise_records(scans), "ssim", "mri"),
            {"n": 4, "mean": 0.4, "sd": math.sqrt(0.38 / 3), "median": 0.3,
             "q25": 0.175, "q75": 0.525},
        )  # fmt: skip

    def test_one_subject_has_no_standard_deviation(self):
        column = found(summarise_records([scan("sub-01", ssim=(0.75, 0.5))]), "ssim", "mri")
        assert math.isnan(column.pop("sd"))
        assert column == {"n": 1, "mean": 0.75, "median": 0.75, "q25": 0.75, "q75": 0.75}

    def test_subjects_without_a_figure_do_not_count(self):
        values = (0.2, math.nan, 0.6)
        scans = [scan(f"sub-{i}", ssim=(value, math.nan)) for i, value in enumerate(values)]
        summary = summarise_records(scans)
        assert found(summary, "ssim", "mri")["n"] == 2
        assert found(summary, "ssim", "mri")["mean"] == pytest.approx(0.4)
        nobody = found(summary, "ssim", "pet")
        assert nobody.pop("n") == 0
        assert all(math.isnan(value) for value in nobody.values())

    def test_an_unchanged_source_has_an_infinite_psnr_and_no_spread(self):
        """As of methods `mri` and `pet`: a figure of every subject, and all of them the same."""
        scans = [scan(f"sub-{i}", psnr=(math.inf, 20.0)) for i in range(3)]
        column = found(summarise_records(scans), "psnr", "mri")
        assert column["n"] == 3
        assert math.isnan(column["sd"])
        for name in ("mean", "median", "q25", "q75"):
            assert column[name] == math.inf, name

    def test_quartiles_between_finite_figures_are_finite_though_another_is_infinite(self):
        scans = [scan(f"sub-{i}", psnr=(v, 20.0)) for i, v in enumerate((10, 20, 30, 40, math.inf))]
        column = found(summarise_records(scans), "psnr", "mri")
        assert column["mean"] == math.inf
        assert (column["q25"], column["median"], column["q75"]) == pytest.approx((20, 30, 40))

    def test_the_order_of_scans_does_not_matter(self):
        scans = [scan(f"sub-{i:02}_ses-{j}", seed=10 * i + j) for i in range(4) for j in (1, 2)]
        shuffled = scans.copy()
        random.Random(0).shuffle(shuffled)
        xr.testing.assert_allclose(
            summarise_records(scans).to_dataset(), summarise_records(shuffled).to_dataset()
        )

    def test_says_what_it_was_made_of(self):
        scans = [scan("sub-01_ses-1"), scan("sub-01_ses-2"), scan("sub-02_ses-1")]
        assert summarise_records(scans).attrs == {
            "method": "dwt-vgg19-l1",
            "scans": 3,
            "subjects": 2,
        }


class TestSessions:
    """Sessions of a person are pooled to one figure, as slices are, before anything else."""

    SCANS = (
        scan("sub-01_ses-1", 1, ssim=(0.2, 0.5), mse=(0.01, 0.1), rmse=(0.1, 0.3), psnr=(20, 10)),
        scan("sub-01_ses-2", 2, ssim=(0.4, 0.5), mse=(0.03, 0.1), rmse=(0.7, 0.3), psnr=(40, 10)),
        scan("sub-02_ses-1", 3, ssim=(0.9, 0.5), mse=(0.05, 0.1), rmse=(0.2, 0.3), psnr=(30, 10)),
    )

    def test_a_person_counts_once(self):
        column = found(summarise_records(self.SCANS), "ssim", "mri")
        assert column["n"] == 2
        assert column["mean"] == pytest.approx((0.3 + 0.9) / 2)
        assert column["mean"] != pytest.approx((0.2 + 0.4 + 0.9) / 3)

    @pytest.mark.parametrize(
        ("metric", "wanted"),
        [
            ("ssim", 0.3),
            ("mse", 0.02),
            ("rmse", math.sqrt((0.01 + 0.49) / 2)),
            ("psnr", -10 * math.log10((10**-2 + 10**-4) / 2)),
        ],
    )
    def test_are_pooled_as_the_metric_declares(self, metric, wanted):
        subjects = summarise_records(self.SCANS)["subjects"]
        value = float(subjects[metric].sel(subject="01", source="mri"))
        assert value == pytest.approx(wanted)

    def test_a_person_with_one_session_keeps_its_figures(self):
        subjects = summarise_records(self.SCANS)["subjects"]
        for name in PLAIN:
            for source in SOURCES:
                value = float(subjects[name].sel(subject="02", source=source))
                assert value == pytest.approx(self.SCANS[2].metrics[name][source]), name

    def test_a_session_without_a_figure_does_not_count(self):
        scans = [
            scan("sub-01_ses-1", ssim=(0.2, math.nan)),
            scan("sub-01_ses-2", ssim=(math.nan,) * 2),
        ]
        subject = summarise_records(scans)["subjects"]["ssim"].sel(subject="01")
        assert float(subject.sel(source="mri")) == pytest.approx(0.2)
        assert math.isnan(float(subject.sel(source="pet")))

    def test_are_counted(self):
        counts = summarise_records(self.SCANS)["subjects"]["scans"]
        assert counts.to_series().to_dict() == {"01": 2, "02": 1}


class TestDatasets:
    def test_scans_keep_their_order_and_figures(self):
        scans = [scan("sub-02", 1), scan("sub-01_ses-b", 2)]
        dataset = metrics_dataset(scans)
        assert list(dataset["scan"].values) == ["sub-02", "sub-01_ses-b"]
        assert list(dataset["subject"].values) == ["02", "01"]
        assert list(dataset["session"].values) == ["", "b"]
        assert list(dataset["method"].values) == ["dwt-vgg19-l1"] * 2
        for metric in PAIR_METRICS:
            wanted = [[record.metrics[metric.name][s] for s in SOURCES] for record in scans]
            assert dataset[metric.name].dims == ("scan", "source")
            assert_array_equal(dataset[metric.name].values, wanted)
            assert dataset[metric.name].attrs["units"] == metric.units
        for metric in SCAN_METRICS:
            assert dataset[metric.name].dims == ("scan",)
            assert_array_equal(
                dataset[metric.name].values, [record.metrics[metric.name] for record in scans]
            )

    def test_of_no_scans_has_every_variable(self):
        dataset = metrics_dataset([])
        assert dataset.sizes["scan"] == 0
        assert {metric.name for metric in (*PAIR_METRICS, *SCAN_METRICS)} == set(dataset.data_vars)

    def test_a_figure_that_a_record_lacks_is_nan(self):
        dataset = metrics_dataset([published(metrics={"ssim": {"mri": 0.5, "pet": None}})])
        assert_array_equal(dataset["ssim"].values, [[0.5, math.nan]])
        assert np.isnan(dataset["mse"].values).all()

    def test_the_summary_is_written_and_read_without_loss(self, tmp_path):
        summary = summarise_records(
            [scan("sub-01", psnr=(math.inf, 3.0)), scan("sub-02", 1, ssim=(math.nan, 0.5))]
        )
        summary.to_zarr(tmp_path / "group.zarr", zarr_format=3, consolidated=False)
        with xr.open_datatree(tmp_path / "group.zarr", engine="zarr", consolidated=False) as again:
            for path in ("/", "/subjects", "/scans"):
                xr.testing.assert_equal(again[path].to_dataset(), summary[path].to_dataset())


class TestGroupStore:
    @pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")])
    def test_is_made_again_where_a_file_is_gone(self, tmp_path, lose):
        publish_scan(tmp_path)
        paths = OutputPaths(tmp_path)
        write_index(paths)
        written, _ = write_summary(paths)
        made = {path: path.stat().st_ino for path in paths.group_store.rglob("*")}
        again, _ = write_summary(paths)
        assert {path: path.stat().st_ino for path in paths.group_store.rglob("*")} == made
        assert again.equals(written)
        lose(paths.group_store / "scans/ssim/c/0/0")
        mended, _ = write_summary(paths)
        assert mended["scans"].to_dataset().equals(written["scans"].to_dataset())
        with xr.open_zarr(paths.group_store, group="scans") as scans:
            assert_array_equal(scans.ssim.values, written["scans"].ssim.values)


class TestScanFigures:
    def test_slices_are_pooled_as_each_metric_declares(self):
        rng = np.random.default_rng(0)
        slices = SliceMetrics(
            rng.uniform(0.1, 0.9, (5, 2, len(PAIR_METRICS))),
            rng.uniform(1, 5, (5, len(IMAGE_METRICS))),
        )
        figures = scan_figures(slices, seconds=2.5)
        for index, metric in enumerate(PAIR_METRICS):
            for which, source in enumerate(SOURCES):
                values = slices.pair[:, which, index]
                wanted = {
                    "psnr": -10 * np.log10(np.mean(10 ** (-values / 10))),
                    "rmse": np.sqrt(np.mean(values**2)),
                    "ssim": values.mean(),
                    "mse": values.mean(),
                    "nmi": values.mean(),
                }.get(metric.name)
                if wanted is not None:
                    assert figures[metric.name][source] == pytest.approx(wanted)
        for index, metric in enumerate(IMAGE_METRICS):
            assert figures[metric.name] == pytest.approx(slices.image[:, index].mean())
        assert figures["fusion_time"] == pytest.approx(0.5)

    def test_slices_outside_the_head_do_not_count(self):
        pair = np.full((3, 2, len(PAIR_METRICS)), 0.5)
        image = np.full((3, len(IMAGE_METRICS)), 2.0)
        pair[1], image[1] = np.nan, np.nan
        figures = scan_figures(SliceMetrics(pair, image), 3.0)
        assert figures["ssim"] == {"mri": 0.5, "pet": 0.5}
        assert figures["entropy_fused"] == 2.0
        assert figures["fusion_time"] == 1.0

    def test_without_slices_there_are_no_figures(self):
        empty = SliceMetrics(np.zeros((0, 2, len(PAIR_METRICS))), np.zeros((0, len(IMAGE_METRICS))))
        figures = scan_figures(empty, 0.0)
        assert all(math.isnan(value) for value in figures["ssim"].values())
        assert figures["fusion_time"] == 0

    def test_hold_every_metric_as_plain_numbers(self):
        slices = SliceMetrics(
            np.full((2, 2, len(PAIR_METRICS)), 0.5), np.ones((2, len(IMAGE_METRICS)))
        )
        figures = scan_figures(slices, 1.0)
        assert figures.keys() == {metric.name for metric in (*PAIR_METRICS, *SCAN_METRICS)}
        for metric in PAIR_METRICS:
            assert list(figures[metric.name]) == list(SOURCES)
            assert {type(value) for value in figures[metric.name].values()} == {float}
        assert {type(figures[metric.name]) for metric in SCAN_METRICS} == {float}


class TestRefusals:
    def test_no_scans(self):
        with pytest.raises(NoScansError):
            summarise_records([])

    def test_scans_of_different_methods_are_named(self):
        scans = [
            published("sub-01", request="a"),
            published("sub-02", request="b", method={"name": "dwt-max"}),
        ]
        with pytest.raises(ConfigurationError, match=r"2 different ways \(dwt-max, dwt-vgg19-l1\)"):
            summarise_records(scans)

    def test_scans_of_one_method_with_different_options(self):
        scans = [published("sub-01", request="a"), published("sub-02", request="b")]
        with pytest.raises(ConfigurationError, match="2 different ways"):
            summarise_records(scans)


class TestTables:
    @pytest.fixture
    def summary(self):
        return summarise_records([scan("sub-01", 1), scan("sub-02_ses-b", 2), scan("sub-03", 3)])

    def test_the_cohort_table_has_a_row_for_each_metric_and_source(self, summary):
        table = cohort_table(summary)
        assert list(table.columns) == ["metric", "source", "units", *NAMES]
        assert list(zip(table["metric"], table["source"], strict=True)) == [
            *((metric.name, source) for metric in PAIR_METRICS for source in SOURCES),
            *((metric.name, "") for metric in SCAN_METRICS),
        ]
        assert set(table["n"]) == {3}
        assert table["n"].dtype.kind == "i"

    def test_the_cohort_table_holds_the_figures_of_the_summary(self, summary):
        table = cohort_table(summary).set_index(["metric", "source"])
        for source in SOURCES:
            assert dict(table.loc["ssim", source][NAMES]) == pytest.approx(
                found(summary, "ssim", source)
            )
        assert dict(table.loc["fusion_time", ""][NAMES]) == pytest.approx(
            found(summary, "fusion_time")
        )

    def test_the_scan_table_has_a_row_a_scan(self, summary):
        table = scan_table(summary)
        assert list(table.columns) == [
            "scan", "participant_id", "session_id", "method",
            *(f"{metric.name}_{source}" for metric in PAIR_METRICS for source in SOURCES),
            *(metric.name for metric in SCAN_METRICS),
        ]  # fmt: skip
        assert list(table["scan"]) == ["sub-01", "sub-02_ses-b", "sub-03"]
        assert list(table["participant_id"]) == ["sub-01", "sub-02", "sub-03"]
        assert list(table["session_id"]) == ["n/a", "ses-b", "n/a"]

    def test_the_scan_table_holds_the_figures_of_the_scans(self, summary):
        table, scans = scan_table(summary), summary["scans"]
        for source in SOURCES:
            assert_array_equal(table[f"psnr_{source}"], scans["psnr"].sel(source=source))
        assert_array_equal(table["entropy_fused"], scans["entropy_fused"])
