"""Errors say what is wrong and how to mend it, in one tree, across process borders."""

from __future__ import annotations

import builtins
import inspect
import pickle
import re

import pytest

from fusionflow import errors
from fusionflow.errors import FusionflowError

CLASSES = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if item.__module__ == errors.__name__
]


def drawn_tree():
    """Return {name: (parent, built-in)} as the docstring of the module draws it."""
    tree, path = {}, []
    for line in errors.__doc__.splitlines():
        match = re.match(r"    (?P<branch>[│├└─ ]*)(?P<name>\w+Error)( \((?P<also>\w+)\))?", line)
        if match:
            depth = len(match["branch"]) // 4
            path = [*path[:depth], match["name"]]
            tree[match["name"]] = (path[depth - 1] if depth else None, match["also"])
    return tree


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    tree = {}
    for item in CLASSES:
        parent, *also = item.__bases__
        tree[item.__name__] = (
            None if item is FusionflowError else parent.__name__,
            also[0].__name__ if also else None,
        )
        assert all(getattr(builtins, base.__name__) is base for base in also)
    assert drawn_tree() == tree


@pytest.mark.parametrize("error", CLASSES)
class TestEveryError:
    def test_is_a_fusionflow_error(self, error):
        assert issubclass(error, FusionflowError)

    def test_is_the_builtin_that_the_docstring_names(self, error):
        builtin = drawn_tree()[error.__name__][1]
        if builtin is not None:
            with pytest.raises(getattr(builtins, builtin), match="no T1w"):
                raise error("no T1w", "Add one")

    def test_says_what_is_wrong_and_then_the_mend(self, error):
        assert str(error("sub-01 has no T1w", "Add one")) == "sub-01 has no T1w. Add one"

    def test_says_what_is_wrong_without_a_mend(self, error):
        assert str(error("sub-01 has no T1w")) == "sub-01 has no T1w"

    @pytest.mark.parametrize("mend", [None, "Add one"])
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_crosses_process_borders_whole(self, error, mend, protocol):
        before = error("sub-01 has no T1w", mend)
        after = pickle.loads(pickle.dumps(before, protocol))
        assert type(after) is error
        assert (after.message, after.mend) == ("sub-01 has no T1w", mend)
        assert str(after) == str(before)

    def test_has_a_docstring_of_its_own(self, error):
        assert error.__dict__["__doc__"]
