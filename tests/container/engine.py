"""Builds and runs images with buildah and podman, in a storage of its own."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[2]
#: No network device, kernel feature or service of the machine is taken for granted.
_PODMAN = ["podman", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]
#: Limits that podman sets by itself may be above those of this machine.
_RUN = ["run", "--rm", "--read-only", "--ulimit=nofile=4096:4096", "--ulimit=nproc=1000:1000"]
_DEBIAN = "bookworm"
_PACKAGES = "python3,python3-venv"


class Engine:
    """Images and containers in `folder`; whatever else the machine has of them is not seen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            **os.environ,
            "TMPDIR": str(folder),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }
        for driver in ("overlay", "vfs"):
            (folder / "storage.conf").write_text(
                f'[storage]\ndriver = "{driver}"\n'
                f'graphroot = "{folder / "graph"}"\nrunroot = "{folder / "run"}"\n'
            )
            if self.call("buildah", "info", check=False).returncode == 0:
                break
            shutil.rmtree(folder / "graph", ignore_errors=True)

    def call(self, *command, check=True, timeout=1800, **environment):
        """Run a command of the machine to its end."""
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, check=False,
            timeout=timeout, env={**self.environment, **environment}, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, (
                f"{done.args}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            )
        return done

    def command(self, image, *words, mounts=(), options=()):
        """Return the command that runs `words` in a container of an image."""
        volumes = [f"--volume={source}:{target}" for source, target in dict(mounts).items()]
        return [str(word) for word in (*_PODMAN, *_RUN, *volumes, *options, image, *words)]

    def run(self, image, *words, mounts=(), options=(), check=True):
        """Run a command in a container without any network, to its end."""
        command = self.command(image, *words, mounts=mounts, options=("--network=none", *options))
        return self.call(*command, check=check, timeout=900)

    def base(self, cache: Path) -> str:
        """Make an image of Debian with Python, from a root that `cache` keeps."""
        archive = cache / f"{_DEBIAN}-python.tar"
        if not archive.exists():
            cache.mkdir(parents=True, exist_ok=True)
            root, part = self.folder / "root", archive.with_suffix(".part")
            self.call(
                "debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _DEBIAN, root
            )  # fmt: skip
            self.call("tar", "-C", root, "--exclude=./var/cache/apt/*", "-cf", part, ".")
            part.rename(archive)
            shutil.rmtree(root)
        container = self.call("buildah", "from", "scratch").stdout.strip()
        self.call("buildah", "add", "--quiet", container, archive, "/")
        self.call("buildah", "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
        name = "localhost/fusionflow-test-base"
        self.call("buildah", "commit", "--quiet", "--rm", container, name)
        return name

    def build(self, base: str, **variables: str) -> str:
        """Build the image as a person does, with what pip has been told on this machine."""
        options, folders = pip_options()
        volumes = [f"--volume={folder}:{folder}:ro" for folder in folders]
        self.call(
            ROOT / "deploy" / "build-container.sh",
            "--isolation=chroot", "--network=host", "--layers=false", *volumes,
            BUILDER="buildah", BASE=base, TAG="localhost/fusionflow-test", PIP_OPTIONS=options,
            **variables,
        )  # fmt: skip
        return "localhost/fusionflow-test"

    def remove(self) -> None:
        """Remove all containers and images, and the folder."""
        self.call(*_PODMAN, "rm", "--all", "--force", "--time=0", check=False)
        self.call("buildah", "rm", "--all", check=False)
        self.call("buildah", "rmi", "--all", "--force", check=False)
        overlay = self.folder / "graph" / "overlay"
        if overlay.is_mount():
            self.call("umount", overlay, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def pip_options() -> tuple[str, list[Path]]:
    """Return pip's configuration of this machine as options, and the paths that they name."""
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = {}
    for line in said.splitlines():
        key, _, value = line.partition("=")
        scope, _, name = key.rpartition(".")
        if name not in settings or scope == ":env:":
            settings[name] = ast.literal_eval(value).split()
    options, paths = [], []
    for name in ("index-url", "extra-index-url", "find-links", "cert", "trusted-host", "proxy"):
        for value in settings.get(name, ()):
            options.append(f"--{name} {value}")
            url = urlsplit(value)
            path = Path(url.path)
            if url.scheme == "file":
                paths.append(path.parent)  # an index links to files beside its own folder
            elif not url.scheme and path.exists():
                paths.append(path)
    return " ".join(options), sorted(set(paths))
