"""Discovery: what a BIDS tree gives, and what it says about the rest."""

import json
import os
import pickle
from pathlib import Path

import pytest

from fusionflow.errors import ConfigurationError
from fusionflow.io.bids import REQUIRED_PET_FIELDS, Discovery, discover
from fusionflow.io.bids_names import read_filters
from fusionflow.pet_info import PetInfo

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "bids"


def tree(root: Path, *names: str) -> Path:
    """Make a dataset of empty images; discovery never opens one."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text('{"Name": "t", "BIDSVersion": "1.11.0"}')
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def put(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def pair(subject: str, session: str | None = None, pet: str = "") -> tuple[str, str]:
    place = f"sub-{subject}" + (f"/ses-{session}" if session else "")
    stem = place.replace("/", "_")
    return f"{place}/anat/{stem}_T1w.nii.gz", f"{place}/pet/{stem}{pet}_pet.nii.gz"


def labels(found: Discovery) -> list[str]:
    return [scan.label for scan in found.scans]


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


class TestSidecar:
    def test_the_nearest_level_wins_field_by_field(self, tmp_path):
        tree(tmp_path, *pair("01", "a", "_trc-FDG"))
        names = ("Units", "TracerName", "PatientWeight", "RadionuclideHalfLife", "FrameDuration")
        levels = {
            "pet.json": dict.fromkeys(names, 1) | {"Units": "1"},
            "trc-FDG_pet.json": dict.fromkeys(names[1:], 2) | {"TracerName": "2"},
            "sub-01/sub-01_pet.json": dict.fromkeys(names[2:], 3),
            "sub-01/ses-a/sub-01_ses-a_pet.json": dict.fromkeys(names[3:], 4),
            "sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_pet.json": {"FrameDuration": [5]},
        }
        for name, fields in levels.items():
            put(tmp_path / name, fields)
        (scan,) = discover(tmp_path).scans
        assert scan.pet_info == PetInfo(
            units="1", tracer="2", weight_kg=3, half_life=4, frame_durations=(5,)
        )

    @pytest.mark.parametrize(
        "name",
        [
            "trc-PIB_pet.json",
            "rec-acdyn_pet.json",
            "sub-01/pet/sub-01_trc-FDG_run-1_pet.json",
            "T1w.json",
            "sub-01/pet/sub-01_trc-FDG_blood.json",
        ],
    )
    def test_files_with_other_entities_or_suffix_do_not_apply(self, tmp_path, name):
        tree(tmp_path, *pair("01", pet="_trc-FDG"))
        put(tmp_path / name, {"Units": "Bq/mL"})
        assert discover(tmp_path).scans[0].pet_info == PetInfo()

    @pytest.mark.parametrize("text", ['{"A": ', "[1]", "", "\x00", "[" * 100_000])
    def test_what_is_not_a_json_object_is_noted_and_left_out(self, tmp_path, text):
        tree(tmp_path, *pair("01"))
        put(tmp_path / "sub-01/pet/sub-01_pet.json", text)
        put(tmp_path / "pet.json", {"Units": "Bq/mL"})
        (scan,) = discover(tmp_path).scans
        assert scan.pet_info == PetInfo(units="Bq/mL")
        assert any("sub-01_pet.json" in note and "left out" in note for note in scan.notes)

    def test_a_byte_order_mark_is_harmless(self, tmp_path):
        tree(tmp_path, *pair("01"))
        (tmp_path / "pet.json").write_bytes(b'\xef\xbb\xbf{"Units": "Bq/mL"}')
        assert discover(tmp_path).scans[0].pet_info == PetInfo(units="Bq/mL")

    def test_missing_fields_are_one_note_and_never_exclude(self, tmp_path):
        tree(tmp_path, *pair("01"))
        fields = dict.fromkeys(REQUIRED_PET_FIELDS, 1)
        del fields["Units"], fields["TimeZero"]
        put(tmp_path / "pet.json", fields)
        (scan,) = discover(tmp_path).scans
        (note,) = scan.notes
        assert note.endswith("Units, TimeZero")

    def test_nothing_to_note_where_all_is_there(self, tmp_path):
        tree(tmp_path, *pair("01"))
        put(tmp_path / "pet.json", dict.fromkeys(REQUIRED_PET_FIELDS, 1))
        assert discover(tmp_path).scans[0].notes == ()

    def test_no_sidecar_at_all(self, tmp_path):
        (scan,) = discover(tree(tmp_path, *pair("01"))).scans
        assert scan.notes == ("sub-01_pet.nii.gz has no JSON sidecar",)

    def test_the_weight_is_that_of_the_participants_table(self, tmp_path):
        tree(tmp_path, *pair("01"), *pair("02"), *pair("03"))
        table = "participant_id\tage\tweight\nsub-01\t30\t71.5\nsub-02\t31\tn/a\n"
        (tmp_path / "participants.tsv").write_text(table)
        put(tmp_path / "sub-03/pet/sub-03_pet.json", {"PatientWeight": 80})
        weights = [scan.pet_info.weight_kg for scan in discover(tmp_path).scans]
        assert weights == [71.5, None, 80]

    def test_the_files_they_are_from_belong_to_the_scan(self, tmp_path):
        raw = tree(tmp_path / "raw", *pair("01", "a", "_trc-FDG"))
        applied = [
            raw / name
            for name in (
                "pet.json", "sub-01/sub-01_pet.json",
                "sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_pet.json",
            )
        ]  # fmt: skip
        for path in (*applied, raw / "sub-01/ses-a/pet/sub-01_ses-a_trc-PIB_pet.json"):
            put(path, {})
        (scan,) = discover(raw).scans
        assert scan.sidecars == tuple(applied)
        derived = tree(
            tmp_path / "petprep", "sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_space-T1w_pet.nii.gz"
        )
        own = derived / "sub-01/ses-a/pet/sub-01_ses-a_trc-FDG_space-T1w_pet.json"
        put(own, {})
        (scan,) = discover(raw, derivatives=[derived]).scans
        assert scan.sidecars == (*applied, own)


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
