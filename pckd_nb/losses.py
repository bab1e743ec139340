"""The loss terms of PCKD (arXiv 2410.14143) as pure functions of tensors.

Symbols: B images, V views of each, N = V·B rows, C categories, D feature width. Every function but
`category_center_alignment` returns one value per row; weighting and averaging happen in `methods/`.
Half-precision input is computed and returned in float32, float64 in float64.

What doesn't fit raises ValueError, what is no tensor or no number TypeError, in one line: shapes, types, devices and
temperatures are checked, which costs a GPU nothing. Values are not, for every step would have to wait for them: of
numbers that are not finite a loss is not finite either, which the training loop reports by the term's name.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx

TEMPERATURES = 1e-6, 1e6  # beyond these float32 overflows
FLOATS = torch.float16, torch.bfloat16, torch.float32, torch.float64


def distillation_kl(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 4.0) -> Tensor:
    """Hinton's distillation loss: T² · KL( softmax(z_t / T) ‖ softmax(z_s / T) ).

    student_logits, teacher_logits: (B, C), any finite values. Returns (B,) in nats, ≥ 0.
    The factor T² keeps the gradient's size independent of the temperature.
    Raises ValueError on unequal shapes or a temperature outside 1e-6 … 1e6.
    """
    check_same_shape("logits", student_logits, teacher_logits)
    check_temperature("temperature", temperature)
    log_p_student = F.log_softmax(_at_least_float32(student_logits) / temperature, dim=1)
    log_p_teacher = F.log_softmax(_at_least_float32(teacher_logits) / temperature, dim=1)
    divergence = F.kl_div(log_p_student, log_p_teacher, reduction="none", log_target=True).sum(1)
    return temperature**2 * divergence


def feature_alignment(projected_student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """L_FA: 2 − 2·cos( g(f_s), f_t ), the squared distance of the two normalised vectors.

    Both (N, D_t); the projector g has been applied already. Returns (N,) in [0, 4]; 2 where a vector is 0.
    Raises ValueError on unequal shapes.
    """
    check_same_shape("features", projected_student_features, teacher_features)
    student, teacher = _at_least_float32(projected_student_features), _at_least_float32(teacher_features)
    return 2 - 2 * F.cosine_similarity(student, teacher, dim=1)


def category_center_alignment(
    student_weight: Tensor, student_bias: Tensor | None, teacher_weight: Tensor, teacher_bias: Tensor | None
) -> Tensor:
    """L_CA: mean squared difference of [W_s | b_s] and [W_t | b_t].

    weight (C, D): the last layer, row c being the center of category c; bias (C,), or None on both sides.
    Returns a scalar, shape (). Raises ValueError when the shapes differ: centers of unequal width cannot be
    subtracted, and `methods.PCKD` leaves the term out.
    """
    if (student_bias is None) != (teacher_bias is None):
        raise ValueError("category centers: one network has a bias in its last layer and the other has none")
    check_same_shape("category centers", student_weight, teacher_weight)
    student, teacher = _at_least_float32(student_weight), _at_least_float32(teacher_weight)
    if student_bias is not None:
        assert teacher_bias is not None  # see above
        check_same_shape("biases of the category centers", student_bias, teacher_bias, dimensions=1)
        if len(student_bias) != len(student_weight):
            raise ValueError(f"{len(student_weight)} category centers can't have {len(student_bias)} biases")
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
    """L_CC: supervised contrast (arXiv 2004.11362) over the 2N score vectors {u_s, u_t}.

    student_scores u_s, teacher_scores u_t: (N, C), how near a row is to every category center of student and
    teacher; labels: (N,) integers, on a GPU in [0, C). With a, q running over all 2N vectors and P(a) the same label as
    a, not a:

        ℓ(a) = −(τ/τ0) · mean over p in P(a) of [ a·p/τ − log Σ_{q≠a} exp(a·q/τ) ]

    Returns ℓ(u_s) + ℓ(u_t), shape (N,). P(a) is never empty: it holds at least the row's other score vector.
    τ/τ0 = 4/0.07 ≈ 57 comes from the authors' code, so the published β_cc = 0.05 weighs like 2.9.
    Raises ValueError on unequal shapes, or temperatures outside 1e-6 … 1e6.

    This is the version to read, and the one to differentiate twice. It holds several (2N, 2N) matrices, so training
    uses `category_center_contrast`, which the tests hold to this one.
    """
    _contrastable(student_scores, teacher_scores, labels, temperature, base_temperature)
    anchors = _at_least_float32(torch.cat([student_scores, teacher_scores]))
    similarity = anchors @ anchors.T / temperature
    itself = torch.eye(len(anchors), dtype=torch.bool, device=anchors.device)
    log_denominator = similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1)

    sum_positive, positives = _sum_over_positives(anchors, labels)
    mean_positive = sum_positive / temperature / positives
    loss = -(temperature / base_temperature) * (mean_positive - log_denominator)
    student_loss, teacher_loss = loss.chunk(2)
    return student_loss + teacher_loss


def category_center_contrast(
    student_scores: Tensor,
    teacher_scores: Tensor,
    labels: Tensor,
    temperature: float = 4.0,
    base_temperature: float = 0.07,
) -> Tensor:
    """L_CC, the same as `category_center_contrast_plain` in a memory that grows with 2N, not with (2N)².

    Arguments, result and errors are those of the plain version. Only the log-denominator is computed otherwise: over
    blocks of rows, which the gradient computes again. Inside torch.autocast it stays in float32 or better; call
    backward() outside, as PyTorch asks. It can be differentiated once: create_graph=True raises RuntimeError.
    """
    _contrastable(student_scores, teacher_scores, labels, temperature, base_temperature)
    anchors = _at_least_float32(torch.cat([student_scores, teacher_scores]))
    with torch.autocast(anchors.device.type, enabled=False):
        log_denominator = _LogSumExpOverOthers.apply(anchors / temperature**0.5)  # products of these are a·q/τ
        sum_positive, positives = _sum_over_positives(anchors, labels)
        mean_positive = sum_positive / temperature / positives

    loss = -(temperature / base_temperature) * (mean_positive - log_denominator)
    student_loss, teacher_loss = loss.chunk(2)
    return student_loss + teacher_loss


def _sum_over_positives(anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Σ a·p over the other vectors p of a's category, and how many these are: anchors (2N, C), labels (N,) -> two
    tensors (2N,).

    Without pairs, as Σ_{p in P(a)} a·p = a·(S − a), S being the sum over a's category. On a GPU labels must be below C:
    which of them there are it would have to wait for.
    """
    if labels.device.type == "cpu":
        members = F.one_hot(torch.unique(labels.repeat(2), return_inverse=True)[1]).to(anchors.dtype)
    else:
        members = F.one_hot(labels.long(), anchors.shape[1]).repeat(2, 1).to(anchors.dtype)
    category_sum = members @ (members.T @ anchors)
    positives = members @ members.sum(0) - 1
    return (anchors * (category_sum - anchors)).sum(1), positives


class _LogSumExpOverOthers(torch.autograd.Function):
    """x: (M, C) -> ℓ: (M,), ℓ_a = log Σ_{q≠a} exp(x_a·x_q), without ever holding the (M, M) matrix s_aq = x_a·x_q.

    s is symmetric, so every pair is computed once, as part of a block of rows right of the diagonal, and serves both
    its row and its column. With g = ∂L/∂ℓ the gradient is

        ∂L/∂x_a = Σ_{q≠a} w_aq · x_q,   w_aq = g_a · exp(s_aq − ℓ_a) + g_q · exp(s_aq − ℓ_q)

    where no exp can overflow: s_aq is a part of both ℓ_a and ℓ_q. Only x and ℓ are kept for it.
    """

    ROWS = 256  # of a block; on a CPU 128 to 256 are equally fast; fewer should suit a GPU

    @classmethod
    def blocks(cls, x: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """start, stop and x[start:stop] @ x[start:].T, with −inf for a vector and itself."""
        for start in range(0, len(x), cls.ROWS):
            stop = min(start + cls.ROWS, len(x))
            similarity = x[start:stop] @ x[start:].T
            similarity.diagonal().fill_(-torch.inf)
            yield start, stop, similarity

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        result = x.new_full((len(x),), -torch.inf)
        for start, stop, similarity in _LogSumExpOverOthers.blocks(x):
            right = similarity[:, stop - start :]
            result[start:stop] = result[start:stop].logaddexp(similarity.logsumexp(dim=1))
            result[stop:] = result[stop:].logaddexp(right.logsumexp(dim=0))
        ctx.save_for_backward(x, result)
        return result

    @staticmethod
    def backward(ctx: BackwardCFunction, g: Tensor) -> Tensor:
        if torch.is_grad_enabled():  # create_graph=True; once_differentiable would let this pass, with wrong results
            raise RuntimeError(
                "category_center_contrast can be differentiated once; category_center_contrast_plain, again and again"
            )
        x, result = ctx.saved_tensors  # type: ignore[misc]  # torch's types have one tensor there
        gradient = torch.zeros_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for start, stop, similarity in _LogSumExpOverOthers.blocks(x):
                weight = (similarity - result[start:stop, None]).exp_().mul_(g[start:stop, None])
                weight.addcmul_(similarity.sub_(result[start:]).exp_(), g[start:])
                right = weight[:, stop - start :]
                gradient[start:stop] += weight @ x[start:]
                gradient[stop:] += right.T @ x[start:stop]
        return gradient


def _contrastable(student_scores: Tensor, teacher_scores: Tensor, labels: Tensor, *temperatures: float) -> None:
    check_same_shape("scores", student_scores, teacher_scores)
    check_labels(labels, student_scores)
    for name, temperature in zip(("temperature", "base_temperature"), temperatures, strict=True):
        check_temperature(name, temperature)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def check_same_shape(what: str, student: Tensor, teacher: Tensor, dimensions: int = 2) -> None:
    """Raises ValueError unless both are of floating-point numbers, of one shape and in one place; TypeError for what is
    no tensor."""
    for x in (student, teacher):
        if not isinstance(x, Tensor):
            raise TypeError(f"{what} must be tensors, got {type(x).__name__}")
        if x.dtype not in FLOATS:
            raise ValueError(f"{what} must be floating-point numbers, got {x.dtype}")
        if x.ndim != dimensions or 0 in x.shape:
            raise ValueError(f"{what} must have {dimensions} dimensions, none of them empty, got {tuple(x.shape)}")
    if student.shape != teacher.shape:
        raise ValueError(f"{what} differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    if student.device != teacher.device:
        raise ValueError(f"{what} are on two devices: student {student.device}, teacher {teacher.device}")


def check_labels(labels: Tensor, rows: Tensor) -> None:
    """Raises ValueError unless labels are whole numbers, one a row and where the rows are; TypeError for no tensor."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a tensor, got {type(labels).__name__}")
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise ValueError(f"labels must be whole numbers, got {labels.dtype}")
    if labels.shape != rows.shape[:1]:
        raise ValueError(f"labels must have shape {tuple(rows.shape[:1])}, got {tuple(labels.shape)}")
    if labels.device != rows.device:
        raise ValueError(f"labels are on {labels.device}, what they label on {rows.device}")


def check_temperature(name: str, value: float) -> None:
    """Raises ValueError for one that float32 can't bear, TypeError for what is no number."""
    lowest, highest = TEMPERATURES
    if not lowest <= _number(name, value) <= highest:
        raise ValueError(f"{name} must be positive, from {lowest:g} to {highest:g}, got {value}")


def _number(name: str, value: float) -> float:
    """As a float, infinite where that overflows. Raises TypeError for text, truth values and what else is no number."""
    try:
        if not isinstance(value, bool | str | bytes):
            return float(value)
    except OverflowError:
        return float("inf") if value > 0 else -float("inf")
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        pass
    raise TypeError(f"{name} must be a number, got {type(value).__name__}")
