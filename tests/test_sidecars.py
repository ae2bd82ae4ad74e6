"""Sidecars are inherited from the dataset down to the image."""

import pytest
from datasets import pair, put, tree

from fusionflow.io.bids import REQUIRED_PET_FIELDS, discover
from fusionflow.pet_info import PetInfo


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
