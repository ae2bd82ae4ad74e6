"""The lines of the preflight table: what workers answered, held against what a run needs."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import distributed

from fusionflow.inspection import Facts, versions
from fusionflow.placement import gpus_of
from fusionflow.planning import bytes_for_scans, memory_needed
from fusionflow.stages import Recipe

#: These must be the same to the last digit; of the others the first two numbers.
_EXACT = ("fusionflow", "dask", "distributed")
#: Bytes a voxel that a published scan takes on the disk at most, and that a worker's scratch needs.
_BYTES_ON_DISK = 24
_LEAST_SCRATCH = 1e9
#: Rows and columns of a slice that is fused to see how long it takes, at most.
_PROBE = 128
#: Workers that are named in a line; the others are counted.
_NAMED = 3

State: TypeAlias = Literal["ok", "note", "fails"]


@dataclass(frozen=True)
class Check:
    """A line of the table.

    Attributes
    ----------
    name : str
        What was looked at.
    state : {"ok", "note", "fails"}
        ``fails`` stops the run.
    found : str
        What was found.
    mend : str
        What to do about it.
    """

    name: str
    state: State
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Size:
    """Voxels of the larger image, and (z, y, x) of what is fused."""

    label: str
    voxels: int
    shape: tuple[int, int, int]


def _named(addresses: Iterable[str]) -> str:
    """Return a few names and a count."""
    names = sorted(addresses)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _grouped(problems: Mapping[str, str]) -> str:
    """Return problems of workers, the same ones together."""
    groups = {
        text: [address for address, said in problems.items() if said == text]
        for text in dict.fromkeys(problems.values())
    }
    return "; ".join(f"{text} ({_named(addresses)})" for text, addresses in groups.items())


def probe_of(sizes: Sequence[Size]) -> tuple[int, int]:
    """Return the slices (y, x) that workers fuse to see how long it takes: not the largest."""
    shapes = sorted(size.shape[1:] for size in sizes) or [(64, 64)]
    rows, columns = shapes[len(shapes) // 2]
    return min(rows, _PROBE), min(columns, _PROBE)


def answers_check(
    known: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Facts],
    wrong: Mapping[str, str],
    silent: Mapping[str, str],
) -> Check:
    """Whether every worker answered; one may leave or be busy, so long as there are others."""
    threads = sum(worker["nthreads"] for worker in known.values())
    found = f"{len(known)} with {threads} threads"
    if wrong:
        mend = "Install the same fusionflow on every worker"
        return Check("workers", "fails", f"{found}; {_grouped(wrong)}", mend)
    if silent:
        mend = "Restart workers that hang; look into the logs of those that went away: " + (
            "memory, or another fusionflow, or none"
        )
        state: State = "note" if facts else "fails"
        return Check("workers", state, f"{found}; {_grouped(silent)}", mend)
    return Check("workers", "ok", found)


def versions_check(client: distributed.Client, facts: Mapping[str, Facts]) -> Check:
    """Whether scheduler and workers have the versions of this process."""
    here = versions()
    # Of the scheduler, and of nobody else: `Client.get_versions` waits for workers that hang.
    scheduler = client.sync(client.scheduler.versions)
    said = {**scheduler.get("packages", {}), **scheduler.get("host", {})}
    # It computes nothing, so no more than this has to agree. Python is 3.11.7.final.0 there.
    others = {
        "the scheduler": {
            name: ".".join(str(said[name]).split(".")[:3])
            for name in ("dask", "distributed", "python")
            if said.get(name)
        }
    }
    others |= {address: item.versions for address, item in facts.items()}
    wrong: dict[str, str] = {}
    differing: dict[str, str] = {}
    for where, found in others.items():
        for package, version in found.items():
            ours = here.get(package, "none")
            if version == ours:
                continue
            text = f"{package} {version}, here {ours}"
            same = package not in _EXACT and version.split(".")[:2] == ours.split(".")[:2]
            (differing if same else wrong).setdefault(where, text)
    mend = "Install the same versions everywhere (constraints.txt)"
    if wrong:
        return Check("versions", "fails", _grouped(wrong), mend)
    if differing:
        return Check("versions", "note", f"{_grouped(differing)}: last bits may differ", mend)
    names = ", ".join(f"{name} {here[name]}" for name in ("fusionflow", "dask", "torch"))
    return Check("versions", "ok", f"{names}: the same on all")


def gpus_check(
    known: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Facts], recipe: Recipe
) -> Check:
    """Whether GPUs that are advertised can be used, and those that are there are advertised."""
    advertise = {address for address, worker in known.items() if gpus_of(worker)}
    blind = {a for a, item in facts.items() if a in advertise and not item.cuda}
    idle = {a: item.cuda for a, item in facts.items() if a not in advertise and item.cuda}
    several = {a for a in advertise if gpus_of(known[a]) > 1}
    if recipe.needs_gpu and several:
        return Check(
            "GPUs", "fails", f"{_named(several)} advertise{'s' * (len(several) == 1)} more than "
            "one GPU, and a process uses one", "Start a worker for each (dask cuda worker)",
        )  # fmt: skip
    if recipe.weights is None:
        return Check("GPUs", "ok", "none needed: the method has no network")
    if not recipe.suits_gpus:
        return Check("GPUs", "ok", "none: int8 is arithmetic of processors")
    if recipe.needs_gpu and blind:
        return Check(
            "GPUs", "note",
            f"{_named(blind)} advertise{'s' * (len(blind) == 1)} a GPU that torch does not see: "
            "FUSES ON THE PROCESSOR",
            "Check the driver, CUDA_VISIBLE_DEVICES, and that torch was built for CUDA",
        )  # fmt: skip
    if not recipe.needs_gpu and idle:
        return Check(
            "GPUs", "note", f"NOT USED, for no worker advertises them: {_grouped(idle)}",
            "Start workers with --resources GPU=1 (dask cuda worker), or take --cluster cuda",
        )  # fmt: skip
    if not recipe.needs_gpu:
        return Check("GPUs", "ok", "none: networks run on processors")
    names = Counter(facts[address].cuda for address in advertise if address in facts)
    return Check("GPUs", "ok", ", ".join(f"{count} x {name}" for name, count in names.items()))


def network_check(facts: Mapping[str, Facts], recipe: Recipe) -> list[Check]:
    """Whether every worker that needs it could read the network."""
    wrong = {address: item.network for address, item in facts.items() if item.network}
    if wrong:
        return [
            Check(
                "network", "fails", _grouped(wrong),
                "Put the weights where every worker sees them (fusionflow weights stage)",
            )
        ]  # fmt: skip
    if lacking := [address for address, item in facts.items() if not item.in_int8]:
        return [
            Check(
                "network", "fails",
                f"precision int8: no convolutions of 8 bits on {_named(lacking)}",
                "Take float32 or bfloat16, or processors with VNNI (x86 since about 2019)",
            )
        ]  # fmt: skip
    if recipe.weights is None:
        return []
    found = f"{recipe.weights.description}: read by every worker"
    if slow := [address for address, item in facts.items() if not item.quick]:
        return [
            Check(
                "network", "note",
                f"{found}; HALF AS FAST, AND OTHER LAST BITS, on {_named(slow)}: no Winograd "
                "convolutions there",
                "Take processors that NNPACK knows (x86 with AVX2 and FMA, ARM with NEON)",
            )
        ]  # fmt: skip
    return [Check("network", "ok", found)]


def plugins_check(facts: Mapping[str, Facts], recipe: Recipe) -> list[Check]:
    """Whether every worker has the plug-ins of the run, in the versions it was planned with."""
    if not recipe.plugins:
        return []
    wanted = {item.package: item.version for item in recipe.plugins}
    wrong = {
        address: ", ".join(
            f"{package} {item.plugins.get(package) or 'is not installed'}, here {version}"
            for package, version in wanted.items()
            if item.plugins.get(package) != version
        )
        for address, item in facts.items()
    }
    if wrong := {address: text for address, text in wrong.items() if text}:
        mend = "Install the same versions of these packages on every worker"
        return [Check("plug-ins", "fails", _grouped(wrong), mend)]
    names = ", ".join(f"{package} {version}" for package, version in wanted.items())
    return [Check("plug-ins", "ok", f"{names}: the same on all")]


def inputs_check(facts: Mapping[str, Facts]) -> Check:
    """Whether every worker sees the inputs."""
    missing = {
        address: f"{item.missing[0]} is not seen" for address, item in facts.items() if item.missing
    }
    if missing:
        return Check(
            "inputs", "fails", _grouped(missing),
            "Mount the input under the same path on every worker",
        )  # fmt: skip
    return Check("inputs", "ok", "seen by every worker")


def output_check(
    facts: Mapping[str, Facts], seen: Iterable[str], known: Mapping[str, Mapping[str, Any]]
) -> Check:
    """Whether every worker writes where results go, and it is seen here."""
    names = {address: f"worker-{index}" for index, address in enumerate(known)}
    wrong = {address: item.output for address, item in facts.items() if item.output}
    wrong |= {
        address: "what it writes there is not seen here"
        for address in facts
        if address not in wrong and names[address] not in set(seen)
    }
    if wrong:
        return Check(
            "output", "fails", _grouped(wrong),
            "Take an output folder that every worker can write under the same path",
        )  # fmt: skip
    return Check("output", "ok", "written by every worker")


def memory_check(
    known: Mapping[str, Mapping[str, Any]], recipe: Recipe, sizes: Sequence[Size]
) -> Check:
    """Whether a worker's memory is enough for the scans that were looked at."""
    limits = {a: float(worker.get("memory_limit") or 0) for a, worker in known.items()}
    least, most_of_one = min(limits.values()), max(limits.values())
    reads = recipe.weights is not None
    needs = {
        size.label: memory_needed(
            size.voxels,
            size.shape[1] * size.shape[2],
            reads_network=reads,
            precision=recipe.method.precision,
        )
        for size in sizes
    }
    if not needs:
        return Check("memory", "note", "no header could be read, so needs are not known")
    most = max(needs, key=lambda label: needs[label])
    found = f"{most} needs about {needs[most] / 1e9:.1f} GB"
    if not all(limits.values()):
        return Check("memory", "note", f"{found}; workers have no limit")
    found += f", a worker may take {least / 1e9:.1f} GB"
    mend = "Give each worker more memory (fewer workers, --mem-mb)"
    if most_of_one < min(needs.values()):
        return Check("memory", "fails", found, mend)
    if not bytes_for_scans(limits.values(), reads_network=reads):
        return Check("memory", "note", f"{found}: ONE SCAN AT A TIME on the whole cluster", mend)
    return Check("memory", "ok" if least >= needs[most] else "note", found, mend)


def disks_check(facts: Mapping[str, Facts], sizes: Sequence[Size], scans: int, out: Path) -> Check:
    """Whether there is room for results, and for what workers spill."""
    free = shutil.disk_usage(out).free
    voxels = [size.shape[0] * size.shape[1] * size.shape[2] for size in sizes] or [0]
    one, everything = min(voxels) * _BYTES_ON_DISK, sum(voxels) / len(voxels) * _BYTES_ON_DISK
    everything *= scans
    little = {a: item.scratch_bytes for a, item in facts.items()}
    least = min(little.values(), default=0)
    found = f"{free / 1e9:.1f} GB free for results, {least / 1e9:.1f} GB for what workers spill"
    if free < one:
        return Check(
            "disks", "fails", f"{found}; a scan may take {one / 1e9:.1f} GB", f"Make room in {out}"
        )
    if free < everything:
        return Check(
            "disks", "note", f"{found}; {scans} scans may take up to {everything / 1e9:.1f} GB",
            "Make room, or prune old versions",
        )  # fmt: skip
    if facts and least < _LEAST_SCRATCH:
        return Check("disks", "note", found, "Let workers spill elsewhere (--work-dir)")
    return Check("disks", "ok", found)


def time_check(
    known: Mapping[str, Mapping[str, Any]],
    facts: Mapping[str, Facts],
    recipe: Recipe,
    sizes: Sequence[Size],
    scans: int,
) -> Check:
    """Estimate from slices of noise that workers fused, each once in its process."""
    timed = {a: item.seconds_a_slice for a, item in facts.items() if item.seconds_a_slice}
    if not timed or not sizes:
        return Check("time", "note", "not known: no slice could be fused")
    one_at_a_time = recipe.needs_gpu
    rate = sum((1 if one_at_a_time else known[a]["nthreads"]) / s for a, s in timed.items())
    pixels = [size.shape[0] * size.shape[1] * size.shape[2] for size in sizes]
    rows, columns = probe_of(sizes)
    seconds = sum(pixels) / len(pixels) / (rows * columns) / rate * scans
    slices = sum(size.shape[0] for size in sizes) / len(sizes)
    text = f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(seconds / 60, 0.1):.1f} min"
    return Check(
        "time", "ok",
        f"about {text} of fusion for up to {scans} scan{'s' * (scans != 1)} of about {slices:.0f} "
        f"slices, at {1000 / rate:.0f} ms for {rows} x {columns} pixels",
    )  # fmt: skip
