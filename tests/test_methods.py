import inspect

import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb import losses, methods, preview
from pckd_nb.methods import KD, PCKD, Batch, Supervised

from .conftest import REFERENCES, outputs, relative_error


class FakeNet:
    """A stand-in for a network, with the attributes that `bind` reads."""

    def __init__(self, feature_width: int, num_classes: int, bias: bool = True):
        self.feature_width, self.num_classes = feature_width, num_classes
        self.head = torch.nn.Linear(feature_width, num_classes, bias)


def make_method(ref, **settings) -> PCKD:
    """Return a bound PCKD method whose heads have the reference's weights."""
    student, teacher = (FakeNet(getattr(ref, f"{who}_weight").shape[1], int(ref.C)) for who in ("student", "teacher"))
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


def make_batch(ref) -> Batch:
    return Batch(ref.labels, torch.arange(int(ref.B)))


@pytest.mark.parametrize("name", REFERENCES)
def test_objective_and_gradients_match_the_authors(name, reference):
    ref = reference(name)
    method = make_method(ref)
    student, teacher = outputs(ref)
    terms = method(student, teacher, make_batch(ref), int(ref.epoch))
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


def test_previewed_reference_has_weights_below_one(reference):
    assert (reference("previewed").preview_weight < 1).any()


def test_total_is_the_sum_of_weighted_terms(reference):
    ref = reference("same_width")
    method = make_method(ref, beta_kd=0.3, beta_fa=7, beta_ca=2, beta_cc=0.01)
    terms = method(*outputs(ref), make_batch(ref), 1).terms
    total = method(*outputs(ref), make_batch(ref), 1).total
    names = ("cross_entropy", "distillation_kl", "feature_alignment", "category_center_alignment")
    expected = sum(b * terms[n] for b, n in zip((1, 0.3, 7, 2), names, strict=True))
    assert torch.isclose(total, expected + 0.01 * terms["category_center_contrast"])


@pytest.mark.parametrize("name", REFERENCES)
def test_each_setting_changes_only_its_own_terms(name, reference):
    """The temperature changes only L_KD. ε and the epoch change the threshold. v weights L_KD and all views in L_CC."""
    ref = reference(name)
    student, teacher = outputs(ref)
    method = make_method(ref, beta_kd=0.3, beta_fa=7, beta_ca=2, beta_cc=0.01, temperature=2.5, epsilon=1.1)
    found = method(student, teacher, make_batch(ref), 3)

    images, views = int(ref.B), int(ref.V)
    v = preview.weight(ref.difficulty, 1.1**3)
    kl = losses.distillation_kl(student.logits[:images], teacher.logits[:images], 2.5)
    expected = ref.cross_entropy.mean() + 0.3 * (v * kl).mean() + 7 * ref.feature_alignment
    expected += 0.01 * (v.repeat(views) * ref.category_center_contrast).mean()
    if name == "same_width":
        expected += 2 * ref.category_center_alignment
    assert relative_error(found.weight, v) < 1e-6
    assert relative_error(found.total, expected.detach()) < 1e-6


def test_a_custom_strategy_gets_difficulty_and_threshold_without_gradient(reference):
    ref, given = reference("previewed"), []

    def strategy(*arguments):
        given.extend(arguments)
        return torch.full_like(arguments[0], 0.5)

    found = make_method(ref, strategy=strategy, epsilon=1.2)(*outputs(ref), make_batch(ref), 4)
    cross_entropy, difficulty, threshold = given
    assert not cross_entropy.requires_grad and relative_error(cross_entropy, ref.cross_entropy) < 1e-6
    assert not difficulty.requires_grad and relative_error(difficulty, ref.difficulty) < 1e-6
    assert threshold == pytest.approx(1.2**4)
    assert (found.weight == 0.5).all() and torch.equal(found.difficulty, difficulty)
    assert not found.cross_entropy.requires_grad


BETAS = ("beta_kd", "beta_fa", "beta_ca", "beta_cc")


@pytest.mark.parametrize("beta", BETAS)
def test_a_beta_of_zero_removes_its_term(beta, reference):
    ref = reference("same_width")
    student, teacher = (FakeNet(16, 10) for _ in range(2))
    method = PCKD(**{beta: 0}).bind(student, teacher).double()
    terms = method(*outputs(ref), make_batch(ref), 1)
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
    """Replacing the weights by constants of the same value does not change the gradients."""
    ref = reference("previewed")
    gradients = []
    for strategy in ("preview", lambda cross_entropy, difficulty, threshold: ref.preview_weight):
        student, teacher = outputs(ref)
        make_method(ref, strategy=strategy)(student, teacher, make_batch(ref), int(ref.epoch)).total.backward()
        gradients.append(student.features.grad)
    assert relative_error(*gradients) < 1e-12  # not bit for bit: exp differs between processors


def test_bind_keeps_no_network_and_says_why_terms_are_left_out(data):
    method = PCKD().bind(pckd.create_model("resnet8", data), pckd.create_model("wrn_16_2", data))
    assert not any(isinstance(module, pckd.models.Classifier) for module in method.modules())
    assert "width 64" in method.left_out["category_center_alignment"]
    assert "128" in method.left_out["category_center_alignment"]
    method.bind(FakeNet(64, 5), FakeNet(64, 5, bias=False))
    assert method.left_out == {"category_center_alignment": "only the student's last layer has a bias"}
    method.bind(FakeNet(64, 5, bias=False), FakeNet(64, 5))
    assert method.left_out == {"category_center_alignment": "only the teacher's last layer has a bias"}
    for bias in (True, False):
        assert PCKD().bind(FakeNet(64, 5, bias), FakeNet(64, 5, bias)).left_out == {}
        assert method.bind(FakeNet(64, 5, bias), FakeNet(64, 5, bias)).left_out == {}  # binding again resets it
    reason = "student's category centers have width 32, the teacher's 16"
    assert PCKD().bind(FakeNet(32, 5), FakeNet(16, 5)).left_out == {"category_center_alignment": reason}
    for teacher in (FakeNet(16, 5), FakeNet(32, 5, bias=False)):
        assert PCKD(beta_ca=0).bind(FakeNet(32, 5), teacher).left_out == {}  # the term is switched off
        assert PCKD(beta_cc=0).bind(FakeNet(32, 5), teacher).left_out


@pytest.mark.parametrize("settings", [{}, {"beta_fa": 0}, {"beta_cc": 0}])
def test_a_step_before_bind_is_refused(settings, reference):
    ref = reference("one_view")
    with pytest.raises(ValueError, match=r"call bind\(student, teacher\) before the first step"):
        PCKD(views=1, **settings)(*outputs(ref), make_batch(ref), 1)


@pytest.mark.parametrize("views", [1, 2, 3, 4])
def test_every_number_of_views_works_and_must_match_the_rows(views, reference):
    ref = reference("same_width")
    rows = int(ref.B) * views
    student, teacher = (
        output._replace(features=output.features[:rows], logits=output.logits[:rows]) for output in outputs(ref)
    )
    for declared in (1, 2, 3, 4):
        method = PCKD(views=declared).bind(FakeNet(16, 10), FakeNet(16, 10)).double()
        if declared == views:
            assert method(student, teacher, make_batch(ref), 1).total.isfinite()
        else:
            with pytest.raises(ValueError, match=f"{rows} rows"):
                method(student, teacher, make_batch(ref), 1)


def test_attributes_that_the_training_loop_reads():
    assert PCKD.uses_teacher and PCKD.title == "PCKD"


def test_heads_have_the_sizes_of_the_paper(data):
    method = PCKD().bind(pckd.create_model("resnet8", data), pckd.create_model("wrn_16_2", data))
    assert [tuple(p.shape) for p in method.projector.parameters() if p.ndim == 2] == [(16 * 128, 64), (128, 16 * 128)]
    assert method.embed_student.weight.shape == (64, 64) and method.embed_teacher.weight.shape == (128, 64)


def test_supervised_and_kd_by_hand(reference):
    ref = reference("one_view")
    student, teacher = outputs(ref)
    supervised = Supervised().bind(None)(student, None, make_batch(ref), 1)
    assert torch.isclose(supervised.total, ref.cross_entropy.mean())
    assert relative_error(supervised.difficulty, ref.difficulty) < 1e-6
    assert (supervised.weight == 1).all()
    kd = KD(beta_kd=2)(student, teacher, make_batch(ref), 1)
    assert torch.isclose(kd.total, (ref.cross_entropy + 2 * ref.kd).mean())
    assert set(kd.terms) == {"cross_entropy", "distillation_kl"}


def test_a_step_without_the_teacher_is_refused(reference):
    ref = reference("one_view")
    for method in (KD(), make_method(ref)):
        advice = "pass the teacher's output to forward$"
        complaint = f"{method.title} compares .* with the teacher's, but the teacher's is None: {advice}"
        with pytest.raises(ValueError, match=complaint):
            method(outputs(ref)[0], None, make_batch(ref), 1)


def test_unequal_class_counts_are_refused():
    for method in (KD(), PCKD()):
        with pytest.raises(ValueError, match="10 classes, the student 7"):
            method.bind(FakeNet(4, 7), FakeNet(4, 10))


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
def test_invalid_settings_are_refused(settings):
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


def test_setting_precedence_is_argument_recipe_data_default():
    recipe, data = {"beta_cc": 0.005, "epsilon": 1.08}, {"views": 1, "beta_cc": 7}
    # An argument counts as given even if it equals the default.
    method, settings = methods.resolve_settings(PCKD(2, epsilon=1.005), recipe, data)
    assert (method.beta_kd, method.epsilon, method.beta_cc, method.views, method.beta_fa) == (2, 1.005, 0.005, 1, 20)
    sources = {name: setting["from"] for name, setting in settings.items()}
    assert sources == {
        "beta_kd": "argument", "epsilon": "argument", "beta_cc": "recipe", "views": "data set",
        "beta_fa": "default", "beta_ca": "default", "temperature": "default", "strategy": "default",
        "contrast_temperature": "default", "base_temperature": "default",
    }  # fmt: skip


class ThreeLines(nn.Module):
    """A custom method, as the documentation shows it."""

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


def test_a_custom_method_keeps_its_settings_and_trains(data, student, recipe):
    mine = ThreeLines(3.0)
    copy, settings = methods.resolve_settings(mine, {"beta_cc": 1}, {"views": 4})
    assert copy is not mine and copy.scale == 3.0
    assert settings == {"scale": {"value": 3.0, "from": "attribute"}}
    run = pckd.distill(student, None, data, mine, recipe, progress=False)
    assert len(run.history["scaled"]) == 2 and run.settings["method"]["title"] == "ThreeLines"


@pytest.mark.parametrize("strategy", ["uniform", "preview"])
def test_preview_on_plain_kd_is_kd_whose_samples_have_weights(strategy, reference):
    """The control arm pckd-beta_fa=0-beta_ca=0-beta_cc=0-views=1: only L_KD, with the weights of a strategy."""
    ref = reference("one_view")
    student, teacher = outputs(ref)
    batch, epoch = make_batch(ref), int(ref.epoch)
    control = PCKD(beta_fa=0, beta_ca=0, beta_cc=0, views=1, strategy=strategy)
    found = control.bind(*(FakeNet(x.centers.shape[1], int(ref.C)) for x in (student, teacher)))(
        student, teacher, batch, epoch
    )
    weight = ref.preview_weight if strategy == "preview" else torch.ones_like(ref.kd)
    assert relative_error(found.total, ref.cross_entropy.mean() + (weight * ref.kd).mean()) < 1e-6
    if strategy == "uniform":
        assert relative_error(found.total, KD()(student, teacher, batch, epoch).total) < 1e-9
