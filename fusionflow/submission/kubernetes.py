"""A run as a DaskJob of the Dask operator: what there is to create, and its creation.

``python -m fusionflow.submission.kubernetes FILE`` creates what a file holds; the pods of a CronJob
do so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from fusionflow.clusters.kubernetes_objects import (
    autoscaler,
    check_kubernetes,
    claims,
    config_map,
    dask_job,
    network_policies,
    worker_groups,
)
from fusionflow.clusters.kubernetes_pods import CONFIG_FOLDER, is_mounted, scheduler_address
from fusionflow.clusters.kubernetes_schedule import scheduled
from fusionflow.config import RunConfig
from fusionflow.errors import ConfigurationError, FusionflowError, LockedError
from fusionflow.submission.configuration import config_inside, weights_file
from fusionflow.untrusted import printable, read_bounded

__all__ = ["as_yaml", "objects", "submit"]

CONFIG_FILE = "run.yaml"
_MOST_BYTES = 1 << 20
#: How to see what becomes of what was submitted.
_LOOKS = {
    "DaskJob": "kubectl -n {where} logs -f {name}-runner",
    "CronJob": "kubectl -n {where} get cronjob,daskjob",
}


def objects(
    bids_dir: Path,
    out_dir: Path,
    arguments: Sequence[str],
    config: RunConfig,
    *,
    schedule: str | None,
) -> list[dict[str, Any]]:
    """Return all objects of Kubernetes that a run consists of.

    Parameters
    ----------
    bids_dir, out_dir : Path
        As pods see them: on a volume that they mount.
    arguments : sequence of str
        Further words for ``fusionflow run``, for which there is no place in `config`, such as
        ``--participant-label 01``.
    config : RunConfig
        The run; ``cluster.kubernetes`` says how its pods are.
    schedule : str or None
        When to run again and again, in the words of cron; None runs once, now.

    Returns
    -------
    list of dict
        In the order in which they are to be created.

    Raises
    ------
    ConfigurationError
        If an option is missing or means nothing in pods, or if pods would not find a path.
    """
    options, pods = config.cluster, config.cluster.kubernetes
    check_kubernetes(options)
    if options.gpu == "required" and not pods.has_gpus:
        raise ConfigurationError(
            "A GPU is required, and no group of pods has one",
            "Give a group of cluster.kubernetes.groups `gpus: 1`, or leave out --gpu required",
        )
    _check_paths(bids_dir, out_dir, config)
    words = ["fusionflow", "run", str(bids_dir), str(out_dir), *arguments]
    words += ["--config", f"{CONFIG_FOLDER}/{CONFIG_FILE}"]
    words += ["--cluster", scheduler_address(pods, pods.name)]
    if pods.tls_secret is None:
        words += ["--allow-plain-tcp"]
    if options.gpu != "auto" or pods.has_gpus:
        words += ["--gpu", "never" if options.gpu == "never" else "required"]
    threads = config.method.threads
    # The run's pod is there as soon as the scheduler's, and perhaps sooner.
    inside = config_inside(config, scheduler_patience=float(options.patience))
    around = [
        *claims(pods),
        *network_policies(pods, pods.name),
        config_map(pods, pods.name, {CONFIG_FILE: inside}),
    ]
    job = [
        dask_job(options, pods.name, words, pods.name, threads),
        *worker_groups(options, pods.name, threads),
        *autoscaler(pods, pods.name),
    ]
    if schedule is None:
        return [*around, *job]
    for item in job:  # they get the namespace of the pod that creates them
        item["metadata"].pop("namespace", None)
    return [*around, *scheduled(pods, schedule, as_yaml(job))]


def submit(objects: Sequence[dict[str, Any]], namespace: str | None) -> str:
    """Create objects, or bring those that are there up to date.

    A DaskJob of the same name that has ended makes room; claims for storage stay as they are.

    Parameters
    ----------
    objects : sequence of dict
        As `objects` returns them.
    namespace : str or None
        Where; None takes theirs, or that of the current context.

    Returns
    -------
    str
        What was submitted, and how to see what becomes of it.

    Raises
    ------
    LockedError
        If a DaskJob of the same name still runs. Nothing was changed then.
    MissingExtraError
        If there is no client for Kubernetes.
    ClusterError
        If the API cannot be reached or refuses something, or the operator is not there.
    """
    from fusionflow.clusters.kubernetes_api import create_all

    where = create_all(objects, namespace)
    return "; ".join(
        f"Submitted {item['kind']} {name}: " + _LOOKS[item["kind"]].format(where=where, name=name)
        for item in objects
        if item["kind"] in _LOOKS and (name := item["metadata"]["name"])
    )


def as_yaml(objects: Sequence[dict[str, Any]]) -> str:
    """Return objects as YAML documents, texts of several lines as such."""
    return yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True,
        explicit_start=True,
    )  # fmt: skip


class _Dumper(yaml.SafeDumper):
    """Writes objects that are the same out each time, and text in blocks."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    )


_Dumper.add_representer(str, _text)


def _check_paths(bids_dir: Path, out_dir: Path, config: RunConfig) -> None:
    """Refuse paths that pods would not find, or could not write to."""
    places: list[tuple[str, Path | None]] = [
        ("The input", bids_dir),
        ("The output", out_dir),
        ("conform.space (--space)", config.conform.space),
        ("input.bids_filter (--bids-filter-file)", config.input.bids_filter),
        ("method.weights (--weights)", weights_file(config.method.weights)),
        *(("input.derivatives (--derivatives)", path) for path in config.input.derivatives),
    ]
    options = config.cluster.kubernetes
    mounted = ", ".join(volume.path for volume in options.volumes) or "none"
    for what, path in places:
        if path is None:
            continue
        if not path.is_absolute() or ".." in path.parts or not is_mounted(options, str(path)):
            raise ConfigurationError(
                f"{what} {path} is on no volume that pods mount ({mounted})",
                "Give the path as pods see it, and a volume for it in cluster.kubernetes.volumes: "
                "{claim: NAME, path: /data}",
            )
    if not is_mounted(options, str(out_dir), to_write=True):
        raise ConfigurationError(
            f"The output {out_dir} is on a volume that pods may only read",
            "Leave out `read_only: true` of that volume in cluster.kubernetes.volumes",
        )


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--namespace", help="Where, unless the objects say so.")
def main(file: Path, namespace: str | None) -> None:
    """Create the objects of a YAML file; leave alone a DaskJob that still runs."""
    try:
        text = read_bounded(file, _MOST_BYTES).decode()
        documents = [document for document in yaml.safe_load_all(text) if document]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise click.ClickException(f"{file}: {printable(error)}") from error
    try:
        click.echo(submit(documents, namespace))
    except LockedError as error:
        click.echo(f"Left alone: {error}")
    except FusionflowError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
