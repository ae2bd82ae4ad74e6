"""Which parts of a run come from other packages: their versions decide bits as its options do."""

from __future__ import annotations

from fusionflow.backbones import BACKBONES
from fusionflow.config import Method
from fusionflow.fusion import RULES
from fusionflow.masks import OWN_MASKS
from fusionflow.plugins import Plugin, provider

__all__ = ["plugins_of"]


def plugins_of(method: Method, mask: str = "auto") -> tuple[Plugin, ...]:
    """Return the plug-ins that a method and a mask rule name.

    A method that has a name in another package is itself none: all that it says is in its
    options.

    Parameters
    ----------
    method : Method
        Names a rule, and perhaps a backbone.
    mask : str
        How the head is found, see `fusionflow.config.ConformOptions`.

    Raises
    ------
    ConfigurationError
        If two packages offer the same name.
    """
    parts = [("fusionflow.rules", method.rule)] * (method.rule not in RULES)
    if method.backbone is not None and method.backbone not in BACKBONES:
        parts.append(("fusionflow.backbones", method.backbone))
    if mask not in OWN_MASKS:
        parts.append(("fusionflow.masks", mask))
    found = (provider(group, name) for group, name in parts)
    return tuple(item for item in found if item is not None)
