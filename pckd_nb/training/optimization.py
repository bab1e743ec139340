"""Optimizer, learning-rate schedules, gradient clipping and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ..models import Classifier
from ..plugins import load_plugin
from ..recipes import Recipe


def sgd(recipe: Recipe) -> Callable[..., Optimizer]:
    """Return a function that creates an SGD optimizer. The paper of PCKD uses SGD.

    Parameters
    ----------
    recipe : Recipe
        Its lr, momentum and weight_decay are used.

    Returns
    -------
    callable
        It takes a list of parameters and returns the optimizer.
    """
    return partial(torch.optim.SGD, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def adamw(recipe: Recipe) -> Callable[..., Optimizer]:
    """Return a function that creates an AdamW optimizer.

    Parameters
    ----------
    recipe : Recipe
        Its lr and weight_decay are used. Its momentum is used as β₁ of Adam. β₂ is 0.999.

    Returns
    -------
    callable
        It takes a list of parameters and returns the optimizer.

    References
    ----------
    Loshchilov, Hutter, "Decoupled weight decay regularization", arXiv 1711.05101.
    """
    betas = recipe.momentum, 0.999
    return partial(torch.optim.AdamW, lr=recipe.lr, betas=betas, weight_decay=recipe.weight_decay)


def step_decay(recipe: Recipe, steps_per_epoch: int, total_steps: int, step: int) -> float:
    r"""Return the learning-rate factor of a schedule with milestones: at each of them, the learning rate drops.

    .. math:: \frac{\mathrm{lr}_s}{\mathrm{lr}} = d^m

    where :math:`d` is `lr_decay` of the recipe, and :math:`m` is the number of milestones before the epoch of step
    :math:`s`. The paper of PCKD uses this schedule.

    Parameters
    ----------
    recipe : Recipe
        Its lr_decay, milestones and epochs are used.
    steps_per_epoch : int
    total_steps : int
        Not used.
    step : int
        The step :math:`s`, counted from 0 over all epochs.

    Returns
    -------
    float
    """
    return recipe.lr_decay ** recipe.decays_before(step // steps_per_epoch + 1)


def cosine(recipe: Recipe, steps_per_epoch: int, total_steps: int, step: int) -> float:
    r"""Return the learning-rate factor of a cosine schedule. It falls from 1 after the warm-up to 0 at the end.

    .. math:: \frac{\mathrm{lr}_s}{\mathrm{lr}} = \frac{1}{2} \left(1 + \cos \frac{\pi (s - w)}{S - w}\right)

    where :math:`s` is the step, :math:`S` the number of steps in all epochs, and :math:`w` the number of warm-up steps.
    During the warm-up the factor is 1, see `make_schedule`.

    Parameters
    ----------
    recipe : Recipe
        Its warmup_epochs are used.
    steps_per_epoch : int
    total_steps : int
        The number :math:`S`.
    step : int
        The step :math:`s`, counted from 0 over all epochs.

    Returns
    -------
    float, in [0, 1]

    References
    ----------
    Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", arXiv 1608.03983.
    """
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    return 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, total_steps - warmup)))


def constant(recipe: Recipe, steps_per_epoch: int, total_steps: int, step: int) -> float:
    """Return 1, the learning-rate factor of a schedule that does not change the learning rate."""
    return 1.0


OPTIMIZERS: dict[str, Callable[[Recipe], Callable[..., Optimizer]]] = {"sgd": sgd, "adamw": adamw}
SCHEDULES = {"step": step_decay, "cosine": cosine, "constant": constant}


class Optimization:
    """Update the weights with the gradients, and the learning rate with its schedule.

    In every training step call `zero_grad`, then the backward pass, then `step`.

    Parameters
    ----------
    student : Classifier, or nn.Module in a stage of a method
    method : Method, or nn.Module
        Its heads are trained together with the student.
    recipe : Recipe
        Its optimizer, schedule, warmup_epochs, clip_norm and ema are used.
    steps_per_epoch : int
    fabric : Fabric
        In float16 precision, it scales the gradients.

    Attributes
    ----------
    parameters : list of nn.Parameter
        Everything that is trained: the parameters of the student and of the method's heads.
    average : AveragedModel or None
        Exponential moving average of the student's weights. None if the recipe has no `ema`.
    lr : float
        Learning rate of the last step.

    Raises
    ------
    TypeError
        If a callable given as optimizer or schedule does not return an optimizer or scheduler of torch.
    """

    def __init__(self, student: nn.Module, method: nn.Module, recipe: Recipe, steps_per_epoch: int, fabric: Fabric):
        self.student, self.fabric, self.clip_norm = student, fabric, recipe.clip_norm
        self.parameters = [*student.parameters(), *method.parameters()]
        self.optimizer = make_optimizer(recipe, self.parameters)
        total_steps = recipe.epochs * steps_per_epoch
        self.schedule = make_schedule(recipe, self.optimizer, steps_per_epoch, total_steps)
        self.average: AveragedModel | None = None
        if recipe.ema is not None:
            update = get_ema_multi_avg_fn(recipe.ema)
            self.average = AveragedModel(student, multi_avg_fn=update, use_buffers=True)
        self.lr = self.optimizer.param_groups[0]["lr"]

    @property
    def evaluated_model(self) -> Classifier:
        """The network to evaluate and save: the averaged network if the recipe has an `ema`, otherwise the student."""
        return self.average.module if self.average else self.student  # type: ignore[return-value]

    def zero_grad(self) -> None:
        """Delete the gradients of the previous step."""
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Update the weights, then the learning rate, then the average of the weights."""
        if self.clip_norm is not None:
            self.fabric.strategy.precision.unscale_gradients(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.lr = self.optimizer.param_groups[0]["lr"]
        self.fabric.strategy.optimizer_step(self.optimizer)
        self.schedule.step()
        if self.average:
            self.average.update_parameters(self.student)

    def finish(self) -> None:
        """Copy the averaged weights to the student, if there are any. Called when training is finished."""
        if self.average:
            self.student.load_state_dict(self.average.module.state_dict())

    def state(self) -> dict[str, Any]:
        """Return the state of optimizer, schedule, float16 gradient scaler and averaged weights, for a checkpoint."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "average": {"weights": self.average.module.state_dict(), "steps": self.average.n_averaged}
            if self.average
            else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.average:
            self.average.module.load_state_dict(state["average"]["weights"])
            self.average.n_averaged.copy_(state["average"]["steps"])
        self.lr = self.optimizer.param_groups[0]["lr"]


def make_optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> Optimizer:
    """Create the optimizer of a recipe.

    Parameters
    ----------
    recipe : Recipe
        Its optimizer is "sgd", "adamw", the name of a plugin such as "file.py:Name", or a callable that takes a list of
        parameters.
    parameters : list of nn.Parameter

    Returns
    -------
    torch.optim.Optimizer

    Raises
    ------
    TypeError
        If the callable does not return a torch optimizer.
    """
    create = recipe.optimizer
    if isinstance(create, str):
        create = OPTIMIZERS[create](recipe) if create in OPTIMIZERS else load_plugin(create)
    optimizer = create(parameters)
    if not isinstance(optimizer, Optimizer):
        kind = type(optimizer).__name__
        raise TypeError(
            f"the function given as optimizer must return a torch.optim.Optimizer, got {kind}; it is called with a "
            "list of parameters"
        )
    return optimizer


def make_schedule(recipe: Recipe, optimizer: Optimizer, steps_per_epoch: int, total_steps: int) -> LRScheduler:
    r"""Create the learning-rate schedule of a recipe. Its `step` is called after every training step.

    The schedules of this package start with a linear warm-up of :math:`w` steps. In step :math:`s` of the warm-up, the
    learning rate is also multiplied by

    .. math:: \frac{s + 1}{w}

    where :math:`s` is counted from 0.

    Parameters
    ----------
    recipe : Recipe
        Its schedule is a key of `SCHEDULES`, the name of a plugin such as "file.py:Name", or a callable that takes the
        optimizer and the number of steps.
    optimizer : torch.optim.Optimizer
    steps_per_epoch : int
    total_steps : int
        Number of steps in all epochs.

    Returns
    -------
    torch.optim.lr_scheduler.LRScheduler

    Raises
    ------
    TypeError
        If the callable does not return a learning-rate scheduler of torch, or returns ReduceLROnPlateau.
    """
    create = recipe.schedule
    if isinstance(create, str) and create in SCHEDULES:
        factor, warmup_steps = SCHEDULES[create], round(recipe.warmup_epochs * steps_per_epoch)

        def factor_with_warmup(step: int) -> float:
            warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
            return warmup * factor(recipe, steps_per_epoch, total_steps, step)

        return LambdaLR(optimizer, factor_with_warmup)
    schedule: object = (load_plugin(create) if isinstance(create, str) else create)(optimizer, total_steps)
    if isinstance(schedule, ReduceLROnPlateau):
        raise TypeError(
            "schedule can't be ReduceLROnPlateau, because its step needs a score: use a schedule that needs none"
        )
    if not isinstance(schedule, LRScheduler):
        kind = type(schedule).__name__
        raise TypeError(
            f"the function given as schedule must return a torch.optim.lr_scheduler, got {kind}; it is called with "
            "(optimizer, steps)"
        )
    return schedule
