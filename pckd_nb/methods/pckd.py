"""The paper's method: every term of `losses.py`, weighted by `preview.py`."""

import torch.nn.functional as F
from torch import nn

from .. import losses, preview
from ..catalogue import check_strategy
from ..models import Classifier, Output
from .base import (
    Batch,
    Method,
    Terms,
    check_settings,
    classification_loss,
    needs_teacher,
    same_classes,
    upright_cross_entropy,
)


class PCKD(Method):
    """Preview-based category contrastive distillation, the paper's objective:

        L = mean CE + β_kd · mean(v·L_KD) + β_fa · L_FA + β_ca · L_CA + β_cc · mean(v·L_CC)

    Defaults are the published values, but β_kd: the published command has 0 ("PCKD without L_KD") and the full
    method's value is unknown; 1 is ours. A term whose β is 0 is not computed.
    temperature is T of L_KD; contrast_temperature and base_temperature are τ and τ0 of L_CC.
    strategy: a name in `preview.STRATEGIES` or a function (cross_entropy, difficulty, threshold) -> weight.
    Raises ValueError for a β that is negative or not finite, epsilon ≤ 0, temperature outside 1e-6 … 1e6, views
    outside 1 … 4, or an unknown strategy; TypeError for what is no number.
    """

    title = "PCKD"
    epsilon: float

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
        contrast_temperature: float = 4.0,
        base_temperature: float = 0.07,
    ):
        super().__init__()
        self.beta_kd, self.beta_fa, self.beta_ca, self.beta_cc = beta_kd, beta_fa, beta_ca, beta_cc
        self.temperature, self.epsilon, self.views, self.strategy = temperature, epsilon, views, strategy
        self.contrast_temperature, self.base_temperature = contrast_temperature, base_temperature
        self.left_out: dict[str, str] = {}
        self.check()

    def check(self) -> None:
        betas = {name: getattr(self, name) for name in ("beta_kd", "beta_fa", "beta_ca", "beta_cc")}
        positive = ("temperature", "contrast_temperature", "base_temperature", "epsilon")
        check_settings({**betas, "views": self.views}, {name: getattr(self, name) for name in positive})
        if self.views not in (1, 2, 3, 4) or not isinstance(self.views, int):
            raise ValueError(f"views must be 1, 2, 3 or 4, got {self.views}")
        if not callable(self.strategy) and not isinstance(self.strategy, str):
            raise TypeError(f"strategy must be a name or a function, got {type(self.strategy).__name__}")
        if not callable(self.strategy):
            check_strategy(self.strategy)

    def bind(self, student: Classifier, teacher: Classifier) -> "PCKD":
        """Make the heads that train with the student: g from its width D_s over 16·D_t to the teacher's D_t, A_s to
        D_s, A_t to D_t. Where L_CA is asked for and the centers differ in shape, `left_out` says that it is left out
        and why. Raises ValueError where the networks know different numbers of classes."""
        same_classes(student, teacher)
        narrow, wide = student.feature_width, teacher.feature_width
        self.left_out = {}
        biased = student.head.bias is not None, teacher.head.bias is not None
        if self.beta_ca and narrow != wide:
            reason = f"student's category centers have width {narrow}, the teacher's {wide}"
            self.left_out["category_center_alignment"] = reason
        elif self.beta_ca and biased[0] != biased[1]:
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
        """The objective of V·B rows of both networks, view-major, the upright ones first. epoch: from 1, for the
        threshold. Raises ValueError for what does not fit together, before `bind`, or without a teacher's output;
        TypeError for what is no tensor."""
        needs_teacher(self, teacher)
        if (self.beta_fa and not hasattr(self, "projector")) or (self.beta_cc and not hasattr(self, "embed_student")):
            raise ValueError("bind PCKD to student and teacher before the first step: its heads have their widths")
        teacher = teacher.detach()
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        images, views = len(batch.labels), self.views

        # How hard is every sample right now, and how much does it count?
        gamma = preview.difficulty(cross_entropy)
        weigh = self.strategy if callable(self.strategy) else preview.STRATEGIES[self.strategy]
        v = weigh(cross_entropy.detach(), gamma, preview.threshold(epoch, self.epsilon))

        terms = {"cross_entropy": classification_loss(student, batch, cross_entropy)}
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
            temperatures = self.contrast_temperature, self.base_temperature
            contrast = losses.category_center_contrast(u_s, u_t, batch.labels.repeat(views), *temperatures)
            terms["category_center_contrast"] = (v.repeat(views) * contrast).mean()
            total = total + self.beta_cc * terms["category_center_contrast"]
        return Terms(total, terms, cross_entropy.detach(), gamma, v)
