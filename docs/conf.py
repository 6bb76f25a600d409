"""Sphinx settings. Nothing is fetched; model pages, tables, the command and the API reference are generated before reading."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "_ext")]

import generate  # noqa: E402

project = "scfm"
author = "The scfm authors"
copyright = "The scfm authors, Apache-2.0"
version = release = installed_version("scfm-sdk")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "run"]
exclude_patterns = ["_build", "_ext", "examples", "**/README.md"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

default_role = "code"  # single backticks in docstrings
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_custom_sections = [("Load options", "params_style")]
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90

html_theme = "furo"
html_title = f"scfm {version}"
html_static_path = ["_static"]
html_css_files = ["scfm.css"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "github-dark"


def setup(app: object) -> None:
    """Generate pages before Sphinx looks for them."""
    app.connect("builder-inited", lambda _: generate.write_all(HERE / "generated"))  # type: ignore[attr-defined]
