"""Text for a methods section, made from what the records say was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionflow.errors import NoScansError
from fusionflow.records import Published

_RULES = {
    "learned": "weights that a trained network gives each coefficient",
    "l1-soft": "weights proportional to the activity of each source (soft)",
    "l1-max": "the source with the larger activity",
    "max": "the larger value",
    "max-abs": "the coefficient of larger magnitude",
    "average": "their mean",
    "mri": "the MRI alone",
    "pet": "the PET alone",
}
REFERENCES = {
    "panesar": "Panesar & Ganatra (2024), International Journal of Intelligent Systems and "
    "Applications in Engineering",
    "li": "Li, Wu & Kittler (2018), Infrared and visible image fusion using a deep learning "
    "framework, ICPR",
    "lahoud": "Lahoud & Süsstrunk (2019), Fast and efficient zero-learning image fusion, "
    "arXiv:1905.03590",
    "vgg": "Simonyan & Zisserman (2015), Very deep convolutional networks for large-scale image "
    "recognition, ICLR",
    "mattes": "Mattes et al. (2003), PET-CT image registration in the chest using free-form "
    "deformations, IEEE Trans. Med. Imaging 22",
    "bet": "Smith (2002), Fast robust automated brain extraction, Human Brain Mapping 17",
    "suv": "Boellaard et al. (2015), FDG PET/CT: EANM procedure guidelines, version 2.0, European "
    "Journal of Nuclear Medicine and Molecular Imaging 42",
}


def methods_text(records: Sequence[Published]) -> str:
    """Write what was done to scans, for people to edit and cite.

    Parameters
    ----------
    records : sequence of Published
        The scans; a paragraph for each way in which they were made.

    Returns
    -------
    str
        Markdown.

    Raises
    ------
    NoScansError
        If there are no scans.
    """
    if not records:
        raise NoScansError("No scan is fused, so there is nothing to describe")
    ways: dict[str, _Way] = {}
    for record in records:
        way = ways.setdefault(record.request, _Way(record))
        way.subjects.add(record.subject)
        way.done.append(record.conformed)
    cited: set[str] = {"panesar"}
    paragraphs = [_described(way, cited) for way in ways.values()]
    references = "\n".join(f"- {text}" for key, text in REFERENCES.items() if key in cited)
    return "\n\n".join(["# Methods", *paragraphs, "## References", references]) + "\n"


@dataclass
class _Way:
    """Scans that were made in one way: the first, whose they are, how they were prepared."""

    first: Published
    subjects: set[str] = field(default_factory=set)
    done: list[dict[str, Any]] = field(default_factory=list)


def _described(way: _Way, cited: set[str]) -> str:
    """Describe scans that were made in one way."""
    first, method, done = way.first, way.first.method, way.done
    of_whom = f"{_count(len(way.subjects), 'subject')} ({_count(len(done), 'scan')})"
    parts = [
        f"PET and T1-weighted MRI of {of_whom} were fused with fusionflow "
        f"{first.software.get('fusionflow', '')}.",
        "The MRI was reoriented by flips and permutations of its axes only."
        if not any(item.get("Space") for item in done)
        else "Both images were resampled once onto the grid of a template.",
        *_of_pet(done, cited),
        *_of_masks(done, cited),
        _of_scaling(done, cited),
        _of_method(method, first.weights, cited),
        "The fused image is not quantitative PET.",
    ]
    return " ".join(part for part in parts if part)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _of_pet(done: Sequence[dict[str, Any]], cited: set[str]) -> list[str]:
    """Describe frames, alignment and resampling."""
    sentences = []
    frames = Counter(item.get("Frames", "all") for item in done)
    for choice, _ in frames.most_common():
        if choice != "all":
            sentences.append(
                f"Of dynamic PET the frames `{choice}` were averaged, weighted by time."
            )
    modes = Counter(item.get("Alignment", {}).get("mode", "") for item in done)
    for mode, number in modes.most_common():
        of = "" if number == len(done) else f" of {_count(number, 'scan')}"
        if mode == "rigid":
            cited.add("mattes")
            sentences.append(
                f"The PET{of} was registered to the MRI by a rigid transform that maximises "
                "Mattes' mutual information (SimpleITK, multi-resolution), and resampled once."
            )
        elif mode == "header":
            sentences += _of_headers(
                [
                    item["Alignment"]
                    for item in done
                    if item.get("Alignment", {}).get("mode") == mode
                ]
            )
        elif mode == "in T1w space":
            sentences.append(f"The PET{of} was in the space of the T1w image already.")
        elif mode == "none":
            sentences.append(f"The PET{of} was taken voxel for voxel.")
    resampled = sum(item.get("Resampled") != "no" for item in done)
    if resampled:
        sentences.append(
            f"The PET of {_count(resampled, 'scan')} was resampled onto the grid of the MRI by "
            "trilinear interpolation, smoothed first where that grid is coarser."
        )
    return sentences


def _of_headers(alignments: Sequence[dict[str, Any]]) -> list[str]:
    """Describe scans that were taken as their headers say: checked, flagged, or neither."""
    flagged = sum(bool(item.get("flagged")) for item in alignments)
    checked = sum(bool(item.get("registration")) and not item["flagged"] for item in alignments)
    rest = len(alignments) - flagged - checked
    return [
        f"The PET of {_count(number, 'scan')} was taken as aligned by the image headers{how}."
        for number, how in (
            (checked, ", which a rigid registration bore out"),
            (rest, ""),
            (flagged, " although a registration disagreed that could not be believed: see which"),
        )
        if number
    ]


def _of_masks(done: Sequence[dict[str, Any]], cited: set[str]) -> list[str]:
    sources = Counter(item.get("Mask", "head") for item in done)
    sentences = []
    for source, number in sources.most_common():
        of = "" if number == len(done) else f" of {_count(number, 'scan')}"
        if source == "file":
            sentences.append(f"Masks{of} were given with the data.")
        elif source == "head":
            cited.add("bet")
            sentences.append(f"The head{of} was separated from air by the threshold of BET.")
        else:
            sentences.append(f"Masks{of} were found by the rule `{source}`.")
    return sentences


def _of_scaling(done: Sequence[dict[str, Any]], cited: set[str]) -> str:
    options = done[0].get("Options", {})
    window = options.get("pet_window")
    units = {"suv": "SUV by body weight", "suvr": "SUVR"}.get(options.get("pet_units", ""), "")
    if options.get("pet_units") == "suv":
        cited.add("suv")
    pet = f"the PET, in {units}," if units else "the PET"
    if window:
        pet += f" by the fixed window {window[0]:g} to {window[1]:g}"
    else:
        pet += f" by its {options.get('pet_percentile', 99.5):g}th percentile inside the mask"
    return (
        f"Intensities were scaled without clipping: the MRI by its "
        f"{options.get('mri_percentile', 99.5):g}th percentile inside the mask, {pet}."
    )


#: Of a network, where it is not float32.
_ARITHMETIC = {
    "bfloat16": "bfloat16",
    "int8": "8-bit integers, with 32-bit sums",
}


def _of_method(method: dict[str, Any], weights: str | None, cited: set[str]) -> str:
    transform = method.get("transform", {})
    levels = transform.get("levels", 0)
    if transform.get("kind") == "laplacian":
        bands = f"the levels of a Laplacian pyramid ({levels} levels) of each axial slice"
    elif levels:
        bands = (
            f"the bands of a 2-D discrete wavelet transform ({transform.get('name')}, "
            f"{_count(levels, 'level')}) of each axial slice"
        )
    else:
        bands = "the pixels of each axial slice"
    rule = _RULES.get(str(method.get("rule")), f"the rule `{method.get('rule')}`")
    text = f"With the method `{method.get('name')}`, {bands} of both were merged by {rule}"
    taps = ", ".join(method.get("taps", ()))
    if method.get("rule") == "learned" and weights:
        cited.update({"vgg"} if "vgg" in str(method.get("backbone")) else set())
        text += (
            f" (model {weights}, for {method['backbone']} up to {taps}), at a balance of "
            f"{method.get('balance', 0.5):g} (0: PET, 1: MRI)"
        )
    elif method.get("backbone") and weights:
        cited.update({"li", "lahoud", "vgg"} if "vgg" in method["backbone"] else {"li", "lahoud"})
        text += (
            f"; activity is the l1-norm of the features of {method['backbone']} ({weights}) at "
            f"{taps}"
        )
    arithmetic = _ARITHMETIC.get(str(method.get("precision")))
    if arithmetic and weights:
        text += f"; the network's arithmetic was {arithmetic}"
    return text + ", following Panesar & Ganatra (2024)."
