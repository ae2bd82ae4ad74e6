"""Real folders hold odd things: each gets a message of its own or the right result."""

from __future__ import annotations

import gzip
import os
import shutil
import struct

import nibabel as nib
import numpy as np
import pytest
from runs import config, leftovers

import fusionflow as ff
from fusionflow.io.bids import discover

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def head(shape=(24, 26, 22)):
    """A bright ball with a darker one inside, in faint noise."""
    grid = np.indices(shape) - (np.array(shape)[:, None, None, None] - 1) / 2
    r = np.sqrt((grid**2).sum(axis=0))
    noise = np.random.default_rng(0).random(shape)
    return (np.where(r < 9, 100 - 4 * r, 0) + noise).astype(np.float32)


def save(path, data, affine=AFFINE, **header):
    image = nib.Nifti1Image(data, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)


def raw(path, data=None, affine=AFFINE):
    """Return the bytes of a file that is written without compression."""
    plain = path.with_name("plain.nii")
    save(plain, head() if data is None else data, affine)
    content = bytearray(plain.read_bytes())
    plain.unlink()
    return content


def patched(path, offset, form, *values):
    content = raw(path)
    struct.pack_into(form, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content)))


def volume(data):
    return lambda path: save(path, data)


def cut(path):
    save(path, head())
    path.write_bytes(path.read_bytes()[:-200])


def scaled(path):
    image = nib.Nifti1Image((head() * 10).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.1, -5)
    nib.save(image, path)


def big_endian(path):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i4")
    nib.save(nib.Nifti1Image(head().astype(">i4"), AFFINE, header), path)


def forms_that_differ(path):
    image = nib.Nifti1Image(head(), AFFINE)
    image.set_sform(AFFINE, 1)
    turned = AFFINE.copy()
    turned[:3, 3] = 40
    image.set_qform(turned, 1)
    nib.save(image, path)


def far_away(path):
    save(path, head(), nib.affines.from_matvec(AFFINE[:3, :3], [5000, 0, 0]))


def mirrored(path):
    save(path, head()[::-1], nib.affines.from_matvec(np.diag([-2.0, 2.0, 2.0]), [46, 0, 0]))


def with_some(value):
    data = head()
    data[:3, :3, :3] = value
    return data


def folder(path):
    path.mkdir()


def pipe(path):
    os.mkfifo(path)


def loop(path):
    path.symlink_to(path.name)


def dangling(path):
    path.symlink_to("../.git/annex/objects/xx")


#: Name -> (what makes the image, what its message says or None if it is fused).
IMAGES = {
    "truncated gzip": (cut, "truncated or damaged"),
    "empty": (lambda path: path.write_bytes(b""), "gz"),
    "text": (lambda path: path.write_text("not an image"), "not a NIfTI"),
    "wrong magic": (lambda p: patched(p, 344, "4s", b"xxxx"), "not a NIfTI"),
    "2-D": (volume(head()[:, :, 11]), "dimension"),
    "5-D": (volume(np.stack([np.stack([head()] * 2, -1)] * 2, -1)), "dimension"),
    "an axis of zero": (lambda p: patched(p, 42, "<h", 0), "gz"),
    "a negative axis": (lambda p: patched(p, 42, "<h", -24), "gz"),
    "an axis far too long": (lambda p: patched(p, 42, "<h", 32000), "gz"),
    "all NaN": (volume(np.full((24, 26, 22), np.nan, np.float32)), "no finite value"),
    "all infinite": (volume(np.full((24, 26, 22), np.inf, np.float32)), "no finite value"),
    "constant": (volume(np.full((24, 26, 22), 7, np.float32)), "constant"),
    "nothing but zeros": (volume(np.zeros((24, 26, 22), np.float32)), "constant"),
    "singular affine": (lambda p: patched(p, 312, "<4f", 0, 0, 0, 0), "gz"),
    "an unknown type": (lambda p: patched(p, 70, "<h", 3), "gz"),
    "complex numbers": (volume(head().astype(np.complex64)), "gz"),
    "absurd values": (volume(with_some(3e38)), "damage"),
    "a folder": (folder, ""),
    "a pipe": (pipe, "regular file"),
    "a link to itself": (loop, "link"),
    "a link to what is not here": (dangling, "link"),
    "far away": (far_away, "overlap"),
    "some NaN": (volume(with_some(np.nan)), None),
    "some infinite": (volume(with_some(np.inf)), None),
    "negative values": (volume(head() - 50), None),
    "int16 with slope": (scaled, None),
    "big-endian int32": (big_endian, None),
    "float64": (volume(head().astype(np.float64)), None),
    "uint8": (volume(head().astype(np.uint8)), None),
    "a negative voxel size": (mirrored, None),
    "permuted axes": (lambda p: save(p, head(), AFFINE[[1, 2, 0, 3]]), None),
    "sform and qform differ": (forms_that_differ, None),
    "one frame of four dimensions": (volume(head()[..., None]), None),
    "three frames": (volume(np.stack([head()] * 3, -1)), None),
    "not compressed, though its name says so": (lambda p: p.write_bytes(raw(p)), None),
}  # fmt: skip

#: Name -> (content of the sidecar, note that must be there or None).
SIDECARS = {
    "no JSON": ("{", "not valid JSON"),
    "a list": ("[1, 2]", "no JSON object"),
    "durations as text": ('{"FrameDuration": "60"}', None),
    "absurd durations": ('{"FrameDuration": [1e400]}', None),
    "deep": ("[" * 5000, "left out"),
    "a dose as text": ('{"InjectedRadioactivity": "370 MBq"}', "lacks fields"),
}


def label(name):
    return "".join(letter for letter in name.title() if letter.isalnum())


@pytest.fixture(scope="module")
def odd(tmp_path_factory, client):
    """A dataset of odd scans among a good one, and what a run made of it."""
    root = tmp_path_factory.mktemp("odd")
    bids = root / "bids"
    bids.mkdir()
    (bids / "dataset_description.json").write_text('{"Name": "odd", "BIDSVersion": "1.11.0"}')

    def place(subject):
        folders = [bids / f"sub-{subject}" / kind for kind in ("anat", "pet")]
        for place in folders:
            place.mkdir(parents=True)
        save(folders[0] / f"sub-{subject}_T1w.nii.gz", head())
        return folders[1] / f"sub-{subject}_pet.nii.gz"

    save(place("good"), head())
    for name, (make, _) in IMAGES.items():
        make(place(label(name)))
    for name, (content, _) in SIDECARS.items():
        pet = place(label(name))
        save(pet, head())
        pet.with_name(pet.name.replace(".nii.gz", ".json")).write_text(content)
    # Trouble of names and folders, not of images.
    save(place("duplicate"), head())
    pet = bids / "sub-duplicate/pet/sub-duplicate_pet.nii.gz"
    for run in (1, 2):
        shutil.copy(pet, pet.with_name(f"sub-duplicate_run-{run}_pet.nii.gz"))
    pet.unlink()
    (bids / "sub-ünicode" / "pet").mkdir(parents=True)
    (bids / "sub-a..b" / "anat").mkdir(parents=True)
    (bids / "sub-file").write_text("a file where a folder should be")
    (bids / "sub-loop").symlink_to(".")
    (bids / "sub-empty").mkdir()
    out = root / "out"
    report = ff.run(bids, out, config("average"), client=client)
    return bids, out, report


def test_there_are_enough_of_them():
    assert len(IMAGES) + len(SIDECARS) + 6 >= 40


def test_the_good_one_is_fused(odd):
    _, out, _ = odd
    assert "sub-good" in ff.open_cohort(out)
    assert leftovers(out) == []


@pytest.mark.parametrize("name", [name for name, (_, says) in IMAGES.items() if says is not None])
def test_an_image_that_cannot_be_used_is_told_by_its_name_and_why(odd, name):
    _, out, report = odd
    subject = f"sub-{label(name)}"
    told = [item.reason for item in report.failed if item.label == subject]
    told += [item.reason for item in report.skipped if item.label == subject]
    assert len(told) == 1, told
    assert IMAGES[name][1] in told[0]
    assert subject in told[0]
    assert "Unexpected" not in told[0]
    assert subject not in ff.open_cohort(out)


@pytest.mark.parametrize("name", [name for name, (_, says) in IMAGES.items() if says is None])
def test_an_image_that_is_only_odd_is_fused(odd, name):
    _, out, _ = odd
    scan = ff.open_cohort(out).scan(f"sub-{label(name)}")
    assert np.isfinite(scan.fused.values).all()
    assert float(scan.pet.max()) > 0.5


@pytest.mark.parametrize("name", SIDECARS)
def test_a_sidecar_never_excludes(odd, name):
    _, out, report = odd
    record = ff.open_cohort(out).record(f"sub-{label(name)}")
    if (note := SIDECARS[name][1]) is not None:
        assert any(note in item for item in record.notes)
    assert not any(item.label == record.label for item in report.failed)


def test_duplicate_runs_are_chosen_by_rule(odd):
    _, out, _ = odd
    (note,) = (
        note for note in ff.open_cohort(out).record("sub-duplicate").notes if "taken" in note
    )
    assert note == "sub-duplicate_run-1_pet.nii.gz is taken; sub-duplicate_run-2_pet.nii.gz left"


@pytest.mark.parametrize("name", ["sub-ünicode", "sub-a..b"])
def test_a_label_that_bids_does_not_allow_is_told(odd, name):
    bids, _, _ = odd
    (item,) = (item for item in discover(bids).excluded if item.label == name)
    assert item.broken
    assert "is not a BIDS name" in item.reason


@pytest.mark.parametrize("name", ["sub-loop", "sub-empty"])
def test_a_place_without_images_is_listed(odd, name):
    bids, _, _ = odd
    assert any(item.label == name for item in discover(bids).excluded)
