"""The notebooks with widgets, and notebook 00, in JupyterLab and Chromium.

Every test opens a notebook, runs all cells, and uses the widget with keyboard and mouse. To run one of them:

    python -m pytest tests/test_browser.py -k 05_preview

They need Playwright, which `.[dev]` installs, and Chromium: `apt-get install chromium` or
`python -m playwright install chromium`. Without them, the tests are skipped; if PCKD_NEED_BROWSER is set, they fail.

The folder build/browser, or $PCKD_SCREENSHOTS, then has a picture of every notebook, two pictures of its widget, before
and after use, and answers.json: the seconds from a key press to the new picture. Look at the pictures after you have
changed a widget.

Every error fails the test: in a cell, in the browser's console, in a function that a widget calls, or a request to
another host than 127.0.0.1. `HARMLESS` in browser.py has the two messages that are ignored. They appear when JupyterLab
asks for a progress bar that has been closed, and when it asks for widgets before there are any.

Two rules for widgets:

- JupyterLab uses the arrow keys of a closed list, of a list box (`Select`) and of radio buttons to change cells. Use
  sliders, buttons, text fields, and lists that open (Space, arrow keys, Enter).
- No option of a list may have the value None: ipywidgets takes it for "nothing is selected".
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import nbformat
import pytest
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbformat.v4 import new_code_cell, new_notebook

from pckd_nb import notebooks, preview

from . import browser
from .browser import code_cells, controls, find_cell, pixels, seconds_to_answer, tab_stops
from .conftest import time_limit

pytestmark = [pytest.mark.slow, pytest.mark.alone]

OUT = Path(os.environ.get("PCKD_SCREENSHOTS") or notebooks.REPOSITORY / "build" / "browser")
NOTEBOOK_SECONDS = 90  # for all cells, on the machine for which the documentation states times
# For a widget to answer, on the same machine. tests/test_widgets.py limits the time for drawing alone.
SECONDS = 2
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}

START, PREVIEW, CENTERS, DIFFICULTY = "00_start_here", "05_preview", "07_tsne", "08_difficulty"
CONTRAST, SWEEPS = "04_category_center_contrast", "09_hyperparameters"
WIDGETS = {
    CONTRAST: "contrast_explorer(",
    PREVIEW: "preview_explorer(",
    CENTERS: "center_explorer(",
    DIFFICULTY: "difficulty_browser(",
    SWEEPS: "sweep_explorer(",
}


class OpenNotebook:
    """A notebook in the browser. All of its cells have run."""

    def __init__(self, name, page, wrong, seconds, limit):
        self.name, self.page, self.wrong, self.seconds, self.limit = name, page, wrong, seconds, limit

    @property
    def widget(self):
        return find_cell(self.page, WIDGETS[self.name]).locator(".jupyter-widgets").first

    @property
    def picture(self):
        """The large picture, which is the last one."""
        return self.widget.locator("img").last

    @property
    def sentence(self):
        return self.widget.get_by_role("status").last.inner_text()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def control(self, label):
        return self.widget.locator(f".widget-inline-hbox:has(.widget-label:text-is('{label}'))")

    def screenshot(self, name):
        self.widget.screenshot(path=OUT / f"{self.name}_{name}.png")


@pytest.fixture(scope="module")
def answers():
    """The seconds until the widgets answered, by notebook and action."""
    OUT.mkdir(parents=True, exist_ok=True)
    found = defaultdict(dict)
    yield found
    (OUT / "answers.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser.chromium(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def opened(request, chromium, answers, tmp_path_factory):
    """A notebook of the course, run from scratch. It finds no demo runs, so it trains its own."""
    home, name = tmp_path_factory.mktemp(request.param), request.param
    folder = home / "notebooks"
    folder.mkdir()
    notebook, _ = ClearOutputPreprocessor().preprocess(nbformat.read(notebooks.FOLDER / f"{name}.ipynb", 4), {})
    nbformat.write(notebook, folder / f"{name}.ipynb")
    with (
        browser.jupyterlab(folder, home / "lab", PCKD_RUNS=str(home / "none"), PCKD_DATA=str(home / "data")) as address,
        browser.opened_notebook(chromium, address, f"{name}.ipynb") as (page, wrong),
    ):
        limit, started = time_limit(NOTEBOOK_SECONDS, own_process=True), time.monotonic()
        browser.run_all(page)
        notebook = OpenNotebook(name, page, wrong, time.monotonic() - started, limit)
        browser.screenshot_notebook(page, OUT / f"{name}.png")
        if name in WIDGETS:
            notebook.screenshot("widget")
        yield notebook
        if name in WIDGETS:
            notebook.screenshot("widget_left")


@pytest.fixture
def notebook(opened):
    yield opened
    assert not opened.wrong


@pytest.fixture
def timed(notebook, answers, capsys):
    """A function that uses a widget several times and records how long it took to answer."""
    limit = time_limit(SECONDS, own_process=True)

    def measure(what, acts):
        seconds = [seconds_to_answer(notebook.page, notebook.widget, act) for act in acts]
        notebook.page.wait_for_function(browser.READY)  # once the kernel is idle, the sentence has arrived, too
        answers[notebook.name][what] = [round(value, 3) for value in seconds]
        with capsys.disabled():
            print(f"\n{notebook.name}, {what}: {median(seconds):.2f} s", end="")
        assert median(seconds) < limit

    return measure


# Choose the next option. On a closed list, JupyterLab uses the arrow keys to change cells, so open it first.
NEXT = ("Space", "ArrowDown", "Enter")


def in_notebook(*names):
    return pytest.mark.parametrize("opened", names, indirect=True)


def settled_sentence(notebook):
    """Return the widget's sentence when it no longer changes."""
    before = None
    while before != (before := notebook.sentence):
        notebook.page.wait_for_timeout(1000 * SECONDS)
    return before


@in_notebook(START, *WIDGETS)
def test_every_cell_runs(notebook):
    cells = code_cells(notebook.page)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert notebook.seconds < notebook.limit


@in_notebook(START, *WIDGETS)
def test_every_picture_is_loaded_and_has_alternative_text(notebook):
    drawn = [out for cell in code_cells(notebook.page) for out in cell["outputs"] if "image/png" in out.get("data", {})]
    pictures = notebook.page.locator(".jp-OutputArea-output img").all()
    assert len(pictures) >= len(drawn) >= 4
    for picture in pictures:
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth; }") >= 28
    # JupyterLab shows an output's image/png without its alternative text. The other pictures have one.
    ours = notebook.page.locator(".jp-OutputArea-output img:not(.jp-RenderedImage img)").all()
    assert all(len(picture.get_attribute("alt")) > 15 for picture in ours)
    assert bool(ours) == (notebook.name in WIDGETS)


@in_notebook(*WIDGETS)
def test_every_control_has_a_visible_label_and_can_be_reached_with_tab(notebook):
    found = controls(notebook.widget)
    assert len(found) >= 2
    assert not [one for one in found if not one["label"] or one["cut"] or one["cutOptions"] or one["empty"]]
    labels = [control["label"] for control in found]
    stops = tab_stops(notebook.page, notebook.widget)
    assert [stop for place, stop in enumerate(stops) if stop not in stops[:place]] == labels


@in_notebook(CONTRAST, SWEEPS)
def test_the_picture_follows_every_control(notebook, timed):
    seen = {pixels(notebook.picture)}
    for control in controls(notebook.widget):
        of_list = notebook.control(control["label"]).locator("select")
        is_list = of_list.count() > 0
        (of_list if is_list else notebook.control(control["label"]).locator(".noUi-handle")).focus()
        timed(control["label"], [lambda keys=NEXT if is_list else ("ArrowLeft",): notebook.press(*keys)])
        assert pixels(notebook.picture) not in seen
        seen.add(pixels(notebook.picture))


@in_notebook(PREVIEW)
def test_the_threshold_follows_its_slider_by_keyboard(notebook, timed):
    slider = notebook.control("ε")
    readout, before = slider.locator(".widget-readout"), pixels(notebook.picture)
    began = float(readout.inner_text())
    slider.locator(".noUi-handle").focus()
    timed("ε, arrow keys", [lambda: notebook.press("ArrowRight")] * 5)
    assert began < float(readout.inner_text()) == pytest.approx(shown_epsilon(notebook), abs=1e-3)
    assert pixels(notebook.picture) != before
    notebook.press(*["ArrowLeft"] * 12)  # like a key that is held down: only the final value counts
    settled_sentence(notebook)
    assert began > float(readout.inner_text()) == pytest.approx(shown_epsilon(notebook), abs=1e-3)


def shown_epsilon(notebook):
    return float(re.search(r"ε = ([\d.]+)", settled_sentence(notebook))[1])


@in_notebook(PREVIEW)
def test_strategy_and_epoch_follow_the_keyboard(notebook, timed):
    seen = {pixels(notebook.picture)}
    notebook.control("strategy").locator("select").focus()
    first, *others = preview.STRATEGIES
    assert f"strategy {first}:" in notebook.sentence
    for strategy in others:
        timed(f"strategy {strategy}", [lambda: notebook.press(*NEXT)])
        assert f"strategy {strategy}:" in notebook.sentence
        seen.add(pixels(notebook.picture))
    notebook.control("epoch").locator(".noUi-handle").focus()
    timed("epoch", [lambda: notebook.press("Home")])
    assert notebook.sentence.startswith("Epoch 1 of 10,")
    assert len(seen | {pixels(notebook.picture)}) == 1 + len(others) + 1


@in_notebook(CENTERS)
def test_the_map_marks_the_chosen_category_and_image(notebook, timed):
    seen = {pixels(notebook.picture)}
    notebook.control("category").locator("select").focus()
    timed("category", [lambda: notebook.press(*NEXT)] * 3)
    category = selected_text(notebook.control("category").locator("select"))
    assert f"Marked: the center of {category}." in notebook.sentence
    seen.add(pixels(notebook.picture))

    images = notebook.control("show").locator("select")
    timed("image, chosen", [lambda: images.select_option(index=1)])
    first_sentence = notebook.sentence
    assert re.search(rf"Marked: test image \d+, {category}, predicted as ", first_sentence)
    seen.add(pixels(notebook.picture))
    images.focus()
    timed("image, keys", [lambda: notebook.press(*NEXT)])
    second_sentence = notebook.sentence
    assert second_sentence != first_sentence
    seen.add(pixels(notebook.picture))

    notebook.control("perplexity").locator("select").focus()
    timed("perplexity", [lambda: notebook.press(*NEXT)])
    assert notebook.sentence != second_sentence
    assert nearest_centers(notebook.sentence) == nearest_centers(second_sentence)
    assert len(seen | {pixels(notebook.picture)}) == 5


def nearest_centers(sentence):
    return sentence.partition("Nearest centers by cosine in the full space:")[2]


@in_notebook(DIFFICULTY)
def test_a_thumbnail_shows_its_trajectory_by_click_and_by_key(notebook, timed):
    seen = {pixels(notebook.picture)}
    thumbnails = notebook.widget.locator("button:visible")
    for place, act in ((1, "click"), (2, "Enter"), (3, "Space")):
        thumbnail = thumbnails.nth(place)
        if act == "click":
            timed("thumbnail, click", [thumbnail.click])
        else:
            notebook.press("Tab")
            timed(f"thumbnail, {act}", [lambda act=act: notebook.press(act)])
        sample = re.match(r"sample (\d+):", thumbnail.inner_text())[1]
        assert re.search(rf"\b{sample}\b", notebook.sentence)
        seen.add(pixels(notebook.picture))
    assert len(seen) == 4


@in_notebook(DIFFICULTY)
def test_the_keyboard_changes_the_page(notebook, timed):
    thumbnails, words = notebook.widget.locator("button:visible"), notebook.widget.get_by_role("status").first

    def shown():
        images = notebook.widget.locator("img:visible").all()[:-1]
        return thumbnails.all_inner_texts(), [pixels(image) for image in images]

    first = shown()
    assert words.inner_text().startswith("Images 1 to 12 of ")
    notebook.control("page").locator("select").focus()
    timed("page", [lambda: notebook.press(*NEXT)])
    second = shown()
    assert words.inner_text().startswith("Images 13 to 24 of ")
    assert [len(part) for part in (*first, *second)] == [12] * 4
    assert not set(first[0]) & set(second[0]) and not set(first[1]) & set(second[1])


@in_notebook(DIFFICULTY)
def test_the_keyboard_chooses_one_category_and_then_all(notebook, timed):
    category, words = notebook.control("category").locator("select"), notebook.widget.get_by_role("status").first
    all_categories = selected_text(category)
    category.focus()
    timed("category", [lambda: notebook.press(*NEXT)])
    assert f" of {selected_text(category).rpartition(' (')[0]} in the gallery, " in words.inner_text()
    timed("all categories", [lambda: notebook.press("Home")])
    assert selected_text(category) == all_categories
    assert " of the 100 training images in the gallery, " in words.inner_text()


def selected_text(list_):
    """Return the text of the selected option of a list."""
    return list_.evaluate("list => list.selectedOptions[0]?.text ?? ''").replace("\xa0", " ")


# Tests of the helpers.

WRONG = """
import ipywidgets
from IPython.display import HTML, Javascript
button = ipywidgets.Button(description="press")
button.on_click(lambda _: 1 / 0)
display(button, HTML("<img alt='' src='http://example.org/picture.png'>"), Javascript("console.error('said so')"))
"""
# A stand-in for jupyterlab that ignores SIGTERM.
HANGING_SERVER = """
import signal, time
def main():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("ready", flush=True)
    time.sleep(600)
"""
START_AND_DIE = """
import os, signal, sys
from pathlib import Path
from tests import browser
home = Path(sys.argv[1])
with browser.jupyterlab(home, home / "lab") as address:
    print(address, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_errors_in_a_notebook_are_collected(chromium, tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    cells = [new_code_cell(text) for text in ("import sys\nprint(sys.executable)", WRONG, "1 / 0")]
    nbformat.write(new_notebook(cells=cells, metadata=KERNEL), folder / "wrong.ipynb")
    with (
        browser.jupyterlab(folder, tmp_path / "lab") as address,
        browser.opened_notebook(chromium, address, "wrong.ipynb") as (page, wrong),
    ):
        assert not wrong
        browser.run_all(page)
        executable, _, error = (cell["outputs"] for cell in code_cells(page))
        assert executable[0]["text"].strip() == sys.executable
        assert error[0]["output_type"] == "error"
        expected = (
            "asked another host: http://example.org/picture.png",
            "console: said so",
            "kernel: ZeroDivisionError",
        )
        assert all(words in "\n".join(wrong) for words in expected)
        wrong.clear()
        with page.expect_console_message(lambda message: "kernel: ZeroDivisionError" in message.text):
            find_cell(page, "ipywidgets.Button").get_by_role("button", name="press").click()
        assert "kernel: ZeroDivisionError" in "\n".join(wrong)


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_no_server_is_left_behind_by_a_killed_test_run(tmp_path):
    command = [sys.executable, "-c", START_AND_DIE, str(tmp_path)]
    killed = subprocess.run(command, cwd=notebooks.REPOSITORY, stdout=subprocess.PIPE, text=True)
    assert killed.returncode == -signal.SIGKILL
    port = int(re.search(r"127\.0\.0\.1:(\d+)/", killed.stdout)[1])
    until = time.monotonic() + browser.WAIT_SECONDS
    while is_listening(port) and time.monotonic() < until:
        time.sleep(0.2)
    assert not is_listening(port)


def test_a_hanging_server_logs_its_stack_and_exits(tmp_path):
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab" / "__init__.py").touch()
    (tmp_path / "jupyterlab" / "labapp.py").write_text(HANGING_SERVER)
    code = browser.SERVER.replace(f"later({browser.END_SECONDS},", "later(1,")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, env=environment) as server:
        assert server.stdout.readline() == "ready\n"
        _, log = server.communicate(timeout=browser.WAIT_SECONDS)
    assert server.returncode == 1 and "in main" in log


def test_a_server_exits_without_waiting_for_threads_of_libraries(tmp_path):
    """A thread that never ends would otherwise keep Python from exiting after main()."""
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab" / "__init__.py").touch()
    lines = "import threading, time\ndef main():\n    threading.Thread(target=time.sleep, args=[600]).start()\n"
    (tmp_path / "jupyterlab" / "labapp.py").write_text(lines)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", browser.SERVER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as server:  # closing stdin would stop it
        assert server.wait(browser.END_SECONDS) == 0


def test_a_server_that_never_exits_is_killed_with_a_warning(tmp_path):
    (tmp_path / "lab.log").write_text("stopping kernel 1")
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with pytest.warns(UserWarning, match=r"did not exit within 0 s .* stopping kernel 1"):
        browser.wait_for_exit(server, tmp_path / "lab.log", seconds=0.1)
    assert server.returncode == -signal.SIGKILL


def is_listening(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("needed, outcome", [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_without_a_browser_tests_are_skipped_unless_one_is_needed(needed, outcome, monkeypatch):
    monkeypatch.setenv("PCKD_NEED_BROWSER", needed)
    monkeypatch.setattr(browser, "find_chromium", lambda: None)
    with pytest.raises(outcome, match="apt-get install chromium"):
        browser.required_chromium()
