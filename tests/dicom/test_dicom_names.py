"""DICOM in, and nobody is named in what comes out."""

import datetime
import os
import subprocess
import sys

import pytest
from dicoms import ERIKA, HEINZ, NOON, Person, Study, change, content, convert, image, leaks, pair

from fusionflow.errors import NoScansError


class TestNobodyIsNamed:
    """Identifiers are in every field and folder; none is in what comes out."""

    @pytest.fixture
    def planted(self, place):
        people = [ERIKA, HEINZ, Person("Özdemir^Gülşen", "TC-99887766", issuer="ANKARA77")]
        studies = [Study(person, NOON + datetime.timedelta(n)) for n, person in enumerate(people)]
        for study in studies:
            folder = place / "dicom" / study.person.name / study.person.number / study.uid
            pair(folder, study)
            study.write(folder / "scout", "MR", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
        # One who fails, one whose header does not hold what it should, a file that is damaged.
        bad = Study(Person("Kaputtke^Torsten", "PID-4443332", born="19511111"))
        folder = place / "dicom" / bad.person.name
        bad.write(folder / "mr", "MR")
        change(bad.write(folder / "pet", "PT")[3], ImageOrientationPatient=[1, 0, 0, 0, 0, 1])
        odd = pair(place / "dicom" / "odd", Study(Person("Wirr^Weber", "PID-777000")))
        for path in odd.rglob("*.dcm"):
            data = path.read_bytes().replace(b"71.5", b"Wirr").replace(b"20240305", b"Wirrwebe")
            path.write_bytes(data)
        whole = (odd / "mr/IM1_0000.dcm").read_bytes()
        (place / "dicom" / f"{ERIKA.name}.dcm").write_bytes(whole[:400] + b"\xff" * 400)
        secrets = {"Wirr", "Weber", "PID-777000", *bad.secrets}
        return secrets.union(*(study.secrets for study in studies))

    @pytest.mark.parametrize("verbose", ["", "-vv"])
    def test_in_no_byte_of_what_is_written_or_said(self, place, planted, verbose):
        arguments = [place / "dicom", place / "bids", "--key", place / "key", *verbose.split()]
        for again in (False, True):
            ran = subprocess.run(
                [sys.executable, "-m", "fusionflow", "dicom", *map(str, arguments)],
                capture_output=True,
                env={**os.environ, "TMPDIR": str(place / "tmp")},
            )
            assert ran.returncode == 3
            assert (b"4 sessions made" in ran.stdout) is not again
            assert b"unread 1 files: it is damaged" in ran.stdout
            said = (ran.stdout + ran.stderr).splitlines()
            told = b"\n".join(line for line in said if not line.endswith(b"(may hold names)"))
            assert leaks(told.replace(str(place).encode(), b""), planted) == set()
            assert bool(verbose) == any(b"(may hold names)" in line for line in said)
        files = [path for path in (place / "bids").rglob("*") if path.is_file()]
        assert len(files) == 4 * 4 + 4
        for path in files:
            assert leaks(content(path), planted) == set(), path.name
            assert leaks(str(path.relative_to(place)).encode(), planted) == set()
        assert list((place / "tmp").iterdir()) == []
        # The check itself finds what is there to be found.
        assert {"Mustermann", "PID-5551234"} <= leaks(
            b"".join(path.read_bytes() for path in (place / "dicom").rglob("*.dcm")), planted
        )

    def test_nor_in_what_is_raised(self, place, planted):
        (place / "dicom" / ERIKA.name).rename(place / "erika")
        for path in (place / "dicom").rglob("pet"):
            for file in path.iterdir():
                file.unlink()
        with pytest.raises(NoScansError) as raised:
            convert(place)
        text = f"{raised.value!s} {raised.value!r} {raised.value.__cause__}"
        assert leaks(text.replace(str(place), "").encode(), planted) == set()
        assert "modality" not in text
        assert "no PET goes with it" in text

    def test_headers_of_images_have_no_texts(self, place):
        pair(place / "dicom", Study(ERIKA))
        convert(place)
        for suffix in ("T1w", "pet"):
            head = image(place, suffix).header
            texts = [head[name].item() for name in ("descrip", "aux_file", "db_name")]
            assert [*texts, head["intent_name"].item()] == [b""] * 4
            assert len(head.extensions) == 0

    def test_the_label_does_not_follow_from_the_number(self, place):
        pair(place / "dicom", Study(ERIKA))
        one = convert(place).outcomes[0].label
        (place / "bids").rename(place / "other")
        assert convert(place, key=place / "another key").outcomes[0].label != one
