"""BIDS datasets of empty images: discovery opens none."""

import json
from pathlib import Path

from fusionflow.io.bids import Discovery


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
