"""Run Chromium and JupyterLab in tests.

    find_chromium()              its path, or None
    chromium(home)               a Playwright Browser; without Chromium the test is skipped or fails
    watched_page(browser)        a page, and a list of the errors that occur in it
    jupyterlab(folder, home)     JupyterLab on a folder of notebooks; their kernel is this Python interpreter
    opened_notebook(browser, …)  a page with one of these notebooks
    run_all, find_cell, …        actions on this page

Use the context managers in a `with` statement. They stop what they started when it ends, even after a failing test or
Ctrl-C. Nothing connects to another host than 127.0.0.1, and all files are written below `home`.
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

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Chromium resolves no host names and uses no proxy, so that its background requests do not leave this machine, either.
CHROMIUM_OPTIONS = (
    "--disable-gpu",
    "--disable-background-networking",
    "--no-proxy-server",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
WINDOW_SIZE = {"width": 1500, "height": 1000}  # pixels
START_SECONDS = 600  # time limit for a server or page to start, on a busy machine
CELLS_SECONDS = 1500  # time limit for all cells of a notebook
WAIT_SECONDS = 300  # time limit for everything else
# Messages of the kernel when JupyterLab asks for widgets before there are any, or for a progress bar that has closed.
HARMLESS = re.compile(r"kernel: (No such comm(: [\w-]+| target registered: jupyter\.widget\.control)\s*)+")
MAX_SCREENSHOT_HEIGHT = 16_000  # pixels; Chromium draws no more

END_SECONDS = 60  # time for a server to stop its kernels and exit; in about 1 of 100 runs JupyterLab hangs instead
# A JupyterLab that exits when its standard input is closed, so that no server is left after the test run, even if that
# is killed. If it hangs while it stops, it writes its stack to the log and exits. Its kernels then exit by themselves.
# The last line skips Python's own clean-up, which can hang in a library's threads, where faulthandler does not see it.
SERVER = f"""
import faulthandler, os, signal, sys, threading
from jupyterlab.labapp import main
def stop_when_stdin_closes():
    sys.stdin.read()
    faulthandler.dump_traceback_later({END_SECONDS}, exit=True)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=stop_when_stdin_closes, daemon=True).start()
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
    """Return the path of Chromium or Chrome: the system's, or else the one that Playwright installed."""
    found = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if found is None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            own = playwright.chromium.executable_path
        found = own if Path(own).is_file() else None
    return found


def required_chromium() -> str:
    """Return the path of Chromium. Without it or Playwright, skip the test, or fail it if PCKD_NEED_BROWSER is set."""
    try:
        found = find_chromium()
        missing = "Chromium: apt-get install chromium, or python -m playwright install chromium"
    except ModuleNotFoundError:
        found, missing = None, "Playwright: pip install playwright"
    if found is None:
        skip_or_fail = pytest.fail if os.environ.get("PCKD_NEED_BROWSER") else pytest.skip
        skip_or_fail(f"this test needs {missing}")
    return found


@contextmanager
def chromium(home: Path) -> Iterator[Any]:
    """Yield a Playwright Browser with its own home folder. Skips or fails the test like `required_chromium`."""
    path = required_chromium()
    from playwright.sync_api import sync_playwright

    home.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=list(CHROMIUM_OPTIONS), env={**os.environ, "HOME": str(home)}
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_page(browser: Any, viewport: dict[str, int] = WINDOW_SIZE) -> Iterator[tuple[Any, list[str]]]:
    """Yield a page in a new browser context, and a list that collects its errors.

    Errors are: console and script errors, HTTP error codes, and requests to another host than 127.0.0.1.
    """
    context = browser.new_context(viewport=viewport)
    context.set_default_timeout(1000 * WAIT_SECONDS)
    page, wrong = context.new_page(), []

    def check_host(url: str) -> None:
        if not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|(data|blob|about):", url):
            wrong.append(f"asked another host: {url[:200]}")

    def check_console(message: Any) -> None:
        if message.type == "error" and not HARMLESS.fullmatch(message.text):
            wrong.append(f"console: {message.text} ({message.location.get('url', '')})")

    page.on("request", lambda request: check_host(request.url))
    page.on("websocket", lambda socket: check_host(socket.url))
    page.on("console", check_console)
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    page.on("response", lambda answer: answer.status >= 400 and wrong.append(f"{answer.status}: {answer.url}"))
    try:
        yield page, wrong
    finally:
        context.close()


@contextmanager
def jupyterlab(folder: Path, home: Path, options: Sequence[str] = (), **environment: str) -> Iterator[str]:
    """Start JupyterLab on the notebooks in `folder`, which it may change. Yield its address, with {} for the notebook.

    Its python3 kernel is this interpreter.
    options: more command-line options. environment: environment variables for the server and its kernels.
    """
    config, data = home / "config", home / "data"
    write_kernel_spec(data / "kernels" / "python3")
    _write_json(
        config / "labconfig" / "page_config.json",
        {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
    )
    folders = {
        "HOME": home,
        "JUPYTER_CONFIG_DIR": config,
        "JUPYTER_DATA_DIR": data,
        "JUPYTER_PATH": data,  # takes precedence over kernels of the system
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
                **{key: str(path) for key, path in folders.items()},
                "JUPYTER_TOKEN": token,
                **environment,
            },
            cwd=folder,
            start_new_session=True,  # Ctrl-C goes only to the test, which then stops the server
        )
    try:
        _wait_for_server(f"http://127.0.0.1:{port}/api/status?token={token}", server, log)
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"
    finally:
        server.stdin.close()  # the server stops its kernels, then itself
        wait_for_exit(server, log)


def wait_for_exit(server: subprocess.Popen, log: Path, seconds: float = 2 * END_SECONDS) -> None:
    """Wait until a server has exited. Kill it after `seconds`, and warn with the end of its log.

    A JupyterLab that hangs while it stops is no error of the tested notebook, so it fails no test.
    """
    try:
        server.wait(seconds)
    except subprocess.TimeoutExpired:
        text = log.read_text("utf-8", "replace")[-2000:]
        warnings.warn(f"JupyterLab did not exit within {seconds:.0f} s and was killed. Its log: {text}", stacklevel=2)
    finally:
        server.kill()
        server.wait()


@contextmanager
def opened_notebook(browser: Any, address: str, name: str) -> Iterator[tuple[Any, list[str]]]:
    """Yield the page of a notebook with its kernel ready, and a list of errors, like `watched_page`.

    The list also collects errors and stderr output of the kernel, even if no cell shows them.
    """
    with watched_page(browser) as (page, wrong):
        page.goto(address.format(name), wait_until="domcontentloaded", timeout=1000 * START_SECONDS)
        page.wait_for_function(READY, timeout=1000 * START_SECONDS)
        page.evaluate(LISTEN)
        yield page, wrong


# A notebook whose kernel is not ready would open a dialog when it is run, and wait forever.
READY = """() => {
    const session = window.jupyterapp?.shell.currentWidget?.sessionContext;
    return session?.isReady && session.session?.kernel?.status === "idle";
}"""
# No cell shows an exception in a widget's callback.
LISTEN = """() => jupyterapp.shell.currentWidget.sessionContext.iopubMessage.connect((_, { header, content }) => {
    if (header.msg_type === "error") console.error(`kernel: ${content.ename}: ${content.evalue}`);
    if (header.msg_type === "stream" && content.name === "stderr") console.error(`kernel: ${content.text}`);
})"""


def run_all(page: Any) -> None:
    """Run all cells and wait until the last one is done."""
    page.evaluate(
        """() => {
            window.ran = false;
            jupyterapp.commands.execute("notebook:run-all-cells").finally(() => { window.ran = true; });
        }"""
    )
    page.wait_for_function("window.ran", timeout=1000 * CELLS_SECONDS)


def code_cells(page: Any) -> list[dict[str, Any]]:
    """Return the current code cells in the notebook format, each with its `place` among all cells."""
    cells = page.evaluate("() => [...jupyterapp.shell.currentWidget.content.model.cells].map(cell => cell.toJSON())")
    return [{**cell, "place": place} for place, cell in enumerate(cells) if cell["cell_type"] == "code"]


def find_cell(page: Any, words: str) -> Any:
    """Return the first code cell whose source contains `words`, after scrolling to it."""
    place = next(cell["place"] for cell in code_cells(page) if words in "".join(cell["source"]))
    page.evaluate("place => jupyterapp.shell.currentWidget.content.scrollToItem(place, 'start')", place)
    return page.locator(f'.jp-Notebook-cell[data-windowed-list-index="{place}"]')


def screenshot_notebook(page: Any, path: Path) -> None:
    """Save a screenshot of the whole notebook, in a window as high as the notebook."""
    for _ in range(3):  # cells that were never visible have no height yet
        page.evaluate("jupyterapp.shell.currentWidget.content.scrollToItem(0, 'start')")
        bottom = page.locator(".jp-Notebook-cell").last.evaluate("cell => cell.getBoundingClientRect().bottom")
        page.set_viewport_size(
            {**WINDOW_SIZE, "height": min(MAX_SCREENSHOT_HEIGHT, max(WINDOW_SIZE["height"], round(bottom) + 100))}
        )
        page.wait_for_timeout(500)
    page.screenshot(path=path, timeout=1000 * START_SECONDS)
    page.set_viewport_size(WINDOW_SIZE)


def pixels(picture: Any) -> str:
    """Return the decoded pixels of a picture (a locator) as a data URL."""
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
    """Return the seconds from the last key or button that `act()` presses until the widget shows a new picture.

    Only the last picture of the widget counts. Raises TimeoutError if it does not change.
    """
    widget.evaluate(
        """widget => {
            const last = () => [...widget.querySelectorAll("img")].at(-1);
            const before = last().src;
            let begun = null;
            window.answered = null;
            for (const event of ["keydown", "mousedown", "change"])  // an open list hides its key events
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
    """Return the inputs and buttons of a widget in order, one dictionary each.

    label: its text, or "" if it is not visible. cut: whether the label is cut off. cutOptions: the options of a list
    whose text is cut off. empty: whether no option is chosen.
    """
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
    """Return the labels of the controls that the Tab key visits, from the first until it leaves the widget."""
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
    session.trust_env = False  # no proxy for a server on this machine
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
