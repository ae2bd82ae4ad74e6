"""What lies in the folders of a BIDS tree and is left out, and what is said of it."""

import os
import pickle

import pytest
from datasets import labels, pair, put, tree

from fusionflow.io.bids import discover


class TestLeftOut:
    @pytest.mark.parametrize(
        ("keep", "reason"),
        [
            (0, "no pet image"),
            (1, "no T1w image"),
            (None, "no T1w and no pet image"),
        ],
    )
    def test_without_a_pair_it_is_skipped_and_not_an_error(self, tmp_path, keep, reason):
        names = ["sub-01/func/x.tsv"] if keep is None else [pair("01")[keep]]
        (out,) = discover(tree(tmp_path, *names)).excluded
        assert out.label == "sub-01"
        assert reason in out.reason
        assert not out.broken

    @pytest.mark.parametrize(
        "name",
        [
            "sub-01/pet/sub-02_pet.nii.gz",
            "sub-01/pet/sub-01_ses-a_pet.nii.gz",
            "sub-01/pet/trc-FDG_pet.nii.gz",
        ],
    )
    def test_a_name_that_disagrees_with_its_folder_is_broken(self, tmp_path, name):
        found = discover(tree(tmp_path, *pair("01"), name))
        (out,) = found.excluded
        assert out.broken
        assert name in out.reason
        assert found.scans == ()

    def test_a_session_folder_needs_the_session_in_the_name(self, tmp_path):
        found = discover(tree(tmp_path, pair("01", "a")[0], "sub-01/ses-a/pet/sub-01_pet.nii.gz"))
        assert found.excluded[0].broken

    @pytest.mark.parametrize(
        "name", ["sub-01_trc-F D_pet", "sub-01_copy_pet", "sub-01_a-1_a-2_pet"]
    )
    def test_an_image_whose_name_is_not_bids_is_broken_if_there_is_no_other(self, tmp_path, name):
        (out,) = discover(tree(tmp_path, pair("01")[0], f"sub-01/pet/{name}.nii")).excluded
        assert out.broken
        assert name in out.reason

    def test_and_noted_if_there_is(self, tmp_path):
        (scan,) = discover(tree(tmp_path, *pair("01"), "sub-01/pet/sub-01_copy_pet.nii")).scans
        assert any("sub-01_copy_pet.nii left" in note for note in scan.notes)

    @pytest.mark.parametrize("folder", ["sub-0_1", "sub-01-02", "sub-", "sub-ä", "sub-01 copy"])
    def test_a_subject_label_must_be_alphanumeric(self, tmp_path, folder):
        found = discover(tree(tmp_path, f"{folder}/anat/x_T1w.nii", *pair("01")))
        (out,) = found.excluded
        assert out.broken
        assert folder in out.reason
        assert labels(found) == ["sub-01"]

    def test_a_session_label_must_be_alphanumeric(self, tmp_path):
        found = discover(tree(tmp_path, "sub-01/ses-b_d/anat/x_T1w.nii", *pair("01", "a")))
        assert [(out.label, out.broken) for out in found.excluded] == [("sub-01_ses-b_d", True)]
        assert labels(found) == ["sub-01_ses-a"]

    def test_a_plus_is_part_of_a_label_since_bids_1_11(self, tmp_path):
        assert labels(discover(tree(tmp_path, *pair("a+b")))) == ["sub-a+b"]

    def test_content_that_was_not_fetched_is_broken(self, tmp_path):
        t1w, pet = pair("01")
        tree(tmp_path, t1w, "sub-01/pet/x.tsv")
        (tmp_path / pet).symlink_to(tmp_path / ".git/annex/objects/x")
        (out,) = discover(tmp_path).excluded
        assert out.broken
        assert "datalad get" in out.reason

    def test_links_in_circles_do_no_harm(self, tmp_path):
        tree(tmp_path, *pair("01"))
        (tmp_path / "sub-01/ses-x").symlink_to(tmp_path / "sub-01")
        (tmp_path / "sub-02").symlink_to(tmp_path / "sub-02")
        (tmp_path / "sub-03").symlink_to(tmp_path)
        found = discover(tmp_path)
        assert labels(found) == ["sub-01"]
        assert {out.label: out.broken for out in found.excluded} == {
            "sub-01_ses-x": True,
            "sub-03": False,
        }


class TestOfOthers:
    """What a dataset from elsewhere can hold."""

    def test_a_sidecar_that_is_a_pipe_is_not_waited_for(self, tmp_path):
        tree(tmp_path, *pair("01"))
        os.mkfifo(tmp_path / "pet.json")
        (scan,) = discover(tmp_path).scans
        assert scan.notes[0] == (
            f"{tmp_path / 'pet.json'} cannot be read and is left out: Not a regular file"
        )

    def test_a_sidecar_that_could_not_be_sent_to_a_worker_is_left_out(self, tmp_path):
        tree(tmp_path, *pair("01"))
        put(tmp_path / "pet.json", '{"A": ' + "[" * 900 + "]" * 900 + "}")
        (scan,) = discover(tmp_path).scans
        assert "is nested more than 64 deep and is left out" in scan.notes[0]
        assert pickle.loads(pickle.dumps(scan)) == scan

    def test_a_sidecar_too_large_to_be_one_is_left_out(self, tmp_path):
        tree(tmp_path, *pair("01"))
        with (tmp_path / "pet.json").open("wb") as stream:
            stream.truncate(1 << 40)
        (scan,) = discover(tmp_path).scans
        assert "Larger than 16777216 bytes" in scan.notes[0]

    def test_names_are_told_without_what_a_terminal_obeys(self, tmp_path):
        odd = "\x1b[2J\n" + os.fsdecode(b"\xff")
        names = [f"sub-01/pet/sub-01_{odd}_pet.nii", f"sub-02{odd}/anat/x", f"sub-03/ses-{odd}/x"]
        found = discover(tree(tmp_path, *pair("01"), *names))
        shown = "\\x1b[2J\\n\\udcff"
        assert f"sub-01_{shown}_pet.nii left: not a BIDS name" in found.scans[0].notes
        assert [out.label for out in found.excluded] == [f"sub-02{shown}", f"sub-03_ses-{shown}"]
        for out in found.excluded:
            assert shown in out.reason
            assert out.reason.isprintable()
