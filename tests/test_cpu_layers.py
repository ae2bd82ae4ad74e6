"""Layers that stand for torch's on a processor: the same values, whatever goes beside an image."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fusionflow import cpu_layers
from fusionflow.backbones import build_trunk, resolve_weights
from fusionflow.cpu_layers import Convolution3x3, MaxPool, has_winograd, quickened
from fusionflow.device import memory_format

needs_winograd = pytest.mark.skipif(
    not has_winograd(), reason="torch has no Winograd convolutions for this processor"
)
#: Of a direct convolution's largest value: what DESIGN.md's 50 dB leave ample room for.
CLOSE = {"rtol": 0, "atol": 3e-5}


def convolution(channels=32, outputs=48, *, bias=True):
    draw = torch.Generator().manual_seed(1)
    layer = nn.Conv2d(channels, outputs, 3, padding=1, bias=bias)
    layer.weight = nn.Parameter(torch.randn(layer.weight.shape, generator=draw) / channels**0.5)
    if bias:
        layer.bias = nn.Parameter(torch.randn(outputs, generator=draw))
    return layer


def images(count, rows, columns, channels=32):
    draw = torch.Generator().manual_seed(2)
    return torch.randn((count, channels, rows, columns), generator=draw)


@pytest.fixture
def calls(monkeypatch):
    """How often Winograd's convolutions are called."""
    found = []
    real = cpu_layers._convolved
    monkeypatch.setattr(
        cpu_layers, "_convolved", lambda *given: found.append(given) or real(*given)
    )
    return found


@needs_winograd
class TestConvolution:
    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize(
        ("count", "rows", "columns"),
        [
            (1, 10, 10),
            (1, 64, 48),
            (2, 11, 13),
            (5, 23, 17),
            (7, 28, 23),
            (3, 129, 129),
            (40, 12, 12),
        ],
    )
    def test_as_torch_does(self, count, rows, columns, bias, calls):
        direct, given = convolution(bias=bias), images(count, rows, columns)
        with torch.inference_mode():
            wanted = direct(given)
            found = Convolution3x3.of(direct)(given)
        assert calls
        assert_close(found, wanted, rtol=0, atol=3e-5 * float(wanted.abs().max()))

    @pytest.mark.parametrize(("rows", "columns"), [(11, 13), (28, 23), (54, 47), (129, 64)])
    def test_images_do_not_know_of_each_other(self, rows, columns):
        layer, given = Convolution3x3.of(convolution()), images(9, rows, columns)
        with torch.inference_mode():
            together = layer(given)
            alone = torch.cat([layer(image[None]) for image in given])
            others = layer(given[[8, 3]])
        assert torch.equal(together, alone)
        assert torch.equal(others, alone[[8, 3]])

    def test_zeros_between_images_are_a_border(self):
        """An image of ones beside others gives what it gives alone, at its border above all."""
        layer = Convolution3x3.of(convolution())
        given = torch.stack([torch.ones(32, 18, 12), torch.full((32, 18, 12), 1e4)])
        with torch.inference_mode():
            assert torch.equal(layer(given)[0], layer(given[:1])[0])

    @pytest.mark.skipif(sys.platform != "linux", reason="other systems tell threads otherwise")
    def test_they_take_the_thread_that_calls(self):
        """NNPACK makes its threads at its first call, as many as torch has."""
        script = """
import os, torch
from fusionflow import cpu_layers
from fusionflow.cpu_layers import Convolution3x3
torch.set_num_threads(3)
layer = Convolution3x3(32, 32, 3, padding=1)
torch.nn.Conv2d(32, 32, 3)(torch.rand(8, 32, 128, 128))  # torch has its own threads now
before = len(os.listdir("/proc/self/task"))
calls, real = [], cpu_layers._convolved
cpu_layers._convolved = lambda *given: calls.append(given) or real(*given)
with torch.inference_mode():
    layer(torch.rand(4, 32, 64, 64))
assert calls
print(len(os.listdir("/proc/self/task")) - before, torch.get_num_threads())
"""
        env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        command = [sys.executable, "-c", script]
        said = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        more, threads = map(int, said.stdout.split())
        assert (more, threads) == (0, 3)

    def test_several_threads_at_once(self):
        layer = Convolution3x3.of(convolution())
        stacks = [images(2, 30 + 7 * index, 33) for index in range(6)]
        with torch.inference_mode():
            wanted = [layer(stack) for stack in stacks]
        equal = []

        def work(index):
            with torch.inference_mode():
                equal.extend(torch.equal(layer(stacks[index]), wanted[index]) for _ in range(20))

        threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert equal == [True] * 120

    def test_what_is_not_finite_stays_so(self):
        given = images(2, 24, 24)
        given[0, 3, 10, 10] = torch.nan
        with torch.inference_mode():
            found = Convolution3x3.of(convolution())(given)
        assert found[0, :, 9:12, 9:12].isnan().all()
        assert found[1].isfinite().all()

    def test_learning_is_left_to_torch(self, calls):
        layer, given = Convolution3x3.of(convolution()), images(1, 20, 20)
        layer(given).sum().backward()
        with torch.no_grad():  # weights may change between two calls
            layer(given)
        assert layer.weight.grad is not None
        assert not calls

    @pytest.mark.parametrize(
        "given",
        [images(1, 9, 64), images(1, 24, 24).to(torch.float64), torch.empty(0, 32, 16, 16)],
        ids=["small", "float64", "none"],
    )
    def test_what_does_not_suit_is_left_to_torch(self, given, calls):
        layer = Convolution3x3.of(convolution()).to(given.dtype)
        with torch.inference_mode():
            assert layer(given).shape == (len(given), 48, *given.shape[-2:])
        assert not calls

    def test_bfloat16_is_left_to_torch(self, calls):
        layer = Convolution3x3.of(convolution())
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            assert layer(images(1, 20, 20)).dtype == torch.bfloat16
        assert not calls


class TestMaxPool:
    @pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 2), (3, 3), (2, 1)])
    @pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 5, 13, 11), (2, 4, 7, 64)])
    def test_as_torch_does(self, kernel, stride, shape):
        given = torch.randn(shape, generator=torch.Generator().manual_seed(3))
        direct = nn.MaxPool2d(kernel, stride)
        with torch.inference_mode():
            assert torch.equal(MaxPool.of(direct)(given), direct(given))
            beside = given.to(memory_format=torch.channels_last)
            assert torch.equal(MaxPool.of(direct)(beside), direct(given))

    def test_nan_is_the_largest(self):
        given = torch.zeros(1, 3, 4, 4)
        given[0, 1, 0, 0] = torch.nan
        with torch.inference_mode():
            found = MaxPool.of(nn.MaxPool2d(2))(given)
        assert found.isnan().sum() == 1

    def test_learning_is_left_to_torch(self):
        given = images(1, 8, 8).requires_grad_()
        MaxPool.of(nn.MaxPool2d(2))(given).sum().backward()
        assert given.grad.sum() == 32 * 16

    def test_nothing_is_left(self):
        with torch.inference_mode(), pytest.raises(RuntimeError, match="too small"):
            MaxPool.of(nn.MaxPool2d(2))(images(1, 1, 8))


class TestQuickened:
    def test_only_what_is_plain(self):
        plain, nested = convolution(), nn.Sequential(convolution(), nn.MaxPool2d(3, 2))
        others = [
            nn.Conv2d(32, 32, 5, padding=2),
            nn.Conv2d(32, 32, 3),
            nn.Conv2d(32, 32, 3, padding=1, stride=2),
            nn.Conv2d(32, 32, 3, padding=1, groups=2),
            nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect"),
            nn.Conv2d(3, 64, 3, padding=1),
            nn.MaxPool2d(3, 2, padding=1),
            nn.MaxPool2d(2, ceil_mode=True),
        ]
        module = nn.Sequential(plain, nested, *others)
        names = list(module.state_dict())
        quickened(module)
        assert isinstance(module[0], Convolution3x3)
        assert module[0].weight is plain.weight
        assert [type(layer) for layer in module[1]] == [Convolution3x3, MaxPool]
        assert [type(layer) for layer in module[2:]] == [type(layer) for layer in others]
        assert list(module.state_dict()) == names

    @pytest.mark.parametrize("what", ["hook", "forward", "buffer", "weight_norm", "parameter"])
    def test_what_was_given_more_stays(self, what):
        layer = convolution()
        if what == "hook":
            layer.register_forward_hook(lambda module, given, output: output * 2)
        elif what == "forward":
            layer.forward = lambda given: given
        elif what == "buffer":
            layer.register_buffer("scale", torch.ones(1))
        elif what == "parameter":
            layer.scale = nn.Parameter(torch.ones(1))
        else:
            nn.utils.parametrizations.weight_norm(layer)
        module = nn.Sequential(layer)
        quickened(module)
        assert module[0] is layer

    def test_a_layer_in_two_places_is_one(self):
        layer = convolution(32, 32)
        module = nn.Sequential(layer, nn.ReLU(), layer)
        quickened(module)
        assert isinstance(module[0], Convolution3x3)
        assert module[2] is module[0]

    def test_a_pooling_of_one_pixel_would_give_a_view(self):
        module = nn.Sequential(nn.MaxPool2d(1, 2))
        quickened(module)
        assert type(module[0]) is nn.MaxPool2d

    def test_one_image_without_a_batch(self):
        given = images(1, 20, 20)[0]
        module = nn.Sequential(convolution(), nn.MaxPool2d(2))
        with torch.inference_mode():
            wanted = module(given)
            quickened(module)
            assert torch.equal(module(given), wanted)

    @needs_winograd
    @pytest.mark.parametrize(
        ("backbone", "tap"),
        [("vgg19", "relu3_1"), ("alexnet", "relu3"), ("densenet121", "denseblock1")],
    )
    def test_a_trunk_reads_the_same(self, backbone, tap, monkeypatch, calls):
        trunk = build_trunk(resolve_weights("random:1", backbone), (tap,))
        given = torch.rand((3, 1, 192, 200), generator=torch.Generator().manual_seed(4))
        with torch.inference_mode():
            (quick,) = trunk.to(memory_format=memory_format("cpu", "float32"))(given)
            made = len(calls)
            monkeypatch.setattr(cpu_layers, "has_winograd", lambda: False)
            (direct,) = trunk(given)
        assert made == len(calls) > 0
        assert_close(quick, direct, rtol=0, atol=1e-4 * float(direct.abs().max()))


def test_a_processor_without_them(monkeypatch):
    monkeypatch.setattr(torch.backends.nnpack, "is_available", lambda: False)
    assert not cpu_layers._has_winograd.__wrapped__()


def test_wrong_values_are_not_taken(monkeypatch):
    if not torch.backends.nnpack.is_available():
        pytest.skip("torch has no NNPACK for this processor")
    monkeypatch.setattr(cpu_layers, "_convolved", lambda images, weight, bias: images[:, :1] * 2)
    assert not cpu_layers._has_winograd.__wrapped__()


@needs_winograd
def test_trying_them_minds_no_surroundings():
    with torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
        assert cpu_layers._has_winograd.__wrapped__()
