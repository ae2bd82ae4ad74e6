"""Every command and snippet of the README and the pages does what the page says."""

import re
import shlex

import click
import pytest
from sandbox import FUNCTIONS, copy, environment, instead, prepare
from sessions import Python, Shell
from snippets import Block, blocks, is_shown, pages

from fusionflow.cli import main

pytestmark = [pytest.mark.docs, pytest.mark.timeout(900)]

#: Pages that make their outputs themselves.
_FROM_NOTHING = ("README.md", "workflows/docs/pages/tutorial.md", "deploy/shared-cluster.md")

#: A command of ours, and no object of that name.
_OURS = re.compile(r"^(?!kubectl ).*\bfusionflow ")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with everything that pages name."""
    return prepare(tmp_path_factory.mktemp("docs") / "prepared")


def _with_code():
    return [
        pytest.param(path, id=str(path.name if path.name == "README.md" else path.stem))
        for path in pages()
        if any(block.is_run for block in blocks(path))
    ]


@pytest.mark.parametrize("path", _with_code())
def test_blocks_run(path, prepared, tmp_path):
    """In one shell and one Python for each page, in the order of the page."""
    from_nothing = str(blocks(path)[0].page) in _FROM_NOTHING
    folder = copy(prepared, tmp_path / "sandbox", with_outputs=not from_nothing)
    variables = environment(tmp_path)
    output = ""
    with Shell(folder, variables) as shell, Python(folder, variables) as python:
        assert shell.run(FUNCTIONS, "")[0] == 0
        for block in blocks(path):
            if block.is_rough:
                missing = [line for line in block.lines() if not is_shown(line, output)]
                assert not missing, f"{block}: {missing} is not in\n{output}"
            if block.file is not None:
                (folder / block.file).write_text(instead(block.code))
            if not block.is_run:
                continue
            session = shell if block.language == "console" else python
            code = _as_run(block) if block.language == "console" else block.code
            failed, output = session.run(code, str(block))
            assert not failed, f"{block}: exit code {failed}\n{code}\n{output[-3000:]}"


def _as_run(block: Block) -> str:
    """Return the commands of a block that are run; at least one of them."""
    run = [instead(line) for line in block.lines() if block.why_not(line) is None]
    assert any(line.strip() for line in run), f"{block}: nothing is left of it"
    return "\n".join(run)


def _commands():
    """Yield what is not run of our own commands: block, line."""
    return [
        pytest.param(line, id=f"{block}-{number}")
        for path in pages()
        for block in blocks(path)
        if block.language == "console" and block.skipped
        for number, line in enumerate(block.lines())
        if block.why_not(line) is not None and _OURS.search(line.split("#")[0])
    ]


@pytest.mark.parametrize("line", _commands())
def test_commands_that_are_not_run_are_known(line, monkeypatch):
    """Command, options and their kinds are real; files need not be there."""
    words = shlex.split(line, comments=True)
    words = words[words.index("fusionflow") + 1 :]
    monkeypatch.setattr(click.Path, "convert", lambda self, value, *_: value)
    group: click.Command = main
    context = click.Context(main, info_name="fusionflow")
    while isinstance(group, click.Group):
        name, child, words = group.resolve_command(context, words)
        assert child is not None, line
        group, context = child, click.Context(child, context, info_name=name)
    group.make_context(context.info_name, list(words), parent=context.parent)


def test_every_block_says_what_it_is():
    known = {"console", "python", "text", "yaml", "json", "toml", "r"}
    strange = [str(b) for path in pages() for b in blocks(path) if b.language not in known]
    assert not strange, f"blocks of no known language: {strange}"


def test_what_is_not_run_is_told(capsys):
    """Each mark is about something in its block; -rP lists them."""
    for path in pages():
        for block in blocks(path):
            for part, why in block.skipped.items():
                assert len(why) > 5, f"{block}: say why it is not run"
                assert part in block.code, f"{block}: nothing there is {part!r}"
                print(f"{block}: {part or 'all of it'}: {why}")
    assert capsys.readouterr().out.count("\n") >= 3
