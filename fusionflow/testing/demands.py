"""How a check says what is broken, and the bounds that all of them share."""

from __future__ import annotations

import pickle
from typing import Final, TypeVar

T = TypeVar("T")

#: Of the largest value: how far results may differ with the number of threads, or of images that
#: go at a time. Rounding alone gives 1.5e-6 (measured: AlexNet and DenseNet).
ROUNDING: Final = 5e-6


def demand(condition: object, of: str, wrong: str, mend: str) -> None:
    """Raise what a check found.

    Raises
    ------
    AssertionError
        If `condition` does not hold.
    """
    if not condition:
        raise AssertionError(f"{of}: {wrong}. {mend}")


def pickled(thing: T, of: str) -> T:
    """Return what arrives in another process.

    Raises
    ------
    AssertionError
        If it cannot be sent.
    """
    try:
        arrived: T = pickle.loads(pickle.dumps(thing))
    except Exception as error:
        raise AssertionError(
            f"{of}: cannot be pickled: {error}. Make it of functions and classes that a module "
            "holds by name, not of lambdas or functions within functions"
        ) from error
    return arrived
