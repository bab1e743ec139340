r"""Loss terms that compare logits: DIST, MLKD, TTM and WTTM, WKD-L, SKD.

In the shapes, B is the number of images in the batch and C the number of classes. In the equations, the index s means
student and t means teacher. z are logits and i is an image.

Every function computes in float32 or float64, also inside `torch.autocast`. The teacher's logits get no gradient.
Non-finite inputs give a non-finite loss. The functions do not multiply by the weight of a method, unless the docstring
says so.

Examples
--------
>>> import torch
>>> from pckd_nb.methods.terms import logits
>>> z = torch.tensor([[2.0, 0.0, -2.0], [0.0, 1.0, 5.0]])
>>> logits.wttm(z, z, exponent=1.0).item()  # student = teacher
0.0
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...losses import distillation_kl
from ...tensor_checks import as_number, check_labels, check_same_shape, check_temperature, check_whole_number
from .numerics import full_precision, safe_sqrt, unit_vectors

DIST_EPSILON = 1e-8  # in the denominator of the correlation
SINKHORN_EPSILON = 1e-8  # in the cost and in the denominators
MLKD_TEMPERATURES = 2.0, 3.0, 4.0, 5.0, 6.0
MLKD_STRONG_TEMPERATURES = 3.0, 4.0, 5.0  # at the others, the authors' code uses the weak view twice


# --- DIST


def pearson_correlation(a: Tensor, b: Tensor, dim: int = 1) -> Tensor:
    r"""Return the Pearson correlation as DIST computes it.

    .. math::

        \rho = \frac{(a - \bar a) \cdot (b - \bar b)}{\|a - \bar a\| \, \|b - \bar b\| + 10^{-8}}

    The bar is the mean along `dim`. The trap: 1e-8 is added to the product of the norms. `F.cosine_similarity`
    replaces a small product by 1e-8 instead. The two differ for nearly constant vectors.

    Parameters
    ----------
    a, b : Tensor of the same shape
    dim : int
        The dimension along which the vectors lie.

    Returns
    -------
    Tensor
        Without the dimension `dim`. 0 if one of the vectors is constant.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import pearson_correlation
    >>> a = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    >>> b = torch.tensor([[2.0, 4.0, 6.0], [5.0, 5.0, 5.0]])
    >>> [round(value, 4) for value in pearson_correlation(a, b).tolist()]
    [1.0, 0.0]
    """
    a, b = a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True)
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    return (a * b).sum(dim) / (norms + DIST_EPSILON)


@full_precision
def dist_relations(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of DIST.

    .. math::

        L_{\mathrm{inter}} = \tau^2 \left( 1 - \frac{1}{B} \sum_i \rho(p_{s,i}, p_{t,i}) \right), \qquad
        L_{\mathrm{intra}} = \tau^2 \left( 1 - \frac{1}{C} \sum_c \rho(p_{s,\cdot c}, p_{t,\cdot c}) \right)

    p is softmax(z/τ), and ρ is `pearson_correlation`. The first term correlates the classes of each image, and the
    second one the images for each class. The term of the method is β·L_inter + γ·L_intra with β = γ = 1. The total is
    CE + 2·term, with τ = 4 for CIFAR-100 and τ = 1 for ImageNet.

    The traps: both terms contain τ². A copy of the authors' loss for segmentation has no temperature at all. And the
    1e-8 in `pearson_correlation` makes the gradient very large where the student's probabilities are all equal.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
    temperature : float, in [1e-6, 1e6]
        τ.

    Returns
    -------
    inter, intra : scalar Tensor
        In [0, 2τ²].

    Raises
    ------
    TypeError
        If the logits are not tensors, or if `temperature` is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if `temperature` is outside its range.

    References
    ----------
    Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536. The weight and τ are from the
    authors' repository hunto/image_classification_sota.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import dist_relations
    >>> student = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 3.0]])
    >>> [round(term.item(), 4) for term in dist_relations(student, student)]
    [0.0, 0.0]
    """
    check_same_shape("logits", student_logits, teacher_logits)
    check_temperature("temperature", temperature)
    student = (student_logits / temperature).softmax(1)
    teacher = (teacher_logits.detach() / temperature).softmax(1)
    inter, intra = (1 - pearson_correlation(student, teacher, dim).mean() for dim in (1, 0))
    return temperature**2 * inter, temperature**2 * intra


# --- MLKD, and the factors that SKD shares with it


@full_precision
def median_fractions(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the factors q and q' of MLKD and SKD.

    .. math::

        q = \frac{1}{B} \left| \left\{ i : \max_c p_{t,ic} \le \mathrm{median} \right\} \right|, \qquad
        q' = \frac{1}{C} \left| \left\{ c : \sum_i p_{t,ic} \le \mathrm{median} \right\} \right|

    p_t is softmax(z_t). The first median is over the images and the second over the classes. It is the mean of the two
    middle values if their number is even.

    The trap: the papers describe masks, which select images and classes. In the authors' code, the masks multiply a
    loss that was averaged before. So they only scale it by q or q', which are about 1/2.

    Parameters
    ----------
    teacher_logits : Tensor of shape (B, C)

    Returns
    -------
    images, classes : scalar Tensor
        q and q', at least 1/2.

    Raises
    ------
    TypeError
        If the logits are not a tensor.
    ValueError
        If their shape or dtype does not fit.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import median_fractions
    >>> [round(fraction.item(), 4) for fraction in median_fractions(torch.eye(3))]  # ties count
    [1.0, 1.0]
    """
    check_same_shape("logits", teacher_logits, teacher_logits)
    p = teacher_logits.detach().softmax(1)
    images, classes = ((x <= x.quantile(0.5)).to(x.dtype).mean() for x in (p.amax(1), p.sum(0)))
    return images, classes


@full_precision
def image_correlation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Return the term of MLKD that compares the similarities of images.

    .. math::

        B_T = \frac{1}{B} \left\| P_s P_s^\top - P_t P_t^\top \right\|_F^2

    P is softmax(z/T), of shape (B, C). The matrices have the shape (B, B), so the value depends on the batch size.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
    temperature : float, in [1e-6, 1e6]
        T.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If the logits are not tensors, or if `temperature` is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if `temperature` is outside its range.

    References
    ----------
    Jin et al., "Multi-Level Logit Distillation", CVPR 2023.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import image_correlation_loss
    >>> image_correlation_loss(torch.eye(3), torch.eye(3)).item()
    0.0
    """
    student, teacher = _probabilities(student_logits, teacher_logits, temperature)
    return (student @ student.T - teacher @ teacher.T).square().sum() / len(student)


@full_precision
def class_correlation_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    r"""Return the term of MLKD that compares the similarities of classes.

    .. math::

        C_T = \frac{1}{C} \left\| P_s^\top P_s - P_t^\top P_t \right\|_F^2

    P is softmax(z/T), of shape (B, C).

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
    temperature : float, in [1e-6, 1e6]
        T.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If the logits are not tensors, or if `temperature` is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if `temperature` is outside its range.

    References
    ----------
    Jin et al., "Multi-Level Logit Distillation", CVPR 2023.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import class_correlation_loss
    >>> class_correlation_loss(torch.eye(3), torch.eye(3)).item()
    0.0
    """
    student, teacher = _probabilities(student_logits, teacher_logits, temperature)
    return (student.T @ student - teacher.T @ teacher).square().sum() / student.shape[1]


@full_precision
def mlkd(
    student_weak: Tensor,
    student_strong: Tensor,
    teacher_weak: Tensor,
    teacher_strong: Tensor,
    temperatures: Sequence[float] = MLKD_TEMPERATURES,
    strong_temperatures: Sequence[float] = MLKD_STRONG_TEMPERATURES,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the three terms of multi-level logit distillation, as the authors' code computes them.

    .. math::

        L_{\mathrm{KD}} = q \sum_T a_T(\mathrm{weak}) + \sum_{T \in S} a_T(\mathrm{strong})
            + \sum_{T \notin S} a_T(\mathrm{weak}), \qquad
        L_{\mathrm{class}} = q' \sum_T C_T, \qquad L_{\mathrm{batch}} = q \sum_T B_T

    There are two views of every image: one with weak and one with strong augmentation. a_T is the mean of
    `losses.distillation_kl` at temperature T. B_T and C_T are `image_correlation_loss` and `class_correlation_loss` of
    the weak view. The sums are over `temperatures`, and S are the `strong_temperatures`. q and q' are
    `median_fractions` of the teacher's logits for the weak view. The total is 0.9 times the three terms, plus
    0.1·(CE(weak) + CE(strong)).

    There are three traps. They are differences between the paper and the authors' code:

    - q and q' are factors. The paper describes masks.
    - At T = 2 and T = 6, the weak view is used where the paper has the strong view.
    - The code also computes L_class and L_batch of the strong view, but does not use them.

    Parameters
    ----------
    student_weak, student_strong, teacher_weak, teacher_strong : Tensor of shape (B, C)
        Logits of the two views.
    temperatures, strong_temperatures : sequence of float, in [1e-6, 1e6]
        The second sequence is a subset of the first one.

    Returns
    -------
    kd, classes, batch : scalar Tensor
        Before they are multiplied by 0.9.

    Raises
    ------
    TypeError
        If the logits are not tensors, or if a temperature is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if a temperature is outside its range.

    References
    ----------
    Jin et al., "Multi-Level Logit Distillation", CVPR 2023. The weights and temperatures are from the authors'
    repository Jin-Ying/Multi-Level-Logit-Distillation.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import mlkd
    >>> z = torch.tensor([[2.0, 0.0, 1.0], [0.0, 2.0, 3.0]])
    >>> [round(term.item(), 4) for term in mlkd(z, 2 * z, z, 2 * z)]
    [0.0, 0.0, 0.0]
    """
    check_same_shape("logits", student_weak, teacher_weak)
    check_same_shape("logits", student_strong, teacher_strong)
    if unknown := set(strong_temperatures) - set(temperatures):
        raise ValueError(f"strong_temperatures must be a subset of temperatures, got also {min(unknown)}")
    images, classes = median_fractions(teacher_weak)
    weak, strong = (student_weak, teacher_weak.detach()), (student_strong, teacher_strong.detach())

    kd = images * sum(distillation_kl(*weak, t).mean() for t in temperatures)
    kd = kd + sum(distillation_kl(*(strong if t in strong_temperatures else weak), t).mean() for t in temperatures)
    class_term = classes * sum(class_correlation_loss(*weak, t) for t in temperatures)
    batch_term = images * sum(image_correlation_loss(*weak, t) for t in temperatures)
    return kd, class_term, batch_term


# --- TTM and WTTM


@full_precision
def ttm(student_logits: Tensor, teacher_logits: Tensor, exponent: float = 0.1) -> Tensor:
    r"""Return the loss of transformed teacher matching.

    .. math::

        \mathrm{term} = \frac{1}{B} \sum_i \mathrm{KL}\left( q_i \,\middle\|\, \mathrm{softmax}(z_{s,i}) \right), \qquad
        q_i = \frac{\mathrm{softmax}(z_{t,i})^\gamma}{u_i}, \qquad
        u_i = \sum_c \mathrm{softmax}(z_{t,i})_c^\gamma

    γ is the exponent. q is the same as softmax(γ·z_t), so γ is 1 divided by a temperature of the teacher. The total is
    CE + weight·term, for example with the weight 45 and γ = 0.1. The traps: the student has no temperature, and there
    is no factor T².

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
    exponent : float, in [1e-6, 1e6]
        γ.

    Returns
    -------
    scalar Tensor
        In nats, at least 0.

    Raises
    ------
    TypeError
        If the logits are not tensors, or if `exponent` is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if `exponent` is outside its range.

    References
    ----------
    Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148. The example of a
    weight is from the authors' repository zkxufo/TTM. The weights for other pairs are in the paper.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import ttm
    >>> teacher = torch.tensor([[10.0, 0.0, -10.0]])
    >>> abs(ttm(0.1 * teacher, teacher, exponent=0.1).item()) < 1e-6
    True
    """
    divergence, _ = _transformed_teacher_matching(student_logits, teacher_logits, exponent)
    return divergence.mean()


@full_precision
def wttm(student_logits: Tensor, teacher_logits: Tensor, exponent: float = 0.1) -> Tensor:
    r"""Return the loss of weighted transformed teacher matching.

    .. math::

        \mathrm{term} = \frac{1}{B} \sum_i u_i \, \mathrm{KL}\left(
            q_i \,\middle\|\, \mathrm{softmax}(z_{s,i})
        \right)

    q and u are those of `ttm`. For γ < 1, u is large where the teacher is not sure. The total is CE + weight·term, for
    example with the weight 4 and γ = 0.2 when it is added to CRD. The trap: u multiplies each image before the mean.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
    exponent : float, in [1e-6, 1e6]
        γ.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If the logits are not tensors, or if `exponent` is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if `exponent` is outside its range.

    References
    ----------
    Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148. The example of a
    weight is from the authors' repository zkxufo/TTM. The weights for other pairs are in the paper.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import ttm, wttm
    >>> student, teacher = torch.eye(3), torch.ones(3, 3)
    >>> weight = wttm(student, teacher, exponent=0.5) / ttm(student, teacher, exponent=0.5)
    >>> round(weight.item(), 4)  # three probabilities of 1/3: 3·√(1/3)
    1.7321
    """
    divergence, weight = _transformed_teacher_matching(student_logits, teacher_logits, exponent)
    return (weight * divergence).mean()


def _transformed_teacher_matching(student: Tensor, teacher: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Return KL(q ‖ softmax(student)) and u, both of shape (B,)."""
    check_same_shape("logits", student, teacher)
    check_temperature("exponent", exponent)
    log_powers = exponent * teacher.detach().log_softmax(1)
    log_weight = log_powers.logsumexp(1)
    log_q = log_powers - log_weight[:, None]
    divergence = F.kl_div(student.log_softmax(1), log_q, reduction="none", log_target=True).sum(1)
    return divergence, log_weight.exp()


# --- WKD-L


@full_precision
def class_costs(class_features: Tensor) -> Tensor:
    r"""Return how much the features of two classes differ, for all pairs of classes: the raw cost matrix of WKD-L.

    .. math::

        \mathrm{raw}_{ij} = 1 - \mathrm{CKA}(X_i, X_j), \qquad
        \mathrm{CKA}(X, Y) = \frac{\|X^\top Y\|_F^2}{\|X^\top X\|_F \, \|Y^\top Y\|_F}

    X_i contains the teacher's features of class i, one sample per row. The mean over the samples is subtracted first.
    The authors use all positions of the teacher's last feature map for CIFAR-100, and the logits for ImageNet. The
    images are the training images without augmentation, and the teacher is in eval mode.

    The trap: the k-th sample of one class is compared with the k-th sample of the other class. So the result depends on
    the order of the samples, and all classes need the same number of them.

    Parameters
    ----------
    class_features : Tensor of shape (C, N, D)
        N samples per class.

    Returns
    -------
    Tensor of shape (C, C)
        In [0, 1], up to rounding. 1 for a class whose samples are all equal.

    Raises
    ------
    TypeError
        If `class_features` is not a tensor.
    ValueError
        If the shape or the dtype does not fit.

    References
    ----------
    Lv, Yang and Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation", arXiv
    2412.08139. Kornblith et al., "Similarity of Neural Network Representations Revisited", arXiv 1905.00414.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import class_costs
    >>> features = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]], [[0.0, 1.0], [0.0, -2.0], [0.0, 1.0]]])
    >>> class_costs(features).tolist()  # the two classes are not correlated
    [[0.0, 1.0], [1.0, 0.0]]
    """
    check_same_shape("class_features", class_features, class_features, dimensions=3)
    x = class_features.detach()
    x = x - x.mean(1, keepdim=True)
    if x.shape[1] < x.shape[2]:  # fewer samples than features: compare the (N, N) matrices, with the same result
        grams = (x @ x.mT).flatten(1)
        numerator = grams @ grams.T
    else:
        rows = (((x[i].T @ x[i:]).square().sum((1, 2))) for i in range(len(x)))  # (D, D) for every j ≥ i
        upper = torch.stack([F.pad(row, (len(x) - len(row), 0)) for row in rows])
        numerator = upper + upper.triu(1).T
    norms = numerator.diagonal().sqrt()
    product = torch.outer(norms, norms)
    return 1 - numerator / product.masked_fill(product == 0, 1)


@full_precision
def sharpened_costs(raw_costs: Tensor, sharpen: float = 1.0) -> Tensor:
    r"""Return the cost matrix of WKD-L: 1 − exp(−sharpen · raw).

    Parameters
    ----------
    raw_costs : Tensor of shape (C, C)
        From `class_costs`.
    sharpen : float
        The authors use 1.

    Returns
    -------
    Tensor of shape (C, C)

    Raises
    ------
    TypeError
        If `raw_costs` is not a tensor, or if `sharpen` is not a number.
    ValueError
        If the shape or the dtype does not fit.

    References
    ----------
    Lv, Yang and Li, arXiv 2412.08139. The value 1 is from the authors' repository JiamingLv/WKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import sharpened_costs
    >>> sharpened_costs(torch.zeros(2, 2)).tolist()
    [[0.0, 0.0], [0.0, 0.0]]
    """
    check_same_shape("raw_costs", raw_costs, raw_costs)
    return -torch.expm1(-as_number("sharpen", sharpen) * raw_costs)


@full_precision
def sinkhorn_costs(
    p_student: Tensor, p_teacher: Tensor, costs: Tensor, regularization: float = 0.05, iterations: int = 10
) -> Tensor:
    r"""Return the cost of moving the student's probabilities to the teacher's, by Sinkhorn's algorithm.

    .. math::

        M = \max(\mathrm{costs}, 0) + 10^{-8}, \qquad K = \exp(-M / \lambda), \qquad u_c = 1 / C

    Then, in every iteration,

    .. math::

        v = \frac{p_t}{K^\top u + 10^{-8}}, \qquad u = \frac{p_s}{K v + 10^{-8}}

    The cost is Σ u_c K_cd M_cd v_d, summed over c and d. Gradients go through all iterations.

    The trap: the rows of K belong to the student, and u is computed last. u_c K_cd v_d is the probability that moves
    from class c to class d. Its sums over d are the student's probabilities, up to 1e-8. Its sums over c are only
    roughly the teacher's.

    Parameters
    ----------
    p_student, p_teacher : Tensor of shape (B, C)
        Probabilities.
    costs : Tensor of shape (C, C) or (B, C, C)
        Costs of moving probability from the class of the row to the class of the column.
    regularization : float, in [1e-6, 1e6]
        λ.
    iterations : int, at least 1

    Returns
    -------
    Tensor of shape (B,)

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes, dtypes or devices do not match, or if a setting is outside its range.

    References
    ----------
    Lv, Yang and Li, arXiv 2412.08139. λ and the iterations are from the authors' repository JiamingLv/WKD. Cuturi,
    "Sinkhorn Distances", arXiv 1306.0895.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import sinkhorn_costs
    >>> student, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> costs = torch.tensor([[0.0, 0.5], [0.5, 0.0]])
    >>> round(sinkhorn_costs(student, teacher, costs).item(), 2)  # all probability moves, at a cost of 0.5
    0.5
    """
    check_same_shape("probabilities", p_student, p_teacher)
    check_temperature("regularization", regularization)
    check_whole_number("iterations", iterations, 1)
    classes = p_student.shape[1]
    if costs.shape not in ((classes, classes), (len(p_student), classes, classes)):
        raise ValueError(f"costs must have one row and one column per class ({classes}), got {tuple(costs.shape)}")
    moves = costs.detach().clamp_min(0) + SINKHORN_EPSILON
    kernel = torch.exp(-moves / regularization)
    p_teacher = p_teacher.detach()
    u = torch.full_like(p_student, 1 / classes)
    for _ in range(iterations):
        v = p_teacher / ((u[:, None] @ kernel)[:, 0] + SINKHORN_EPSILON)
        u = p_student / ((kernel @ v[:, :, None])[:, :, 0] + SINKHORN_EPSILON)
    return (u * ((kernel * moves) @ v[:, :, None])[:, :, 0]).sum(1)


@full_precision
def wkd_target(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    r"""Return the target term of WKD-L.

    .. math::

        L_{\mathrm{target}} = -\frac{1}{B} \sum_i p_{t,i}[y_i] \, \log p_{s,i}[y_i]

    p is softmax(z), at temperature 1, and y is the label. The trap: this term has the weight 1. The weight of the
    method multiplies `wkd_transport` only.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
    labels : int Tensor of shape (B,)

    Returns
    -------
    scalar Tensor
        At least 0. Not 0 for student = teacher.

    Raises
    ------
    TypeError
        If an argument is not a tensor.
    ValueError
        If shapes, dtypes or devices do not match, or if a label is not a class.

    References
    ----------
    Lv, Yang and Li, arXiv 2412.08139.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import wkd_target
    >>> student, teacher = torch.zeros(1, 2), torch.tensor([[50.0, 0.0]])
    >>> round(wkd_target(student, teacher, torch.tensor([0])).item(), 4)  # log 2
    0.6931
    """
    check_same_shape("logits", student_logits, teacher_logits)
    check_labels(labels, student_logits, num_classes=student_logits.shape[1])
    label = labels.long()[:, None]
    log_p_student = student_logits.log_softmax(1).gather(1, label)
    p_teacher = teacher_logits.detach().softmax(1).gather(1, label)
    return -(p_teacher * log_p_student).mean()


@full_precision
def wkd_transport(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    costs: Tensor,
    temperature: float = 8.0,
    regularization: float = 0.05,
    iterations: int = 10,
) -> Tensor:
    r"""Return the transport term of WKD-L.

    .. math::

        L_{\mathrm{transport}} = \frac{1}{B} \sum_i \mathrm{Sinkhorn}\left(
            p_{s,i}, p_{t,i}, \mathrm{costs}_i
        \right)

    The class of the label is left out: p_i is softmax(z/T) of the other C − 1 classes of image i, and costs_i is the
    cost matrix without the row and the column of the label. Sinkhorn is `sinkhorn_costs`.

    The total is CE + `wkd_target` + weight·L_transport. The weight is 600 with T = 8 for resnet32x4 → resnet8x4, and
    200 with T = 6 for wrn_40_2 → ShuffleV1. Together with WKD-F, the two pairs have 200 with T = 8 and 60 with T = 4.
    The weight decreases in the last epochs, see `weight_in_epoch`. Nothing was published for resnet56 → resnet20.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C), with C ≥ 2
    labels : int Tensor of shape (B,)
    costs : Tensor of shape (C, C)
        From `sharpened_costs`.
    temperature : float, in [1e-6, 1e6]
        T.
    regularization : float, in [1e-6, 1e6]
        λ, see `sinkhorn_costs`.
    iterations : int, at least 1

    Returns
    -------
    scalar Tensor

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If shapes, dtypes or devices do not match, if a label is not a class, or if a setting is outside its range.

    References
    ----------
    Lv, Yang and Li, arXiv 2412.08139. The weights are from the authors' repository JiamingLv/WKD.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import wkd_transport
    >>> logits, costs = torch.tensor([[3.0, 1.0, 1.0]]), 0.5 * (1 - torch.eye(3))
    >>> round(wkd_transport(logits, logits, torch.tensor([0]), costs).item(), 4)  # almost nothing to move
    0.0
    """
    check_same_shape("logits", student_logits, teacher_logits)
    classes = student_logits.shape[1]
    check_labels(labels, student_logits, num_classes=classes)
    check_temperature("temperature", temperature)
    if classes < 2:
        raise ValueError(f"WKD-L leaves out the class of the label: give logits of 2 or more classes, got {classes}")
    if not isinstance(costs, Tensor):
        raise TypeError(f"costs must be a tensor, got {type(costs).__name__}")
    if costs.shape != (classes, classes):
        raise ValueError(f"costs must have shape {(classes, classes)}, got {tuple(costs.shape)}")
    others = torch.arange(classes - 1, device=labels.device)
    others = others + (others >= labels.long()[:, None])  # (B, C − 1): the numbers of the other classes
    p_student = (student_logits.gather(1, others) / temperature).softmax(1)
    p_teacher = (teacher_logits.detach().gather(1, others) / temperature).softmax(1)
    costs_of_others = costs[others[:, :, None], others[:, None, :]]
    return sinkhorn_costs(p_student, p_teacher, costs_of_others, regularization, iterations).mean()


def weight_in_epoch(weight: float, epoch: int, epochs: int = 240, decay_from: int | None = None) -> float:
    r"""Return the weight of WKD-L and WKD-F in an epoch.

    .. math::

        w(e) = \frac{w}{2} \left( 1 + \cos \frac{\pi \, (e - e_0)}{E - e_0} \right) \quad \text{for } e > e_0

    E is the number of epochs. Up to the epoch e_0, the weight is w. It is 0 in the last epoch.

    Parameters
    ----------
    weight : float
        w.
    epoch : int
        e, counted from 1.
    epochs : int
        E.
    decay_from : int, optional
        e_0. None means 150 for 240 epochs, and the same share of other numbers of epochs.

    Returns
    -------
    float

    References
    ----------
    Lv, Yang and Li, arXiv 2412.08139. The epochs are from the authors' repository JiamingLv/WKD.

    Examples
    --------
    >>> from pckd_nb.methods.terms.logits import weight_in_epoch
    >>> [round(weight_in_epoch(600, epoch), 1) for epoch in (1, 150, 195, 240)]
    [600, 600, 300.0, 0.0]
    """
    decay_from = epochs * 150 // 240 if decay_from is None else decay_from
    if epoch <= decay_from:
        return weight
    progress = min(1, (epoch - decay_from) / max(1, epochs - decay_from))
    return weight * (1 + math.cos(math.pi * progress)) / 2


# --- SKD


@full_precision
def skd_direction(student_logits: Tensor, teacher_logits: Tensor, tikhonov: float = 0.1) -> Tensor:
    r"""Return the direction term of SKD, without its factor q'.

    .. math::

        D = \frac{S S^\top - T T^\top}{C}, \qquad \Sigma = \mathrm{cov}(D) + \lambda I, \qquad
        \mathrm{term} = \frac{1}{B} \sum_i \sqrt{d_i \, \Sigma^{-1} d_i^\top}

    The rows of S and T are the logits of student and teacher, divided by their L2 norm. d_i is row i of D. The
    covariance is that of the columns of D, with the divisor B − 1. The gradient also goes through Σ.

    There are three traps:

    - The paper does not divide by C. The authors' code does.
    - D has the shape (B, B). So the term changes with the batch size, and with the number of GPUs if each one computes
      the term of its own images.
    - The square root has an infinite slope at 0. Where d_i is 0, for example if student = teacher, the gradient is set
      to 0 here.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
        For B = 1 the covariance is taken as 0.
    tikhonov : float, in [1e-6, 1e6]
        λ.

    Returns
    -------
    scalar Tensor
        At least 0.

    Raises
    ------
    TypeError
        If the logits are not tensors, or if `tikhonov` is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if `tikhonov` is outside its range.

    References
    ----------
    Jeong, Lee and Choi, "Streamlined Knowledge Distillation", CVPR 2026. λ is from the authors' repository
    HyunJunSik/StreamLined.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import skd_direction
    >>> logits = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> skd_direction(logits, 5 * logits).item() < 1e-6  # the same directions
    True
    """
    check_same_shape("logits", student_logits, teacher_logits)
    check_temperature("tikhonov", tikhonov)
    student, teacher = unit_vectors(student_logits), unit_vectors(teacher_logits.detach())
    rows, classes = student.shape
    difference = (student @ student.T - teacher @ teacher.T) / classes
    centered = difference - difference.mean(0)
    covariance = centered.T @ centered / max(1, rows - 1)
    covariance = covariance + tikhonov * torch.eye(rows, dtype=covariance.dtype, device=covariance.device)
    # cholesky_ex does not check for errors, so the program need not wait for the GPU.
    factor = torch.linalg.cholesky_ex(covariance)[0]
    whitened = torch.linalg.solve_triangular(factor, difference.T, upper=False)
    return safe_sqrt(whitened.square().sum(0)).mean()


@full_precision
def skd(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0, tikhonov: float = 0.1
) -> tuple[Tensor, Tensor]:
    r"""Return the two terms of streamlined knowledge distillation, as the authors' code computes them.

    .. math::

        L_{\mathrm{KD}} = \frac{q}{B} \sum_i L_{\mathrm{KD},i}, \qquad
        L_{\mathrm{direction}} = q' \cdot \mathrm{direction}

    L_KD,i is `losses.distillation_kl` at temperature T, and the direction is `skd_direction`. q and q' are
    `median_fractions`. The total is 0.9 times the two terms, plus 0.1·CE. For resnet32x4 → resnet8x4 the authors have
    the weights 0.5 and 0.5.

    The trap: the factors q and q' come from masks in the authors' code. They do not select images or classes.

    Parameters
    ----------
    student_logits, teacher_logits : Tensor of shape (B, C)
    temperature : float, in [1e-6, 1e6]
        T.
    tikhonov : float, in [1e-6, 1e6]
        λ, see `skd_direction`.

    Returns
    -------
    kd, direction : scalar Tensor
        Before they are multiplied by the weight 0.9 or 0.5.

    Raises
    ------
    TypeError
        If the logits are not tensors, or if a setting is not a number.
    ValueError
        If shapes, dtypes or devices do not match, or if a setting is outside its range.

    References
    ----------
    Jeong, Lee and Choi, "Streamlined Knowledge Distillation", CVPR 2026. The weights are from the authors' repository
    HyunJunSik/StreamLined.

    Examples
    --------
    >>> import torch
    >>> from pckd_nb.methods.terms.logits import skd
    >>> logits = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> [term.item() for term in skd(logits, logits)]
    [0.0, 0.0]
    """
    images, classes = median_fractions(teacher_logits)
    kd = distillation_kl(student_logits, teacher_logits.detach(), temperature).mean()
    return images * kd, classes * skd_direction(student_logits, teacher_logits, tikhonov)


def _probabilities(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    check_same_shape("logits", student, teacher)
    check_temperature("temperature", temperature)
    return (student / temperature).softmax(1), (teacher.detach() / temperature).softmax(1)
