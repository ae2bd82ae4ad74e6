"""A scan in three planes, as a notebook and a page of its own show it."""

import numpy as np
import pytest
import xarray as xr

import fusionflow as ff
from fusionflow.phantom import make_phantom

pytestmark = pytest.mark.browser

BRIGHTEST = """
const canvas = document.querySelectorAll("canvas")[arguments[0]];
const { width, height } = canvas;
const levels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
let best = 0;
for (let i = 0; i < levels.length; i += 4) if (levels[i] > levels[best]) best = i;
const place = best / 4;
return [(place % width) / width, Math.floor(place / width) / height];
"""


def in_planes(**volumes):
    return xr.Dataset(
        {name: (("z", "y", "x"), values.astype(np.float32)) for name, values in volumes.items()},
        attrs={"affine": np.diag([3.0, 3.0, 3.0, 1.0]).tolist(), "label": "sub-01"},
    )


@pytest.fixture(scope="module")
def head():
    t1w = make_phantom(1, shape=(56, 68, 56)).t1w.T.astype(float)
    t1w /= np.quantile(t1w, 0.995)
    return in_planes(mri=t1w, pet=np.roll(t1w, 9, 2), fused=t1w)


@pytest.fixture
def opened(page, tmp_path):
    def open_(scan, **how):
        page.open(ff.view(scan).save(tmp_path / "view.html"), **how)
        page.wait("document.body.dataset.ready === 'yes'")
        return page

    return open_


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_shows_itself_and_asks_for_nothing(head, opened, size):
    page = opened(head, size=size)
    page.picture(f"view-{size}")
    assert page.requests() == []
    assert page.complaints() == []
    wide = page.do("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]


def test_axe_finds_nothing_serious(head, opened):
    assert opened(head).violations() == []


def test_front_and_top_are_up_and_left_is_left(opened):
    spot = np.zeros((40, 40, 40))
    spot[30, 36, 4] = 1  # up, in front, at the left
    page = opened(in_planes(mri=spot, pet=spot))
    page.find("button[value=mri]").click()
    for slider, place in zip(
        page.browser.find_elements("css selector", "input"), (30, 36, 4), strict=True
    ):
        page.do(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
            slider, place,
        )  # fmt: skip
    near = {"rel": 0, "abs": 0.03}
    assert page.do(BRIGHTEST, 0) == pytest.approx([4 / 40, 3 / 40], **near)  # axial
    assert page.do(BRIGHTEST, 1) == pytest.approx([4 / 40, 9 / 40], **near)  # coronal
    assert page.do(BRIGHTEST, 2) == pytest.approx(
        [36 / 40, 9 / 40], **near
    )  # sagittal: front right
    captions = [item.text for item in page.browser.find_elements("css selector", "figcaption")]
    assert captions == ["axial, z = 30", "coronal, y = 36", "sagittal, x = 4"]


def test_a_click_goes_there(head, opened):
    page = opened(head)
    page.do(
        "const f = document.querySelector('canvas').getBoundingClientRect();"
        "document.querySelector('canvas').dispatchEvent(new MouseEvent('click',"
        "{clientX: f.left + f.width * 14.5 / 56, clientY: f.top + f.height * 17.5 / 68}))"
    )
    captions = [item.text for item in page.browser.find_elements("css selector", "figcaption")]
    assert captions == ["axial, z = 28", "coronal, y = 50", "sagittal, x = 14"]


def test_images_beside_each_other_are_the_same_slice(head, opened):
    page = opened(head)
    page.find("button[value=all]").click()
    page.picture("view-all")
    captions = [item.text for item in page.browser.find_elements("css selector", "figcaption")]
    assert captions == [f"{name}, z = 28" for name in ("MRI", "PET", "Fused", "PET on MRI")]


def test_a_notebook_shows_it_in_a_frame(head, page, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text("<!doctype html><title>n</title>" + ff.view(head)._repr_html_())
    page.open(path)
    page.browser.switch_to.frame(page.find("iframe"))
    page.wait("document.body.dataset.ready === 'yes'")
    fits = page.do("return [document.documentElement.scrollHeight, innerHeight]")
    page.browser.switch_to.default_content()
    page.picture("view-in-a-notebook")
    assert fits[0] <= fits[1]
    assert page.requests() == []
