"""Baselines that compare logits."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models import Classifier, Output
from ...tensor_checks import check_labels, check_same_shape, check_temperature
from ...validation import Count, NotNegative, Positive, check, plain
from ..base import Batch, Stage, Temperature, Terms, classification_loss
from ..terms import logits as terms
from .base import Baseline, Shapes, torchdistill, torchdistill_outputs


class DIST(Baseline):
    r"""Distillation from a stronger teacher: correlation between the probabilities of student and teacher.

    .. math::

        \mathrm{term} = \tau^2 \left( 1 - \frac{1}{B} \sum_i \rho_i \right)
            + \tau^2 \left( 1 - \frac{1}{C} \sum_c \rho_c \right)

    ρ is the Pearson correlation between the probabilities of student and teacher, which are softmax(z/τ). ρ_i is
    computed over the classes of sample i, and ρ_c over the samples for class c. The paper gives both parts the
    weight 2. Here this is the default of `weight`. As in the authors' code, 1e-8 is added to the product of the norms
    in ρ. torchdistill adds it to each norm, so its gradients differ at τ = 1 for sharp probabilities.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    temperature : float, in [1e-6, 1e6]
        τ.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Huang et al., arXiv 2205.10536.
    """

    description = "stronger teacher, arXiv 2205.10536; weight 2 for both parts, τ = 4 on CIFAR-100"

    def __init__(self, weight: float = 2, temperature: float = 4, views: int = 1):
        super().__init__(weight, views)
        self.temperature = temperature
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Temperature, temperature=self.temperature)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum of both parts."""
        inter, intra = terms.dist_relations(student.logits, teacher.logits, self.temperature)
        return inter + intra


class LSKD(Baseline):
    r"""Logit standardisation: KD between standardised logits.

    .. math::

        \mathrm{term} = \frac{T^2}{B} \sum_i \mathrm{KL}\left(
            \mathrm{softmax}(\hat{z}_{t,i} / T) \,\middle\|\, \mathrm{softmax}(\hat{z}_{s,i} / T)
        \right)

    ẑ is a row of logits, shifted to mean 0 and scaled to standard deviation 1. The standard deviation is that of
    `torch.std`, with the divisor C − 1. The cross-entropy has the weight 0.1, as in the authors' comparison with KD.
    This class multiplies by T² itself, because torchdistill does it only if it receives the labels.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    temperature : float, in [1e-6, 1e6]
        T.
    cross_entropy_weight : float
        Weight of the cross-entropy, at least 0.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Sun et al., arXiv 2403.01427.
    """

    description = (
        "logit standardisation, arXiv 2403.01427; weight 9, T = 2, cross-entropy 0.1; for some pairs of networks T = 2 "
        "to 4 and weight 1 to 12 (from the names of the authors' log files)"
    )

    def __init__(self, weight: float = 9, temperature: float = 2, cross_entropy_weight: float = 0.1, views: int = 1):
        super().__init__(weight, views)
        self.temperature, self.cross_entropy_weight = temperature, cross_entropy_weight
        self.loss_class = torchdistill("losses").LogitStdKDLoss
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(NotNegative, cross_entropy_weight=self.cross_entropy_weight)
        check(Temperature, temperature=self.temperature)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the loss."""
        self.loss = self.loss_class("0", "output", "0", "output", self.temperature, alpha=0)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the divergence, times T²."""
        divergence = self.loss(torchdistill_outputs(student.logits), torchdistill_outputs(teacher.logits))
        return self.temperature**2 * divergence


class DKD(Baseline):
    r"""Decoupled distillation: KD in two parts, each with its own weight.

    .. math::

        \mathrm{term} = \overline{\alpha \, L_{\mathrm{target}} + \beta \, L_{\mathrm{others}}}

    The bar is the mean of the batch. `decoupled_kl` computes the two parts, and p is the teacher's probability of the
    label. In KD, the second part has the weight 1 − p. Here it has the weight β, which is the same for all samples. The
    weight of the term grows linearly over the first `warmup_epochs`.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    alpha, beta : float
        α and β, at least 0.
    temperature : float, in [1e-6, 1e6]
        T.
    warmup_epochs : int
        Number of epochs, at least 1.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Zhao et al., arXiv 2203.08679.
    """

    description = (
        "decoupled, arXiv 2203.08679; weight 1, α = 1, T = 4; β = 2, 6 or 8 for some pairs of networks (mdistiller), "
        "otherwise 2; 20 epochs of warm-up"
    )

    def __init__(
        self,
        weight: float = 1,
        alpha: float = 1,
        beta: float = 2,
        temperature: float = 4,
        warmup_epochs: int = 20,
        views: int = 1,
    ):
        super().__init__(weight, views)
        self.alpha, self.beta, self.temperature, self.warmup_epochs = alpha, beta, temperature, warmup_epochs
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(NotNegative, alpha=self.alpha, beta=self.beta)
        check(Temperature, temperature=self.temperature)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the mean over the batch."""
        target, others = decoupled_kl(student.logits, teacher.logits, batch.labels, self.temperature)
        return (self.alpha * target + self.beta * others).mean()


class WTTM(Baseline):
    r"""Weighted transformed teacher matching: KD with a power transform of the teacher's probabilities.

    .. math::

        \mathrm{term} = \frac{1}{B} \sum_i u_i \, \mathrm{KL}\left(
            q_i \,\middle\|\, \mathrm{softmax}(z_{s,i})
        \right), \qquad q_i = \frac{p_i^{\gamma}}{u_i}, \qquad u_i = \sum_c p_{i,c}^{\gamma}

    p is softmax(z_t). The student has no temperature.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    exponent : float, in [1e-6, 1e6]
        γ.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Zheng and Yang, arXiv 2402.11148.
    """

    description = (
        "transformed teacher matching, arXiv 2402.11148; weight 4, γ = 0.2, the authors' example for WTTM with CRD; "
        "the paper has other values for every pair of networks, which are not used here"
    )

    def __init__(self, weight: float = 4, exponent: float = 0.2, views: int = 1):
        super().__init__(weight, views)
        self.exponent = exponent
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Temperature, exponent=self.exponent)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the mean over the batch."""
        return terms.wttm(student.logits, teacher.logits, self.exponent)


class WKDL(Baseline):
    r"""Wasserstein distance of logits: the cost of moving the student's probabilities to the teacher's.

    .. math::

        \mathrm{term} = \frac{1}{B} \sum_i \mathrm{Sinkhorn}(p_{s,i}, p_{t,i}), \qquad
        L = \overline{\mathrm{CE}} + L_{\mathrm{target}} + w \cdot \mathrm{term}

    p_i are the probabilities softmax(z/T) of all classes except that of the label. Moving probability between two
    similar classes costs less, see `terms.logits.wkd_transport`. L_target compares the probabilities of the label, see
    `terms.logits.wkd_target`. w is constant for 150 of 240 epochs, and then falls to 0 along a half cosine. For other
    numbers of epochs, the share is the same.

    The costs are computed before the first epoch, see `terms.logits.class_costs`. They compare the teacher's last
    feature maps of the training images of two classes, or its logits. If classes have different numbers of training
    images, the first ones of every class are used, as many as the smallest class has. For this time, the features are
    in memory: 3.3 GB for 50,000 images and maps of 256×8×8. The authors use maps for CIFAR-100, and logits for
    ImageNet.

    Parameters
    ----------
    weight : float
        w, at least 0.
    temperature : float, in [1e-6, 1e6]
        T.
    regularization : float, in [1e-6, 1e6]
        λ of Sinkhorn's algorithm, see `terms.logits.sinkhorn_costs`.
    iterations : int, at least 1
        Number of iterations of this algorithm.
    sharpen : float, greater than 0
        Larger values make the costs of different pairs of classes more equal, see `terms.logits.sharpened_costs`.
    costs_from : {"map", "logits"}
        What the costs compare: all positions of the teacher's last feature map, or its logits.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Lv, Yang and Li, arXiv 2412.08139.
    """

    title = "WKD-L"
    description = (
        "Wasserstein distance of logits, arXiv 2412.08139; weight 600, T = 8, the authors' values for "
        "resnet32x4 → resnet8x4; 200 and 6 for wrn_40_2 → ShuffleV1"
    )

    def __init__(
        self,
        weight: float = 600,
        temperature: float = 8,
        regularization: float = 0.05,
        iterations: int = 10,
        sharpen: float = 1,
        costs_from: str = "map",
        views: int = 1,
    ):
        super().__init__(weight, views)
        self.temperature, self.regularization, self.iterations = temperature, regularization, plain(iterations)
        self.sharpen, self.costs_from = sharpen, costs_from
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Temperature, temperature=self.temperature, regularization=self.regularization)
        check(Count, iterations=self.iterations)
        check(Positive, sharpen=self.sharpen)
        check(Literal["map", "logits"], costs_from=self.costs_from)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the cost matrix. `stages` computes its values."""
        if self._training is None or self._training.teacher_outputs is None:
            raise ValueError(
                "WKD-L needs the teacher's outputs for all training images: call prepare_training(info) before bind, "
                "with a function teacher_outputs"
            )
        self.register_buffer("costs", torch.full((teacher.num_classes, teacher.num_classes), math.nan))

    def stages(self, student: Classifier, teacher: Classifier | None) -> Sequence[Stage]:
        """Compute the cost matrix, unless a resumed run has it already. Nothing is trained."""
        costs = self.get_buffer("costs")
        if costs.isnan().any():
            costs.copy_(terms.sharpened_costs(terms.class_costs(self.class_features()), self.sharpen))
        return ()

    def class_features(self) -> Tensor:
        """Return the features of the training images that the costs compare.

        Returns
        -------
        Tensor of shape (C, N, D)
            N samples of length D per class. A sample is one position of a feature map, or the logits of one image.

        Raises
        ------
        ValueError
            If a class has no training image, or if the teacher has no feature map.
        """
        info, classes = self._training, len(self.get_buffer("costs"))
        assert info is not None and info.teacher_outputs is not None  # checked in `prepare`
        labels = info.labels.long()
        counts = labels.bincount(minlength=classes)
        size = int(counts.min())
        if not size:
            raise ValueError(f"WKD-L needs training images of every class, but class {int(counts.argmin())} has none")
        first = counts.cumsum(0) - counts
        chosen = labels.argsort(stable=True)[first[:, None] + torch.arange(size)].flatten()
        row = torch.full_like(labels, -1)  # of every image in `features`; -1 if it is not used
        row[chosen] = torch.arange(len(chosen))
        features, start = torch.empty(0), 0
        for output in info.teacher_outputs("last" if self.costs_from == "map" else None):
            if self.costs_from == "map" and not output.maps:
                raise ValueError("WKD-L finds no feature map in the teacher: use costs_from='logits'")
            samples = output.maps[-1].flatten(2).mT if self.costs_from == "map" else output.logits[:, None]
            if not start:
                features = samples.new_empty(len(chosen), *samples.shape[1:])
            rows = row[start : start + len(samples)].to(samples.device)
            features[rows[rows >= 0]] = samples[rows >= 0]
            start += len(samples)
        return features.view(classes, -1, features.shape[2])

    def weight_in(self, epoch: int) -> float:
        """Return the weight of the term in an epoch, counted from 1."""
        return terms.weight_in_epoch(self.weight, epoch, self.epochs_in_training)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the mean cost over the batch."""
        settings = self.temperature, self.regularization, self.iterations
        return terms.wkd_transport(student.logits, teacher.logits, batch.labels, self.get_buffer("costs"), *settings)

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch: that of `Baseline`, plus L_target.

        Parameters
        ----------
        student, teacher : Output
            V·B rows: first the B images that are not rotated, then the B images rotated by 90°, and so on.
        batch : Batch
        epoch : int
            Counted from 1, for the weight.

        Returns
        -------
        Terms
            All sample weights are 1.

        Raises
        ------
        TypeError
            If logits or labels are not tensors.
        ValueError
            If shapes, dtypes or devices do not match, or if `teacher` is None.
        """
        computed = super().forward(student, teacher, batch, epoch)
        target = terms.wkd_target(student.logits, teacher.logits, self.repeat_batch(batch).labels)
        return computed._replace(total=computed.total + target, terms={**computed.terms, "wkd_target": target})


class SKD(Baseline):
    r"""Streamlined distillation: KD, and cosine similarities between the logits of the images of a batch.

    .. math::

        \mathrm{term} = L_{\mathrm{KD}} + L_{\mathrm{direction}}

    `terms.logits.skd` defines both parts. The second one compares the images of a batch, so it depends on the batch
    size.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    temperature : float, in [1e-6, 1e6]
        T of L_KD.
    tikhonov : float, in [1e-6, 1e6]
        λ, which is added to the diagonal of a covariance matrix.
    cross_entropy_weight : float
        Weight of the cross-entropy, at least 0.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Jeong, Lee and Choi, "Streamlined Knowledge Distillation", CVPR 2026.
    """

    description = (
        "streamlined, CVPR 2026; weight 0.9, T = 4, λ = 0.1, cross-entropy 0.1 (the defaults of the authors' code)"
    )

    def __init__(
        self,
        weight: float = 0.9,
        temperature: float = 4,
        tikhonov: float = 0.1,
        cross_entropy_weight: float = 0.1,
        views: int = 1,
    ):
        super().__init__(weight, views)
        self.temperature, self.tikhonov, self.cross_entropy_weight = temperature, tikhonov, cross_entropy_weight
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(NotNegative, cross_entropy_weight=self.cross_entropy_weight)
        check(Temperature, temperature=self.temperature, tikhonov=self.tikhonov)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum of both parts."""
        kd, direction = terms.skd(student.logits, teacher.logits, self.temperature, self.tikhonov)
        return kd + direction


class MLKD(Baseline):
    r"""Multi-level logit distillation: KD at several temperatures, and relations between images and between classes.

    .. math::

        \mathrm{term} = L_{\mathrm{KD}} + L_{\mathrm{class}} + L_{\mathrm{batch}}

    `terms.logits.mlkd` defines the parts. Every image has two views, one with the augmentation of the recipe, and one
    with strong augmentation, see `views.strong_transform`. The cross-entropy is the sum of both views.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    cross_entropy_weight : float
        Weight of the cross-entropy, at least 0.

    References
    ----------
    Jin et al., "Multi-Level Logit Distillation", CVPR 2023.
    """

    description = "multi-level logits, CVPR 2023; weight 0.9, T = 2 to 6, cross-entropy 0.1 (authors' code)"
    view_kind = "strong"

    def __init__(self, weight: float = 0.9, cross_entropy_weight: float = 0.1):
        super().__init__(weight, views=2)
        self.cross_entropy_weight = cross_entropy_weight
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(NotNegative, cross_entropy_weight=self.cross_entropy_weight)

    def classification(self, student: Output, batch: Batch, cross_entropy: Tensor) -> Tensor:
        """Return the sum of the cross-entropies of both views."""
        strong = student.logits[len(batch.labels) :]
        targets = batch.labels.long() if batch.targets is None else batch.targets
        return classification_loss(student, batch, cross_entropy) + F.cross_entropy(strong, targets)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum of the parts."""
        student_weak, student_strong = student.logits.chunk(2)
        teacher_weak, teacher_strong = teacher.logits.chunk(2)
        return torch.stack(terms.mlkd(student_weak, student_strong, teacher_weak, teacher_strong)).sum()


def decoupled_kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    r"""Return the distillation loss in two parts.

    .. math::

        T^2 \cdot \mathrm{KL}(\mathrm{teacher} \,\|\, \mathrm{student})
            = L_{\mathrm{target}} + (1 - p) \, L_{\mathrm{others}}

    p is the teacher's probability of the label. All probabilities are softmax(z/T) of logits z. The first part compares
    two probabilities: the class of the label, and any other class. The second part compares the probabilities of the
    other classes, which are scaled to the sum 1. Both parts contain the factor T².

    Parameters
    ----------
    student, teacher : Tensor of shape (B, C)
        Logits.
    labels : int Tensor of shape (B,)
    temperature : float, in [1e-6, 1e6]
        T.

    Returns
    -------
    target, others : Tensor of shape (B,)
        In nats, at least 0.

    Raises
    ------
    TypeError
        If logits or labels are not tensors, or if `temperature` is not a number.
    ValueError
        If shapes, dtypes or devices do not match, if a label is not a class, or if `temperature` is outside its range.

    References
    ----------
    Zhao et al., arXiv 2203.08679.
    """
    check_same_shape("logits", student, teacher)
    check_labels(labels, student, num_classes=student.shape[1])
    check_temperature("temperature", temperature)
    is_label = F.one_hot(labels.long(), student.shape[1]).bool()

    def log_probabilities(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = (logits / temperature).log_softmax(1)
        log_p_others = log_p.masked_fill(is_label, -math.inf).logsumexp(1)
        label_or_other = torch.stack([log_p[is_label], log_p_others], 1)
        return label_or_other, log_p[~is_label].unflatten(0, (len(labels), -1)).log_softmax(1)

    pairs = zip(log_probabilities(student), log_probabilities(teacher), strict=True)
    target, others = (F.kl_div(s, t, reduction="none", log_target=True).sum(1) for s, t in pairs)
    return temperature**2 * target, temperature**2 * others
