"""The checks of `make gpu-check` on a GPU if there is one, and the command itself on the CPU."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as bench
from benchmarks import gpu, gpu_checks, gpu_job
from benchmarks.gpu import Result
from pckd_nb import losses, views

TOY = gpu_checks.Sizes.toy()
FOLDER = Path(gpu.__file__).parent
QUICK = [
    "losses in float32", "losses in float64", "losses of 16-bit inputs", "networks under autocast",
    "training in bf16-mixed", "channels_last",
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: `make gpu-check` on a machine with one")
@pytest.mark.parametrize("name", gpu_checks.CHECKS)
def test_check_passes_on_the_gpu(name):
    result = gpu.check(name, gpu_checks.Sizes())
    if result.status == gpu.SKIPPED:
        pytest.skip(result.found)
    assert result.status == gpu.PASSED, result.found


@pytest.mark.parametrize("name", QUICK)
def test_quick_check_passes_on_the_cpu(name):
    assert gpu.check(name, TOY).status == gpu.PASSED


def test_every_loss_is_among_the_cases():
    public = {
        name for name, value in vars(losses).items() if callable(value) and name.startswith(("dist", "feat", "cat"))
    }
    assert public <= gpu_checks.cases(TOY).keys()


@pytest.mark.parametrize("name", ["feature_alignment", "category_center_contrast", "distillation_kl"])
@pytest.mark.parametrize("where", ["value", "gradient"])
def test_wrong_loss_on_the_device_is_detected(name, where, monkeypatch):
    """The first of two calls is the one on the device. Its result is changed by one part in a thousand."""
    right, calls = getattr(losses, name), []

    def wrong(*arguments):
        calls.append(name)
        result = right(*arguments)
        if len(calls) > 1:
            return result
        return result * 1.001 if where == "value" else result + 0.001 * (result - result.detach())

    monkeypatch.setattr(losses, name, wrong)
    monkeypatch.setattr(gpu_checks, "Objective", lambda sizes: lambda *inputs: inputs[0].sum(1))
    for check in ("losses in float32", "losses in float64"):
        calls.clear()
        result = gpu.check(check, TOY)
        assert result.status == gpu.FAILED and result.found.startswith(f"{name}: off by 1.0e-03")


def test_non_finite_gradients_are_detected(monkeypatch):
    step = gpu_checks.Networks.step

    def overflowing(networks, dtype, *arguments):
        terms = step(networks, dtype, *arguments)
        if dtype is torch.float16:
            next(networks.student.parameters()).grad.fill_(float("inf"))
        return terms

    monkeypatch.setattr(gpu_checks.Networks, "step", overflowing)
    result = gpu.check("networks under autocast", TOY)
    assert result == Result(gpu.FAILED, "gradients in torch.float16 are not finite")


def test_training_without_channels_last_is_detected(monkeypatch):
    monkeypatch.setattr(views, "rotate", lambda images, views: images.repeat(views, 1, 1, 1).contiguous())
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda layer, x: layer._conv_forward(x, layer.weight, None) + 0)
    plain = torch.nn.Module.to

    def to(module, *how, **options):
        return plain(module, *how, **options) if "memory_format" not in options else module

    monkeypatch.setattr(torch.nn.Module, "to", to)
    result = gpu.check("channels_last", TOY)
    assert result.status == gpu.FAILED and "did not use channels_last" in result.found


def test_memory_above_the_limit_is_detected(monkeypatch):
    monkeypatch.setattr(gpu_checks.pieces, "contrast_memory", lambda *arguments: 0.6)
    result = gpu.check("memory of the contrast", TOY)
    assert result == Result(gpu.FAILED, "batch 16 needs 0.600 GiB, allowed 0.5")
    monkeypatch.setattr(gpu_checks.pieces, "contrast_memory", lambda *arguments: None)
    assert gpu.check("memory of the contrast", TOY).status == gpu.SKIPPED


def test_failed_job_reports_its_error():
    with pytest.raises(gpu_checks.CheckFailedError, match="code 1: ValueError: no luck"):
        gpu_checks.run_job([sys.executable, "-c", "raise ValueError('no luck')"])


def test_resume_with_different_results_is_detected(monkeypatch):
    def job(command):
        out = Path(command[command.index("resume") + 1])
        end = {"state": {"weight": torch.ones(2), "count": torch.tensor(3)}, "steps": torch.ones(2, 3)}
        torch.save(end, out / "whole.pt")
        torch.save({**end, **changed, "was_cut": True}, out / "resumed.pt")

    monkeypatch.setattr(gpu_checks, "run_job", job)
    changed = {}
    assert gpu.check("resume", TOY).status == gpu.PASSED
    changed = {"state": {"weight": torch.tensor([1, 1 + 1e-7]), "count": torch.tensor(3)}}
    assert gpu.check("resume", TOY).found == "weight is not the same to the last bit after a resume"
    changed = {"steps": torch.full((2, 3), torch.nan)}
    assert "cross-entropy of every image" in gpu.check("resume", TOY).found


def test_batches_are_large_enough_for_every_process(tmp_path):
    for processes in (1, 8):
        ends = gpu_job.train_ranks("cpu", processes)
        assert ends["processes"] == 1 and ends["histories"]


@pytest.mark.slow
def test_one_process_under_torchrun_uses_a_process_group():
    """This happens on a machine with one GPU."""
    result = gpu_checks.ranks(gpu_checks.Sizes(**{**vars(TOY), "processes": 1}))
    assert result.startswith("1 process, gloo: weights off by")


# The command


def stored_reports() -> dict[Path, int]:
    """Return the files of a report in the repository, and when each was changed. There may be none yet."""
    return {file: file.stat().st_mtime_ns for file in FOLDER.glob("gpu.*") if file.suffix != ".py"}


def test_command_without_a_gpu_prints_one_line(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmarks", "gpu"])
    with pytest.raises(SystemExit) as exit:
        bench.main()
    assert exit.value.code == 2
    assert capsys.readouterr() == ("", gpu.NO_GPU + "\n") and "\n" not in gpu.NO_GPU


@pytest.mark.parametrize("out", [[], ["--out", str(FOLDER)], ["--out", str(FOLDER / ".." / "benchmarks")]])
def test_dry_run_does_not_write_in_the_folder_of_the_gpu_report(out, capsys):
    before = stored_reports()
    with pytest.raises(SystemExit) as exit:
        gpu.main(["--dry-run", *out])
    assert exit.value.code == 2 and "--dry-run needs --out FOLDER" in capsys.readouterr().err
    assert stored_reports() == before


@pytest.mark.skipif(not (FOLDER / "gpu.md").exists(), reason="benchmarks/gpu.md does not exist yet: `make gpu-check`")
def test_report_in_the_repository_is_from_a_gpu():
    """It is not from a dry run, and its text matches its data."""
    found = json.loads((FOLDER / "gpu.json").read_text())
    assert not found["dry_run"] and found["gpu"]["gpu"]
    assert (FOLDER / "gpu.md").read_text() == gpu.render(found)


def test_all_parts_are_skipped_if_there_is_no_time(tmp_path, capsys):
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--minutes", "0.05"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found["parts"]) == list(gpu.parts(True, tmp_path))
    assert {(part["status"], part["found"]) for part in found["parts"].values()} == {(gpu.SKIPPED, gpu.NO_TIME)}
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("**No GPU was used.") and "0 passed, 0 failed, 14 skipped." in text


def script(body: str):
    """Return a command for `supervise`. body: the code per part, which calls begin(name) and end(name)."""
    code = (
        "import json, os, sys, time\n"
        "names, file = json.loads(sys.argv[1]), open(sys.argv[2], 'a')\n"
        "def begin(name): print(json.dumps({'part': name}), file=file, flush=True)\n"
        "def end(name):\n"
        "    result = {'status': 'passed', 'found': 'well', 'seconds': 1.0, 'details': None}\n"
        "    print(json.dumps({'part': name, **result}), file=file, flush=True)\n"
        "for name in names:\n"
        f"    {body}\n"
    )
    return lambda names, file: [sys.executable, "-c", code, json.dumps(names), str(file)]


def test_last_parts_are_skipped_if_time_runs_out():
    command = script("begin(name); time.sleep(600 * (name == 'b')); end(name)")
    started = time.monotonic()
    found = dict(gpu.supervise(["a", "b", "c"], command, started + 4))
    assert time.monotonic() - started < 30
    skipped = Result(gpu.SKIPPED, gpu.NO_TIME)
    assert found == {"a": Result(gpu.PASSED, "well", 1.0), "b": skipped, "c": skipped}


def test_part_that_ends_its_process_fails_and_the_others_continue():
    command = script("begin(name); name == 'b' and os._exit(7); end(name)")
    found = dict(gpu.supervise(["a", "b", "c"], command, time.monotonic() + 120))
    passed = Result(gpu.PASSED, "well", 1.0)
    assert found == {"a": passed, "b": Result(gpu.FAILED, "its process ended with code 7"), "c": passed}


def test_process_that_does_not_start_fails_all_parts():
    found = dict(gpu.supervise(["a", "b"], script("os._exit(3)"), time.monotonic() + 120))
    assert {result.status for result in found.values()} == {gpu.FAILED}


def test_part_that_raises_fails(tmp_path, monkeypatch):
    def broken():
        raise RuntimeError("out of order\nmore")

    monkeypatch.setattr(gpu, "parts", lambda *arguments: {"a": broken, "b": lambda: Result(gpu.PASSED, "well")})
    gpu.run_parts(["a", "b"], True, "", tmp_path / "results")
    lines = [json.loads(line) for line in (tmp_path / "results").read_text().splitlines()]
    assert [line.get("status") for line in lines] == [None, gpu.FAILED, None, gpu.PASSED]
    assert lines[1]["found"] == "RuntimeError: out of order"


def test_failed_part_gives_exit_code_1(tmp_path, monkeypatch):
    results = [("a", Result(gpu.PASSED, "well")), ("b", Result(gpu.FAILED, "off by | 3"))]
    monkeypatch.setattr(gpu, "supervise", lambda *arguments, **how: iter(results))
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 1
    text = (tmp_path / "gpu.md").read_text()
    assert "1 passed, 1 failed, 0 skipped." in text and "| b | **failed** | 0.0 | off by \\| 3 |" in text


def test_report_names_the_gpu(tmp_path, monkeypatch):
    results = [("a", Result(gpu.PASSED, "well"))]
    monkeypatch.setattr(gpu, "supervise", lambda *arguments, **how: iter(results))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "environment", lambda device: cpu_environment())
    about = {
        "gpu": "Imagined X1", "gpus": 2, "gpu_memory_gib": 80.0, "driver": "1.2", "cuda": "13.0", "cudnn": 9,
        "nccl": "2",
    }  # fmt: skip
    monkeypatch.setattr(gpu, "gpu_environment", lambda: about)
    assert gpu.main(["--out", str(tmp_path)]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("# Checked on Imagined X1\n") and "| device | 2 × Imagined X1, 80.0 GiB |" in text
    assert "| driver | 1.2 |" in text and "No GPU" not in text


def cpu_environment():
    from benchmarks.measure import environment

    return environment(torch.device("cpu"))


@pytest.mark.slow
def test_dry_run(tmp_path, capfd):
    """All parts run on the CPU."""
    before = stored_reports()
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--minutes", "15"]) == 0, capfd.readouterr()
    assert stored_reports() == before
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["dry_run"] and found["gpu"] == {}
    assert list(found["parts"]) == list(gpu.parts(True, tmp_path))
    results = {name: part["status"] for name, part in found["parts"].items()}
    without = {"torch.compile"} if os.environ.get("CXX") == "" else set()
    assert all(status == gpu.PASSED for name, status in results.items() if name not in without), results
    speeds = [part["details"] for part in found["parts"].values() if part["details"]]
    assert [(x["teacher"], x["batch_size"]) for x in speeds] == [
        ("resnet14", 8), ("resnet8", 8), ("resnet14", 16), ("resnet8", 16),
    ]  # fmt: skip
    text = (tmp_path / "gpu.md").read_text()
    assert text == gpu.render(found) and text.splitlines()[0].startswith("**No GPU was used.")
    assert str(tmp_path) not in text
