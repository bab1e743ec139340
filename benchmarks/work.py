"""Training loops to time. They use the Trainer of `pckd_nb.distill` step by step, and must follow changes there."""

import copy
import dataclasses
import multiprocessing
import os
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pckd_nb as pckd
from pckd_nb import compiling, hardware, training, views
from pckd_nb.data import Dataset
from pckd_nb.downloads import default_root
from pckd_nb.evaluation import pixel_statistics
from pckd_nb.models import Classifier
from pckd_nb.training.trainer import Learner

from .reference import PlainLoop
from .settings import Settings

SEED = 0
UNTRAINED_VERSION = 1  # increase it after a change of `untrained_teacher`, because its results are stored
BRANCH_SCALE = 0.25  # of the residual branches of an untrained teacher
STATISTICS_BATCHES = 4


def load_shapes(settings: Settings, train_size: int, test_size: int = 100) -> Dataset:
    """Load shapes100."""
    return pckd.load_dataset("shapes100", settings.root, train_size=train_size, test_size=test_size)


def make_teacher(settings: Settings, name: str) -> Classifier:
    """Return a teacher for shapes100: trained for `settings.teacher_epochs` epochs, or an `untrained_teacher`.

    It is stored next to the generated data, and later calls load it.
    """
    data = load_shapes(settings, settings.teacher_train_size)
    epochs = settings.teacher_epochs.get(name, 0)
    out = Path(settings.root or default_root()) / "benchmark_teachers"
    if epochs:
        recipe = pckd.get_recipe("classroom", epochs=epochs)
        teacher = pckd.create_model(name, data, seed=SEED)
        out /= f"{name}-{len(data.train)}-{epochs}-{settings.device.type}"
        pckd.fit(teacher, data, recipe, seed=SEED, out=out, resume=True, accelerator=settings.accelerator)
        return teacher.eval()
    file = out / f"{name}-{len(data.train)}-untrained-{UNTRAINED_VERSION}.pt"
    if file.exists():
        teacher = pckd.create_model(name, data, seed=SEED)
        teacher.load_state_dict(torch.load(file, weights_only=True))
        return teacher.eval()
    teacher = untrained_teacher(name, data, settings.device)
    out.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    torch.save(teacher.state_dict(), temporary)
    temporary.replace(file)
    return teacher


@torch.no_grad()
def untrained_teacher(name: str, data: Dataset, device: torch.device) -> Classifier:
    """Make an untrained teacher for timing, whose logits are accurate in low precision. This takes seconds.

    The time of a step does not depend on what the teacher has learned. But in low precision, the logits of initial
    weights have large errors, which grow from block to block: 2 % in bfloat16, and up to 9 % in int8. Three changes
    make them as small as those of a trained teacher:

    - The second BatchNorm of every block has a small scale.
    - The statistics of BatchNorm come from one forward pass over training images.
    - The last layer is a nearest-class-mean classifier: its centers are the mean features of the classes.

    Parameters
    ----------
    name : str
        Name of the network, as in `pckd_nb.create_model`.
    data : Dataset
        The data set of the training images.
    device : torch.device
        Device of the computation.

    Returns
    -------
    Classifier
        In eval mode, on the CPU.
    """
    teacher = pckd.create_model(name, data, seed=SEED).to(device).to(memory_format=torch.channels_last)
    norms = [layer for layer in teacher.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    for part, layer in teacher.named_modules():
        if part.endswith(".bn2"):
            layer.weight.mul_(BRANCH_SCALE)
    mean, std = pixel_statistics(data, device)
    images = data.train.to(device).read(torch.arange(len(data.train)).split(64))
    batches = [views.normalise(x, mean, std).contiguous(memory_format=torch.channels_last) for x in images]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.reset_running_stats()
        layer.momentum = None  # average over all batches
    teacher.train()
    for x in batches[:STATISTICS_BATCHES]:
        teacher.features(x)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    teacher.eval()
    features = torch.cat([teacher.features(x) for x in batches])
    members = F.one_hot(data.train.labels.to(device), data.num_classes).to(features.dtype)
    centers = (members.T @ features) / members.sum(0).clamp_min(1)[:, None]
    teacher.head.weight.copy_(centers)
    if teacher.head.bias is not None:
        teacher.head.bias.copy_(-centers.square().sum(1) / 2)
    return teacher.cpu()


def make_trainer(
    student: Classifier, teacher: Classifier, data: Dataset, method: pckd.methods.Method | None = None, **options: Any
) -> training.Trainer:
    """Return the Trainer that `distill` makes with these options for copies of the networks, before its first step.

    The default method is PCKD.
    """
    caught: list[training.Trainer] = []
    method = method or pckd.PCKD()
    with mock.patch.object(training.Trainer, "train", lambda self: caught.append(self)):
        pckd.distill(copy.deepcopy(student), copy.deepcopy(teacher), data, method, seed=SEED, **options)
    return caught[0]


class PackageLoop:
    """The training loop of pckd_nb. `step` does the same as `Trainer.train` for one batch of epoch 1."""

    def __init__(self, trainer: training.Trainer):
        self.trainer = trainer
        trainer.student.train()
        trainer.method.train()
        if trainer.teacher and trainer.teacher.cache:
            trainer.teacher.begin_epoch(1)
            if trainer.teacher.cache.cached is None:
                raise RuntimeError("the teacher cache was not filled")
        self.stream = self._stream()

    def _stream(self) -> Iterator[tuple[Tensor, Tensor]]:
        trainer, train = self.trainer, self.trainer.data.train
        while True:
            batches = views.batches(len(train), trainer.recipe.batch_size, trainer.seed, 1)
            yield from zip(batches, trainer.read_images(batches, 1), strict=True)

    def read(self) -> tuple[Tensor, Tensor]:
        """Return the next batch: its indices in the training set, and its images on the device."""
        index, images = next(self.stream)
        return index.to(self.trainer.fabric.device), images

    def input(self) -> Tensor:
        """Return the input of the networks for the next batch: cropped, normalised and rotated, in channels_last."""
        index, images = self.read()
        return self.trainer.make_inputs(images, index)[0]

    def step(self) -> None:
        """Do one training step."""
        index, images = self.read()
        self.trainer.recorder.record_step(index, *self.trainer.step(images, index, 1, 0))


class BareLoop:
    """The networks alone: a lower limit for the time of a step of a `PackageLoop`.

    It does the forward and backward pass of the student and the forward pass of the teacher, on the same rows, in the
    same precision and memory layout. There is no data loading, no optimizer and no recording, and the loss is a sum.
    """

    def __init__(self, loop: PackageLoop):
        self.trainer, self.x = loop.trainer, loop.input()

    def step(self) -> None:
        """Do one step."""
        trainer, learner = self.trainer, cast(Learner, self.trainer.learner)
        if trainer.teacher:
            trainer.teacher.network.features(self.x)
        with trainer.fabric.autocast():
            output = learner.student_forward(self.x)
        trainer.student.zero_grad()
        (output.features.float().sum() + output.logits.float().sum()).backward()


class OtherProcess:
    """A training loop in a process of its own, so that the process-wide settings of pckd_nb do not affect it."""

    def __init__(self, make: Callable[..., Any], *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self.connection, worker_connection = context.Pipe()
        self.process = context.Process(target=_serve, args=(worker_connection, make, arguments))
        self.process.start()
        self._wait_for_reply()

    def step(self) -> None:
        """Do one step, and wait for its end."""
        self._call("step")

    def settle(self) -> None:
        """Drop the batches that the workers made in advance."""
        self._call("settle")

    def close(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join()

    def _call(self, name: str) -> None:
        self.connection.send(name)
        self._wait_for_reply()

    def _wait_for_reply(self) -> None:
        if problem := self.connection.recv():
            raise RuntimeError(problem)


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple) -> None:
    try:
        loop = make(*arguments)
        connection.send(None)
        while name := connection.recv():
            getattr(loop, name)()
            connection.send(None)
    except (EOFError, BrokenPipeError):  # the process at the other end has ended
        pass
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")


class Pair:
    """The training loops of one teacher and student, at one batch size, all with the same initial weights."""

    def __init__(self, settings: Settings, teacher: str, student: str, batch_size: int, folder: Path):
        self.settings = settings
        self.data = load_shapes(settings, settings.train_size)
        self.teacher = make_teacher(settings, teacher)
        self.student = pckd.create_model(student, self.data, seed=SEED)
        self.recipe = pckd.get_recipe("cifar100_paper", batch_size=batch_size)
        self.cache = folder / f"{teacher}-{batch_size}"

    def live(self, **other_options: Any) -> PackageLoop:
        """Return the loop with a live teacher."""
        options: dict[str, Any] = {"recipe": self.recipe, "accelerator": self.settings.accelerator, "progress": False}
        shape = self.data.train.shape
        device = self.settings.device
        precision = hardware.default_precision(device)
        compile = compiling.should_compile("auto", self.student, self.settings.rows, shape, device, precision)
        options = {**options, "compile": compile, **other_options}
        return PackageLoop(make_trainer(self.student, self.teacher, self.data, **options))

    def cached(self) -> PackageLoop:
        """Return the loop with a teacher cache. A training of one epoch fills the cache first."""
        networks = copy.deepcopy(self.student), copy.deepcopy(self.teacher)
        recipe = dataclasses.replace(self.recipe, epochs=1)
        options: dict[str, Any] = {"accelerator": self.settings.accelerator, "teacher_cache": self.cache}
        pckd.distill(*networks, self.data, pckd.PCKD(), recipe, seed=SEED, compile=False, progress=False, **options)
        return self.live(teacher_cache=self.cache)

    def plain(self, package_loop: PackageLoop) -> OtherProcess:
        """Return the plain loop, whose heads have the same initial weights as those of `package_loop`."""
        networks = copy.deepcopy(self.student), copy.deepcopy(self.teacher)
        device, workers = self.settings.device, self.settings.workers
        return OtherProcess(PlainLoop, *networks, self.data, package_loop.trainer.method, self.recipe, device, workers)
