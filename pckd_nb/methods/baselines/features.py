"""Baselines that compare penultimate features."""

from torch import Tensor, nn

from ... import losses
from ...models import Classifier, Output
from ...validation import Count, Fraction, NotNegative, check, plain
from ..base import Batch, Temperature
from ..terms import contrast
from ..terms import relations as terms
from ..terms.maps import SRRLConnector, srrl_losses
from .base import Baseline, Shapes, torchdistill, torchdistill_outputs


class CC(Baseline):
    r"""Correlation congruence: products of the differences between student and teacher, for consecutive images.

    .. math::

        \mathrm{term} = \overline{ \sum_k d_{i,k} \, d_{i+1,k} }, \qquad
        d_i = \left| e_{s,i} - e_{t,i} \right|

    e are 128 values, which a linear layer computes from the features of image i. There is one layer for each network,
    and both are trained with the student. The bar is the mean over the B − 1 pairs of consecutive
    images in the batch.

    The authors of CC shared this loss for the comparison in the CRD paper, and the published weight belongs to it. The
    paper has another equation, a distance between two B×B kernel matrices, which torchdistill implements. With the
    published weight, the gradients of torchdistill's loss are 9 to 135 times smaller.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Peng et al., arXiv 1904.01802. Form and weight are from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "correlation congruence, arXiv 1904.01802; weight 0.02 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 0.02, views: int = 1):
        super().__init__(weight, views)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the two linear layers."""
        self.embed_student = nn.Linear(student.feature_width, 128)
        self.embed_teacher = nn.Linear(teacher.feature_width, 128)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the mean over the pairs of consecutive images."""
        embeddings = self.embed_student(student.features), self.embed_teacher(teacher.features)
        return terms.neighbour_congruence(*embeddings)


class RKD(Baseline):
    r"""Relational distillation: differences of distances and angles between the features of samples.

    .. math::

        \mathrm{term} = w_{\mathrm{distance}} \, \ell(d_s, d_t) + w_{\mathrm{angle}} \, \ell(\alpha_s, \alpha_t)

    ℓ is the mean of torch.nn.SmoothL1Loss. d are the distances of all pairs of samples, divided by their mean. α are
    the cosines of the angles in all triangles of three samples. The term needs memory for B³ values.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    distance, angle : float
        w_distance and w_angle, at least 0.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Park et al., arXiv 1904.05068. The weights are from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "relational, arXiv 1904.05068; weight 1, distance 25, angle 50 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 1, distance: float = 25, angle: float = 50, views: int = 1):
        super().__init__(weight, views)
        self.distance, self.angle, self.loss_class = distance, angle, torchdistill("losses").RKDLoss
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(NotNegative, distance=self.distance, angle=self.angle)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the loss."""
        self.loss = self.loss_class("0", "0", self.distance, self.angle, reduction="mean")

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the weighted sum of both losses."""
        return self.loss(torchdistill_outputs(student.features), torchdistill_outputs(teacher.features))


class PKT(Baseline):
    r"""Probabilistic knowledge transfer: KL divergence between the neighbourhoods of samples.

    .. math::

        \mathrm{term} = \frac{1}{B^2} \sum_{i,j} p_{t,ij} \log \frac{p_{t,ij}}{p_{s,ij}}, \qquad
        p_{ij} = \frac{1 + \cos(f_i, f_j)}{\sum_k \left( 1 + \cos(f_i, f_k) \right)}

    p_ij is the probability that sample i has sample j as a neighbour. The paper does not divide by B². The published
    weight belongs to the loss that is divided by B².

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Passalis and Tefas, arXiv 1803.10837. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "probabilistic knowledge, arXiv 1803.10837; weight 30000 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 30_000, views: int = 1):
        super().__init__(weight, views)
        self.loss = torchdistill("losses").PKTLoss("0", "output", "0", "output")

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the divergence."""
        return self.loss(torchdistill_outputs(student.features), torchdistill_outputs(teacher.features))


class SRRL(Baseline):
    r"""Softmax regression representation learning: the teacher's last layer classifies the student's features.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( (g_s - f_t)^2 \right)
            + \mathrm{mean}\left( (W_t g_s + b_t - z_t)^2 \right) + w_{\mathrm{KD}} \, \overline{L_{\mathrm{KD}}}

    g_s are the features of the student after `terms.maps.SRRLConnector`, which is trained with the student. W_t and b_t
    are the last layer of the teacher, which does not change. The repository of SimKD uses this equation for CIFAR-100.
    The authors published the method for ImageNet, with the connector before the pooling and without L_KD.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    kd_weight : float
        w_KD, at least 0.
    temperature : float, in [1e-6, 1e6]
        T of L_KD.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021. The weights are
    from the code of Chen et al. (SimKD), arXiv 2203.14001.
    """

    description = "softmax regression, ICLR 2021; weight 1, KD 1 with T = 4 (SimKD's comparison, arXiv 2203.14001)"

    def __init__(self, weight: float = 1, kd_weight: float = 1, temperature: float = 4, views: int = 1):
        super().__init__(weight, views)
        self.kd_weight, self.temperature = kd_weight, temperature
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(NotNegative, kd_weight=self.kd_weight)
        check(Temperature, temperature=self.temperature)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the connector."""
        self.connector = SRRLConnector(student.feature_width, teacher.feature_width)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum of the parts."""
        connected = self.connector(student.features)
        feature, classifier = srrl_losses(connected, teacher.features, teacher.logits, teacher.centers, teacher.bias)
        if not self.kd_weight:
            return feature + classifier
        kd = losses.distillation_kl(student.logits, teacher.logits, self.temperature).mean()
        return feature + classifier + self.kd_weight * kd


class CRD(Baseline):
    """Contrastive representation distillation: student and teacher map an image to similar vectors.

    The features of both networks are mapped to 128 values. Each image is compared with a memory of the other network's
    values: with its own row, and with rows of images of other classes, the negatives. `terms.contrast.CRD` has the
    equations. In every epoch, each image gets new negatives. They depend only on seed, epoch and image.

    The memories need 1 KB per training image. They are saved with checkpoints and with the run.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    negatives : int, at least 1
        Number of images of other classes that each image is compared with. If there are fewer, they are drawn with
        replacement.
    temperature : float, in [1e-6, 1e6]
    momentum : float, in [0, 1)
        How much of its old value a row of the memory keeps.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Tian, Krishnan and Isola, arXiv 1910.10699.
    """

    description = "contrastive representations, arXiv 1910.10699; weight 0.8, 16,384 negatives, temperature 0.07"

    def __init__(
        self,
        weight: float = 0.8,
        negatives: int = 16_384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        views: int = 1,
    ):
        super().__init__(weight, views)
        self.negatives, self.temperature, self.momentum = plain(negatives), temperature, momentum
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Count, negatives=self.negatives)
        check(Temperature, temperature=self.temperature)
        check(Fraction, momentum=self.momentum)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the linear layers and the memories."""
        if self._training is None:
            raise ValueError("CRD needs the labels of all training images: call prepare_training(info) before bind")
        sizes = student.feature_width, teacher.feature_width, len(self._training.labels)
        self.contrast = contrast.CRD(*sizes, temperature=self.temperature, momentum=self.momentum)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum of both losses. In train mode, also update the memories."""
        assert self._training is not None
        labels, seed = self._training.labels, self._training.seed
        negatives = contrast.draw_negatives(labels, batch.index, self.negatives, seed, epoch, 0)
        features = student.features, teacher.features
        of_student, of_teacher = self.contrast(*features, batch.index, negatives.to(batch.index.device))
        return of_student + of_teacher
