"""An output folder as xarray objects, and the summary of all its scans."""

from __future__ import annotations

import shutil
import uuid
import warnings
from collections.abc import Collection, Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from fusionflow import accessor  # noqa: F401 - who opens a cohort may ask scans their questions
from fusionflow.display import cohort_html
from fusionflow.errors import GridError, ScanNotFoundError, StoreError
from fusionflow.index import Records, read_index
from fusionflow.io import store
from fusionflow.io.files import UNFINISHED, file_sha256, fingerprint, write_bytes
from fusionflow.ledger import OutputPaths
from fusionflow.methods_text import methods_text
from fusionflow.records import Attempt, Published
from fusionflow.summary import cohort_table, metrics_dataset, scan_table, summarise_records
from fusionflow.viewer import View

#: Affines that differ by less are one grid, mm.
_SAME_AFFINE = 1e-4


class Cohort:
    """A fused cohort, as it was when it was opened.

    It reads ``index.json`` and nothing else until a scan is asked for. A published version never
    changes, so what was opened stays readable and the same while a run replaces scans.

    Parameters
    ----------
    root : path-like
        The output folder of a run.

    Raises
    ------
    StoreError
        If it holds no fused cohort.

    Examples
    --------
    >>> cohort = open_cohort("out")                                    # doctest: +SKIP
    >>> cohort.scan("sub-01").fused.isel(z=40).plot()                  # doctest: +SKIP
    >>> cohort.metrics.ssim.sel(source="pet").to_series().describe()   # doctest: +SKIP
    """

    def __init__(self, root: str | PathLike[str]) -> None:
        self.paths = OutputPaths(Path(root))
        index = read_index(self.paths)
        self._published = index.published
        self._places = {label: place for place, label in enumerate(index.published.labels)}
        self.failures: tuple[Attempt, ...] = index.failures
        #: Labels of scans that the input no longer had when a run looked last.
        self.removed: tuple[str, ...] = index.removed

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the fused scans, sorted."""
        return tuple(self._places)

    def __len__(self) -> int:
        """Return the number of fused scans."""
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the labels."""
        return iter(self._places)

    def __contains__(self, label: object) -> bool:
        """Whether a scan is fused."""
        return label in self._places

    def __repr__(self) -> str:
        """Return the folder and the number of scans."""
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"<Cohort {str(self.paths.root)!r}: {len(self)} scans fused{failed}>"

    def _repr_html_(self) -> str:
        return cohort_html(self)

    @property
    def records(self) -> Records:
        """How all scans were made, in the order of their labels."""
        return self._published

    def record(self, label: str) -> Published:
        """Return how a scan was made.

        Raises
        ------
        ScanNotFoundError
            If the cohort does not hold it.
        """
        try:
            return self._published[self._places[label]]
        except KeyError:
            some = ", ".join(self.labels[:5]) + (", ..." if len(self) > 5 else "")
            raise ScanNotFoundError(
                f"{self.paths.root} holds no fused scan {label!r}", f"It holds: {some or 'none'}"
            ) from None

    def scan(self, label: str) -> xr.Dataset:
        """Return a scan, lazily.

        Parameters
        ----------
        label : str
            Such as ``sub-01_ses-02``.

        Returns
        -------
        Dataset
            ``mri``, ``pet``, ``fused`` (z, y, x) float32, ``mask`` (z, y, x) uint8, ``metrics``
            (z, source, metric) and ``image_metrics`` (z, image_metric) float64, as Dask arrays
            with a chunk for each slab; attributes ``affine``, ``method``, ``version`` and more.

        Raises
        ------
        ScanNotFoundError
            If the cohort does not hold it.
        StoreError
            If one of its files is gone, or cut short.
        """
        record = self.record(label)
        path = self.paths.version(label, record.version)
        record.check_stored(self.paths.root)
        try:
            return xr.open_zarr(path, chunks={}, consolidated=True)
        except (OSError, ValueError) as error:
            raise StoreError(f"Cannot open {path}: {error}", "Run fusionflow again") from error

    def show(self, label: str) -> View:
        """Show a scan in three planes, as `fusionflow.view`.

        Raises
        ------
        ScanNotFoundError, StoreError
            As `scan`.
        """
        return View(self.scan(label))

    def tree(self, labels: Sequence[str] | None = None) -> xr.DataTree:
        """Return scans as a tree, a node each; grids may differ.

        Parameters
        ----------
        labels : sequence of str, optional
            Which scans; all by default.
        """
        chosen = self.labels if labels is None else labels
        return xr.DataTree.from_dict({label: self.scan(label) for label in chosen}, name="cohort")

    def stack(self, labels: Sequence[str] | None = None) -> xr.Dataset:
        """Return scans of one grid as one dataset.

        Parameters
        ----------
        labels : sequence of str, optional
            Which scans; all by default.

        Returns
        -------
        Dataset
            As `scan`, with a leading dimension ``scan``.

        Raises
        ------
        GridError
            If grids differ; the message names two scans.
        """
        chosen = list(self.labels if labels is None else labels)
        first = self.record(chosen[0]) if chosen else None
        for label in chosen:
            other = self.record(label)
            if first is not None and not _same_grid(first, other):
                raise GridError(
                    f"{first.label} {first.shape} and {other.label} {other.shape} are not on "
                    "one grid",
                    "Stack scans that share one, or look at them with .tree()",
                )
        if not chosen:
            raise ScanNotFoundError("There are no scans to stack")
        scans = [self.scan(label) for label in chosen]
        names = xr.DataArray(np.array(chosen, dtype=object), dims="scan", name="scan")
        return xr.concat(
            scans, dim=names, data_vars="all", coords="minimal", join="exact",
            compat="override", combine_attrs="drop_conflicts",
        )  # fmt: skip

    @property
    def metrics(self) -> xr.Dataset:
        """Scan-level figures: a variable for each metric, (scan, source) or (scan)."""
        return metrics_dataset(self._published)


def _same_grid(a: Published, b: Published) -> bool:
    return a.shape == b.shape and np.allclose(a.affine, b.affine, rtol=0, atol=_SAME_AFFINE)


def open_cohort(root: str | PathLike[str]) -> Cohort:
    """Open the output folder of a run.

    Parameters
    ----------
    root : path-like
        The folder.

    Raises
    ------
    StoreError
        If it holds no fused cohort.
    """
    return Cohort(root)


def summarise(cohort: Cohort | str | PathLike[str]) -> xr.DataTree:
    """Reduce slices to scans, subjects and the cohort.

    Parameters
    ----------
    cohort : Cohort or path-like
        An opened cohort, or an output folder.

    Returns
    -------
    DataTree
        The root holds the cohort: each metric (statistic, source) or (statistic), with statistics
        n, mean, sd, median, q25 and q75 over subjects. ``/subjects`` and ``/scans`` hold the
        figures they come from.

    Raises
    ------
    NoScansError
        If there are no scans.
    ConfigurationError
        If the scans were not all made with one method.
    """
    if not isinstance(cohort, Cohort):
        cohort = open_cohort(cohort)
    return summarise_records(cohort.records)


def write_summary(
    paths: OutputPaths, *, present: Collection[str] | None = None, request: str | None = None
) -> tuple[xr.DataTree | None, dict[str, str]]:
    """Summarise published scans into ``group.zarr``, tables and a text, ``group_*``.

    If they were made of this very index and for the same question, they stay as they are.

    Parameters
    ----------
    paths : OutputPaths
        The output folder, with its index.
    present : collection of str, optional
        Labels of the scans that the input has; others are left out.
    request : str, optional
        Fingerprint of what is asked for; scans made another way are left out.

    Returns
    -------
    DataTree or None
        What is there now; None if no scan was made as `request` says, and then nothing is touched.
    dict
        Label -> why a published scan is not part of it.

    Raises
    ------
    NoScansError, ConfigurationError
        As `summarise`.
    StoreError
        If it cannot be written.
    """
    asked = fingerprint(file_sha256(paths.index), request or "", *sorted(present or ()))
    if (written := _as_written(paths, asked)) is not None:
        return written, dict(written.attrs["left_out"])
    index = read_index(paths)
    failed = {failure.label for failure in index.failures}
    places: list[int] = []
    left_out: dict[str, str] = {}
    for place, record in enumerate(index.published):
        if present is not None and record.label not in present:
            left_out[record.label] = "the input no longer has it"
        elif record.label in failed:
            left_out[record.label] = "its last attempt failed"
        elif request not in (None, record.request):
            left_out[record.label] = f"made another way ({record.method.get('name')})"
        else:
            places.append(place)
    chosen = index.published.chosen(places)
    if not chosen and request is not None:
        return None, left_out
    summary = summarise_records(chosen)
    summary.attrs |= {"asked": asked, "left_out": left_out}
    _replace_store(paths, summary)
    scans = scan_table(summary)
    for name, table in zip(_TABLES, (cohort_table(summary), scans), strict=True):
        text = table.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.6g")
        write_bytes(paths.root / name, text.encode())
    write_bytes(paths.root / _PARQUET, scans.to_parquet(index=False, engine="pyarrow"))
    write_bytes(paths.root / "group_methods.md", methods_text(chosen).encode())
    return summary, left_out


_TABLES = ("group_metrics.tsv", "group_scans.tsv")
_PARQUET = "group_scans.parquet"


def _as_written(paths: OutputPaths, asked: str) -> xr.DataTree | None:
    """Return the summary that is there, if it answers just what is asked."""
    if not all((paths.root / name).exists() for name in (*_TABLES, _PARQUET)):
        return None
    try:
        attributes = zarr.open_group(paths.group_store, mode="r", zarr_format=3).attrs
        if attributes["asked"] != asked or attributes["extent"] != _extent(paths.group_store):
            return None
        with xr.open_datatree(paths.group_store, engine="zarr", consolidated=True) as summary:
            return summary.load()
    except (OSError, ValueError, KeyError):
        return None


def _extent(group: Path) -> list[int]:
    """Return the number of files in a store, and their bytes; but of the file that says so."""
    files = (path for path in group.rglob("*") if path.parent != group and path.is_file())
    sizes = [path.stat().st_size for path in files]
    return [len(sizes), sum(sizes)]


def _replace_store(paths: OutputPaths, summary: xr.DataTree) -> None:
    """Replace ``group.zarr``: between two renames, so a reader may have to open it again."""
    aside = paths.root / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
    old = aside.with_suffix(".old")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            files: store.Files = {}  # Zarr takes a millisecond a file, and more on a disk
            summary.to_zarr(MemoryStore(files), zarr_format=3, consolidated=True)
            store.write_files(aside, files)
            # Zarr reads zeros where a file is gone.
            zarr.open_group(aside, mode="r+", zarr_format=3).attrs["extent"] = _extent(aside)
        if paths.group_store.exists():
            paths.group_store.rename(old)
        try:
            aside.rename(paths.group_store)
        except OSError:
            if old.exists():
                old.rename(paths.group_store)
            raise
    except OSError as error:
        raise StoreError(
            f"Cannot write {paths.group_store}: {error.strerror or error}",
            "Check space and permissions",
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
