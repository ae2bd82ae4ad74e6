"""The notebooks run from top to bottom, show what they say, and are kept without outputs."""

import os
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

FOLDER = Path(__file__).resolve().parents[2] / "workflows" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

pytestmark = pytest.mark.notebooks


def executed(path, tmp_path, monkeypatch):
    """Return a notebook with its outputs; FUSIONFLOW_NOTEBOOKS keeps it."""
    pytest.importorskip("ipykernel")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    book = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        book, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    if kept := os.environ.get("FUSIONFLOW_NOTEBOOKS"):
        Path(kept).mkdir(parents=True, exist_ok=True)
        nbformat.write(book, Path(kept) / path.name)
    return book


def shown(book, kind="text/html"):
    """Return what the cells show of a kind."""
    return [
        output["data"][kind]
        for cell in book.cells if cell.cell_type == "code"
        for output in cell.outputs if kind in output.get("data", {})
    ]  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_kept_without_outputs(self, path):
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        for cell in book.cells:
            assert not cell.get("outputs")
            assert not cell.get("execution_count")
        assert "widgets" not in book.metadata

    def test_runs_and_says_nothing_on_the_error_stream(self, path, tmp_path, monkeypatch):
        book = executed(path, tmp_path, monkeypatch)
        said = [
            line
            for cell in book.cells if cell.cell_type == "code"
            for output in cell.outputs if output.get("name") == "stderr"
            for line in output.text.splitlines()
        ]  # fmt: skip
        # On a busy machine Dask says that a worker took its time to end.
        assert [line for line in said if "distributed.nanny" not in line] == []
        see = LOOKS[path.stem]
        for kind, text in see:
            assert any(text in item for item in shown(book, kind)), f"no {text} in {kind}"


#: What a reader must see in each.
LOOKS = {
    "first_steps": [
        ("text/html", "<strong>4</strong> fused"),
        ("text/html", "<iframe title="),
        ("image/png", ""),
        ("text/plain", "'fused': 4"),
    ],
    "cohort_on_a_cluster": [
        ("text/html", "<strong>Run done</strong>"),
        ("text/html", "Dask's dashboard</a>"),
        ("text/html", "4 of 4 scans"),
        ("text/plain", ".performance.html"),
    ],
    "your_own_method": [("image/png", ""), ("text/html", "ssim")],
    "comparing_methods": [("image/png", ""), ("text/html", "dwt-vgg19")],
    "quality_control": [
        ("text/html", "Not fused, or not again:"),
        ("text/html", "<iframe title="),
        ("image/png", ""),
        ("text/plain", "'fused': "),
    ],
}


def test_there_is_something_to_see_in_each():
    assert sorted(LOOKS) == [path.stem for path in NOTEBOOKS]
