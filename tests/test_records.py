"""What is written down of a scan, and what a record that somebody damaged can never do."""

import hashlib
import json
import os
from dataclasses import asdict, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import published

from fusionflow.cli_ledger import show_standings
from fusionflow.errors import StoreError
from fusionflow.index import gather_index
from fusionflow.io.bids import Scan
from fusionflow.io.files import write_bytes
from fusionflow.ledger import OutputPaths, publish, read_attempt, read_published, write_attempt
from fusionflow.pet_info import PetInfo
from fusionflow.records import Attempt, InputFile, OutputFile, Published, Stamp
from fusionflow.survey import new_attempt, survey


@pytest.fixture
def paths(tmp_path):
    return OutputPaths(tmp_path / "out")


def attempted(label="sub-01", **changes):
    """Return the record of an attempt, with `changes`."""
    values = {
        "label": label,
        "state": "quarantined",
        "reason": "too few slices. Scan it again",
        "kind": "ImageError",
        "attempt": 2,
        "request": "f" * 64,
        "inputs": (Stamp("anat/T1w.nii.gz", 10, 11), Stamp("pet/pet.nii.gz", 20, 21)),
        "run": "20260102T030405Z-abcdef",
        "worker": "node-7",
        "software": "0.1.0",
        "started": "2026-01-02T03:04:05+00:00",
        "ended": "2026-01-02T03:05:05+00:00",
    }
    return Attempt(**{**values, **changes})


class TestPublished:
    @pytest.mark.parametrize(
        "changes",
        [
            {"session": None, "pet_info": PetInfo(), "weights": None},
            {"notes": (), "outputs": (), "software": {}, "created": ""},
            {"pet_info": PetInfo(frame_durations=())},
            {"notes": ("größer als 4 GB",), "label": "sub-01"},
        ],
    )
    def test_comes_back_with_what_it_lacks(self, changes):
        record = published(**changes)
        assert Published.from_json(json.loads(json.dumps(record.to_json()))) == record

    def test_reads_a_record_that_says_more(self):
        content = {**published().to_json(), "gpu_hours": 3}
        assert Published.from_json(content) == published()


def test_a_record_cannot_be_changed_in_place():
    record = published()
    with pytest.raises(AttributeError):
        record.version = "v-other"
    assert replace(record, version="v-other").version == "v-other"


class TestPlaces:
    """A record names places to read, and for `prune` to remove: never one that is elsewhere."""

    OUTSIDE = ("/etc/passwd", "../x", "sub-01/../../x", "sub-01/..", "..", "//x", "a\0b")

    @pytest.mark.parametrize("place", OUTSIDE)
    @pytest.mark.parametrize("which", ["outputs", "stored"])
    def test_that_lead_out_of_the_output_are_refused(self, paths, which, place):
        publish(paths, published(**{which: (OutputFile(place, 1),)}))
        with pytest.raises(StoreError, match="not a record"):
            read_published(paths, "sub-01")

    def test_with_two_dots_in_a_name_are_none(self, paths):
        record = published(outputs=(OutputFile("sub-01/fused/sub-01..fused.nii.gz", 1),))
        publish(paths, record)
        assert read_published(paths, "sub-01") == record

    @pytest.mark.parametrize(
        "version", ["", ".", "..", "a/b", "/a", "../sub-02", ".unfinished-1", "a\n", "-rf", "a\0"]
    )
    def test_a_version_that_is_no_name_of_a_folder_is_refused(self, paths, version):
        publish(paths, published(version=version))
        with pytest.raises(StoreError, match="not a record"):
            read_published(paths, "sub-01")

    @pytest.mark.parametrize("label", ["", ".", "..", "../sub-01", "a/b", ".trash", "sub\0"])
    @pytest.mark.parametrize("kind", [published, attempted])
    def test_a_label_that_is_no_name_of_a_folder_is_refused(self, kind, label):
        """Of an index, which nothing else checks."""
        record = kind(label)
        with pytest.raises(ValueError, match="no name of a scan"):
            type(record).from_json(json.loads(json.dumps(asdict(record))))

    def test_a_record_of_another_scan_is_refused(self, paths):
        """Copied by hand, say."""
        publish(paths, published("sub-01"))
        paths.scan("sub-02").mkdir()
        for name in ("current", "attempt"):
            write_attempt(paths, attempted("sub-01"))
            source, target = (getattr(paths, name)(f"sub-{x}") for x in ("01", "02"))
            target.write_bytes(source.read_bytes())
        with pytest.raises(StoreError, match="it is about sub-01"):
            read_published(paths, "sub-02")
        with pytest.raises(StoreError, match="it is about sub-01"):
            read_attempt(paths, "sub-02")


class TestAttempt:
    def test_comes_back_as_it_was_written(self, paths):
        write_attempt(paths, attempted())
        assert read_attempt(paths, "sub-01") == attempted()

    def test_comes_back_with_what_it_lacks(self):
        content = {"label": "sub-01", "state": "failed"}
        assert Attempt.from_json(content) == Attempt("sub-01", "failed")

    def test_reads_a_record_that_says_more(self):
        assert Attempt.from_json({**asdict(attempted()), "gpu": 3}) == attempted()

    @pytest.mark.parametrize("state", ["", "done", None, 1, ["failed"], "Failed"])
    def test_one_in_a_state_that_is_none_is_refused(self, state):
        with pytest.raises((ValueError, TypeError)):
            Attempt.from_json({"label": "sub-01", "state": state})

    @pytest.mark.parametrize(
        ("change", "same"),
        [
            ({}, True),
            ({"state": "failed", "reason": "x", "attempt": 9, "run": "y"}, True),
            ({"request": "e" * 64}, False),
            ({"software": "0.2.0"}, False),
            ({"inputs": (Stamp("anat/T1w.nii.gz", 11, 11),)}, False),
            ({"inputs": ()}, False),
        ],
        ids=repr,
    )
    def test_is_about_its_inputs_its_request_and_its_software(self, change, same):
        assert attempted().is_about(attempted(**change)) is same

    def test_a_file_that_is_not_there_has_a_stamp_of_its_own(self, tmp_path):
        absent = Stamp.of(tmp_path / "absent", tmp_path)
        (tmp_path / "absent").touch()
        there = Stamp.of(tmp_path / "absent", tmp_path)
        assert absent.path == there.path == "absent"
        assert absent != there
        assert there.size == 0


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


class TestDamage:
    """Whatever a record says instead, a run and `status` go on: as if it were not there."""

    @staticmethod
    def damaged(data, content):
        """Put anything in the place of any one thing in a record."""
        at, key = content, data.draw(st.sampled_from(sorted(content)))
        while isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            keys = sorted(at) if isinstance(at, dict) else range(len(at))
            key = data.draw(st.sampled_from(keys))
        at[key] = data.draw(anything)
        return content

    @given(data=st.data(), done=st.booleans())
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_of_any_one_thing_stops_nothing(self, tmp_path, data, done):
        source, paths = tmp_path / "bids", OutputPaths(tmp_path / "out")
        source.mkdir(exist_ok=True)
        for path in (source / "t1w", source / "pet"):
            path.write_text(path.name)
        scan = Scan("01", None, source / "t1w", source / "pet")
        record = new_attempt(scan, source, "f" * 64)
        if done:
            inputs = tuple(InputFile(x.path, x.size, x.mtime_ns, "a" * 64) for x in record.inputs)
            record = published(inputs=inputs, pet_info=PetInfo(), outputs=(), stored=())
        content = json.loads(json.dumps(asdict(record)))
        path = (paths.current if done else paths.attempt)("sub-01")
        write_bytes(path, json.dumps(self.damaged(data, content)).encode())
        (standing,) = survey(paths, source, [scan], "f" * 64)
        assert standing.state in ("new", "stale", "failed", "quarantined", "done")
        assert isinstance(standing.tried, int)
        for as_json in (True, False):
            show_standings([standing], as_json=as_json, verbose=True)
        gather_index(paths)
        path.unlink()

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"null", b"0"])
    @pytest.mark.parametrize("kind", ["current", "attempt"])
    def test_of_the_whole_file_stops_nothing(self, tmp_path, content, kind):
        source, paths = tmp_path, OutputPaths(tmp_path / "out")
        for name in ("t1w", "pet"):
            (source / name).write_text(name)
        scan = Scan("01", None, source / "t1w", source / "pet")
        write_bytes(getattr(paths, kind)("sub-01"), content)
        (standing,) = survey(paths, source, [scan], "f" * 64)
        assert standing.is_due
        gather_index(paths)


@pytest.fixture
def read_inputs(tmp_path):
    """Two files, and the record of a scan that was made from them."""
    files = []
    for name, content in (("T1w.nii.gz", b"t1w"), ("pet.nii.gz", b"positron")):
        path = tmp_path / name
        path.write_bytes(content)
        status = path.stat()
        digest = hashlib.sha256(content).hexdigest()
        files.append(InputFile(name, status.st_size, status.st_mtime_ns, digest))
    record = published(inputs=tuple(files), request="asked", pet_info=PET)
    return [tmp_path / item.path for item in files], record


#: What is known of the PET of `read_inputs`.
PET = PetInfo(frame_durations=(300.0,), units="Bq/mL")


class TestWhyNot:
    """Whether a scan need not be made again, and if it must, why."""

    def test_the_same_request_and_inputs(self, read_inputs, paths):
        inputs, record = read_inputs
        root = inputs[0].parent
        assert record.why_not("asked", root, inputs, PET) is None
        publish(paths, record)
        again = read_published(paths, record.label)
        assert again.why_not("asked", root, inputs, PET) is None

    def test_not_another_request(self, read_inputs):
        inputs, record = read_inputs
        assert record.why_not("asked differently", inputs[0].parent, inputs, PET)

    @pytest.mark.parametrize(
        "changes",
        [{"frame_durations": None}, {"frame_durations": (300.0, 300.0)}, {"weight_kg": 70.0}],
    )
    def test_not_other_metadata(self, read_inputs, changes):
        inputs, record = read_inputs
        why = record.why_not("asked", inputs[0].parent, inputs, replace(PET, **changes))
        assert why == "other metadata of the PET"

    @pytest.mark.parametrize("which", [0, 1])
    def test_not_a_file_of_another_size(self, read_inputs, which):
        inputs, record = read_inputs
        stamp = inputs[which].stat().st_mtime_ns
        inputs[which].write_bytes(b"another size than before")
        os.utime(inputs[which], ns=(stamp, stamp))
        assert record.why_not("asked", inputs[0].parent, inputs, PET)

    @pytest.mark.parametrize("which", [0, 1])
    @pytest.mark.parametrize("later", [-1, 1])
    def test_content_counts_where_the_time_changed(self, read_inputs, which, later):
        inputs, record = read_inputs
        stamp = inputs[which].stat().st_mtime_ns + later
        os.utime(inputs[which], ns=(stamp, stamp))
        assert record.why_not("asked", inputs[0].parent, inputs, PET) is None
        inputs[which].write_bytes(inputs[which].read_bytes().swapcase())
        why = record.why_not("asked", inputs[0].parent, inputs, PET)
        assert why == f"{inputs[which].name} changed"

    @pytest.mark.parametrize("which", [0, 1])
    def test_not_a_file_that_is_gone(self, read_inputs, which):
        inputs, record = read_inputs
        inputs[which].unlink()
        assert not record.inputs[which].is_unchanged(inputs[0].parent)
        assert record.why_not("asked", inputs[0].parent, inputs, PET)

    def test_not_the_inputs_in_another_order_or_place(self, read_inputs, tmp_path):
        inputs, record = read_inputs
        assert record.why_not("asked", inputs[0].parent, inputs[::-1], (300.0,))
        assert record.why_not("asked", inputs[0].parent, inputs[:1], (300.0,))
        moved = inputs[0].rename(tmp_path / "elsewhere.nii.gz")
        assert record.why_not("asked", inputs[0].parent, [moved, inputs[1]], (300.0,))

    def test_a_file_touched_and_put_back_is_unchanged(self, read_inputs):
        inputs, record = read_inputs
        content, stamp = inputs[0].read_bytes(), inputs[0].stat().st_mtime_ns
        inputs[0].write_bytes(content)
        os.utime(inputs[0], ns=(stamp, stamp))
        assert record.why_not("asked", inputs[0].parent, inputs, PET) is None
