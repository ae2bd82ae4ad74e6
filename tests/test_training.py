"""Training: what it learns, what it keeps, and that breaks change nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.ndimage import gaussian_filter

from fusionflow import learned, torch_wavelet, training
from fusionflow.backbones import build_trunk
from fusionflow.cli import main
from fusionflow.config import Method, load_config
from fusionflow.errors import ConfigurationError, InputError, LockedError, WeightsError
from fusionflow.graph import make_recipe
from fusionflow.images import fuse_slices
from fusionflow.objective import objective
from fusionflow.train_config import Augmentation, Loss, TrainConfig, load_train_config
from fusionflow.train_data import Batch, SlicePair, draw, read_slices
from fusionflow.training import CHECKPOINT, HISTORY, LOCK, MODEL, train
from fusionflow.validation import fuse
from fusionflow.weights import Weights

SMALL = {
    "weights": "random:0", "taps": ["relu1_1"], "width": 4, "seen": 2, "crop": 48, "batch": 2,
    "steps": 2, "epochs": 3, "pictures_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of six pairs of pictures, 56 x 64 pixels."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for kind, sigma in (("MRI", 1.5), ("PET", 4)):
        (folder / kind).mkdir()
        for number in range(6):
            image = gaussian_filter(rng.random((56, 64)), sigma)
            image = np.clip((image - image.min()) / np.ptp(image) * 255, 0, 255)
            Image.fromarray(image.astype(np.uint8)).save(folder / kind / f"{number}.png")
    return folder


@pytest.fixture
def small(pictures):
    def small(**update):
        source = {"kind": "pictures", "folder": str(pictures), "pet": "grey"}
        data = {
            "train": [{**source, "names": "[0-3]"}],
            "validation": [{**source, "names": "[45]"}],
        }
        return TrainConfig.model_validate({**SMALL, **data, **update})

    return small


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


class TestObjective:
    @pytest.fixture
    def batch(self, small):
        config = small(batch=3)
        drawn = draw(read_slices(config.train), config, 0)
        return Batch(drawn.mri, drawn.pet, torch.tensor([0.0, 0.5, 1.0]))

    def test_each_end_of_the_knob_wants_its_source(self, batch):
        of_pet, _, of_mri = range(3)
        like_mri = objective(batch, batch.mri, Loss())
        like_pet = objective(batch, batch.pet, Loss())
        assert like_mri[of_mri] < like_pet[of_mri]
        assert like_pet[of_pet] < like_mri[of_pet]

    def test_the_middle_wants_both(self, batch):
        """No source handed back unchanged: some figures are highest for that."""
        both = objective(batch, torch.maximum(batch.mri, batch.pet), Loss())[1]
        for source in (batch.mri, batch.pet):
            assert both < objective(batch, source, Loss())[1]

    def test_what_is_wanted_of_brightness(self, batch):
        only = Loss(qabf=0.0, scd=0.0, ssim=0.0, vif=0.0)
        brighter = torch.maximum(batch.mri, batch.pet)
        for index, best in enumerate((batch.pet, brighter, batch.mri)):
            assert objective(batch, best, only)[index] == pytest.approx(0, abs=1e-6)


class TestBreaks:
    def test_going_on_gives_the_same_bytes(self, small, tmp_path):
        whole = train(small(), tmp_path / "whole")

        def stop(line):
            if line.startswith("epoch   2"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):  # in epoch 2, before its checkpoint
            train(small(), tmp_path / "broken", tell=stop)
        told = []
        again = train(small(), tmp_path / "broken", tell=told.append)
        assert told[1] == "going on after epoch 1"
        assert again.model.read_bytes() == whole.model.read_bytes()
        names = {path.name for path in (tmp_path / "whole").iterdir()}
        assert names == {path.name for path in (tmp_path / "broken").iterdir()}
        for name in names - {LOCK}:
            one, other = (tmp_path / folder / name for folder in ("whole", "broken"))
            assert one.read_bytes() == other.read_bytes()

    def test_a_finished_one_is_left_as_it_is(self, small, tmp_path):
        first = train(small(), tmp_path).model.read_bytes()
        assert train(small(), tmp_path).model.read_bytes() == first

    def test_killed_at_any_moment(self, small, tmp_path):
        """By SIGKILL, as a batch system does it; the command goes on."""
        config = tmp_path / "train.yaml"
        how = small(epochs=6, steps=3, unfreeze="all", taps=["relu1_2"])
        config.write_text(yaml.safe_dump(how.model_dump(mode="json")))
        whole = train(how, tmp_path / "whole").model.read_bytes()
        out, rng = tmp_path / "out", np.random.default_rng(0)
        command = [Path(sys.executable).parent / "fusionflow", "train", config, out]
        kills = 0
        for _ in range(4):
            process = subprocess.Popen(
                list(map(str, command)), stdout=-1, stderr=subprocess.STDOUT, text=True
            )
            for line in process.stdout:
                if line.startswith("epoch"):
                    time.sleep(rng.uniform(0, 0.2))
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
                    break
            process.communicate()
        assert kills >= 2
        last = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert last.returncode == 0, last.stderr
        assert (out / MODEL).read_bytes() == whole

    def test_another_configuration_is_refused(self, small, tmp_path):
        train(small(), tmp_path)
        with pytest.raises(ConfigurationError, match=r"that differs in config\.seed\. Give"):
            train(small(seed=1), tmp_path)

    def test_other_data_under_the_same_names_are_refused(self, small, pictures, tmp_path):
        folder = shutil.copytree(pictures, tmp_path / "pairs")
        source = {"kind": "pictures", "folder": str(folder), "pet": "grey", "names": "[0-3]"}
        train(small(train=[source]), tmp_path / "out")
        train(small(train=[source]), tmp_path / "out")
        (folder / "PET/1.png").write_bytes((folder / "PET/2.png").read_bytes())
        with pytest.raises(ConfigurationError, match=r"differs in data\.train\.sha256"):
            train(small(train=[source]), tmp_path / "out")

    def test_where_data_lie_does_not_matter(self, small, pictures, tmp_path):
        folder = shutil.copytree(pictures, tmp_path / "elsewhere" / pictures.name)
        one = train(small(), tmp_path / "one")
        source = {"kind": "pictures", "folder": str(folder), "pet": "grey"}
        data = {
            "train": [{**source, "names": "[0-3]"}],
            "validation": [{**source, "names": "[45]"}],
        }
        moved = train(small(**data), tmp_path / "other")
        assert moved.model.read_bytes() == one.model.read_bytes()
        assert b"elsewhere" not in moved.model.read_bytes()

    @pytest.mark.parametrize(
        "how", [dict.pop, lambda t, name: t.update({name: torch.full_like(t[name], torch.nan)})]
    )
    @pytest.mark.parametrize(
        "name",
        ["net.head.mix.0.weight", "best.head.lean", "adam.0.exp_avg", "adam.1.exp_avg_sq",
         "adam.0.step"],
    )  # fmt: skip
    def test_tensors_that_lack_or_are_no_numbers_are_told(self, small, tmp_path, name, how):
        train(small(epochs=1), tmp_path)
        path = tmp_path / CHECKPOINT
        tensors = load_file(path)
        with safe_open(path, "pt") as stream:
            kept = stream.metadata()
        how(tensors, name)
        save_file(tensors, path, kept)
        with pytest.raises(WeightsError, match=r"cannot be gone on from.*begin anew"):
            train(small(epochs=1), tmp_path)

    @pytest.mark.parametrize(
        "update",
        [{"objective": "low"}, {"number": 2}, {"loss": None}, {"figures": {}}, {"figures": []}],
    )
    def test_epochs_that_are_none_are_told(self, small, tmp_path, update):
        train(small(epochs=1), tmp_path)
        path = tmp_path / CHECKPOINT
        tensors = load_file(path)
        with safe_open(path, "pt") as stream:
            kept = json.loads(stream.metadata()["fusionflow"])
        kept["epochs"][0].update(update)
        save_file(tensors, path, {"fusionflow": json.dumps(kept)})
        with pytest.raises(WeightsError, match="cannot be gone on from"):
            train(small(epochs=1), tmp_path)

    def test_two_at_once_are_refused(self, small, tmp_path):
        def second(line):
            if line.startswith("epoch"):
                with pytest.raises(LockedError):
                    train(small(), tmp_path)
                refused.append(line)

        refused = []
        train(small(), tmp_path, tell=second)
        assert len(refused) == 3

    @pytest.mark.parametrize("keep", [0, 10, 3000])
    def test_a_damaged_checkpoint_is_told(self, small, tmp_path, keep):
        train(small(epochs=1), tmp_path)
        path = tmp_path / CHECKPOINT
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(WeightsError, match="cannot be gone on from"):
            train(small(epochs=1), tmp_path)


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


class TestData:
    def test_a_step_is_drawn_alike_whatever_came_before(self, small):
        config = small()
        slices = read_slices(config.train)
        one = draw(slices, config, 5)
        draw(slices, config, 1)
        other = draw(slices, config, 5)
        assert all(torch.equal(vars(one)[name], vars(other)[name]) for name in vars(one))
        assert not torch.equal(one.mri, draw(slices, config, 6).mri)

    def test_every_step_sees_the_whole_knob(self, small):
        config = small(batch=8)
        balance = np.sort(draw(read_slices(config.train), config, 0).balance.numpy())
        assert (np.floor(balance * 8) == np.arange(8)).all()

    def test_sources_stay_in_register(self, small):
        """Whatever a slice goes through, both sources go through it."""
        rng = np.random.default_rng(0)
        image = gaussian_filter(rng.random((90, 70)), 2).astype(np.float32)
        image = (image - image.min()) / np.ptp(image)
        how = Augmentation(
            gamma=1.0, gain=0.0, blur=0.0, noise=0.0, zoom=2.0, contrast=0.0, pseudo_colour=0.0
        )
        config = small(augmentation=how.model_dump(), batch=16)
        drawn = draw([SlicePair("same", image, image)], config, 0)
        assert drawn.mri.shape == (16, 48, 48)
        torch.testing.assert_close(drawn.mri, drawn.pet, rtol=0, atol=0)
        assert len({tile.numpy().tobytes() for tile in drawn.mri}) == 16

    @pytest.mark.parametrize(("option", "changed"), [("pseudo_colour", "pet"), ("contrast", "mri")])
    def test_grey_values_that_rise_and_fall(self, small, option, changed):
        """Equal values stay equal, none stays none, and nothing happens to the other source."""
        ramp = np.tile(np.linspace(0, 1, 48, dtype=np.float32), (48, 1))
        still = {"gamma": 1.0, "gain": 0.0, "blur": 0.0, "noise": 0.0, "zoom": 1.0, "flip": False}
        still |= {"contrast": 0.0, "pseudo_colour": 0.0, option: 1.0}
        drawn = draw([SlicePair("ramp", ramp, ramp)], small(augmentation=still, batch=8), 0)
        varied, same = (drawn.pet, drawn.mri) if changed == "pet" else (drawn.mri, drawn.pet)
        np.testing.assert_array_equal(same, np.tile(ramp, (8, 1, 1)))
        assert (varied[:, :, 0] == 0).all()
        assert (varied == varied[:, :1]).all()
        falls = (np.diff(varied[:, 0]) < 0).any(axis=1)
        assert falls.sum() > 0
        assert 0 <= varied.min() <= varied.max() <= 1

    @pytest.mark.parametrize("size", [(20, 30), (200, 49)])
    def test_slices_of_any_size(self, small, size):
        image = np.ones(size, np.float32)
        drawn = draw([SlicePair("any", image, image)], small(), 0)
        assert drawn.mri.shape == (2, 48, 48)
        assert torch.isfinite(drawn.pet).all()

    def test_phantoms_in_three_directions(self):
        config = TrainConfig.model_validate(
            {
                "train": [{"kind": "phantoms", "count": 1, "shape": [60, 72, 60], "every": 20}],
                "validation": [{"kind": "phantoms", "count": 1}],
            }
        )
        slices = read_slices(config.train)
        planes = {pair.name.split("_")[1].rstrip("0123456789") for pair in slices}
        assert planes == {"axial", "coronal", "sagittal"}
        for pair in slices:
            assert pair.mri.shape == pair.pet.shape
            assert pair.mri.dtype == pair.pet.dtype == np.float32
            assert min(pair.mri.min(), pair.pet.min()) >= 0
            assert max(pair.mri.max(), pair.pet.max()) <= 1

    def test_none_that_match_are_told(self, pictures, small, tmp_path):
        source = {"kind": "pictures", "folder": str(pictures), "names": "no*", "pet": "grey"}
        with pytest.raises(ConfigurationError, match=r"No slice that shows a head .*no\*.*`names`"):
            train(small(train=[source]), tmp_path)

    def test_slices_too_small_for_figures_are_told(self, small, tmp_path):
        for kind in ("MRI", "PET"):
            (tmp_path / kind).mkdir()
            Image.fromarray(np.full((40, 64), 99, np.uint8)).save(tmp_path / kind / "s.png")
        source = {"kind": "pictures", "folder": str(tmp_path), "pet": "grey"}
        with pytest.raises(InputError, match=r"s\.png has 64 x 40 pixels"):
            train(small(validation=[source]), tmp_path / "out")

    def test_what_is_trained_on_does_not_validate(self, small, pictures, tmp_path):
        source = {"kind": "pictures", "folder": str(pictures), "names": "3", "pet": "grey"}
        with pytest.raises(ConfigurationError, match="slice 3 is there to train on and to val"):
            train(small(validation=[source]), tmp_path)

    def test_the_best_epoch_is_kept_and_not_the_last(self, small, tmp_path, monkeypatch):
        """Also when the training goes on after the best."""
        objectives, states = iter([3.0, 1.0, 2.0, 2.0, 0.0]), []
        real = training.validate

        def judged(net, *rest):
            states.append({k: v.clone() for k, v in net.state_dict().items()})
            return next(objectives), real(net, *rest)[1]

        monkeypatch.setattr(training, "validate", judged)
        trained = train(small(epochs=4, learning_rate=0.01), tmp_path)
        assert trained.best.number == 2
        kept = learned.read_model(trained.model).state_dict()
        for name, tensor in learned.halved(states[1]).items():
            assert torch.equal(kept[name].half(), tensor)
        assert any(not torch.equal(states[1][name], states[3][name]) for name in kept)


class TestConfiguration:
    def test_paths_begin_at_its_folder_and_take_variables(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SOME_DATA", str(tmp_path / "elsewhere"))
        path = tmp_path / "train.yaml"
        path.write_text(
            "weights: w/vgg19.safetensors\n"
            "train: [{kind: pictures, folder: here}]\n"
            "validation: [{kind: scans, path: $SOME_DATA/bids}]\n"
        )
        config = load_train_config(path, {"seed": None, "unfreeze": "2"})
        assert config.train[0].folder == str(tmp_path / "here")
        assert config.validation[0].path == str(tmp_path / "elsewhere/bids")
        assert config.weights == str(tmp_path / "w/vgg19.safetensors")
        assert (config.seed, config.unfreeze) == (0, 2)
        assert str(tmp_path) not in str(config.described())

    def test_a_variable_without_a_value_is_told(self, tmp_path, monkeypatch):
        monkeypatch.delenv("SOME_DATA", raising=False)
        path = tmp_path / "train.yaml"
        for written in ("$SOME_DATA", "${SOME_DATA}"):
            path.write_text(
                "train: [{kind: phantoms, count: 1}]\n"
                f"validation: [{{kind: scans, path: '{written}/bids'}}]\n"
            )
            with pytest.raises(ConfigurationError, match=r"train\.yaml: .*not set.*SOME_DATA="):
                load_train_config(path)

    @pytest.mark.parametrize(
        ("update", "name"),
        [
            ({}, "dwt-vgg19-random"),
            ({"unfreeze": "all"}, "dwt-vgg19-scratch"),
            ({"reads_backbone": False}, "dwt-no-cnn"),
        ],
    )
    def test_the_papers_names_are_for_pretrained_backbones(self, small, tmp_path, update, name):
        trained = train(small(epochs=1, **update), tmp_path)
        assert learned.read_card(trained.model).name == name

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("train: 3", "train: "),
            ("lerning_rate: 1", "lerning_rate"),
            ("train: []\nvalidation: []", "at least 1"),
            ("train: [{kind: films}]\nvalidation: []", "films"),
            ("unfreeze: some", "unfreeze"),
            (f"unfreeze: '{'9' * 5000}'", "unfreeze"),
            ("train: [{kind: scans, path: ~nosuchuser/x}]", "home directory"),
            ('train: [{kind: scans, path: "a\\0b"}]', "null byte"),
            ("train: [{kind: phantoms, count: 1, shape: [9999, 9, 99]}]", "less than or equal"),
            (f"steps: {10**400}", "steps"),
            ("loss: {lack: .inf}", "finite"),
            ("loss: {qabf: 0., scd: 0., ssim: 0., vif: 0., intensity: 0.}", "no term has a weight"),
            ("transform: {levels: 2}", "one level"),
            ("transform: {mode: smooth}", "'smooth' is not there in torch"),
            (
                "reads_backbone: false\nunfreeze: 1\n"
                "train: [{kind: phantoms, count: 1}]\nvalidation: [{kind: phantoms, count: 1}]",
                "no backbone to unfreeze",
            ),
        ],
    )
    def test_what_is_wrong_is_named(self, tmp_path, text, said):
        path = tmp_path / "train.yaml"
        path.write_text(text)
        result = CliRunner().invoke(main, ["train", str(path), str(tmp_path / "out")])
        assert result.exit_code == 2
        assert said in result.output
        assert "train.yaml" in result.output
        assert not (tmp_path / "out").exists()
