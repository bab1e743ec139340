r"""The loss terms of PCKD as functions of tensors.

In the shapes, B is the number of images, V the number of views per image, C the number of categories (classes), and D
the number of penultimate features. A row is one view of one image. N = V·B is the number of rows. In the equations, the
index s means student, t means teacher, and i is a row.

Every function except `category_center_alignment` returns one value per row. `methods.PCKD` multiplies these values by
the sample weights and averages them.

Inputs in float16 or bfloat16 are converted to float32. Inputs in float64 give a loss in float64.

Every function checks types, shapes, dtypes and devices. It does not check the values in the tensors, because the
program would have to wait for the GPU to read them. Non-finite inputs give a non-finite loss, and the training loop
reports it.

References
----------
Ding et al., "Preview-based Category Contrastive Learning for Knowledge Distillation", arXiv 2410.14143.

Examples
--------
>>> import torch
>>> import pckd_nb as pckd
>>> logits = torch.tensor([[2.0, 0.0, -2.0]])
>>> pckd.losses.distillation_kl(logits, logits).item()
0.0
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

from .deprecation import renamed
from .tensor_checks import FLOAT_DTYPES as FLOAT_DTYPES
from .tensor_checks import TEMPERATURE_RANGE as TEMPERATURE_RANGE
from .tensor_checks import check_labels, check_same_shape, check_temperature


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Return the distillation loss of Hinton et al.

    .. math::

        L_{\mathrm{KD},i} = T^2 \cdot \mathrm{KL}\left(
            \mathrm{softmax}(z_{t,i} / T) \,\middle\|\, \mathrm{softmax}(z_{s,i} / T)
        \right)

    z_s and z_t are the logits. The factor T² keeps the size of the gradient about the same at every temperature.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
    temperature : float, in [1e-6, 1e6]
        T. A higher temperature makes both distributions more uniform.

    Returns
    -------
    Tensor of shape (B,)
        In nats, at least 0.

    Raises
    ------
    TypeError
        If the logits are not tensors, or if `temperature` is not a number.
    ValueError
        If shapes, dtypes or devices of the logits do not match, or if `temperature` is outside its range.

    References
    ----------
    Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> student = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    >>> teacher = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> kl = pckd.losses.distillation_kl(student, teacher)
    >>> [round(value, 2) for value in kl.tolist()]  # the networks agree on the first image only
    [0.0, 4.3]
    """
    check_same_shape("logits", student_logits, teacher_logits)
    check_temperature("temperature", temperature)
    log_p_student = F.log_softmax(_at_least_float32(student_logits) / temperature, dim=1)
    log_p_teacher = F.log_softmax(_at_least_float32(teacher_logits) / temperature, dim=1)
    divergence = F.kl_div(log_p_student, log_p_teacher, reduction="none", log_target=True).sum(1)
    return temperature**2 * divergence


def feature_alignment(projected_student_features: Tensor, teacher_features: Tensor) -> Tensor:
    r"""Return the feature alignment loss.

    .. math::

        L_{\mathrm{FA},i} = 2 - 2 \cos\left( g(f_{s,i}), f_{t,i} \right)

    f_s and f_t are the penultimate features. The projector g maps f_s to the number of features of the teacher, D_t.
    The loss is the squared distance between the two vectors after both are normalised to length 1.

    Parameters
    ----------
    projected_student_features : Tensor of shape (N, D_t)
        g(f_s): the student's features after the projector.
    teacher_features : Tensor of shape (N, D_t)
        f_t.

    Returns
    -------
    Tensor of shape (N,)
        In [0, 4]. Exactly 2 if all features of a row are 0 in one of the tensors.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match.

    References
    ----------
    Ding et al., arXiv 2410.14143, the term L_FA.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> student = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    >>> teacher = torch.tensor([[5.0, 0.0], [7.0, 0.0], [4.0, 0.0]])
    >>> pckd.losses.feature_alignment(student, teacher).tolist()  # same, perpendicular and opposite direction
    [0.0, 2.0, 4.0]
    """
    check_same_shape("features", projected_student_features, teacher_features)
    student, teacher = _at_least_float32(projected_student_features), _at_least_float32(teacher_features)
    return 2 - 2 * F.cosine_similarity(student, teacher, dim=1)


def category_center_alignment(
    student_weight: Tensor, student_bias: Tensor | None, teacher_weight: Tensor, teacher_bias: Tensor | None
) -> Tensor:
    r"""Return the category center alignment loss.

    .. math::

        L_{\mathrm{CA}} = \mathrm{mean}\left( \left( [W_s \mid b_s] - [W_t \mid b_t] \right)^2 \right)

    W and b are the weight and the bias of the last layer. Row c of W is the center of category c. [W | b] is the matrix
    W with b as an additional column. The mean is over all entries of this matrix. Both networks need the same number of
    features D. For other pairs of networks, `methods.PCKD` leaves this term out.

    Parameters
    ----------
    student_weight, teacher_weight : Tensor of shape (C, D)
    student_bias, teacher_bias : Tensor of shape (C,), or None
        None if the last layer has no bias. Give both or neither.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match, or if only one bias is given.

    References
    ----------
    Ding et al., arXiv 2410.14143, the term L_CA.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> weight, bias = torch.zeros(10, 64), torch.zeros(10)
    >>> pckd.losses.category_center_alignment(weight, bias, weight + 1, bias + 1).item()
    1.0
    """
    if (student_bias is None) != (teacher_bias is None):
        raise ValueError("category centers: give a bias for both networks or for none, got only one")
    check_same_shape("category centers", student_weight, teacher_weight)
    student, teacher = _at_least_float32(student_weight), _at_least_float32(teacher_weight)
    if student_bias is not None:
        assert teacher_bias is not None  # checked above
        check_same_shape("biases of the category centers", student_bias, teacher_bias, dimensions=1)
        if len(student_bias) != len(student_weight):
            raise ValueError(
                f"there must be one bias per category center, got {len(student_bias)} biases "
                f"for {len(student_weight)} category centers"
            )
        student = torch.cat([student, _at_least_float32(student_bias)[:, None]], dim=1)
        teacher = torch.cat([teacher, _at_least_float32(teacher_bias)[:, None]], dim=1)
    return F.mse_loss(student, teacher)


def category_center_contrast_plain(
    student_scores: Tensor,
    teacher_scores: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    base_temperature: float = 0.07,
) -> Tensor:
    r"""Return the category center contrast loss, written as in the paper.

    Every row has two score vectors, u_s and u_t. Entry c of u_s is large if the features of the row point in the same
    direction as the student's center of category c. u_t contains the same for the teacher's centers. The equations of
    u_s and u_t are in `methods.PCKD`.

    The loss is supervised contrastive learning over the 2N score vectors of a batch. It makes score vectors of the same
    class similar, and score vectors of different classes dissimilar. For one score vector a, the anchor,

    .. math::

        \ell(a) = -\frac{\tau}{\tau_0} \cdot \frac{1}{|P(a)|} \sum_{p \in P(a)} \left[
            \frac{a \cdot p}{\tau} - \log \sum_{q \neq a} \exp\left( \frac{a \cdot q}{\tau} \right)
        \right]

    P(a) is the set of positives p: all other score vectors with the same label as a. It is never empty, because it
    contains the other score vector of the same row. The sum over q contains all score vectors except a. τ is the
    temperature and τ0 the base temperature. The loss of row i is

    .. math::

        L_{\mathrm{CC},i} = \ell(u_{s,i}) + \ell(u_{t,i})

    The factor τ/τ0 = 4/0.07 ≈ 57 comes from the authors' code. With it, the published weight β_cc = 0.05 has the same
    effect as a weight of about 2.9 without it.

    This function builds several matrices of shape (2N, 2N). Training uses `category_center_contrast`, which needs less
    memory. Use `category_center_contrast_plain` to read the equation in code, or if you need second derivatives.

    Parameters
    ----------
    student_scores, teacher_scores : Tensor of shape (N, C)
        u_s and u_t.
    labels : int Tensor of shape (N,)
        Any integers on a CPU. On a GPU they must be in [0, C), which is not checked.
    temperature : float, in [1e-6, 1e6]
        τ.
    base_temperature : float, in [1e-6, 1e6]
        τ0.

    Returns
    -------
    Tensor of shape (N,)
        L_CC of every row.

    Raises
    ------
    TypeError
        If an argument is not a tensor, or if a temperature is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if a temperature is outside its range.

    References
    ----------
    Ding et al., arXiv 2410.14143, the term L_CC. Khosla et al., "Supervised Contrastive Learning", arXiv 2004.11362.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> scores = torch.eye(3)
    >>> labels = torch.tensor([0, 1, 2])
    >>> loss = pckd.losses.category_center_contrast_plain(scores, scores, labels)
    >>> [round(value, 1) for value in loss.tolist()]
    [161.7, 161.7, 161.7]
    """
    _check_contrast_arguments(student_scores, teacher_scores, labels, temperature, base_temperature)
    anchors = _at_least_float32(torch.cat([student_scores, teacher_scores]))
    similarity = anchors @ anchors.T / temperature
    diagonal = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    log_denominator = similarity.masked_fill(diagonal, -torch.inf).logsumexp(dim=1)

    positive_sum, positive_count = _sum_over_positives(anchors, labels)
    positive_mean = positive_sum / temperature / positive_count
    loss = -(temperature / base_temperature) * (positive_mean - log_denominator)
    student_loss, teacher_loss = loss.chunk(2)
    return student_loss + teacher_loss


def category_center_contrast(
    student_scores: Tensor,
    teacher_scores: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    base_temperature: float = 0.07,
) -> Tensor:
    """Return the category center contrast loss, computed in blocks to save memory.

    The equation is that of `category_center_contrast_plain`. Only the logarithm of the sum over q is computed in
    another way: for one block of rows at a time, and no block is stored. The backward pass computes the blocks again.
    Memory then grows with N, not with N².

    Inside `torch.autocast`, this function still computes in float32 or float64. Call `backward()` outside of autocast,
    as PyTorch recommends.

    Parameters
    ----------
    student_scores, teacher_scores : Tensor of shape (N, C)
        u_s and u_t: the scores of every row for every category center of student and teacher.
    labels : int Tensor of shape (N,)
        Any integers on a CPU. On a GPU they must be in [0, C), which is not checked.
    temperature : float, in [1e-6, 1e6]
        τ.
    base_temperature : float, in [1e-6, 1e6]
        τ0.

    Returns
    -------
    Tensor of shape (N,)
        L_CC of every row.

    Raises
    ------
    TypeError
        If an argument is not a tensor, or if a temperature is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if a temperature is outside its range.
    RuntimeError
        In the backward pass, if it is called with create_graph=True. There is no second derivative.

    References
    ----------
    Ding et al., arXiv 2410.14143, the term L_CC. Khosla et al., "Supervised Contrastive Learning", arXiv 2004.11362.

    Examples
    --------
    >>> import torch
    >>> import pckd_nb as pckd
    >>> scores = torch.eye(3)
    >>> labels = torch.tensor([0, 1, 2])
    >>> loss = pckd.losses.category_center_contrast(scores, scores, labels)
    >>> [round(value, 1) for value in loss.tolist()]
    [161.7, 161.7, 161.7]
    """
    _check_contrast_arguments(student_scores, teacher_scores, labels, temperature, base_temperature)
    anchors = _at_least_float32(torch.cat([student_scores, teacher_scores]))
    with torch.autocast(anchors.device.type, enabled=False):
        # Divided by √τ, so that the inner product of two rows is a·q/τ.
        log_denominator = _LogSumExpOverOthers.apply(anchors / temperature**0.5)
        positive_sum, positive_count = _sum_over_positives(anchors, labels)
        positive_mean = positive_sum / temperature / positive_count

    loss = -(temperature / base_temperature) * (positive_mean - log_denominator)
    student_loss, teacher_loss = loss.chunk(2)
    return student_loss + teacher_loss


def _sum_over_positives(anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the sum of a·p over the positives p of every anchor a, and the number of positives.

    No matrix of all pairs is needed:

    .. math::

        \sum_{p \in P(a)} a \cdot p = a \cdot (S - a)

    S, in the code `class_sum`, is the sum of all vectors with the same label as a. It includes a.

    Parameters
    ----------
    anchors : Tensor of shape (2N, C)
    labels : int Tensor of shape (N,)

    Returns
    -------
    sums, counts : Tensor of shape (2N,)
    """
    if labels.device.type == "cpu":  # any integers are accepted: torch.unique numbers them from 0
        one_hot = F.one_hot(torch.unique(labels.repeat(2), return_inverse=True)[1]).to(anchors.dtype)
    else:  # torch.unique would have to wait for the GPU, so labels must be in [0, C)
        one_hot = F.one_hot(labels.long(), anchors.shape[1]).repeat(2, 1).to(anchors.dtype)
    class_sum = one_hot @ (one_hot.T @ anchors)
    positive_count = one_hot @ one_hot.sum(0) - 1
    return (anchors * (class_sum - anchors)).sum(1), positive_count


class _LogSumExpOverOthers(torch.autograd.Function):
    r"""For every row of a matrix, the logsumexp of its inner products with all other rows.

    .. math::

        \mathrm{lse}_a = \log \sum_{q \neq a} \exp(s_{aq}), \qquad s_{aq} = x_a \cdot x_q

    x_a is row a of the matrix x, which has M rows. The (M, M) matrix s is never stored. It is symmetric, so only the
    blocks on and above its diagonal are computed. A block contributes to its rows and, transposed, to its columns.

    `backward` receives g, the gradient of the loss L with respect to lse, and returns the gradient with respect to x:

    .. math::

        \frac{\partial L}{\partial x_a} = \sum_{q \neq a} w_{aq} \, x_q, \qquad
        w_{aq} = g_a \exp(s_{aq} - \mathrm{lse}_a) + g_q \exp(s_{aq} - \mathrm{lse}_q)

    No exp can overflow here. The sums in lse_a and lse_q both contain exp(s_aq), so neither logarithm is smaller than
    s_aq. For the backward pass only x and lse are saved.
    """

    BLOCK_ROWS = 256  # on a CPU, 128 and 256 are equally fast

    @classmethod
    def blocks(cls, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Yield start, stop and `x[start:stop] @ x[start:].T` for every block, with −inf where a row meets itself."""
        for start in range(0, len(x), cls.BLOCK_ROWS):
            stop = min(start + cls.BLOCK_ROWS, len(x))
            similarity = x[start:stop] @ x[start:].T
            similarity.diagonal().fill_(-torch.inf)
            yield start, stop, similarity

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        """Return lse of shape (M,) for x of shape (M, C)."""
        logsumexp = x.new_full((len(x),), -torch.inf)
        for start, stop, similarity in _LogSumExpOverOthers.blocks(x):
            above_diagonal = similarity[:, stop - start :]
            logsumexp[start:stop] = logsumexp[start:stop].logaddexp(similarity.logsumexp(dim=1))
            logsumexp[stop:] = logsumexp[stop:].logaddexp(above_diagonal.logsumexp(dim=0))
        ctx.save_for_backward(x, logsumexp)
        return logsumexp

    @staticmethod
    def backward(ctx: BackwardCFunction, g: Tensor) -> Tensor:
        """Return the gradient with respect to x."""
        # Gradients are enabled here only if the caller wants a second derivative, with create_graph=True. PyTorch's
        # decorator once_differentiable does not detect this case: the second derivative would be wrong.
        if torch.is_grad_enabled():
            raise RuntimeError("category_center_contrast has no second derivative: use category_center_contrast_plain")
        x, logsumexp = ctx.saved_tensors  # type: ignore[misc]  # torch declares a single tensor
        gradient = torch.zeros_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for start, stop, similarity in _LogSumExpOverOthers.blocks(x):
                weight = (similarity - logsumexp[start:stop, None]).exp_().mul_(g[start:stop, None])
                weight.addcmul_(similarity.sub_(logsumexp[start:]).exp_(), g[start:])
                above_diagonal = weight[:, stop - start :]
                gradient[start:stop] += weight @ x[start:]
                gradient[stop:] += above_diagonal.T @ x[start:stop]
        return gradient


def _check_contrast_arguments(
    student_scores: Tensor, teacher_scores: Tensor, labels: Tensor, temperature: float, base_temperature: float
) -> None:
    check_same_shape("scores", student_scores, teacher_scores)
    check_labels(labels, student_scores)
    check_temperature("temperature", temperature)
    check_temperature("base_temperature", base_temperature)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


__getattr__ = renamed(__name__)
