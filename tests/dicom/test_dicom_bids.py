"""DICOM in again and again: what is new, labels and keys, and what goes wrong."""

import datetime
import re
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from dicoms import (
    ERIKA,
    HEINZ,
    NOON,
    SHAPE,
    Study,
    by_world,
    change,
    command,
    convert,
    image,
    pair,
    sidecar,
    voxels,
)

from fusionflow.errors import ConfigurationError, MissingExtraError, StoreError
from fusionflow.io import dicom_convert
from fusionflow.io.bids import discover
from fusionflow.runlock import RunLock


class TestAgain:
    def test_only_what_is_new_is_converted_and_labels_stay(self, place):
        pair(place / "dicom/a", Study(ERIKA))
        (first,) = convert(place).outcomes
        before = {p: p.stat().st_mtime_ns for p in (place / "bids/sub").parent.rglob("*.nii.gz")}
        pair(place / "dicom/b", Study(HEINZ))
        pair(place / "dicom/c", Study(ERIKA, NOON + datetime.timedelta(90)))
        outcomes = {outcome.label: outcome.state for outcome in convert(place).outcomes}
        assert outcomes[first.label] == "there"
        assert sorted(outcomes.values()) == ["made", "made", "there"]
        assert len({label.split("_")[0] for label in outcomes}) == 2
        assert all(path.stat().st_mtime_ns == time for path, time in before.items())
        assert len(discover(place / "bids").scans) == 3
        assert len((place / "bids/participants.tsv").read_text().splitlines()) == 3

    def test_columns_that_a_site_added_are_kept(self, place):
        pair(place / "dicom/a", Study(ERIKA))
        convert(place)
        path = place / "bids/participants.tsv"
        head, line = path.read_text().splitlines()
        path.write_text(f"{head}\tgroup\n{line}\tpatient\n")
        pair(place / "dicom/b", Study(HEINZ))
        convert(place)
        lines = path.read_text().splitlines()
        assert {line, lines[0]} == {line, f"{head}\tgroup"}
        assert sorted(text.split("\t")[2] for text in lines) == ["group", "n/a", "patient"]

    def test_a_key_is_made_that_nobody_else_can_read(self, place):
        pair(place / "dicom", Study(ERIKA))
        assert convert(place, key=place / "new/key").key.made
        assert stat.S_IMODE((place / "new/key").stat().st_mode) == 0o600
        assert not convert(place, key=place / "new/key").key.made

    def test_a_key_that_others_can_read_is_told(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        (place / "key").chmod(0o644)
        assert f"chmod 600 {place / 'key'}" in command(place).output

    def test_with_another_key_it_stops(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        with pytest.raises(ConfigurationError, match="made with another key"):
            convert(place, key=place / "another")

    def test_a_key_in_the_dataset_is_refused(self, place):
        pair(place / "dicom", Study(ERIKA))
        with pytest.raises(ConfigurationError, match="is in the dataset"):
            convert(place, key=place / "bids/key")
        assert not (place / "bids").exists()

    @pytest.mark.parametrize("text", ["", "short"])
    def test_a_file_that_is_no_key(self, place, text):
        pair(place / "dicom", Study(ERIKA))
        (place / "key").write_text(text)
        with pytest.raises(ConfigurationError, match="is no key"):
            convert(place)

    @pytest.mark.parametrize("name", ["notes.txt", "dataset_description.json", "sub-01/x"])
    def test_a_dataset_of_others_is_left_alone(self, place, name):
        pair(place / "dicom", Study(ERIKA))
        (place / "bids" / name).parent.mkdir(parents=True)
        (place / "bids" / name).write_text('{"GeneratedBy": [{"Name": "heudiconv"}]}')
        with pytest.raises(ConfigurationError, match="did not make"):
            convert(place)
        assert [p.name for p in (place / "bids").rglob("*") if p.is_file()] == [Path(name).name]

    def test_a_better_pet_that_comes_later_does_not_replace_what_is_there(self, place):
        study = Study(ERIKA)
        study.write(place / "dicom/a", "MR")
        study.write(place / "dicom/b", "PT", CorrectedImage=["DECY"])
        convert(place)
        before = sidecar(place, "pet")
        study.write(place / "dicom/c", "PT")
        (outcome,) = convert(place).outcomes
        assert outcome.state == "there"
        assert outcome.notes == ("its study has another PET by now; what is there is kept",)
        assert sidecar(place, "pet") == before

    def test_two_runs_at_a_time_are_refused(self, place):
        pair(place / "dicom", Study(ERIKA))
        (place / "bids").mkdir()
        with RunLock(place / "bids/run.lock", "other"):
            assert command(place).exit_code == 5
        assert command(place).exit_code == 0

    @pytest.mark.parametrize("where", ["_run_dcm2niix", "_scrub_image"])
    def test_what_is_interrupted_leaves_nothing(self, place, monkeypatch, where):
        pair(place / "dicom", Study(ERIKA))

        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(dicom_convert, where, interrupt)
        with pytest.raises(KeyboardInterrupt):
            convert(place)
        assert list((place / "tmp").iterdir()) == list((place / "bids").iterdir()) == []

    def test_what_a_run_that_died_left_is_cleaned_up(self, place):
        pair(place / "dicom", Study(ERIKA))
        (place / "bids/.unfinished-1234/anat").mkdir(parents=True)
        convert(place)
        assert not list((place / "bids").glob(".*"))
        assert len(discover(place / "bids").scans) == 1


class TestLabels:
    def table(self, place: Path, *lines: str) -> Path:
        path = place / "labels.tsv"
        path.write_text("\n".join(line.replace(" ", "\t") for line in lines) + "\n")
        return path

    def test_a_site_gives_its_own(self, place):
        study = Study(ERIKA)
        pair(place / "dicom/a", study)
        pair(place / "dicom/b", Study(HEINZ))
        table = self.table(
            place,
            "patient_id participant_id study session_id",
            f"{ERIKA.number} sub-E1 {study.uid} ses-first",
        )
        report = convert(place, labels=table)
        assert "sub-E1_ses-first" in {outcome.label for outcome in report.outcomes}
        assert report.unlabelled == 1

    def test_two_numbers_of_one_person_pair(self, place):
        Study(ERIKA).write(place / "dicom/a", "MR")
        Study(HEINZ).write(place / "dicom/b", "PT")
        table = self.table(
            place, "patient_id participant_id", f"{ERIKA.number} 01", f"{HEINZ.number} 01"
        )
        (outcome,) = convert(place, labels=table).outcomes
        assert outcome.label.startswith("sub-01_ses-")

    def test_a_scan_is_not_converted_again_under_another_label(self, place):
        pair(place / "dicom", Study(ERIKA))
        (first,) = convert(place).outcomes
        table = self.table(place, "patient_id participant_id", f"{ERIKA.number} 01")
        (outcome,) = convert(place, labels=table).outcomes
        assert outcome.state == "there"
        assert first.label in outcome.notes[0]
        assert not (place / "bids/sub-01").exists()


class TestTrouble:
    def spoil(self, place: Path, how) -> None:
        pair(place / "dicom/good", Study(HEINZ))
        study = Study(ERIKA)
        study.write(place / "dicom/bad/mr", "MR")
        how(study.write(place / "dicom/bad/pet", "PT"))

    @pytest.mark.parametrize(
        ("how", "reason"),
        [
            (
                lambda p: change(p[3], ImageOrientationPatient=[1, 0, 0, 0, 0, 1]),
                "its slices differ in orientation",
            ),
            (lambda p: change(p[3], Rows=6), "its slices differ in size"),
            (lambda p: (p[5].unlink(), p[0].with_name("x").touch()), "no volume"),
            (
                lambda p: change(p[9], ImagePositionPatient=[-20, -24, 99]),
                "slices of it are missing",
            ),
            (
                lambda p: [change(x, ImagePositionPatient=None) for x in p],
                "do not say where its slices lie",
            ),
            (
                lambda p: [x.write_bytes(x.read_bytes()[:-200]) for x in p],
                "dcm2niix",
            ),
        ],
    )
    def test_one_bad_series_is_told_and_the_others_go_on(self, place, how, reason):
        self.spoil(place, how)
        ran = command(place)
        if reason == "no volume":  # known before anything is converted
            assert ran.exit_code == 0
            assert "left   1 series: fewer than 16 slices: no volume" in ran.output
        else:
            assert ran.exit_code == 3
            assert re.search(r"failed sub-\w+_ses-\w+\n +PET [a-z2-7]{8}: .*" + reason, ran.output)
        assert len(discover(place / "bids").scans) == 1
        assert list((place / "tmp").iterdir()) == []
        assert not list((place / "bids").glob(".*"))

    def test_where_all_fail_it_is_4_and_no_dataset_is_begun(self, place):
        self.spoil(
            place,
            lambda p: change(p[3], ImageOrientationPatient=[1, 0, 0, 0, 0, 1]),
        )
        for path in sorted((place / "dicom/good").rglob("*.dcm")):
            path.unlink()
        assert command(place).exit_code == 4
        assert not (place / "bids").exists()

    def test_nothing_to_convert_is_4(self, place):
        Study(ERIKA).write(place / "dicom", "MR")
        ran = command(place)
        assert ran.exit_code == 4
        assert "holds no pair of PET and T1-weighted MR of one patient" in ran.output

    def test_what_failed_is_tried_again(self, place):
        self.spoil(
            place,
            lambda p: change(p[3], ImageOrientationPatient=[1, 0, 0, 0, 0, 1]),
        )
        assert command(place).exit_code == 3
        for path in (place / "dicom/bad/pet").iterdir():
            change(path, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        assert command(place).exit_code == 0
        assert len(discover(place / "bids").scans) == 2

    def test_a_file_that_is_there_twice_counts_once(self, place):
        study = Study(ERIKA)
        pair(place / "dicom", study)
        for path in list((place / "dicom/pet").iterdir()):
            (place / "dicom/copy").mkdir(exist_ok=True)
            (place / "dicom/copy" / path.name).write_bytes(path.read_bytes())
        (outcome,) = convert(place).outcomes
        assert f"PET: {SHAPE[0]} files are there twice" in outcome.notes
        np.testing.assert_array_equal(by_world(image(place, "pet")), voxels(2) * 2.5)

    def test_dcm2niix_that_does_not_end_is_stopped(self, place, monkeypatch):
        pair(place / "dicom", Study(ERIKA))
        monkeypatch.setattr(dicom_convert, "TIMEOUT", 0.0)
        (outcome,) = convert(place).outcomes
        assert "dcm2niix took more than 0 s" in outcome.notes[0]
        assert list((place / "tmp").iterdir()) == []

    def test_dcm2niix_that_dies_is_told(self, place, monkeypatch):
        pair(place / "dicom", Study(ERIKA))
        monkeypatch.setattr(dicom_convert, "dcm2niix_program", lambda: "/bin/false")
        (outcome,) = convert(place).outcomes
        assert "dcm2niix failed with code 1" in outcome.notes[0]

    def test_no_room_to_work_in_stops_it_without_a_name(self, place, monkeypatch):
        pair(place / "dicom" / ERIKA.name, Study(ERIKA))

        def full(self, target):
            raise OSError(28, "No space left on device", str(target))

        monkeypatch.setattr(Path, "symlink_to", full)
        with pytest.raises(StoreError, match="No room to work in for sub-") as raised:
            convert(place)
        assert "Mustermann" not in str(raised.value)

    @pytest.mark.parametrize("module", ["dcm2niix", "pydicom"])
    def test_without_the_extra_it_names_it(self, place, monkeypatch, module):
        pair(place / "dicom", Study(ERIKA))
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(
            MissingExtraError, match=rf"{module}.*pip install 'fusionflow\[dicom\]'"
        ):
            convert(place)
