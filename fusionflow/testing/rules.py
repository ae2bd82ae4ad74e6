"""What a rule must pass: checks of how it turns a pair of bands into the weight of the MRI."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Final, TypeAlias

import numpy as np
import torch

from fusionflow.fusion import BandPair, Rule
from fusionflow.stages import torch_threads
from fusionflow.testing.demands import demand, pickled

__all__ = ["RULE_CHECKS", "check_rule", "check_symmetry"]

RuleCheck: TypeAlias = Callable[[Rule], None]

#: Those of wavelets, and ``l`` of Laplacian pyramids.
_BANDS: Final = "ahvdl"
#: (z, y, x): one coefficient, odd, even, narrow.
_SHAPES: Final = ((1, 1, 1), (3, 5, 7), (2, 8, 6), (2, 1, 9), (1, 33, 30))
#: The coldest and the hottest that a method can have, and the default.
_TEMPERATURES: Final = (1e-3, 0.5, 100.0)
_HUGE: Final = 1e30
_TINY: Final = 1e-38


def pair_of(
    rule: Rule,
    seed: int = 0,
    shape: tuple[int, int, int] = (3, 9, 7),
    *,
    band: str = "h",
    level: int = 1,
    temperature: float = 0.5,
) -> BandPair:
    """Return a pair of bands as a rule gets them in a run: random numbers that `seed` decides.

    Parameters
    ----------
    rule : Rule
        Says whether there are activities.
    seed : int
        Of the numbers.
    shape : tuple of int
        (z, y', x').
    band, level, temperature
        As in `fusionflow.fusion.BandPair`.
    """
    generator = np.random.default_rng(seed)
    z, *_ = shape
    mri, pet = generator.normal(0, 0.5, (2, *shape)).astype(np.float32)
    taps = 3 if rule.reads_backbone else 0
    # Of both sources in one array, as the backbone leaves them: halves of it are not contiguous.
    both = generator.gamma(1, 1, (taps, 2 * z, *shape[1:])).astype(np.float32)
    return BandPair(band, level, mri, pet, both[:, :z], both[:, z:], temperature)


def _pairs(rule: Rule) -> Iterator[BandPair]:
    """Yield every band in every shape, and each temperature."""
    for seed, (band, shape) in enumerate(itertools.product(_BANDS, _SHAPES)):
        level, temperature = 1 + seed % 3, _TEMPERATURES[seed % 3]
        yield pair_of(rule, seed, shape, band=band, level=level, temperature=temperature)


def _filled(pair: BandPair, mri: float, pet: float) -> BandPair:
    """Return a pair with these numbers everywhere, of coefficients and activities."""
    return replace(
        pair,
        mri=np.full_like(pair.mri, mri),
        pet=np.full_like(pair.pet, pet),
        mri_activity=np.full_like(pair.mri_activity, abs(mri)),
        pet_activity=np.full_like(pair.pet_activity, abs(pet)),
    )


def _slices(pair: BandPair, which: slice) -> BandPair:
    """Return some slices of a pair."""
    return replace(
        pair,
        mri=pair.mri[which],
        pet=pair.pet[which],
        mri_activity=pair.mri_activity[:, which],
        pet_activity=pair.pet_activity[:, which],
    )


def _of(rule: Rule, pair: BandPair | None = None) -> str:
    where = f", band {pair.band} of {pair.mri.shape}" if pair else ""
    return f"Rule {rule.name!r}{where}"


def _demand_shares(rule: Rule, pair: BandPair, of_what: str) -> None:
    """Hold weights to 0..1."""
    found = rule.weigh(pair)
    demand(
        np.isfinite(found).all(), _of(rule, pair),
        f"gives NaN or infinity {of_what} at temperature {pair.temperature:g}",
        "Say what the weight is there: divide by the larger of both, and give one half to a tie",
    )  # fmt: skip
    demand(
        ((found >= 0) & (found <= 1)).all(), _of(rule, pair),
        f"gives weights of {found.min():g} to {found.max():g} {of_what}",
        "A weight is the share of the MRI, 0 to 1; clip what rounding adds",
    )  # fmt: skip


def check_declaration(rule: Rule) -> None:
    """Demand a `Rule` with a name that a method can write, and a function.

    A rule is found by its name, in YAML files and on command lines, so it is one word.
    """
    demand(isinstance(rule, Rule), f"{rule!r}", "is no Rule", "Make one: fusionflow.fusion.Rule")
    demand(
        rule.name and rule.name.replace("-", "").replace("_", "").isalnum(), _of(rule),
        "has a name that is not one word", "Take letters, digits and hyphens",
    )  # fmt: skip
    demand(
        not rule.is_learned, _of(rule), "is learned: a trained model weighs all bands at once",
        "Hand a method that has it to check_method",
    )  # fmt: skip
    demand(callable(rule.weigh), _of(rule), "weigh cannot be called", "Give it a function")


def check_shape_and_dtype(rule: Rule) -> None:
    """Demand an array of the shape of the bands, float32, for every band and odd shapes.

    Bands of a Laplacian pyramid may be one coefficient wide; float64 would double the memory of a
    worker, and change the dtype of what is stored.
    """
    for pair in _pairs(rule):
        found = rule.weigh(pair)
        demand(
            isinstance(found, np.ndarray), _of(rule, pair),
            f"returns a {type(found).__name__}", "Return a NumPy array",
        )  # fmt: skip
        demand(
            found.shape == pair.mri.shape, _of(rule, pair),
            f"returns weights of {found.shape}", "Return one weight for every coefficient",
        )  # fmt: skip
        demand(
            found.dtype == np.float32, _of(rule, pair),
            f"returns {found.dtype}", "Return float32: end with .astype(np.float32)",
        )  # fmt: skip


def check_range(rule: Rule) -> None:
    """Demand weights in 0..1 for ordinary coefficients, at every temperature.

    The PET gets the rest, so a weight beyond that range takes more than all of one source.
    """
    for pair in _pairs(rule):
        _demand_shares(rule, pair, "for ordinary coefficients")


def check_odd_values(rule: Rule) -> None:
    """Demand finite weights in 0..1 for nothing, ties, huge and tiny values.

    Outside the head there is nothing in either source; a hot lesion is far beyond 1. NaN in one
    coefficient is NaN in the whole slice once the inverse transform has passed over it.
    """
    values = (0.0, 1.0, -1.0, _HUGE, -_HUGE, _TINY)
    for mri, pet in itertools.product(values, values):
        for temperature in _TEMPERATURES:
            pair = _filled(pair_of(rule, temperature=temperature), mri, pet)
            _demand_shares(rule, pair, f"where the MRI has {mri:g} and the PET {pet:g}")


def check_same_bits(rule: Rule) -> None:
    """Demand the same bits each time: after other bands, and from several threads at once.

    A task may run twice, on other workers, beside others in one process. Anything random must be
    drawn from a seed of its own, anything kept between calls must change nothing.
    """
    pairs = list(_pairs(rule))
    first = [rule.weigh(pair).tobytes() for pair in pairs]
    again = [rule.weigh(pair).tobytes() for pair in reversed(pairs)][::-1]
    with ThreadPoolExecutor(4) as pool:
        beside = [found.tobytes() for found in pool.map(rule.weigh, pairs)]
    for pair, *found in zip(pairs, first, again, beside, strict=True):
        demand(
            len(set(found)) == 1, _of(rule, pair),
            "gives other bits when it is called again, in another order, or from several threads",
            "Draw nothing from a global generator, and keep nothing between calls",
        )  # fmt: skip


def check_slices_alone(rule: Rule) -> None:
    """Demand that slices of a slab get the weights that each would get alone.

    How slices fall into slabs follows from memory, not from the method.
    """
    for pair in _pairs(rule):
        together = rule.weigh(pair)
        for z in range(len(pair.mri)):
            alone = rule.weigh(_slices(pair, slice(z, z + 1)))
            demand(
                np.array_equal(alone[0], together[z]), _of(rule, pair),
                f"gives slice {z} other weights in a slab than alone",
                "Reduce along the last two axes only, never over slices",
            )  # fmt: skip


def check_input_is_left_alone(rule: Rule) -> None:
    """Demand that coefficients and activities are as they were.

    They are merged with the weights afterwards; what a rule changes there is in the result.
    """
    for pair in _pairs(rule):
        arrays = {item.name: getattr(pair, item.name) for item in fields(pair)}
        before = {k: v.tobytes() for k, v in arrays.items() if isinstance(v, np.ndarray)}
        rule.weigh(pair)
        for name, content in before.items():
            demand(
                arrays[name].tobytes() == content, _of(rule, pair),
                f"changes {name}", "Work on a copy, or on a new array",
            )  # fmt: skip


def check_pickles(rule: Rule) -> None:
    """Demand that a pickled rule gives the same weights.

    A rule may travel to workers, and to processes that a notebook starts.
    """
    arrived = pickled(rule, _of(rule))
    for pair in _pairs(rule):
        demand(
            np.array_equal(arrived.weigh(pair), rule.weigh(pair)), _of(rule, pair),
            "gives other weights once it was pickled", "Keep all that decides weights in it",
        )  # fmt: skip


def check_threads(rule: Rule) -> None:
    """Demand the same bits with one thread of torch and with two, and that it leaves them so.

    A task runs with the threads that its method says.
    """
    pair = pair_of(rule, shape=(3, 65, 47))
    found = []
    for threads in (1, 2):
        with torch_threads(threads):
            found.append(rule.weigh(pair).tobytes())
            demand(
                torch.get_num_threads() == threads, _of(rule),
                "changes the number of torch's threads", "Leave that to the method",
            )  # fmt: skip
    demand(
        found[0] == found[1], _of(rule), "gives other bits with two threads of torch than one",
        "Avoid sums whose order depends on threads, or compute with NumPy",
    )  # fmt: skip


def check_reads_backbone(rule: Rule) -> None:
    """Demand that a rule that asks for a backbone looks at what that says.

    Running it takes nearly all of the time of a scan.
    """
    if not rule.reads_backbone:
        return
    pair = pair_of(rule, shape=(2, 16, 16))
    swapped = replace(pair, mri_activity=pair.pet_activity, pet_activity=pair.mri_activity)
    demand(
        not np.array_equal(rule.weigh(pair), rule.weigh(swapped)), _of(rule),
        "says that it reads a backbone, but activities change nothing",
        "Leave reads_backbone out",
    )  # fmt: skip


#: What every rule must pass.
RULE_CHECKS: Final[tuple[RuleCheck, ...]] = (
    check_declaration,
    check_shape_and_dtype,
    check_range,
    check_odd_values,
    check_same_bits,
    check_slices_alone,
    check_input_is_left_alone,
    check_pickles,
    check_threads,
    check_reads_backbone,
)


def check_symmetry(rule: Rule) -> None:
    """Demand that swapping the sources gives one minus the weight, to 1e-6.

    Not every rule has it: some prefer a source where both are equal.
    """
    for pair in (*_pairs(rule), _filled(pair_of(rule), 1.0, 1.0)):
        swapped = replace(
            pair,
            mri=pair.pet,
            pet=pair.mri,
            mri_activity=pair.pet_activity,
            pet_activity=pair.mri_activity,
        )
        error = np.abs(rule.weigh(swapped) - (1 - rule.weigh(pair))).max()
        demand(
            error <= 1e-6, _of(rule, pair),
            f"is not symmetric: swapping the sources is off by {error:.1e}",
            "Treat both sources alike, and give one half to a tie; or do not ask for symmetry",
        )  # fmt: skip


def check_rule(rule: Rule, *, symmetric: bool = False) -> None:
    """Hold a rule to everything that a run relies on.

    Parameters
    ----------
    rule : Rule
        Yours.
    symmetric : bool
        Whether swapping the sources must give one minus the weight.

    Raises
    ------
    AssertionError
        At the first check that it fails: what is broken, and the mend.

    Examples
    --------
    >>> from fusionflow.fusion import RULES
    >>> check_rule(RULES["max-abs"])
    """
    for check in RULE_CHECKS:
        check(rule)
    if symmetric:
        check_symmetry(rule)
