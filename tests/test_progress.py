"""Progress output of a training: in a file, in a terminal, and through a custom progress bar."""

import io
import math
import os
import re
import subprocess
import sys

import pytest

import pckd_nb as pckd
from pckd_nb import progress, training, views


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def stderr(monkeypatch):
    """Return a function that replaces stderr by a file or a terminal."""

    def put(stream):
        monkeypatch.setattr(sys, "stderr", stream)
        return stream

    return put


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock of tqdm. Return a function that moves it forward."""
    now = [1000.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def is_plain(text: str) -> bool:
    return text.endswith("\n") and all(line.isprintable() and line.strip() for line in text.splitlines())


# --------------------------------------------------------------------------------------------------- in a file


def test_a_file_gets_complete_lines_at_limited_rate(stderr, clock):
    """600 steps of one second, with an epoch end every 200 steps."""
    file = stderr(io.StringIO())
    with progress.make_bar(600, "KD resnet8", "step") as bar:
        for step in range(1, 601):
            clock(1)
            bar.update()
            if step % 200 == 0:
                bar.set_postfix_str(f"epoch {step // 200}, test 50.0 %")
    text = file.getvalue()
    lines = text.splitlines()
    assert is_plain(text)
    assert 10 <= len(lines) <= 1 + 600 / progress.SECONDS_BETWEEN_LINES + 3
    assert all(
        re.fullmatch(r"KD resnet8: \d+ of 600 steps, [\d:]+ passed, [\d:?]+ left(, epoch .*)?", s) for s in lines
    )
    assert lines[-1] == "KD resnet8: 600 of 600 steps, 10:00 passed, 00:00 left, epoch 3, test 50.0 %"


def test_fast_steps_print_no_lines(stderr, clock):
    file = stderr(io.StringIO())
    with progress.make_bar(10_000, "KD", "step") as bar:
        for _ in range(10_000):
            bar.update()
            clock(0.001)
    assert len(file.getvalue().splitlines()) == 1  # only the first line, printed at the start


def test_two_bars_do_not_break_each_others_lines(stderr, clock, capsys):
    file = stderr(io.StringIO())
    with progress.make_bar(2, "one", "step") as one, progress.make_bar(2, "two", "step") as two:
        for bar in (one, two, one, two):
            clock(progress.SECONDS_BETWEEN_LINES + 1)
            bar.update()
        two.write("a word")
        two.set_postfix_str("done")
        one.set_postfix_str("done")
    assert is_plain(file.getvalue())
    assert capsys.readouterr().out == "a word\n"


@pytest.mark.parametrize("total", [0, 2, 3])
def test_progress_beyond_the_total_is_allowed(stderr, clock, total):
    """The demo estimates its total seconds, and may take longer."""
    file = stderr(io.StringIO())
    with progress.make_bar(total, "demo", "second") as bar:
        for _ in range(5):
            clock(progress.SECONDS_BETWEEN_LINES + 1)
            bar.update(0.9)
        bar.update(bar.total - bar.n)
        bar.set_postfix_str("done")
    assert is_plain(file.getvalue())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "distill"])
def test_the_log_of_a_real_training_is_short(command, tmp_path):
    def run(name, *words):
        settings = ["--data", "digits", "--train-size", "200", "--test-size", "50", "--epochs", "3"]
        with open(tmp_path / name, "w+b") as log:
            subprocess.run(
                [sys.executable, "-m", "pckd_nb", *words, *settings], stdout=subprocess.DEVNULL, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path, timeout=300, check=True,
            )  # fmt: skip
            log.seek(0)
            return log.read().decode()

    text = run("train.log", "train", "--model", "resnet8", "--out", "teacher")
    if command == "distill":
        text = run("log", "distill", "--teacher", "teacher", "--student", "resnet8", "--method", "pckd", "--out", "run")
    assert is_plain(text) and len(text.encode()) < 4096
    assert re.findall(r"epoch (\d), test [\d.]+ %$", text, re.M) == ["1", "2", "3"]


# ----------------------------------------------------------------------------------------------- in a terminal


@pytest.mark.parametrize("unit", ["step", "second"])
def test_a_terminal_gets_a_single_bar(stderr, clock, unit):
    terminal = stderr(Terminal())
    with progress.make_bar(4, "KD resnet8", unit) as bar:
        for _ in range(4):
            clock(1)
            bar.update()
        bar.set_postfix_str("epoch 1, test 50.0 %")
    text = terminal.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n") and text.count("\r") > 4
    last = text.rpartition("\r")[2]
    assert "KD resnet8: 100" in last and "epoch 1, test 50.0 %" in last
    assert ("passed" in last) == (unit == "second")


def test_no_progress_is_shown_if_switched_off(stderr, data, student, recipe, capsys):
    for stream in (io.StringIO(), Terminal()):
        stderr(stream)
        pckd.fit(student, data, recipe, progress=False)
        with progress.make_bar(2, "KD", "step", show=False) as bar:
            bar.update()
            bar.set_postfix_str("done")
        assert stream.getvalue() == ""
    assert capsys.readouterr().out == ""


# ------------------------------------------------------------------------------------- custom progress bar


class RecordingProgress:
    def __init__(self):
        self.updates, self.epochs = [], []

    def update(self, n=1):
        self.updates.append(n)

    def set_postfix_str(self, s):
        self.epochs.append((s, sum(self.updates)))


def test_a_custom_progress_bar_is_called_at_every_step(stderr, data, student, recipe):
    file, recorder = stderr(io.StringIO()), RecordingProgress()
    run = pckd.fit(student, data, recipe, progress=recorder)
    steps = views.steps_per_epoch(len(data.train), recipe.batch_size)
    assert recorder.updates == [0] + [1] * steps * recipe.epochs
    tests = [f"epoch {epoch}, test {top1:.1f} %" for epoch, top1 in enumerate(run.history["test_top1"], 1)]
    assert recorder.epochs == [(text, steps * epoch) for epoch, text in enumerate(tests, 1)]
    assert file.getvalue() == ""


def test_after_a_resume_the_first_update_holds_the_finished_steps(data, student, recipe, tmp_path, monkeypatch):
    class StopTrainingError(Exception):
        pass

    class StoppingProgress(RecordingProgress):
        def update(self, n=1):
            super().update(n)
            if sum(self.updates) == stop:
                raise StopTrainingError

    monkeypatch.setattr(training.callbacks, "MIN_SECONDS_BETWEEN_SAVES", -1)  # save after every step
    monkeypatch.setattr(training.callbacks, "MAX_SAVING_SHARE", math.inf)
    steps = views.steps_per_epoch(len(data.train), recipe.batch_size)
    stop, recorder = steps + 2, RecordingProgress()  # in the second epoch, one step is saved and one is lost
    with pytest.raises(StopTrainingError):
        pckd.fit(student, data, recipe, out=tmp_path / "run", progress=StoppingProgress())
    fresh = pckd.create_model("resnet8", data, seed=2)
    run = pckd.fit(fresh, data, recipe, out=tmp_path / "run", resume=True, progress=recorder)
    assert run.finished
    assert recorder.updates == [steps + 1] + [1] * (steps - 1)
    assert [done for _, done in recorder.epochs] == [2 * steps]


def test_weighted_progress_scales_updates():
    recorder = RecordingProgress()
    share = progress.WeightedProgress(recorder, 0.25)
    share.update(8)
    share.update()
    share.set_postfix_str("epoch 1")
    assert recorder.updates == [2.0, 0.25] and recorder.epochs == [("epoch 1", 2.25)]
