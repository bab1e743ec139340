import dataclasses
import shutil
import sys
from html.parser import HTMLParser

import nbformat
import pytest
import torch

import pckd_nb as pckd
from pckd_nb import cli, demo, doctor, hardware, training

from .test_notebooks import make_notebook

TINY = demo.Plan(train_size=200, test_size=100, epochs=1, teacher_epochs=1)
STEP_SECONDS = {"teacher": 0.04, "supervised": 0.02, "kd": 0.03, "pckd": 0.1}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder and the report of a tiny demo with a small notebook."""
    folder = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PCKD_DATA", str(folder / "data"))
        notebook = make_notebook(
            folder / "small.ipynb",
            "import sys, pckd_nb as pckd\nfrom pckd_nb.demo import find_runs",
            "print(sys.executable)\nprint('<script>alert(1)</script>')",
            "pckd.figures.accuracy(pckd.load_run(find_runs() / 'pckd'))",
        )
        patch.setattr(demo, "NOTEBOOK", notebook)
        report = demo.run_demo(folder / "runs", plan=TINY)
    return folder, report


class Resources(HTMLParser):
    """Collects what a page loads: (tag, address)."""

    def __init__(self, page):
        super().__init__()
        self.loaded = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag != "a":
            self.loaded += [(tag, value) for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_the_demo_leaves_four_finished_runs_and_a_report(finished):
    folder, report = finished
    runs = {name: pckd.load_run(folder / "runs" / name) for name in demo.STAGES}
    assert all(run.finished for run in runs.values())
    assert [run.settings["method"]["title"] for run in runs.values()] == ["supervised", "supervised", "KD", "PCKD"]
    assert runs["teacher"].settings["model"]["name"] == "resnet20"
    assert {run.settings["model"]["name"] for name, run in runs.items() if name != "teacher"} == {"resnet8"}
    assert runs["pckd"].settings["teacher"]["run"] == "../teacher"
    assert report == folder / "runs" / "report.html" and report.is_file()


def test_the_report_loads_nothing_from_elsewhere(finished):
    page = finished[1].read_text(encoding="utf-8")
    loaded = Resources(page).loaded
    assert any(tag == "img" for tag, _ in loaded)
    assert all(address.startswith("data:") for _, address in loaded)
    for words in ("url(http", "url(//", "@import", "import(", 'from "http', "from 'http", "cdnjs", "unpkg"):
        assert words not in page, words


def test_the_report_escapes_printed_text_and_shows_no_error(finished):
    page = finished[1].read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "Traceback" not in page


def test_the_notebook_runs_in_this_interpreter_and_is_not_changed(finished):
    folder, report = finished
    assert sys.executable in report.read_text(encoding="utf-8")
    assert all(not cell.outputs for cell in nbformat.read(folder / "small.ipynb", 4).cells)


def test_a_second_demo_keeps_finished_runs_unless_overwrite_is_set(finished, monkeypatch, tmp_path, capsys):
    folder, _ = finished
    monkeypatch.setenv("PCKD_DATA", str(folder / "data"))
    monkeypatch.setattr(demo, "NOTEBOOK", tmp_path / "missing.ipynb")
    started = []
    monkeypatch.setattr(training.Trainer, "train", lambda trainer: started.append(trainer.folder))
    assert demo.run_demo(folder / "runs", plan=TINY) == folder / "runs"
    assert started == []
    printed = capsys.readouterr().out
    assert "No report" in printed and "83,892" in printed
    with pytest.raises(ValueError, match="started with epochs 1, not 2"):
        demo.run_demo(folder / "runs", plan=dataclasses.replace(TINY, epochs=2))

    interrupted = pckd.load_run(folder / "runs" / "teacher")
    interrupted.settings["status"] = "interrupted"
    monkeypatch.setattr(demo, "measure_steps", lambda plan: STEP_SECONDS)  # it would call distill
    monkeypatch.setattr(training, "distill", lambda *_, out, overwrite, **__: started.append(overwrite) or interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(folder / "runs", overwrite=True, plan=TINY)
    assert started == [True]
    assert "start the same command again to continue" in capsys.readouterr().err


def test_a_folder_that_is_not_a_run_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "kd").mkdir()
    (tmp_path / "kd" / "precious.txt").write_text("")
    with pytest.raises(FileExistsError, match="not a run"):
        demo.run_demo(tmp_path)
    assert not (tmp_path / "teacher").exists()


def test_the_comparison_is_aligned(finished):
    runs = [pckd.load_run(finished[0] / "runs" / name) for name in demo.STAGES]
    lines = demo.comparison_text(runs).splitlines()
    assert lines[0].split() == ["method", "network", "parameters", "top-1", "%", "top-5", "%", "seconds"]
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[:3] for line in lines[1:]] == [
        ["teacher", "supervised", "resnet20"],
        ["student", "supervised", "resnet8"],
        ["student", "KD", "resnet8"],
        ["student", "PCKD", "resnet8"],
    ]
    assert lines[2].index("83,892") + len("83,892") == lines[0].index("parameters") + len("parameters")


def test_find_runs_searches_parent_folders_for_four_finished_runs(finished, tmp_path, monkeypatch):
    monkeypatch.delenv("PCKD_RUNS", raising=False)
    monkeypatch.setattr(demo, "REPOSITORY", tmp_path / "elsewhere")
    below = tmp_path / "notebooks"
    below.mkdir()
    monkeypatch.chdir(below)
    assert demo.find_runs() is None
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(finished[0] / "runs")
    assert demo.find_runs() == tmp_path / "runs" / "demo"
    with monkeypatch.context() as patch:
        status = {"kd": "interrupted"}
        patch.setattr(demo.runs, "read_settings", lambda folder: {"status": status.get(folder.name, "finished")})
        assert demo.find_runs() is None
    assert demo.find_runs() is not None
    monkeypatch.setenv("PCKD_RUNS", str(tmp_path / "nowhere"))
    assert demo.find_runs() is None


# Sizes


@pytest.fixture(params=[True, False], ids=["recorded teacher", "no recorded runs"])
def record(request, monkeypatch, tmp_path):
    """Whether the recorded runs are available."""
    if not request.param:
        monkeypatch.setattr(demo, "RECORDED", tmp_path / "nowhere")
    return request.param


def test_a_larger_size_takes_longer(record):
    seconds = [demo.estimate_seconds(plan, STEP_SECONDS) for plan in demo.SIZES.values()]
    assert seconds == sorted(set(seconds)) and seconds[0] > 0
    assert any(plan.find_recorded_teacher() for plan in demo.SIZES.values()) == record
    twice = {name: 2 * value for name, value in STEP_SECONDS.items()}
    assert [demo.estimate_seconds(plan, twice) for plan in demo.SIZES.values()] == pytest.approx(
        [2 * value for value in seconds]
    )


def test_the_largest_size_that_fits_is_chosen_or_else_the_smallest(record):
    sizes = list(demo.SIZES)
    for number, (name, plan) in enumerate(demo.SIZES.items()):
        just = 60 * demo.MAX_MINUTES / demo.estimate_seconds(plan, STEP_SECONDS)
        for factor, expected in ((0.999, name), (1.001, sizes[max(0, number - 1)])):
            assert demo.choose_size({key: factor * just * value for key, value in STEP_SECONDS.items()}) == expected
    assert demo.choose_size(dict.fromkeys(STEP_SECONDS, 100.0)) == sizes[0]
    assert demo.choose_size(dict.fromkeys(STEP_SECONDS, 1e-6)) == sizes[-1]


def test_measuring_steps_of_all_stages_leaves_no_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PCKD_DATA", str(tmp_path / "data"))
    small = pckd.get_recipe("classroom", epochs=1, batch_size=32)
    monkeypatch.setattr(demo, "get_recipe", lambda name, **_: small)
    found = demo.measure_steps()
    assert list(found) == list(demo.STAGES) and all(0 < seconds < float("inf") for seconds in found.values())
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "data" not in path.parents]
    assert not list(tmp_path.rglob("run.json"))


def test_the_step_timer_skips_the_first_two_steps(monkeypatch):
    times = iter([0, 100, 200, 201, 202, 203, 209])
    monkeypatch.setattr(demo.time, "perf_counter", lambda: float(next(times)))
    timer = demo.StepTimer()
    for _ in range(1 + demo.TIMED_STEPS):
        timer.update()
    assert timer.step_seconds == 1


@pytest.fixture
def sizes(monkeypatch, finished, tmp_path):
    """Make `finished` a demo of size medium, while this machine would get full. Return the plans that are measured."""
    monkeypatch.setenv("PCKD_DATA", str(finished[0] / "data"))
    monkeypatch.setattr(demo, "NOTEBOOK", tmp_path / "missing.ipynb")
    small, full = (dataclasses.replace(TINY, epochs=epochs) for epochs in (2, 3))
    monkeypatch.setattr(demo, "SIZES", {"small": small, "medium": TINY, "full": full})
    measured = []
    monkeypatch.setattr(demo, "measure_steps", lambda plan=None: measured.append(plan) or STEP_SECONDS)
    return measured


def test_a_finished_demo_is_not_measured_again(sizes, finished, capsys):
    assert demo.find_size(finished[0] / "runs") == "medium"
    for options in ({}, {"size": "medium"}, {"plan": TINY}):
        assert demo.run_demo(finished[0] / "runs", **options) == finished[0] / "runs"
    with pytest.raises(ValueError, match="started with epochs 1, not 3"):
        demo.run_demo(finished[0] / "runs", size="full")
    assert sizes == []


def test_an_unfinished_demo_keeps_its_size(sizes, finished, tmp_path, capsys):
    out = tmp_path / "runs"
    shutil.copytree(finished[0] / "runs", out)
    shutil.rmtree(out / "pckd")
    assert demo.choose_size(STEP_SECONDS) == "full"
    demo.run_demo(out)
    printed = capsys.readouterr().out
    marked = [line.split()[0] for line in printed.splitlines() if line.endswith("← chosen size")]
    assert marked == ["medium"] and sizes == [None]
    assert len(pckd.load_run(out / "pckd").history) == TINY.epochs and demo.find_size(out) == "medium"


def test_the_recorded_teacher_is_copied_and_another_one_is_kept(finished, tmp_path):
    record = demo.SIZES["small"].find_recorded_teacher()
    folder = tmp_path / "runs" / "teacher"
    for overwrite in (False, False, True):
        taken = demo.copy_recorded_teacher(record, folder, overwrite)
        assert taken.fingerprint == record.fingerprint and taken.finished and taken.path == folder
    assert demo.find_size(folder.parent) is None  # every size with the recorded teacher is still possible
    shutil.rmtree(folder)
    shutil.copytree(finished[0] / "runs" / "teacher", folder)
    assert demo.find_size(folder.parent) == "full"
    before = pckd.load_run(folder).fingerprint
    with pytest.raises(
        ValueError, match="another teacher than this size needs: overwrite=True replaces it, another out=…"
    ):
        demo.copy_recorded_teacher(record, folder, overwrite=False)
    assert pckd.load_run(folder).fingerprint == before
    assert demo.copy_recorded_teacher(record, folder, overwrite=True).fingerprint == record.fingerprint


def test_an_unknown_size_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "--size", "tiny"]) == 2
    out, err = capsys.readouterr()
    assert err == "pckd-nb: size must be one of small, medium, full, got tiny\n" and not out
    assert not list(tmp_path.iterdir())


# The doctor


@pytest.fixture
def doctor_report(monkeypatch, capsys):
    """A function that runs `pckd-nb doctor` on a processor with some features, and returns its lines by first word."""
    monkeypatch.setattr(demo, "measure_steps", lambda plan=None: STEP_SECONDS)
    monkeypatch.setattr(doctor, "_load", lambda: "1.0")  # the real one changes between calls
    monkeypatch.setattr(doctor, "make_fabric", lambda: [torch.nn.Parameter(torch.zeros(1))])  # has a device, the CPU

    def run_doctor(*features):
        monkeypatch.setattr(hardware, "cpu_features", lambda: dict.fromkeys(features, True))
        assert cli.main(["doctor"]) == 0
        out, err = capsys.readouterr()
        assert not err
        assert out.splitlines() == list(doctor.report_lines())
        return {line.split()[0]: line.partition(" ")[2].strip() for line in out.splitlines()}

    return run_doctor


def test_the_doctor_says_what_training_chooses(doctor_report):
    found = doctor_report("avx2")
    assert {"machine", "cores", "precision", "teacher", "compile", "threads", "demo", *demo.SIZES} <= found.keys()
    assert f"torch {torch.__version__}" in found["machine"] and "AVX2" in found["machine"]
    assert found["precision"].startswith("32-true") and found["teacher"].startswith("int8, else float32")
    assert found["compile"].startswith("off")
    found = doctor_report("avx2", "avx512_f", "avx512_bf16")
    assert found["precision"].startswith("bf16-mixed") and found["compile"].startswith(
        "only for students of more than 4e+08"
    )
    assert found["teacher"].startswith("int8, else bfloat16, else float32")
    assert doctor_report()["teacher"].startswith("float32")


def test_the_doctor_says_how_threads_wait(doctor_report, monkeypatch):
    for name in hardware.WAIT_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert doctor_report("avx2")["threads"].startswith(
        "1; how long idle threads stay active before they sleep: the default of OpenMP"
    )
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    assert (
        doctor_report("avx2")["threads"]
        == "1; how long idle threads stay active before they sleep: OMP_WAIT_POLICY=passive"
    )


def test_the_doctor_says_how_long_each_size_of_the_demo_takes(doctor_report):
    found = doctor_report("avx2")
    marks = ["← chosen size" in found[size] for size in demo.SIZES]
    assert marks == [size == demo.choose_size(STEP_SECONDS) for size in demo.SIZES]
    for size, plan in demo.SIZES.items():
        assert f"{demo.estimate_seconds(plan, STEP_SECONDS) / 60:.1f} minutes" in found[size]
        assert "← chosen size" in found[size] or f"(size {size})" in found[size]
