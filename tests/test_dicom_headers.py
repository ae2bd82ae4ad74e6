"""DICOM in, without converting: what headers say, which series pair, and labels."""

import datetime
import os
import re

import pytest
from dicoms import ERIKA, NOON, SHAPE, Person, Study, save
from pydicom import dcmread
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import generate_uid

from fusionflow.errors import ConfigurationError, NoScansError
from fusionflow.io.dicom import Index, Series, index
from fusionflow.io.dicom_labels import Key, Labels, read_labels
from fusionflow.io.dicom_pairs import make_plan
from fusionflow.io.dicom_sidecar import Frame, pet_fields, scrubbed
from fusionflow.io.dicom_tags import Tags


class TestIndex:
    def test_files_are_told_by_what_they_hold(self, tmp_path):
        Study(ERIKA).write(tmp_path / "a/b/c", "MR", suffix="")
        (tmp_path / "a/notes.dcm").write_text("no DICOM")
        (tmp_path / "a/empty").touch()
        found = index(tmp_path)
        assert [(s.modality, s.images) for s in found.series] == [("MR", SHAPE[0])]
        assert found.others == 2
        assert found.damaged.total() == 0

    def test_a_dicomdir_is_no_image(self, tmp_path):
        Study(ERIKA).write(tmp_path, "MR")
        d = Dataset()
        d.SOPClassUID, d.SOPInstanceUID = "1.2.840.10008.1.3.10", generate_uid()
        save(d, tmp_path / "DICOMDIR")
        found = index(tmp_path)
        assert (found.others, found.damaged.total(), len(found.series)) == (1, 0, 1)

    def test_links_in_circles_end_and_count_once(self, tmp_path):
        Study(ERIKA).write(tmp_path / "a", "MR")
        (tmp_path / "a/again").symlink_to(tmp_path)
        (tmp_path / "b").symlink_to(tmp_path / "a")
        (tmp_path / "itself").symlink_to(tmp_path / "itself")
        found = index(tmp_path)
        assert [s.images for s in found.series] == [SHAPE[0]]
        assert found.damaged.total() == 1

    def test_a_pipe_is_not_waited_for(self, tmp_path):
        Study(ERIKA).write(tmp_path, "MR")
        os.mkfifo(tmp_path / "pipe")
        assert index(tmp_path).damaged == {"Not a regular file": 1}

    def test_a_header_that_is_compressed_is_not_unpacked(self, tmp_path):
        Study(ERIKA).write(tmp_path, "MR")
        data = (tmp_path / "IM1_0000.dcm").read_bytes()
        plain, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
        at = data.index(plain) - 2
        size = (int.from_bytes(data[140:144], "little") + 2).to_bytes(4, "little")
        data = data[:140] + size + data[144:]
        head = data[:at] + len(deflated).to_bytes(2, "little") + deflated + data[at + 22 :]
        (tmp_path / "IM1_0000.dcm").write_bytes(head)
        assert index(tmp_path).damaged == {"its header is compressed": 1}

    def test_a_value_of_gigabytes_is_not_read(self, tmp_path):
        Study(ERIKA).write(tmp_path, "MR", PatientComments="x" * 9000)
        (path, *_) = tmp_path.iterdir()
        d = dcmread(path)
        d[0x10, 0x10] = RawDataElement(Tag(0x10, 0x10), "PN", 40_000, b"long" * 10_000, 0, 0, 1)
        save(d, path)
        assert len(index(tmp_path).series) == 1  # by its number; the name counts as none

    def test_pydicom_says_nothing_of_what_it_reads(self, tmp_path, caplog):
        paths = Study(ERIKA).write(tmp_path, "MR")
        for path in paths:
            path.write_bytes(path.read_bytes().replace(b"71.5", b"Erik").replace(b"2300", b"Erik"))
        with caplog.at_level("DEBUG", logger="pydicom"):
            (found,) = index(tmp_path).series
        assert (found.weight, found.tr, found.te) == (None, None, 3)
        assert caplog.records == []

    @pytest.mark.parametrize(
        ("tags", "reason"),
        [
            ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "a localizer"),
            ({"ImageType": ["DERIVED", "PRIMARY"]}, "derived from other images"),
            ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "derived from other images"),
            ({"BurnedInAnnotation": "YES"}, "writing in its pixels, which may name somebody"),
            ({"Modality": "CT"}, "modality CT"),
            ({"Modality": "MUSTERMANN"}, "neither MR nor PET"),
            (
                {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
                "no MR or PET image: a capture of a screen, a report or the like",
            ),
        ],
    )
    def test_what_is_left_out_has_a_reason(self, tmp_path, tags, reason):
        study = Study(ERIKA)
        study.write(tmp_path / "a", "MR", **tags)
        study.write(tmp_path / "b", "PT")
        made = make_plan(index(tmp_path), Labels(Key(b"x" * 32)))
        assert made.left[0].reason == reason
        assert made.pairs == ()

    def test_patients_without_a_number_are_told_by_name_and_birth_date(self, tmp_path):
        day = datetime.timedelta(1)
        for name, person in (("MR", "Muster^Eva"), ("PT", "MUSTER^EVA^"), ("PT", "Muster^Ava")):
            study = Study(Person(person, ""), NOON + day * len(person))
            study.write(tmp_path / person, name)
        made = make_plan(index(tmp_path), Labels(Key(b"x" * 32)))
        assert len(made.pairs) == 1
        assert made.pairs[0].pet.patient == ("name", "muster eva", "19470313")

    def test_without_dicom_it_says_so(self, tmp_path):
        (tmp_path / "x.txt").touch()
        with pytest.raises(NoScansError, match="holds no DICOM image: 1 other files"):
            index(tmp_path)


def series(modality="MR", study="s1", day=1, **values) -> Series:
    fields = {
        "patient": ("id", "1", ""), "born": "", "study": study, "uid": values.pop("uid", modality),
        "accession": "", "modality": modality, "fault": "",
        "date": day and datetime.date(2024, 3, day), "description": "", "sequence": (),
        "corrected": (), "kind": (), "volumetric": False, "contrast": False, "tr": None,
        "te": None, "ti": None, "weight": None, "number": None, "images": 100,
    }  # fmt: skip
    return Series(**{**fields, **values, "study": study, "uid": f"{study}.{fields['uid']}"})


def plan(*found: Series):
    return make_plan(Index(found, 0, None), Labels(Key(b"x" * 32)))


T1 = {"description": "t1 mprage"}


class TestRules:
    @pytest.mark.parametrize(
        ("better", "worse"),
        [
            ({"description": "t1_mprage_sag"}, {"description": "t2_space"}),
            ({"description": "ax t1"}, {"description": "t1 flair"}),
            ({"description": "sag bravo"}, {"sequence": ("GR",), "tr": 8, "te": 3}),
            ({"sequence": ("GR",), "tr": 2300, "te": 3, "ti": 900}, {"tr": 2300, "te": 3}),
            ({"sequence": ("SE",), "tr": 500, "te": 10}, {"sequence": ("SE",), "tr": 4e3, "te": 9}),
            ({**T1}, {"sequence": ("GR",), "tr": 8, "te": 3, "volumetric": True}),
            ({**T1, "volumetric": True}, {**T1, "images": 300}),
            ({**T1}, {**T1, "contrast": True, "images": 300}),
            ({**T1, "images": 176}, {**T1, "images": 30, "number": 1}),
            ({**T1, "number": 3}, {**T1, "number": 4}),
            ({**T1, "number": 3}, {**T1, "number": None}),
        ],
    )
    def test_which_of_two_mr_is_the_t1w(self, better, worse):
        made = plan(series(uid="b", **worse), series(uid="a", **better), series("PT"))
        (chosen,) = made.pairs
        assert chosen.t1w.uid == "s1.a"
        assert [item.series.uid for item in made.left] == ["s1.b"]

    def test_a_choice_among_several_t1w_is_told_with_codes_alone(self):
        made = plan(series(uid="a", **T1), series(uid="b", **T1), series("PT"))
        (note,) = made.pairs[0].notes
        assert re.fullmatch(
            r"of 2 T1w in the study the first is taken: [a-z2-7]{8}, [a-z2-7]{8}", note
        )

    def test_a_single_mr_is_taken_with_a_note(self):
        (made,) = plan(series(description="ax t2"), series("PT")).pairs
        assert "one MR series, and nothing says that it is T1-weighted" in made.notes[0]
        assert plan(series(**T1), series("PT")).pairs[0].notes == ()

    def test_of_several_mr_without_a_t1w_none_is_taken(self):
        made = plan(series(uid="a", description="t2"), series(uid="b"), series("PT"))
        assert made.pairs == ()
        assert [item.reason for item in made.left] == [
            *["not T1-weighted, or nothing says so"] * 2,
            "no T1-weighted MR series of its patient",
        ]

    @pytest.mark.parametrize(
        ("better", "worse"),
        [
            ({"corrected": ("ATTN", "DECY")}, {"corrected": ("DECY",), "images": 300}),
            ({"kind": ("STATIC", "IMAGE")}, {"kind": ("DYNAMIC", "IMAGE"), "images": 900}),
            ({"images": 120}, {"images": 60, "number": 1}),
            ({"number": 2}, {"number": 5}),
        ],
    )
    def test_which_of_two_pet(self, better, worse):
        made = plan(series("PT", uid="b", **worse), series("PT", uid="a", **better), series("MR"))
        assert made.pairs[0].pet.uid == "s1.a"
        assert [item.reason for item in made.left] == ["another PET of its study is taken"]

    def test_without_an_mr_in_the_study_the_nearest_in_date_is_taken(self):
        made = plan(
            series("PT", "s1", 10),
            series("MR", "s2", 2, **T1),
            series("MR", "s3", 14, **T1),
            series("MR", "s4", None, **T1),
        )
        (chosen,) = made.pairs
        assert chosen.t1w.study == "s3"
        assert "(4 days apart)" in chosen.notes[0]
        assert {item.reason for item in made.left} == {"no PET goes with it"}

    def test_the_study_s_own_is_taken_though_another_would_be_as_near(self):
        made = plan(series("PT", "s1"), series("MR", "s1"), series("MR", "s2", **T1))
        assert made.pairs[0].t1w.study == "s1"

    def test_one_mr_can_serve_two_sessions(self):
        made = plan(series("PT", "s1", 1), series("PT", "s2", 9), series("MR", "s2", 9))
        assert [item.t1w.study for item in made.pairs] == ["s2", "s2"]
        assert len({item.label for item in made.pairs}) == 2

    @pytest.mark.parametrize(
        "other", [("id", "2", ""), ("id", "1", "other hospital"), ("name", "1", "19470313")]
    )
    def test_patients_are_never_mixed(self, other):
        assert plan(series("PT"), series("MR", patient=other)).pairs == ()

    def test_one_number_with_two_birth_dates_is_not_believed(self):
        made = plan(series("PT", born="19470313"), series("MR", born="19620517"))
        assert made.pairs == ()
        assert "stands with different birth dates" in made.left[0].reason

    def test_a_few_slices_are_no_volume(self):
        made = plan(series("PT"), series("MR", images=15))
        assert made.left[0].reason == "fewer than 16 slices: no volume"


def header(time="120000", injected="111500", correction="START", units="BQML", dose="1e8") -> Tags:
    d, drug = Dataset(), Dataset()
    d.SeriesDate, d.SeriesTime = "20240305", time
    d.Units, d.DecayCorrection, d.CorrectedImage = units, correction, ["DECY", "ATTN"]
    drug.RadiopharmaceuticalStartTime, drug.RadionuclideTotalDose = injected, dose
    d.RadiopharmaceuticalInformationSequence = [drug]
    return Tags(d)


class TestPetFields:
    @pytest.mark.parametrize(
        "era",
        [
            {"TimeZero": "12:50:00", "InjectionStart": 0, "FrameTimesStart": [0]},
            {"SeriesTime": "12:00:00", "FrameTimesStart": [3000], "AcquisitionTime": "12:50:00"},
        ],
        ids=["until April 2026", "since"],
    )
    def test_time_zero_is_the_series_time_whatever_dcm2niix_says(self, era):
        late = Frame(0, NOON + datetime.timedelta(minutes=50), 1200.0)
        fields = pet_fields(header(), [late], 1, {**era, "FrameDuration": [1200]})
        assert fields["TimeZero"] == "12:00:00"
        assert (fields["ScanStart"], fields["InjectionStart"]) == (0, -2700)
        assert (fields["FrameTimesStart"], fields["FrameDuration"]) == ([3000], [1200])

    def test_of_enhanced_files_only_the_later_dcm2niix_knows_when_frames_began(self):
        old = {"TimeZero": "12:50:00", "FrameTimesStart": [0], "FrameDuration": [1200]}
        new = {"SeriesTime": "12:00:00", "FrameTimesStart": [3000], "FrameDuration": [1200]}
        assert "FrameTimesStart" not in pet_fields(header(), [], 1, old)
        assert pet_fields(header(), [], 1, old)["FrameDuration"] == [1200]
        assert pet_fields(header(), [], 1, new)["FrameTimesStart"] == [3000]

    def test_a_series_that_begins_after_its_frames_has_no_time_zero(self):
        early = Frame(0, NOON - datetime.timedelta(minutes=5), 300.0)
        fields = pet_fields(header(), [early], 1, {})
        assert not {"TimeZero", "ScanStart", "InjectionStart", "FrameTimesStart"} & set(fields)
        assert fields["FrameDuration"] == [300]

    @pytest.mark.parametrize(
        ("scan", "injected", "seconds"),
        [
            ("120000", "111500", -2700),
            ("003000", "234500", -2700),  # over midnight
            ("120000", "120130.5", 90.5),  # a dynamic scan that began before
            ("120000", "", None),
        ],
    )
    def test_injection(self, scan, injected, seconds):
        tags = header(time=scan, injected=injected)
        assert pet_fields(tags, [], 1, {}).get("InjectionStart") == seconds

    @pytest.mark.parametrize(
        ("correction", "corrected", "at"),
        [("START", True, 0), ("ADMIN", True, -2700), ("NONE", False, None), ("", True, None)],
    )
    def test_decay_correction(self, correction, corrected, at):
        fields = pet_fields(header(correction=correction), [], 1, {})
        assert fields["ImageDecayCorrected"] is corrected
        assert fields.get("ImageDecayCorrectionTime") == at

    @pytest.mark.parametrize(("units", "told"), [("BQML", "Bq/mL"), ("GML", "g/mL"), ("X", None)])
    def test_units(self, units, told):
        assert pet_fields(header(units=units), [], 1, {}).get("Units") == told

    def test_a_dose_that_is_not_in_becquerel_is_left_out(self):
        assert pet_fields(header(dose="185000000"), [], 1, {})["InjectedRadioactivity"] == 185
        assert "InjectedRadioactivity" not in pet_fields(header(dose="185"), [], 1, {})

    def test_only_fields_of_the_list_with_values_of_its_kinds_are_kept(self):
        fields = {
            "EchoTime": 0.003,
            "RepetitionTime": "Erika",
            "FlipAngle": 19470313,
            "Manufacturer": "Siemens",
            "ReconMethodName": "asked by Mustermann",
            "SoftwareVersions": "x" * 65,
            "BodyPart": "HEAD\n",
            "PatientName": "A",
            "SeriesInstanceUID": "1.2",
            "SeriesDescription": "T1",
            "InstitutionName": "B",
            "AcquisitionDateTime": "2024",
            "ImageOrientationPatientDICOM": [1, 0, 0, 0, 1, 0],
            "ScanningSequence": [],
        }
        kept = scrubbed(fields, frozenset({"mustermann"}))
        assert set(kept) == {"EchoTime", "Manufacturer", "ImageOrientationPatientDICOM"}


class TestLabelTable:
    @pytest.mark.parametrize(
        "lines",
        [
            ("patient participant_id", "1 2"),
            ("patient_id participant_id name", "1 2 x"),
            ("patient_id participant_id", "PID-1 a_b"),
            ("patient_id participant_id", "PID-1 ../x"),
            ("patient_id participant_id", "PID-1"),
            ("patient_id participant_id", "PID-1 a", "PID-1 b"),
            ("patient_id participant_id study session_id", "PID-1 a 1.2"),
        ],
    )
    def test_a_table_with_a_fault_is_told_by_line_and_not_by_what_it_holds(self, tmp_path, lines):
        path = tmp_path / "labels.tsv"
        path.write_text("\n".join(line.replace(" ", "\t") for line in lines))
        with pytest.raises(ConfigurationError, match=re.escape(str(path))) as raised:
            read_labels(path, Key(b"x" * 32))
        assert "PID-1" not in str(raised.value)

    def test_two_patients_never_share_a_label_by_chance(self):
        class Colliding(Labels):
            def subject(self, series):
                return "same"

        found = Index((series("MR"), series("PT", patient=("id", "2", ""))), 0, None)
        with pytest.raises(ConfigurationError, match="Two patients would both be sub-same"):
            make_plan(found, Colliding(Key(b"x" * 32)))
