"""Breaks change nothing: a training goes on to the same bytes, or says why it cannot."""

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
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fusionflow.errors import ConfigurationError, LockedError, WeightsError
from fusionflow.training import CHECKPOINT, LOCK, MODEL, train


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

    @pytest.mark.slow
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
