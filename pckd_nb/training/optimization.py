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
from ..plugs import load_plugin
from ..recipes import Recipe

if TYPE_CHECKING:
    from ..methods import Method


def sgd(recipe: Recipe) -> Callable[..., Optimizer]:
    """Return a function that builds SGD for a list of parameters. SGD is the paper's optimizer.

    Parameters
    ----------
    recipe : Recipe
        Gives learning rate, momentum and weight decay.

    Returns
    -------
    callable
    """
    return partial(torch.optim.SGD, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def adamw(recipe: Recipe) -> Callable[..., Optimizer]:
    """Return a function that builds AdamW (arXiv 1711.05101) for a list of parameters.

    Parameters
    ----------
    recipe : Recipe
        Gives learning rate and weight decay. Its momentum is β₁.

    Returns
    -------
    callable
    """
    betas = recipe.momentum, 0.999
    return partial(torch.optim.AdamW, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)


def step_decay(recipe: Recipe, steps_per_epoch: int, total: int, step: int) -> float:
    """Return the learning-rate factor: `lr_decay` to the power of the number of milestones passed.

    Milestones are fractions of the number of epochs.

    Parameters
    ----------
    recipe : Recipe
    steps_per_epoch : int
    total : int
        Number of steps in all epochs.
    step : int
        Counted from 0.

    Returns
    -------
    float
    """
    return recipe.lr_decay ** recipe.decays_before(step // steps_per_epoch + 1)


def cosine(recipe: Recipe, steps_per_epoch: int, total: int, step: int) -> float:
    """Return the learning-rate factor: half a cosine from 1 after the warm-up to 0 at the end (arXiv 1608.03983).

    Parameters
    ----------
    recipe : Recipe
    steps_per_epoch : int
    total : int
        Number of steps in all epochs.
    step : int
        Counted from 0.

    Returns
    -------
    float
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    return 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total - warmup)))


def constant(recipe: Recipe, steps_per_epoch: int, total: int, step: int) -> float:
    """Return the learning-rate factor 1."""
    return 1.0


OPTIMIZERS: dict[str, Callable[[Recipe], Callable[..., Optimizer]]] = {"sgd": sgd, "adamw": adamw}
SCHEDULES = {"step": step_decay, "cosine": cosine, "constant": constant}


class Optimization:
    """Update the weights from the gradients: call `zero_grad`, then a backward pass, then `step`.

    Parameters
    ----------
    student : Classifier
    method : Method
        The parameters of both modules are trained together.
    recipe : Recipe
        Gives optimizer and schedule (names or callables), clip_norm, warmup_epochs and ema.
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
        """The network to evaluate and save: the one with averaged weights if there is one, else the student."""
        return self.average.module if self.average else self.student  # type: ignore[return-value]

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Update the weights, then the learning rate, then the averaged weights."""
        if self.clip_norm is not None:
            self.fabric.strategy.precision.unscale_gradients(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.fabric.strategy.optimizer_step(self.optimizer)
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.student)

    def finish(self) -> None:
        """Copy the averaged weights, if there are any, to the student."""
        if self.average:
            self.student.load_state_dict(self.average.module.state_dict())

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: optimizer, schedule, gradient scaler and averaged weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "average": {"weights": self.average.module.state_dict(), "steps": self.average.n_averaged}
            if self.average
            else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore the state that `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.average:
            self.average.module.load_state_dict(state["average"]["weights"])
            self.average.n_averaged.copy_(state["average"]["steps"])
        self.lr = self.optimizer.param_groups[0]["lr"]


def make_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> Optimizer:
    """Build the recipe's optimizer, by its name or with its callable.

    Parameters
    ----------
    recipe : Recipe
    parameters : list of nn.Parameter

    Returns
    -------
    torch.optim.Optimizer

    Raises
    ------
    TypeError
        If the callable does not return an optimizer.
    """
    build = recipe.optimizer
    if isinstance(build, str):
        build = OPTIMIZERS[build](recipe) if build in OPTIMIZERS else load_plugin(build)
    optimizer = build(parameters)
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(f"optimizer must return a torch.optim.Optimizer for a list of parameters, got {kind}")
    return optimizer


def make_schedule(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int, total: int) -> LRScheduler:
    """Build the recipe's learning-rate schedule, by its name or with its callable. It advances after every step.

    Parameters
    ----------
    recipe : Recipe
    optimizer : torch.optim.Optimizer
    steps_per_epoch : int
    total : int
        Number of steps in all epochs.

    Returns
    -------
    torch.optim.lr_scheduler.LRScheduler

    Raises
    ------
    TypeError
        If the callable does not return a learning-rate scheduler, or returns ReduceLROnPlateau.
    """
    build = recipe.schedule
    if isinstance(build, str) and build in SCHEDULES:
        factor, warmup = SCHEDULES[build], round(recipe.warmup_epochs * steps_per_epoch)

        def scaled(step: int) -> float:
            rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
            return rise * factor(recipe, steps_per_epoch, total, step)

        return LambdaLR(optimizer, scaled)
    schedule: object = (load_plugin(build) if isinstance(build, str) else build)(optimizer, total)
    if isinstance(schedule, ReduceLROnPlateau):
        raise TypeError("schedule can't be ReduceLROnPlateau: it needs a score, and is stepped here without one")
    if not isinstance(schedule, LRScheduler):
        kind = type(schedule).__name__
        raise TypeError(f"schedule must return a torch.optim.lr_scheduler for (optimizer, steps), got {kind}")
    return schedule
