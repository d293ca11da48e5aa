"""The magics for packages on boards: they parse a line and call the library."""

from __future__ import annotations

from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from cloudmanager.client.install_options import (
    PLANNING_TEXT,
    add_install_options,
    add_uninstall_options,
    add_upgrade_options,
    install_keywords,
    install_options_error,
)
from cloudmanager.client.run_arguments import add_wait_options, wait_keywords
from cloudmanager.results.results import Results

from .base import TargetMagics, make_parser
from .cell_display import VerbDisplay
from .magic_options import check_wait_options
from .magics import with_variables

_INSTALL_HELP: Final = """Install packages and their dependencies on boards.

%board_install lab-* logging                   from mip's index; logging@0.6.1 for one version
%board_install lab-* github:OWNER/REPO@v1      also gitlab:, codeberg:, a URL, pypi:micropython-NAME
%board_install lab-* ./driver ./helper.py      your own folders and files
%board_install lab-* logging --dry-run         only shows what would be done

The server resolves, fetches and compiles the packages once for all boards. A board receives only
the files that differ.
"""
_UNINSTALL_HELP: Final = "Uninstall packages from boards: %board_uninstall lab-* logging"
_PACKAGES_HELP: Final = """Show the packages on boards: %board_packages lab-*

For offline boards, it shows those that were last known. `drift` marks files that are not those that
were installed.
"""
_UPGRADE_HELP: Final = """Install the newest versions of the packages that were requested.

%board_upgrade lab-* upgrades all of them, %board_upgrade lab-* logging only that one.
"""


_INSTALL_PARSER: Final = make_parser("board_install", _INSTALL_HELP)
add_install_options(_INSTALL_PARSER, names=False)
_UNINSTALL_PARSER: Final = make_parser("board_uninstall", _UNINSTALL_HELP)
add_uninstall_options(_UNINSTALL_PARSER)
add_wait_options(_UNINSTALL_PARSER)
_PACKAGES_PARSER: Final = make_parser("board_packages", _PACKAGES_HELP)
_UPGRADE_PARSER: Final = make_parser("board_upgrade", _UPGRADE_HELP)
add_upgrade_options(_UPGRADE_PARSER)


@magics_class
class PackageMagics(TargetMagics):
    """``%board_install``, ``%board_uninstall``, ``%board_packages`` and ``%board_upgrade``."""

    parsers = {
        "%board_install": _INSTALL_PARSER,
        "%board_uninstall": _UNINSTALL_PARSER,
        "%board_packages": _PACKAGES_PARSER,
        "%board_upgrade": _UPGRADE_PARSER,
    }
    with_files = frozenset({"%board_install"})

    @line_magic
    @with_variables
    def board_install(self, line: str) -> Results:
        """Install packages; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_INSTALL_PARSER, line)
        options.names = words
        if error := install_options_error(options):
            raise UsageError(error)
        arguments = install_keywords(options)
        return self._run_verb(
            lambda progress: boards.install(*words, progress=progress, **arguments),
            VerbDisplay(PLANNING_TEXT),
        )

    board_install.__doc__ = _INSTALL_PARSER.format_help()

    @line_magic
    @with_variables
    def board_uninstall(self, line: str) -> Results:
        """Uninstall packages; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_UNINSTALL_PARSER, line)
        if not words:
            raise UsageError("Usage: %board_uninstall TARGET NAME…")
        check_wait_options(options)
        flags = {"force": options.force, "dry_run": options.dry_run}
        waits = wait_keywords(options)
        return self._run_verb(
            lambda progress: boards.uninstall(*words, progress=progress, **flags, **waits)
        )

    board_uninstall.__doc__ = _UNINSTALL_PARSER.format_help()

    @line_magic
    @with_variables
    def board_packages(self, line: str) -> Results:
        """Show packages; the parser's help replaces this docstring."""
        boards, words, _ = self._parse_line(_PACKAGES_PARSER, line)
        if words:
            raise UsageError("Usage: %board_packages TARGET")
        return self._run_verb(lambda _: boards.packages())

    board_packages.__doc__ = _PACKAGES_PARSER.format_help()

    @line_magic
    @with_variables
    def board_upgrade(self, line: str) -> Results:
        """Upgrade packages; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_UPGRADE_PARSER, line)
        flags = {"force": options.force, "dry_run": options.dry_run}
        return self._run_verb(
            lambda progress: boards.upgrade(*words, progress=progress, **flags),
            VerbDisplay(PLANNING_TEXT),
        )

    board_upgrade.__doc__ = _UPGRADE_PARSER.format_help()
