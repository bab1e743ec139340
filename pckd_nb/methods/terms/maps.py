r"""Loss terms that compare feature maps, and the modules that are trained for them.

The methods are FitNet, NST, FSP, AB, FT, KDSVD, SRRL, SimKD, OFD, CAT-KD and WKD-F.

In the shapes, B is the number of images in the batch, C the number of channels, and H and W are height and width. In
the equations, the index s means student and t means teacher. F is a feature map.

A loss function takes one pair of maps, or one pair of neighbouring maps. Methods with several pairs sum over them. The
functions compute in float32 or float64, also inside `torch.autocast`. The teacher's tensors get no gradient.
Non-finite values of the student give a non-finite loss. The functions do not multiply by the weight of a method,
unless the docstring says so.

A module that depends on resolutions takes shapes (C, H, W). All modules are created with the usual initialization of
PyTorch. Their parameters are trained with the student unless the docstring says otherwise.

"The comparison in the CRD paper" is that of Tian et al., arXiv 1910.10699, with the code in HobbitLong/RepDistiller.

Examples
--------
>>> import torch
>>> from pckd_nb.methods.terms import maps
>>> regressor = maps.Regressor((16, 8, 8), (32, 4, 4))
>>> regressed = regressor(torch.rand(2, 16, 8, 8))
>>> tuple(regressed.shape)
(2, 32, 4, 4)
>>> maps.hint_loss(regressed, regressed).item()
0.0
"""

import math
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...tensor_checks import check_same_shape, check_whole_number
from .numerics import full_precision, unit_vectors

Shape = tuple[int, int, int]  # (C, H, W) of a feature map

FT_SLOPE = 0.1  # of LeakyReLU in paraphraser and translator
SVD_VECTORS = 4  # vectors of the student that may match the teacher's first one
OFD_RARE = 0.001  # channels with a smaller share of negative values have the margin −3·|scale|
WKD_EPSILON = 1e-5  # in the standard deviation


def pool_to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return two feature maps at the resolution of the smaller one, by average pooling of the larger one.

    Parameters
    ----------
    a, b : Tensor of shape (B, C, H, W)
        C, H and W may differ.

    Returns
    -------
    a, b : Tensor of shape (B, C, H, W)
        With the same H and W.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import pool_to_smaller
    >>> [tuple(x.shape) for x in pool_to_smaller(torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 4))]
    [(2, 3, 4, 4), (2, 5, 4, 4)]
    """
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return _pooled(a, size), _pooled(b, size)


def level_weights(count: int, scale: float) -> list[float]:
    r"""Return the weights of the maps in AB and OFD.

    .. math::

        w_i = \mathrm{scale} \cdot 2^{\,i - n + 1}, \qquad i = 0, \ldots, n - 1

    The last map has the weight `scale`, and each map before it half the weight of the next one. The authors' code has
    the scale 3/1000 for AB and 1/1000 for OFD.

    Parameters
    ----------
    count : int, at least 1
        n, the number of maps.
    scale : float

    Returns
    -------
    list of float

    Raises
    ------
    TypeError
        If `count` is not a whole number.
    ValueError
        If `count` is less than 1.

    Examples
    --------
    >>> from pckd_nb.methods.terms.maps import level_weights
    >>> level_weights(3, 1.0)
    [0.25, 0.5, 1.0]
    """
    check_whole_number("count", count, 1)
    return [scale * 2.0 ** (i - count + 1) for i in range(count)]


# --- FitNet


class Regressor(nn.Module):
    r"""Convolution, BatchNorm and ReLU that bring a student's map to the shape of a teacher's map.

    h is the height or width of the student's map, and H that of the teacher's map.

    ===========  ====================================  ===========
    sizes        convolution                           result
    ===========  ====================================  ===========
    h = 2H       3×3, stride 2, padding 1              H
    2h = H       transposed, 4×4, stride 2, padding 1  H
    h ≥ H        kernel 1 + h − H, no padding          H
    other sizes  3×3, padding 1                        h
    ===========  ====================================  ===========

    A case must fit both height and width, and the first case that fits is used. In the last case, the loss pools the
    teacher's map to the student's size. This case is from the repository of SimKD. RepDistiller does not have it.

    The trap: FitNet has the regressor also if both shapes are the same. It is then a 1×1 convolution.

    Parameters
    ----------
    student_shape, teacher_shape : (C, H, W)
    relu : bool
        Whether the last layer is a ReLU. AB leaves it out.

    References
    ----------
    Romero et al., "FitNets", arXiv 1412.6550. The layers are those of HobbitLong/RepDistiller and DefangChen/SimKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import Regressor
    >>> tuple(Regressor((4, 7, 7), (6, 4, 4))(torch.rand(2, 4, 7, 7)).shape)
    (2, 6, 4, 4)
    """

    def __init__(self, student_shape: Shape, teacher_shape: Shape, relu: bool = True):
        super().__init__()
        (channels, *student), (teacher_channels, *teacher) = student_shape, teacher_shape
        sizes = list(zip(student, teacher, strict=True))
        self.conv: nn.Module
        if all(h == 2 * target for h, target in sizes):
            self.conv = nn.Conv2d(channels, teacher_channels, 3, stride=2, padding=1)
        elif all(2 * h == target for h, target in sizes):
            self.conv = nn.ConvTranspose2d(channels, teacher_channels, 4, stride=2, padding=1)
        elif all(h >= target for h, target in sizes):
            kernel = 1 + student[0] - teacher[0], 1 + student[1] - teacher[1]
            self.conv = nn.Conv2d(channels, teacher_channels, kernel)
        else:
            self.conv = nn.Conv2d(channels, teacher_channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(teacher_channels)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, student_map: Tensor) -> Tensor:
        """Return the regressed map.

        Parameters
        ----------
        student_map : Tensor of shape (B, C, H, W)

        Returns
        -------
        Tensor of shape (B, C_t, H, W)
        """
        return self.relu(self.bn(self.conv(student_map)))


@full_precision
def hint_loss(regressed: Tensor, teacher_map: Tensor) -> Tensor:
    r"""Return the loss of FitNet.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( \left( r(F_s) - F_t \right)^2 \right)

    r is a `Regressor`. The mean is over all entries. The hint is the map of the second stage, and the total is
    CE + 100·term. The paper trains in two stages. Here, as in the comparison in the CRD paper, everything is trained in
    one stage.

    Parameters
    ----------
    regressed : Tensor of shape (B, C, H, W)
        r(F_s).
    teacher_map : Tensor of shape (B, C, H, W)
        It is pooled to the size of `regressed` if the sizes differ.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Romero et al., "FitNets", arXiv 1412.6550. The weight is from HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import hint_loss
    >>> hint_loss(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 8, 8), 2.0)).item()
    4.0
    """
    return F.mse_loss(regressed, _teacher_like(regressed, teacher_map))


# --- NST


@full_precision
def neuron_selectivity(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    r"""Return the loss of NST for one pair of maps.

    .. math::

        \mathrm{term} = \overline{k(x_t, x_t')} + \overline{k(x_s, x_s')} - 2 \, \overline{k(x_s, x_t)}, \qquad
        k(x, y) = (x \cdot y)^2

    x is one channel of one image, flattened and divided by its L2 norm. A bar is the mean over the images and over all
    pairs of channels. The term is the maximum mean discrepancy between the channels of student and teacher, with a
    polynomial kernel. The larger map is pooled to the size of the smaller one first. The number of channels may differ.
    The loss is the sum over the stages, and the total is CE + 50·loss.

    There are two traps. The term k(x_t, x_t') changes the value of the loss, but not its gradient. And a channel that
    is 0 everywhere stays 0.

    Parameters
    ----------
    student_map, teacher_map : Tensor of shape (B, C, H, W)

    Returns
    -------
    scalar Tensor
        At least 0, up to rounding.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If batch sizes, dtypes or devices do not match.

    References
    ----------
    Huang and Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity Transfer", arXiv 1707.01219. The
    weight is from HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import neuron_selectivity
    >>> x = torch.rand(2, 3, 4, 4)
    >>> abs(neuron_selectivity(2 * x, x).item()) < 1e-6  # the norm of a channel does not matter
    True
    """
    _check_maps(student_map, teacher_map, same_channels=False)
    student, teacher = (unit_vectors(x.flatten(2), 2) for x in pool_to_smaller(student_map, teacher_map.detach()))

    def kernel_mean(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT).square().mean()

    return kernel_mean(teacher, teacher) + kernel_mean(student, student) - 2 * kernel_mean(student, teacher)


# --- FSP


@full_precision
def fsp_matrix(earlier: Tensor, later: Tensor) -> Tensor:
    r"""Return the FSP matrix of two maps of the same network.

    .. math::

        G_{c d} = \frac{1}{H W} \sum_p F^{\mathrm{later}}_{c p} \, F^{\mathrm{earlier}}_{d p}

    p is a position. The larger map is pooled to the size of the smaller one first. The trap: rows belong to the later
    map and columns to the earlier one, as in RepDistiller.

    Parameters
    ----------
    earlier, later : Tensor of shape (B, C, H, W)
        C, H and W may differ.

    Returns
    -------
    Tensor of shape (B, C_later, C_earlier)

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If batch sizes, dtypes or devices do not match.

    References
    ----------
    Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import fsp_matrix
    >>> fsp_matrix(torch.ones(1, 2, 8, 8), torch.ones(1, 1, 4, 4)).tolist()
    [[[1.0, 1.0]]]
    """
    _check_maps(earlier, later, same_channels=False)
    earlier, later = (x.flatten(2) for x in pool_to_smaller(earlier, later))
    return later @ earlier.mT / later.shape[2]


@full_precision
def fsp_loss(student_earlier: Tensor, student_later: Tensor, teacher_earlier: Tensor, teacher_later: Tensor) -> Tensor:
    r"""Return the loss of FSP for two neighbouring maps.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( (G_s - G_t)^2 \right)

    G is the `fsp_matrix`. The mean is over the images and over both axes of G. The loss is the sum over the pairs of
    neighbours. In the comparison in the CRD paper, the first map is the output of the first convolution. The body of
    the student is trained for 30 epochs on this loss alone. Then it is trained for 240 epochs on the cross-entropy
    alone.

    The trap: student and teacher need the same number of channels. So wrn_40_2 → wrn_40_1 is not possible.

    Parameters
    ----------
    student_earlier, student_later : Tensor of shape (B, C, H, W)
    teacher_earlier, teacher_later : Tensor of shape (B, C, H, W)
        With as many channels as the student's maps.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Yim et al., "A Gift from Knowledge Distillation", CVPR 2017. The epochs are those of HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import fsp_loss
    >>> a, b = torch.rand(2, 3, 8, 8), torch.rand(2, 5, 4, 4)
    >>> fsp_loss(a, b, a, b).item()
    0.0
    """
    _check_maps(student_earlier, teacher_earlier)
    _check_maps(student_later, teacher_later)
    teacher = fsp_matrix(teacher_earlier.detach(), teacher_later.detach())
    return F.mse_loss(fsp_matrix(student_earlier, student_later), teacher)


# --- AB


def ab_connector(student_shape: Shape, teacher_shape: Shape) -> nn.Module:
    """Create the module that AB applies to a map of the student.

    Parameters
    ----------
    student_shape, teacher_shape : (C, H, W)

    Returns
    -------
    nn.Module
        nn.Identity if the shapes are the same, and a `Regressor` without ReLU otherwise. Only the loss of AB uses it,
        not the trained student.

    Examples
    --------
    >>> from pckd_nb.methods.terms.maps import ab_connector
    >>> ab_connector((16, 8, 8), (16, 8, 8))
    Identity()
    """
    if tuple(student_shape) == tuple(teacher_shape):
        return nn.Identity()
    return Regressor(student_shape, teacher_shape, relu=False)


@full_precision
def activation_boundary(connected: Tensor, teacher_map: Tensor, margin: float = 1.0) -> Tensor:
    r"""Return the loss of AB for one pair of maps.

    .. math::

        \mathrm{term} = \frac{1}{B} \sum \begin{cases}
            \max(0,\; m + F_s)^2 & \text{if } F_t \le 0 \\
            \max(0,\; m - F_s)^2 & \text{if } F_t > 0
        \end{cases}

    The maps are taken before the last ReLU of a stage, so they can be negative. m is the margin. The sum is over all
    entries. The loss is Σ w_i·term_i with w = `level_weights` (n, 3/1000). In the comparison in the CRD paper, the body
    of the student and the connectors are trained for 30 epochs on this loss alone. Then the student is trained on the
    cross-entropy alone.

    The traps: the maps must be taken before the ReLU, and the sum is not a mean. So it grows with the size of the maps.

    Parameters
    ----------
    connected : Tensor of shape (B, C, H, W)
        The student's map after the `ab_connector`.
    teacher_map : Tensor of shape (B, C, H, W)
        It is pooled to the size of `connected` if the sizes differ.
    margin : float
        m.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", arXiv
    1811.03233. The weights are from HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import activation_boundary
    >>> student = torch.tensor([-2.0, 0.0, 0.0, 2.0]).reshape(1, 4, 1, 1)
    >>> teacher = torch.tensor([-1.0, -1.0, 1.0, 1.0]).reshape(1, 4, 1, 1)
    >>> activation_boundary(student, teacher).item()  # two entries are on the boundary
    2.0
    """
    teacher = _teacher_like(connected, teacher_map)
    distance = torch.where(teacher > 0, margin - connected, margin + connected)
    return distance.relu().square().sum() / len(connected)


# --- FT


class Paraphraser(nn.Module):
    """Autoencoder of FT for the teacher's last feature map. The output of its encoder is called the factor.

    The encoder has three 3×3 convolutions, from C to C, C/2 and C/2 channels. The decoder has three transposed 3×3
    convolutions, back to C/2, C and C channels. Every layer is followed by LeakyReLU with slope 0.1, also the last one
    of the decoder. There is no BatchNorm.

    It is trained before the student: for 30 epochs, with the mean squared error between `forward(x)` and x. Then it is
    frozen. The learning rate of this stage is 0.01 for students that are ResNets or wide ResNets.

    Parameters
    ----------
    channels : int
        C, the number of channels of the teacher's map.
    ratio : float
        Channels of the factor, divided by those of the map.

    References
    ----------
    Kim, Park and Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", arXiv 1802.04977. The
    layers are those of HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import Paraphraser
    >>> paraphraser, x = Paraphraser(6), torch.rand(2, 6, 8, 8)
    >>> tuple(paraphraser.encoder(x).shape), tuple(paraphraser(x).shape)
    ((2, 3, 8, 8), (2, 6, 8, 8))
    """

    def __init__(self, channels: int, ratio: float = 0.5):
        super().__init__()
        factor = _factor_channels(channels, ratio)
        self.encoder = _convolutions(nn.Conv2d, channels, channels, factor, factor)
        self.decoder = _convolutions(nn.ConvTranspose2d, factor, factor, channels, channels)

    def forward(self, teacher_map: Tensor) -> Tensor:
        """Return the reconstructed map. `encoder(teacher_map)` is the factor.

        Parameters
        ----------
        teacher_map : Tensor of shape (B, C, H, W)

        Returns
        -------
        Tensor of shape (B, C, H, W)
        """
        return self.decoder(self.encoder(teacher_map))


class Translator(nn.Module):
    """Encoder of FT for the student's last feature map. Its output is the student's factor.

    It has three 3×3 convolutions with bias, from C_s to C_s, C_t/2 and C_t/2 channels. Every convolution is followed by
    BatchNorm and LeakyReLU with slope 0.1. It is trained with the student.

    Parameters
    ----------
    student_channels, teacher_channels : int
        C_s and C_t.
    ratio : float
        Channels of the factor, divided by those of the teacher's map.

    References
    ----------
    Kim, Park and Kwak, arXiv 1802.04977. The layers are those of HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import Translator
    >>> tuple(Translator(4, 8)(torch.rand(2, 4, 8, 8)).shape)
    (2, 4, 8, 8)
    """

    def __init__(self, student_channels: int, teacher_channels: int, ratio: float = 0.5):
        super().__init__()
        factor = _factor_channels(teacher_channels, ratio)
        self.encoder = _convolutions(nn.Conv2d, student_channels, student_channels, factor, factor, batch_norm=True)

    def forward(self, student_map: Tensor) -> Tensor:
        """Return the student's factor.

        Parameters
        ----------
        student_map : Tensor of shape (B, C_s, H, W)

        Returns
        -------
        Tensor of shape (B, C_t/2, H, W)
        """
        return self.encoder(student_map)


@full_precision
def factor_transfer(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    r"""Return the loss of FT.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( \left| q(\varphi_s) - q(\varphi_t) \right| \right)

    φ are the factors: the outputs of `Translator` and of `Paraphraser.encoder`. q(φ) of an image is the mean over the
    channels of φ², flattened to a vector and divided by its L2 norm. The larger factor is pooled to the size of the
    smaller one first. The mean is over the images and the positions. The total is CE + 200·term.

    The traps: the paper compares the factors, divided by their L2 norm, and not q(φ). And the weight belongs to the
    mean, not to a sum.

    Parameters
    ----------
    student_factor, teacher_factor : Tensor of shape (B, C, H, W)
        C, H and W may differ.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If batch sizes, dtypes or devices do not match.

    References
    ----------
    Kim, Park and Kwak, arXiv 1802.04977. The form and the weight are those of HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import factor_transfer
    >>> x = torch.rand(2, 3, 4, 4)
    >>> factor_transfer(x, -x).item()  # the sign does not matter
    0.0
    """
    _check_maps(student_factor, teacher_factor, same_channels=False)
    factors = pool_to_smaller(student_factor, teacher_factor.detach())
    student, teacher = (unit_vectors(factor.square().mean(1).flatten(1)) for factor in factors)
    return F.l1_loss(student, teacher)


# --- KDSVD


@full_precision
def first_singular_vector(teacher_map: Tensor, reference: Tensor | None = None) -> Tensor:
    r"""Return the first right singular vector of the map of every image.

    The map of an image is taken as a matrix with one row per position and one column per channel. The vector v has one
    value per channel. It is the direction in which the rows have the largest sum of squares.

    The trap: v and −v are both singular vectors, and the loss of KDSVD depends on this choice. The authors' code takes
    what the linear algebra library returns. Here, the sum of v is positive. For maps after a ReLU, all entries of v
    have the same sign, so this choice is stable.

    Parameters
    ----------
    teacher_map : Tensor of shape (B, C, H, W)
    reference : Tensor of shape (B, C), optional
        If given, the sign of v is the one for which the inner product of v and the reference is positive.

    Returns
    -------
    Tensor of shape (B, C)
        Vectors of L2 norm 1, without gradient.

    Raises
    ------
    TypeError
        If `teacher_map` is not a tensor.
    ValueError
        If its shape or dtype does not fit.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import first_singular_vector
    >>> x = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    >>> [round(value, 4) for value in first_singular_vector(x)[0].tolist()]
    [0.6, 0.8]
    """
    check_same_shape("feature maps", teacher_map, teacher_map, dimensions=4)
    _, vectors = _eigenvectors(_channel_products(teacher_map.detach()))
    vector = vectors[:, :, -1]
    direction = vector.sum(1) if reference is None else (vector * reference.detach()).sum(1)
    return torch.where(direction[:, None] < 0, -vector, vector)


@full_precision
def matching_singular_vector(student_map: Tensor, teacher_vector: Tensor) -> Tensor:
    r"""Return the right singular vector of the student that is most similar to the teacher's first one.

    It is chosen among the first four right singular vectors of the student's map, see `first_singular_vector`: the one
    with the largest absolute cosine. Its sign is the one for which the cosine is positive.

    The trap: the gradient of a singular vector contains 1/(λ_i − λ_j), where λ are the squared singular values. It is
    large if two of them are close. Where two of them are equal, this part of the gradient is set to 0 here.

    Parameters
    ----------
    student_map : Tensor of shape (B, C, H, W)
    teacher_vector : Tensor of shape (B, C)

    Returns
    -------
    Tensor of shape (B, C)
        Vectors of L2 norm 1. There is a first derivative, but no second one.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import first_singular_vector, matching_singular_vector
    >>> x = torch.rand(2, 3, 4, 4)
    >>> vector = first_singular_vector(x)
    >>> torch.allclose(matching_singular_vector(x, vector), vector)
    True
    """
    check_same_shape("feature maps", student_map, student_map, dimensions=4)
    check_same_shape("singular vectors", teacher_vector, student_map.detach().flatten(2)[:, :, 0])
    products = _channel_products(student_map)
    values, vectors = _eigenvectors(products.detach())
    count = min(SVD_VECTORS, student_map.shape[1], student_map[0, 0].numel())
    cosines = (teacher_vector.detach()[:, None, :] @ vectors[:, :, -count:])[:, 0]
    chosen = cosines.abs().argmax(1, keepdim=True)
    sign = torch.where(cosines.gather(1, chosen) < 0, -1, 1)
    chosen = chosen + values.shape[1] - count
    value = values.gather(1, chosen)
    vector = sign * vectors.gather(2, chosen[:, None, :].expand(-1, vectors.shape[1], 1))[:, :, 0]

    # First-order perturbation of an eigenvector v of A = `products`, with the eigenvalue λ:
    # dv = Σ_j v_j (v_j · dA v) / (λ − λ_j), over all j with λ_j ≠ λ. The value of dA is 0, its gradient is that of A.
    gaps = value - values
    rounding = torch.finfo(values.dtype).eps * values.abs().amax(1, keepdim=True)
    equal = gaps.abs() <= rounding
    inverse = (1 / gaps.masked_fill(equal, 1)).masked_fill(equal, 0)
    change = (products - products.detach()) @ vector[:, :, None]
    return vector + (vectors @ (inverse[:, :, None] * (vectors.mT @ change)))[:, :, 0]


@full_precision
def kdsvd_losses(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], references: Sequence[Tensor] | None = None
) -> Tensor:
    r"""Return the losses of KDSVD, one per pair of neighbouring stages.

    .. math::

        \mathrm{term}_i = \frac{1}{B} \sum \left( D_{s,i} - D_{t,i} \right)^2, \qquad
        D_i[c, d] = \exp\left( -\frac{\left( v_i[c] - v_{i-1}[d] \right)^2}{8} \right)

    v_i is a singular vector of stage i: `first_singular_vector` for the teacher, and `matching_singular_vector` for the
    student. The sum is over images, c and d. The loss is the sum of all terms. No weight was published for it in
    RepDistiller. mdistiller has the weight 1, for another form of the loss.

    The trap: the loss depends on the signs of the teacher's vectors, see `first_singular_vector`. If the authors' code
    happens to mix the signs, its loss has another value.

    Parameters
    ----------
    student_maps, teacher_maps : sequence of Tensor of shape (B, C, H, W)
        One map per stage, at least two. Student and teacher need the same C. H and W may differ.
    references : sequence of Tensor of shape (B, C), optional
        One per stage, for the signs of the teacher's vectors.

    Returns
    -------
    Tensor of shape (stages − 1,)
        At least 0.

    Raises
    ------
    TypeError
        If a map is not a tensor.
    ValueError
        If shapes, dtypes, devices or numbers of maps do not match.

    References
    ----------
    Lee, Kim and Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018. The form
    is that of HobbitLong/RepDistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import kdsvd_losses
    >>> maps = [torch.rand(2, 4, 8, 8), torch.rand(2, 6, 4, 4), torch.rand(2, 8, 4, 4)]
    >>> bool((kdsvd_losses(maps, maps) < 1e-9).all())
    True
    """
    if len(student_maps) != len(teacher_maps) or len(student_maps) < 2:
        counts = f"{len(student_maps)} and {len(teacher_maps)}"
        raise ValueError(f"KDSVD compares two or more maps of both networks, got {counts}")
    for student_map, teacher_map in zip(student_maps, teacher_maps, strict=True):
        _check_maps(student_map, teacher_map)
    signs: Sequence[Tensor | None] = [None] * len(teacher_maps) if references is None else references
    teacher = [first_singular_vector(x, reference) for x, reference in zip(teacher_maps, signs, strict=True)]
    student = [matching_singular_vector(x, v) for x, v in zip(student_maps, teacher, strict=True)]

    def relations(vectors: list[Tensor]) -> list[Tensor]:
        neighbours = zip(vectors[1:], vectors, strict=False)
        return [torch.exp(-((v[:, :, None] - before[:, None, :]).square()) / 8) for v, before in neighbours]

    pairs = zip(relations(student), relations(teacher), strict=True)
    return torch.stack([(a - b).square().sum() / len(a) for a, b in pairs])


# --- SRRL


class SRRLConnector(nn.Module):
    """1×1 convolution without bias, BatchNorm and ReLU: it maps the student's features to those of the teacher.

    Parameters
    ----------
    student_channels, teacher_channels : int

    References
    ----------
    Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021. The layers are
    those of the authors' repository jingyang2017/KD_SRRL.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import SRRLConnector
    >>> connector = SRRLConnector(4, 8)
    >>> tuple(connector(torch.rand(2, 4, 6, 6)).shape), tuple(connector(torch.rand(2, 4)).shape)
    ((2, 8, 6, 6), (2, 8))
    """

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.conv0 = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(teacher_channels)

    def forward(self, student: Tensor) -> Tensor:
        """Return the connected map or features.

        Parameters
        ----------
        student : Tensor of shape (B, C, H, W) or (B, C)

        Returns
        -------
        Tensor of shape (B, C_t, H, W) or (B, C_t)
        """
        if student.ndim == 2:
            return self(student[:, :, None, None])[:, :, 0, 0]
        return self.bn0(self.conv0(student)).relu()


@full_precision
def srrl_losses(
    connected: Tensor,
    teacher: Tensor,
    teacher_logits: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of SRRL.

    .. math::

        L_{\mathrm{feature}} = \mathrm{mean}\left( (g_s - f_t)^2 \right), \qquad
        L_{\mathrm{classifier}} = \mathrm{mean}\left( (W_t g_s + b_t - z_t)^2 \right)

    g_s is the mean over the positions of the student's map after the `SRRLConnector`. f_t are the penultimate features
    of the teacher, and W_t and b_t its last layer. The term of the method is L_feature + L_classifier. There are two
    forms:

    - The authors apply the connector to the student's last map. The total is CE + term. They published it for ImageNet.
    - The repository of SimKD applies the connector to the penultimate features, for CIFAR-100. The total is
      CE + KD + term, where KD has the temperature 4 and the weight 1.

    The traps: the two forms are different functions, because of BatchNorm and ReLU. And the gradient goes through the
    teacher's last layer, but does not change it.

    Parameters
    ----------
    connected : Tensor of shape (B, C_t, H, W) or (B, C_t)
        The output of the connector.
    teacher : Tensor of shape (B, C_t, H, W) or (B, C_t)
        The teacher's last map, or its penultimate features. The size may differ from that of `connected`.
    teacher_logits : Tensor of shape (B, classes)
        z_t.
    teacher_weight : Tensor of shape (classes, C_t)
        W_t.
    teacher_bias : Tensor of shape (classes,), or None
        b_t.

    Returns
    -------
    feature, classifier : scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning", ICLR 2021. The weights are
    from jingyang2017/KD_SRRL and DefangChen/SimKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import srrl_losses
    >>> features, layer = torch.rand(2, 8), torch.nn.Linear(8, 5)
    >>> [round(term.item(), 6) for term in srrl_losses(features, features, layer(features), layer.weight, layer.bias)]
    [0.0, 0.0]
    """
    student_features, teacher_features = _spatial_mean(connected), _spatial_mean(teacher).detach()
    check_same_shape("features", student_features, teacher_features)
    logits = reused_logits(student_features, teacher_weight, teacher_bias)
    check_same_shape("logits", logits, teacher_logits)
    return F.mse_loss(student_features, teacher_features), F.mse_loss(logits, teacher_logits.detach())


@full_precision
def reused_logits(features: Tensor, teacher_weight: Tensor, teacher_bias: Tensor | None) -> Tensor:
    """Return the logits that the teacher's frozen last layer computes from the student's features.

    SRRL uses them in its loss. In SimKD, they are the prediction at test time.

    Parameters
    ----------
    features : Tensor of shape (B, C_t, H, W) or (B, C_t)
        After the connector or projector. A map is averaged over its positions.
    teacher_weight : Tensor of shape (classes, C_t)
    teacher_bias : Tensor of shape (classes,), or None

    Returns
    -------
    Tensor of shape (B, classes)

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes do not match.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import reused_logits
    >>> reused_logits(torch.ones(1, 2, 4, 4), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([0.0, 1.0])).tolist()
    [[3.0, 8.0]]
    """
    features = _spatial_mean(features)
    if not isinstance(teacher_weight, Tensor):
        raise TypeError(f"teacher_weight must be a tensor, got {type(teacher_weight).__name__}")
    if teacher_weight.ndim != 2 or teacher_weight.shape[1] != features.shape[1]:
        got = f"{tuple(teacher_weight.shape)} for {features.shape[1]} features"
        raise ValueError(f"teacher_weight must have shape (classes, features), got {got}")
    return F.linear(features, teacher_weight.detach(), None if teacher_bias is None else teacher_bias.detach())


# --- SimKD


@full_precision
def simkd_loss(projected: Tensor, teacher_map: Tensor) -> Tensor:
    r"""Return the loss of SimKD.

    .. math::

        L = \mathrm{mean}\left( \left( P(F_s) - F_t \right)^2 \right)

    P is `models.simkd.SimKDProjector`, and F are the last feature maps. The mean is over all entries. This is the
    total: there is no cross-entropy.

    The trap: the student's own last layer is not trained. Do not evaluate it.

    Parameters
    ----------
    projected : Tensor of shape (B, C_t, H, W)
        P(F_s).
    teacher_map : Tensor of shape (B, C_t, H, W)
        It is pooled to the size of `projected` if the sizes differ.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Chen et al., "Knowledge Distillation with the Reused Teacher Classifier", arXiv 2203.14001, and the authors'
    repository DefangChen/SimKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import simkd_loss
    >>> simkd_loss(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 8, 8), 2.0)).item()
    4.0
    """
    return F.mse_loss(projected, _teacher_like(projected, teacher_map))


# --- OFD


class OFDConnector(nn.Module):
    """1×1 convolution without bias and BatchNorm: it maps a student's map to the channels of the teacher's map.

    Parameters
    ----------
    student_channels, teacher_channels : int

    References
    ----------
    Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866. The layers are those of the
    authors' repository clovaai/overhaul-distillation.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import OFDConnector
    >>> tuple(OFDConnector(4, 8)(torch.rand(2, 4, 6, 6)).shape)
    (2, 8, 6, 6)
    """

    def __init__(self, student_channels: int, teacher_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(student_channels, teacher_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(teacher_channels)

    def forward(self, student_map: Tensor) -> Tensor:
        """Return the connected map.

        Parameters
        ----------
        student_map : Tensor of shape (B, C, H, W)

        Returns
        -------
        Tensor of shape (B, C_t, H, W)
        """
        return self.bn(self.conv(student_map))


@full_precision
def ofd_margin(scale: Tensor, shift: Tensor) -> Tensor:
    r"""Return the margins of OFD: for every channel, the expected value of the negative entries of the teacher's map.

    .. math::

        m = \begin{cases}
            \mu - |\sigma| \, \dfrac{\exp\left( -\mu^2 / 2\sigma^2 \right)}{\sqrt{2\pi} \, p} & \text{if } p > 0.001 \\
            -3 \, |\sigma| & \text{otherwise}
        \end{cases}, \qquad p = \Phi\left( -\frac{\mu}{|\sigma|} \right)

    σ and μ are scale and shift of the BatchNorm before the teacher's ReLU. After it, the values of a channel are
    roughly normal with mean μ and standard deviation \|σ\|. p is the probability of a negative value.

    The traps: σ can be negative. And μ and the other part nearly cancel for rare negative values, so the margins are
    computed in float64, on the CPU. Compute them once, before training.

    Parameters
    ----------
    scale, shift : Tensor of shape (C,)
        `weight` and `bias` of the BatchNorm layer.

    Returns
    -------
    Tensor of shape (C,)
        Without gradient. At most 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import ofd_margin
    >>> margin = ofd_margin(torch.tensor([1.0, -1.0, 1.0]), torch.tensor([0.0, 0.0, 9.0]))
    >>> [round(value, 4) for value in margin.tolist()]  # −√(2/π) twice. The third channel is almost never negative.
    [-0.7979, -0.7979, -3.0]
    """
    check_same_shape("scale and shift", scale, shift, dimensions=1)
    mean, deviation = shift.detach().cpu().double(), scale.detach().cpu().double().abs()
    p = torch.special.ndtr(-mean / deviation)
    density = torch.exp(-((mean / deviation).square()) / 2) / math.sqrt(2 * math.pi)
    return torch.where(p > OFD_RARE, mean - deviation * density / p, -3 * deviation).to(scale.dtype).to(scale.device)


@full_precision
def ofd_loss(connected: Tensor, teacher_map: Tensor, margin: Tensor) -> Tensor:
    r"""Return the loss of OFD for one pair of maps.

    .. math::

        \mathrm{term} = \frac{1}{B} \sum_{F_s > t \,\text{or}\, t > 0} (F_s - t)^2, \qquad t = \max(F_t, m)

    The maps are taken before the ReLU. m is the `ofd_margin` of the channel. So the student need not be exact where the
    teacher is negative: it may be anything below t. The sum is over entries. The loss is Σ w_i·term_i with
    w = `level_weights` (n, 1/1000), and the total is CE + loss.

    There are three traps:

    - The authors and mdistiller have the teacher in train mode, so that its BatchNorm uses the statistics of the batch.
      `baselines.OFD` has it in eval mode.
    - The sum is not a mean, so it grows with the size of the maps.
    - A teacher's map of another size is pooled to the student's size before the maximum with m, as in mdistiller. The
      authors' code has only equal sizes.

    Parameters
    ----------
    connected : Tensor of shape (B, C, H, W)
        F_s: the student's map after the `OFDConnector`.
    teacher_map : Tensor of shape (B, C, H, W)
        F_t.
    margin : Tensor of shape (C,)

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866. The weights are from the authors'
    repository clovaai/overhaul-distillation and from megvii-research/mdistiller.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import ofd_loss
    >>> student = torch.tensor([-5.0, 1.0, 1.0]).reshape(1, 1, 1, 3)
    >>> teacher = torch.tensor([-1.0, -1.0, 3.0]).reshape(1, 1, 1, 3)
    >>> ofd_loss(student, teacher, torch.tensor([-0.5])).item()  # 0 + 1.5² + 2²
    6.25
    """
    teacher = _teacher_like(connected, teacher_map)
    check_same_shape("margins", margin, teacher[0, :, 0, 0], dimensions=1)
    target = teacher.maximum(margin.detach()[:, None, None])
    counts = ~(connected <= target) | (target > 0)  # also where the student's value is NaN
    return (connected - target).square().where(counts, 0).sum() / len(connected)


# --- CAT-KD


@full_precision
def class_activation_maps(last_map: Tensor, classifier_weight: Tensor) -> Tensor:
    r"""Return the class activation maps: the last layer, applied at every position of the last feature map.

    .. math::

        A_{c p} = \sum_k W_{c k} F_{k p}

    p is a position. CAT-KD has this 1×1 convolution without bias in place of the last layer, in both networks. The
    logits are the means of the maps over the positions.

    The trap: there is no bias. That of a trained teacher is left out.

    Parameters
    ----------
    last_map : Tensor of shape (B, C, H, W)
        After the last ReLU, before pooling.
    classifier_weight : Tensor of shape (classes, C)

    Returns
    -------
    Tensor of shape (B, classes, H, W)

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Guo et al., "Class Attention Transfer Based Knowledge Distillation", arXiv 2304.12777.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import class_activation_maps
    >>> x, layer = torch.rand(2, 8, 4, 4), torch.nn.Linear(8, 5, bias=False)
    >>> cam = class_activation_maps(x, layer.weight)
    >>> torch.allclose(cam.mean((2, 3)), layer(x.mean((2, 3))), atol=1e-6)
    True
    """
    check_same_shape("feature maps", last_map, last_map, dimensions=4)
    check_same_shape("classifier_weight", classifier_weight, classifier_weight)
    if classifier_weight.shape[1] != last_map.shape[1]:
        got = f"{tuple(classifier_weight.shape)} for {last_map.shape[1]} channels"
        raise ValueError(f"classifier_weight must have shape (classes, channels), got {got}")
    return F.conv2d(last_map, classifier_weight[:, :, None, None])


@full_precision
def catkd_loss(student_cam: Tensor, teacher_cam: Tensor, resolution: int = 2, normalize: bool = False) -> Tensor:
    r"""Return the loss of CAT-KD.

    .. math::

        \mathrm{term} = \mathrm{mean}\left( (a_s - a_t)^2 \right)

    a are the `class_activation_maps`, pooled to r×r positions. With `normalize`, every map is divided by its L2 norm.
    The mean is over all entries. The total is CE + weight·term. The published settings for CIFAR-100 are:

    =================================  ======  ==  ==========
    teacher → student                  weight  r   normalized
    =================================  ======  ==  ==========
    resnet56 → resnet20                0.7     2   no
    resnet110 → resnet32               1.8     2   no
    resnet32x4 → resnet8x4             15      2   no
    wrn_40_2 → wrn_16_2                12      2   no
    wrn_40_2 → wrn_40_1                1.5     2   no
    vgg13 → vgg8                       4.5     2   no
    vgg13 → MobileNetV2                15      2   yes
    ResNet50 → MobileNetV2             40      2   yes
    resnet32x4 → ShuffleV1, ShuffleV2  600     4   yes
    wrn_40_2 → ShuffleV1               80      4   yes
    =================================  ======  ==  ==========

    The traps: the maps can be negative, because no ReLU follows. And they are pooled before they are normalized.

    Parameters
    ----------
    student_cam, teacher_cam : Tensor of shape (B, classes, H, W)
        H and W may differ.
    resolution : int, at least 1
        r.
    normalize : bool

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes, dtypes or devices do not match, or if `resolution` is less than 1.

    References
    ----------
    Guo et al., "Class Attention Transfer Based Knowledge Distillation", arXiv 2304.12777. The settings are from the
    authors' repository GzyAftermath/CAT-KD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import catkd_loss
    >>> cam = torch.rand(2, 5, 8, 8)
    >>> catkd_loss(3 * cam, cam, normalize=True).item() < 1e-9  # only the shape of a map matters
    True
    """
    _check_maps(student_cam, teacher_cam)
    check_whole_number("resolution", resolution, 1)
    pooled = [_pooled(cam, (resolution, resolution)).flatten(2) for cam in (student_cam, teacher_cam.detach())]
    student, teacher = (unit_vectors(cam, 2) for cam in pooled) if normalize else pooled
    return F.mse_loss(student, teacher)


# --- WKD-F


@full_precision
def wkdf_losses(regressed: Tensor, teacher_map: Tensor, grid: int = 1) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of WKD-F.

    .. math::

        L_{\mathrm{mean}} = \frac{1}{B g^2} \sum_{c, \mathrm{cells}} (\mu_s - \mu_t)^2, \qquad
        L_{\mathrm{deviation}} = \frac{1}{B g^2} \sum_{c, \mathrm{cells}} (\sigma_s - \sigma_t)^2

    The last maps are cut into g×g cells. μ is the mean of a channel in a cell, and σ = √(variance + 1e-5). Together the
    terms are the squared Wasserstein distance between two normal distributions with independent channels. The sums
    also run over the images.

    The term of the method is ratio·L_mean + L_deviation, and the total is CE + weight·term. The weight decreases in the
    last epochs, see `logits.weight_in_epoch`. Nothing was published for resnet56 → resnet20. Two pairs have these
    settings:

    ======================  ======  ==  =====  =================  ================
    teacher → student       weight  g   ratio  weight with WKD-L  ratio with WKD-L
    ======================  ======  ==  =====  =================  ================
    resnet32x4 → resnet8x4  0.08    1   4      0.08               8
    wrn_40_2 → ShuffleV1    0.3     4   3      0.5                3
    ======================  ======  ==  =====  =================  ================

    The traps: the divisor of the variance is the number of positions minus 1, so a cell needs two or more. The terms
    compare standard deviations, not variances. And they are sums over the channels.

    Parameters
    ----------
    regressed : Tensor of shape (B, C, H, W)
        The student's last map after a `Regressor`.
    teacher_map : Tensor of shape (B, C, H, W)
        It is pooled to the size of `regressed` if the sizes differ.
    grid : int, at least 1
        g.

    Returns
    -------
    mean, deviation : scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes, dtypes or devices do not match, if the map cannot be cut into equal cells, or if a cell has only one
        position.

    References
    ----------
    Lv, Yang and Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", arXiv
    2412.08139. The weights are from the authors' repository JiamingLv/WKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.maps import wkdf_losses
    >>> x = torch.rand(2, 3, 4, 4)
    >>> [round(term.item(), 4) for term in wkdf_losses(x + 1, x)]  # 3 channels, each with the mean 1 larger
    [3.0, 0.0]
    """
    check_whole_number("grid", grid, 1)
    teacher = _teacher_like(regressed, teacher_map)
    height, width = regressed.shape[2:]
    if height % grid or width % grid or height * width == grid**2:
        got = f"a map of {height}×{width}"
        raise ValueError(f"WKD-F cuts a map into {grid}×{grid} equal cells of two or more positions, got {got}")

    def cells(x: Tensor) -> Tensor:
        x = x.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))  # (B, C, g, rows, g, columns)
        return x.transpose(3, 4).flatten(4)

    student, teacher = cells(regressed), cells(teacher)
    means = (student.mean(4) - teacher.mean(4)).square().sum()
    deviations = (_deviation(student) - _deviation(teacher)).square().sum()
    count = len(regressed) * grid**2
    return means / count, deviations / count


def _deviation(cells: Tensor) -> Tensor:
    return (cells.var(4) + WKD_EPSILON).sqrt()


def _check_maps(student: Tensor, teacher: Tensor, same_channels: bool = True) -> None:
    """Check two feature maps, whose sizes may differ."""
    for maps in (student, teacher):
        check_same_shape("feature maps", maps, maps, dimensions=4)
    axes = 2 if same_channels else 1
    if student.shape[:axes] != teacher.shape[:axes]:
        what = "images or channels" if same_channels else "images"
        got = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"feature maps must have the same number of {what}, got shapes {got}")
    if student.device != teacher.device:
        raise ValueError(f"feature maps are on different devices: {student.device} and {teacher.device}")


def _teacher_like(student: Tensor, teacher: Tensor) -> Tensor:
    """Check two maps, and return the teacher's at the size of the student's, without gradient."""
    _check_maps(student, teacher)
    height, width = student.shape[2:]
    return _pooled(teacher.detach(), (height, width))


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)


def _spatial_mean(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"features must be tensors, got {type(x).__name__}")
    return x.mean((2, 3)) if x.ndim == 4 else x


def _factor_channels(channels: int, ratio: float) -> int:
    return max(1, int(channels * ratio))


def _convolutions(kind: type[nn.Module], *channels: int, batch_norm: bool = False) -> nn.Sequential:
    """Return 3×3 convolutions, each with LeakyReLU after it. They are called conv0, conv1 and so on."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (before, after) in enumerate(zip(channels, channels[1:], strict=False)):
        layers[f"conv{i}"] = kind(before, after, 3, padding=1)
        if batch_norm:
            layers[f"bn{i}"] = nn.BatchNorm2d(after)
        layers[f"relu{i}"] = nn.LeakyReLU(FT_SLOPE)
    return nn.Sequential(layers)


def _channel_products(maps: Tensor) -> Tensor:
    """Return the inner products of all pairs of channels, (B, C, C). Its eigenvectors are right singular vectors."""
    flat = maps.flatten(2)
    return flat @ flat.mT


def _eigenvectors(products: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (B, C), ascending, and eigenvectors (B, C, C). Non-finite matrices do not raise an error."""
    values, vectors = torch.linalg.eigh(products.nan_to_num(0, 0, 0))
    return values, vectors
