"""Real and older files of every backbone; the test kit holds all to what the full module reads."""

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from fusionflow.backbones import BACKBONES, Weights, build_trunk, resolve_weights
from fusionflow.errors import WeightsError

SIZE = (71, 64)  # odd and even, not a multiple of any stride


def lively(name, seed):
    """A full model of torchvision in evaluation mode with weights and statistics of every kind."""
    torch.manual_seed(seed)
    model = torchvision.models.get_model(name, weights=None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in model.features.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                for tensor in (layer.weight, layer.running_var):
                    tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
                for tensor in (layer.bias, layer.running_mean):
                    tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
            elif isinstance(layer, torch.nn.Conv2d) and layer.bias is not None:
                layer.bias.copy_(0.2 * torch.randn(layer.bias.shape, generator=generator))
    return model.eval()


@pytest.mark.shared
def test_real_vgg16(shared):
    path = shared / "weights" / "vgg16-conv1_1-conv3_3.safetensors"
    state = {key: tensor.float() for key, tensor in load_file(path).items()}
    taps = {tap: i for tap, i in BACKBONES["vgg16"].taps.items() if i <= 15}
    with torch.device("meta"):
        layers = torchvision.models.vgg16().features[:16]
    layers.load_state_dict({k.removeprefix("features."): v for k, v in state.items()}, assign=True)
    images = torch.rand((2, 1, *SIZE), generator=torch.Generator().manual_seed(1))
    # Channels BGR, times 255, minus the mean, as the file's header says.
    mean = torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1)
    features, expected = images.expand(-1, 3, -1, -1) * 255 - mean, []
    with torch.inference_mode():
        for index, layer in enumerate(layers):
            features = layer(features).clone()
            if index in taps.values():
                expected.append(features.clone())
        found = build_trunk(resolve_weights(str(path), "vgg16"), tuple(taps))(images)
    # conv taps of the oracle are overwritten by the in-place ReLU that follows: compare relu taps.
    for tap, ours, theirs in zip(sorted(taps, key=taps.get), found, expected, strict=True):
        if tap.startswith("relu"):
            assert (ours - theirs).abs().max() / theirs.abs().max() < 1e-4, tap


@pytest.mark.parametrize("name", BACKBONES)
def test_default_taps_exist_and_random_weights_make_features_of_order_one(name):
    backbone = BACKBONES[name]
    trunk = build_trunk(Weights(name, "random:5"), backbone.default_taps)
    images = torch.rand((2, 1, *SIZE), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        for features in trunk(images):
            assert torch.isfinite(features).all()
            assert 0.01 < features.std() < 100


def test_densenet_file_with_the_names_of_old(tmp_path):
    """torchvision's own file writes ``norm.1`` for ``norm1`` and has no training counters."""
    model = lively("densenet121", seed=4)
    new = {f"features.{k}": v.contiguous() for k, v in model.features.state_dict().items()}
    old = {}
    for key, tensor in new.items():
        if key.endswith("num_batches_tracked"):
            continue
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in key:
                key = key.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[key] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    images = torch.rand((2, 1, *SIZE), generator=torch.Generator().manual_seed(2))
    results = []
    for label, state in (("new", new), ("old", old)):
        path = tmp_path / f"densenet121-{label}.pth"
        torch.save(state, path)
        with torch.inference_mode():
            trunk = build_trunk(resolve_weights(str(path), "densenet121"), ("denseblock2",))
            results.append(trunk(images)[0])
    assert torch.equal(*results)


def test_a_missing_layer_is_named(tmp_path):
    path = tmp_path / "alexnet.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 11, 11)}, path)
    with pytest.raises(WeightsError, match=r"have no features\.0\.bias"):
        build_trunk(resolve_weights(str(path), "alexnet"), ("relu1",))
