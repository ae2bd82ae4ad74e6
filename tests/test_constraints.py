"""Versions of constraints.txt that are installed here fit the oldest Python that is tried."""

from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

#: Debian 12's.
OLDEST = "3.11.2"
CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"


def pinned() -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in CONSTRAINTS.read_text().splitlines())
    pins = [Requirement(line) for line in lines if line]
    return {canonicalize_name(pin.name): pin for pin in pins}


def installed_pins():
    """What is installed as it is pinned, whose metadata so are those of the pin."""
    for found in distributions():
        pin = pinned().get(canonicalize_name(found.name))
        if pin is not None and found.version in pin.specifier:
            yield found


def test_a_distribution_allows_the_oldest_python():
    allowed = {
        f"{found.name}=={found.version}": found.metadata.get("Requires-Python", "")
        for found in installed_pins()
    }
    if not allowed:
        pytest.skip("nothing is installed as constraints.txt has it")
    assert not {name for name, python in allowed.items() if OLDEST not in SpecifierSet(python)}
