"""Join what the benchmarks wrote into one page of Markdown.

python workflows/benchmarks/page.py bench
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from measure import markdown

ORDER = ("naive", "overhead", "scaling", "per_scan", "memory", "peers", "many_workers", "compiled")


def page(folder: Path) -> str:
    """Return the results of a folder as Markdown."""
    found = {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}
    results = [found[name] for name in ORDER if name in found]
    if not results:
        raise SystemExit(f"{folder} holds no result of a benchmark")
    lines = [
        "# Benchmarks",
        "",
        "Median (least to most of the turns). What is compared took turns.",
    ]
    lines += [
        "",
        "| | date | commit | CPU | cores | AMX | GB | load before, after |",
        "|---" * 8 + "|",
    ]
    for result in results:
        machine, load = result["machine"], result["load"]
        lines.append(
            f"| {result['benchmark']}{' (quick: says nothing)' if result['quick'] else ''} "
            f"| {result['date']} | {result['versions'].get('commit', '')} | {machine['cpu']} "
            f"| {machine['cores']} | {'yes' if machine['amx'] else 'no'} | {machine['memory_gb']} "
            f"| {load['before'][0]:.1f}, {load['after'][0]:.1f} |"
        )
    versions = results[-1]["versions"]
    told = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "commit")
    missing = [name for name in ORDER if name not in found]
    lines += ["", told, ""]
    lines += [f"Not run: {', '.join(missing)}", ""] if missing else []
    return "\n".join(lines) + "\n" + "\n".join(map(markdown, results))


def main() -> None:
    """Write ``results.md`` beside the results."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "bench")
    target = folder / "results.md"
    target.write_text(page(folder))
    print(target)


if __name__ == "__main__":
    main()
