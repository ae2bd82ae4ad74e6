"""What the benchmarks share: repeats in turn, figures with their spread, JSON and tables.

The machine's speed changes from minute to minute, so what is compared takes turns within one run,
and a ratio is formed within each turn before the median over the turns is taken.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ("fusionflow", "dask", "distributed", "numpy", "torch", "torchvision", "PyWavelets")
Cell = str | float | int | dict[str, float] | None


def options(about: str | None, repeats: int, **more: dict[str, Any]) -> argparse.Namespace:
    """Read the command line: what all benchmarks know, and options of one's own."""
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("bench"), help="Where the JSON goes.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--weights", type=Path, default=ROOT.parent / "shared" / "weights")
    parser.add_argument("--repeats", type=int, help=f"Turns; {repeats} unless told.")
    parser.add_argument("--quick", action="store_true", help="Small sizes: tries the script out.")
    for name, settings in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **settings)
    given = parser.parse_args()
    given.repeats = given.repeats or (2 if given.quick else repeats)
    return given


def seconds(call: Callable[[], object]) -> float:
    """Return what a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def in_turn(
    variants: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Call every variant in turn, again and again; return what each returned, by name."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-1 if warm_up else 0, repeats):
        for name, variant in variants.items():
            value = variant()
            if turn >= 0:
                found[name].append(value)
    return found


def ratios(these: Sequence[float], those: Sequence[float]) -> list[float]:
    """Return the ratio within each turn."""
    return [one / other for one, other in zip(these, those, strict=True)]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median, and how far the turns lie apart."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "turns": len(values),
    }


@dataclass
class Result:
    """What one benchmark found; `write` prints it and keeps it as JSON.

    Attributes
    ----------
    name : str
        Of the benchmark, and of the file.
    about : str
        What it measures.
    given : Namespace
        The options.
    figures : dict
        Name -> number, or median with min and max.
    goals : list
        What was wanted, and whether it was met.
    tables : list
        Of titles, columns and rows.
    notes : list of str
        What a reader must know to read the figures.
    skipped : list of str
        What was not measured, and why.
    """

    name: str
    about: str
    given: argparse.Namespace
    figures: dict[str, Cell] = field(default_factory=dict)
    goals: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    _load: tuple[float, ...] = field(default_factory=psutil.getloadavg)

    def goal(self, what: str, value: Cell, limit: float, *, at_most: bool = True) -> None:
        """Keep a figure that has a goal, by its median."""
        self.figures[what] = value
        number = value["median"] if isinstance(value, dict) else value
        met = number is not None and (number <= limit if at_most else number >= limit)
        wanted = f"{'at most' if at_most else 'at least'} {limit:g}"
        self.goals.append({"what": what, "value": value, "goal": wanted, "met": met})

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Keep a table; what is not a number is left out, for JSON has none of that."""
        kept = [[None if cell != cell else cell for cell in row] for row in rows]
        self.tables.append({"title": title, "columns": list(columns), "rows": kept})

    def skip(self, why: str) -> None:
        """Keep what is not measured, and say it at once."""
        self.skipped.append(why)
        print(f"SKIPPED: {why}", flush=True)

    def write(self) -> None:
        """Print the tables, and write ``NAME.json``."""
        content = {
            "benchmark": self.name,
            "about": self.about.strip(),
            "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "options": {key: str(value) for key, value in vars(self.given).items()},
            "quick": self.given.quick,
            "machine": machine(),
            "load": {"before": self._load, "after": psutil.getloadavg()},
            "versions": versions(),
            **{key: getattr(self, key) for key in ("figures", "goals", "tables")},
            **{key: getattr(self, key) for key in ("notes", "skipped")},
        }
        self.given.out.mkdir(parents=True, exist_ok=True)
        path = self.given.out / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        print(f"\n{markdown(content)}\n{path}")


def machine() -> dict[str, Any]:
    """Describe the machine by what decides speeds."""
    model, flags = platform.processor() or platform.machine(), ""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            if name.strip() == "flags":
                flags = value
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "amx": "amx_bf16" in flags,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return the versions of what was measured, and the commit where there is one."""
    found = {"python": platform.python_version()}
    found |= {name: metadata.version(name) for name in (*PACKAGES, "zarr", "xarray")}
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        found["commit"] = subprocess.run(
            command, check=True, capture_output=True, text=True
        ).stdout.strip()
    return found


def shown(cell: Cell) -> str:
    """Return a cell as text: a median with min and max, a number, or words."""
    if cell is None:
        return ""
    if isinstance(cell, dict):
        return f"{shown(cell['median'])} ({shown(cell['min'])} to {shown(cell['max'])})"
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
    return str(cell)


def markdown(content: Mapping[str, Any]) -> str:
    """Return one benchmark's result as Markdown."""
    lines = [f"## {content['benchmark']}", "", content["about"].split("\n\n")[0], ""]
    lines += [f"- SKIPPED: {why}" for why in content["skipped"]]
    lines += [f"- {note}" for note in content["notes"]] + [""]
    tables = list(content["tables"])
    if content["goals"]:
        rows = [
            [goal["what"], goal["value"], goal["goal"], "met" if goal["met"] else "NOT met"]
            for goal in content["goals"]
        ]
        tables.append({"title": "Goals", "columns": ["", "found", "goal", ""], "rows": rows})
    for table in tables:
        columns = table["columns"]
        lines += [f"**{table['title']}**", "", f"| {' | '.join(columns)} |"]
        lines += ["|---" * len(columns) + "|"]
        lines += [f"| {' | '.join(map(shown, row))} |" for row in table["rows"]] + [""]
    return "\n".join(lines)


def trim() -> int:
    """Give back what this process no longer uses, and return its pid.

    Else what the allocator holds back for later would count as memory that a scan costs.
    """
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc alone has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    return os.getpid()


def resident(pid: int) -> float:
    """Return the resident memory of a process in kB."""
    return psutil.Process(pid).memory_info().rss / 1000
