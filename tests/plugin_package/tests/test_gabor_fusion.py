"""The kit of fusionflow, and that the file holds what the formula says."""

import torch
from gabor_fusion.backbone import GABOR
from gabor_fusion.filters import FILE, weights
from gabor_fusion.method import DWT_GABOR
from gabor_fusion.rule import L1_VOTE
from safetensors.torch import load_file

from fusionflow.testing import BackboneTests, MethodTests, RuleTests


class TestGabor(BackboneTests):
    backbone = GABOR


class TestGaborAtRandom(BackboneTests):
    backbone = GABOR
    weights = "random:1"


class TestVote(RuleTests):
    rule = L1_VOTE
    symmetric = True


class TestDwtGabor(MethodTests):
    method = DWT_GABOR


def test_the_file_is_what_the_formula_says():
    found, wanted = load_file(FILE), weights()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
