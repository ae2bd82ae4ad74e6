"""Messages of this package and of libraries on the standard error stream: text, or JSON lines."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import click

from fusionflow.progress_json import JsonFormatter, say
from fusionflow.untrusted import one_line, printable

#: As in `fusionflow.events`, which takes time to import.
EXIT_INTERRUPTED = 130
#: The last of the standard streams.
_STDERR = 2
#: Characters of a library's warning that are shown.
_SHORT = 200


class _Handler(logging.StreamHandler[TextIO]):
    """Writes to what is the standard error stream by then: a live display stands in for it."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__()
        self.setLevel(level)

    @property
    def stream(self) -> TextIO:
        """Where messages go."""
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """Take no notice of what the constructor found."""


def mend_streams() -> None:
    """See to standard streams that are closed, and to those that do not take every file name.

    In place of a closed one the next file that is opened would get what others write to it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def set_up(verbose: int, *, as_json: bool = False) -> None:
    """Show messages of this package, and short warnings of libraries, each once.

    Parameters
    ----------
    verbose : int
        0 for warnings, 1 for what happens, 2 for tracebacks and what Dask has to say.
    as_json : bool
        Whether everything on the standard error stream is to be a JSON object a line.
    """
    logger = logging.getLogger("fusionflow")
    if not logger.handlers:  # not the root logger's: Dask's own messages keep their levels
        handler = _Handler()
        handler.setFormatter(
            JsonFormatter() if as_json else logging.Formatter("%(levelname)s %(name)s: %(message)s")
        )
        logger.addHandler(handler)
        logger.propagate = False
        if as_json:
            logging.getLogger().addHandler(_as_json(logging.StreamHandler()))
        _catch_warnings()
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])


def _catch_warnings() -> None:
    """Let warnings of libraries be messages of one line, each once."""
    logger, said = logging.getLogger("fusionflow.warnings"), set[str]()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = f"{category.__name__} of {_package(filename)}: {one_line(str(message), _SHORT)}"
        if text not in said:
            said.add(text)
            logger.warning("%s", printable(text))

    warnings.showwarning = show


def _package(filename: str) -> str:
    """Return whose file it is."""
    parts = Path(filename).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts[:-1]:
            return parts[parts.index(folder) + 1].removesuffix(".py")
    return Path(filename).stem


def are_json() -> bool:
    """Whether everything on the standard error stream is to be JSON."""
    handlers = logging.getLogger("fusionflow").handlers
    return any(isinstance(item.formatter, JsonFormatter) for item in handlers)


@contextlib.contextmanager
def others_as_json() -> Iterator[None]:
    """Let libraries that log to the terminal themselves write JSON as long as this is open."""
    before: list[tuple[logging.Logger, list[logging.Handler]]] = []
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            handlers = [_as_json(handler) for handler in logger.handlers]
            if handlers != logger.handlers:
                before.append((logger, logger.handlers))
                logger.handlers = handlers
    try:
        yield
    finally:
        for logger, handlers in before:
            logger.handlers = handlers


def _as_json(handler: logging.Handler) -> logging.Handler:
    """Return what writes JSON in place of what writes text; one each, for Dask sets its level."""
    if type(handler) is not logging.StreamHandler:
        return handler
    ours = _Handler(handler.level)
    ours.setFormatter(JsonFormatter())
    return ours


def complain(message: str, exit_code: int) -> None:
    """Say why the command ends before it is done."""
    if are_json():
        say("error", message=message, exit_code=exit_code)
    elif exit_code == EXIT_INTERRUPTED:  # no error of anybody's
        click.echo(message, err=True)
    else:
        click.secho(f"Error: {message}", fg="red", err=True)
