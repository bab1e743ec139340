"""Trainings that are killed, interrupted or cannot write can be resumed and end with the same result.

`crashes` has the processes that are killed, and a longer version of the first test.
"""

import os
import re
import signal
import tempfile
import time
import warnings
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
import torch

import pckd_nb as pckd
from pckd_nb import cli, files, resuming, runs, training

from .conftest import make_data

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that can fork")
if hasattr(os, "fork"):
    from . import crashes

QUIET = dict(accelerator="cpu", precision="32-true", progress=False)
TRAIN = ["train", "--data", "digits", "--train-size", "60", "--test-size", "40", "--model", "resnet8"]
TRAIN += ["--epochs", "3", "--batch-size", "20", "--accelerator", "cpu"]  # three steps per epoch


@pytest.mark.slow
def test_training_killed_twenty_times_ends_in_exactly_the_same_files(tmp_path):
    found = crashes.survive_kills(tmp_path, kills=20)
    assert found.kills == 20 and found.in_checkpoint >= 10 and found.before_the_first >= 1 and found.with_cache >= 7


@pytest.mark.slow
@pytest.mark.parametrize("scenario", crashes.SCENARIOS if hasattr(os, "fork") else ())
def test_kill_before_any_line_that_writes_leaves_a_usable_folder(scenario, tmp_path):
    assert crashes.count_kill_points(tmp_path / "run", scenario) > 20


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The files of an uninterrupted training from the command line."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    assert run(*TRAIN, "--out", folder) == (0, [])
    return {name: (folder / name).read_bytes() for name in crashes.COMPARED}


def run(*arguments, event=None, name="", time=1) -> tuple[int, list[str]]:
    """Run a command in its own process. Return its exit status and the lines of stderr without progress bars."""
    with tempfile.TemporaryDirectory() as folder:
        process, _ = crashes.start(arguments, Path(folder) / "output", event, name, time)
        return end(process, Path(folder) / "output")


def end(process, output: Path) -> tuple[int, list[str]]:
    process.join(120)
    lines = re.split(r"[\r\n]+", output.with_suffix(".err").read_text())
    return process.exitcode, [line for line in lines if line.strip() and "step" not in line]


def assert_resume_ends_with(expected: dict[str, bytes], folder: Path) -> None:
    assert resuming.has_checkpoint(folder)
    status, errors = run(*TRAIN, "--out", folder, "--resume")
    assert status == 0 and not errors, errors
    assert {name: (folder / name).read_bytes() for name in expected} == expected
    assert set(os.listdir(folder)) == crashes.FINISHED_FILES


# Which write of which file fails: within an epoch, at the end of one, at the end of the training.
FAILING_WRITES = [("checkpoint.pt", 2), ("checkpoint.pt", 3), ("checkpoint.pt", 8), ("student.safetensors", 1)]
FAILING_WRITES += [
    ("history.csv", 2),
    ("samples.npz", 3),
    ("gallery.npz", 1),
    ("embedding.npz", 1),
    ("geometry.npz", 1),
]
FAILING_WRITES += [("run.json", 4)]


@pytest.mark.slow
@pytest.mark.parametrize("name, time", FAILING_WRITES)
def test_full_disk_gives_one_line_and_keeps_the_last_checkpoint(name, time, expected, tmp_path):
    folder = tmp_path / "run"
    status, errors = run(*TRAIN, "--out", folder, event=crashes.disk_full, name=name, time=time)
    assert status == 2 and len(errors) == 1
    assert errors[0].startswith(f"pckd-nb: {folder / name}: File too large; the last checkpoint is unchanged, --resume")
    assert not list(folder.glob(".*"))
    assert_resume_ends_with(expected, folder)


@pytest.mark.parametrize("time", [1, 2])
def test_disk_full_from_the_start_gives_one_line_and_leaves_nothing(time, tmp_path):
    """The disk is full when the settings or the first checkpoint is written."""
    name = ("run.json", "checkpoint.pt")[time - 1]
    status, errors = run(*TRAIN, "--out", tmp_path / "run", event=crashes.disk_full, name=name)
    assert (status, errors) == (2, [f"pckd-nb: {tmp_path / 'run' / name}: File too large"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def open_folder():
    """A folder that other users may enter."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_folder_that_becomes_read_only_gives_one_line(expected, open_folder):
    folder = open_folder / "run"
    status, errors = run(*TRAIN, "--out", folder, event=crashes.read_only, name="checkpoint.pt", time=5)
    assert status == 2 and len(errors) == 1
    assert errors[0].startswith(
        f"pckd-nb: {folder / 'checkpoint.pt'}: Permission denied; the last checkpoint is unchanged"
    )
    folder.chmod(0o755)
    assert_resume_ends_with(expected, folder)


@pytest.mark.parametrize("event", ["removed", "renamed", "replaced"])
def test_folder_that_disappears_gives_one_line(event, expected, tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    status, errors = run(*TRAIN, "--out", folder, event=getattr(crashes, event), name="checkpoint.pt", time=5)
    assert status == 2 and len(errors) == 1
    assert errors[0].startswith(
        f"pckd-nb: the folder '{folder}' is gone: it, or its file .lock, was removed or renamed"
    )
    if event == "replaced":  # the files there now belong to another training
        assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
            (".lock", "run.json"), "another's"
        )
    else:
        assert not folder.exists()
    if event != "removed":
        assert_resume_ends_with(expected, elsewhere)


def test_second_process_is_refused_and_the_first_continues(expected, tmp_path, capsys):
    folder = tmp_path / "run"
    first, pipe = crashes.start([*TRAIN, "--out", folder], tmp_path / "output", crashes.pause, "checkpoint.pt", 4)
    assert pipe.recv() == "there"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for option in ("--resume", "--overwrite"):
        assert cli.main([*TRAIN, "--out", str(folder), option]) == 2
        assert capsys.readouterr().err == (
            f"pckd-nb: another process is training in '{folder}': wait for it, or choose another folder\n"
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    pipe.send("go on")
    assert end(first, tmp_path / "output") == (0, [])
    assert {name: (folder / name).read_bytes() for name in expected} == expected
    assert set(os.listdir(folder)) == crashes.FINISHED_FILES


def test_second_process_may_resume_after_the_first_was_killed(expected, tmp_path):
    folder = tmp_path / "run"
    first, pipe = crashes.start([*TRAIN, "--out", folder], tmp_path / "output", crashes.pause, "checkpoint.pt", 4)
    assert pipe.recv() == "there"
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert (folder / ".lock").exists()
    assert_resume_ends_with(expected, folder)


def test_workers_that_outlive_a_killed_process_do_not_keep_its_lock(tmp_path):
    read, write = os.pipe()
    owner = os.fork()
    if owner == 0:
        with files.locked(tmp_path / "run"):
            worker = os.fork()
            if worker:
                os.write(write, str(worker).encode())
            time.sleep(60)
        os._exit(0)
    worker = int(os.read(read, 100))
    try:
        with pytest.raises(BlockingIOError), files.locked(tmp_path / "run"):
            pass
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        with files.locked(tmp_path / "run"):
            os.kill(worker, 0)  # the worker still runs
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("step", [4, 6, 9])
def test_ctrl_c_saves_and_resume_ends_in_exactly_the_same_files(step, expected, tmp_path):
    """Interrupt while a checkpoint is written, within an epoch or at its end. After the last step, the run finishes."""
    folder, output = tmp_path / "run", tmp_path / "output"
    name = "checkpoint.pt" if step < 9 else "samples.npz"
    time = step if step < 9 else 3
    process, pipe = crashes.start([*TRAIN, "--out", folder], output, crashes.pause, name, time)
    assert pipe.recv() == "there"
    os.kill(process.pid, signal.SIGINT)
    pipe.send("go on")
    status, errors = end(process, output)
    assert not errors
    printed = output.with_suffix(".out").read_text().splitlines()
    if step == 9:
        assert status == 0 and {name: (folder / name).read_bytes() for name in expected} == expected
    else:
        assert status == 130
        done = (step + 1) // 3  # the current step is still finished
        message = (
            f"interrupted after {done} whole epoch{'s' * (done != 1)}; "
            "the same command with --resume continues the training"
        )
        assert [line for line in printed if "resume" in line] == [message]
        assert runs.read_settings(folder)["status"] == "interrupted"
        assert_resume_ends_with(expected, folder)


def student_teacher_data():
    data = make_data()
    return pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1), data


@pytest.fixture
def recipe():
    return pckd.get_recipe("classroom", epochs=4, batch_size=16)  # three steps per epoch


class Stopped(BaseException):
    pass


@contextmanager
def changed_step(step: int, then):
    """Let the method KD return `then(terms, batch)` in one step."""
    forward, steps = pckd.KD.forward, count(1)

    def fails(self, student, teacher, batch, epoch):
        terms = forward(self, student, teacher, batch, epoch)
        return then(terms, batch) if next(steps) == step else terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pckd.KD, "forward", fails)
        yield


def raise_stopped(terms, batch):
    raise Stopped


@pytest.fixture
def save_always(monkeypatch):
    monkeypatch.setattr(training.callbacks, "MIN_SECONDS_BETWEEN_SAVES", -1)
    monkeypatch.setattr(training.callbacks, "MAX_SAVING_SHARE", float("inf"))


@pytest.fixture
def stopped_run(recipe, save_always, tmp_path):
    """The folder of a run stopped in its eighth step, after seven checkpoints, and the same run without the stop."""
    kd = pckd.distill(*student_teacher_data(), pckd.KD(), recipe, **QUIET)
    with pytest.raises(Stopped), changed_step(8, raise_stopped):
        pckd.distill(*student_teacher_data(), pckd.KD(), recipe, out=tmp_path / "run", **QUIET)
    assert {"checkpoint.pt", "previous.pt"} < set(os.listdir(tmp_path / "run"))
    return tmp_path / "run", kd


def resume_run(folder, recipe):
    return pckd.distill(*student_teacher_data(), pckd.KD(), recipe, out=folder, resume=True, **QUIET)


def assert_same(run, expected):
    assert run.finished and run.fingerprint == expected.fingerprint and run.history.equals(expected.history)
    assert run.cross_entropy.tobytes() == expected.cross_entropy.tobytes()
    assert run.difficulty.tobytes() == expected.difficulty.tobytes()


def flip_one_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "one bit": flip_one_bit,
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_previous_checkpoint_is_used_if_the_last_one_is_damaged(damage, stopped_run, recipe, monkeypatch):
    folder, expected = stopped_run
    steps, step = [], training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", lambda self, *how: steps.append(1) or step(self, *how))
    DAMAGE[damage](folder / "checkpoint.pt")
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt' can't be read .*: the previous checkpoint is used"
    ) as warned:
        run = resume_run(folder, recipe)
    assert len(warned) == 1 and "\n" not in str(warned[0].message)
    assert_same(run, expected)
    assert len(steps) == 6  # of twelve, so it did not start again


def test_two_damaged_checkpoints_give_one_line(stopped_run, recipe):
    folder, _ = stopped_run
    for name in ("checkpoint.pt", "previous.pt"):
        flip_one_bit(folder / name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match=r"run/checkpoint\.pt' can't be read: .*; start again with overwrite=True$"
    ) as caught:
        resume_run(folder, recipe)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_flipped_bytes_are_detected_or_harmless(tmp_path):
    """Flip every eleventh byte of a small checkpoint. The previous checkpoint can be used instead."""
    for number in (1, 2):
        resuming.write_checkpoint(tmp_path, crashes.state(number))
    path, previous = tmp_path / "checkpoint.pt", (tmp_path / "previous.pt").read_bytes()
    content, used = path.read_bytes(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in range(0, len(content), 11):
            path.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
            (tmp_path / "previous.pt").write_bytes(previous)
            checkpoint = resuming.read_checkpoint(tmp_path)
            used.append(checkpoint["number"])
            assert torch.equal(checkpoint["weights"], crashes.state(checkpoint["number"])["weights"])
    assert set(used) == {1, 2} and used.count(1) > len(used) / 2


@pytest.mark.parametrize("part", ["student", "method", "optimizer", "recorder"])
def test_checkpoint_of_another_network_gives_one_line(part, stopped_run, recipe):
    folder, _ = stopped_run
    state = resuming.read_checkpoint(folder)
    other = {
        "student": {"student": pckd.create_model("resnet14", make_data()).state_dict()},
        "method": {"method": {"projector.weight": torch.ones(1)}},
        "optimizer": {"optimizer": {"state": {}, "param_groups": []}},
        "recorder": {"recorder": {"epoch": 1}},
    }
    resuming.write_checkpoint(folder, state | other[part])
    with pytest.raises(
        ValueError, match=r"the checkpoint in '.*run' can't be used: .*; start again with overwrite=True$"
    ) as caught:
        resume_run(folder, recipe)
    assert "\n" not in str(caught.value) and "Error(s)" not in str(caught.value)
    if part == "student":
        message = "these weights belong to another network: 'layer1.1.conv1.weight' does not exist in this one"
        assert message in str(caught.value)


def make_not_finite(index):
    """Return a function that makes the cross-entropy NaN for the sample at `index` of the batch, or for all if None."""

    def then(terms, batch):
        cross_entropy = terms.cross_entropy.clone()
        cross_entropy[slice(None) if index is None else index] = torch.nan
        mean = cross_entropy.mean()
        return terms._replace(
            total=terms.total + mean, terms={**terms.terms, "cross_entropy": mean}, cross_entropy=cross_entropy
        )

    return then


def make_gradient_not_finite(terms, batch):
    """Return a finite loss whose gradient is not finite."""
    return terms._replace(total=terms.total + (terms.total * 0).sqrt())


@pytest.mark.parametrize("saving", ["always", "at the end of an epoch"])
@pytest.mark.parametrize("what", ["one sample", "all samples", "gradient"])
def test_non_finite_loss_is_located_and_the_last_good_checkpoint_is_kept(
    what, saving, recipe, save_always, tmp_path, monkeypatch
):
    expected = pckd.distill(*student_teacher_data(), pckd.KD(), recipe, **QUIET)
    folder, step = tmp_path / "run", 8  # the second step of the third epoch
    if saving != "always":
        monkeypatch.setattr(resuming, "write_checkpoint", only_after_epochs(resuming.write_checkpoint))
    then = {
        "one sample": make_not_finite(5),
        "all samples": make_not_finite(None),
        "gradient": make_gradient_not_finite,
    }[what]
    with pytest.raises(FloatingPointError) as caught, changed_step(step, then):
        pckd.distill(*student_teacher_data(), pckd.KD(), recipe, out=folder, **QUIET)
    batch = pckd.views.batches(48, 16, seed=0, epoch=3)[1].tolist()
    where = {
        "one sample": f"cross_entropy is not finite in epoch 3, step 2, for 1 of 16 samples: {batch[5]};",
        "all samples": f"cross_entropy is not finite in epoch 3, step 2, for 16 of 16 samples: {str(batch)[1:-1]};",
        "gradient": f"in epoch 3, step 2, for 16 of 16 samples: {str(batch)[1:-1]};",
    }[what]
    assert where in str(caught.value) and "\n" not in str(caught.value)
    assert what != "gradient" or "the gradient of the weight conv1" in str(caught.value)
    state = resuming.read_checkpoint(folder)
    assert all(weight.isfinite().all() for weight in state["student"].values())
    assert (state["recorder"]["epoch"], state["recorder"]["step"]) == ((3, 1) if saving == "always" else (3, 0))
    assert_same(resume_run(folder, recipe), expected)


def only_after_epochs(write):
    return lambda folder, state: None if state["recorder"]["step"] else write(folder, state)


def test_run_that_appears_before_the_lock_is_not_replaced(recipe, tmp_path, monkeypatch):
    """Another process writes a run after the first check of the folder and before the lock."""
    first = pckd.distill(*student_teacher_data(), pckd.KD(), recipe, out=tmp_path / "first", **QUIET)
    lock = files.locked

    def write_run_first(folder):
        (tmp_path / "first").rename(folder)
        return lock(folder)

    monkeypatch.setattr(files, "locked", write_run_first)
    with pytest.raises(FileExistsError, match="resume=True continues the run"):
        pckd.distill(*student_teacher_data(), pckd.KD(), recipe, out=tmp_path / "run", **QUIET)
    assert pckd.load_run(tmp_path / "run").fingerprint == first.fingerprint


def test_interrupt_after_the_training_keeps_the_finished_run(recipe, tmp_path, monkeypatch):
    train = training.Trainer.train

    def interrupt_late(self):
        train(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "train", interrupt_late)
    with pytest.raises(KeyboardInterrupt):
        pckd.distill(*student_teacher_data(), pckd.KD(), recipe, out=tmp_path / "run", **QUIET)
    assert pckd.load_run(tmp_path / "run").finished and set(os.listdir(tmp_path / "run")) == crashes.FINISHED_FILES


def test_checkpoint_that_cannot_be_moved_into_place_keeps_the_last_one(tmp_path, monkeypatch):
    for number in (1, 2):
        resuming.write_checkpoint(tmp_path, crashes.state(number))
    replace = os.replace

    def fails(old, new):
        if str(old).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        replace(old, new)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output error"):
        resuming.write_checkpoint(tmp_path, crashes.state(3))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["checkpoint.pt"] and resuming.read_checkpoint(tmp_path)["number"] == 2


def test_file_system_without_fsync_for_folders_is_accepted(tmp_path, monkeypatch):
    sync = os.fsync

    def fails(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    resuming.write_checkpoint(tmp_path, crashes.state(1))
    assert resuming.read_checkpoint(tmp_path)["number"] == 1
