"""One series to one NIfTI image and its sidecar, by dcm2niix, without a word that names anybody.

dcm2niix gets a folder of numbered links to the files of one series and is started without a shell;
what it prints is thrown away, since it names files and people. Then the header's texts and
extensions are emptied and the sidecar is made anew.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np

from fusionflow.errors import ImageError
from fusionflow.io.dicom import Series
from fusionflow.io.dicom_sidecar import PET_TAGS, Frame, pet_fields, scrubbed, tracer_of
from fusionflow.io.dicom_tags import (
    IDENTIFYING,
    Tags,
    dcm2niix_program,
    identifiers,
    read_tags,
    when,
)
from fusionflow.io.nifti import read_header
from fusionflow.untrusted import read_bounded

__all__ = ["Converted", "convert_series", "working_folder"]

TIMEOUT: Final = 1800.0
"""Seconds that one series may take."""

_SLICE_TAGS: Final = (
    "AcquisitionDate",
    "AcquisitionTime",
    "ActualFrameDuration",
    "Columns",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "NumberOfFrames",
    "NumberOfSlices",
    "PixelSpacing",
    "Rows",
    "SOPInstanceUID",
    "SliceThickness",
    "SpecificCharacterSet",
)
_MOST_SIDECAR_BYTES: Final = 1 << 24
_NIFTI1: Final = 348
#: data_type and db_name, descrip and aux_file, intent_name: bytes of texts in a NIfTI-1 header.
_TEXTS: Final = ((4, 32), (148, 252), (328, 344))
_VOX_OFFSET: Final = 108
_CHUNK: Final = 1 << 20
_SAME_MM: Final = 0.02
_UNEVEN: Final = 0.05  # of the distance between slices


@dataclass(frozen=True)
class Converted:
    """An image and its sidecar, not yet in their place.

    Attributes
    ----------
    image : Path
        A ``.nii.gz``.
    sidecar : dict
        Its metadata.
    tracer : str
        Short name of a PET's tracer, empty if it is not known.
    notes : tuple of str
        What a person should know; names nobody.
    """

    image: Path
    sidecar: dict[str, Any]
    tracer: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Slices:
    """What the headers of all files of a series say together."""

    files: tuple[Path, ...]
    frames: tuple[Frame, ...]
    shape: tuple[int, int, int] | None  # columns, rows, places
    first: Tags
    secrets: frozenset[str]
    notes: tuple[str, ...]


@contextmanager
def working_folder() -> Iterator[Path]:
    """Make a folder that nobody else may enter, outside the dataset, and remove it in the end."""
    folder = Path(tempfile.mkdtemp(prefix="fusionflow-dicom-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def convert_series(series: Series, work: Path) -> Converted:
    """Convert one series.

    Parameters
    ----------
    series : Series
        MR or PET.
    work : Path
        An empty folder; the image is made in it.

    Raises
    ------
    ImageError
        If it gives no single volume (over time); the text names neither files nor people.
    MissingExtraError
        If dcm2niix or pydicom is not installed.
    """
    slices = _read_slices(series)
    links, made = work / "in", work / "out"
    links.mkdir(parents=True)
    made.mkdir()
    for number, path in enumerate(slices.files):
        (links / f"{number:06}").symlink_to(path.absolute())
    _run_dcm2niix(links, made)
    images = sorted(made.glob("*.nii"))
    if len(images) != 1:
        raise ImageError(
            f"dcm2niix made {len(images) or 'no'} images of it",
            "Its slices differ in orientation, size or kind, or are damaged: export it again, or "
            "split it",
        )
    image = work / "image.nii.gz"
    _scrub_image(images[0], image)
    header = read_header(image)
    volumes = header.n_frames
    if slices.shape is not None and (
        header.shape[:3] != slices.shape or volumes * slices.shape[2] != len(slices.files)
    ):
        raise ImageError(
            f"dcm2niix made an image of {header.shape} from {len(slices.files)} slices at "
            f"{slices.shape[2]} places",
            "Some of its files are damaged: export it again",
        )
    if series.modality == "MR" and volumes > 1:
        raise ImageError(f"it has {volumes} images at each place", "Name a series of one volume")
    try:
        fields = json.loads(read_bounded(images[0].with_suffix(".json"), _MOST_SIDECAR_BYTES))
    except (OSError, ValueError):
        fields = {}
    fields = fields if isinstance(fields, dict) else {}
    sidecar = scrubbed(fields, slices.secrets)
    tracer = ""
    if series.modality == "PT":
        sidecar |= pet_fields(slices.first, slices.frames, volumes, fields)
        tracer = tracer_of(slices.first)
    images[0].unlink()
    return Converted(image, sidecar, tracer, slices.notes)


def _run_dcm2niix(links: Path, made: Path) -> None:
    """Let dcm2niix convert a folder."""
    options = {"b": "y", "ba": "y", "c": "", "d": "0", "f": "image", "g": "i", "x": "i", "z": "n"}
    arguments = [part for name, value in options.items() for part in (f"-{name}", value)]
    try:
        ended = subprocess.run(
            [dcm2niix_program(), *arguments, "-o", str(made), str(links)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=made,
            env={"PATH": os.defpath, "HOME": str(made), "LC_ALL": "C"},
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"dcm2niix took more than {TIMEOUT:g} s", "Look at its files") from None
    except OSError as error:
        raise ImageError(
            f"dcm2niix cannot be started: {error.strerror}", "Run: pip install 'fusionflow[dicom]'"
        ) from None
    if ended.returncode:
        how = f"was killed by signal {-ended.returncode}" if ended.returncode < 0 else "failed"
        code = "" if ended.returncode < 0 else f" with code {ended.returncode}"
        raise ImageError(f"dcm2niix {how}{code}", "Its files are damaged: export the series again")


def _scrub_image(source: Path, target: Path) -> None:
    """Compress a NIfTI-1 file without its texts and extensions; the same voxels, the same bytes."""
    with source.open("rb") as stream, target.open("wb") as stored:
        head = bytearray(stream.read(_NIFTI1))
        order = "<" if head[:4] == struct.pack("<i", _NIFTI1) else ">"
        sound = len(head) == _NIFTI1 and head[:4] == struct.pack(f"{order}i", _NIFTI1)
        if not sound or head[344:347] != b"n+1":
            raise ImageError("dcm2niix made no NIfTI-1 file of it", "It may be too large")
        start = int(struct.unpack_from(f"{order}f", head, _VOX_OFFSET)[0])
        for begin, end in _TEXTS:
            head[begin:end] = bytes(end - begin)
        struct.pack_into(f"{order}f", head, _VOX_OFFSET, _NIFTI1 + 4)
        stream.seek(max(start, _NIFTI1 + 4))
        with gzip.GzipFile("", "wb", 6, stored, mtime=0) as packed:
            packed.write(head + bytes(4))
            _copy(stream, packed)


def _copy(stream: BinaryIO, packed: gzip.GzipFile) -> None:
    while part := stream.read(_CHUNK):
        packed.write(part)


def _read_slices(series: Series) -> _Slices:
    """Read the headers of all files, and make sure that they make one volume."""
    keywords = sorted({*_SLICE_TAGS, *PET_TAGS, *IDENTIFYING})
    files: list[Path] = []
    tags: list[Tags] = []
    secrets: frozenset[str] = frozenset()
    seen: set[str] = set()
    first: Tags | None = None
    twice = 0
    positions: list[tuple[float, ...]] = []
    turned: set[tuple[float, ...]] = set()
    sizes: set[tuple[float | None, ...]] = set()
    times: list[tuple[Any, Any]] = []
    for path in series.paths():
        try:
            one = read_tags(path, keywords)
        except (OSError, ValueError):
            one = None
        if one is None:
            raise ImageError("one of its files can no longer be read", "Run again")
        uid = one.text("SOPInstanceUID")
        if uid in seen:
            twice += 1
            continue
        seen.add(uid)
        first = first or one
        secrets |= identifiers(one)
        files.append(path)
        positions.append(one.numbers("ImagePositionPatient"))
        turned.add(tuple(round(v, 3) + 0.0 for v in one.numbers("ImageOrientationPatient")))
        sizes.add((one.number("Columns"), one.number("Rows"), *one.numbers("PixelSpacing")))
        duration = one.number("ActualFrameDuration")
        start = when(one.text("AcquisitionDate"), one.text("AcquisitionTime"))
        times.append((start, duration / 1000 if duration else None))
    del tags
    notes: tuple[str, ...] = (f"{twice} files are there twice",) if twice else ()
    if first is None:
        raise ImageError("it has no files", "Run again")
    if (first.number("NumberOfFrames") or 0) > 1:
        return _Slices(tuple(files), (), None, first, secrets, notes)
    if len(sizes) > 1:
        raise ImageError("its slices differ in size", "Export the series again, or split it")
    if len(turned) > 1:
        raise ImageError("its slices differ in orientation", "Split the series")
    places, gaps = _places(positions, next(iter(turned)))
    frames = tuple(Frame(place, *time) for place, time in zip(places, times, strict=True))
    count = 1 + max(places)
    if len(files) % count or {places.count(n) for n in range(count)} != {len(files) // count}:
        raise ImageError("slices of it are missing at some time", "Export the series again")
    if gaps.size and np.ptp(gaps) > _UNEVEN * np.median(gaps):
        raise ImageError("slices of it are missing", "Export the series again")
    claimed = first.number("NumberOfSlices")
    if claimed and claimed > count:
        notes += (f"{count} of {claimed:.0f} slices are here",)
    columns, rows = next(iter(sizes))[:2]
    if not columns or not rows:
        raise ImageError("it has no pixels", "Name a series of images")
    return _Slices(tuple(files), frames, (int(columns), int(rows), count), first, secrets, notes)


def _places(
    positions: Sequence[tuple[float, ...]], turned: tuple[float, ...]
) -> tuple[list[int], Any]:
    """Return which place along their normal each slice has, and the distances between places."""
    if len(turned) != 6 or {len(position) for position in positions} != {3}:
        raise ImageError("its headers do not say where its slices lie", "Export the series again")
    normal = np.cross(turned[:3], turned[3:])
    along = np.array(positions) @ normal
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order])
    numbers = np.concatenate([[0], np.cumsum(steps > _SAME_MM)])
    places = np.empty(len(along), dtype=int)
    places[order] = numbers
    return places.tolist(), steps[steps > _SAME_MM]
