"""A trunk reads from grey images what the whole network reads from three equal channels."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torchvision
from networks import LAST_LAYER, random_state, three_channel_features
from numpy.testing import assert_allclose
from safetensors.torch import load_file, save_file
from torch import nn

from fusionflow import backbones
from fusionflow.backbones import (
    BACKBONES,
    build_trunk,
    load_trunk,
    named_backbone,
    resolve_weights,
)
from fusionflow.errors import ConfigurationError

VGG19 = BACKBONES["vgg19"]
READABLE = [tap for tap, index in VGG19.taps.items() if index <= LAST_LAYER]


def grey_images(seed=0, shape=(2, 1, 37, 30)):
    """Pictures with black, white, grey and a little beyond, lively at the border too."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.2 - 0.1


@pytest.fixture(
    scope="module", params=["random", pytest.param("ImageNet", marks=pytest.mark.shared)]
)
def case(request, tmp_path_factory):
    """Weights, grey images, and what torchvision makes of three such channels in float64."""
    images = grey_images()
    if request.param == "ImageNet":
        path = request.getfixturevalue("vgg19_weights")
        scale, mean, std = 255, (103.939, 116.779, 123.68), (1, 1, 1)  # BGR
    else:
        path = tmp_path_factory.mktemp("weights") / "vgg19.safetensors"
        save_file(random_state(7), path)
        scale, mean, std = 1, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    channels = (images.double().expand(-1, 3, -1, -1) * scale - mean) / std
    oracle = three_channel_features(load_file(path), channels)
    return resolve_weights(str(path), "vgg19"), images, oracle


class TestNames:
    def test_taps_are_the_layers_that_torchvision_has_there(self):
        with torch.device("meta"):
            layers = torchvision.models.vgg19().features
        kinds = {"conv": nn.Conv2d, "relu": nn.ReLU}
        for tap, index in VGG19.taps.items():
            assert isinstance(layers[index], kinds[tap[:4]]), tap
        convolutions = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
        assert [i for tap, i in VGG19.taps.items() if tap.startswith("conv")] == convolutions
        assert len(VGG19.taps) == 2 * 16

    def test_a_block_begins_after_a_pooling_layer(self):
        with torch.device("meta"):
            layers = torchvision.models.vgg19().features
        for block in range(2, 6):
            assert isinstance(layers[VGG19.taps[f"conv{block}_1"] - 1], nn.MaxPool2d)

    def test_an_unknown_backbone_is_refused_and_the_known_ones_are_listed(self):
        with pytest.raises(ConfigurationError, match="'vgg91'") as error:
            named_backbone("vgg91", ["relu1_1"])
        assert all(name in error.value.mend for name in BACKBONES)

    def test_an_unknown_tap_is_refused_and_the_known_ones_are_listed(self):
        with pytest.raises(ConfigurationError, match=r"relu1_3, fc1$|relu1_3, fc1\.") as error:
            named_backbone("vgg19", ["relu1_1", "relu1_3", "fc1"])
        assert all(tap in error.value.mend for tap in VGG19.taps)

    def test_no_tap_is_refused(self):
        with pytest.raises(ConfigurationError, match="at least one tap"):
            named_backbone("vgg19", [])

    def test_weights_of_an_unknown_backbone_are_refused_like_the_backbone(self):
        with pytest.raises(ConfigurationError, match="'vgg91'"):
            resolve_weights("torchvision", "vgg91")


class TestFolding:
    """The oracle is torchvision's own three-channel module."""

    @pytest.mark.parametrize("tap", READABLE)
    def test_each_tap_is_that_of_the_whole_network_borders_included(self, case, tap):
        weights, images, oracle = case
        with torch.inference_mode():
            (found,) = build_trunk(weights, [tap])(images)
        wanted = oracle[VGG19.taps[tap]]
        assert found.shape == wanted.shape
        assert_allclose(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))

    def test_all_taps_together_are_what_each_is_alone(self, case):
        weights, images, oracle = case
        with torch.inference_mode():
            found = build_trunk(weights, READABLE)(images)
        assert len(found) == len(READABLE) == 10
        for tap, features in zip(READABLE, found, strict=True):
            wanted = oracle[VGG19.taps[tap]]
            assert_allclose(
                features, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()), err_msg=tap
            )

    def test_a_wrong_border_would_show(self, case):
        """The padding after normalisation matters: a plain bias is far from the bias map."""
        weights, images, oracle = case
        trunk = build_trunk(weights, ["conv1_1"])
        inside = trunk.bias_map(9, 9)[..., 4:5, 4:5]
        with torch.inference_mode():
            (found,) = trunk(images)
            naive = found - trunk.bias_map(*images.shape[-2:]) + inside
        wanted = oracle[0]
        assert float((naive - wanted).abs().max()) > 1e-2 * float(wanted.abs().max())
        assert_allclose(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


class TestTrunk:
    WEIGHTS = resolve_weights("random:3", "vgg19")

    def test_stops_at_its_last_tap(self):
        assert len(build_trunk(self.WEIGHTS, ["relu2_1"]).rest) == VGG19.taps["relu2_1"]

    def test_reads_taps_in_the_order_of_the_layers(self):
        trunk = build_trunk(self.WEIGHTS, ["relu3_1", "relu1_1", "relu2_1"])
        with torch.inference_mode():
            assert [features.shape[1] for features in trunk(grey_images())] == [64, 128, 256]

    def test_has_nothing_to_train(self):
        trunk = build_trunk(self.WEIGHTS, ["relu2_1"])
        assert not trunk.training
        assert not any(parameter.requires_grad for parameter in trunk.parameters())

    def test_random_weights_follow_from_the_seed_alone(self):
        before = torch.get_rng_state()
        torch.manual_seed(1)
        one = build_trunk(self.WEIGHTS, ["relu2_1"]).state_dict()
        torch.manual_seed(2)
        again = build_trunk(self.WEIGHTS, ["relu2_1"]).state_dict()
        deeper = build_trunk(self.WEIGHTS, ["relu3_1"]).state_dict()
        other = build_trunk(resolve_weights("random:4", "vgg19"), ["relu2_1"]).state_dict()
        torch.set_rng_state(before)
        assert all(torch.equal(one[key], again[key]) for key in one)
        assert all(torch.equal(one[key], deeper[key]) for key in one)
        assert not torch.equal(one["grey_weight"], other["grey_weight"])

    def test_building_draws_nothing_from_the_global_generator(self):
        before = torch.get_rng_state()
        build_trunk(self.WEIGHTS, ["relu1_1"])
        assert torch.equal(torch.get_rng_state(), before)


class TestCache:
    @pytest.fixture
    def builds(self, monkeypatch):
        """Empty the cache of this process, and count what is built from then on."""
        built = []

        def counted(weights, taps):
            built.append((weights.identity, tuple(taps)))
            return build_trunk(weights, taps)

        monkeypatch.setattr(backbones, "_trunks", type(backbones._trunks)())
        monkeypatch.setattr(backbones, "build_trunk", counted)
        return built

    def test_eight_threads_build_one_trunk(self, builds):
        weights, start = resolve_weights("random:0", "vgg19"), threading.Barrier(8)

        def load(_):
            start.wait(timeout=60)
            return load_trunk(weights, ["relu1_1", "relu2_1"])

        with ThreadPoolExecutor(8) as pool:
            trunks = list(pool.map(load, range(8)))
        assert len(builds) == 1
        assert all(trunk is trunks[0] for trunk in trunks)

    def test_the_order_of_taps_does_not_matter(self, builds):
        weights = resolve_weights("random:0", "vgg19")
        assert load_trunk(weights, ["relu1_1", "conv1_2"]) is load_trunk(
            weights, ["conv1_2", "relu1_1"]
        )

    def test_other_weights_or_taps_are_another_trunk(self, builds):
        first, second = (resolve_weights(f"random:{seed}", "vgg19") for seed in (0, 1))
        trunks = [
            load_trunk(first, ["relu1_1"]),
            load_trunk(second, ["relu1_1"]),
            load_trunk(first, ["relu1_2"]),
        ]
        assert len({id(trunk) for trunk in trunks}) == len(builds) == 3

    def test_weights_are_known_by_content_and_not_by_place(self, builds, tmp_path):
        state = random_state(0)
        paths = [tmp_path / name for name in ("one.safetensors", "two.safetensors")]
        for path in paths:
            save_file(state, path)
        one, two = (load_trunk(resolve_weights(str(path), "vgg19"), ["relu1_1"]) for path in paths)
        assert one is two

    def test_what_failed_is_tried_again(self, builds, tmp_path):
        path = tmp_path / "vgg19.safetensors"
        save_file(random_state(0), path)
        weights = resolve_weights(str(path), "vgg19")
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(FileNotFoundError):
            load_trunk(weights, ["relu1_1"])
        path.write_bytes(content)
        load_trunk(weights, ["relu1_1"])
        assert len(builds) == 2


class TestWhatTorchvisionSays:
    @pytest.mark.parametrize("name", BACKBONES)
    def test_of_its_files_is_repeated_truly(self, name):
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        assert BACKBONES[name].url == weights.url
        assert BACKBONES[name].size_mb == weights.meta["_file_size"]

    def test_is_not_asked_by_methods_without_a_network(self):
        """It takes a worker 160 MB."""
        script = (
            "import sys; import fusionflow.stages, fusionflow.runner; "
            "sys.exit('torchvision' in sys.modules or 'SimpleITK' in sys.modules)"
        )
        subprocess.run([sys.executable, "-c", script], check=True)
