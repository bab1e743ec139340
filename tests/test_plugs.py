"""Parts that users plug into a training: they take effect, are recorded, and must stay the same on resume."""

import dataclasses
import re
import sys
import warnings
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torchvision.transforms import v2

import pckd_nb as pckd
from pckd_nb import catalogue, experiments, losses, methods, provenance, views
from pckd_nb.data import Dataset, Split, rebuild, split
from pckd_nb.experiments import grid as grids
from pckd_nb.training import callbacks
from pckd_nb.training.optimization import Optimization

from .conftest import make_data
from .test_methods import ThreeLines
from .test_training import assert_same_run

QUIET = {"progress": False, "precision": "32-true"}
SHORT = {"epochs": 2, "batch_size": 16, **QUIET}


def networks(data):
    return pckd.create_model("resnet8", data, seed=1), pckd.create_model("resnet14", data, seed=2)


def train(data, method="kd", **options):
    return pckd.distill(*networks(data), data, method, **{**SHORT, **options})


def train_and_stop(data, folder, method="kd", step=3, **options):
    """Like `train`, but stop after `step` steps."""

    class Stop(pckd.Callback):
        done = 0

        def on_step_end(self, trainer):
            Stop.done += 1
            trainer.should_stop = Stop.done == step

    stop = Stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callbacks.StopOnSignal, "on_step_end", lambda self, trainer: stop.on_step_end(trainer))
        run = train(data, method, out=folder, **options)
    assert not run.finished
    return run


# ---------------------------------------------------------------------------------------------- methods


def test_attributes_set_after_construction_take_effect_and_are_recorded(data):
    method = pckd.PCKD()
    method.beta_kd = 7
    run = train(data, method)
    assert run.settings["method"]["settings"]["beta_kd"] == {"value": 7, "from": "attribute"}
    assert run.fingerprint == train(data, pckd.PCKD(beta_kd=7)).fingerprint != train(data, "pckd").fingerprint
    method.beta_kd = -7
    with pytest.raises(ValueError, match="beta_kd must be at least 0, got -7"):
        train(data, method)


class Decorated(pckd.PCKD):
    @methods.remember_arguments
    def __init__(self, gamma=1.0):
        super().__init__()
        self.gamma = gamma


class Undecorated(pckd.PCKD):
    def __init__(self, gamma=1.0, beta_fa=3, **settings):
        super().__init__(beta_fa=beta_fa, beta_kd=2, **settings)
        self.gamma = gamma


@pytest.mark.parametrize("make", [Decorated, Undecorated])
def test_recipe_and_data_set_settings_that_a_subclass_leaves_open(make):
    method, settings = methods.resolve_settings(make(gamma=5), {"beta_cc": 0.01, "beta_fa": 9}, {"views": 1})
    assert (method.gamma, method.beta_cc, method.views, method.beta_fa) == (5, 0.01, 1, 9)
    assert settings["gamma"] == {"value": 5, "from": "argument"}
    assert settings["beta_cc"]["from"] == "recipe" and settings["views"]["from"] == "data set"
    if make is Undecorated:
        assert settings["beta_kd"] == {"value": 2, "from": "argument"}
        explicit, _ = methods.resolve_settings(make(beta_fa=4), {"beta_fa": 9}, {})
        assert explicit.beta_fa == 4


def test_recipe_setting_that_a_method_does_not_store_is_refused():
    class Forgetful(pckd.KD):
        def __init__(self, sharpness=1.0):
            super().__init__()

    with pytest.raises(
        ValueError, match="the recipe sets sharpness, but Forgetful does not store it: write self.sharpness = sharpness"
    ):
        methods.resolve_settings(Forgetful(), {"sharpness": 2}, {})


def test_resume_refuses_changed_settings_of_a_plain_module(data, tmp_path):
    options = dict(out=tmp_path / "run", resume=True, **SHORT)
    first = pckd.distill(networks(data)[0], None, data, ThreeLines(1.0), **options)
    assert first.method_settings == {"scale": 1.0}
    with pytest.raises(ValueError, match=r"was started with scale 1\.0, not 9\.0"):
        pckd.distill(networks(data)[0], None, data, ThreeLines(9.0), **options)


@pytest.fixture
def three_lines():
    """The name of a registered method. It is removed after the test, because other tests list all methods."""
    name = "three_lines"
    methods.register_method(name, ThreeLines)
    yield name
    del methods.METHODS[name]
    catalogue.REGISTERED.remove(name)


def test_sweep_over_a_custom_setting_has_one_arm_per_value(three_lines, data):
    name = three_lines
    arms = experiments.sweep_arms("scale", [1, 2, 3], experiments.parse_arm(f"{name}-scale=1"))
    recipe = pckd.get_recipe("classroom")
    assert len({arm.drop_defaults(recipe, data) for arm in arms}) == 3
    with pytest.raises(ValueError, match="there is a method 'three_lines' already"):
        methods.register_method(name, ThreeLines)


def test_functions_with_the_same_name_are_different_strategies(data, tmp_path):
    first, second = (lambda ce, gamma, t, c=c: torch.full_like(gamma, c) for c in (0.5, 0.25))
    run = train(data, pckd.PCKD(strategy=first), out=tmp_path / "run")
    assert run.method_settings["strategy"] != provenance.describe(second)
    with pytest.raises(ValueError, match="was started with strategy"):
        train(data, pckd.PCKD(strategy=second), out=tmp_path / "run", resume=True)


SCALE = 1.0


def scaled(x):
    return SCALE * x


def times(k):
    return lambda x: k * x


def test_objects_that_behave_differently_have_different_descriptions(monkeypatch):
    describe = provenance.describe
    around = [partial(lambda k, x: k * x, k) for k in (1, 2)] + [times(k) for k in (1, 2)]
    different = [
        *around, scaled, partial(scaled, 1), partial(scaled, 2), v2.RandAugment(), v2.RandAugment(magnitude=3),
        torch.ones(2), torch.zeros(2), torch.zeros(3), np.ones(2), ThreeLines, ThreeLines(1.0), ThreeLines(2.0), 1, "a",
        nn.Linear(2, 2), {"a": 1}, [1, 2], None,
    ]  # fmt: skip
    texts = [str(describe(value)) for value in different]
    assert len(set(texts)) == len(texts)
    assert texts == [str(describe(value)) for value in different]
    before = describe(scaled)
    monkeypatch.setattr(f"{__name__}.SCALE", 2.0)
    assert describe(scaled) != before
    assert describe(iter([1])).endswith("(not recorded)")
    assert describe(pckd.preview.STRATEGIES["focal"]) == "focal"
    assert describe(pckd.PCKD(temperature=4)) == describe(pckd.PCKD()), "4 is the default"


def test_resume_refuses_changed_code_of_a_custom_method(data, tmp_path):
    def make(factor):
        class Mine(pckd.KD):
            def forward(self, student, teacher, batch, epoch):
                terms = super().forward(student, teacher, batch, epoch)
                return terms._replace(total=factor * terms.total)

        return Mine()

    train(data, make(1), out=tmp_path / "run")
    train(data, make(1), out=tmp_path / "run", resume=True)
    with pytest.raises(ValueError, match="was started with code of the method"):
        train(data, make(2), out=tmp_path / "run", resume=True)


def test_method_that_cannot_be_copied_is_refused(data):
    method = pckd.KD()
    method.lock = (x for x in ())
    with pytest.raises(TypeError, match="method KD can't be copied for this training: .*generator"):
        train(data, method)


def test_repr_of_a_method_shows_its_settings():
    assert repr(pckd.KD(temperature=2)) == "KD(temperature=2)" and repr(pckd.Supervised()) == "Supervised()"


def test_tracking_logger_logs_every_epoch(data, tmp_path, monkeypatch):
    calls = []
    fake = SimpleNamespace(
        init=lambda **options: calls.append(options),
        log=lambda row, step: calls.append((step, sorted(row)[:1], row["test_top1"])),
        finish=lambda: calls.append("end"),
    )
    monkeypatch.setitem(sys.modules, "trackio", fake)
    run = train(data, loggers=[pckd.training.TrackingLogger("trackio", project="mine")])
    rows = [(step, calls[step][1], score) for step, score in zip((1, 2), run.history["test_top1"], strict=True)]
    assert calls == [{"project": "mine"}, *rows, "end"]
    with pytest.raises(ValueError, match="no_such_tracker is not installed: pip install no_such_tracker"):
        pckd.training.TrackingLogger("no_such_tracker")


def test_contrast_temperatures_are_settings(data):
    assert train(data, pckd.PCKD(contrast_temperature=1.0)).fingerprint != train(data, "pckd").fingerprint
    with pytest.raises(ValueError, match="base_temperature must be greater than 0"):
        pckd.PCKD(base_temperature=0)


# ---------------------------------------------------------------------------------------------- parts of a recipe

PLUGS = {
    "adamw": dict(optimizer="adamw", lr=1e-3),
    "own optimizer": dict(optimizer=partial(torch.optim.RMSprop, lr=1e-3)),
    "cosine": dict(schedule="cosine", warmup_epochs=0.5),
    "one cycle": dict(schedule=lambda optimizer, steps: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)),
    "clipping": dict(clip_norm=0.1),
    "smoothing": dict(label_smoothing=0.2),
    "averaging": dict(ema=0.8),
    "augmentation": dict(augment=v2.RandomErasing(p=0.5)),
    "augmentation by name": dict(augment="RandAugment", crop=False),
    "mixup": dict(mix="mixup"),
    "cutmix": dict(mix=v2.CutMix(num_classes=3)),
    "validation": dict(val=0.25),
}


@pytest.mark.slow
@pytest.mark.parametrize("plug", PLUGS)
def test_recipe_option_changes_the_training_and_resume_reproduces_it_exactly(plug, data, tmp_path):
    options = PLUGS[plug]
    uninterrupted = train(data, **options)
    assert uninterrupted.fingerprint != train(data).fingerprint
    train_and_stop(data, tmp_path / "run", **options)
    resumed = train(data, out=tmp_path / "run", resume=True, **options)
    assert_same_run(resumed, uninterrupted)
    train_and_stop(data, tmp_path / "other", **options)
    with pytest.raises(ValueError, match="was started with"):
        train(data, out=tmp_path / "other", resume=True)


@pytest.mark.slow
@pytest.mark.parametrize("plug", [name for name in PLUGS if name not in ("mixup", "cutmix")])
def test_teacher_cache_does_not_change_the_results(plug, data, tmp_path):
    plain = train(data, **PLUGS[plug])
    for _ in range(2):
        assert_same_run(train(data, teacher_cache=tmp_path / "cache", **PLUGS[plug]), plain)
    assert train(data, teacher_cache=tmp_path / "cache").fingerprint == train(data).fingerprint


def test_mixed_images_are_not_cached(data, tmp_path):
    with pytest.warns(UserWarning, match="mixed images are not cached"):
        run = train(data, teacher_cache=tmp_path / "cache", mix="mixup")
    assert run.fingerprint == train(data, mix="mixup").fingerprint and not (tmp_path / "cache").exists()


def test_augmentation_depends_only_on_seed_epoch_and_index():
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    index = torch.tensor([4, 9, 2, 7, 0, 5])
    torch.manual_seed(3)
    before = torch.get_rng_state()
    drawn = views.apply_transform(v2.RandAugment(), images, 0, 1, index)
    assert torch.equal(torch.get_rng_state(), before)
    order = torch.tensor([5, 0, 3, 1, 2, 4])
    assert torch.equal(views.apply_transform(v2.RandAugment(), images[order], 0, 1, index[order]), drawn[order])
    for seed, epoch in ((1, 1), (0, 2)):
        assert not torch.equal(views.apply_transform(v2.RandAugment(), images, seed, epoch, index), drawn)


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"optimizer": "adam"}, ValueError, r"unknown optimizer 'adam'; known: sgd, adamw, file\.py:NAME, or a"),
        ({"optimizer": 3}, TypeError, "optimizer must be a name or a callable, got int"),
        ({"optimizer": lambda parameters: None}, TypeError, "given as optimizer must return a torch.optim.Optimizer"),
        ({"schedule": "linear"}, ValueError, "unknown schedule 'linear'"),
        ({"schedule": lambda *_: 1}, TypeError, "given as schedule must return a torch.optim.lr_scheduler"),
        ({"augment": "RandAug"}, ValueError, "unknown transform 'RandAug'"),
        ({"augment": lambda image: image.float()}, TypeError, "augment must return a uint8 tensor .* torch.float32"),
        ({"augment": lambda image: image[:, 1:]}, ValueError, "augment must keep the shape of an image"),
        ({"mix": lambda x, y: (x, y)}, ValueError, "mix must return images .* and probabilities"),
        ({"mix": "mix"}, ValueError, "unknown mix 'mix'; known: mixup, cutmix"),
        ({"label_smoothing": 1}, ValueError, r"label_smoothing must be less than 1, got 1"),
        ({"clip_norm": 0}, ValueError, "clip_norm must be greater than 0"),
        ({"ema": 1}, ValueError, r"ema must be less than 1, got 1"),
        ({"val": 1.5}, ValueError, "val must be less than 1, got 1.5"),
        ({"val": 0.01}, ValueError, r"val=0.01 splits .* of tiny into .* image of each of the 3 classes"),
        ({"callbacks": [print]}, TypeError, "builtin_function_or_method is not a callback"),
        ({"callbacks": [pckd.EarlyStopping]}, TypeError, r"write EarlyStopping\(\), not EarlyStopping"),
        ({"callbacks": [pckd.EarlyStopping()]}, ValueError, "no column 'val_top1'.* val=0.1"),
        ({"warmup": 3}, ValueError, "a recipe has no field 'warmup'"),
    ],
)  # fmt: skip
def test_invalid_option_fails_with_one_line_and_writes_nothing(options, error, words, data, tmp_path):
    with pytest.raises(error, match=words) as caught:
        train(data, out=tmp_path / "run", **options)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (lambda s, t, d: (nn.Linear, t, d, "kd"), r"student must be a network, .*: write Linear\(...\), not Linear"),
        (lambda s, t, d: (s, 3, d, "kd"), "teacher must be a network, a Run or the folder of one, got int"),
        (lambda s, t, d: (s, t, [1], "kd"), "data must be a Dataset or the name of one, got list"),
        (lambda s, t, d: (s, t, d, nn.Bilinear), r"write Bilinear\(...\), not Bilinear"),
        (lambda s, t, d: (s, t, d, nn.Linear(1, 1)), "method Linear has no bind"),
        (lambda s, t, d: (s, t, d, 3), r"method must be an nn.Module such as PCKD\(\), got int"),
    ],
)
def test_argument_of_the_wrong_type_is_named(arguments, words, data):
    with pytest.raises(TypeError, match=words):
        pckd.distill(*arguments(*networks(data), data), **SHORT)


# ---------------------------------------------------------------------------------------------- callbacks


def test_callbacks_are_called_in_order_and_see_the_history_on_disk(data, tmp_path):
    calls, rows = [], []

    class Listener:
        def on_run_start(self, trainer):
            calls.append("run")

        def on_epoch_start(self, trainer):
            calls.append("epoch")

        def on_step_end(self, trainer):
            calls.append("step")

        def on_epoch_end(self, trainer):
            calls.append("epoch end")
            file = tmp_path / "run" / "history.csv"
            rows.append(len(file.read_text().splitlines()) - 1 if file.exists() else 0)

        def on_run_end(self, trainer, run):
            calls.append(f"end {run.finished}")

        def teardown(self, trainer):
            calls.append("teardown")

    train(data, callbacks=[Listener()], out=tmp_path / "run", epochs=3)
    epoch = ["epoch", *["step"] * 3, "epoch end"]
    assert calls == ["run", *epoch * 3, "end True", "teardown"]
    assert rows == [0, 1, 2]  # this callback runs before the one that writes the file


def test_history_is_on_disk_after_every_epoch(data, tmp_path):
    seen = []

    class Look(pckd.Callback):
        def on_epoch_start(self, trainer):
            if trainer.recorder.epoch > 1:
                seen.append(len(pckd.load_run(tmp_path / "run").history))

    train(data, callbacks=[Look()], out=tmp_path / "run", epochs=4)
    assert seen == [1, 2, 3]


def test_resume_refuses_other_callbacks_and_restores_their_state(data, tmp_path):
    options = dict(val=0.25, epochs=6, callbacks=[pckd.EarlyStopping("test_cross_entropy", 1, min_delta=1e3)])
    uninterrupted = train(data, **options)
    assert len(uninterrupted.history) == 2 and uninterrupted.finished
    train_and_stop(data, tmp_path / "run", step=4, **options)
    with pytest.raises(ValueError, match="was started with callbacks"):
        train(data, out=tmp_path / "run", resume=True, **{**options, "callbacks": []})
    resumed = train(data, out=tmp_path / "run", resume=True, **options)
    assert resumed.history.equals(uninterrupted.history) and resumed.fingerprint == uninterrupted.fingerprint


# ---------------------------------------------------------------------------------------------- data


def test_stop_when_interrupts_a_run_and_is_not_recorded(data, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "SECONDS_BETWEEN_QUESTIONS", 0)
    asked = []
    stop = callbacks.StopWhen(lambda: asked.append(1) or len(asked) == 4)
    run = train(data, out=tmp_path / "run", epochs=2, callbacks=[stop])
    assert not run.finished and len(run.history) == 1 and len(asked) == 4 and run.settings["callbacks"] == []
    resumed = train(data, out=tmp_path / "run", resume=True, epochs=2)
    assert resumed.finished and resumed.fingerprint == train(data, epochs=2).fingerprint
    with pytest.raises(TypeError, match="condition must be a function without arguments, got bool"):
        callbacks.StopWhen(True)


def test_stop_when_asks_at_most_every_half_second(monkeypatch):
    asked, trainer = [], SimpleNamespace(should_stop=False)
    stop = callbacks.StopWhen(lambda: bool(asked.append(1)))
    for now in (0, 0.3, 0.49, 0.5, 0.9, 1.1):
        monkeypatch.setattr(callbacks.time, "monotonic", lambda now=now: now)
        stop.on_step_end(trainer)
    assert len(asked) == 3 and not trainer.should_stop


class Noisy(Split):
    """A custom split that augments its images."""

    def read(self, batches, *, seed=None, epoch=None):
        for images in super().read(batches, seed=seed, epoch=epoch):
            yield images if epoch is None else 255 - images


def test_custom_split_keeps_its_type_and_has_its_own_fingerprint(data, tmp_path):
    own = dataclasses.replace(data, train=Noisy(data.train.images, data.train.labels))
    assert type(own.to("cpu").train) is type(own.train.take(np.arange(5))) is Noisy
    assert own.fingerprint != data.fingerprint
    train(data, "pckd", teacher_cache=tmp_path)
    live, cached = (train(own, "pckd", **options) for options in ({}, {"teacher_cache": tmp_path}))
    assert live.history.equals(cached.history)


def test_labels_are_converted_to_int64_and_checked():
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    for labels in (torch.arange(4, dtype=torch.int32), np.arange(4), [0, 1, 2, 3]):
        assert Split(images, labels).labels.dtype == torch.int64
    with pytest.raises(ValueError, match="one label per image, got 4 images and 3 labels"):
        Split(images, torch.arange(3))
    with pytest.raises(TypeError, match=r"labels must be whole numbers .*labels\.argmax\(1\)"):
        Split(images, torch.eye(4, dtype=torch.int64))
    with pytest.raises(TypeError, match="images must be a uint8 tensor"):
        Split(images.float(), torch.arange(4))


def test_options_of_a_custom_data_set_are_recorded_and_the_run_can_be_loaded(data, tmp_path):
    own = dataclasses.replace(data, options={"fold": 3})
    train(own, out=tmp_path / "run")
    run = pckd.load_run(tmp_path / "run")
    assert run.settings["data"]["options"] == {"fold": 3}
    with pytest.raises(ValueError, match="tiny cannot be loaded by its name, .* has no option 'fold'"):
        rebuild(run.settings["data"])
    with pytest.raises(TypeError, match="options must have values that JSON can store"):
        dataclasses.replace(data, options={"fold": object()})
    with pytest.raises(ValueError, match="options must not contain 'root'"):
        dataclasses.replace(data, options={"root": "/"})


def test_images_too_large_for_the_device_stay_on_the_cpu(data, monkeypatch):
    expected = train(data)
    monkeypatch.setattr(split, "device_memory_limit", lambda device: data.train.images.nbytes - 1)
    moved = data.train.to("meta")
    assert moved.images.device.type == "cpu" and moved.labels.device.type == "meta"
    assert data.test.to("meta").images.device.type == "meta"
    assert_same_run(train(data), expected)
    (batch,) = data.train.to("cpu").read([torch.arange(3)])
    assert torch.equal(batch, data.train.images[:3])


def test_validation_split_is_stratified_and_comes_from_the_training_images():
    data = make_data(train=60).with_validation(0.2)
    assert data.val.labels.bincount().tolist() == [4, 4, 4] and data.train.labels.bincount().tolist() == [16, 16, 16]
    assert data.fingerprint != make_data(train=60).fingerprint
    again = make_data(train=60).with_validation(0.2)
    assert torch.equal(again.val.images, data.val.images)
    with pytest.raises(ValueError, match="already has a validation split"):
        data.with_validation(0.2)


def test_from_arrays_accepts_every_layout():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), np.uint8)
    labels = ["cat", "dog", "cat", "dog", "cat", "dog"]
    data = Dataset.from_arrays((pixels, labels), (torch.from_numpy(pixels).permute(0, 3, 1, 2), labels))
    assert data.classes == ("cat", "dog") and torch.equal(data.train.images, data.test.images)
    assert data.default_views == 1  # not square
    grey = Dataset.from_arrays((pixels[..., 0] / 255, [0, 1] * 3), (pixels[..., 0], [0, 1] * 3))
    assert torch.equal(grey.train.images, grey.test.images) and grey.channels == 1
    with pytest.raises(ValueError, match="do not normalise them"):
        Dataset.from_arrays((pixels / 100.0, labels), (pixels, labels))
    with pytest.raises(ValueError, match="label 'bird' is not one of the classes cat, dog"):
        Dataset.from_arrays((pixels, ["bird"] * 6), (pixels, labels), classes=["cat", "dog"])


def test_unusable_torch_dataset_is_refused():
    from torch.utils.data import TensorDataset

    good = TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(TypeError, match="train must be a torch.utils.data.Dataset"):
        Dataset.from_torch(iter([1]), good)
    uneven = [(torch.rand(1, 8 + row, 8), 0) for row in range(2)]
    with pytest.raises(ValueError, match=r"images of train have different sizes, .*v2\.Resize"):
        Dataset.from_torch(uneven, good)

    class Random(TensorDataset):
        def __getitem__(self, row):
            return torch.rand(1, 8, 8), row

    with pytest.warns(UserWarning, match="change each time they are read, .* augment="):
        Dataset.from_torch(Random(torch.rand(4, 1, 8, 8), torch.arange(4)), good)


# ---------------------------------------------------------------------------------------------- teachers


def test_teacher_sees_images_preprocessed_as_in_its_own_training(data, tmp_path):
    teacher = pckd.create_model("resnet14", data, seed=1)
    run = pckd.fit(teacher, data, epochs=6, batch_size=8, out=tmp_path / "teacher", **QUIET)
    other = dataclasses.replace(data, mean=(0.1,), std=(0.9,))
    student = pckd.create_model("resnet8", data, seed=1)
    with pytest.warns(UserWarning, match=r"trained on images of 8×8 pixels with mean 0\.500 and std 0\.250"):
        trained = pckd.distill(student, run, other, pckd.KD(), **SHORT)
    assert trained.settings["teacher"]["preprocessing"] == {"mean": [0.5], "std": [0.25], "size": [8, 8]}
    adapted = pckd.with_preprocessing(run.model(), other, mean=data.mean, std=data.std)
    assert pckd.evaluate(adapted, other, precision="32-true").top1 == run.accuracy > 80
    assert pckd.with_preprocessing(run.model(), data) is not adapted
    large = dataclasses.replace(
        data,
        train=Split(data.train.images.repeat_interleave(2, 2).repeat_interleave(2, 3), data.train.labels),
        test=Split(data.test.images.repeat_interleave(2, 2).repeat_interleave(2, 3), data.test.labels),
    )
    small = pckd.with_preprocessing(run.model(), large, size=8)
    assert pckd.evaluate(small, large, precision="32-true").top1 == pytest.approx(run.accuracy, abs=5)


def test_teacher_less_accurate_than_in_its_own_run_gives_a_warning(data, tmp_path):
    run = pckd.fit(pckd.create_model("resnet14", data, seed=1), data, epochs=6, batch_size=8, **QUIET)
    wrong = Split(data.test.images, (data.test.labels + 1) % 3)
    with pytest.warns(
        UserWarning, match=r"the teacher's accuracy is .* % on 24 test images of tiny, but .* % in its own run"
    ):
        pckd.distill(pckd.create_model("resnet8", data), run, dataclasses.replace(data, test=wrong), "kd", **SHORT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pckd.distill(pckd.create_model("resnet8", data), run, data, "kd", **SHORT)


# ---------------------------------------------------------------------------------------------- representations


def test_repr_and_html_of_a_run(data):
    run = train(data)
    assert re.fullmatch(
        r"Run\('KD resnet8' on 'tiny', seed 0, finished, 2 of 2 epochs, test top-1 [\d.]+ %\)", repr(run)
    )
    page = run._repr_html_()
    assert all(words in page for words in ("KD resnet8", "temperature = 4", "<svg", "test top1")) and len(page) < 3000
    run.settings["data"]["name"] = "<script>"
    assert "<script>" not in run._repr_html_()


def test_html_of_data_sets_and_networks(data):
    renamed = dataclasses.replace(data, name="<script>")
    page = renamed._repr_html_()
    assert all(words in page for words in ("train images", "test images", data.fingerprint, data.normalisation))
    assert "<script>" not in page and "&lt;script&gt;" in page
    network = pckd.create_model("resnet8", data)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert all(words in network._repr_html_() for words in ("<b>resnet8</b>", f"{count:,}", "<td", "fc"))


# ---------------------------------------------------------------------------------------------- losses, grids


def test_contrast_does_not_wait_for_values_from_the_device():
    """A tensor on "meta" has no values, so code that waits for them fails."""
    scores, labels = torch.empty(8, 5, device="meta"), torch.empty(8, dtype=torch.int64, device="meta")
    assert losses.category_center_contrast_plain(scores, scores, labels).shape == (8,)
    sums, counts = losses._sum_over_positives(torch.cat([scores, scores]), labels)  # the blocked version uses it too
    assert sums.shape == counts.shape == (16,)


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), MemoryError("no room")])
def test_error_in_one_run_of_a_grid_does_not_stop_the_others(error, data, tmp_path, monkeypatch):
    pckd.fit(pckd.create_model("resnet14", data, seed=1), data, out=tmp_path / "teacher", **SHORT)
    monkeypatch.setattr(grids, "load_dataset", lambda *_, **__: data)
    recipe = pckd.get_recipe("classroom", epochs=1, batch_size=16)
    arms = [experiments.parse_arm(text) for text in ("supervised", "kd")]
    grid = experiments.Grid("tiny", [(tmp_path / "teacher", "resnet8")], arms, [0], tmp_path / "grid", recipe)
    monkeypatch.setattr(pckd.KD, "forward", lambda *_: (_ for _ in ()).throw(error))
    messages = []
    with pytest.raises(RuntimeError, match=f"1 of 2 runs failed, all others were trained; first error: .*{error}"):
        experiments.run_grid(grid, progress=False, print_fn=messages.append)
    assert experiments.results(grid)["arm"].tolist() == ["supervised"] and str(error) in messages[-2]


def test_custom_names_that_cannot_be_loaded_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def network(num_classes): ...\nclass Method: ...\n")
    (tmp_path / "bad.py").write_text("1 / 0")
    for name, words in {
        "none.py:Name": "there is no file",
        "mine.py:Name": "has no 'Name'; it has Method, network",
        "bad.py:Name": "can't be imported: ZeroDivisionError",
        "no_such_module:Name": "unknown method 'no_such_module:Name'",
    }.items():
        with pytest.raises(ValueError, match=words):
            methods.make(name)
    with pytest.raises(ValueError, match="must take num_classes and in_channels"):
        pckd.create_model("mine.py:network", num_classes=3)
    with pytest.raises(ValueError, match="must return a Dataset, got"):
        (tmp_path / "data_.py").write_text("def make(): return 3")
        pckd.load_dataset("data_.py:make")
    (tmp_path / "data_2.py").write_text(
        "import numpy, pckd_nb\ndef make():\n    pair = numpy.zeros((9, 8, 8), 'uint8'), [0, 1, 2] * 3\n"
        "    return pckd_nb.Dataset.from_arrays(pair, pair)\n"
    )
    assert len(pckd.load_dataset("data_2.py:make", val=0.34).val) == 3


# ---------------------------------------------------------------------------------------------- reported problems


class Brighter(nn.Module):
    def __init__(self, step):
        super().__init__()
        self._step = step

    def forward(self, image):
        return (image.int() + self._step).clamp(0, 255).to(torch.uint8)


class Slotted:
    __slots__ = ("step",)

    def __init__(self, step):
        self.step = step

    def __call__(self, image):
        return Brighter(self.step)(image)


OFFSET = torch.tensor(0)


def by_global(image):
    return Brighter(int(OFFSET))(image)


class Helper:
    def shift(self, image):
        return Brighter(3)(image)


def by_helper_class(image):
    return Helper().shift(image)


AUGMENTS = {
    "private attribute": lambda step: Brighter(step),
    "inside a sequence": lambda step: nn.Sequential(Brighter(step)),
    "inside a transform": lambda step: v2.RandomApply(nn.ModuleList([Brighter(step)]), p=1.0),
    "slots": lambda step: Slotted(step),
    "closure over an object": lambda step: (lambda part: lambda image: part(image))(Slotted(step)),
    "bound method": lambda step: Slotted(step).__call__,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", AUGMENTS)
def test_teacher_cache_distinguishes_augmentations(kind, data, tmp_path):
    make = AUGMENTS[kind]
    for step in (40, 90):
        cached = train(data, augment=make(step), teacher_cache=tmp_path / "cache")
        assert_same_run(cached, train(data, augment=make(step)))
    train(data, augment=make(40), out=tmp_path / "run")
    with pytest.raises(ValueError, match="was started with augment"):
        train(data, augment=make(90), out=tmp_path / "run", resume=True)


def test_description_of_a_function_includes_what_it_uses(monkeypatch):
    before = provenance.describe(by_global)
    monkeypatch.setattr(f"{__name__}.OFFSET", torch.tensor(5))
    assert provenance.describe(by_global) != before
    before = provenance.describe(by_helper_class)
    monkeypatch.setattr(Helper, "shift", lambda self, image: image)
    assert provenance.describe(by_helper_class) != before


def test_an_augmentation_that_cannot_be_recorded_is_not_cached(data, tmp_path):
    generator = iter(range(10**9))
    with pytest.warns(UserWarning, match="can't be recorded, so the teacher's features are not cached"):
        train(data, augment=lambda image: image if next(generator) else image, teacher_cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_description_of_a_custom_file_depends_on_its_content(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = []
    for step in (3, 30):
        (tmp_path / f"aug{step}.py").write_text(f"def dim(image):\n    return image // {step}\n")
        settings.append(pckd.get_recipe("classroom", augment=f"aug{step}.py:dim").settings()["augment"].split(" = ")[1])
    assert settings[0].partition("[")[2] != settings[1].partition("[")[2]


def net(k, tanh=False):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.fc, self.k = nn.Conv2d(1, 4, 3), nn.Linear(4, 3), k

        def forward(self, x):
            x = self.k * self.body(x).mean((2, 3))
            return self.fc(x.tanh() if tanh else x.relu())

    return pckd.as_classifier(Net())


def test_custom_teacher_is_identified_by_its_code_and_attributes(data, tmp_path):
    def distil(teacher, **options):
        return pckd.distill(networks(data)[0], teacher, data, pckd.KD(), **SHORT, **options)

    for teacher in ((1,), (9,), (1, True)):
        live = distil(net(*teacher))
        assert_same_run(distil(net(*teacher), teacher_cache=tmp_path / "cache"), live)
    distil(net(1), out=tmp_path / "run")
    with pytest.raises(ValueError, match="was started with code of the teacher"):
        distil(net(9), out=tmp_path / "run", resume=True)


def test_loaded_student_keeps_its_preprocessing(data, tmp_path):
    student = pckd.with_preprocessing(pckd.create_model("resnet8", data, seed=0), data, mean=[0.9], std=[0.1], size=12)
    run = pckd.fit(student, data, out=tmp_path / "run", epochs=4, batch_size=8, **QUIET)
    loaded = pckd.load_run(tmp_path / "run").model()
    assert pckd.evaluate(loaded, data, precision="32-true").top1 == run.accuracy
    twice = pckd.with_preprocessing(pckd.with_preprocessing(student, data, size=16), data, mean=[0.2], std=[0.3])
    assert twice.preprocessing["inner"]["size"] == [16, 16] and "inner" in twice.preprocessing["inner"]
    for wrong in ({"size": 0}, {"size": -4}, {"mean": [float("nan")]}, {"std": [0.0]}):
        with pytest.raises(ValueError, match="size must be|mean must be finite"):
            pckd.with_preprocessing(student, data, **wrong)


class SetsAfterwards(pckd.PCKD):
    def __init__(self):
        super().__init__()
        self.views, self.epsilon, self.beta_cc = 1, 1.1, 0.5


class ByClass(pckd.PCKD):
    beta_fa, views = 5, 1


def test_settings_made_by_a_subclass_override_recipe_and_data_set():
    method, settings = methods.resolve_settings(SetsAfterwards(), {"beta_cc": 0.01, "epsilon": 1.8}, {"views": 4})
    assert (method.views, method.epsilon, method.beta_cc) == (1, 1.1, 0.5)
    assert settings["beta_cc"] == {"value": 0.5, "from": "argument"}
    method, settings = methods.resolve_settings(ByClass(), {"beta_fa": 9}, {"views": 4})
    assert (method.beta_fa, method.views) == (5, 1) == (settings["beta_fa"]["value"], settings["views"]["value"])
    assert methods.resolve_settings(ByClass(beta_fa=2), {}, {})[0].beta_fa == 2


def test_attributes_that_have_an_effect_are_recorded(data):
    plain = pckd.KD()
    plain.views = 2
    attention = methods.baseline("AT")
    attention.warmup_epochs, attention.cross_entropy_weight = 50, 0.5
    for method, names in ((plain, {"views"}), (attention, {"warmup_epochs", "cross_entropy_weight"})):
        _, settings = methods.resolve_settings(method, {}, {})
        assert {name for name, info in settings.items() if info["from"] == "attribute"} == names
    assert not [
        info for info in methods.resolve_settings(pckd.PCKD(), {}, {})[1].values() if info["from"] == "attribute"
    ]


class WithPart(pckd.KD):
    def __init__(self):
        super().__init__()
        self.part = Brighter(1)


def test_submodules_of_a_method_are_recorded():
    one, other = WithPart(), WithPart()
    other.part._step = 2
    assert methods.resolve_settings(one, {}, {})[1] != methods.resolve_settings(other, {}, {})[1]


def test_setting_shared_with_the_recipe_applies_to_the_method():
    recipe = pckd.get_recipe("classroom")
    method, same_recipe = experiments.parse_arm("DKD-warmup_epochs=5").build(recipe)
    assert method.warmup_epochs == 5 and same_recipe == recipe
    _, changed = experiments.parse_arm("kd-warmup_epochs=1").build(pckd.get_recipe(recipe, schedule="cosine"))
    assert changed.warmup_epochs == 1


def test_settings_that_would_be_ignored_are_refused(data):
    with pytest.raises(ValueError, match="your own optimizer does not receive lr"):
        train(data, optimizer=torch.optim.Adam, lr=0.5)
    assert train(data, optimizer=torch.optim.Adam).settings["recipe"]["lr"] is None
    with pytest.raises(ValueError, match="the recipe sets betacc, but no method has a setting of this name"):
        train(data, recipe=pckd.get_recipe("classroom", method={"betacc": 3}))
    with pytest.raises(ValueError, match="layers and teacher_layers must have the same length, got 1 and 2"):
        methods.baseline("AT", layers=["layer1"], teacher_layers=["layer1", "layer2"])


def test_recipe_accepts_numpy_numbers(data, tmp_path):
    recipe = pckd.get_recipe("classroom", epochs=np.int64(2), batch_size=16, lr=np.logspace(-2, -1, 2)[0])
    train_and_stop(data, tmp_path / "run", lr=np.float64(0.01))
    assert recipe.lr == 0.01 and train(data, out=tmp_path / "run", resume=True, lr=0.01).finished


class NumpySchedule(lr_scheduler.LRScheduler):
    def __init__(self, optimizer, steps):
        self.table = np.linspace(1, 0, steps + 1)
        super().__init__(optimizer)

    def get_lr(self):
        return [base * float(self.table[self.last_epoch]) for base in self.base_lrs]


def test_schedule_that_a_checkpoint_cannot_store_is_refused_before_the_first_step(data, tmp_path):
    assert train(data, schedule=NumpySchedule).finished
    with pytest.raises(
        TypeError, match="the state_dict of optimizer and schedule may contain only tensors and plain numbers"
    ):
        train(data, schedule=NumpySchedule, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    plateau = partial(lambda optimizer, steps: lr_scheduler.ReduceLROnPlateau(optimizer))
    with pytest.raises(TypeError, match="can't be ReduceLROnPlateau"):
        train(data, schedule=plateau)


def test_resume_restores_averaged_weights_of_any_network(data, tmp_path):
    def averaged(**options):
        return pckd.fit(net(1), data, ema=0.9, **SHORT, **options)

    uninterrupted = averaged()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            callbacks.StopOnSignal, "on_step_end", lambda self, trainer: setattr(trainer, "should_stop", True)
        )
        assert not averaged(out=tmp_path / "run").finished
    assert_same_run(averaged(out=tmp_path / "run", resume=True), uninterrupted)


def mix_with_numpy(x, labels):
    shares = torch.tensor(np.random.beta(1, 1), dtype=x.dtype)
    targets = nn.functional.one_hot(labels, 3).float()
    return shares * x + (1 - shares) * x.roll(1, 0), shares * targets + (1 - shares) * targets.roll(1, 0)


def test_numpy_random_state_is_seeded_and_restored(data, tmp_path):
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    uninterrupted = train(data, mix=mix_with_numpy)
    assert np.random.rand() == expected
    train_and_stop(data, tmp_path / "run", mix=mix_with_numpy)
    assert_same_run(train(data, out=tmp_path / "run", resume=True, mix=mix_with_numpy), uninterrupted)


def test_csv_log_is_complete_after_a_resume(data, tmp_path):
    from lightning_fabric.loggers import CSVLogger

    def logger():
        return [CSVLogger(tmp_path / "logs", name="kd", version="")]

    train_and_stop(data, tmp_path / "run", step=8, epochs=3, loggers=logger())
    train(data, out=tmp_path / "run", resume=True, epochs=3, loggers=logger())
    assert count_csv_rows(tmp_path / "logs" / "kd" / "metrics.csv") == 3


def count_csv_rows(path):
    import pandas as pd

    return len(pd.read_csv(path))


def test_labels_of_two_torch_datasets_are_matched_by_class_name():
    class Named(list):
        classes: list

    train_set, test_set = (
        Named((np.full((8, 8), 9, np.uint8), label) for label in labels) for labels in ([0, 1, 2], [0, 1])
    )
    train_set.classes, test_set.classes = ["ant", "bee", "cat"], ["ant", "cat"]
    data = Dataset.from_torch(train_set, test_set)
    assert data.test.labels.tolist() == [0, 2]
    with pytest.raises(TypeError, match=r"labels\.argmax\(1\)"):
        Dataset.from_arrays((np.zeros((2, 8, 8), np.uint8), np.eye(2, dtype=int)), (np.zeros((1, 8, 8), np.uint8), [0]))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"classes": ("a", "a", "b")}, "two classes have the same name 'a'"),
        ({"std": (0.0,)}, r"std\.0 must be greater than 0, got 0\.0"),
        (
            {"test": Split(torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))},
            "has no images",
        ),
    ],
)
def test_inconsistent_data_is_refused(change, words, data):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(data, **change)


def test_common_mistakes_have_clear_errors(data):
    class Loss(pckd.KD):
        def forward(self, student, teacher, batch, epoch):
            return student.logits.sum()

    with pytest.raises(TypeError, match=r"forward of Loss must return methods\.Terms\(\.\.\.\), got Tensor"):
        train(data, Loss())
    with pytest.raises(TypeError, match=r"callbacks must be a list, got EarlyStopping: write callbacks=\[\.\.\.\]"):
        train(data, callbacks=pckd.EarlyStopping())
    with pytest.raises(TypeError, match="loggers must be a list of loggers of lightning_fabric"):
        train(data, loggers="tensorboard")
    with pytest.raises(TypeError, match=r"augment must be an object: write RandAugment\(\), not RandAugment"):
        train(data, augment=v2.RandAugment)


def test_grid_refuses_two_methods_with_the_same_name(data, tmp_path, monkeypatch):
    pckd.fit(pckd.create_model("resnet14", data, seed=1), data, out=tmp_path / "teacher", **SHORT)
    monkeypatch.setattr(grids, "load_dataset", lambda *_, **__: data)
    for folder in ("p1", "p2"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.py").write_text("import pckd_nb\nclass Mine(pckd_nb.KD): pass\n")
    arms = [experiments.parse_arm(f"{tmp_path / folder}/w.py:Mine") for folder in ("p1", "p2")]
    with pytest.raises(ValueError, match="two methods are called 'Mine', .*p1.* and .*p2.*: rename one of them"):
        experiments.Grid("tiny", [(tmp_path / "teacher", "resnet8")], arms, [0], tmp_path / "grid")


def test_error_in_teardown_does_not_hide_the_first_error(data):
    class Bad(pckd.Callback):
        def on_step_end(self, trainer):
            raise KeyError("the first")

        def teardown(self, trainer):
            raise KeyError("the second")

    with (
        pytest.warns(UserWarning, match="teardown of Bad failed: .*the second"),
        pytest.raises(KeyError, match="first"),
    ):
        train(data, callbacks=[Bad()])


def test_subclass_has_its_own_title_and_run_its_own_weights(data):
    class Mine(pckd.PCKD):
        pass

    assert Mine.title == Mine().title == "Mine" and methods.baseline("AT").title == "AT"
    student = networks(data)[0]
    run = pckd.fit(student, data, **SHORT)
    before = {name: value.clone() for name, value in run.student_state.items()}
    pckd.fit(student, data, **SHORT)
    assert all(torch.equal(run.student_state[name], value) for name, value in before.items())


def test_run_keeps_the_best_and_the_last_epoch(data, tmp_path):
    options = dict(val=0.25, epochs=5, lr=0.3)
    run = train(data, out=tmp_path / "run", **options)
    scores = run.history["val_top1"]
    assert run.settings["best"]["epoch"] == scores.idxmax() + 1 and run.settings["best"]["val_top1"] == scores.max()
    loaded = pckd.load_run(tmp_path / "run")
    held_out = data.with_validation(0.25)
    for which, place in (("last", -1), ("best", scores.idxmax())):
        top1 = pckd.evaluate(loaded.model(which), held_out, "val", precision="32-true").top1
        assert top1 == scores.iloc[place]
    assert loaded.student_state.keys() == run.student_state.keys() == loaded.best_state.keys()
    train_and_stop(data, tmp_path / "stopped", step=8, **options)
    resumed = train(data, out=tmp_path / "stopped", resume=True, **options)
    assert resumed.settings["best"] == run.settings["best"]
    assert all(torch.equal(resumed.best_state[name], value) for name, value in run.best_state.items())
    with pytest.raises(
        ValueError, match="has no best epoch, because it has no validation split: train it with val=0.1"
    ):
        train(data).model("best")
    assert pckd.load_checkpoint(networks(data)[0], tmp_path / "run").weights_from


class Float16OnCpu:
    """What Fabric provides for 16-mixed on a CUDA device, but on the CPU."""

    def __init__(self, scale):
        from lightning_fabric.plugins.precision.amp import MixedPrecision

        scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1)
        precision = MixedPrecision("16-mixed", "cpu", scaler)
        self.strategy = SimpleNamespace(precision=precision, optimizer_step=precision.optimizer_step)
        self.scaler = scaler


def test_gradient_scaling_does_not_change_the_steps_and_the_scale_is_restored():
    recipe = pckd.get_recipe("classroom", epochs=1, clip_norm=0.1)
    weights, states = [], []
    for scale in (1.0, 1024.0):
        torch.manual_seed(0)
        student, fabric = nn.Linear(4, 2), Float16OnCpu(scale)
        steps = Optimization(student, nn.Module(), recipe, 5, fabric)
        for number in range(3):
            steps.zero_grad()
            loss = (student(torch.full((8, 4), 0.1 * (number + 1))) - 1).square().mean()
            fabric.scaler.scale(loss).backward()
            steps.step()
        weights.append(student.weight.detach().clone())
        states.append(steps.state()["scaler"])
    assert torch.allclose(*weights, rtol=1e-5) and states[1]["scale"] > 1024
    other = Float16OnCpu(2.0)
    again = Optimization(student, nn.Module(), recipe, 5, other)
    again.load(steps.state())
    assert other.scaler.get_scale() == states[1]["scale"] and again.lr == steps.lr


def test_float16_needs_a_cuda_device(data):
    message = "precision 16-mixed needs a CUDA device: use auto, 32-true or bf16-mixed instead"
    with pytest.raises(ValueError, match=message):
        train(data, precision="16-mixed", accelerator="cpu")
