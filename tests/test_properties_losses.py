"""Properties of losses, preview weights and views that hold for every input, and the arguments that they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pckd_nb as pckd
from pckd_nb import losses, methods, preview, views
from pckd_nb.methods import Batch

from .properties import (
    NON_FLOAT_DTYPES,
    Case,
    bad_floats,
    bad_integer,
    bad_labels,
    bad_number,
    bad_tensor,
    check_bad_values,
    examples,
)
from .test_methods import FakeNet

DTYPES = torch.float16, torch.bfloat16, torch.float32, torch.float64
CONTRASTS = losses.category_center_contrast, losses.category_center_contrast_plain


@st.composite
def matrices(draw, count=2, dtypes=DTYPES):
    """Generate `count` matrices of one shape and dtype, and labels of their rows. Some have zeros or equal rows."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    dtype, size = draw(st.sampled_from(dtypes)), 10.0 ** draw(st.integers(-4, 4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    found = [size * (2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1) for _ in range(count)]
    kind = draw(st.sampled_from(["any", "any", "zeros", "a row of zeros", "equal rows", "both the same", "extremes"]))
    if kind == "zeros":
        found[0] = torch.zeros_like(found[0])
    elif kind == "a row of zeros":
        found[0][0] = 0
    elif kind == "equal rows":
        found = [x[:1].repeat(rows, 1) for x in found]
    elif kind == "both the same":
        found = [found[0].clone() for _ in found]
    elif kind == "extremes":
        found = [size * x.sign() for x in found]
    several = torch.randint(0, columns, (rows,), generator=generator)
    labels = draw(st.sampled_from([several, torch.zeros(rows).long(), several.int()]))
    return [x.to(dtype) for x in found], labels


def all_losses(a, b, labels):
    """Yield the name and value of every loss of two matrices."""
    yield "kl", losses.distillation_kl(a, b)
    yield "alignment", losses.feature_alignment(a, b)
    yield "centers", losses.category_center_alignment(a, a[:, 0], b, b[:, 0])
    yield "centers alone", losses.category_center_alignment(a, None, b, None)
    for contrast in CONTRASTS:
        yield contrast.__name__, contrast(a, b, labels)


@examples(150)
@given(matrices())
def test_losses_and_gradients_of_valid_input_are_finite(given):
    (a, b), labels = given
    for name, value in all_losses(a, b, labels):
        assert value.isfinite().all() and value.dtype == torch.promote_types(a.dtype, torch.float32), name
    # In 16 bits a gradient can overflow. Training keeps everything that needs one in float32.
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)).requires_grad_() for x in (a, b))
    for name, value in all_losses(a, b, labels):
        for gradient in torch.autograd.grad(value.sum(), (a, b)):
            assert gradient.isfinite().all(), name


def test_temperatures_at_the_ends_of_their_range_give_finite_losses():
    a, b = 1e4 * torch.eye(3), -1e4 * torch.eye(3)
    labels = torch.tensor([0, 1, 1])
    for temperature in losses.TEMPERATURE_RANGE:
        for value in (
            losses.distillation_kl(a, b, temperature),
            *(contrast(a, b, labels, temperature, base) for contrast in CONTRASTS for base in losses.TEMPERATURE_RANGE),
        ):
            assert value.isfinite().all(), temperature


def nearly_equal(ours, theirs):
    """Compare relative to the largest value: in float64, sums in another order differ by about as much."""
    return (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max() + 1e-9


@examples(100)
@given(matrices(dtypes=[torch.float64]), st.randoms(use_true_random=False))
def test_permuting_a_batch_permutes_the_losses(given, random):
    (a, b), labels = given
    order = random.sample(range(len(a)), len(a))
    assert torch.equal(losses.distillation_kl(a[order], b[order]), losses.distillation_kl(a, b)[order])
    assert nearly_equal(losses.feature_alignment(a[order], b[order]), losses.feature_alignment(a, b)[order])
    for contrast in CONTRASTS:
        assert nearly_equal(contrast(a[order], b[order], labels[order]), contrast(a, b, labels)[order])
    cross_entropy = a[:, 0].abs()
    gamma = preview.difficulty(cross_entropy)
    assert torch.allclose(preview.difficulty(cross_entropy[order]), gamma[order], rtol=1e-12)
    for weigh in preview.STRATEGIES.values():
        permuted = weigh(cross_entropy[order], gamma[order], 1.1)
        assert torch.allclose(permuted, weigh(cross_entropy, gamma, 1.1)[order], rtol=1e-12)


@examples(100)
@given(matrices(dtypes=[torch.float64]), st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))
def test_a_constant_added_to_all_logits_changes_nothing(given, one, other):
    (a, b), labels = given
    size = max(a.abs().max(), b.abs().max(), abs(one), abs(other))
    shifted = torch.linspace(-1, 1, len(a), dtype=torch.float64)[:, None] * one  # another constant per row
    kl = losses.distillation_kl(a + shifted, b + other)
    assert torch.allclose(kl, losses.distillation_kl(a, b), rtol=1e-9, atol=1e-12 * float(size))
    plain, moved = (
        methods.upright_cross_entropy(pckd.Output(x, x, x, None), Batch(labels, labels)) for x in (a, a + shifted)
    )
    assert torch.allclose(plain, moved, rtol=1e-9, atol=1e-12 * float(size))


crossentropies = st.lists(st.floats(0, 1e4, width=32), min_size=1, max_size=40).map(lambda x: torch.tensor(x).double())


@examples(150)
@given(crossentropies, st.integers(1, 300), st.floats(1.0, 1.1))
def test_doubling_every_sample_does_not_change_difficulty_and_weights(cross_entropy, epoch, epsilon):
    gamma, limit = preview.difficulty(cross_entropy), preview.threshold(epoch, epsilon)
    assert gamma.isfinite().all() and (gamma >= 0).all()
    for double in (cross_entropy.repeat(2), cross_entropy.repeat_interleave(2)):
        again = preview.difficulty(double)
        order = (lambda x: x.repeat(2)) if torch.equal(double, cross_entropy.repeat(2)) else (
            lambda x: x.repeat_interleave(2))  # fmt: skip
        assert torch.allclose(again, order(gamma), rtol=1e-12)
        clear = (order(gamma) - limit).abs() > 1e-9  # not at the step of `constant` at the threshold
        for weigh in preview.STRATEGIES.values():
            if weigh is preview.constant and not clear.all():
                continue
            weights = weigh(double, again, limit)
            assert torch.allclose(weights[clear], order(weigh(cross_entropy, gamma, limit))[clear], rtol=1e-9)
            assert (weights >= 0).all() and (weights <= 1).all()


@examples(50)
@given(matrices(dtypes=[torch.float64]))
def test_the_contrast_of_a_doubled_batch_and_its_gradient_are_finite(given):
    (a, b), labels = given
    for contrast in CONTRASTS:
        u_s, u_t = a.repeat(2, 1).requires_grad_(), b.repeat(2, 1).requires_grad_()
        value = contrast(u_s, u_t, labels.repeat(2))
        assert value.shape == (2 * len(a),) and nearly_equal(value[: len(a)], value[len(a) :])
        assert all(x.isfinite().all() for x in (value, *torch.autograd.grad(value.sum(), (u_s, u_t))))


@given(st.integers(1, 30), st.sampled_from(DTYPES))
@examples(30)
def test_if_every_cross_entropy_is_zero_every_difficulty_is_one(samples, dtype):
    logits = torch.full((samples, 3), -1e4).index_fill(1, torch.tensor([2]), 1e4).to(dtype)
    labels = torch.full((samples,), 2)
    terms = methods.Supervised()(pckd.Output(logits, logits, logits, None), None, Batch(labels, labels), 1)
    assert (terms.cross_entropy == 0).all() and (terms.difficulty == 1).all()


@examples(60)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 2**31),
    st.floats(-1e3, 1e3),
)
def test_the_objective_ignores_order_and_constants_and_is_finite(images, classes, width, turns, seed, constant):
    """Check PCKD with any number of images, classes, features and views."""
    generator = torch.Generator().manual_seed(seed)
    rows = max(images, 2) * turns  # BatchNorm needs two rows
    images = rows // turns

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, teacher_features = draw(rows, width), draw(rows, width)
    centers, teacher_centers = draw(classes, width), draw(classes, width)
    labels = torch.randint(0, classes, (images,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        method = pckd.PCKD(views=turns).bind(*(FakeNet(width, classes, bias=False) for _ in range(2))).double()

    def terms(order, shift=0.0):
        all_rows = torch.cat([order + turn * images for turn in range(turns)])
        f_s, f_t = features[all_rows].requires_grad_(), teacher_features[all_rows]
        student = pckd.Output(f_s, f_s @ centers.T + shift, centers, None)
        teacher = pckd.Output(f_t, f_t @ teacher_centers.T - shift, teacher_centers, None)
        found = method(student, teacher, Batch(labels[order], order), 3)
        (gradient,) = torch.autograd.grad(found.total, f_s)
        assert found.total.isfinite() and gradient.isfinite().all()
        return found

    plain = terms(torch.arange(images))
    order = torch.randperm(images, generator=generator)
    for other, place in ((terms(order), order), (terms(torch.arange(images), constant), torch.arange(images))):
        assert torch.allclose(other.total, plain.total, rtol=1e-7)
        assert torch.allclose(other.difficulty, plain.difficulty[place], rtol=1e-7)
        assert torch.allclose(other.weight, plain.weight[place], rtol=1e-7)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_inputs_give_non_finite_losses(value):
    """Losses do not check for them, because a GPU would have to wait. Training reports losses that are not finite."""
    good, labels = torch.eye(3), torch.tensor([0, 1, 1])
    bad = good.clone()
    bad[1, 2] = value
    for first, second in ((bad, good), (good, bad)):
        for name, found in all_losses(first, second, labels):
            assert not found.sum().isfinite(), name
    row = torch.tensor([True, False, True])
    assert losses.distillation_kl(bad, good).isfinite().equal(row)
    if value != math.inf:
        output = pckd.Output(bad, bad, bad, None)
        if math.isnan(value):
            assert not methods.upright_cross_entropy(output, Batch(labels, labels))[1].isfinite()
            assert not preview.difficulty(bad[1]).isfinite().any() and not preview.weight(bad[1], 1.0)[2].isfinite()


def forward(method=None, logits=None, labels=None, teacher=True, epoch=1):
    """Call a method on made-up outputs."""
    x = torch.eye(4, 3)
    student = pckd.Output(torch.eye(4, 2), logits, torch.eye(3, 2), None)
    teacher = pckd.Output(torch.eye(4, 2), x, torch.eye(3, 2), None) if teacher else None
    return method(student, teacher, Batch(labels, torch.arange(4)), epoch)


def method_case(method, *more):
    bad = {
        "logits": ("logits|labels", bad_floats(4, 3).filter(lambda x: list(getattr(x, "shape", [])) != [4, 4])),
        "labels": ("labels", bad_labels(4, 3)),
        "teacher": ("teacher", st.just(False)),
        "epoch": ("epoch", bad_integer(1)),
    }
    good = {"method": method, "logits": torch.eye(4, 3), "labels": torch.tensor([0, 1, 2, 0])}
    return Case(forward, good, {name: bad[name] for name in ("logits", "labels", *more)})


def pair_case(function, first, second, what, **more):
    matrix = bad_floats(3, 4)
    return Case(function, {first: torch.eye(3, 4), second: torch.ones(3, 4), **{k: v[0] for k, v in more.items()}},
                {first: (what, matrix), second: (what, matrix), **{k: v[1] for k, v in more.items()}})  # fmt: skip


def temperatures(good=4.0):
    """Return a valid temperature, and a strategy for invalid ones."""
    return good, ("temperature", bad_number(1e-6, 1e6, open_at_lowest=False))


def weights_case(function):
    values = bad_per_sample.filter(lambda x: function is not preview.weight or not is_valid_per_sample(x))
    bad = {"difficulty": ("difficulty|samples", values), "threshold": ("threshold", bad_threshold)}
    good = {"difficulty": torch.rand(3), "threshold": 1.1}
    if function is not preview.weight:
        good["cross_entropy"] = torch.rand(3)
        bad["cross_entropy"] = "cross_entropy", bad_per_sample
    return Case(function, good, bad)


bad_per_sample = bad_floats(3).filter(lambda x: not isinstance(x, torch.Tensor) or x.dtype != torch.float8_e5m2)
bad_per_sample = bad_per_sample.filter(lambda x: not (isinstance(x, torch.Tensor) and x.device.type == "meta"))


def is_not_meta(x):
    return not getattr(x, "is_meta", False)


def is_valid_per_sample(x):
    """Return whether x has one number per sample, for a batch of any size."""
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.ndim == 1 and len(x) > 0


bad_threshold = bad_number(0, open_at_lowest=False, infinite=True)
bad_images = bad_tensor(2, 3, 4, 4, dtypes=(torch.float32, torch.int64, torch.bool)) | st.just(torch.zeros(2, 3, 4, 4))
images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
bad_key = bad_integer(-(2**63), 2**63 - 1)
bad_index = bad_tensor(2, dtypes=(torch.float32, torch.int32, torch.bool))
labels_case = torch.tensor([0, 1, 1]), ("labels", bad_labels(3))
bias_case = torch.ones(3), ("bias|centers", bad_floats(3, none=True))
bound = pckd.PCKD(views=1).bind(FakeNet(2, 3, bias=False), FakeNet(2, 3, bias=False))

CASES = {
    "distillation_kl": pair_case(
        losses.distillation_kl, "student_logits", "teacher_logits", "logits", temperature=temperatures()
    ),
    "feature_alignment": pair_case(
        losses.feature_alignment, "projected_student_features", "teacher_features", "features"
    ),
    "category_center_alignment": pair_case(
        losses.category_center_alignment, "student_weight", "teacher_weight", "centers",
        student_bias=bias_case, teacher_bias=bias_case,
    ),
    **{
        function.__name__: pair_case(
            function, "student_scores", "teacher_scores", "scores", labels=labels_case,
            temperature=temperatures(), base_temperature=temperatures(0.07),
        )
        for function in CONTRASTS
    },
    "difficulty": Case(
        preview.difficulty,
        {"cross_entropy": torch.rand(3)},
        {"cross_entropy": ("cross_entropy", bad_per_sample.filter(lambda x: not is_valid_per_sample(x)))},
    ),
    "threshold": Case(
        preview.threshold,
        {"epoch": 3, "epsilon": 1.005},
        {
            "epoch": ("epoch", bad_integer(1).filter(lambda x: not isinstance(x, int) or x < 1 or x is True)),
            "epsilon": ("epsilon", bad_number(0, infinite=True)),
        },
    ),
    **{f.__name__: weights_case(f) for f in (preview.weight, *preview.STRATEGIES.values())},
    "random_bits": Case(
        views.random_bits,
        {"seed": 0, "epoch": 1, "index": torch.arange(2), "stream": 0},
        {"seed": ("seed", bad_key), "epoch": ("epoch", bad_key), "stream": ("stream", bad_key),
         "index": ("index", bad_index.filter(lambda x: getattr(x, "dtype", None) != torch.int64))},
    ),
    "step_seed": Case(
        views.step_seed, {"seed": 0, "epoch": 1, "step": 2, "rank": 3},
        {"seed": ("seed", bad_key), "epoch": ("epoch", bad_key), "step": ("step", bad_integer(0, 2**42)),
         "rank": ("rank", bad_integer(0, 2**20 - 1))},
    ),
    "steps_per_epoch": Case(
        views.steps_per_epoch, {"count": 9, "batch_size": 2},
        {"count": ("count", bad_integer(1, 2**63 - 1)), "batch_size": ("batch_size", bad_integer(1, 2**63 - 1))},
    ),
    "batches": Case(
        views.batches,
        {"count": 9, "batch_size": 2, "seed": 0, "epoch": 1},
        {"count": ("count", bad_integer(1, 2**63 - 1)), "batch_size": ("batch_size", bad_integer(1, 2**63 - 1)),
         "seed": ("seed", bad_key), "epoch": ("epoch", bad_key)},
    ),
    "augment": Case(
        views.augment,
        {"images": images, "seed": 0, "epoch": 1, "index": torch.arange(2)},
        {"images": ("images|index", bad_images), "index": ("index", bad_index.filter(is_not_meta)),
         "seed": ("seed", bad_key), "epoch": ("epoch", bad_key),
         "padding": ("padding", bad_integer(0, views.MAX_PADDING))},
    ),
    "normalise": Case(
        views.normalise,
        {"images": images, "mean": torch.ones(3), "std": torch.ones(3)},
        {"images": ("images|mean", bad_images), "mean": ("mean", bad_tensor(3, dtypes=NON_FLOAT_DTYPES[:-1])),
         "std": ("std", bad_tensor(3, dtypes=NON_FLOAT_DTYPES[:-1]))},
    ),
    "rotate": Case(
        views.rotate,
        {"images": images, "views": 2},
        {"images": ("images", st.sampled_from([None, "x", 1, torch.zeros(3), torch.zeros(0, 1, 2, 2)])
                    | st.tuples(st.integers(1, 4), st.integers(5, 8)).map(lambda sides: torch.zeros(1, 1, *sides))),
         "views": ("views", bad_integer(1, 4))},
    ),
    "decoupled_kl": pair_case(
        methods.baselines.decoupled_kl, "student", "teacher", "logits",
        labels=(torch.tensor([0, 1, 1]), ("labels", bad_labels(3, 4))), temperature=temperatures(),
    ),
    "step of Supervised": method_case(methods.Supervised()),
    "step of KD": method_case(methods.KD(), "teacher"),
    "step of PCKD": method_case(bound, "teacher", "epoch"),
    "step of DKD": method_case(methods.make("DKD"), "teacher"),
    "PCKD before it is bound": Case(
        lambda method: forward(method, torch.eye(4, 3), torch.tensor([0, 1, 2, 0])),
        {"method": bound},
        {"method": ("bind", st.builds(pckd.PCKD, beta_fa=st.floats(0, 9), beta_cc=st.floats(1, 9), views=st.just(1)))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_invalid_arguments_are_refused(name):
    check_bad_values(CASES[name], 20)


@pytest.mark.slow
def test_hundreds_of_invalid_arguments_are_refused():
    assert sum(check_bad_values(case, 60) for case in CASES.values()) >= 500
