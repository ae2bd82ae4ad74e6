"""An API of Kubernetes in memory, in a thread of its own, and a configuration that leads there."""

import asyncio
import contextlib
import threading

import pytest
import yaml

DASK_KINDS = ("daskjobs", "daskclusters", "daskworkergroups", "daskautoscalers")
VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.1"}


class Api:
    """The emulator, and what was asked of it."""

    def __init__(self, kmock):
        self.library = kmock
        self.emulator = kmock.KubernetesEmulator()
        self.emulator["get /version/"] << VERSION
        self.emulator.resources["v1/pods"] = self.emulator.resources["v1/services"] = {}
        self.url = None

    def put(self, kind, name, content=None, namespace="lab"):
        """Have an object there, as somebody else made it."""
        metadata = {"name": name, "namespace": namespace, "resourceVersion": "7"}
        body = {"metadata": metadata, **(content or {})}
        self.emulator.objects[self.resource(kind), namespace, name] = body

    def get(self, kind, name, namespace="lab"):
        """Return an object, or None if it is not there (any more)."""
        key = self.resource(kind), namespace, name
        if key not in self.emulator.objects or self.emulator.objects[key].deleted:
            return None
        return self.emulator.objects[key].raw

    def resource(self, kind):
        if kind in DASK_KINDS:
            return self.library.resource("kubernetes.dask.org/v1", kind)
        groups = {
            "networkpolicies": "networking.k8s.io/v1",
            "cronjobs": "batch/v1",
            "roles": "rbac.authorization.k8s.io/v1",
            "rolebindings": "rbac.authorization.k8s.io/v1",
        }
        group = groups.get(kind)
        return self.library.resource(group, kind) if group else self.library.resource("v1", kind)

    def refuse(self, method, kind, status, message):
        """Answer as an API server does that will not."""
        error = self.library.KubernetesError(status=status, reason="No", message=message)

        def answer(request):
            if method == "post":  # the emulator keeps it all the same, and the client tries again
                name = request.data["metadata"]["name"]
                del self.emulator.objects[request.resource, request.namespace, name]
            raise error

        self.emulator[method, self.resource(kind)] << answer

    def install_operator(self):
        """Have the operator's kinds of objects."""
        for kind in DASK_KINDS:
            self.emulator.resources[f"kubernetes.dask.org/v1/{kind}"] = {}

    def remove(self, kind, name, namespace="lab"):
        self.emulator.objects[self.resource(kind), namespace, name].delete()

    @property
    def asked(self):
        """What was asked, as method and the end of the address."""
        return [f"{request.method.value} {request.url.path}" for request in self.emulator]

    def sent(self, method, kind):
        return [
            request.data
            for request in self.emulator
            if request.method.value == method and f"/{kind}" in request.url.path
        ]


@contextlib.contextmanager
def api_in_memory(folder, monkeypatch):
    """Serve it, and let clients of this process find it."""
    kmock = pytest.importorskip("kmock")
    pytest.importorskip("kr8s")
    api = Api(kmock)
    started, ended = threading.Event(), threading.Event()

    async def serve():
        async with api.emulator, kmock.Server(api.emulator) as server:
            api.url = str(server.url)
            started.set()
            await asyncio.to_thread(ended.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(30)
    write_config(folder / "config", api.url)
    monkeypatch.setenv("KUBECONFIG", str(folder / "config"))
    try:
        yield api
    finally:
        ended.set()
        thread.join(30)


def write_config(path, url):
    """Write what kubectl and others read to find an API."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [
            {"name": "test", "context": {"cluster": "test", "user": "me", "namespace": "lab"}}
        ],
        "clusters": [{"name": "test", "cluster": {"server": url}}],
        "users": [{"name": "me", "user": {"token": "t"}}],
    }
    path.write_text(yaml.safe_dump(content))
