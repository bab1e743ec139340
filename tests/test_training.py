import copy
import dataclasses
import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pckd_nb as pckd
from pckd_nb import compiling, faults, measures, recording, training, views
from pckd_nb.methods import KD, PCKD, Supervised, Terms
from pckd_nb.training.callbacks import StopOnSignal

from .conftest import make_data, with_images

QUIET = {"progress": False, "precision": "32-true"}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_same_run(a: pckd.Run, b: pckd.Run) -> None:
    assert same(a.student_state, b.student_state) and same(a.method_state, b.method_state)
    assert a.history.equals(b.history)
    assert np.array_equal(a.cross_entropy, b.cross_entropy) and np.array_equal(a.difficulty, b.difficulty)


def networks(data):
    """Return a new student and a new teacher."""
    return pckd.create_model("resnet8", data, seed=2), pckd.create_model("resnet14", data, seed=1)


def test_training_learns_the_tiny_data_set(data, student):
    run = pckd.fit(student, data, pckd.get_recipe("classroom", epochs=6, batch_size=8), **QUIET)
    assert run.accuracy >= 90 and run.accuracy == pckd.evaluate(student, data, precision="32-true").top1
    assert run.history["cross_entropy"].iloc[-1] < run.history["cross_entropy"].iloc[0] / 2


@pytest.mark.parametrize("method", [Supervised(), KD(), PCKD()])
def test_the_same_seed_gives_the_same_run_bit_for_bit(method, data, recipe):
    first, second = (pckd.distill(*networks(data), data, method, recipe, **QUIET) for _ in range(2))
    assert_same_run(first, second)
    other = pckd.distill(*networks(data), data, method, recipe, seed=1, **QUIET)
    assert not same(first.student_state, other.student_state)


def test_the_default_precision_is_reproducible(data, recipe):
    runs = [pckd.distill(*networks(data), data, PCKD(), recipe, progress=False) for _ in range(2)]
    assert_same_run(*runs)


def test_teacher_method_and_random_state_of_the_caller_stay_unchanged(data, student, teacher, recipe):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    method = PCKD()
    assert teacher.training
    state = torch.get_rng_state()
    pckd.distill(student, teacher, data, method, recipe, **QUIET)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(before, teacher.state_dict()) and all(part.training for part in teacher.modules())
    assert not list(method.parameters()) and method.beta_cc == 0.05


@pytest.mark.parametrize("method", [Supervised(), KD(), PCKD()])
def test_every_method_records_each_sample_in_each_epoch(method, data, recipe):
    run = pckd.distill(*networks(data), data, method, recipe, **QUIET)
    assert run.cross_entropy.shape == run.difficulty.shape == (2, 48)
    assert run.cross_entropy.dtype == np.float16 and np.isfinite(run.cross_entropy).all()
    # γ has mean 1 in each of the three batches of 16
    assert run.difficulty.astype(float).mean(1) == pytest.approx([1, 1], abs=2e-3)
    assert run.cross_entropy.astype(float).mean(1) == pytest.approx(run.history["cross_entropy"].to_numpy(), rel=2e-3)
    assert np.array_equal(run.labels, data.train.labels) and run.ground_truth.shape == (48,)


def test_recorder_stores_values_by_dataset_index():
    recorder = recording.Recorder.empty(2, 5, torch.device("cpu"))
    values = torch.tensor([3.0, 4.0])
    terms = Terms(torch.tensor(1.0), {"cross_entropy": torch.tensor(1.0)}, values, values * 2, torch.tensor([1.0, 0.5]))
    logits, teacher_logits = torch.tensor([[0.5, 2.0, 1.0]] * 2), torch.tensor([[3.0, 0.0, 1.0]] * 2)
    recorder.record_step(torch.tensor([4, 1]), torch.tensor([1, 2]), logits, terms, teacher_logits)
    assert recorder.margin[0].nan_to_num(-9).tolist() == [-9, -1, -9, -9, 1]
    assert recorder.prediction.tolist() == [-1, 1, -1, -1, 1]
    norms = measures.error_norm(logits, torch.tensor([1, 2])).half()
    assert recorder.error_norms[0].nan_to_num(-9).tolist() == [-9, norms[1], -9, -9, norms[0]]
    assert recorder.teacher_cross_entropy is None and recorder.margin[1].isnan().all()
    assert recorder.cross_entropy[0].nan_to_num(-1).tolist() == [-1, 4, -1, -1, 3]
    assert recorder.difficulty[0].nan_to_num(-1).tolist() == [-1, 8, -1, -1, 6]
    assert dict(zip(recorder.columns, recorder.log[0].tolist(), strict=True)) == {
        "total": 1, "cross_entropy": 1, "train_top1": 50, "mean_weight": 0.75, "full_weight_share": 0.5,
    }  # fmt: skip


def test_epoch_means_weight_batches_by_their_size():
    recorder = recording.Recorder.empty(1, 3, torch.device("cpu"))
    for index, value in (([0, 1], 1.0), ([2], 4.0)):
        some = torch.full((len(index),), value)
        terms = Terms(torch.tensor(value), {"cross_entropy": torch.tensor(value)}, some, some, some)
        labels = torch.zeros(len(index), dtype=torch.int64)
        recorder.record_step(torch.tensor(index), labels, torch.tensor([[1.0, 0.0]] * len(index)), terms)
    recorder.end_epoch(0.1, 2.0, {"test_top1": 50.0}, 0.0)
    assert recorder.history == [
        {"epoch": 1, "lr": 0.1, "threshold": 2.0, "total": 2.0, "cross_entropy": 2.0, "train_top1": 100.0,
         "mean_weight": 2.0, "full_weight_share": pytest.approx(2 / 3), "test_top1": 50.0}
    ]  # fmt: skip


def test_the_student_is_trained_on_the_views_of_the_method(data, student, recipe, monkeypatch):
    seen = []
    rotate = views.rotate
    monkeypatch.setattr(views, "rotate", lambda images, count: seen.append(count) or rotate(images, count))
    teacher = pckd.create_model("resnet14", data, seed=1)
    for method, expected in ((KD(), 1), (PCKD(), 4), (PCKD(views=2), 2)):
        pckd.distill(student, teacher, data, method, recipe, **QUIET)
        assert set(seen) == {expected}
        seen.clear()
    digits = dataclasses.replace(data, default_views=1)
    pckd.distill(student, teacher, digits, PCKD(), recipe, **QUIET)
    assert set(seen) == {1}


def test_run_json_records_resolved_settings(data, student, teacher, recipe, tmp_path):
    teacher_run = pckd.fit(teacher, data, recipe, out=tmp_path / "teacher", **QUIET)
    run = pckd.distill(student, teacher_run, data, PCKD(beta_fa=5), recipe, out=tmp_path / "deep" / "pckd", **QUIET)
    info = pckd.load_run(run.path).settings
    assert info["method"]["settings"]["beta_fa"] == {"value": 5, "from": "argument"}
    assert info["method"]["settings"]["beta_cc"]["from"] == "recipe"
    assert info["method"]["settings"]["beta_kd"] == {"value": 1, "from": "default"}
    assert info["teacher"]["run"] == "../../teacher"
    assert info["teacher"]["fingerprint"] == pckd.runs.fingerprint(teacher_run.student_state)
    assert info["data"]["fingerprint"] == data.fingerprint and info["status"] == "finished"
    assert info["recipe"]["epochs"] == 2 and info["seed"] == 0 and "torch" in info["versions"]


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


class Killed(BaseException):
    pass


def die():
    raise Killed


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 7, 8])
def test_an_interrupted_run_is_usable_and_resumes_bit_for_bit(step, data, tmp_path, monkeypatch):
    """Of three epochs with three steps, stop within an epoch, at the end of one, and in the last one."""
    recipe = pckd.get_recipe("classroom", epochs=3, batch_size=16)
    whole = pckd.distill(*networks(data), data, PCKD(), recipe, out=tmp_path / "whole", **QUIET)
    forward, calls = PCKD.forward, []

    def interrupt_at_step(self, *arguments):
        calls.append(1)
        if len(calls) == step:
            interrupt()
        return forward(self, *arguments)

    monkeypatch.setattr(PCKD, "forward", interrupt_at_step)
    student, teacher = networks(data)
    cut = pckd.distill(student, teacher, data, PCKD(), recipe, out=tmp_path / "cut", **QUIET)
    assert len(calls) == step and not cut.finished and len(cut.history) == step // 3
    loaded = pckd.load_run(tmp_path / "cut")
    assert loaded.settings["status"] == "interrupted" and same(loaded.student_state, cut.student_state)
    assert pckd.evaluate(loaded.model(), data) == pckd.evaluate(student, data)
    resumed = pckd.distill(*networks(data), data, PCKD(), recipe, out=tmp_path / "cut", resume=True, **QUIET)
    assert resumed.finished and len(calls) == 9  # no step runs twice
    assert_same_run(resumed, whole)
    assert not (tmp_path / "cut" / "checkpoint.pt").exists()
    for name in ("history.csv", "student.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_killed_run_resumes_from_its_last_checkpoint(data, tmp_path, monkeypatch):
    recipe = pckd.get_recipe("classroom", epochs=3, batch_size=16)
    whole = pckd.distill(*networks(data), data, PCKD(), recipe, **QUIET)
    monkeypatch.setattr(training.callbacks, "MIN_SECONDS_BETWEEN_SAVES", -1)  # save a checkpoint at every step
    monkeypatch.setattr(training.callbacks, "MAX_SAVING_SHARE", float("inf"))
    forward, calls = PCKD.forward, []

    def die_at_step_5(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            die()
        return forward(self, *arguments)

    monkeypatch.setattr(PCKD, "forward", die_at_step_5)
    with pytest.raises(Killed):
        pckd.distill(*networks(data), data, PCKD(), recipe, out=tmp_path / "run", **QUIET)
    assert pckd.load_run(tmp_path / "run").settings["status"] == "running"
    assert pckd.resuming.read_checkpoint(tmp_path / "run")["recorder"]["step"] == 1
    resumed = pckd.distill(*networks(data), data, PCKD(), recipe, out=tmp_path / "run", resume=True, **QUIET)
    assert_same_run(resumed, whole)
    assert len(calls) == 5 + 5  # the checkpoint has 4 of 9 steps, so 5 remain


def test_a_run_killed_before_its_first_checkpoint_leaves_no_files(data, tmp_path, monkeypatch):
    monkeypatch.setattr(PCKD, "forward", lambda *_: die())
    with pytest.raises(Killed):
        pckd.distill(*networks(data), data, PCKD(), out=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_a_second_interrupt_stops_at_once():
    previous = signal.getsignal(signal.SIGINT)
    trainer, stop = SimpleNamespace(should_stop=False), StopOnSignal()
    stop.on_run_start(trainer)
    interrupt()
    assert trainer.should_stop
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    stop.teardown(trainer)
    assert signal.getsignal(signal.SIGINT) is previous


def test_resume_starts_a_missing_run_and_returns_a_finished_one(data, recipe, tmp_path, monkeypatch):
    first = pckd.distill(*networks(data), data, KD(), recipe, out=tmp_path / "run", resume=True, **QUIET)
    student, teacher = networks(data)
    monkeypatch.setattr(training.Trainer, "train", lambda *_: pytest.fail("trained again"))
    again = pckd.distill(student, teacher, data, KD(), recipe, out=tmp_path / "run", resume=True, **QUIET)
    assert_same_run(first, again)
    assert same(student.state_dict(), first.student_state)


def test_resume_on_a_folder_without_a_checkpoint_starts_over(data, recipe, tmp_path):
    whole = pckd.distill(*networks(data), data, KD(), recipe, out=tmp_path / "run", **QUIET)
    settings = {**whole.settings, "status": "running"}
    pckd.runs.write_settings(tmp_path / "run", settings)
    again = pckd.distill(*networks(data), data, KD(), recipe, out=tmp_path / "run", resume=True, **QUIET)
    assert again.finished
    assert_same_run(again, whole)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "seed 0, not 1"),
        ({"method": KD(beta_kd=2)}, "beta_kd 1.0, not 2"),
        ({"method": PCKD()}, "method KD"),
    ]
    + [({"epochs": 3}, "epochs 2, not 3"), ({"lr": 0.01}, "lr 0.05, not 0.01")],
)
def test_resume_refuses_a_run_with_other_settings(change, named, data, recipe, tmp_path):
    pckd.distill(*networks(data), data, KD(), recipe, out=tmp_path / "run", **QUIET)
    before = (tmp_path / "run" / "run.json").read_bytes()
    fields = {name: value for name, value in change.items() if name in ("epochs", "lr")}
    options = {"seed": change.get("seed", 0), "out": tmp_path / "run", "resume": True, **QUIET}
    with pytest.raises(ValueError, match=named):
        pckd.distill(
            *networks(data), data, change.get("method", KD()), dataclasses.replace(recipe, **fields), **options
        )
    assert (tmp_path / "run" / "run.json").read_bytes() == before


def test_a_damaged_checkpoint_is_named_in_the_error(data, tmp_path, monkeypatch):
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=16)
    whole = pckd.distill(*networks(data), data, KD(), recipe, out=tmp_path / "run", **QUIET)
    pckd.runs.write_settings(tmp_path / "run", {**whole.settings, "status": "running"})
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt"):
        pckd.distill(*networks(data), data, KD(), recipe, out=tmp_path / "run", resume=True, **QUIET)


def test_a_non_finite_loss_stops_the_run_and_names_the_term(data, student, tmp_path):
    recipe = pckd.get_recipe("classroom", epochs=2, batch_size=16, lr=1e30)
    batch = pckd.views.batches(48, 16, seed=0, epoch=1)[1].tolist()
    where = f"cross_entropy is not finite in epoch 1, step 2, for 16 of 16 samples: {str(batch)[1:-1]}; a lower"
    with pytest.raises(FloatingPointError, match=where):
        pckd.fit(student, data, recipe, out=tmp_path / "run", **QUIET)
    assert not (tmp_path / "run").exists()


def test_left_out_terms_give_a_warning(data, recipe):
    student, teacher = pckd.create_model("resnet8", data), pckd.create_model("wrn_16_2", data)
    with pytest.warns(UserWarning, match="category_center_alignment is left out.*64.*128"):
        run = pckd.distill(student, teacher, data, PCKD(), recipe, **QUIET)
    assert "category_center_alignment" in run.settings["method"]["left_out"]
    assert "category_center_alignment" not in run.history


def test_bad_arguments_are_refused_before_any_file_is_written(data, student, teacher, recipe, tmp_path):
    def refused(match, *arguments, **options):
        with pytest.raises(ValueError, match=match) as error:
            pckd.distill(*arguments, out=tmp_path / "run", **{**QUIET, **options})
        assert "\n" not in str(error.value) and not list(tmp_path.iterdir())

    refused("needs a teacher: give a trained network or its run as the teacher", student, None, data, KD(), recipe)
    refused("teacher and student are the same network", student, student, data, KD(), recipe)
    refused("BatchNorm", student, teacher, data, KD(), dataclasses.replace(recipe, batch_size=1))
    refused("BatchNorm", student, teacher, with_images(data, 1), KD(), recipe)
    refused(
        "student has 5 classes, but tiny has 3",
        pckd.create_model("resnet8", data, num_classes=5),
        teacher,
        data,
        KD(),
        recipe,
    )
    refused(
        "teacher has 5 classes, but tiny has 3",
        student,
        pckd.create_model("resnet8", data, num_classes=5),
        data,
        KD(),
        recipe,
    )
    refused("student can't take", pckd.create_model("resnet8", data, in_channels=3), teacher, data, KD(), recipe)
    refused("seed", student, teacher, data, KD(), recipe, seed=-1)
    with pytest.raises(TypeError, match="seed must be a whole number, got 1.5"):
        pckd.distill(student, teacher, data, KD(), recipe, seed=1.5, **QUIET)
    message = "precision must be one of auto, 32-true, .* got 'half'"
    refused(message, student, teacher, data, KD(), recipe, precision="half")
    refused("accelerator", student, teacher, data, KD(), recipe, accelerator="abacus")
    refused("accelerator 'tpu' can't be used", student, teacher, data, KD(), recipe, accelerator="tpu")
    refused("unknown recipe", student, teacher, data, KD(), "no recipe")
    refused("exclude", student, teacher, data, KD(), recipe, resume=True, overwrite=True)
    oblong = dataclasses.replace(
        data, train=dataclasses.replace(data.train, images=data.train.images[:, :, :4]),
        test=dataclasses.replace(data.test, images=data.test.images[:, :, :4]),
    )  # fmt: skip
    refused("square", student, teacher, oblong, PCKD(), recipe)


def test_evaluate_by_hand(data):
    class Constant(pckd.models.Classifier):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(1, 3)
            torch.nn.init.zeros_(self.fc.weight)
            self.fc.bias.data = torch.tensor([0.0, 1.0, -1.0])

        def features(self, x):
            return x.mean((1, 2, 3))[:, None]

    scores = pckd.evaluate(Constant(), data)
    assert scores.top1 == pytest.approx(100 / 3) and scores.top5 == 100
    logs = torch.log_softmax(torch.tensor([0.0, 1.0, -1.0]), 0)
    assert scores.cross_entropy == pytest.approx(-logs.mean().item(), rel=1e-3)


def test_evaluate_keeps_training_mode(data, student):
    student.train()
    pckd.evaluate(student, data)
    assert student.training


def test_unknown_splits_are_refused(data, student):
    for split in ("valid", "classes", None):
        with pytest.raises(ValueError, match="split must be 'train', 'test', got"):
            pckd.evaluate(student, data, split)


def test_top5_is_not_top1():
    data = make_data(train=20, test=20, classes=10)
    student = pckd.create_model("resnet8", data, seed=0)
    scores = pckd.evaluate(student, data)
    assert scores.top1 < scores.top5 < 100


def test_auto_compiles_only_long_trainings(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)

    def decide(wanted, name="wrn_16_2", rows=50_000 * 240 * 4, precision="bf16-mixed"):
        network, device = pckd.create_model(name, num_classes=5), torch.device("cpu")
        return compiling.should_compile(wanted, network, rows, (3, 32, 32), device, precision)

    assert decide("auto") and not decide("auto", rows=4000 * 10 * 4)
    assert not decide("auto", precision="32-true") and decide(True, precision="32-true")
    assert not decide("auto", "resnet20") and not decide("auto", "torchvision:resnet18")
    assert decide(True, "resnet20", 1) and not decide(False)
    with pytest.raises(ValueError, match="compile must be True, False or 'auto'"):
        decide("yes")


def test_without_a_working_compiler_the_student_is_not_compiled(data, student, recipe, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("\nno C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(
        UserWarning, match=r"does not work here \(no C\+\+ compiler found\): the student is not compiled"
    ):
        run = pckd.fit(student, data, recipe, accelerator="cpu", compile=True, progress=False)
    assert run.settings["compile"] is False and run.finished


def test_resume_needs_the_same_compile_setting(data, student, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    options = dict(out=tmp_path / "run", accelerator="cpu", progress=False)
    assert pckd.fit(student, data, recipe, compile=True, **options).settings["compile"]
    student = pckd.create_model("resnet8", data, seed=2)
    with pytest.raises(ValueError, match="started with compile True, not False"):
        pckd.fit(student, data, recipe, compile=False, resume=True, **options)
    assert pckd.fit(student, data, recipe, compile=True, resume=True, **options).finished


@pytest.mark.slow
def test_a_compiled_student_learns_the_same(data, teacher, recipe):
    histories = []
    for compile in (False, True):
        student = pckd.create_model("resnet8", data, seed=2)
        options = dict(accelerator="cpu", precision="32-true", compile=compile, progress=False)
        run = pckd.distill(student, teacher, data, pckd.PCKD(), recipe, **options)
        assert run.settings["compile"] is compile
        histories.append(run.history)
    losses = [history[["total", "feature_alignment", "category_center_contrast"]] for history in histories]
    assert np.allclose(*losses, rtol=1e-3)


def test_weights_that_see_only_padding_get_zero_gradient():
    """Compare with the float32 gradient. Of 3×3 weights with stride 2 on one pixel, only the middle one sees it."""
    torch.manual_seed(0)
    strided, wide = dict(kernel_size=3, stride=2, padding=1), dict(kernel_size=5, padding=4, dilation=2)
    for size, shape in (((1, 1), strided), ((2, 1), wide)):
        model = torch.nn.Sequential(torch.nn.Conv2d(4, 8, **shape))
        x = torch.randn(16, 4, *size)
        model(x).square().sum().backward()
        expected = model[0].weight.grad.clone()
        hooks = faults.zero_padding_gradients(model, x[:1])
        assert len(hooks) == 1 and model.training and not model[0]._forward_hooks
        only_padding = (expected == 0).flatten(0, 1).all(0)
        assert 0 < only_padding.sum() < only_padding.numel()
        weight = model[0].weight
        weight.grad = None
        weight.backward(torch.full_like(weight, torch.nan))  # as if the whole gradient were uninitialised memory
        assert torch.equal(weight.grad == 0, only_padding.expand_as(weight))
        assert weight.grad.isnan()[..., ~only_padding].all()
        hooks[0].remove()
    large = torch.nn.Sequential(torch.nn.Conv2d(4, 8, **strided))
    assert not faults.zero_padding_gradients(large, torch.zeros(1, 4, 4, 4))


def test_a_network_with_maps_of_one_pixel_trains_in_bfloat16(data, recipe, monkeypatch):
    """Like ResNet stages, the layers halve 8 pixels down to one."""
    hooks, original = [], faults.zero_padding_gradients
    monkeypatch.setattr(faults, "zero_padding_gradients", lambda *args: hooks.append(original(*args)) or hooks[-1])
    layers = [torch.nn.Conv2d(1, 16, 3, 2, 1), *(torch.nn.Conv2d(16, 16, 3, 2, 1) for _ in range(4))]
    for seed in range(3):
        torch.manual_seed(seed)
        network = torch.nn.Sequential(*copy.deepcopy(layers), torch.nn.Flatten(), torch.nn.Linear(16, 3))
        student = pckd.as_classifier(network)
        run = pckd.fit(student, data, recipe, accelerator="cpu", precision="bf16-mixed", progress=False)
        assert all(weight.isfinite().all() for weight in run.student_state.values())
        assert not any(weight._backward_hooks for weight in student.parameters())
    assert [len(found) for found in hooks] == [3, 3, 3]  # one hook per convolution with an input of one or two pixels
