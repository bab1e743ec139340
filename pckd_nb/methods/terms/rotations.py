r"""Loss terms of methods that train on rotated images: SSKD and HSAKD.

In the shapes, B is the number of images, V the number of views per image, and C the number of classes. Both methods
have V = 4: rotations by 0°, 90°, 180° and 270°.

The rows are view-major, as in the whole package. Rows [:B] are the images that are not rotated, the next B rows are the
images rotated by 90°, and so on. The authors' code is image-major: rows 4i to 4i + 3 belong to image i.

In the equations, the index s means student and t means teacher. The functions compute in float32 or float64, also
inside `torch.autocast`. The teacher's tensors get no gradient. The functions do not multiply by the weight of a method.

Examples
--------
>>> import torch
>>> from pckd_nb.methods.terms import rotations
>>> rotations.joint_labels(torch.tensor([2, 0]), views=4).tolist()
[8, 0, 9, 1, 10, 2, 11, 3]
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...losses import distillation_kl
from ...tensor_checks import as_number, check_labels, check_same_shape, check_temperature, check_whole_number
from .numerics import full_precision, unit_vectors

ROTATIONS = 4


# --- SSKD


class SSHead(nn.Sequential):
    """Head of SSKD: linear layer, ReLU, linear layer.

    It maps the penultimate features to as many outputs. Both networks have one. The teacher's head is trained before
    the student, with `contrast_loss`: for 60 epochs, with the learning rate 0.05, times 0.1 after 30 and 45 epochs. The
    teacher itself is frozen and in eval mode. The student's head is trained with the student.

    Parameters
    ----------
    features : int
        Number of penultimate features.

    References
    ----------
    Xu et al., "Knowledge Distillation Meets Self-Supervision", arXiv 2006.07114. The layers and the schedule are those
    of the authors' repository xuguodong03/SSKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import SSHead
    >>> tuple(SSHead(64)(torch.rand(8, 64)).shape)
    (8, 64)
    """

    def __init__(self, features: int):
        super().__init__(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))


class SSKDLosses(NamedTuple):
    """The three terms of SSKD besides the cross-entropy, see `sskd_losses`."""

    kd: Tensor
    transformed: Tensor
    self_supervised: Tensor


@full_precision
def view_similarities(head_outputs: Tensor, num_images: int) -> Tensor:
    """Return the cosine of every rotated image with every image that is not rotated.

    Parameters
    ----------
    head_outputs : Tensor of shape (V·B, D)
        Outputs of an `SSHead`.
    num_images : int
        B.

    Returns
    -------
    Tensor of shape ((V − 1)·B, B)
        In [−1, 1]. 0 for a row of zeros.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the rows are not V views of `num_images` images, with V ≥ 2.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import view_similarities
    >>> outputs = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 0.0], [0.0, -5.0]])  # 2 views of 2 images
    >>> view_similarities(outputs, 2).tolist()
    [[1.0, 0.0], [0.0, -1.0]]
    """
    check_same_shape("outputs of the head", head_outputs, head_outputs)
    _check_views(len(head_outputs), num_images)
    x = unit_vectors(head_outputs)
    return x[num_images:] @ x[:num_images].T


@full_precision
def answer_ranks(scores: Tensor, answers: Tensor) -> Tensor:
    """Return the rank of the right answer in every row of scores, counted from 0.

    Of two equal scores, the one in the earlier column has the better rank.

    Parameters
    ----------
    scores : Tensor of shape (N, C)
    answers : int Tensor of shape (N,)
        The column of the right answer.

    Returns
    -------
    int64 Tensor of shape (N,)
        0 if the right answer has the largest score.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match, or if an answer is not a column.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import answer_ranks
    >>> answer_ranks(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1])).tolist()
    [0, 2]
    """
    check_same_shape("scores", scores, scores)
    check_labels(answers, scores, num_classes=scores.shape[1])
    answers = answers.long()[:, None]
    own = scores.gather(1, answers)
    earlier = torch.arange(scores.shape[1], device=scores.device) < answers
    return ((scores > own) | ((scores == own) & earlier)).sum(1)


def rows_to_keep(ranks: Tensor, ratio: float) -> Tensor:
    """Return which rows SSKD uses: those with a right answer, and the best of the others.

    All rows of rank 0 are used. Of the W other rows, the first int(ratio·W) by ascending rank are used. Rows of equal
    rank are in the order of the rows. The trap: the authors sort with an algorithm that leaves this order open. And
    their rows are image-major.

    Parameters
    ----------
    ranks : int Tensor of shape (N,)
        From `answer_ranks`.
    ratio : float, in [0, 1]

    Returns
    -------
    bool Tensor of shape (N,)

    Raises
    ------
    TypeError
        If `ranks` is not a tensor, or if `ratio` is not a number.
    ValueError
        If shape or dtype do not fit, or if `ratio` is outside its range.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import rows_to_keep
    >>> rows_to_keep(torch.tensor([2, 0, 1, 1, 5]), ratio=0.75).tolist()  # 3 of the 4 wrong rows
    [True, True, True, True, False]
    """
    if not 0 <= as_number("ratio", ratio) <= 1:
        raise ValueError(f"ratio must be from 0 to 1, got {ratio}")
    check_labels(ranks, ranks)
    rows = len(ranks)
    wrong = (ranks > 0).sum()
    kept_of_wrong = torch.tensor([int(ratio * number) for number in range(rows + 1)], device=ranks.device)
    kept = rows - wrong + kept_of_wrong[wrong[None]]  # a table, because int(wrong) waits for the GPU
    position = ranks.sort(stable=True).indices.argsort()  # the place of every row in the order of ranks
    return position < kept


@full_precision
def contrast_loss(head_outputs: Tensor, num_images: int) -> Tensor:
    r"""Return the loss that trains the teacher's head of SSKD.

    .. math::

        L = -\frac{1}{(V - 1) B} \sum_{v \ge 1, \, i} \log \mathrm{softmax}(A_{vi})_i

    A are the `view_similarities`: row (v, i) compares view v of image i with all images that are not rotated. The
    temperature is 1.

    Parameters
    ----------
    head_outputs : Tensor of shape (V·B, D)
        Outputs of the teacher's head. Here they do get a gradient.
    num_images : int
        B.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the rows are not V views of `num_images` images, with V ≥ 2.

    References
    ----------
    Xu et al., "Knowledge Distillation Meets Self-Supervision", arXiv 2006.07114.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import contrast_loss
    >>> round(contrast_loss(torch.ones(8, 3), 2).item(), 4)  # all rows are equal: log 2
    0.6931
    """
    similarities = view_similarities(head_outputs, num_images)
    return F.cross_entropy(similarities, _own_image(similarities))


@full_precision
def sskd_losses(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_outputs: Tensor,
    teacher_outputs: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    ss_temperature: float = 0.5,
    tf_ratio: float = 1.0,
    ss_ratio: float = 0.75,
) -> SSKDLosses:
    r"""Return the terms of SSKD.

    .. math::

        L_{\mathrm{kd}} = \overline{L_{\mathrm{KD}}(\text{not rotated})}, \qquad
        L_{\mathrm{tf}} = \overline{L_{\mathrm{KD}}(\text{rotated})}, \qquad
        L_{\mathrm{ss}} = \overline{L_{\mathrm{KD}}(A)}

    L_KD is `losses.distillation_kl` of every row. A are the `view_similarities` of student and teacher. They are used
    like logits, with the temperature 0.5. The last two means are over the rows that `rows_to_keep` selects. For L_tf
    the right answer is the label, and for L_ss it is the same image. The total is
    0.1·CE + 0.9·L_kd + 2.7·L_tf + 10·L_ss, for all pairs of networks.

    The traps: the cross-entropy is that of the images that are not rotated. And a view is cropped after it was rotated,
    every view on its own, but all views of an image are flipped together.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (V·B, C)
    student_outputs : Tensor of shape (V·B, D_s)
        Outputs of the student's `SSHead`.
    teacher_outputs : Tensor of shape (V·B, D_t)
        Outputs of the teacher's `SSHead`.
    labels : int Tensor of shape (B,)
    temperature : float, in [1e-6, 1e6]
        Temperature of L_kd and L_tf.
    ss_temperature : float, in [1e-6, 1e6]
        Temperature of L_ss.
    tf_ratio, ss_ratio : float, in [0, 1]
        See `rows_to_keep`.

    Returns
    -------
    SSKDLosses
        `kd`, `transformed` (L_tf) and `self_supervised` (L_ss). A term is 0 if no row is kept.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes, dtypes or devices do not match, if a label is not a class, or if a setting is outside its range.

    References
    ----------
    Xu et al., "Knowledge Distillation Meets Self-Supervision", arXiv 2006.07114. The weights and settings are from the
    authors' repository xuguodong03/SSKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import sskd_losses
    >>> logits, outputs = torch.rand(8, 5), torch.rand(8, 3)
    >>> [term.item() for term in sskd_losses(logits, logits, outputs, outputs, torch.tensor([0, 1]))]
    [0.0, 0.0, 0.0]
    """
    check_same_shape("logits", student_logits, teacher_logits)
    check_labels(labels, labels)
    check_temperature("temperature", temperature)
    check_temperature("ss_temperature", ss_temperature)
    images = len(labels)
    _check_views(len(student_logits), images)
    student, teacher = view_similarities(student_outputs, images), view_similarities(teacher_outputs.detach(), images)
    teacher_logits = teacher_logits.detach()
    answers = labels.repeat(len(student_logits) // images - 1)
    tf_kept = rows_to_keep(answer_ranks(teacher_logits[images:], answers), tf_ratio)
    ss_kept = rows_to_keep(answer_ranks(teacher, _own_image(teacher)), ss_ratio)

    kl = distillation_kl(student_logits, teacher_logits, temperature)
    similarity_kl = distillation_kl(student, teacher, ss_temperature)
    return SSKDLosses(kl[:images].mean(), _mean_over(kl[images:], tf_kept), _mean_over(similarity_kl, ss_kept))


# --- HSAKD


def joint_labels(labels: Tensor, views: int = ROTATIONS) -> Tensor:
    """Return the labels of the auxiliary heads of HSAKD: one class per pair of class and rotation.

    The label of view v of an image of class y is V·y + v.

    Parameters
    ----------
    labels : int Tensor of shape (B,)
    views : int, at least 1
        V.

    Returns
    -------
    int64 Tensor of shape (V·B,)
        View-major, as all rows of the package.

    Raises
    ------
    TypeError
        If `labels` is not a tensor, or if `views` is not a whole number.
    ValueError
        If the labels are not integers, or if `views` is less than 1.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import joint_labels
    >>> joint_labels(torch.tensor([2, 0]), views=2).tolist()
    [4, 0, 5, 1]
    """
    check_labels(labels, labels)
    check_whole_number("views", views, 1)
    rotations = torch.arange(views, device=labels.device)[:, None]
    return (views * labels.long() + rotations).flatten()


@full_precision
def hsakd_losses(
    student_logits: Tensor,
    teacher_logits: Tensor,
    student_heads: Sequence[Tensor],
    teacher_heads: Sequence[Tensor],
    temperature: float = 3.0,
) -> tuple[Tensor, list[Tensor]]:
    r"""Return the terms of HSAKD: distillation of the logits, and of every auxiliary head.

    .. math::

        L_{\mathrm{logits}} = \overline{L_{\mathrm{KD}}(z_s, z_t)}, \qquad
        L_h = \overline{L_{\mathrm{KD}}(a_{s,h}, a_{t,h})}

    L_KD is `losses.distillation_kl` of every row, and a bar is the mean over all V·B rows. a_h is the output of
    auxiliary head h, for 4·C classes, see `joint_labels`. The total is CE + L_logits + Σ L_h.

    The traps: the distillation is over all rows, and the cross-entropy over the rows that are not rotated. The student
    has no cross-entropy of joint labels, only the teacher has, see `joint_cross_entropy`. And the views are rotations
    of the image after cropping and flipping.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (V·B, C)
    student_heads, teacher_heads : sequence of Tensor of shape (V·B, V·C)
        One tensor per head, the same number for both networks.
    temperature : float, in [1e-6, 1e6]

    Returns
    -------
    logits : scalar Tensor
    heads : list of scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes, dtypes, devices or the numbers of heads do not match, or if `temperature` is outside its range.

    References
    ----------
    Yang et al., "Hierarchical Self-supervised Augmented Knowledge Distillation", arXiv 2107.13715. The settings are
    from the authors' repository winycg/HSAKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import hsakd_losses
    >>> logits, head = torch.rand(8, 5), torch.rand(8, 20)
    >>> of_logits, of_heads = hsakd_losses(logits, logits, [head, head], [head, head])
    >>> of_logits.item(), [loss.item() for loss in of_heads]
    (0.0, [0.0, 0.0])
    """
    if len(student_heads) != len(teacher_heads):
        got = f"{len(student_heads)} and {len(teacher_heads)}"
        raise ValueError(f"student and teacher must have the same number of heads, got {got}")
    pairs = [(student_logits, teacher_logits), *zip(student_heads, teacher_heads, strict=True)]
    for student, teacher in pairs:
        check_same_shape("logits", student, teacher)
    of_logits, *of_heads = (distillation_kl(s, t.detach(), temperature).mean() for s, t in pairs)
    return of_logits, of_heads


@full_precision
def joint_cross_entropy(heads: Sequence[Tensor], labels: Tensor) -> Tensor:
    r"""Return the loss that trains the auxiliary heads of the teacher in HSAKD.

    .. math::

        L = \sum_h \overline{\mathrm{CE}(a_h, V y + v)}

    The labels are `joint_labels`, and the mean is over all rows. The teacher's total is the cross-entropy of the images
    that are not rotated, plus L. A teacher that is already trained is frozen, and only its heads are trained: for 100
    epochs, with the learning rate times 0.1 after 30, 60 and 90.

    Parameters
    ----------
    heads : sequence of Tensor of shape (V·B, V·C)
        At least one.
    labels : int Tensor of shape (B,)

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
    Yang et al., "Hierarchical Self-supervised Augmented Knowledge Distillation", arXiv 2107.13715. The schedule is that
    of the authors' repository winycg/HSAKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.rotations import joint_cross_entropy
    >>> round(joint_cross_entropy([torch.zeros(8, 20)], torch.tensor([0, 4])).item(), 4)  # log 20
    2.9957
    """
    if not heads:
        raise ValueError("HSAKD needs at least one auxiliary head, got none")
    for head in heads:
        check_same_shape("outputs of a head", head, head)
    rows = len(heads[0])
    targets = joint_labels(labels, _check_views(rows, len(labels)))
    for head in heads:
        check_labels(targets, head, num_classes=head.shape[1])
    return torch.stack([F.cross_entropy(head, targets) for head in heads]).sum()


def _check_views(rows: int, images: int) -> int:
    """Check that the rows are two or more views of the images, and return the number of views."""
    check_whole_number("num_images", images, 1)
    if rows % images or rows < 2 * images:
        raise ValueError(f"rows must be 2 or more views of {images} images, got {rows} rows")
    return rows // images


def _own_image(similarities: Tensor) -> Tensor:
    """Return the column of the same image for every row of `view_similarities`."""
    rows, images = similarities.shape
    return torch.arange(images, device=similarities.device).repeat(rows // images)


def _mean_over(values: Tensor, kept: Tensor) -> Tensor:
    return (values * kept).sum() / kept.sum().clamp_min(1)
