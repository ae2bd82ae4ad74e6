"""The checks as pytest classes, one test for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from fusionflow.backbones import Backbone
from fusionflow.config import Method
from fusionflow.fusion import Rule
from fusionflow.testing.backbones import BACKBONE_CHECKS, weights_of
from fusionflow.testing.methods import METHOD_CHECKS
from fusionflow.testing.rules import RULE_CHECKS, check_symmetry

__all__ = ["BackboneTests", "MethodTests", "RuleTests"]


def _named(check: Callable[..., Any]) -> str:
    return check.__name__.removeprefix("check_")


class RuleTests:
    """What a rule must pass; a subclass whose name begins with ``Test`` is collected.

    Attributes
    ----------
    rule : Rule
        The rule.
    symmetric : bool
        Whether swapping the sources must give one minus the weight; by default it need not.
    """

    rule: ClassVar[Rule]
    symmetric: ClassVar[bool] = False

    @pytest.mark.parametrize("check", RULE_CHECKS, ids=_named)
    def test_rule(self, check: Callable[[Rule], None]) -> None:
        """Hold the rule to one check."""
        check(self.rule)

    def test_symmetry(self) -> None:
        """Hold the rule to symmetry, if it says that it has it."""
        if not self.symmetric:
            pytest.skip("the rule does not say that it is symmetric")
        check_symmetry(self.rule)


class BackboneTests:
    """What a backbone must pass; a subclass whose name begins with ``Test`` is collected.

    Attributes
    ----------
    backbone : Backbone
        Its declaration.
    weights : str or None
        Path of a file, or ``random:SEED``. By default the file that comes with the backbone, or
        random ones.
    """

    backbone: ClassVar[Backbone]
    weights: ClassVar[str | None] = None

    @pytest.mark.parametrize("check", BACKBONE_CHECKS, ids=_named)
    def test_backbone(self, check: Callable[..., None]) -> None:
        """Hold the backbone to one check."""
        check(self.backbone, weights_of(self.backbone, self.weights))


class MethodTests:
    """What a method must pass; a subclass whose name begins with ``Test`` is collected.

    Attributes
    ----------
    method : Method
        The method; its weights must be there.
    """

    method: ClassVar[Method]

    @pytest.mark.parametrize("check", METHOD_CHECKS, ids=_named)
    def test_method(self, check: Callable[[Method], None]) -> None:
        """Hold the method to one check."""
        check(self.method)
