"""Other packages add backbones and rules by entry points."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusionflow import dry_run
from fusionflow.backbones import BACKBONES, build_trunk, known_backbone, resolve_weights
from fusionflow.config import METHODS, ConformOptions, Method, RunConfig, method_names, named_method
from fusionflow.errors import (
    ChecksumError,
    ConfigurationError,
    PlacementError,
    WeightsNotFoundError,
)
from fusionflow.fusion import fuse_subbands, named_rule, reads_backbone
from fusionflow.graph import make_recipe
from fusionflow.masks import OWN_MASKS
from fusionflow.plugins import Plugin, plugin_names, require
from fusionflow.provided import plugins_of
from fusionflow.survey import request_of
from fusionflow.transform import decompose, reconstruct

MODULE = """
import numpy as np
from dataclasses import replace
from fusionflow.backbones import BACKBONES
from fusionflow.config import Method
from fusionflow.fusion import Rule

def weigh(pair):
    return np.full(pair.mri.shape, 0.25, np.float32)

QUARTER = Rule("quarter", weigh)
SLIM = replace(BACKBONES["vgg19"], name="slim", url=None)
NOT_A_RULE = 42
DWT_QUARTER = Method(name="dwt-quarter", rule="quarter", temperature=0.25)
"""

ENTRY_POINTS = """\
[fusionflow.rules]
quarter = their_fusion:QUARTER
broken = their_fusion:missing
wrong = their_fusion:NOT_A_RULE

renamed = their_fusion:QUARTER

[fusionflow.backbones]
slim = their_fusion:SLIM

[fusionflow.methods]
dwt-quarter = their_fusion:DWT_QUARTER
"""


@pytest.fixture
def their_package(tmp_path, monkeypatch):
    """An installed package: a module and its metadata on the path, as pip leaves them."""
    monkeypatch.syspath_prepend(str(installed(tmp_path, "1.0")))
    require.cache_clear()
    yield Path(tmp_path)
    sys.modules.pop("their_fusion", None)
    require.cache_clear()


def installed(folder, version):
    """Write a package as pip leaves it, and return where."""
    (folder / "their_fusion.py").write_text(MODULE)
    info = folder / f"their_fusion-{version}.dist-info"
    info.mkdir()
    metadata = f"Metadata-Version: 2.1\nName: their-fusion\nVersion: {version}\n"
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return folder


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
    assert plugin_names("fusionflow.rules") == ["broken", "quarter", "renamed", "wrong"]
    with pytest.raises(ConfigurationError, match=r"Known are: .*quarter"):
        named_rule("quater")
    with pytest.raises(ConfigurationError, match=r"Known are: .*slim"):
        known_backbone("slin")


def test_what_cannot_be_used_says_whose_it_is(their_package):
    with pytest.raises(ConfigurationError, match="from their-fusion, cannot be imported"):
        named_rule("broken")
    with pytest.raises(ConfigurationError, match=r"is a int\. It must be a Rule"):
        named_rule("wrong")
    with pytest.raises(ConfigurationError, match="calls itself 'quarter'"):
        named_rule("renamed")


def test_our_own_names_cannot_be_taken(their_package):
    (their_package / "their_fusion-1.0.dist-info" / "entry_points.txt").write_text(
        "[fusionflow.rules]\nl1-soft = their_fusion:QUARTER\n"
    )
    assert named_rule("l1-soft").reads_backbone


class TestMethods:
    def test_are_found_by_name(self, their_package):
        assert named_method("dwt-quarter").rule == "quarter"
        assert method_names() == [*METHODS, "dwt-quarter"]

    def test_can_be_changed_in_a_file(self, their_package):
        run = RunConfig(method={"name": "dwt-quarter", "transform": {"levels": 2}})
        assert (run.method.rule, run.method.temperature) == ("quarter", 0.25)
        assert run.method.transform.levels == 2

    def test_are_missed_by_name_without_their_package(self):
        with pytest.raises(ConfigurationError, match="needs that installed"):
            named_method("dwt-quarter")


class TestVersions:
    OURS = METHODS["dwt-vgg19-l1"]
    RULE = Plugin("fusionflow.rules", "quarter", "their-fusion", "1.0")

    def test_are_known_of_what_a_method_names(self, their_package):
        assert plugins_of(self.OURS) == ()
        assert plugins_of(named_method("dwt-quarter")) == (self.RULE,)
        slim = self.OURS.model_copy(update={"backbone": "slim"})
        assert [item.name for item in plugins_of(slim)] == ["slim"]
        assert make_recipe(named_method("dwt-quarter")).plugins == (self.RULE,)

    @pytest.mark.parametrize("mask", OWN_MASKS)
    def test_of_fusionflow_itself_are_not_among_them(self, mask):
        assert plugins_of(self.OURS, mask) == ()

    def test_are_part_of_what_is_asked_for(self, their_package):
        run = RunConfig(method=named_method("dwt-quarter"))
        before = request_of(run, None)
        assert request_of(run, None) == before
        info = their_package / "their_fusion-1.0.dist-info" / "METADATA"
        info.write_text(info.read_text().replace("1.0", "1.0.1"))
        assert request_of(run, None) != before

    def test_of_another_worker_are_refused_at_work(self, their_package):
        require((self.RULE,))
        other = Plugin("fusionflow.rules", "quarter", "their-fusion", "1.2")
        with pytest.raises(PlacementError, match=r"has their-fusion 1\.0, but .* 1\.2 for quarter"):
            require((other,))
        gone = Plugin("fusionflow.rules", "gone", "gone-fusion", "1.2")
        with pytest.raises(PlacementError, match="not installed"):
            require((gone,))


class TestPreflight:
    """Workers that were there before the package, then with another version of it."""

    @pytest.fixture
    def look(self, their_package, phantom_bids, client, tmp_path):
        conform = ConformOptions(registration="header")
        run = RunConfig(method=named_method("dwt-quarter"), conform=conform)

        def look():
            out = tmp_path / "out"
            checks = dry_run.check(phantom_bids, out, run, client=client).checks
            (check,) = [item for item in checks if item.name == "plug-ins"]
            return check

        return look

    def test_stops_where_it_is_not_installed(self, look):
        check = look()
        assert check.state == "fails"
        assert "their-fusion is not installed, here 1.0" in check.found
        assert "Install" in check.mend

    def test_stops_where_it_has_another_version(self, look, their_package, client, tmp_path):
        newer = tmp_path / "newer"
        newer.mkdir()
        first, second = client.scheduler_info(n_workers=-1)["workers"]
        places = {first: str(their_package), second: str(installed(newer, "1.1"))}
        for address, place in places.items():
            client.run(_insert, place, workers=[address])
        try:
            check = look()
            assert check.state == "fails"
            assert check.found == f"their-fusion 1.1, here 1.0 ({second})"
            client.run(_remove, str(newer), workers=[second])
            client.run(_insert, str(their_package), workers=[second])
            assert look().found == "their-fusion 1.0: the same on all"
        finally:
            for place in (str(newer), str(their_package)):
                client.run(_remove, place)

    def test_has_no_such_line_without_plug_ins(self, phantom_bids, client, tmp_path):
        run = RunConfig(method=METHODS["average"])
        checks = dry_run.check(phantom_bids, tmp_path / "out", run, client=client).checks
        assert "plug-ins" not in [item.name for item in checks]


def _insert(place):
    sys.path.insert(0, place)


def _remove(place):
    sys.modules.pop("their_fusion", None)
    while place in sys.path:
        sys.path.remove(place)


class TestWeightsThatComeWithABackbone:
    """`Backbone.file`: the network is the first convolution alone."""

    @pytest.fixture
    def brought(self, tmp_path, monkeypatch):
        path = tmp_path / "mine.safetensors"
        first = {"weight": torch.randn(64, 3, 3, 3), "bias": torch.randn(64)}
        save_file({f"features.0.{name}": tensor for name, tensor in first.items()}, path)
        line = f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        (tmp_path / "SHA256SUMS").write_text(line)
        backbone = replace(BACKBONES["vgg19"], name="mine", url=None, file=path)
        monkeypatch.setitem(BACKBONES, "mine", backbone)
        return backbone

    def test_are_what_auto_means_whatever_folder_there_is(self, brought, monkeypatch, tmp_path):
        monkeypatch.setenv("FUSIONFLOW_WEIGHTS_DIR", str(tmp_path / "elsewhere"))
        weights = resolve_weights("auto", "mine")
        assert weights.path == brought.file
        assert build_trunk(weights, ["conv1_1"]).grey_weight.shape == (64, 1, 3, 3)
        assert resolve_weights("random:1", "mine").is_random

    def test_are_found_where_the_package_lies_on_a_worker(self, brought, tmp_path):
        weights = resolve_weights("auto", "mine")
        there = replace(weights, path=tmp_path / "site-packages" / "mine.safetensors")
        one, other = (build_trunk(item, ["conv1_1"]) for item in (weights, there))
        assert torch.equal(one.grey_weight, other.grey_weight)
        wrong = replace(there, identity="0" * 64)
        with pytest.raises(ChecksumError, match="have SHA-256"):
            build_trunk(wrong, ["conv1_1"])

    def test_are_refused_if_they_changed_or_nothing_says_what_they_are(self, brought):
        sums = brought.file.with_name("SHA256SUMS")
        kept = sums.read_text()
        sums.write_text("")
        with pytest.raises(ChecksumError, match="Nothing says what the weights"):
            resolve_weights("auto", "mine")
        sums.write_text(kept.replace(kept[:8], "01234567"))
        with pytest.raises(ChecksumError, match="changed or is damaged"):
            resolve_weights("auto", "mine")
        brought.file.unlink()
        with pytest.raises(WeightsNotFoundError, match=r"mine\.safetensors"):
            resolve_weights("auto", "mine")
