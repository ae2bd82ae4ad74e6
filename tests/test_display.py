"""Cohorts, scans and runs as notebooks show them."""

import html
import io
import json
import re
import time
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from strategies import published

import fusionflow as ff
from fusionflow import viewer
from fusionflow.display import cohort_html, progress_html
from fusionflow.errors import ConfigurationError, ScanNotFoundError, SchemaError
from fusionflow.handle import Progress
from fusionflow.index import INDEX_VERSION
from fusionflow.io.files import json_bytes
from fusionflow.records import Attempt
from fusionflow.schema import SOURCES

NASTY = "<script>alert(1)</script>\"'&"


def write_index_file(folder, records, failures=()):
    """Write ``index.json`` as a run does, of records that have no scans."""
    folder.mkdir(exist_ok=True)
    lines = [b'{"index": %d, "published": [' % INDEX_VERSION]
    for part, between in ((records, b'], "failures": ['), (failures, None)):
        items = [json_bytes(item if isinstance(item, dict) else item.to_json()) for item in part]
        lines += [item + (b"," if item is not items[-1] else b"") for item in items]
        lines += [between] if between else []
    body = b"\n".join(lines)
    last = json_bytes({"removed": [], "crc32": zlib.crc32(body)})
    (folder / "index.json").write_bytes(body + b"\n], " + last[1:] + b"\n")
    return ff.open_cohort(folder)


def text_of(markup):
    """Return what a person reads of HTML, in one line."""
    words = []
    parser = HTMLParser()
    parser.handle_data = words.append
    parser.feed(markup)
    return " ".join(" ".join(words).split())


def conformed(shape=(7, 9, 8), *more):
    """Return a scan of noise with voxels of 3, 2 and 1 mm along z, y and x."""
    rng = np.random.default_rng(0)
    names = (*SOURCES, *more)
    volumes = {name: (("z", "y", "x"), rng.random(shape, np.float32)) for name in names}
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = -4, -5, -6
    return xr.Dataset(volumes, attrs={"affine": affine.tolist(), "label": "sub-01"})


class TestCohort:
    def test_says_what_it_holds(self, tmp_path):
        records = [published(f"sub-{n:02}", metrics={"ssim": {"mri": n / 10}}) for n in range(1, 6)]
        failures = [vars(Attempt("sub-77", "quarantined", "too few slices", "ImageError"))]
        text = text_of(write_index_file(tmp_path / "out", records, failures)._repr_html_())
        assert "5 fused" in text
        assert "1 not fused" in text
        assert "dwt-vgg19-l1 (5)" in text
        assert "7 × 6 × 5, 0.1 × 2 × 3 mm (5)" in text
        assert "MRI 0.3 0.2 0.4" in text  # median and quartiles of 0.1 to 0.5
        assert "sub-77 quarantined: too few slices" in text

    def test_of_a_run(self, fused):
        out, _, _ = fused
        cohort = ff.open_cohort(out)
        text = text_of(cohort._repr_html_())
        median = cohort.metrics.ssim.sel(source="pet").median().item()
        assert f"PET {median:.4g}" in text

    def test_ten_thousand_scans_take_no_longer_to_show_than_a_few_hundred(self, tmp_path):
        content = published("sub-1").to_json()
        records = [{**content, "label": f"sub-{n:05}"} for n in range(10_000)]
        cohort = write_index_file(tmp_path / "out", records)
        begun = time.perf_counter()
        markup = cohort_html(cohort)
        assert time.perf_counter() - begun < 2
        assert len(markup) < 10_000
        assert "10,000 fused" in text_of(markup)
        assert "of 500 scans, evenly spread" in text_of(markup)

    def test_names_of_others_are_text(self, tmp_path):
        record = published("sub-01", method={"name": NASTY}).to_json()
        failures = [vars(Attempt(f"sub-{n}{NASTY}", "failed", NASTY, "OSError")) for n in range(9)]
        for failure in failures:
            failure["label"] = failure["label"].replace("/", "")
        markup = write_index_file(tmp_path / "<b>out", [record], failures)._repr_html_()
        assert "<script" not in markup
        assert "<b>" not in markup
        assert "and 4 more" in text_of(markup)

    def test_an_empty_one(self, tmp_path):
        assert "0 fused" in text_of(write_index_file(tmp_path / "out", [])._repr_html_())


class TestRun:
    NOW = Progress("running", 40, 8, 1, 1, 0, 0, 4, 32.0, "http://127.0.0.1:8787/status")

    def test_says_how_far_it_is(self):
        failure = Attempt("sub-7", "failed", NASTY, "OSError")
        markup = progress_html(self.NOW, [failure])
        text = text_of(markup)
        assert "10 of 40 scans, 32 s, about 2 min 0 s left" in text
        assert "4 in flight" in text
        assert 'aria-valuenow="25"' in markup
        assert 'href="http://127.0.0.1:8787/status"' in markup
        assert f"sub-7 failed: {NASTY}" in text
        assert "<script" not in markup

    @pytest.mark.parametrize("link", ["javascript:alert(1)", "", "data:text/html,x"])
    def test_only_addresses_of_pages_are_links(self, link):
        markup = progress_html(Progress("running", 1, 0, 0, 0, 0, 0, 0, 0.0, link))
        assert "href" not in markup

    def test_a_path_of_a_proxy_is_one(self):
        link = "/user/ada/proxy/8787/status"
        markup = progress_html(Progress("running", 1, 0, 0, 0, 0, 0, 0, 0.0, link))
        assert f'href="{link}"' in markup

    def test_what_ended_it_is_said(self):
        ended = Progress("failed", None, 0, 0, 0, 0, 0, 0, 0.1, "")
        assert NASTY in text_of(progress_html(ended, error=ValueError(NASTY)))


class TestView:
    def test_a_page_holds_all_images_as_cubes_of_voxels(self):
        page = ff.view(conformed((7, 9, 8), "fused")).to_html()
        content = json.loads(re.search(r'id="content">(.*?)</script>', page)[1])
        assert list(content["volumes"]) == ["mri", "pet", "fused"]
        assert content["slices"] == [7, 9, 8]
        assert content["shape"] == [21, 18, 8]  # mm

    def test_nothing_of_it_lies_elsewhere(self):
        page = ff.view(conformed()).to_html()
        assert "default-src &#39;none&#39;" in page
        assert not re.search(r"https?://", page)

    def test_a_large_scan_is_made_coarser(self):
        scan = conformed((3, 400, 10)).assign_attrs(affine=np.eye(4).tolist())
        content = json.loads(re.search(r'id="content">(.*?)</script>', ff.view(scan).to_html())[1])
        assert max(content["shape"]) == 160

    def test_levels_are_those_of_the_scan_where_its_voxels_are_cubes(self):
        volume = np.random.default_rng(1).normal(0.5, 0.5, (4, 5, 6))
        volume[0, 0, 0] = np.nan
        levels = viewer._resampled(volume, (2.0, 2.0, 2.0))
        expected = np.floor(np.clip(np.nan_to_num(volume), 0, 1) * 255 + 0.5)
        assert np.abs(levels - expected).max() <= 1

    def test_a_notebook_gets_a_frame_of_its_own_and_a_picture(self):
        shown = ff.view(conformed(), title=NASTY)
        frame = shown._repr_html_()
        assert frame.count("<") == 2  # the frame, and nothing that the notebook would run
        assert 'sandbox="allow-scripts"' in frame
        page = html.unescape(re.search('srcdoc="([^"]*)"', frame)[1])
        assert html.escape(NASTY, quote=False)[:20] in page
        picture = Image.open(io.BytesIO(shown._repr_png_()))
        assert picture.width > 400

    def test_of_a_cohort(self, fused, tmp_path):
        out, _, _ = fused
        cohort = ff.open_cohort(out)
        label = cohort.labels[0]
        assert ff.view(cohort, label).title == f"{label}  dwt-vgg19-l1"
        assert cohort.show(label).save(tmp_path / "scan.html").stat().st_size > 10_000
        with Image.open(cohort.show(label).save(tmp_path / "scan.png")) as picture:
            assert picture.format == "PNG"
        with pytest.raises(ConfigurationError, match=r"Which scan of the cohort.*sub-01"):
            ff.view(cohort)
        with pytest.raises(ScanNotFoundError, match="sub-99"):
            cohort.show("sub-99")

    def test_other_names_and_other_data_are_refused(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"scan\.pdf"):
            ff.view(conformed()).save(tmp_path / "scan.pdf")
        with pytest.raises(SchemaError, match="no variable 'pet'"):
            ff.view(conformed()[["mri"]])
