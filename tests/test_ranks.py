"""One training in several processes, on the CPU of this machine with gloo."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pckd_nb as pckd
from benchmarks import ranks_job, trials
from benchmarks.gpu_checks import CheckFailedError
from pckd_nb import catalogue, cli, experiments, launcher, ranks

REPOSITORY = Path(__file__).parents[1]
LAUNCHER_NAMES = {"RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in LAUNCHER_NAMES}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
ARMS = [trials.arm_of(name) for name in (*catalogue.METHODS, *catalogue.BASELINES)] + ["kd-views=4"]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The folder with the results of the job in one process."""
    out = tmp_path_factory.mktemp("one_process")
    threads = torch.get_num_threads()
    ranks_job.interrupt_training(out / "interrupted")
    ranks_job.main(out, ARMS)
    torch.set_num_threads(threads)
    return out


def test_local_parts_make_up_the_batch():
    index = torch.arange(11)
    for size in (1, 2, 4, 11):
        parts = [ranks.local_part(index, SimpleNamespace(world_size=size, global_rank=rank)) for rank in range(size)]
        assert torch.equal(torch.cat(parts), index)
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_gathered_rows_are_view_major_and_without_padding():
    """Eleven images in two views on four imitated ranks, which see the rows of each other."""
    everything = torch.arange(22.0)[:, None] * torch.ones(2)
    cut = [part.tensor_split(4) for part in everything.unflatten(0, (2, 11))]
    own = [torch.stack([upright, rotated]) for upright, rotated in zip(*cut, strict=True)]
    padded = [torch.cat([x, x.new_zeros(2, 3 - x.shape[1], 2)], dim=1) for x in own]
    for rank, rows in enumerate(own):

        def all_gather(x, sync_grads, rank=rank):
            assert torch.equal(x, padded[rank]) and not sync_grads
            return torch.stack(padded)

        fabric = SimpleNamespace(world_size=4, global_rank=rank, all_gather=all_gather)
        assert torch.equal(ranks.gather_rows(rows.flatten(0, 1), 11, fabric), everything)


SLURM_ENV = {"SLURM_NTASKS": "16", "SLURM_NNODES": "4", "SLURM_JOB_NAME": "distil", "SLURM_PROCID": "5"}
TORCHRUN_ENV = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "64", "RANK": "9", "LOCAL_RANK": "1"}


@pytest.fixture
def environment(monkeypatch):
    """A function that sets environment variables, after all variables of launchers have been removed."""
    for name in (*LAUNCHER_NAMES, *SLURM_ENV, *TORCHRUN_ENV, "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_first_rank_is_read_from_launcher_variables(environment):
    assert ranks.is_first_rank() and ranks.is_first_rank(2)
    environment(NODE_RANK="1", RANK="3", LOCAL_RANK="1", WORLD_SIZE="4")  # as a cluster may set them
    assert ranks.is_first_rank(1) and ranks.is_first_rank() and ranks.is_first_rank(2)
    assert not ranks.is_first_rank(2, nodes=2), "the second machine"
    environment(MASTER_PORT="1")
    assert not ranks.is_first_rank(2) and not ranks.is_first_rank(), "Fabric's second process"
    environment(LOCAL_RANK="0")
    assert ranks.is_first_rank(2) and not ranks.is_first_rank(2, nodes=2)
    environment(**SLURM_ENV)
    assert ranks.is_first_rank(2)  # in a batch script
    environment(SLURM_STEP_ID="0")
    assert not ranks.is_first_rank(4, 4) and ranks.is_first_rank(1)
    environment(SLURM_PROCID="0")
    assert ranks.is_first_rank(4, 4)
    environment(**TORCHRUN_ENV, NODE_RANK="0")
    assert not ranks.is_first_rank(8, 8) and ranks.is_first_rank(1)
    environment(RANK="0", NODE_RANK="1")
    assert ranks.is_first_rank(8, 8) and ranks.is_first_rank()


@pytest.mark.parametrize("job", ["distil", "bash", "interactive", None])
@pytest.mark.parametrize("dropped", ["SLURM_NTASKS", "TORCHELASTIC_RUN_ID", ""])
@pytest.mark.parametrize("step", ["0", None])
def test_launchers_are_detected_as_in_fabric(environment, monkeypatch, job, dropped, step):
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    environment(**{name: value for name, value in {**SLURM_ENV, **TORCHRUN_ENV}.items() if name != dropped})
    monkeypatch.delenv("SLURM_JOB_NAME")
    environment(**{name: value for name, value in (("SLURM_JOB_NAME", job), ("SLURM_STEP_ID", step)) if value})
    assert launcher._by_torchrun() == TorchElasticEnvironment.detect()
    assert launcher._by_srun() == (step is not None and SLURMEnvironment.detect())


@pytest.mark.parametrize("variables", [{"NODE_RANK": "1", "RANK": "1", "WORLD_SIZE": "2"}, SLURM_ENV])
def test_single_process_ignores_launcher_variables(variables, environment, data, recipe, tmp_path, capsys):
    environment(**variables)
    student = pckd.create_model("resnet8", data)
    run = pckd.fit(student, data, recipe, out=tmp_path / "run", accelerator="cpu", progress=False)
    assert run.finished and pckd.load_run(run.path).finished
    assert cli.main(["train", "--model", "resnet8", "--data", "digits", "--out", str(run.path)]) == 2
    assert "exists: --resume continues the run" in capsys.readouterr().err
    several = "from pckd_nb.evaluation import make_fabric; make_fabric('cpu', '32-true', 2)"
    subprocess.run([sys.executable, "-c", several], check=True)  # this process may have IPython, and would be refused


def test_grid_under_a_launcher_is_refused(environment, monkeypatch):
    environment(**TORCHRUN_ENV)
    with pytest.raises(ValueError, match="a grid is trained from one process: start it without torchrun or srun"):
        experiments.run_grid(None)


def test_all_processes_refuse_different_settings():
    settings = {"seed": 0, "precision": "32-true", "hardware": "a"}
    for mine, others, message in (
        ({}, 0, None),
        ({"hardware": "b"}, 0, None),
        ({"seed": 1}, 0, "seed is not that of rank 0; start all"),
        ({}, 1, "; start all"),
    ):
        fabric = SimpleNamespace(world_size=2, device="cpu", broadcast=lambda _: settings)
        fabric.all_reduce = lambda flag, reduce_op, others=others: torch.maximum(flag, torch.tensor(float(others)))
        if message is None:
            ranks.check_ranks_have_same_settings(fabric, {**settings, **mine})
        else:
            with pytest.raises(ValueError, match="^the processes have different settings.*" + message):
                ranks.check_ranks_have_same_settings(fabric, {**settings, **mine})


def test_number_of_processes_is_read_from_launcher_variables(environment, monkeypatch):
    assert ranks.launched_processes() == (1, 1)
    with monkeypatch.context() as torchrun:
        for name, value in TORCHRUN_ENV.items():
            torchrun.setenv(name, value)
        assert ranks.launched_processes() == (8, 8)
    environment(**SLURM_ENV)
    assert ranks.launched_processes() == (1, 1)  # in a batch script, not under srun
    environment(SLURM_STEP_ID="0")
    assert ranks.launched_processes() == (4, 4)


def test_error_on_the_first_rank_is_raised_on_all_ranks():
    sent = []

    def fabric(first):
        return SimpleNamespace(world_size=2, is_global_zero=first, broadcast=lambda x: sent.append(x) or sent[0])

    def fails():
        raise ValueError("no")

    for first, action in ((True, fails), (False, lambda: pytest.fail("not the first"))):
        with pytest.raises(ValueError, match="no"):
            ranks.run_on_first_rank(fabric(first), action)
    sent.clear()
    answers = [ranks.run_on_first_rank(fabric(first), lambda first=first: 3 if first else 4) for first in (True, False)]
    assert answers == [3, 3]


def test_invalid_numbers_of_processes_are_refused(data, student, tmp_path, monkeypatch):
    def refused(match, batch_size=16, **options):
        recipe = pckd.get_recipe("classroom", epochs=1, batch_size=batch_size)
        with pytest.raises(ValueError, match=match):
            pckd.fit(student, data, recipe, accelerator="cpu", out=tmp_path / "run", progress=False, **options)
        assert not list(tmp_path.iterdir())

    refused("devices must be at least 1, got 0", devices=0)
    refused("nodes must be at least 1, got 0", devices=2, nodes=0)
    refused("17 processes are too many: a batch or split of tiny has fewer images; use fewer", devices=17)
    one_image = "batch_size 16 gives a batch of one image for one of 16 processes: BatchNorm needs at least 2 images"
    refused(one_image, devices=16)
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    refused("cannot start 2 processes from a notebook: use the command pckd-nb distill", devices=2)


def test_only_the_first_process_prints_early_errors(environment, capsys):
    for rank, expected in ((1, ""), (0, "unknown recipe 'short'")):
        environment(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_PORT="1")
        arguments = ["train", "--model", "resnet8", "--data", "digits", "--out", "x", "--recipe", "short"]
        assert cli.main(arguments) == 2
        errors = capsys.readouterr().err
        assert expected in errors and bool(errors) == bool(expected)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_every_method_gives_the_same_results_on_several_ranks(count, one_process, tmp_path):
    shutil.copytree(one_process / "interrupted", tmp_path / "cut")
    command = [*TORCHRUN, str(count), "-m", "benchmarks.ranks_job", str(tmp_path), *ARMS]
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    different = {}
    for arm in ARMS:
        try:
            ranks_job.compare(one_process, tmp_path, arm, count)
        except CheckFailedError as problem:
            different[arm] = str(problem)
    assert not different
    counts = [len(torch.load(tmp_path / f"kd-{rank}.pt")["read"][0]) for rank in range(count)]
    assert len(set(counts)) > 1, "parts of unequal size"

    one, many = (pckd.load_run(folder) for folder in (one_process / "pckd", tmp_path / "cut"))
    assert many.finished and np.allclose(one.history, many.history, rtol=1e-5, atol=1e-6)
    assert pckd.load_run(one_process / "interrupted").history.empty  # interrupted after the first step

    ends = [torch.load(tmp_path / f"normalised-{rank}.pt") for rank in range(count)]
    student = pckd.create_model("resnet8", ranks_job.DATA)
    student.load_state_dict(ends[0]["state"])
    for other in ends:  # running means of each rank's own batches would differ
        assert all(torch.equal(other["state"][name], x) for name, x in ends[0]["state"].items())
        assert other["accuracy"] == pckd.evaluate(student, ranks_job.DATA, accelerator="cpu", precision="32-true").top1
    assert "each process computes BatchNorm from its own part of a batch, because BatchNorm can be" in done.stderr


def change_tensors(kind, rank, change):
    """Return a function that changes the first tensor that a rank wrote."""

    def apply(out):
        file = out / f"CRD-negatives=8-{rank}.pt"
        state = torch.load(file)
        name = next(iter(state[kind]))
        state[kind][name] = change(state[kind][name])
        torch.save(state, file)

    return apply


def change_history(out):
    file = out / "CRD-negatives=8" / "history.csv"
    lines = file.read_text().splitlines()
    lines[-1] = lines[-1].replace("2,", "3,", 1)
    file.write_text("\n".join(lines) + "\n")


def drop_parameters(out):
    file = out / "CRD-negatives=8-0.pt"
    state = torch.load(file)
    state["gradients"].popitem()
    torch.save(state, file)


def read_twice(out):
    file = out / "CRD-negatives=8-0.pt"
    state = torch.load(file)
    state["read"][1][0] = state["read"][1][1]
    torch.save(state, file)


DIFFERENCES = {
    "gradients: .* is off by": change_tensors("gradients", 0, lambda x: x + 1e-9 * x.abs().max()),
    "states: method.* is off by": change_tensors("states", 0, lambda x: x + 1e-9 * x.abs().max()),
    "gradients: .* is off by inf": change_tensors("gradients", 0, lambda x: x * torch.nan),
    "gradients: .* differs on rank 1": change_tensors("gradients", 1, lambda x: x + 1e-15 * x.abs().max()),
    "the gradients are not those of the same tensors": drop_parameters,
    "history.csv differs": change_history,
    "the ranks did not read every image once in epoch 2": read_twice,
}


@pytest.fixture(scope="module")
def one_method(tmp_path_factory):
    """The folder with the results of one method in one process, and one that looks like that of two processes."""
    one, two = (tmp_path_factory.mktemp(name) / "job" for name in ("one", "two"))
    one.mkdir()
    ranks_job.main(one, ["CRD-negatives=8"])
    shutil.copytree(one, two)
    results = torch.load(two / "CRD-negatives=8-0.pt")
    for rank in range(2):
        read = [index.tensor_split(2)[rank] for index in results["read"]]
        torch.save({**results, "read": read}, two / f"CRD-negatives=8-{rank}.pt")
    settings = two / "CRD-negatives=8" / "run.json"
    settings.write_text(settings.read_text().replace('"ranks": 1', '"ranks": 2'))
    return one, two


@pytest.mark.parametrize("expected", [None, *DIFFERENCES])
def test_a_difference_between_numbers_of_ranks_is_found(expected, one_method, tmp_path):
    one, two = one_method
    shutil.copytree(two, tmp_path / "job")
    if expected is None:
        assert ranks_job.compare(one, tmp_path / "job", "CRD-negatives=8", 2) == 0
        return
    DIFFERENCES[expected](tmp_path / "job")
    with pytest.raises(CheckFailedError, match=expected):
        ranks_job.compare(one, tmp_path / "job", "CRD-negatives=8", 2)


LAUNCHERS = {
    "fabric": ([sys.executable], ["--devices", "2", "--strategy", "ddp"]),
    "torchrun": ([*TORCHRUN, "2"], []),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run folder."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    data = pckd.load_dataset("digits", train_size=200, test_size=100)
    recipe = pckd.get_recipe("classroom", epochs=1)
    pckd.fit(pckd.create_model("resnet14", data), data, recipe, out=out, progress=False)
    return out


def launch(teacher: Path, out: Path, *options: str, by: list[str]) -> subprocess.Popen:
    """Start pckd-nb distill on digits in two processes. It takes at most half a minute."""
    arguments = ["distill", "--teacher", teacher, "--student", "resnet8", "--data", "digits", "--out", out]
    arguments += ["--train-size", "200", "--test-size", "100", "--epochs", "40", *options]
    command = [*by, "-m", "tests.often", *map(str, arguments)]
    streams = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=REPOSITORY, env=ENVIRONMENT, start_new_session=True, **streams)


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def wait_for(what, seconds: float = 300):
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.05)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["fabric", "torchrun"])
def test_ctrl_c_stops_all_ranks_and_saves(launcher, teacher, tmp_path):
    by, how = LAUNCHERS[launcher]
    job = launch(teacher, tmp_path / "run", *how, by=by)
    wait_for(lambda: (tmp_path / "run" / "checkpoint.pt").exists() or job.poll() is not None)
    os.killpg(job.pid, signal.SIGINT)  # as a terminal does
    output, errors = job.communicate(timeout=300)
    assert job.returncode == (130 if launcher == "fabric" else 1), errors  # torchrun itself returns 1
    message = "interrupted after [0-9]+ whole epochs?; the same command with --resume continues the training"
    assert re.search(message, output)
    run = pckd.load_run(tmp_path / "run")
    assert run.settings["status"] == "interrupted" and len(run.history) < 40


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("launcher, victim", [("fabric", 1), ("fabric", 0), ("torchrun", 1)])
def test_killed_rank_ends_the_job_with_one_line_and_the_run_resumes(launcher, victim, teacher, tmp_path):
    by, how = LAUNCHERS[launcher]
    job = launch(teacher, tmp_path / "run", *how, by=by)
    try:
        wait_for(lambda: (tmp_path / "run" / "checkpoint.pt").exists() or job.poll() is not None)
        processes = children(job.pid) if launcher == "torchrun" else [job.pid, *children(job.pid)]
        assert job.poll() is None and len(processes) == 2
        os.kill(processes[victim], signal.SIGKILL)
        killed = time.monotonic()
        output, errors = job.communicate(timeout=300)
        survivor = processes[1 - victim]
        wait_for(lambda: not Path(f"/proc/{survivor}").exists(), 300 - (time.monotonic() - killed))
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode != 0
    printed = [line for line in errors.splitlines() if line.startswith("pckd-nb")]
    gone = "another process of this training has ended: start the training again with --resume"
    if launcher == "torchrun":  # torchrun reports the kill itself, maybe before the other process can print
        assert "SIGKILL" in errors and set(printed) <= {f"pckd-nb, process {1 - victim}: {gone}"}
    else:
        assert printed == [f"pckd-nb, process {1 - victim}: {gone}"]
    before = json.loads((tmp_path / "run" / "run.json").read_text())
    assert before["status"] == "running"

    resumed = launch(teacher, tmp_path / "run", *how, "--resume", by=by)
    output, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    run = pckd.load_run(tmp_path / "run")
    assert run.finished and len(run.history) == 40 and np.isfinite(run.cross_entropy).all()
    assert re.findall("top-1", output) == ["top-1"]  # only one process prints it
    assert not list((tmp_path / "run").glob(".*")) and not (tmp_path / "run" / "checkpoint.pt").exists()
