"""The page of a cohort in a real browser: what a person does with it, and how it looks."""

import base64
import re
import time

import numpy as np
import pytest
from cohorts import record, write_output, write_people

from fusionflow.cohort import open_cohort, write_summary
from fusionflow.index import write_index
from fusionflow.ledger import write_attempt
from fusionflow.records import Attempt
from fusionflow.report.cohort_page import write_cohort_report
from fusionflow.report.columns import rounded
from fusionflow.report.robust import robust_z
from fusionflow.summary import metrics_dataset

pytestmark = pytest.mark.browser

ODD = "sub-00001_ses-02"
ALL_WIDTH = "document.documentElement.scrollWidth"


def odd_records(count):
    made = [record(n) for n in range(count)]
    made[3].metrics["ssim"] = {"mri": 0.3, "pet": 0.95}
    made[4].metrics["psnr"] = {"mri": float("inf"), "pet": float("nan")}
    return made


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Forty scans at three sites with pages of their own; three have trouble."""
    root = tmp_path_factory.mktemp("cohort") / "fused"
    paths = write_output(root, odd_records(40), pages=True)
    write_people(root, 19)
    other = [record(n, request="d" * 64, method={"name": "average"}) for n in range(30)]
    for item in other:  # nearer to the MRI, farther from the PET
        ssim = item.metrics["ssim"]
        shift = 0.02 + 0.05 * ssim["mri"] ** 4
        item.metrics["ssim"] = {"mri": ssim["mri"] + shift, "pet": ssim["pet"] - shift}
    other_root = write_output(root.parent / "average", other).root
    for number, state in enumerate(["failed", "quarantined", "quarantined"]):
        reason = "The PET has no voxel in the head. Look at its header, then run again"
        write_attempt(paths, Attempt(f"sub-9{number}", state, reason, "ImageError", 2))
    write_index(paths, removed=["sub-00019_ses-02"])
    write_summary(paths)
    write_cohort_report(paths, compare_with=[other_root])
    return root


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A cohort of 5,000 scans, from 5,000 records."""
    root = tmp_path_factory.mktemp("large") / "fused"
    paths = write_output(root, odd_records(5000))
    write_people(root, 2500)
    summary, left_out = write_summary(paths)
    began = time.perf_counter()
    page = write_cohort_report(paths, summary=summary, left_out=left_out)
    print(f"\n5,000 scans: page written in {time.perf_counter() - began:.2f} s, "
          f"{page.stat().st_size / 1e6:.2f} MB")  # fmt: skip
    return root


def column_of(page, heading):
    """What the column of a heading shows, top to bottom."""
    return page.do(
        """const heads = [...document.querySelectorAll("#scan-table thead th")];
        const place = heads.findIndex((head) => head.column.name === arguments[0]
          || head.column.key === arguments[0]);
        return [...document.querySelectorAll("#scan-table tbody tr")]
          .map((row) => row.children[place].textContent)""",
        heading,
    )


def press(page, heading):
    """Press the heading of a column; how it is then sorted."""
    return page.do(
        """const head = [...document.querySelectorAll("#scan-table thead th")]
          .find((item) => item.column.name === arguments[0] || item.column.key === arguments[0]);
        head.firstChild.click();
        return head.getAttribute("aria-sort")""",
        heading,
    )


def put(page, css, text):
    """Type a text, or choose, as a person does."""
    page.do(
        """const field = document.querySelector(arguments[0]);
        field.value = arguments[1];
        field.dispatchEvent(new Event("input", {bubbles: true}));
        field.dispatchEvent(new Event("change", {bubbles: true}))""",
        css,
        text,
    )


def choose(page, css, words):
    """Choose the entry of a list whose text is `words`."""
    value = page.do(
        "return [...document.querySelectorAll(arguments[0] + ' option')]"
        ".find((item) => item.textContent === arguments[1]).value",
        css,
        words,
    )
    put(page, css, value)


def texts(page, css):
    return page.do(
        "return [...document.querySelectorAll(arguments[0])].map((item) => item.textContent)", css
    )


def outliers(page):
    """Scan and figure of each outlier in the list."""
    return page.do(
        "return [...document.querySelectorAll('#outlier-table tbody tr')]"
        ".map((row) => [row.children[0].textContent, row.children[1].textContent])"
    )


class TestTable:
    def test_sorts_up_and_down_with_what_is_unknown_last(self, page, cohort):
        page.open(cohort / "group.html")
        for direction in ("ascending", "descending"):
            assert press(page, "psnr_pet") == direction
            shown = column_of(page, "psnr_pet")
            assert shown[-1] == "n/a"
            values = [float(text.split()[-1]) for text in shown[:-1]]
            assert values == sorted(values, reverse=direction == "descending")
        assert len(values) == 39

    def test_filters_by_numbers_and_texts(self, page, cohort):
        page.open(cohort / "group.html")
        ssim = rounded(metrics_dataset(open_cohort(cohort).records).ssim.sel(source="mri").values)
        expected = int(np.sum((ssim > 0.7) & (ssim <= 0.75)))
        put(page, "[aria-label='filter ssim mri']", "0.7..0.75")
        assert page.find("#found").text == f"{expected} of 40 scans"
        put(page, "[aria-label='filter ssim mri']", "> 0.7")
        assert page.find("#found").text == f"{int(np.sum(ssim > 0.7))} of 40 scans"
        put(page, "[aria-label='filter site']", "turku")
        assert set(column_of(page, "site")) == {"Turku"}
        put(page, "[aria-label='filter site']", "")
        put(page, "[aria-label='filter ssim mri']", "much")
        assert "is not understood" in page.find("#found").text
        put(page, "[aria-label='filter ssim mri']", "")
        put(page, "[aria-label='filter psnr pet']", "n/a")
        assert column_of(page, "scan") == ["sub-00002_ses-01"]

    def test_finds_a_text_anywhere(self, page, cohort):
        page.open(cohort / "group.html")
        put(page, "#find", "sub-00007")
        assert column_of(page, "scan") == ["sub-00007_ses-01", "sub-00007_ses-02"]

    def test_saves_what_is_found(self, page, cohort, tmp_path):
        page.browser.execute_cdp_cmd(
            "Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
        )
        page.open(cohort / "group.html")
        put(page, "#find", "sub-00002")
        page.find("#save").click()
        saved = tmp_path / "scans.tsv"
        until = time.monotonic() + 30
        while time.monotonic() < until and not (saved.exists() and saved.stat().st_size):
            page.wait("true")
        head, *lines = [line.split("\t") for line in saved.read_text().splitlines()]
        found = [dict(zip(head, line, strict=True)) for line in lines]
        assert [item["scan"] for item in found] == ["sub-00002_ses-01", "sub-00002_ses-02"]
        assert found[0]["psnr_pet"] == "n/a"
        assert found[0]["psnr_mri"] == "inf"


class TestOutliers:
    def test_are_those_of_a_direct_computation(self, page, cohort):
        page.open(cohort / "group.html")
        put(page, "#threshold", "2.5")
        choose(page, "#outlier-figure", "structural similarity, MRI")
        metrics = metrics_dataset(open_cohort(cohort).records)
        z = robust_z(rounded(metrics.ssim.sel(source="mri").values))
        order = np.argsort(-np.abs(z))
        expected = [str(metrics.scan.values[n]) for n in order if np.abs(z[n]) > 2.5]
        assert [scan for scan, _ in outliers(page)] == expected
        assert expected[0] == ODD

    def test_a_lower_threshold_finds_more(self, page, cohort):
        page.open(cohort / "group.html")
        found = []
        for threshold in ("8", "3.5", "1.5"):
            put(page, "#threshold", threshold)
            found.append(len(outliers(page)))
            crosses = "return [...document.querySelectorAll('#panels .odd')].length"
            assert (page.do(crosses) > 0) == (found[-1] > 0)
        assert found[0] < found[1] < found[2]
        assert [ODD, "structural similarity, MRI"] in outliers(page)
        put(page, "#threshold", "1000")
        assert page.find("#outlier-count").text == "No figure is beyond 1000."

    def test_lead_to_the_page_of_the_scan(self, page, cohort):
        page.open(cohort / "group.html")
        link = page.find("#outlier-table tbody tr:first-child a")
        assert link.text == ODD
        link.click()
        page.wait(f"document.title === '{ODD}'")

    def test_without_pages_there_are_names_and_no_links(self, page, large):
        page.open(large / "group.html")
        assert texts(page, "#outlier-table tbody a") == []
        assert outliers(page)[0][0] == ODD


class TestDistributions:
    def test_are_by_what_a_person_chooses(self, page, cohort):
        page.open(cohort / "group.html")
        rows = "figure[data-figure=ssim_mri] svg > text:not(.soft)"
        assert texts(page, rows) == ["Aarhus", "Bergen", "Turku", "n/a"]  # by site at first
        choose(page, "#group", "session id")
        assert texts(page, rows) == ["ses-01", "ses-02"]
        choose(page, "#group", "nothing: all scans")
        assert texts(page, rows) == ["all"]
        said = page.find("figure[data-figure=ssim_mri] svg").get_attribute("aria-label")
        ssim = rounded(metrics_dataset(open_cohort(cohort).records).ssim.sel(source="mri").values)
        median = float(re.search(r"median ([0-9.]+)", said)[1])
        assert median == pytest.approx(np.median(ssim), rel=1e-2)
        assert said.endswith("n 40.")

    def test_numbers_are_drawn_over_or_in_quarters(self, page, cohort):
        page.open(cohort / "group.html")
        choose(page, "#group", "age")
        said = page.find("figure[data-figure=ssim_mri] svg").get_attribute("aria-label")
        assert said == "structural similarity, MRI over age, 38 scans"
        page.find("#bin").click()
        assert len(texts(page, "figure[data-figure=ssim_mri] svg > text:not(.soft)")) == 5

    def test_all_figures_are_there(self, page, cohort):
        page.open(cohort / "group.html")
        few = len(texts(page, "#panels figure"))
        choose(page, "#which", "all figures")
        assert len(texts(page, "#panels figure")) == 23 > few
        (psnr,) = texts(page, "figure[data-figure=psnr_mri]")
        assert "1 without a finite figure" in psnr

    def test_a_dot_says_which_scan_it_is(self, page, cohort):
        page.open(cohort / "group.html")
        page.do(
            """const picture = document.querySelector("figure[data-figure=ssim_mri] svg");
            const place = picture.places.find(([, , scan]) => packed.labels[scan] === arguments[0]);
            const [x, y] = place;
            const box = picture.getBoundingClientRect();
            const scale = box.width / 420;
            picture.dispatchEvent(new MouseEvent("click",
              {clientX: box.left + x * scale, clientY: box.top + y * scale}))""",
            ODD,
        )
        (said,) = texts(page, "figure[data-figure=ssim_mri] .pointed")
        assert said.startswith(f"{ODD}: 0.3, z ")


class TestPage:
    @pytest.mark.parametrize("size", ["desktop", "phone"])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_is_accessible_asks_for_nothing_and_fits(self, page, cohort, size, scheme):
        page.open(cohort / "group.html", size=size, scheme=scheme)
        page.picture(f"cohort-{size}-{scheme}")
        assert page.do(f"return {ALL_WIDTH}") <= {"desktop": 1400, "phone": 390}[size]
        assert page.complaints() == []
        assert page.requests() == []
        choose(page, "#which", "all figures")
        choose(page, "#columns", "all")
        assert page.do(f"return {ALL_WIDTH}") <= {"desktop": 1400, "phone": 390}[size]
        assert page.violations() == []

    def test_on_paper(self, page, large):
        page.open(large / "group.html")
        choose(page, "#rows", "1000")
        printed = page.browser.execute_cdp_cmd(
            "Page.printToPDF", {"printBackground": True, "preferCSSPageSize": True}
        )
        paper = base64.b64decode(printed["data"])
        (page.folder / "cohort.pdf").write_bytes(paper)
        assert len(re.findall(rb"/Type\s*/Page\b", paper)) < 20  # not 1,000 rows
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        shown = page.do(
            "return [...document.querySelectorAll('#scan-table tbody tr')]"
            ".filter((row) => row.offsetParent).length"
        )
        assert shown == 50
        assert page.find(".paper").is_displayed()
        page.picture("cohort-paper")
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})

    def test_of_5000_scans_works(self, page, large):
        began = time.perf_counter()
        page.open(large / "group.html")
        print(f"open and drawn: {time.perf_counter() - began:.2f} s")
        page.picture("cohort-5000")
        timed = (
            "const began = performance.now(); {}; document.body.offsetHeight; "
            "return performance.now() - began"
        )
        for what, script in {
            "sort": "document.querySelectorAll('#scan-table thead button')[5].click()",
            "filter": "table.find = 'turku'; chooseRows(); showRows()",
            "group": "choice('group').value = '1'; showPanels()",
            "threshold": "choice('threshold').value = 3; showPanels(); showOutliers(); showRows()",
        }.items():
            print(f"{what}: {page.do(timed.format(script)):.0f} ms")
        put(page, "#find", "")
        assert page.find("#found").text == "5,000 of 5,000 scans"
        press(page, "scan")
        assert column_of(page, "scan")[0] == "sub-00000_ses-01"
        press(page, "scan")
        assert column_of(page, "scan")[0] == "sub-02499_ses-02"
        page.find("#next").click()
        assert page.find("#place").text == "51 to 100"
        assert column_of(page, "scan")[0] == "sub-02474_ses-02"
        put(page, "[aria-label='filter site']", "bergen")
        assert page.find("#found").text == "1,666 of 5,000 scans"
        assert page.complaints() == []


def test_of_two_ways_groups_by_method_and_sets_them_side_by_side(page, tmp_path):
    made = [record(n) for n in range(20)]
    made += [record(n, request="e" * 64, method={"name": "average"}) for n in range(20, 30)]
    page.open(write_cohort_report(write_output(tmp_path / "out", made)))
    rows = texts(page, "figure[data-figure=ssim_mri] svg > text:not(.soft)")
    assert rows == ["average", "dwt-vgg19-l1"]
    assert "about different scans" in page.find("#compared").text
    page.picture("cohort-two-ways")
    assert page.complaints() == []
    assert page.violations() == []


def test_of_a_cohort_that_has_no_scan_yet(page, tmp_path):
    paths = write_output(tmp_path / "out", [])
    write_attempt(paths, Attempt("sub-01", "failed", "<b>why</b>", "StoreError"))
    write_index(paths)
    page.open(write_cohort_report(paths))
    assert "<b>why</b>" in page.find("#trouble").text
    assert page.find("#found").text == "0 of 0 scans"
    assert page.complaints() == []
