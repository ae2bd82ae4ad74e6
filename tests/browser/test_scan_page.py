"""The report of a scan in a real browser: what moves, what is asked for, what axe-core finds."""

import base64
import io

import numpy as np
import pytest
from made_scans import SHAPE, head, publish_scan
from PIL import Image

from fusionflow.report.scan import write_scan_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("out")
    scan = publish_scan(
        root, lambda mri, pet: 0.25 * mri + 0.75 * pet, label="sub-<b>01", method="dwt-vgg19",
        notes=("A note with a longwordthat" + "goesonandon" * 12 + " & <i>marks</i>",),
        conformed={"Alignment": {"mode": "header", "flagged": True, "registration": None}},
    )  # fmt: skip
    return write_scan_report(root, scan.label)


@pytest.fixture
def opened(page, report):
    """Open the report and wait until its slices are drawn."""

    def open_(**options):
        page.open(report, **options)
        page.wait("document.documentElement.dataset.ready === 'yes'")
        return page

    return open_


def canvas(page, css):
    """Return what a canvas shows, (rows, columns, 3)."""
    uri = page.do("return document.querySelector(arguments[0]).toDataURL('image/png')", css)
    content = io.BytesIO(base64.b64decode(uri.partition(",")[2]))
    return np.asarray(Image.open(content).convert("RGB")).astype(int)


def slide(page, css, value):
    page.do(
        "const input = document.querySelector(arguments[0]); input.value = arguments[1];"
        "input.dispatchEvent(new Event('input', {bubbles: true}))", css, value,
    )  # fmt: skip


def shows(page, plane, image, number):
    """Check that a canvas shows a slice: its pixels are those of the picture of it."""
    assert page.do("return scan.planes[arguments[0]].at[place[arguments[0]]]", plane) == number
    page.do("return draw(arguments[0])", plane)
    uri = page.do(
        "return scan.planes[arguments[0]][arguments[1]][place[arguments[0]]]", plane, image
    )
    expected = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB")
    seen = canvas(page, f".four canvas[data-plane={plane}][data-image={image}]")
    assert np.abs(seen - np.asarray(expected).astype(int)).max() <= 2  # two decoders of WebP


def test_asks_for_nothing_and_complains_of_nothing(opened):
    page = opened()
    page.do("document.getElementById('volume').open = true")
    page.wait("document.getElementById('volume').dataset.ready")
    assert page.requests() == []
    assert page.complaints() == []
    assert page.do("return document.querySelectorAll('b, i').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_is_accessible_and_fits(opened, size, scheme):
    page = opened(size=size, scheme=scheme)
    page.do("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    page.wait("document.getElementById('volume').dataset.ready")
    page.picture(f"scan-{size}-{scheme}")
    assert page.violations() == []
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.do(wide) <= 0


def test_sliders_move_all_pictures_of_a_plane(opened):
    page = opened()
    before = canvas(page, ".four canvas[data-plane=axial][data-image=mri]")
    slide(page, "#slices-axial", 3)
    number = page.do("return scan.planes.axial.at[3]")
    shows(page, "axial", "mri", number)
    for image in ("pet", "fused"):
        shows(page, "axial", image, number)
    assert (canvas(page, ".four canvas[data-plane=axial][data-image=mri]") != before).any()
    assert page.find("#registration-axial").get_attribute("value") == "3"
    assert f"slice {number} of" in page.find("#slices-axial").get_attribute("aria-valuetext")


def test_left_is_left(opened):
    page = opened()
    _, pet, _ = head()
    z = int(np.unravel_index(pet.argmax(), SHAPE)[0])
    page.do("return goToSlice('axial', arguments[0])", z)
    seen = canvas(page, ".four canvas[data-plane=axial][data-image=pet]")[..., 0]
    assert np.abs(seen - np.clip(pet[z, ::-1] * 255, 0, 255)).mean() < 4
    row, column = np.unravel_index(seen.argmax(), seen.shape)
    assert column < seen.shape[1] / 2
    assert row < seen.shape[0] / 2  # front up


def test_a_click_in_a_picture_moves_the_other_planes(opened):
    page = opened()
    page.do(
        "const canvas = document.querySelector('.four canvas[data-plane=axial]');"
        "const box = canvas.getBoundingClientRect();"
        "canvas.dispatchEvent(new MouseEvent('click', {bubbles: true,"
        "clientX: box.left + box.width * 0.25, clientY: box.top + box.height * 0.25}))"
    )
    at = page.do("return ['sagittal', 'coronal'].map((p) => scan.planes[p].at[place[p]])")
    assert at == [round(0.25 * (SHAPE[2] - 1)), round(0.75 * (SHAPE[1] - 1))]


def test_wipe_and_swap_and_flicker(opened):
    page = opened()
    over = "document.getElementById('over').style.clipPath"
    slide(page, "#wipe", 30)
    assert page.do(f"return {over}") == "inset(0px 0px 0px 30%)"
    page.find("#swap").click()
    assert page.do(f"return {over}") == "inset(0px 0px 0px 0%)"
    assert page.find("#compare-said").text == "fused"
    page.find("#swap").click()
    assert page.find("#compare-said").text == "MRI"
    assert page.find("#flicker").get_attribute("aria-pressed") == "false"
    slide(page, "#rate", 3)
    page.do("document.querySelector('.compared').focus()")
    page.browser.switch_to.active_element.send_keys("f")
    assert page.find("#flicker").get_attribute("aria-pressed") == "true"
    for words in ("fused", "MRI", "fused"):
        page.wait(f"document.getElementById('compare-said').textContent === '{words}'", 5)
    page.browser.switch_to.active_element.send_keys("f")
    assert page.do(f"return {over}") == "inset(0px 0px 0px 30%)"


def test_does_not_flicker_where_less_motion_is_wished(opened):
    page = opened()
    media = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
    page.find("#flicker").click()
    assert page.find("#flicker").get_attribute("aria-pressed") == "false"
    assert page.find("#compare-said").text == "fused"


def test_compares_any_two_in_any_plane(opened):
    page = opened()
    for name, value in (("plane", "sagittal"), ("under", "pet"), ("over", "overlay")):
        page.do(
            "const choice = document.getElementById(arguments[0]); choice.value = arguments[1];"
            "choice.dispatchEvent(new Event('change'))", f"compare-{name}", value,
        )  # fmt: skip
    for ours, same in (("under", "pet"), ("over", "overlay")):
        theirs = f".four canvas[data-plane=sagittal][data-image={same}]"
        assert (canvas(page, f"#{ours}") == canvas(page, theirs)).all()
    slide(page, "#compare-at", 2)
    assert page.do("return place.sagittal") == 2
    assert page.find(".compared .left").text == "back"


def test_checkerboard_is_of_both_and_outlines_are_of_the_pet(opened):
    page = opened()
    mri, pet, fields, lines = (
        canvas(page, f"canvas[data-plane=axial][data-image={image}]")
        for image in ("mri", "pet", "checkerboard", "contour")
    )
    of_mri, of_pet = ((fields == image).all(axis=-1) for image in (mri, pet))
    assert (of_mri | of_pet).all()
    assert not of_mri.all()
    assert not of_pet.all()
    drawn = (lines != mri).any(axis=-1)
    assert drawn.any()
    assert (pet[drawn] >= 64).all()


def test_a_chart_leads_to_its_slice(opened):
    page = opened()
    chart = page.find(".chart[data-metric=ssim]")
    page.do(
        "const chart = arguments[0]; const box = chart.getBoundingClientRect();"
        "chart.dispatchEvent(new MouseEvent('click', {clientX: box.left + box.width * 0.3,"
        "clientY: box.top + 5}))", chart,
    )  # fmt: skip
    assert page.do("return scan.planes.axial.at[place.axial]") == round(0.3 * (SHAPE[0] - 1))
    before = int(chart.get_attribute("aria-valuenow"))
    chart.send_keys("\ue014")  # right arrow
    assert int(chart.get_attribute("aria-valuenow")) == before + 1
    assert f"slice {before + 1}: MRI 0." in chart.get_attribute("aria-valuetext")


def test_bands_follow_the_slice(opened):
    page = opened()
    buttons = page.browser.find_elements("css selector", "[data-bands]")
    buttons[0].click()
    place = int(buttons[0].get_attribute("data-bands"))
    assert page.do("return place.axial") == place
    shown = page.do(
        "return [...document.querySelectorAll('[data-panel]')].filter((p) => !p.hidden)"
        ".map((p) => Number(p.dataset.panel))"
    )
    assert shown == [place]


def test_volumes_are_drawn_with_left_on_the_left(opened):
    page = opened()
    page.do("document.getElementById('volume').open = true")
    page.wait("document.getElementById('volume').dataset.ready === 'yes'")
    page.do(
        "for (const [id, value] of [['volume-image', 'pet'], ['volume-view', 'axial']]) {"
        "const input = document.getElementById(id); input.value = value;"
        "input.dispatchEvent(new Event('change')) }"
    )
    slide(page, "#volume-pet", 0)
    page.wait("document.getElementById('volume').viewer.volumes[0].name === 'pet.nii.gz'")
    uri = page.do(
        "const { viewer } = document.getElementById('volume');"
        "viewer.opts.isOrientationTextVisible = false; viewer.opts.crosshairWidth = 0;"
        "viewer.drawScene(); return document.getElementById('niivue').toDataURL('image/png')"
    )
    content = io.BytesIO(base64.b64decode(uri.partition(",")[2]))
    seen = np.asarray(Image.open(content).convert("L")).astype(int)
    assert seen.max() > 100
    _, column = np.unravel_index(seen.argmax(), seen.shape)
    columns = np.flatnonzero((seen > 30).any(axis=0))
    assert column < columns.mean()


def test_says_so_where_there_is_no_webgl(opened):
    page = opened()
    page.do(
        "const real = HTMLCanvasElement.prototype.getContext;"
        "HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {"
        "return kind === 'webgl2' ? null : real.call(this, kind, ...rest) };"
        "document.getElementById('volume').open = true"
    )
    page.wait("document.getElementById('volume-said').textContent.includes('no WebGL 2')")


def test_paper_has_the_middle_slices(opened):
    page = opened()
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        visible = "return getComputedStyle(document.querySelector('%s')).display !== 'none'"
        assert page.do(visible % ".paper")
        assert not page.do(visible % "#comparing")
        page.picture("scan-print")
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
