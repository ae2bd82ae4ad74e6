"""Tables of the reference, made from the code itself: ``<!-- generated: NAME -->`` in a page."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "workflows"), str(Path(__file__).parent)]

import make_figures  # noqa: E402
import reference_commands  # noqa: E402
import reference_figures  # noqa: E402
import reference_options  # noqa: E402
from reference_figures import table  # noqa: E402

import fusionflow  # noqa: E402


def public() -> str:
    """Return what is public, each as mkdocstrings reads it."""
    homes = fusionflow._HOMES
    names = [name for name in fusionflow.__all__ if name in homes]
    return "\n\n".join(f"::: fusionflow.{homes[name]}.{name}" for name in names)


def exit_codes() -> str:
    """Return the exit codes of a run."""
    from fusionflow import cli, events

    said = {
        "EXIT_DONE": "done; subjects without a PET/MRI pair are listed, and are no error",
        "EXIT_USAGE": "wrong usage: an option, a method or a configuration",
        "EXIT_QUARANTINED": "some scans failed, or are in quarantine",
        "EXIT_NOTHING_RAN": "it could not run, or not go on (no scans, no weights, cluster gone, "
        "disk full); what was published stays",
        "EXIT_LOCKED": "another run writes the output folder",
        "EXIT_INTERRUPTED": "interrupted: one Ctrl-C finished what was in flight; a second, "
        "SIGTERM or SIGHUP undid it; what was published stays",
        "EXIT_BUG": "a bug; the line says which file to send",
    }
    codes = {name: value for name, value in vars(events).items() if name.startswith("EXIT_")}
    codes["EXIT_BUG"] = cli.EXIT_BUG
    if set(codes) != set(said):
        raise ValueError(f"exit codes without a word on them: {set(codes) ^ set(said)}")
    return table(
        ("code", "what it says"),
        [(f"`{codes[name]}`", said[name]) for name in sorted(codes, key=codes.get)],
    )


MADE = {
    "commands": reference_commands.commands,
    "configuration": reference_options.configuration,
    "training": reference_options.training,
    "python": public,
    "exit codes": exit_codes,
    "methods": reference_figures.methods,
    "metrics": reference_figures.metrics,
    "qualities": reference_figures.qualities,
    "variables": reference_figures.variables,
    "benchmark": make_figures.benchmark_table,
    "events": reference_figures.events,
}


def on_page_markdown(markdown: str, **_: object) -> str:
    """Put the tables where a page wants them."""
    for name, make in MADE.items():
        mark = f"<!-- generated: {name} -->"
        if mark in markdown:
            markdown = markdown.replace(mark, make())
    if "<!-- generated:" in markdown:
        raise ValueError("a page wants what is not made: " + markdown.split("<!-- generated:")[1])
    return markdown
