"""What would fail later is found before any work, and said in one table."""

import io
import shutil
import signal
import subprocess
import threading
from dataclasses import replace
from types import SimpleNamespace as Header

import pytest
from click.testing import CliRunner
from crew import path_of_another_version
from networks import random_state
from rich.console import Console
from runs import config, small_cohort
from safetensors.torch import save_file

import fusionflow as ff
from fusionflow import dry_run, graph, inspection, preflight_checks
from fusionflow.cli import main
from fusionflow.config import METHODS, ClusterOptions, RunConfig
from fusionflow.errors import ClusterError
from fusionflow.inspection import Facts, Question, versions
from fusionflow.phantom import write_cohort
from fusionflow.planning import voxels_held
from fusionflow.preflight import Preflight
from fusionflow.preflight_checks import Size
from fusionflow.progress import Display

HERE = versions()
FACTS = Facts(
    host="node-1", versions=HERE, cuda="", device="cpu", network="", missing=(), output="",
    scratch="/tmp", scratch_bytes=10**11, seconds_a_slice=0.1,
)  # fmt: skip
WORKERS = {
    address: {"nthreads": 2, "resources": {}, "memory_limit": 4_000_000_000}
    for address in ("tcp://10.0.0.1:1", "tcp://10.0.0.2:1")
}
SIZES = [Size("sub-01", 94 * 256 * 256, (94, 256, 256))]
ONE, TWO = WORKERS


def answered(**update):
    """What both workers answer, the second one with something of its own."""
    return {ONE: FACTS, TWO: replace(FACTS, **update)}


def recipe_of(method="dwt-vgg19-l1", *, needs_gpu=False):
    how = config(method) if METHODS[method].backbone else RunConfig(method=METHODS[method])
    return replace(graph.make_recipe(how.method), needs_gpu=needs_gpu)


class Versions:
    """A client that knows what its scheduler runs."""

    def __init__(self, **packages):
        self.packages = packages
        self.scheduler = self

    def sync(self, call):
        return call()

    def versions(self):
        host = {"python": f"{HERE['python']}.final.0"}
        packages = {"dask": HERE["dask"], "distributed": HERE["distributed"], **self.packages}
        return {"host": host, "packages": packages}


class TestLines:
    def test_versions(self):
        check = preflight_checks.versions_check
        assert check(Versions(), answered()).state == "ok"
        older = check(Versions(), answered(versions={**HERE, "fusionflow": "0.0.9"}))
        assert older.state == "fails"
        assert f"fusionflow 0.0.9, here {HERE['fusionflow']} ({TWO})" in older.found
        major, minor, *_ = HERE["torch"].split(".")
        patch = check(Versions(), answered(versions={**HERE, "torch": f"{major}.{minor}.99"}))
        assert patch.state == "note"
        assert "last bits may differ" in patch.found
        other = check(Versions(), answered(versions={**HERE, "torch": f"{major}.999.1"}))
        assert other.state == "fails"
        scheduler = check(Versions(distributed="2020.1.0"), answered())
        assert scheduler.state == "fails"
        assert "the scheduler" in scheduler.found
        # It computes nothing.
        assert check(Versions(numpy=None, torch="1.0"), answered()).state == "ok"
        assert check(Versions(), answered(versions={**HERE, "new": "1.0"})).state == "fails"

    def test_workers_that_do_not_answer(self):
        check = preflight_checks.answers_check
        assert check(WORKERS, answered(), {}, {}).state == "ok"
        assert check(WORKERS, {ONE: FACTS}, {}, {TWO: "it hangs"}).state == "note"
        assert check(WORKERS, {}, {}, {ONE: "it hangs", TWO: "it hangs"}).state == "fails"
        broken = check(WORKERS, {ONE: FACTS}, {TWO: "ModuleNotFoundError: fusionflow"}, {})
        assert broken.state == "fails"
        assert f"ModuleNotFoundError: fusionflow ({TWO})" in broken.found

    def test_gpus(self):
        check = preflight_checks.gpus_check
        with_gpu = {ONE: {**WORKERS[ONE], "resources": {"GPU": 1}}, TWO: WORKERS[TWO]}
        seen = {ONE: replace(FACTS, cuda="H200"), TWO: FACTS}
        assert check(WORKERS, answered(), recipe_of()).state == "ok"
        assert check(with_gpu, seen, recipe_of(needs_gpu=True)).found == "1 x H200"
        blind = check(with_gpu, answered(), recipe_of(needs_gpu=True))
        assert blind.state == "note"
        assert "FUSES ON THE PROCESSOR" in blind.found
        idle = check(WORKERS, answered(cuda="H200"), recipe_of())
        assert idle.state == "note"
        assert "NOT USED" in idle.found
        assert TWO in idle.found
        assert check(WORKERS, answered(cuda="H200"), recipe_of("dwt-max")).state == "ok"
        greedy = {ONE: {**WORKERS[ONE], "resources": {"GPU": 2}}}
        assert check(greedy, {ONE: seen[ONE]}, recipe_of(needs_gpu=True)).state == "fails"

    def test_network(self):
        check = preflight_checks.network_check
        assert [line.state for line in check(answered(), recipe_of())] == ["ok"]
        assert check(answered(), recipe_of("dwt-max")) == []
        (wrong,) = check(answered(network="vgg19.pth is not there"), recipe_of())
        assert wrong.state == "fails"
        assert f"vgg19.pth is not there ({TWO})" in wrong.found

    def test_convolutions_that_a_processor_lacks(self):
        (line,) = preflight_checks.network_check(answered(quick=False), recipe_of())
        assert line.state == "note"
        assert f"HALF AS FAST, AND OTHER LAST BITS, on {TWO}" in line.found
        assert ONE not in line.found

    def test_convolutions_of_8_bits_that_a_processor_lacks(self):
        (line,) = preflight_checks.network_check(answered(in_int8=False), recipe_of())
        assert line.state == "fails"
        assert f"no convolutions of 8 bits on {TWO}" in line.found
        assert "VNNI" in line.mend
        assert ONE not in line.found

    def test_who_works_in_8_bits_is_not_told_to_use_gpus(self):
        recipe = recipe_of()
        recipe = replace(recipe, method=recipe.method.model_copy(update={"precision": "int8"}))
        line = preflight_checks.gpus_check(WORKERS, answered(cuda="NVIDIA H200"), recipe)
        assert (line.state, line.found) == ("ok", "none: int8 is arithmetic of processors")

    @pytest.mark.parametrize("reads", [True, False])
    def test_of_8_bits_only_who_reads_the_network_is_asked(self, monkeypatch, tmp_path, reads):
        monkeypatch.setattr(inspection, "has_int8", lambda: False)
        recipe = recipe_of()
        recipe = replace(recipe, method=recipe.method.model_copy(update={"precision": "int8"}))
        question = Question(recipe, reads, (32, 32), (), str(tmp_path), "worker-0")
        found = inspection.inspect(question)
        assert found.in_int8 is not reads
        assert found.network == ""  # one line says it, and its mend

    @pytest.mark.parametrize(
        ("precision", "needs_gpu", "reads", "quick"),
        [
            ("float32", False, True, False),
            ("bfloat16", False, True, True),
            ("float32", False, False, True),
        ],
    )
    def test_only_who_runs_them_is_asked(
        self, monkeypatch, tmp_path, precision, needs_gpu, reads, quick
    ):
        monkeypatch.setattr(inspection, "has_winograd", lambda: False)
        recipe = recipe_of(needs_gpu=needs_gpu)
        recipe = replace(recipe, method=recipe.method.model_copy(update={"precision": precision}))
        question = Question(recipe, reads, (32, 32), (), str(tmp_path), "worker-0")
        assert inspection.inspect(question).quick is quick

    def test_files(self):
        missing = preflight_checks.inputs_check(answered(missing=("/data/a.nii", "/data/b.nii")))
        assert missing.state == "fails"
        assert f"/data/a.nii is not seen ({TWO})" in missing.found
        check = preflight_checks.output_check
        assert check(answered(), {"worker-0", "worker-1"}, WORKERS).state == "ok"
        assert check(answered(), {"worker-0"}, WORKERS).state == "fails"
        assert "Read-only" in check(answered(output="Read-only"), {"worker-0"}, WORKERS).found

    @pytest.mark.parametrize(
        ("limit", "state"),
        [(600_000_000, "fails"), (1_300_000_000, "note"), (20_000_000_000, "ok"), (0, "note")],
    )
    def test_memory(self, limit, state):
        workers = {ONE: {**WORKERS[ONE], "memory_limit": limit}}
        assert preflight_checks.memory_check(workers, recipe_of(), SIZES).state == state

    def test_memory_that_is_enough_for_some(self):
        small = Size("sub-02", 16**3, (16, 16, 16))
        workers = {ONE: {**WORKERS[ONE], "memory_limit": 900_000_000}}
        line = preflight_checks.memory_check(workers, recipe_of("dwt-max"), [*SIZES, small])
        assert line.state == "note"
        assert line.found.startswith("sub-01 needs")

    def test_memory_of_the_largest_worker_decides(self):
        workers = {**WORKERS, ONE: {**WORKERS[ONE], "memory_limit": 500_000_000}}
        assert preflight_checks.memory_check(workers, recipe_of(), SIZES).state == "note"

    def test_dynamic_pet_takes_more(self):
        shape = Header(ras_shape=(10, 10, 10))
        one, several = (Header(orientation=shape, n_frames=n) for n in (1, 20))
        assert voxels_held(one, one, 1000) == 1000
        assert voxels_held(one, several, 1000) > 1500
        assert voxels_held(one, one, 5000) == 5000

    def test_disks(self, tmp_path, monkeypatch):
        check, usage = preflight_checks.disks_check, shutil.disk_usage(tmp_path)
        for free, scans, state in (
            (10**6, 1, "fails"), (10**9, 1, "ok"), (10**9, 10**4, "note"), (10**14, 10**4, "ok"),
        ):  # fmt: skip
            monkeypatch.setattr(shutil, "disk_usage", lambda _, f=free: usage._replace(free=f))
            assert check(answered(), SIZES, scans, tmp_path).state == state
        assert check(answered(scratch_bytes=10**6), SIZES, 1, tmp_path).state == "note"

    def test_time(self):
        line = preflight_checks.time_check(WORKERS, answered(), recipe_of(), SIZES, 100)
        assert "100 scans of about 94 slices, at 25 ms for 128 x 128 pixels" in line.found
        assert line.found.startswith("about 15.7 min")
        one_gpu = preflight_checks.time_check(
            WORKERS, {ONE: FACTS}, recipe_of(needs_gpu=True), SIZES, 1
        )
        assert "100 ms for 128 x 128" in one_gpu.found

    def test_time_is_not_taken_on_the_largest_slices(self):
        odd = Size("sub-00", 1400**2 * 10, (10, 1400, 1400))
        assert preflight_checks.probe_of([odd, *SIZES]) == (128, 128)
        assert preflight_checks.probe_of([odd]) == (128, 128)
        small = Size("sub-02", 16**3, (16, 20, 24))
        assert preflight_checks.probe_of([odd, small, small]) == (20, 24)
        assert preflight_checks.probe_of([]) == (64, 64)

    def test_all_that_fails_is_in_the_error(self):
        lines = (
            preflight_checks.Check("network", "fails", "no weights", "Stage them"),
            preflight_checks.Check("inputs", "fails", "no files", "Mount them"),
            preflight_checks.Check("disks", "note", "little room", "Make some"),
        )
        with pytest.raises(ClusterError) as error:
            Preflight(lines).raise_if_failed()
        assert "network: no weights; inputs: no files. Stage them. Mount them" in str(error.value)
        assert "little room" not in str(error.value)


@pytest.fixture(scope="module")
def bids(tmp_path_factory):
    return small_cohort(tmp_path_factory.mktemp("cohort") / "bids")


def lines_of(checked):
    return {line.name: line for line in checked.checks}


class TestRealWorkers:
    def test_nothing_is_wrong_and_nothing_is_left(self, bids, client, tmp_path):
        checked = dry_run.check(bids, tmp_path / "out", config(), client=client)
        lines = lines_of(checked)
        assert set(lines) == {
            "workers", "versions", "GPUs", "network", "inputs", "output", "memory", "disks", "time",
        }  # fmt: skip
        assert {line.state for line in checked.checks} == {"ok"}
        assert lines["workers"].found == "2 with 2 threads"
        assert "for up to 4 scans of about 40 slices" in lines["time"].found
        assert not list((tmp_path / "out").iterdir())

    def test_a_run_tells_it_before_it_begins(self, bids, client, tmp_path):
        events = []
        ff.run(bids, tmp_path / "out", config("average"), client=client, on_event=events.append)
        names = [type(event).__name__ for event in events]
        assert names[:3] == ["Planned", "Started", "Preflight"]

    def test_weights_that_change_after_they_were_found(self, bids, client, tmp_path):
        """Every worker reads the file itself, and the run stops before anything is attempted."""
        path = tmp_path / "vgg19-mine.safetensors"
        save_file(random_state(1), path)
        how = config(weights=str(path))
        found = graph.make_recipe(how.method)
        save_file(random_state(2), path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(graph, "make_recipe", lambda *_, **__: found)
            with pytest.raises(ClusterError, match=r"network: .*vgg19-mine\.safetensors") as error:
                ff.run(bids, tmp_path / "out", how, client=client)
        assert "weights stage" in str(error.value)
        assert not (tmp_path / "out" / "scans").exists()

    def test_slices_too_small_for_the_network_are_no_fault_of_the_cluster(self, client, tmp_path):
        write_cohort(tmp_path / "bids", shape=(16, 16, 16))
        how = config(taps=("relu5_4",))
        report = ff.run(tmp_path / "bids", tmp_path / "out", how, client=client)
        assert len(report.failed) == 4
        assert "too small for the taps" in report.failed[0].reason

    def test_on_the_command_line(self, bids, tmp_path, client):
        result = CliRunner().invoke(
            main,
            ["run", str(bids), str(tmp_path / "out"), "--method", "dwt-max", "--preflight",
             "--cluster", client.scheduler.address],
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        assert "written by every worker" in result.output
        assert not (tmp_path / "out" / "scans").exists()

    def test_the_table_reads_well(self, bids, client, tmp_path):
        checked = dry_run.check(bids, tmp_path / "out", config(), client=client)
        console = Console(record=True, width=100, file=io.StringIO())
        Display(config().method, console, bar=False).show(checked)
        shown = console.export_text()
        assert shown.count("ok     ") == len(checked.checks)


@pytest.fixture
def bare(tmp_path):
    """A path on which there is no fusionflow."""
    package = tmp_path / "elsewhere" / "fusionflow"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ModuleNotFoundError('No module named fusionflow')")
    return str(package.parent)


def test_others_may_take_the_place_of_those_that_went_away(crew, bare, bids, tmp_path):
    gone = crew.hire("bare", gpu=False, PYTHONPATH=bare)
    crew.wait(1)
    next_one = threading.Thread(target=lambda: (gone.wait(60), crew.hire("good", gpu=False)))
    next_one.start()
    checked = dry_run.check(bids, tmp_path / "out", config("average"), client=crew.client)
    next_one.join()
    assert lines_of(checked)["workers"].state == "ok"
    assert lines_of(checked)["output"].state == "ok"


def test_a_worker_without_fusionflow(crew, bare, bids, tmp_path):
    crew.hire("bare", gpu=False, PYTHONPATH=bare)
    crew.wait(1)
    hurried = config("average").model_copy(update={"cluster": ClusterOptions(patience=3)})
    with pytest.raises(ClusterError, match="it went away when it was asked") as error:
        ff.run(bids, tmp_path / "out", hurried, client=crew.client)
    assert "another fusionflow, or none" in str(error.value)
    assert not (tmp_path / "out" / "scans").exists()


def test_one_that_hangs_does_not_hang_the_run(crew, bids, tmp_path, monkeypatch):
    """Nor does it stop it: it may be busy with somebody else's work."""
    monkeypatch.setattr("fusionflow.preflight._ANSWER", 3.0)
    monkeypatch.setattr("fusionflow.warm._PATIENCE", 1.0)
    crew.hire("good", gpu=False)
    stuck = crew.hire("stuck", gpu=False)
    crew.wait(2)
    stuck.send_signal(signal.SIGSTOP)
    told = []
    how = config(taps=("relu1_1",))
    how = how.model_copy(update={"cluster": ClusterOptions(time_limit=20, shared=False)})

    def note(event):
        told.append(event)
        if isinstance(event, Preflight):
            stuck.kill()  # so that the run need not wait for the time limit

    report = ff.run(bids, tmp_path / "out", how, client=crew.client, on_event=note)
    checked = next(event for event in told if isinstance(event, Preflight))
    assert lines_of(checked)["workers"].state == "note"
    assert "it hangs, or is busy" in lines_of(checked)["workers"].found
    assert len(report.fused) == 4


def test_a_worker_that_does_not_see_the_files(crew, bids, tmp_path):
    """One whose machine has another disk mounted there: a mount namespace of its own."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespaces here")
    out = tmp_path / "out"
    out.mkdir()
    hide = f"mount -t tmpfs none '{bids}' && mount -t tmpfs none '{out}' && exec \"$@\""
    crew.hire("here", gpu=False)
    crew.hire("elsewhere", gpu=False, before=["unshare", "-m", "sh", "-c", hide, "sh"])
    crew.wait(2)
    checked = dry_run.check(bids, out, config("average"), client=crew.client)
    lines = lines_of(checked)
    assert {name for name, line in lines.items() if line.state == "fails"} == {"inputs", "output"}
    assert "is not seen" in lines["inputs"].found
    assert lines["output"].found.count("tcp://") == 1
    with pytest.raises(ClusterError, match="Mount the input under the same path"):
        ff.run(bids, out, config("average"), client=crew.client)
    assert not (out / "scans").exists()


def test_a_worker_of_another_version(crew, bids, tmp_path):
    older = path_of_another_version(tmp_path / "older")
    crew.hire("older", gpu=False, PYTHONPATH=older)
    crew.wait(1)
    with pytest.raises(ClusterError, match=r"versions: fusionflow 0\.0\.1, here"):
        ff.run(bids, tmp_path / "out", config("average"), client=crew.client)
