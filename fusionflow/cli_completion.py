"""Completion in bash, zsh and fish: ``fusionflow completion``, and what it completes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Where a context keeps the option whose list of labels goes on: ``--participant-label 01 02``.
OPEN_LIST = "fusionflow.open_list"
#: And the first folder, for where a line breaks off click knows no arguments.
SOURCE = "fusionflow.source"

#: Bytes of a manifest that are looked through, and subjects whose sessions are.
_LOOK_THROUGH = 1 << 20
_SUBJECTS = 20
_KINDS = ("local", "cuda", "slurm", "kubernetes")
_LEVELS = ("participant", "group")


class _Method(click.ParamType[str]):
    """Names of methods."""

    name = "method"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer names."""
        from fusionflow.config import METHODS

        return _offered(METHODS, incomplete)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the name as it is: the configuration knows which there are."""
        return value


class _Cluster(_Method):
    """Kinds of clusters, and files of schedulers."""

    name = "cluster"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Offer kinds, or else files."""
        return _offered(_KINDS, incomplete) or [CompletionItem(incomplete, type="file")]


METHOD, CLUSTER = _Method(), _Cluster()


def complete_labels(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the labels of subjects or sessions in the input that the line names."""
    return _labels(ctx, str(param.name), incomplete)


def complete_level(
    ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer the levels, and further labels where a list of them may go on."""
    return [*further_labels(ctx, incomplete), *_offered(_LEVELS, incomplete)]


def further_labels(ctx: click.Context, incomplete: str) -> list[CompletionItem]:
    """Offer labels if the last option of the line takes a list of them."""
    option = ctx.meta.get(OPEN_LIST)
    return _labels(ctx, option.strip("-").replace("-", "_"), incomplete) if option else []


def _offered(words: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


def _labels(ctx: click.Context, name: str, incomplete: str) -> list[CompletionItem]:
    """Offer what the input has, and the line does not name yet; nothing if it cannot be read."""
    source = ctx.meta.get(SOURCE)
    if source is None:
        return []
    try:
        found = _subjects_of(Path(source))
        if name == "session_label":
            found = _sessions_of(Path(source), found)
    except (OSError, ValueError):
        return []
    prefix = "ses-" if name == "session_label" else "sub-"
    labels = {label.removeprefix(prefix) for label in found}
    labels -= {label.removeprefix(prefix) for label in ctx.params.get(name) or ()}
    if incomplete and (incomplete.startswith(prefix) or prefix.startswith(incomplete)):
        labels |= {prefix + label for label in labels}
    return _offered(sorted(labels), incomplete)


def _subjects_of(source: Path) -> set[str]:
    if source.is_dir():
        return _folders(source, "sub-")
    with source.open(encoding="utf-8-sig") as table:
        names = table.readline().rstrip("\n").split("\t")
        column = names.index("participant_id")
        rows = [row.split("\t") for row in table.readlines(_LOOK_THROUGH)]
    return {f"sub-{row[column].strip().removeprefix('sub-')}" for row in rows if column < len(row)}


def _sessions_of(source: Path, subjects: set[str]) -> set[str]:
    if not source.is_dir():
        return set()
    some = sorted(subjects)[:_SUBJECTS]
    return {session for subject in some for session in _folders(source / subject, "ses-")}


def _folders(folder: Path, prefix: str) -> set[str]:
    with os.scandir(folder) as entries:
        return {e.name for e in entries if e.name.startswith(prefix) and e.is_dir()}


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options, methods, labels and files.

    \b
    Bash, with the package bash-completion (or source it in ~/.bashrc):
      fusionflow completion bash > ~/.local/share/bash-completion/completions/fusionflow

    \b
    zsh, with `fpath+=~/.zfunc; autoload -Uz compinit; compinit` in ~/.zshrc:
      fusionflow completion zsh > ~/.zfunc/_fusionflow

    \b
    fish:
      fusionflow completion fish > ~/.config/fish/completions/fusionflow.fish

    Make the folder first if it is not there. It takes effect in the next shell.
    """  # noqa: D301
    complete = get_completion_class(shell)
    if complete is None:
        raise AssertionError(shell)
    command = complete(ctx.command, {}, "fusionflow", "_FUSIONFLOW_COMPLETE")
    click.echo(complete.source_template % command.source_vars())
