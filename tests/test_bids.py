"""Discovery: what a BIDS tree gives, and which of several images."""

import pickle
from pathlib import Path

import pytest
from datasets import labels, pair, put, tree

from fusionflow.errors import ConfigurationError
from fusionflow.io.bids import discover
from fusionflow.pet_info import PetInfo

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "bids"


def test_a_pair_is_a_scan(tmp_path):
    found = discover(tree(tmp_path, *pair("01")))
    (scan,) = found.scans
    assert (scan.label, scan.subject, scan.session) == ("sub-01", "01", None)
    assert scan.t1w == tmp_path / "sub-01/anat/sub-01_T1w.nii.gz"
    assert scan.pet == tmp_path / "sub-01/pet/sub-01_pet.nii.gz"
    assert found.excluded == ()
    assert found.notes == ()


def test_sessions_and_files_directly_under_the_subject(tmp_path):
    found = discover(tree(tmp_path, *pair("01"), *pair("01", "a"), *pair("01", "b")))
    assert labels(found) == ["sub-01", "sub-01_ses-a", "sub-01_ses-b"]


def test_order_is_natural_and_does_not_depend_on_the_file_system(tmp_path):
    names = ["10", "2", "1", "01", "b", "a"]
    found = discover(tree(tmp_path, *(n for s in names for n in pair(s))))
    assert labels(found) == ["sub-01", "sub-1", "sub-2", "sub-10", "sub-a", "sub-b"]


@pytest.mark.parametrize("extension", [".nii", ".nii.gz"])
def test_both_extensions(tmp_path, extension):
    names = [name.replace(".nii.gz", extension) for name in pair("01")]
    assert labels(discover(tree(tmp_path, *names))) == ["sub-01"]


def test_only_subject_folders_are_looked_into(tmp_path):
    others = [
        f"{folder}/{name}"
        for folder in ("derivatives/x", "sourcedata", "code", ".git", "sub-01/.cache")
        for name in pair("09")
    ]
    assert labels(discover(tree(tmp_path, *pair("01"), *others, "sub-07.html"))) == ["sub-01"]


def test_a_scan_crosses_process_borders(tmp_path):
    tree(tmp_path, *pair("01"))
    put(tmp_path / "pet.json", {"FrameDuration": [60, 120]})
    (scan,) = discover(tmp_path).scans
    assert pickle.loads(pickle.dumps(scan)) == scan
    assert hash(scan) == hash(pickle.loads(pickle.dumps(scan)))


class TestSeveralImages:
    @pytest.mark.parametrize(
        ("names", "taken"),
        [
            (["sub-01_acq-a_T1w.nii", "sub-01_T1w.nii"], "sub-01_T1w.nii"),
            (["sub-01_run-10_T1w.nii", "sub-01_run-2_T1w.nii"], "sub-01_run-2_T1w.nii"),
            (
                ["sub-01_acq-a_run-1_T1w.nii", "sub-01_run-2_T1w.nii"],
                "sub-01_run-2_T1w.nii",
            ),
            (["sub-01_T1w.nii.gz", "sub-01_T1w.nii"], "sub-01_T1w.nii"),
        ],
    )
    def test_fewest_entities_then_natural_order_and_it_says_so(self, tmp_path, names, taken):
        files = [f"sub-01/anat/{name}" for name in names]
        (scan,) = discover(tree(tmp_path, pair("01")[1], *files)).scans
        assert scan.t1w.name == taken
        (left,) = set(names) - {taken}
        assert f"{taken} is taken; {left} left" in scan.notes

    def test_entities_are_matched_whole(self, tmp_path):
        name = "sub-01_ses-a_trc-FDG_rec-acdyn_pet.nii.gz"
        found = discover(tree(tmp_path, pair("01", "a")[0], f"sub-01/ses-a/pet/{name}"))
        assert found.scans[0].pet.name == name

    def test_other_suffixes_are_not_taken_for_it(self, tmp_path):
        others = ["anat/sub-01_T1w.json", "anat/sub-01_xT1w.nii", "anat/sub-01_T2w.nii"]
        names = [f"sub-01/{name}" for name in [*others, "pet/sub-01_recording-a_blood.tsv"]]
        (scan,) = discover(tree(tmp_path, *pair("01"), *names)).scans
        assert scan.t1w.name == "sub-01_T1w.nii.gz"


class TestLabels:
    @pytest.fixture
    def root(self, tmp_path):
        return tree(tmp_path, *pair("01", "a"), *pair("01", "b"), *pair("02", "a"), *pair("03"))

    @pytest.mark.parametrize("label", ["02", "sub-02"])
    def test_with_and_without_prefix(self, root, label):
        assert labels(discover(root, participant_labels=[label])) == ["sub-02_ses-a"]

    @pytest.mark.parametrize("label", ["b", "ses-b"])
    def test_sessions(self, root, label):
        assert labels(discover(root, session_labels=[label])) == ["sub-01_ses-b"]

    def test_one_string_is_one_label(self, root):
        assert labels(discover(root, participant_labels="03")) == ["sub-03"]

    def test_a_participant_who_is_not_there(self, root):
        with pytest.raises(ConfigurationError, match=r"sub-04 not in .*sub-01, sub-02, sub-03"):
            discover(root, participant_labels=["01", "04"])

    def test_a_session_that_nobody_has(self, root):
        with pytest.raises(ConfigurationError, match=r"ses-c not in .*ses-a, ses-b"):
            discover(root, session_labels=["a", "c"])

    def test_the_list_of_those_that_exist_stays_short(self, tmp_path):
        tree(tmp_path, *(pair(f"{n:03}")[0] for n in range(100)))
        with pytest.raises(ConfigurationError, match="sub-004 and 95 more"):
            discover(tmp_path, participant_labels=["x"])


class TestDataset:
    def test_not_there(self, tmp_path):
        with pytest.raises(ConfigurationError, match=r"nowhere cannot be listed: No such file"):
            discover(tmp_path / "nowhere")

    def test_not_a_folder(self, tmp_path):
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError, match=r"file cannot be listed: Not a directory"):
            discover(tmp_path / "file")

    def test_without_a_description_or_a_subject_it_says_so(self, tmp_path):
        found = discover(tmp_path)
        assert found.scans == found.excluded == ()
        assert ["dataset_description" in note for note in found.notes] == [True, False]
        assert "sub-*" in found.notes[1]


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real cohort at {SHARED}")
def test_the_real_cohort():
    found = discover(SHARED)
    assert len(found.scans) == 11
    assert found.excluded == ()
    for scan in found.scans:
        assert scan.pet_info.tracer in scan.pet.name
        (note,) = scan.notes
        assert "InjectedRadioactivity" in note
        assert "TracerName" not in note


class TestOtherSessions:
    """A PET whose own session has no T1w takes that of the nearest."""

    @staticmethod
    def dataset(root, pets, t1ws):
        names = [pair("01", session)[1] for session in pets]
        return tree(root, *names, *(pair("01", session)[0] for session in t1ws))

    def test_by_the_order_of_labels_the_earlier_of_two_as_near(self, tmp_path):
        found = discover(self.dataset(tmp_path, ["02"], ["01", "03"]))
        (scan,) = found.scans
        assert scan.label == "sub-01_ses-02"
        assert "ses-01" in scan.t1w.name
        assert "nearest by the order of their labels" in scan.notes[0]

    def test_by_time_where_all_have_one(self, tmp_path):
        self.dataset(tmp_path, ["02"], ["01", "03"])
        times = {"01": "2020-01-01T09:00:00", "02": "2021-06-01", "03": "2021-06-05T10:00:00Z"}
        rows = "".join(f"ses-{session}\t{time}\n" for session, time in times.items())
        (tmp_path / "sub-01/sub-01_sessions.tsv").write_text("session_id\tacq_time\n" + rows)
        (scan,) = discover(tmp_path).scans
        assert "ses-03" in scan.t1w.name
        assert "nearest by acq_time" in scan.notes[0]

    def test_its_own_comes_first(self, tmp_path):
        found = discover(self.dataset(tmp_path, ["01", "02"], ["01", "02"]))
        assert [scan.t1w.name[7:13] for scan in found.scans] == ["ses-01", "ses-02"]

    def test_that_of_the_subject_itself(self, tmp_path):
        found = discover(self.dataset(tmp_path, ["a", "b"], [None]))
        assert labels(found) == ["sub-01_ses-a", "sub-01_ses-b"]
        assert {scan.t1w.name for scan in found.scans} == {"sub-01_T1w.nii.gz"}
        (left,) = found.excluded
        assert left.reason.endswith("its T1w is used for sub-01_ses-a, sub-01_ses-b")

    def test_also_when_only_the_session_of_the_pet_was_asked_for(self, tmp_path):
        self.dataset(tmp_path, ["02"], ["01"])
        (scan,) = discover(tmp_path, session_labels=["02"]).scans
        assert "ses-01" in scan.t1w.name

    def test_never_that_of_another_subject(self, tmp_path):
        found = discover(tree(tmp_path, pair("01")[1], pair("02")[0]))
        assert found.scans == ()
        assert len(found.excluded) == 2


class TestDerivatives:
    def test_a_pet_in_t1w_space_and_a_mask_are_found(self, tmp_path):
        """As PETPrep leaves them: the anatomy of all sessions lies above them."""
        raw = tree(tmp_path / "raw", *pair("01", "a", "_trc-FDG"))
        told = {"Units": "Bq/mL", "FrameDuration": [60, 60], "TracerName": "FDG"}
        put(raw / "pet.json", told | {"TracerRadionuclide": "F18"})
        derived = tree(
            raw / "derivatives" / "petprep",
            "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
            "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
            "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-preproc_T1w.nii.gz",
            "sub-01/anat/sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz",
            "sub-01/anat/sub-01_label-cerebellum_mask.nii.gz",
            "sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_space-T1w_desc-preproc_pet.nii.gz",
            "sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_desc-preproc_pet.nii.gz",
            "sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_space-MNI152NLin2009cAsym_pet.nii.gz",
        )
        name = "sub-01_ses-a_trc-FDG_space-T1w_desc-preproc_pet"
        put(derived / f"sub-01/ses-a/pet/{name}.json", {"FrameDuration": [120]})
        (scan,) = discover(raw, derivatives=[derived], reference_region="cerebellum").scans
        assert scan.pet.name == f"{name}.nii.gz"
        assert scan.pet_in_t1w_space
        assert scan.t1w.name == "sub-01_desc-preproc_T1w.nii.gz"
        assert scan.mask.name == "sub-01_desc-brain_mask.nii.gz"
        assert scan.reference.name == "sub-01_label-cerebellum_mask.nii.gz"
        assert scan.pet_info == PetInfo(frame_durations=(120,), tracer="FDG", radionuclide="F18",
                                        half_life=6586.2)  # fmt: skip
        (alone,) = discover(raw).scans
        assert not alone.pet_in_t1w_space
        assert alone.mask is None

    def test_a_derivative_dataset_can_be_the_input_itself(self, tmp_path):
        tree(
            tmp_path,
            "sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
            "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
            "sub-01/anat/sub-01_space-MNI152Lin_T1w.nii.gz",
            "sub-01/pet/sub-01_pet.nii.gz",
            "sub-01/pet/sub-01_space-T1w_desc-preproc_pet.nii.gz",
        )
        (scan,) = discover(tmp_path).scans
        assert scan.pet_in_t1w_space
        assert "MNI" not in scan.t1w.name
        assert scan.mask is not None

    def test_a_mask_in_the_space_of_the_pet_is_none_of_the_t1w(self, tmp_path):
        raw = tree(tmp_path / "raw", *pair("01"))
        derived = tree(
            tmp_path / "petprep",
            "sub-01/anat/sub-01_desc-brain_mask.nii.gz",
            "sub-01/pet/sub-01_desc-brain_mask.nii.gz",
            "sub-01/pet/sub-01_label-pons_mask.nii.gz",
        )
        (scan,) = discover(raw, derivatives=[derived], reference_region="pons").scans
        assert scan.mask.parent.name == "anat"
        assert scan.reference is None

    def test_of_other_subjects_change_nothing(self, tmp_path):
        raw = tree(tmp_path / "raw", *pair("01"))
        other = tree(tmp_path / "other", "sub-02/anat/sub-02_desc-brain_mask.nii.gz")
        assert discover(raw, derivatives=[other]) == discover(raw)

    def test_that_are_not_there_are_refused(self, tmp_path):
        with pytest.raises(ConfigurationError, match="derivative dataset"):
            discover(tree(tmp_path / "raw", *pair("01")), derivatives=[tmp_path / "no"])

    def test_images_in_the_space_of_a_template_are_none_of_the_subject(self, tmp_path):
        tree(tmp_path, pair("01")[1], "sub-01/anat/sub-01_space-MNI152Lin_T1w.nii.gz")
        (left,) = discover(tmp_path).excluded
        assert "in the space of the subject" in left.reason

    def test_an_entity_that_bids_does_not_know_is_said(self, tmp_path):
        tree(tmp_path, *pair("01", pet="_tracer-FDG"))
        (scan,) = discover(tmp_path).scans
        assert any("knows no entity tracer" in note for note in scan.notes)

    def test_a_file_where_a_folder_should_be(self, tmp_path):
        tree(tmp_path, "sub-01/anat", pair("01")[1], *pair("02"))
        found = discover(tmp_path)
        assert labels(found) == ["sub-02"]
