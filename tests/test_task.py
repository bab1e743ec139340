"""Regression tests for mistakes in training arguments and run folders."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from lightning_fabric.loggers import CSVLogger

import pckd_nb as pckd
from pckd_nb import runs
from pckd_nb.methods import Batch
from pckd_nb.models import as_classifier, with_preprocessing

from .test_plugs import QUIET, SHORT, networks, train, train_and_stop


def test_loggers_added_on_resume_keep_the_best_epoch(data, tmp_path):
    options = dict(val=0.25, epochs=4)
    whole = train(data, **options)
    train_and_stop(data, tmp_path / "run", step=4, **options)
    resumed = train(data, out=tmp_path / "run", resume=True, loggers=[CSVLogger(tmp_path / "logs")], **options)
    assert resumed.settings["best"] == whole.settings["best"] and resumed.finished


def test_a_preprocessed_teacher_gets_the_normalisation_it_was_trained_with(data):
    inner = with_preprocessing(pckd.create_model("resnet14", data, seed=2), data, mean=(0.3,), std=(0.7,))
    run = pckd.fit(inner, data, **SHORT)
    changed = dataclasses.replace(data, mean=(0.9,), std=(0.1,))
    networks_used = []

    class KeepTeacher(pckd.Callback):
        def on_run_start(self, trainer):
            networks_used.append(trainer.teacher.network.model)

    with pytest.warns(UserWarning, match="the teacher was trained on images of"):
        pckd.distill(pckd.create_model("resnet8", data), run, changed, "kd", callbacks=[KeepTeacher()], **SHORT)
    pixels = data.test.images[:6] / 255
    expected = inner.eval()((pixels - data.mean[0]) / data.std[0]).logits
    found = networks_used[0].eval()((pixels - 0.9) / 0.1).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_an_interrupted_early_stop_can_be_resumed(data, tmp_path):
    class StopEarly(pckd.Callback):
        def on_step_end(self, trainer):
            trainer.finished_early = "enough"

    train_and_stop(data, tmp_path / "run", step=2, epochs=5, callbacks=[StopEarly()])
    run = train(data, out=tmp_path / "run", resume=True, epochs=5, callbacks=[StopEarly()])
    assert run.finished and len(run.history) == 1 and run.settings["finished_early"] == "enough"


def test_numpy_numbers_are_accepted_and_recorded_as_python_numbers(data):
    run = train(data, pckd.PCKD(views=np.int64(2), beta_kd=np.float32(2)), seed=np.int64(3), val=np.float64(0.25))
    assert json.loads(json.dumps(run.settings))["seed"] == 3
    assert run.settings["method"]["views"] == 2 and run.method_settings["views"] == 2
    assert run.fingerprint == train(data, pckd.PCKD(views=2, beta_kd=2.0), seed=3, val=0.25).fingerprint


def test_invalid_options_of_custom_data_give_a_one_line_error(data):
    with pytest.raises(ValueError, match="data.options.seed needs a number, got 'a'$") as error:
        train(dataclasses.replace(data, options={"seed": "a"}))
    assert type(error.value) is ValueError and "\n" not in str(error.value)


def test_an_interrupted_run_without_its_checkpoint_is_not_restarted(data, tmp_path):
    train_and_stop(data, tmp_path / "run", step=2)
    before = (tmp_path / "run" / "student.safetensors").read_bytes()
    (tmp_path / "run" / "checkpoint.pt").unlink()
    with pytest.raises(
        ValueError, match="was interrupted, and its checkpoint is missing: start again with overwrite=True"
    ):
        train(data, out=tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "student.safetensors").read_bytes() == before


def test_a_finished_record_without_weights_is_not_resumed(data, tmp_path):
    train(data, out=tmp_path / "run")
    (tmp_path / "run" / "student.safetensors").unlink()
    with pytest.raises(ValueError, match="the finished run in .* was saved without weights: choose another folder"):
        train(data, out=tmp_path / "run", resume=True)


def test_a_teacher_run_with_other_channels_gives_a_one_line_error(data):
    colour = dataclasses.replace(
        data,
        train=dataclasses.replace(data.train, images=data.train.images.expand(-1, 3, -1, -1).contiguous()),
        test=dataclasses.replace(data.test, images=data.test.images.expand(-1, 3, -1, -1).contiguous()),
        mean=data.mean * 3,
        std=data.std * 3,
    )
    teacher = pckd.fit(pckd.create_model("resnet14", data, seed=2), data, **SHORT)
    with pytest.raises(ValueError, match=r"the teacher can't take images of 3×8×8") as error:
        pckd.distill(pckd.create_model("resnet8", colour), teacher, colour, "kd", **SHORT)
    assert "\n" not in str(error.value)


def test_only_batches_of_one_row_are_refused(data):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU())
            self.fc = torch.nn.Linear(8, 3)

        def forward(self, x):
            return self.fc(self.body(x))

    one = {**SHORT, "batch_size": 1, "epochs": 1}
    assert train(data, pckd.PCKD(views=4), **{"batch_size": 1, "epochs": 1}).finished
    with pytest.raises(ValueError, match="batch_size 1 gives a batch of one image: BatchNorm needs at least 2 images"):
        pckd.distill(as_classifier(Plain()), networks(data)[1], data, pckd.PCKD(views=1), **one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert pckd.distill(as_classifier(Plain()), networks(data)[1], data, pckd.KD(), **one).finished


def test_strategy_weights_of_wrong_shape_are_refused(data):
    method = pckd.PCKD(strategy=lambda ce, gamma, threshold: torch.ones(len(ce), 1), beta_cc=0)
    student, teacher = networks(data)
    method.bind(student, teacher)
    x = torch.zeros(16, 1, 8, 8)
    with pytest.raises(ValueError, match=r"strategy must return one weight per image: shape \(4,\), got \(4, 1\)"):
        method(student(x), teacher(x), Batch(torch.zeros(4, dtype=torch.int64), torch.arange(4)), 1)


def test_two_wrappers_of_the_same_network_are_refused(data):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with pytest.raises(ValueError, match="teacher and student are the same network"):
        pckd.distill(as_classifier(network), as_classifier(network), data, "kd", **SHORT)


def test_resume_and_overwrite_need_a_run_folder(data):
    for flag in ("resume", "overwrite"):
        with pytest.raises(ValueError, match=f"{flag} needs a run folder: pass out=…"):
            train(data, **{flag: True})
    with pytest.raises(ValueError, match="resume and overwrite exclude each other"):
        train(data, resume=True, overwrite=True)


def test_a_checkpoint_with_a_wrong_recorder_is_refused(data, tmp_path):
    train_and_stop(data, tmp_path / "run", step=2)
    path = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    state["recorder"]["cross_entropy"] = 5
    torch.save(state, path)
    with pytest.raises(ValueError, match="the checkpoint in .* can't be used"):
        train(data, out=tmp_path / "run", resume=True)


def test_a_logger_class_is_refused(data):
    with pytest.raises(TypeError, match="loggers must be a list of loggers .* got a list with the class CSVLogger"):
        train(data, loggers=[CSVLogger])


def test_milestones_of_wrong_type_are_refused(data):
    with pytest.raises(TypeError, match="milestones must be a list or tuple, got 5"):
        pckd.get_recipe("classroom", milestones=5)


def test_an_unknown_status_in_run_json_is_refused(data, tmp_path):
    run = train(data, out=tmp_path / "run", **QUIET)
    runs.write_settings(tmp_path / "run", {**run.settings, "status": "banana"})
    with pytest.raises(ValueError, match="is damaged: status must be 'running', 'interrupted' or 'finished'"):
        pckd.load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"val": "x"}, TypeError, "val must be a number, got 'x'"),
        ({"progress": "x"}, TypeError, "progress must be True, False or an object with a method update, got str"),
        ({"resume": "no"}, TypeError, "resume must be a valid boolean, got 'no'"),
        ({"teacher_cache_gb": float("nan")}, ValueError, "teacher_cache_gb must be a finite number, got nan"),
        ({"out": 5}, TypeError, "out must be a path, got int"),
        ({"nodes": True}, TypeError, "nodes must be a whole number, got True"),
    ],
)
def test_invalid_arguments_are_named(options, error, words, data):
    with pytest.raises(error) as caught:
        train(data, **options)
    assert str(caught.value).startswith(words)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"name": 5}, TypeError, "name must be a valid string, got 5"),
        ({"mean": ["a"], "std": [1.0]}, TypeError, "mean.0 must be a number, got 'a'"),
        ({"mean": [0.5], "std": [0]}, ValueError, "std.0 must be greater than 0, got 0"),
        ({"mean": 5, "std": 5}, TypeError, "mean must be a list of numbers, got int"),
        ({"default_views": 5}, ValueError, "default_views must be at most 4, got 5"),
        ({"classes": {"a", "b"}}, TypeError, "classes must be a list of names"),
    ],
)
def test_invalid_arguments_of_from_arrays_are_named(options, error, words):
    pair = np.zeros((6, 8, 8), np.uint8), [0, 1] * 3
    with pytest.raises(error) as caught:
        pckd.Dataset.from_arrays(pair, pair, **options)
    assert str(caught.value).startswith(words)


def test_labels_too_large_for_classes_are_refused():
    images = np.zeros((4, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="^labels must be less than 100000, got 3000000000000"):
        pckd.Dataset.from_arrays((images, np.arange(4) * 10**12), (images, [0] * 4))


def test_from_arrays_accepts_numpy_numbers():
    pair = np.zeros((6, 8, 8), np.uint8), [0, 1] * 3
    mine = pckd.Dataset.from_arrays(pair, pair, mean=np.float32([0.5]), std=[np.float64(1)], default_views=np.int64(2))
    assert json.dumps([mine.mean, mine.std, mine.default_views]) == "[[0.5], [1.0], 2]"


def test_invalid_early_stopping_settings_are_refused():
    for options, words in (
        ({"min_delta": "1"}, "min_delta"),
        ({"monitor": 5}, "monitor"),
        ({"patience": 1.5}, "patience"),
    ):
        with pytest.raises(TypeError, match=f"^{words} must be"):
            pckd.EarlyStopping(**options)
