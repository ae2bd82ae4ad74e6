"""Where the examples of a test write their files."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder for all examples of all tests: each writes its files anew."""
    return tmp_path_factory.mktemp("fuzz")
