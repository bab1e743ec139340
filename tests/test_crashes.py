"""What is left of a training that is killed, interrupted or finds no place to write; and that it ends the same.

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
def test_a_training_killed_twenty_times_ends_in_the_same_bits(tmp_path):
    found = crashes.survive_kills(tmp_path, kills=20)
    assert found.kills == 20 and found.in_checkpoint >= 10 and found.before_the_first >= 1 and found.with_cache >= 7


@pytest.mark.slow
@pytest.mark.parametrize("scenario", crashes.SCENARIOS if hasattr(os, "fork") else ())
def test_a_kill_before_any_line_of_writing_leaves_something_to_go_on_with(scenario, tmp_path):
    assert crashes.count_kill_points(tmp_path / "run", scenario) > 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of the training by the command line that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert run(*TRAIN, "--out", folder) == (0, [])
    return {name: (folder / name).read_bytes() for name in crashes.COMPARED}


def run(*arguments, event=None, name="", time=1) -> tuple[int, list[str]]:
    """A command line in a process of its own: exit status, and lines on stderr but for progress bars."""
    with tempfile.TemporaryDirectory() as folder:
        process, _ = crashes.start(arguments, Path(folder) / "said", event, name, time)
        return end(process, Path(folder) / "said")


def end(process, said: Path) -> tuple[int, list[str]]:
    process.join(120)
    lines = re.split(r"[\r\n]+", said.with_suffix(".err").read_text())
    return process.exitcode, [line for line in lines if line.strip() and "step" not in line]


def assert_it_goes_on_to(whole: dict[str, bytes], folder: Path) -> None:
    assert resuming.has_checkpoint(folder)
    status, said = run(*TRAIN, "--out", folder, "--resume")
    assert status == 0 and not said, said
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert set(os.listdir(folder)) == crashes.FINISHED_FILES


# The file whose writing fails, and which time: in the middle of an epoch, at the end of one, of the training.
WRITES = [("checkpoint.pt", 2), ("checkpoint.pt", 3), ("checkpoint.pt", 8), ("student.safetensors", 1)]
WRITES += [("history.csv", 2), ("samples.npz", 3), ("gallery.npz", 1), ("embedding.npz", 1), ("run.json", 4)]


@pytest.mark.slow
@pytest.mark.parametrize("name, time", WRITES)
def test_a_full_disk_gives_one_line_and_the_last_checkpoint_stays(name, time, whole, tmp_path):
    folder = tmp_path / "run"
    status, said = run(*TRAIN, "--out", folder, event=crashes.disk_full, name=name, time=time)
    assert status == 2 and len(said) == 1
    assert said[0].startswith(f"pckd-nb: {folder / name}: File too large; the last checkpoint is unchanged, --resume")
    assert not list(folder.glob(".*"))
    assert_it_goes_on_to(whole, folder)


@pytest.mark.parametrize("time", [1, 2])
def test_a_disk_that_is_full_from_the_start_gives_one_line_and_leaves_nothing(time, tmp_path):
    """When the settings are written, and when the first checkpoint is."""
    name = ("run.json", "checkpoint.pt")[time - 1]
    status, said = run(*TRAIN, "--out", tmp_path / "run", event=crashes.disk_full, name=name)
    assert (status, said) == (2, [f"pckd-nb: {tmp_path / 'run' / name}: File too large"])
    assert not (tmp_path / "run").exists()


@pytest.fixture
def open_folder():
    """A folder that others may enter too."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_folder_that_may_not_be_written_to_any_more_gives_one_line(whole, open_folder):
    folder = open_folder / "run"
    status, said = run(*TRAIN, "--out", folder, event=crashes.read_only, name="checkpoint.pt", time=5)
    assert status == 2 and len(said) == 1
    assert said[0].startswith(
        f"pckd-nb: {folder / 'checkpoint.pt'}: Permission denied; the last checkpoint is unchanged"
    )
    folder.chmod(0o755)
    assert_it_goes_on_to(whole, folder)


@pytest.mark.parametrize("event", ["removed", "renamed", "replaced"])
def test_a_folder_that_goes_away_gives_one_line(event, whole, tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    status, said = run(*TRAIN, "--out", folder, event=getattr(crashes, event), name="checkpoint.pt", time=5)
    assert status == 2 and len(said) == 1
    assert said[0].startswith(f"pckd-nb: the folder '{folder}' is gone: it, or its file .lock, was removed or renamed")
    if event == "replaced":  # what is there now is another's
        assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(
            (".lock", "run.json"), "another's"
        )
    else:
        assert not folder.exists()
    if event != "removed":
        assert_it_goes_on_to(whole, elsewhere)


def test_a_second_process_is_refused_and_the_first_goes_on(whole, tmp_path, capsys):
    folder = tmp_path / "run"
    first, pipe = crashes.start([*TRAIN, "--out", folder], tmp_path / "said", crashes.pause, "checkpoint.pt", 4)
    assert pipe.recv() == "there"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for option in ("--resume", "--overwrite"):
        assert cli.main([*TRAIN, "--out", str(folder), option]) == 2
        assert capsys.readouterr().err == (
            f"pckd-nb: another process is training in '{folder}': wait for it, or choose another folder\n"
        )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    pipe.send("go on")
    assert end(first, tmp_path / "said") == (0, [])
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    assert set(os.listdir(folder)) == crashes.FINISHED_FILES


def test_a_kill_lets_the_second_process_in(whole, tmp_path):
    folder = tmp_path / "run"
    first, pipe = crashes.start([*TRAIN, "--out", folder], tmp_path / "said", crashes.pause, "checkpoint.pt", 4)
    assert pipe.recv() == "there"
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert (folder / ".lock").exists()
    assert_it_goes_on_to(whole, folder)


def test_workers_that_outlive_a_killed_process_do_not_hold_its_lock(tmp_path):
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
            os.kill(worker, 0)  # it is still there
    finally:
        os.kill(worker, signal.SIGKILL)


@pytest.mark.parametrize("step", [4, 6, 9])
def test_ctrl_c_saves_says_how_to_resume_and_resumes_to_the_same_bits(step, whole, tmp_path):
    """While a checkpoint is written: in an epoch, at the end of one. In the last step there is nothing to resume."""
    folder, said = tmp_path / "run", tmp_path / "said"
    name = "checkpoint.pt" if step < 9 else "samples.npz"
    time = step if step < 9 else 3
    process, pipe = crashes.start([*TRAIN, "--out", folder], said, crashes.pause, name, time)
    assert pipe.recv() == "there"
    os.kill(process.pid, signal.SIGINT)
    pipe.send("go on")
    status, errors = end(process, said)
    assert not errors
    spoken = said.with_suffix(".out").read_text().splitlines()
    if step == 9:
        assert status == 0 and {name: (folder / name).read_bytes() for name in whole} == whole
    else:
        assert status == 130
        done = (step + 1) // 3  # the step that was going on is finished
        expected = (
            f"interrupted after {done} whole epoch{'s' * (done != 1)}; "
            "the same command with --resume continues the training"
        )
        assert [line for line in spoken if "resume" in line] == [expected]
        assert runs.read_settings(folder)["status"] == "interrupted"
        assert_it_goes_on_to(whole, folder)


def fresh():
    data = make_data()
    return pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1), data


@pytest.fixture
def recipe():
    return pckd.get_recipe("classroom", epochs=4, batch_size=16)  # three steps per epoch


class Cut(BaseException):
    pass


@contextmanager
def failing(step: int, then):
    """KD, but for one step, in which it gives something else."""
    forward, steps = pckd.KD.forward, count(1)

    def fails(self, student, teacher, batch, epoch):
        terms = forward(self, student, teacher, batch, epoch)
        return then(terms, batch) if next(steps) == step else terms

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pckd.KD, "forward", fails)
        yield


def cut(terms, batch):
    raise Cut


@pytest.fixture
def save_always(monkeypatch):
    monkeypatch.setattr(training.callbacks, "MIN_SECONDS_BETWEEN_SAVES", -1)
    monkeypatch.setattr(training.callbacks, "MAX_SAVING_SHARE", float("inf"))


@pytest.fixture
def cut_run(recipe, save_always, tmp_path):
    """A run that was cut in its eighth step, after seven checkpoints; and the weights it would have ended in."""
    kd = pckd.distill(*fresh(), pckd.KD(), recipe, **QUIET)
    with pytest.raises(Cut), failing(8, cut):
        pckd.distill(*fresh(), pckd.KD(), recipe, out=tmp_path / "run", **QUIET)
    assert {"checkpoint.pt", "previous.pt"} < set(os.listdir(tmp_path / "run"))
    return tmp_path / "run", kd


def go_on(folder, recipe):
    return pckd.distill(*fresh(), pckd.KD(), recipe, out=folder, resume=True, **QUIET)


def assert_same(run, whole):
    assert run.finished and run.fingerprint == whole.fingerprint and run.history.equals(whole.history)
    assert run.cross_entropy.tobytes() == whole.cross_entropy.tobytes()
    assert run.difficulty.tobytes() == whole.difficulty.tobytes()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "one bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_a_checkpoint_is_damaged_the_one_before_it_is_taken(damage, cut_run, recipe, monkeypatch):
    folder, whole = cut_run
    steps, step = [], training.Trainer.step
    monkeypatch.setattr(training.Trainer, "step", lambda self, *how: steps.append(1) or step(self, *how))
    DAMAGE[damage](folder / "checkpoint.pt")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt' can't be read .*: the previous checkpoint is used") as told:
        run = go_on(folder, recipe)
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert_same(run, whole)
    assert len(steps) == 6  # of twelve: it did not begin anew


def test_where_both_are_damaged_one_line_says_so(cut_run, recipe):
    folder, _ = cut_run
    for name in ("checkpoint.pt", "previous.pt"):
        flip(folder / name)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(
        ValueError, match=r"run/checkpoint\.pt' can't be read: .*; start again with overwrite=True$"
    ) as caught:
        go_on(folder, recipe)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_every_flipped_byte_is_noticed_or_does_no_harm(tmp_path):
    """In a small checkpoint, one byte in eleven; the one before it is there to be taken."""
    for number in (1, 2):
        resuming.write_checkpoint(tmp_path, crashes.state(number))
    path, previous = tmp_path / "checkpoint.pt", (tmp_path / "previous.pt").read_bytes()
    whole, taken = path.read_bytes(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in range(0, len(whole), 11):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
            (tmp_path / "previous.pt").write_bytes(previous)
            kept = resuming.read_checkpoint(tmp_path)
            taken.append(kept["number"])
            assert torch.equal(kept["weights"], crashes.state(kept["number"])["weights"])
    assert set(taken) == {1, 2} and taken.count(1) > len(taken) / 2


@pytest.mark.parametrize("part", ["student", "method", "optimizer", "recorder"])
def test_a_checkpoint_of_another_network_gives_one_line(part, cut_run, recipe):
    folder, _ = cut_run
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
        go_on(folder, recipe)
    assert "\n" not in str(caught.value) and "Error(s)" not in str(caught.value)
    if part == "student":
        message = "these weights belong to another network: 'layer1.1.conv1.weight' does not exist in this one"
        assert message in str(caught.value)


def not_finite_of(index):
    """The cross-entropy is NaN for one sample of the batch, its position in it given, or for all."""

    def then(terms, batch):
        cross_entropy = terms.cross_entropy.clone()
        cross_entropy[slice(None) if index is None else index] = torch.nan
        mean = cross_entropy.mean()
        return terms._replace(
            total=terms.total + mean, terms={**terms.terms, "cross_entropy": mean}, cross_entropy=cross_entropy
        )

    return then


def without_a_gradient(terms, batch):
    """The loss is a number, its gradient is not."""
    return terms._replace(total=terms.total + (terms.total * 0).sqrt())


@pytest.mark.parametrize("saving", ["always", "at the end of an epoch"])
@pytest.mark.parametrize("what", ["one sample", "all samples", "gradient"])
def test_a_loss_that_is_not_finite_is_named_and_the_last_good_checkpoint_stays(
    what, saving, recipe, save_always, tmp_path, monkeypatch
):
    whole = pckd.distill(*fresh(), pckd.KD(), recipe, **QUIET)
    folder, step = tmp_path / "run", 8  # the second of the third epoch
    if saving != "always":
        monkeypatch.setattr(resuming, "write_checkpoint", at_the_end_of_an_epoch(resuming.write_checkpoint))
    then = {"one sample": not_finite_of(5), "all samples": not_finite_of(None), "gradient": without_a_gradient}[what]
    with pytest.raises(FloatingPointError) as caught, failing(step, then):
        pckd.distill(*fresh(), pckd.KD(), recipe, out=folder, **QUIET)
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
    assert_same(go_on(folder, recipe), whole)


def at_the_end_of_an_epoch(write):
    return lambda folder, state: None if state["recorder"]["step"] else write(folder, state)


def test_a_run_that_appears_meanwhile_is_not_replaced(recipe, tmp_path, monkeypatch):
    """Another process trains in the folder between the first look at it and the lock."""
    first = pckd.distill(*fresh(), pckd.KD(), recipe, out=tmp_path / "first", **QUIET)
    hold = files.locked

    def late(folder):
        (tmp_path / "first").rename(folder)
        return hold(folder)

    monkeypatch.setattr(files, "locked", late)
    with pytest.raises(FileExistsError, match="resume=True continues the run"):
        pckd.distill(*fresh(), pckd.KD(), recipe, out=tmp_path / "run", **QUIET)
    assert pckd.load_run(tmp_path / "run").fingerprint == first.fingerprint


def test_what_goes_wrong_after_the_end_leaves_the_finished_run(recipe, tmp_path, monkeypatch):
    train = training.Trainer.train

    def late(self):
        train(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Trainer, "train", late)
    with pytest.raises(KeyboardInterrupt):
        pckd.distill(*fresh(), pckd.KD(), recipe, out=tmp_path / "run", **QUIET)
    assert pckd.load_run(tmp_path / "run").finished and set(os.listdir(tmp_path / "run")) == crashes.FINISHED_FILES


def test_a_checkpoint_that_can_not_take_its_place_leaves_the_last_one(tmp_path, monkeypatch):
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


def test_a_file_system_that_can_not_sync_folders_will_do(tmp_path, monkeypatch):
    sync = os.fsync

    def fails(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    resuming.write_checkpoint(tmp_path, crashes.state(1))
    assert resuming.read_checkpoint(tmp_path)["number"] == 1
