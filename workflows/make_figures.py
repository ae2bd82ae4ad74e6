"""Renew the pictures of the README and the pages, and the README's table.

    python workflows/make_figures.py --data ../shared/data --weights ../shared/weights

`figures/brainweb.png` shows the simulated BrainWeb volumes that come with pyapetnet's demo data
(MIT licence); `figures/phantom-*.png` need no data. `figures/benchmark.tsv` is what
`harvard_benchmark.sh` measures, an hour on two cores; the table in the README is made from it,
between `<!-- table: benchmark -->` and `<!-- end -->`. ``--only`` renews a part, for which what the
others need need not be there.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "figures"
BENCHMARK = FIGURES / "benchmark.tsv"
README = HERE.parent / "README.md"
BEGIN, END = "<!-- table: benchmark -->\n", "<!-- end -->"

#: Columns of the table; all are better where they are higher.
SIX = {
    "qabf": "Qabf", "scd": "SCD", "ssim_mri": "SSIM MRI", "ssim_pet": "SSIM PET",
    "vif_mri": "VIF MRI", "vif_pet": "VIF PET",
}  # fmt: skip
#: Rows of the table, in this order, and how those are called that are no method of ours.
ROWS = {
    "dwt-vgg19": "", "dwt-vgg19-l1": "", "dwt-vgg16-l1": "", "dwt-random-l1": "",
    "feature-vgg19-l1": "", "dwt-max": "", "laplacian": "", "maximum": "", "average": "",
    "mri": "`mri`, unchanged", "IFCNN-MAX": "IFCNN-MAX", "MATR": "MATR", "DATFuse": "DATFuse",
    "dwt-vgg19@0.2": "`dwt-vgg19 --balance 0.2`", "dwt-vgg19@0.7": "`dwt-vgg19 --balance 0.7`",
    "dwt-vgg19@0.9": "`dwt-vgg19 --balance 0.9`", "dwt-vgg19@0.98": "`dwt-vgg19 --balance 0.98`",
}  # fmt: skip
COMPARED = ("average", "maximum", "dwt-max", "laplacian", "dwt-vgg19")


def main() -> None:
    """Renew what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="holds train/ and harvard/")
    parser.add_argument("--weights", type=Path, help="holds vgg19*.safetensors")
    parts = {"brainweb": brainweb, "phantom": phantom, "benchmark": benchmark, "table": table}
    parser.add_argument("--only", choices=parts, action="append", help="by default all")
    arguments = parser.parse_args()
    chosen = arguments.only or list(parts)
    for name, needs in {"brainweb": ["data"], "benchmark": ["data", "weights"]}.items():
        for need in needs if name in chosen else ():
            folder = getattr(arguments, need)
            if folder is None or not folder.is_dir():
                parser.error(f"{name} needs --{need} FOLDER; --only phantom needs nothing")
    FIGURES.mkdir(exist_ok=True)
    for name in chosen:
        parts[name](arguments.data, arguments.weights)


def brainweb(data: Path, _weights: Path | None = None) -> None:
    """Fuse the BrainWeb head, and keep the picture that the run makes."""
    import nibabel as nib
    import numpy as np

    import fusionflow as ff
    from fusionflow.config import RunConfig

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "bids"
        for source, name in (
            ("brainweb_t1.nii.gz", "anat/sub-brainweb_T1w.nii.gz"),
            ("brainweb_osem.nii.gz", "pet/sub-brainweb_pet.nii.gz"),
        ):
            place = root / "sub-brainweb" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            image = nib.load(data / "train" / source)
            # The headers call the second axis anterior, but it runs to the back of the head.
            turned = np.diag([-1, -1, 1, 1]) @ image.affine
            nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), turned), place)
        out = Path(folder) / "fused"
        ff.run(root, out, RunConfig(), levels=("participant",))
        picture = out / "sub-brainweb/fused/sub-brainweb_fused.png"
        (FIGURES / "brainweb.png").write_bytes(picture.read_bytes())


def phantom(_data: Path | None = None, _weights: Path | None = None) -> None:
    """Draw the bands and the methods, on slices of a phantom that cut its lesions."""
    from fusionflow import fusion, images, transform
    from fusionflow.config import METHODS
    from fusionflow.graph import make_recipe

    mri, pet, places = _phantom_slices()
    method = METHODS["dwt-vgg19"]
    bands = [transform.decompose(source[:1], method.transform) for source in (mri, pet)]
    fused = fusion.fuse_subbands(*bands, method, fusion.find_weights(method))
    rows: dict[str, list[np.ndarray]] = {name: [] for name in ("MRI", "PET", "weight", "fused")}
    of = (list(subbands.bands()) for subbands in (*bands, fused))
    for (band, _, of_mri), (_, _, of_pet), (_, _, of_fused) in zip(*of, strict=True):
        for name, values in (("MRI", of_mri), ("PET", of_pet), ("fused", of_fused)):
            rows[name].append(values[0] / 2 if band == "a" else 0.5 + values[0] * 2)
        rows["weight"].append(_weight(of_mri[0], of_pet[0], of_fused[0]))
    _sheet(rows, ("a", "h", "v", "d")).save(FIGURES / "phantom-bands.png", optimize=True)
    made = {"MRI": mri, "PET": pet}
    for name in COMPARED:
        made[name] = images.fuse_slices(mri, pet, make_recipe(METHODS[name]))
    lesions = {
        f"{name} lesion": [_cut(values[i], places[i]) for values in made.values()]
        for i, name in enumerate(("PET", "MRI"))
    }
    _sheet(lesions, tuple(made)).save(FIGURES / "phantom-methods.png", optimize=True)


def _phantom_slices() -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
    """Return MRI and PET, 0..1, in the slices of the PET's and the MRI's lesion, and where."""
    import numpy as np
    from scipy import ndimage

    from fusionflow.phantom import make_phantom

    head = make_phantom(1)
    to_pet = np.linalg.inv(head.pet_affine) @ head.t1w_affine
    pet = ndimage.affine_transform(head.pet, to_pet[:3, :3], to_pet[:3, 3], head.t1w.shape, order=1)
    to_voxel = np.linalg.inv(head.t1w_affine)
    where = [np.rint(to_voxel @ [*ball.centre, 1]).astype(int) for ball in head.lesions]
    cut = []
    for volume in (head.t1w, pet):
        scaled = volume.T / np.percentile(volume[volume > volume.mean()], 99.5)
        cut.append(np.float32([scaled[z, ::-1] for _, _, z, _ in where]))
    return *cut, [(head.t1w.shape[1] - 1 - y, x) for x, y, _, _ in where]


def _cut(values: np.ndarray, place: tuple[int, int], half: int = 20) -> np.ndarray:
    """Return a square about a place, as near to it as the slice allows."""
    rows, columns = (
        slice(start, start + 2 * half)
        for start in (
            min(max(at - half, 0), size - 2 * half)
            for at, size in zip(place, values.shape, strict=True)
        )
    )
    return values[rows, columns]


def _weight(mri: np.ndarray, pet: np.ndarray, fused: np.ndarray) -> np.ndarray:
    """Return the MRI's weight that led to a band; grey where both sources are equal."""
    import numpy as np

    apart = mri - pet
    safe = np.where(np.abs(apart) > 1e-4, apart, 1)
    return np.where(np.abs(apart) > 1e-4, (fused - pet) / safe, 0.5)


def _sheet(rows: dict[str, list[np.ndarray]], columns: tuple[str, ...]) -> Image.Image:
    """Return pictures in a grid, with names of rows and columns."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    high, wide = next(iter(rows.values()))[0].shape
    scale, gap, left, top = max(1, round(140 / high)), 6, 96, 24
    high, wide = high * scale, wide * scale
    size = (left + len(columns) * (wide + gap), top + len(rows) * (high + gap))
    sheet = Image.new("L", size, 255)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, name in enumerate(columns):
        draw.text((left + i * (wide + gap) + wide / 2, 3), name, 0, font, anchor="ma")
    for j, (name, pictures) in enumerate(rows.items()):
        y = top + j * (high + gap)
        draw.text((4, y + high / 2), name, 0, font, anchor="lm")
        for i, values in enumerate(pictures):
            grey = Image.fromarray(np.uint8(np.clip(values, 0, 1) * 255 + 0.5))
            grey = grey.resize((wide, high), Image.Resampling.BICUBIC)
            sheet.paste(grey, (left + i * (wide + gap), y))
    return sheet


def benchmark(data: Path, weights: Path) -> None:
    """Measure methods and published pictures, and keep the columns of the table."""
    with tempfile.TemporaryDirectory() as folder:
        command = [HERE / "harvard_benchmark.sh", data / "harvard", weights, folder]
        subprocess.run([str(word) for word in command], check=True)
        keep_benchmark(Path(folder) / "benchmark.tsv")


def keep_benchmark(measured: Path) -> None:
    """Store the columns of the table from what `fusionflow benchmark` wrote."""
    with measured.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t"))
    kept = [{name: row[name] for name in ("method", *SIX)} for row in rows]
    with BENCHMARK.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["method", *SIX], delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def benchmark_table() -> str:
    """Return the stored figures as a table in Markdown.

    Raises
    ------
    SystemExit
        If a row is not there.
    """
    with BENCHMARK.open(newline="") as lines:
        figures = {row["method"]: row for row in csv.DictReader(lines, delimiter="\t")}
    if missing := [name for name in ROWS if name not in figures]:
        raise SystemExit(f"{BENCHMARK} has no {', '.join(missing)}: measure it again")
    lines = [f"| | {' | '.join(SIX.values())} |", "|---" * (len(SIX) + 1) + "|"]
    for name, shown in ROWS.items():
        cells = (figures[name][column] for column in SIX)
        shown_cells = ("-" if cell == "n/a" else f"{float(cell):.3f}" for cell in cells)
        lines.append(f"| {shown or f'`{name}`'} | {' | '.join(shown_cells)} |")
    return "\n".join(lines) + "\n"


def with_table(text: str) -> str:
    """Return a README with the table as it is now.

    Raises
    ------
    SystemExit
        If it has no place for it.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{README} has no {BEGIN.strip()} ... {END}: put them where it goes")
    return f"{before}{begin}\n{benchmark_table()}\n{end}{after}"


def table(_data: Path | None = None, _weights: Path | None = None) -> None:
    """Renew the table in the README."""
    README.write_text(with_table(README.read_text()))


if __name__ == "__main__":
    main()
