"""Grids on a Dask cluster, and the processes of joblib on one machine: killed workers, Ctrl-C, SLURM, GPUs."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pandas as pd
import psutil
import pytest
import torch

import pckd_nb as pckd
from pckd_nb import cli, experiments, launcher
from pckd_nb.experiments import cluster, engines

from .test_cli import SMALL, refused, run, teacher  # noqa: F401
from .test_experiments import ONE_THREAD, make_grid, start, states, wait_for

pytestmark = pytest.mark.skipif(not hasattr(os, "setpgrp"), reason="needs process groups")
slow = pytest.mark.slow
SLURM = "partition=gpu,gpus=1,cores=8,memory=32GB,walltime=08:00:00"
SIZES = ["--data", "digits", "--train-size", "600", "--test-size", "30", "--batch-size", "20", "--epochs", "3"]
KILLER = """
import multiprocessing, os, signal
import pckd_nb

class Killer(pckd_nb.KD):
    def forward(self, *arguments):
        if "Loky" in multiprocessing.current_process().name:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(*arguments)
"""
SAVING = """
import pckd_nb
from pckd_nb.training import callbacks

callbacks.MIN_SECONDS_BETWEEN_SAVES, callbacks.MAX_SAVING_SHARE = -1, float("inf")

class Saving(pckd_nb.KD):
    'KD, with a checkpoint after every step.'
"""


@pytest.fixture(scope="module")
def larger_teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teachers") / "resnet14"
    assert cli.main(["train", *SIZES, "--model", "resnet14", "--seed", "0", "--out", str(folder)]) == 0
    return folder


def compare(teacher: Path, out: Path, *more: str) -> list[str]:  # noqa: F811
    (method := teacher.parent / "saving.py").write_text(SAVING)
    arms = f"{method}:Saving,{method}:Saving-temperature=2"
    words = ["compare", *SIZES, "--teacher", teacher, "--student", "resnet8", "--out", out, "--methods", arms]
    return [
        sys.executable,
        "-m",
        "pckd_nb",
        *map(str, words),
        "--seeds",
        "0-1",
        "--reference",
        arms.split(",")[0],
        *more,
    ]


class Dask:
    """A scheduler and its workers, each in a process group of its own."""

    def __init__(self, folder: Path, workers: int, *options: str):
        self.folder, self.groups = folder, []
        file = folder / "scheduler.json"
        self.scheduler = self.begin("scheduler", "--scheduler-file", file, "--dashboard-address", "127.0.0.1:0")
        self.wait_until(lambda: file.exists() and file.read_text())
        for number in range(workers):
            self.add_worker(f"w{number}", *options)
        self.address = pd.read_json(file, typ="series")["address"]

    def begin(self, kind: str, *options, name: str = "scheduler") -> subprocess.Popen:
        words = [sys.executable, "-m", "dask", kind, "--host", "127.0.0.1", *options]
        with open(self.folder / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                list(map(str, words)), env=ONE_THREAD, cwd=self.folder, stderr=log, start_new_session=True
            )
        self.groups.append(process)
        return process

    def add_worker(self, name: str, *options: str) -> subprocess.Popen:
        options = ["--scheduler-file", "scheduler.json", "--name", name, *(options or ("--nthreads", "1"))]
        process = self.begin("worker", *options, "--local-directory", "scratch", "--no-dashboard", name=name)
        self.wait_until(lambda: "Registered to" in (self.folder / f"{name}.log").read_text())
        return process

    def wait_until(self, condition) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(file.read_text() for file in sorted(self.folder.glob("*.log")))

    def kill(self, process: subprocess.Popen) -> None:
        os.killpg(process.pid, signal.SIGKILL)  # a worker and its nanny, which would start it again
        process.wait()

    def close(self) -> None:
        for process in self.groups:
            if process.poll() is None:
                self.kill(process)


@pytest.fixture
def dask(tmp_path_factory):
    """A function that starts a scheduler with workers."""
    begun = []

    def begin(workers: int, *options: str) -> Dask:
        begun.append(Dask(tmp_path_factory.mktemp("dask"), workers, *options))
        return begun[-1]

    yield begin
    for found in begun:
        found.close()


def training(out: Path) -> list[Path]:
    """Return the folders of the runs that have begun and are not finished."""
    return [file.parent for file, status in states(out).items() if status == "running"]


class Trained(NamedTuple):
    """An unfinished run with an epoch and a checkpoint, and the process that trains it.

    seconds: the content of timing.csv.
    """

    folder: Path
    process: psutil.Process
    seconds: str


def wait_for_an_epoch(out: Path, command: subprocess.Popen, parents: list[int]) -> Trained:
    """Wait until a process below one of `parents` has trained an epoch of a run."""
    found = []

    def look() -> list[Trained]:
        processes = [child for parent in parents for child in psutil.Process(parent).children(recursive=True)]
        for process in processes:
            with suppress(psutil.Error, FileNotFoundError):
                for file in process.open_files():  # a process that trains has locked its run folder
                    folder = Path(file.path).parent
                    if file.path.endswith("/.lock") and folder in training(out) and (folder / "checkpoint.pt").exists():
                        found.append(Trained(folder, process, (folder / "timing.csv").read_text()))
        return found

    wait_for(look, command)
    return found[0]


def assert_continued(cut: Trained) -> None:
    """Check that no epoch that was finished before was trained again: it would take another time."""
    assert cut.seconds.count("\n") > 1 and (cut.folder / "timing.csv").read_text().startswith(cut.seconds)


def assert_complete(out: Path, other: Path) -> None:
    """Check that two grids have the same results and weights, and that no run has an epoch twice."""
    assert (out / "results.csv").read_bytes() == (other / "results.csv").read_bytes()
    for file in other.rglob("run.json"):
        mine, theirs = (pckd.load_run(folder) for folder in (out / file.parent.relative_to(other), file.parent))
        assert mine.history["epoch"].tolist() == [1, 2, 3] and mine.history.equals(theirs.history)
        assert mine.fingerprint == theirs.fingerprint
    assert not list(out.rglob(".lock"))


# ----------------------------------------------------------------------------------------------- all engines


@pytest.fixture(scope="module")
def alone(larger_teacher, tmp_path_factory) -> Path:
    """The grid, trained in one process."""
    out = tmp_path_factory.mktemp("alone")
    process = start(compare(larger_teacher, out))
    assert process.wait(300) == 0
    return out


@slow
def test_a_scheduler_whose_worker_is_killed_gives_the_same_results(larger_teacher, alone, dask, tmp_path):
    began = dask(3)
    process = start(compare(larger_teacher, tmp_path, "--scheduler", began.address))
    cut = wait_for_an_epoch(tmp_path, process, [worker.pid for worker in began.groups[1:]])
    began.kill(next(worker for worker in began.groups if worker.pid == os.getpgid(cut.process.pid)))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert_continued(cut)
    assert output.splitlines()[:2] == ["4 runs, 0 finished, 4 to train", f"scheduler {began.address}: 3 workers"]
    assert "dashboard: http://127.0.0.1:" in output and "[4/4]" in output
    assert_complete(tmp_path, alone)


@slow
def test_processes_of_which_one_is_killed_give_the_same_results(larger_teacher, alone, tmp_path):
    process = start(compare(larger_teacher, tmp_path, "--jobs", "2"))
    cut = wait_for_an_epoch(tmp_path, process, [process.pid])
    cut.process.kill()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "[4/4]" in output, errors
    assert_continued(cut)
    assert_complete(tmp_path, alone)


@slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_command_on_a_scheduler_ends_and_another_one_continues_at_once(number, larger_teacher, alone, dask, tmp_path):
    began = dask(2)
    words = compare(larger_teacher, tmp_path, "--scheduler", began.address)
    process = start(words)
    cut = wait_for_an_epoch(tmp_path, process, [worker.pid for worker in began.groups[1:]])
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert process.returncode == 130 and output.endswith("interrupted: the same command continues this grid\n")
        assert "interrupted" in states(tmp_path).values() and "running" not in states(tmp_path).values()
    again = start(words)
    output, errors = again.communicate(timeout=300)
    assert again.returncode == 0 and "4 runs" in output and not errors, errors
    assert_continued(cut)
    assert_complete(tmp_path, alone)


@slow
def test_ctrl_c_ends_a_command_that_waits_for_workers(larger_teacher, dask, tmp_path):
    began = dask(0)
    process = start(compare(larger_teacher, tmp_path, "--scheduler", began.address))
    lines = [process.stdout.readline() for _ in range(3)]
    assert lines[1] == f"scheduler {began.address}: 0 workers, waiting for the first one\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and output == "interrupted: the same command continues this grid\n", errors
    assert not list(tmp_path.iterdir())


@slow
def test_a_scheduler_that_is_killed_gives_one_line(larger_teacher, dask, tmp_path):
    began = dask(1)
    process = start(compare(larger_teacher, tmp_path, "--scheduler", began.address))
    wait_for(lambda: training(tmp_path), process)
    began.kill(began.scheduler)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2 and errors.count("\n") == 1, errors
    assert errors.startswith("pckd-nb: the connection to the Dask scheduler is lost: the same command continues"), (
        errors
    )


@slow
def test_a_run_that_kills_its_process_is_given_up_and_the_others_are_trained(larger_teacher, tmp_path):
    (tmp_path / "killer.py").write_text(KILLER)
    arms = f"supervised,{tmp_path}/killer.py:Killer"
    process = start(compare(larger_teacher, tmp_path / "out", "--methods", arms, "--seeds", "0", "--jobs", "2"))
    output, errors = process.communicate(timeout=300)
    lines = [line for line in errors.splitlines() if line.startswith("pckd-nb: ")]
    assert process.returncode == 1 and len(lines) == 1
    expected = "Killer seed 0: its process was killed 3 times: it may need too much memory"
    assert f"1 of 2 runs failed, all others were trained; first error: resnet14-resnet8 {expected}" in lines[0]
    assert expected in output and pd.read_csv(tmp_path / "out" / "results.csv")["arm"].tolist() == ["supervised"]


# ------------------------------------------------------------------------------------- refused before training


def grid(teacher: Path, *more: str) -> list[str]:  # noqa: F811
    return ["compare", *SMALL, "--teacher", str(teacher), "--student", "resnet8", "--out", "grid", *more]


@pytest.mark.parametrize(
    ("match", "more"),
    [
        ("scheduler must be an address such as tcp://node1:8786, got 'here'", ["--scheduler", "here"]),
        ("--scheduler … and --shard … exclude each other", ["--scheduler", "127.0.0.1:1", "--shard", "1/2"]),
        ("--scheduler … and --jobs … exclude each other", ["--scheduler", "127.0.0.1:1", "--jobs", "2"]),
        ("--scheduler … and --slurm … exclude each other", ["--scheduler", "127.0.0.1:1", "--slurm", SLURM]),
        ("--slurm … and --shard … exclude each other", ["--slurm", SLURM, "--shard", "1/2"]),
        ("slurm must be NAME=VALUE, comma-separated, with every name once", ["--slurm", "gpu"]),
        ("with every name once", ["--slurm", SLURM + ",cores=4"]),
        ("slurm needs cores", ["--slurm", "memory=4GB"]),
        ("slurm needs cores", ["--slurm", "cores=0,memory=4GB"]),
        ("slurm needs memory, the memory of a worker with its unit", ["--slurm", "cores=4,memory=4"]),
    ],
)
def test_options_that_are_wrong_or_exclude_each_other_are_refused(match, more, refused, teacher):  # noqa: F811
    refused(match, *grid(teacher, *more))


def run_quietly(grid, **options) -> list[str]:
    lines = []
    experiments.run_grid(grid, progress=False, print_fn=lines.append, **options)
    return lines


@pytest.fixture
def small_grid(teacher, tmp_path):  # noqa: F811
    return make_grid(teacher, tmp_path / "grid", "supervised", [0])


def test_nothing_at_the_address_is_one_line(small_grid):
    message = r"there is no Dask scheduler at 127\.0\.0\.1:1 \(.*refused\): `dask scheduler` starts one"
    with pytest.raises(ConnectionError, match=message):
        run_quietly(small_grid, scheduler="127.0.0.1:1")


def test_a_missing_package_is_one_line(small_grid, monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(ValueError, match=r"a cluster needs the package distributed: pip install 'pckd_nb\[cluster\]'"):
        run_quietly(small_grid, slurm=SLURM)


def test_a_worker_with_several_threads_is_refused(small_grid):
    from distributed import LocalCluster

    with LocalCluster(1, processes=False, threads_per_worker=2, dashboard_address=None, protocol="tcp") as found:
        with pytest.raises(ValueError, match="the worker 0 has 2 threads, .*: start it with --nthreads 1"):
            run_quietly(small_grid, scheduler=found.scheduler_address)
    assert not list(small_grid.out.glob("*"))


@pytest.mark.parametrize(("gpus", "resources", "shown"), [
    ((0, 0), {}, "2 workers"), ((1, 1), {"GPU": 1}, "2 workers"),
    ((1, 0), {"GPU": 1}, "2 workers, 1 of them with a GPU: only these train"),
])  # fmt: skip
def test_points_need_a_gpu_if_workers_have_one(gpus, resources, shown):
    workers = {name: {"name": name, "nthreads": 1, "resources": {"GPU": name}} for name in gpus}
    workers = {str(number): worker for number, worker in enumerate(workers[name] for name in gpus)}
    lines = []
    client = SimpleNamespace(scheduler_info=lambda **_: {"address": "tcp://a:1", "workers": workers})
    assert cluster.check_workers(client, lines.append) == resources and lines == [f"scheduler tcp://a:1: {shown}"]


# ------------------------------------------------------------------------------------------------------ SLURM

FAKES = {  # run the job scripts on this machine
    "sbatch": """#!/bin/bash
if [ "$1" = --test-only ]; then
    if grep -q "SBATCH -p nowhere"; then echo "sbatch: error: invalid partition: nowhere" >&2; exit 1; fi
    exit 0
fi
number=1; until mkdir "$FAKE/$number" 2> /dev/null; do number=$((number + 1)); done
cp "$1" "$FAKE/$number/script"
setsid bash "$FAKE/$number/script" > "$FAKE/$number/log" 2>&1 < /dev/null & echo $! > "$FAKE/$number/pid"
echo "Submitted batch job $number"
""",
    "scancel": """#!/bin/bash
for number in "$@"; do kill -TERM -- "-$(cat "$FAKE/$number/pid")"; done
""",
}


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch) -> Path:
    (tmp_path / "bin").mkdir()
    for name, script in FAKES.items():
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "jobs").mkdir()
    for variables in (os.environ, ONE_THREAD):
        monkeypatch.setitem(variables, "FAKE", str(tmp_path / "jobs"))
        monkeypatch.setitem(variables, "PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "jobs"


def test_job_script_has_the_options_of_slurm():
    from dask_jobqueue.slurm import SLURMJob

    options = launcher.read_slurm_options(SLURM + ",account=vision,gres=gpu:a100:1,log_directory=logs")
    assert options["gres"] == "gpu:a100:1"
    arguments = cluster.slurm_arguments({**options, "log_directory": "/tmp"})
    script = SLURMJob("tcp://login:1234", name="w", **arguments).job_script().splitlines()
    expected = [
        "#SBATCH -J pckd-nb", "#SBATCH -e /tmp/pckd-nb-%J.err", "#SBATCH -o /tmp/pckd-nb-%J.out", "#SBATCH -p gpu",
        "#SBATCH -A vision", "#SBATCH -n 1", "#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 08:00:00",
        "#SBATCH --gpus=1", "#SBATCH --gres=gpu:a100:1", "export OMP_NUM_THREADS=8",
        "export DASK_DISTRIBUTED__WORKER__DAEMON=False",
    ]  # fmt: skip
    assert [line for line in script if line][1:-1] == expected
    assert "dask_worker tcp://login:1234 --name w --nthreads 1 --memory-limit 29.80GiB" in script[-1]


def test_slurm_needs_sbatch_and_may_refuse_the_job(small_grid, fake_slurm, monkeypatch):
    with pytest.raises(ValueError, match="slurm=.* is refused: sbatch: error: invalid partition: nowhere"):
        run_quietly(small_grid, slurm="partition=nowhere,cores=1,memory=1GB")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match="slurm=… needs the command sbatch, which this machine does not have"):
        run_quietly(small_grid, slurm=SLURM)
    assert not list(fake_slurm.iterdir()) and not small_grid.out.exists()


@slow
def test_slurm_jobs_train_the_grid_and_end(larger_teacher, alone, fake_slurm, tmp_path):
    slurm = "partition=x,cores=1,memory=4GB,interface=lo"
    process = start(compare(larger_teacher, tmp_path / "grid", "--slurm", slurm, "--jobs", "2"))
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and "2 SLURM jobs submitted: a run starts when a job starts" in output, errors
    assert_complete(tmp_path / "grid", alone)
    assert sorted(path.name for path in fake_slurm.iterdir()) == ["1", "2"]
    groups = [int((job / "pid").read_text()) for job in fake_slurm.iterdir()]
    end = time.monotonic() + 30
    while any(map(is_running, groups)):
        assert time.monotonic() < end, "the jobs must end with the command"
        time.sleep(0.1)


def is_running(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# -------------------------------------------------------------------------------------------- errors of one run


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (KeyError("weights"), "KeyError: 'weights'"),
        (TypeError("unsupported"), "TypeError: unsupported"),
        (ValueError("no such layer\nmore"), "no such layer"),
        (OSError(28, "No space left on device", "runs/x"), "runs/x: No space left on device"),
        (MemoryError(), "MemoryError"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_any_error_of_a_run_is_one_line_and_the_others_are_trained(error, shown, teacher, tmp_path, monkeypatch):  # noqa: F811
    grid, train = make_grid(teacher, tmp_path, "supervised", [0, 1]), experiments.Grid.train

    def fail_first(self, point, *how):
        if point.seed == 0:
            raise error
        return train(self, point, *how)

    monkeypatch.setattr(experiments.Grid, "train", fail_first)
    lines = []
    with pytest.raises(
        experiments.FailedRunsError, match="1 of 2 runs failed, .*; first error: .* supervised seed 0: "
    ):
        experiments.run_grid(grid, progress=False, print_fn=lines.append)
    assert lines[2] == f"[1/2] {grid.points()[0]}: {shown}" and lines[3].startswith(f"[2/2] {grid.points()[1]}: ")
    assert pd.read_csv(tmp_path / "results.csv")["seed"].tolist() == [1]


def test_a_locked_run_folder_is_waited_for(small_grid, monkeypatch):
    waited = []
    monkeypatch.setattr(engines.time, "sleep", waited.append)

    def locked_twice(*_):
        if len(waited) < 2:
            raise BlockingIOError("another process is training")
        return SimpleNamespace(finished=True, accuracy=50.0)

    grid = SimpleNamespace(train=locked_twice)
    point = small_grid.points()[0]
    assert engines.train_point(grid, point).failure == "another process is training"
    assert engines.train_point(grid, point, max_wait=60).accuracy == 50 and len(waited) == 2
    waited.clear()
    assert engines.train_point(grid, point, stop=lambda: bool(waited), max_wait=60) is None


def test_teachers_that_do_not_fit_are_found_before_training(teacher, tmp_path):  # noqa: F811
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=20)
    arms = [experiments.parse_arm("supervised"), experiments.parse_arm("kd")]
    sizes = {"train_size": 200, "test_size": 100}
    grid = experiments.Grid("shapes100", [(teacher, "resnet8")], arms, [0], tmp_path / "grid", recipe, sizes)
    with pytest.raises(ValueError, match="teacher"):
        run_quietly(grid)
    (teacher / "student.safetensors").rename(tmp_path / "weights")
    try:
        with pytest.raises(ValueError, match="saved without weights"):
            run_quietly(make_grid(teacher, tmp_path / "grid"))
    finally:
        (tmp_path / "weights").rename(teacher / "student.safetensors")
    assert not (tmp_path / "grid").exists()


# ------------------------------------------------------------------------------------------- processes and GPUs


def test_every_process_takes_a_gpu_of_its_own(small_grid, tmp_path, monkeypatch):
    assert engines.assign_gpus(small_grid, 2) == [] or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert engines.assign_gpus(small_grid, 2) == ["0", "1"] and engines.assign_gpus(small_grid, 3) == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5")
    assert engines.assign_gpus(small_grid, 2) == ["3", "GPU-5"]
    on_cpu = SimpleNamespace(options={"accelerator": "cpu"})
    assert engines.assign_gpus(on_cpu, 2) == []
    shared = engines.SharedFolder(tmp_path)
    try:
        assert [shared.take_gpu(["3", "GPU-5"]) for _ in range(3)] == ["3", "GPU-5", None]
    finally:
        while engines.TAKEN:
            engines.TAKEN.pop().release()


def test_more_jobs_than_gpus_are_announced(teacher, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(engines, "assign_gpus", lambda *_: ["0", "0"])
    monkeypatch.setattr(experiments.execution, "assign_gpus", lambda *_: ["0", "0"])
    monkeypatch.setattr(experiments.execution, "train_in_processes", lambda *_: iter(()))
    lines = run_quietly(make_grid(teacher, tmp_path, "supervised", [0, 1]), jobs=5)
    assert "2 jobs share 1 GPU: every run uses one of them" in lines


def test_marks_of_killed_processes_are_found_once(tmp_path):
    shared = engines.SharedFolder(tmp_path)
    with shared.started(0):
        assert shared.pop_started([0, 1]) == [0]
        with shared.started(0):
            pass
        assert shared.pop_started([0, 1]) == []
        shared._mark(0).touch()
    assert not list(tmp_path.iterdir()) and not shared.must_stop()
    shared.ask_to_stop()
    assert shared.must_stop()


def test_the_first_ctrl_c_asks_and_the_second_one_interrupts():
    asked, before = [], signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), engines.stop_on_ctrl_c(lambda: asked.append(1)):
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.05)
        assert asked == [1]
        signal.raise_signal(signal.SIGINT)
    assert asked == [1] and signal.getsignal(signal.SIGINT) is before


def test_a_process_ends_with_its_parent():
    code = "import os, sys; from pckd_nb.experiments.engines import end_with_parent; end_with_parent(os.getppid() + 1)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 1


def test_a_worker_uses_the_folders_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("PCKD_DATA", "mine")
    setup = cluster.WorkerSetup(b"", str(tmp_path), None, None, "")
    before = Path.cwd()
    with cluster.same_surroundings(setup):
        assert Path.cwd() == tmp_path and "PCKD_DATA" not in os.environ
    assert Path.cwd() == before and os.environ["PCKD_DATA"] == "mine"
    with cluster.same_surroundings(setup._replace(data_root="data")):
        assert os.environ["PCKD_DATA"] == "data"
    with pytest.raises(FileNotFoundError, match="has no folder '/nowhere': all machines need it"):
        with cluster.same_surroundings(setup._replace(folder="/nowhere")):
            pass


def test_runs_that_this_machine_does_not_see_are_failures(small_grid, monkeypatch):
    monkeypatch.setattr(experiments.execution, "MAX_DELAY", 0)
    points = small_grid.points()
    outcomes = iter([engines.Outcome(point, 50.0, 1.0) for point in points])
    monkeypatch.setattr(experiments.execution, "train_on_cluster", lambda *_: outcomes)
    lines = []
    with pytest.raises(experiments.FailedRunsError, match=f"{len(points)} of .* failed.*must share this folder"):
        experiments.run_grid(small_grid, scheduler="127.0.0.1:1", print_fn=lines.append)
    assert f"{points[0]}: a worker has trained it, but this machine does not see the run" in "\n".join(lines)
    assert (small_grid.out / "results.csv").exists()


# --------------------------------------------------------------------------------------- the page in docs/

PAGE = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text("utf-8")
SMALLER = {  # what is too large for a test → what is run instead
    "--data cifar100": "--data digits --train-size 20 --test-size 20 --epochs 1 --batch-size 10",
    "--pairs paper": "--pairs resnet56:resnet20",
    "--seeds 0-2": "--seeds 0",
    "/32": "/2", "cores=8": "cores=1", "--jobs 16": "--jobs 2", "--jobs 4": "--jobs 2",
}  # fmt: skip


def blocks() -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", PAGE, re.S | re.M)


def smaller(block: str, out: str = "runs/table") -> str:
    for words, others in SMALLER.items():
        block = block.replace(words, others)
    return block.replace("--out runs/table", f"--out {out}")


@slow
def test_all_commands_of_the_page_on_clusters(fake_slurm, dask, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = f'#!/bin/bash\nexec {sys.executable} -m pckd_nb "$@"\n'
    (tmp_path / "bin" / "pckd-nb").write_text(command)
    (tmp_path / "bin" / "pckd-nb").chmod(0o755)
    environment = {**ONE_THREAD, "PYTHONPATH": os.pathsep.join([str(Path(pckd.__file__).parents[1]), *sys.path])}

    def bash(text: str, **variables: str) -> str:
        done = subprocess.run(["bash", "-c", text], env={**environment, **variables}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    teachers, plan, jobs, array, slurm, scheduler, worker, on_dask = blocks()
    assert "6 runs, 0 finished, 6 to train" in bash(smaller(teachers))

    monkeypatch.setattr(experiments.projection, "_measure_step_seconds", lambda *_: 1.0)
    words = shlex.split(plan.replace("--data cifar100", SMALLER["--data cifar100"]).replace("\\\n", ""))
    assert words.pop(0) == "pckd-nb" and cli.main(words) == 0
    assert "105 runs, 105 to train, estimated time: " in capsys.readouterr().out

    assert "3 runs, 0 finished, 3 to train" in bash(smaller(jobs, "runs/jobs"))
    for number in ("1", "2"):
        output = bash(smaller(array, "runs/array"), SLURM_ARRAY_TASK_ID=number)
        assert re.search(rf"shard {number} of 2: [12] runs?, 0 finished", output)
    assert "2 SLURM jobs submitted" in bash(smaller(slurm, "runs/slurm"))
    assert "#SBATCH -t 24:00:00" in (fake_slurm / "1" / "script").read_text()

    assert scheduler == "dask scheduler --port 8786\n"
    variables, *words = shlex.split(worker)
    assert words[:3] == ["dask", "worker", "tcp://node1:8786"] and variables == "CUDA_VISIBLE_DEVICES=0"
    began = dask(2, *words[3:])
    assert "2 workers\n" in bash(smaller(on_dask, "runs/dask").replace("tcp://node1:8786", began.address))

    once_more = bash(smaller(array, "runs/array").replace('--shard "$SLURM_ARRAY_TASK_ID/2"', ""))
    assert "3 runs, 3 finished, 0 to train" in once_more and "resnet56-resnet20  pckd " in once_more
    tables = {name: Path("runs", name, "results.csv").read_bytes() for name in ("jobs", "array", "slurm", "dask")}
    assert len(set(tables.values())) == 1 and tables["jobs"].count(b"\n") == 4


def test_the_page_names_the_options_of_slurm():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", PAGE.partition("| option | meaning |")[2], re.M)
    named = {name for row in rows for name in re.findall(r"\w+", row)}
    assert named <= {"cores", "partition", *cluster.CLUSTER_OPTIONS} and len(named) >= 7
