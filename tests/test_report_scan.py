"""The report of a scan: made from outputs alone, true to them, the same every time."""

import base64
import gzip
import io
import json
import re
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from made_scans import SHAPE, head, publish_scan
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

import fusionflow as ff
from fusionflow.config import METHODS, PIXELS, LaplacianPyramid, Wavelet
from fusionflow.errors import ScanNotFoundError, StoreError
from fusionflow.io.derivatives import scan_file_names
from fusionflow.io.store import open_volume
from fusionflow.ledger import OutputPaths
from fusionflow.report.bands import PALETTE, bands_of_slice, frame_width, weight_levels
from fusionflow.report.planes import Choice, head_box, look
from fusionflow.report.provenance import verdict
from fusionflow.report.scan import write_scan_report
from fusionflow.report.volumes import STEPS
from fusionflow.transform import decompose, reconstruct

Z = SHAPE[0] // 2


def script(html, name):
    return re.search(rf'<script[^>]* id="{name}">(.*?)</script>', html, re.DOTALL)[1]


def picture(uri):
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(image.convert("RGB"))


def weights(html):
    """Pictures of weights by band, of the slices in order."""
    found = re.findall(r'data-weight="(\w+)"[^>]*src="([^"]+)"|src="([^"]+)"[^>]*data-weight', html)
    return [(name, picture(uri)) for name, uri, _ in found]


def report_of(root, *arguments, **options):
    scan = publish_scan(root, *arguments, **options)
    return write_scan_report(root, scan.label).read_text()


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    return report_of(tmp_path_factory.mktemp("out"))


class TestWeights:
    @pytest.mark.parametrize(
        "transform", [PIXELS, Wavelet(), Wavelet(name="bior4.4", levels=2), Wavelet(name="haar")]
    )
    def test_are_those_that_the_rule_gave(self, transform):
        mri, pet, _ = head((1, 121, 128))
        mri += np.random.default_rng(0).random(mri.shape, np.float32)
        rng = np.random.default_rng(1)
        of_mri, of_pet = decompose(mri, transform), decompose(pet, transform)
        given = [rng.random(m.shape, np.float32) for _, _, m in of_mri.bands()]
        fused = of_mri.with_bands(
            w * m + (1 - w) * p
            for w, (_, _, m), (_, _, p) in zip(given, of_mri.bands(), of_pet.bands(), strict=True)
        )
        found = bands_of_slice(mri[0], pet[0], reconstruct(fused, transform)[0], transform)
        for band, weight in zip(found, given, strict=True):
            known = np.isfinite(band.weight)
            assert known.mean() > 0.25
            assert_allclose(band.weight[known], weight[0][known], atol=2e-3)

    @pytest.mark.parametrize("share", [0.25, 0.0, 1.0])
    @pytest.mark.parametrize(
        "transform", [PIXELS, Wavelet(), LaplacianPyramid(kind="laplacian", levels=3)]
    )
    def test_of_a_mixture_are_the_same_everywhere(self, share, transform):
        mri, pet, _ = head()
        fused = np.float32(share) * mri[Z] + np.float32(1 - share) * pet[Z]
        for band in bands_of_slice(mri[Z], pet[Z], fused, transform):
            known = np.isfinite(band.weight)
            assert known.any()
            assert_allclose(band.weight[known], share, atol=1e-3)
            assert band.share == pytest.approx(share, abs=1e-3)

    def test_are_unknown_where_the_sources_agree(self):
        mri, _, _ = head()
        for band in bands_of_slice(mri[Z], mri[Z], mri[Z], Wavelet()):
            assert np.isnan(band.weight).all()
            assert np.isnan(band.share)

    def test_are_unknown_at_the_frame(self):
        rng = np.random.default_rng(0)
        mri, pet = rng.random((2, 32, 32), np.float32)
        width = frame_width(Wavelet(), 1)
        band = bands_of_slice(mri, pet, mri, Wavelet())[0]
        assert width == 2
        assert np.isnan(band.weight[:width]).all()
        assert np.isfinite(band.weight[width:-width, width:-width]).mean() > 0.9

    def test_have_a_colour_each(self):
        colours = PALETTE[weight_levels(np.array([[0, 0.5, 1, np.nan, 7]], np.float32))[0]]
        assert colours[[0, 1, 2]].tolist() == [[217, 95, 14], [242, 242, 242], [33, 102, 172]]
        assert colours[3].tolist() == [88, 88, 88]
        assert_array_equal(colours[4], colours[2])

    @pytest.mark.parametrize(
        ("method", "colour"), [("mri", (33, 102, 172)), ("pet", (217, 95, 14))]
    )
    def test_of_one_source_are_of_one_colour_on_the_page(self, tmp_path, method, colour):
        html = report_of(tmp_path, lambda mri, pet: {"mri": mri, "pet": pet}[method], method=method)
        maps = weights(html)
        assert maps
        assert {name for name, _ in maps} == {"pixels0"}
        for _, image in maps:
            seen = {tuple(ink) for ink in image.reshape(-1, 3).tolist()}
            assert seen == {colour, (88, 88, 88)}


class TestPlanes:
    def test_are_seen_front_up_with_left_on_the_left(self):
        _, pet, mask = head()
        choice = Choice.of_head(SHAPE, head_box(mask, 5))
        shown = look(pet, choice, 7)
        hot = tuple(int(at) for at in np.unravel_index(pet.argmax(), SHAPE))
        seen = {"axial": (hot[1], hot[2]), "coronal": (hot[0], hot[2]), "sagittal": hot[:2]}
        for axis, (name, (up, across)) in enumerate(seen.items()):
            image = shown.slices[name][choice.places[axis].index(hot[axis])]
            row, column = np.unravel_index(image.argmax(), image.shape)
            assert (image.shape[0] - 1 - row, column) == (up, across)
        assert np.unravel_index(shown.small.argmax(), shown.small.shape) == hot

    def test_do_not_depend_on_how_slabs_are_cut(self):
        mri, _, mask = head()
        choice = Choice(SHAPE, (range(3, 30, 4), range(48), range(5, 20)), (5, 3, 2))
        whole, parts = (look(mri, choice, slab) for slab in (SHAPE[0], 3))
        for name, slices in whole.slices.items():
            assert_array_equal(slices, parts.slices[name])
        assert_array_equal(whole.small, parts.small)
        assert head_box(mask, 36) == head_box(mask, 5)

    def test_smaller_copy_is_of_means(self):
        volume = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3) / 60
        choice = Choice(volume.shape, (range(1), range(1), range(1)), (2, 3, 2))
        small = look(volume, choice, 2).small
        assert small.shape == (3, 2, 2)
        assert small[0, 0, 0] == round(float(volume[:2, :3, :2].mean()) * 255)
        assert small[2, 1, 1] == round(float(volume[4:, 3:, 2:].mean()) * 255)

    def test_large_slices_are_halved(self):
        volume = np.ones((2, 600, 1100), np.float32)
        volume[:, :, 550:] = 0
        choice = Choice.of_head(volume.shape, head_box(volume, 2))
        axial = look(volume, choice, 2).slices["axial"]
        assert axial.shape[1:] == (200, 367)
        assert (axial[0, :, 0] == 255).all()
        assert (axial[0, :, -1] == 0).all()

    def test_an_empty_mask_shows_the_frame(self):
        assert head_box(np.zeros(SHAPE, np.uint8), 5) == tuple((0, n - 1) for n in SHAPE)

    def test_of_a_large_volume_are_held_and_nothing_else(self, tmp_path):
        shape = (96, 160, 160)
        scan = publish_scan(tmp_path, shape=shape)
        volume = open_volume(OutputPaths(tmp_path).version(scan.label, scan.version), "mri")
        choice = Choice.of_head(shape, ((0, 95), (0, 159), (0, 159)))
        tracemalloc.start()
        look(volume, choice, 24)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        shown = sum(
            len(places) * int(np.prod(shape)) // shape[axis]
            for axis, places in enumerate(choice.places)
        )
        small = 4 * int(np.prod([-(-n // b) for n, b in zip(shape, choice.block, strict=True)]))
        slab = 24 * 160 * 160 * 4
        assert peak < shown * 2 + small * 3 + slab * 3


class TestPage:
    def test_asks_for_nothing(self, html):
        text = html.replace(script(html, "niivue-program"), "")
        for kind in ("src", "href"):
            assert all(
                at.startswith(("data:", "#"))
                or at == "../../../group.html"  # of a session, to be clicked
                for at in re.findall(rf'\b{kind}="(.*?)"', text)
            )
        assert not re.search(r"https?://|@import|url\(", text.partition("<pre")[0])
        assert "connect-src data: blob:" in text

    def test_holds_the_slices(self, html):
        planes = json.loads(script(html, "scan-data"))["planes"]
        _, pet, mask = head()
        first, last = head_box(mask, 36)[0]
        assert planes["axial"]["at"] == list(range(first, last + 1))
        middle = picture(planes["axial"]["pet"][Z - first])[..., 0]
        expected = np.clip(pet[Z, ::-1] * 255, 0, 255)
        assert np.abs(middle - expected).mean() < 3

    def test_holds_the_volumes_where_they_lie(self, html):
        content = gzip.decompress(base64.b64decode(script(html, "volume-pet-data")))
        image = nib.Nifti1Image.from_bytes(content)
        _, pet, _ = head()
        assert_allclose(image.affine[:3], [[2, 0, 0, -40], [0, 2, 0, -50], [0, 0, 3, -60]])
        assert_allclose(image.get_fdata(), np.clip(pet.T, 0, 1), atol=0.8 / STEPS)

    def test_holds_the_program_and_its_licences(self, html):
        program = gzip.decompress(base64.b64decode(script(html, "niivue-program")))
        assert program.startswith(b"(function(")
        assert "Copyright (c) 2021, Niivue" in html

    def test_says_what_was_done(self, html):
        for words in ("dwt-max", "ab" * 32, "a-run", "host 1", "transform.name", "structural sim"):
            assert words in html

    def test_is_the_same_every_time(self, tmp_path):
        publish_scan(tmp_path)
        first, again = (write_scan_report(tmp_path, "sub-01_ses-a") for _ in range(2))
        content = first.read_bytes()
        assert first == again == tmp_path / "sub-01/ses-a/fused/sub-01_ses-a_fused.html"
        assert write_scan_report(tmp_path, "sub-01_ses-a").read_bytes() == content
        assert [path.name for path in first.parent.iterdir()] == [first.name]

    def test_is_among_the_files_that_another_version_of_the_scan_removes(self, tmp_path):
        publish_scan(tmp_path)
        path = write_scan_report(tmp_path, "sub-01_ses-a")
        assert path.name in scan_file_names("sub-01_ses-a")

    def test_shows_hostile_names_and_notes_as_text(self, tmp_path):
        bad = "<script>alert(1)<\\/script>&'\""
        html = report_of(
            tmp_path, label="sub-<b>01&", notes=(bad,), run=bad, worker=bad,
            inputs=(), conformed={bad: {bad: [bad]}},
        )  # fmt: skip
        assert "<script>alert" not in html
        assert "<b>" not in html
        assert html.count("&lt;script&gt;alert(1)") >= 4

    @pytest.mark.parametrize("method", list(METHODS))
    def test_is_made_for_every_method_without_its_network(self, tmp_path, method):
        html = report_of(tmp_path, method=method, shape=(20, 40, 36))
        names = {name for name, _ in weights(html)}
        bands = {"pixels0"} if method in ("mri", "pet", "average", "maximum") else {"a1", "h1"}
        if method == "laplacian":
            bands = {"a4", "l4", "l1"}
        if method.startswith("feature"):
            bands = {"pixels0"}
        assert bands <= names
        assert ("is no exact map here" in html) == (method == "laplacian")


class TestProblems:
    def test_no_such_scan(self, tmp_path):
        with pytest.raises(ScanNotFoundError, match="sub-99"):
            write_scan_report(tmp_path, "sub-99")

    def test_volumes_that_are_gone(self, tmp_path):
        scan = publish_scan(tmp_path)
        place = OutputPaths(tmp_path).version(scan.label, scan.version)
        (place / "fused" / "zarr.json").unlink()
        with pytest.raises(StoreError, match=r"0123456789abcdef/fused/zarr\.json is missing"):
            write_scan_report(tmp_path, scan.label)
        assert not list(tmp_path.rglob("*.html"))

    @pytest.mark.parametrize("array", ["metrics", "fused"])
    def test_numbers_that_are_gone(self, tmp_path, array):
        scan = publish_scan(tmp_path)
        place = OutputPaths(tmp_path).version(scan.label, scan.version)
        (lost,) = (path for path in (place / array / "c").rglob("*") if path.is_file())
        for lose in (lambda: lost.write_bytes(b""), lost.unlink):  # Zarr reads zeros in both cases
            lose()
            with pytest.raises(StoreError, match=f"{lost} is missing or damaged. Run fusionflow"):
                write_scan_report(tmp_path, scan.label)
            with pytest.raises(StoreError, match=f"{lost} is missing or damaged. Run fusionflow"):
                ff.open_cohort(tmp_path).scan(scan.label)

    def test_damaged_volumes(self, tmp_path):
        scan = publish_scan(tmp_path)
        place = OutputPaths(tmp_path).version(scan.label, scan.version)
        (shard,) = (path for path in (place / "pet" / "c").rglob("*") if path.is_file())
        content = bytearray(shard.read_bytes())
        content[len(content) // 3] ^= 0xFF
        shard.write_bytes(content)
        with pytest.raises(StoreError, match="Cannot read"):
            write_scan_report(tmp_path, scan.label)

    def test_a_record_that_leads_elsewhere(self, tmp_path):
        scan = publish_scan(tmp_path / "out", session="../../../elsewhere")
        with pytest.raises(StoreError, match="leads out of the output folder"):
            write_scan_report(tmp_path / "out", scan.label)

    def test_a_method_of_another_version(self, tmp_path):
        scan = publish_scan(tmp_path)
        method = {**scan.method, "unheard_of": 1}
        scan = publish_scan(tmp_path / "other", method="dwt-max", **{"label": "sub-02"})
        record = OutputPaths(tmp_path / "other").current("sub-02")
        record.write_text(json.dumps({**json.loads(record.read_text()), "method": method}))
        with pytest.raises(StoreError, match="a method that this version"):
            write_scan_report(tmp_path / "other", "sub-02")


class TestVerdict:
    @pytest.mark.parametrize(
        ("alignment", "mood", "words"),
        [
            ({"mode": "header", "flagged": True}, "warn", "Look at the alignment"),
            ({"mode": "rigid", "registration": {"displacement_mm": 3.21}}, "good", "by 3.2 mm"),
            ({"mode": "header", "registration": {"displacement_mm": 0.5}}, "good", "to 0.5 mm"),
            ({"mode": "header", "registration": None}, "soft", "no registration was tried"),
            ({"mode": "none"}, "soft", "voxel for voxel"),
            (None, "soft", "not recorded"),
        ],
    )
    def test_says_what_to_think_of_the_registration(self, tmp_path, alignment, mood, words):
        conformed = {} if alignment is None else {"Alignment": alignment}
        found = verdict(publish_scan(tmp_path, shape=(8, 32, 32), conformed=conformed))
        assert found.mood == mood
        assert words in found.words
