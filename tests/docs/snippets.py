"""Blocks of code in Markdown: what they hold, and whether they are to be run.

Above a block that cannot be run here stands ``<!-- not run: why -->``; where that is true of single
lines, ``<!-- not run `part of the line`: why -->``. ``<!-- roughly -->`` above a block of text says
that it is the output of the block before, but for figures and blanks; ``<!-- file: name -->`` that
it is the content of a file.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "workflows/docs/pages"

_BLOCK = re.compile(
    r"(?P<marks>(?:^<!-- (?:not run|roughly|file)[^\n]*-->\n)*)"
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE = re.compile(r"<!-- file: (\S+) -->")
_NOT_RUN = re.compile(r"<!-- not run(?: `(?P<part>[^`]+)`)?: (?P<why>.+?) -->")


@dataclass(frozen=True)
class Block:
    """A block of code; `skipped` holds parts of lines that are not run, "" for all, and why."""

    page: str
    line: int
    language: str
    code: str
    skipped: dict[str, str]
    is_rough: bool
    file: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_run(self) -> bool:
        return self.language in ("console", "python") and "" not in self.skipped

    def why_not(self, line: str) -> str | None:
        """Return why a line is not run."""
        found = (why for part, why in self.skipped.items() if part in line)
        return next(found, None)

    def lines(self) -> list[str]:
        """Return its lines, those that go on joined."""
        return self.code.replace("\\\n", " ").splitlines()


def pages() -> list[Path]:
    """Return the README, then all pages, then those about clusters."""
    return [
        ROOT / "README.md",
        *sorted(PAGES.rglob("*.md")),
        *sorted((ROOT / "deploy").glob("*.md")),
    ]


def blocks(path: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    text = path.read_text()
    found = []
    for match in _BLOCK.finditer(text):
        marks = {mark["part"] or "": mark["why"] for mark in _NOT_RUN.finditer(match["marks"])}
        found.append(
            Block(
                str(path.relative_to(ROOT)),
                text.count("\n", 0, match.start("language")) + 1,
                match["language"],
                match["code"],
                marks,
                "<!-- roughly -->" in match["marks"],
                file[1] if (file := _FILE.search(match["marks"])) else None,
            )
        )
    fences = len(re.findall(r"^```", text, re.MULTILINE))
    assert fences == 2 * len(found), f"{path}: {fences} fences make {len(found)} blocks"
    return found


def is_shown(line: str, output: str) -> bool:
    """Whether an output holds a line, but for figures and blanks; ``...`` is anything."""
    pattern = re.escape(" ".join(line.split())).replace(r"\.\.\.", ".*").replace(r"\ ", r"\s+")
    return re.search(re.sub(r"\d+", r"\\d+", pattern), output) is not None
