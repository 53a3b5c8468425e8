"""Sphinx configuration: `make docs`."""

from docutils import nodes
from latex2mathml.converter import convert

import fastmlip

project = "fastmlip"
author = "the fastmlip authors"
copyright = author
release = version = fastmlip.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"fastmlip {version}"


def _inline(self, node):
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _display(self, node):
    self.body.append(convert(node.astext(), display="block"))
    raise nodes.SkipNode


def setup(app):
    """Formulas as MathML, which browsers render themselves: pages need no internet."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
