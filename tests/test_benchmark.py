"""One table for methods, baselines and images made elsewhere, all by the same code."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from fusionflow import benchmark, benchmark_report
from fusionflow.cli import main
from fusionflow.config import METHODS
from fusionflow.errors import ConfigurationError, GridError, InputError
from fusionflow.images import Sources
from fusionflow.quality import assess


def smooth(seed, size=96):
    """A picture with structure, 0..1 in steps of 1/255."""
    from scipy import ndimage

    noise = np.random.default_rng(seed).standard_normal((size, size))
    image = ndimage.gaussian_filter(noise, 2)
    image = (image - image.min()) / np.ptp(image)
    return (np.rint(image * 255) / 255).astype(np.float32)


@pytest.fixture(scope="module")
def pairs():
    empty = np.zeros((96, 96, 3), np.uint8)
    return {str(i): Sources(smooth(i), smooth(10 + i), empty, "grey") for i in range(3)}


@pytest.fixture
def elsewhere(tmp_path, pairs):
    folder = tmp_path / "peer"
    folder.mkdir()
    for name, sources in pairs.items():
        Image.fromarray(np.rint(sources.mri * 255).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


def few(*names):
    return [METHODS[name] for name in names]


class TestTable:
    def test_images_made_elsewhere_get_the_same_figures(self, pairs, elsewhere):
        """A peer that hands the MRI back is the method `mri`, to the last digit."""
        result = benchmark.run_benchmark(
            pairs, few("mri", "average"), {"peer": elsewhere}, repeats=1
        )
        table = result.table
        assert list(table.index) == ["mri", "average", "peer"]
        figures = table.drop(columns="seconds")
        pd.testing.assert_series_equal(
            figures.loc["mri"], figures.loc["peer"], check_names=False, rtol=1e-6
        )
        assert np.isnan(table.seconds["peer"])
        assert (table.seconds[["mri", "average"]] > 0).all()

    def test_means_are_over_the_images_and_figures_are_those_of_8_bits(self, pairs):
        result = benchmark.run_benchmark(pairs, few("average"), repeats=1)
        expected = []
        for sources in pairs.values():
            mean = np.float32(0.5) * sources.mri + np.float32(0.5) * sources.pet
            result_8_bit = np.floor(mean.astype(float) * 255 + 0.5) / 255
            expected.append(assess(sources.mri, sources.pet, result_8_bit))
        for name in ("qabf", "ssim_pet", "vif_mri", "en"):
            wanted = np.mean([figures[name] for figures in expected])
            assert result.table.loc["average", name] == pytest.approx(wanted, rel=2e-3)
        assert len(result.images) == 3

    def test_a_method_without_weights_is_named_not_dropped(self, pairs, monkeypatch, tmp_path):
        monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(tmp_path))
        result = benchmark.run_benchmark(pairs, few("mri", "dwt-alexnet-l1"), repeats=1)
        assert list(result.not_run) == ["dwt-alexnet-l1"]
        assert "No weights of alexnet" in result.not_run["dwt-alexnet-l1"]
        assert list(result.table.index) == ["mri"]

    def test_another_convention(self, pairs):
        ours = benchmark.run_benchmark(pairs, few("average"), repeats=1).table
        theirs = benchmark.run_benchmark(
            pairs, few("average"), repeats=1, convention="cddfuse"
        ).table
        assert set(theirs.columns) != set(ours.columns)


def test_slices_of_a_fused_cohort(fused):
    pairs = benchmark.pairs_of_cohort(fused[0], slices=2)
    assert len(pairs) == 4 * 2
    assert all(name.startswith("sub-0") for name in pairs)
    table = benchmark.run_benchmark(pairs, few("mri", "pet"), repeats=1).table
    assert table.loc["mri", "ssim_mri"] == pytest.approx(1)
    assert table.loc["mri", "ssim_pet"] < 0.9


class TestTrouble:
    def test_a_missing_picture(self, pairs, elsewhere):
        (elsewhere / "1.png").unlink()
        with pytest.raises(InputError, match=r"\(peer\) has no picture for 1\."):
            benchmark.run_benchmark(pairs, few("mri"), {"peer": elsewhere})

    def test_another_size(self, pairs, elsewhere):
        Image.open(elsewhere / "2.png").resize((50, 40)).save(elsewhere / "2.png")
        with pytest.raises(GridError, match=r"2\.png is 50 x 40 pixels, its pair 96 x 96"):
            benchmark.run_benchmark(pairs, few("mri"), {"peer": elsewhere})

    def test_a_name_that_is_taken(self, pairs, elsewhere):
        with pytest.raises(ConfigurationError, match="mri: a name stands for one"):
            benchmark.run_benchmark(pairs, few("mri"), {"mri": elsewhere})

    def test_a_method_that_fails_on_one_pair_does_not_stop_the_others(self, pairs):
        tiny = np.random.default_rng(0).random((2, 14, 14), dtype=np.float32)
        small = Sources(*tiny, np.zeros((14, 14, 3), np.uint8), "grey")
        result = benchmark.run_benchmark(
            {**pairs, "tiny": small}, few("laplacian", "average"), repeats=1
        )
        assert list(result.table.index) == ["average"]
        assert result.not_run["laplacian"].startswith("tiny: Slices of 14 x 14 pixels")

    def test_no_method_that_can_run(self, pairs, monkeypatch, tmp_path):
        monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(tmp_path))
        with pytest.raises(InputError, match="No method can run: dwt-vgg19-l1: No weights"):
            benchmark.run_benchmark(pairs, few("dwt-vgg19-l1"))

    def test_no_pairs(self):
        with pytest.raises(InputError, match="no pairs"):
            benchmark.run_benchmark({}, few("mri"))


class TestFiles:
    def test_the_papers_figures_stand_beside_ours(self, pairs):
        table = benchmark.run_benchmark(pairs, few("average"), repeats=1).table
        paper = benchmark_report.paper_table(table)
        assert paper.loc["paper (other images)", "mse_mri"] == 2246
        assert set(paper.columns) == set(benchmark.PAPER)

    def test_what_is_written(self, pairs, tmp_path):
        result = benchmark.run_benchmark(pairs, few("average", "maximum"), repeats=1)
        result.not_run["<script>"] = "a & b"
        paths = benchmark_report.write_report(result, tmp_path / "out", "Title <b>")
        read = pd.read_csv(tmp_path / "out" / "benchmark.tsv", sep="\t", index_col="method")
        assert list(read.index) == ["average", "maximum"]
        assert list(read.columns[:3]) == ["seconds", "qabf", "scd"]
        page = paths[-1].read_text()
        assert "<script>" not in page
        assert "Title &lt;b&gt;" in page
        text = (tmp_path / "out" / "benchmark.md").read_text()
        assert text.startswith("# Title \\<b\\>\n")
        assert "- \\<script\\>: a \\& b\n" in text
        assert page.count("<img ") == 3 * 4
        assert "http" not in page.replace("http-equiv", "")

    def test_the_command(self, pairs, elsewhere, tmp_path):
        for kind in ("MRI", "PET"):
            (tmp_path / "data [b]" / kind).mkdir(parents=True)
        for name, sources in pairs.items():
            for kind, image in (("MRI", sources.mri), ("PET", sources.pet)):
                path = tmp_path / "data [b]" / kind / f"{name}.png"
                Image.fromarray(np.rint(image * 255).astype(np.uint8)).save(path)
        result = CliRunner().invoke(
            main,
            ["benchmark", str(tmp_path / "data [b]"), "--methods", "mri,average", "--repeats", "1",
             "--scores-of", f"peer={elsewhere}", "-o", str(tmp_path / "out")],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "peer" in result.output
        assert "of data [b]" in result.output
        assert (tmp_path / "out" / "benchmark.html").is_file()

    def test_a_folder_that_is_not_there(self, tmp_path):
        result = CliRunner().invoke(
            main, ["benchmark", str(tmp_path), "--scores-of", f"x={tmp_path / 'no'}"]
        )
        assert result.exit_code == 2
        assert "NAME=FOLDER" in result.output
