"""Where series are converted."""

import tempfile

import pytest


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder for DICOM, one for BIDS, a key, and a folder for temporary files."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path
