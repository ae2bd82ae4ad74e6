"""Every command and option, as click knows them."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import click
from reference_figures import table

from fusionflow.cli import main


def walk(command: click.Command = main, name: str = "fusionflow") -> Iterator[click.Context]:
    """Yield a context for a command and each below it."""
    context = click.Context(command, info_name=name)
    yield context
    if isinstance(command, click.Group):
        for below in command.list_commands(context):
            child = command.get_command(context, below)
            if child is not None and not child.hidden:
                yield from walk(child, f"{name} {below}")


def commands() -> str:
    """Return a section for each command."""
    return "\n\n".join(_section(context) for context in walk())


def _section(context: click.Context) -> str:
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## {context.info_name}", f"```text\n{context.info_name} {usage}\n```"]
    parts += _paragraphs(command.help or "")
    rows = [
        (f"`{escape(record[0], quote=False)}`", _plain(record[1]))
        for param in command.get_params(context)
        if (record := param.get_help_record(context)) is not None
    ]
    return "\n\n".join([*parts, table(("option", "what it does"), rows)])


def _paragraphs(text: str) -> list[str]:
    """Return help as Markdown; click's mark for text that is not to be wrapped has no use here."""
    paragraphs = text.replace("\b", "").replace("\\b\n", "").strip().split("\n\n")
    return [_plain(" ".join(paragraph.split())) for paragraph in paragraphs]


def _plain(text: str) -> str:
    """Return text that Markdown shows as it is, but for what is in backticks."""
    shown = escape(text, quote=False).replace("*", r"\*").replace("[", r"\[")
    return "`".join(
        part.replace(r"\*", "*").replace(r"\[", "[") if i % 2 else part.replace("_", r"\_")
        for i, part in enumerate(shown.split("`"))
    )
