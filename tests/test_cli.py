"""The command line as a person or a scheduler meets it: real processes, exit codes, messages."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from runs import small_cohort

import fusionflow as ff
from fusionflow.cli import main

BIN = Path(sys.executable).parent


def fusionflow(*arguments, command=("fusionflow",), **options):
    command = [str(BIN / command[0]), *command[1:], *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=240, check=False, **options
    )


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("cli") / "bids")


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


def test_a_demo_where_nothing_can_be_written():
    result = CliRunner().invoke(main, ["demo", "/proc/fusionflow"])
    assert result.exit_code == 4
    assert "Cannot write /proc/fusionflow/bids: No such file or directory" in result.output


def test_an_empty_folder(tmp_path):
    (tmp_path / "bids").mkdir()
    run = fusionflow(
        "run",
        tmp_path / "bids",
        tmp_path / "out",
        "--method",
        "dwt-vgg19-l1",
        "--weights",
        "random:0",
    )
    assert run.returncode == 4
    assert "holds no subject with both a T1w and a PET image" in run.stderr
    assert "Traceback" not in run.stderr


class TestNothingLeft:
    """Of a dataset with scans: what left none of them, and what mends it."""

    @pytest.fixture
    def refused(self, bids, tmp_path):
        bids = shutil.copytree(bids, tmp_path / "bids")
        shutil.rmtree(bids / "sub-02/ses-baseline/pet")

        def refused(*arguments, source=bids, code=4):
            command = ["run", source, tmp_path / "out", "--method", "average", *arguments]
            result = CliRunner().invoke(main, list(map(str, command)))
            assert result.exit_code == code, result.output
            assert "no subject with both" not in result.output
            assert not (tmp_path / "out").exists()
            return result.output

        return refused

    def test_by_labels(self, refused, tmp_path):
        said = refused("--participant-label", "02")
        assert f"leave none of the 3 scans of {tmp_path / 'bids'}" in said
        assert "(sub-02_ses-baseline: no pet image in" in said
        assert "Ask for other participants" in said

    def test_by_a_filter(self, refused, tmp_path):
        wanted = tmp_path / "wanted.json"
        wanted.write_text('{"pet": {"tracer": "PIB"}}')
        said = refused("--bids-filter-file", wanted)
        assert f"The filter file {wanted} leaves no scan of {tmp_path / 'bids'}" in said
        assert "no pet image in" in said
        assert "that is trc-PIB (there is sub-01_ses-baseline_trc-FDG_pet.nii.gz)" in said
        assert "Mend it, or leave it out" in said

    def test_by_a_filter_among_labels(self, refused, tmp_path):
        wanted = tmp_path / "wanted.json"
        wanted.write_text('{"t1w": {"acquisition": "mprage"}}')
        said = refused("--bids-filter-file", wanted, "--participant-label", "01")
        assert f"The filter file {wanted} leaves no scan" in said

    def test_of_a_table_with_commas(self, refused, tmp_path):
        table = tmp_path / "scans.csv"
        table.write_text("participant_id,t1w,pet\n01,a.nii,b.nii\n")
        said = refused(source=table, code=2)
        assert f"{table} is neither the folder of a BIDS dataset nor a manifest (.tsv)" in said
        assert "with tabs between its columns (participant_id, t1w, pet, session_id," in said


class TestWhereTheOutputMayBe:
    """A dry run refuses what a run refuses, before anything is written."""

    @pytest.mark.parametrize("options", [[], ["--dry-run"]])
    @pytest.mark.parametrize("place", ["sub-01", "sub-01/ses-baseline/fused", "sub-99/out", "mine"])
    def test_not_in_a_subject_of_the_input(self, bids, tmp_path, place, options):
        bids = shutil.copytree(bids, tmp_path / "bids")
        if place == "mine":
            (tmp_path / "mine").symlink_to(bids / "sub-01")
            place = tmp_path / "mine"
        before = sorted(bids.rglob("*"))
        result = CliRunner().invoke(
            main, ["run", str(bids), str(bids / place), "--method", "average", *options]
        )
        assert result.exit_code == 2, result.output
        assert f"The output {bids / place} lies in a subject of {bids}" in result.output
        assert str(bids / "derivatives" / "fusionflow") in result.output
        assert sorted(bids.rglob("*")) == before

    def test_not_in_a_subject_that_is_a_link(self, bids, tmp_path):
        dataset = tmp_path / "some"
        dataset.mkdir()
        (dataset / "sub-01").symlink_to(bids / "sub-01")
        command = ["run", dataset, dataset / "sub-01/out", "--method", "average", "--dry-run"]
        result = CliRunner().invoke(main, list(map(str, command)))
        assert result.exit_code == 2, result.output

    @pytest.mark.parametrize("place", ["derivatives/fusionflow", "derivatives/sub-01", "../out"])
    def test_but_anywhere_else(self, bids, place):
        command = ["run", str(bids), str(bids / place), "--method", "average", "--dry-run"]
        assert CliRunner().invoke(main, command).exit_code == 0

    def test_not_a_dataset_of_something_else(self, bids, tmp_path):
        (tmp_path / "dataset_description.json").write_text('{"Name": "mine"}')
        command = ["run", str(bids), str(tmp_path), "--method", "average", "--dry-run"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2, result.output
        assert f"{tmp_path} is a dataset that fusionflow did not make" in result.output


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "command",
    [
        name
        for name, command in main.commands.items()
        if {"participant_label", "session_label"} <= {item.name for item in command.params}
    ],
)
@pytest.mark.parametrize("first", [[], ["--settle=5m", "-vv", "--pet-window", "0", "12"]])
def test_every_command_takes_lists_of_labels_alike(bids, tmp_path, command, first):
    if command == "plan":
        first = [item for item in first if not item.startswith("--settle")]
    folders = [str(bids)] if command == "plan" else [str(bids), str(tmp_path)]
    rest = ["--participant-label=02", "03", "--session-label", "baseline", "followup", "--offline"]
    context = main.commands[command].make_context(command, [*first, *folders, *rest])
    assert context.params["participant_label"] == ("02", "03")
    assert context.params["session_label"] == ("baseline", "followup")
    assert [str(context.params.get(name)) for name in ("bids_dir", "out_dir")] == (
        [*folders, "None"][:2]
    )


@pytest.mark.faults
def test_sigterm_undoes_what_is_in_flight_and_the_rest_can_be_made(bids, tmp_path):
    """What SLURM, Kubernetes and `timeout` send."""
    out = tmp_path / "out"
    command = [
        BIN / "fusionflow", "run", bids, out, "--method", "dwt-vgg19-l1", "--weights", "random:0",
        "--n-workers", "1",
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
    again = fusionflow("run", bids, out, "--method", "dwt-vgg19-l1", "--weights", "random:0")
    assert again.returncode == 0
    assert f"{4 - len(published)} fused, {len(published)} unchanged" in again.stdout


@pytest.mark.faults
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


@pytest.mark.parametrize(("option", "value"), [("weights", "random:0"), ("precision", "int8")])
def test_what_a_method_without_network_has_no_use_for(bids, tmp_path, option, value):
    result = CliRunner().invoke(
        main,
        ["run", str(bids), str(tmp_path / "o"), "--method", "maximum", f"--{option}", value],
    )
    assert result.exit_code == 2
    assert f"reads no network, so --{option} means nothing" in result.output


def test_nothing_runs_without_weights(bids, tmp_path):
    empty = tmp_path / "weights"
    empty.mkdir()
    run = fusionflow(
        "run", bids, tmp_path / "out", "--method", "dwt-vgg19-l1",
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
        (
            ["--participant-label", "77", "--method", "dwt-vgg19-l1", "--weights", "random:0"],
            "sub-77",
        ),
        (["--method", "dwt-vgg19-l1", "--weights", "random:x"], "not a whole number"),
        (["--precision", "int8", "--gpu", "required"], "ask for bfloat16, or for no GPU"),
        (
            ["--precision", "int8", "--method", "dwt-densenet121-l1", "--weights", "random:0"],
            "densenet121 has another layer, BatchNorm2d",
        ),
        (["cohort"], "is not one of 'participant', 'group'"),
        (["--reference-region", "pons"], "ask for suvr (--pet-units suvr)"),
        (
            ["--reference-region", "pons", "--pet-units", "suv"],
            "pons has no use with pet_units suv:",
        ),
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
        "method: {name: dwt-vgg19-l1, weights: 'random:3', temperature: 0.25}\n"
        "region: mask\n"
        "cluster: {n_workers: 1}\n"
    )
    result = CliRunner().invoke(
        main,
        ["run", str(bids), str(tmp_path / "out"), "--config", str(options),
         "--participant-label", "03", "--session-label", "ses-baseline", "--mem-mb", "4000",
         "--work-dir", str(tmp_path / "scratch"), "--weights", "random:4",
         "--precision", "bfloat16"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    scan = ff.open_cohort(tmp_path / "out").scan("sub-03_ses-baseline")
    assert scan.attrs["method"]["temperature"] == 0.25
    assert scan.attrs["method"]["precision"] == "bfloat16"
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
