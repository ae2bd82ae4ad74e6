"""The learned rule: what it promises before and after training, and its files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import needs_int8
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from fusionflow import fusion, fusion_net, learned
from fusionflow.backbones import build_trunk
from fusionflow.config import METHODS, Method, Wavelet
from fusionflow.device import Batch, arithmetic
from fusionflow.errors import (
    ChecksumError,
    ConfigurationError,
    WeightsError,
    WeightsNotFoundError,
)
from fusionflow.graph import make_recipe
from fusionflow.images import fuse_slices
from fusionflow.transform import decompose
from fusionflow.weights import Weights

TAPS = ("relu1_1", "relu2_1")


def make(seed=0, *, reads_backbone=True, trained=False):
    """Return a net of random weights; `trained`: one whose head does something of its own."""
    card = fusion_net.ModelCard(
        name="test", backbone="vgg19", taps=TAPS, transform=Wavelet(), width=8, seen=4,
        reads_backbone=reads_backbone,
    )  # fmt: skip
    trunk = build_trunk(Weights("vgg19", f"random:{seed}"), TAPS) if reads_backbone else None
    net = fusion_net.make_net(card, trunk, seed)
    if trained:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in net.head.mix[-1].parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def method_of(path, **update):
    options = {"rule": "learned", "backbone": "vgg19", "taps": TAPS, "weights": str(path)}
    return Method(name="mine", **{**options, **update})


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.safetensors"
    learned.write_model(make(trained=True), path)
    return path


@pytest.fixture
def slices():
    rng = np.random.default_rng(1)
    return tuple(rng.random((5, 40, 47), np.float32) for _ in range(2))


def bands_of(*stacks):
    return [decompose(stack, Wavelet()) for stack in stacks]


class TestPromises:
    @pytest.mark.parametrize("reads_backbone", [True, False])
    def test_before_training_it_chooses_by_magnitude(self, tmp_path, slices, reads_backbone):
        path = tmp_path / "new.safetensors"
        learned.write_model(make(reads_backbone=reads_backbone), path)
        mri, pet = bands_of(*slices)
        method = method_of(path)
        shares = learned.weigh(mri, pet, method, learned.find_model(method))
        for share, (_, _, of_mri), (_, _, of_pet) in zip(
            shares, mri.bands(), pet.bands(), strict=True
        ):
            assert share.dtype == np.float32
            larger = np.abs(of_mri) - np.abs(of_pet)
            firm = np.abs(larger) > 0.02
            np.testing.assert_array_equal((share > 0.5)[firm], (larger > 0)[firm])

    def test_a_fused_coefficient_lies_between_those_of_its_sources(self, model, slices):
        mri, pet = bands_of(*slices)
        method = method_of(model)
        fused = fusion.fuse_subbands(mri, pet, method, learned.find_model(method))
        for (_, _, f), (_, _, m), (_, _, p) in zip(
            fused.bands(), mri.bands(), pet.bands(), strict=True
        ):
            assert (f >= np.minimum(m, p) - 1e-5).all()
            assert (f <= np.maximum(m, p) + 1e-5).all()

    def test_equal_sources_give_themselves(self, model, slices):
        recipe = make_recipe(method_of(model))
        fused = fuse_slices(slices[0], slices[0], recipe)
        np.testing.assert_allclose(fused, slices[0], atol=2e-6)

    def test_slices_do_not_depend_on_their_neighbours(self, model, slices):
        recipe = make_recipe(method_of(model))
        together = fuse_slices(*slices, recipe)
        for z in range(5):
            alone = fuse_slices(slices[0][z : z + 1], slices[1][z : z + 1], recipe)
            np.testing.assert_array_equal(alone[0], together[z])

    @pytest.mark.parametrize("empty", [(0, 1), (1,)])
    def test_what_is_empty_changes_nothing_around_it(self, model, slices, empty):
        """An empty source is not shown to the backbone, an empty slice not to the head either."""
        recipe = make_recipe(method_of(model))
        whole = fuse_slices(*slices, recipe)
        less = [source.copy() for source in slices]
        for source in empty:
            less[source][[0, 3]] = 0
        found = fuse_slices(*less, recipe)
        np.testing.assert_array_equal(found[[1, 2, 4]], whole[[1, 2, 4]])
        if empty == (0, 1):
            assert not found[[0, 3]].any()

    def test_an_image_that_is_not_shown_is_seen_as_one_without_anything(self, model, slices):
        """To the bit: what `look` leaves out is what `read` finds to have no activity."""
        net = learned.read_model(model)
        mri, pet = (
            torch.from_numpy(np.stack([band for _, _, band in bands.bands()], axis=1))[:2]
            for bands in bands_of(*slices)
        )
        pet[0] = 0
        batch = Batch(method_of(model))
        shown = net.look(mri, pet, range(16), batch)
        left_out = net.look(mri, pet, [*range(4), *range(8, 16)], batch)
        for one, other in zip(shown, left_out, strict=True):
            assert torch.equal(one, other)
            assert not one[4:8].any()
            assert one[:4].any()

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_looking_is_reading_and_then_bringing_together(self, model, slices, precision):
        net = learned.read_model(model)
        mri, pet = (
            torch.from_numpy(np.stack([band for _, _, band in bands.bands()], axis=1))[:2]
            for bands in bands_of(*slices)
        )
        with arithmetic("cpu", precision):
            seen = net.look(mri, pet, range(16), Batch(method_of(model)))
            read = net.read(mri, pet, bfloat16=precision == "bfloat16")
        with arithmetic("cpu", "float32"):
            wanted = [net.head.together(index, tap) for index, tap in enumerate(read)]
        for one, other in zip(seen, wanted, strict=True):
            # A difference that was taken in bfloat16 would be 4e-3 off.
            assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))

    @needs_int8
    def test_in_8_bits_nothing_depends_on_neighbours_either(self, model, slices):
        recipe = make_recipe(method_of(model, precision="int8"))
        together = fuse_slices(*slices, recipe)
        for z in range(5):
            alone = fuse_slices(slices[0][z : z + 1], slices[1][z : z + 1], recipe)
            np.testing.assert_array_equal(alone[0], together[z])
        exact = fuse_slices(*slices, make_recipe(method_of(model)))
        assert 0 < np.abs(together - exact).max() < 0.05

    def test_batches_change_nothing(self, model, slices):
        methods = [method_of(model, batch=batch) for batch in (1, 3, 8, 16, 1024)]
        first, *others = (fuse_slices(*slices, make_recipe(method)) for method in methods)
        for other in others:
            np.testing.assert_array_equal(first, other)

    def test_what_is_brighter_than_any_training_keeps_its_place(self, model, slices):
        """A hot lesion is far beyond the window: it is chosen, and its surroundings as before."""
        mri, pet = slices[0][:1] / 4, slices[1][:1] / 4
        hot = pet.copy()
        hot[0, 2:6, 2:6] = 40
        recipe = make_recipe(method_of(model))
        before, after = fuse_slices(mri, pet, recipe), fuse_slices(mri, hot, recipe)
        assert (after[0, 3:5, 3:5] > 38).all()
        np.testing.assert_array_equal(after[0, 28:, 28:], before[0, 28:, 28:])

    @pytest.mark.parametrize("update", [{"window": 5}, {"temperature": 1.0}])
    def test_options_of_other_rules_are_refused(self, model, update):
        with pytest.raises(ConfigurationError, match=f"{next(iter(update))} means nothing"):
            make_recipe(method_of(model, **update))

    def test_balance_leans(self, tmp_path, slices):
        path = tmp_path / "new.safetensors"
        learned.write_model(make(), path)
        mri, pet = bands_of(*slices)
        means = []
        for balance in (0, 0.25, 0.5, 1.0):
            method = method_of(path, balance=balance)
            shares = learned.weigh(mri, pet, method, learned.find_model(method))
            means.append(float(np.mean([share.mean() for share in shares])))
        assert (np.diff(means) > 0.01).all()

    def test_the_ends_of_the_knob_are_the_sources(self, model, slices):
        for balance, source in ((1.0, slices[0]), (0.0, slices[1])):
            fused = fuse_slices(*slices, make_recipe(method_of(model, balance=balance)))
            np.testing.assert_allclose(fused, source, atol=2e-6)

    def test_balance_is_part_of_the_fingerprint(self, model):
        one, other = (method_of(model, balance=b).fingerprint("x") for b in (0.5, 0.6))
        assert one != other


class TestFile:
    def test_there_and_back_in_half_precision(self, model):
        net, read = make(trained=True), learned.read_model(model)
        assert read.card == net.card
        for name, tensor in read.state_dict().items():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(
                tensor, net.state_dict()[name].half().float(), rtol=0, atol=0
            )

    def test_the_same_net_gives_the_same_bytes(self):
        assert learned.model_bytes(make(3)) == learned.model_bytes(make(3))

    def test_every_method_part_that_differs_is_told(self, model):
        for update in (
            {"taps": ("relu1_1",)},
            {"transform": Wavelet(name="haar")},
            {"backbone": "vgg16"},
        ):
            with pytest.raises(WeightsError, match=f"trained with {next(iter(update))}"):
                make_recipe(method_of(model, **update))

    @pytest.mark.parametrize("value", [0.0, -1.0, 1e-6])
    def test_sizes_of_features_that_are_none(self, model, value):
        tensors = load_file(model)
        tensors["head.scale0"][3] = value
        with safe_open(model, "pt") as stream:
            save_file(tensors, model, stream.metadata())
        with pytest.raises(WeightsError, match=r"head\.scale0 holds sizes .* not positive"):
            learned.read_model(model)

    def test_what_is_no_file_is_told_at_once(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "pipe", Path("/dev/null"), Path("x" * 300)):
            with pytest.raises(WeightsNotFoundError, match="is no file"):
                learned.read_card(path)

    def test_no_slices(self, model):
        none = np.zeros((0, 40, 47), np.float32)
        assert fuse_slices(none, none, make_recipe(method_of(model))).shape == none.shape

    def test_weights_without_a_head_are_told(self, tmp_path):
        path = tmp_path / "vgg19.safetensors"
        save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
        with pytest.raises(WeightsError, match=r"vgg19.safetensors holds no trained model"):
            make_recipe(method_of(path))

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(WeightsNotFoundError, match=r"No model .*no.safetensors"):
            make_recipe(method_of(tmp_path / "no.safetensors"))
        with pytest.raises(WeightsNotFoundError, match="No model random:0"):
            make_recipe(method_of("random:0"))

    def test_no_model_ships_for_a_backbone_without_one(self):
        with pytest.raises(WeightsNotFoundError, match="comes with fusionflow for alexnet"):
            make_recipe(method_of("auto", backbone="alexnet", taps=("relu1",)))

    def test_one_that_the_sums_beside_it_do_not_know(self, model):
        (model.parent / "SHA256SUMS").write_text(f"{'0' * 64}  {model.name}\n")
        with pytest.raises(ChecksumError, match="SHA256SUMS beside them says 000000000000"):
            make_recipe(method_of(model))

    def test_one_that_changes_after_it_was_found(self, model, slices):
        learned.write_model(make(11), model)  # none that this process has read already
        recipe = make_recipe(method_of(model))
        learned.write_model(make(12), model)
        with pytest.raises(ChecksumError, match="changed or is damaged"):
            fuse_slices(*slices, recipe)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda state, card: state.pop("head.lean"), "head.lean"),
            (lambda state, card: state.update(more=torch.zeros(1)), "more"),
            (lambda state, card: state.update({"head.lean": torch.zeros(5)}), r"shape \(5,\)"),
            (lambda state, card: state.update({"head.lean": torch.ones(4) * torch.nan}), "NaN"),
            (lambda state, card: state.update({"head.lean": torch.zeros(4, dtype=int)}), "int64"),
            (lambda state, card: card.update(format=2), "format 2"),
            (lambda state, card: card.update(width=10**9), "width 1000000000"),
            (lambda state, card: card.update(width="x"), "width"),
            (lambda state, card: card.update(backbone="no"), "'no'"),
            (lambda state, card: card.update(unknown=1), "unknown"),
            (lambda state, card: card.clear(), "name"),
        ],
    )
    def test_one_that_is_not_what_it_says(self, model, change, said):
        state = load_file(model)
        with safe_open(model, framework="pt") as stream:
            card = json.loads(stream.metadata()["fusionflow"])
        change(state, card)
        other = model.with_name("other.safetensors")
        save_file(state, other, metadata={"fusionflow": json.dumps(card)})
        with pytest.raises(WeightsError, match=said) as caught:
            learned.read_model(other)
        assert "other.safetensors" in str(caught.value)

    @pytest.mark.parametrize("keep", [0, 7, 100, 5000])
    def test_one_that_is_cut(self, model, keep):
        model.write_bytes(model.read_bytes()[:keep])
        with pytest.raises(WeightsError, match=r"model\.safetensors"):
            learned.read_model(model)


class TestMethod:
    def test_it_needs_one_level_of_a_wavelet(self, model):
        for transform in (Wavelet(levels=2), METHODS["laplacian"].transform):
            with pytest.raises(ConfigurationError, match="one level of a wavelet"):
                make_recipe(method_of(model, transform=transform))

    def test_balance_means_nothing_to_others(self):
        method = METHODS["dwt-max"].model_copy(update={"balance": 0.2})
        with pytest.raises(ConfigurationError, match="balance means nothing to rule max-abs"):
            make_recipe(method)
