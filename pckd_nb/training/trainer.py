"""The training loop. Read it from top to bottom: `Trainer.train` is the loop, `Trainer.step` is one training step.

The distillation method computes the loss, see `methods`. Checkpoints and progress bars are in `callbacks`. `Fabric`, of
Lightning, moves tensors to the device, handles 16-bit precision, and connects several processes.

A training may use several processes ("ranks"), usually one per GPU. Each rank computes its part of every batch. Letters
in shapes:

- B: images in the whole batch; b: images in this rank's part of it,
- V: views (rotations) per image,
- C, H, W: channels, height and width of an image.
"""

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

from .. import faults, hardware, ranks, recording, resuming, runs, views
from ..compiling import compile_forward
from ..config import RunConfig
from ..data import Streamed
from ..evaluation import compute_outputs, pixel_statistics
from ..messages import one_line
from ..methods import Batch, Method, Terms
from ..models import Classifier, FeatureMaps, Output, TrainingData
from ..provenance import name_of
from ..recording import Recorder
from ..runs import Run
from .callbacks import Callback
from .optimization import Optimization
from .stages import run_stages
from .task import Task
from .teacher import Teacher


class Learner(nn.Module):
    """Student and method as one module, which computes the loss.

    The student computes the outputs for this rank's part of the batch. Then the outputs of all ranks are gathered, and
    the method computes the loss of the whole batch.

    Parameters
    ----------
    student : Classifier
    method : Method
        It computes the loss. It may have layers of its own ("heads"), which are trained too.
    forward : callable
        The forward pass of the student. It may be compiled, and it may also return feature maps.
    fabric : Fabric
    """

    student_forward: Callable[[Tensor], Output]

    def __init__(self, student: Classifier, method: Method, forward: Callable[[Tensor], Output], fabric: Fabric):
        super().__init__()
        self.student, self.method, self.fabric = student, method, fabric
        # A normal assignment would register the student's weights a second time if `forward` is the student itself.
        vars(self)["student_forward"] = forward

    def forward(self, x: Tensor, teacher: Output | None, batch: Batch, epoch: int) -> tuple[Tensor, Terms]:
        """Compute the loss terms of a batch.

        Parameters
        ----------
        x : float Tensor of shape (V·b, C, H, W)
            Network input, only this rank's part of the batch, sorted by view and then by image.
        teacher : Output or None
            Output of the teacher for the whole batch, with V·B rows.
        batch : Batch
            Labels of the whole batch.
        epoch : int
            Counted from 1.

        Returns
        -------
        logits : float Tensor of shape (B, classes)
            Logits of the student for the upright view of each image, without gradient.
        terms : Terms
            The total loss, its terms, and one cross-entropy, difficulty and preview weight per image.

        Raises
        ------
        TypeError
            If the method returns something else than `Terms`.
        """
        # Autocast caches 16-bit copies of the weights. Every step changes the weights, and so needs a new context.
        with self.fabric.autocast():
            output = self.student_forward(x).float()  # the loss is computed in float32
        output = ranks.gather(output, len(batch.labels), self.fabric)
        upright_logits = output.logits[: len(batch.labels)].detach()  # the first view is the image without rotation
        terms = self.method(output, teacher, batch, epoch)
        if not isinstance(terms, Terms):
            kind = type(terms).__name__
            raise TypeError(f"forward of {type(self.method).__name__} must return methods.Terms(...), got {kind}")
        return upright_logits, terms


class Trainer:
    """Train a student.

    Parameters
    ----------
    task : Task
        Student, method, data and recipe, after `Task.bind`. The data are on the training device.
    teacher : Teacher or None
    fabric : Fabric
    folder : Path or None
        The run folder. None if the run is kept in memory.
    config : RunConfig
        The content of run.json.
    callbacks : sequence of Callback

    Attributes
    ----------
    student : Classifier
        The network that is trained.
    method : Method
        It computes the loss, and may have heads that are trained together with the student.
    teacher : Teacher or None
        The frozen teacher. None for a method without a teacher.
    data : Dataset
        The data set, on the training device.
    recipe : Recipe
    recorder : Recorder
        The progress of training: `epoch` (counted from 1), `step` (number of steps done in this epoch), and the logged
        values of every step and epoch.
    optimization : Optimization
        Optimizer, learning-rate schedule, gradient clipping, and the moving average of the weights.
    callbacks : list of Callback
    folder : Path or None
    config : RunConfig
    should_stop : bool
        Set it to True to stop after the current step. The run is then interrupted, and can be resumed.
    stages : list of dict
        The stages of the method that are complete: "name", "epochs", and "loss" with one value per epoch.
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
        self.student = task.student.to(fabric.device).to(memory_format=torch.channels_last)  # faster convolutions
        forward: Callable[[Tensor], Output] = compile_forward(self.student) if config.compile else self.student
        if method.needs_maps:
            maps = FeatureMaps(
                self.student, torch.zeros(1, data.channels, *data.size), method.layers, method.student_maps
            )
            forward = partial(maps, forward)
        self.student_forward = forward
        self.learner: nn.Module = Learner(self.student, self.method, forward, fabric)
        self.torch_workaround = faults.SafeTrainingSteps(self.learner, fabric.device, config.compile)
        # A loss of feature maps may leave parameters without a gradient.
        self.learner = ranks.synchronise_gradients(self.learner, fabric, unused_parameters=method.needs_maps)
        transform = views.find_transform(recipe.augment) if recipe.augment else None
        padding = data.train.padding if recipe.crop else 0
        strong = views.strong_transform() if method.view_kind == "strong" else None
        self.separate_crops = method.views > 1 and (recipe.crop_per_view or strong is not None)
        crop_views = method.views if self.separate_crops and not strong else 1
        self.augmentation = views.Augmentation(task.seed, padding, recipe.flip, transform, crop_views, strong)
        self.mix = views.find_mix(recipe.mix, data.num_classes) if recipe.mix else None
        self.steps_per_epoch = views.steps_per_epoch(len(data.train), recipe.batch_size)
        self.optimization = Optimization(self.student, self.method, recipe, self.steps_per_epoch, fabric)
        record_teacher = teacher is not None and not method.teacher_only_in_stages
        self.recorder = Recorder.empty(recipe.epochs, len(data.train), fabric.device, record_teacher)
        self.callbacks = list(callbacks)
        self.stages: list[dict[str, Any]] = []
        self.should_stop, self.finished_early = False, ""
        self.epoch_batches: Sequence[Tensor] = ()  # all batches of this epoch, as positions in the training set
        self.timer_started = time.perf_counter()

    # ---------------------------------------------------------------------------------------------------- the loop

    def train(self) -> Run:
        """Train the stages of the method, if there are any, and then the student for the remaining epochs.

        Returns
        -------
        Run

        Raises
        ------
        FloatingPointError
            If a loss or a gradient is not finite.
        """
        recorder = self.recorder
        stopped = False  # whether any rank has `should_stop`, so that all ranks stop after the same step
        try:
            self.call_callbacks("on_run_start")
            for model in (self.student, self.optimization.evaluated_model):
                model.trained_on = TrainingData.of(self.data)
            stopped = run_stages(self)
            while recorder.epoch <= self.recipe.epochs and not stopped and not self.ended_by_callback():
                self.student.train()
                self.method.train()
                self.call_callbacks("on_epoch_start")
                self.timer_started = time.perf_counter()
                for images, index in self.batches(recorder.epoch):
                    step = self.step(images, index, recorder.epoch, recorder.step)
                    recorder.record_step(index, *step)
                    self.call_callbacks("on_step_end")
                    if stopped := ranks.any_rank(self.should_stop, recorder.step, self.fabric):
                        break
                self.check_finite()  # not after every step, because a GPU would have to wait for the answer
                self.update_seconds()
                if self.teacher:
                    self.teacher.end_epoch()
                if recorder.step == self.steps_per_epoch:
                    self.end_epoch()
                    self.call_callbacks("on_epoch_end")
                    stopped = stopped or ranks.any_rank(self.should_stop, 0, self.fabric)
                    any_finished_early = ranks.any_rank(bool(self.finished_early), 0, self.fabric)
                    if any_finished_early and not self.finished_early:
                        self.finished_early = "another process ended the training"
            finished = recorder.epoch > self.recipe.epochs or self.ended_by_callback()
            run = self.save("finished" if finished else "interrupted")
            self.call_callbacks("on_run_end", run)
            return run
        finally:
            self.teardown_callbacks()

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over the remaining batches of an epoch.

        Parameters
        ----------
        epoch : int
            Counted from 1. The order of the images and their augmentation depend on it.

        Yields
        ------
        images : uint8 Tensor of shape (b, C, H, W)
            Augmented images, only this rank's part of the batch. (V·b, C, H, W) if every view is cropped separately.
        index : int64 Tensor of shape (B,)
            Positions of the whole batch in the training set.
        """
        if self.teacher:
            self.teacher.begin_epoch(epoch)
        self.epoch_batches = views.batches(len(self.data.train), self.recipe.batch_size, self.seed, epoch)
        remaining = self.epoch_batches[self.recorder.step :]
        parts = [ranks.local_part(index, self.fabric) for index in remaining]
        for index, images in zip(remaining, self.read_images(parts, epoch), strict=True):
            yield images, index.to(self.fabric.device)

    def read_images(
        self, batches: Sequence[Tensor], epoch: int, augmentation: views.Augmentation | None = None
    ) -> Iterator[Tensor]:
        """Read and augment training images.

        Parameters
        ----------
        batches : sequence of int64 Tensor of shape (b,)
            Positions in the training set.
        epoch : int
            Counted from 1. Negative in the stages of a method.
        augmentation : views.Augmentation, optional
            None means that of the training.

        Yields
        ------
        uint8 Tensor of shape (b, C, H, W)
        """
        train, augment = self.data.train, partial(augmentation or self.augmentation, epoch=epoch)
        if isinstance(train, Streamed):  # images in files: worker processes read and augment them
            yield from train.read(batches, seed=self.seed, epoch=epoch, augment=augment)
            return
        for index, images in zip(batches, train.read(batches, seed=self.seed, epoch=epoch), strict=True):
            yield augment(images, index)

    def step(self, images: Tensor, index: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor, Terms, Tensor | None]:
        """Run one training step: compute the loss of a batch, its gradients, and update the weights.

        Parameters
        ----------
        images : uint8 Tensor of shape (b, C, H, W)
            Augmented images, only this rank's part of the batch. (V·b, C, H, W) if every view is cropped separately.
        index : int64 Tensor of shape (B,)
            Positions of the whole batch in the training set.
        epoch : int
            Counted from 1.
        step : int
            Counted from 0 in every epoch.

        Returns
        -------
        labels : int64 Tensor of shape (B,)
            Classes of the images.
        logits : float Tensor of shape (B, classes)
            Logits of the student for the upright view of each image, without gradient.
        terms : Terms
            The total loss, its terms, and one cross-entropy, difficulty and preview weight per image.
        teacher_logits : float Tensor of shape (B, classes), or None
            The same logits of the teacher. None if no teacher runs in this step.
        """
        # Each step has a seed of its own, so that dropout and MixUp get the same random numbers in a resumed run.
        views.seed_everything(views.step_seed(self.seed, epoch, step, self.fabric.global_rank))
        x, targets = self.make_inputs(images, index)
        teacher = None if self.method.teacher_only_in_stages else self.teacher
        teacher_output = teacher.batch_output(x, index) if teacher else None
        batch = Batch(self.data.train.labels[index], index, targets)
        with self.torch_workaround:  # see `faults`; it has no effect on GPUs
            logits, terms = self.learner(x, teacher_output, batch, epoch)
            self.optimization.zero_grad()
            self.fabric.backward(terms.total)
        self.optimization.step()
        teacher_logits = None if teacher_output is None else teacher_output.logits[: len(index)]
        return batch.labels, logits, terms, teacher_logits

    def make_inputs(self, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normalise and rotate images, and compute soft labels if the recipe smooths labels or mixes images.

        A soft label is a probability for every class, instead of the index of one class.

        Parameters
        ----------
        images : uint8 Tensor of shape (b, C, H, W)
            Augmented images, only this rank's part of the batch. (V·b, C, H, W) if every view is cropped separately.
        index : int64 Tensor of shape (B,)
            Positions of the whole batch in the training set.

        Returns
        -------
        x : float Tensor of shape (V·b, C, H, W)
            All views of `images`, sorted by view and then by image.
        targets : float Tensor of shape (B, classes), or None
            Soft labels of the whole batch. None if labels are neither smoothed nor mixed.
        """
        x, targets = views.normalise(images, self.mean, self.std), None
        if self.mix or self.recipe.label_smoothing:
            labels = self.data.train.labels[ranks.local_part(index, self.fabric)]
            smoothing = self.recipe.label_smoothing
            upright, targets = views.soft_targets(x[: len(labels)], labels, self.data.num_classes, self.mix, smoothing)
            x = x if self.separate_crops else upright
            targets = ranks.gather_rows(targets, len(index), self.fabric)
        return x if self.separate_crops else views.rotate(x, self.method.views), targets

    def end_epoch(self) -> None:
        """Evaluate the student, record the scores for history.csv, and move the recorder to the next epoch.

        The held-out splits are the test images and the validation images, as far as the data set has them. If the
        recipe has an `ema`, the averaged weights are evaluated.
        """
        started = time.perf_counter()
        model = self.optimization.evaluated_model
        ranks.share_buffers(model, self.fabric)  # so that all ranks evaluate with the same BatchNorm statistics
        scores: dict[str, float] = {}
        for split in self.data.held_out:
            predictions = compute_outputs(model, self.data, split, fabric=self.fabric)
            scores |= {f"{split}_{name}": value for name, value in predictions.scores()._asdict().items()}
            if split == self.data.held_out[0]:  # the test images, or the validation images without them
                row = recording.geometry_row(model, predictions, self.recorder.epoch, self.recipe.epochs)
                recording.add_geometry(self.recorder.geometry, row)
        seconds = time.perf_counter() - started
        self.recorder.end_epoch(self.optimization.lr, self.method.epsilon, scores, seconds)

    # -------------------------------------------------------------------------------------------- around the loop

    def ended_by_callback(self) -> bool:
        """Return whether a callback set `finished_early` and the current epoch is complete."""
        return bool(self.finished_early) and self.recorder.step == 0

    def call_callbacks(self, event: str, *arguments: Any) -> None:
        """Call the method for an event, such as `on_epoch_end`, of every callback that has this method.

        Parameters
        ----------
        event : str
            Name of the callbacks' method.
        *arguments
            Its arguments after the trainer.
        """
        for callback in self.callbacks:
            if callback_method := getattr(callback, event, None):
                callback_method(self, *arguments)

    def teardown_callbacks(self) -> None:
        """Call `teardown` of every callback. Turn errors into warnings, so that they do not hide an earlier error."""
        for callback in self.callbacks:
            try:
                if teardown := getattr(callback, "teardown", None):
                    teardown(self)
            except Exception as error:
                warnings.warn(f"teardown of {type(callback).__name__} failed: {one_line(error)}", stacklevel=2)

    def update_seconds(self) -> None:
        """Add the time since the last call to the duration of this epoch."""
        now = time.perf_counter()
        self.recorder.seconds, self.timer_started = self.recorder.seconds + now - self.timer_started, now

    def check_finite(self) -> None:
        """Check that the losses of this epoch and the current weights are finite.

        The weights are checked because the gradient of a finite loss can be infinite.

        Raises
        ------
        FloatingPointError
            If a loss or a weight is not finite.
        """
        self.recorder.check_finite(self.epoch_batches)
        for name, weight in [*self.student.named_parameters(), *self.method.named_parameters()]:
            if not weight.isfinite().all():
                step = self.recorder.step
                where = self.recorder.describe_step(step, self.epoch_batches[step - 1].tolist(), self.epoch_batches)
                hint = ", or precision 32-true" if self.config.precision != "32-true" else ""
                raise FloatingPointError(f"the gradient of the weight {name} is not finite {where}{hint}")

    def save(self, status: str) -> Run:
        """Write the run folder, if there is one, and return the run.

        Callbacks can change the run before it is written, see `Callback.on_save`. If the run is not finished, write a
        checkpoint too. If it is finished, remove its checkpoints, and give the student its averaged weights if there
        are any.

        Parameters
        ----------
        status : {"running", "interrupted", "finished"}

        Returns
        -------
        Run
        """
        recorder, data, model = self.recorder, self.data, self.optimization.evaluated_model
        weights = runs.weights_of(model)
        true_difficulty, true_labels = data.train.difficulty, data.train.true_labels
        settings = {**self.config.dump(), "status": status, "fingerprint": runs.fingerprint(weights)}
        if self.stages:
            settings["stages"] = self.stages
        if self.finished_early:
            settings["finished_early"] = self.finished_early
        run = Run(
            settings=settings,
            history=recorder.history_table(),
            timing=recorder.timing_table(),
            student_state=weights,
            method_state=runs.weights_of(self.method),
            **recorder.arrays(),
            labels=data.train.labels.cpu().numpy(),
            ground_truth=None if true_difficulty is None else true_difficulty.half().cpu().numpy(),
            ids=data.train.ids,
            true_labels=None if true_labels is None else true_labels.cpu().numpy(),
            path=self.folder,
        )
        if recorder.history and status != "running":
            run.gallery = recording.gallery(data, run.difficulty[len(recorder.history) - 1])
            if recorder.geometry:  # empty after resuming a finished training of an older version
                run.geometry = recording.stack_geometry(recorder.geometry)
            if data.test is not None:
                run.embedding = recording.embedding(model, compute_outputs(model, data, "test", fabric=self.fabric))
        self.call_callbacks("on_save", run)
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
        """Return the content of a checkpoint: everything that `resume` needs."""
        callback_states = {name: callback.state_dict() for name, callback in self.callbacks_with_state()}
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            **self.optimization.state(),
            "recorder": vars(self.recorder),
            "finished_early": self.finished_early,
            "stages": self.stages,
            "callbacks": {name: state for name, state in callback_states.items() if state is not None},
        }

    def callbacks_with_state(self) -> list[tuple[str, Callback]]:
        """Return the callbacks that have a `state_dict`, each with a unique name."""
        found, counts = [], Counter[type]()
        for callback in self.callbacks:
            if hasattr(callback, "state_dict") and hasattr(callback, "load_state_dict"):
                found.append((f"{name_of(type(callback))} {counts[type(callback)]}", callback))
                counts[type(callback)] += 1
        return found

    def resume(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint.

        Parameters
        ----------
        state : dict
            The content of a checkpoint, see `state`.

        Raises
        ------
        ValueError
            If the checkpoint is damaged, or belongs to another training.
        """
        try:
            runs.load_weights(self.student, state["student"], "student")
            runs.load_weights(self.method, state["method"], "heads of the method")
            self.optimization.load(state)
            self.recorder = Recorder(**state["recorder"]).to(self.fabric.device)
            self.stages = list(state.get("stages", []))  # checkpoints of older versions have none
            self.finished_early, callback_states = str(state["finished_early"]), dict(state["callbacks"])
            for name, callback in self.callbacks_with_state():
                if name in callback_states:
                    callback.load_state_dict(callback_states[name])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a damaged file can raise anything
            raise ValueError(
                f"the checkpoint in '{self.folder}' can't be used: {one_line(error)}; start again with overwrite=True"
            ) from error


def configure_process(device: torch.device) -> None:
    """Configure memory and threads of this process for training on a CPU. Do nothing for other devices.

    Parameters
    ----------
    device : torch.device
    """
    if device.type == "cpu":
        hardware.keep_freed_memory()
        hardware.share_cores()
