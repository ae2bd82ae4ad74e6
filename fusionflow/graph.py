"""The Dask graphs: one scan from files to a published result, and a lazy result of arrays.

Both have the same stages, a task each for a slab: ``decompose`` (DWT), ``fuse`` (the network; it
takes the GPU where the cluster has one) and ``reconstruct`` (inverse DWT and metrics). A scan
adds one task that conforms it and one that commits it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask.base import tokenize
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, MaterializedLayer

from fusionflow import accessor, commit, fusion, schema, stages, staging  # noqa: F401
from fusionflow.config import Method, named_method
from fusionflow.errors import ConfigurationError
from fusionflow.io.store import Layout
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS
from fusionflow.placement import advertised, current_client, wishes
from fusionflow.provided import plugins_of
from fusionflow.tenancy import task_name
from fusionflow.transform import check_levels


def check_dask_settings() -> None:
    """Refuse Dask's array query planning: it loses where a task must run.

    Raises
    ------
    ConfigurationError
        If it is switched on.
    """
    if dask.config.get("array.query-planning", False):
        raise ConfigurationError(
            "Dask's array query planning loses the placement of GPU tasks",
            "Set array.query-planning to False (DASK_ARRAY__QUERY_PLANNING=False)",
        )


def scan_graph(job: staging.Job) -> Delayed:
    """Return the graph of one scan; its value is the `Published` record.

    Its tasks are named after stage and run (`fusionflow.tenancy`), scan, slab or shard, and
    attempt; stages are ``conform``, ``decompose``, ``fuse``, ``reconstruct``, ``write`` and
    ``commit``. For up to four slabs and one shard it has at most 14 tasks.
    """
    run, label = job.begun.run, job.scan.label

    def key(stage: str, *index: int) -> tuple[Any, ...]:
        return (task_name(stage, run), label, *index, job.token)

    layers: dict[str, dict[Any, Any]] = {
        "conform": {key("conform"): (staging.stage_scan, job)},
        "decompose": {},
        "fuse": {},
        "reconstruct": {},
    }
    slabs = job.layout.slabs
    for i, (start, stop) in enumerate(slabs):
        layers["decompose"][key("decompose", i)] = (
            staging.decompose_staged, job, key("conform"), start, stop,
        )  # fmt: skip
        layers["fuse"][key("fuse", i)] = (stages.fuse_slab, key("decompose", i), job.recipe)
        layers["reconstruct"][key("reconstruct", i)] = (
            staging.reconstruct_staged, job, key("fuse", i), start, stop,
        )  # fmt: skip
    shards = job.layout.shards
    final: tuple[Any, ...]
    if len(shards) == 1:
        parts = [key("reconstruct", i) for i in range(len(slabs))]
        final = (commit.commit_slabs, job, key("conform"), parts)
    else:
        layers["write"] = {
            key("write", k): (
                commit.write_shard, job, start,
                [key("reconstruct", i) for i, (z, _) in enumerate(slabs) if start <= z < stop],
            )
            for k, (start, stop) in enumerate(shards)
        }  # fmt: skip
        parts = [key("write", k) for k in range(len(shards))]
        final = (commit.commit, job, key("conform"), parts)
    layers["commit"] = {key("commit"): final}
    needs = {
        "decompose": {"conform"},
        "fuse": {"decompose"},
        "reconstruct": {"fuse"},
        "write": {"reconstruct"},
        "commit": {"conform", "write" if "write" in layers else "reconstruct"},
    }
    graph = _annotated(layers, needs, run, gpu=job.recipe.needs_gpu)
    return Delayed(key("commit"), graph, layer=task_name("commit", run))


def _annotated(
    layers: Mapping[str, dict[Any, Any]],
    needs: Mapping[str, set[str]],
    of: str,
    *,
    gpu: bool,
) -> HighLevelGraph:
    """Make a graph, of a run or a token, whose slab stages carry where they must run."""
    annotations = {
        "decompose": wishes(takes_gpu=False),
        "fuse": wishes(takes_gpu=True),
        "reconstruct": wishes(takes_gpu=False),
    }
    return HighLevelGraph(
        {
            task_name(stage, of): MaterializedLayer(
                tasks, annotations=annotations.get(stage) if gpu else None
            )
            for stage, tasks in layers.items()
        },
        {
            task_name(stage, of): {task_name(other, of) for other in needs.get(stage, ())}
            for stage in layers
        },
    )


def make_recipe(
    method: Method, region: stages.Region = "frame", *, gpus: int = 0, mask: str = "auto"
) -> stages.Recipe:
    """Resolve weights and plug-ins of a method and say how it is to run.

    Raises
    ------
    ConfigurationError
        If the parts of the method do not fit together.
    WeightsNotFoundError
        If its weights are not there.
    """
    recipe = stages.Recipe(
        method=method,
        weights=fusion.find_weights(method),
        region=region,
        plugins=plugins_of(method, mask),
    )
    return replace(recipe, needs_gpu=bool(gpus) and recipe.suits_gpus)


def fuse(
    scan: xr.Dataset,
    method: str | Method = "dwt-vgg19",
    *,
    region: stages.Region = "frame",
) -> xr.Dataset:
    """Fuse a scan lazily.

    Parameters
    ----------
    scan : Dataset
        ``mri`` and ``pet``, (z, y, x) floats scaled so that 0 to 1 is the display window; with
        ``mask`` (z, y, x) if metrics are to leave empty slices out. Dask or NumPy arrays.
    method : str or Method
        A name, or a method of one's own.
    region : {"frame", "mask"}
        Where metrics are computed.

    Returns
    -------
    Dataset
        ``fused`` (z, y, x) float32, ``metrics`` (z, source, metric) and ``image_metrics`` (z,
        image_metric) float64, as Dask arrays with one chunk a slab. If there is a client whose
        cluster has GPU workers, compute it with `compute`.

    Raises
    ------
    SchemaError
        If `scan` lacks a variable or has it with other dimensions.
    ConfigurationError
        If the method cannot be used.
    WeightsNotFoundError
        If its weights are not there.
    """
    check_dask_settings()
    method = named_method(method) if isinstance(method, str) else method
    schema.validate(scan, schema.CONFORMED, "scan")
    sizes = scan["mri"].shape
    layout = Layout.of_shape((sizes[0], sizes[1], sizes[2]))
    check_levels(layout.shape[1:], method.transform)
    gpus = advertised(current_client())
    recipe = make_recipe(method, region, gpus=gpus)
    chunks = (layout.slab, *layout.shape[1:])
    sources = {
        name: da.asarray(scan[name].data).astype(np.float32).rechunk(chunks)
        for name in schema.SOURCES
    }
    if "mask" in scan:
        schema.validate(scan, (schema.MASK,), "scan")
        sources["mask"] = da.asarray(scan["mask"].data).rechunk(chunks)
    return _lazy_dataset(scan, sources, recipe)


def _lazy_dataset(
    scan: xr.Dataset, sources: Mapping[str, da.Array], recipe: stages.Recipe
) -> xr.Dataset:
    """Return the three stages over the blocks of `sources` as Dask arrays."""
    mri, pet, mask = sources["mri"], sources["pet"], sources.get("mask")
    token = tokenize(mri.name, pet.name, None if mask is None else mask.name, recipe.__dict__)
    layers: dict[str, dict[Any, Any]] = {
        name: {} for name in ("decompose", "fuse", "reconstruct", "fused", "metrics", "image")
    }
    for i in range(mri.numblocks[0]):
        blocks = [(array.name, i, 0, 0) for array in (mri, pet)]
        mask_block = None if mask is None else (mask.name, i, 0, 0)
        bands, fused, whole = ((task_name(stage, token), i) for stage in list(layers)[:3])
        layers["decompose"][bands] = (stages.decompose_slab, *blocks, recipe)
        layers["fuse"][fused] = (stages.fuse_slab, bands, recipe)
        layers["reconstruct"][whole] = (
            stages.reconstruct_slab, fused, *blocks, mask_block, recipe,
        )  # fmt: skip
        layers["fused"][(task_name("fused", token), i, 0, 0)] = (_fused_of, whole)
        layers["metrics"][(task_name("metrics", token), i, 0, 0)] = (_metrics_of, whole)
        layers["image"][(task_name("image", token), i, 0)] = (_image_metrics_of, whole)
    needs = {
        "fuse": {"decompose"},
        "reconstruct": {"fuse"},
        **{name: {"reconstruct"} for name in ("fused", "metrics", "image")},
    }
    own = _annotated(layers, needs, token, gpu=recipe.needs_gpu)
    graph_layers, graph_needs = dict(own.layers), {k: set(v) for k, v in own.dependencies.items()}
    for array in sources.values():
        graph_layers.update(array.dask.layers)
        graph_needs.update(array.dask.dependencies)
    graph_needs[task_name("decompose", token)] |= {mri.name, pet.name}
    graph_needs[task_name("reconstruct", token)] |= {array.name for array in sources.values()}
    graph = HighLevelGraph(graph_layers, graph_needs)
    slabs = mri.chunks[0]
    pair_shape = (slabs, (len(schema.SOURCES),), (len(PAIR_METRICS),))
    arrays = {
        "fused": da.Array(graph, task_name("fused", token), mri.chunks, dtype=np.float32),
        "metrics": da.Array(graph, task_name("metrics", token), pair_shape, dtype=np.float64),
        "image_metrics": da.Array(
            graph, task_name("image", token), (slabs, (len(IMAGE_METRICS),)), dtype=np.float64
        ),
    }
    specs = (schema.FUSED, schema.METRICS, schema.IMAGE_METRICS)
    return xr.Dataset(
        {
            spec.name: (spec.dims, arrays[spec.name], {"units": spec.units, "long_name": spec.doc})
            for spec in specs
        },
        coords={
            **{name: scan.coords[name] for name in ("z", "y", "x") if name in scan.coords},
            "source": list(schema.SOURCES),
            "metric": [metric.name for metric in PAIR_METRICS],
            "image_metric": [metric.name for metric in IMAGE_METRICS],
        },
        attrs={
            "method": recipe.method.model_dump(mode="json"),
            "weights": recipe.weights.description if recipe.weights else "",
            "region": recipe.region,
        },
    )


def _fused_of(slab: stages.FusedSlab) -> Any:  # noqa: ANN401
    return slab.fused


def _metrics_of(slab: stages.FusedSlab) -> Any:  # noqa: ANN401
    return slab.metrics.pair


def _image_metrics_of(slab: stages.FusedSlab) -> Any:  # noqa: ANN401
    return slab.metrics.image


def compute(*lazy: Any) -> Any:  # noqa: ANN401
    """Compute lazy results with every task on a worker that may run it.

    Parameters
    ----------
    *lazy : Dataset, DataArray or Dask collection
        Such as `fuse` gives.

    Returns
    -------
    The same things in memory; a single one if one was given, otherwise a tuple.

    Notes
    -----
    With a client this submits the graph as it is, since optimising it loses the resources that
    a task asks for; without one it computes on threads of this process.
    """
    check_dask_settings()
    client = current_client()
    if client is None:
        results = dask.compute(*lazy)
    else:
        futures = client.compute(list(lazy), optimize_graph=False)
        results = tuple(client.gather(futures))
    return results[0] if len(lazy) == 1 else results


def new_token() -> str:
    """Return what names one attempt at one scan."""
    return uuid.uuid4().hex
