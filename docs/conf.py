"""Sphinx's settings: `make docs` builds this folder strictly; what is documented from code cannot drift from it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from modeling_kamim import __version__

project, author, version = "modeling-kamim", "the authors of modeling-kamim", __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "command_reference"]
exclude_patterns = ["_build", "_extensions"]
templates_path: list[str] = []

myst_enable_extensions = ["deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
# Types of other packages; their pages are on the network, and these are built without it
nitpick_ignore_regex = [("py:.*", r"(?!modeling_kamim\.).*")]

html_theme = "furo"
html_title = f"KAMIM {__version__}"
html_theme_options = {"navigation_with_keys": True}
html_show_sourcelink = False
