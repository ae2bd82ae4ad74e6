"""Talking to the API of Kubernetes: creating objects, and saying plainly what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
import warnings
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fusionflow.clusters.asides import finished
from fusionflow.clusters.kubernetes_objects import DASK_API
from fusionflow.errors import ClusterError, LockedError, MissingExtraError
from fusionflow.untrusted import one_line

logger = logging.getLogger(__name__)

#: Seconds for the operator to begin with a DaskJob, and for an old one to go.
_PATIENCE = 60.0
_LOOK = 0.5
#: How a DaskJob ends.
_ENDED = ("Successful", "Failed")
_INSTALL = (
    "Install the operator: helm install --repo https://helm.dask.org --create-namespace "
    "-n dask-operator --generate-name dask-kubernetes-operator"
)
_MENDS = {
    401: "Log in again: kubectl auth whoami says as whom you are known",
    403: "Ask for that right; kubectl auth can-i --list shows which you have",
    409: "Remove it, or give another name (cluster.kubernetes.name)",
}


def create_all(objects: Sequence[dict[str, Any]], namespace: str | None) -> str:
    """Create objects, and return where; see `fusionflow.submission.kubernetes.submit`."""
    require_client()
    return finished(_create_all(objects, namespace))


def require_client() -> None:
    """Check that there is a client for Kubernetes and the operator.

    Raises
    ------
    MissingExtraError
        If not.
    """
    try:
        import dask_kubernetes  # noqa: F401
        import kr8s  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"Pods of Kubernetes need dask-kubernetes, which cannot be used here: {error}",
            "pip install 'fusionflow[kubernetes]'",
        ) from error


@contextlib.contextmanager
def in_plain_words(what: str) -> Iterator[None]:
    """Turn what the client raises into errors that say what the API said.

    Raises
    ------
    ClusterError
        In place of an error of the client.
    """
    import httpx
    import kr8s

    try:
        with warnings.catch_warnings():
            # Of a newer Kubernetes than the client knows.
            warnings.filterwarnings("ignore", "Kubernetes version", UserWarning)
            yield
    except kr8s.ServerError as error:
        said = one_line(str(error))
        raise ClusterError(
            f"Kubernetes refuses {what}: {said}", _mend(error.response, said)
        ) from error
    except (httpx.HTTPError, kr8s.APITimeoutError, OSError) as error:
        raise ClusterError(
            f"No API of Kubernetes answers ({what}): {one_line(repr(error))}",
            "Check `kubectl cluster-info`, and that KUBECONFIG or ~/.kube/config names the cluster",
        ) from error


def _mend(response: Any, said: str) -> str | None:  # noqa: ANN401
    """Return what a person can do about an answer of the API."""
    if response is None:
        return None
    if response.status_code == 404 and DASK_API in str(response.url):
        return f"{_INSTALL}; if it is there, check the namespace"
    if response.status_code == 403 and "exceeded quota" in said:
        return "Ask for less: fewer replicas, cores or memory (cluster.kubernetes.groups)"
    return _MENDS.get(response.status_code)


async def check_operator(api: Any, kind: str = "daskclusters") -> None:  # noqa: ANN401
    """Look whether the API knows the operator's kinds of objects."""
    async with api.call_api(
        "GET", version=DASK_API, namespace=api.namespace, url=kind, params={"limit": 1}
    ):
        pass


@contextlib.asynccontextmanager
async def connected(namespace: str | None) -> AsyncIterator[Any]:
    """Have the API of the current context, and leave no connection open.

    Raises
    ------
    ClusterError
        If there is no context, or none that can be understood.
    """
    import kr8s.asyncio
    import yaml

    try:
        api = await kr8s.asyncio.api(namespace=namespace)
    except (ValueError, KeyError, TypeError, IndexError, yaml.YAMLError) as error:
        raise ClusterError(
            f"Kubernetes cannot be reached as configured: {one_line(repr(error))}",
            "Check that KUBECONFIG or ~/.kube/config is a configuration that kubectl can use",
        ) from error
    try:
        yield api
    finally:
        await hang_up(api)


async def hang_up(api: Any) -> None:  # noqa: ANN401
    """Close an API's connections, which the client leaves to the end of the process."""
    if api._session is not None:
        await api._session.aclose()


async def _create_all(objects: Sequence[dict[str, Any]], namespace: str | None) -> str:
    where = namespace or next(
        (item["metadata"]["namespace"] for item in objects if "namespace" in item["metadata"]), None
    )
    with in_plain_words("a connection"):
        async with connected(where) as api:
            with in_plain_words("a look for the Dask operator"):
                await check_operator(api, "daskjobs")
            for item in objects:
                if item["apiVersion"] == DASK_API:
                    await _make_room(api, item)
            for item in objects:
                with in_plain_words(_called(item)):
                    await _put(api, item)
                if item["kind"] == "DaskJob":
                    await _await_operator(api, item)
            return str(api.namespace)


async def _make_room(api: Any, item: dict[str, Any]) -> None:  # noqa: ANN401
    """Remove what an ended DaskJob of the same name left.

    Raises
    ------
    LockedError
        If it has not ended.
    """
    with in_plain_words(_called(item)):
        there = _Object(api, item)
        content = await there.read()
        if content is not None and item["kind"] == "DaskJob":
            status = str(content.get("status", {}).get("jobStatus", "not begun"))
            if status not in _ENDED:
                raise LockedError(
                    f"{_called(item)} is there and has not ended ({status})",
                    f"Wait for it, or end it: kubectl delete daskjob {there.name}",
                )
        if content is not None:
            logger.info("%s of before is removed", _called(item))
            await there.delete()
        leavings = [there]
        if item["kind"] == "DaskJob":
            # The operator would take them for those of the new one.
            leavings += [
                _Object(api, _bare(DASK_API, "DaskCluster", there.name)),
                _Object(api, _bare("v1", "Pod", f"{there.name}-runner")),
            ]
        for leaving in leavings:
            if not await _until(leaving, there=False):
                raise ClusterError(
                    f"{leaving.kind} {leaving.name} of before does not go within {_PATIENCE:g} s",
                    "Check that the operator runs (kubectl get pods -A | grep dask), and remove "
                    f"it: kubectl delete {leaving.kind.lower()} {leaving.name}",
                )


async def _await_operator(api: Any, job: dict[str, Any]) -> None:  # noqa: ANN401
    """Wait for the cluster of a DaskJob: further groups belong to it.

    Raises
    ------
    ClusterError
        If it does not come.
    """
    cluster = _Object(api, _bare(DASK_API, "DaskCluster", job["metadata"]["name"]))
    if not await _until(cluster, there=True):
        raise ClusterError(
            f"{_called(job)} is there, and the operator did not begin with it within "
            f"{_PATIENCE:g} s",
            "Check that it runs and watches this namespace (kubectl get pods -A | grep dask); "
            f"take it back: kubectl delete daskjob {cluster.name}",
        )


async def _until(item: _Object, *, there: bool) -> bool:
    """Wait until an object is there, or gone; say whether it happened."""
    begun = time.monotonic()
    while (await item.read() is not None) is not there:
        if time.monotonic() - begun > _PATIENCE:
            return False
        await asyncio.sleep(_LOOK)
    return True


async def _put(api: Any, item: dict[str, Any]) -> None:  # noqa: ANN401
    """Create an object, or bring it up to date; a claim that is there stays."""
    there = _Object(api, item)
    content = await there.read() if item["apiVersion"] != DASK_API else None
    if content is None:
        await there.create()
        logger.info("%s created", _called(item))
    elif item["kind"] != "PersistentVolumeClaim":
        await there.replace(content["metadata"].get("resourceVersion"))
        logger.info("%s brought up to date", _called(item))


class _Object:
    """An object by its name, in the API's namespace."""

    def __init__(self, api: Any, content: dict[str, Any]) -> None:  # noqa: ANN401
        from kr8s.asyncio.objects import object_from_spec

        metadata = {**content["metadata"], "namespace": api.namespace}
        self.content = {**content, "metadata": metadata}
        self.kind: str = content["kind"]
        self.name: str = metadata["name"]
        self._object = object_from_spec(self.content, api=api, allow_unknown_type=True)
        self._api = api

    async def _call(self, method: str, *, named: bool, **options: Any) -> Any:  # noqa: ANN401
        endpoint = self._object.endpoint
        async with self._api.call_api(
            method,
            version=self._object.version,
            namespace=self._api.namespace,
            url=f"{endpoint}/{self.name}" if named else endpoint,
            **options,
        ) as response:
            return response.json()

    async def read(self) -> dict[str, Any] | None:
        """Return it as it is there, or None."""
        import kr8s

        try:
            content: dict[str, Any] = await self._call("GET", named=True)
        except kr8s.ServerError as error:
            if error.response is not None and error.response.status_code == 404:
                return None
            raise
        return content

    async def create(self) -> None:
        """Create it."""
        await self._call("POST", named=False, content=json.dumps(self.content))

    async def replace(self, version: str | None) -> None:
        """Put this in its place, unless somebody else just did."""
        metadata = {**self.content["metadata"], "resourceVersion": version}
        content = {**self.content, "metadata": metadata}
        await self._call("PUT", named=True, content=json.dumps(content))

    async def delete(self) -> None:
        """Delete it, and what hangs on it before it."""
        content = json.dumps({"propagationPolicy": "Foreground"})
        await self._call("DELETE", named=True, content=content)


def _bare(version: str, kind: str, name: str) -> dict[str, Any]:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}}


def _called(item: dict[str, Any]) -> str:
    return f"{item['kind']} {item['metadata']['name']}"
