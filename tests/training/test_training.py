"""Training: what it learns, what it leaves, with each backbone."""

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from scipy.ndimage import gaussian_filter

from fusionflow import learned, torch_wavelet, training
from fusionflow.backbones import build_trunk
from fusionflow.cli import main
from fusionflow.config import Method, load_config
from fusionflow.errors import ConfigurationError, InputError, WeightsError
from fusionflow.graph import make_recipe
from fusionflow.images import fuse_slices
from fusionflow.train_data import Batch
from fusionflow.training import CHECKPOINT, HISTORY, MODEL, train
from fusionflow.validation import fuse
from fusionflow.weights import Weights


class TestTraining:
    def test_it_comes_nearer_to_what_is_asked(self, small, tmp_path):
        config = small(epochs=6, steps=8, learning_rate=0.01)
        trained = train(config, tmp_path)
        first, *_, last = trained.epochs
        assert last.objective < first.objective - 0.01
        assert trained.best.objective == min(epoch.objective for epoch in trained.epochs)

    def test_what_it_leaves(self, small, tmp_path):
        told = []
        trained = train(small(), tmp_path, name="mine", licence="MIT", tell=told.append)
        assert {path.name for path in tmp_path.iterdir()} == {
            MODEL, HISTORY, CHECKPOINT, "epoch-002.png", "best.png",
        }  # fmt: skip
        assert len((tmp_path / HISTORY).read_text().splitlines()) == 1 + 3
        assert told[0] == "4 slices to train on, 2 to validate with"
        assert len(told) == 1 + 3
        card = learned.read_card(trained.model)
        assert (card.name, card.licence) == ("mine", "MIT")
        assert card.start == "random:0 (RANDOM weights, not pretrained: for trying out only)"
        assert card.training["config"]["seed"] == 0
        assert card.training["validation"]["epoch"] == trained.best.number

    @pytest.mark.parametrize("size", [(56, 64), (61, 49)])
    @pytest.mark.parametrize("balance", [0.1, 0.3, 0.9])
    def test_a_run_fuses_as_the_training_did(self, small, tmp_path, balance, size):
        """Scales, order of bands, both wavelet transforms and the rounded file agree."""
        config = tmp_path / "train.yaml"
        how = small(steps=6, learning_rate=0.01)
        config.write_text(yaml.safe_dump(how.model_dump(mode="json")))
        result = CliRunner().invoke(main, ["train", str(config), str(tmp_path / "out")])
        assert result.exit_code == 0, result.output
        method = load_config(tmp_path / "out/run.yaml").method
        rng = np.random.default_rng(0)
        mri, pet = (
            gaussian_filter(rng.random((3, *size)), (0, 2, 2)).astype(np.float32) for _ in "mp"
        )
        recipe = make_recipe(method.model_copy(update={"balance": balance}))
        fused = fuse_slices(mri, pet, recipe)
        net = learned.read_model(tmp_path / "out" / MODEL)
        batch = Batch(torch.from_numpy(mri), torch.from_numpy(pet), torch.full((3,), balance))
        with torch.no_grad():
            expected, weights = fuse(net, batch, how)
        assert weights.std() > 0.02
        np.testing.assert_allclose(fused, expected, atol=1e-5)

    def test_looking_first_does_not_stop_training(self, small, tmp_path):
        """What is kept of the filters is no tensor of an inference."""
        torch_wavelet._filters.cache_clear()
        torch_wavelet._places.cache_clear()
        train(small(epochs=1), tmp_path / "one")
        train(small(epochs=1), tmp_path / "one")
        torch_wavelet._filters.cache_clear()
        torch_wavelet._places.cache_clear()
        train(small(epochs=1), tmp_path / "one")  # only looks
        train(small(epochs=1), tmp_path / "two")

    def test_features_that_say_nothing(self, small, tmp_path, monkeypatch):
        """Rounded to half precision, their size would be none, and every fused value no number."""
        build = training.build_trunk

        def faint(*args):
            trunk = build(*args)
            with torch.no_grad():
                for parameter in (trunk.grey_weight, trunk.shift_weight, trunk.bias):
                    parameter.mul_(1e-7)
            return trunk

        monkeypatch.setattr(training, "build_trunk", faint)
        with pytest.raises(WeightsError, match="it sees nothing"):
            train(small(), tmp_path)

    def test_a_device_that_is_not_there(self, small, tmp_path):
        for device in ("no", "cuda:99", "meta"):
            with pytest.raises(ConfigurationError, match=f"no device '{device}'"):
                train(small(), tmp_path, device=device)

    def test_it_ends_when_nothing_gets_better(self, small, tmp_path):
        config = small(epochs=20, patience=2, learning_rate=1e-12)
        trained = train(config, tmp_path)
        assert len(trained.epochs) <= trained.best.number + 2 < 20

    def test_another_seed_is_another_model(self, small, tmp_path):
        one, other = (train(small(seed=seed), tmp_path / str(seed)) for seed in (0, 1))
        assert one.model.read_bytes() != other.model.read_bytes()


class TestBackbones:
    @pytest.mark.parametrize("unfreeze", [0, 1, "all"])
    @pytest.mark.parametrize(
        ("backbone", "taps"),
        [
            ("vgg16", ("relu1_1", "relu2_1")),
            ("alexnet", ("relu1", "relu2")),
            ("densenet121", ("relu0", "denseblock1")),
        ],
    )
    def test_each_trains_and_fuses(self, small, tmp_path, backbone, taps, unfreeze):
        config = small(backbone=backbone, taps=taps, unfreeze=unfreeze, steps=1, epochs=1, crop=96)
        trained = train(config, tmp_path)
        method = Method(
            name="mine", rule="learned", backbone=backbone, taps=taps, weights=str(trained.model)
        )
        rng = np.random.default_rng(0)
        mri, pet = rng.random((2, 2, 80, 96), np.float32)
        fused = fuse_slices(mri, pet, make_recipe(method))
        assert np.isfinite(fused).all()
        assert fused.std() > 0.1

    def test_squares_too_small_for_the_taps(self, small, tmp_path):
        taps = ("relu1", "relu2", "relu3")
        with pytest.raises(InputError, match="too small for the taps relu1, relu2, relu3 of alex"):
            train(small(backbone="alexnet", taps=taps, crop=48), tmp_path)


class TestUnfreezing:
    @pytest.mark.parametrize(
        ("unfreeze", "changed"),
        [
            (0, set()),
            (1, {"trunk.rest.4"}),
            (2, {"trunk.rest.4", "trunk.rest.1"}),
            ("all", {"trunk", "trunk.rest.1", "trunk.rest.4"}),
        ],
    )
    def test_only_what_is_asked_for_changes(self, small, tmp_path, unfreeze, changed):
        taps = ["relu2_1"]
        config = small(taps=taps, unfreeze=unfreeze, backbone_learning_rate=0.01, epochs=1)
        after = learned.read_model(train(config, tmp_path).model).state_dict()
        trunk = build_trunk(Weights("vgg19", "random:0"), taps)
        before = trunk.half().float().state_dict()
        differing = {
            name.rpartition(".")[0]
            for name in after
            if name.startswith("trunk.")
            and not torch.equal(after[name], before[name.removeprefix("trunk.")])
        }
        assert {name.removesuffix(".") for name in differing} == changed

    def test_more_than_there_are(self, small, tmp_path):
        with pytest.raises(ConfigurationError, match="0 convolutions after its first"):
            train(small(unfreeze=1), tmp_path)
