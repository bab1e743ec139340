"""Training methods: how the terms of `losses.py` and the weights of `preview.py` make one objective.

A method is an nn.Module with

    views          how many rotations of every image the networks see (1 to 4)
    uses_teacher   whether the loop must run the teacher
    title          its name in tables and legends
    bind(student, teacher)      sizes the parts that train with the student; keeps no reference to the networks
    forward(student_output, teacher_output, batch, epoch) -> Terms

Rows are view-major: the upright view is rows [:B], and labels of all rows are labels.repeat(V).
"""

import copy
import inspect
import math
from collections.abc import Mapping
from functools import wraps
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import losses, preview
from .models import Classifier, Output


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
        return Terms(total, terms, *_unweighted(cross_entropy))


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
        _check_settings({"beta_kd": beta_kd}, {"temperature": temperature})
        self.temperature, self.beta_kd = temperature, beta_kd

    def bind(self, student: Classifier, teacher: Classifier) -> "KD":
        _same_classes(student, teacher)
        return self

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        cross_entropy = upright_cross_entropy(student, batch)
        kl = losses.distillation_kl(student.logits, teacher.logits.detach(), self.temperature).mean()
        terms = {"cross_entropy": cross_entropy.mean(), "distillation_kl": kl}
        total = terms["cross_entropy"] + self.beta_kd * kl
        return Terms(total, terms, *_unweighted(cross_entropy))


class PCKD(nn.Module):
    """Preview-based category contrastive distillation, the paper's objective:

        L = mean CE + β_kd · mean(v·L_KD) + β_fa · L_FA + β_ca · L_CA + β_cc · mean(v·L_CC)

    Defaults are the published values, but β_kd: the published command has 0 ("PCKD without L_KD") and the full
    method's value is unknown; 1 is ours. A term whose β is 0 is not computed.
    strategy: a name in `preview.STRATEGIES` or a function (cross_entropy, difficulty, threshold) -> weight.
    Raises ValueError for a β that is negative or not finite, temperature or epsilon ≤ 0, views outside 1 … 4,
    or an unknown strategy.
    """

    title = "PCKD"
    uses_teacher = True

    @remember_arguments
    def __init__(
        self,
        beta_kd: float = 1,
        beta_fa: float = 20,
        beta_ca: float = 1,
        beta_cc: float = 0.05,
        temperature: float = 4,
        epsilon: float = 1.005,
        views: int = 4,
        strategy: str | preview.Strategy = "preview",
    ):
        super().__init__()
        betas = {"beta_kd": beta_kd, "beta_fa": beta_fa, "beta_ca": beta_ca, "beta_cc": beta_cc}
        _check_settings(betas, {"temperature": temperature, "epsilon": epsilon})
        if views not in (1, 2, 3, 4):
            raise ValueError(f"views must be 1, 2, 3 or 4, got {views}")
        if not callable(strategy) and strategy not in preview.STRATEGIES:
            raise ValueError(f"unknown strategy '{strategy}'; known: {', '.join(preview.STRATEGIES)}")
        self.beta_kd, self.beta_fa, self.beta_ca, self.beta_cc = beta_kd, beta_fa, beta_ca, beta_cc
        self.temperature, self.epsilon, self.views = temperature, epsilon, views
        self.strategy = strategy if callable(strategy) else preview.STRATEGIES[strategy]
        self.left_out: dict[str, str] = {}

    def bind(self, student: Classifier, teacher: Classifier) -> "PCKD":
        """Make the heads g, A_s and A_t that train with the student. Decides whether L_CA can act, see `left_out`."""
        _same_classes(student, teacher)
        narrow, wide = student.feature_width, teacher.feature_width
        self.left_out = {}
        biased = student.head.bias is not None, teacher.head.bias is not None
        if narrow != wide:
            reason = f"student's category centers have width {narrow}, the teacher's {wide}"
            self.left_out["category_center_alignment"] = reason
        elif biased[0] != biased[1]:
            who = "student" if biased[0] else "teacher"
            self.left_out["category_center_alignment"] = f"only the {who}'s last layer has a bias"
        if self.beta_fa:
            hidden = 16 * wide
            self.projector = nn.Sequential(
                nn.Linear(narrow, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, wide)
            )
        if self.beta_cc:
            self.embed_student = nn.Linear(narrow, narrow)
            self.embed_teacher = nn.Linear(narrow, wide)
        return self

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        teacher = teacher.detach()
        images, views = len(batch.labels), self.views
        cross_entropy = upright_cross_entropy(student, batch)

        # How hard is every sample right now, and how much does it count?
        gamma = preview.difficulty(cross_entropy)
        v = self.strategy(cross_entropy.detach(), gamma, preview.threshold(epoch, self.epsilon))

        terms = {"cross_entropy": cross_entropy.mean()}
        total = terms["cross_entropy"]
        if self.beta_kd:
            kl = losses.distillation_kl(student.logits[:images], teacher.logits[:images], self.temperature)
            terms["distillation_kl"] = (v * kl).mean()
            total = total + self.beta_kd * terms["distillation_kl"]
        if self.beta_fa:
            projected = self.projector(student.features)
            terms["feature_alignment"] = losses.feature_alignment(projected, teacher.features).mean()
            total = total + self.beta_fa * terms["feature_alignment"]
        if self.beta_ca and "category_center_alignment" not in self.left_out:
            centers = (student.centers, student.bias, teacher.centers, teacher.bias)
            terms["category_center_alignment"] = losses.category_center_alignment(*centers)
            total = total + self.beta_ca * terms["category_center_alignment"]
        if self.beta_cc:
            e_s = F.normalize(self.embed_student(student.features), dim=1)
            e_t = F.normalize(self.embed_teacher(student.features), dim=1)
            u_s = e_s @ student.centers.T
            u_t = e_t @ teacher.centers.T
            contrast = losses.category_center_contrast(u_s, u_t, batch.labels.repeat(views))
            terms["category_center_contrast"] = (v.repeat(views) * contrast).mean()
            total = total + self.beta_cc * terms["category_center_contrast"]
        return Terms(total, terms, cross_entropy.detach(), gamma, v)


METHODS: dict[str, type[nn.Module]] = {"supervised": Supervised, "kd": KD, "pckd": PCKD}


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


def _unweighted(cross_entropy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    cross_entropy = cross_entropy.detach()
    return cross_entropy, preview.difficulty(cross_entropy), torch.ones_like(cross_entropy)


def _same_classes(student: Classifier, teacher: Classifier) -> None:
    if student.num_classes != teacher.num_classes:
        raise ValueError(f"the teacher knows {teacher.num_classes} classes, the student {student.num_classes}")


def _check_settings(not_negative: dict[str, float], positive: dict[str, float]) -> None:
    for name, value in not_negative.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be 0 or more, and finite, got {value}")
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, got {value}")
