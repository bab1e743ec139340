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

from pckd_nb import notebooks

from . import browser
from .browser import code_cells, controls, find_cell, pixels, seconds_to_answer, tab_stops
from .conftest import time_limit

pytestmark = [pytest.mark.slow, pytest.mark.alone]

OUT = Path(os.environ.get("PCKD_SCREENSHOTS") or notebooks.REPOSITORY / "build" / "browser")
NOTEBOOK_SECONDS = 90  # for all cells, drawn on the page meanwhile, on the machine for which times are stated
# For a widget to answer, on the machine for which times are stated; for drawing alone see tests/test_widgets.py.
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


class Book:
    """A notebook, all of whose cells were run in the browser."""

    def __init__(self, name, page, wrong, seconds, limit):
        self.name, self.page, self.wrong, self.seconds, self.limit = name, page, wrong, seconds, limit

    @property
    def widget(self):
        return find_cell(self.page, WIDGETS[self.name]).locator(".jupyter-widgets").first

    @property
    def picture(self):
        """The large one, which stands last."""
        return self.widget.locator("img").last

    @property
    def sentence(self):
        return self.widget.get_by_role("status").last.inner_text()

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)

    def control(self, label):
        return self.widget.locator(f".widget-inline-hbox:has(.widget-label:text-is('{label}'))")

    def shoot(self, name):
        self.widget.screenshot(path=OUT / f"{self.name}_{name}.png")


@pytest.fixture(scope="module")
def answers():
    """Seconds that answers took, by notebook and what was done."""
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
    """A notebook of the course without its stored outputs, run; without demo runs, so that it trains its own."""
    home, name = tmp_path_factory.mktemp(request.param), request.param
    folder = home / "notebooks"
    folder.mkdir()
    book, _ = ClearOutputPreprocessor().preprocess(nbformat.read(notebooks.FOLDER / f"{name}.ipynb", 4), {})
    nbformat.write(book, folder / f"{name}.ipynb")
    with (
        browser.jupyterlab(folder, home / "lab", PCKD_RUNS=str(home / "none"), PCKD_DATA=str(home / "data")) as address,
        browser.opened_notebook(chromium, address, f"{name}.ipynb") as (page, wrong),
    ):
        limit, started = time_limit(NOTEBOOK_SECONDS, own_process=True), time.monotonic()
        browser.run_all(page)
        book = Book(name, page, wrong, time.monotonic() - started, limit)
        browser.screenshot_notebook(page, OUT / f"{name}.png")
        if name in WIDGETS:
            book.shoot("widget")
        yield book
        if name in WIDGETS:
            book.shoot("widget_left")


@pytest.fixture
def book(opened):
    yield opened
    assert not opened.wrong


@pytest.fixture
def timed(book, answers, capsys):
    """Do something to a widget several times, and note how long it took to answer."""
    limit = time_limit(SECONDS, own_process=True)

    def time_it(what, acts):
        seconds = [seconds_to_answer(book.page, book.widget, act) for act in acts]
        book.page.wait_for_function(browser.READY)  # the kernel is idle: the sentence, sent after the picture, is there
        answers[book.name][what] = [round(value, 3) for value in seconds]
        with capsys.disabled():
            print(f"\n{book.name}, {what}: {median(seconds):.2f} s", end="")
        assert median(seconds) < limit

    return time_it


# Of a closed list JupyterLab takes the arrow keys for itself, and goes to the next cell.
NEXT = ("Space", "ArrowDown", "Enter")


def in_notebook(*names):
    return pytest.mark.parametrize("opened", names, indirect=True)


def settled(book):
    """The widget's sentence, once it has stopped changing."""
    before = None
    while before != (before := book.sentence):
        book.page.wait_for_timeout(1000 * SECONDS)
    return before


@in_notebook(START, *WIDGETS)
def test_every_cell_runs(book):
    cells = code_cells(book.page)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert book.seconds < book.limit


@in_notebook(START, *WIDGETS)
def test_every_picture_is_there_and_says_what_it_shows(book):
    drawn = [out for cell in code_cells(book.page) for out in cell["outputs"] if "image/png" in out.get("data", {})]
    pictures = book.page.locator(".jp-OutputArea-output img").all()
    assert len(pictures) >= len(drawn) >= 4
    for picture in pictures:
        assert picture.evaluate("async image => { await image.decode(); return image.naturalWidth; }") >= 28
    # JupyterLab draws the image/png of an output itself, and leaves out its alternative text: what is ours has one
    ours = book.page.locator(".jp-OutputArea-output img:not(.jp-RenderedImage img)").all()
    assert all(len(picture.get_attribute("alt")) > 15 for picture in ours)
    assert bool(ours) == (book.name in WIDGETS)


@in_notebook(*WIDGETS)
def test_every_control_has_a_label_in_sight_and_tab_reaches_it(book):
    found = controls(book.widget)
    assert len(found) >= 2
    assert not [one for one in found if not one["label"] or one["cut"] or one["cutOptions"] or one["empty"]]
    labels = [control["label"] for control in found]
    stops = tab_stops(book.page, book.widget)
    assert [stop for place, stop in enumerate(stops) if stop not in stops[:place]] == labels


@in_notebook(CONTRAST, SWEEPS)
def test_the_picture_follows_every_control(book, timed):
    seen = {pixels(book.picture)}
    for control in controls(book.widget):
        of_list = book.control(control["label"]).locator("select")
        is_list = of_list.count() > 0
        (of_list if is_list else book.control(control["label"]).locator(".noUi-handle")).focus()
        timed(control["label"], [lambda keys=NEXT if is_list else ("ArrowLeft",): book.press(*keys)])
        assert pixels(book.picture) not in seen
        seen.add(pixels(book.picture))


@in_notebook(PREVIEW)
def test_the_threshold_follows_its_slider_by_keyboard(book, timed):
    slider = book.control("ε")
    readout, before = slider.locator(".widget-readout"), pixels(book.picture)
    began = float(readout.inner_text())
    slider.locator(".noUi-handle").focus()
    timed("ε, arrow keys", [lambda: book.press("ArrowRight")] * 5)
    assert began < float(readout.inner_text()) == pytest.approx(shown_epsilon(book), abs=1e-3)
    assert pixels(book.picture) != before
    book.press(*["ArrowLeft"] * 12)  # as a key held down: what counts is where it ends
    settled(book)
    assert began > float(readout.inner_text()) == pytest.approx(shown_epsilon(book), abs=1e-3)


def shown_epsilon(book):
    return float(re.search(r"ε = ([\d.]+)", settled(book))[1])


@in_notebook(PREVIEW)
def test_strategy_and_epoch_follow_the_keyboard(book, timed):
    seen = {pixels(book.picture)}
    book.control("strategy").locator("select").focus()
    for strategy in ("uniform", "constant", "curriculum", "focal"):
        timed(f"strategy {strategy}", [lambda: book.press(*NEXT)])
        assert f"strategy {strategy}:" in book.sentence
        seen.add(pixels(book.picture))
    book.control("epoch").locator(".noUi-handle").focus()
    timed("epoch", [lambda: book.press("Home")])
    assert book.sentence.startswith("Epoch 1 of 10,")
    assert len(seen | {pixels(book.picture)}) == 6


@in_notebook(CENTERS)
def test_a_category_and_one_of_its_images_are_found_on_the_map(book, timed):
    seen = {pixels(book.picture)}
    book.control("category").locator("select").focus()
    timed("category", [lambda: book.press(*NEXT)] * 3)
    category = chosen(book.control("category").locator("select"))
    assert f"Marked: the center of {category}." in book.sentence
    seen.add(pixels(book.picture))

    images = book.control("show").locator("select")
    timed("image, chosen", [lambda: images.select_option(index=1)])
    of_first = book.sentence
    assert re.search(rf"Marked: test image \d+, {category}, predicted as ", of_first)
    seen.add(pixels(book.picture))
    images.focus()
    timed("image, keys", [lambda: book.press(*NEXT)])
    of_second = book.sentence
    assert of_second != of_first
    seen.add(pixels(book.picture))

    book.control("perplexity").locator("select").focus()
    timed("perplexity", [lambda: book.press(*NEXT)])
    assert book.sentence != of_second and nearest(book.sentence) == nearest(of_second)
    assert len(seen | {pixels(book.picture)}) == 5


def nearest(sentence):
    return sentence.partition("Nearest centers by cosine in the full space:")[2]


@in_notebook(DIFFICULTY)
def test_a_thumbnail_shows_its_trajectory_by_click_and_by_key(book, timed):
    seen = {pixels(book.picture)}
    thumbnails = book.widget.locator("button:visible")
    for place, act in ((1, "click"), (2, "Enter"), (3, "Space")):
        thumbnail = thumbnails.nth(place)
        if act == "click":
            timed("thumbnail, click", [thumbnail.click])
        else:
            book.press("Tab")
            timed(f"thumbnail, {act}", [lambda act=act: book.press(act)])
        sample = re.match(r"sample (\d+):", thumbnail.inner_text())[1]
        assert re.search(rf"\b{sample}\b", book.sentence)
        seen.add(pixels(book.picture))
    assert len(seen) == 4


@in_notebook(DIFFICULTY)
def test_pages_are_turned_by_keyboard(book, timed):
    thumbnails, words = book.widget.locator("button:visible"), book.widget.get_by_role("status").first
    first = thumbnails.all_inner_texts(), [pixels(image) for image in book.widget.locator("img:visible").all()[:-1]]
    assert words.inner_text().startswith("Images 1 to 12 of ")
    book.control("page").locator("select").focus()
    timed("page", [lambda: book.press(*NEXT)])
    second = thumbnails.all_inner_texts(), [pixels(image) for image in book.widget.locator("img:visible").all()[:-1]]
    assert words.inner_text().startswith("Images 13 to 24 of ")
    assert [len(part) for part in (*first, *second)] == [12] * 4
    assert not set(first[0]) & set(second[0]) and not set(first[1]) & set(second[1])


@in_notebook(DIFFICULTY)
def test_one_category_is_chosen_and_all_are_again(book, timed):
    category, words = book.control("category").locator("select"), book.widget.get_by_role("status").first
    everything = chosen(category)
    category.focus()
    timed("category", [lambda: book.press(*NEXT)])
    assert f" of {chosen(category).rpartition(' (')[0]} in the gallery, " in words.inner_text()
    timed("all categories", [lambda: book.press("Home")])
    assert chosen(category) == everything and " of the 100 training images in the gallery, " in words.inner_text()


def chosen(list_):
    """What a list says is chosen in it."""
    return list_.evaluate("list => list.selectedOptions[0]?.text ?? ''").replace("\xa0", " ")


# The helpers themselves.

WRONG = """
import ipywidgets
from IPython.display import HTML, Javascript
button = ipywidgets.Button(description="press")
button.on_click(lambda _: 1 / 0)
display(button, HTML("<img alt='' src='http://example.org/picture.png'>"), Javascript("console.error('said so')"))
"""
# Stands in for jupyterlab, and does not end when asked.
STUBBORN = """
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


def test_what_goes_wrong_in_a_notebook_is_seen(chromium, tmp_path):
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
    while listens(port) and time.monotonic() < until:
        time.sleep(0.2)
    assert not listens(port)


def test_a_server_that_does_not_end_says_where_it_hangs_and_leaves(tmp_path):
    (tmp_path / "jupyterlab").mkdir()
    (tmp_path / "jupyterlab" / "__init__.py").touch()
    (tmp_path / "jupyterlab" / "labapp.py").write_text(STUBBORN)
    code = browser.SERVER.replace(f"later({browser.END_SECONDS},", "later(1,")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes, text=True, env=environment) as server:
        assert server.stdout.readline() == "ready\n"
        _, log = server.communicate(timeout=browser.WAIT_SECONDS)
    assert server.returncode == 1 and "in main" in log


def test_a_server_exits_without_waiting_for_threads_of_libraries(tmp_path):
    """As a thread that never ends keeps Python from exiting, after main() is over."""
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


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize("needed, outcome", [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_without_a_browser_tests_are_skipped_unless_one_is_needed(needed, outcome, monkeypatch):
    monkeypatch.setenv("PCKD_NEED_BROWSER", needed)
    monkeypatch.setattr(browser, "find_chromium", lambda: None)
    with pytest.raises(outcome, match="apt-get install chromium"):
        browser.required_chromium()
