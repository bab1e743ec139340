"""Settings of Sphinx for the site. It reads the source tree that make_site.py writes, and fetches nothing."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # api.py

import api
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import Config, NumpyDocstring
from sphinx.util.nodes import make_refnode

import pckd_nb

project = "pckd_nb"
author = "the pckd_nb authors"
release = version = pckd_nb.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]

# Single backticks: a link if Sphinx or `link` knows the name, else code.
default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*")]
# Names of other libraries get no links and no warnings: their lists of pages would have to be downloaded.
libraries = ["builtins", "collections", "contextlib", "matplotlib", "nbformat", "numpy", "pandas", "pathlib", "t"]
libraries += ["Fabric", "PIL", "ipywidgets", "jupyter_client", "lightning", "lightning_fabric", "torch", "torchvision"]
libraries += ["distributed", "filelock", "optuna", "pydantic", "pydantic_core", "tqdm", "typer", "types", "typing"]
nitpick_ignore_regex += [("py:.*", rf"({'|'.join(map(re.escape, libraries))})(\..*)?")]
without_docstring = ["methods.baselines.Baseline", "models.HasClasses"]
type_variables = [
    "checkpoints.Network",
    "deprecation.Function",
    "ranks.T",
    "data.streaming.T",
    "methods.terms.numerics.R",
    "experiments.engines.Item",
    "experiments.engines.Result",
]
nitpick_ignore = [("py:class", f"pckd_nb.{name}") for name in without_docstring + type_variables]
nitpick_ignore += [("py:class", "P")]  # a ParamSpec
# In a module that imports some names for type checkers only, annotations stay text.
nitpick_ignore += [
    ("py:class", name) for name in ("ImagesAndLabels", "Logger", "Path", "nn.Module", "np.ndarray", "pd.DataFrame")
]
nitpick_ignore += [("py:class", name) for name in ("BaseDistribution", "FrozenTrial", "Study")]  # of optuna

highlight_language = "none"
smartquotes = False  # it would turn --out into a dash

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, str] = {}  # the page shows the stored picture of a widget
nb_merge_streams = True
nb_render_image_options = {"align": "left"}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# A type such as "Tensor of shape (B, C)" is text, not a list of names to link.
napoleon: Any = Config(
    napoleon_use_param=False, napoleon_use_rtype=False, napoleon_custom_sections=[("Attributes", "params_style")]
)
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Types of settings are shown by their names, not as the annotations that pydantic reads.
setting_types = ["Channels", "Count", "Fraction", "NameOrCallable", "NotNegative", "Positive", "Seed", "Size"]
autodoc_type_aliases = {name: name for name in setting_types}
nitpick_ignore += [("py:class", name) for name in setting_types]
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
viewcode_line_numbers = True

html_theme = "sphinx_book_theme"
html_title = "PCKD in notebooks"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("search.js", {"defer": "defer"})]
html_favicon = "_static/icon.svg"
html_domain_indices = False
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_context = {"default_mode": "auto"}  # light or dark, as in the reader's system
html_theme_options = {
    "navbar_persistent": [],  # the search field is in the sidebar
    "use_download_button": False,  # the site has no sources to download
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def link(app: Sphinx, env: BuildEnvironment, node: Any, content: Any) -> Any:
    """Return a link for a name in single backticks, if the object has a longer or another name on the site."""
    found = api.target(node.get("py:module"), node["reftarget"]) if node.get("reftype") == "obj" else None
    entry = found and env.domains.python_domain.objects.get(found)
    if not found or not entry or app.builder is None:
        return None
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, found)


def sections(app: Sphinx, what: Any, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Turn the NumPy sections of a docstring into reStructuredText, in place.

    The extension napoleon does the same, but would read the docstring of a property as "type: description".
    """
    what = "method" if what == "property" else what
    lines[:] = NumpyDocstring(lines, napoleon, app, what, name, thing, options).lines()


def signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, written: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """Return a signature as it is written in Python. A pydantic model has none: its fields are described."""
    if inspect.isclass(thing) and issubclass(thing, BaseModel):
        return "", ""
    written = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", written or "")
    return written.replace("<factory>", "...") or None, returns  # a dataclass's default that is made per instance


def skip(app: Sphinx, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Return True for members that have no docstring of their own: fields of named tuples, methods of matplotlib."""
    numbered = (inspect.getdoc(thing) or "").startswith("Alias for field number")
    return True if numbered or str(getattr(thing, "__module__", "")).startswith("matplotlib.") else None


def link_source_to_entry(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
    """Let the [docs] links of a source page lead to the object's entry, also if this is in another module's page."""
    if not page.startswith("_modules/"):
        return
    module, objects = page.removeprefix("_modules/").replace("/", "."), app.env.domains.python_domain.objects

    def mended(match: re.Match) -> str:
        name = match["name"]
        entry = objects.get(name) or objects.get(api.target(module, name.removeprefix(f"{module}.")) or "")
        if not entry:
            return ""
        uri = app.builder.get_relative_uri(page, entry.docname)
        return f'<a class="viewcode-back" href="{uri}#{entry.node_id}">[docs]</a>'

    back = r'<a class="viewcode-back" href="[^"#]*#(?P<name>[^"]*)">\[docs\]</a>'
    context["body"] = re.sub(back, mended, context["body"])


def setup(app: Sphinx) -> None:
    """Connect the functions above to the events of Sphinx."""
    app.connect("missing-reference", link)
    app.connect("autodoc-process-docstring", sections)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-skip-member", skip)
    app.connect("html-page-context", link_source_to_entry)
