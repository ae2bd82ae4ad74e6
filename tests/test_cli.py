"""The command line as a person or a scheduler meets it: real processes, exit codes, messages."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import fusionflow as ff
from fusionflow.cli import main
from fusionflow.phantom import write_cohort

BIN = Path(sys.executable).parent


def fusionflow(*arguments, command=("fusionflow",), **options):
    command = [str(BIN / command[0]), *command[1:], *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, **options
    )


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "bids"
    write_cohort(folder, shape=(40, 48, 40))
    return folder


def test_a_cohort_with_trouble(bids, tmp_path):
    """One truncated image and one subject without PET: the others are fused, all is said."""
    bids = shutil.copytree(bids, tmp_path / "bids")
    truncated = bids / "sub-02/ses-baseline/pet/sub-02_ses-baseline_trc-FDG_pet.nii.gz"
    truncated.write_bytes(truncated.read_bytes()[:5000])
    shutil.rmtree(bids / "sub-03/ses-baseline/pet")
    out = tmp_path / "out"
    run = fusionflow("run", bids, out, "--method", "dwt-max", "--n-workers", 1)
    assert run.returncode == 3, run.stderr
    assert str(truncated) in run.stderr
    assert "skipped sub-03_ses-baseline" in run.stderr
    assert "Traceback" not in run.stdout + run.stderr
    assert "2 fused, 0 unchanged, 1 failed, 1 without a PET/MRI pair" in run.stdout
    assert ff.open_cohort(out).labels == ("sub-01_ses-baseline", "sub-01_ses-followup")
    made = {path.name for path in out.rglob("*") if path.is_file() and "sub-02" in str(path)}
    assert made == {"attempt.json"}
    assert not (out / "sub-03").exists()
    assert [p for p in out.rglob(".*") if p.name != ".bidsignore"] == []

    status = fusionflow("status", out)
    assert status.returncode == 0
    assert "2 done, 1 quarantined" in status.stdout
    assert str(truncated) in status.stdout

    # Without the broken one all is well: a subject without a pair is no error.
    shutil.rmtree(bids / "sub-02")
    again = fusionflow("run", bids, out, "participant", "--method", "dwt-max")
    assert again.returncode == 0
    assert "0 fused, 2 unchanged, 0 failed, 1 without a PET/MRI pair" in again.stdout


def test_an_empty_folder(tmp_path):
    (tmp_path / "bids").mkdir()
    run = fusionflow("run", tmp_path / "bids", tmp_path / "out", "--weights", "random:0")
    assert run.returncode == 4
    assert "holds no subject with both a T1w and a PET image" in run.stderr
    assert "Traceback" not in run.stderr


def test_as_a_command_of_dask(bids, tmp_path):
    run = fusionflow(
        "run", bids, tmp_path, "--participant-label", "02", "--method", "average",
        command=("dask", "fusionflow"),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "1 fused" in run.stdout
    assert ff.open_cohort(tmp_path).labels == ("sub-02_ses-baseline",)


@pytest.mark.parametrize(
    "labels",
    [
        ["--participant-label", "02", "03"],
        ["--participant-label", "02,sub-03"],
        ["--participant-label", "02", "--participant-label", "03"],
        ["--participant-label", "02", "03", "--session-label", "baseline"],
        ["-v", "--participant-label", "02", "03", "participant"],
    ],
)
def test_lists_of_labels_as_bids_apps_take_them(bids, tmp_path, labels):
    first, rest = (["-v"], labels[1:]) if labels[0] == "-v" else ([], labels)
    result = CliRunner().invoke(
        main, ["run", *first, str(bids), str(tmp_path), "--method", "nope", *rest]
    )
    assert "No method is called 'nope'" in result.output  # so the labels were taken
    run = main.commands["run"]
    context = run.make_context("run", [*first, str(bids), str(tmp_path), *rest])
    taken = context.params["participant_label"]
    assert [label for item in taken for label in item.split(",")] in (
        ["02", "03"],
        ["02", "sub-03"],
    )
    assert context.params["level"] == ("participant" if "participant" in rest else None)


def test_sigterm_undoes_what_is_in_flight_and_the_rest_can_be_made(bids, tmp_path):
    """What SLURM, Kubernetes and `timeout` send."""
    out = tmp_path / "out"
    command = [
        BIN / "fusionflow", "run", bids, out, "--weights", "random:0", "--n-workers", "1",
    ]  # fmt: skip
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("fused"):
                process.send_signal(signal.SIGTERM)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "what was published stays" in rest
    assert "Traceback" not in rest
    assert [p for p in out.rglob(".*") if p.name != ".bidsignore"] == []
    published = ff.open_cohort(out).labels
    assert 1 <= len(published) < 4
    again = fusionflow("run", bids, out, "--weights", "random:0")
    assert again.returncode == 0
    assert f"{4 - len(published)} fused, {len(published)} unchanged" in again.stdout


def test_one_bad_scan_and_another_method_still_end_with_3(bids, tmp_path):
    bids = shutil.copytree(bids, tmp_path / "bids")
    out = tmp_path / "out"
    assert fusionflow("run", bids, out, "--method", "maximum").returncode == 0
    pet = bids / "sub-02/ses-baseline/pet/sub-02_ses-baseline_trc-FDG_pet.nii.gz"
    pet.write_bytes(pet.read_bytes()[:5000])
    run = fusionflow("run", bids, out, "--method", "average")
    assert run.returncode == 3
    assert "made again: another method or other options" in run.stderr
    assert "not in the summary sub-02_ses-baseline  its last attempt failed" in run.stderr
    assert "3 fused, 0 unchanged, 1 failed" in run.stdout


def test_weights_for_a_method_without_network(bids, tmp_path):
    result = CliRunner().invoke(
        main,
        ["run", str(bids), str(tmp_path / "o"), "--method", "maximum", "--weights", "random:0"],
    )
    assert result.exit_code == 2
    assert "reads no network" in result.output


def test_nothing_runs_without_weights(bids, tmp_path):
    empty = tmp_path / "weights"
    empty.mkdir()
    run = fusionflow(
        "run", bids, tmp_path / "out",
        env={"PATH": str(BIN), "FUSIONFLOW_WEIGHTS_DIR": str(empty), "HOME": str(tmp_path)},
    )  # fmt: skip
    assert run.returncode == 4
    assert f"No weights of vgg19 in {empty}" in run.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--no-such-option"], "No such option"),
        (["--n-workers", "0"], "0 is not in the range"),
        (["--method", "dwt-vg19"], "No method is called 'dwt-vg19'. Known are: dwt-vgg19"),
        (["--participant-label", "77", "--weights", "random:0"], "sub-77"),
        (["--weights", "random:x"], "not a whole number"),
        (["cohort"], "is not one of 'participant', 'group'"),
    ],
)
def test_wrong_usage(bids, tmp_path, arguments, message):
    result = CliRunner().invoke(main, ["run", str(bids), str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_misspelt_option_in_yaml(bids, tmp_path):
    options = tmp_path / "run.yaml"
    options.write_text("method: dwt-vgg19\nclustre: {n_workers: 2}\n")
    result = CliRunner().invoke(
        main, ["run", str(bids), str(tmp_path / "out"), "--config", str(options)]
    )
    assert result.exit_code == 2
    assert f"{options}: clustre: Extra inputs are not permitted" in result.output


def test_yaml_and_options_together(bids, tmp_path):
    options = tmp_path / "run.yaml"
    options.write_text(
        "method: {name: dwt-vgg19, weights: 'random:3', temperature: 0.25}\n"
        "region: mask\n"
        "cluster: {n_workers: 1}\n"
    )
    result = CliRunner().invoke(
        main,
        ["run", str(bids), str(tmp_path / "out"), "--config", str(options),
         "--participant-label", "03", "--session-label", "ses-baseline", "--mem-mb", "4000",
         "--work-dir", str(tmp_path / "scratch"), "--weights", "random:4"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    scan = ff.open_cohort(tmp_path / "out").scan("sub-03_ses-baseline")
    assert scan.attrs["method"]["temperature"] == 0.25
    assert scan.attrs["region"] == "mask"
    assert scan.attrs["weights"].startswith("random:4 (RANDOM")
    assert "WARNING weights of vgg19: random:4 (RANDOM" in result.output


@pytest.mark.parametrize("command", [[], ["run"], ["demo"], ["status"]])
def test_every_option_has_a_line_of_help(command):
    result = CliRunner().invoke(main, [*command, "--help"])
    assert result.exit_code == 0
    group = main if not command else main.commands[command[0]]
    for parameter in group.params:
        if parameter.param_type_name == "option":
            assert parameter.help, parameter.name
    assert "Error" not in result.output


def test_version_and_methods():
    assert ff.__version__ in CliRunner().invoke(main, ["--version"]).output
    assert ff.__version__ in CliRunner().invoke(main, ["run", "--version"]).output
    listed = CliRunner().invoke(main, ["run", "--list-methods"])
    assert listed.exit_code == 0
    assert "dwt-vgg19" in listed.output
