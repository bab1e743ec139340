"""The paper's method: the terms of `losses` with the sample weights of `preview`."""

import torch.nn.functional as F
from torch import nn

from .. import losses, preview
from ..catalogue import check_strategy
from ..models import Classifier, Output
from ..validation import NotNegative, Positive, Views, check, plain
from .base import (
    Batch,
    Method,
    Temperature,
    Terms,
    check_same_classes,
    classification_loss,
    require_teacher,
    upright_cross_entropy,
)


class PCKD(Method):
    r"""Preview-based category contrastive distillation, the method of the paper.

    The student learns from the labels, and from the logits, features and category centers of the teacher. A category
    center is one row of the weight of the last layer. Hard samples get a small weight at first.

    .. math::

        L = \overline{\mathrm{CE}} + \beta_{\mathrm{kd}} \overline{v L_{\mathrm{KD}}}
            + \beta_{\mathrm{fa}} \overline{L_{\mathrm{FA}}} + \beta_{\mathrm{ca}} L_{\mathrm{CA}}
            + \beta_{\mathrm{cc}} \overline{v L_{\mathrm{CC}}}

    A bar is a mean. A batch has B images and V views of each image. A row is one view of one image.

    - CE: cross-entropy of the labels. Mean over the B images that are not rotated.
    - L_KD: `losses.distillation_kl`. Mean over the B images that are not rotated.
    - L_FA: `losses.feature_alignment`. Mean over all V·B rows.
    - L_CA: `losses.category_center_alignment`. One number, because it does not depend on the images.
    - L_CC: `losses.category_center_contrast`. Mean over all V·B rows.
    - v: the sample weights of `preview`. Every view of an image has the weight of the image.

    L_CC compares every row with the category centers W_s of the student and W_t of the teacher. Its inputs are the
    score vectors u_s and u_t, which are computed from the student's features f_s:

    .. math::

        u_s = W_s \frac{A_s f_s}{\lVert A_s f_s \rVert}, \qquad
        u_t = W_t \frac{A_t f_s}{\lVert A_t f_s \rVert}

    A_s and A_t are linear layers that are trained with the student. A f means the output of layer A, with its bias.

    A term whose β is 0 is not computed. The defaults are the published values, except for β_kd. The command that the
    authors published has β_kd = 0, which the paper calls "PCKD without L_KD". The value for the full method is not
    published. This package uses 1.

    Parameters
    ----------
    beta_kd, beta_fa, beta_ca, beta_cc : float
        Weights of the terms, at least 0.
    temperature : float, in [1e-6, 1e6]
        T of L_KD.
    epsilon : float
        ε, positive. The preview threshold of epoch t is ε to the power t.
    views : int, from 1 to 4
        V, number of views of every image: the first V of the rotations by 0°, 90°, 180° and 270°.
    strategy : str or callable
        A name in `preview.STRATEGIES`, or a function (cross_entropy, difficulty, threshold) -> weight. The threshold
        is a float, the others are tensors of shape (B,).
    contrast_temperature, base_temperature : float, in [1e-6, 1e6]
        τ and τ0 of L_CC.

    Raises
    ------
    TypeError
        If a setting has the wrong type.
    ValueError
        If a setting is outside its range, or if the strategy is unknown.

    References
    ----------
    Ding et al., "Preview-based Category Contrastive Learning for Knowledge Distillation", arXiv 2410.14143.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> data = pckd.load_dataset("digits", train_size=32, test_size=16)
    >>> teacher, student = (pckd.create_model("resnet8", data, seed=seed) for seed in (0, 1))
    >>> method = pckd.PCKD(beta_cc=0.005, views=1)
    >>> run = pckd.distill(student, teacher, data, method, epochs=1, progress=False)
    >>> "category_center_contrast" in run.history
    True
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
        """Check the settings, see `Method.check`."""
        check(NotNegative, beta_kd=self.beta_kd, beta_fa=self.beta_fa, beta_ca=self.beta_ca, beta_cc=self.beta_cc)
        check(
            Temperature,
            temperature=self.temperature,
            contrast_temperature=self.contrast_temperature,
            base_temperature=self.base_temperature,
        )
        check(Positive, epsilon=self.epsilon)
        check(Views, views=self.views)
        if callable(self.strategy):
            return
        if not isinstance(self.strategy, str):
            raise TypeError(f"strategy must be a name or a function, got {type(self.strategy).__name__}")
        check_strategy(self.strategy)

    def bind(self, student: Classifier, teacher: Classifier) -> "PCKD":
        """Create the modules that are trained with the student.

        All of them take the student's features as input. D_s and D_t are the numbers of features of student and
        teacher.

        - β_fa > 0: `projector`, g of L_FA. It maps D_s features to D_t, with a hidden layer of 16·D_t.
        - β_cc > 0: `embed_student`, A_s of L_CC, a linear layer from D_s to D_s. `embed_teacher`, A_t of L_CC, a linear
          layer from D_s to D_t.
        - β_ca > 0: no module. L_CA cannot be computed if D_s and D_t differ. It cannot be computed either if one
          network has a bias in its last layer and the other has none. Then `left_out` contains the reason.

        Parameters
        ----------
        student, teacher : Classifier

        Returns
        -------
        PCKD
            This object.

        Raises
        ------
        ValueError
            If the numbers of classes differ.
        """
        check_same_classes(student, teacher)
        student_dim, teacher_dim = student.feature_width, teacher.feature_width
        self.left_out = {}
        student_has_bias, teacher_has_bias = student.head.bias is not None, teacher.head.bias is not None
        if self.beta_ca and student_dim != teacher_dim:
            reason = f"student's category centers have width {student_dim}, the teacher's {teacher_dim}"
            self.left_out["category_center_alignment"] = reason
        elif self.beta_ca and student_has_bias != teacher_has_bias:
            network = "student" if student_has_bias else "teacher"
            self.left_out["category_center_alignment"] = f"only the {network}'s last layer has a bias"
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
            V·B rows: first the B images that are not rotated, then the B images rotated by 90°, and so on.
        batch : Batch
        epoch : int
            Counted from 1, for the preview threshold.

        Returns
        -------
        Terms
            The objective, its terms, and the cross-entropy, difficulty and weight of every sample.

        Raises
        ------
        TypeError
            If logits or labels are not tensors.
        ValueError
            If shapes, dtypes or devices do not match, if `bind` was not called, or if `teacher` is None.
        """
        require_teacher(self, teacher)
        if (self.beta_fa and not hasattr(self, "projector")) or (self.beta_cc and not hasattr(self, "embed_student")):
            raise ValueError("call bind(student, teacher) before the first step: it creates the modules of this method")
        teacher = teacher.detach()
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        batch_size, views = len(batch.labels), self.views

        # The difficulty γ and the weight v of every sample.
        gamma = preview.difficulty(cross_entropy)
        strategy = self.strategy if callable(self.strategy) else preview.STRATEGIES[self.strategy]
        v = strategy(cross_entropy.detach(), gamma, preview.threshold(epoch, self.epsilon))
        if v.shape != gamma.shape:
            shapes = f"shape {tuple(gamma.shape)}, got {tuple(v.shape)}"
            raise ValueError(f"strategy must return one weight per image: {shapes}")

        terms = {"cross_entropy": classification_loss(student, batch, cross_entropy)}
        total = terms["cross_entropy"]
        if self.beta_kd:
            kl = losses.distillation_kl(student.logits[:batch_size], teacher.logits[:batch_size], self.temperature)
            terms["distillation_kl"] = (v * kl).mean()
            total = total + self.beta_kd * terms["distillation_kl"]
        if self.beta_fa:
            projected = self.projector(student.features)
            terms["feature_alignment"] = losses.feature_alignment(projected, teacher.features).mean()
            total = total + self.beta_fa * terms["feature_alignment"]
        if self.beta_ca and "category_center_alignment" not in self.left_out:
            last_layers = (student.centers, student.bias, teacher.centers, teacher.bias)
            terms["category_center_alignment"] = losses.category_center_alignment(*last_layers)
            total = total + self.beta_ca * terms["category_center_alignment"]
        if self.beta_cc:
            # The score vectors u_s and u_t. Both are computed from the student's features.
            e_s = F.normalize(self.embed_student(student.features), dim=1)
            e_t = F.normalize(self.embed_teacher(student.features), dim=1)
            u_s = e_s @ student.centers.T
            u_t = e_t @ teacher.centers.T
            temperatures = self.contrast_temperature, self.base_temperature
            contrast = losses.category_center_contrast(u_s, u_t, batch.labels.repeat(views), *temperatures)
            terms["category_center_contrast"] = (v.repeat(views) * contrast).mean()
            total = total + self.beta_cc * terms["category_center_contrast"]
        return Terms(total, terms, cross_entropy.detach(), gamma, v)
