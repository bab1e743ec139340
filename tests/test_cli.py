"""The command line. The fixture `run` calls it in this process. A few tests start a separate one."""

import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pckd_nb as pckd
from pckd_nb import cli
from pckd_nb.cli import start
from pckd_nb.methods import overview

SMALL = ["--data", "digits", "--train-size", "60", "--test-size", "40", "--epochs", "1"]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """A function that runs a command in the temporary folder.

    It returns exit status, stdout and the lines of stderr without progress bars.
    """
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, list[str]]:
        status = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        lines = [line for line in re.split(r"[\r\n]+", captured.err) if line.strip() and "step" not in line]
        return status, captured.out, lines

    return call


@pytest.fixture
def refused(run, tmp_path):
    """A function that checks that a command fails with one matching line and leaves the folder unchanged."""

    def check(match: str, *arguments: str) -> None:
        def files() -> dict[Path, int]:
            return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}

        before, folders = files(), sorted(tmp_path.rglob("*"))
        status, out, err = run(*arguments)
        assert status != 0 and len(err) == 1 and err[0].startswith("pckd-nb: "), (status, err)
        assert re.search(match, err[0]), err[0]
        assert not out
        assert files() == before and sorted(tmp_path.rglob("*")) == folders

    return check


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    assert cli.main(["train", *SMALL, "--model", "resnet8", "--seed", "0", "--out", str(folder)]) == 0
    return folder


def make_photos(root: Path, classes=("cat", "dog"), images=4) -> Path:
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.jpg")
    return root


def test_documented_commands_work(run, teacher):
    common = ["distill", *SMALL, "--teacher", teacher, "--student", "resnet8", "--seed", "0"]
    status, out, err = run(*common, "--method", "pckd", "--out", "runs/pckd")
    assert status == 0 and not err
    assert "beta_cc 0.005 (recipe)" in out and "views 1 (data set)" in out and "runs/pckd" in out
    given = ["--recipe", "classroom", "--beta-cc", "0.004", "--epsilon", "1.08", "--views", "4"]
    status, out, _ = run(*common, "--method", "pckd-strategy=focal", *given, "--out", "runs/pckd2")
    settings = pckd.load_run("runs/pckd2").settings["method"]["settings"]
    assert {name: settings[name]["value"] for name in ("beta_cc", "epsilon", "views", "strategy")} == {
        "beta_cc": 0.004, "epsilon": 1.08, "views": 4, "strategy": "focal",
    }  # fmt: skip
    status, out, _ = run("evaluate", "runs/pckd")
    assert status == 0 and f"top-1 {pckd.load_run('runs/pckd').accuracy:.2f} %" in out
    assert run(*common, "--method", "pckd", "--out", "runs/pckd", "--resume")[0] == 0
    assert run(*common, "--method", "kd", "--temperature", "2", "--out", "runs/pckd", "--overwrite")[0] == 0
    assert pckd.load_run("runs/pckd").title == "KD resnet8"
    assert run("distill", *SMALL, "--method", "supervised", "--student", "resnet8", "--out", "runs/alone")[0] == 0


def test_folder_of_images_can_be_trained_on_and_evaluated(run, tmp_path):
    make_photos(tmp_path / "photos")
    data = f"folder:{tmp_path / 'photos'}"
    arguments = ["train", "--data", data, "--model", "resnet8", "--epochs", "1", "--batch-size", "4", "--out", "run"]
    assert run(*arguments)[0] == 0
    assert (
        "8 test images" in run("evaluate", "run")[1]
        and "8 train images" in run("evaluate", "run", "--split", "train")[1]
    )
    (tmp_path / "photos" / "train" / "cat" / "0.jpg").unlink()
    assert "not the same data" in run("evaluate", "run")[2][0]


def test_init_starts_from_another_runs_weights(run, teacher, refused):
    arguments = ["train", *SMALL, "--model", "resnet8", "--out", "runs/more"]
    assert run(*arguments, "--init", teacher)[0] == 0
    start = pckd.load_run("runs/more").settings["model"]["start"]
    assert start == pckd.load_run(teacher).fingerprint
    refused("initial weights", *arguments, "--resume")
    refused("another network", *arguments[:-4], "--model", "resnet14", "--init", teacher, "--out", "x")
    refused("'nowhere': there is no such", *arguments, "--init", "nowhere", "--overwrite")


def test_checkpoints_can_be_teachers_and_checked_against_an_expected_accuracy(run, teacher, refused):
    state = pckd.load_run(teacher).student_state
    torch.save({"epoch": 240, "model": {f"module.{name}": value for name, value in state.items()}}, "teacher.pth")
    accuracy = pckd.load_run(teacher).accuracy
    evaluate = ["evaluate", "teacher.pth", "--model", "resnet8", "--data", "digits", "--root", "."]
    status, out, err = run("evaluate", teacher, "--expect", round(accuracy + 0.04, 2))
    assert status == 0 and not err and "normalised with the mean and std that the network was trained with" in out
    status, out, err = run("evaluate", teacher, "--expect", accuracy + 0.2)
    assert status == 1 and err == [f"pckd-nb: top-1 is {accuracy:.2f} %, not the expected {accuracy + 0.2:.2f} ± 0.05"]
    status, out, _ = run(*evaluate)
    assert status == 0 and "resnet8 from teacher.pth on 450 test images" in out
    distill = ["distill", *SMALL, "--student", "resnet8", "--method", "kd"]
    assert run(*distill, "--teacher", "teacher.pth", "--teacher-model", "resnet8", "--out", "kd")[0] == 0
    info = pckd.load_run("kd").settings["teacher"]
    assert info["weights_from"] == "teacher.pth" and info["fingerprint"] == pckd.load_run(teacher).fingerprint
    assert run("train", *SMALL, "--model", "resnet8", "--init", "teacher.pth", "--out", "more")[0] == 0
    refused("is not a run folder.*--teacher-model", *distill, "--teacher", "teacher.pth", "--out", "x")
    refused("is not a run folder.*--model", "evaluate", "teacher.pth")
    refused("needs --data", "evaluate", "teacher.pth", "--model", "resnet8")
    refused("layer1.1.*missing", *evaluate[:3], "resnet14", *evaluate[4:])
    hundred = pckd.create_model("resnet8", num_classes=100, in_channels=1)
    torch.save(hundred.state_dict(), "hundred.pth")
    refused(r"'fc.weight' has shape \(100, 64\) instead of \(10, 64\)", "evaluate", "hundred.pth", *evaluate[2:])


def test_agree(run, teacher, refused, tmp_path):
    kd = ["distill", *SMALL, "--student", "resnet8", "--method", "kd", "--teacher", teacher]
    assert run(*kd, "--epochs", "4", "--out", "kd")[0] == 0
    status, out, _ = run("agree", "kd", teacher, "--test-size", "200")
    assert status == 0 and out.startswith("A: KD resnet8, kd\nB: supervised resnet8, ")
    data = pckd.load_dataset("digits", train_size=60, test_size=200)
    found = pckd.analysis.agreement("kd", str(teacher), data)
    lines = [line.split() for line in out.splitlines()]
    assert out.splitlines()[2] == "200 test images of digits:"
    assert [int(word) for line in lines[4:6] for word in line[2:]] == found.counts.tolist()
    assert f"same prediction for {found.same_prediction:.2f} % of the images" in out
    scores = [pckd.evaluate(model, data).top1 for model in ("kd", str(teacher))]
    assert f"A is right for {scores[0]:.2f} %, B for {scores[1]:.2f} %" in out
    header = next(number for number, line in enumerate(lines) if line[:2] == ["class", "images"])
    assert sorted(line[0] for line in lines[header + 1 :]) == sorted(data.classes) and "all classes." in out
    assert float(lines[header + 1][-2].strip("<")) == pytest.approx(found.classes["p"].min(), abs=0.001)
    assert run("agree", "kd", teacher, "--split", "train")[1].splitlines()[2] == "60 train images of digits:"

    refused("'nothing' is not a run", "agree", "kd", "nothing")
    refused("split must be 'train', 'test', got 'val'", "agree", "kd", teacher, "--split", "val")
    make_photos(tmp_path / "photos")
    photos = ["train", "--data", f"folder:{tmp_path / 'photos'}", "--model", "resnet8", "--epochs", "1"]
    assert run(*photos, "--batch-size", "4", "--out", "photos/run")[0] == 0
    refused("trained on different data, digits and folder:.*: choose .* with --data", "agree", "kd", "photos/run")
    refused("the network has 2 classes, but digits has 10", "agree", "kd", "photos/run", "--data", "digits")
    (tmp_path / "kd" / "student.safetensors").unlink()
    refused("'kd' was saved without weights: train it again", "agree", "kd", teacher)


def test_predict(run, teacher, refused, tmp_path):
    photos = make_photos(tmp_path / "photos")
    weird = photos / "a, b\n\r.jpg"
    (photos / "train" / "cat" / "0.jpg").rename(weird)
    status, out, _ = run("predict", teacher, photos)
    table = pd.read_csv(io.StringIO(out), dtype={"class": str, "second": str})
    assert status == 0 and len(table) == 16 and table["file"][0] == r"a, b\n\r.jpg"
    assert list(table) == ["file", "class", "confidence", "entropy", "second"]
    expected = pckd.analysis.predict_folder(str(teacher), photos)
    assert table["class"].tolist() == expected["class"].tolist()
    assert table["confidence"].to_numpy() == pytest.approx(expected["confidence"].to_numpy(), rel=1e-5)
    status, out, _ = run("predict", teacher, photos, "--out", "new/table.csv")
    assert status == 0 and out == "new/table.csv: 16 images\n"
    assert pd.read_csv("new/table.csv")["entropy"].equals(table["entropy"])
    refused("'new/table.csv' exists: .* --overwrite", "predict", teacher, photos, "--out", "new/table.csv")
    assert run("predict", teacher, photos / "test", "--out", "new/table.csv", "--overwrite")[1].endswith("8 images\n")
    refused("'new' is a folder: add the name of a file", "predict", teacher, photos, "--out", "new")
    refused("there is no folder nothing", "predict", teacher, "nothing")


def test_rank(run, refused, tmp_path):
    train = ["train", *SMALL, "--label-noise", "0.2", "--model", "resnet8", "--epochs", "3", "--out", "noisy"]
    assert run(*train)[0] == 0
    table = pckd.analysis.rank_samples(pckd.load_run("noisy"), top=5)
    status, out, err = run("rank", "noisy", "--top", "5")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0 and not err and lines[0][:3] == ["id", "class", "predicted_class"]
    assert [line[0] for line in lines[1:6]] == table["id"].astype(str).tolist()
    assert out.splitlines()[-1] == "5 images. Hard images have large values of cross_entropy_mean."
    files = ["--csv", "new/rank.csv", "--html", "new/rank.html"]
    status, out, _ = run("rank", "noisy", "--by", "area_under_margin", "--suspects", "--top", "9", *files)
    found = pd.read_csv("new/rank.csv", index_col="position")
    assert status == 0 and (found["area_under_margin"] < 0).all() and len(found) == 9
    assert (tmp_path / "new" / "rank.html").read_text("utf-8").count("<img") == 9
    refused("--csv 'new/rank.csv' exists: .* --overwrite", "rank", "noisy", "--csv", "new/rank.csv")
    refused("--data needs --html", "rank", "noisy", "--data", "digits")
    refused("--csv and --html must be different files", "rank", "noisy", "--csv", "x", "--html", "x")
    refused("unknown data set 'other'", "rank", "noisy", "--data", "other", "--csv", "x.csv", "--html", "x.html")
    assert not list(tmp_path.glob("x*"))
    refused("--html 'new' is a folder", "rank", "noisy", "--html", "new")
    refused("unknown measure 'loss': choose from gamma", "rank", "noisy", "--by", "loss")
    refused("unknown class 'cat'", "rank", "noisy", "--class", "cat")
    assert run("rank", "noisy", "--class", "3", "--class", "4", "--per-class", "--top", "1")[1].endswith(
        "2 images. Hard images have large values of cross_entropy_mean.\n"
    )


def test_report_and_diff(run, teacher, refused, tmp_path):
    kd = ["distill", *SMALL, "--student", "resnet8", "--method", "kd", "--teacher", teacher, "--out", "kd"]
    assert run(*kd)[0] == 0
    status, out, _ = run("report", "kd")
    assert status == 0 and re.fullmatch(r"report\.html: [\d.]+ MB\n", out)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert f"{pckd.load_run('kd').accuracy:.1f} %" in page and "Reliability diagram" in page
    refused("'report.html' exists: .* --overwrite", "report", "kd")
    assert run("report", teacher, "--overwrite")[0] == 0 and (tmp_path / "report.html").read_text("utf-8") != page
    status, out, _ = run("diff", "kd", teacher, "--out", "new/pages/diff.html")
    found = pckd.analysis.agreement("kd", str(teacher), pckd.load_dataset("digits", train_size=60, test_size=40))
    words = re.sub(r"<[^>]*>|\s+", " ", (tmp_path / "new" / "pages" / "diff.html").read_text("utf-8"))
    assert status == 0 and f"only A {found.counts['only a']}" in re.sub(" +", " ", words)
    refused("'nothing' is not a run", "report", "nothing", "--out", "x.html")
    refused("split must be test, train or val, got all", "diff", "kd", teacher, "--split", "all")
    (tmp_path / "kd" / "student.safetensors").unlink()
    assert run("report", "kd", "--out", "without.html")[0] == 0
    assert "saved without weights" in (tmp_path / "without.html").read_text("utf-8")
    refused("was saved without weights: train it again", "diff", "kd", teacher, "--out", "y.html")


def test_transfer(run, teacher, refused, tmp_path):
    kd = ["distill", *SMALL, "--student", "resnet8", "--method", "kd", "--teacher", teacher, "--out", "kd"]
    assert run(*kd)[0] == 0
    status, out, _ = run("transfer", teacher, "kd", "--data", "digits", "--train-size", "200", "--test-size", "100")
    lines = out.splitlines()
    assert status == 0 and "200 training and 100 test images of digits" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["supervised", "KD", "untrained"]
    assert all(float(line.split()[-2]) > 30 for line in lines[2:])
    refused("'nothing' is not a run", "transfer", "nothing", "--data", "digits")
    make_photos(tmp_path / "photos")
    refused("3 channels", "transfer", teacher, "--data", f"folder:{tmp_path / 'photos'}")


def make_imagenet(root: Path) -> None:
    for split, images in (("train", 6), ("val", 3)):
        for name in ("n01", "n02", "n03"):
            (root / "imagenet" / split / name).mkdir(parents=True)
            for number in range(images):
                pixels = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / "imagenet" / split / name / f"{number}.JPEG")


def test_imagenet_is_streamed_from_its_files(run, tmp_path):
    make_imagenet(tmp_path)
    arguments = ["train", "--data", "imagenet", "--root", ".", "--image-size", "32", "--workers", "2", "--model"]
    arguments += [
        "torchvision:resnet18",
        "--recipe",
        "imagenet_paper",
        "--epochs",
        "1",
        "--batch-size",
        "6",
        "--lr",
        ".01",
    ]
    status, out, err = run(*arguments, "--out", "run")
    assert status == 0 and not err and "torchvision:resnet18" in out
    run_ = pckd.load_run("run")
    assert run_.settings["recipe"]["lr"] == 0.01 and run_.gallery["images"].shape[1:] == (3, 32, 32)
    assert "9 test images" in run("evaluate", "run", "--root", ".", "--workers", "0")[1]


def test_models_and_datasets_are_listed(run):
    status, out, _ = run("models")
    assert status == 0 and all(name in out for name in pckd.models.MODELS) and "278,324" in out
    line = next(line for line in out.splitlines() if line.startswith("vgg13"))
    assert line.split()[1:4] == ["9,462,180", "570", "512"] and line.endswith("> vgg8, > MobileNetV2")
    status, out, _ = run("datasets")
    assert status == 0 and all(name in out for name in pckd.data.DATASETS)


def test_methods_are_listed(run):
    status, out, _ = run("methods")
    assert status == 0 and "arXiv 1612.03928" in out
    names = [line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2] != " "]
    assert sorted(names) == sorted([*pckd.methods.METHODS, *pckd.methods.BASELINES])


@pytest.mark.parametrize("name", [*pckd.methods.METHODS, *pckd.methods.BASELINES])
def test_one_method_is_shown_with_its_settings(name, run):
    status, out, err = run("methods", name.lower())
    assert status == 0 and not err
    settings = pckd.methods.default_settings(type(pckd.methods.make(name)).__name__)
    lines = [line.split() for line in out.partition("Settings and their defaults:\n")[2].splitlines()]
    assert all([setting, *str(value).split()] in lines for setting, value in settings.items())
    info = overview.method_info(name)
    assert info.family in overview.FAMILIES and info.compares and info.weight
    assert ("Published settings of teacher-student" in out) == bool(info.published)


def test_the_list_of_methods_shows_only_methods_of_this_package(refused):
    refused("'own.py:Mine' is a method of your own: choose one of supervised, kd", "methods", "own.py:Mine")
    refused("unknown method 'nothing'", "methods", "nothing")


@pytest.mark.parametrize("command", ["", "train", "distill", "evaluate", "agree", "transfer", "demo", "doctor"])
def test_help(command, run):
    status, out, err = run(*([command] if command else []), "--help")
    assert status == 0 and "Usage" in out and not err
    assert run()[0] == 0


def test_unknown_names_are_refused(refused, teacher):
    refused("'digit'.*digits", "train", "--data", "digit", "--model", "resnet8", "--out", "x")
    refused("'resnet9'.*resnet8", "train", "--data", "digits", "--model", "resnet9", "--out", "x")
    distill = ["distill", *SMALL, "--teacher", teacher, "--student", "resnet8", "--out", "x"]
    refused("unknown method 'pkd'.*pckd", *distill, "--method", "pkd")
    refused("unknown strategy 'easy'.*preview", *distill, "--method", "pckd-strategy=easy")
    refused("--strategy must be auto or ddp, got fsdp$", *distill, "--strategy", "fsdp")
    refused("got uniform; .*--method pckd-strategy=uniform", *distill, "--strategy", "uniform")
    refused("devices must be at least 1, got 0", *distill, "--devices", "0")
    refused("unknown recipe 'short'.*classroom", *distill, "--recipe", "short")
    refused("method kd has no setting 'beta_cc'.*temperature", *distill, "--method", "kd", "--beta-cc", "1")
    message = "precision must be one of auto, 32-true, bf16-mixed, 16-mixed, got '8-bit'"
    refused(message, *distill, "--precision", "8-bit")
    refused("No such command 'trian'", "trian")
    refused("No such option.*--modle", "train", "--modle", "resnet8")
    refused("pckd-nb: train needs --out ", "train", "--data", "digits", "--model", "resnet8")


@pytest.mark.parametrize(
    "option, value, match",
    [("--beta-fa", "-1", "beta_fa"), ("--beta-cc", "nan", "beta_cc"), ("--beta-kd", "inf", "beta_kd")]
    + [("--temperature", "-4", "temperature"), ("--temperature", "0", "temperature"), ("--epsilon", "0", "epsilon")]
    + [("--epochs", "0", "epochs"), ("--epochs", "two", "epochs"), ("--batch-size", "0", "batch_size")]
    + [("--batch-size", "1", "BatchNorm"), ("--lr", "-1", "lr"), ("--lr", "0", "lr"), ("--views", "5", "views")]
    + [
        ("--seed", "-1", "seed"),
        ("--train-size", "0", "train_size must be at least 10, the number of classes, got 0"),
        ("--train-size", "99999", "99999"),
        ("--beta-cc", "x", "beta-cc"),
    ],
)
def test_invalid_numbers_are_refused(option, value, match, refused, teacher):
    refused(match, "distill", *SMALL, "--teacher", teacher, "--student", "resnet8", "--out", "x", option, value)


def test_invalid_image_folders_are_refused(refused, tmp_path):
    def train(match, folder):
        refused(match, "train", "--data", f"folder:{folder}", "--model", "resnet8", "--epochs", "1", "--out", "x")

    train("there is no folder .*missing: folder:PATH needs", "missing")
    (tmp_path / "empty").mkdir()
    train("there is no folder .*empty/train: ", "empty")
    make_photos(tmp_path / "corrupt")
    (tmp_path / "corrupt" / "train" / "dog" / "1.jpg").write_bytes(b"\xff\xd8 cut short")
    train(r"dog/1\.jpg", "corrupt")
    make_photos(tmp_path / "stranger")
    (tmp_path / "stranger" / "test" / "cow").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "stranger" / "test" / "cow" / "0.jpg")
    train("cow", "stranger")


def test_invalid_run_folders_are_refused(refused, run, teacher, tmp_path):
    distill = ["distill", *SMALL, "--student", "resnet8", "--method", "kd"]
    refused("needs --teacher", *distill, "--out", "x")
    refused("'nowhere' is not a run: there is no such folder", *distill, "--teacher", "nowhere", "--out", "x")
    refused("'nowhere' is not a run", "evaluate", "nowhere")
    refused("--resume.*--overwrite", "train", *SMALL, "--model", "resnet8", "--out", teacher)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    refused("not a run", "train", *SMALL, "--model", "resnet8", "--out", "mine", "--overwrite")
    refused("split must be", "evaluate", teacher, "--split", "both")


def test_teachers_for_other_data_or_networks_are_refused(refused, run, teacher, tmp_path):
    other = tmp_path / "other"
    make_photos(tmp_path / "photos")
    photos = ["--data", f"folder:{tmp_path / 'photos'}", "--epochs", "1", "--batch-size", "4"]
    assert run("train", *photos, "--model", "resnet8", "--out", other)[0] == 0
    distill = ["distill", *SMALL, "--student", "resnet8", "--method", "kd", "--out", "x"]
    refused("2 classes|the classes of", *distill, "--teacher", other)
    settings = pckd.runs.read_settings(other)
    settings["model"]["name"] = "resnet20"
    pckd.runs.write_settings(other, settings)
    refused(r"another network: 'layer1\.1\.conv1\.weight' is missing", *distill, "--teacher", other)


def test_internal_errors_are_one_line_and_debug_shows_the_traceback(refused, monkeypatch, capsys):
    def broken(*_, **__):
        raise ZeroDivisionError("oh\nno")

    monkeypatch.setattr(start, "print_table", broken)
    refused("ZeroDivisionError: oh no", "models")
    with pytest.raises(ZeroDivisionError):
        cli.main(["models", "--debug"])


def interrupt(folder: Path, *arguments: str) -> str:
    """Start a command in a separate process and interrupt it during the training. Return what it printed."""
    command = [sys.executable, "-m", "pckd_nb", *arguments, "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in the tests, for exactly the same results
    pipes = dict(stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(command, start_new_session=True, env=environment, **pipes) as process:
        deadline = time.monotonic() + 300
        while not (folder / "run.json").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)  # a terminal also sends it to every process of the group
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in err, err
    with pytest.raises(ProcessLookupError):  # no worker process is left
        os.killpg(process.pid, 0)
    assert "--resume" in out
    assert pckd.load_run(folder).settings["status"] == "interrupted"
    return out


def test_ctrl_c_saves_the_run(tmp_path):
    interrupt(tmp_path / "run", "train", *SMALL, "--epochs", "2000", "--model", "resnet8")


@pytest.mark.slow
def test_run_interrupted_while_workers_read_resumes_to_the_same_files(run, tmp_path):
    make_imagenet(tmp_path)
    arguments = ["train", "--data", f"imagenet:{tmp_path / 'imagenet'}", "--image-size", "32", "--workers", "1"]
    arguments += ["--model", "resnet8", "--epochs", "24", "--batch-size", "9"]
    interrupt(tmp_path / "run", *arguments)
    for folder, options in (("run", ["--resume"]), ("whole", [])):
        assert run(*arguments, "--out", folder, *options)[0] == 0
    for name in ("student.safetensors", "history.csv", "samples.npz"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("unbuffered", ["", "-u"])
def test_closed_pipe_gives_no_error_message(unbuffered):
    shell = f"{sys.executable} {unbuffered} -m pckd_nb datasets | true; exit ${{PIPESTATUS[0]}}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", shell], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (1, "")
