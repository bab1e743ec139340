"""The paper's method: all terms of `losses.py`, with the sample weights of `preview.py`."""

import torch.nn.functional as F
from torch import nn

from .. import losses, preview
from ..catalogue import check_strategy
from ..models import Classifier, Output
from ..validation import Views, check, plain
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
    """Preview-based category contrastive distillation, the paper's objective.

        L = mean CE + β_kd · mean(v·L_KD) + β_fa · L_FA + β_ca · L_CA + β_cc · mean(v·L_CC)

    A term whose β is 0 is not computed. Defaults are the published values, except β_kd. The published command has
    β_kd = 0 ("PCKD without L_KD"), and the value of the full method is unknown. The default 1 is ours.

    Parameters
    ----------
    beta_kd, beta_fa, beta_ca, beta_cc : float
        Weights of the terms, finite and at least 0.
    temperature : float
        T of L_KD, from 1e-6 to 1e6.
    epsilon : float
        Base of the preview threshold, positive.
    views : int
        Number of rotations of every image, from 1 to 4.
    strategy : str or callable
        A name in `preview.STRATEGIES`, or a function (cross_entropy, difficulty, threshold) -> weight.
    contrast_temperature, base_temperature : float
        τ and τ0 of L_CC, from 1e-6 to 1e6.

    Raises
    ------
    ValueError
        If a setting is outside its range, or if the strategy is unknown.
    TypeError
        If a setting has the wrong type.

    Examples
    --------
    >>> run = distill(student, teacher, data, PCKD(beta_kd=0))
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
        self.temperature, self.epsilon, self.views, self.strategy = temperature, epsilon, plain(views), strategy
        self.contrast_temperature, self.base_temperature = contrast_temperature, base_temperature
        self.left_out: dict[str, str] = {}
        self.check()

    def check(self) -> None:
        betas = {name: getattr(self, name) for name in ("beta_kd", "beta_fa", "beta_ca", "beta_cc")}
        positive = ("temperature", "contrast_temperature", "base_temperature", "epsilon")
        check_settings(betas, {name: getattr(self, name) for name in positive})
        check(Views, views=self.views)
        if not callable(self.strategy) and not isinstance(self.strategy, str):
            raise TypeError(f"strategy must be a name or a function, got {type(self.strategy).__name__}")
        if not callable(self.strategy):
            check_strategy(self.strategy)

    def bind(self, student: Classifier, teacher: Classifier) -> "PCKD":
        """Create the heads that are trained with the student. Raises ValueError if the numbers of classes differ.

        If β_fa > 0: g, from the student's width D_s over 16·D_t to the teacher's width D_t. If β_cc > 0: A_s (to D_s)
        and A_t (to D_t). If β_ca > 0 and the last layers differ in width, or only one has a bias, L_CA is left out and
        `left_out` gives the reason.
        """
        same_classes(student, teacher)
        student_dim, teacher_dim = student.feature_width, teacher.feature_width
        self.left_out = {}
        biased = student.head.bias is not None, teacher.head.bias is not None
        if self.beta_ca and student_dim != teacher_dim:
            reason = f"student's category centers have width {student_dim}, the teacher's {teacher_dim}"
            self.left_out["category_center_alignment"] = reason
        elif self.beta_ca and biased[0] != biased[1]:
            who = "student" if biased[0] else "teacher"
            self.left_out["category_center_alignment"] = f"only the {who}'s last layer has a bias"
        if self.beta_fa:
            hidden = 16 * teacher_dim
            self.projector = nn.Sequential(
                nn.Linear(student_dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, teacher_dim)
            )
        if self.beta_cc:
            self.embed_student = nn.Linear(student_dim, student_dim)
            self.embed_teacher = nn.Linear(student_dim, teacher_dim)
        return self

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch.

        Parameters
        ----------
        student, teacher : Output
            V·B rows, view-major: the B rows of the upright view come first.
        batch : Batch
        epoch : int
            Counted from 1, for the threshold.

        Raises
        ------
        ValueError
            If shapes, dtypes or devices do not match, before `bind`, or if `teacher` is None.
        TypeError
            If an argument is not a tensor.
        """
        needs_teacher(self, teacher)
        if (self.beta_fa and not hasattr(self, "projector")) or (self.beta_cc and not hasattr(self, "embed_student")):
            raise ValueError("call bind(student, teacher) before the first step: it makes the heads")
        teacher = teacher.detach()
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        images, views = len(batch.labels), self.views

        # The difficulty γ and the weight v of every sample.
        gamma = preview.difficulty(cross_entropy)
        weigh = self.strategy if callable(self.strategy) else preview.STRATEGIES[self.strategy]
        v = weigh(cross_entropy.detach(), gamma, preview.threshold(epoch, self.epsilon))
        if v.shape != gamma.shape:
            raise ValueError(f"strategy must give one weight per image, {tuple(gamma.shape)}, got {tuple(v.shape)}")

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
