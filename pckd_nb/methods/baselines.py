r"""Other distillation methods, to compare PCKD with: `baseline("AT")` and others.

Every baseline has the objective

.. math::

    L = w_{\mathrm{CE}} \cdot \overline{\mathrm{CE}} + w \cdot \mathrm{term}

CE with a bar is the mean cross-entropy of the batch. The class of the baseline defines the term. w is the weight that
was published for CIFAR-100, and w_CE is 1 except in `LSKD`. Every image has one view, V = 1.

In the equations, the index s means student and t means teacher. f are penultimate features, F feature maps, and z
logits. B is the batch size, and C the number of classes.

Most terms are losses of the package torchdistill, which the extra "baselines" installs. FitNet and DKD are implemented
here. If a loss of torchdistill differs from its paper, the docstring of the class says how. "The comparison in the CRD
paper" is Tian et al., arXiv 1910.10699, which published weights for many methods.

A baseline that compares feature maps uses the last map of every resolution, see `models.FeatureMaps`. The published
comparisons used the maps at the ends of stages instead. For ResNets and VGG these are the same maps, with two
exceptions. The last map of a wide ResNet is taken after its BatchNorm here. At 32×32 pixels, VGG and the ShuffleNets
have one more map, at full resolution.
"""

import inspect
import math
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..catalogue import NOT_IMPLEMENTED
from ..models import Classifier, FeatureMaps, Output
from ..tensor_checks import check_labels, check_same_shape, check_temperature
from ..validation import Count, NotNegative, check
from .base import (
    Batch,
    Method,
    Temperature,
    Terms,
    check_same_classes,
    classification_loss,
    equal_weights,
    require_teacher,
    upright_cross_entropy,
)

Shape = tuple[int, int, int]  # (C, H, W) of a feature map
Shapes = Sequence[Shape]
Layers = Sequence[str] | None  # names of layers, see `models.FeatureMaps`


class Baseline(Method):
    """Base class of the baselines. A subclass computes `term`.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.

    Attributes
    ----------
    cross_entropy_weight : float
        Weight of the cross-entropy.
    warmup_epochs : int
        The weight of the term grows linearly over these epochs. 1 means that it is constant.
    description : str
        The paper and the published weight.

    Raises
    ------
    TypeError
        If a setting has the wrong type.
    ValueError
        If a setting is outside its range, or if torchdistill is needed and not installed.
    """

    warmup_epochs = 1
    cross_entropy_weight = 1.0
    description: str

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight
        Baseline.check(self)

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        check(NotNegative, weight=self.weight)
        check(Count, warmup_epochs=self.warmup_epochs)
        for name in ("layers", "teacher_layers"):
            layers = getattr(self, name)
            if layers is not None and (isinstance(layers, str) or not all(isinstance(item, str) for item in layers)):
                raise TypeError(f"{name} must be a list of layer names, got {layers!r}")
        if self.layers is not None and self.teacher_layers is not None and len(self.layers) != len(self.teacher_layers):
            counts = f"{len(self.layers)} and {len(self.teacher_layers)}"
            raise ValueError(f"layers and teacher_layers must have the same length, got {counts}")

    def bind(self, student: Classifier, teacher: Classifier, example: Tensor | None = None) -> "Baseline":
        """Create the modules that are trained with the student.

        If the method needs feature maps, both networks are run on the example in eval mode. The maps are paired from
        the end: last with last, second-to-last with second-to-last. If one network has more maps, its first maps are
        not used.

        Parameters
        ----------
        student, teacher : Classifier
        example : Tensor of shape (1, C, H, W), optional
            One image. Needed only if `needs_maps` is True.

        Returns
        -------
        Baseline
            This object.

        Raises
        ------
        ValueError
            If the numbers of classes differ, if the example is missing, or if a network has no feature map.
        """
        check_same_classes(student, teacher)
        if not self.needs_maps:
            self.prepare(student, teacher)
            return self
        if example is None:
            raise ValueError(f"{self.title} compares feature maps: pass an example image of shape (1, C, H, W) to bind")
        shapes = {
            "student": FeatureMaps(student, example, self.layers).shapes,
            "teacher": FeatureMaps(teacher, example, self.teacher_layers).shapes,
        }
        for network, found in shapes.items():
            if not found:
                raise ValueError(
                    f"{self.title} compares feature maps, and the {network} has none larger than one pixel: "
                    "choose another network"
                )
        self.prepare(student, teacher, *last_pairs(*shapes.values()))
        return self

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the modules whose sizes depend on the networks.

        Parameters
        ----------
        student, teacher : Classifier
        student_shapes, teacher_shapes : sequence of (C, H, W)
            Shapes of the feature maps. The two sequences have the same length.
        """

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the term that is added to the cross-entropy.

        Parameters
        ----------
        student, teacher : Output
            B rows, with feature maps if `needs_maps` is True. The teacher's output has no gradient.
        batch : Batch

        Returns
        -------
        scalar Tensor
            Before it is multiplied by the weight.
        """
        raise NotImplementedError

    def forward(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch.

        Parameters
        ----------
        student, teacher : Output
            B rows, with feature maps if `needs_maps` is True.
        batch : Batch
        epoch : int
            Counted from 1, for the warm-up.

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
        cross_entropy = upright_cross_entropy(student, batch, self.views)
        require_teacher(self, teacher)
        terms = {"cross_entropy": classification_loss(student, batch, cross_entropy)}
        terms[self.title.lower()] = term = self.term(student, teacher.detach(), batch)
        weight = self.weight * min(1, epoch / self.warmup_epochs)
        total = self.cross_entropy_weight * terms["cross_entropy"] + weight * term
        return Terms(total, terms, *equal_weights(cross_entropy))


class FitNet(Baseline):
    r"""FitNet: mean squared error between one feature map of the student and one of the teacher.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( \left( r(F_s) - F_t \right)^2 \right)

    F is the second-to-last feature map. The regressor r is a 1×1 convolution, BatchNorm and ReLU. It is trained with
    the student. The paper trains in two stages. Here, as in the comparison in the CRD paper, everything is trained in
    one stage.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.

    References
    ----------
    Romero et al., arXiv 1412.6550. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "hints, arXiv 1412.6550; weight 100 (CRD's comparison, arXiv 1910.10699)"
    needs_maps = True

    def __init__(self, weight: float = 100, layers: Layers = None, teacher_layers: Layers = None):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the regressor."""
        self.hint = -min(2, len(student_shapes))  # index of the map, from the end
        channels = student_shapes[self.hint][0], teacher_shapes[self.hint][0]
        self.regressor = nn.Sequential(nn.Conv2d(*channels, 1), nn.BatchNorm2d(channels[1]), nn.ReLU())

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the mean squared error."""
        student_map, teacher_map = to_smaller_size(student.maps[self.hint], teacher.maps[self.hint])
        return F.mse_loss(self.regressor(student_map), teacher_map)


class AT(Baseline):
    r"""Attention transfer: mean squared difference of attention maps, summed over the pairs of feature maps.

    .. math::

        \mathrm{term} = \sum_{\mathrm{pairs}} \mathrm{mean}\left( (a_s - a_t)^2 \right)

    The attention map a of an image is the mean over channels of F², flattened to a vector and divided by its length.
    This is the loss in the authors' code, and the published weight belongs to it. The paper has a different equation:
    the length of the vector a_s − a_t instead of the mean of its squares.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.

    References
    ----------
    Zagoruyko and Komodakis, arXiv 1612.03928. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "attention transfer, arXiv 1612.03928; weight 1000 (CRD's comparison, arXiv 1910.10699)"
    needs_maps = True

    def __init__(self, weight: float = 1000, layers: Layers = None, teacher_layers: Layers = None):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)
        self.loss_class = torchdistill("losses").ATLoss

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the loss for all pairs of maps."""
        self.loss = self.loss_class(torchdistill_pairs(len(student_shapes)), mode="code")

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the sum over the pairs."""
        pairs = [to_smaller_size(*maps) for maps in zip(*last_pairs(student.maps, teacher.maps), strict=True)]
        return self.loss(*(torchdistill_outputs(*maps) for maps in zip(*pairs, strict=True)))


class SP(Baseline):
    r"""Similarity-preserving distillation: squared difference of two B×B similarity matrices, divided by B².

    .. math::

        \mathrm{term} = \frac{1}{B^2} \sum_{i,j} \left( G_{s,ij} - G_{t,ij} \right)^2

    G_ij is the inner product of the last feature maps of samples i and j. As in the paper, every row of G is divided by
    its L2 norm. torchdistill 1.1 divides by the L1 norm by mistake. With the L1 norm, the loss is about B times
    smaller, and the published weight does not fit.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.

    References
    ----------
    Tung and Mori, arXiv 1907.09682. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "similarity-preserving, arXiv 1907.09682; weight 3000 (CRD's comparison, arXiv 1910.10699)"
    needs_maps = True

    def __init__(self, weight: float = 3000, layers: Layers = None, teacher_layers: Layers = None):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)
        self.loss = torchdistill("losses").SPKDLoss("0", "0", reduction="batchmean")
        self.loss.matmul_and_normalize = similarity_matrix  # torchdistill passes dim=1 of F.normalize as p=1

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss of the last maps."""
        return self.loss(torchdistill_outputs(student.maps[-1]), torchdistill_outputs(teacher.maps[-1]))


class CC(Baseline):
    r"""Correlation congruence: distance between two B×B kernel matrices of the features.

    .. math::

        \mathrm{term} = \frac{1}{B^2} \sqrt{\sum_{i,j} (K_{s,ij} - K_{t,ij})^2}, \qquad
        K_{ij} = e^{-2 \gamma} \sum_{p=0}^{2} \frac{(2 \gamma)^p}{p!} (x_i \cdot x_j)^p

    x_i are 128 values, which a linear layer computes from the features of sample i. There is one layer for each
    network, and both are trained with the student. γ is 0.4. For vectors x of length 1, K_ij approximates the Gaussian
    kernel exp(−γ‖x_i − x_j‖²).

    There are three differences from the publications:

    - The paper has no square root. torchdistill has one.
    - This class does not normalise the vectors x to length 1. Neither do torchdistill and the comparison in the CRD
      paper. So K does not approximate the Gaussian kernel.
    - The weight was published for another form of the loss, which compares neighbours in the batch. The configuration
      of torchdistill has the weight 0.003, together with KD.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.

    References
    ----------
    Peng et al., arXiv 1904.01802. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "correlation congruence, arXiv 1904.01802; weight 0.02 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 0.02):
        super().__init__(weight)
        kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
        self.loss = torchdistill("losses").CCKDLoss("0", "0", kernel, reduction="batchmean")

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the two linear layers."""
        self.embed_student = nn.Linear(student.feature_width, 128)
        self.embed_teacher = nn.Linear(teacher.feature_width, 128)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the distance."""
        student_embedding, teacher_embedding = (
            self.embed_student(student.features),
            self.embed_teacher(teacher.features),
        )
        return self.loss(torchdistill_outputs(student_embedding), torchdistill_outputs(teacher_embedding))


class VID(Baseline):
    r"""Variational information distillation: negative log-likelihood of the teacher's feature maps.

    .. math::

        \mathrm{term} = \sum_{\mathrm{pairs}} \mathrm{mean}\left(
            \frac{(\mu - F_t)^2}{2 \sigma^2} + \frac{1}{2} \log \sigma^2
        \right)

    The likelihood is a Gaussian with mean μ and variance σ². A regressor of three 1×1 convolutions computes μ from the
    student's map. σ² is learned, one value per channel. The term can be negative. The constant ½·log 2π is left out, as
    in other implementations.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.

    References
    ----------
    Ahn et al., arXiv 1904.05835. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "variational information, arXiv 1904.05835; weight 1 (CRD's comparison, arXiv 1910.10699)"
    needs_maps = True

    def __init__(self, weight: float = 1, layers: Layers = None, teacher_layers: Layers = None):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)
        self.loss_class, self.regressor_class = torchdistill("losses").VIDLoss, torchdistill("models").Regressor4VID

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create one regressor per pair of maps."""
        self.loss = self.loss_class(torchdistill_pairs(len(student_shapes)))
        shapes = zip(student_shapes, teacher_shapes, strict=True)
        channels = ((student_shape[0], teacher_shape[0], teacher_shape[0]) for student_shape, teacher_shape in shapes)
        regressors = (self.regressor_class(*sizes, eps=1e-5, init_pred_var=5.0) for sizes in channels)
        self.regressors = nn.ModuleList(regressors).float()

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the sum over the pairs."""
        pairs = [to_smaller_size(*maps) for maps in zip(*last_pairs(student.maps, teacher.maps), strict=True)]
        student_maps, teacher_maps = zip(*pairs, strict=True)
        predictions = [regressor(x) for regressor, x in zip(self.regressors, student_maps, strict=True)]
        return self.loss(torchdistill_outputs(*predictions), torchdistill_outputs(*teacher_maps))


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

    References
    ----------
    Park et al., arXiv 1904.05068. The weights are from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "relational, arXiv 1904.05068; weight 1, distance 25, angle 50 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 1, distance: float = 25, angle: float = 50):
        super().__init__(weight)
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

    References
    ----------
    Passalis and Tefas, arXiv 1803.10837. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "probabilistic knowledge, arXiv 1803.10837; weight 30000 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 30_000):
        super().__init__(weight)
        self.loss = torchdistill("losses").PKTLoss("0", "output", "0", "output")

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the divergence."""
        return self.loss(torchdistill_outputs(student.features), torchdistill_outputs(teacher.features))


class ReviewKD(Baseline):
    """Knowledge review: every feature map of the teacher is compared with several maps of the student.

    The student's maps are visited from the last to the first. An attention module fuses each of them with the deeper
    ones. The result is compared with the teacher's map at several resolutions. The penultimate features are used as the
    deepest map, with one pixel. The weight grows linearly over the first `warmup_epochs`.

    There are two differences from the authors' code:

    - Maps are taken as the blocks return them. The authors take them before the ReLU.
    - If the sizes of the maps differ, the student's map is resized before the fusion. The authors resize it after.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    warmup_epochs : int
        Number of epochs, at least 1.
    layers, teacher_layers : sequence of str, optional
        See `Method`.

    References
    ----------
    Chen et al., arXiv 2104.09044.
    """

    description = (
        "knowledge review, arXiv 2104.09044; weight 0.6 for resnet56 → resnet20; the authors' code has 1 for "
        "resnet110 → resnet32, 5 for the wide pairs, 8 for ShuffleV2"
    )
    needs_maps = True

    def __init__(
        self, weight: float = 0.6, warmup_epochs: int = 20, layers: Layers = None, teacher_layers: Layers = None
    ):
        super().__init__(weight)
        self.layers, self.teacher_layers = layers, teacher_layers
        Baseline.check(self)
        self.warmup_epochs = warmup_epochs
        self.check()
        self.fusion_class = torchdistill("models").AttentionBasedFusion
        self.loss = torchdistill("losses").HierarchicalContextLoss("0", "output", "0", "output")

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create one fusion module per pair of maps, and one for the features."""
        for _, height, width in teacher_shapes:
            if height != width:
                raise ValueError(f"ReviewKD needs square feature maps, the teacher's are {height}×{width}")
        inputs = [shape[0] for shape in student_shapes] + [student.feature_width]
        outputs = [shape[0] for shape in teacher_shapes] + [teacher.feature_width]
        middle, deepest = min(512, inputs[-1]), len(inputs) - 1
        sizes = enumerate(zip(inputs, outputs, strict=True))
        fusions = (self.fusion_class(a, middle, b, uses_attention=i < deepest) for i, (a, b) in sizes)
        self.fusions = nn.ModuleList(fusions)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the sum over all maps."""
        student_maps, teacher_maps = last_pairs(student.maps, teacher.maps)
        student_maps = [F.interpolate(x, y.shape[2:]) for x, y in zip(student_maps, teacher_maps, strict=True)]
        student_maps = [*student_maps, student.features[:, :, None, None]]
        teacher_maps = [*teacher_maps, teacher.features[:, :, None, None]]
        total, fused = student.features.new_zeros(()), None
        for fusion, x, y in zip(reversed(self.fusions), reversed(student_maps), reversed(teacher_maps), strict=True):
            output, fused = fusion(x, fused, y.shape[-1])
            total = total + self.loss(torchdistill_outputs((output, fused)), torchdistill_outputs(y))
        return total


class DIST(Baseline):
    r"""Distillation from a stronger teacher: correlation between the probabilities of student and teacher.

    .. math::

        \mathrm{term} = \tau^2 \left( 1 - \frac{1}{B} \sum_i \rho_i \right)
            + \tau^2 \left( 1 - \frac{1}{C} \sum_c \rho_c \right)

    ρ is the Pearson correlation between the probabilities of student and teacher, which are softmax(z/τ). ρ_i is
    computed over the classes of sample i, and ρ_c over the samples for class c. The paper gives both parts the
    weight 2. Here this is the default of `weight`.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    temperature : float, in [1e-6, 1e6]
        τ.

    References
    ----------
    Huang et al., arXiv 2205.10536.
    """

    description = "stronger teacher, arXiv 2205.10536; weight 2 on both relations, τ = 4 on CIFAR-100"

    def __init__(self, weight: float = 2, temperature: float = 4):
        super().__init__(weight)
        self.temperature, self.loss_class = temperature, torchdistill("losses").DISTLoss
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Temperature, temperature=self.temperature)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the loss."""
        self.loss = self.loss_class("0", "output", "0", "output", tau=self.temperature)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the sum of both losses."""
        return self.loss(torchdistill_outputs(student.logits), torchdistill_outputs(teacher.logits))


class LSKD(Baseline):
    r"""Logit standardisation: KD between standardised logits.

    .. math::

        \mathrm{term} = \frac{T^2}{B} \sum_i \mathrm{KL}\left(
            \mathrm{softmax}(\hat{z}_{t,i} / T) \,\middle\|\, \mathrm{softmax}(\hat{z}_{s,i} / T)
        \right)

    ẑ is a row of logits, shifted to mean 0 and scaled to standard deviation 1. The standard deviation is that of
    `torch.std`, with the divisor C − 1. The cross-entropy has the weight 0.1, as in the authors' comparison with KD.
    torchdistill multiplies by T² only if it receives the labels, so this class multiplies by T².

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    temperature : float, in [1e-6, 1e6]
        T.
    cross_entropy_weight : float
        Weight of the cross-entropy, at least 0.

    References
    ----------
    Sun et al., arXiv 2403.01427.
    """

    description = "logit standardisation, arXiv 2403.01427; weight 9, T = 2, cross-entropy 0.1"

    def __init__(self, weight: float = 9, temperature: float = 2, cross_entropy_weight: float = 0.1):
        super().__init__(weight)
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

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
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

    References
    ----------
    Zhao et al., arXiv 2203.08679.
    """

    description = (
        "decoupled, arXiv 2203.08679; weight 1, α = 1, T = 4, β = 2 for resnet56 → resnet20 and resnet110 → resnet32; "
        "the authors' code has 8 for resnet32x4 → resnet8x4"
    )

    def __init__(
        self,
        weight: float = 1,
        alpha: float = 1,
        beta: float = 2,
        temperature: float = 4,
        warmup_epochs: int = 20,
    ):
        super().__init__(weight)
        self.alpha, self.beta, self.temperature, self.warmup_epochs = alpha, beta, temperature, warmup_epochs
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(NotNegative, alpha=self.alpha, beta=self.beta)
        check(Temperature, temperature=self.temperature)

    def term(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the mean over the batch."""
        target, others = decoupled_kl(student.logits, teacher.logits, batch.labels, self.temperature)
        return (self.alpha * target + self.beta * others).mean()


BASELINE_CLASSES = {cls.__name__: cls for cls in (FitNet, AT, SP, CC, VID, RKD, PKT, ReviewKD, DIST, LSKD, DKD)}

# Name → paper and published weight. `catalogue` has only the names, and NOT_IMPLEMENTED.
BASELINES: dict[str, str] = {name: cls.description for name, cls in BASELINE_CLASSES.items()}


def baseline(name: str, **settings: Any) -> Baseline:
    """Return a baseline by its name.

    Parameters
    ----------
    name : str
        A key of `BASELINES`, in upper or lower case.
    **settings
        Settings that replace the published ones, such as weight=10.

    Returns
    -------
    Baseline

    Raises
    ------
    TypeError
        If `name` is not a string, or if a setting has the wrong type.
    ValueError
        If the name or a setting is unknown, if the baseline is one of `NOT_IMPLEMENTED`, if a setting is outside its
        range, or if torchdistill is needed and not installed.

    Examples
    --------
    >>> import pckd_nb as pckd
    >>> pckd.methods.baseline("DKD", beta=8).beta
    8
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a baseline must be a string, got {type(name).__name__}")
    names = {key.lower(): key for key in (*BASELINE_CLASSES, *NOT_IMPLEMENTED)}
    found = names.get(name.lower())
    if found is None:
        raise ValueError(f"unknown baseline {name!r}; known: {', '.join(BASELINES)}")
    if found in NOT_IMPLEMENTED:
        raise ValueError(f"{found} is not implemented: {NOT_IMPLEMENTED[found]}; known: {', '.join(BASELINES)}")
    accepted = inspect.signature(BASELINE_CLASSES[found]).parameters
    if unknown := settings.keys() - accepted.keys():
        raise ValueError(f"{found} has no setting {min(unknown)!r}; its settings: {', '.join(accepted)}")
    return BASELINE_CLASSES[found](**settings)


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


def torchdistill(part: str) -> ModuleType:
    """Import a module of torchdistill.

    Parameters
    ----------
    part : "losses" or "models"

    Returns
    -------
    module

    Raises
    ------
    ValueError
        If torchdistill is not installed.
    """
    try:
        if part == "losses":
            from torchdistill.losses import mid_level as module
        else:
            from torchdistill.models import wrapper as module
    except ImportError:
        raise ValueError("this baseline needs the package torchdistill: pip install 'pckd_nb[baselines]'") from None
    return module


def torchdistill_outputs(*outputs: Any) -> dict[str, dict[str, Any]]:
    """Return outputs in the form that torchdistill expects.

    torchdistill finds an output by the path of its module in the network. Here the paths are just "0", "1" and so on.
    """
    return {str(number): {"output": output} for number, output in enumerate(outputs)}


def torchdistill_pairs(count: int) -> dict[str, Any]:
    """Return the configuration that pairs the first `count` outputs of student and teacher in torchdistill."""
    outputs = [{"io": "output", "path": str(number)} for number in range(count)]
    return {output["path"]: {"student": output, "teacher": output} for output in outputs}


def last_pairs(student: Sequence[Any], teacher: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """Return the last items of both sequences, as many as the shorter one has."""
    count = min(len(student), len(teacher))
    return student[len(student) - count :], teacher[len(teacher) - count :]


def to_smaller_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two feature maps at the resolution of the smaller one, by average pooling of the larger one."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    a, b = (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size) for x in (a, b))
    return a, b


def similarity_matrix(maps: Tensor) -> Tensor:
    """Return the inner products of all pairs of samples, (B, B), with every row divided by its L2 norm."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)
