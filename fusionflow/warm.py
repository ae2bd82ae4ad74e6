"""Networks that workers read before their first task, and never again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

import distributed

from fusionflow.fusion import load_network
from fusionflow.placement import RESOURCE
from fusionflow.stages import Recipe, device_of

logger = logging.getLogger(__name__)

#: Seconds to wait for all workers to read a network.
_PATIENCE = 60.0


class KeepNetwork(distributed.WorkerPlugin):
    """Reads a method's network into a worker when the worker starts, or when it is told to.

    What travels is the path and the checksum. A worker that cannot read it says so in its log, and
    to whoever asks it for a task: `fusionflow.preflight` and every fuse task read it the same way.

    Parameters
    ----------
    recipe : Recipe
        Method and weights; `needs_gpu` leaves workers without a GPU alone.
    run : str
        The run that wants it. Another one may want the same: each has a plugin of its own.
    """

    def __init__(self, recipe: Recipe, run: str) -> None:
        self.recipe = recipe
        self.name = f"fusionflow-network-{run}"

    async def setup(self, worker: distributed.Worker) -> None:
        """Read it in a thread, so that the worker goes on talking to the scheduler."""
        recipe = self.recipe
        if recipe.weights is None:
            return
        if recipe.needs_gpu and not worker.state.total_resources.get(RESOURCE):
            return
        try:
            await asyncio.to_thread(load_network, recipe.method, recipe.weights, device_of(recipe))
        except Exception as error:
            logger.warning("%s cannot read the network: %s", worker.address, error)


@contextlib.contextmanager
def kept_network(client: distributed.Client, recipe: Recipe, run: str) -> Iterator[None]:
    """Let every worker of a cluster, those too that come later, keep a network during a run."""
    if recipe.weights is None:
        yield
        return
    plugin = KeepNetwork(recipe, run)
    _briefly(lambda: client.register_plugin(plugin))
    try:
        yield
    finally:
        if client.status == "running":
            _briefly(lambda: client.unregister_worker_plugin(plugin.name))


def _briefly(call: Callable[[], object]) -> None:
    """Call something that waits for every worker, but not for ever: one of them may hang.

    Nor does it matter if it fails: a fuse task reads the network itself.
    """

    def called() -> None:
        try:
            call()
        except Exception as error:
            logger.info("of the workers' networks: %s", error)

    thread = threading.Thread(target=called, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if thread.is_alive():
        logger.warning("A worker does not answer; the others go on")
