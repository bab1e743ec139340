"""Baselines that compare penultimate features: relations between the images of a batch."""

from torch import Tensor, nn

from ...models import Classifier, Output
from ...validation import NotNegative, check
from ..base import Batch
from ..terms import relations as terms
from .base import Baseline, Shapes, torchdistill, torchdistill_outputs


class CC(Baseline):
    r"""Correlation congruence: distance between the differences of neighbouring images, for student and teacher.

    .. math::

        \mathrm{term} = \overline{ \sum_k d_{i,k} \, d_{i+1,k} }, \qquad
        d_i = \left| e_{s,i} - e_{t,i} \right|

    e are 128 values, which a linear layer computes from the features of image i. There is one layer for each network,
    and both are trained with the student. The bar is the mean over the B − 1 pairs of neighbours in the batch.

    This is the form that the author of CC gave to the comparison in the CRD paper, and the published weight belongs to
    it. The paper has another equation, a distance between two B×B kernel matrices. torchdistill has the form of the
    paper. At the published weight its gradients are 9 to 135 times smaller than those of this form.

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

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the distance."""
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

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
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

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the divergence."""
        return self.loss(torchdistill_outputs(student.features), torchdistill_outputs(teacher.features))
