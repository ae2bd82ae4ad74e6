"""The report of one scan: one HTML file, made from a run's outputs alone."""

from __future__ import annotations

from pathlib import Path


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
    raise NotImplementedError
