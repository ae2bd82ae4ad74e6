"""The report of one scan: one HTML file, made from a run's outputs alone."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from pydantic import ValidationError

from fusionflow.config import Method, Wavelet
from fusionflow.errors import ScanNotFoundError, StoreError
from fusionflow.io.derivatives import COHORT_REPORT, REPORT, relative_folder
from fusionflow.io.files import write_bytes
from fusionflow.io.store import Layout, open_volume
from fusionflow.ledger import OutputPaths, read_published
from fusionflow.metrics import PAIR_METRICS, Metric
from fusionflow.overlay import pet_on_mri
from fusionflow.records import Published
from fusionflow.report import provenance, volumes
from fusionflow.report.bands import COLOURS, PALETTE, BandOfSlice, bands_of_slice, weight_levels
from fusionflow.report.curves import HEIGHT, WIDTH, Curve, curves
from fusionflow.report.page import data_uri, figure, render
from fusionflow.report.planes import PLANES, Choice, Shown, head_box, look, png, webp
from fusionflow.schema import SOURCES
from fusionflow.summary import SCAN_METRICS, metrics_dataset

_VOLUMES = (*SOURCES, "fused")
_SLICES_WITH_BANDS = 5


def write_scan_report(root: Path, label: str) -> Path:
    """Write the report of a scan beside its other files.

    Parameters
    ----------
    root : Path
        Output folder of a run.
    label : str
        Scan, such as ``sub-01_ses-02``.

    Returns
    -------
    Path
        ``sub-*/[ses-*/]fused/*_fused.html``.

    Raises
    ------
    ScanNotFoundError
        If the folder holds no such scan.
    StoreError
        If its files cannot be read, or the report cannot be written.
    """
    paths = OutputPaths(Path(root))
    published = _published_ns(paths, label)
    record = read_published(paths, label)
    if record is None:
        raise ScanNotFoundError(
            f"{root} holds no fused scan {label!r}", "`fusionflow status` lists those it holds"
        )
    path = report_path(paths, record)
    write_bytes(path, scan_report(paths, record).encode())
    # As old as what it shows: if a run has published the scan anew meanwhile, it is out of date.
    os.utime(path, ns=(published, published))
    return path


def _published_ns(paths: OutputPaths, label: str) -> int:
    """Return when a scan was published, ns by the clock of its disk; 0 if it was not."""
    try:
        return paths.current(label).stat().st_mtime_ns
    except OSError:
        return 0


def report_path(paths: OutputPaths, record: Published) -> Path:
    """Return where the report of a scan lies.

    Raises
    ------
    StoreError
        If the record names a subject or session whose folder would lie elsewhere.
    """
    folder = relative_folder(record.subject, record.session)
    if len(folder.parts) != (3 if record.session else 2):
        raise StoreError(
            f"{paths.current(record.label)} leads out of the output folder "
            f"(subject {record.subject!r}, session {record.session!r})",
            "Remove it and run again",
        )
    return paths.root / folder / f"{record.label}_{REPORT}"


def scan_report(paths: OutputPaths, record: Published) -> str:
    """Return the report of a scan: the same bytes for the same outputs.

    Parameters
    ----------
    paths : OutputPaths
        The output folder.
    record : Published
        The scan.

    Returns
    -------
    str
        HTML that holds all that it shows.

    Raises
    ------
    StoreError
        If the scan's files cannot be read.
    """
    try:
        method = Method.model_validate(record.method)
    except ValidationError as error:
        raise StoreError(
            f"{paths.current(record.label)} names a method that this version of fusionflow does "
            f"not know ({error.error_count()} options)",
            "Run again",
        ) from error
    group = paths.version(record.label, record.version)
    try:
        return _page(paths, record, method, group)
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"Cannot read {group}: {error}", "Run fusionflow again") from error


@dataclass(frozen=True)
class _BandsPanel:
    """The bands of a slice."""

    place: int  # among the slices that are shown
    z: int
    bands: list[BandOfSlice]


def _page(paths: OutputPaths, record: Published, method: Method, group: Path) -> str:
    record.check_stored(paths.root)
    layout = Layout.of_shape(record.shape)
    choice = Choice.of_head(record.shape, head_box(open_volume(group, "mask"), layout.slab))
    shown = {name: look(open_volume(group, name), choice, layout.slab) for name in _VOLUMES}
    panels = list(_panels(group, choice, method, layout.slab))
    pair, image = _slice_metrics(group)
    lines = curves(pair, image)
    planes = _planes(choice, record)
    return render(
        "scan.html.j2",
        record=record,
        cohort="../" * len(relative_folder(record.subject, record.session).parts) + COHORT_REPORT,
        method=method,
        verdict=provenance.verdict(record),
        figures=provenance.registration_figures(record),
        outlines=_outlines(paths, record),
        method_rows=provenance.rows(record.method),
        conform_rows=provenance.rows(record.conformed),
        pet_rows=provenance.rows(record.pet_info.to_json()),
        software_rows=provenance.software_rows(record),
        planes=planes,
        choice=choice,
        paper=_paper(shown, choice),
        panels=panels,
        exact=isinstance(method.transform, Wavelet),
        band_picture=_band_picture,
        weight_picture=_weight_picture,
        weight_inks=COLOURS,
        curves=lines,
        drawing=(WIDTH, HEIGHT),
        whole=_whole(record),
        data=_data(shown, planes, panels, lines),
        colour_table=data_uri(png(_colour_table()), "image/png"),
        program=volumes.program(),
        licences=volumes.licences(),
        small={
            name: base64.b64encode(
                volumes.nifti(shown[name].small, record.affine, choice.block)
            ).decode()
            for name in _VOLUMES
        },
    )


def _planes(choice: Choice, record: Published) -> list[dict[str, Any]]:
    """Return what the page says of each plane; `aspect` is width by height in mm."""
    sizes = np.linalg.norm(np.array(record.affine)[:3, :3], axis=0)[::-1]
    lengths = sizes * record.shape
    found = []
    for plane in PLANES:
        high, wide = (axis for axis in range(3) if axis != plane.axis)
        found.append(
            {
                "name": plane.name,
                "left": plane.left,
                "right": plane.right,
                "count": record.shape[plane.axis],
                "at": choice.places[plane.axis],
                "middle": choice.middle[plane.axis],
                "every": _every(choice.places[plane.axis].step),
                "aspect": round(float(lengths[wide] / lengths[high]), 4),
            }
        )
    return found


def _whole(record: Published) -> list[tuple[Metric, str, str, str]]:
    """Return the figures of the scan: metric, against MRI, against PET, of the fused image."""
    found = metrics_dataset([record])

    def text(value: float) -> str:
        return "∞" if value == np.inf else figure(value)

    rows = []
    for metric in (*PAIR_METRICS, *SCAN_METRICS):
        values = [text(float(value)) for value in found[metric.name].values.ravel()]
        mri, pet, fused = (*values, "") if len(values) > 1 else ("", "", *values)
        rows.append((metric, mri, pet, fused))
    return rows


def _every(step: int) -> str:
    """Return 'every slice', 'every 2nd slice' and so on, without the last word."""
    return "every" if step == 1 else f"every {step}{ {2: 'nd', 3: 'rd'}.get(step, 'th') }"


def _data(
    shown: Mapping[str, Shown],
    planes: list[dict[str, Any]],
    panels: list[_BandsPanel],
    lines: list[Curve],
) -> dict[str, Any]:
    """Return what the scripts of the page read."""
    pictures = {
        plane["name"]: {
            "at": list(plane["at"]),
            "of": plane["count"],
            "aspect": plane["aspect"],
            "sides": [plane["left"], plane["right"]],
            **{name: _webps(shown[name].slices[plane["name"]]) for name in _VOLUMES},
        }
        for plane in planes
    }
    figures = {
        curve.metric.name: {
            line.name: [float(f"{value:.5g}") for value in line.values] for line in curve.lines
        }
        for curve in lines
    }
    return {"planes": pictures, "figures": figures}


def _webps(pictures: Iterable[npt.NDArray[np.uint8]]) -> list[str]:
    return [data_uri(webp(picture), "image/webp") for picture in pictures]


def _colour_table() -> npt.NDArray[np.uint8]:
    """Return the colour of each pair of levels, (mri, pet, 3)."""
    steps = np.linspace(0, 1, 256, dtype=np.float32)
    return pet_on_mri(*np.meshgrid(steps, steps, indexing="ij"))


def _paper(shown: Mapping[str, Shown], choice: Choice) -> list[dict[str, str]]:
    """Return the middle slices by plane, for paper and browsers without scripts."""
    found = []
    for plane in PLANES:
        place = choice.middle[plane.axis]
        images = {name: shown[name].slices[plane.name][place] for name in _VOLUMES}
        scaled = (images[name].astype(np.float32) / 255 for name in SOURCES)
        colours = pet_on_mri(*scaled)
        found.append(
            {
                name: data_uri(webp(image), "image/webp")
                for name, image in {**images, "PET on MRI": colours}.items()
            }
        )
    return found


def _panels(group: Path, choice: Choice, method: Method, slab: int) -> Iterator[_BandsPanel]:
    """Yield the bands of slices spread over the head, the middle one among them."""
    count = len(choice.places[0])
    places = np.linspace(0, count - 1, min(_SLICES_WITH_BANDS, count) + 2)[1:-1]
    volumes_of = [open_volume(group, name) for name in _VOLUMES]
    for place in sorted({choice.middle[0], *(round(place) for place in places)}):
        z = choice.places[0][place]
        mri, pet, fused = (volume[z : z + 1][0] for volume in volumes_of)
        yield _BandsPanel(place, z, bands_of_slice(mri, pet, fused, method.transform))


def _band_picture(picture: npt.NDArray[np.uint8]) -> str:
    return data_uri(webp(picture), "image/webp")


def _weight_picture(weight: npt.NDArray[np.float32]) -> str:
    return data_uri(png(weight_levels(weight), PALETTE), "image/png")


def _slice_metrics(group: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of every slice: metric -> (z, source), metric -> (z,)."""
    store = zarr.open_group(group, mode="r", zarr_format=3)
    pair, image = (np.asarray(store[name][:]) for name in ("metrics", "image_metrics"))  # type: ignore[index]
    names = [[str(item) for item in store[name][:]] for name in ("metric", "image_metric")]  # type: ignore[index, union-attr]
    return (
        {name: pair[..., index] for index, name in enumerate(names[0])},
        {name: image[:, index] for index, name in enumerate(names[1])},
    )


def _outlines(paths: OutputPaths, record: Published) -> str | None:
    """Return the picture of the registration, where there is one."""
    for item in record.outputs:
        if item.path.endswith("_registration.png"):
            path = paths.root / item.path
            return data_uri(path.read_bytes(), "image/png") if path.is_file() else None
    return None
