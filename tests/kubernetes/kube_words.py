"""Whether the commands that pods are given exist, and take the words that they are given."""

import importlib
import importlib.metadata
import re

import click
import dask
import dask.config
import pytest

_FOLDERS = ("/data", "/out", "/etc/fusionflow", "/etc/fusionflow-tls")


class Stand:
    """Folders of this machine in place of those that pods mount."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("/data/bids", "/data/fused", "/out/all"):
            self.place(name).mkdir(parents=True, exist_ok=True)

    def place(self, path):
        return self.folder / path.strip("/")

    def here(self, word):
        inside = any(word == top or word.startswith(f"{top}/") for top in _FOLDERS)
        return str(self.place(word)) if inside else word

    def mount(self, pod, objects):
        """Have the files that a pod gets from ConfigMaps and Secrets."""
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for mount in pod["containers"][0]["volumeMounts"]:
            volume = volumes[mount["name"]]
            for name, text in _files_of(volume, objects).items():
                path = self.place(f"{mount['mountPath']}/{name}")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)


def _files_of(volume, objects):
    if "configMap" in volume:
        [found] = [
            item["data"]
            for item in objects
            if item["kind"] == "ConfigMap"
            and item["metadata"]["name"] == volume["configMap"]["name"]
        ]
        return found
    if "secret" in volume:
        return dict.fromkeys(("ca.crt", "tls.crt", "tls.key"), "")
    return {}


def understood(words, stand):
    """Let a command's own parser take its words, and return what it makes of them.

    Nothing is run.
    """
    command, rest = _command([stand.here(word) for word in words])
    with command.make_context(" ".join(words[:3]), rest) as context:
        for value in (context.params.get("scheduler"), *context.params.get("preload_argv", ())):
            # `dask worker` hands on what it does not know.
            if value is not None and value.startswith("-"):
                raise click.UsageError(f"{value} is no option of {words[:3]}")
        return context.params


def _command(words):
    match words:
        case ["fusionflow", name, *rest]:
            from fusionflow.cli import main

            return main.commands[name], rest
        case ["dask", name, *rest]:
            [entry] = importlib.metadata.entry_points(group="dask_cli", name=name)
            if name == "cuda":
                pytest.importorskip("dask_cuda")
            command = entry.load()
            return (command.commands[rest[0]], rest[1:]) if name == "cuda" else (command, rest)
        case ["python", "-m", module, *rest]:
            return importlib.import_module(module).main, rest
    raise click.UsageError(f"no command is known of {words}")


def unknown_settings(environment):
    """Return the variables for Dask that it would not make a setting of."""
    import distributed  # noqa: F401 - brings its settings along

    with dask.config.set({}):
        known = {
            ".".join(("DASK", *path)).upper().replace("-", "_").replace(".", "__")
            for path in _paths(dask.config.global_config)
        }
    others = {"DASK_SCHEDULER_ADDRESS", "DASK_WORKER_NAME"}  # the operator's
    wanted = {name for name in environment if name.startswith("DASK_")}
    return sorted(name for name in wanted - others if re.sub("^DASK_", "DASK__", name) not in known)


def _paths(settings, above=()):
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _paths(value, (*above, name))
        yield (*above, name)
