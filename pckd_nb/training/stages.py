"""The stages of a method: what it trains before the first epoch of the training, see `methods.Stage`.

A stage uses the same functions as the training: order of the images, augmentation, normalisation, precision, and
gathering of the outputs of all ranks. Its epochs have negative numbers: the first epoch of the first stage is −1. So
the order of the images and their augmentation differ from those of all other epochs.

A stage that is interrupted starts again when the run is resumed. The result is the same as without interruption.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import faults, ranks, recording, resuming, views
from ..messages import one_line
from ..methods import Batch, Method, Stage
from ..models import Output
from ..recipes import Recipe
from .optimization import Optimization

if TYPE_CHECKING:
    from .trainer import Trainer


class StageLearner(nn.Module):
    """Student and method as one module, which computes the loss of a stage.

    Parameters
    ----------
    trainer : Trainer
    stage : Stage
    """

    student_forward: Callable[[Tensor], Output]

    def __init__(self, trainer: Trainer, stage: Stage):
        super().__init__()
        self.student, self.method = trainer.student, trainer.method
        self.fabric, self.stage = trainer.fabric, stage
        vars(self)["student_forward"] = trainer.student_forward  # see `trainer.Learner`

    def forward(self, x: Tensor, teacher: Output | None, batch: Batch) -> Tensor:
        """Compute the loss of a batch.

        Parameters
        ----------
        x : float Tensor of shape (V·b, C, H, W)
            Network input, only this rank's part of the batch, sorted by view and then by image.
        teacher : Output or None
            Output of the teacher for the whole batch, with V·B rows.
        batch : Batch
            Labels of the whole batch.

        Returns
        -------
        scalar Tensor

        Raises
        ------
        TypeError
            If the loss of the stage is not a scalar tensor.
        ValueError
            If the loss does not depend on what the stage trains, or uses the output of a student that it does not
            need.
        """
        student = None
        if self.stage.needs_student:
            with self.fabric.autocast():
                student = self.student_forward(x).float()
            student = ranks.gather(student, len(batch.labels), self.fabric)
        try:
            loss: object = self.stage.loss(student, teacher, batch)
        except (AttributeError, TypeError) as error:
            if student is None and "NoneType" in str(error):
                raise ValueError(
                    f"the loss of the stage {self.stage.name} uses an output that is None: if it needs the student, "
                    "create the stage with needs_student=True"
                ) from error
            raise
        if not isinstance(loss, Tensor) or loss.ndim:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"the loss of the stage {self.stage.name} must be a scalar tensor, got {got}")
        if not loss.requires_grad:
            raise ValueError(f"the loss of the stage {self.stage.name} does not depend on the modules that it trains")
        return loss


def run_stages(trainer: Trainer) -> bool:
    """Train the stages of the method that are not complete yet.

    A checkpoint is written after every stage.

    Parameters
    ----------
    trainer : Trainer
        Complete stages are added to its `stages`.

    Returns
    -------
    bool
        Whether the training was stopped in a stage. Student and method then have the weights from before this stage.

    Raises
    ------
    FloatingPointError
        If a loss or a weight is not finite.
    TypeError, ValueError
        If a stage cannot be trained, see `check_stages`.
    """
    if not isinstance(trainer.method, Method):  # any other nn.Module has no stages
        return False
    teacher = trainer.teacher.network.model if trainer.teacher else None
    # Not `trainer.method.stages`: a method of the user may have an attribute of this name, such as a list of layers.
    stages = type(trainer.method).stages(trainer.method, trainer.student, teacher)
    check_stages(stages, trainer.student, trainer.method, trainer.data.size)
    epochs_before = 0
    for number, stage in enumerate(stages):
        if number >= len(trainer.stages):
            record = run_stage(trainer, stage, epochs_before)
            if record is None:
                return True
            trainer.stages.append(record)
            if trainer.folder:
                resuming.write_checkpoint(trainer.folder, trainer.state())
        epochs_before += stage.epochs
    return False


def check_stages(stages: object, student: nn.Module, method: nn.Module, size: tuple[int, int]) -> None:
    """Check what `stages` of a method returns.

    Parameters
    ----------
    stages : object
    student, method : nn.Module
    size : (int, int)
        Height and width of the images.

    Raises
    ------
    TypeError
        If it is not a list of `Stage`.
    ValueError
        If a stage trains no parameter, or a parameter of neither student nor method. If it rotates images that are not
        square.
    """
    if not isinstance(stages, list | tuple) or not all(isinstance(stage, Stage) for stage in stages):
        got = one_line(repr(stages))
        raise TypeError(f"stages of {type(method).__name__} must return a list of Stage objects, got {got}")
    accepted = {id(parameter) for module in (student, method) for parameter in module.parameters()}
    for stage in stages:
        trained = {id(parameter) for module in stage.modules for parameter in module.parameters()}
        frozen = {id(parameter) for module in stage.frozen for parameter in module.parameters()}
        if not trained - frozen:
            raise ValueError(f"the stage {stage.name} trains no parameter: pass other modules, or fewer in frozen")
        if trained - accepted:  # they would not be saved
            raise ValueError(
                f"the stage {stage.name} trains a module that is part of neither the student nor the method: make it "
                "an attribute of the method in bind"
            )
        if stage.views > 1 and size[0] != size[1]:
            raise ValueError(
                f"rotated views need square images, got {size[0]}×{size[1]}: use views=1 in the stage {stage.name}"
            )


def run_stage(trainer: Trainer, stage: Stage, epochs_before: int) -> dict[str, Any] | None:
    """Train one stage.

    Parameters
    ----------
    trainer : Trainer
    stage : Stage
    epochs_before : int
        Number of epochs of the stages before this one.

    Returns
    -------
    dict or None
        The entry for run.json. None if the training was stopped.
    """
    record: dict[str, Any] = {"name": stage.name, "epochs": stage.epochs, "loss": []}
    precision = trainer.fabric.strategy.precision
    modules = trainer.student, trainer.method
    start = copy.deepcopy([*(module.state_dict() for module in modules), precision.state_dict()])
    with only_trained(stage, *modules):
        steps = StageSteps(trainer, stage)
        for epoch in range(1, stage.epochs + 1):
            loss = steps.run_epoch(epoch, -(epochs_before + epoch))
            if loss is None:
                for module, weights in zip(modules, start, strict=False):
                    module.load_state_dict(weights)
                precision.load_state_dict(start[-1])
                return None
            record["loss"].append(loss)
            trainer.call_callbacks("on_stage_epoch_end", record)
    ranks.share_buffers(trainer.student, trainer.fabric)
    return record


@contextmanager
def only_trained(stage: Stage, student: nn.Module, method: nn.Module) -> Iterator[None]:
    """Train only the modules of a stage in a `with` block: everything else is frozen and in eval mode.

    Layers of the student that are frozen for the whole training stay frozen.

    Parameters
    ----------
    stage : Stage
    student, method : nn.Module
    """
    parameters = [parameter for module in (student, method) for parameter in module.parameters()]
    before = [parameter.requires_grad for parameter in parameters]
    student_ids = {id(parameter) for parameter in student.parameters()}
    try:
        for modules, trained in (((student, method), False), (stage.modules, True), (stage.frozen, False)):
            for module in modules:
                module.train(trained).requires_grad_(trained)
        for parameter, requires_grad in zip(parameters, before, strict=True):
            if not requires_grad and id(parameter) in student_ids:
                parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in zip(parameters, before, strict=True):
            parameter.requires_grad_(requires_grad)
            parameter.grad = None


class StageSteps:
    """The training steps of a stage.

    Parameters
    ----------
    trainer : Trainer
    stage : Stage
        Its modules are in train mode, see `only_trained`.
    """

    def __init__(self, trainer: Trainer, stage: Stage):
        self.trainer, self.stage = trainer, stage
        fabric, recipe = trainer.fabric, trainer.recipe
        self.learner: nn.Module = StageLearner(trainer, stage)
        self.torch_workaround = faults.SafeTrainingSteps(self.learner, fabric.device, trainer.config.compile)
        self.learner = ranks.synchronise_gradients(self.learner, fabric, unused_parameters=stage.needs_student)
        self.optimization = Optimization(
            nn.ModuleList(stage.modules), nn.Module(), recipe_of(stage, recipe), trainer.steps_per_epoch, fabric
        )
        self.separate_crops = recipe.crop_per_view and stage.views > 1
        self.augmentation = dataclasses.replace(trainer.augmentation, views=stage.views if self.separate_crops else 1)

    def run_epoch(self, epoch: int, number: int) -> float | None:
        """Train one epoch.

        Parameters
        ----------
        epoch : int
            Counted from 1 in this stage, for messages.
        number : int
            The number on which the order of the images and their augmentation depend.

        Returns
        -------
        float or None
            The mean loss. None if the training was stopped.

        Raises
        ------
        FloatingPointError
            If a loss or a weight is not finite.
        """
        trainer, fabric = self.trainer, self.trainer.fabric
        batches = views.batches(len(trainer.data.train), trainer.recipe.batch_size, trainer.seed, number)
        parts = [ranks.local_part(index, fabric) for index in batches]
        losses: list[Tensor] = []
        for index, images in zip(batches, trainer.read_images(parts, number, self.augmentation), strict=True):
            losses.append(self.step(images, index.to(fabric.device), number, len(losses)))
            if ranks.any_rank(trainer.should_stop, len(losses), fabric):
                return None
        values = torch.stack(losses).cpu().double()
        self.check_finite(values, epoch, batches)
        if ranks.any_rank(trainer.should_stop, 0, fabric):
            return None
        sizes = torch.tensor([len(index) for index in batches]).double()
        return float((values * sizes).sum() / sizes.sum())

    def step(self, images: Tensor, index: Tensor, number: int, step: int) -> Tensor:
        """Run one training step.

        Parameters
        ----------
        images : uint8 Tensor of shape (b, C, H, W)
            Augmented images, only this rank's part of the batch. (V·b, C, H, W) if every view is cropped separately.
        index : int64 Tensor of shape (B,)
            Positions of the whole batch in the training set.
        number : int
            As in `run_epoch`.
        step : int
            Counted from 0 in every epoch.

        Returns
        -------
        scalar Tensor
            The loss, without gradient.
        """
        trainer = self.trainer
        views.seed_everything(views.step_seed(trainer.seed, number, step, trainer.fabric.global_rank))
        x = views.normalise(images, trainer.mean, trainer.std)
        x = x if self.separate_crops else views.rotate(x, self.stage.views)
        teacher_output = trainer.teacher.batch_output(x, index, cached=False) if trainer.teacher else None
        batch = Batch(trainer.data.train.labels[index], index)
        with self.torch_workaround:
            loss: Tensor = self.learner(x, teacher_output, batch)
            self.optimization.zero_grad()
            trainer.fabric.backward(loss)
        self.optimization.step()
        return loss.detach().float()

    def check_finite(self, losses: Tensor, epoch: int, batches: Sequence[Tensor]) -> None:
        """Check that the losses of an epoch and the trained weights are finite.

        Parameters
        ----------
        losses : float Tensor of shape (steps,)
        epoch : int
            Counted from 1.
        batches : sequence of int64 Tensor of shape (B,)
            The batches of the epoch: positions in the training set.

        Raises
        ------
        FloatingPointError
            If a value is not finite.
        """
        not_finite = (~losses.isfinite()).nonzero().flatten().tolist()
        weights_finite = all(bool(weight.isfinite().all()) for weight in self.optimization.parameters)
        if not not_finite and weights_finite:
            return
        step = not_finite[0] if not_finite else len(batches) - 1
        where = recording.describe_step(epoch, step + 1, batches[step].tolist(), len(batches[step]))
        what = "the loss" if not_finite else "the gradient of a weight"
        raise FloatingPointError(f"{what} of the stage {self.stage.name} is not finite {where}")


def recipe_of(stage: Stage, recipe: Recipe) -> Recipe:
    """Return the recipe of a stage. `stage.lr` is used only with SGD.

    Parameters
    ----------
    stage : Stage
    recipe : Recipe
        The recipe of the training.

    Returns
    -------
    Recipe
    """
    lr = stage.lr if stage.lr is not None and recipe.optimizer == "sgd" else recipe.lr
    schedule = dict(schedule="step", milestones=stage.milestones, lr_decay=stage.lr_decay, warmup_epochs=0)
    return dataclasses.replace(recipe, epochs=stage.epochs, lr=lr, ema=None, **schedule)  # type: ignore[arg-type]
