"""What transfer learning brings: how much of the backbone is pretrained, and how much is trained.

Trains the same head in five ways, with the same data, budget and seeds, and measures the models,
and the zero-shot rule that needs no training, on pictures that none was trained on.

    python workflows/benchmarks/strategies.py workflows/training/dwt-vgg19.yaml OUT \\
        --on val=PAIRS --on spect=PAIRS:9 --seeds 3 --epochs 6

A training that is there already is not done again, so it can be broken off and started anew.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from fusionflow.benchmark import pairs_of_folder, run_benchmark
from fusionflow.benchmark_front import SIX
from fusionflow.config import METHODS, Method, load_config
from fusionflow.train_config import load_train_config

#: What each strategy changes in the configuration.
STRATEGIES: dict[str, dict[str, Any]] = {
    "no CNN + head": {"reads_backbone": False},
    "random, frozen + head": {"weights": "random:{seed}"},
    "pretrained, frozen + head": {},
    "pretrained, last 2 layers + head": {"unfreeze": 2},
    "pretrained, all layers + head": {"unfreeze": "all"},
}
ZERO_SHOT = "pretrained, frozen, zero-shot"


def train(recipe: Path, out: Path, name: str, seed: int, epochs: int | None) -> Method:
    """Train one model in a process of its own, and return the method that uses it."""
    changes = {
        key: value.format(seed=seed) if isinstance(value, str) else value
        for key, value in STRATEGIES[name].items()
    }
    chosen = load_train_config(recipe, changes | {"seed": seed, "epochs": epochs})
    folder = out / f"{name.replace(', ', '-').replace(' + ', '-').replace(' ', '-')}-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "train.yaml"
    config.write_text(yaml.safe_dump(chosen.model_dump(mode="json"), sort_keys=False))
    command = [sys.executable, "-m", "fusionflow", "train", str(config), str(folder)]
    with (folder / "train.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return load_config(folder / "run.yaml").method.model_copy(update={"name": f"{name}#{seed}"})


def measure(folder: Path, every: int, methods: list[Method]) -> pd.DataFrame:
    """Return the six figures of every method, means over the pairs of a folder."""
    pairs = dict(list(pairs_of_folder(folder).items())[::every])
    baselines = [METHODS["maximum"], METHODS["dwt-vgg19-l1"].model_copy(update={"name": ZERO_SHOT})]
    result = run_benchmark(pairs, [*baselines, *methods], repeats=0)
    for name, why in result.not_run.items():
        print(f"NOT RUN: {name}: {why}", file=sys.stderr)
    return result.table[list(SIX)]


def spread(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean, and half the range, over the seeds of each strategy."""
    groups = table.groupby(table.index.str.split("#").str[0], sort=False)
    mean, half = groups.mean(), (groups.max() - groups.min()) / 2
    count = groups.size()
    cells = {
        column: [
            f"{mean[column][name]:.3f}"
            + (f" ± {half[column][name]:.3f}" if count[name] > 1 else "")
            for name in mean.index
        ]
        for column in SIX
    }
    return pd.DataFrame(cells, index=mean.index)


def main() -> None:
    """Train, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--on", action="append", required=True, metavar="NAME=FOLDER[:EVERY]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="Instead of the recipe's.")
    parser.add_argument("--jobs", type=int, default=2, help="Trainings at once.")
    options = parser.parse_args()
    jobs = [(name, seed) for seed in range(options.seeds) for name in STRATEGIES]
    with ThreadPoolExecutor(options.jobs) as pool:
        methods = list(
            pool.map(
                lambda job: train(options.recipe, options.out, *job, options.epochs),
                jobs,
            )
        )
    order = list(STRATEGIES)
    methods.sort(key=lambda method: order.index(method.name.split("#")[0]))
    for item in options.on:
        name, _, place = item.partition("=")
        folder, _, every = place.partition(":")
        table = measure(Path(folder), int(every or 1), methods)
        table.to_csv(options.out / f"strategies_{name}.tsv", sep="\t", float_format="%.5f")
        text = _markdown(spread(table))
        (options.out / f"strategies_{name}.md").write_text(text)
        print(f"\n{name}\n\n{text}")


def _markdown(table: pd.DataFrame) -> str:
    lines = [f"| strategy | {' | '.join(table.columns)} |", "|---" * (len(table.columns) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(row)} |" for name, row in table.iterrows()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
