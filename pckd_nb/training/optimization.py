"""Optimizer, learning-rate schedule, gradient clipping and averaged weights of a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..models import Classifier
from ..plugs import load_plug
from ..recipes import Recipe

if TYPE_CHECKING:
    from ..methods import Method


def sgd(recipe: Recipe) -> Callable[..., Optimizer]:
    """SGD with the recipe's learning rate, momentum and weight decay: the paper's optimizer."""
    return partial(torch.optim.SGD, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def adamw(recipe: Recipe) -> Callable[..., Optimizer]:
    """AdamW (arXiv 1711.05101) with the recipe's learning rate and weight decay; momentum is its β₁."""
    betas = recipe.momentum, 0.999
    return partial(torch.optim.AdamW, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)


def step_decay(recipe: Recipe, steps_per_epoch: int, total: int, step: int) -> float:
    """The learning rate's factor: `lr_decay` to the power of the milestones passed. Milestones are fractions of the
    epochs."""
    return recipe.lr_decay ** recipe.decays_before(step // steps_per_epoch + 1)


def cosine(recipe: Recipe, steps_per_epoch: int, total: int, step: int) -> float:
    """The learning rate's factor: half a cosine from 1 after the warm-up to 0 at the end (arXiv 1608.03983)."""
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    return 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))


def constant(recipe: Recipe, steps_per_epoch: int, total: int, step: int) -> float:
    """The learning rate's factor: always 1."""
    return 1.0


OPTIMIZERS: dict[str, Callable[[Recipe], Callable[..., Optimizer]]] = {"sgd": sgd, "adamw": adamw}
SCHEDULES = {"step": step_decay, "cosine": cosine, "constant": constant}


class Optimization:
    """What turns gradients into new weights: `zero_grad`, then a backward pass, then `step`.

    Parameters
    ----------
    student : Classifier
    method : Method
        Modules whose parameters are trained together.
    recipe : Recipe
        Names or callables for optimizer and schedule, and clip_norm, warmup_epochs and ema.
    steps_per_epoch : int
    fabric : Fabric
        Scales gradients in 16-bit precision.

    Raises
    ------
    TypeError
        If a callable does not return an optimizer or a learning-rate scheduler of torch.
    """

    def __init__(self, student: Classifier, method: Method, recipe: Recipe, steps_per_epoch: int, fabric: Fabric):
        self.student, self.fabric, self.clip_norm = student, fabric, recipe.clip_norm
        self.parameters = [*student.parameters(), *method.parameters()]
        self.optimizer = make_optimizer(recipe, self.parameters)
        total = recipe.epochs * steps_per_epoch
        self.schedule = make_schedule(recipe, self.optimizer, steps_per_epoch, total)
        self.average: AveragedModel | None = None
        if recipe.ema is not None:
            average = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(student, multi_avg_fn=average, use_buffers=True)
        self.lr = self.optimizer.param_groups[0]["lr"]

    @property
    def evaluated(self) -> Classifier:
        """The network to evaluate and to keep: the averaged one, if there is one."""
        return self.average.module if self.average else self.student  # type: ignore[return-value]

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Change the weights by their gradients, then the learning rate."""
        if self.clip_norm is not None:
            self.fabric.strategy.precision.unscale_gradients(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.fabric.strategy.optimizer_step(self.optimizer)
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.student)

    def finish(self) -> None:
        """Leave the averaged weights, if there are any, in the student."""
        if self.average:
            self.student.load_state_dict(self.average.module.state_dict())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: optimizer, schedule, gradient scaler and averaged weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "average": {"weights": self.average.module.state_dict(), "steps": self.average.n_averaged}
            if self.average
            else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.average:
            self.average.module.load_state_dict(state["average"]["weights"])
            self.average.n_averaged.copy_(state["average"]["steps"])
        self.lr = self.optimizer.param_groups[0]["lr"]


def make_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> Optimizer:
    """The recipe's optimizer, by its name or made by its callable."""
    build = recipe.optimizer
    if isinstance(build, str):
        build = OPTIMIZERS[build](recipe) if build in OPTIMIZERS else load_plug(build)
    optimizer = build(parameters)
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer must return a torch.optim.Optimizer for a list of parameters, got {kind}")
    return optimizer


def make_schedule(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int, total: int) -> LRScheduler:
    """The recipe's schedule, by its name or made by its callable; stepped after every step. total: steps in all."""
    build = recipe.schedule
    if isinstance(build, str) and build in SCHEDULES:
        factor, warmup = SCHEDULES[build], round(recipe.warmup_epochs * steps_per_epoch)

        def scaled(step: int) -> float:
            rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
            return rise * factor(recipe, steps_per_epoch, total, step)

        return LambdaLR(optimizer, scaled)
    schedule: object = (load_plug(build) if isinstance(build, str) else build)(optimizer, total)
    if isinstance(schedule, ReduceLROnPlateau):
        raise TypeError("schedule can't be ReduceLROnPlateau: it needs a score, and is stepped here without one")
    if not isinstance(schedule, LRScheduler):
        kind = type(schedule).__name__
        raise TypeError(f"schedule must return a torch.optim.lr_scheduler for (optimizer, steps), got {kind}")
    return schedule
