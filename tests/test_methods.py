import inspect

import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb import losses, methods, preview
from pckd_nb.methods import KD, PCKD, Batch, Supervised

from .conftest import REFERENCES, outputs, relative_error


class Sizes:
    """All that `bind` asks of a network."""

    def __init__(self, feature_width: int, num_classes: int, bias: bool = True):
        self.feature_width, self.num_classes = feature_width, num_classes
        self.head = torch.nn.Linear(feature_width, num_classes, bias)


def bound_to(ref, **settings) -> PCKD:
    """PCKD with the reference's heads."""
    student, teacher = (Sizes(getattr(ref, f"{who}_weight").shape[1], int(ref.C)) for who in ("student", "teacher"))
    method = PCKD(views=int(ref.V), **settings).bind(student, teacher).double()
    names = {"projector.0": "projector_0", "projector.1": "projector_bn", "projector.3": "projector_3"}
    names |= {"embed_student": "embed_student", "embed_teacher": "embed_teacher"}
    state = method.state_dict()
    for ours, theirs in names.items():
        for part in ("weight", "bias"):
            assert state[f"{ours}.{part}"].shape == getattr(ref, f"{theirs}_{part}").shape
            state[f"{ours}.{part}"] = getattr(ref, f"{theirs}_{part}")
    method.load_state_dict(state)
    return method


def batch_of(ref) -> Batch:
    return Batch(ref.labels, torch.arange(int(ref.B)))


@pytest.mark.parametrize("name", REFERENCES)
def test_objective_and_gradients_are_the_authors(name, reference):
    ref = reference(name)
    method = bound_to(ref)
    student, teacher = outputs(ref)
    terms = method(student, teacher, batch_of(ref), int(ref.epoch))
    assert relative_error(terms.total, ref.total) < 1e-6
    assert relative_error(terms.cross_entropy, ref.cross_entropy) < 1e-6
    assert relative_error(terms.difficulty, ref.difficulty) < 1e-6
    assert relative_error(terms.weight, ref.preview_weight) < 1e-6
    v, views = ref.preview_weight, int(ref.V)
    assert relative_error(terms.terms["distillation_kl"], (v * ref.kd).mean()) < 1e-6
    expected = (v.repeat(views) * ref.category_center_contrast).mean()
    assert relative_error(terms.terms["category_center_contrast"], expected) < 1e-6
    assert relative_error(terms.terms["feature_alignment"], ref.feature_alignment) < 1e-6
    assert ("category_center_alignment" in method.left_out) == (name != "same_width")
    terms.total.backward()
    assert relative_error(student.features.grad, ref.grad_student_features) < 1e-6
    assert relative_error(student.centers.grad, ref.grad_student_weight) < 1e-6
    assert relative_error(student.bias.grad, ref.grad_student_bias) < 1e-6


def test_previewed_reference_really_previews(reference):
    assert (reference("previewed").preview_weight < 1).any()


def test_total_is_the_sum_of_weighted_terms(reference):
    ref = reference("same_width")
    method = bound_to(ref, beta_kd=0.3, beta_fa=7, beta_ca=2, beta_cc=0.01)
    terms = method(*outputs(ref), batch_of(ref), 1).terms
    total = method(*outputs(ref), batch_of(ref), 1).total
    names = ("cross_entropy", "distillation_kl", "feature_alignment", "category_center_alignment")
    expected = sum(b * terms[n] for b, n in zip((1, 0.3, 7, 2), names, strict=True))
    assert torch.isclose(total, expected + 0.01 * terms["category_center_contrast"])


@pytest.mark.parametrize("name", REFERENCES)
def test_settings_reach_the_terms_they_belong_to(name, reference):
    """Temperature: L_KD alone, L_CC keeps its own. ε and the epoch: the threshold. v: L_KD and every view in L_CC."""
    ref = reference(name)
    student, teacher = outputs(ref)
    method = bound_to(ref, beta_kd=0.3, beta_fa=7, beta_ca=2, beta_cc=0.01, temperature=2.5, epsilon=1.1)
    found = method(student, teacher, batch_of(ref), 3)

    images, views = int(ref.B), int(ref.V)
    v = preview.weight(ref.difficulty, 1.1**3)
    kl = losses.distillation_kl(student.logits[:images], teacher.logits[:images], 2.5)
    expected = ref.cross_entropy.mean() + 0.3 * (v * kl).mean() + 7 * ref.feature_alignment
    expected += 0.01 * (v.repeat(views) * ref.category_center_contrast).mean()
    if name == "same_width":
        expected += 2 * ref.category_center_alignment
    assert relative_error(found.weight, v) < 1e-6
    assert relative_error(found.total, expected.detach()) < 1e-6


def test_a_strategy_of_ones_own_is_given_difficulty_and_threshold_without_gradient(reference):
    ref, given = reference("previewed"), []

    def strategy(*arguments):
        given.extend(arguments)
        return torch.full_like(arguments[0], 0.5)

    found = bound_to(ref, strategy=strategy, epsilon=1.2)(*outputs(ref), batch_of(ref), 4)
    cross_entropy, difficulty, threshold = given
    assert not cross_entropy.requires_grad and relative_error(cross_entropy, ref.cross_entropy) < 1e-6
    assert not difficulty.requires_grad and relative_error(difficulty, ref.difficulty) < 1e-6
    assert threshold == pytest.approx(1.2**4)
    assert (found.weight == 0.5).all() and torch.equal(found.difficulty, difficulty)
    assert not found.cross_entropy.requires_grad


BETAS = ("beta_kd", "beta_fa", "beta_ca", "beta_cc")


@pytest.mark.parametrize("beta", BETAS)
def test_a_beta_of_zero_leaves_its_term_out(beta, reference):
    ref = reference("same_width")
    student, teacher = (Sizes(16, 10) for _ in range(2))
    method = PCKD(**{beta: 0}).bind(student, teacher).double()
    terms = method(*outputs(ref), batch_of(ref), 1)
    names = ["cross_entropy", "distillation_kl", "feature_alignment", "category_center_alignment"]
    names.append("category_center_contrast")
    assert list(terms.terms) == [name for name, b in zip(names, ["", *BETAS], strict=True) if b != beta]
    assert terms.total.isfinite()
    assert hasattr(method, "projector") == (beta != "beta_fa")
    assert hasattr(method, "embed_student") == hasattr(method, "embed_teacher") == (beta != "beta_cc")


def test_no_gradient_reaches_the_teacher(data):
    student, teacher = pckd.create_model("resnet8", data), pckd.create_model("resnet14", data)
    x, labels = torch.randn(12, 1, 8, 8), torch.tensor([0, 1, 2])
    for method in (KD(), PCKD()):
        method.bind(student, teacher)
        rows = x[: 3 * method.views]
        method(student(rows), teacher(rows), Batch(labels, labels), 1).total.backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(parameter.grad is not None for parameter in (*student.parameters(), *method.parameters()))
        student.zero_grad()


def test_no_gradient_flows_through_the_weight(reference):
    """With the weights replaced by the same constants, the gradients stay as they are."""
    ref = reference("previewed")
    gradients = []
    for strategy in ("preview", lambda cross_entropy, difficulty, threshold: ref.preview_weight):
        student, teacher = outputs(ref)
        bound_to(ref, strategy=strategy)(student, teacher, batch_of(ref), int(ref.epoch)).total.backward()
        gradients.append(student.features.grad)
    assert relative_error(*gradients) < 1e-12  # in float64: not to the bit, as processors differ in their exponentials


def test_bind_keeps_no_network(data):
    method = PCKD().bind(pckd.create_model("resnet8", data), pckd.create_model("wrn_16_2", data))
    assert not any(isinstance(module, pckd.models.Classifier) for module in method.modules())
    assert "width 64" in method.left_out["category_center_alignment"]
    assert "128" in method.left_out["category_center_alignment"]
    method.bind(Sizes(64, 5), Sizes(64, 5, bias=False))
    assert method.left_out == {"category_center_alignment": "only the student's last layer has a bias"}
    method.bind(Sizes(64, 5, bias=False), Sizes(64, 5))
    assert method.left_out == {"category_center_alignment": "only the teacher's last layer has a bias"}
    for bias in (True, False):
        assert PCKD().bind(Sizes(64, 5, bias), Sizes(64, 5, bias)).left_out == {}
        assert method.bind(Sizes(64, 5, bias), Sizes(64, 5, bias)).left_out == {}  # bound again, it forgets
    reason = "student's category centers have width 32, the teacher's 16"
    assert PCKD().bind(Sizes(32, 5), Sizes(16, 5)).left_out == {"category_center_alignment": reason}
    for teacher in (Sizes(16, 5), Sizes(32, 5, bias=False)):
        assert PCKD(beta_ca=0).bind(Sizes(32, 5), teacher).left_out == {}  # nobody has asked for it
        assert PCKD(beta_cc=0).bind(Sizes(32, 5), teacher).left_out


@pytest.mark.parametrize("settings", [{}, {"beta_fa": 0}, {"beta_cc": 0}])
def test_heads_are_needed_before_the_first_step(settings, reference):
    ref = reference("one_view")
    with pytest.raises(ValueError, match=r"call bind\(student, teacher\) before the first step"):
        PCKD(views=1, **settings)(*outputs(ref), batch_of(ref), 1)


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_every_number_of_views_is_possible_and_meant(views, reference):
    ref = reference("same_width")
    rows = int(ref.B) * views
    student, teacher = (
        output._replace(features=output.features[:rows], logits=output.logits[:rows]) for output in outputs(ref)
    )
    for said in (1, 2, 3, 4):
        method = PCKD(views=said).bind(Sizes(16, 10), Sizes(16, 10)).double()
        if said == views:
            assert method(student, teacher, batch_of(ref), 1).total.isfinite()
        else:
            with pytest.raises(ValueError, match=f"{rows} rows"):
                method(student, teacher, batch_of(ref), 1)


def test_what_the_training_loop_asks_of_pckd():
    assert PCKD.uses_teacher and PCKD.title == "PCKD"


def test_heads_have_the_papers_sizes(data):
    method = PCKD().bind(pckd.create_model("resnet8", data), pckd.create_model("wrn_16_2", data))
    assert [tuple(p.shape) for p in method.projector.parameters() if p.ndim == 2] == [(16 * 128, 64), (128, 16 * 128)]
    assert method.embed_student.weight.shape == (64, 64) and method.embed_teacher.weight.shape == (128, 64)


def test_supervised_and_kd_by_hand(reference):
    ref = reference("one_view")
    student, teacher = outputs(ref)
    supervised = Supervised().bind(None)(student, None, batch_of(ref), 1)
    assert torch.isclose(supervised.total, ref.cross_entropy.mean())
    assert relative_error(supervised.difficulty, ref.difficulty) < 1e-6
    assert (supervised.weight == 1).all()
    kd = KD(beta_kd=2)(student, teacher, batch_of(ref), 1)
    assert torch.isclose(kd.total, (ref.cross_entropy + 2 * ref.kd).mean())
    assert set(kd.terms) == {"cross_entropy", "distillation_kl"}


def test_a_step_without_the_teacher_is_refused(reference):
    ref = reference("one_view")
    for method in (KD(), bound_to(ref)):
        advice = "pass the teacher's output to forward$"
        complaint = f"{method.title} compares .* with the teacher's, but the teacher's is None: {advice}"
        with pytest.raises(ValueError, match=complaint):
            method(outputs(ref)[0], None, batch_of(ref), 1)


def test_unequal_class_counts_are_refused():
    for method in (KD(), PCKD()):
        with pytest.raises(ValueError, match="10 classes, the student 7"):
            method.bind(Sizes(4, 7), Sizes(4, 10))


@pytest.mark.parametrize(
    "settings",
    [
        {name: value}
        for name in ("beta_kd", "beta_fa", "beta_ca", "beta_cc")
        for value in (-1, float("nan"), float("inf"))
    ]
    + [
        {"temperature": 0},
        {"temperature": -4},
        {"epsilon": 0},
        {"views": 0},
        {"views": 5},
        {"strategy": "random"},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        PCKD(**settings)


@pytest.mark.parametrize(
    "settings", [{"beta_cc": "1"}, {"temperature": None}, {"views": "4"}, {"views": 2.0}, {"strategy": 4}]
)
def test_settings_of_the_wrong_type_are_refused(settings):
    with pytest.raises(TypeError, match=next(iter(settings))):
        PCKD(**settings)


def test_published_values_are_the_defaults():
    defaults = {name: p.default for name, p in inspect.signature(PCKD).parameters.items()}
    assert defaults == {
        "beta_kd": 1, "beta_fa": 20, "beta_ca": 1, "beta_cc": 0.05,
        "temperature": 4, "epsilon": 1.005, "views": 4, "strategy": "preview",
        "contrast_temperature": 4, "base_temperature": 0.07,
    }  # fmt: skip


def test_resolve_argument_beats_recipe_beats_data_beats_published():
    recipe, data = {"beta_cc": 0.005, "epsilon": 1.08}, {"views": 1, "beta_cc": 7}
    # An argument that equals the published value is still the caller's word.
    method, settings = methods.resolve_settings(PCKD(2, epsilon=1.005), recipe, data)
    assert (method.beta_kd, method.epsilon, method.beta_cc, method.views, method.beta_fa) == (2, 1.005, 0.005, 1, 20)
    sources = {name: setting["from"] for name, setting in settings.items()}
    assert sources == {
        "beta_kd": "argument", "epsilon": "argument", "beta_cc": "recipe", "views": "data set",
        "beta_fa": "default", "beta_ca": "default", "temperature": "default", "strategy": "default",
        "contrast_temperature": "default", "base_temperature": "default",
    }  # fmt: skip


class ThreeLines(nn.Module):
    """A method of one's own: what the documentation shows."""

    views, uses_teacher = 1, False

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def bind(self, student, teacher):
        return self

    def forward(self, student, teacher, batch, epoch):
        cross_entropy = methods.upright_cross_entropy(student, batch)
        total = self.scale * cross_entropy.mean()
        gamma = preview.difficulty(cross_entropy)
        return methods.Terms(total, {"scaled": total}, cross_entropy.detach(), gamma, torch.ones_like(gamma))


def test_a_method_of_ones_own_keeps_its_settings_and_trains(data, student, recipe):
    mine = ThreeLines(3.0)
    copy, settings = methods.resolve_settings(mine, {"beta_cc": 1}, {"views": 4})
    assert copy is not mine and copy.scale == 3.0
    assert settings == {"scale": {"value": 3.0, "from": "attribute"}}
    run = pckd.distill(student, None, data, mine, recipe, progress=False)
    assert len(run.history["scaled"]) == 2 and run.settings["method"]["title"] == "ThreeLines"
