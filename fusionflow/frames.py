"""Which frames of a dynamic PET become the image that is fused."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from os import PathLike

from fusionflow.errors import ConfigurationError, ImageError
from fusionflow.pet_info import PetInfo

_CORRECT = "Correct FrameDuration in its sidecar"
_UNIT_SECONDS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "": 1.0}
_TIME = r"([0-9]+(?:\.[0-9]+)?)\s*(s|sec|min|m|)"


@dataclass(frozen=True)
class FrameChoice:
    """What part of a dynamic image counts.

    Attributes
    ----------
    start, stop : float
        Seconds since time zero.
    index : int or None
        One frame alone, from 0 on; then times do not matter.
    """

    start: float = -math.inf
    stop: float = math.inf
    index: int | None = None

    @property
    def is_all(self) -> bool:
        """Whether every frame counts."""
        return self.index is None and self.start == -math.inf and self.stop == math.inf


def parse_frames(text: str) -> FrameChoice:
    """Read ``all``, ``first5min``, ``40-60min``, ``2400-3600`` (seconds) or ``frame:3``.

    Raises
    ------
    ConfigurationError
        If it is none of these.

    Examples
    --------
    >>> parse_frames("50-70min")
    FrameChoice(start=3000.0, stop=4200.0, index=None)
    """
    text = text.strip()
    if text == "all":
        return FrameChoice()
    if match := re.fullmatch(r"frame:([0-9]{1,6})", text):
        return FrameChoice(index=int(match[1]))
    if match := re.fullmatch(rf"first{_TIME}", text):
        return _window(0.0, float(match[1]) * _UNIT_SECONDS[match[2]], text)
    if match := re.fullmatch(rf"{_TIME}-{_TIME}", text):
        start, unit, stop, last_unit = match.groups()
        per_stop = _UNIT_SECONDS[last_unit]
        per_start = _UNIT_SECONDS[unit] if unit else per_stop  # 40-60min is 40 min to 60 min
        return _window(float(start) * per_start, float(stop) * per_stop, text)
    raise ConfigurationError(
        f"{text!r} names no frames", "Write all, first5min, 40-60min, 2400-3600 (s) or frame:3"
    )


def _window(start: float, stop: float, text: str) -> FrameChoice:
    if not start < stop < math.inf:
        raise ConfigurationError(f"The window {text!r} is empty")
    return FrameChoice(start, stop)


def frame_weights(
    path: str | PathLike[str], frames: int, info: PetInfo, choice: FrameChoice
) -> tuple[list[float], tuple[str, ...]]:
    """Return the weight of each frame, and what a person should know.

    Frames are weighted by the seconds that they share with the window: the mean is that of the
    uptake over the time that was chosen, as far as it was imaged.

    Parameters
    ----------
    path : path-like
        The image, for messages.
    frames : int
        How many it holds.
    info : PetInfo
        Its metadata.
    choice : FrameChoice
        What counts.

    Returns
    -------
    list of float
        Weights, which add up to 1.
    tuple of str
        Notes.

    Raises
    ------
    ImageError
        If the metadata do not fit the image, or hold no frame that was chosen.
    """
    if choice.index is not None:
        if choice.index >= frames:
            raise ImageError(
                f"{path} has {frames} frames, so no frame {choice.index}", "They count from 0"
            )
        only = [0.0] * frames
        only[choice.index] = 1.0
        return only, ((f"frame {choice.index} of {frames}",) if frames > 1 else ())
    durations = info.frame_durations
    if frames > 1 and durations is not None and len(durations) != frames:
        raise ImageError(
            f"{path} has {frames} frames, but {len(durations)} frame durations are given", _CORRECT
        )
    if choice.is_all:
        return _weights_of_all(path, frames, durations)
    return _weights_in(path, frames, info, choice)


def _weights_of_all(
    path: str | PathLike[str], frames: int, durations: tuple[float, ...] | None
) -> tuple[list[float], tuple[str, ...]]:
    if frames == 1:
        return [1.0], ()
    if durations is None:
        return [1 / frames] * frames, (
            f"plain mean of {frames} frames, whose durations are not known",
        )
    total = _total(durations)
    if not (total > 0 and min(durations) >= 0):
        raise ImageError(
            f"{path} has frame durations that are not positive seconds: {list(durations)}", _CORRECT
        )
    return [duration / total for duration in durations], (
        f"mean of {frames} frames over {total:g} s, weighted by their durations",
    )


def _total(values: tuple[float, ...] | list[float]) -> float:
    """Return the sum, or -1 where it is beyond all bounds."""
    try:
        total = math.fsum(values)
    except OverflowError:
        return -1.0
    return total if math.isfinite(total) else -1.0


def _weights_in(
    path: str | PathLike[str], frames: int, info: PetInfo, choice: FrameChoice
) -> tuple[list[float], tuple[str, ...]]:
    starts, durations = info.frame_starts, info.frame_durations
    if starts is None or durations is None or len(starts) != frames or len(durations) != frames:
        raise ImageError(
            f"A window of time was asked for, and the sidecar of {path} does not say when each of "
            f"its {frames} frames began and how long it took",
            "Give FrameTimesStart and FrameDuration, or take all frames or one by its index",
        )
    shared = [
        max(0.0, min(start + duration, choice.stop) - max(start, choice.start))
        for start, duration in zip(starts, durations, strict=True)
    ]
    total = _total(shared)
    if not total > 0:
        ends = [start + duration for start, duration in zip(starts, durations, strict=True)]
        raise ImageError(
            f"{path} was imaged from {min(starts):g} to {max(ends):g} s; the window from "
            f"{choice.start:g} to {choice.stop:g} s holds none of it",
            "Choose another window",
        )
    notes: tuple[str, ...] = (
        f"mean of {sum(x > 0 for x in shared)} of {frames} frames, {total:g} s within "
        f"{choice.start:g} to {choice.stop:g} s, weighted by the time they share with it",
    )
    if total < 0.95 * (choice.stop - choice.start):
        notes += (f"the window is {choice.stop - choice.start:g} s long: part was not imaged",)
    return [seconds / total for seconds in shared], notes
