"""Command-line options of installs and upgrades, shared by `mbm` and the magics."""

from __future__ import annotations

import argparse
from typing import Any, Final

from cloudmanager import config

#: Help for the names of packages.
NAME_HELP = "such as logging@0.6.1, github:OWNER/REPO, pypi:NAME, a URL, ./FOLDER"
#: Shown while the server prepares an install.
PLANNING_TEXT: Final = "resolving, fetching and compiling"


def add_install_options(parser: argparse.ArgumentParser, *, names: bool = True) -> None:
    """Add the options of an install; with ``names``, also the argument NAME."""
    if names:
        parser.add_argument("names", nargs="*", metavar="NAME", help=NAME_HELP)
    parser.add_argument("-r", dest="file", metavar="FILE", help="a file of names, one per line")
    parser.add_argument("--lock", metavar="FILE", help="write a lock file of what was installed")
    parser.add_argument("--locked", action="store_true", help="install what the lock file lists")
    parser.add_argument("--no-mpy", action="store_true", help="install sources, compile nothing")
    parser.add_argument(
        "--target", dest="target_dir", default="", metavar="DIR", help="default /lib"
    )
    parser.add_argument(
        "--index",
        dest="indexes",
        type=config.parse_index,
        action="append",
        default=[],
        metavar="[ALIAS=]URL",
        help="another mip index; without ALIAS, it replaces the default one",
    )
    add_change_options(parser)


def add_change_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of all verbs that change packages."""
    parser.add_argument(
        "--force", action="store_true", help="overwrite files of others; remove what others need"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")


def install_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return parsed options as keyword arguments of ``install``."""
    names = ("file", "lock", "locked", "no_mpy", "target_dir", "force", "dry_run")
    return {**{name: getattr(options, name) for name in names}, "indexes": dict(options.indexes)}


def install_options_error(options: argparse.Namespace) -> str:
    """Return what is wrong with a combination of options; "" if nothing is."""
    if options.locked and not options.lock:
        return "--locked needs a lock file: name it with --lock FILE."
    if not (options.names or options.file or options.locked):
        return f"Name what to install: {NAME_HELP}."
    return ""
