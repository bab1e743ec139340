import sys
from html.parser import HTMLParser

import nbformat
import pytest

import pckd_nb as pckd
from pckd_nb import demo, training

TINY = demo.Plan(train_size=200, test_size=100, epochs=1)


def make_notebook(path, *cells):
    cells = [nbformat.v4.new_code_cell(source) for source in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a tiny demo, its report and what was printed; made with a notebook of three lines."""
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
    """What a page loads: (tag, address)."""

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


def test_the_report_needs_nothing_but_itself(finished):
    page = finished[1].read_text(encoding="utf-8")
    loaded = Resources(page).loaded
    assert any(tag == "img" for tag, _ in loaded)
    assert all(address.startswith("data:") for _, address in loaded)
    for words in ("url(http", "url(//", "@import", "import(", 'from "http', "from 'http", "cdnjs", "unpkg"):
        assert words not in page, words


def test_the_report_is_of_these_runs_and_escapes_what_was_printed(finished):
    page = finished[1].read_text(encoding="utf-8")
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    assert "Traceback" not in page


def test_the_notebook_runs_in_this_interpreter_and_is_not_changed(finished):
    folder, report = finished
    assert sys.executable in report.read_text(encoding="utf-8")
    assert all(not cell.outputs for cell in nbformat.read(folder / "small.ipynb", 4).cells)


def test_a_second_demo_keeps_what_is_finished_and_overwrite_does_not(finished, monkeypatch, tmp_path, capsys):
    folder, _ = finished
    monkeypatch.setenv("PCKD_DATA", str(folder / "data"))
    monkeypatch.setattr(demo, "NOTEBOOK", tmp_path / "missing.ipynb")
    started = []
    monkeypatch.setattr(training.Trainer, "train", lambda trainer, _: started.append(trainer.folder))
    assert demo.run_demo(folder / "runs", plan=TINY) == folder / "runs"
    assert started == []
    printed = capsys.readouterr().out
    assert "No report" in printed and "83,892" in printed
    with pytest.raises(ValueError, match="started with epochs 1, not 2"):
        demo.run_demo(folder / "runs", plan=demo.Plan(train_size=200, test_size=100, epochs=2))

    interrupted = pckd.load_run(folder / "runs" / "teacher")
    interrupted.settings["status"] = "interrupted"
    monkeypatch.setattr(training, "distill", lambda *_, out, overwrite, **__: started.append(overwrite) or interrupted)
    with pytest.raises(KeyboardInterrupt):
        demo.run_demo(folder / "runs", overwrite=True, plan=TINY)
    assert started == [True]
    assert "goes on from here" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "kd").mkdir()
    (tmp_path / "kd" / "precious.txt").write_text("")
    with pytest.raises(FileExistsError, match="not a run"):
        demo.run_demo(tmp_path)
    assert not (tmp_path / "teacher").exists()


def test_the_comparison_is_aligned(finished):
    runs = [pckd.load_run(finished[0] / "runs" / name) for name in demo.STAGES]
    lines = demo.comparison(runs).splitlines()
    assert lines[0].split() == ["method", "network", "parameters", "top-1", "%", "top-5", "%", "seconds"]
    assert len({len(line) for line in lines}) == 1
    assert [line.split()[:3] for line in lines[1:]] == [
        ["teacher", "supervised", "resnet20"],
        ["student", "supervised", "resnet8"],
        ["student", "KD", "resnet8"],
        ["student", "PCKD", "resnet8"],
    ]
    assert lines[2].index("83,892") + len("83,892") == lines[0].index("parameters") + len("parameters")


def test_find_runs_looks_above_and_wants_all_four_finished(finished, tmp_path, monkeypatch):
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
