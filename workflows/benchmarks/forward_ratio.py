"""How much a whole fusion costs beside the bare forward of its network, on pairs of pictures.

    python workflows/benchmarks/forward_ratio.py FOLDER WEIGHTS.safetensors

FOLDER holds MRI/ and PET/. Both run in turn in this process on one thread, on the same pairs: the
bare forward of the trunk over the bands of a pair, and everything that `dwt-vgg19` does. The median
of the ratios is what to look at; absolute times are the machine's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from fusionflow.backbones import load_trunk
from fusionflow.benchmark import pairs_of_folder
from fusionflow.config import METHODS
from fusionflow.graph import make_recipe
from fusionflow.images import fuse_slices
from fusionflow.transform import decompose


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    method = METHODS["dwt-vgg19-l1"].model_copy(update={"weights": arguments.weights})
    recipe = make_recipe(method)
    if recipe.weights is None:
        raise SystemExit("dwt-vgg19 reads a network")
    trunk = load_trunk(recipe.weights, method.taps)
    torch.set_num_threads(method.threads)
    pairs = list(pairs_of_folder(arguments.folder).values())[: arguments.pairs]
    ratios, seconds = [], []
    for repeat in range(arguments.repeats + 1):
        bare = whole = 0.0
        for sources in pairs:
            images = (sources.mri[None], sources.pet[None])
            bands = [decompose(image, method.transform).bands() for image in images]
            stacks = [
                torch.from_numpy(np.concatenate([one, other]))[:, None]
                for (_, _, one), (_, _, other) in zip(*bands, strict=True)
            ]
            start = time.perf_counter()
            with torch.inference_mode():
                for stack in stacks:
                    trunk(stack)
            middle = time.perf_counter()
            fuse_slices(*images, recipe)
            bare += middle - start
            whole += time.perf_counter() - middle
        if repeat:  # the first warms up
            ratios.append(whole / bare)
            seconds.append(whole / len(pairs))
    print(f"pairs {len(pairs)}, runs {len(ratios)}")
    print(
        f"whole / bare forward: median {statistics.median(ratios):.2f}, "
        f"from {min(ratios):.2f} to {max(ratios):.2f}"
    )
    print(f"seconds a pair, median: {statistics.median(seconds):.3f}")


if __name__ == "__main__":
    main()
