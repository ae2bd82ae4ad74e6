"""The command that trains: ``fusionflow train``."""

from __future__ import annotations

from pathlib import Path

import click
import yaml

from fusionflow.cli_options import FOLDER, VERBOSE, log


@click.command()
@click.argument("config", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("out", type=FOLDER)
@click.option(
    "--name", help="What the model is called (default: dwt-BACKBONE, if that is pretrained)."
)
@click.option("--licence", default="not stated", help="Of the model; stands in its header.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Instead of the configuration's.")
@click.option(
    "--unfreeze",
    metavar="N|all",
    help="Convolutions of the backbone that are trained, too, counted from the last tap.",
)
@click.option("--device", default="cpu", show_default=True, help="Where the net runs: cpu, cuda.")
@VERBOSE
def train(
    config: Path,
    out: Path,
    name: str | None,
    licence: str,
    seed: int | None,
    unfreeze: str | None,
    device: str,
    verbose: int,
) -> None:
    """Train the learned rule as the YAML file CONFIG says, without labels.

    OUT gets the model, a table with a line an epoch, pictures, and a checkpoint: started again with
    the same options, the training goes on where it was broken off.
    """
    from fusionflow.io.files import write_bytes
    from fusionflow.train_config import load_train_config
    from fusionflow.training import train as run

    log(verbose)
    chosen = load_train_config(config, {"seed": seed, "unfreeze": unfreeze})
    trained = run(chosen, out, name=name, licence=licence, device=device, tell=click.echo)
    click.echo(f"model of epoch {trained.best.number}: {trained.model}")
    method = {
        "name": trained.name,
        "rule": "learned",
        "backbone": chosen.backbone,
        "taps": list(chosen.taps),
        "transform": chosen.transform.model_dump(mode="json"),
        "weights": str(trained.model.resolve()),
    }
    use = trained.model.with_name("run.yaml")
    write_bytes(use, yaml.safe_dump({"method": method}, sort_keys=False).encode())
    click.echo(f"to use it: fusionflow run BIDS_DIR OUT_DIR --config {use}")
