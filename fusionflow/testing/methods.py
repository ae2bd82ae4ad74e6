"""What a method must pass as a whole: slices of both sources in, fused slices out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np

from fusionflow.config import Method
from fusionflow.errors import FusionflowError
from fusionflow.fusion import fuse_subbands
from fusionflow.graph import make_recipe
from fusionflow.stages import Recipe, torch_threads
from fusionflow.subbands import FloatArray
from fusionflow.testing.demands import ROUNDING, demand, pickled
from fusionflow.transform import check_levels, decompose, reconstruct

__all__ = ["METHOD_CHECKS", "check_method"]

MethodCheck: TypeAlias = Callable[[Method], None]

#: (z, y, x), odd and even.
_SHAPE: Final = (3, 91, 78)
#: An inverse transform does not give the image back to the last bit.
_EXACT: Final = 1e-5


def _of(method: Method) -> str:
    return f"Method {method.name!r}"


def _sources() -> tuple[FloatArray, FloatArray]:
    """Return slices of two sources that have nothing in common, as they are conformed."""
    generator = np.random.default_rng(0)
    mri, pet = generator.normal(0.5, 0.3, (2, *_SHAPE)).astype(np.float32)
    return mri, pet


def _recipe(method: Method) -> Recipe:
    try:
        check_levels(_SHAPE[1:], method.transform)
        return make_recipe(method)
    except FusionflowError as error:
        raise AssertionError(f"{_of(method)}: cannot be used: {error}") from error


def _fused(recipe: Recipe, mri: FloatArray, pet: FloatArray) -> FloatArray:
    """Return the fused slices, as the tasks of a run make them."""
    method = recipe.method
    with torch_threads(method.threads):
        of_mri, of_pet = decompose(mri, method.transform), decompose(pet, method.transform)
        fused = fuse_subbands(of_mri, of_pet, method, recipe.weights)
        return reconstruct(fused, method.transform)


def check_parts(method: Method) -> None:
    """Demand that rule, backbone, taps, transform and weights are there and fit together."""
    _recipe(method)


def check_shape_and_dtype(method: Method) -> None:
    """Demand finite float32 slices of the shape of the sources, odd sizes included."""
    found = _fused(_recipe(method), *_sources())
    demand(
        found.shape == _SHAPE and found.dtype == np.float32, _of(method),
        f"makes {found.dtype} of {found.shape} from float32 of {_SHAPE}", "Hold the rule to its "
        "own checks",
    )  # fmt: skip
    demand(np.isfinite(found).all(), _of(method), "makes NaN or infinity", "Check its rule")


def check_between(method: Method) -> None:
    """Demand every fused coefficient between those of the sources, to rounding.

    Weights in 0..1 give no more than either source had.
    """
    recipe, (mri, pet) = _recipe(method), _sources()
    of_mri, of_pet = (decompose(source, method.transform) for source in (mri, pet))
    with torch_threads(method.threads):
        fused = fuse_subbands(of_mri, of_pet, method, recipe.weights)
    for (band, level, low), (_, _, high), (_, _, both) in zip(
        of_mri.bands(), of_pet.bands(), fused.bands(), strict=True
    ):
        beyond = np.maximum(both - np.maximum(low, high), np.minimum(low, high) - both).max()
        demand(
            beyond <= _EXACT, _of(method),
            f"leaves the range of both sources by {beyond:.1e} in band {band} of level {level}",
            "Give weights in 0..1",
        )  # fmt: skip


def check_source_with_itself(method: Method) -> None:
    """Demand that a source fused with itself is itself, and nothing with nothing is nothing."""
    recipe, (mri, _) = _recipe(method), _sources()
    for what, source in (("a source", mri), ("nothing", np.zeros_like(mri))):
        error = np.abs(_fused(recipe, source, source) - source).max()
        demand(
            error <= _EXACT, _of(method),
            f"fuses {what} with itself to something else: off by {error:.1e}",
            "Let weights be shares of one whole",
        )  # fmt: skip


def check_same_bits(method: Method) -> None:
    """Demand the same bits each time."""
    recipe, sources = _recipe(method), _sources()
    first, again = (_fused(recipe, *sources) for _ in range(2))
    demand(
        np.array_equal(first, again), _of(method), "gives other bits the second time",
        "Hold its rule and its backbone to their own checks",
    )  # fmt: skip


def check_slabs(method: Method) -> None:
    """Demand that slices alone are fused as in a slab, to rounding (5e-6).

    VGG nets give the same bits; convolutions of other networks round otherwise in other batches.
    """
    recipe, (mri, pet) = _recipe(method), _sources()
    whole = _fused(recipe, mri, pet)
    for start, stop in itertools.pairwise((0, 1, len(mri))):
        error = np.abs(_fused(recipe, mri[start:stop], pet[start:stop]) - whole[start:stop]).max()
        demand(
            error <= ROUNDING * np.abs(whole).max(), _of(method),
            f"fuses slices {start} to {stop - 1} otherwise in a slab than alone: {error:.1e}",
            "Hold its rule and its backbone to their own checks",
        )  # fmt: skip


def check_input_is_left_alone(method: Method) -> None:
    """Demand that the sources are as they were: metrics compare the result with them."""
    recipe, sources = _recipe(method), _sources()
    before = [source.tobytes() for source in sources]
    _fused(recipe, *sources)
    demand(
        [source.tobytes() for source in sources] == before, _of(method), "changes its sources",
        "Let its rule work on copies",
    )  # fmt: skip


def check_travels(method: Method) -> None:
    """Demand that what is sent to workers arrives, and that its fingerprint is the same there."""
    recipe = _recipe(method)
    arrived = pickled(recipe, _of(method))
    identity = recipe.weights.identity if recipe.weights else None
    demand(
        arrived == recipe
        and arrived.method.fingerprint(identity) == method.fingerprint(identity),
        _of(method), "is another method once it was pickled", "Write plain values in its options",
    )  # fmt: skip


#: What every method must pass.
METHOD_CHECKS: Final[tuple[MethodCheck, ...]] = (
    check_parts,
    check_shape_and_dtype,
    check_between,
    check_source_with_itself,
    check_same_bits,
    check_slabs,
    check_input_is_left_alone,
    check_travels,
)


def check_method(method: Method) -> None:
    """Hold a method to everything that a run relies on.

    Parameters
    ----------
    method : Method
        Yours; its rule and backbone are found by name, and its weights must be there.

    Raises
    ------
    AssertionError
        At the first check that it fails: what is broken, and the mend.

    Examples
    --------
    >>> from fusionflow.config import METHODS
    >>> check_method(METHODS["dwt-max"])
    """
    for check in METHOD_CHECKS:
        check(method)
