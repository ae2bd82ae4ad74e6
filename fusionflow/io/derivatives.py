"""What lies beside the store for other tools: NIfTI, sidecars, pictures, in BIDS places."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fusionflow import schema
from fusionflow.errors import ConfigurationError, StoreError
from fusionflow.io.files import read_json, write_bytes, write_json
from fusionflow.io.nifti import Orientation
from fusionflow.io.nifti_write import Slices, write_slices
from fusionflow.io.store import SMALL_SCAN
from fusionflow.ledger import OutputPaths
from fusionflow.malloc import kept_memory
from fusionflow.overlay import Overlay, pet_on_mri
from fusionflow.pictures import mosaic, slices_to_show
from fusionflow.png import png_bytes

BIDS_VERSION = "1.10.0"

_BIDSIGNORE = """\
# BIDS has no name for fused images, nor for the store and the cohort summary.
**/fused
scans
logs
run.lock
index.json
group*
"""


_README = """\
# Fused PET and MRI

Made by fusionflow from the dataset that `dataset_description.json` names. For research use: a fused
image is not quantitative PET, and nothing here is meant for diagnosis.

- `sub-*/[ses-*/]fused/*_fused.nii.gz`: the fused volume on the grid of the T1w image; beside it how
  it was made (`.json`), slices to look at (`.png`), the PET in colour on the MRI
  (`*_overlay.nii.gz`), and where the PET was registered to the MRI the outlines of the one over the
  other, before and after (`*_registration.png`).
- `group.html`: the cohort to look at; `fusionflow report` adds a page for each scan
  (`*_fused.html`).
- `group_metrics.tsv`, `group_scans.tsv` and `.parquet`, `group.zarr`: figures of the cohort;
  `group_methods.md`: what was done, in words.
- `scans/`, `index.json`: the arrays, for `fusionflow.open_cohort`; `logs/`: what each run did.
"""


_ENDINGS = ("fused.nii.gz", "fused.json", "fused.png", "overlay.nii.gz", "registration.png")
#: Of the page that `fusionflow.report.scan` makes of the outputs.
REPORT = "fused.html"
#: The page that `fusionflow.report.cohort_page` makes of all scans, in the output folder.
COHORT_REPORT = "group.html"


def scan_file_names(label: str) -> tuple[str, ...]:
    """Return the names of all files that a scan can have there, the last of them its report."""
    return tuple(f"{label}_{ending}" for ending in (*_ENDINGS, REPORT))


def relative_folder(subject: str, session: str | None) -> Path:
    """Return where a scan's files go, relative to the output folder."""
    folder = Path(f"sub-{subject}")
    return (folder / f"ses-{session}" if session else folder) / "fused"


def check_folder(paths: OutputPaths) -> None:
    """Refuse a folder that is a dataset of something else: it must not be overwritten.

    Raises
    ------
    ConfigurationError
        If it is one.
    """
    description = paths.root / "dataset_description.json"
    if not _is_ours(description):
        raise ConfigurationError(
            f"{paths.root} is a dataset that fusionflow did not make ({description.name})",
            "Choose another output folder",
        )


def write_dataset_files(paths: OutputPaths, source: Path) -> None:
    """Write ``dataset_description.json`` and ``.bidsignore``.

    Raises
    ------
    StoreError
        If the output folder cannot be written.
    """
    ignored = paths.root / ".bidsignore"
    if not ignored.exists():
        write_bytes(ignored, _BIDSIGNORE.encode())
    readme = paths.root / "README.md"
    if not readme.exists():
        write_bytes(readme, _README.encode())
    write_json(
        paths.root / "dataset_description.json",
        {
            "Name": "PET/MRI fusion",
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [
                {
                    "Name": "fusionflow",
                    "Version": metadata.version("fusionflow"),
                    "Description": "Wavelet-domain fusion of PET and T1w MRI",
                }
            ],
            "DatasetLinks": {"raw": source.resolve().as_uri()},
            "SourceDatasets": [{"URL": source.resolve().as_uri()}],
        },
        unless_same=True,
    )


def _is_ours(description: Path) -> bool:
    """Whether a ``dataset_description.json`` is not there, or fusionflow's."""
    if not description.is_file():
        return True
    try:
        content = read_json(description)
    except StoreError:
        return False
    made_by = content.get("GeneratedBy") if isinstance(content, dict) else None
    names = [item.get("Name") for item in made_by or () if isinstance(item, dict)]
    return "fusionflow" in names


def write_scan_files(
    folder: Path,
    label: str,
    volumes: Mapping[str, Slices],
    slab: int,
    orientation: Orientation,
    sidecar: dict[str, Any],
    title: str,
    registration: bytes | None = None,
) -> tuple[str, ...]:
    """Write a scan's fused NIfTI, its sidecar, the PET in colour on the MRI, and a picture of all.

    Parameters
    ----------
    folder : Path
        Existing folder.
    label : str
        Scan.
    volumes : mapping of str to Slices
        ``mri``, ``pet``, ``mask`` and ``fused``, (z, y, x), on the MRI's grid in RAS+.
    slab : int
        Slices of them that are read at a time.
    orientation : Orientation
        Layout of the T1w file; the NIfTI gets the same.
    sidecar : dict
        Content of the JSON file.
    title : str
        Line above the picture.
    registration : bytes, optional
        PNG of the registration, where there was one.

    Returns
    -------
    tuple of str
        Names of the files.
    """
    names = scan_file_names(label)[:-1]
    image, text, picture, colours, outlines = (folder / name for name in names)
    places = slices_to_show(volumes["mask"][:])
    mri, pet, fused = (_Remembering(volumes[name], places) for name in (*schema.SOURCES, "fused"))
    overlay = Overlay(mri, pet, slab)
    # Compression and Zarr leave the interpreter to others, so two threads take half as long where
    # a processor has nothing to do; of a large scan both would hold too much.
    with ThreadPoolExecutor(1) as pool:
        colouring = pool.submit(
            kept_memory()(write_slices),
            colours, overlay, orientation, slab=slab, description="PET on MRI",
        )  # fmt: skip
        if prod(fused.shape) > SMALL_SCAN:
            colouring.result()
        write_slices(image, fused, orientation, slab=slab, description="fusionflow")
        colouring.result()
    text.write_text(json.dumps(sidecar, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    affine = orientation.ras_affine
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    colours_of = {z: pet_on_mri(mri.seen[z], pet.seen[z]) for z in places}
    rows = {"MRI": mri.seen, "PET": pet.seen, "fused": fused.seen, "PET on MRI": colours_of}
    picture.write_bytes(png_bytes(mosaic(rows, places, title, (z, y, x))))
    if registration is None:
        return names[:-1]
    outlines.write_bytes(registration)
    return names


class _Remembering:
    """A volume (z, y, x), read some slices at a time, that keeps a few of those it was asked for.

    Parameters
    ----------
    volume : Slices
        The volume.
    places : sequence of int
        Which it keeps.

    Attributes
    ----------
    seen : dict
        Those that were read so far, (y, x), by number.
    """

    def __init__(self, volume: Slices, places: Sequence[int]) -> None:
        self.seen: dict[int, npt.NDArray[Any]] = {}
        self._volume, self._places = volume, places

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x)."""
        return self._volume.shape

    def __getitem__(self, where: slice) -> npt.NDArray[Any]:
        """Return some slices that lie side by side."""
        rows: npt.NDArray[Any] = self._volume[where]
        first, last, _ = where.indices(self.shape[0])
        self.seen |= {z: rows[z - first].copy() for z in self._places if first <= z < last}
        return rows


def _uri(path: str) -> str:
    """Return a BIDS URI of a file of the input, or the URI of one that lies elsewhere."""
    return Path(path).as_uri() if path.startswith("/") else f"bids:raw:{path}"


def sidecar_content(
    scan_sources: dict[str, str],
    method: dict[str, Any],
    weights: str | None,
    version: str,
    conformed: dict[str, Any],
    notes: tuple[str, ...],
) -> dict[str, Any]:
    """Return the JSON sidecar of a fused image.

    Parameters
    ----------
    scan_sources : dict
        Role -> path, relative to the input or absolute.
    method : dict
        Every parameter.
    weights : str or None
        One line on the weights, None if no network was read.
    version : str
        Fingerprint of inputs and method.
    conformed : dict
        Scaling and resampling, as recorded.
    notes : tuple of str
        Warnings.
    """
    content: dict[str, Any] = {
        "Description": (
            "Fusion of T1w MRI and PET on the grid of "
            f"{conformed.get('Space') or 'the T1w image'}. "
            "Not quantitative PET; for research use."
        ),
        "Units": "arbitrary",
        "Sources": [_uri(path) for path in scan_sources.values()],
        "SpatialReference": conformed.get("Space") or _uri(scan_sources["t1w"]),
        "SkullStripped": False,
        "Method": method,
        "Version": version,
        "SoftwareVersion": metadata.version("fusionflow"),
        "Conform": conformed,
        "Warnings": list(notes),
    }
    if weights is not None:
        content["Weights"] = weights
    return content
