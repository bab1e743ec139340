import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from pckd_nb import losses

from .conftest import REFERENCES, outputs, relative_error


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def heads(ref, features):
    """Compute the reference's projector g and embeddings A_s and A_t with plain torch functions."""
    hidden = F.linear(features, ref.projector_0_weight, ref.projector_0_bias)
    hidden = F.batch_norm(hidden, None, None, ref.projector_bn_weight, ref.projector_bn_bias, training=True)
    projected = F.linear(hidden.relu(), ref.projector_3_weight, ref.projector_3_bias)
    e_s = F.normalize(F.linear(features, ref.embed_student_weight, ref.embed_student_bias), dim=1)
    e_t = F.normalize(F.linear(features, ref.embed_teacher_weight, ref.embed_teacher_bias), dim=1)
    return projected, e_s, e_t


@pytest.mark.parametrize("name", REFERENCES)
def test_terms_match_the_authors_values(name, reference):
    ref = reference(name)
    student, teacher = outputs(ref)
    images, views = int(ref.B), int(ref.V)
    projected, e_s, e_t = heads(ref, student.features)
    labels = ref.labels.repeat(views)

    kl = losses.distillation_kl(student.logits[:images], teacher.logits[:images])
    assert kl.shape == (images,)
    assert relative_error(kl, ref.kd) < 1e-6
    alignment = losses.feature_alignment(projected, teacher.features)
    assert alignment.shape == (images * views,)
    assert relative_error(alignment.mean(), ref.feature_alignment) < 1e-6
    contrast = losses.category_center_contrast(e_s @ student.centers.T, e_t @ teacher.centers.T, labels)
    assert contrast.shape == (images * views,)
    assert relative_error(contrast, ref.category_center_contrast) < 1e-6
    if name == "same_width":
        centers = losses.category_center_alignment(student.centers, student.bias, teacher.centers, teacher.bias)
        assert centers.shape == ()
        assert relative_error(centers, ref.category_center_alignment) < 1e-6


def contrast_by_definition(student_scores, teacher_scores, labels, temperature=4.0, base_temperature=0.07):
    """Compute L_CC directly from its definition, in a loop over anchors and their positives."""
    vectors, labels = torch.cat([student_scores, teacher_scores]), labels.repeat(2)
    values = []
    for a in range(len(vectors)):
        others = [q for q in range(len(vectors)) if q != a]
        positives = [p for p in others if labels[p] == labels[a]]
        denominator = sum(torch.exp(vectors[a] @ vectors[q] / temperature) for q in others)
        logs = [torch.log(torch.exp(vectors[a] @ vectors[p] / temperature) / denominator) for p in positives]
        values.append(-(temperature / base_temperature) * sum(logs) / len(logs))
    first, second = torch.stack(values).chunk(2)
    return first + second


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [0, 1, 2, 3, 4], [7, 7, 7, 7, 7], [3]])
@pytest.mark.parametrize("temperatures", [(4.0, 0.07), (0.5, 1.0)])
def test_contrast_matches_its_definition(labels, temperatures):
    u_s, u_t = randn(len(labels), 6), randn(len(labels), 6, seed=1)
    labels = torch.tensor(labels)
    expected = contrast_by_definition(u_s, u_t, labels, *temperatures)
    assert torch.allclose(losses.category_center_contrast(u_s, u_t, labels, *temperatures), expected, rtol=1e-10)


def test_distillation_kl_by_hand():
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * np.log(3.0), 0.0]])
    # At T = 2 the probabilities are 3/4 and 1/4 for the teacher, 1/2 and 1/2 for the student.
    expected = 4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))
    assert losses.distillation_kl(student, teacher, temperature=2.0).item() == pytest.approx(expected, rel=1e-5)
    # 1.5 times the logits at T = 3 give the same probabilities. T = 3 tells T² from 2^T, which T = 2 and T = 4 do not.
    at_three = losses.distillation_kl(1.5 * student, 1.5 * teacher, temperature=3.0).item()
    assert at_three == pytest.approx(9 / 4 * expected, rel=1e-5)
    assert losses.distillation_kl(teacher, teacher).item() == pytest.approx(0, abs=1e-6)


def test_distillation_kl_ignores_constants_and_follows_permutations():
    student, teacher = randn(6, 5), randn(6, 5, seed=1)
    value = losses.distillation_kl(student, teacher)
    assert torch.allclose(losses.distillation_kl(student + 3, teacher - 7), value)
    order = torch.tensor([3, 1, 0, 5, 4, 2])
    assert torch.allclose(losses.distillation_kl(student[order], teacher[order]), value[order])


def test_feature_alignment_by_hand():
    student = torch.tensor([[3.0, 0.0], [0.0, 2.0], [-1.0, 0.0], [1.0, 1.0]])
    teacher = torch.tensor([[5.0, 0.0], [7.0, 0.0], [4.0, 0.0], [1.0, 0.0]])
    assert torch.allclose(losses.feature_alignment(student, teacher), torch.tensor([0, 2, 4, 2 - 2**0.5]), atol=1e-6)
    assert losses.feature_alignment(torch.zeros(1, 2), teacher[:1]).item() == 2  # zeros have no direction


def test_center_alignment_by_hand():
    weight, bias = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, 0.0])
    other = losses.category_center_alignment(weight, bias, weight + 1, bias - 2)
    assert other.item() == pytest.approx((4 * 1 + 2 * 4) / 6)  # the mean is over weights and biases
    assert losses.category_center_alignment(weight, None, weight + 1, None).item() == pytest.approx(1)


def test_contrast_is_lower_when_classes_are_clustered():
    labels = torch.tensor([0, 0, 1, 1])
    together = 3 * F.one_hot(labels).double()
    apart = 3 * F.one_hot(torch.tensor([0, 1, 0, 1])).double()
    near = losses.category_center_contrast(together, together, labels)
    assert (near < losses.category_center_contrast(apart, apart, labels)).all()


def test_contrast_follows_a_permutation():
    u_s, u_t, labels = randn(6, 4), randn(6, 4, seed=1), torch.tensor([0, 0, 1, 1, 2, 0])
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    value = losses.category_center_contrast(u_s, u_t, labels)
    assert torch.allclose(losses.category_center_contrast(u_s[order], u_t[order], labels[order]), value[order])


def all_losses(dtype, scale):
    labels = torch.tensor([0, 0, 1, 2])
    a, b = (randn(4, 5, seed=seed, scale=scale).to(dtype) for seed in (0, 1))
    yield losses.distillation_kl(a, b), losses.distillation_kl(a.double(), b.double())
    yield losses.feature_alignment(a, b), losses.feature_alignment(a.double(), b.double())
    bias_a, bias_b = a[:, 0], b[:, 0]
    yield (
        losses.category_center_alignment(a, bias_a, b, bias_b),
        losses.category_center_alignment(a.double(), bias_a.double(), b.double(), bias_b.double()),
    )
    yield (
        losses.category_center_contrast(a, b, labels),
        losses.category_center_contrast(a.double(), b.double(), labels),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_low_precision_is_close_to_float64(dtype, scale):
    for place, (low, exact) in enumerate(all_losses(dtype, scale)):
        assert low.dtype == torch.float32
        # the KL divergence of small logits subtracts nearly equal numbers, so it keeps their rounding error
        absolute = 1e-5 if place == 0 else 1e-6 * exact.abs().max()
        assert torch.allclose(low.double(), exact, rtol=1e-4, atol=float(absolute))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_huge_values_stay_finite(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype)
    student = logits.clone().requires_grad_()
    kl = losses.distillation_kl(student, logits.flip(1))
    kl.sum().backward()
    assert kl.isfinite().all() and student.grad.isfinite().all()
    exact = losses.distillation_kl(student.detach().double(), logits.flip(1).double())
    assert torch.allclose(kl.double(), exact, rtol=1e-4)

    # The contrast's gradient is about 1e9 here. float16 cannot hold that, so compute it in float32.
    scores = logits.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    contrast = losses.category_center_contrast(scores, logits.flip(1), torch.tensor([0, 1]))
    contrast.sum().backward()
    assert losses.category_center_contrast(logits, logits.flip(1), torch.tensor([0, 1])).isfinite().all()
    assert contrast.isfinite().all() and scores.grad.isfinite().all()


def test_gradients_match_finite_differences():
    a, b = randn(4, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_()
    bias_a, bias_b = randn(4, seed=2).requires_grad_(), randn(4, seed=3).requires_grad_()
    labels = torch.tensor([0, 1, 1, 2])
    assert gradcheck(losses.distillation_kl, (a, b))
    assert gradcheck(losses.feature_alignment, (a, b))
    assert gradcheck(losses.category_center_alignment, (a, bias_a, b, bias_b))
    assert gradcheck(lambda x, y: losses.category_center_contrast(x, y, labels), (a, b))


BLOCKED, PLAIN = losses.category_center_contrast, losses.category_center_contrast_plain
LABEL_PATTERNS = {
    "mixed": lambda rows: torch.arange(rows) ** 2 % 7,
    "all equal": lambda rows: torch.full((rows,), 3),
    "all distinct": lambda rows: torch.arange(rows).flip(0),
}


def value_and_gradients(contrast, u_s, u_t, labels, *temperatures):
    """Return the contrast and its gradients. Rows have different weights, so that incoming gradients differ."""
    u_s, u_t = u_s.clone().requires_grad_(), u_t.clone().requires_grad_()
    value = contrast(u_s, u_t, labels, *temperatures)
    weight = torch.linspace(0, 1, len(value), dtype=value.dtype)
    return value.detach(), *torch.autograd.grad((weight * value).sum(), (u_s, u_t))


def assert_same(ours, theirs, tolerance):
    """The tolerance is relative to the largest value, or to 1, because the contrast of only two anchors is 0."""
    for a, r in zip(ours, theirs, strict=True):
        assert a.shape == r.shape and a.isfinite().all()
        assert (a.double() - r.double()).abs().max() <= tolerance * r.abs().max().clamp(min=1)


@pytest.mark.parametrize("kind", LABEL_PATTERNS)
@pytest.mark.parametrize("rows", [1, 2, 13, 255, 256, 257, 700])  # there are 2 · rows anchors, in blocks of 256
def test_blocked_contrast_matches_the_plain_version(rows, kind):
    u_s, u_t, labels = randn(rows, 12), randn(rows, 12, seed=1), LABEL_PATTERNS[kind](rows)
    exact = value_and_gradients(PLAIN, u_s, u_t, labels)
    assert_same(value_and_gradients(BLOCKED, u_s, u_t, labels), exact, 1e-12)
    assert_same(value_and_gradients(BLOCKED, u_s.float(), u_t.float(), labels), exact, 1e-5)


@pytest.mark.parametrize("block", [1, 2, 3, 7, 25, 26, 27])
@pytest.mark.parametrize("temperatures", [(4.0, 0.07), (0.5, 1.0)])
def test_block_size_does_not_change_the_contrast(block, temperatures, monkeypatch):
    monkeypatch.setattr(losses._LogSumExpOverOthers, "BLOCK_ROWS", block)
    arguments = randn(13, 5), randn(13, 5, seed=1), LABEL_PATTERNS["mixed"](13), *temperatures
    assert_same(value_and_gradients(BLOCKED, *arguments), value_and_gradients(PLAIN, *arguments), 1e-12)


@pytest.mark.parametrize("block", [2, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocked_contrast_of_huge_scores(dtype, block, monkeypatch):
    monkeypatch.setattr(losses._LogSumExpOverOthers, "BLOCK_ROWS", block)
    u_s, u_t = (1e4 * randn(40, 10, seed=seed).sign().to(dtype) for seed in (0, 1))  # products up to 2.5e8
    ours = value_and_gradients(BLOCKED, u_s, u_t, LABEL_PATTERNS["mixed"](40))
    assert_same(ours, value_and_gradients(PLAIN, u_s, u_t, LABEL_PATTERNS["mixed"](40)), 1e-6)


@pytest.mark.parametrize("block", [1, 3, 256])
def test_blocked_contrast_gradient_matches_finite_differences(block, monkeypatch):
    monkeypatch.setattr(losses._LogSumExpOverOthers, "BLOCK_ROWS", block)
    u_s, u_t = randn(4, 3).requires_grad_(), randn(4, 3, seed=1).requires_grad_()
    labels = torch.tensor([0, 1, 1, 2])
    assert gradcheck(lambda x, y: BLOCKED(x, y, labels), (u_s, u_t))
    assert gradcheck(lambda x: BLOCKED(x, u_t.detach(), labels), u_s)
    assert gradcheck(lambda y: BLOCKED(u_s.detach(), y, labels), u_t)


def test_only_the_plain_contrast_has_second_derivatives():
    u_s, u_t, labels = randn(4, 3).requires_grad_(), randn(4, 3, seed=1), torch.tensor([0, 1, 1, 2])
    with pytest.raises(RuntimeError, match="category_center_contrast_plain"):
        torch.autograd.grad(BLOCKED(u_s, u_t, labels).sum(), u_s, create_graph=True)
    (gradient,) = torch.autograd.grad(PLAIN(u_s, u_t, labels).sum(), u_s, create_graph=True)
    assert torch.autograd.grad(gradient.square().sum(), u_s)[0].isfinite().all()


def test_contrast_under_autocast_is_float32():
    u_s, u_t, labels = randn(64, 12).float(), randn(64, 12, seed=1).float(), LABEL_PATTERNS["mixed"](64)
    exact = value_and_gradients(BLOCKED, u_s.double(), u_t.double(), labels)
    u_s.requires_grad_(), u_t.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = BLOCKED(u_s, u_t, labels)
    assert value.dtype == torch.float32
    gradients = torch.autograd.grad((torch.linspace(0, 1, 64) * value).sum(), (u_s, u_t))
    assert_same((value.detach(), *gradients), exact, 1e-5)


def test_log_denominator_gradient_under_autocast_is_float32():
    x = randn(64, 12).float().requires_grad_()
    value = losses._LogSumExpOverOthers.apply(x)
    (exact,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (gradient,) = torch.autograd.grad(value.sum(), x)
    assert torch.equal(gradient, exact)


class LargestTensor(TorchDispatchMode):
    """Record the number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, (tuple, list)) else [result]
        self.elements = max([self.elements, *(x.numel() for x in tensors if isinstance(x, torch.Tensor))])
        return result


def test_blocked_contrast_makes_no_matrix_of_all_pairs():
    u_s, u_t, labels = randn(1024, 20).float(), randn(1024, 20, seed=1).float(), torch.arange(1024) % 20
    with LargestTensor() as blocked:
        value_and_gradients(BLOCKED, u_s, u_t, labels)
    assert blocked.elements == 256 * 2048
    with LargestTensor() as plain:
        value_and_gradients(PLAIN, u_s, u_t, labels)
    assert plain.elements == 2048 * 2048  # shows that this test can detect such a matrix


PEAK = """
import torch
from pckd_nb import losses
torch.set_num_threads(1)

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

def step(contrast, rows):
    u_s, u_t = (torch.randn(rows, 100).requires_grad_() for _ in "st")
    contrast(u_s, u_t, torch.arange(rows) % 100).mean().backward()

for contrast in losses.category_center_contrast, losses.category_center_contrast_plain:
    step(contrast, 32)
    before = peak()
    step(contrast, 4096)
    print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux reports the peak memory of a process")
def test_peak_memory_of_1024_images_in_four_views():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    blocked, plain = map(int, done.stdout.split())
    assert blocked < 0.1 * 2**30
    assert plain > 0.5 * 2**30  # shows that this test can detect it


SCORES, TWO_LABELS = torch.zeros(2, 3), torch.tensor([0, 1])
ON_META = torch.zeros(2, 3, device="meta")  # a second device that every machine has
TWO_MATRICES = {
    "distillation_kl": losses.distillation_kl,
    "feature_alignment": losses.feature_alignment,
    "category_center_alignment": lambda student, teacher: losses.category_center_alignment(
        student, None, teacher, None
    ),
    "category_center_contrast": lambda s, t: BLOCKED(s, t, TWO_LABELS),
    "category_center_contrast_plain": lambda s, t: PLAIN(s, t, TWO_LABELS),
}


@pytest.mark.parametrize("name", TWO_MATRICES)
@pytest.mark.parametrize(
    "bad, complaint",
    [
        (torch.zeros(2, 4), r"differ in shape: student .*, teacher"),
        (torch.zeros(2, 2), r"differ in shape: student .*, teacher"),
        (torch.zeros(3, 3), r"differ in shape: student .*, teacher"),
        (torch.zeros(1, 3), r"differ in shape: student .*, teacher"),
        (torch.zeros(2), r"2 dimensions, none of size 0, got shape \(2,\)"),
        (torch.zeros(2, 3, 1), r"2 dimensions, none of size 0, got shape \(2, 3, 1\)"),
        (torch.zeros(2, 0), "none of size 0"),
        (torch.zeros(2, 3).long(), "floating-point numbers, got torch.int64"),
        (ON_META, "on different devices"),
    ],
)
def test_mismatched_matrices_are_refused(name, bad, complaint):
    for arguments in ((bad, SCORES), (SCORES, bad)):
        with pytest.raises(ValueError, match=complaint) as error:
            TWO_MATRICES[name](*arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", TWO_MATRICES)
def test_non_tensors_are_refused(name):
    for arguments in (([[0.0]], SCORES), (SCORES, [[0.0]])):
        with pytest.raises(TypeError, match="must be tensors, got list"):
            TWO_MATRICES[name](*arguments)


@pytest.mark.parametrize(
    "biases, complaint",
    [
        ((None, torch.zeros(2)), "a bias for both networks or for none, got only one"),
        ((torch.zeros(2), None), "a bias for both networks or for none, got only one"),
        ((torch.zeros(2), torch.zeros(3)), "differ in shape"),
        ((torch.zeros(3), torch.zeros(2)), "differ in shape"),
        ((torch.zeros(1), torch.zeros(1)), "one bias per category center, got 1 biases for 2 category centers"),
        ((torch.zeros(3), torch.zeros(3)), "one bias per category center, got 3 biases for 2 category centers"),
        ((torch.zeros(2, 1), torch.zeros(2, 1)), "biases .* must be tensors with 1 dimensions"),
    ],
)
def test_mismatched_biases_are_refused(biases, complaint):
    with pytest.raises(ValueError, match=complaint):
        losses.category_center_alignment(SCORES, biases[0], SCORES, biases[1])


@pytest.mark.parametrize("contrast", [BLOCKED, PLAIN])
@pytest.mark.parametrize(
    "labels, error, complaint",
    [
        ([0, 1], TypeError, "labels must be a tensor, got list"),
        (torch.zeros(2), ValueError, "whole numbers, got torch.float32"),
        (torch.zeros(2).bool(), ValueError, "whole numbers, got torch.bool"),
        (torch.tensor([0]), ValueError, r"labels must have shape \(2,\), one per row, got \(1,\)"),
        (torch.tensor([0, 1, 2]), ValueError, r"labels must have shape \(2,\), one per row, got \(3,\)"),
        (torch.zeros(2, 3).long(), ValueError, "labels must have shape"),
        (
            torch.zeros(2, device="meta").long(),
            ValueError,
            "labels must be on cpu, like the logits or scores, got labels on meta",
        ),
    ],
)
def test_invalid_labels_are_refused(contrast, labels, error, complaint):
    with pytest.raises(error, match=complaint):
        contrast(SCORES, SCORES, labels)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8])
def test_integer_dtypes_of_labels_give_the_same_loss(dtype):
    u_s, u_t, labels = randn(4, 3), randn(4, 3, seed=1), torch.tensor([0, 1, 1, 2])
    for contrast in (BLOCKED, PLAIN):
        assert torch.equal(contrast(u_s, u_t, labels.to(dtype)), contrast(u_s, u_t, labels))


WITH_TEMPERATURE = {
    "kl": lambda value: losses.distillation_kl(SCORES, SCORES, value),
    "blocked": lambda value: BLOCKED(SCORES, SCORES, TWO_LABELS, value),
    "blocked, base": lambda value: BLOCKED(SCORES, SCORES, TWO_LABELS, 4.0, value),
    "plain": lambda value: PLAIN(SCORES, SCORES, TWO_LABELS, value),
    "plain, base": lambda value: PLAIN(SCORES, SCORES, TWO_LABELS, 4.0, value),
}


@pytest.mark.parametrize("name", WITH_TEMPERATURE)
def test_temperatures_from_a_millionth_to_a_million(name):
    which = "base_temperature" if "base" in name else "temperature"
    for value in (1e-6, 0.5, 1, np.float32(4), torch.tensor(4.0), 1e6):
        assert WITH_TEMPERATURE[name](value).isfinite().all()
    for value in (
        0,
        -1.0,
        np.nextafter(1e-6, 0),
        np.nextafter(1e6, 2e6),
        float("nan"),
        float("inf"),
        10**400,
        -(10**400),
    ):
        with pytest.raises(ValueError, match=f"^{which} must be from 1e-06 to 1e\\+06, got"):
            WITH_TEMPERATURE[name](value)
    for value in ("4", b"4", True, None, [4], torch.ones(2), torch.tensor(1j), np.array("four")):
        with pytest.raises(TypeError, match=f"^{which} must be a number"):
            WITH_TEMPERATURE[name](value)
