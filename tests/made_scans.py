"""Published scans without a run: a made-up head, fused as a test says."""

import numpy as np

from fusionflow import schema
from fusionflow.config import METHODS
from fusionflow.io.store import Layout, Small, create_group, finish_group, write_rows
from fusionflow.ledger import OutputPaths, publish
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS, slice_metrics
from fusionflow.pet_info import PetInfo
from fusionflow.records import InputFile, OutputFile, Published
from fusionflow.summary import scan_figures

SHAPE = (36, 48, 40)


def head(shape=SHAPE):
    """Return mri, pet (float32) and mask (uint8), (z, y, x): the PET is hot on the left, in front.

    Without that the head is its own mirror image.
    """
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32).reshape(np.roll((n, 1, 1), axis))
               for axis, n in enumerate(shape))  # fmt: skip
    radius = np.sqrt(z**2 + y**2 + x**2)
    mask = radius < 0.8
    mri = np.where(mask, 0.45 + 0.35 * np.cos(18 * radius), 0).astype(np.float32)
    hot = np.exp(-((x + 0.4) ** 2 + (y - 0.3) ** 2 + (z - 0.2) ** 2) / 0.03)
    pet = np.where(mask, 0.3 - 0.1 * radius + 0.7 * hot, 0).astype(np.float32)
    return mri, pet, mask.astype(np.uint8)


def publish_scan(
    root, fused=None, *, label="sub-01_ses-a", method="dwt-max", shape=SHAPE, **record
):
    """Publish a scan of `head` whose fused volume is `fused(mri, pet)`; its record."""
    mri, pet, mask = head(shape)
    volumes = {"mri": mri, "pet": pet, "mask": mask}
    volumes["fused"] = (fused or (lambda mri, pet: (mri + pet) / 2))(mri, pet)
    paths, layout = OutputPaths(root), Layout.of_shape(shape)
    place = paths.version(label, "0123456789abcdef")
    place.parent.mkdir(parents=True)
    create_group(place, layout, (*schema.CONFORMED, schema.MASK, schema.FUSED))
    for name, volume in volumes.items():
        for start, stop in layout.shards:
            write_rows(place, name, start, volume[start:stop], layout)
    figures = slice_metrics(mri, pet, volumes["fused"], mask)
    pair_names, image_names = ([m.name for m in group] for group in (PAIR_METRICS, IMAGE_METRICS))
    small = (
        Small("metrics", figures.pair, schema.METRICS.dims),
        Small("image_metrics", figures.image, schema.IMAGE_METRICS.dims),
        Small("metric", pair_names, ("metric",)),
        Small("image_metric", image_names, ("image_metric",)),
    )
    finish_group(place, small, {})
    subject, _, session = label.removeprefix("sub-").partition("_ses-")
    files = [path for path in place.rglob("*") if path.is_file()]
    values = {
        "label": label, "subject": subject, "session": session or None,
        "version": place.name, "request": "f" * 64,
        "method": METHODS[method].model_dump(mode="json"), "weights": None,
        "inputs": (InputFile("sub-01/anat/sub-01_T1w.nii.gz", 10, 0, "ab" * 32),),
        "pet_info": PetInfo(tracer="FDG"), "shape": shape,
        "affine": ((2.0, 0, 0, -40), (0, 2.0, 0, -50), (0, 0, 3.0, -60), (0, 0, 0, 1)),
        "metrics": scan_figures(figures, 1.5), "seconds": 1.5,
        "created": "2026-01-02T03:04:05+00:00", "run": "a-run", "worker": "host 1",
        "software": {"fusionflow": "0.1.0"}, "timings": {"fuse": 1.0},
        "stored": tuple(OutputFile.sized(path, root) for path in files),
        "conformed": {"Alignment": {"mode": "header", "flagged": False, "registration": None}},
    }  # fmt: skip
    scan = Published(**{**values, **record})
    publish(paths, scan)
    return scan
