"""A real browser for tests: Chromium found, opened and watched, and JupyterLab for it to open.

    find_chromium()            its path, or None
    chromium(home)             a Playwright Browser; the test is skipped, or fails, where there is none
    watched(browser)           a page, with a list of all that went wrong in it
    lab(folder, home)          JupyterLab on a folder of notebooks, with this interpreter as their kernel
    opened(browser, …)         one of the notebooks in it
    run_all, cell_with, …      what can be done on its page

What a `with` has started is stopped when it ends, also by a failing test or Ctrl-C. Nothing leaves 127.0.0.1, and all
that is written goes below `home`.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import requests
from ipykernel.kernelspec import write_kernel_spec

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Chromium resolves no name at all and asks no proxy, so that not even what it does by itself leaves the machine.
CHROMIUM = (
    "--disable-gpu",
    "--disable-background-networking",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WIDE = {"width": 1500, "height": 1000}  # pixels of a window
START_SECONDS = 600  # for a server or a page to be there, on a machine that has other things to do
CELLS_SECONDS = 1500  # for all cells of a notebook
WAIT_SECONDS = 300  # for anything else
# What the kernel says when JupyterLab asks it for widgets before it has any, or for a progress bar that has closed.
HARMLESS = re.compile(r"kernel: (No such comm(: [\w-]+| target registered: jupyter\.widget\.control)\s*)+")
TALLEST = 16_000  # pixels of a screenshot: Chromium draws no more

END_SECONDS = 60  # for a server to stop its kernels and exit. About once in a hundred runs JupyterLab hangs instead
# JupyterLab that exits once its standard input is closed, so that no server outlives the test run, however that ends.
# If it hangs while it stops, it writes its stack to the log and exits. Its kernels then exit by themselves. The last
# line skips Python's own clean-up, which can hang in the threads of a library where faulthandler no longer sees it.
SERVER = f"""
import faulthandler, os, signal, sys, threading
from jupyterlab.labapp import main
def follow():
    sys.stdin.read()
    faulthandler.dump_traceback_later({END_SECONDS}, exit=True)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=follow, daemon=True).start()
status = 1
try:
    status = main() or 0
except SystemExit as end:
    status = end.code if isinstance(end.code, int) else int(bool(end.code))
finally:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
"""


def find_chromium() -> str | None:
    """The path of Chromium or Chrome, the machine's own or else the one that Playwright has installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            own = playwright.chromium.executable_path
        found = own if Path(own).is_file() else None
    return found


def required_chromium() -> str:
    """`find_chromium`; where it or Playwright is missing the test is skipped, or fails if PCKD_NEED_BROWSER is set."""
    try:
        found = find_chromium()
        missing = "Chromium: apt-get install chromium, or python -m playwright install chromium"
    except ModuleNotFoundError:
        found, missing = None, "Playwright: pip install playwright"
    if found is None:
        leave = pytest.fail if os.environ.get("PCKD_NEED_BROWSER") else pytest.skip
        leave(f"this test needs {missing}")
    return found


@contextmanager
def chromium(home: Path) -> Iterator[Any]:
    """A Playwright Browser with its own home folder. Skips or fails as `required_chromium`."""
    path = required_chromium()
    from playwright.sync_api import sync_playwright

    home.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=list(CHROMIUM), env={**os.environ, "HOME": str(home)}
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched(browser: Any, viewport: dict[str, int] = WIDE) -> Iterator[tuple[Any, list[str]]]:
    """A page of its own context, and the list of what goes wrong in it from now on: errors in the console and in
    scripts, answers that are errors, and whatever it asks of another host than 127.0.0.1."""
    context = browser.new_context(viewport=viewport)
    context.set_default_timeout(1000 * WAIT_SECONDS)
    page, wrong = context.new_page(), []

    def asked(url: str) -> None:
        if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|(data|blob|about):", url):
            wrong.append(f"asked another host: {url[:200]}")

    def said(message: Any) -> None:
        if message.type == "error" and not HARMLESS.fullmatch(message.text):
            wrong.append(f"console: {message.text} ({message.location.get('url', '')})")

    page.on("request", lambda request: asked(request.url))
    page.on("websocket", lambda socket: asked(socket.url))
    page.on("console", said)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("response", lambda answer: answer.status >= 400 and wrong.append(f"{answer.status}: {answer.url}"))
    try:
        yield page, wrong
    finally:
        context.close()


@contextmanager
def lab(folder: Path, home: Path, options: Sequence[str] = (), **environment: str) -> Iterator[str]:
    """JupyterLab on the notebooks in `folder`, which it may write to; its address with a {} for a notebook's name.

    Its python3 kernel is this interpreter. options: more of its command line. environment: variables for it and its
    kernels.
    """
    config, data = home / "config", home / "data"
    write_kernel_spec(data / "kernels" / "python3")
    _write_json(
        config / "labconfig" / "page_config.json",
        {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
    )
    places = {
        "HOME": home,
        "JUPYTER_CONFIG_DIR": config,
        "JUPYTER_DATA_DIR": data,
        "JUPYTER_PATH": data,  # before the kernels of the machine
        "JUPYTER_RUNTIME_DIR": home / "runtime",
        "JUPYTERLAB_SETTINGS_DIR": home / "settings",
        "JUPYTERLAB_WORKSPACES_DIR": home / "workspaces",
        "IPYTHONDIR": home / "ipython",
        "MPLCONFIGDIR": home / "matplotlib",
    }
    token = secrets.token_hex(16)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("JUPYTER", "MPL"))}
    settings = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": (port := _free_port()),
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": folder,
        "LabApp.expose_app_in_browser": True,
        "LabApp.extension_manager": "readonly",
    }
    log = home / "lab.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, "--no-browser", "--allow-root"]
            + [*(f"--{name}={value}" for name, value in settings.items()), *options],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            env={
                **inherited,
                **{key: str(path) for key, path in places.items()},
                "JUPYTER_TOKEN": token,
                **environment,
            },
            cwd=folder,
            start_new_session=True,  # Ctrl-C is the test's, which then ends the server
        )
    try:
        _wait_for_server(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"
    finally:
        server.stdin.close()  # the server stops its kernels, then itself
        end(server, log)


def end(server: subprocess.Popen, log: Path, seconds: float = 2 * END_SECONDS) -> None:
    """Wait until a server has exited. Kill it after `seconds`, and warn with the end of its log.

    A JupyterLab that hangs while it stops says nothing about the notebook that was tested, so it fails no test.
    """
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        said = log.read_text("utf-8", "replace")[-2000:]
        warnings.warn(f"JupyterLab did not exit within {seconds:.0f} s and was killed. Its log: {said}", stacklevel=2)
    finally:
        server.kill()
        server.wait()


@contextmanager
def opened(browser: Any, address: str, name: str) -> Iterator[tuple[Any, list[str]]]:
    """A notebook of a `lab`, its kernel ready, as `watched` gives a page. What the kernel has to complain about, also
    where no cell shows it, counts as wrong."""
    with watched(browser) as (page, wrong):
        page.goto(address.format(name), wait_until="domcontentloaded", timeout=1000 * START_SECONDS)
        page.wait_for_function(READY, timeout=1000 * START_SECONDS)
        page.evaluate(LISTEN)
        yield page, wrong


# A notebook without a kernel yet would answer "run" with a question, and wait for ever.
READY = """() => {
    const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
    return session?.isReady && session.session?.kernel?.status === "idle";
}"""
# An exception in what a widget calls reaches no cell.
LISTEN = """() => jupyterapp.shell.currentWidget.sessionContext.iopubMessage.connect((_, { header, content }) => {
    if (header.msg_type === "error") console.error(`kernel: ${content.ename}: ${content.evalue}`);
    if (header.msg_type === "stream" && content.name === "stderr") console.error(`kernel: ${content.text}`);
})"""


def run_all(page: Any) -> None:
    """Run all cells and wait for the last."""
    page.evaluate(
        """() => {
            window.ran = false;
            jupyterapp.commands.execute("notebook:run-all-cells").finally(() => { window.ran = true; });
        }"""
    )
    page.wait_for_function("window.ran", timeout=1000 * CELLS_SECONDS)


def code_cells(page: Any) -> list[dict[str, Any]]:
    """The notebook's code cells as they are now, in the notebook format, each with its `place` among all cells."""
    cells = page.evaluate("() => [...jupyterapp.shell.currentWidget.content.model.cells].map(cell => cell.toJSON())")
    return [{**cell, "place": place} for place, cell in enumerate(cells) if cell["cell_type"] == "code"]


def cell_with(page: Any, words: str) -> Any:
    """The first code cell that has these words in its source, scrolled to."""
    place = next(cell["place"] for cell in code_cells(page) if words in "".join(cell["source"]))
    page.evaluate("place => jupyterapp.shell.currentWidget.content.scrollToItem(place, 'start')", place)
    return page.locator(f'.jp-Notebook-cell[data-windowed-list-index="{place}"]')


def shoot_all(page: Any, path: Path) -> None:
    """A picture of the whole notebook: the window is made as high as it for that."""
    for _ in range(3):  # what was never in sight has no height yet
        page.evaluate("jupyterapp.shell.currentWidget.content.scrollToItem(0, 'start')")
        bottom = page.locator(".jp-Notebook-cell").last.evaluate("cell => cell.getBoundingClientRect().bottom")
        page.set_viewport_size({**WIDE, "height": min(TALLEST, max(WIDE["height"], round(bottom) + 100))})
        page.wait_for_timeout(500)
    page.screenshot(path=path, timeout=1000 * START_SECONDS)
    page.set_viewport_size(WIDE)


def pixels(picture: Any) -> str:
    """What a picture (a locator) shows, as the browser has decoded it."""
    return picture.evaluate(
        """async image => {
            await image.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            canvas.getContext("2d").drawImage(image, 0, 0);
            return canvas.toDataURL();
        }"""
    )


def seconds_to_answer(page: Any, widget: Any, act: Callable[[], None]) -> float:
    """From the last key or button that `act()` presses to the frame in which another picture stands in the widget,
    where its last one did. A TimeoutError if none comes."""
    widget.evaluate(
        """widget => {
            const last = () => [...widget.querySelectorAll("img")].at(-1);
            const before = last().src;
            let begun = null;
            window.answered = null;
            for (const event of ["keydown", "mousedown", "change"])  // an open list keeps its keys to itself
                document.addEventListener(event, () => { begun = performance.now(); }, { capture: true });
            const observer = new MutationObserver(async () => {
                const picture = last();
                if (!picture || picture.src === before) return;
                observer.disconnect();
                await picture.decode();
                requestAnimationFrame(() => { window.answered = performance.now() - begun; });
            });
            observer.observe(widget, { subtree: true, childList: true, attributes: true, attributeFilter: ["src"] });
        }"""
    )
    act()
    page.wait_for_function("window.answered !== null", timeout=1000 * WAIT_SECONDS)
    return page.evaluate("window.answered") / 1000


def controls(widget: Any) -> list[dict[str, Any]]:
    """What can be set or pressed in a widget, in order: its label if that is in sight; whether the label is cut off;
    which of the texts to choose from are; whether none of them is chosen."""
    return widget.evaluate(
        """widget => {
            const brush = document.createElement("canvas").getContext("2d");
            const wide = (text, element) => {
                const look = getComputedStyle(element);
                brush.font = `${look.fontWeight} ${look.fontSize} ${look.fontFamily}`;
                return brush.measureText(text).width;
            };
            const found = [...widget.querySelectorAll(".widget-inline-hbox:not(.widget-html), button")];
            return found.filter(control => control.checkVisibility()).map(control => {
                const label = control.matches("button") ? control : control.querySelector(".widget-label");
                const shown = label?.checkVisibility() && label.getBoundingClientRect().width > 0;
                const list = control.querySelector("select"), look = list && getComputedStyle(list);
                const room = list && list.clientWidth - parseFloat(look.paddingLeft) - parseFloat(look.paddingRight);
                const options = [...(list?.options ?? [])].filter(option => wide(option.text, list) > room);
                return {
                    label: shown ? label.innerText.trim() : "",
                    cut: Boolean(shown && label.scrollWidth > label.clientWidth),
                    cutOptions: options.map(option => option.text),
                    empty: list?.selectedIndex === -1,
                };
            });
        }"""
    )


def tab_stops(page: Any, widget: Any) -> list[str]:
    """Labels of the controls of a widget that Tab goes through, from its first until it leaves the widget."""
    widget.locator(FOCUSABLE).first.focus()
    stops = []
    while stop := widget.evaluate(FOCUSED):
        stops.append(stop)
        page.keyboard.press("Tab")
    return stops


FOCUSABLE = "[tabindex='0'], select, button"
FOCUSED = """widget => {
    const focused = document.activeElement;
    if (!widget.contains(focused)) return null;
    const control = focused.closest("button, .widget-inline-hbox");
    return (control.matches("button") ? control : control.querySelector(".widget-label")).innerText.trim();
}"""


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait_for_server(status: str, server: subprocess.Popen, log: Path) -> None:
    session = requests.Session()
    session.trust_env = False  # no proxy between two ends of one machine
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with suppress(requests.RequestException):
            if session.get(status, timeout=WAIT_SECONDS).ok:
                return
        time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
