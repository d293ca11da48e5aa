"""Sphinx builds the site from the repository's own pages: ``make docs``.

The pages are those that GitHub shows, so the source folder is the whole repository, of which only
the pages below are read. Reference pages contain a line such as ``<!-- generated: verbs -->``, in
whose place `generated_pages.py` writes what the code declares.
"""

from __future__ import annotations

import sys
from collections import namedtuple
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "server")]

from generated_pages import fill_in  # noqa: E402

from cloudmanager import __version__  # noqa: E402

project = "Cloudmanager"
author = "Cloudmanager contributors"
project_copyright = author
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = [
    *["docs/**", "notebooks/*.ipynb", "benchmarks/README.md"],
    *["CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md"],
]
exclude_patterns = ["**/.*", ".*", "build", "**/.ipynb_checkpoints"]

# Anchors of headings as GitHub makes them.
myst_heading_anchors = 4
smartquotes = False  # it makes a dash of the two hyphens of options

# Notebooks show the outputs that are stored in them, which `make test` checks.
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"Cloudmanager {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_site"]
html_copy_source = False
html_show_sourcelink = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

_NAMED_TUPLE_FIELD = type(namedtuple("_Example", "field").field)


def leave_out(_app: Sphinx, _what: str, _name: str, member: object, *_: object) -> bool | None:
    """Leave out the fields of named tuples: the docstrings of their classes describe them."""
    return True if isinstance(member, _NAMED_TUPLE_FIELD) else None


def setup(app: Sphinx) -> None:
    """Register what fills in the generated parts, and what leaves out members of classes."""
    app.connect("source-read", fill_in)
    app.connect("autodoc-skip-member", leave_out)
