"""Other packages add backbones and rules by entry points."""

import sys
from pathlib import Path

import numpy as np
import pytest

from fusionflow.backbones import known_backbone
from fusionflow.config import METHODS, Method
from fusionflow.errors import ConfigurationError
from fusionflow.fusion import fuse_subbands, named_rule, reads_backbone
from fusionflow.plugins import plugin_names
from fusionflow.transform import decompose, reconstruct

MODULE = """
import numpy as np
from dataclasses import replace
from fusionflow.backbones import BACKBONES
from fusionflow.fusion import Rule

def weigh(pair):
    return np.full(pair.mri.shape, 0.25, np.float32)

QUARTER = Rule("quarter", weigh)
SLIM = replace(BACKBONES["vgg19"], name="slim", url=None)
NOT_A_RULE = 42
"""

ENTRY_POINTS = """\
[fusionflow.rules]
quarter = their_fusion:QUARTER
broken = their_fusion:missing
wrong = their_fusion:NOT_A_RULE

[fusionflow.backbones]
slim = their_fusion:SLIM
"""


@pytest.fixture
def their_package(tmp_path, monkeypatch):
    """An installed package: a module and its metadata on the path, as pip leaves them."""
    (tmp_path / "their_fusion.py").write_text(MODULE)
    info = tmp_path / "their_fusion-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-fusion\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Path(tmp_path)
    sys.modules.pop("their_fusion", None)


def test_a_rule(their_package):
    assert named_rule("quarter").name == "quarter"
    method = Method(name="theirs", rule="quarter")
    mri, pet = np.random.default_rng(0).random((2, 2, 20, 20), dtype=np.float32)
    bands = [decompose(source, method.transform) for source in (mri, pet)]
    fused = reconstruct(fuse_subbands(*bands, method), method.transform)
    np.testing.assert_allclose(fused, 0.25 * mri + 0.75 * pet, atol=1e-6)


def test_a_backbone(their_package):
    assert known_backbone("slim").url is None
    method = METHODS["dwt-vgg19-l1"].model_copy(update={"backbone": "slim"})
    assert reads_backbone(method)


def test_they_are_listed_where_a_name_is_wrong(their_package):
    assert plugin_names("fusionflow.rules") == ["broken", "quarter", "wrong"]
    with pytest.raises(ConfigurationError, match=r"Known are: .*quarter"):
        named_rule("quater")
    with pytest.raises(ConfigurationError, match=r"Known are: .*slim"):
        known_backbone("slin")


def test_what_cannot_be_used_says_whose_it_is(their_package):
    with pytest.raises(ConfigurationError, match="from their-fusion, cannot be imported"):
        named_rule("broken")
    with pytest.raises(ConfigurationError, match=r"is a int\. It must be a Rule"):
        named_rule("wrong")


def test_our_own_names_cannot_be_taken(their_package):
    (their_package / "their_fusion-1.0.dist-info" / "entry_points.txt").write_text(
        "[fusionflow.rules]\nl1-soft = their_fusion:QUARTER\n"
    )
    assert named_rule("l1-soft").reads_backbone
