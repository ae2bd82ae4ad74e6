"""Sidecars of every era say the same thing in one form; SUV from them; frames by time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusionflow.errors import ConfigurationError, ImageError
from fusionflow.frames import FrameChoice, frame_weights, parse_frames
from fusionflow.pet_info import HALF_LIVES, PetInfo, pet_info
from fusionflow.suv import reference_mean, suv_factor

BIDS = {
    "Units": "Bq/mL",
    "TracerName": "FDG",
    "TracerRadionuclide": "F18",
    "InjectedRadioactivity": 185,
    "InjectedRadioactivityUnits": "MBq",
    "TimeZero": "13:04:42",
    "InjectionStart": 0,
    "ScanStart": 3600,
    "FrameTimesStart": [3600, 3900],
    "FrameDuration": [300, 300],
    "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 3600,
}
#: What dcm2niix wrote until 2026-04, and since.
OLD = {
    "Units": "BQML",
    "Radiopharmaceutical": "FDG -- fluorodeoxyglucose",
    "TracerRadionuclide": "18F",
    "RadionuclideTotalDose": 185e6,
    "RadionuclideHalfLife": 6586.2,
    "TimeZero": "14:04:42",
    "AcquisitionTime": "14:20:00",
    "SeriesTime": "14:04:42",
    "RadiopharmaceuticalStartTime": "13:04:42",
    "DecayCorrection": "START",
    "FrameTimesStart": [0, 300],
    "FrameDuration": [300, 300],
}
NEW = {
    **{k: v for k, v in OLD.items() if k not in ("TimeZero", "AcquisitionTime", "DecayCorrection")},
    "RadiopharmaceuticalStartTime": "130442.00",
    "ImageDecayCorrected": True,
    "ImageDecayCorrectionTime": 0,
    "PatientWeight": 80,
}


class TestPetInfo:
    @pytest.mark.parametrize("sidecar", [BIDS, OLD, NEW], ids=["BIDS", "old", "new"])
    def test_every_era_says_the_same(self, sidecar):
        info = pet_info(sidecar, 80)
        assert (info.units, info.dose_bq, info.weight_kg) == ("Bq/mL", 185e6, 80)
        assert (info.radionuclide, info.half_life) == ("F18", 6586.2)
        assert (info.decay_corrected, info.decay_seconds) == (True, 3600)
        assert info.frame_durations == (300, 300)
        factor, missing = suv_factor(info)
        assert missing == ()
        # A volume that holds the whole dose, spread evenly at 1 g/mL and corrected to the start of
        # the scan, has SUV 1.
        concentration = 185e6 * 2 ** (-3600 / 6586.2) / 80_000
        assert concentration * factor == pytest.approx(1)

    def test_decay_across_midnight(self):
        late = {**OLD, "RadiopharmaceuticalStartTime": "23:30:00", "SeriesTime": "00:30:00"}
        assert pet_info(late).decay_seconds == 3600

    def test_an_injection_just_after_the_start_of_the_series(self):
        """As in dynamic PET; also a few seconds between two clocks."""
        info = pet_info({**OLD, "SeriesTime": "13:04:22"}, 80)
        assert info.decay_seconds == -20
        assert suv_factor(info)[0] == pytest.approx(80_000 / 185e6, rel=0.01)

    def test_clocks_tell_nothing_of_what_lives_for_days(self):
        info = pet_info({**OLD, "TracerRadionuclide": "89Zr", "RadionuclideHalfLife": 282280.3}, 80)
        assert info.decay_seconds is None

    def test_times_that_contradict_each_other_count_for_nothing(self):
        assert pet_info({**BIDS, "DecayCorrection": "ADMIN"}).decay_seconds is None

    def test_corrected_to_the_injection(self):
        assert pet_info({**OLD, "DecayCorrection": "ADMIN"}).decay_seconds == 0

    def test_not_corrected_gives_no_suv(self):
        info = pet_info({**OLD, "DecayCorrection": "NONE"}, 80)
        assert info.decay_corrected is False
        assert suv_factor(info)[0] is None

    def test_the_time_of_acquisition_is_never_a_beginning(self):
        without = {k: v for k, v in OLD.items() if k != "SeriesTime"}
        assert pet_info(without).decay_seconds is None

    @pytest.mark.parametrize(
        ("name", "nuclide"),
        [("F18", "F18"), ("18F", "F18"), ("F-18", "F18"), ("^18^Fluorine", "F18"),
         ("[11C]raclopride", "C11"), ("Fluorine-18", "F18"), ("68Ga-DOTATATE", "Ga68"),
         ("15O-water", "O15")],
    )  # fmt: skip
    def test_spellings_of_a_radionuclide(self, name, nuclide):
        info = pet_info({"TracerRadionuclide": name})
        assert (info.radionuclide, info.half_life) == (nuclide, HALF_LIVES[nuclide])

    @pytest.mark.parametrize(
        ("dose", "unit", "becquerel"),
        [(5, "mCi", 1.85e8), (185, "MBq", 1.85e8), (1.85e8, "Bq", 1.85e8), (185, "", None),
         (185, "furlong", None), (-1, "MBq", None), (0, "MBq", None), ("185", "MBq", None)],
    )  # fmt: skip
    def test_units_of_a_dose(self, dose, unit, becquerel):
        told = {"InjectedRadioactivity": dose, "InjectedRadioactivityUnits": unit}
        assert pet_info(told).dose_bq == becquerel

    @pytest.mark.parametrize(
        ("value", "durations"),
        [([60, 120.5], (60.0, 120.5)), (600, (600.0,)), (None, None), ("60", None),
         ([60, "n/a"], None), ([True], None), ([math.nan], None), ([10**400], None), ([], ())],
    )  # fmt: skip
    def test_durations(self, value, durations):
        assert pet_info({"FrameDuration": value}).frame_durations == durations

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=5,
    )

    @given(st.dictionaries(st.sampled_from(sorted({*BIDS, *OLD, *NEW})), json_values))
    def test_whatever_the_fields_hold(self, sidecar):
        info = pet_info(sidecar)
        factor, missing = suv_factor(info)
        assert (factor is None) == bool(missing)
        assert PetInfo.from_json(json.loads(json.dumps(info.to_json()))) == info


class TestSUV:
    def test_everything_that_is_missing_is_named(self):
        factor, missing = suv_factor(PetInfo())
        assert factor is None
        assert len(missing) == 5
        assert any("weight" in item for item in missing)

    def test_what_is_suv_already_stays(self):
        assert suv_factor(pet_info({"Units": "GML"})) == (1.0, ())

    def test_the_reference_region(self):
        pet = np.full((4, 4, 4), 3.0, np.float32)
        inside = np.zeros(pet.shape, bool)
        inside[:2] = True
        assert reference_mean(pet, inside, "mask.nii") == 3

    @pytest.mark.parametrize("scale", [0, -1])
    def test_a_region_without_uptake_is_refused(self, scale):
        with pytest.raises(ImageError, match=r"mask\.nii"):
            reference_mean(np.full((4, 4, 4), scale), np.ones((4, 4, 4), bool), "mask.nii")

    def test_an_empty_region_is_refused(self):
        with pytest.raises(ImageError, match="holds 0 voxels"):
            reference_mean(np.ones((4, 4, 4)), np.zeros((4, 4, 4), bool), "mask.nii")


class TestFrames:
    INFO = PetInfo(frame_starts=(0, 60, 120, 300), frame_durations=(60, 60, 180, 300))

    @pytest.mark.parametrize(
        ("text", "choice"),
        [
            ("all", FrameChoice()),
            ("first5min", FrameChoice(0, 300)),
            ("first90s", FrameChoice(0, 90)),
            ("40-60min", FrameChoice(2400, 3600)),
            ("40min-3600s", FrameChoice(2400, 3600)),
            ("2400-3600", FrameChoice(2400, 3600)),
            ("frame:3", FrameChoice(index=3)),
        ],
    )
    def test_spellings(self, text, choice):
        assert parse_frames(text) == choice

    @pytest.mark.parametrize("text", ["", "some", "60-40min", "5-5", "first0min", "frame:-1", "1-"])
    def test_what_names_no_frames(self, text):
        with pytest.raises(ConfigurationError):
            parse_frames(text)

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("all", [60, 60, 180, 300]),
            ("first5min", [60, 60, 180, 0]),
            ("90-420", [0, 30, 180, 120]),
            ("frame:1", [0, 1, 0, 0]),
        ],
    )
    def test_weights_are_the_seconds_that_count(self, text, seconds):
        weights, notes = frame_weights("pet.nii", 4, self.INFO, parse_frames(text))
        assert weights == pytest.approx(np.array(seconds) / np.sum(seconds))
        assert len(notes) == 1

    def test_a_window_that_was_imaged_in_part_is_noted(self):
        _, notes = frame_weights("pet.nii", 4, self.INFO, parse_frames("5-20min"))
        assert "part was not imaged" in notes[1]

    @pytest.mark.parametrize(
        ("info", "text"),
        [
            (PetInfo(), "first5min"),
            (PetInfo(frame_durations=(60, 60, 180, 300)), "first5min"),
            (INFO, "20-30min"),
            (INFO, "frame:4"),
            (PetInfo(frame_durations=(60, 60)), "all"),
            (PetInfo(frame_durations=(0, 0, 0, 0)), "all"),
            (PetInfo(frame_durations=(1e308, 1e308, 1e308, 1e308)), "all"),
            (PetInfo(frame_durations=(-1, 2, 2, 2)), "all"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_name(self, info, text):
        with pytest.raises(ImageError, match=r"pet\.nii"):
            frame_weights("pet.nii", 4, info, parse_frames(text))

    def test_frames_of_unknown_duration_count_alike(self):
        weights, notes = frame_weights("pet.nii", 4, PetInfo(), FrameChoice())
        assert weights == [0.25] * 4
        assert "not known" in notes[0]

    def test_a_single_volume_needs_nothing(self):
        assert frame_weights("pet.nii", 1, PetInfo(), FrameChoice()) == ([1.0], ())
