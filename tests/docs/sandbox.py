"""A folder with everything that the pages name, small, and what stands there for what is large."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from snippets import ROOT

from fusionflow.phantom import write_cohort

SMALL = (24, 28, 24)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


BIN = Path(sys.executable).parent

#: What a page says, and what is run instead: the same on less.
INSTEAD = (
    # The demo's volumes are as large as real ones; `make demo` runs it.
    (r"^fusionflow demo (\w+)", r"small_demo \1"),
    # A worker process takes longer to start than to fuse such volumes.
    (r"^((?:dask )?fusionflow run (?!.*(?:--n-workers|--list|--dry|group|cluster).*).*?)(\s+#.*)?$",
     r"\1 --n-workers 1\2"),
    (r"\bnode-1\b", "127.0.0.1"),
    (r"\b8786\b", str(_free_port())),
)  # fmt: skip

#: Commands of the sandbox itself.
FUNCTIONS = f"""
small_demo() {{
  python -c "from pathlib import Path; from fusionflow.phantom import write_cohort
write_cohort(Path('$1/bids'), shape={SMALL})"
  fusionflow run "$1/bids" "$1/fused" --n-workers 1
}}
"""


def instead(line: str) -> str:
    """Return a line as it is run."""
    for pattern, replacement in INSTEAD:
        line = re.sub(pattern, replacement, line)
    return line


def environment(home: Path) -> dict[str, str]:
    """Return the variables of a shell of somebody whose home is empty."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FUSIONFLOW")}
    return {**kept, "PATH": path, "HOME": str(home), "PYTHONPATH": str(ROOT)}


def prepare(folder: Path) -> Path:
    """Write what pages name: a dataset, one fused, a manifest, DICOM, pictures, weights."""
    folder.mkdir()
    write_cohort(folder / "BIDS_DIR", shape=SMALL)
    fused = [BIN / "fusionflow", "run", "BIDS_DIR", "OUT_DIR", "--n-workers", "1", "-v"]
    subprocess.run([*fused], cwd=folder, check=True, env=environment(folder), timeout=200)
    rows = ["participant_id\tt1w\tpet"]
    for subject in ("02", "03"):
        stem = f"BIDS_DIR/sub-{subject}/ses-baseline"
        (t1w,) = (folder / stem / "anat").glob("*_T1w.nii.gz")
        (pet,) = (folder / stem / "pet").glob("*_pet.nii.gz")
        rows.append(f"sub-{subject}\t{t1w.relative_to(folder)}\t{pet.relative_to(folder)}")
    (folder / "MANIFEST.tsv").write_text("\n".join(rows) + "\n")
    _pictures(folder)
    _dicom(folder / "DICOM_DIR")
    _weights(folder / "vgg19.safetensors")
    shutil.copy(ROOT / "deploy/slurm/cohort.yaml", folder)
    shutil.copy(ROOT / "deploy/kubernetes/options.yaml", folder)
    for name in ("workflows", "deploy"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def copy(prepared: Path, folder: Path, *, with_outputs: bool) -> Path:
    """Return a copy for one page; without outputs where it makes them itself."""
    leave = shutil.ignore_patterns() if with_outputs else shutil.ignore_patterns("OUT_DIR")
    return Path(shutil.copytree(prepared, folder, symlinks=True, ignore=leave))


def _pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for kind in ("MRI", "PET", "FUSED"):
        place = folder / ("FUSED_PICTURES" if kind == "FUSED" else f"FOLDER/{kind}")
        place.mkdir(parents=True)
        for number in range(2):
            grey = rng.random((32, 32)).cumsum(axis=int(kind == "PET"))
            picture = Image.fromarray(np.uint8(255 * grey / grey.max()))
            picture.save(place / f"{number}.png")
            if number == 0 and kind != "FUSED":
                picture.save(folder / f"{kind}.png")


def _dicom(folder: Path) -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    from dicoms import ERIKA, Study

    study = Study(ERIKA)
    study.write(folder / "MR", "MR")
    study.write(folder / "PT", "PT")


def _weights(path: Path) -> None:
    """Write a VGG19 that has learned nothing, as far as methods read it."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import vgg19

    torch.manual_seed(0)
    wanted = {f"features.{layer}." for layer in (0, 2, 5, 7, 10)}
    state = vgg19(weights=None).state_dict()
    few = {name: value for name, value in state.items() if name.rpartition(".")[0] + "." in wanted}
    save_file(few, path)
