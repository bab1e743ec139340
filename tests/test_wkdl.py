"""WKD-L: the costs of moving probability between classes, and the pass over the training images that they need."""

import numpy as np
import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb import cli, ranks, views
from pckd_nb.evaluation import make_fabric
from pckd_nb.methods import Batch, TrainingInfo, baseline
from pckd_nb.methods.terms import logits as terms
from pckd_nb.models import FeatureMaps
from pckd_nb.training.callbacks import StopOnSignal
from pckd_nb.training.task import Task

from .conftest import make_data
from .test_reference_methods import FILES, Values
from .test_streams import make_split

QUIET = {"progress": False, "precision": "32-true", "accelerator": "cpu"}


def files(name):
    paths = [path for path in FILES if path.stem.rsplit("_", 1)[0] == name]
    assert paths
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def bound(method, labels, outputs=(), classes=10, epochs=240):
    """Return the method after `bind` and `stages`, in float64. `outputs` are those of the teacher."""
    asked = []

    def teacher_outputs(kind):
        asked.append(kind)
        return iter(outputs)

    method.prepare_training(TrainingInfo(labels, epochs, 0, teacher_outputs))
    networks = [pckd.create_model("resnet8", num_classes=classes) for _ in range(2)]
    method.bind(*networks).double()
    if outputs:
        assert method.stages(*networks) == ()
        method.stages(*networks)  # the costs are known now
        assert asked == ["last" if method.costs_from == "map" else None]
    return method


@files("wkdl")
def test_agrees_with_the_authors(path):
    v = Values(path, torch.float64)
    settings = {"weight": float(v.weight), "temperature": float(v.temperature)}
    method = bound(baseline("WKDL", **settings), v.labels, classes=len(v.cost_matrix), epochs=int(v.epochs))
    defaults = method.regularization, method.iterations, method.sharpen, method.cross_entropy_weight
    assert defaults == (v.sinkhorn_lambda, v.sinkhorn_iterations, v.sharpen, v.weight_ce)
    method.costs.copy_(terms.sharpened_costs(v.cost_matrix_raw, method.sharpen))
    student, teacher = (pckd.Output(z, z, z, None) for z in (v.student_logits, v.teacher_logits))
    computed = method(student, teacher, Batch(v.labels, v.labels), int(v.epoch))
    weight = method.weight_in(int(v.epoch))
    found = {
        "loss_transport": computed.terms["wkd-l"],
        "loss_target": computed.terms["wkd_target"],
        "loss_ce": computed.terms["cross_entropy"],
        "loss": computed.terms["wkd_target"] + weight * computed.terms["wkd-l"],
        "total": computed.total,
    }
    assert weight == pytest.approx(v.weight_at_epoch.item(), rel=1e-5)
    for name, value in found.items():
        assert value.item() == pytest.approx(v[name].item(), rel=1e-9), name
    for key, (loss, name) in v.gradients.items():
        gradient = torch.autograd.grad(found[loss], v[name], retain_graph=True)[0]
        assert torch.allclose(gradient, v[key], rtol=0, atol=1e-9 * v[key].abs().max().item()), key


@files("wkdl_cost")
@pytest.mark.parametrize("costs_from", ["logits", "map"])
def test_costs_agree_with_the_authors(path, costs_from):
    """The classes are mixed, the images come in batches, and the last images of some classes are not used."""
    v = Values(path, torch.float64)
    features = v.class_features
    classes, samples, length = features.shape
    positions = 1 if costs_from == "logits" else 3
    images = features.unflatten(1, (-1, positions))  # (classes, images, positions, length)
    labels = torch.arange(classes).repeat_interleave(images.shape[1])
    rows = images.flatten(0, 1)
    extra = torch.arange(0, classes, 2)  # these classes have one image more
    labels, rows = torch.cat([labels, extra]), torch.cat([rows, torch.full((len(extra), *rows.shape[1:]), 9.0)])
    order = torch.randperm(classes * images.shape[1], generator=torch.Generator().manual_seed(0))
    for label in range(classes):  # mix the classes, but keep the order of the images of each class
        places = (labels[order] == label).nonzero().flatten()
        order[places] = order[places].sort().values
    order = torch.cat([order, torch.arange(len(order), len(labels))])
    labels, rows = labels[order], rows[order]
    zeros = torch.zeros(1)
    if costs_from == "logits":
        outputs = [pckd.Output(zeros, part[:, 0], zeros, None) for part in rows.split(7)]
    else:
        maps = rows.mT.unflatten(2, (1, positions))
        outputs = [pckd.Output(zeros, zeros, zeros, None, (part * 0, part)) for part in maps.split(7)]
    method = bound(baseline("WKDL", costs_from=costs_from), labels, outputs, classes)
    assert torch.allclose(method.costs, v.cost_matrix, rtol=0, atol=1e-9 * v.cost_matrix.max().item())
    sharper = bound(baseline("WKDL", costs_from=costs_from, sharpen=3), labels, outputs, classes)
    assert torch.allclose(sharper.costs, 1 - torch.exp(-3 * v.cost_matrix_raw))


def test_the_weight_falls_after_150_of_240_epochs():
    labels = torch.arange(10)
    method = bound(baseline("WKDL"), labels)
    assert [method.weight_in(epoch) for epoch in (1, 150, 195, 240)] == pytest.approx([600, 600, 300, 0])
    short = bound(baseline("WKDL"), labels, epochs=24)
    assert [short.weight_in(epoch) for epoch in (1, 15, 24)] == pytest.approx([600, 600, 0])


@pytest.mark.parametrize("kind", ["last", "stages", None])
def test_outputs_of_the_teacher_are_those_of_the_training_images(kind, data, student, teacher):
    recipe = pckd.get_recipe("classroom", batch_size=20, flip=True)
    fabric = make_fabric("cpu", "32-true")[0]
    task = Task(student, teacher.train(), data, pckd.KD(), recipe, 0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    outputs = list(task.teacher_outputs(fabric, kind))
    assert teacher.training and all(torch.equal(before[name], x) for name, x in teacher.state_dict().items())
    assert [len(output.logits) for output in outputs] == [16, 16, 16] and not outputs[0].logits.requires_grad
    x = views.normalise(data.train.images, torch.tensor([0.5]), torch.tensor([0.25]))
    expected = teacher.eval()(x)
    if kind:
        expected = FeatureMaps(teacher, x[:1], kind=kind)(teacher, x)
    for name in ("logits", "features"):
        found = torch.cat([getattr(output, name) for output in outputs])
        assert torch.allclose(found, getattr(expected, name), atol=1e-5)
    assert [len(output.maps) for output in outputs] == [len(expected.maps)] * 3
    for i, map in enumerate(expected.maps):
        assert torch.allclose(torch.cat([output.maps[i] for output in outputs]), map, atol=1e-5)


def test_every_process_computes_a_part_of_the_outputs(data, student, teacher, monkeypatch):
    recipe = pckd.get_recipe("classroom", batch_size=20)
    fabric = make_fabric("cpu", "32-true")[0]
    task = Task(student, teacher, data, pckd.KD(), recipe, 0)
    whole = list(task.teacher_outputs(fabric, "last"))
    gathered = []
    monkeypatch.setattr(ranks, "local_part", lambda index, fabric: index[1::2])
    monkeypatch.setattr(ranks, "gather", lambda output, count, fabric: gathered.append(count) or output)
    part = list(task.teacher_outputs(fabric, "last"))
    assert gathered == [16, 16, 16]
    for ours, theirs in zip(part, whole, strict=True):
        assert torch.allclose(ours.maps[0], theirs.maps[0][1::2], atol=1e-5)


def test_the_costs_of_a_training_are_those_of_its_teacher(data, student, teacher, recipe):
    run = pckd.distill(student, teacher, data, "wkdl", recipe, flip=True, **QUIET)
    costs = run.method_state["costs"]
    x = views.normalise(data.train.images, torch.tensor([0.5]), torch.tensor([0.25]))
    map = FeatureMaps(teacher.eval(), x[:1], kind="last")(teacher, x).maps[0].detach()
    features = torch.stack([map[data.train.labels == label].flatten(2).mT.flatten(0, 1) for label in range(3)])
    expected = terms.sharpened_costs(terms.class_costs(features))
    assert torch.allclose(costs, expected, atol=1e-5) and costs.diagonal().abs().max() < 1e-5
    assert costs[~torch.eye(3, dtype=bool)].min() > 1e-4, "different classes have a cost"
    first = run.history.iloc[0]
    expected = first["cross_entropy"] + first["wkd_target"] + 600 * first["wkd-l"]
    assert first["total"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["stopped", "killed"])
def test_a_resumed_run_keeps_the_costs(kind, data, recipe, tmp_path, monkeypatch):
    def train(folder, **options):
        networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
        return pckd.distill(*networks, data, "wkdl", recipe, out=tmp_path / folder, **options, **QUIET)

    def interrupt(callback, trainer):
        if (trainer.recorder.epoch, trainer.recorder.step) == (2, 1):
            if kind == "killed":
                raise KeyboardInterrupt
            trainer.should_stop = True

    whole = train("whole")
    with monkeypatch.context() as patch:
        patch.setattr(StopOnSignal, "on_step_end", interrupt)
        patch.setattr(pckd.training.callbacks, "MIN_SECONDS_BETWEEN_SAVES", -1)
        patch.setattr(pckd.training.callbacks, "MAX_SAVING_SHARE", float("inf"))
        if kind == "killed":
            with pytest.raises(KeyboardInterrupt):
                train("cut")
        else:
            assert not train("cut").finished
    assert (tmp_path / "cut" / "checkpoint.pt").exists()
    calls, compute = [], terms.class_costs
    monkeypatch.setattr(terms, "class_costs", lambda x: calls.append(1) or compute(x))
    resumed = train("cut", resume=True)
    assert not calls, "the costs are in the checkpoint"
    for ours, theirs in ((resumed.student_state, whole.student_state), (resumed.method_state, whole.method_state)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert resumed.history.equals(whole.history)
    train("cut", resume=True)  # the finished run is loaded
    assert not calls


PAIRS = [
    ("resnet8", "resnet14"),
    ("resnet8", "vgg8"),
    ("ShuffleV1", "wrn_16_2"),
    ("resnet8", "timm:test_vit,img_size=32"),
]


@pytest.mark.parametrize("names", PAIRS, ids=str)
@pytest.mark.parametrize("costs_from", ["map", "logits"])
def test_pairs_of_networks_for_images_of_32_pixels(names, costs_from):
    data = make_data(train=8, test=4, size=32, channels=3)
    student, teacher = (pckd.create_model(name, data, seed=0) for name in names)
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=4)
    run = pckd.distill(student, teacher, data, baseline("WKDL", costs_from=costs_from), recipe, **QUIET)
    costs = run.method_state["costs"]
    assert np.isfinite(run.history.to_numpy(float)).all() and costs.isfinite().all()
    # of the same images, in another order of the classes: the costs are symmetric
    assert torch.allclose(costs, costs.T, atol=1e-5)


def test_published_settings_of_a_pair():
    assert baseline("WKDL").published_settings("wrn_40_2", "ShuffleV1") == {"weight": 200, "temperature": 6}
    default = baseline("WKDL")
    published = default.published_settings("resnet32x4", "resnet8x4")
    assert published == {"weight": default.weight, "temperature": default.temperature}


def test_the_command_line_trains_with_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--data", "digits", "--train-size", "60", "--test-size", "40", "--epochs", "1"]
    assert cli.main(["train", *small, "--model", "resnet14", "--out", "teacher"]) == 0
    command = ["distill", *small, "--teacher", "teacher", "--student", "resnet8", "--out", "run"]
    assert cli.main([*command, "--method", "wkdl"]) == 0
    run = pckd.load_run("run")
    assert run.finished and run.method_state["costs"].shape == (10, 10) and run.title == "WKD-L resnet8"
    assert cli.main(["evaluate", "run"]) == 0
    assert cli.main(["methods", "wkdl"]) == 0
    assert "2412.08139" in capsys.readouterr().out


def test_the_teacher_cache_is_used_after_the_costs_are_known(data, recipe, tmp_path):
    found = []
    for _ in range(2):
        networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
        options = dict(QUIET, precision="bf16-mixed", teacher_cache=tmp_path / "cache")
        found.append(pckd.distill(*networks, data, "wkdl", recipe, **options))
    assert list((tmp_path / "cache").rglob("epoch-*.npy"))
    assert found[0].fingerprint == found[1].fingerprint
    assert torch.equal(found[0].method_state["costs"], found[1].method_state["costs"])


def test_what_does_not_fit_is_refused(data, student, teacher, recipe, tmp_path):
    with pytest.raises(
        ValueError, match=r"^WKD-L needs the teacher's outputs .*: call prepare_training\(info\) before"
    ):
        baseline("WKDL").bind(student, teacher)
    flat = pckd.as_classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    message = "WKD-L finds no feature map in the teacher: use costs_from='logits'"
    with pytest.raises(ValueError, match=message):
        pckd.distill(student, flat, data, "wkdl", recipe, out=tmp_path / "run", **QUIET)
    assert not list(tmp_path.iterdir()), "no run that cannot be resumed"
    assert pckd.distill(student, flat, data, baseline("WKDL", costs_from="logits"), recipe, **QUIET).finished
    labels = torch.tensor([0, 2, 2])
    with pytest.raises(ValueError, match="^WKD-L needs training images of every class, but class 1 has none$"):
        bound(baseline("WKDL"), labels, [pckd.Output(*[torch.zeros(3, 3)] * 3, None)], classes=3)
    for settings, error, match in [
        ({"costs_from": "fc"}, ValueError, "costs_from must be 'map' or 'logits', got 'fc'"),
        ({"sharpen": 0}, ValueError, "sharpen must be greater than 0"),
        ({"iterations": 0.5}, TypeError, "iterations must be a whole number, got 0.5"),
        ({"regularization": 0}, ValueError, "regularization must be greater than 0"),
        ({"temperature": -1}, ValueError, "temperature must be greater than 0"),
    ]:
        with pytest.raises(error, match=match):
            baseline("WKDL", **settings)


def test_images_in_files_are_read_in_their_order(tmp_path, student):
    split = make_split(tmp_path)
    data = pckd.Dataset("files", split, split, ("a", "b", "c"), {}, (0.5,) * 3, (0.25,) * 3, "made up", 1, {})
    teacher = pckd.create_model("resnet8", data, seed=0)
    task = Task(student, teacher, data, pckd.KD(), pckd.get_recipe("classroom", batch_size=4), 0)
    outputs = list(task.teacher_outputs(make_fabric("cpu", "32-true")[0]))
    images = torch.cat(list(split.read([torch.arange(12)])))
    expected = teacher.eval()(views.normalise(images, torch.tensor([0.5] * 3), torch.tensor([0.25] * 3))).logits
    assert len(outputs) == 3 and torch.allclose(torch.cat([x.logits for x in outputs]), expected, atol=1e-5)
