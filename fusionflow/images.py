"""Pairs of pictures: MRI in grey and PET in grey or pseudo-colour, as PNG, JPEG or TIFF.

Research publishes PET slices in pseudo-colour. Fusing their luminance and putting the chroma back
darkens the hottest uptake, since luminance peaks at yellow and falls to red. So by default uptake
is recovered from the colours, fused, and shown as colour; the published way is there to compare.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from fusionflow import colour as colours
from fusionflow.errors import GridError, ImageError, InputError, NoScansError
from fusionflow.luts import ColourTable
from fusionflow.stages import Recipe, decompose_slab, fuse_slab
from fusionflow.subbands import FloatArray
from fusionflow.transform import reconstruct
from fusionflow.untrusted import one_line, open_file

ByteImage: TypeAlias = npt.NDArray[np.uint8]
Colour: TypeAlias = Literal["uptake", "luminance", "grey"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
#: What Pillow may decode, whatever a file is called: it knows formats that run other programs.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
#: A square of 4096: conforming, fusing and colouring take some 60 bytes for each.
_MOST_PIXELS = 1 << 24
_EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
#: Names that folders of MRI pictures, and of what is fused with them, go by.
MRI_FOLDERS = ("mri", "mr", "t1", "t1w")
PET_FOLDERS = ("pet", "spect", "pt", "fdg")


@dataclass(frozen=True)
class PicturePair:
    """Two pictures of one slice."""

    name: str
    mri: Path
    pet: Path


@dataclass(frozen=True, eq=False)
class Sources:
    """A pair as it is fused.

    Attributes
    ----------
    mri, pet : ndarray, (y, x) float32
        0..1: grey values, luminance or uptake.
    pet_rgb : ndarray, (y, x, 3) uint8
        The PET as it was published.
    colour : {"uptake", "luminance", "grey"}
        What `pet` is, and how the result is coloured.
    table : str
        The colour table that was recognised; empty unless `colour` is uptake.
    """

    mri: FloatArray
    pet: FloatArray
    pet_rgb: ByteImage
    colour: Colour
    table: str = ""


def find_pairs(mri: Path, pet: Path) -> list[PicturePair]:
    """Pair two pictures, or the pictures of one name in two folders.

    Raises
    ------
    InputError
        If one is a folder and the other is not.
    NoScansError
        If no name is in both folders.
    """
    if mri.is_dir() != pet.is_dir():
        raise InputError(f"{mri} and {pet} are not both pictures or both folders")
    if not mri.is_dir():
        return [PicturePair(mri.stem, mri, pet)]
    ours, theirs = pictures_in(mri), pictures_in(pet)
    both = sorted(ours.keys() & theirs.keys(), key=_natural)
    if not both:
        raise NoScansError(
            f"No picture in {mri} has one of the same name in {pet}",
            f"They hold {len(ours)} and {len(theirs)} pictures",
        )
    return [PicturePair(name, ours[name], theirs[name]) for name in both]


def find_pair_folders(folder: Path) -> list[PicturePair]:
    """Pair the pictures of a folder that holds one folder of MRI and one of PET or SPECT.

    Raises
    ------
    NoScansError
        If it does not.
    """
    inside = {path.name.lower(): path for path in _listed(folder) if path.is_dir()}
    mri = [inside[name] for name in MRI_FOLDERS if name in inside]
    pet = [inside[name] for name in PET_FOLDERS if name in inside]
    if len(mri) != 1 or len(pet) != 1:
        raise NoScansError(
            f"{folder} does not hold one folder of MRI and one of PET pictures",
            f"Name them MRI and PET; it holds {', '.join(sorted(inside)) or 'no folder'}",
        )
    return find_pairs(mri[0], pet[0])


def _listed(folder: Path) -> list[Path]:
    """Return what a folder holds, sorted."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(
            f"{folder} cannot be listed: {error.strerror or error}", "Give a folder of pictures"
        ) from error


def pictures_in(folder: Path) -> dict[str, Path]:
    """Return the pictures of a folder by name without suffix.

    Raises
    ------
    InputError
        If two have one name.
    """
    found: dict[str, Path] = {}
    for path in _listed(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        if path.stem in found:
            raise InputError(f"{found[path.stem]} and {path} have one name", "Remove one of them")
        found[path.stem] = path
    return found


def _natural(name: str) -> tuple[int, int | str, str]:
    return (0, int(name), name) if name.isdecimal() else (1, name, name)


def read_rgb(path: Path) -> ByteImage:
    """Return a picture as (y, x, 3) uint8.

    Raises
    ------
    ImageError
        If it cannot be read, or is not of 8 bits.
    """
    try:
        # Pillow warns of what it passes over, such as damaged EXIF, and of large pictures.
        with (
            warnings.catch_warnings(action="ignore"),
            open_file(path) as stream,
            Image.open(stream, formats=_FORMATS) as picture,
        ):
            _check_pixels(path, picture)
            picture.load()
            mode = picture.mode
            rgba = np.asarray(picture.convert("RGBA")) if mode in _EIGHT_BITS else None
    except ImageError:
        raise
    except Exception as error:  # decoding fails in many ways, all of them mean this
        raise ImageError(
            f"Cannot read the picture {path}: {one_line(error) or type(error).__name__}",
            "Export it again as an 8-bit PNG",
        ) from error
    if rgba is None:
        raise ImageError(
            f"{path} has mode {mode}, not 8 bits grey or colour",
            "Convert it to an 8-bit PNG; fuse volumes with `fusionflow run`",
        )
    # What is transparent shows the background, which is black in these pictures.
    opaque = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * opaque + 127) // 255).astype(np.uint8)


def _check_pixels(path: Path, picture: Image.Image) -> None:
    """Refuse a picture that would take much more memory than a slice."""
    if picture.width * picture.height > _MOST_PIXELS:
        raise ImageError(
            f"{path} has {picture.width} x {picture.height} pixels, more than {_MOST_PIXELS}",
            "Crop it, or make it smaller",
        )


def read_pair(
    pair: PicturePair, colour: Colour | None = None, table: ColourTable | None = None
) -> Sources:
    """Read a pair and make grey sources of it.

    Parameters
    ----------
    pair : PicturePair
        Two pictures of one size.
    colour : {"uptake", "luminance", "grey"}, optional
        How to take the PET. By default uptake if it is in colour, otherwise grey.
    table : ColourTable, optional
        Its pseudo-colours; recognised if it is not given.

    Raises
    ------
    GridError
        If the pictures are not of one size.
    InputError
        If no known table explains the colours.
    ImageError
        If one cannot be read.
    """
    mri_rgb, pet_rgb = read_rgb(pair.mri), read_rgb(pair.pet)
    if mri_rgb.shape != pet_rgb.shape:
        raise GridError(
            f"{pair.mri} is {mri_rgb.shape[1]} x {mri_rgb.shape[0]} pixels, "
            f"{pair.pet} {pet_rgb.shape[1]} x {pet_rgb.shape[0]}",
            "Resample one onto the other first",
        )
    chosen = colour or ("grey" if colours.is_grey(pet_rgb) else "uptake")
    mri = colours.luminance(mri_rgb)
    if chosen != "uptake":
        return Sources(mri, colours.luminance(pet_rgb), pet_rgb, chosen)
    try:
        table = colours.recognise(pet_rgb, None if table is None else [table]).table
    except InputError as error:
        raise InputError(f"{pair.pet}: {error.message}", error.mend) from error
    return Sources(mri, colours.uptake(pet_rgb, table), pet_rgb, "uptake", table.name)


def fuse_slices(mri: FloatArray, pet: FloatArray, recipe: Recipe) -> FloatArray:
    """Fuse stacks of slices (z, y, x) float32 in this process, as a run does.

    Parameters
    ----------
    mri, pet : ndarray, (z, y, x) float32
        0..1 is the display window.
    recipe : Recipe
        As `fusionflow.graph.make_recipe` gives it.
    """
    bands = fuse_slab(decompose_slab(mri, pet, recipe), recipe).bands
    return reconstruct(bands, recipe.method.transform)


def coloured(fused: FloatArray, sources: Sources) -> ByteImage:
    """Return a fused picture, (y, x, 3) uint8.

    Parameters
    ----------
    fused : ndarray, (y, x)
        0..1.
    sources : Sources
        What was fused, and how the result is coloured.
    """
    if sources.colour == "uptake":
        return colours.colourise(fused, sources.pet)
    if sources.colour == "luminance":
        return colours.with_chroma(fused, sources.pet_rgb)
    levels = np.floor(np.clip(fused, 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=-1)


def fuse_and_colour(sources: Sources, recipe: Recipe) -> ByteImage:
    """Fuse a pair and return the picture of it, (y, x, 3) uint8."""
    fused = fuse_slices(sources.mri[None], sources.pet[None], recipe)[0]
    return coloured(fused, sources)


def side_by_side(pictures: Sequence[ByteImage], gap: int = 4) -> Image.Image:
    """Return pictures of one height beside each other."""
    height = pictures[0].shape[0]
    space = np.zeros((height, gap, 3), np.uint8)
    row = [part for picture in pictures for part in (picture, space)][:-1]
    return Image.fromarray(np.concatenate(row, axis=1))
