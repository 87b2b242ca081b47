"""Sphinx configuration. `make docs` builds the pages offline and treats warnings as errors."""

from pathlib import Path

ROOT = Path(__file__).parents[1]

project = "WavCube plugins"
author = "the WavCube plugins contributors"
release = (ROOT / "wavcube_plugins" / "version.txt").read_text().strip()

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

# Docstrings put code in single backticks.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures stay readable; the docstrings give shapes and units
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"WavCube plugins {release}"
