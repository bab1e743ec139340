"""Other distillation methods: compare their values with plain formulas, and check that they train."""

import copy
import dataclasses
import inspect
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pckd_nb as pckd
from pckd_nb import catalogue, methods
from pckd_nb.evaluation import make_fabric
from pckd_nb.methods import Batch, TrainingInfo, baseline
from pckd_nb.methods.baselines import BASELINE_CLASSES, decoupled_kl
from pckd_nb.methods.published import PUBLISHED_SETTINGS
from pckd_nb.models import FeatureMaps
from pckd_nb.training.teacher import FrozenTeacher

from .conftest import make_data
from .test_wrapper import count_hooks

QUIET = {"progress": False, "precision": "32-true", "accelerator": "cpu"}
WITH_MAPS = ("FitNet", "AT", "NST", "SP", "VID", "KDSVD", "ReviewKD", "WKDF", "CATKD", "OFD", "FT")
STAGE_ONLY = {"FSP", "AB"}  # their term is that of a stage, see test_stages.py
SETTINGS = {"CRD": {"negatives": 3}}  # the published number takes longer
LABELS = (0, 1, 1, 3, 2)


def make_output(seed: int, width: int = 6, channels: tuple[int, ...] = (3, 4), sizes=(8, 4), rows: int = 5, classes=4):
    """Return a random `Output` of given sizes whose tensors require gradients."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    maps = tuple(draw(rows, c, size, size) for c, size in zip(channels, sizes, strict=True))
    features, centers, bias = draw(rows, width), draw(classes, width), draw(classes)
    return pckd.Output(features, features @ centers.T + bias, centers, bias, maps)


class FakeNetwork(pckd.models.Classifier):
    """A network whose features and feature maps have the shapes of a random `Output`."""

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


def compute_term(name: str, student: pckd.Output, teacher: pckd.Output, labels=LABELS, **settings):
    """Return the bound method and its term for fixed outputs. Seed 0 initialises the method's trainable parts."""
    method = baseline(name, **(SETTINGS.get(name, {}) | settings))
    info = TrainingInfo(torch.tensor(labels), epochs=1000, seed=0, teacher_outputs=lambda kind: [teacher.detach()])
    method.prepare_training(info)
    torch.manual_seed(0)
    with torch.random.fork_rng():
        networks = FakeNetwork(student), FakeNetwork(teacher)
        for network in networks:
            network(torch.zeros(1, 1, 16, 16))
    method.bind(*networks, *[torch.zeros(1, 1, 16, 16)] * method.needs_maps).double()
    method.stages(*networks)
    labels = torch.tensor(labels)[: len(student.logits) // method.views]
    batch = Batch(labels, torch.arange(len(labels)))
    return method, method(student, teacher, batch, epoch=1000).terms[method.title.lower()]


def softmax(logits, temperature):
    powers = np.exp(logits / temperature)
    return powers / powers.sum(1, keepdims=True)


def arrays(*tensors):
    return [tensor.detach().numpy() for tensor in tensors]


def test_fitnet_by_hand():
    student, teacher = make_output(0), make_output(1, 9, (5, 7))
    method, found = compute_term("FitNet", student, teacher)
    x, target, weight, bias = arrays(student.maps[1], teacher.maps[1], *list(method.regressor.conv.parameters()))
    y = np.einsum("nchw,dc->ndhw", x, weight[:, :, 0, 0]) + bias[:, None, None]
    y = (y - y.mean((0, 2, 3), keepdims=True)) / np.sqrt(y.var((0, 2, 3), keepdims=True) + 1e-5)
    assert found.item() == pytest.approx(((np.maximum(y, 0) - target) ** 2).mean(), rel=1e-9)


def test_at_by_hand():
    student, teacher = make_output(0), make_output(1, 9, (5, 7))
    total = 0
    for ours, theirs in zip(student.maps, teacher.maps, strict=True):
        energies = [(x**2).mean(1).reshape(5, -1) for x in arrays(ours, theirs)]
        ours, theirs = (energy / np.linalg.norm(energy, axis=1, keepdims=True) for energy in energies)
        total += ((ours - theirs) ** 2).mean()
    assert compute_term("AT", student, teacher)[1].item() == pytest.approx(total, rel=1e-9)


def test_maps_are_pooled_to_the_smaller_size_and_paired_from_the_last():
    student, teacher = make_output(0, sizes=(4, 2)), make_output(1, 9, (2, 5, 7), (8, 8, 4))
    pooled = (
        student._replace(maps=student.maps),
        teacher._replace(maps=tuple(F.avg_pool2d(map, 2) for map in teacher.maps[1:])),
    )
    assert torch.isclose(compute_term("AT", student, teacher)[1], compute_term("AT", *pooled)[1])


def test_sp_by_hand_with_the_norm_of_the_paper():
    student, teacher = make_output(0), make_output(1, 9, (5, 7))
    rows = [x.reshape(5, -1) for x in arrays(student.maps[-1], teacher.maps[-1])]
    student_gram, teacher_gram = (row @ row.T / np.linalg.norm(row @ row.T, axis=1, keepdims=True) for row in rows)
    found = compute_term("SP", student, teacher)[1]
    assert found.item() == pytest.approx(((student_gram - teacher_gram) ** 2).sum() / 25, rel=1e-9)


def test_cc_by_hand():
    student, teacher = make_output(0), make_output(1, 9)
    method, found = compute_term("CC", student, teacher)
    embeddings = []
    for output, embed in ((student, method.embed_student), (teacher, method.embed_teacher)):
        x, weight, bias = arrays(output.features, embed.weight, embed.bias)
        assert weight.shape[0] == 128
        embeddings.append(x @ weight.T + bias)
    differences = np.abs(embeddings[0] - embeddings[1])
    expected = np.mean([differences[i] @ differences[i + 1] for i in range(4)])
    assert found.item() == pytest.approx(expected, rel=1e-9)


def test_vid_by_hand():
    student, teacher = make_output(0), make_output(1, 9, (5, 7))
    method, found = compute_term("VID", student, teacher)
    total = 0
    for regressor, x, target in zip(method.regressors, arrays(*student.maps), arrays(*teacher.maps), strict=True):
        weights = arrays(*(layer.weight for layer in regressor.regressor if isinstance(layer, nn.Conv2d)))
        for number, weight in enumerate(weights):
            x = np.einsum("nchw,dc->ndhw", x if number == 0 else np.maximum(x, 0), weight[:, :, 0, 0])
        variance = 5.0  # the initial value of every channel
        total += (0.5 * ((x - target) ** 2 / variance + math.log(variance))).mean()
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_rkd_by_hand():
    student, teacher = make_output(0), make_output(1, 9)

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
    assert compute_term("RKD", student, teacher)[1].item() == pytest.approx(25 * distance + 50 * angle, rel=1e-6)
    assert compute_term("RKD", student, teacher, angle=0)[1].item() == pytest.approx(25 * distance, rel=1e-6)


def test_pkt_by_hand():
    student, teacher = make_output(0), make_output(1, 9)
    similarity = []
    for x in arrays(student.features, teacher.features):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosine = (unit @ unit.T + 1) / 2
        similarity.append(cosine / cosine.sum(1, keepdims=True))
    expected = (similarity[1] * np.log(similarity[1] / similarity[0])).mean()
    assert compute_term("PKT", student, teacher)[1].item() == pytest.approx(expected, rel=1e-4)


def test_reviewkd_has_the_fusion_layers_of_the_paper():
    student, teacher = make_output(0), make_output(1, 9, (5, 7))
    method, found = compute_term("ReviewKD", student, teacher)
    assert found.item() == pytest.approx(4.7848300860556705, rel=1e-5)  # with the weights that seed 0 gives
    fused = [fusion.last[0].weight.shape[:2] for fusion in method.fusions]
    assert fused == [(5, 6), (7, 6), (9, 6)]  # the teacher's channels, and the student's width as the hidden size
    assert [fusion.attention is None for fusion in method.fusions] == [False, False, True]


def test_reviewkd_fuses_before_it_changes_the_size_of_the_map():
    """The student's map is 2×2 and the teacher's 4×4, as in the pairs with ShuffleNets."""
    student, teacher = make_output(0, channels=(4,), sizes=(2,)), make_output(1, 9, (5,), (4,))
    method, found = compute_term("ReviewKD", student, teacher)
    fusion, deepest = method.fusions
    deep, y = (
        deepest.last(deepest.first(student.features[:, :, None, None])),
        deepest.first(student.features[:, :, None, None]),
    )
    x, y = fusion.first(student.maps[0]), y.expand(-1, -1, 2, 2)
    attention = fusion.attention(torch.cat([x, y], 1))
    fused = x * attention[:, :1] + y * attention[:, 1:]
    output = fusion.last(fused.repeat_interleave(2, 2).repeat_interleave(2, 3))
    target, total, weights = teacher.maps[0], 0, 0
    for size, weight in ((4, 1), (2, 1 / 2), (1, 1 / 4)):
        total = (
            total + weight * (F.adaptive_avg_pool2d(output, size) - F.adaptive_avg_pool2d(target, size)).square().mean()
        )
        weights += weight
    expected = total / weights + (deep[:, :, 0, 0] - teacher.features).square().mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_reviewkd_by_hand_on_one_pixel():
    """With one map and the pooled features, the loss is a sum of squares at two scales, weighted 1 and ½."""
    student, teacher = make_output(0, channels=(4,), sizes=(2,)), make_output(1, 9, (5,), (2,))
    method, found = compute_term("ReviewKD", student, teacher)
    deep, deep_fused = method.fusions[1](student.features[:, :, None, None], None, (1, 1))
    map, _ = method.fusions[0](student.maps[0], deep_fused, (2, 2))
    student_map, student_features = arrays(map, deep[:, :, 0, 0])
    teacher_map, teacher_features = arrays(teacher.maps[0], teacher.features)
    means = student_map.mean((2, 3)) - teacher_map.mean((2, 3))
    scales = ((student_map - teacher_map) ** 2).mean() + 0.5 * (means**2).mean()
    expected = scales / 1.5 + ((student_features - teacher_features) ** 2).mean()
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_dist_by_hand():
    student, teacher = make_output(0), make_output(1, 9)
    ours, theirs = (softmax(logits, 4) for logits in arrays(student.logits, teacher.logits))
    samples = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
    classes = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, theirs.T, strict=True)])
    assert compute_term("DIST", student, teacher)[1].item() == pytest.approx(16 * (2 - samples - classes), rel=1e-6)


def test_lskd_by_hand():
    student, teacher = make_output(0), make_output(1, 9)
    ours, theirs = (
        softmax((z - z.mean(1, keepdims=True)) / z.std(1, ddof=1, keepdims=True), 2)
        for z in arrays(student.logits, teacher.logits)
    )
    method, found = compute_term("LSKD", student, teacher)
    assert found.item() == pytest.approx(4 * (theirs * np.log(theirs / ours)).sum(1).mean(), rel=1e-6)
    labels = torch.tensor([0, 1, 1, 3, 2])
    terms = method(student, teacher, Batch(labels, labels), 1)
    assert torch.isclose(terms.total, 0.1 * F.cross_entropy(student.logits, labels) + 9 * terms.terms["lskd"])


def test_dkd_by_hand_and_as_a_part_of_kd():
    student, teacher = make_output(0), make_output(1, 9)
    labels = np.array([0, 1, 1, 3, 2])
    target = others = 0
    ours, theirs = (softmax(logits, 4) for logits in arrays(student.logits, teacher.logits))
    for p, q, label in zip(ours, theirs, labels, strict=True):
        student_rest, teacher_rest = (np.delete(x, label) / (1 - x[label]) for x in (p, q))
        target += q[label] * np.log(q[label] / p[label]) + (1 - q[label]) * np.log((1 - q[label]) / (1 - p[label]))
        others += (teacher_rest * np.log(teacher_rest / student_rest)).sum()
    found = compute_term("DKD", student, teacher)[1]
    assert found.item() == pytest.approx(16 * (target + 2 * others) / 5, rel=1e-9)
    target, others = decoupled_kl(student.logits, teacher.logits, torch.tensor(labels), 4)
    target_probability = torch.tensor(theirs[range(5), labels])
    kd = pckd.losses.distillation_kl(student.logits, teacher.logits, 4)
    assert torch.allclose(target + (1 - target_probability) * others, kd, rtol=1e-5)


def test_dkd_is_finite_for_two_classes_and_extreme_logits():
    two = torch.tensor([[2.0, -1.0]]), torch.tensor([[0.5, 0.0]])
    target, others = decoupled_kl(*two, torch.tensor([0]), 4)
    assert torch.isclose(target, pckd.losses.distillation_kl(*two, 4)).all() and others.abs().max() < 1e-7
    extreme = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    sum(decoupled_kl(extreme, -extreme.detach(), torch.tensor([0]), 4)).backward()
    assert extreme.grad.isfinite().all()


TESTED_ELSEWHERE = {"CATKD", "MLKD", "OFD", "SimKD", "HSAKD", *STAGE_ONLY}  # these have tests of their own


@pytest.mark.parametrize("name", sorted(methods.BASELINES.keys() - TESTED_ELSEWHERE))
def test_gradients_of_the_term_reach_the_student_but_not_the_teacher(name):
    """Gradients flow through features or logits, or through each compared map, and reach all parts of the method."""
    rows = 20 if name == "SSKD" else 5
    student = make_output(0, rows=rows)
    teacher = make_output(1, 9, (3, 4) if name == "KDSVD" else (5, 7), rows=rows)
    method, term = compute_term(name, student, teacher)
    tensors = [student.features, *student.maps]
    gradients = torch.autograd.grad(term, tensors, allow_unused=True, retain_graph=True)
    reached = [gradient is not None and gradient.abs().sum() > 0 for gradient in gradients]
    expected = {name: [0, 1, 1] for name in WITH_MAPS}
    expected |= {name: [0, 0, 1] for name in ("FitNet", "SP", "WKDF", "FT")} | {"ReviewKD": [1, 1, 1]}
    assert reached == [bool(has_gradient) for has_gradient in expected.get(name, [1, 0, 0])]
    assert method.needs_maps == (name in WITH_MAPS)
    term.backward()
    assert all(tensor.grad is None for tensor in (teacher.features, teacher.centers, *teacher.maps))
    trained = {key: weight for key, weight in method.named_parameters() if weight.requires_grad}
    assert {key for key, weight in trained.items() if weight.grad is None} == set()


@pytest.mark.parametrize("name", methods.BASELINES)
def test_a_student_of_different_width_trains(name, data):
    """After two steps all values are finite, all weights changed, no hook is left, and run.json has the settings."""
    teacher_name = "resnet14" if name in ("KDSVD", "FSP") else "wrn_16_2"  # these two need equal widths
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model(teacher_name, data, seed=1)
    before = copy.deepcopy(student.state_dict())
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=24)
    method = baseline(name, **SETTINGS.get(name, {}))
    run = pckd.distill(student, teacher, data, method, recipe, **QUIET)
    terms = ["cross_entropy"] if name in STAGE_ONLY else ["cross_entropy", method.title.lower()]
    assert list(run.history.columns[3 : 3 + len(terms)]) == terms
    assert np.isfinite(run.history.to_numpy(float)).all() and np.isfinite(run.cross_entropy).all()
    assert not any(torch.equal(before[key], weight) for key, weight in student.named_parameters())
    assert count_hooks(student) == count_hooks(teacher) == 0
    info = run.settings["method"]
    parameters = inspect.signature(type(method)).parameters
    assert info["title"].replace("-", "") == info["name"] == name
    published = {key: {"value": parameter.default, "from": "default"} for key, parameter in parameters.items()}
    chosen = SETTINGS.get(name, {}) | ({"views": 2} if name == "MLKD" else {})
    published |= {key: {"value": value, "from": "argument"} for key, value in chosen.items()}
    if "views" not in chosen and published["views"]["value"] == data.default_views:
        published["views"]["from"] = "data set"
    if "warmup_epochs" in published:  # the only setting that a short recipe shortens
        published["warmup_epochs"] = {"value": 1, "from": "recipe"}
    assert info["settings"] == published


@pytest.mark.parametrize("name", ["resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_catkd_compares_maps_whose_means_are_the_logits(name):
    """The student loses its bias, so the mean of its class activation maps over the pixels are its logits."""
    student = pckd.create_model(name, num_classes=4, seed=0)
    nn.init.ones_(student.head.bias)
    teacher = pckd.create_model("resnet14", num_classes=4, seed=1)
    x = torch.randn(3, 3, 32, 32)
    method = baseline("CATKD", resolution=1).bind(student, teacher, x[:1])
    ours, theirs = (FeatureMaps(model, x[:1], kind="last")(model.eval(), x) for model in (student, teacher))
    found = method.term(ours, theirs.detach(), Batch(torch.zeros(3).long(), torch.arange(3)), 1)
    assert torch.isclose(found, (ours.logits - (theirs.logits - theirs.bias)).square().mean(), rtol=1e-4)
    assert not student.head.bias.any() and not student.head.bias.requires_grad
    found.backward()
    assert student.head.weight.grad.abs().sum() > 0 and teacher.head.weight.grad is None
    assert all(weight.grad is not None for weight in student.parameters() if weight.requires_grad)


@pytest.mark.parametrize("name", ["resnet14", "ResNet50", "wrn_16_2", "vgg8", "MobileNetV2"])
def test_ofd_compares_maps_before_the_relu_with_margins_of_the_teacher(name):
    student = pckd.create_model("ShuffleV2" if name == "resnet14" else "resnet8", num_classes=4, seed=0)
    teacher = pckd.create_model(name, num_classes=4, seed=1)
    for layer in teacher.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    x = torch.randn(3, 3, 32, 32)
    method = baseline("OFD").bind(student, teacher, x[:1])
    ours, theirs = (FeatureMaps(model, x[:1], kind="preactivations")(model.eval(), x) for model in (student, teacher))
    expected = 0
    levels = list(zip(ours.maps[-len(method.connectors) :], theirs.maps[-len(method.connectors) :], strict=True))
    for i, (ours_map, theirs_map) in enumerate(levels):
        norm = teacher.get_submodule(teacher.norms[len(teacher.norms) - len(levels) + i])
        shift, scale = norm.bias.detach().double()[:, None], norm.weight.detach().double()[:, None]
        grid = torch.linspace(-8, 8, 40001, dtype=torch.float64) * scale + shift  # margin: mean of the negative values
        density = torch.exp(-(((grid - shift) / scale) ** 2) / 2) * (grid < 0)
        margin = ((grid * density).sum(1) / density.sum(1)).float()[:, None, None]
        connected, target = method.connectors[i](ours_map), torch.maximum(theirs_map, margin)
        if connected.shape[2] != target.shape[2]:  # the teacher's map is pooled first
            size = connected.shape[2:]
            target = torch.maximum(F.adaptive_avg_pool2d(theirs_map, size), margin)
        counted = (connected > target) | (target > 0)
        expected += 2.0 ** (i - len(levels) + 1) * ((connected - target) ** 2 * counted).sum() / 3
    found = method.term(ours, theirs.detach(), Batch(torch.zeros(3).long(), torch.arange(3)), 1)
    assert torch.isclose(found, expected, rtol=1e-3)


def test_ofd_refuses_a_teacher_without_known_norms():
    student, teacher = (pckd.create_model(name, num_classes=4) for name in ("resnet8", "ShuffleV1"))
    x = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="which are not known for the teacher ShuffleV1: choose a ResNet, WRN, VGG"):
        baseline("OFD").bind(student, teacher, x)
    other = pckd.create_model("torchvision:resnet18", num_classes=4)
    with pytest.raises(ValueError, match="which are not known for the student torchvision:resnet18"):
        baseline("OFD").bind(other, student, x)


def test_mlkd_sees_every_image_twice_and_weighs_both_cross_entropies(data):
    path = Path(__file__).parent / "reference" / "methods" / "mlkd_a.npz"
    with np.load(path) as file:
        values = {name: torch.from_numpy(np.array(file[name])) for name in file.files if "source" not in name}
    student, teacher = (
        torch.cat([values[f"{network}_logits_{view}"] for view in ("weak", "strong")])
        for network in ("student", "teacher")
    )
    outputs = [pckd.Output(logits, logits, logits, None) for logits in (student.requires_grad_(), teacher)]
    labels = values["labels"].long()
    terms = baseline("MLKD")(*outputs, Batch(labels, torch.arange(len(labels))), epoch=1)
    assert terms.total.item() == pytest.approx(values["total"].item(), rel=1e-9)
    terms.total.backward()
    expected = torch.cat([values[f"grad_total_student_logits_{view}"] for view in ("weak", "strong")])
    assert torch.allclose(student.grad, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize("changes", [{}, {"label_smoothing": 0.1}, {"flip": True, "augment": "RandomGrayscale"}])
def test_mlkd_resumes_and_caches_the_strong_view(changes, data, tmp_path):
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=16, **changes)
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)

    def train(**options):
        run = pckd.distill(copy.deepcopy(student), teacher, data, baseline("MLKD"), recipe, **(QUIET | options))
        return run.settings["fingerprint"]

    expected = train()
    assert train(teacher_cache=tmp_path / "cache") == train(teacher_cache=tmp_path / "cache") == expected
    with pytest.raises(ValueError, match="MLKD has two views of every image, which can't be mixed: leave out mix"):
        pckd.distill(student, teacher, data, baseline("MLKD"), recipe, mix="mixup", **QUIET)


def test_catkd_refuses_features_that_are_not_the_mean_of_a_map():
    data = make_data(train=8, test=4, size=32, channels=3)
    student, teacher = (pckd.create_model(name, data, seed=0) for name in ("resnet8", "timm:test_vit"))
    with pytest.raises(ValueError, match="but those of the teacher are not: choose another network"):
        pckd.distill(student, teacher, data, baseline("CATKD"), **QUIET)


@pytest.mark.parametrize(
    ("layers", "error"), [(3, TypeError), ("conv1", TypeError), ([1], TypeError), ([], ValueError)]
)
def test_layers_must_be_a_list_of_names(layers, error):
    for name in ("layers", "teacher_layers"):
        with pytest.raises(error, match=f"^{name} "):
            baseline("AT", **{name: layers})


def test_strong_views_of_images_that_are_not_square():
    images, labels = np.zeros((8, 8, 16, 3), dtype=np.uint8), np.arange(8) % 2
    data = pckd.Dataset.from_arrays((images, labels), (images, labels))
    student, teacher = pckd.create_model("resnet8", data, seed=0), pckd.create_model("resnet8", data, seed=1)
    assert pckd.distill(student, teacher, data, baseline("MLKD"), epochs=1, progress=False).finished


def test_keys_of_attention_layers_are_not_feature_maps():
    model = pckd.create_model("timm:test_vit,img_size=32", num_classes=10, seed=0)
    assert FeatureMaps(model, torch.zeros(1, 3, 32, 32)).shapes == [(64, 2, 2)]


@pytest.mark.parametrize("name", ["AT", "FitNet"])
def test_networks_of_other_libraries_train(name):
    data = make_data(train=8, test=4, size=32, channels=3)
    student = pckd.create_model("torchvision:mobilenet_v3_small", data, seed=0)
    teacher = pckd.create_model("torchvision:resnet18", data, seed=1)
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=8)
    run = pckd.distill(student, teacher, data, baseline(name), recipe, **QUIET)
    assert run.history[name.lower()].iloc[0] > 0 and count_hooks(student) == count_hooks(teacher) == 0


def test_dkd_weight_grows_during_warmup():
    student, teacher = make_output(0), make_output(1, 9)
    labels = torch.tensor([0, 1, 1, 3, 2])
    method = baseline("dkd", warmup_epochs=4).bind(FakeNetwork(student), FakeNetwork(teacher))
    terms = {epoch: method(student, teacher, Batch(labels, labels), epoch) for epoch in (1, 4, 9)}
    added = {epoch: (each.total - each.terms["cross_entropy"]).item() for epoch, each in terms.items()}
    assert added[4] == added[9] == pytest.approx(terms[4].terms["dkd"].item()) == pytest.approx(4 * added[1])


def test_recorded_cross_entropy_is_unweighted():
    student, teacher = make_output(0), make_output(1, 9)
    labels = torch.tensor([0, 1, 1, 3, 2])
    terms = compute_term("AT", student, teacher)[0](student, teacher, Batch(labels, labels), 1)
    expected = F.cross_entropy(student.logits, labels, reduction="none")
    assert torch.equal(terms.cross_entropy, expected) and not terms.cross_entropy.requires_grad
    assert torch.allclose(terms.difficulty, expected / expected.mean()) and (terms.weight == 1).all()


def test_published_weights_are_the_defaults():
    weights = {name: baseline(name).weight for name in methods.BASELINES}
    assert weights == {
        "FitNet": 100, "AT": 1000, "SP": 3000, "CC": 0.02, "VID": 1, "RKD": 1, "PKT": 30_000, "ReviewKD": 0.6,
        "DIST": 2, "LSKD": 9, "DKD": 1, "NST": 50, "KDSVD": 1, "CRD": 0.8, "SRRL": 1, "WKDF": 0.08,
        "WTTM": 4, "SKD": 0.9, "CATKD": 0.7, "MLKD": 0.9, "OFD": 0.001, "FSP": 1, "AB": 1, "FT": 200, "SSKD": 1,
        "HSAKD": 1, "SimKD": 1, "WKDL": 600,
    }  # fmt: skip
    for name, description in methods.BASELINES.items():
        assert re.search(r"arXiv \d{4}\.\d{5}|(CVPR|ECCV|ICLR) \d{4}", description), name
        assert f"weight {weights[name]}" in description


def test_settings_are_those_that_were_published_for_the_pair():
    """DKD, ReviewKD and LSKD were published with other settings for other pairs, see `methods.published`."""
    thirteen = catalogue.PAIRS[:13]
    betas = {pair: methods.make("DKD").published_settings(*pair).get("beta") for pair in thirteen}
    assert set(betas.values()) == {2, 6, 8, None}
    assert betas["resnet56", "resnet20"] == 2 and betas["resnet32x4", "resnet8x4"] == 8
    for name, pairs in PUBLISHED_SETTINGS.items():
        assert set(pairs) <= set(thirteen)
        for pair, settings in pairs.items():
            assert settings.keys() <= inspect.signature(BASELINE_CLASSES[name]).parameters.keys() - {"self"}
            assert baseline(name).published_settings(*pair) == settings
    assert not baseline("AT").published_settings("resnet56", "resnet20")

    class Mine(BASELINE_CLASSES["DKD"]):
        pass

    assert Mine().published_settings("vgg13", "vgg8") == {"beta": 6}
    assert Mine().published_settings(None, "vgg8") == {}


def test_published_settings_replace_defaults_but_not_what_was_chosen(tmp_path):
    data = make_data(train=8, test=4, size=8)
    student, teacher = (pckd.create_model(name, data, seed=0) for name in ("vgg8", "vgg13"))
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=8)

    def settings(method, recipe=recipe):
        run = pckd.distill(copy.deepcopy(student), teacher, data, method, recipe, out=tmp_path / "run", overwrite=True,
                           **QUIET)  # fmt: skip
        return pckd.load_run(tmp_path / "run").settings["method"]["settings"], run

    found, _ = settings(baseline("DKD"))
    assert found["beta"] == {"value": 6, "from": "published for vgg13 → vgg8"}
    assert found["alpha"] == {"value": 1, "from": "default"}
    assert settings(baseline("DKD", beta=2))[0]["beta"] == {"value": 2, "from": "argument"}
    chosen = dataclasses.replace(recipe, method={"beta": 3})
    assert settings(baseline("DKD"), chosen)[0]["beta"] == {"value": 3, "from": "recipe"}
    found, run = settings(baseline("LSKD"))
    assert (found["temperature"]["value"], found["weight"]["value"]) == (3, 9)
    first = run.history.iloc[0]
    assert first["total"] == pytest.approx(0.1 * first["cross_entropy"] + 9 * first["lskd"], rel=1e-5)


def test_baseline_finds_names_and_refuses_bad_settings():
    assert baseline("reviewkd").title == "ReviewKD" and baseline("At", weight=5).weight == 5
    for call, match in [
        (lambda: baseline("KDD"), "unknown baseline 'KDD'; known: FitNet, AT"),
        (lambda: baseline("AT", beta=3), "AT has no setting 'beta'; its settings: weight"),
        (lambda: baseline("AT", weight=-1), "weight must be at least 0"),
        (lambda: baseline("DIST", temperature=0), "temperature must be greater than 0"),
    ]:
        with pytest.raises(ValueError, match=match):
            call()
    with pytest.raises(TypeError, match="warmup_epochs must be a whole number, got 0.5"):
        baseline("DKD", warmup_epochs=0.5)


def test_missing_torchdistill_gives_an_install_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdistill", None)
    monkeypatch.setitem(sys.modules, "torchdistill.losses", None)
    with pytest.raises(ValueError, match=r"pip install 'pckd_nb\[baselines\]'"):
        baseline("AT")
    assert baseline("DKD").title == "DKD"


def test_incompatible_networks_are_refused(data):
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
    with pytest.raises(
        ValueError, match=r"same numbers of channels, the student has \[16, 32, 64\], the teacher \[32, "
    ):
        baseline("KDSVD").bind(student, pckd.create_model("wrn_16_2", data), torch.zeros(1, 1, 8, 8))
    one_map = {"layers": ["layer1"], "teacher_layers": ["layer1"]}
    for name in ("KDSVD", "FSP"):
        with pytest.raises(ValueError, match=f"^{name} needs two or more .* there is only 1 pair of maps: "):
            baseline(name, **one_map).bind(student, teacher, torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"CRD needs the labels of all training images: call prepare_training\(info\)"):
        baseline("CRD").bind(student, teacher)
    run = pckd.distill(student, teacher, dataclasses.replace(data, **half), baseline("ReviewKD"), epochs=1, **QUIET)
    assert run.finished  # maps need not be square


@pytest.mark.parametrize(
    "name, places",
    [
        ("resnet8", {"layer1": (16, 32), "layer2": (32, 16), "layer3": (64, 8)}),
        ("wrn_16_2", {"block1": (32, 32), "block2": (64, 16), "block3": (128, 8)}),
        ("vgg8", {"block1": (128, 16), "block2": (256, 8), "block3": (512, 4), "block4": (512, 4)}),
        ("ResNet50", {"layer1": (256, 32), "layer2": (512, 16), "layer3": (1024, 8), "layer4": (2048, 4)}),
        ("MobileNetV2", {"blocks.1": (12, 16), "blocks.2": (16, 8), "blocks.4": (48, 4), "blocks.6": (160, 2)}),
        ("ShuffleV1", {"layer1": (240, 16), "layer2": (480, 8), "layer3": (960, 4)}),
        ("ShuffleV2", {"layer1": (116, 16), "layer2": (232, 8), "layer3": (464, 4)}),
        ("torchvision:resnet18", {"relu": (64, 16), "layer1": (64, 8), "layer2": (128, 4), "layer3": (256, 2)}),
        ("timm:test_resnet", {"act1": (32, 16), "layer1": (32, 8), "layer2": (48, 4), "layer3": (192, 2)}),
    ],
)  # fmt: skip
def test_maps_are_the_ends_of_stages_or_of_resolutions(name, places):
    model = pckd.create_model(name, num_classes=5, seed=0)
    before = copy.deepcopy(model.state_dict())
    maps = FeatureMaps(model.train(), torch.zeros(1, 3, 32, 32))
    names = [name.removeprefix("module.") for name, _ in maps.layer_sizes]
    found = {name: shape[:2] for name, shape in zip(names, maps.shapes, strict=True)}
    assert list(found.items()) == list(places.items())
    after = model.state_dict()
    assert model.training and count_hooks(model) == 0 and all(torch.equal(before[key], after[key]) for key in before)
    x = torch.randn(2, 3, 32, 32)
    output = maps(model.eval(), x)
    assert [tuple(map.shape[1:3]) for map in output.maps] == list(places.values())
    assert torch.equal(output.logits, model(x).logits) and count_hooks(model) == 0


@pytest.mark.parametrize("name", ["resnet14", "ResNet50", "vgg13", "ShuffleV1", "ShuffleV2", "MobileNetV2", "wrn_16_1"])
def test_maps_before_and_after_the_last_relu_of_a_stage(name):
    """RepDistiller calls them `preact=True` and `preact=False`."""
    model = pckd.create_model(name, num_classes=5, seed=0)
    for layer in model.modules():  # BatchNorm does more than shift nothing
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    x = torch.randn(2, 3, 32, 32)
    found = {
        kind: FeatureMaps(model.eval(), x[:1], kind=kind)(model, x).maps
        for kind in ("stages", "stem and stages", "preactivations")
    }
    assert all(map(torch.equal, found["stages"], found["stem and stages"][1:]))
    assert len(found["stem and stages"]) == len(found["stages"]) + 1 == len(found["preactivations"]) + 1
    for stage, (after, before) in enumerate(zip(found["stages"], found["preactivations"], strict=True)):
        if name == "MobileNetV2":  # its blocks end without a ReLU
            assert torch.equal(after, before) and before.min() < 0
        elif name.startswith("wrn"):  # the next layer is a BatchNorm
            norm = (model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1)[stage]
            assert torch.equal(norm(after), before) and before.min() < 0
        else:
            assert torch.equal(after, F.channel_shuffle(before.relu(), 2 if name == "ShuffleV2" else 1))
            assert before.min() < 0


def test_maps_of_a_network_with_preprocessing_are_those_of_the_network_itself():
    data = make_data()
    model = pckd.create_model("vgg8", data, seed=0).eval()
    wrapped = pckd.with_preprocessing(model, data, mean=(0.5,), std=(0.5,), size=16)
    x = torch.randn(2, 1, 8, 8)
    for kind in ("stages", "preactivations"):
        maps = FeatureMaps(wrapped, x[:1], kind=kind)(wrapped, x).maps
        expected = FeatureMaps(model, torch.zeros(1, 1, 16, 16), kind=kind)(model, wrapped.convert_input(x)).maps
        assert len(maps) == 4 and all(map(torch.equal, maps, expected))


def test_the_input_of_a_layer_can_be_a_map(student):
    x = torch.randn(3, 1, 8, 8)
    maps = FeatureMaps(student.eval(), x[:1], ["layer2:input", "layer1"])(student, x).maps
    assert torch.equal(*maps) and count_hooks(student) == 0
    with pytest.raises(ValueError, match="the network has no layer 'stage1:input'"):
        FeatureMaps(student, x[:1], ["stage1:input"])


@pytest.mark.parametrize("name", ["vgg8", "MobileNetV2"])
def test_first_weights_of_linear_layers_and_biases_are_as_published(name):
    """RepDistiller draws linear weights from N(0, 0.01²), and starts all biases at 0."""
    model = pckd.create_model(name, num_classes=100, seed=0)
    assert 0.0098 < model.head.weight.std().item() < 0.0102 and not model.head.bias.any()
    assert not any(
        layer.bias.any() for layer in model.modules() if isinstance(layer, nn.Conv2d) and layer.bias is not None
    )


def test_maps_match_the_layers_and_hooks_are_removed_after_errors(data, student):
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
    assert count_hooks(student) == 0


def test_a_teacher_with_maps_is_neither_quantised_nor_cached(data, student, teacher, recipe, tmp_path):
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


def test_methods_without_maps_use_the_teacher_cache(data, teacher, recipe, tmp_path, monkeypatch):
    runs, calls = [], []
    features = FrozenTeacher.features
    for count in range(2):
        monkeypatch.setattr(FrozenTeacher, "features", lambda self, x, k=count: calls.append(k) or features(self, x))
        student = pckd.create_model("resnet8", data, seed=2)
        options = dict(QUIET, precision="bf16-mixed", teacher_cache=tmp_path / "cache")
        runs.append(pckd.distill(student, teacher, data, baseline("PKT"), recipe, **options))
    assert list((tmp_path / "cache").rglob("epoch-*.npy")) and runs[0].history.equals(runs[1].history)
    assert set(calls) == {0}, "the second run reads the cache of the first"
