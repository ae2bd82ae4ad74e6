"""How the bands of two sources become one: activities, rules, fused bands.

A zero-shot rule needs no training (Li, Wu & Kittler 2018, doi:10.1109/ICPR.2018.8546006;
Lahoud & Suesstrunk 2019, arXiv:1905.03590): the backbone reads the coefficients of both
sources, the l1-norm over the channels of a layer says how active each source is at each
place, and the more active source gets the larger weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from fusionflow import learned
from fusionflow.backbones import (
    check_int8,
    check_size,
    load_trunk,
    named_backbone,
    resolve_weights,
    trunks_made,
)
from fusionflow.config import Method
from fusionflow.device import (
    Batch,
    arithmetic,
    arrived,
    host_buffer,
    to_device,
)
from fusionflow.errors import ConfigurationError, InputError
from fusionflow.plugins import plugin, plugin_names
from fusionflow.subbands import FloatArray, Subbands
from fusionflow.trunk import TapReader
from fusionflow.weights import Weights


@dataclass(frozen=True)
class BandPair:
    """One band of both sources, and what the backbone sees in it.

    Attributes
    ----------
    band : {"a", "h", "v", "d", "l"}
        Which band; ``l`` is that of a Laplacian pyramid.
    level : int
        Its level, 1 the finest.
    mri, pet : ndarray, (z, y', x') float32
        Coefficients.
    mri_activity, pet_activity : ndarray, (tap, z, y', x') float32
        Non-negative; without taps if the rule reads no backbone.
    temperature : float
        Of the method.
    """

    band: str
    level: int
    mri: FloatArray
    pet: FloatArray
    mri_activity: FloatArray
    pet_activity: FloatArray
    temperature: float


class WeighBand(Protocol):
    """Turns a pair of bands into the weight of the MRI."""

    def __call__(self, pair: BandPair) -> FloatArray:
        """Return (z, y', x') float32 in 0..1; the PET gets the rest."""
        ...


@dataclass(frozen=True)
class Rule:
    """A way to weigh bands.

    Attributes
    ----------
    name : str
        What it is called in a method.
    weigh : callable
        `BandPair` -> weight of the MRI, (z, y', x') float32 in 0..1.
    reads_backbone : bool
        Whether it needs activities.
    is_learned : bool
        Whether a trained model weighs all bands at once (`fusionflow.learned`), and not `weigh`.
    """

    name: str
    weigh: Callable[[BandPair], FloatArray]
    reads_backbone: bool = False
    is_learned: bool = False


@dataclass(frozen=True)
class _Constant:
    """The same weight everywhere."""

    value: float

    def __call__(self, pair: BandPair) -> FloatArray:
        return np.full(pair.mri.shape, self.value, np.float32)


def _max(pair: BandPair) -> FloatArray:
    """Choose the larger coefficient."""
    return (pair.mri >= pair.pet).astype(np.float32)


def _max_abs(pair: BandPair) -> FloatArray:
    """Choose the coefficient of larger magnitude; the MRI where they are equal."""
    return (np.abs(pair.mri) >= np.abs(pair.pet)).astype(np.float32)


def _l1_max(pair: BandPair) -> FloatArray:
    """Choose the source that is more active at most taps; half of each where it is a tie."""
    votes = np.sign(pair.mri_activity - pair.pet_activity).sum(axis=0)
    return ((np.sign(votes) + 1) / 2).astype(np.float32)


def _l1_soft(pair: BandPair) -> FloatArray:
    """Share by activity: w = A_mri^(1/T) / (A_mri^(1/T) + A_pet^(1/T)), mean over the taps.

    Where neither source has any, both get one half.
    """
    total = np.zeros(pair.mri.shape, np.float32)
    for mri, pet in zip(pair.mri_activity, pair.pet_activity, strict=True):
        largest = np.maximum(mri, pet)
        safe = np.where(largest > 0, largest, 1)
        # Dividing by the larger keeps the powers in 0..1 at any temperature.
        power = np.float32(1 / pair.temperature)
        mri_share, pet_share = (mri / safe) ** power, (pet / safe) ** power
        both = mri_share + pet_share
        total += np.where(largest > 0, mri_share / np.where(both > 0, both, 1), 0.5)
    return total / np.float32(len(pair.mri_activity))


def _by_model(pair: BandPair) -> FloatArray:
    raise TypeError(f"band {pair.band} has no weight of its own: the model weighs all of them")


#: Entry points of other packages: objects of `Rule`.
_GROUP = "fusionflow.rules"

#: The rules that come with fusionflow, by name.
RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("learned", _by_model, reads_backbone=True, is_learned=True),
        Rule("l1-soft", _l1_soft, reads_backbone=True),
        Rule("l1-max", _l1_max, reads_backbone=True),
        Rule("max", _max),
        Rule("max-abs", _max_abs),
        Rule("average", _Constant(0.5)),
        Rule("mri", _Constant(1.0)),
        Rule("pet", _Constant(0.0)),
    )
}


def named_rule(name: str) -> Rule:
    """Return the rule called `name`.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    rule = RULES.get(name) or plugin(_GROUP, name, Rule)
    if rule is None:
        known = sorted({*RULES, *plugin_names(_GROUP)})
        raise ConfigurationError(f"No rule is called {name!r}", f"Known are: {', '.join(known)}")
    return rule


def reads_backbone(method: Method) -> bool:
    """Whether a method runs a network, having checked that its parts fit together.

    Raises
    ------
    ConfigurationError
        If its rule needs a backbone and there is none, or a name is unknown.
    """
    rule = named_rule(method.rule)
    for name in ("window", "temperature") if rule.is_learned else ("balance",):
        if getattr(method, name) != Method.model_fields[name].default:
            raise ConfigurationError(
                f"Method {method.name}: {name} means nothing to rule {rule.name}",
                f"Leave it out, or take {'another' if rule.is_learned else 'a learned'} rule",
            )
    if not rule.reads_backbone:
        return False
    if method.backbone is None:
        raise ConfigurationError(
            f"Method {method.name}: rule {rule.name} needs a backbone", "Add `backbone: vgg19`"
        )
    named_backbone(method.backbone, method.taps)
    if rule.is_learned and (method.transform.kind != "wavelet" or method.transform.levels != 1):
        raise ConfigurationError(
            f"Method {method.name}: the learned rule merges the bands of one level of a wavelet",
            "Write `transform: {name: db2, levels: 1}`",
        )
    return True


def find_weights(method: Method) -> Weights | None:
    """Find what a method's network reads: a trained model, pretrained weights, or nothing.

    Raises
    ------
    ConfigurationError
        If the parts of the method do not fit together, or its network has no such arithmetic.
    WeightsNotFoundError
        If its weights are not there.
    WeightsError
        If its model is none, or is one for another method.
    """
    if not reads_backbone(method) or method.backbone is None:
        return None
    if method.precision == "int8":
        check_int8(method.backbone, method.taps)
    if named_rule(method.rule).is_learned:
        return learned.find_model(method)
    return resolve_weights(method.weights, method.backbone)


def load_network(method: Method, weights: Weights, device: str = "cpu") -> None:
    """Read what a method's network needs into this process, where it is kept.

    Raises
    ------
    ChecksumError
        If the file is not the one that was found.
    WeightsError
        If it cannot be read.
    """
    if named_rule(method.rule).is_learned:
        learned.load_model(weights, device, method.precision)
    else:
        load_trunk(weights, method.taps, device, method.precision)


def networks_made() -> int:
    """Return how many networks this process has read or drawn so far; one each, if all is well."""
    return trunks_made() + learned.models_made()


def fuse_subbands(
    mri: Subbands,
    pet: Subbands,
    method: Method,
    weights: Weights | None = None,
    batch: Batch | None = None,
) -> Subbands:
    """Merge the bands of two stacks of slices.

    Parameters
    ----------
    mri, pet : Subbands
        Bands of the same slices of both sources.
    method : Method
        Rule, backbone and taps.
    weights : Weights, optional
        Of the backbone; needed if the rule reads one.
    batch : Batch, optional
        Where the backbone runs, and how many images go at a time there; by default on the
        processor. It tells afterwards whether memory was short.

    Returns
    -------
    Subbands
        A, H, V, D: each ``w * mri + (1 - w) * pet`` with w in 0..1.

    Raises
    ------
    InputError
        If the sources do not have the same shape, or are too small for the taps.
    ConfigurationError
        If the rule needs weights and there are none.
    DeviceMemoryError
        If memory does not hold what the backbone makes of one image.
    """
    rule = named_rule(method.rule)
    batch = batch or Batch(method)
    if mri.approximation.shape != pet.approximation.shape or mri.shape != pet.shape:
        raise InputError(f"MRI slices of {mri.shape} and PET slices of {pet.shape} do not match")
    if reads_backbone(method):
        if weights is None:
            raise ConfigurationError(f"Method {method.name} needs the weights of {method.backbone}")
        for _, _, coefficients in mri.bands():
            check_size(weights.backbone, method.taps, coefficients.shape[1:])
    if rule.is_learned and weights is not None:
        shares = learned.weigh(mri, pet, method, weights, batch)
    else:
        shares = _by_rule(rule, mri, pet, method, weights, batch)
    # Not pet + w * (mri - pet): with w = 1 this gives the MRI exactly.
    return mri.with_bands(
        w * of_mri + (1 - w) * of_pet
        for w, (_, _, of_mri), (_, _, of_pet) in zip(shares, mri.bands(), pet.bands(), strict=True)
    )


def _by_rule(
    rule: Rule,
    mri: Subbands,
    pet: Subbands,
    method: Method,
    weights: Weights | None,
    batch: Batch,
) -> list[FloatArray]:
    """Return the MRI's weight in every band, one band after the other."""
    if rule.reads_backbone and weights is not None:
        trunk = load_trunk(weights, method.taps, batch.device, method.precision)
    shares: list[FloatArray] = []
    for (band, level, of_mri), (_, _, of_pet) in zip(mri.bands(), pet.bands(), strict=True):
        if rule.reads_backbone:
            both = np.concatenate([of_mri, of_pet])
            active = activity(both, band, level, trunk, method, gain=mri.gain, batch=batch)
            active_mri, active_pet = active[:, : len(of_mri)], active[:, len(of_mri) :]
        else:
            active_mri = active_pet = np.empty((0, *of_mri.shape), np.float32)
        pair = BandPair(band, level, of_mri, of_pet, active_mri, active_pet, method.temperature)
        shares.append(rule.weigh(pair))
    return shares


def activity(
    coefficients: FloatArray,
    band: str,
    level: int,
    trunk: TapReader,
    method: Method,
    *,
    gain: float = 2.0,
    batch: Batch | None = None,
) -> FloatArray:
    """Return how much each place of a band has to tell.

    The band is shown to the backbone as a picture in which no coefficient is black (band
    ``a``) or middle grey (detail bands, which have both signs). Activity is the mean over
    channels of how far a tap's features lie from those of the picture without coefficients,
    so nothing gives exactly nothing, at the border too, and rounding (1e-6) beside something that
    is shown; then the mean over a window. Images
    without coefficients are not shown at all.

    Parameters
    ----------
    coefficients : ndarray, (n, y', x') float32
        One band of one or more stacks.
    band, level : str, int
        Which band.
    trunk : TapReader
        The backbone.
    method : Method
        Gives window, batch and precision.
    gain : float
        By how much a level enlarges the range of coefficients, which is undone here.
    batch : Batch, optional
        Where `trunk` is, and how many images go at a time there; on the processor by default.

    Returns
    -------
    ndarray, (tap, n, y', x') float32
        Non-negative.
    """
    batch = batch or Batch(method)
    count, rows, columns = coefficients.shape
    shown = np.flatnonzero(coefficients.any(axis=(1, 2)))
    if len(shown) < count:
        found = np.zeros((trunk.tap_count, count, rows, columns), np.float32)
        if len(shown):
            some = coefficients[shown]
            found[:, shown] = activity(some, band, level, trunk, method, gain=gain, batch=batch)
        return found
    empty = 0.0 if band == "a" else 0.5
    scale = gain**-level
    buffer = host_buffer((trunk.tap_count, count, rows, columns), batch.device)
    with arithmetic(batch.device, method.precision):
        sent = to_device(coefficients, batch.device)

        def forward(part: slice) -> None:
            images = sent[part, None] * scale + empty
            for index, l1 in enumerate(trunk.activities(images, empty, over_channels)):
                local = over_window(l1, method.window, (rows, columns))
                buffer[index, part].copy_(local, non_blocking=True)

        batch.each(count, (rows, columns), forward)
    return arrived(buffer, batch.device)


def over_channels(_: int, active: torch.Tensor) -> torch.Tensor:
    """Return the mean of activities over channels, (n, 1, y'', x'') float32."""
    return active.mean(1, keepdim=True, dtype=torch.float32)


def over_window(l1: torch.Tensor, window: int, shape: tuple[int, int]) -> torch.Tensor:
    """Return the mean activity over a window.

    Parameters
    ----------
    l1 : Tensor, (n, 1, y'', x'') float32
        Of a tap, see `over_channels`.
    window : int
        Side of the window, odd.
    shape : tuple of int
        (y', x') of the band.

    Returns
    -------
    Tensor, (n, y', x') float32
    """
    local = functional.avg_pool2d(
        l1, window, stride=1, padding=window // 2, count_include_pad=False
    )
    full = functional.interpolate(local, size=shape, mode="bilinear", align_corners=False)
    return full[:, 0]
