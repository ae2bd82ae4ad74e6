"""The network of the learned rule: a backbone's trunk, and a head that weighs the bands.

For each band of both sources the backbone reads the coefficients, shown to it as a picture. How far
its taps are from what they see of an empty picture is its activity there (of which the zero-shot
rule of `fusionflow.fusion` takes the mean over channels). A head learns to reduce it to a few
channels; three convolutions look at them, at the coefficients of all four bands, and at the wanted
`balance`, and say for every coefficient of every band how much of the MRI's goes in; the rest is
the PET's. So a fused coefficient lies between those of its sources, and two equal sources give
themselves. Before it has learned anything the head chooses the coefficient of larger magnitude,
softly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from fusionflow.config import Wavelet
from fusionflow.device import Batch
from fusionflow.errors import WeightsError
from fusionflow.int8 import Int8Trunk
from fusionflow.options import Options
from fusionflow.subbands import DWT_DETAILS
from fusionflow.trunk import TapReader, Trunk

__all__ = ["BANDS", "FusionNet", "Head", "ModelCard", "make_net", "tap_channels"]

BANDS: Final = ("a", *DWT_DETAILS)
#: How an empty band is shown: black for ``a``, middle grey for those that have both signs.
_EMPTY: Final = (0.0, 0.5, 0.5, 0.5)
#: How many times the difference of magnitudes counts, for bands a, h, v, d, before training.
_FIRMNESS: Final = (16.0, 32.0, 32.0, 32.0)
#: How near to 0 and 1 a balance comes: beyond, its logit would leave no room for the sources.
_LEAST_BALANCE: Final = 0.01
#: How late the knob's ends become the sources themselves.
_ENDS: Final = 6
#: By how much bands are amplified before they are shown.
_CONTRAST: Final = (1.0, 4.0, 4.0, 4.0)
#: Of the usual activity: where both sources have less, neither has a share.
_LEAST_ACTIVITY: Final = 0.05
#: Of features; half precision holds it with all its digits.
LEAST_SCALE: Final = 1e-4
#: A level of the transform doubles the range.
_GAIN: Final = 2
#: Coefficients beyond this are seen as this: training shows none, and scans are not clipped.
_MOST: Final = 1.2


class ModelCard(Options):
    """What a model is, and where it comes from; the header of its file.

    Attributes
    ----------
    format : int
        Of the file.
    name : str
        What it is called.
    backbone, taps, transform
        As in `fusionflow.config.Method`; a method that uses the model must say the same.
    reads_backbone : bool
        False if the head sees the coefficients alone.
    width, seen : int
        Channels of the head.
    start : str
        What the weights of the backbone were before training.
    licence : str
        Of this file.
    training : dict
        Configuration, data, versions and figures of the training.
    """

    format: int = 1
    name: str
    backbone: str
    taps: tuple[str, ...]
    transform: Wavelet
    reads_backbone: bool = True
    width: int
    seen: int
    start: str = ""
    licence: str = "not stated"
    training: dict[str, Any] = Field(default_factory=dict)


class Head(nn.Module):
    """Weights of the MRI's coefficients, from the taps of both sources and their coefficients.

    Parameters
    ----------
    channels : sequence of int
        Of each tap; none for a head that sees the coefficients alone.
    seen : int
        Channels that each tap is reduced to.
    width : int
        Channels of its convolutions.
    """

    def __init__(self, channels: Sequence[int], seen: int, width: int) -> None:
        super().__init__()
        self.seen = seen
        #: Which channels of each tap count together as one activity, and how much each does.
        self.reduce = nn.ParameterList(
            torch.rand(seen, count, 1, 1) * (2 / count) for count in channels
        )
        for index, count in enumerate(channels):
            self.register_buffer(f"scale{index}", torch.ones(count, 1, 1))
        from_taps = len(channels) * len(BANDS) * seen
        coefficients = 3 * len(BANDS)  # of each source, and the difference of their magnitudes
        self.mix = nn.Sequential(
            nn.Conv2d(from_taps + coefficients + 1, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate"),
            nn.ReLU(),
            nn.Conv2d(width, len(BANDS), 1),
        )
        #: How firmly the larger magnitude is chosen, of `_FIRMNESS`; how much `balance` moves that.
        self.firmness = nn.Parameter(torch.ones(len(BANDS)))
        self.lean = nn.Parameter(torch.ones(len(BANDS)))

    def calibrate(self, taps: Sequence[torch.Tensor]) -> None:
        """Take from some features how large those of each channel are, to bring all to one size.

        Pretrained networks can have features of hundreds, which no head learns from.

        Raises
        ------
        WeightsError
            If they are too small to tell anything.
        """
        for index, features in enumerate(taps):
            size = features.detach().square().mean(dim=(0, 2, 3)).sqrt()
            largest = float(size.max())
            if not largest > 100 * LEAST_SCALE:
                raise WeightsError(
                    f"The backbone's features at its tap number {index + 1} are of size "
                    f"{largest:.1g}: it sees nothing",
                    "Take other weights, or other taps",
                )
            # A channel may be silent.
            scale = size.clamp(min=max(0.01 * largest, LEAST_SCALE))
            self.get_buffer(f"scale{index}").copy_(scale[:, None, None])

    def together(self, index: int, activity: torch.Tensor) -> torch.Tensor:
        """Return the activity of a tap's channels, of each group that counts as one.

        Parameters
        ----------
        index : int
            Number of the tap.
        activity : Tensor, (n, channels, y'', x'') float32
            Of its channels.

        Returns
        -------
        Tensor, (n, seen, y'', x'') float32
        """
        weight = self.reduce[index].abs() / self.get_buffer(f"scale{index}")
        # Not a convolution: torch makes that of few images another way, with other last bits.
        if activity.is_contiguous() and activity.device.type == "cpu":
            rows, columns = activity.shape[-2:]
            images = [weight.flatten(1) @ image.flatten(1) for image in activity]
            return torch.stack(images).unflatten(-1, (rows, columns))
        return functional.linear(activity.movedim(1, -1), weight.flatten(1)).movedim(-1, 1)

    def forward(
        self,
        seen: Sequence[torch.Tensor],
        mri: torch.Tensor,
        pet: torch.Tensor,
        balance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the weights.

        Parameters
        ----------
        seen : sequence of Tensor, (n * 2 * 4, seen, y'', x'')
            What `together` makes of each tap in every band of both sources, slice by slice, the
            MRI's bands first.
        mri, pet : Tensor, (n, 4, y', x') float32
            Coefficients of bands a, h, v, d, those of a display window in 0..1 (a) and -1..1.
        balance : Tensor, (n,) float32
            From 0, the PET itself, over PET-leaning and MRI-leaning to 1, the MRI itself.

        Returns
        -------
        Tensor, (n, 4, y', x')
            0..1.
        """
        rows, columns = mri.shape[-2:]
        larger = mri.abs() - pet.abs()
        lean = (2 * balance - 1).view(-1, 1, 1, 1)
        bias = torch.logit(balance, _LEAST_BALANCE).view(-1, 1, 1, 1)
        mri, pet = mri.clamp(-_MOST, _MOST), pet.clamp(-_MOST, _MOST)
        inputs = [mri, pet, mri.abs() - pet.abs(), lean.expand(-1, 1, rows, columns)]
        inputs += [self._shares(activity, (rows, columns)) for activity in seen]
        logits = self.mix(torch.cat(inputs, dim=1))
        firmness = self.firmness * self.firmness.new_tensor(_FIRMNESS)
        logits = logits + firmness.view(1, -1, 1, 1) * larger
        weights = torch.sigmoid(logits + self.lean.view(1, -1, 1, 1) * bias)
        towards = lean.abs() ** _ENDS
        return (1 - towards) * weights + towards * (lean > 0)

    @staticmethod
    def _shares(activity: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Return the MRI's share of the activity at a tap, -1 (none) to 1 (all)."""
        full = functional.interpolate(activity, size=shape, mode="bilinear")
        mri, pet = full.unflatten(0, (-1, 2, len(BANDS))).unbind(dim=1)
        return ((mri - pet) / (mri + pet + _LEAST_ACTIVITY)).flatten(1, 2)


class FusionNet(nn.Module):
    """Trunk and head of a learned rule.

    Parameters
    ----------
    trunk : Trunk or None
        The backbone; None if the head sees the coefficients alone.
    head : Head
    card : ModelCard
    """

    def __init__(self, trunk: Trunk | None, head: Head, card: ModelCard) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.card = card
        #: Reads in the place of the trunk where nothing is learned, if there is one.
        self.int8: Int8Trunk | None = None

    def forward(
        self,
        mri: torch.Tensor,
        pet: torch.Tensor,
        balance: torch.Tensor,
        *,
        bfloat16: bool = False,
        trained_trunk: bool = False,
    ) -> torch.Tensor:
        """Return the MRI's weight for every coefficient.

        Parameters
        ----------
        mri, pet : Tensor, (n, 4, y', x') float32
            Coefficients of bands a, h, v, d of one level, as the transform gives them.
        balance : Tensor, (n,) float32
            0..1.
        bfloat16 : bool
            Arithmetic of the trunk.
        trained_trunk : bool
            Whether gradients reach the trunk.

        Returns
        -------
        Tensor, (n, 4, y', x') float32
            0..1; the PET gets the rest.
        """
        taps = self.read(mri, pet, bfloat16=bfloat16, trained_trunk=trained_trunk)
        return self.weigh(taps, mri, pet, balance)

    def read(
        self,
        mri: torch.Tensor,
        pet: torch.Tensor,
        *,
        bfloat16: bool = False,
        trained_trunk: bool = False,
    ) -> list[torch.Tensor]:
        """Return how active each channel of the taps is, the same for any balance.

        Each band is shown as a picture in which no coefficient is black (band ``a``) or middle grey
        (the others, which are amplified); activity is the distance from what the taps see of a
        picture without coefficients.

        Returns
        -------
        list of Tensor, (n * 2 * 4, channels, y'', x'') float32
            Non-negative; slice by slice, the MRI's bands first.
        """
        if self.trunk is None:
            return []
        images, empty = _shown(mri, pet), mri.new_tensor(_EMPTY).view(1, 1, -1, 1, 1)
        blank = empty.view(-1, 1, 1, 1).expand(-1, 1, *mri.shape[-2:]).contiguous()
        with (
            torch.set_grad_enabled(trained_trunk),
            torch.autocast(mri.device.type, torch.bfloat16, enabled=bfloat16),
        ):
            taps = self.trunk((images + empty).flatten(0, 2)[:, None])
            nothing = self.trunk(blank)
        return [
            (tap.float().unflatten(0, (-1, len(BANDS))) - none.float()).abs().flatten(0, 1)
            for tap, none in zip(taps, nothing, strict=True)
        ]

    @torch.inference_mode()
    def look(
        self, mri: torch.Tensor, pet: torch.Tensor, nonzero: Sequence[int], batch: Batch
    ) -> list[torch.Tensor]:
        """Return what the head sees of the taps, tap by tap and few images at a time.

        The same as `read` and then `Head.together`, in less memory.

        Parameters
        ----------
        mri, pet : Tensor, (n, 4, y', x') float32
            As `read` takes them.
        nonzero : sequence of int
            Which of the n * 2 * 4 images, slice by slice and the MRI's bands first, hold anything,
            at least one; the others are not shown to the backbone.
        batch : Batch
            How many images go at a time.

        Returns
        -------
        list of Tensor, (n * 2 * 4, seen, y'', x'') float32
        """
        trunk: TapReader | None = self.int8 or self.trunk
        head = self.head
        if trunk is None:
            return []
        images = _shown(mri, pet).flatten(0, 2)
        rows, columns = images.shape[-2:]
        seen: dict[int, torch.Tensor] = {}

        def together(index: int, activity: torch.Tensor) -> torch.Tensor:
            with torch.autocast(activity.device.type, enabled=False):
                return head.together(index, activity)

        for empty in sorted(set(_EMPTY)):
            alike = [index for index in nonzero if _EMPTY[index % len(BANDS)] == empty]
            for part in batch.spans(len(alike), rows * columns):
                chosen = alike[part]
                shown = images[chosen][:, None] + empty
                taps = trunk.activities(shown, empty, together, dtype=torch.float32)
                for index, found in enumerate(taps):
                    if index not in seen:
                        room = found.new_zeros((len(images), *found.shape[-2:], head.seen))
                        seen[index] = room.movedim(-1, 1)
                    seen[index][chosen] = found
        return [seen[index] for index in range(trunk.tap_count)]

    def weigh(
        self,
        taps: Sequence[torch.Tensor],
        mri: torch.Tensor,
        pet: torch.Tensor,
        balance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the MRI's weight for every coefficient, from what `read` gave."""
        seen = [self.head.together(index, activity) for index, activity in enumerate(taps)]
        return self.weigh_seen(seen, mri, pet, balance)

    def weigh_seen(
        self,
        seen: Sequence[torch.Tensor],
        mri: torch.Tensor,
        pet: torch.Tensor,
        balance: torch.Tensor,
    ) -> torch.Tensor:
        """Return the MRI's weight for every coefficient, from what `look` gave."""
        weights: torch.Tensor = self.head(seen, mri / _GAIN, pet / _GAIN, balance)
        return weights


def _shown(mri: torch.Tensor, pet: torch.Tensor) -> torch.Tensor:
    """Return the bands as they are shown, but for the grey of an empty one: (n, 2, 4, y', x')."""
    contrast = mri.new_tensor(_CONTRAST).view(1, 1, -1, 1, 1)
    return (torch.stack([mri, pet], dim=1) * (contrast / _GAIN)).clamp(-_MOST, _MOST)


def tap_channels(trunk: Trunk) -> list[int]:
    """Return the number of channels of every tap."""
    image = trunk.bias.new_zeros((2, 1, 64, 64))
    with torch.no_grad():
        return [tap.shape[1] for tap in trunk(image)]


def make_net(card: ModelCard, trunk: Trunk | None, seed: int) -> FusionNet:
    """Return a net whose head has learned nothing: it chooses by magnitude alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(tap_channels(trunk) if trunk else (), card.seen, card.width)
    for tensor in head.mix[-1].parameters():
        nn.init.zeros_(tensor)
    return FusionNet(trunk, head, card)
