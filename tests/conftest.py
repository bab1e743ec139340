"""Small data sets and networks that the test files share. Nothing here downloads or leaves the temporary folder."""

import dataclasses
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pckd_nb as pckd
from pckd_nb import hardware
from pckd_nb.data import Dataset, Split

torch.set_num_threads(1)  # the networks here are tiny: more threads only wait for each other
if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) > 1:  # tests share the cores, and so do the processes they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a background job; child processes would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make_data(train: int = 48, test: int = 24, classes: int = 3, size: int = 8, channels: int = 1) -> Dataset:
    """Make a tiny data set. Its classes differ in brightness, so that a few training steps are enough to learn them."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        labels = torch.arange(count) % classes
        brightness = labels[:, None, None, None] * (200 // classes) + 30
        noise = torch.randint(0, 25, (count, channels, size, size), generator=generator)
        return Split((brightness + noise).to(torch.uint8), labels, torch.rand(count, generator=generator))

    names = tuple(f"class {number}" for number in range(classes))
    mean, std = (0.5,) * channels, (0.25,) * channels
    return Dataset("tiny", split(train), split(test), names, {}, mean, std, "made up", 4, {})


@pytest.fixture
def data() -> Dataset:
    return make_data()


@pytest.fixture
def recipe() -> pckd.Recipe:
    return pckd.get_recipe("classroom", epochs=2, batch_size=16)


@pytest.fixture
def teacher(data):
    return pckd.create_model("resnet14", data, seed=1)


@pytest.fixture
def student(data):
    return pckd.create_model("resnet8", data, seed=2)


@pytest.fixture(scope="session")
def reference():
    """A function that loads one file of the authors' numbers as tensors. Rows are view-major, as in the package."""
    from pathlib import Path

    def load(name: str) -> SimpleNamespace:
        with np.load(Path(__file__).parent / "reference" / f"pckd_{name}.npz") as file:
            values = {key: torch.from_numpy(np.array(file[key])) for key in file}
        for key, value in values.items():
            if value.ndim >= 2 and value.shape[:2] == (values["B"], values["V"]):
                values[key] = value.transpose(0, 1).flatten(0, 1)
        return SimpleNamespace(**values)

    return load


REFERENCES = ("one_view", "previewed", "same_width", "wider_teacher")


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return max |ours − theirs| / max |theirs|."""
    return float((ours.detach() - theirs).abs().max() / theirs.abs().max())


def outputs(ref: SimpleNamespace):
    """Return the outputs of student and teacher that the reference used. The student's tensors require gradients."""
    features, weight, bias = (
        getattr(ref, f"student_{name}").clone().requires_grad_() for name in ("features", "weight", "bias")
    )
    student = pckd.Output(features, features @ weight.T + bias, weight, bias)
    logits = ref.teacher_features @ ref.teacher_weight.T + ref.teacher_bias
    return student, pckd.Output(ref.teacher_features, logits, ref.teacher_weight, ref.teacher_bias)


def with_images(data: Dataset, count: int) -> Dataset:
    """Return `data` with only its first `count` training images."""
    train = Split(data.train.images[:count], data.train.labels[:count])
    return dataclasses.replace(data, train=train)


def time_limit(seconds: float, own_process: bool = False) -> float:
    """Scale a time limit to the current speed of this machine.

    seconds: the limit on the machine for which the documentation states times. Call this function right before the
    timed code, so that other running programs slow down both.
    own_process: the timed code runs in its own process, as notebooks do, with torch's default number of threads.
    Otherwise it runs in this process, on one thread.
    """
    if not own_process:
        return seconds * hardware.slowness.__wrapped__()
    measure = "from pckd_nb import hardware; print(hardware.slowness())"
    done = subprocess.run([sys.executable, "-c", measure], capture_output=True, text=True, check=True, timeout=300)
    return seconds * float(done.stdout)
