"""What all methods share, and the two plain ones: `Supervised` and `KD`."""

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from numbers import Real
from sys import float_info
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses, preview
from ..models import Classifier, Output

P = ParamSpec("P")
M = TypeVar("M", bound="Method")


class Batch(NamedTuple):
    """labels: (B,) categories · index: (B,) positions of the images in the training set."""

    labels: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which looks for a value


class Terms(NamedTuple):
    """What one batch gave.

    total: the objective, a scalar · terms: every loss term by name, a scalar each, as it enters the objective but
    before its β · cross_entropy, difficulty, weight: (B,), without gradient.
    """

    total: Tensor
    terms: dict[str, Tensor]
    cross_entropy: Tensor
    difficulty: Tensor
    weight: Tensor


class Method(Protocol):
    """What the loop asks of a method, whatever its class: what this package's docstring says, and of nn.Module."""

    @property
    def title(self) -> str: ...
    @property
    def views(self) -> int: ...
    @property
    def uses_teacher(self) -> bool: ...
    @property
    def bind(self) -> Callable[..., object]: ...
    def __call__(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms: ...

    def to(self: M, device: torch.device) -> M: ...
    def train(self) -> object: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> object: ...


def remember_arguments(init: Callable[Concatenate[Any, P], None]) -> Callable[Concatenate[Any, P], None]:
    """Keep the arguments that the caller gave in `self.explicit`: `resolve` may replace only the others."""

    @wraps(init)
    def wrapped(self: Any, *args: P.args, **kwargs: P.kwargs) -> None:
        explicit = dict(inspect.signature(init).bind(self, *args, **kwargs).arguments)
        explicit.pop("self")
        init(self, *args, **kwargs)
        self.explicit = explicit

    return wrapped


class Supervised(nn.Module):
    """Cross-entropy of the upright view alone, and no teacher."""

    title = "supervised"
    views = 1
    uses_teacher = False

    def bind(self, student: Classifier, teacher: Classifier | None = None) -> "Supervised":
        """Nothing to make: it has no heads."""
        return self

    def forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        """The objective of B upright rows; teacher and epoch are not looked at. Raises as `upright_cross_entropy`."""
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        total = cross_entropy.mean()
        terms = {"cross_entropy": total}
        return Terms(total, terms, *unweighted(cross_entropy))


class KD(nn.Module):
    """Hinton's distillation (arXiv 1503.02531): L = mean CE + β_kd · mean L_KD.

    temperature from 1e-6 to 1e6, beta_kd ≥ 0; raises ValueError otherwise, TypeError for what is no number.
    """

    title = "KD"
    views = 1
    uses_teacher = True

    @remember_arguments
    def __init__(self, temperature: float = 4.0, beta_kd: float = 1.0):
        super().__init__()
        check_settings({"beta_kd": beta_kd}, {"temperature": temperature})
        self.temperature, self.beta_kd = temperature, beta_kd

    def bind(self, student: Classifier, teacher: Classifier) -> "KD":
        """Nothing to make: it has no heads. Raises ValueError where the networks know different numbers of classes."""
        same_classes(student, teacher)
        return self

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """The objective of B upright rows of both networks; the epoch, from 1, is not looked at. Raises ValueError for
        what does not fit together, or without a teacher's output; TypeError for what is no tensor."""
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        needs_teacher(self, teacher)
        kl = losses.distillation_kl(student.logits, teacher.logits.detach(), self.temperature).mean()
        terms = {"cross_entropy": cross_entropy.mean(), "distillation_kl": kl}
        total = terms["cross_entropy"] + self.beta_kd * kl
        return Terms(total, terms, *unweighted(cross_entropy))


def upright_cross_entropy(student: Output, batch: Batch, views: int | None = None) -> Tensor:
    """Per-sample cross-entropy of the upright view, (B,), in nats. views: so many there must be, if it is given.

    Raises ValueError for logits and labels that do not fit together, TypeError for what is no tensor.
    """
    logits, labels = student.logits, batch.labels
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor):
        raise TypeError(f"logits and labels must be tensors, got {type(logits).__name__} and {type(labels).__name__}")
    if logits.ndim != 2 or 0 in logits.shape or logits.dtype not in losses.FLOATS:
        raise ValueError(f"logits must be numbers of shape (N, C), got {logits.dtype} of {tuple(logits.shape)}")
    if labels.ndim != 1 or not len(labels) or len(logits) % len(labels):
        raise ValueError(f"logits have {len(logits)} rows, which is no multiple of labels {tuple(labels.shape)}")
    if views is not None and len(logits) != views * len(labels):
        raise ValueError(f"logits have {len(logits)} rows, for {views} views and {len(labels)} labels")
    upright = logits[: len(labels)]
    check_labels(labels, upright)
    return F.cross_entropy(upright, labels.long(), reduction="none")


def resolve(
    method: Method, recipe: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[Method, dict[str, dict[str, Any]]]:
    """A fresh copy of `method` in which every setting is the caller's argument, else the recipe's, else the data
    set's, else the published default; and where each came from: {"beta_cc": {"value": …, "from": "recipe"}, …}.

    A method that does not use `remember_arguments`, such as one of your own, is copied as it is.
    """
    if not hasattr(method, "explicit"):
        return copy.deepcopy(method), {}
    settings = {}
    for name, parameter in inspect.signature(type(method)).parameters.items():
        ranked = {"argument": method.explicit, "recipe": recipe, "data set": data, "default": {name: parameter.default}}
        source, values = next((source, values) for source, values in ranked.items() if name in values)
        settings[name] = {"value": values[name], "from": source}
    return type(method)(**{name: setting["value"] for name, setting in settings.items()}), settings


def unweighted(cross_entropy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The last three fields of `Terms`, (B,) each, for a method in which every sample counts alike: cross-entropy in
    nats, difficulty γ ≥ 0, weight 1. cross_entropy: (B,). Raises as `preview.difficulty`."""
    cross_entropy = cross_entropy.detach()
    return cross_entropy, preview.difficulty(cross_entropy), torch.ones_like(cross_entropy)


def same_classes(student: Classifier, teacher: Classifier) -> None:
    """Raises ValueError where the networks know different numbers of classes."""
    if student.num_classes != teacher.num_classes:
        raise ValueError(f"the teacher knows {teacher.num_classes} classes, the student {student.num_classes}")


def check_labels(labels: Tensor, logits: Tensor) -> None:
    """Raises ValueError unless labels are categories of the logits, one a row; TypeError for no tensor. Labels
    beyond the categories are found on a CPU alone: a GPU would have to wait for them."""
    losses.check_labels(labels, logits)
    if labels.device.type == "cpu":
        lowest, highest = map(int, labels.aminmax())
        if lowest < 0 or highest >= logits.shape[1]:
            raise ValueError(f"labels must be from 0 to {logits.shape[1] - 1}, got {lowest} to {highest}")


def needs_teacher(method: nn.Module, output: Output | None) -> None:
    """Raises ValueError where there is no output of a teacher."""
    if output is None:
        raise ValueError(f"{method.title} compares the student's output with the teacher's, which is None")


def check_settings(not_negative: dict[str, float], positive: dict[str, float]) -> None:
    """Raises ValueError for values that a method can't take, TypeError for what is no number."""
    for name, value in {**not_negative, **positive}.items():
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {type(value).__name__}")
        if name in not_negative and not 0 <= value <= float_info.max:
            raise ValueError(f"{name} must be 0 or more, and finite, got {value}")
        if name in positive and not 0 < value <= float_info.max:
            raise ValueError(f"{name} must be positive and finite, got {value}")
        if name == "temperature":
            losses.check_temperature(name, value)
