"""What all methods share, and the two plain ones: `Supervised` and `KD`."""

import copy
import inspect
import math
from collections.abc import Mapping
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import losses, preview
from ..models import Classifier, Output


class Batch(NamedTuple):
    """labels: (B,) categories · index: (B,) positions of the images in the training set."""

    labels: Tensor
    index: Tensor


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


def remember_arguments(init):
    """Keep the arguments that the caller gave in `self.explicit`: `resolve` may replace only the others."""

    @wraps(init)
    def wrapped(self, *args, **kwargs):
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
        return self

    def forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        cross_entropy = upright_cross_entropy(student, batch)
        total = cross_entropy.mean()
        terms = {"cross_entropy": total}
        return Terms(total, terms, *unweighted(cross_entropy))


class KD(nn.Module):
    """Hinton's distillation (arXiv 1503.02531): L = mean CE + β_kd · mean L_KD.

    temperature > 0, beta_kd ≥ 0; raises ValueError otherwise.
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
        same_classes(student, teacher)
        return self

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        cross_entropy = upright_cross_entropy(student, batch)
        kl = losses.distillation_kl(student.logits, teacher.logits.detach(), self.temperature).mean()
        terms = {"cross_entropy": cross_entropy.mean(), "distillation_kl": kl}
        total = terms["cross_entropy"] + self.beta_kd * kl
        return Terms(total, terms, *unweighted(cross_entropy))


def upright_cross_entropy(student: Output, batch: Batch) -> Tensor:
    """Per-sample cross-entropy of the upright view, (B,), in nats."""
    logits = student.logits[: len(batch.labels)]
    return F.cross_entropy(logits, batch.labels, reduction="none")


def resolve(
    method: nn.Module, recipe: Mapping[str, Any], data: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
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
    """The last three fields of `Terms` for a method in which every sample counts alike."""
    cross_entropy = cross_entropy.detach()
    return cross_entropy, preview.difficulty(cross_entropy), torch.ones_like(cross_entropy)


def same_classes(student: Classifier, teacher: Classifier) -> None:
    if student.num_classes != teacher.num_classes:
        raise ValueError(f"the teacher knows {teacher.num_classes} classes, the student {student.num_classes}")


def check_settings(not_negative: dict[str, float], positive: dict[str, float]) -> None:
    for name, value in not_negative.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be 0 or more, and finite, got {value}")
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
