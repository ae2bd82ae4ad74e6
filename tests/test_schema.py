"""A dataset has the variables it must have, or the error says which it lacks."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from fusionflow import schema
from fusionflow.errors import SchemaError
from fusionflow.metrics import SOURCES as METRIC_SOURCES
from fusionflow.schema import CONFORMED, PUBLISHED, Variable, validate


def conforming(variables, **dtypes):
    """Return a dataset that has `variables` as they are stored."""
    sizes = {"z": 2, "y": 3, "x": 4, "source": 2, "metric": 5, "image_metric": 2}
    return xr.Dataset(
        {
            item.name: (
                item.dims,
                np.zeros([sizes[dim] for dim in item.dims], dtypes.get(item.name, item.dtype)),
            )
            for item in variables
        }
    )


@pytest.mark.parametrize("variables", [CONFORMED, PUBLISHED])
def test_a_dataset_as_it_is_stored_passes(variables):
    validate(conforming(variables), variables)


def test_more_variables_than_asked_for_pass():
    validate(conforming(PUBLISHED), CONFORMED)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4"])
def test_every_kind_of_float_passes_as_an_image(dtype):
    validate(conforming(CONFORMED, mri=dtype), CONFORMED)


@pytest.mark.parametrize("dtype", ["uint8", "bool"])
def test_a_mask_is_bool_or_unsigned(dtype):
    validate(conforming(PUBLISHED, mask=dtype), PUBLISHED)


@pytest.mark.parametrize("variable", PUBLISHED, ids=lambda item: item.name)
class TestEachVariable:
    def test_is_missed_by_name(self, variable):
        dataset = conforming(PUBLISHED).drop_vars(variable.name)
        with pytest.raises(SchemaError) as error:
            validate(dataset, PUBLISHED, "scan sub-01")
        assert f"The scan sub-01 has no variable '{variable.name}'" in str(error.value)
        assert all(name in error.value.mend for name in dataset.data_vars)

    def test_is_refused_with_its_dimensions_in_another_order(self, variable):
        dataset = conforming(PUBLISHED)
        dataset[variable.name] = dataset[variable.name].transpose(*reversed(variable.dims))
        with pytest.raises(SchemaError, match=f"'{variable.name}'") as error:
            validate(dataset, PUBLISHED)
        assert f"transpose({', '.join(map(repr, variable.dims))})" in error.value.mend

    @pytest.mark.parametrize("dtype", ["int16", "complex64", "<U3"])
    def test_is_refused_with_another_kind_of_dtype(self, variable, dtype):
        with pytest.raises(SchemaError, match=f"'{variable.name}'") as error:
            validate(conforming(PUBLISHED, **{variable.name: dtype}), PUBLISHED)
        assert str(np.dtype(dtype)) in str(error.value)
        assert variable.dtype in error.value.mend

    def test_is_stored_as_a_kind_that_it_accepts(self, variable):
        assert np.dtype(variable.dtype).kind in variable.kind

    def test_says_what_it_holds(self, variable):
        assert variable.doc
        assert variable.units


def test_an_empty_dataset_is_told_that_it_has_none():
    with pytest.raises(SchemaError, match="none"):
        validate(xr.Dataset(), CONFORMED)


def test_images_are_on_one_grid_and_metrics_run_over_slices():
    for variable in PUBLISHED:
        assert variable.dims[0] == "z"
    assert {item.dims for item in (*CONFORMED, schema.MASK, schema.FUSED)} == {("z", "y", "x")}


def test_sources_are_in_one_order_everywhere():
    assert tuple(METRIC_SOURCES) == schema.SOURCES == tuple(item.name for item in CONFORMED)


def test_a_variable_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        schema.MRI.dtype = "float64"
    assert isinstance(schema.MRI, Variable)
