"""Baselines that compare feature maps."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...models import Classifier, FeatureMaps, Output, Preprocessed, SimKDNetwork
from ...validation import Count, NotNegative, check, plain
from ..base import Batch, Stage, Terms, check_same_classes, supervised_terms
from ..terms import maps as terms
from ..terms.logits import weight_in_epoch
from .base import (
    Baseline,
    Layers,
    MapBaseline,
    Shapes,
    StagedBaseline,
    last_pairs,
    torchdistill,
    torchdistill_outputs,
    torchdistill_pairs,
)


class FitNet(MapBaseline):
    r"""FitNet: mean squared error between one feature map of the student and one of the teacher.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( \left( r(F_s) - F_t \right)^2 \right)

    F is the feature map of the second stage. The regressor r is `terms.maps.Regressor`, a convolution with BatchNorm
    and ReLU that is trained with the student. It brings the student's map to the size of the teacher's map, unless the
    teacher's map is larger, but not exactly twice as large. Then the teacher's map is pooled. The paper trains in two
    stages. Here, as in the comparison in the CRD paper, everything is trained in one stage.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Romero et al., arXiv 1412.6550. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "hints, arXiv 1412.6550; weight 100 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 100, layers: Layers = None, teacher_layers: Layers = None, views: int = 1):
        super().__init__(weight, layers, teacher_layers, views)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the regressor."""
        self.stage = min(1, len(student_shapes) - 1)  # the second stage, if there is one
        self.regressor = terms.Regressor(student_shapes[self.stage], teacher_shapes[self.stage])

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the mean squared error."""
        student_maps, teacher_maps = last_pairs(student.maps, teacher.maps)
        return terms.hint_loss(self.regressor(student_maps[self.stage]), teacher_maps[self.stage])


class AT(MapBaseline):
    r"""Attention transfer: mean squared difference of attention maps, summed over the pairs of feature maps.

    .. math::

        \mathrm{term} = \sum_{\mathrm{pairs}} \mathrm{mean}\left( (a_s - a_t)^2 \right)

    The attention map a of an image is the mean over channels of F², flattened to a vector and divided by its L2 norm.
    This is the loss in the authors' code, and the published weight belongs to it. The paper has a different equation:
    the L2 norm of a_s − a_t instead of the mean of its squares.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Zagoruyko and Komodakis, arXiv 1612.03928. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "attention transfer, arXiv 1612.03928; weight 1000 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 1000, layers: Layers = None, teacher_layers: Layers = None, views: int = 1):
        super().__init__(weight, layers, teacher_layers, views)
        self.loss_class = torchdistill("losses").ATLoss

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the loss for all pairs of maps."""
        self.loss = self.loss_class(torchdistill_pairs(len(student_shapes)), mode="code")

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum over the pairs."""
        pairs = [terms.pool_to_smaller(*maps) for maps in zip(*last_pairs(student.maps, teacher.maps), strict=True)]
        return self.loss(*(torchdistill_outputs(*maps) for maps in zip(*pairs, strict=True)))


class SP(MapBaseline):
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
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Tung and Mori, arXiv 1907.09682. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "similarity-preserving, arXiv 1907.09682; weight 3000 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 3000, layers: Layers = None, teacher_layers: Layers = None, views: int = 1):
        super().__init__(weight, layers, teacher_layers, views)
        self.loss = torchdistill("losses").SPKDLoss("0", "0", reduction="batchmean")
        self.loss.matmul_and_normalize = similarity_matrix  # torchdistill passes dim=1 of F.normalize as p=1

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the loss of the last maps."""
        return self.loss(torchdistill_outputs(student.maps[-1]), torchdistill_outputs(teacher.maps[-1]))


class VID(MapBaseline):
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
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Ahn et al., arXiv 1904.05835. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "variational information, arXiv 1904.05835; weight 1 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 1, layers: Layers = None, teacher_layers: Layers = None, views: int = 1):
        super().__init__(weight, layers, teacher_layers, views)
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

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum over the pairs."""
        pairs = [terms.pool_to_smaller(*maps) for maps in zip(*last_pairs(student.maps, teacher.maps), strict=True)]
        student_maps, teacher_maps = zip(*pairs, strict=True)
        predictions = [regressor(x) for regressor, x in zip(self.regressors, student_maps, strict=True)]
        return self.loss(torchdistill_outputs(*predictions), torchdistill_outputs(*teacher_maps))


class ReviewKD(MapBaseline):
    """Knowledge review: every feature map of the teacher is compared with several maps of the student.

    The student's maps are visited from the last to the first. An attention module fuses each of them with the deeper
    ones. The result is compared with the teacher's map at several resolutions. The penultimate features are used as the
    deepest map, with one pixel. The weight grows linearly over the first `warmup_epochs`.

    As in the authors' code, the maps of the student are the outputs of its stages, and those of the teacher are taken
    before the last ReLU of a stage. A wide ResNet as the teacher gives the output of the BatchNorm after each stage.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    warmup_epochs : int
        Number of epochs, at least 1.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Chen et al., arXiv 2104.09044.
    """

    description = (
        "knowledge review, arXiv 2104.09044; weight 0.6 to 8 for some pairs of networks (authors' code), otherwise "
        "0.6; 20 epochs of warm-up"
    )
    teacher_maps = "preactivations"

    def __init__(
        self,
        weight: float = 0.6,
        warmup_epochs: int = 20,
        layers: Layers = None,
        teacher_layers: Layers = None,
        views: int = 1,
    ):
        super().__init__(weight, layers, teacher_layers, views)
        self.warmup_epochs = warmup_epochs
        self.check()
        self.loss = torchdistill("losses").HierarchicalContextLoss("0", "output", "0", "output")

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create one fusion module per pair of maps, and one for the features."""
        inputs = [shape[0] for shape in student_shapes] + [student.feature_width]
        outputs = [shape[0] for shape in teacher_shapes] + [teacher.feature_width]
        middle, deepest = min(512, inputs[-1]), len(inputs) - 1
        sizes = enumerate(zip(inputs, outputs, strict=True))
        self.fusions = nn.ModuleList(AttentionFusion(a, middle, b, fuses=i < deepest) for i, (a, b) in sizes)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum over all maps."""
        student_maps, teacher_maps = last_pairs(student.maps, teacher.maps)
        student_maps = [*student_maps, student.features[:, :, None, None]]
        teacher_maps = [*teacher_maps, teacher.features[:, :, None, None]]
        total, fused = student.features.new_zeros(()), None
        for fusion, x, y in zip(reversed(self.fusions), reversed(student_maps), reversed(teacher_maps), strict=True):
            output, fused = fusion(x, fused, y.shape[2:])
            total = total + self.loss(torchdistill_outputs((output, fused)), torchdistill_outputs(y))
        return total


class NST(MapBaseline):
    r"""Neuron selectivity transfer: the channels of student and teacher react to the same positions.

    .. math::

        \mathrm{term} = \sum_{\mathrm{pairs}} \left( \overline{k(x_t, x_t')} + \overline{k(x_s, x_s')}
            - 2 \, \overline{k(x_s, x_t)} \right), \qquad k(x, y) = (x \cdot y)^2

    x is one channel of a feature map, flattened and divided by its L2 norm. A bar is the mean over the images and all
    pairs of channels, see `terms.maps.neuron_selectivity`.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Huang and Wang, arXiv 1707.01219. The weight is from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = "neuron selectivity, arXiv 1707.01219; weight 50 (CRD's comparison, arXiv 1910.10699)"

    def __init__(self, weight: float = 50, layers: Layers = None, teacher_layers: Layers = None, views: int = 1):
        super().__init__(weight, layers, teacher_layers, views)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum over the pairs of maps."""
        pairs = zip(*last_pairs(student.maps, teacher.maps), strict=True)
        return torch.stack([terms.neuron_selectivity(*maps) for maps in pairs]).sum()


class KDSVD(MapBaseline):
    r"""Distillation of singular vectors: how the main direction of a feature map changes from stage to stage.

    .. math::

        \mathrm{term} = \sum_i \frac{1}{B} \sum \left( D_{s,i} - D_{t,i} \right)^2, \qquad
        D_i[c, d] = \exp\left( -\frac{(v_i[c] - v_{i-1}[d])^2}{8} \right)

    v_i is a singular vector of the map of stage i, see `terms.maps.kdsvd_losses`. Both networks need two or more maps,
    with the same numbers of channels. No weight is published for this form. mdistiller has the weight 1 for another
    form.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Lee, Kim and Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018.
    """

    description = "singular vectors, ECCV 2018; weight 1 (mdistiller, for another form of the loss)"

    def __init__(self, weight: float = 1, layers: Layers = None, teacher_layers: Layers = None, views: int = 1):
        super().__init__(weight, layers, teacher_layers, views)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Check the numbers of channels."""
        check_same_channels("KDSVD", student_shapes, teacher_shapes)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum over the pairs of neighbouring stages."""
        return terms.kdsvd_losses(*last_pairs(student.maps, teacher.maps)).sum()


class WKDF(MapBaseline):
    r"""Wasserstein distance of features: differences of means and standard deviations of the last feature maps.

    .. math::

        \mathrm{term} = \rho \, L_{\mathrm{mean}} + L_{\mathrm{deviation}}

    The map is cut into g×g cells. Both parts sum the squared differences over channels and cells, see
    `terms.maps.wkdf_losses`. The student's map passes `terms.maps.Regressor` first, which is trained with the student.
    The weight is constant for 150 of 240 epochs, and then falls to 0 along a half cosine. For other numbers of epochs,
    the share is the same.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    grid : int, at least 1
        g.
    mean_ratio : float
        ρ, at least 0.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Lv, Yang and Li, arXiv 2412.08139.
    """

    title = "WKD-F"
    description = (
        "Wasserstein distance of features, arXiv 2412.08139; weight 0.08, 1×1 cells, ρ = 4, the authors' values for "
        "resnet32x4 → resnet8x4; 0.3, 4×4 and 3 for wrn_40_2 → ShuffleV1"
    )

    def __init__(
        self,
        weight: float = 0.08,
        grid: int = 1,
        mean_ratio: float = 4,
        layers: Layers = None,
        teacher_layers: Layers = None,
        views: int = 1,
    ):
        super().__init__(weight, layers, teacher_layers, views)
        self.grid, self.mean_ratio = plain(grid), mean_ratio
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Count, grid=self.grid)
        check(NotNegative, mean_ratio=self.mean_ratio)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the regressor."""
        self.regressor = terms.Regressor(student_shapes[-1], teacher_shapes[-1])

    def weight_in(self, epoch: int) -> float:
        """Return the weight of the term in an epoch, counted from 1."""
        return weight_in_epoch(self.weight, epoch, self.epochs_in_training)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the weighted sum of both parts."""
        mean, deviation = terms.wkdf_losses(self.regressor(student.maps[-1]), teacher.maps[-1], self.grid)
        return self.mean_ratio * mean + deviation


class CATKD(Baseline):
    r"""Class attention transfer: mean squared difference of class activation maps.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( (\mathrm{pool}(A_s) - \mathrm{pool}(A_t))^2 \right), \qquad
        A_{c} = \sum_k W_{c k} \, F_k

    F is the last feature map, and W the weight of the last layer. So the logits without bias are the mean of A over its
    pixels. The maps are pooled to r×r pixels, and then divided by their L2 norm if `normalize` is True, see
    `terms.maps.catkd_loss`. The bias of the student's last layer is set to 0 and not trained. The teacher's is ignored.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    resolution : int, at least 1
        r.
    normalize : bool
        Whether the map of every class is divided by its L2 norm.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Guo et al., "Class Attention Transfer Based Knowledge Distillation", arXiv 2304.12777.
    """

    title = "CAT-KD"
    description = (
        "class attention transfer, arXiv 2304.12777; weight 0.7 to 600 and 2×2 or 4×4 pixels for some pairs of "
        "networks (authors' code), otherwise 0.7 and 2×2"
    )
    needs_maps = True
    student_maps = teacher_maps = "last"

    def __init__(self, weight: float = 0.7, resolution: int = 2, normalize: bool = False, views: int = 1):
        super().__init__(weight, views)
        self.resolution, self.normalize = plain(resolution), normalize
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Count, resolution=self.resolution)
        if not isinstance(self.normalize, bool) and self.normalize not in (0, 1):
            raise TypeError(f"normalize must be True or False, got {self.normalize!r}")

    def bind(self, student: Classifier, teacher: Classifier, example: Tensor | None = None) -> "CATKD":
        """Check that the features of both networks are the mean of a map, and remove the student's bias.

        Parameters
        ----------
        student, teacher : Classifier
        example : Tensor of shape (1, C, H, W)
            One image.

        Returns
        -------
        CATKD
            This object.

        Raises
        ------
        ValueError
            If the features of a network are not the mean of its last feature map over the pixels, or as in
            `Baseline.bind`.
        """
        super().bind(student, teacher, example)
        assert example is not None  # checked in `Baseline.bind`
        check_features_are_means("CAT-KD", student, teacher, example)
        if student.head.bias is not None:
            nn.init.zeros_(student.head.bias).requires_grad_(False)
        return self

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the mean squared difference."""
        of_student, of_teacher = (terms.class_activation_maps(x.maps[-1], x.centers) for x in (student, teacher))
        return terms.catkd_loss(of_student, of_teacher, self.resolution, bool(self.normalize))


class SimKD(Baseline):
    r"""Reused teacher classifier: the student learns the teacher's last feature map, and uses the teacher's last layer.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( \left( P(F_s) - F_t \right)^2 \right)

    F is the last feature map, and P the projector `models.simkd.SimKDProjector`, which is trained with the student. The
    larger map is pooled to the size of the smaller one. The labels are not used for training: the cross-entropy has the
    weight 0.

    The trained network is `models.SimKDNetwork`: the student without its last layer, the projector, and the last layer
    of the teacher, which does not change. This network is evaluated and saved, and `run.model()` returns it. All its
    parameters count as those of the student. The student that you pass loses its own last layer.

    MobileNetV2 and ShuffleV2 have a convolution after their last stage. Unlike in the authors' code, F_s is the map
    after this convolution, so that it is trained, too.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    factor : int, at least 1
        The hidden layers of P have C_t / factor channels.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", arXiv 2203.14001.
    """

    description = "reused teacher classifier, arXiv 2203.14001; weight 1, cross-entropy 0 (authors' code)"
    needs_maps = True
    student_maps = teacher_maps = "last"
    cross_entropy_weight = 0.0

    def __init__(self, weight: float = 1, factor: int = 2, views: int = 1):
        super().__init__(weight, views)
        self.factor = plain(factor)
        self.check()

    def check(self) -> None:
        """Check the settings, see `Method.check`."""
        super().check()
        check(Count, factor=self.factor)

    def wrap_student(self, student: Classifier, teacher: Classifier | None, example: Tensor) -> Classifier:
        """Return the network that is trained, see `Method.wrap_student`.

        Parameters
        ----------
        student, teacher : Classifier
        example : Tensor of shape (1, C, H, W)
            One image.

        Returns
        -------
        Classifier
            A `models.SimKDNetwork`. If the student converts its input, see `models.Preprocessed`, this network does
            it, too.

        Raises
        ------
        ValueError
            If the features of a network are not the mean of its last feature map over the pixels, if the numbers of
            classes differ, or if the student has the last layer of a teacher already.
        """
        assert teacher is not None  # checked in `training.checks.check_task`
        check_same_classes(student, teacher)
        check_features_are_means("SimKD", student, teacher, example)
        maps, teacher_maps = (FeatureMaps(network, example, kind="last") for network in (student, teacher))
        [(layer, _)], [student_shape], [teacher_shape] = maps.layer_sizes, maps.shapes, teacher_maps.shapes

        def wrap(network: Classifier, layer: str) -> Classifier:
            if isinstance(network, Preprocessed):
                inner = wrap(network.model, layer.removeprefix("model."))
                wrapped = Preprocessed(inner, network.input_format, network.training_format)
                wrapped.preprocessing = network.preprocessing
                return wrapped
            if isinstance(network, SimKDNetwork):
                raise ValueError("the student has the last layer of a teacher already: SimKD needs a new student")
            has_bias = teacher.head.bias is not None
            simkd_network = SimKDNetwork(network, layer, student_shape, teacher_shape, self.factor, has_bias)
            simkd_network.fc.load_state_dict(teacher.head.state_dict())
            return simkd_network

        return wrap(student, layer)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Check that the student has the last layer of the teacher."""
        while isinstance(student, Preprocessed):
            student = student.model
        if not isinstance(student, SimKDNetwork):
            raise ValueError(
                "SimKD trains the student with the last layer of the teacher: pass the result of "
                "wrap_student(student, teacher, example) to bind"
            )

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the mean squared difference."""
        return terms.simkd_loss(student.maps[-1], teacher.maps[-1])


class FirstStageBaseline(StagedBaseline):
    r"""Base class of FSP and AB: a stage trains the body of the student, then the student learns from labels alone.

    .. math::

        L_{\mathrm{stage}} = w \cdot \mathrm{term}, \qquad L = \overline{\mathrm{CE}}

    The body is everything but the last layer. The learning rate of the stage is the recipe's, and is not lowered. The
    epochs after the stage need no teacher.

    Parameters
    ----------
    weight : float
        w, at least 0.
    stage_epochs : int, at least 1, optional
        See `StagedBaseline`.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.
    """

    needs_maps = True
    teacher_only_in_stages = True

    def __init__(
        self,
        weight: float = 1,
        stage_epochs: int | None = None,
        layers: Layers = None,
        teacher_layers: Layers = None,
        views: int = 1,
    ):
        super().__init__(weight, stage_epochs, views)
        self.layers, self.teacher_layers = layers, teacher_layers
        self.check()

    def trained_heads(self) -> list[nn.Module]:
        """Return the modules of this method that are trained in the stage."""
        return []

    def stages(self, student: Classifier, teacher: Classifier | None) -> list[Stage]:
        """Return the stage that trains the body of the student, see `Method.stages`."""

        def loss(student: Output, teacher: Output, batch: Batch) -> Tensor:
            return self.weight * self.term(student, teacher.detach(), self.repeat_batch(batch), 1)

        modules = [student, *self.trained_heads()]
        frozen = [student.head]
        return [
            Stage(self.title, self.stage_length, modules, loss, needs_student=True, frozen=frozen, views=self.views)
        ]

    def forward(self, student: Output, teacher: Output | None, batch: Batch, epoch: int) -> Terms:
        """Compute the objective of one batch.

        Parameters
        ----------
        student : Output
            V·B rows: first the B images that are not rotated, then the B images rotated by 90°, and so on.
        teacher : Output or None
            Not used.
        batch : Batch
        epoch : int
            Not used.

        Returns
        -------
        Terms
            The total is the cross-entropy. All sample weights are 1.

        Raises
        ------
        TypeError
            If logits or labels are not tensors.
        ValueError
            If shapes or dtypes do not match.
        """
        return supervised_terms(student, batch, self.views)


class FSP(FirstStageBaseline):
    r"""Flow of solution procedure: how each feature map follows from the one before it.

    .. math::

        \mathrm{term} = \sum_i \mathrm{mean}\left( (G_{s,i} - G_{t,i})^2 \right), \qquad
        G_i[c, d] = \mathrm{mean}\left( F_i[c] \, F_{i-1}[d] \right)

    F_0 is the output of the stem, see `Classifier.stages`, and F_i the map of stage i. The mean in G is over the
    positions, see `terms.maps.fsp_loss`. The maps of both networks need the same numbers of channels.

    The body of the student is trained on the term alone: for 30 epochs before 240 epochs of training. Then the student
    is trained on the cross-entropy alone. The learning rate of the stage is the recipe's, and is not lowered.

    Parameters
    ----------
    weight : float
        Weight of the term in the stage, at least 0.
    stage_epochs : int, at least 1, optional
        Number of epochs of the stage. None means 30 for 240 epochs of training, see `StagedBaseline`.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Yim et al., "A Gift from Knowledge Distillation", CVPR 2017. The stage is that of Tian et al. (CRD),
    arXiv 1910.10699.
    """

    description = (
        "flow of solution procedure, CVPR 2017; weight 1 in a stage of 30 epochs before the 240 epochs of training "
        "(CRD's comparison, arXiv 1910.10699)"
    )
    student_maps = teacher_maps = "stem and stages"

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Check the numbers of channels."""
        check_same_channels("FSP", student_shapes, teacher_shapes)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the sum over the pairs of neighbouring maps."""
        pairs = list(zip(*last_pairs(student.maps, teacher.maps), strict=True))
        losses = [
            terms.fsp_loss(s_earlier, s_later, t_earlier, t_later)
            for (s_earlier, t_earlier), (s_later, t_later) in zip(pairs, pairs[1:], strict=False)
        ]
        return torch.stack(losses).sum()


class AB(FirstStageBaseline):
    r"""Activation boundaries: which neurons of the teacher are active.

    .. math::

        \mathrm{term} = \sum_i \frac{3}{1000} \, 2^{i - n} \, \frac{1}{B} \sum \begin{cases}
            \max(0,\; 1 + F_{s,i})^2 & \text{if } F_{t,i} \le 0 \\
            \max(0,\; 1 - F_{s,i})^2 & \text{if } F_{t,i} > 0
        \end{cases}

    F_i is the map of stage i before its last ReLU, for i from 1 to n. The inner sum is over all entries, see
    `terms.maps.activation_boundary`. If the shapes of two maps differ, the student's map first passes a
    connector: `terms.maps.Regressor` without ReLU.

    The body of the student and the connectors are trained on the term alone: for 30 epochs before 240 epochs of
    training. Then the student is trained on the cross-entropy alone. The learning rate of the stage is the recipe's,
    and is not lowered.

    Parameters
    ----------
    weight : float
        Weight of the term in the stage, at least 0.
    stage_epochs : int, at least 1, optional
        Number of epochs of the stage. None means 30 for 240 epochs of training, see `StagedBaseline`.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Heo et al., arXiv 1811.03233. The stage is that of Tian et al. (CRD), arXiv 1910.10699.
    """

    description = (
        "activation boundaries, arXiv 1811.03233; weight 1 in a stage of 30 epochs before the 240 epochs of training "
        "(CRD's comparison, arXiv 1910.10699)"
    )
    student_maps = teacher_maps = "preactivations"

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the connectors."""
        connectors = map(terms.ab_connector, student_shapes, teacher_shapes)
        self.connectors = nn.ModuleList(connectors).requires_grad_(False)  # only the stage trains them

    def trained_heads(self) -> list[nn.Module]:
        """Return the connectors."""
        return [self.connectors]

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the weighted sum over the maps."""
        triples = zip(self.connectors, *last_pairs(student.maps, teacher.maps), strict=True)
        losses = [terms.activation_boundary(connector(s), t) for connector, s, t in triples]
        return sum_of_levels(losses, 3 / 1000)


class FT(StagedBaseline):
    r"""Factor transfer: the student's last feature map is translated into a short form of the teacher's.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( \left| q(\varphi_s) - q(\varphi_t) \right| \right)

    φ_t is the factor of the teacher: the output of the encoder of `terms.maps.Paraphraser`. φ_s is the output of
    `terms.maps.Translator`. q is the attention map of `AT`, see `terms.maps.factor_transfer`.

    The paraphraser is an autoencoder of the teacher's last map. It is trained first, with the mean squared error: for
    30 epochs before 240 epochs of training. The learning rate of this stage is 0.01 for a student that is a ResNet or a
    wide ResNet, and otherwise the recipe's. Then the paraphraser is frozen, and the translator is trained with the
    student.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    stage_epochs : int, at least 1, optional
        Number of epochs of the stage. None means 30 for 240 epochs of training, see `StagedBaseline`.
    layers, teacher_layers : sequence of str, optional
        See `Method`.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Kim, Park and Kwak, arXiv 1802.04977. Form, weight and stage are from Tian et al. (CRD), arXiv 1910.10699.
    """

    description = (
        "factor transfer, arXiv 1802.04977; weight 200, after a stage of 30 epochs before the 240 epochs of training "
        "(CRD's comparison, arXiv 1910.10699)"
    )
    needs_maps = True

    def __init__(
        self,
        weight: float = 200,
        stage_epochs: int | None = None,
        layers: Layers = None,
        teacher_layers: Layers = None,
        views: int = 1,
    ):
        super().__init__(weight, stage_epochs, views)
        self.layers, self.teacher_layers = layers, teacher_layers
        self.check()

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create paraphraser and translator."""
        channels, teacher_channels = student_shapes[-1][0], teacher_shapes[-1][0]
        self.paraphraser = terms.Paraphraser(teacher_channels).requires_grad_(False)  # only the stage trains it
        self.translator = terms.Translator(channels, teacher_channels)

    def stages(self, student: Classifier, teacher: Classifier | None) -> list[Stage]:
        """Return the stage that trains the paraphraser, see `Method.stages`."""
        is_resnet = (student.name or "").startswith(("resnet", "wrn"))
        modules = [self.paraphraser]
        lr = 0.01 if is_resnet else None
        return [Stage("paraphraser", self.stage_length, modules, self.reconstruction_loss, views=self.views, lr=lr)]

    def reconstruction_loss(self, student: Output | None, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss of the stage: the mean squared error of the paraphraser.

        Parameters
        ----------
        student : Output or None
            Not used.
        teacher : Output
        batch : Batch
            Not used.

        Returns
        -------
        scalar Tensor
        """
        teacher_map = teacher.maps[-1].detach()
        return F.mse_loss(self.paraphraser(teacher_map), teacher_map)

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the mean absolute difference."""
        teacher_factor = self.paraphraser.encoder(teacher.maps[-1])
        return terms.factor_transfer(self.translator(student.maps[-1]), teacher_factor)


def sum_of_levels(losses: Sequence[Tensor], scale: float) -> Tensor:
    """Return the sum of the losses of all maps, from the first to the last, weighted by `terms.maps.level_weights`."""
    weights = terms.level_weights(len(losses), scale)
    return torch.stack([weight * loss for weight, loss in zip(weights, losses, strict=True)]).sum()


def check_same_channels(title: str, student_shapes: Shapes, teacher_shapes: Shapes) -> None:
    """Check that a method has two or more feature maps with the same numbers of channels in both networks.

    Parameters
    ----------
    title : str
        The method, for the message.
    student_shapes, teacher_shapes : sequence of (C, H, W)

    Raises
    ------
    ValueError
        If the numbers of channels differ, or if there are fewer than two maps.
    """
    channels, teacher_channels = ([shape[0] for shape in shapes] for shapes in (student_shapes, teacher_shapes))
    if len(channels) < 2:
        raise ValueError(
            f"{title} needs two or more feature maps of each network, but there is only {len(channels)} pair of maps: "
            "choose networks with more stages, or name more layers in layers and teacher_layers"
        )
    if channels != teacher_channels:
        raise ValueError(
            f"{title} needs two or more feature maps with the same numbers of channels, the student has {channels}, "
            f"the teacher {teacher_channels}: choose networks of the same width"
        )


def check_features_are_means(title: str, student: Classifier, teacher: Classifier, example: Tensor) -> None:
    """Check that the features of both networks are the mean of their last feature map.

    Parameters
    ----------
    title : str
        The method, for the message.
    student, teacher : Classifier
    example : Tensor of shape (1, C, H, W)

    Raises
    ------
    ValueError
        If the features of a network are something else.
    """
    for name, network in (("student", student), ("teacher", teacher)):
        if not _features_are_mean_of_map(network, example):
            raise ValueError(
                f"{title} needs features that are the mean of the last feature map, but those of the {name} are not: "
                "choose another network"
            )


def _features_are_mean_of_map(network: Classifier, example: Tensor) -> bool:
    """Return whether the features of a network are the mean of its last feature map over the pixels."""
    was_training = network.training
    # Random pixels would advance the random generator, and so change the initial weights of modules created later.
    pixels = torch.linspace(-2, 2, example.numel(), dtype=example.dtype).view_as(example)
    example = pixels.to(next(network.parameters()).device)
    try:
        with torch.no_grad():
            output = FeatureMaps(network, example, kind="last")(network.eval(), example)
    finally:
        network.train(was_training)
    means = output.maps[-1].mean((2, 3))
    return means.shape == output.features.shape and torch.allclose(means, output.features, rtol=1e-3, atol=1e-4)


class OFD(Baseline):
    r"""Overhaul of feature distillation: squared difference of maps before the ReLU, with margins.

    .. math::

        \mathrm{term} = \sum_{i=0}^{n-1} 2^{\,i - n + 1} \, \frac{1}{B}
            \sum d\left( r_i(F_{s,i}), \max(F_{t,i}, m_i) \right)

    F are the maps of the n stages before their last ReLU. The connector r is a 1×1 convolution with BatchNorm, which is
    trained with the student. m is a margin per channel, from the BatchNorm of the teacher. d is the squared difference,
    but 0 where the target is not positive and the student is below it. See `terms.maps.ofd_loss`.

    Unlike in the authors' code, the teacher is in eval mode here, as for all other methods. In the authors' code, its
    BatchNorm uses the statistics of the batch.

    Parameters
    ----------
    weight : float
        Weight of the term, at least 0.
    views : int, from 1 to 4
        See `Baseline`.

    References
    ----------
    Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866.
    """

    description = "overhaul of feature distillation, arXiv 1904.01866; weight 0.001 (authors' code and mdistiller)"
    needs_maps = True
    student_maps = teacher_maps = "preactivations"

    def __init__(self, weight: float = 0.001, views: int = 1):
        super().__init__(weight, views)

    def prepare(
        self, student: Classifier, teacher: Classifier, student_shapes: Shapes = (), teacher_shapes: Shapes = ()
    ) -> None:
        """Create the connectors, and compute the margins."""
        count = len(student_shapes)
        if not student.preactivations or len(teacher.norms) < count:
            role, network = ("teacher", teacher) if student.preactivations else ("student", student)
            raise ValueError(
                "OFD needs the last ReLU of each stage and the BatchNorm before it, which are not known for the "
                f"{role} {network.name}: choose a ResNet, WRN, VGG or MobileNetV2 as the teacher, and any network of "
                "this package as the student"
            )
        shapes = zip(student_shapes, teacher_shapes, strict=True)
        self.connectors = nn.ModuleList(
            terms.OFDConnector(student_shape[0], teacher_shape[0]) for student_shape, teacher_shape in shapes
        )
        for i, name in enumerate(teacher.norms[-count:]):
            norm = cast(nn.BatchNorm2d, teacher.get_submodule(name))
            self.register_buffer(f"margin{i}", terms.ofd_margin(norm.weight.detach(), norm.bias.detach()).float())

    def term(self, student: Output, teacher: Output, batch: Batch, epoch: int) -> Tensor:
        """Return the weighted sum over the stages."""
        triples = zip(self.connectors, *last_pairs(student.maps, teacher.maps), strict=True)
        losses = [
            terms.ofd_loss(connector(student_map), teacher_map, self.get_buffer(f"margin{i}"))
            for i, (connector, student_map, teacher_map) in enumerate(triples)
        ]
        return sum_of_levels(losses, 1.0)


class AttentionFusion(nn.Module):
    r"""Fuse a map of the student with the deeper ones, and change it to the shape of the teacher's map.

    .. math::

        x = \mathrm{BN}(\mathrm{conv}_{1 \times 1}(F_s)), \qquad
        \mathrm{fused} = a_1 x + a_2 y, \qquad
        \mathrm{output} = \mathrm{BN}(\mathrm{conv}_{3 \times 3}(\mathrm{fused}))

    y is the fused map of the deeper level, resized to the size of x. The attention maps a₁ and a₂ are the sigmoid of a
    1×1 convolution of x and y. The fused map is resized to the size of the teacher's map before the 3×3 convolution.

    Parameters
    ----------
    in_channels : int
        Channels of the student's map.
    middle_channels : int
        Channels of the fused map.
    out_channels : int
        Channels of the teacher's map.
    fuses : bool
        False for the deepest map, where the fused map is x.

    References
    ----------
    Chen et al., arXiv 2104.09044. The weights are initialized as in the authors' code.
    """

    def __init__(self, in_channels: int, middle_channels: int, out_channels: int, fuses: bool):
        super().__init__()
        first = nn.Conv2d(in_channels, middle_channels, 1, bias=False)
        last = nn.Conv2d(middle_channels, out_channels, 3, padding=1, bias=False)
        for conv in (first, last):
            nn.init.kaiming_uniform_(conv.weight, a=1)
        self.first = nn.Sequential(first, nn.BatchNorm2d(middle_channels))
        self.last = nn.Sequential(last, nn.BatchNorm2d(out_channels))
        self.attention = nn.Sequential(nn.Conv2d(2 * middle_channels, 2, 1), nn.Sigmoid()) if fuses else None

    def forward(self, student_map: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the output and the fused map.

        Parameters
        ----------
        student_map : Tensor of shape (B, C, H, W)
        deeper : Tensor of shape (B, middle channels, H', W'), or None
            The fused map of the deeper level. None for the deepest map.
        size : (int, int)
            Height and width of the teacher's map.

        Returns
        -------
        output : Tensor of shape (B, out channels, *size)
        fused : Tensor of shape (B, middle channels, *size)
        """
        fused = self.first(student_map)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[2:])
            attention = self.attention(torch.cat([fused, deeper], 1))
            fused = fused * attention[:, :1] + deeper * attention[:, 1:]
        if fused.shape[2:] != size:
            fused = F.interpolate(fused, tuple(size))
        return self.last(fused), fused


def similarity_matrix(maps: Tensor) -> Tensor:
    """Return the inner products of all pairs of samples, (B, B), with every row divided by its L2 norm."""
    flat = maps.flatten(1)
    return F.normalize(flat @ flat.T, dim=1)
