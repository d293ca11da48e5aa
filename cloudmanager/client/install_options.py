"""The options of installs and upgrades, which `mbm` and the magics share."""

from __future__ import annotations

import argparse
from typing import Any, Final

from cloudmanager import config

#: Of an installing verb, in the shell and in a notebook.
NAME_HELP = "such as logging@0.6.1, github:OWNER/REPO, pypi:NAME, a URL, ./FOLDER"
#: What an install does before it moves bytes.
PLANNING_TEXT: Final = "resolving, fetching and compiling"


def add_install_options(parser: argparse.ArgumentParser, *, names: bool = True) -> None:
    """Add what an install takes; ``names``: the requirements, too."""
    if names:
        parser.add_argument("names", nargs="*", metavar="NAME", help=NAME_HELP)
    parser.add_argument("-r", dest="file", metavar="FILE", help="names, one to a line")
    parser.add_argument("--lock", metavar="FILE", help="write down what was installed")
    parser.add_argument("--locked", action="store_true", help="install what --lock FILE says")
    parser.add_argument("--no-mpy", action="store_true", help="sources; compile nothing")
    parser.add_argument("--target", dest="target_dir", default="", metavar="DIR", help="else /lib")
    parser.add_argument(
        "--index",
        dest="indexes",
        type=config.parse_index,
        action="append",
        default=[],
        metavar="[ALIAS=]URL",
        help="a mip index; without ALIAS in place of the default one",
    )
    add_change_options(parser)


def add_change_options(parser: argparse.ArgumentParser) -> None:
    """Add what all changes take."""
    parser.add_argument("--force", action="store_true", help="whatever is in the way")
    parser.add_argument("--dry-run", action="store_true", help="only tell what would be done")


def install_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return options of the shell, or of a magic, as the library takes them."""
    names = ("file", "lock", "locked", "no_mpy", "target_dir", "force", "dry_run")
    return {**{name: getattr(options, name) for name in names}, "indexes": dict(options.indexes)}


def install_options_error(options: argparse.Namespace) -> str:
    """Say what makes no sense of what was asked; "" where it makes sense."""
    if options.locked and not options.lock:
        return "--locked obeys a lock: name it with --lock FILE."
    if not (options.names or options.file or options.locked):
        return f"Name what to install: {NAME_HELP}."
    return ""
