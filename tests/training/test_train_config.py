"""What is asked of a training: its configuration, and the objective."""

import pytest
import torch
from click.testing import CliRunner

from fusionflow import learned
from fusionflow.cli import main
from fusionflow.errors import ConfigurationError
from fusionflow.objective import objective
from fusionflow.train_config import Loss, load_train_config
from fusionflow.train_data import Batch, draw, read_slices
from fusionflow.training import train


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
