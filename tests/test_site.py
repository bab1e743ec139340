"""The site that `make site` builds: complete, without warnings or requests to other hosts, and readable."""

import functools
import http.server
import importlib.util
import io
import re
import subprocess
import sys
import threading
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import typer

import pckd_nb
from pckd_nb.cli import app
from pckd_nb.figures.collection import FIGURES

from .test_packaging import FLOORS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KINDS = (
    "index.html", "notebooks/04_category_center_contrast.html", "notebooks/05_preview.html", "api/index.html",
    "api/losses.html", "api/runs.html", "api/internals/training.trainer.html", "code_tour.html", "CONTRIBUTING.html",
    "renamed.html", "figures.html", "commands.html", "cluster.html", "scaling.html", "README.html", "results.html",
    "benchmarks/report.html", "search.html", "leaderboard.html",
)  # fmt: skip
MATH = {
    "index.html",
    "README.html",
    "results.html",
    "scaling.html",
    "notebooks/04_category_center_contrast.html",
    "notebooks/05_preview.html",
}
PHONE = {"width": 390, "height": 844}

slow = [pytest.mark.slow, pytest.mark.alone]  # all tests share one build and one browser


def load_docs_module(name: str):
    """Import a file of docs/, which is not a package."""
    pytest.importorskip("sphinx", reason='the site needs pip install -e ".[site]"')
    if str(ROOT / "docs") not in sys.path:
        sys.path.insert(0, str(ROOT / "docs"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """A page of the site, with its elements, their attributes, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.elements, self.folded, self._open = path, [], [], []
        self.feed(path.read_text("utf-8"))
        self.anchors = {attrs[key] for _, attrs in self.elements for key in ("id", "name") if key in attrs}

    def handle_starttag(self, tag, pairs):
        attrs = {name: value or "" for name, value in pairs}
        self.elements.append((tag, attrs))
        if tag == "details":
            self._open.append(tag)
        elif self._open:
            self.folded.append((tag, attrs))

    def handle_endtag(self, tag):
        if tag == "details":
            self._open.pop()

    def all(self, tag: str, *classes: str) -> list[dict[str, str]]:
        return [attrs for found, attrs in self.elements if found == tag and has_classes(attrs, *classes)]


def has_classes(attrs: dict[str, str], *classes: str) -> bool:
    return set(classes) <= set(attrs.get("class", "").split())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder of the site and the finished build process."""
    load_docs_module("api")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "make_site.py", "--out", out], capture_output=True, text=True, cwd=out
    )
    assert done.returncode == 0, done.stderr[-8000:]
    return out, done


@pytest.fixture(scope="module")
def pages(built) -> dict[str, Page]:
    """Address → page."""
    html = built[0] / "html"
    found = {
        path.relative_to(html).as_posix(): Page(path) for path in html.rglob("*.html") if "_static" not in path.parts
    }
    assert set(KINDS) <= found.keys()
    return found


class TestBuilt:
    pytestmark = slow

    def test_the_build_gives_no_warnings(self, built):
        _, done = built
        assert not re.search("warning|error|critical", done.stderr, re.I), done.stderr

    def test_every_link_has_a_target(self, built, pages):
        html, wrong = built[0] / "html", []
        for name, page in pages.items():
            for link in page.all("a"):
                target = urlsplit(link.get("href", "#"))
                if target.scheme or target.netloc:
                    assert target.scheme in ("https", "http", "mailto"), link
                    continue
                file = (page.path.parent / unquote(target.path)).resolve() if target.path else page.path
                there = pages.get(file.relative_to(html).as_posix())
                anchor = unquote(target.fragment)
                if not file.is_file() or there and anchor and anchor not in there.anchors:
                    wrong.append((name, link["href"]))
        assert not wrong

    def test_scripts_styles_and_images_are_local(self, built, pages):
        wrong = []
        for name, page in pages.items():
            parts = [attrs["src"] for tag, attrs in page.elements if tag != "a" and attrs.get("src")]
            parts += [attrs["href"] for attrs in page.all("link")]
            for part in parts:
                address = urlsplit(part)
                if address.scheme == "data" or part == "#":
                    continue
                file = page.path.parent / unquote(address.path)
                if address.scheme or address.netloc or not file.is_file():
                    wrong.append((name, part))
        for sheet in (built[0] / "html").rglob("*.css"):
            text = re.sub(r"/\*.*?\*/", "", sheet.read_text("utf-8"), flags=re.S)
            far = re.findall(r"url\([\"']?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*", text)
            wrong += [(sheet.name, found) for found in far]
        assert not wrong

    def test_every_image_has_alternative_text(self, pages):
        pictures = [(name, picture) for name, page in pages.items() for picture in page.all("img")]
        assert len(pictures) > len(NOTEBOOKS) + len(FIGURES)
        for name, picture in pictures:
            words = picture.get("alt", "")
            assert len(words) > 20 and "<Figure" not in words and "<Drawing" not in words, (name, picture)

    @pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
    def test_a_notebook_has_a_page_with_its_pictures(self, notebook, pages):
        book, page = nbformat.read(notebook, as_version=4), pages[f"notebooks/{notebook.stem}.html"]
        cells = [cell for cell in book.cells if cell.cell_type == "code"]
        stored = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
        own = [picture for picture in page.all("img") if not picture["src"].startswith("data:")]
        assert len(own) == len(stored) > 0
        assert len(page.all("div", "cell")) == len(cells)
        assert not [attrs for attrs in page.all("script") if "widget" in attrs.get("type", "")]

    @pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
    def test_solutions_are_folded_exercises_and_checks_are_not(self, notebook, pages):
        book, page = nbformat.read(notebook, as_version=4), pages[f"notebooks/{notebook.stem}.html"]
        tags = [tag for cell in book.cells for tag in cell.metadata.get("tags", [])]
        for tag in ("solution", "exercise", "check"):
            assert len(page.all("div", "cell", f"tag_{tag}")) == tags.count(tag)
        inputs = [attrs for tag, attrs in page.folded if tag == "div" and has_classes(attrs, "cell_input")]
        # besides solutions, only the first cell is folded, which installs the package
        assert len(inputs) == tags.count("solution") + 1 and tags.count("hide-input") == 1
        assert len(page.all("div", "cell", "tag_solution", "tag_hide-cell")) == tags.count("solution")
        assert not [attrs for attrs in page.all("div", "cell", "tag_exercise") if has_classes(attrs, "tag_hide-cell")]

    def test_every_function_and_class_has_an_entry(self, built):
        api = load_docs_module("api")
        *_, packed = (built[0] / "html" / "objects.inv").read_bytes().split(b"\n", 4)
        entries = {line.split(" py:")[0] for line in zlib.decompress(packed).decode().splitlines() if " py:" in line}
        assert len(api.documented()) > 300 and set(api.documented().values()) <= entries

    def test_distill_is_two_clicks_away(self, pages):
        """The first page links to the API index, which links to the function."""
        assert [attrs for attrs in pages["index.html"].all("a") if attrs.get("href") == "api/index.html"]
        name = "training.html#pckd_nb.training.distill"
        assert [attrs for attrs in pages["api/index.html"].all("a") if attrs.get("href") == name]
        assert "pckd_nb.training.distill" in pages["api/training.html"].anchors

    def test_entries_have_links_to_their_source(self, pages):
        for name in ("api/losses.html", "api/internals/training.trainer.html"):
            assert pages[name].all("a", "viewcode-link") or pages[name].all("span", "viewcode-link")

    def test_every_function_of_the_code_tour_is_a_link(self, pages):
        links = [attrs["href"] for attrs in pages["code_tour.html"].all("a") if "#pckd_nb." in attrs.get("href", "")]
        assert len(links) >= 25

    def test_the_gallery_shows_every_figure_with_its_caption(self, built, pages):
        drawn = {path.name: path.read_bytes() for path in (built[0] / "source" / "figures").glob("*.png")}
        assert {f"{name}.png" for name in FIGURES} <= drawn.keys()
        page = pages["figures.html"]
        shown = [(page.path.parent / picture["src"]).read_bytes() for picture in page.all("img")]
        assert sorted(shown) == sorted(drawn.values())
        assert len(page.all("figcaption")) == len(drawn)

    def test_every_command_is_explained(self, built, pages):
        text = pages["commands.html"].path.read_text("utf-8")
        for command in typer.main.get_command(app).commands:
            assert f'id="pckd-nb-{command}"' in text


@pytest.fixture(scope="module")
def address(built):
    """The address of the site on a local server."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=built[0] / "html")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from .browser import chromium

    with chromium(tmp_path_factory.mktemp("home")) as opened:
        yield opened


class TestInABrowser:
    pytestmark = slow

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_page_is_complete_and_fits_a_phone(self, kind, browser, address):
        from .browser import watched_page

        with watched_page(browser) as (page, wrong):
            page.goto(address + kind, wait_until="networkidle")
            equations = page.locator(".math").count()
            page.wait_for_function("n => document.querySelectorAll('.math mjx-container').length >= n", arg=equations)
            assert page.locator("mjx-merror").count() == 0
            assert equations or kind not in MATH
            broken = page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)")
            assert not broken
            page.set_viewport_size(PHONE)
            page.wait_for_timeout(500)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
            beyond = page.evaluate(
                """width => [...document.querySelectorAll("article *, .bd-search-container *")].filter(e => {
                    if (!e.checkVisibility() || e.getBoundingClientRect().right <= width + 1) return false;
                    for (let p = e.parentElement; !p.matches("article, .bd-search-container"); p = p.parentElement)
                        if (getComputedStyle(p).overflowX !== "visible") return false;  // scrolls by itself
                    return true;
                }).map(e => e.outerHTML.slice(0, 200))""",
                PHONE["width"],
            )
            assert not beyond
            skewed = page.evaluate(
                """() => [...document.images].filter(i => i.checkVisibility()).filter(i => {
                    const look = getComputedStyle(i), pad = 2 * parseFloat(look.paddingLeft);
                    const [width, height] = [i.clientWidth - pad, i.clientHeight - pad];
                    return !(Math.abs(width / height * i.naturalHeight / i.naturalWidth - 1) <= 0.03);
                }).map(i => [i.alt, i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight])"""
            )
            assert not skewed
            assert not wrong

    def test_a_search_for_preview_finds_its_notebook(self, browser, address):
        from .browser import watched_page

        with watched_page(browser) as (page, wrong):
            page.goto(address, wait_until="networkidle")
            page.locator(".search-button-field:visible").click()
            field = page.locator("#pst-search-dialog input")
            field.wait_for()
            field.press_sequentially("preview")
            field.press("Enter")
            found = page.locator("#search-results li", has=page.locator("[href*='notebooks/05_preview.html']")).first
            words = found.locator(".context")
            words.wait_for()
            assert "System Settings" not in words.inner_text()  # the theme's button
            assert not wrong

    @pytest.mark.parametrize("kind", ["notebooks/05_preview.html", "figures.html"])
    def test_figures_are_readable_in_dark_mode(self, kind, browser, address):
        from PIL import Image

        from .browser import watched_page

        with watched_page(browser) as (page, wrong):
            page.goto(address + kind, wait_until="networkidle")
            page.locator(".theme-switch-button:visible").click()
            page.locator(".theme-change-button[data-mode=dark]:visible").click()
            assert page.evaluate("document.documentElement.dataset.theme") == "dark"
            ground = page.evaluate("getComputedStyle(document.querySelector('.bd-main, body')).backgroundColor")
            assert max(map(int, re.findall(r"\d+", ground)[:3])) < 80
            pictures = page.locator("article img")
            assert pictures.count() > 3
            for number in range(0, pictures.count(), 4):
                with Image.open(io.BytesIO(pictures.nth(number).screenshot())) as image:
                    grey = image.convert("L").crop((6, 6, image.width - 6, image.height - 6))
                    shades = sorted(grey.tobytes())
                # something is drawn on 5 % of the picture, or 2 % in this figure: a few markers on white
                share = 50 if "12_compute" in str(pictures.nth(number).get_attribute("src")) else 20
                assert shades[len(shades) // share] < shades[-1] - 40
                assert shades[-1] > 245  # on white
            assert not wrong

    def test_a_solution_opens(self, browser, address):
        from .browser import watched_page

        with watched_page(browser) as (page, wrong):
            page.goto(address + "notebooks/05_preview.html", wait_until="networkidle")
            solution = page.locator(".tag_solution").first
            code = solution.locator(".cell_input, pre").first
            assert not code.is_visible()
            solution.locator("summary").click()
            assert code.is_visible()
            assert not wrong


def test_names_in_docstrings_refer_to_the_names_of_their_module():
    api = load_docs_module("api")
    expected = {
        ("pckd_nb.training", "distill"): "pckd_nb.training.distill",
        ("pckd_nb.training", "Dataset.from_torch"): "pckd_nb.data.Dataset.from_torch",  # defined in data/dataset.py
        ("pckd_nb.losses", "pckd.Run.model()"): "pckd_nb.runs.Run.model",
        ("pckd_nb.methods.pckd", "preview.weight"): "pckd_nb.preview.weight",
        (None, "PCKD"): "pckd_nb.methods.PCKD",
        (None, "training.teacher"): "pckd_nb.training.teacher",
        ("pckd_nb.training", "data"): None,  # an argument
        (None, "nonsense"): None,
        (None, "torch.optim.AdamW"): None,
    }
    assert {call: api.target(*call) for call in expected} == expected


def test_an_api_page_shows_either_public_or_internal_names():
    api = load_docs_module("api")
    public = set(api.public_modules())
    modules = set().union(*FLOORS) - {"__main__", "__init__"}
    assert modules == {name.split(".")[0] for name in public | set(api.internal_modules())}
    assert {api.documented()[id(getattr(pckd_nb, name))] for name in pckd_nb.__all__} <= {
        *(f"pckd_nb.{name}" for name in public),
        *(f"pckd_nb.{name}.{member}" for name in public for member in api.public_names(name)),
    }
    assert "weight" in api.public_names("preview") and not api.internal_names("preview")
    assert api.public_names("checkpoints") == ["load_checkpoint"]
    assert "training_data_of" in api.internal_names("checkpoints")
    assert "load_checkpoint" not in api.internal_names("checkpoints")


def test_old_names_are_listed_in_a_table(monkeypatch):
    make_site = load_docs_module("make_site")
    monkeypatch.setattr(make_site, "RENAMED", {})
    assert "No public name" in make_site.renamed()
    monkeypatch.setattr(make_site, "RENAMED", {"runs": {"having": "require_parts"}})
    assert "| `runs.having` | `runs.require_parts` |\n" in make_site.renamed()


def test_the_code_tour_links_functions_and_draws_its_floors():
    tour = load_docs_module("tour")
    row = "| 11 | `training/trainer.py` | `Learner.forward` | Runs the `student`. |"
    link = "{py:obj}`Learner.forward <pckd_nb.training.trainer.Learner.forward>`"
    assert tour.linked(row) == row.replace("`Learner.forward`", link)
    drawn = tour.picture()
    for number, (name, modules) in tour.floors().items():
        assert f">{number} · {name}<" in drawn and all(re.search(rf"\b{module}\b", drawn) for module in modules)


def test_alternative_text_comes_from_the_figure_or_the_text_before_it():
    make_site = load_docs_module("make_site")
    text = nbformat.v4.new_markdown_cell(
        "# Title\n\nOld.\n\n## Where *it* stands\n\nBefore.\n\nIt rises with $\\gamma$. And `so` on."
    )
    picture = nbformat.v4.new_output("display_data", {"image/png": "", "text/plain": "<Figure size 1x1 with 1 Axes>"})
    plain = make_site.alternative(picture, [text, nbformat.v4.new_code_cell("ax.set(xlabel='epoch')")])
    assert plain == "Where it stands. It rises with gamma. And so on. Axes: epoch."
    drawn = make_site.alternative(picture, [text, nbformat.v4.new_code_cell("pckd.figures.feature_map(runs)")])
    assert drawn.startswith("Where it stands. A t-SNE map of test features")
    picture.metadata["image/png"] = {"alt": "its own words"}
    assert make_site.alternative(picture, [text]) == "its own words"


def test_links_are_rewritten_for_the_site(tmp_path):
    make_site = load_docs_module("make_site")
    text = (
        "[a](../README.md#the-course) ![b](../docs/images/09_budget.png) [c](https://x.org/y) [d](../data/runs) [e](#f)"
    )
    page = ROOT / "docs" / "index.md"
    found = make_site.linked(text, page, tmp_path)
    assert (
        found
        == "[a](README.md#the-course) ![b](images/09_budget.png) [c](https://x.org/y) [d](data/runs/README.md) [e](#f)"
    )
    assert (tmp_path / "images" / "09_budget.png").is_file()
