"""Whether Kubernetes and the Dask operator would take an object, without either."""

import copy
import functools
from pathlib import Path

import pytest
import yaml
from kube_runs import pods_of

VERSIONS = ("1.28", "1.33", "1.37")
DASK_API = "kubernetes.dask.org/v1"


def faults(manifest):
    """Return what is wrong with an object, in the eyes of several versions."""
    if manifest["apiVersion"] != DASK_API:
        return _core_faults(manifest)
    found = [
        f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
        for error in _validator(manifest["kind"]).iter_errors(manifest)
    ]
    if found:
        return found
    # What the operator's schemas leave open, those of Kubernetes do not.
    for where, spec in pods_of([manifest]).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
        found += [f"{where}: {fault}" for fault in _core_faults(pod)]
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "scheduler"}}
    for spec in _services_of(manifest):
        found += _core_faults({**service, "spec": spec})
    return found


def _services_of(manifest):
    spec = manifest["spec"]
    spec = spec["cluster"]["spec"] if manifest["kind"] == "DaskJob" else spec
    return [spec["scheduler"]["service"]] if "scheduler" in spec else []


def _core_faults(manifest):
    validate = pytest.importorskip("kubernetes_validate")
    _remember_schemas(validate.utils)
    found = []
    for version in VERSIONS:
        try:
            validate.validate(manifest, version, strict=True)
        except validate.ValidationError as error:
            path = ".".join(map(str, error.absolute_path))
            found.append(f"{version}: {path}: {error.message}")
    return found


@functools.cache
def _remember_schemas(utils):
    """Read each schema once: there are many objects."""
    utils.schema_contents = functools.cache(utils.schema_contents)


@functools.cache
def _validator(kind):
    """Return what holds an object to the operator's own definition, and to no more than that."""
    jsonschema = pytest.importorskip("jsonschema")
    package = pytest.importorskip("dask_kubernetes")
    chart = Path(package.__file__).parent / "operator/deployment/helm/dask-kubernetes-operator"
    text = (chart / "crds" / f"{kind.lower()}.yaml").read_text()
    definition = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = definition["spec"]["versions"]
    schema = copy.deepcopy(version["schema"]["openAPIV3Schema"])
    schema["properties"] |= {
        "apiVersion": {"const": DASK_API},
        "kind": {"const": kind},
        "metadata": {"type": "object"},
    }
    _close(schema)
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return jsonschema.Draft202012Validator(schema)


def _close(schema):
    """Refuse what the API server would drop without a word."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and schema.get("type", "object") == "object":
            schema.setdefault("additionalProperties", False)
        for value in schema.values():
            _close(value)
    elif isinstance(schema, list):
        for value in schema:
            _close(value)
