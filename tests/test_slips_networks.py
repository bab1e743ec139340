"""Beginners' use of networks, methods and data: names and plain modules work, mistakes give an error of one line."""

from pathlib import Path

import pytest
import torch
from torch import nn

import pckd_nb as pckd
from pckd_nb import cli, experiments
from pckd_nb.cli.entry import use_option_names

SHORT = {"epochs": 1, "batch_size": 16, "progress": False, "accelerator": "cpu"}


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.fixture
def folder(data, tmp_path) -> Path:
    """A run folder of resnet8."""
    return pckd.fit(pckd.create_model("resnet8", data, seed=1), data, out=tmp_path / "teacher", **SHORT).path


GIVEN = {
    "a folder as text": str,
    "a folder": Path,
    "a run": pckd.load_run,
    "its network": lambda folder: pckd.load_run(folder).model(),
    "in DataParallel": lambda folder: nn.DataParallel(pckd.load_run(folder).model()),
    "compiled": lambda folder: torch.compile(pckd.load_run(folder).model()),
}


@pytest.mark.parametrize("what", GIVEN)
def test_teacher_may_be_given_in_several_forms(what, data, folder):
    run = pckd.distill(pckd.create_model("resnet8", data, seed=2), GIVEN[what](folder), data, "kd", **SHORT)
    expected = pckd.load_run(folder)
    assert run.settings["teacher"]["fingerprint"] == expected.fingerprint
    assert pckd.evaluate(GIVEN[what](folder), data, accelerator="cpu") == pckd.evaluate(
        expected.model(), data, accelerator="cpu"
    )


def test_plain_module_is_trained_in_place_and_can_be_a_teacher(data):
    module = plain()
    before = module[1].weight.clone()
    run = pckd.fit(module, data, **SHORT)
    assert not torch.equal(module[1].weight, before) and torch.equal(module[1].weight, run.student_state["1.weight"])
    student = plain()
    taught = pckd.distill(student, module, data, "kd", **SHORT)
    assert taught.settings["teacher"]["fingerprint"] == run.fingerprint
    assert torch.equal(student[3].bias, taught.student_state["3.bias"])
    scores = pckd.evaluate(student, data, accelerator="cpu")
    assert scores == pckd.evaluate(pckd.as_classifier(student), data, accelerator="cpu")


def test_student_given_by_name_is_initialized_from_the_seed(data):
    run = pckd.fit("resnet8", data, seed=3, **SHORT)
    model = pckd.create_model("resnet8", data, seed=3)
    assert run.fingerprint == pckd.fit(model, data, seed=3, **SHORT).fingerprint


def test_student_given_by_run_folder_starts_from_its_weights(data, folder):
    run = pckd.fit(folder, data, **SHORT)
    assert run.settings["model"]["start"] == pckd.load_run(folder).fingerprint


@pytest.mark.parametrize("method", ["pckd", "PCKD", pckd.PCKD, pckd.PCKD()])
def test_method_may_be_given_by_name_class_or_object(method, data, teacher):
    run = pckd.distill("resnet8", teacher, data, method, **SHORT)
    assert run.title == "PCKD resnet8"
    assert run.method_settings == pckd.distill("resnet8", teacher, data, pckd.PCKD(), **SHORT).method_settings


def test_data_set_may_be_given_by_name():
    digits = pckd.load_dataset("digits")
    model = pckd.create_model("resnet8", digits)
    short = {**SHORT, "epochs": 1, "batch_size": 256}
    run = pckd.fit(model, "digits", **short)
    assert run.settings["data"]["fingerprint"] == digits.fingerprint
    assert pckd.evaluate(model, "digits", accelerator="cpu").top1 == pytest.approx(run.accuracy)


def test_transfer_accepts_run_folders(data, folder):
    run = pckd.load_run(folder)
    assert pckd.transfer(folder, data, accelerator="cpu") == pckd.transfer(run, data, accelerator="cpu")
    table = pckd.transfer_table([str(folder)], data, accelerator="cpu")
    assert list(table["method"]) == ["supervised", "untrained"]


REFUSED = {  # what is given instead of a network: how to make it, the error, and part of its message
    "class": (lambda path: nn.Linear, TypeError, r"got type: write Linear\(...\), not Linear"),
    "function": (lambda path: plain, TypeError, r"got function: write plain\(...\), not plain"),
    "state dict": (lambda path: plain().state_dict(), TypeError, "got OrderedDict: create_model"),
    "number": (lambda path: 3, TypeError, "must be a network, a Run or the folder of one, got int"),
    "list": (lambda path: [plain()], TypeError, "must be a network, a Run or the folder of one, got list"),
    "empty module": (lambda path: nn.Module(), ValueError, "Module has no nn.Linear"),
    "file": (
        lambda path: path / "x.pth",
        ValueError,
        r"not a run folder: .*load_checkpoint\(create_model\(NAME, data\), '",
    ),
    "file as text": (lambda path: str(path / "x.pth"), ValueError, r"not a run folder: .*load_checkpoint\("),
    "address": (lambda path: "https://x.org/a.pth", ValueError, r"not a run folder: .*'https://x.org/a.pth'\)"),
    "missing folder": (lambda path: path / "none", FileNotFoundError, "none' is not a run: there is no such folder"),
    "missing as text": (
        lambda path: str(path / "none"),
        FileNotFoundError,
        "none' is not a run: there is no such folder",
    ),
    "not a run": (lambda path: path, ValueError, "not a run folder"),
    "misspelled": (lambda path: "resnet2", ValueError, "unknown model 'resnet2'; nearest known: resnet"),
}
UNTRAINED = (
    lambda path: "resnet8",
    ValueError,
    r"'resnet8' is the name of a network that is not trained: train it with fit, or load weights with load_check",
)


@pytest.mark.parametrize(
    "what, use",
    [(what, use) for what in REFUSED for use in ("student", "teacher", "fit", "evaluate")]
    + [("untrained", "teacher"), ("untrained", "evaluate")],  # a student may be untrained
)
def test_objects_that_are_not_networks_are_refused_in_one_line(what, use, data, teacher, tmp_path):
    torch.save(teacher.state_dict(), tmp_path / "x.pth")
    make, error, words = UNTRAINED if what == "untrained" else REFUSED[what]
    given, out = make(tmp_path), tmp_path / "run"
    calls = {
        "student": lambda: pckd.distill(given, teacher, data, "kd", out=out, **SHORT),
        "teacher": lambda: pckd.distill(teacher, given, data, "kd", out=out, **SHORT),
        "fit": lambda: pckd.fit(given, data, out=out, **SHORT),
        "evaluate": lambda: pckd.evaluate(given, data),
    }
    with pytest.raises(error, match=words) as caught:
        calls[use]()
    assert "\n" not in str(caught.value) and "--" not in str(caught.value) and not out.exists()
    argument = use if use in ("student", "teacher") else "model"
    assert error is not TypeError or str(caught.value).startswith(f"{argument} must be a network")


OTHERS = {
    "a method's class with settings": (
        lambda data: pckd.distill("resnet8", "x", data, nn.Linear, **SHORT), TypeError, r"write Linear\(...\), not"),
    "not a method": (lambda data: pckd.distill("resnet8", "x", data, dict), TypeError, r"method must be an object"),
    "data of evaluate": (lambda data: pckd.evaluate(plain(), [1]), TypeError, "data must be a Dataset or the name of"),
    "run of transfer": (
        lambda data: pckd.transfer(3, data), TypeError, "run must be a Run or the folder of one, got int: load_run"),
    "name for data": (
        lambda data: pckd.create_model("resnet8", "digits"), TypeError, r"write load_dataset\('digits'\)"),
    "classes as text": (
        lambda data: pckd.create_model("resnet8", num_classes="10"), TypeError, "num_classes must be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("slip", OTHERS)
def test_other_mistakes_are_refused_in_one_line(slip, data):
    call, error, words = OTHERS[slip]
    with pytest.raises(error, match=words) as caught:
        call(data)
    assert "\n" not in str(caught.value)


def test_preprocessing_accepts_a_plain_module(data):
    shown = pckd.with_preprocessing(plain(), data, mean=[0.4], std=[0.2])
    assert shown(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 3)


# ------------------------------------------------------------------------- arguments and options in messages


def test_python_api_names_no_command_line_options():
    package = Path(pckd.__file__).parent
    files = [file for file in package.rglob("*.py") if "cli" not in file.relative_to(package).parts]
    files.remove(package / "experiments" / "cluster.py")  # it names options of `dask worker` and sbatch
    named = [
        f"{file.name}: {line.strip()}"
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if "--" in line and any(part[:1].isalpha() for part in line.split("--")[1:])
    ]
    assert len(files) > 80 and named == []


def test_messages_name_arguments_in_python_and_options_on_the_command_line(data, folder, capsys, monkeypatch):
    with pytest.raises(FileExistsError, match="exists: resume=True continues the run, overwrite=True replaces it"):
        pckd.fit("resnet8", data, out=folder, **SHORT)
    assert cli.main(["train", "--data", "digits", "--model", "resnet8", "--out", str(folder)]) == 2
    assert "exists: --resume continues the run, --overwrite replaces it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "message, shown",
    [
        ("with jobs=…, or shard=… in jobs", "with --jobs …, or --shard … in jobs"),
        ("give each grid its own out=…", "give each grid its own --out …"),
        ("use batch_size=32", "use --batch-size 32"),
        ("it needs a validation split, val=0.1", "it needs a validation split, --val 0.1"),
        ("'runs/lr=0.1' and runs/lr=0.1/a", "'runs/lr=0.1' and runs/lr=0.1/a"),
        ("pckd-views=1 and timm:x,epochs=3", "pckd-views=1 and timm:x,epochs=3"),
        ("name it by head=…, transform_input=True", "name it by head=…, transform_input=True"),
    ],
)
def test_arguments_in_messages_become_options(message, shown):
    assert use_option_names(message) == shown


def test_error_of_a_grid_names_its_arguments(monkeypatch):
    monkeypatch.setattr(experiments.execution.ranks, "launched_processes", lambda: (2, 1))
    with pytest.raises(
        ValueError, match="without torchrun or srun; jobs=… or shard=… train several runs at the same time"
    ):
        experiments.run_grid(None)
