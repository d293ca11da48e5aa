"""The verb of ``mbm`` that shows the dashboard in a browser, without Jupyter."""

from __future__ import annotations

import argparse
import signal
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from cloudmanager.display.terminal import print_error

from .commands import FAILED, AddVerb

_PACKAGES: Final = ("cm_magics", "anywidget", "IPython")  # of the extra `lab`


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    page = add_verb("dashboard", dashboard, "show the fleet as a live table in a browser")
    page.add_argument(
        "target", nargs="?", metavar="TARGET", help="boards that are shown first (default: all)"
    )
    page.add_argument(
        "--role",
        choices=("viewer", "operator", "admin"),
        help="what the page may do (default: what your token may)",
    )
    page.add_argument(
        "--port", type=int, default=0, metavar="N", help="its TCP port (default: a free one)"
    )
    page.add_argument(
        "--no-browser", dest="opens_browser", action="store_false", help="only print the link"
    )
    page.epilog = "It runs until Ctrl-C, and serves this user of this machine only."


def dashboard(options: argparse.Namespace) -> int:
    """Show the dashboard. It is not part of the library, which loads it by its name."""
    if options.json:
        options.verb_parser.error("a page has no JSON; `mbm board-list --json` lists boards")
    if not all(map(find_spec, _PACKAGES)):
        print_error("The dashboard is not installed: `pip install 'cloudmanager[lab]'`.")
        return FAILED
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # it cleans up then, too
    module: Any = import_module("cm_magics.web_page")
    return int(module.main(options))
