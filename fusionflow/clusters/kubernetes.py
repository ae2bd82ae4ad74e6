"""Clusters of pods: a DaskCluster of the Dask operator, for as long as a run lasts."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Iterator
from typing import Any

from distributed.core import rpc
from distributed.security import Security

from fusionflow.cluster_options import ClusterOptions
from fusionflow.clusters.address import security_of
from fusionflow.clusters.asides import finished
from fusionflow.clusters.kubernetes_api import (
    check_operator,
    connected,
    hang_up,
    in_plain_words,
    require_client,
)
from fusionflow.clusters.kubernetes_objects import (
    CLUSTER_LABEL,
    autoscaler,
    check_kubernetes,
    dask_cluster,
    worker_groups,
)
from fusionflow.errors import ClusterError, ConfigurationError

logger = logging.getLogger(__name__)

#: Seconds between two looks for the scheduler, and for the API to remove a cluster.
_LOOK = 0.2
_CLOSING = 120


@contextlib.contextmanager
def kubernetes(options: ClusterOptions, torch_threads: int = 1) -> Iterator[Any]:
    """Have a cluster of pods; it is deleted in the end.

    Parameters
    ----------
    options : ClusterOptions
        Its pods, in ``kubernetes``.
    torch_threads : int
        Threads that each task's network will use: fewer tasks then run at a time.

    Yields
    ------
    dask_kubernetes.operator.KubeCluster
        With its scheduler there; workers may still be on their way.

    Raises
    ------
    ConfigurationError
        If an option means nothing for pods, or certificates are needed and not there.
    MissingExtraError
        If dask-kubernetes is not there.
    ClusterError
        If the API does not answer or refuses, the operator is not there, or no scheduler came up
        in time.
    """
    check_kubernetes(options)
    name = f"{options.kubernetes.name}-{uuid.uuid4().hex[:8]}"
    spec = dask_cluster(options, name, torch_threads)
    further = [
        *worker_groups(options, name, torch_threads), *autoscaler(options.kubernetes, name),
    ]  # fmt: skip
    security = _security(options)
    require_client()
    namespace = _checked_namespace(options)
    cluster_class = _cluster_class()
    with in_plain_words(f"DaskCluster {name}"):
        cluster = cluster_class(
            spec, further, namespace=namespace, security=security, patience=options.patience
        )
    try:
        yield cluster
    finally:
        try:
            with in_plain_words(f"to remove DaskCluster {name}"):
                cluster.close(timeout=_CLOSING)
        except ClusterError as error:  # what the run came to is not changed by that
            logger.warning("%s; remove it: kubectl delete daskcluster %s", error, name)


def _security(options: ClusterOptions) -> Security | None:
    """Return this side's certificates, if the pods have some.

    Raises
    ------
    ConfigurationError
        If only one side has.
    """
    named = security_of(options)
    if options.kubernetes.tls_secret is None:
        if named is not None:
            raise ConfigurationError(
                "cluster.tls names certificates, and the pods have none",
                "Name their Secret as well (cluster.kubernetes.tls_secret)",
            )
        return None
    security = named or Security(require_encryption=True)
    if not (security.tls_ca_file and security.tls_client_cert and security.tls_client_key):
        raise ConfigurationError(
            f"The pods talk by TLS (Secret {options.kubernetes.tls_secret}), and this side has no "
            "certificate",
            "Name ca_file, cert and key in cluster.tls, of the same authority",
        )
    return security


def _checked_namespace(options: ClusterOptions) -> str:
    """Return where the cluster will be, once the API said that it knows the operator's kinds."""

    async def check() -> str:
        async with connected(options.kubernetes.namespace) as api:
            await check_operator(api)
            return str(api.namespace)

    with in_plain_words("a look for the Dask operator"):
        return finished(check())


def _cluster_class() -> type:
    """Return a KubeCluster that talks by TLS, has several groups, and does not wait for ever.

    dask-kubernetes' own speaks plain TCP alone, and waits for a pod as long as it takes.
    """
    import kr8s.asyncio
    from dask_kubernetes.operator import KubeCluster
    from dask_kubernetes.operator.networking import get_scheduler_address, wait_for_scheduler
    from kr8s.asyncio.objects import object_from_spec

    class Pods(KubeCluster):
        def __init__(
            self,
            spec: dict[str, Any],
            further: list[dict[str, Any]],
            *,
            namespace: str,
            security: Security | None,
            patience: float,
        ) -> None:
            self.security = security
            self._created = spec["metadata"]["name"]
            self._further = further
            self._patience = patience
            super().__init__(
                custom_cluster_spec=spec, namespace=namespace, quiet=True, shutdown_on_close=True
            )

        async def _start(self) -> None:
            # Kept: what asks for the API takes this one as long as it is there.
            self._api = await kr8s.asyncio.api(namespace=self.namespace)
            try:
                await super()._start()
                self._cluster_info["name"] = self._created  # and not what the scheduler was told
            except BaseException:
                with contextlib.suppress(Exception):  # what went wrong first is what matters
                    await self._close(timeout=_CLOSING)
                raise

        async def _close(self, timeout: float = _CLOSING) -> None:
            try:
                await super()._close(timeout=timeout)
            finally:
                await hang_up(self._api)

        async def _watch_component_status(self) -> None:
            """Nobody looks at the table that this would fill."""

        async def _create_cluster(self) -> None:
            await self._create(self._custom_cluster_spec)
            try:
                await asyncio.wait_for(self._scheduler(), self._patience)
            except TimeoutError as error:
                raise ClusterError(
                    f"No scheduler came up in a pod within {self._patience:g} s: "
                    f"{await _why_not(self.namespace, self.name)}",
                    "Mend what it says, or wait longer (--patience)",
                ) from error
            for item in self._further:
                await self._create(item)

        async def _create(self, item: dict[str, Any]) -> None:
            item = {**item, "metadata": {**item["metadata"], "namespace": self.namespace}}
            await (await object_from_spec(item, allow_unknown_type=True)).create()

        async def _scheduler(self) -> None:
            """Wait for the scheduler's pod, and until it answers."""
            await wait_for_scheduler(self.name, self.namespace)
            service = f"{self.name}-scheduler"
            address = await get_scheduler_address(service, self.namespace)
            arguments: dict[str, Any] = {}
            if self.security is not None:
                address = address.replace("tcp://", "tls://", 1)
                arguments = {"connection_args": self.security.get_connection_args("client")}
            self.scheduler_comm = rpc(address, **arguments)
            while True:
                try:
                    await self.scheduler_comm.versions()
                    break
                except OSError:  # the port is forwarded, and nothing listens yet
                    await asyncio.sleep(_LOOK)
            dashboard = await get_scheduler_address(
                service, self.namespace, port_name="http-dashboard"
            )
            self.forwarded_dashboard_port = dashboard.rpartition(":")[2]

    return Pods


async def _why_not(namespace: str, name: str) -> str:
    """Say how a cluster's pods are, as the API has it."""
    from kr8s.asyncio.objects import Pod

    found = []
    async for pod in Pod.list(namespace=namespace, label_selector={CLUSTER_LABEL: name}):
        status = pod.raw.get("status", {})
        waiting = [
            container["state"]["waiting"]
            for container in status.get("containerStatuses", [])
            if "waiting" in container.get("state", {})
        ]
        unmet = [item for item in status.get("conditions", []) if item.get("status") == "False"]
        reasons = [
            " ".join(filter(None, (item.get("reason"), item.get("message"))))
            for item in waiting or unmet
        ]
        found.append(f"pod {pod.name} is {status.get('phase')} ({'; '.join(reasons) or 'no word'})")
    if found:
        return ", ".join(found)
    return "there is no pod; check that the operator runs (kubectl get pods -A | grep dask)"
