"""How Sphinx builds the site out of the source tree that make_site.py lays out. Nothing is executed or fetched."""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # docstrings.py

import docstrings
from sphinx.application import Sphinx

import pckd_nb

project = "pckd_nb"
author = "the pckd_nb authors"
release = version = pckd_nb.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx-mathjax-offline"]
nitpicky = True
# Other libraries' pages would have to be fetched.
elsewhere = ["builtins", "collections", "contextlib", "matplotlib", "nbformat", "numpy", "pandas", "pathlib", "t"]
elsewhere += ["Fabric", "PIL", "ipywidgets", "jupyter_client", "lightning", "lightning_fabric", "torch", "torchvision"]
elsewhere += ["pydantic", "pydantic_core", "tqdm", "typer", "typing"]
unsaid = ["methods.baselines.Baseline", "models.HasClasses"]  # no docstring
unsaid += ["checkpoints.Network", "ranks.T", "data.streaming.T"]  # type variables
nitpick_ignore_regex = [(r"py:.*", rf"({'|'.join(map(re.escape, elsewhere))})(\..*)?")]
nitpick_ignore = [("py:class", f"pckd_nb.{name}") for name in unsaid] + [("py:class", "P")]  # parameters of methods
# In a module that imports some names for type checkers only, annotations stay text.
nitpick_ignore += [("py:class", name) for name in ("Logger", "Path", "nn.Module")]

highlight_language = "none"
smartquotes = False  # --out is no dash

nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, str] = {}  # the stored pictures stand for the widgets
nb_merge_streams = True
nb_render_image_options = {"align": "left"}
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
# Declared types under their names, not as what pydantic makes of them.
declared = ["Channels", "Count", "Fraction", "NotNegative", "Plug", "Positive", "Seed", "Size"]
autodoc_type_aliases = {name: name for name in declared}
nitpick_ignore += [("py:class", name) for name in declared]
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"

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
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system is
html_theme_options = {
    "navbar_persistent": [],  # the search field stands in the sidebar
    "use_download_button": False,  # it would offer sources that are not there
    "use_fullscreen_button": False,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", docstrings.process)
    app.connect("autodoc-process-signature", docstrings.readable)
    app.connect("autodoc-skip-member", docstrings.skip)
