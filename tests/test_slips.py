"""Mistakes of users: paths with "~", networks on data they were not trained on, terminals of another encoding."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pckd_nb as pckd
from pckd_nb import checkpoints, cli, evaluation, paths, runs
from pckd_nb.data import Dataset, Split, rebuild
from pckd_nb.data.split import balanced_sample, stratified_sample
from pckd_nb.figures import collection

from .test_cli import SMALL, refused, run, teacher  # noqa: F401

SHORT = ["--epochs", "1", "--batch-size", "4"]
QUIET = dict(progress=False, precision="32-true", accelerator="cpu")


def make_images(root: Path, names: str, side: int = 24, images: int = 8) -> Path:
    """Make a folder of images. Each class has a band of noise at its own height."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = np.full((side, side, 3), 30, np.uint8)
                band, place = side // 4, "abcd".index(name)
                pixels[place * band : (place + 1) * band] = random.integers(150, 255, (band, side, 3))
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


# ---------------------------------------------------------------------------------------------- paths


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder inside the folder in which the commands run."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def test_tilde_is_the_home_folder_in_every_option(run, home, tmp_path):  # noqa: F811
    assert run("train", *SMALL, "--model", "resnet8", "--out=~/teacher")[0] == 0
    distill = ["distill", *SMALL, "--student", "resnet8", "--method", "kd", "--teacher=~/teacher", "--init=~/teacher"]
    assert run(*distill, "--teacher-cache=~/cache", "--out=~/student", "--logger", "csv")[0] == 0
    assert run(*distill, "--teacher-cache=~/cache", "--out=~/student", "--resume")[0] == 0
    for source in (["~/student"], ["~/student/student.safetensors", "--model", "resnet8", "--data", "digits"]):
        assert run("evaluate", *source)[0] == 0
    assert run("transfer", "~/student", *SMALL[:-2])[0] == 0
    grid = ["--student", "resnet8", "--seeds", "0", "--teacher=~/teacher", "--out=~/grid", "--teacher-cache=~/cache"]
    assert run("compare", *SMALL, *grid, "--methods", "kd")[0] == 0
    make_images(home / "images", "ab")
    assert run("train", "--data", "folder:~/images", *SHORT, "--model", "resnet8", "--out=~/run")[0] == 0
    assert {path.name for path in home.iterdir()} == {
        "teacher", "student", "cache", "logs", "grid", "images", "run",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_tilde_is_the_home_folder_in_python(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pckd.load_dataset("digits", train_size=20, test_size=20)
    trained_run = pckd.fit(pckd.create_model("resnet8", data), data, epochs=1, out="~/run", **QUIET)
    assert trained_run.path == home / "run"
    student = pckd.create_model("resnet8", data)
    options = dict(epochs=1, out="~/student", teacher_cache="~/cache", **QUIET)
    assert pckd.distill(student, trained_run, data, "kd", **options).path == home / "student"
    assert pckd.load_run("~/run").path == home / "run" and len(runs.load_runs("~")) == 2
    assert checkpoints.training_data_of("~/run/student.safetensors").name == "digits"
    pckd.load_checkpoint(student, "~/run")
    trained_run.save("~/copy")
    with pytest.raises(ValueError, match="no name of a figure begins with 'x'"):
        collection.draw_all("~", "~/figures", only=["x"])
    assert {path.name for path in home.iterdir()} == {"run", "student", "cache", "copy"}
    assert [path.name for path in tmp_path.iterdir()] == ["home"]


def test_invalid_paths_are_refused(home):
    for value, error, message in [
        (5, TypeError, "out must be a path, got int"),
        (b"x", TypeError, "out must be a path, got bytes"),
        ("", ValueError, "out must be a path, got ''"),
        ("a\0b", ValueError, "out must be a path"),
        ("~nobody9/x", ValueError, "out '~nobody9/x' begins with an unknown home folder"),
    ]:
        with pytest.raises(error, match=message):
            paths.user_path(value, "out")
    assert paths.user_path("~") == home and paths.user_path("a~/~b") == Path("a~/~b")


def test_unknown_home_folder_is_refused_before_anything_is_written(refused):  # noqa: F811
    refused(
        "'~nobody9/x' begins with an unknown home folder", "train", *SMALL, "--model", "resnet8", "--out", "~nobody9/x"
    )


# ------------------------------------------------------------------------------------- data of training and evaluation


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """The folder that `trained` copies: a run and its images."""
    folder = tmp_path_factory.mktemp("trained")
    make_images(folder / "abc", "abc"), make_images(folder / "bcd", "bcd")
    command = ["train", "--data", "folder:abc", "--image-size", "24", "--model", "resnet8", "--batch-size", "4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main([*command, "--epochs", "4", "--out", "abc.run"]) == 0
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """A run in "abc.run", trained on "folder:abc" at 24 pixels. The folder "bcd" has images of other classes."""
    shutil.copytree(trained_once, tmp_path, dirs_exist_ok=True)
    return "abc.run"


def accuracy_line(out: str) -> str:
    return out.splitlines()[1]


def test_evaluate_compares_classes_by_name(refused, run, trained):  # noqa: F811
    message = (
        "trained on the classes of folder:abc, which differ from those of folder:bcd: "
        "class 0 is 'a' in the training data and 'b'"
    )
    weights = f"{trained}/student.safetensors"
    refused(message, "evaluate", trained, "--data", "folder:bcd")
    refused(message, "evaluate", weights, "--model", "resnet8", "--data", "folder:bcd")
    distill = ["distill", "--data", "folder:bcd", "--student", "resnet8", *SHORT, "--out", "x", "--teacher"]
    for source in ([trained], [trained, "--teacher-model", "resnet8"], [weights, "--teacher-model", "resnet8"]):
        status, out, err = run(*distill, *source)
        assert status == 2 and "24 train images" in out and len(err) == 1 and f"the teacher was {message}" in err[0]
        assert not Path("x").exists()


def test_different_paths_to_the_same_folder_are_the_same_data(run, trained, tmp_path):  # noqa: F811
    expected = accuracy_line(run("evaluate", trained)[1])
    assert pckd.load_run(trained).accuracy > 60  # high enough to detect a wrong image size
    for name in ("abc", "abc/", "./abc", "bcd/../abc", str(tmp_path / "abc")):
        status, out, err = run("evaluate", trained, "--data", f"folder:{name}")
        assert status == 0 and accuracy_line(out) == expected and not err, name
        assert out.splitlines()[2] == "24×24 pixels, normalised with the mean and std that the network was trained with"
    file = [f"{trained}/student.safetensors", "--model", "resnet8"]
    assert accuracy_line(run("evaluate", *file, "--data", "folder:abc")[1]) == expected
    assert accuracy_line(run("evaluate", trained, *file[1:], "--data", "folder:abc")[1]) == expected


def test_other_data_is_read_at_the_image_size_of_the_training(run, trained, tmp_path):  # noqa: F811
    make_images(tmp_path / "more", "abc", side=48)
    status, out, err = run("evaluate", trained, "--data", "folder:more")
    assert status == 0 and "24 test images of folder:more" in out and "24×24 pixels" in out and not err
    status, _, err = run("evaluate", trained, "--data", "folder:more", "--image-size", "48")
    assert status == 0 and len(err) == 1 and "the network was trained on images of 24×24 pixels" in err[0]


def test_error_says_that_the_data_path_of_a_run_is_relative(refused, trained, tmp_path, monkeypatch):  # noqa: F811
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    refused(
        "no folder abc: .* the path is relative to the folder where the run was trained", "evaluate", tmp_path / trained
    )


def test_normalisation_of_an_external_checkpoint_can_be_given(run, trained, refused, tmp_path):  # noqa: F811
    data = pckd.load_dataset("folder:abc", image_size=24)
    dark = dataclasses.replace(data, mean=(0.9, 0.9, 0.9), std=(0.1, 0.1, 0.1), options={})
    network = pckd.create_model("resnet8", data, seed=1)
    accuracy = pckd.fit(network, dark, epochs=6, batch_size=4, **QUIET).accuracy
    assert accuracy > 60
    torch.save(network.state_dict(), tmp_path / "foreign.pth")  # without the training data
    evaluate = ["evaluate", "foreign.pth", "--model", "resnet8", "--data", "folder:abc", "--image-size", "24"]
    status, out, _ = run(*evaluate)
    advice = "does not say which mean and std it was trained with: if they differ, set --normalisation"
    assert status == 0 and f"'foreign.pth' {advice}" in out
    assert float(out.split("top-1 ")[1].split()[0]) < accuracy - 20
    constants = "0.9,0.9,0.9/0.1,0.1,0.1"
    status, out, _ = run(*evaluate, "--normalisation", constants, "--precision", "32-true")
    assert status == 0 and f"top-1 {accuracy:.2f} %" in out
    assert f"24×24 pixels, normalised with {constants}, as given by --normalisation" in out
    distill = ["distill", "--data", "folder:abc", "--image-size", "24", "--student", "resnet8", "--method", "kd"]
    distill += ["--teacher", "foreign.pth", *SHORT]
    pixels = ["--teacher-normalisation", constants, "--teacher-image-size", "24"]
    assert run(*distill, "--teacher-model", "resnet8", *pixels, "--out", "kd")[0] == 0
    preprocessing = pckd.load_run("kd").settings["teacher"]["preprocessing"]
    assert preprocessing == {"mean": [0.9] * 3, "std": [0.1] * 3, "size": [24, 24]}
    refused(
        "only for a checkpoint: a run folder has its own",
        *distill[:-6],
        "--teacher",
        trained,
        *SHORT,
        *pixels,
        "--out",
        "x",
    )
    refused("a normalisation must be one of cifar10, .* got 'vgg'", *evaluate, "--normalisation", "vgg")
    refused("must have length 3, one number per channel, got length 1", *evaluate, "--normalisation", "0.5/0.5")


@pytest.fixture
def data():
    return pckd.load_dataset("digits", train_size=60, test_size=40)


def test_network_and_its_file_record_the_training_data(data, tmp_path):
    network = pckd.create_model("resnet8", data)
    assert network.trained_on is None
    run = pckd.fit(network, data, epochs=1, out=tmp_path / "run", **QUIET)  # noqa: F811
    expected = pckd.models.TrainingData.of(data)
    assert network.trained_on == expected == run.model().trained_on == pckd.load_run(run.path).model().trained_on
    for source in (run.path, run.path / "student.safetensors"):
        loaded = pckd.load_checkpoint(pckd.create_model("resnet8", data), source)
        assert loaded.trained_on == expected == checkpoints.training_data_of(source)
    torch.save(run.student_state, tmp_path / "plain.pth")
    assert pckd.load_checkpoint(loaded, tmp_path / "plain.pth").trained_on is None
    assert checkpoints.training_data_of(tmp_path / "plain.pth") is None is checkpoints.training_data_of(tmp_path / "x")


def test_evaluate_normalises_as_in_the_training(data):
    network = pckd.create_model("resnet8", data, seed=1)
    run = pckd.fit(network, data, epochs=10, batch_size=8, **QUIET)  # noqa: F811
    assert run.accuracy > 40
    other = dataclasses.replace(data, mean=(0.9,), std=(0.05,))
    with pytest.warns(UserWarning, match="the network was trained on images of 16×16 pixels"):
        scores = pckd.evaluate(network, other, accelerator="cpu", precision="32-true")
    assert scores.top1 == run.accuracy
    network.trained_on = None
    assert pckd.evaluate(network, other, accelerator="cpu", precision="32-true").top1 < run.accuracy
    near = dataclasses.replace(data, mean=(data.mean[0] + 0.01,))  # so close that there is no warning
    network.trained_on = run.trained_on
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pckd.predict(network, near, accelerator="cpu", precision="32-true")
    expected = pckd.predict(network, data, accelerator="cpu", precision="32-true")
    assert torch.allclose(found.logits, expected.logits, atol=1e-4)
    plain = evaluation.compute_outputs(network, near, "test", "cpu", "32-true")
    assert not torch.allclose(plain.logits, expected.logits, atol=1e-4)


def test_classes_in_another_order_are_refused(data):
    network = pckd.create_model("resnet8", data)
    names = tuple("abcdefghij")
    named = dataclasses.replace(data, classes=names)
    pckd.fit(network, named, epochs=1, **QUIET)
    with pytest.raises(ValueError, match="which differ from those of digits: the same names in another order"):
        pckd.predict(network, dataclasses.replace(data, classes=names[::-1]))
    with pytest.raises(ValueError, match="class 9 is 'j' in the training data and 'k' in the given data"):
        pckd.distill(
            pckd.create_model("resnet8", data), network, dataclasses.replace(data, classes=(*names[:9], "k")), "kd"
        )
    with pytest.warns(UserWarning, match="the class names of digits are only numbers and cannot be compared"):
        pckd.evaluate(network, data)


def test_student_with_weights_for_other_pixels_gives_a_warning(data):
    network = pckd.create_model("resnet8", data)
    pckd.fit(network, data, epochs=1, **QUIET)
    other = dataclasses.replace(data, mean=(0.9,), std=(0.05,))
    message = "the student's initial weights were trained on digits, with another image size"
    with pytest.warns(UserWarning, match=message):
        pckd.fit(network, other, epochs=1, **QUIET)
    assert network.trained_on.mean == (0.9,)


def test_student_with_preprocessing_records_the_pixels_its_weights_receive(data, tmp_path):
    network = pckd.with_preprocessing(pckd.create_model("resnet8", data, seed=1), data, mean=(0.5,), std=(0.25,))
    run = pckd.fit(network, data, epochs=3, out=tmp_path / "run", **QUIET)  # noqa: F811
    assert run.trained_on.mean == (0.5,) and run.model().trained_on.mean == data.mean
    plain = pckd.load_checkpoint(pckd.create_model("resnet8", data), tmp_path / "run" / "student.safetensors")
    assert plain.trained_on.mean == (0.5,)
    with pytest.warns(UserWarning, match="the network was trained on images of 16×16 pixels with mean 0.500"):
        assert pckd.evaluate(plain, data, accelerator="cpu", precision="32-true").top1 == run.accuracy


def test_explicit_preprocessing_overrides_the_recorded_one(data):
    network = pckd.create_model("resnet8", data)
    pckd.fit(network, data, epochs=1, **QUIET)
    other = dataclasses.replace(data, mean=(0.9,), std=(0.05,))
    same = pckd.with_preprocessing(network, other, mean=other.mean, std=other.std)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shown = pckd.predict(same, other, accelerator="cpu", precision="32-true")
    plain = evaluation.compute_outputs(network, other, "test", "cpu", "32-true")
    assert torch.allclose(shown.logits, plain.logits, atol=1e-5)


def test_rebuild_keeps_the_image_size_for_another_data_set(tmp_path):
    make_images(tmp_path / "a", "ab", side=40)
    info = {"name": "digits", "options": {"train_size": 20}, "image_size": [16, 16]}
    assert rebuild(info, name=f"folder:{tmp_path / 'a'}").size == (16, 16)
    assert rebuild(info, name=f"folder:{tmp_path / 'a'}", image_size=20).size == (20, 20)
    assert len(rebuild(info, name="digits").train) == 20
    with pytest.raises(ValueError, match="pass the data set itself"):
        rebuild({**info, "name": "mine"})


def test_unnamed_classes_match_any_names(data):
    images = torch.zeros(10, 1, 16, 16)
    unnamed = Dataset.from_arrays((images, torch.arange(10)), (images, torch.arange(10)))
    network = pckd.create_model("resnet8", data)
    pckd.fit(network, dataclasses.replace(data, classes=tuple("abcdefghij")), epochs=1, **QUIET)
    with pytest.warns(UserWarning) as warned:
        assert pckd.evaluate(network, unnamed).top1 >= 0
    expected = (
        "the class names of arrays are only numbers and cannot be compared: "
        "class c of arrays is treated as class c of digits"
    )
    assert expected in str(warned[0].message)


def train_network(data, **changes):
    """Return a network trained on `data` and its run. changes: attributes of the data set to replace first."""
    data = dataclasses.replace(data, **changes)
    network = pckd.create_model("resnet8", data, seed=1)
    return network, pckd.fit(network, data, epochs=10, batch_size=8, **QUIET)


EXACT = dict(accelerator="cpu", precision="32-true")
OTHER = dict(mean=(0.9,), std=(0.05,))


@pytest.mark.filterwarnings("ignore:.*trained on images of 16×16 pixels", "ignore:.*initial weights were trained on")
def test_nested_preprocessing_is_loaded_as_it_was_saved(data, tmp_path):
    network, _ = train_network(data)
    other, third = (dataclasses.replace(data, **pixels) for pixels in (OTHER, dict(mean=(0.2,), std=(0.7,))))
    twice = pckd.with_preprocessing(pckd.with_preprocessing(network, other), third)
    trained_run = pckd.fit(twice, third, epochs=1, out=tmp_path / "run", **QUIET)
    assert pckd.evaluate(tmp_path / "run", third, **EXACT).top1 == trained_run.accuracy > 25
    again = pckd.evaluate(pckd.load_run(tmp_path / "run").model(), other, **EXACT)
    assert again.top1 == pytest.approx(trained_run.accuracy, abs=6)
    fresh = pckd.load_checkpoint(pckd.create_model("resnet8", data), tmp_path / "run")
    assert pckd.evaluate(fresh, third, **EXACT).top1 == pytest.approx(trained_run.accuracy, abs=3)


def test_numeric_class_names_in_another_order_are_refused(data):
    network, _ = train_network(data, classes=("0", "1", "9", *"2345678"))
    with pytest.raises(ValueError, match="in another order"):
        pckd.evaluate(network, data)


def test_refused_training_keeps_the_recorded_training_data(data, tmp_path):
    network, trained_run = train_network(data)
    trained_run.save(tmp_path / "run")
    other = dataclasses.replace(data, **OTHER)
    for options in (dict(compile="nonsense"), dict(out=tmp_path / "run", resume=True)):
        with warnings.catch_warnings(), pytest.raises((ValueError, TypeError)):
            warnings.simplefilter("ignore")
            pckd.fit(network, other, epochs=1, progress=False, **options)
        assert network.trained_on.mean == data.mean


@pytest.mark.filterwarnings("ignore:.*trained on images of 16×16 pixels")
def test_weights_loaded_through_wrappers_keep_their_training_data(data, tmp_path):
    _, trained_run = train_network(data)
    trained_run.save(tmp_path / "run")
    other = dataclasses.replace(data, **OTHER)

    def fresh():
        return pckd.create_model("resnet8", data, seed=5)

    for wrap in (
        lambda network: pckd.with_preprocessing(network, other, mean=data.mean, std=data.std),
        nn.DataParallel,
        lambda network: nn.DataParallel(torch.compile(network)),
    ):
        wrapped = wrap(fresh())
        pckd.load_checkpoint(wrapped, tmp_path / "run")
        for shown in (data, other):
            assert pckd.evaluate(wrapped, shown, **EXACT).top1 == pytest.approx(trained_run.accuracy, abs=1)


def test_training_data_is_recorded_on_the_outer_network_only(data, tmp_path):
    class Holder(pckd.models.Classifier):
        def __init__(self):
            super().__init__()
            self.model = create_student(data)

        head = property(lambda self: self.model.head)

        def features(self, x):
            return self.model.features(x)

    holder = Holder()
    trained_run = pckd.fit(holder, data, epochs=1, out=tmp_path / "run", **QUIET)
    fresh = pckd.load_checkpoint(Holder(), trained_run.path / "student.safetensors")
    assert fresh.trained_on == holder.trained_on and fresh.model.trained_on is None


def test_training_data_of_a_plain_module_is_found_inside_wrappers(data):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    pckd.fit(module, dataclasses.replace(data, classes=tuple("abcdefghij")), epochs=1, **QUIET)
    turned = dataclasses.replace(data, classes=tuple("jihgfedcba"))
    for network in (module, nn.DataParallel(module), torch.compile(module), pckd.as_classifier(module)):
        with pytest.raises(ValueError, match="in another order"):
            pckd.evaluate(network, turned)


def test_module_with_its_own_trained_on_keeps_it(data):
    class Own(nn.Sequential):
        trained_on = property(lambda self: "imagenet-1k")

    module = Own(nn.Flatten(), nn.Linear(256, 10))
    pckd.fit(module, data, epochs=1, **QUIET)
    assert module.trained_on == "imagenet-1k" and pckd.as_classifier(module).trained_on.name == "digits"


def test_training_through_a_wrapper_is_recorded_on_the_inner_network(data):
    network, _ = train_network(data)
    names = tuple("abcdefghij")
    other = dataclasses.replace(data, classes=names, **OTHER)
    wrapped = pckd.with_preprocessing(network, other)
    pckd.fit(wrapped, other, epochs=1, **QUIET)
    assert wrapped.trained_on.classes == network.trained_on.classes == names
    assert (wrapped.trained_on.mean, network.trained_on.mean) == (other.mean, data.mean)


@pytest.mark.filterwarnings("ignore:.*trained on images of 16×16 pixels")
def test_without_classes_allows_renamed_classes_and_keeps_the_normalisation(data):
    network, trained_run = train_network(data, classes=tuple("abcdefghij"))
    renamed = dataclasses.replace(data, classes=tuple("ABCDEFGHIJ"), **OTHER)
    with pytest.raises(ValueError, match="class 0 is 'a' in the training data and 'A' in the given data"):
        pckd.evaluate(network, renamed)
    network.trained_on = network.trained_on.without_classes()
    assert pckd.evaluate(network, renamed, **EXACT).top1 == trained_run.accuracy


def test_renamed_classes_can_be_allowed_on_the_command_line(run, trained, refused, tmp_path):  # noqa: F811
    expected = accuracy_line(run("evaluate", trained)[1])
    (tmp_path / "named").mkdir()
    for part in ("train", "test"):
        for name in "abc":
            (tmp_path / "named" / part / f"class_{name}").parent.mkdir(exist_ok=True)
            (tmp_path / "abc" / part / name).rename(tmp_path / "named" / part / f"class_{name}")
    message = "class 0 is 'a' in the training data and 'class_a' in the given data; if only the names differ, "
    refused(f"{message}add --same-classes$", "evaluate", trained, "--data", "folder:named")
    distill = ["distill", "--data", "folder:named", "--student", "resnet8", *SHORT, "--out", "x", "--teacher", trained]
    assert run(*distill)[2][0].endswith(f"{message}give the classes the same names in both data sets")
    assert accuracy_line(run("evaluate", trained, "--data", "folder:named", "--same-classes")[1]) == expected


def test_transfer_normalises_as_the_given_network_was_trained(data):
    network, trained_run = train_network(data)
    _, others = train_network(data, **OTHER)
    expected = pckd.transfer(trained_run, data, accelerator="cpu", precision="32-true")
    found = pckd.transfer(others, data, model=network, accelerator="cpu", precision="32-true")
    assert found.top1 == expected.top1


@pytest.mark.filterwarnings("ignore:.*trained on images of 16×16 pixels")
def test_preprocessing_for_one_data_set_works_on_another(data):
    network, trained_run = train_network(data)
    network.trained_on = None
    other = dataclasses.replace(data, **OTHER)
    wrapped = pckd.with_preprocessing(network, other, mean=data.mean, std=data.std)
    for shown in (data, other):
        assert pckd.evaluate(wrapped, shown, **EXACT).top1 == trained_run.accuracy


@pytest.mark.filterwarnings("ignore:.*trained on images of 16×16 pixels")
def test_images_are_resized_for_a_network_with_a_fixed_image_size(data):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(256, 10))
    trained_run = pckd.fit(module, data, epochs=20, batch_size=8, **QUIET)
    large = dataclasses.replace(
        data, **{name: Split(getattr(data, name).images.repeat_interleave(2, 2).repeat_interleave(2, 3),
                             getattr(data, name).labels) for name in ("train", "test")},
    )  # fmt: skip
    assert pckd.evaluate(module, large, **EXACT).top1 == pytest.approx(trained_run.accuracy, abs=8)


def test_model_name_is_not_taken_for_a_run_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = pckd.fit("resnet8", data, epochs=1, out="resnet8", **QUIET)
    again = pckd.fit("resnet8", data, epochs=1, out="resnet8", overwrite=True, **QUIET)
    assert again.fingerprint == first.fingerprint
    assert pckd.fit("resnet8", data, epochs=1, out="resnet8", resume=True, **QUIET).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    "change", [{"std": [0]}, {"std": [1, 1]}, {"mean": [None]}, {"image_size": [10**6, 8]}, {"mean": [], "std": []}]
)
def test_damaged_training_data_in_a_file_is_refused(data, tmp_path, change):
    from safetensors.torch import save_file

    info = {"name": "x", "classes": list("0123456789"), "mean": [0.5], "std": [0.5], "image_size": [16, 16]}
    path = tmp_path / "weights.safetensors"
    save_file(create_student(data).state_dict(), path, {"trained_on": json.dumps({**info, **change})})
    with pytest.raises(ValueError, match="weights.safetensors' is damaged: its entry trained_on is not valid"):
        pckd.load_checkpoint(create_student(data), path)


# ---------------------------------------------------------------------------------------------- terminals


def start_command(*arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "pckd_nb", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_terminal_without_a_character_does_not_stop_the_training(tmp_path):
    out = tmp_path / "猫"
    with start_command("train", *SMALL, "--model", "resnet8", "--out", str(out), PYTHONIOENCODING="cp1252") as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert rb"saved in" in printed and rb"\u732b" in printed
    assert pckd.load_run(out).finished


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1"])
def test_lists_are_printed_in_any_encoding(encoding):
    with start_command("datasets", PYTHONIOENCODING=encoding) as process:
        printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0 and b"shapes100" in printed and not errors


def test_ctrl_c_while_importing_torch_prints_one_line(tmp_path):
    with start_command("train", *SMALL, "--model", "resnet8", "--out", str(tmp_path / "run")) as process:
        mapped, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 120
        while "libtorch" not in mapped.read_text() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors.decode().split("\n") == ["", "pckd-nb: interrupted", ""]
    assert not (tmp_path / "run").exists()


def test_messages_use_the_singular_for_one_epoch(run):  # noqa: F811
    out = run("train", *SMALL, "--model", "resnet8", "--out", "run")[1]
    assert "after 1 epoch\n" in out
    assert "1 of 1 epoch," in repr(pckd.load_run("run"))


# ---------------------------------------------------------------------------------------------- trainings


def create_student(data):
    return pckd.create_model("resnet8", data, seed=0)


def test_run_with_replaced_weights_is_refused(refused, run, data):  # noqa: F811
    for seed in (0, 1):
        assert run("train", *SMALL, "--model", "resnet8", "--seed", seed, "--out", f"run{seed}")[0] == 0
    Path("run1/student.safetensors").replace("run0/student.safetensors")
    message = "the weights in 'run0' do not match the fingerprint in its run.json"
    refused(message, "evaluate", "run0")
    refused(message, "distill", *SMALL, "--student", "resnet8", "--teacher", "run0", "--method", "kd", "--out", "x")
    refused(message, "train", *SMALL, "--model", "resnet8", "--init", "run0", "--out", "x")


def test_loading_an_unfinished_run_gives_a_warning(data, tmp_path):
    class Stop(pckd.Callback):
        def on_epoch_end(self, trainer):
            trainer.should_stop = True

    trained_run = pckd.fit(create_student(data), data, epochs=9, out=tmp_path / "run", callbacks=[Stop()], **QUIET)
    assert not trained_run.finished
    message = "is not finished: it has the weights after 1 of 9 epochs"
    with pytest.warns(UserWarning, match=message):
        trained_run.model()
    with pytest.warns(UserWarning, match=message):
        pckd.load_checkpoint(create_student(data), tmp_path / "run")


def test_checkpoint_with_a_flipped_bit_is_refused(data, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(create_student(data).state_dict(), path)
    content = bytearray(path.read_bytes())
    place = content.find(create_student(data).fc.weight.detach().numpy().tobytes()) + 1
    assert place > 0
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="weights.pt' is damaged: the checksum of .* is wrong"):
        pckd.load_checkpoint(create_student(data), path)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_training_works_inside_no_grad_and_inference_mode(data, mode):
    network = create_student(data)
    with mode():
        inside = pckd.fit(network, data, epochs=1, **QUIET)
        assert not torch.is_grad_enabled()
    outside = pckd.fit(create_student(data), data, epochs=1, **QUIET)
    assert inside.fingerprint == outside.fingerprint


def test_networks_with_untrainable_parameters_are_refused(data):
    teacher = create_student(data)  # noqa: F811
    with torch.inference_mode():
        made_inside = create_student(data)
    for network, message in [
        (
            create_student(data).double(),
            r"conv1.weight in torch.float64 instead of float32: write student.float\(\)",
        ),
        (create_student(data).half(), "the student has conv1.weight in torch.float16"),
        (create_student(data).requires_grad_(False), r"no parameter .* call student.requires_grad_\(\)"),
        (made_inside, "the student was created in torch.inference_mode"),
    ]:
        with pytest.raises(ValueError, match=message):
            pckd.distill(network, teacher, data, "kd", epochs=1, **QUIET)
    with pytest.raises(ValueError, match=r"the teacher has conv1.weight in torch.float64"):
        pckd.distill(create_student(data), teacher.double(), data, "kd", epochs=1, **QUIET)
    network = create_student(data)
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ValueError, match="default dtype is torch.float64, training needs float32"):
            pckd.fit(network, data, epochs=1, **QUIET)
        assert pckd.evaluate(network, data, accelerator="cpu", precision="32-true").top1 >= 0
    finally:
        torch.set_default_dtype(torch.float32)


def test_unusable_transform_is_refused_before_the_first_step(data, tmp_path, refused):  # noqa: F811
    from torchvision.transforms import v2

    for options, message in [
        (
            dict(augment="Normalize"),
            "'Normalize' can't be created without more arguments: create it in a file and write file.py:NAME",
        ),
        (dict(augment=lambda one, two: one), "augment can't be used: .*missing 1 required positional"),
        (dict(augment=v2.ToDtype(torch.float32)), "^augment must return a uint8 tensor"),
        (dict(mix=v2.MixUp(num_classes=3)), r"mix must return images .* probabilities \(1, 10\)"),
        (dict(mix=v2.MixUp()), "mix can't be used: .*num_classes must be passed"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            pckd.fit(create_student(data), data, epochs=1, out=tmp_path / "run", **QUIET, **options)
        assert not (tmp_path / "run").exists()
    train = ["train", *SMALL, "--model", "resnet8", "--out", "x"]
    refused("'Normalize' can't be created without more arguments", *train, "--augment", "Normalize")
    (tmp_path / "mine.py").write_text("x = 1\n")
    own = ["train", "--data", "mine.py:x", *train[-4:]]
    refused("'mine.py:x' must be a function that returns a Dataset, got int", *own)


def test_warmup_longer_than_the_training_gives_a_warning(data):
    with pytest.warns(
        UserWarning,
        match="warmup_epochs is 5, and training has 1 epoch: the learning rate never reaches lr = 0.05; use fewer",
    ):
        pckd.fit(create_student(data), data, epochs=1, warmup_epochs=5, **QUIET)


def test_errors_for_out_of_range_options_name_the_option(refused, tmp_path, teacher):  # noqa: F811
    (tmp_path / "file").write_text("x")
    train = ["train", *SMALL, "--model", "resnet8", "--out", "x"]
    refused("--seed.*greater than or equal to 0", *train, "--seed", "-1")
    refused("--seed.*less than or equal to 2147483647", *train, "--seed", "2147483648")
    refused("source must be a path, got ''", *train, "--init", "")
    distill = ["distill", *SMALL, "--student", "resnet8", "--teacher", teacher, "--out", "x"]
    refused("file' is a file; .* has to be a folder", *distill, "--teacher-cache", "file")
    sweep = ["sweep", *SMALL, "--student", "resnet8", "--teacher", teacher, "--out", "x"]
    refused("--factor must be NAME or NAME=VALUE,VALUE, got 'beta_cc='", *sweep, "--factor", "beta_cc=")


def test_evaluating_a_part_of_the_runs_data_gives_no_warning(run, teacher):  # noqa: F811
    status, out, err = run("evaluate", teacher, "--test-size", "20")
    assert status == 0 and "on 20 test images" in out and not err


def test_validation_split_has_the_same_share_of_every_class():
    labels = torch.tensor([0] * 100 + [1] * 80 + [2] * 4)
    images = torch.zeros(len(labels), 1, 8, 8)
    data = Dataset.from_arrays((images, labels), (images, labels), mean=(0.5,), std=(0.5,))
    held_out = data.with_validation(0.1)
    assert held_out.val.labels.bincount().tolist() == [9, 8, 1]  # 18 of 184 images
    assert held_out.train.labels.bincount().tolist() == [91, 72, 3]
    assert data.with_validation(0.9).train.labels.bincount().tolist() == [9, 8, 1]
    few = dataclasses.replace(data, train=data.train.take(np.arange(181)))
    with pytest.raises(ValueError, match="needs at least two training images per class, but class '2' of arrays has 1"):
        few.with_validation(0.1)


def test_validation_split_of_balanced_classes_is_the_same_as_in_earlier_versions():
    labels = torch.arange(60) % 3
    for seed in range(5):
        assert (stratified_sample(labels, 12, 3, seed) == balanced_sample(labels, 12, 3, seed)).all()


def test_tensorboard_shows_every_epoch_once_after_resume_and_overwrite(run, tmp_path):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train = ["train", *SMALL[:-2], "--model", "resnet8", "--out", "run", "--logger", "tensorboard"]
    assert run(*train, "--epochs", "3")[0] == 0
    assert run(*train, "--epochs", "2", "--overwrite")[0] == 0
    events = EventAccumulator(str(tmp_path / "logs" / "run")).Reload()
    assert [event.step for event in events.Scalars("test_top1")] == [1, 2]


def test_evaluate_refuses_a_network_for_other_images(data):
    with pytest.raises(ValueError, match="the network has 20 classes, but digits has 10"):
        pckd.evaluate(pckd.create_model("resnet8", num_classes=20, in_channels=1), data)
    with pytest.raises(ValueError, match="the network can't take images of 1×16×16 pixels from digits"):
        pckd.evaluate(pckd.create_model("resnet8", num_classes=10, in_channels=3), data)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(num_classes="10"), TypeError, "num_classes must be a whole number, got '10'"),
        (dict(num_classes=1), ValueError, "num_classes must be at least 2, got 1"),
        (dict(num_classes=10, in_channels=0), ValueError, "in_channels must be at least 1, got 0"),
        (dict(num_classes=10, seed=1.5), TypeError, "seed must be a whole number, got 1.5"),
        (dict(num_classes=10, seed=-1), ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_invalid_numbers_for_create_model_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        pckd.create_model("resnet8", **options)
    assert pckd.create_model("resnet8", num_classes=np.int64(3), seed=np.int16(1)).num_classes == 3
