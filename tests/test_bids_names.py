"""Which images of a BIDS tree a person wants."""

import pytest
from datasets import put, tree

from fusionflow.errors import ConfigurationError
from fusionflow.io.bids import discover
from fusionflow.io.bids_names import read_filters


class TestFilters:
    def filtered(self, root, content):
        put(root / "filter.json", content)
        return discover(root, filters=read_filters(root / "filter.json"))

    @pytest.fixture
    def dataset(self, tmp_path):
        pets = [
            f"sub-01/pet/sub-01_{x}_pet.nii" for x in ("trc-FDG_run-01", "trc-FDG_run-2", "trc-PIB")
        ]
        t1ws = [f"sub-01/anat/sub-01_{x}T1w.nii" for x in ("", "acq-mprage_", "rec-norm_")]
        return tree(tmp_path, *pets, *t1ws)

    @pytest.mark.parametrize(
        ("content", "pet", "t1w"),
        [
            ({}, "trc-PIB", "sub-01_T1w"),
            ({"pet": {"tracer": "FDG"}}, "trc-FDG_run-01", "sub-01_T1w"),
            ({"pet": {"trc": "trc-FDG", "run": 2}}, "trc-FDG_run-2", "sub-01_T1w"),
            ({"pet": {"run": 1}}, "trc-FDG_run-01", "sub-01_T1w"),
            ({"pet": {"run": ["02", 3]}, "t1w": {"acquisition": "mprage"}}, "run-2", "acq-mprage"),
            ({"t1w": {"reconstruction": "norm", "suffix": "T1w"}}, "trc-PIB", "rec-norm"),
            ({"pet": {"run": None}}, "trc-PIB", "sub-01_T1w"),
        ],
    )
    def test_what_is_wanted_is_taken(self, dataset, content, pet, t1w):
        (scan,) = self.filtered(dataset, content).scans
        assert pet in scan.pet.name
        assert t1w in scan.t1w.name

    def test_what_is_not_wanted_is_said(self, dataset):
        found = self.filtered(dataset, {"pet": {"tracer": "AV45"}})
        (left,) = found.excluded
        assert "no pet image" in left.reason
        assert "trc-AV45" in left.reason
        assert "sub-01_trc-PIB_pet.nii" in left.reason
        assert not left.broken

    @pytest.mark.parametrize(
        "content",
        ["", "[]", {"bold": {}}, {"pet": []}, {"pet": {"tracr": "FDG"}}, {"pet": {"run": 1.5}},
         {"pet": {"run": True}}, {"pet": {"run": []}}, {"pet": {"run": {}}}],
    )  # fmt: skip
    def test_a_file_that_makes_no_sense_is_refused_by_name(self, dataset, content):
        with pytest.raises(ConfigurationError, match=r"filter\.json"):
            self.filtered(dataset, content)
