"""Weights to write to files."""

from __future__ import annotations

import pytest
from networks import random_state


@pytest.fixture(scope="module")
def state():
    return random_state(0)
