"""What tests of whole runs share: labels of the phantom cohort, a configuration, leftovers."""

from pathlib import Path

from fusionflow.config import METHODS, RunConfig
from fusionflow.phantom import COHORT

LABELS = [f"sub-{subject}_ses-{session}" for subject, session in COHORT]


def config(method="dwt-vgg19", **update):
    update = {"weights": "random:0", **update}
    return RunConfig(method=METHODS[method].model_copy(update=update))


def leftovers(out):
    return [
        path
        for path in Path(out).rglob("*")
        if path.name.startswith(".") and path.name != ".bidsignore"
    ]
