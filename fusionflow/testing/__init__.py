"""What a backbone, a rule or a method must pass, ours and those of other packages.

As plain functions, which raise `AssertionError` with what is broken and the mend::

    from fusionflow.testing import check_rule

    check_rule(MY_RULE)

or as pytest classes, one test for each check::

    from fusionflow.testing import RuleTests

    class TestMyRule(RuleTests):
        rule = MY_RULE

The classes need pytest (``pip install pytest``, or the extra ``fusionflow[test]``), the functions
do not. No check needs a network connection, a GPU or real data, and all numbers that they draw are
the same each time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fusionflow.errors import MissingExtraError
from fusionflow.testing.backbones import BACKBONE_CHECKS, check_backbone
from fusionflow.testing.methods import METHOD_CHECKS, check_method
from fusionflow.testing.rules import RULE_CHECKS, check_rule, check_symmetry

if TYPE_CHECKING:
    from fusionflow.testing.suites import BackboneTests, MethodTests, RuleTests

__all__ = [
    "BACKBONE_CHECKS",
    "METHOD_CHECKS",
    "RULE_CHECKS",
    "BackboneTests",
    "MethodTests",
    "RuleTests",
    "check_backbone",
    "check_method",
    "check_rule",
    "check_symmetry",
]

_CLASSES = ("BackboneTests", "MethodTests", "RuleTests")


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Import pytest when a class is first asked for."""
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        suites = import_module(f"{__name__}.suites")
    except ModuleNotFoundError as error:
        if error.name != "pytest":
            raise
        raise MissingExtraError(
            f"{name} needs pytest, which is not installed",
            "pip install 'fusionflow[test]', or call the functions check_*",
        ) from error
    return getattr(suites, name)
