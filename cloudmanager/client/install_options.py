"""The options of installs: each is declared once, for the keyword and the command lines."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypedDict, cast

from cloudmanager import config
from cloudmanager.protocol.option_info import option, option_infos
from cloudmanager.protocol.run_options import RunOptions

from .run_arguments import span_argument, wait_options_error
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
    when_online: bool
    expires: float | None


@dataclass(frozen=True)
class InstallOptions:
    """How packages are installed."""

    file: PathLike | None = option(
        None, "a file of more requirements, one per line; `#` begins a comment", "-r", "FILE"
    )
    lock: PathLike | None = option(
        None,
        "a lock file to write, with the hash of every file, if any board succeeded",
        "--lock",
        "FILE",
    )
    locked: bool = option(False, "install exactly what the lock file lists", "--locked")
    no_mpy: bool = option(False, "install sources, compile nothing", "--no-mpy")
    target_dir: str = option("", "the folder on the boards; default /lib", "--target", "DIR")
    indexes: Mapping[str, str] | None = option(
        None,
        "more mip indexes, alias and URL; an empty alias replaces the default index",
        "--index",
        "[ALIAS=]URL",
    )
    force: bool = option(False, "overwrite files of other packages, and your own", "--force")
    dry_run: bool = option(False, "only show what would be done", "--dry-run")
    when_online: bool = option(False, *option_infos(RunOptions)["when_online"])
    expires: float | None = option(None, *option_infos(RunOptions)["expires"])

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
    for name in option_infos(InstallOptions):
        _add_option(parser, name)


def add_upgrade_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an upgrade, which repeats those of each package's install."""
    _add_option(parser, "force")
    _add_option(parser, "dry_run")


def add_uninstall_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of an uninstall."""
    text = "uninstall packages that others need"
    parser.add_argument("--force", action="store_true", help=text)
    _add_option(parser, "dry_run")


def _add_option(parser: argparse.ArgumentParser, name: str) -> None:
    info, default = option_infos(InstallOptions)[name], getattr(InstallOptions, name)
    if not info.metavar:
        parser.add_argument(info.flag, dest=name, action="store_true", help=info.text)
    elif name == "indexes":
        parser.add_argument(
            info.flag,
            dest=name,
            type=config.parse_index,
            action="append",
            default=[],
            metavar=info.metavar,
            help=info.text,
        )
    else:
        parser.add_argument(
            info.flag,
            dest=name,
            type=span_argument if name == "expires" else str,
            default=default,
            metavar=info.metavar,
            help=info.text,
        )


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
    return wait_options_error(options)
