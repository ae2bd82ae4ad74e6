"""What tests of whole runs share: a small cohort, its labels, a configuration, leftovers."""

from pathlib import Path

from fusionflow import graph
from fusionflow.config import METHODS, ConformOptions, RunConfig
from fusionflow.io.nifti import read_header
from fusionflow.io.store import Layout
from fusionflow.ledger import OutputPaths
from fusionflow.phantom import COHORT, write_cohort
from fusionflow.staging import Job
from fusionflow.survey import new_attempt, request_of

LABELS = [f"sub-{subject}_ses-{session}" for subject, session in COHORT]


def small_cohort(folder):
    """Write four scans of three subjects, small enough for many runs, and return their folder."""
    write_cohort(folder, shape=(40, 48, 40))
    return folder


def config(method="dwt-vgg19-l1", **update):
    """Return a run whose images are aligned: registration has tests of its own, and takes time."""
    update = {"weights": "random:0", **update}
    return RunConfig(
        method=METHODS[method].model_copy(update=update),
        conform=ConformOptions(registration="header"),
    )


def leftovers(out):
    return [
        path
        for path in Path(out).rglob("*")
        if path.name.startswith(".") and path.name != ".bidsignore"
    ]


def job_of(scan, source, out, how=None):
    """Return what a run would make of a scan."""
    how = how or config()
    recipe = graph.make_recipe(how.method, how.region)
    request = request_of(how, recipe.weights)
    paths, token = OutputPaths(Path(out)), graph.new_token()
    job = Job(
        scan=scan,
        source=source,
        paths=paths,
        layout=Layout.of_shape(read_header(scan.t1w).orientation.ras_shape[::-1]),
        recipe=recipe,
        conform=how.conform,
        request=request,
        token=token,
        staging=paths.staging(scan.label, token),
        begun=new_attempt(scan, source, request),
        why="new",
    )
    job.staging.mkdir(parents=True)
    return job
