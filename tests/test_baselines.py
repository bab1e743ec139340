"""Other distillation methods: their values by plain formulas, and that they train."""

import copy
import dataclasses
import inspect
import math
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pckd_nb as pckd
from pckd_nb import methods, views
from pckd_nb.evaluation import make_fabric
from pckd_nb.methods import Batch, baseline
from pckd_nb.methods.baselines import decoupled_kl
from pckd_nb.models import FeatureMaps
from pckd_nb.training.teacher import FrozenTeacher

from .conftest import make_data
from .test_wrapper import hooks

QUIET = {"progress": False, "precision": "32-true", "accelerator": "cpu"}
WITH_MAPS = ("FitNet", "AT", "SP", "VID", "ReviewKD")


def made_up(seed: int, width: int = 6, channels: tuple[int, ...] = (3, 4), sizes=(8, 4), rows: int = 5, classes=4):
    """An `Output` of given sizes, with gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    maps = tuple(draw(rows, c, size, size) for c, size in zip(channels, sizes, strict=True))
    features, centers, bias = draw(rows, width), draw(classes, width), draw(classes)
    return pckd.Output(features, features @ centers.T + bias, centers, bias, maps)


class Sizes(pckd.models.Classifier):
    """A network with the features and feature maps of a made-up output."""

    def __init__(self, output: pckd.Output):
        super().__init__()
        self.fc = nn.Linear(output.features.shape[1], output.logits.shape[1])
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(map.shape[2]), nn.LazyConv2d(map.shape[1], 1)) for map in output.maps
        )

    def features(self, x):
        for block in self.blocks:
            x = block(x)
        return x.mean((1, 2, 3))[:, None].expand(-1, self.feature_width)


def value(name: str, student: pckd.Output, teacher: pckd.Output, labels=(0, 1, 1, 3, 2), **settings):
    """The bound method and its term on fixed outputs; parts that train are drawn with seed 0."""
    method = baseline(name, **settings)
    torch.manual_seed(0)
    with torch.random.fork_rng():
        networks = Sizes(student), Sizes(teacher)
        for network in networks:
            network(torch.zeros(1, 1, 16, 16))
    method.bind(*networks, *[torch.zeros(1, 1, 16, 16)] * method.needs_maps).double()
    labels = torch.tensor(labels)
    return method, method(student, teacher, Batch(labels, labels), epoch=1000).terms[name.lower()]


def softmax(logits, temperature):
    powers = np.exp(logits / temperature)
    return powers / powers.sum(1, keepdims=True)


def arrays(*tensors):
    return [tensor.detach().numpy() for tensor in tensors]


def test_fitnet_by_hand():
    student, teacher = made_up(0), made_up(1, 9, (5, 7))
    method, found = value("FitNet", student, teacher)
    x, goal, weight, bias = arrays(student.maps[0], teacher.maps[0], *list(method.regressor[0].parameters()))
    y = np.einsum("nchw,dc->ndhw", x, weight[:, :, 0, 0]) + bias[:, None, None]
    y = (y - y.mean((0, 2, 3), keepdims=True)) / np.sqrt(y.var((0, 2, 3), keepdims=True) + 1e-5)
    assert found.item() == pytest.approx(((np.maximum(y, 0) - goal) ** 2).mean(), rel=1e-9)


def test_attention_by_hand():
    student, teacher = made_up(0), made_up(1, 9, (5, 7))
    total = 0
    for ours, theirs in zip(student.maps, teacher.maps, strict=True):
        energies = [(x**2).mean(1).reshape(5, -1) for x in arrays(ours, theirs)]
        ours, theirs = (energy / np.linalg.norm(energy, axis=1, keepdims=True) for energy in energies)
        total += ((ours - theirs) ** 2).mean()
    assert value("AT", student, teacher)[1].item() == pytest.approx(total, rel=1e-9)


def test_maps_of_other_sizes_are_averaged_to_the_smaller_and_paired_from_the_last():
    student, teacher = made_up(0, sizes=(4, 2)), made_up(1, 9, (2, 5, 7), (8, 8, 4))
    pooled = (
        student._replace(maps=student.maps),
        teacher._replace(maps=tuple(F.avg_pool2d(map, 2) for map in teacher.maps[1:])),
    )
    assert torch.isclose(value("AT", student, teacher)[1], value("AT", *pooled)[1])


def test_similarity_by_hand_with_the_papers_norm():
    student, teacher = made_up(0), made_up(1, 9, (5, 7))
    rows = [x.reshape(5, -1) for x in arrays(student.maps[-1], teacher.maps[-1])]
    ours, theirs = (row @ row.T / np.linalg.norm(row @ row.T, axis=1, keepdims=True) for row in rows)
    found = value("SP", student, teacher)[1]
    assert found.item() == pytest.approx(((ours - theirs) ** 2).sum() / 25, rel=1e-9)


def test_correlation_by_hand():
    student, teacher = made_up(0), made_up(1, 9)
    method, found = value("CC", student, teacher)
    kernels = []
    for output, embed in ((student, method.embed_student), (teacher, method.embed_teacher)):
        x, weight, bias = arrays(output.features, embed.weight, embed.bias)
        assert weight.shape[0] == 128
        inner = (x @ weight.T + bias) @ (x @ weight.T + bias).T
        kernels.append(math.exp(-0.8) * (1 + 0.8 * inner + 0.8**2 / 2 * inner**2))
    assert found.item() == pytest.approx(np.linalg.norm(kernels[0] - kernels[1]) / 25, rel=1e-9)


def test_variational_information_by_hand():
    student, teacher = made_up(0), made_up(1, 9, (5, 7))
    method, found = value("VID", student, teacher)
    total = 0
    for regressor, x, goal in zip(method.regressors, arrays(*student.maps), arrays(*teacher.maps), strict=True):
        weights = arrays(*(layer.weight for layer in regressor.regressor if isinstance(layer, nn.Conv2d)))
        for number, weight in enumerate(weights):
            x = np.einsum("nchw,dc->ndhw", x if number == 0 else np.maximum(x, 0), weight[:, :, 0, 0])
        variance = 5.0  # where every channel starts
        total += (0.5 * ((x - goal) ** 2 / variance + math.log(variance))).mean()
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_relations_by_hand():
    student, teacher = made_up(0), made_up(1, 9)

    def huber(x):
        return np.where(abs(x) < 1, x**2 / 2, abs(x) - 0.5).mean()

    distances, angles = [], []
    for x in arrays(student.features, teacher.features):
        difference = x[None] - x[:, None]
        length = np.linalg.norm(difference, axis=2)
        distances.append(length / length[length > 0].mean())
        unit = difference / np.maximum(length, 1e-12)[..., None]
        angles.append(np.einsum("ijd,ikd->ijk", unit, unit))
    distance, angle = huber(distances[0] - distances[1]), huber(angles[0] - angles[1])
    assert value("RKD", student, teacher)[1].item() == pytest.approx(25 * distance + 50 * angle, rel=1e-6)
    assert value("RKD", student, teacher, angle=0)[1].item() == pytest.approx(25 * distance, rel=1e-6)


def test_probabilistic_knowledge_by_hand():
    student, teacher = made_up(0), made_up(1, 9)
    near = []
    for x in arrays(student.features, teacher.features):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosine = (unit @ unit.T + 1) / 2
        near.append(cosine / cosine.sum(1, keepdims=True))
    expected = (near[1] * np.log(near[1] / near[0])).mean()
    assert value("PKT", student, teacher)[1].item() == pytest.approx(expected, rel=1e-4)


def test_knowledge_review_has_the_papers_fusions():
    student, teacher = made_up(0), made_up(1, 9, (5, 7))
    method, found = value("ReviewKD", student, teacher)
    assert found.item() == pytest.approx(4.7749699800932355, rel=1e-5)  # with the parts that seed 0 draws
    fused = [fusion.conv2[0].weight.shape[:2] for fusion in method.fusions]
    assert fused == [(5, 6), (7, 6), (9, 6)]  # the teacher's channels, and the student's width between
    assert [fusion.attention_conv is None for fusion in method.fusions] == [False, False, True]


def test_knowledge_review_by_hand_on_one_pixel():
    """Pooled features alone, against maps of one size: two scales of squares, weighed 1 to ½."""
    student, teacher = made_up(0, channels=(4,), sizes=(2,)), made_up(1, 9, (5,), (2,))
    method, found = value("ReviewKD", student, teacher)
    deep, deep_fused = method.fusions[1](student.features[:, :, None, None])
    map, _ = method.fusions[0](student.maps[0], deep_fused, 2)
    map, deep, goal = *arrays(map, deep[:, :, 0, 0]), teacher
    own, known = map, goal.maps[0].detach().numpy()
    scales = ((own - known) ** 2).mean() + 0.5 * ((own.mean((2, 3)) - known.mean((2, 3))) ** 2).mean()
    expected = scales / 1.5 + ((deep - goal.features.detach().numpy()) ** 2).mean()
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_relations_of_predictions_by_hand():
    student, teacher = made_up(0), made_up(1, 9)
    ours, theirs = (softmax(logits, 4) for logits in arrays(student.logits, teacher.logits))
    samples = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
    classes = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, theirs.T, strict=True)])
    assert value("DIST", student, teacher)[1].item() == pytest.approx(16 * (2 - samples - classes), rel=1e-6)


def test_standardised_logits_by_hand():
    student, teacher = made_up(0), made_up(1, 9)
    ours, theirs = (
        softmax((z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True), 2)
        for z in arrays(student.logits, teacher.logits)
    )
    method, found = value("LSKD", student, teacher)
    assert found.item() == pytest.approx(4 * (theirs * np.log(theirs / ours)).sum(1).mean(), rel=1e-6)
    labels = torch.tensor([0, 1, 1, 3, 2])
    terms = method(student, teacher, Batch(labels, labels), 1)
    assert torch.isclose(terms.total, 0.1 * F.cross_entropy(student.logits, labels) + 9 * terms.terms["lskd"])


def test_decoupled_by_hand_and_as_a_part_of_kd():
    student, teacher = made_up(0), made_up(1, 9)
    labels = np.array([0, 1, 1, 3, 2])
    target = others = 0
    ours, theirs = (softmax(logits, 4) for logits in arrays(student.logits, teacher.logits))
    for p, q, label in zip(ours, theirs, labels, strict=True):
        rest, known = (np.delete(x, label) / (1 - x[label]) for x in (p, q))
        target += q[label] * np.log(q[label] / p[label]) + (1 - q[label]) * np.log((1 - q[label]) / (1 - p[label]))
        others += (known * np.log(known / rest)).sum()
    found = value("DKD", student, teacher)[1]
    assert found.item() == pytest.approx(16 * (target + 2 * others) / 5, rel=1e-9)
    target, others = decoupled_kl(student.logits, teacher.logits, torch.tensor(labels), 4)
    known = torch.tensor(theirs[range(5), labels])
    kd = pckd.losses.distillation_kl(student.logits, teacher.logits, 4)
    assert torch.allclose(target + (1 - known) * others, kd, rtol=1e-5)


def test_decoupled_of_two_classes_and_of_certain_logits_is_finite():
    two = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.0]])
    target, others = decoupled_kl(*two, torch.tensor([0]), 4)
    assert torch.isclose(target, pckd.losses.distillation_kl(*two, 4)).all() and others.abs().max() < 1e-7
    sure = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    sum(decoupled_kl(sure, -sure.detach(), torch.tensor([0]), 4)).backward()
    assert sure.grad.isfinite().all()


@pytest.mark.parametrize("name", methods.BASELINES)
def test_the_term_alone_reaches_the_student_and_never_the_teacher(name):
    """Through features or logits, or through every map that it compares; and every part that trains with it."""
    student, teacher = made_up(0), made_up(1, 9, (5, 7))
    method, term = value(name, student, teacher)
    tensors = [student.features, *student.maps]
    gradients = torch.autograd.grad(term, tensors, allow_unused=True, retain_graph=True)
    reached = [gradient is not None and gradient.abs().sum() > 0 for gradient in gradients]
    expected = {"FitNet": [0, 1, 0], "AT": [0, 1, 1], "SP": [0, 0, 1], "VID": [0, 1, 1], "ReviewKD": [1, 1, 1]}
    assert reached == [bool(there) for there in expected.get(name, [1, 0, 0])]
    assert method.needs_maps == (name in WITH_MAPS)
    term.backward()
    assert all(tensor.grad is None for tensor in (teacher.features, teacher.centers, *teacher.maps))
    silent = {key for key, parameter in method.named_parameters() if parameter.grad is None}
    assert silent == set()


@pytest.mark.parametrize("name", methods.BASELINES)
def test_a_student_of_another_width_trains(name, data):
    """Two steps: everything finite, the weights move, no hook stays, and run.json says what was used."""
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("wrn_16_2", data, seed=1)
    before = copy.deepcopy(student.state_dict())
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=24)
    run = pckd.distill(student, teacher, data, baseline(name), recipe, **QUIET)
    assert list(run.history.columns[3:5]) == ["cross_entropy", name.lower()]
    assert np.isfinite(run.history.to_numpy(float)).all() and np.isfinite(run.cross_entropy).all()
    assert not any(torch.equal(before[key], weight) for key, weight in student.named_parameters())
    assert hooks(student) == hooks(teacher) == 0
    about = run.settings["method"]
    parameters = inspect.signature(type(baseline(name))).parameters
    assert about["title"] == about["name"] == name
    published = {key: {"value": parameter.default, "from": "default"} for key, parameter in parameters.items()}
    if "warmup_epochs" in published:  # the one setting that a short recipe has to shorten
        published["warmup_epochs"] = {"value": 1, "from": "recipe"}
    assert about["settings"] == published


@pytest.mark.parametrize("name", ["AT", "FitNet"])
def test_networks_of_other_libraries_train(name):
    data = make_data(train=8, test=4, size=32, channels=3)
    student = pckd.create_model("torchvision:mobilenet_v3_small", data, seed=0)
    teacher = pckd.create_model("torchvision:resnet18", data, seed=1)
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=8)
    run = pckd.distill(student, teacher, data, baseline(name), recipe, **QUIET)
    assert run.history[name.lower()].iloc[0] > 0 and hooks(student) == hooks(teacher) == 0


@pytest.mark.parametrize("name", ["VID", "DKD"])
def test_a_cut_run_resumes_to_the_same_bits(name, data, tmp_path, monkeypatch):
    """VID has parts that train along and DKD a weight that grows."""
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=24)
    steps = views.steps_per_epoch(len(data.train.labels), recipe.batch_size)
    settings = {"warmup_epochs": 4} if name == "DKD" else {}

    def train(folder, **options):
        networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
        method = baseline(name, **settings)
        return pckd.distill(*networks, data, method, recipe, out=tmp_path / folder, **QUIET, **options)

    whole = train("whole")
    kind = type(baseline(name))
    forward, epochs = kind.forward, []

    def seen(self, student, teacher, batch, epoch):
        epochs.append(epoch)
        return forward(self, student, teacher, batch, epoch)

    def cut(self, *arguments):
        if len(epochs) == steps + 1:
            raise KeyboardInterrupt
        return seen(self, *arguments)

    monkeypatch.setattr(pckd.training.callbacks, "MIN_SECONDS_BETWEEN_SAVES", -1)
    monkeypatch.setattr(pckd.training.callbacks, "MAX_SAVING_SHARE", float("inf"))
    monkeypatch.setattr(kind, "forward", cut)
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    epochs.clear()
    monkeypatch.setattr(kind, "forward", seen)
    resumed = train("cut", resume=True)
    assert epochs == [2] * (steps - 1), "what was trained before the cut is trained once"
    for ours, theirs in ((resumed.student_state, whole.student_state), (resumed.method_state, whole.method_state)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert resumed.history.equals(whole.history)


def test_weights_grow_over_the_first_epochs():
    student, teacher = made_up(0), made_up(1, 9)
    labels = torch.tensor([0, 1, 1, 3, 2])
    method = baseline("dkd", warmup_epochs=4).bind(Sizes(student), Sizes(teacher))
    terms = {epoch: method(student, teacher, Batch(labels, labels), epoch) for epoch in (1, 4, 9)}
    added = {epoch: (each.total - each.terms["cross_entropy"]).item() for epoch, each in terms.items()}
    assert added[4] == added[9] == pytest.approx(terms[4].terms["dkd"].item()) == pytest.approx(4 * added[1])


def test_records_are_unweighted():
    student, teacher = made_up(0), made_up(1, 9)
    labels = torch.tensor([0, 1, 1, 3, 2])
    terms = value("AT", student, teacher)[0](student, teacher, Batch(labels, labels), 1)
    expected = F.cross_entropy(student.logits, labels, reduction="none")
    assert torch.equal(terms.cross_entropy, expected) and not terms.cross_entropy.requires_grad
    assert torch.allclose(terms.difficulty, expected / expected.mean()) and (terms.weight == 1).all()


def test_published_weights_are_the_defaults():
    weights = {name: baseline(name).weight for name in methods.BASELINES}
    assert weights == {
        "FitNet": 100, "AT": 1000, "SP": 3000, "CC": 0.02, "VID": 1, "RKD": 1, "PKT": 30_000, "ReviewKD": 0.6,
        "DIST": 2, "LSKD": 9, "DKD": 1,
    }  # fmt: skip
    for name, about in methods.BASELINES.items():
        assert "arXiv" in about and f"weight {weights[name]}" in about


def test_names_and_settings():
    assert baseline("reviewkd").title == "ReviewKD" and baseline("At", weight=5).weight == 5
    for call, match in [
        (lambda: baseline("KDD"), "unknown baseline 'KDD'; known: FitNet, AT"),
        (lambda: baseline("ft"), "FT is not implemented: it first trains a paraphraser"),
        (lambda: baseline("CRD"), "CRD is not implemented: its memory bank"),
        (lambda: baseline("AT", beta=3), "AT has no setting 'beta'; its settings: weight"),
        (lambda: baseline("AT", weight=-1), "weight must be at least 0"),
        (lambda: baseline("DIST", temperature=0), "temperature must be greater than 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="warmup_epochs must be a whole number, got 0.5"):
        baseline("DKD", warmup_epochs=0.5)
    assert set(methods.NOT_IMPLEMENTED) == {"FT", "FSP", "AB", "SSKD", "CRD"}
    assert not methods.NOT_IMPLEMENTED.keys() & methods.BASELINES.keys()


def test_without_torchdistill_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdistill", None)
    monkeypatch.setitem(sys.modules, "torchdistill.losses", None)
    with pytest.raises(ValueError, match=r"pip install 'pckd_nb\[baselines\]'"):
        baseline("AT")
    assert baseline("DKD").title == "DKD"


def test_what_can_not_be_compared_is_refused(data):
    student, teacher = pckd.create_model("resnet8", data), pckd.create_model("resnet14", data)
    with pytest.raises(ValueError, match=r"pass an example image of shape \(1, C, H, W\) to bind$"):
        baseline("AT").bind(student, teacher)
    flat = pckd.as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    with pytest.raises(ValueError, match="the student has none larger than one pixel"):
        pckd.distill(flat, teacher, data, baseline("FitNet"), **QUIET)
    with pytest.raises(ValueError, match="5 classes, the student 3"):
        baseline("PKT").bind(student, pckd.create_model("resnet8", data, num_classes=5))
    half = {
        split: dataclasses.replace(part, images=part.images[:, :, :4])
        for split, part in (("train", data.train), ("test", data.test))
    }
    with pytest.raises(ValueError, match="square feature maps, the teacher's are 4×8"):
        pckd.distill(student, teacher, dataclasses.replace(data, **half), baseline("ReviewKD"), **QUIET)


@pytest.mark.parametrize(
    "name, places",
    [
        ("resnet8", {"layer1": (16, 32), "layer2": (32, 16), "layer3": (64, 8)}),
        ("wrn_16_2", {"block1": (32, 32), "block2": (64, 16), "bn1": (128, 8)}),
        ("vgg8", {"block0": (64, 32), "block1": (128, 16), "block2": (256, 8), "block4": (512, 4)}),
        ("ShuffleV1", {"bn1": (24, 32), "layer1": (240, 16), "layer2": (480, 8), "layer3": (960, 4)}),
        ("torchvision:resnet18", {"relu": (64, 16), "layer1": (64, 8), "layer2": (128, 4), "layer3": (256, 2)}),
        ("timm:test_resnet", {"act1": (32, 16), "layer1": (32, 8), "layer2": (48, 4), "layer3": (192, 2)}),
    ],
)  # fmt: skip
def test_the_last_map_of_every_resolution_is_taken(name, places):
    model = pckd.create_model(name, num_classes=5, seed=0)
    before = copy.deepcopy(model.state_dict())
    maps = FeatureMaps(model.train(), torch.zeros(1, 3, 32, 32))
    names = [name.removeprefix("module.") for name, _ in maps.layer_sizes]
    found = {name: shape[:2] for name, shape in zip(names, maps.shapes, strict=True)}
    assert list(found.items()) == list(places.items())
    after = model.state_dict()
    assert model.training and hooks(model) == 0 and all(torch.equal(before[key], after[key]) for key in before)
    x = torch.randn(2, 3, 32, 32)
    output = maps(model.eval(), x)
    assert [tuple(map.shape[1:3]) for map in output.maps] == list(places.values())
    assert torch.equal(output.logits, model(x).logits) and hooks(model) == 0


def test_maps_are_those_of_the_layers_and_hooks_go_when_something_fails(data, student):
    maps = FeatureMaps(student, torch.zeros(1, 1, 8, 8))
    x = torch.randn(3, 1, 8, 8)
    output = maps(student.eval(), x)
    assert torch.allclose(output.maps[-1].mean((2, 3)), output.features)
    assert output.maps[0].requires_grad and not output.detach().maps[0].requires_grad
    assert output._replace(maps=(x.bfloat16(),)).float().maps[0].dtype == torch.float32
    with pytest.raises(ZeroDivisionError):
        maps(lambda x: student(x) and 1 / 0, x)
    with pytest.raises(ValueError, match="'layer1' did not return a map of the same size as for the example"):
        maps(student, torch.zeros(1, 1, 16, 16))
    assert hooks(student) == 0


def test_a_teacher_of_maps_is_live_neither_quantised_nor_cached(data, student, teacher, recipe, tmp_path):
    fabric = make_fabric("cpu", "32-true")[0]
    frozen = FrozenTeacher(teacher, data, 1, fabric, "bf16-mixed", needs_maps=True)
    x = torch.randn(3, 1, 8, 8)
    said, (exact, layers) = frozen(x), (teacher(x), FeatureMaps(teacher, x[:1]))
    expected = layers(teacher, x)
    assert frozen.form in ("autocast", "float32") and said.maps[0].dtype == said.logits.dtype == torch.float32
    assert not any(map.requires_grad for map in said.maps) and len(said.maps) == 3
    for ours, theirs in zip(said.maps, expected.maps, strict=True):
        assert (ours - theirs).norm() < 0.03 * theirs.norm()
    assert (said.logits - exact.logits).norm() < 0.03 * exact.logits.norm()
    options = dict(QUIET, precision="bf16-mixed", teacher_cache=tmp_path / "cache", compile=True)
    with pytest.warns(UserWarning) as warned:
        run = pckd.distill(student, teacher, data, baseline("AT"), recipe, **options)
    said = {str(warning.message) for warning in warned}
    assert "feature maps are not cached: the teacher runs at every step" in said
    assert "the method needs feature maps, which are collected by hooks: the student is not compiled" in said
    assert run.settings["teacher"]["form"] in ("autocast", "float32") and run.settings["compile"] is False
    assert not (tmp_path / "cache").exists()


def test_what_needs_no_maps_shares_the_teachers_cache(data, teacher, recipe, tmp_path, monkeypatch):
    runs, asked = [], []
    features = FrozenTeacher.features
    for count in range(2):
        monkeypatch.setattr(FrozenTeacher, "features", lambda self, x, k=count: asked.append(k) or features(self, x))
        student = pckd.create_model("resnet8", data, seed=2)
        options = dict(QUIET, precision="bf16-mixed", teacher_cache=tmp_path / "cache")
        runs.append(pckd.distill(student, teacher, data, baseline("PKT"), recipe, **options))
    assert list((tmp_path / "cache").rglob("epoch-*.npy")) and runs[0].history.equals(runs[1].history)
    assert set(asked) == {0}, "the second run reads what the first has written"
