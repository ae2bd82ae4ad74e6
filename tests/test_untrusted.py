"""Files that never end are not waited for, and names do not move the cursor."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest
from rich.console import Console

from fusionflow.config import METHODS
from fusionflow.errors import ImageError
from fusionflow.events import Planned
from fusionflow.io.bids import Excluded
from fusionflow.progress import Display
from fusionflow.untrusted import one_line, open_file, printable, read_bounded


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"


class TestFiles:
    def test_a_pipe_is_not_waited_for(self, pipe):
        with pytest.raises(OSError, match="Not a regular file"):
            open_file(pipe)

    def test_a_device_is_refused_also_behind_a_link(self, tmp_path):
        (tmp_path / "link").symlink_to("/dev/zero")
        with pytest.raises(OSError, match="Not a regular file"):
            open_file(tmp_path / "link")

    def test_a_socket_is_refused(self, tmp_path):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s"))
            with pytest.raises(OSError, match=r"s'"):
                open_file(tmp_path / "s")

    def test_a_folder_is_called_one(self, tmp_path):
        with pytest.raises(IsADirectoryError):
            open_file(tmp_path)

    def test_a_file_is_read_up_to_the_limit(self, tmp_path):
        (tmp_path / "a").write_bytes(b"1234")
        assert read_bounded(tmp_path / "a", 4) == b"1234"
        with pytest.raises(OSError, match="Larger than 3 bytes"):
            read_bounded(tmp_path / "a", 3)

    def test_a_pipe_is_read_where_a_person_gave_it(self):
        reader, writer = os.pipe()
        os.write(writer, b"region: mask\n")
        os.close(writer)
        try:
            assert read_bounded(Path(f"/dev/fd/{reader}"), 100, pipes=True) == b"region: mask\n"
        finally:
            os.close(reader)


class TestText:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("sub-01 é 東 🧠", "sub-01 é 東 🧠"),
            ("\x1b[2J\x07", r"\x1b[2J\x07"),
            ("a\nb\rc\td", r"a\nb\rc\td"),
            ("\u202egnp.exe", r"\u202egnp.exe"),
            (os.fsdecode(b"\xff"), r"\udcff"),
            (Path("a\x9b"), r"a\x9b"),
        ],
    )
    def test_what_a_terminal_obeys_is_written_out(self, text, shown):
        assert printable(text) == shown
        assert printable(text).isprintable()
        printable(text).encode()

    def test_errors_are_safe_to_show(self):
        assert (
            str(ImageError("\x1b[2J.nii is empty", "Fetch\nit"))
            == r"\x1b[2J.nii is empty. Fetch\nit"
        )

    def test_what_a_library_says_becomes_one_short_line(self):
        assert one_line(ValueError("a\n   b\n")) == "a b"
        assert one_line("x" * 1000, 10) == "xxxxxxxxxx ..."


def test_the_screen_of_a_run_shows_names_and_obeys_none():
    console = Console(file=io.StringIO(), width=200)
    method = METHODS["mri"].model_copy(update={"name": "[/bold]"})
    display = Display(method, console)
    place = Excluded("sub-01", "[red]\x1b[2J[/nothing]", broken=False)
    display.show(Planned(2, (place,), None, ("[link=x]note",)))
    shown = console.file.getvalue()
    assert "2 scans with [/bold]" in shown
    assert "note: [link=x]note" in shown
    assert r"[red]\x1b[2J[/nothing]" in shown
