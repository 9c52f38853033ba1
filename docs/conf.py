"""Sphinx builds the documentation from this: ``sphinx-build -W -b html docs docs/_build``."""

from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from anycable_tx import __version__
from anycable_tx.config.load import load_schema
from anycable_tx.config.migration import table

project = "anycable-tx"
author = "The anycable-tx authors"
project_copyright = author
release = version = __version__

extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "examples/**/node_modules", "examples/**/README.md"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# HTML only: the pages are read as files on the repository's site too, so their links end in .md.
html_theme = "furo"
html_title = f"anycable-tx {release}"
html_show_copyright = False
nitpicky = True


class AnycableGoOptions(SphinxDirective):
    """What each option of anycable-go is here, as the schema has it now."""

    def run(self) -> list[nodes.Node]:
        return self.parse_text_to_nodes(table(load_schema()))


def setup(app: Any) -> None:
    app.add_directive("anycable-go-options", AnycableGoOptions)
