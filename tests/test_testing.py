"""The public test kit: ours pass it, and each of its checks finds something that is broken."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import broken_parts
import pytest

from fusionflow import backbones
from fusionflow.backbones import BACKBONES
from fusionflow.config import METHODS, Method
from fusionflow.fusion import RULES
from fusionflow.learned import shipped_models
from fusionflow.testing import (
    BACKBONE_CHECKS,
    METHOD_CHECKS,
    RULE_CHECKS,
    BackboneTests,
    MethodTests,
    RuleTests,
    check_backbone,
    check_method,
    check_rule,
    check_symmetry,
)
from fusionflow.testing.backbones import weights_of
from fusionflow.weights import Weights, read_tensors

HERE = Path(__file__).parent
OF_NAME = {
    kind: {check.__name__.removeprefix("check_"): check for check in checks}
    for kind, checks in (("rule", RULE_CHECKS), ("backbone", BACKBONE_CHECKS))
}
WITHOUT_MODEL = {name for name, method in METHODS.items() if method.rule == "learned"} - {
    path.stem for path in shipped_models()
}
SYMMETRIC = ("l1-soft", "l1-max", "average")


class TestOurRules:
    """The learned rule is held to what methods must pass."""

    @pytest.mark.parametrize("check", RULE_CHECKS)
    @pytest.mark.parametrize("name", [name for name in RULES if not RULES[name].is_learned])
    def test_pass(self, name, check):
        check(RULES[name])

    @pytest.mark.parametrize("name", SYMMETRIC)
    def test_are_symmetric_where_they_say_so(self, name):
        check_rule(RULES[name], symmetric=True)

    @pytest.mark.parametrize("name", ["max-abs", "max", "mri", "pet"])
    def test_are_found_out_where_they_are_not(self, name):
        with pytest.raises(AssertionError, match="is not symmetric"):
            check_rule(RULES[name], symmetric=True)


class TestOurBackbones:
    @pytest.mark.parametrize("check", BACKBONE_CHECKS)
    @pytest.mark.parametrize("name", BACKBONES)
    def test_pass(self, name, check):
        check(BACKBONES[name], weights_of(BACKBONES[name]))

    @pytest.mark.shared
    def test_pass_with_real_weights(self, vgg19_weights):
        check_backbone(BACKBONES["vgg19"], vgg19_weights)


class TestOurMethods:
    """Those whose model does not come with fusionflow are refused by name."""

    @pytest.mark.parametrize("name", sorted(METHODS.keys() - WITHOUT_MODEL))
    def test_pass(self, name):
        method = METHODS[name]
        if method.backbone is not None and method.rule != "learned":
            method = method.model_copy(update={"weights": "random:0"})
        check_method(method)

    @pytest.mark.parametrize("name", sorted(WITHOUT_MODEL))
    def test_need_their_model(self, name):
        with pytest.raises(AssertionError, match=f"{name}'.* No trained model comes with"):
            check_method(METHODS[name])


class TestEveryCheckFindsSomething:
    def test_none_is_left_out(self):
        assert {check for check, _, _ in broken_parts.RULES.values()} == set(OF_NAME["rule"])
        found = {check for check, _, _ in broken_parts.BACKBONES.values()}
        assert found == set(OF_NAME["backbone"])

    def test_what_the_broken_ones_are_made_of_is_sound(self):
        check_rule(broken_parts.SOUND_RULE, symmetric=True)
        check_backbone(broken_parts.SOUND)

    @pytest.mark.parametrize("what", broken_parts.RULES)
    def test_in_rules(self, what):
        check, rule, words = broken_parts.RULES[what]
        with pytest.raises(AssertionError, match=words):
            OF_NAME["rule"][check](rule)
        with pytest.raises(AssertionError):
            check_rule(rule)

    @pytest.mark.parametrize("what", broken_parts.BACKBONES)
    def test_in_backbones(self, what):
        check, backbone, words = broken_parts.BACKBONES[what]
        with pytest.raises(AssertionError, match=words):
            OF_NAME["backbone"][check](backbone, Weights(backbone.name, "random:0"))

    def test_a_loader_that_takes_what_changed(self, monkeypatch):
        monkeypatch.setattr(backbones, "read_state", lambda weights: read_tensors(weights.path))
        with pytest.raises(AssertionError, match="takes a file that changed"):
            OF_NAME["backbone"]["refuses_wrong_files"](
                broken_parts.SOUND, weights_of(broken_parts.SOUND)
            )

    @pytest.mark.parametrize(
        ("check", "rule", "words"),
        [
            ("parts", "no-such-rule", "No rule is called"),
            ("shape_and_dtype", "nan", "makes NaN"),
            ("between", "beyond", "leaves the range"),
            ("source_with_itself", "ties", "off by nan"),
            ("same_bits", "counts", "second time"),
            ("slabs", "slab", "otherwise in a slab"),
            ("input_is_left_alone", "mutates", "changes its sources"),
        ],
    )
    def test_in_methods(self, check, rule, words, monkeypatch):
        broken = {item.name: item for _, item, _ in broken_parts.RULES.values()}
        for name, item in broken.items():
            monkeypatch.setitem(RULES, name, item)
        checks = {item.__name__.removeprefix("check_"): item for item in METHOD_CHECKS}
        levels = 0 if rule == "mutates" else 1  # there bands are the slices themselves
        method = Method(name="broken", rule=rule, transform={"levels": levels})
        with pytest.raises(AssertionError, match=words):
            checks[check](method)

    def test_a_method_that_does_not_arrive_whole(self):
        method = broken_parts.Forgets(name="forgets", rule="max", temperature=2.0)
        with pytest.raises(AssertionError, match="another method once it was pickled"):
            METHOD_CHECKS[-1](method)

    def test_a_learned_rule_is_sent_to_the_methods(self):
        with pytest.raises(AssertionError, match="check_method"):
            check_rule(RULES["learned"])

    def test_weights_that_are_not_there(self, tmp_path):
        with pytest.raises(AssertionError, match=r"No weights file .*gone\.safetensors"):
            check_backbone(broken_parts.SOUND, tmp_path / "gone.safetensors")


class TestAsClasses(RuleTests):
    """This class is collected: one test for each check."""

    rule = RULES["l1-soft"]
    symmetric = True


class TestABackbone(BackboneTests):
    backbone = broken_parts.SOUND
    weights = "random:3"


class TestAMethod(MethodTests):
    method = METHODS["laplacian"]


def test_classes_find_what_is_broken(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "from broken_parts import RULES, BACKBONES\n"
        "from fusionflow.testing import BackboneTests, RuleTests\n"
        "class TestMine(RuleTests):\n    rule = RULES['float64'][1]\n"
        "class TestNet(BackboneTests):\n    backbone = BACKBONES['dropout'][1]\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, f"--rootdir={tmp_path}", str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent))),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # kmock's needs another package
        },
    )  # fmt: skip
    assert ran.returncode == 1, ran.stdout
    assert "test_mine.py::TestMine::test_rule[shape_and_dtype]" in ran.stdout
    assert "test_mine.py::TestNet::test_backbone[same_bits]" in ran.stdout
    assert "Rule 'double'" in ran.stdout


def test_functions_need_no_pytest_and_classes_name_the_extra():
    script = (
        "import sys; sys.modules['pytest'] = None\n"
        "from fusionflow.fusion import RULES\n"
        "from fusionflow import testing\n"
        "testing.check_rule(RULES['max-abs'])\n"
        "from fusionflow.errors import MissingExtraError\n"
        "try: testing.RuleTests\n"
        "except MissingExtraError as error: print(error)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "RuleTests needs pytest" in ran.stdout
    assert "fusionflow[test]" in ran.stdout


def test_every_check_says_what_it_demands():
    for check in (*RULE_CHECKS, *BACKBONE_CHECKS, *METHOD_CHECKS, check_symmetry):
        assert str(check.__doc__).startswith("Demand "), check
