"""Stages: what FSP, AB, FT, SSKD and HSAKD train before the first epoch."""

import copy
import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb import views
from pckd_nb.methods import Batch, Stage, baseline
from pckd_nb.methods.baselines import BASELINE_CLASSES
from pckd_nb.methods.baselines.base import StagedBaseline
from pckd_nb.methods.terms.maps import Paraphraser
from pckd_nb.models import FeatureMaps
from pckd_nb.training import Trainer, stages
from pckd_nb.training.optimization import Optimization

from .test_baselines import FakeNetwork
from .test_reference_methods import FILES, Values, view_major

QUIET = {"progress": False, "precision": "32-true", "accelerator": "cpu"}
STAGED = [name for name, cls in BASELINE_CLASSES.items() if issubclass(cls, StagedBaseline)]
RECIPE = pckd.get_recipe("classroom", epochs=2, batch_size=24)


def files(*names):
    paths = [path for path in FILES if path.stem.rsplit("_", 1)[0] in names]
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def make_outputs(v, student_maps, teacher_maps):
    """Return the outputs of both networks with the maps, logits and features of a file."""
    rows = len(student_maps[0])
    logits = v.get("student_logits", torch.zeros(rows, 10, dtype=torch.float64))
    features, centers = torch.ones(rows, 4).double(), torch.ones(logits.shape[1], 4).double()
    student, teacher = (pckd.Output(features, logits, centers, None, tuple(m)) for m in (student_maps, teacher_maps))
    labels = v.get("labels", torch.zeros(rows, dtype=torch.int64))
    return student, teacher, Batch(labels, torch.arange(rows))


def bind(method, student, teacher):
    shapes = ([tuple(x.shape[1:]) for x in output.maps] for output in (student, teacher))
    method.prepare(None, None, *shapes)
    return method.double().train()


def check_agrees(v, results):
    """Compare values and gradients with those of a file. The gradients of all results must be in the file."""
    assert {loss for loss, _ in v.gradients.values()} <= results.keys() | {"loss", "loss_tf", "loss_ss"}
    for name, value in results.items():
        assert value.item() == pytest.approx(v[name].item(), rel=1e-10)
    for key, (loss, name) in v.gradients.items():
        if loss in results:
            found = torch.autograd.grad(results[loss], v[name], retain_graph=True)[0]
            assert torch.allclose(found, v[key], rtol=0, atol=1e-9 * v[key].abs().max().item() + 1e-12), key


@files("fsp", "ab")
def test_the_stage_of_fsp_and_ab_has_the_authors_loss(path):
    v = Values(path, torch.float64)
    student, teacher, batch = make_outputs(v, v.several("student_m"), v.several("teacher_m"))
    method = bind(baseline(path.stem.split("_")[0]), student, teacher)
    for i, connector in enumerate(getattr(method, "connectors", [])):
        v.load(connector.requires_grad_(True), f"connector{i}")
    [stage] = method.stages(FakeNetwork(student), None)
    loss = stage.loss(student, teacher, batch)
    check_agrees(v, {"loss": loss, "total": loss})
    assert stage.needs_student and (stage.views, stage.lr, stage.milestones) == (1, None, ())
    assert stage.epochs == v.stage1_epochs and method.weight == v.weight_stage1


@files("ft")
def test_ft_agrees_with_the_authors(path):
    v = Values(path, torch.float64)
    student, teacher, batch = make_outputs(v, [v.student_m0], [v.teacher_m0])
    method = bind(baseline("FT"), student, teacher)
    v.load(method.paraphraser.requires_grad_(True), "paraphraser")
    v.load(method.translator, "translator")
    terms = method(student, teacher, batch, 1)
    [stage] = method.stages(pckd.create_model("resnet8", num_classes=10), None)
    stage_loss = stage.loss(None, teacher, batch)
    check_agrees(v, {"loss": terms.terms["ft"], "total": terms.total, "stage1_loss": stage_loss})
    assert stage.epochs == v.stage1_epochs and stage.lr == v.stage1_learning_rate and not stage.needs_student
    assert method.stages(pckd.create_model("ShuffleV1", num_classes=10), None)[0].lr is None


@files("sskd")
def test_sskd_agrees_with_the_authors(path):
    v = Values(path, torch.float64)
    method, images = baseline("SSKD"), len(v.labels)
    zeros = torch.zeros(1)
    method.student_head, method.teacher_head = nn.Identity(), nn.Identity()  # the file has their outputs
    student, teacher = (
        pckd.Output(view_major(v[f"{name}_ss"], images), view_major(v[f"{name}_logits"], images), zeros, None)
        for name in ("student", "teacher")
    )
    batch = Batch(v.labels, torch.arange(images))
    terms = method(student, teacher, batch, 1)
    [stage] = method.stages(None, None)
    method.teacher_head = nn.Module()  # its output is an input of this loss, with a gradient
    method.teacher_head.forward = lambda features: view_major(v.teacher_ss.requires_grad_(), images)
    stage_loss = stage.loss(None, teacher, batch)
    check_agrees(v, {"loss": terms.terms["sskd"], "total": terms.total, "stage1_loss": stage_loss})
    recipe = stages.recipe_of(stage, RECIPE)
    assert [recipe.lr_at(epoch) for epoch in (1, 30, 31, 45, 46, 60)] == pytest.approx(
        [0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005]
    )


class LogitsHead(nn.Module):
    """Takes the place of an auxiliary head: it returns the logits of a file, or its input if there are none."""

    def __init__(self, logits=None):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        logits = x if self.logits is None else self.logits
        return pckd.Output(logits, logits, logits, None)


@files("hsakd")
def test_hsakd_agrees_with_the_authors(path):
    v = Values(path, torch.float64)
    method, images = baseline("HSAKD"), len(v.labels)
    zeros = torch.zeros(1)
    student, teacher = (
        pckd.Output(
            zeros,
            view_major(v[f"{name}_logits"], images),
            zeros,
            None,
            (zeros, *(view_major(head, images) for head in v.several(f"{name}_head"))),  # the first map has no head
        )
        for name in ("student", "teacher")
    )
    heads = [LogitsHead() for _ in v.several("student_head")]
    method.student_heads, method.teacher_heads = nn.ModuleList(heads), nn.ModuleList(copy.deepcopy(heads)).train()
    batch = Batch(v.labels, torch.arange(images))
    terms = method(student, teacher, batch, 1)
    assert method.temperature == v.temperature and method.cross_entropy_weight == v.weight_ce
    assert not any(head.training for head in method.teacher_heads) and all(head.training for head in heads)
    [stage] = method.stages(None, None)
    method.teacher_heads = nn.ModuleList(LogitsHead(x) for x in student.maps[1:])  # the file has a gradient for them
    stage_loss = terms.terms["cross_entropy"] + stage.loss(None, student, batch)  # the file has a trained teacher
    check_agrees(v, {"loss": terms.terms["hsakd"], "total": terms.total, "stage1_loss": stage_loss})
    recipe = stages.recipe_of(dataclasses.replace(stage, epochs=100), RECIPE)
    assert [recipe.lr_at(epoch) for epoch in (1, 30, 31, 60, 61, 90, 91, 100)] == pytest.approx(
        [0.05, 0.05, 0.005, 0.005, 0.0005, 0.0005, 0.00005, 0.00005]
    )


@pytest.mark.parametrize(
    "epochs, lengths", [(240, (30, 60, 100)), (100, (12, 25, 42)), (10, (1, 2, 4)), (1, (1, 1, 1))]
)
def test_published_lengths_of_stages_are_scaled(epochs, lengths):
    for name, expected in zip(("FT", "SSKD", "HSAKD"), lengths, strict=True):
        for method, length in ((baseline(name), expected), (baseline(name, stage_epochs=7), 7)):
            method.prepare_training(pckd.methods.TrainingInfo(torch.zeros(3), epochs, 0))
            assert method.stage_length == length


def test_learning_rate_and_optimizer_of_a_stage():
    stage = Stage("x", 4, [nn.Linear(1, 1)], lambda student, teacher, batch: None, lr=0.01)
    recipe = pckd.get_recipe("classroom", warmup_epochs=3, ema=0.9, schedule="cosine")
    found = stages.recipe_of(stage, recipe)
    assert (found.lr, found.epochs, found.warmup_epochs, found.ema, found.schedule) == (0.01, 4, 0, None, "step")
    assert [found.lr_at(epoch) for epoch in range(1, 5)] == [0.01] * 4
    assert stages.recipe_of(stage, pckd.get_recipe(recipe, optimizer="adamw", lr=1e-3)).lr == 1e-3


class States(pckd.Callback):
    """Copies all weights at the start, after every epoch of a stage, and checks the modes during the stage."""

    def __init__(self):
        self._states, self._training, self._losses = [], set(), []

    def copy(self, trainer):
        networks = {"student": trainer.student, "method": trainer.method, "teacher": trainer.teacher.network.model}
        state = {f"{name}.{key}": x for name, network in networks.items() for key, x in network.state_dict().items()}
        self._states.append(copy.deepcopy(state))
        return networks

    def on_run_start(self, trainer):
        self.copy(trainer)

    def on_stage_epoch_end(self, trainer, stage):
        networks = self.copy(trainer)
        self._losses = list(stage["loss"])
        modules = {
            f"{name}.{key}": module for name, network in networks.items() for key, module in network.named_modules()
        }
        self._training = {name for name, module in modules.items() if module.training and not name.endswith(".")}

    def on_epoch_start(self, trainer):
        if trainer.recorder.epoch == 1:
            assert trainer.student.training and trainer.method.training
            assert all(weight.grad is None for weight in trainer.learner.parameters())
            self.copy(trainer)

    def on_run_end(self, trainer, run):
        self.copy(trainer)


TRAINED = {
    "FSP": ("student.",), "AB": ("student.", "method.connectors."), "FT": ("method.paraphraser.",),
    "SSKD": ("method.teacher_head.",), "HSAKD": ("method.teacher_heads.",),
}  # fmt: skip


@pytest.mark.parametrize("name", STAGED)
def test_a_stage_changes_only_its_modules(name, data):
    teacher = pckd.create_model("resnet14" if name == "FSP" else "wrn_16_2", data, seed=1)
    student, watch = pckd.create_model("resnet8", data, seed=2), States()
    before = copy.deepcopy(teacher.state_dict())
    method = baseline(name, stage_epochs=2)
    run = pckd.distill(student, teacher, data, method, RECIPE, callbacks=[watch], **QUIET)
    start, first, second, epoch_start, end = watch._states
    changed = {key for key in start if not torch.equal(start[key], first[key])}
    trained = {key for key in start if key.startswith(TRAINED[name]) and not key.startswith("student.fc.")}
    assert changed == trained, "running statistics of frozen BatchNorm layers do not change either"
    assert all(torch.equal(second[key], epoch_start[key]) for key in start)
    assert {key for key in start if key.startswith(TRAINED[name]) and not torch.equal(first[key], second[key])}
    assert watch._training and all(f"{key}.".startswith(TRAINED[name]) for key in watch._training)
    assert "student.fc" not in watch._training
    frozen_later = {key for key in trained if key.startswith("method.")}
    assert all(torch.equal(second[key], end[key]) for key in frozen_later)
    assert all(torch.equal(before[key], x) for key, x in teacher.state_dict().items())
    [recorded] = run.settings["stages"]
    assert recorded["epochs"] == 2 and recorded["loss"] == watch._losses and np.isfinite(recorded["loss"]).all()
    assert recorded["loss"][1] < recorded["loss"][0]
    assert (name.lower() in run.history) == (name in ("FT", "SSKD", "HSAKD"))


def test_a_stage_is_plain_gradient_descent(data):
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    watch, recipe = States(), pckd.get_recipe(RECIPE, flip=True)
    pckd.distill(student, teacher, data, baseline("FT", stage_epochs=2), recipe, callbacks=[watch], **QUIET)
    start, first, second, *_ = (
        {
            key.removeprefix("method.paraphraser."): x
            for key, x in state.items()
            if key.startswith("method.paraphraser.")
        }
        for state in watch._states
    )
    paraphraser = Paraphraser(64)
    paraphraser.load_state_dict(start)
    optimizer = torch.optim.SGD(paraphraser.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    maps = FeatureMaps(teacher, torch.zeros(1, 1, 8, 8))
    for epoch, expected in ((-1, first), (-2, second)):
        for index in views.batches(48, 24, 0, epoch):
            images = views.augment(data.train.images[index], 0, epoch, index, data.train.padding, flip=True)
            x = views.normalise(images, torch.tensor([0.5]), torch.tensor([0.25]))
            with torch.no_grad():
                target = maps(teacher.eval(), x).maps[-1]
            optimizer.zero_grad()
            (paraphraser(target) - target).square().mean().backward()
            optimizer.step()
        for key, weight in paraphraser.state_dict().items():
            assert torch.allclose(weight, expected[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["FSP", "AB"])
def test_after_the_stage_the_student_trains_without_the_teacher(name, data, monkeypatch):
    networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    calls, output = [], pckd.training.teacher.Teacher.batch_output
    monkeypatch.setattr(
        pckd.training.teacher.Teacher, "batch_output", lambda self, *a, **k: calls.append(1) or output(self, *a, **k)
    )
    run = pckd.distill(*networks, data, baseline(name), RECIPE, **QUIET)
    assert len(calls) == 2 == views.steps_per_epoch(len(data.train), 24)  # one epoch
    assert np.allclose(run.history["total"], run.history["cross_entropy"])


def test_images_of_a_stage_have_their_own_order_and_augmentation(data, monkeypatch):
    networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    seen, augment = [], views.Augmentation.__call__

    def record(self, images, index, epoch):
        seen.append((epoch, self.views))
        return augment(self, images, index, epoch)

    monkeypatch.setattr(views.Augmentation, "__call__", record)
    recipe = pckd.get_recipe(RECIPE, crop_per_view=True)
    pckd.distill(*networks, data, baseline("SSKD", stage_epochs=2), recipe, **QUIET)
    assert list(dict.fromkeys(seen)) == [(-1, 4), (-2, 4), (1, 4), (2, 4)]
    orders = [torch.cat(views.batches(48, 24, 0, epoch)) for epoch in (-2, -1, 0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def train(name, data, **options):
    networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    return pckd.distill(*networks, data, baseline(name, stage_epochs=2), RECIPE, **(QUIET | options))


def check_same(run, expected):
    for ours, theirs in ((run.student_state, expected.student_state), (run.method_state, expected.method_state)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert run.history.equals(expected.history) and run.settings["stages"] == expected.settings["stages"]


@pytest.mark.parametrize("kind", ["ctrl-c", "second ctrl-c", "after the stage"])
@pytest.mark.parametrize("name", STAGED)
def test_interrupted_in_a_stage_and_resumed_gives_the_same_bits(name, kind, data, tmp_path, monkeypatch):
    """Kills are in test_trials.py."""
    whole = train(name, data, out=tmp_path / "whole")
    step, steps = stages.StageSteps.step, []

    def interrupt(self, *arguments):
        steps.append(arguments[2])
        if steps == [-1, -1, -2] and kind == "ctrl-c":
            signal.raise_signal(signal.SIGINT)
        if steps == [-1, -1, -2] and kind == "second ctrl-c":
            raise KeyboardInterrupt
        return step(self, *arguments)

    def interrupt_first_epoch(*arguments):
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr(stages.StageSteps, "step", interrupt)
    batches = Trainer.batches
    if kind == "after the stage":
        monkeypatch.setattr(Trainer, "batches", interrupt_first_epoch)
    if kind == "ctrl-c":
        run = train(name, data, out=out)
        assert run.settings["status"] == "interrupted" and run.history.empty and "stages" not in run.settings
    else:
        with pytest.raises(KeyboardInterrupt):
            train(name, data, out=out)
    assert (out / "checkpoint.pt").exists() == (out / "run.json").exists() == (kind != "second ctrl-c")
    steps.clear()
    monkeypatch.setattr(stages.StageSteps, "step", lambda self, *a: steps.append(a[2]) or step(self, *a))
    monkeypatch.setattr(Trainer, "batches", batches)
    check_same(train(name, data, out=out, resume=True), whole)
    assert steps == ([] if kind == "after the stage" else [-1, -1, -2, -2])
    assert json.loads((out / "run.json").read_text())["stages"] == whole.settings["stages"]


def test_a_loss_that_is_not_finite_stops_the_training(data, monkeypatch):
    step, steps = stages.StageSteps.step, []

    def fail(self, *arguments):
        steps.append(1)
        return step(self, *arguments) * (torch.nan if len(steps) == 4 else 1)

    monkeypatch.setattr(stages.StageSteps, "step", fail)
    message = (
        r"^the loss of the stage paraphraser is not finite in epoch 2, step 2, for 24 of 24 samples: \d+, .*rate may"
    )
    with pytest.raises(FloatingPointError, match=message):
        train("FT", data)


def test_a_weight_that_is_not_finite_stops_the_training(data, monkeypatch):
    step = Optimization.step

    def fail(self):
        step(self)
        self.parameters[0].data.fill_(torch.nan)

    monkeypatch.setattr(Optimization, "step", fail)
    monkeypatch.setattr(stages.StageSteps, "step", lambda self, *a: fail(self.optimization) or torch.tensor(1.0))
    with pytest.raises(FloatingPointError, match="the gradient of a weight of the stage FSP is not finite in epoch 1"):
        train("FSP", data)


class TwoStages(pckd.KD):
    """Trains two layers one after the other."""

    def bind(self, student, teacher):
        self.first, self.second = (nn.Linear(teacher.feature_width, 1).requires_grad_(False) for _ in range(2))
        return super().bind(student, teacher)

    def stages(self, student, teacher):
        def loss_of(layer, offset):
            return lambda student, teacher, batch: (layer(teacher.features) - offset).square().mean()

        return [
            Stage("first", 1, [self.first], loss_of(self.first, 1)),
            Stage("second", 2, [self.second], loss_of(self.second, 2), views=2),
        ]


def test_several_stages_are_trained_in_their_order_and_not_again(data, tmp_path, monkeypatch):
    def run(**options):
        networks = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
        return pckd.distill(*networks, data, TwoStages(), RECIPE, **(QUIET | options))

    whole = run()
    assert [(stage["name"], len(stage["loss"])) for stage in whole.settings["stages"]] == [("first", 1), ("second", 2)]
    step, numbers = stages.StageSteps.step, []

    def interrupt(self, *arguments):
        numbers.append(arguments[2])
        if len(numbers) == 4:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(stages.StageSteps, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(out=tmp_path / "run")
    check_same(run(out=tmp_path / "run", resume=True), whole)
    assert numbers == [-1, -1, -2, -2] + [-2, -2, -3, -3]


def test_a_method_may_have_an_attribute_called_stages(data):
    class Mine(pckd.KD):
        def __init__(self):
            super().__init__()
            self.stages = [1, 2]

    run = pckd.distill("resnet8", pckd.create_model("resnet14", data, seed=1), data, Mine(), RECIPE, **QUIET)
    assert run.finished and "stages" not in run.settings


def test_frozen_layers_of_the_student_stay_frozen_in_a_stage(data):
    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)
    student.conv1.requires_grad_(False)
    before = student.conv1.weight.clone()
    pckd.distill(student, teacher, data, baseline("FSP"), RECIPE, **QUIET)
    assert torch.equal(before, student.conv1.weight)


def test_what_does_not_fit_is_refused(data):
    student, teacher = pckd.create_model("resnet8", data), pckd.create_model("wrn_16_2", data)
    channels = r"student has \[16, 16, 32, 64\], the teacher \[16, 32, 64, 128\]: choose networks of the same width$"
    with pytest.raises(ValueError, match=f"^FSP needs two or more feature maps .*{channels}"):
        pckd.distill(student, teacher, data, baseline("FSP"), RECIPE, **QUIET)
    with pytest.raises(
        ValueError, match="^SSKD compares rotated images and needs 2 or more views, got 1: pass views=4"
    ):
        baseline("SSKD", views=1)
    with pytest.raises(ValueError, match="stage_epochs must be at least 1"):
        baseline("FT", stage_epochs=0)
    with pytest.raises(ValueError, match="ss_ratio must be from 0 to 1, got 1.5"):
        baseline("SSKD", ss_ratio=1.5)
    with pytest.raises(ValueError, match="the stage x trains no module"):
        Stage("x", 1, [], None)

    class Vector(TwoStages):
        def stages(self, student, teacher):
            return [Stage("vector", 1, [self.first], lambda student, teacher, batch: self.first(teacher.features))]

    with pytest.raises(TypeError, match="the loss of the stage vector must be a scalar tensor, got shape"):
        pckd.distill(student, teacher, data, Vector(), RECIPE, **QUIET)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"modules": nn.Linear(1, 1)}, TypeError, "modules of the stage x must be a list of modules, got Linear"),
        ({"modules": ["fc"]}, TypeError, r"modules of the stage x must be a list of modules, got \['fc'\]"),
        ({"frozen": nn.Linear(1, 1)}, TypeError, "frozen of the stage x must be a list of modules, got Linear"),
        ({"loss": 3}, TypeError, "loss of the stage x must be a function, got 3"),
        ({"lr_decay": 0}, ValueError, "lr_decay must be greater than 0, got 0"),
        ({"milestones": [-1]}, ValueError, "milestones"),
        ({"milestones": [0.5, 30]}, ValueError, "milestones"),
    ],
)
def test_wrong_fields_of_a_stage(fields, error, message):
    values = {"name": "x", "epochs": 1, "modules": [nn.Linear(1, 1)], "loss": print, **fields}
    with pytest.raises(error, match=f"^{message}"):
        Stage(**values)


WRONG_STAGES = {
    "nothing": (lambda *_: None, TypeError, "stages of Wrong must return a list of Stage objects, got None"),
    "one stage": (
        lambda method, *_: Stage("x", 1, [method.first], print),
        TypeError,
        "stages of Wrong must return a list of Stage objects, got Stage",
    ),
    "no parameter": (lambda *_: [Stage("x", 1, [nn.ReLU()], print)], ValueError, "the stage x trains no parameter"),
    "teacher": (
        lambda method, student, teacher: [Stage("x", 1, [teacher], print)],
        ValueError,
        "the stage x trains a module that is part of neither the student nor the method: make it an attribute",
    ),
    "no gradient": (
        lambda method, *_: [Stage("x", 1, [method.first], lambda student, teacher, batch: teacher.features.mean())],
        ValueError,
        "the loss of the stage x does not depend on the modules that it trains",
    ),
    "student": (
        lambda method, *_: [Stage("x", 1, [method.first], lambda student, teacher, batch: student.features.mean())],
        ValueError,
        "the loss of the stage x uses an output that is None: if it needs the student, create the stage with",
    ),
    "rotations": (
        lambda method, *_: [Stage("x", 1, [method.first], print, views=2)],
        ValueError,
        "rotated views need square images, got 8×16: use views=1 in the stage x",
    ),
}


@pytest.mark.parametrize("case", WRONG_STAGES)
def test_wrong_stages_of_a_method(case, data):
    make_stages, error, message = WRONG_STAGES[case]

    class Wrong(TwoStages):
        def stages(self, student, teacher):
            return make_stages(self, student, teacher)

    if case == "rotations":
        images, labels = np.zeros((4, 8, 16, 3), dtype=np.uint8), np.arange(4) % 2
        data = pckd.Dataset.from_arrays((images, labels), (images, labels))
    student, teacher = pckd.create_model("resnet8", data), pckd.create_model("resnet8", data, seed=1)
    with pytest.raises(error, match=f"^{message}"):
        pckd.distill(student, teacher, data, Wrong(), RECIPE, **QUIET)


def test_the_number_of_epochs_is_not_recorded_as_a_setting(data):
    class Mine(type(baseline("FT"))):
        pass

    student, teacher = pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet8", data, seed=1)
    run = pckd.distill(student, teacher, data, Mine(), RECIPE, **QUIET)
    assert "epochs" not in run.settings["method"]["settings"]


def test_the_stage_is_shown(data, capsys, tmp_path):
    train("FT", data, progress=True)
    errors = capsys.readouterr().err
    assert "first: paraphraser, epoch 1 of 2, loss 0." in errors


def test_the_teacher_cache_is_not_used_in_a_stage(data, tmp_path):
    runs = [train("SSKD", data, precision="bf16-mixed", teacher_cache=tmp_path / "cache") for _ in range(2)]
    check_same(*runs)
    assert sorted(path.name for path in (tmp_path / "cache").rglob("epoch-*.npy")) == [
        "epoch-0001.npy",
        "epoch-0002.npy",
    ]
