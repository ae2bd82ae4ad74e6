"""Output folders of many published scans: real records and a real index, and no volumes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from strategies import published

from fusionflow.index import write_index
from fusionflow.io.derivatives import relative_folder
from fusionflow.io.files import json_bytes
from fusionflow.ledger import OutputPaths
from fusionflow.metrics import IMAGE_METRICS, PAIR_METRICS
from fusionflow.report.page import MADE_BY

SITES = ("Aarhus", "Bergen", "Turku")


def figures(seed: int, site: int = 0) -> dict:
    """Figures such as a scan can have; a site shifts them a little."""
    draw = np.random.default_rng(seed)
    found: dict = {
        metric.name: {
            source: float(0.7 + 0.02 * site + 0.03 * draw.standard_normal())
            for source in ("mri", "pet")
        }
        for metric in PAIR_METRICS
    }
    found["psnr"] = {source: float(24 + site + draw.standard_normal()) for source in ("mri", "pet")}
    found |= {metric.name: float(5 + 0.3 * draw.standard_normal()) for metric in IMAGE_METRICS}
    found["fusion_time"] = float(draw.uniform(0.05, 0.06))
    return found


def record(number: int, **changes):
    """Return the record of the scan of a person who came twice, each time to one site."""
    label = f"sub-{number // 2:05}_ses-{number % 2 + 1:02}"
    values = {
        "metrics": figures(number, number // 2 % len(SITES)),
        "created": f"2026-01-02T03:04:{number % 60:02}+00:00",
    }
    return published(label, **{**values, **changes})


def write_output(root: Path, records, *, pages: bool = False) -> OutputPaths:
    """Write an output folder; `pages` puts something where the pages of scans would lie."""
    paths = OutputPaths(root)
    for item in records:
        paths.scan(item.label).mkdir(parents=True)
        paths.current(item.label).write_bytes(json_bytes(item.to_json()))
        if pages:
            folder = root / relative_folder(item.subject, item.session)
            folder.mkdir(parents=True, exist_ok=True)
            page = f"<!doctype html><html lang=en>{MADE_BY}<title>{item.label}</title>"
            (folder / f"{item.label}_fused.html").write_text(page)
    write_index(paths)
    return paths


def write_people(root: Path, people: int) -> None:
    """Write ``participants.tsv``: a site of three, an age, the two sexes."""
    lines = ["participant_id\tsite\tage\tsex"]
    lines += [
        f"sub-{n:05}\t{SITES[n % len(SITES)]}\t{20 + n * 7 % 60}\t{'FM'[n % 2]}"
        for n in range(people)
    ]
    (root / "participants.tsv").write_text("\n".join(lines) + "\n")


def data(path):
    """What the scripts of a page read."""
    text = path.read_text("utf-8")
    (found,) = re.findall(r'id="cohort-data">(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def column(page, name):
    """Return a column to group by."""
    (found,) = [item for item in page["columns"] if item["name"] == name]
    return found


def cells(page, name):
    """Return what a column of texts says of each scan."""
    found = column(page, name)
    return [found["values"][code] for code in found["codes"]]


def figure(page, key):
    """Return a figure of all scans."""
    (found,) = [item for item in page["figures"] if item["key"] == key]
    return found
