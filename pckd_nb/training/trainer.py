"""The training loop, from top to bottom. Everything else that happens during training is in `callbacks`."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import faults, hardware, ranks, recording, resuming, runs, views
from ..compiling import compile_forward
from ..config import RunConfig
from ..data import Streamed
from ..downloads import one_line
from ..evaluation import compute_outputs, pixel_statistics
from ..methods import Batch, Method, Terms
from ..models import Classifier, FeatureMaps, Output, TrainingData
from ..provenance import name_of
from ..recording import Recorder
from ..runs import Run
from .callbacks import Callback
from .optimization import Optimization
from .task import Task
from .teacher import Teacher


class Learner(nn.Module):
    """Student and method as one module. The student processes this rank's rows, the method the gathered batch."""

    student_forward: Callable[[Tensor], Output]

    def __init__(self, student: Classifier, method: Method, forward: Callable[[Tensor], Output], fabric: Fabric):
        super().__init__()
        self.student, self.method, self.fabric = student, method, fabric
        vars(self)["student_forward"] = forward  # it may be the student, which must not be registered twice

    def forward(self, x: Tensor, teacher: Output | None, batch: Batch, epoch: int) -> tuple[Tensor, Terms]:
        """Return (correct, terms): one truth value per image of the whole batch, and the loss terms.

        `x` has this rank's rows. `teacher` and `batch` are of the whole batch.
        """
        with self.fabric.autocast():  # in every step: within one block it reuses copies of the weights
            output = self.student_forward(x).float()
        output = ranks.gather(output, len(batch.labels), self.fabric)
        correct = output.logits[: len(batch.labels)].argmax(1) == batch.labels
        terms = self.method(output, teacher, batch, epoch)
        if not isinstance(terms, Terms):
            kind = type(terms).__name__
            raise TypeError(f"forward of {type(self.method).__name__} must return methods.Terms(...), got {kind}")
        return correct, terms


class Trainer:
    """Train a student. `train` is the loop, `step` is one step, `state` and `resume` write and read a checkpoint.

    Attributes
    ----------
    student : Classifier
        The network that is trained.
    method : Method
        The objective.
    teacher : Teacher or None
        The frozen teacher. None for a method without teacher.
    data : Dataset
        The data set, on the training device.
    recipe : Recipe
    recorder : Recorder
        The progress of training: `epoch` (from 1), `step` (steps done in this epoch, from 0), and the logged values of
        every step and epoch.
    optimization : Optimization
        Optimizer, learning-rate schedule, gradient clipping and averaged weights.
    callbacks : list of Callback
    folder : pathlib.Path or None
        The run folder.
    config : RunConfig
        The content of run.json.
    should_stop : bool
        Set it to True to stop after the current step. The run can be resumed.
    finished_early : str
        Set it to a reason to end training after the current epoch. The run then counts as finished.
    """

    def __init__(
        self,
        task: Task,
        teacher: Teacher | None,
        fabric: Fabric,
        folder: Path | None,
        config: RunConfig,
        callbacks: Sequence[Callback] = (),
    ):
        self.teacher, self.fabric, self.folder, self.config = teacher, fabric, folder, config
        data, recipe = task.data, task.recipe
        self.data, self.recipe, self.seed = data, recipe, task.seed
        self.mean, self.std = pixel_statistics(data, fabric.device)
        self.method = method = task.method.to(fabric.device)
        self.student = task.student.to(fabric.device).to(memory_format=torch.channels_last)
        forward: Callable[[Tensor], Output] = compile_forward(self.student) if config.compile else self.student
        if method.needs_maps:
            maps, plain = FeatureMaps(self.student, torch.zeros(1, data.channels, *data.size), method.layers), forward
            forward = lambda x: maps(plain, x)  # noqa: E731
        self.learner: nn.Module = Learner(self.student, self.method, forward, fabric)
        self.sound_steps = faults.SafeTrainingSteps(self.learner, fabric.device, config.compile)
        if fabric.world_size > 1:
            device = [fabric.device] if fabric.device.type == "cuda" else None
            self.learner = DistributedDataParallel(
                self.learner, device_ids=device, find_unused_parameters=method.needs_maps
            )
        transform = views.find_transform(recipe.augment) if recipe.augment else None
        padding = data.train.padding if recipe.crop else 0
        self.augmentation = views.Augmentation(task.seed, padding, recipe.flip, transform)
        self.mix = views.find_mix(recipe.mix, data.num_classes) if recipe.mix else None
        self.steps_per_epoch = views.steps(len(data.train), recipe.batch_size)
        self.optimization = Optimization(self.student, self.method, recipe, self.steps_per_epoch, fabric)
        self.recorder = Recorder.empty(recipe.epochs, len(data.train), fabric.device)
        self.callbacks = list(callbacks)
        self.should_stop, self.finished_early = False, ""
        self.order: Sequence[Tensor] = ()  # batches of the epoch
        self.started = time.perf_counter()

    # ---------------------------------------------------------------------------------------------------- the loop

    def train(self) -> Run:
        """Train for the remaining epochs and return the run."""
        recorder, stopped = self.recorder, False  # `stopped` is the same on all ranks; `should_stop` may be set on one
        try:
            self.call("on_run_start")
            for model in (self.student, self.optimization.evaluated):
                model.trained_on = TrainingData.of(self.data)
            while recorder.epoch <= self.recipe.epochs and not stopped and not self.ends_early():
                self.student.train()
                self.method.train()
                self.call("on_epoch_start")
                self.started = time.perf_counter()
                for images, index in self.batches(recorder.epoch):
                    correct, terms = self.step(images, index, recorder.epoch, recorder.step)
                    recorder.note(index, correct, terms)
                    self.call("on_step_end")
                    if stopped := ranks.any_rank(self.should_stop, recorder.step, self.fabric):
                        break
                self.check_finite()
                self.add_time()
                if self.teacher:
                    self.teacher.end_epoch()
                if recorder.step == self.steps_per_epoch:
                    self.end_epoch()
                    self.call("on_epoch_end")
                    stopped = stopped or ranks.any_rank(self.should_stop, 0, self.fabric)
                    if ranks.any_rank(bool(self.finished_early), 0, self.fabric) and not self.finished_early:
                        self.finished_early = "another process ended the training"
            ended = recorder.epoch > self.recipe.epochs or self.ends_early()
            run = self.save("finished" if ended else "interrupted")
            self.call("on_run_end", run)
            return run
        finally:
            self.tear_down()

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this rank's images, and the whole batch's positions in the training set, for every remaining batch."""
        if self.teacher:
            self.teacher.begin_epoch(epoch)
        self.order = views.batches(len(self.data.train), self.recipe.batch_size, self.seed, epoch)
        remaining = self.order[self.recorder.step :]
        parts = [ranks.local_part(index, self.fabric) for index in remaining]
        for index, images in zip(remaining, self.read_images(parts, epoch), strict=True):
            yield images, index.to(self.fabric.device)

    def read_images(self, batches: Sequence[Tensor], epoch: int) -> Iterator[Tensor]:
        """Yield the training images of every batch, uint8 (b, C, H, W), with the augmentation of this epoch."""
        train, augment = self.data.train, partial(self.augmentation, epoch=epoch)
        if isinstance(train, Streamed):  # its worker processes augment
            yield from train.read(batches, seed=self.seed, epoch=epoch, augment=augment)
            return
        for index, images in zip(batches, train.read(batches, seed=self.seed, epoch=epoch), strict=True):
            yield augment(images, index)

    def step(self, images: Tensor, index: Tensor, epoch: int, step: int) -> tuple[Tensor, Terms]:
        """Take one step of gradient descent.

        Parameters
        ----------
        images : uint8 Tensor of shape (b, C, H, W)
            This rank's part of the batch.
        index : int64 Tensor of shape (B,)
            Positions of the whole batch in the training set.
        epoch : int
            Counted from 1.
        step : int
            Counted from 0 in every epoch.

        Returns
        -------
        correct : bool Tensor of shape (B,)
            Whether each image was classified correctly.
        terms : Terms
        """
        views.seed_everything(views.noise_seed(self.seed, epoch, step, self.fabric.global_rank))
        x, targets = self.inputs(images, index)
        teacher_output = self.teacher.answer(x, index) if self.teacher else None
        batch = Batch(self.data.train.labels[index], index, targets)
        with self.sound_steps:
            correct, terms = self.learner(x, teacher_output, batch, epoch)
            self.optimization.zero_grad()
            self.fabric.backward(terms.total)
        self.optimization.step()
        return correct, terms

    def inputs(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the network input of this rank's part of a batch, and soft targets of the whole batch.

        The input contains all views of `images`. The targets are None unless the recipe smooths or mixes labels.
        """
        x, targets = views.normalise(images, self.mean, self.std), None
        if self.mix or self.recipe.label_smoothing:
            labels = self.data.train.labels[ranks.local_part(index, self.fabric)]
            smoothing = self.recipe.label_smoothing
            x, targets = views.soften(x, labels, self.data.num_classes, self.mix, smoothing)
            targets = ranks.gather_rows(targets, len(index), self.fabric)
        return views.rotate(x, self.method.views), targets

    def end_epoch(self) -> None:
        """Evaluate the student on the held-out splits and record the epoch's row of history.csv."""
        started = time.perf_counter()
        model = self.optimization.evaluated
        ranks.share_buffers(model, self.fabric)
        scores: dict[str, float] = {}
        for split in self.data.held_out:
            measured = compute_outputs(model, self.data, split, fabric=self.fabric).scores()
            scores |= {f"{split}_{name}": value for name, value in measured._asdict().items()}
        seconds = time.perf_counter() - started
        self.recorder.end_epoch(self.optimization.lr, self.method.epsilon, scores, seconds)

    # -------------------------------------------------------------------------------------------- around the loop

    def ends_early(self) -> bool:
        """Return whether a callback has ended the training, and its last epoch is over."""
        return bool(self.finished_early) and self.recorder.step == 0

    def call(self, event: str, *arguments: Any) -> None:
        """Call the method named `event` of every callback that defines it."""
        for callback in self.callbacks:
            if action := getattr(callback, event, None):
                action(self, *arguments)

    def tear_down(self) -> None:
        """Call `teardown` of every callback. Errors become warnings, so that they do not hide another error."""
        for callback in self.callbacks:
            try:
                if action := getattr(callback, "teardown", None):
                    action(self)
            except Exception as error:
                warnings.warn(f"teardown of {type(callback).__name__} failed: {one_line(error)}", stacklevel=2)

    def add_time(self) -> None:
        """Add the time since the last call to the seconds of this epoch."""
        now = time.perf_counter()
        self.recorder.seconds, self.started = self.recorder.seconds + now - self.started, now

    def check_finite(self) -> None:
        """Raise FloatingPointError if a loss of this epoch, or a weight after its last step, is not finite.

        A gradient can be non-finite even if the loss is finite. This is why the weights are checked too.
        """
        self.recorder.check_finite(self.order)
        for name, weight in [*self.student.named_parameters(), *self.method.named_parameters()]:
            if not weight.isfinite().all():
                step = self.recorder.step
                where = self.recorder.place(step, self.order[step - 1].tolist(), self.order)
                if self.config.precision != "32-true":
                    where += ", and so may precision 32-true"
                raise FloatingPointError(f"the gradient of the loss is not finite, by the weight {name}, {where}")

    def save(self, status: str) -> Run:
        """Return the record so far as a run, and write it to the run folder if there is one.

        Until the run is finished, a checkpoint is written with it.
        """
        recorder, data, model = self.recorder, self.data, self.optimization.evaluated
        weights, truth = runs.weights_of(model), data.train.difficulty
        early = {"finished_early": self.finished_early} if self.finished_early else {}
        run = Run(
            settings={**self.config.dump(), "status": status, "fingerprint": runs.fingerprint(weights), **early},
            history=recorder.history_table(),
            timing=recorder.timing_table(),
            student_state=weights,
            method_state=runs.weights_of(self.method),
            cross_entropy=recorder.cross_entropy.cpu().numpy(),
            difficulty=recorder.difficulty.cpu().numpy(),
            labels=data.train.labels.cpu().numpy(),
            ground_truth=None if truth is None else truth.half().cpu().numpy(),
            ids=data.train.ids,
            path=self.folder,
        )
        if recorder.history and status != "running":
            run.gallery = recording.gallery(data, run.difficulty[len(recorder.history) - 1])
            run.embedding = recording.embedding(model, compute_outputs(model, data, "test", fabric=self.fabric))
        self.call("on_save", run)
        if status == "finished":
            self.optimization.finish()
        if self.folder:
            if status != "finished":
                resuming.write_checkpoint(self.folder, self.state())
            run.save(self.folder)
            if status == "finished":
                resuming.remove_checkpoints(self.folder)
        return run

    def state(self) -> dict[str, Any]:
        """Return everything that `resume` needs to continue from here."""
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            **self.optimization.state(),
            "recorder": vars(self.recorder),
            "finished_early": self.finished_early,
            "callbacks": {
                name: kept for name, callback in self.stateful() if (kept := callback.state_dict()) is not None
            },
        }

    def stateful(self) -> list[tuple[str, Callback]]:
        """Return the callbacks that have a state to save, each with a unique name."""
        found, counts = [], Counter[type]()
        for callback in self.callbacks:
            if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
                found.append((f"{name_of(type(callback))} {counts[type(callback)]}", callback))
                counts[type(callback)] += 1
        return found

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint. Raises ValueError if it is damaged or does not belong to this training."""
        try:
            runs.load_weights(self.student, state["student"], "student")
            runs.load_weights(self.method, state["method"], "heads of the method")
            self.optimization.load(state)
            self.recorder = Recorder(**state["recorder"]).to(self.fabric.device)
            self.finished_early, kept = str(state["finished_early"]), dict(state["callbacks"])
            for name, callback in self.stateful():
                if name in kept:
                    callback.load_state_dict(kept[name])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a damaged file can raise anything
            what = one_line(error)
            raise ValueError(f"the checkpoint in '{self.folder}' can't be used: {what}; overwrite the run") from error


def configure_process(device: torch.device) -> None:
    """Configure memory and threads of this process for training on `device`."""
    if device.type == "cpu":
        hardware.keep_freed_memory()
        hardware.share_cores()
