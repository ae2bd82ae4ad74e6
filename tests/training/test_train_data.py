"""What is trained on: where slices come from, how they are drawn and varied."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from fusionflow import learned, training
from fusionflow.errors import ConfigurationError, InputError
from fusionflow.train_config import Augmentation, TrainConfig
from fusionflow.train_data import SlicePair, draw, read_slices
from fusionflow.training import train


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
