"""Where a lock lies, and file systems that do not have all that one needs."""

import errno
import fcntl
import os

import pytest

from fusionflow import runlock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.lock"


@pytest.fixture
def no_flock(monkeypatch):
    """A file system that does not lock."""

    def refuse(descriptor, how):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def no_links(monkeypatch):
    """A file system without hard links."""

    def refuse(one, other):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


@pytest.fixture
def short(monkeypatch):
    """Seconds instead of a minute."""
    monkeypatch.setattr(runlock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(runlock, "PATIENCE", 1.0)
