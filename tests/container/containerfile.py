"""Reads a Containerfile, and says what in it does not agree with the project around it."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

from packaging.specifiers import SpecifierSet


class Instruction(NamedTuple):
    """One instruction: its name in capitals, and what it was given."""

    name: str
    given: str


class Stage(NamedTuple):
    """What stands between one FROM and the next."""

    name: str | None
    instructions: list[Instruction]

    def given(self, name):
        """What each instruction of a name was given."""
        return [given for found, given in self.instructions if found == name]


def parse(text):
    """Return the instructions before the first FROM, and the stages."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    before, stages = [], []
    for line in filter(str.strip, joined.splitlines()):
        name, given = line.split(maxsplit=1)
        if name.upper() == "FROM":
            _, _, alias = given.partition(" AS ")
            stages.append(Stage(alias.strip() or None, []))
        (stages[-1].instructions if stages else before).append(Instruction(name.upper(), given))
    return before, stages


def arguments(instructions):
    """Return what ARG declares, with its default or None."""
    pairs = [given.partition("=") for name, given in instructions if name == "ARG"]
    return {name: default if equals else None for name, equals, default in pairs}


def variables(stage):
    """Return what ENV sets."""
    words = [word for given in stage.given("ENV") for word in shlex.split(given)]
    return dict(word.split("=", 1) for word in words)


def copied(stages):
    """Return what is copied out of the build context."""
    copies = [given.split() for stage in stages for given in stage.given("COPY")]
    return [word for words in copies if not words[0].startswith("--from") for word in words[:-1]]


def definition_sections():
    """Return the sections of the Apptainer definition by name."""
    text = (Path(__file__).resolve().parents[2] / "deploy" / "fusionflow.def").read_text()
    parts = re.split(r"^%(\w+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def faults(root, text, installer, ignored):
    """Return what does not agree: a Containerfile, its installer, its list of ignored files.

    Parameters
    ----------
    root : Path
        The project.
    text, installer, ignored : str
        The contents of the three files.
    """
    project = tomllib.loads((Path(root) / "pyproject.toml").read_text())["project"]
    before, stages = parse(text)
    return [
        *_user(stages[-1]),
        *_copies(root, stages, ignored),
        *_extras(project, installer),
        *_python(project, arguments(before)),
        *_command(project, stages[-1]),
    ]


def _user(stage):
    users = stage.given("USER")
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield f"the last stage runs as {users[-1] if users else 'root'}, not as a number above 0"


def _copies(root, stages, ignored):
    kept = {line.removeprefix("!") for line in ignored.splitlines() if line.startswith("!")}
    for source in copied(stages):
        if not (Path(root) / source).exists():
            yield f"{source} is copied, and is not there"
        if source.rstrip("/") not in kept:
            yield f"{source} is copied, and is not in the build context"
    known = [stage.name for stage in stages]
    for position, stage in enumerate(stages):
        for name in re.findall(r"--from=(\S+)", " ".join(stage.given("COPY"))):
            if name not in known[:position]:
                yield f"there is no stage {name} before"


def _extras(project, installer):
    named = set(re.findall(r"\bextras=(\w+)", installer))
    if not named:
        yield "no variant adds an extra"
    for extra in sorted(named - set(project["optional-dependencies"])):
        yield f"there is no extra {extra}"


def _python(project, declared):
    version = re.search(r"python:([\d.]+)", declared.get("BASE") or "")
    if version is None:
        yield "the base does not say which Python it has"
    elif f"{version[1]}.999" not in SpecifierSet(project["requires-python"]):
        yield f"Python {version[1]} is not {project['requires-python']}"


def _command(project, stage):
    if stage.given("ENTRYPOINT"):
        yield "an entry point takes `dask scheduler` for its own arguments"
    command = re.match(r'\["(.+?)"', stage.given("CMD")[-1]) if stage.given("CMD") else None
    if command is None or command[1] not in project["scripts"]:
        yield "what runs by default is no command of fusionflow"
