"""``scan.fusionflow``: the common questions to a scan."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from nibabel.orientations import aff2axcodes

import fusionflow as ff
from fusionflow import accessor
from fusionflow.errors import ConfigurationError, MissingExtraError, SchemaError
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS
from fusionflow.overlay import pet_on_mri


@pytest.fixture(scope="module")
def scan(fused):
    return ff.open_cohort(fused[0]).scan("sub-02_ses-baseline")


class TestRegistered:
    @pytest.mark.parametrize("name", ["open_cohort", "fuse"])
    def test_by_whatever_gives_scans(self, name):
        code = f"import fusionflow as ff; ff.{name}; import xarray; xarray.Dataset().fusionflow"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    def test_on_what_fuse_returns(self, scan):
        lazy = ff.fuse(scan, "dwt-max")
        assert isinstance(lazy.fusionflow, accessor.ScanAccessor)
        assert set(lazy.fusionflow.metrics.metric) >= {"ssim", "entropy_fused"}


class TestToNifti:
    def test_lies_where_the_published_file_lies(self, fused, scan, tmp_path):
        out, _, _ = fused
        path = scan.fusionflow.to_nifti(tmp_path / "fused.nii.gz")
        ours, theirs = (
            nib.as_closest_canonical(nib.load(item))
            for item in (path, next(out.glob("sub-02/**/*_fused.nii.gz")))
        )
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-5)
        np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
        assert ours.get_data_dtype() == np.float32
        assert aff2axcodes(nib.load(path).affine) == ("R", "A", "S")

    @pytest.mark.parametrize("variable", ["mri", "pet", "mask"])
    def test_any_volume(self, scan, variable, tmp_path):
        image = nib.load(scan.fusionflow.to_nifti(tmp_path / "a.nii", variable))
        np.testing.assert_array_equal(image.get_fdata(), scan[variable].values.T)
        assert image.header["descrip"] == f"fusionflow {variable}".encode()

    def test_in_colour(self, scan, tmp_path):
        image = nib.load(scan.fusionflow.to_nifti(tmp_path / "a.nii.gz", "overlay"))
        colours = np.asarray(image.dataobj)
        expected = pet_on_mri(scan.mri.values, scan.pet.values)
        np.testing.assert_array_equal(
            np.stack([colours[c] for c in "RGB"], -1), expected.swapaxes(0, 2)
        )

    def test_what_cannot_be_written_is_refused(self, scan, tmp_path):
        with pytest.raises(ConfigurationError, match=r"fused\.mgz is no name of a NIfTI"):
            scan.fusionflow.to_nifti(tmp_path / "fused.mgz")
        with pytest.raises(SchemaError, match="no variable 'lesion'"):
            scan.fusionflow.to_nifti(tmp_path / "a.nii", "lesion")
        with pytest.raises(SchemaError, match=r"no attribute 'affine'.*assign_attrs"):
            scan.drop_attrs().fusionflow.to_nifti(tmp_path / "a.nii")
        assert not list(tmp_path.iterdir())


class TestOverlay:
    def test_is_lazy_and_the_same(self, scan):
        overlay = scan.fusionflow.overlay()
        assert overlay.chunks is not None
        assert overlay.dims == ("z", "y", "x", "rgb")
        expected = pet_on_mri(scan.mri.values, scan.pet.values)
        np.testing.assert_array_equal(overlay.values, expected)
        np.testing.assert_array_equal(scan.compute().fusionflow.overlay().values, expected)


class TestPlot:
    @pytest.mark.parametrize(
        ("plane", "dims"),
        [("axial", ("y", "x")), ("coronal", ("z", "x")), ("sagittal", ("z", "y"))],
    )
    def test_shows_the_slice_of_each_image(self, scan, plane, dims):
        pytest.importorskip("matplotlib")
        figure = scan.fusionflow.plot(20, plane=plane)
        titles = [axis.get_title() for axis in figure.axes]
        assert titles == ["MRI", "PET", "Fused", "PET on MRI"]
        (cut,) = {"z", "y", "x"} - set(dims)
        for axis, name in zip(figure.axes, ("mri", "pet", "fused"), strict=False):
            (picture,) = axis.get_images()
            expected = scan[name].isel({cut: 20}).transpose(*dims).values
            np.testing.assert_array_equal(picture.get_array(), expected)
            assert picture.origin == "lower"  # front, or top, is up

    def test_is_of_the_middle_of_the_head_by_default(self, scan):
        pytest.importorskip("matplotlib")
        inside = np.flatnonzero(scan.mask.any(["y", "x"]).values)
        title = scan.fusionflow.plot().get_suptitle()
        assert title == f"sub-02_ses-baseline z = {inside[len(inside) // 2]}"

    def test_a_slab_of_few_slices_stays_on_the_screen(self, scan):
        pytest.importorskip("matplotlib")
        flat = scan.isel(z=slice(20, 21)).fusionflow.plot(plane="coronal")
        assert flat.get_size_inches()[0] <= 4 * 2 * 3.2
        assert flat.get_size_inches()[1] < 1.5

    def test_what_is_not_there_is_refused(self, scan):
        pytest.importorskip("matplotlib")
        with pytest.raises(ConfigurationError, match=r"'oblique' is no plane.*axial"):
            scan.fusionflow.plot(plane="oblique")
        with pytest.raises(ConfigurationError, match=r"no axial slice 41\. 0 to 40"):
            scan.fusionflow.plot(41)

    def test_without_matplotlib_it_names_the_extra(self, scan, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
        with pytest.raises(MissingExtraError, match=r"fusionflow\[notebook\]"):
            scan.fusionflow.plot()


class TestMetrics:
    def test_are_tidy(self, scan):
        table = scan.fusionflow.metrics
        assert list(table.columns) == ["z", "metric", "source", "value"]
        assert len(table) == 41 * (2 * len(PAIR_METRICS) + len(IMAGE_METRICS))
        chosen = table.query("z == 20 and metric == 'ssim' and source == 'pet'").value.item()
        assert chosen == scan.metrics.sel(source="pet", metric="ssim").isel(z=20).values
        whole = table.query("z == 20 and metric == 'entropy_fused'")
        assert whole.source.tolist() == [""]

    def test_of_a_scan_without_any(self, scan):
        with pytest.raises(SchemaError, match="no variable 'metrics'"):
            _ = scan[["mri", "pet"]].fusionflow.metrics


def test_voxel_size(scan):
    affine = np.array(scan.attrs["affine"])
    assert scan.fusionflow.voxel_size == pytest.approx(nib.affines.voxel_sizes(affine)[::-1])
    assert xr.Dataset().fusionflow.voxel_size == (1, 1, 1)
