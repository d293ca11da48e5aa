"""The options of installs and upgrades: keywords of the verb, command-line options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict, cast

from cloudmanager import config

from .sources import PathLike
from .text_files import read_text

#: Help for the names of packages.
NAME_HELP = "such as logging@0.6.1, github:OWNER/REPO, pypi:NAME, a URL, ./FOLDER"
#: Shown while the server prepares an install.
PLANNING_TEXT: Final = "resolving, fetching and compiling"


class InstallKeywords(TypedDict, total=False):
    """The options that ``install`` takes as keywords; see ``InstallOptions``."""

    file: PathLike | None
    lock: PathLike | None
    locked: bool
    no_mpy: bool
    target_dir: str
    indexes: Mapping[str, str] | None
    force: bool
    dry_run: bool


@dataclass(frozen=True)
class InstallOptions:
    """How packages are installed.

    Attributes:
        file: a file of more requirements, one per line; ``#`` begins a comment.
        lock: a lock file to write, with the hash of every file, if any board succeeded.
        locked: install exactly what ``lock`` lists.
        no_mpy: install sources, compile nothing.
        target_dir: the folder on the boards; default ``/lib``.
        indexes: alias -> URL of more mip indexes; ``""`` replaces the default one.
        force: overwrite files of other packages, and the user's own.
        dry_run: only return what would be done.
    """

    file: PathLike | None = None
    lock: PathLike | None = None
    locked: bool = False
    no_mpy: bool = False
    target_dir: str = ""
    indexes: Mapping[str, str] | None = None
    force: bool = False
    dry_run: bool = False

    def plan_options(self) -> dict[str, Any]:
        """Return the options that the server's plan depends on.

        Raises:
            OSError: the lock file cannot be read.
        """
        path = Path(self.lock) if self.lock is not None else None
        must_read = path is not None and (self.locked or path.exists())
        text = read_text(path) if path and must_read else None
        options: dict[str, Any] = {"lock": text, "locked": self.locked}
        options |= {"source_only": self.no_mpy, "indexes": dict(self.indexes or {})}
        return {**options, "target_dir": self.target_dir} if self.target_dir else options


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


def install_keywords(options: argparse.Namespace) -> InstallKeywords:
    """Return parsed options as keywords of ``install``."""
    given = {name: getattr(options, name) for name in InstallKeywords.__annotations__}
    return cast(InstallKeywords, {**given, "indexes": dict(options.indexes)})


def install_options_error(options: argparse.Namespace) -> str:
    """Return what is wrong with a combination of options; "" if nothing is."""
    if options.locked and not options.lock:
        return "--locked needs a lock file: name it with --lock FILE."
    if not (options.names or options.file or options.locked):
        return f"Name what to install: {NAME_HELP}."
    return ""
