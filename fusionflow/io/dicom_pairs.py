"""Which MR and which PET series make a session, by rules that are said and not guessed.

**T1w.** An MR series is T1-weighted if its description says so (T1, MPRAGE, SPGR, BRAVO, TFE, ...;
not FLAIR, T2, diffusion, a field or attenuation map and the like), or if it does not say and its
times do: a gradient echo with TE < 12 ms and TR < 50 ms or TI 500 to 1500 ms, or a spin echo with
TE < 30 ms and TR < 1000 ms. Of several in a study the first is taken in the order: said rather than
by its times, 3-D, without contrast agent, most slices, lowest series number. A study with a
single MR series gives that, with a note if nothing says that it is T1-weighted.

**PET.** Of several in a study: attenuation-corrected, static rather than dynamic or gated, most
slices, lowest series number.

**Pairs.** A PET goes with the T1w of its study, or else with that of the patient's study nearest in
date. A PET is a session; an MR that no PET takes is left.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fusionflow.errors import ConfigurationError
from fusionflow.io.dicom import Index, Series
from fusionflow.io.dicom_labels import Labels

__all__ = ["LeftOut", "Pair", "Plan", "make_plan"]

FEWEST_SLICES: Final = 16
"""A series of fewer images is no volume."""

_T1: Final = re.compile(r"t1|mp-?2?rage|f?spgr|bravo|\b3d.?tfe|tfl3d|\bvibe|ravel")
_NOT_T1: Final = re.compile(
    r"t2|flair|dwi|diff|\badc\b|dti|bold|fmri|\bep2d|swi|\btof\b|perf|\basl\b|loc(?:al|$|\b)|scout"
    r"|survey|field.?map|fmap|mr-?ac|\bumap|attenuation|dixon|\bpd\b"
)


@dataclass(frozen=True, eq=False)
class Pair:
    """A PET and the T1w that goes with it.

    Attributes
    ----------
    subject, session : str
        Labels without prefix.
    t1w, pet : Series
        What to convert.
    notes : tuple of str
        What a person should know about the choice; names nobody.
    """

    subject: str
    session: str
    t1w: Series
    pet: Series
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Such as ``sub-x_ses-y``."""
        return f"sub-{self.subject}_ses-{self.session}"


@dataclass(frozen=True, eq=False)
class LeftOut:
    """A series that is not converted, and why."""

    series: Series
    reason: str


@dataclass(frozen=True, eq=False)
class Plan:
    """What to convert, and what to leave."""

    pairs: tuple[Pair, ...]
    left: tuple[LeftOut, ...]


def weighting(series: Series) -> int:
    """Say whether an MR is T1-weighted: 2 it says so, 1 its times do, 0 unknown, -1 it is not."""
    if _NOT_T1.search(series.description):
        return -1
    if _T1.search(series.description):
        return 2
    tr, te, ti = series.tr, series.te, series.ti
    if tr is None or te is None:
        return 0
    if "GR" in series.sequence:
        return 1 if te < 12 and (tr < 50 or (ti is not None and 500 <= ti <= 1500)) else -1
    if "SE" in series.sequence:
        return 1 if te < 30 and tr < 1000 else -1
    return 0


def make_plan(found: Index, labels: Labels) -> Plan:
    """Pair the series of an index.

    Raises
    ------
    ConfigurationError
        If two patients would get one label without being said to be one person.
    """
    left: list[LeftOut] = []
    people: dict[str, list[Series]] = defaultdict(list)
    births: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for series in found.series:
        births[series.patient] |= {series.born} - {""}
    for series in found.series:
        if series.fault:
            left.append(LeftOut(series, series.fault))
        elif series.images < FEWEST_SLICES:
            left.append(LeftOut(series, f"fewer than {FEWEST_SLICES} slices: no volume"))
        elif len(births[series.patient]) > 1:
            reason = "its patient ID stands with different birth dates: correct one of them"
            left.append(LeftOut(series, reason))
        else:
            people[labels.subject(series)].append(series)
    pairs: list[Pair] = []
    for subject, group in sorted(people.items()):
        known = all(labels.is_known(series) for series in group)
        if not known and len({series.patient for series in group}) > 1:
            raise ConfigurationError(
                f"Two patients would both be sub-{subject}",
                "Correct the table of labels, or take a new key for a new dataset",
            )
        pairs += _pairs(subject, group, labels, left)
    return Plan(tuple(pairs), tuple(left))


def _pairs(
    subject: str, group: Sequence[Series], labels: Labels, left: list[LeftOut]
) -> list[Pair]:
    """Pair the series of one patient; what is left is added to `left`."""
    sessions: dict[str, list[Series]] = defaultdict(list)
    for series in group:
        sessions[labels.session(series)].append(series)
    t1ws: dict[str, tuple[Series, tuple[str, ...]]] = {}
    pets: dict[str, Series] = {}
    for session, inside in sorted(sessions.items()):
        if chosen := _t1w([s for s in inside if s.modality == "MR"], labels, left):
            t1ws[session] = chosen
        if pet := _pet([s for s in inside if s.modality == "PT"], left):
            pets[session] = pet
    pairs, taken = [], set()
    for session, pet in pets.items():
        own = t1ws.get(session)
        if own is not None:
            pairs.append(Pair(subject, session, own[0], pet, own[1]))
            taken.add(session)
            continue
        # Without dates the order of their codes decides, so that it is the same each time.
        others = sorted(t1ws, key=lambda name: (_days(pet, t1ws[name][0], 1e9), name))
        if not others:
            left.append(LeftOut(pet, "no T1-weighted MR series of its patient"))
            continue
        nearest = t1ws[others[0]]
        days = _days(pet, nearest[0], -1)
        apart = "dates unknown" if days < 0 else f"{days:.0f} days apart"
        note = f"its study has no T1w: that of the patient's nearest study is taken ({apart})"
        pairs.append(Pair(subject, session, nearest[0], pet, (note, *nearest[1])))
        taken.add(others[0])
    left += [
        LeftOut(t1w, "no PET goes with it") for name, (t1w, _) in t1ws.items() if name not in taken
    ]
    return pairs


def _t1w(
    found: list[Series], labels: Labels, left: list[LeftOut]
) -> tuple[Series, tuple[str, ...]] | None:
    """Choose among the MR series of one study."""
    if len(found) == 1:
        (only,) = found
        said = weighting(only) > 0
        note = "its study has one MR series, and nothing says that it is T1-weighted: it is taken"
        return only, () if said else (note,)
    weighted = [series for series in found if weighting(series) > 0]
    left += [LeftOut(s, "not T1-weighted, or nothing says so") for s in found if s not in weighted]
    if not weighted:
        return None
    weighted.sort(
        key=lambda s: (
            -weighting(s), not s.volumetric, s.contrast, -s.images, _number(s), s.uid
        )
    )  # fmt: skip
    left += [LeftOut(s, "another T1w of its study is taken") for s in weighted[1:]]
    if len(weighted) == 1:
        return weighted[0], ()
    codes = ", ".join(labels.key.series(series.uid)[:8] for series in weighted)
    return weighted[0], (f"of {len(weighted)} T1w in the study the first is taken: {codes}",)


def _pet(found: list[Series], left: list[LeftOut]) -> Series | None:
    """Choose among the PET series of one study."""
    found.sort(
        key=lambda s: (
            bool(s.corrected) and "ATTN" not in s.corrected,
            bool({"DYNAMIC", "GATED"} & set(s.kind)),
            -s.images,
            _number(s),
            s.uid,
        )
    )
    left += [LeftOut(series, "another PET of its study is taken") for series in found[1:]]
    return found[0] if found else None


def _number(series: Series) -> float:
    return float("inf") if series.number is None else series.number


def _days(one: Series, other: Series, unknown: float) -> float:
    """Return how many days lie between two series."""
    if one.date is None or other.date is None:
        return unknown
    return abs((one.date - other.date).days)
