"""The magics for boards' packages: they parse; the rest is the library's."""

from __future__ import annotations

from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class, no_var_expand

from cloudmanager.client.install_options import (
    PLANNING_TEXT,
    add_change_options,
    add_install_options,
    install_arguments,
    install_options_error,
)
from cloudmanager.client.package_verbs import PackageVerbs
from cloudmanager.results.results import Results

from .base import TargetMagics, make_parser
from .magic_options import MagicParser

_INSTALL_HELP: Final = """Install packages, and what they need, on boards.

%board_install lab-* logging                   of the mip index; logging@0.6.1 is that version
%board_install lab-* github:OWNER/REPO@v1      also gitlab:, codeberg:, a URL, pypi:micropython-NAME
%board_install lab-* ./driver ./helper.py      your own folders and files
%board_install lab-* logging --dry-run         only shows what would be done

The server resolves, fetches and compiles once for all boards; boards that have a file get nothing.
"""
_UNINSTALL_HELP: Final = "Take packages off boards: %board_uninstall lab-* logging"
_PACKAGES_HELP: Final = """Show which packages boards have: %board_packages lab-*

Of boards that are not there, what they had; and where files are not what was installed.
"""
_UPGRADE_HELP: Final = """Install the newest of what boards were asked to have.

%board_upgrade lab-* is all of it, %board_upgrade lab-* logging that one.
"""


def make_install_parser() -> MagicParser:
    """Make the parser of `%board_install`."""
    made = make_parser("board_install", _INSTALL_HELP)
    add_install_options(made, names=False)
    return made


def make_change_parser(name: str, text: str) -> MagicParser:
    """Make the parser of a magic that changes what boards have."""
    made = make_parser(name, text)
    add_change_options(made)
    return made


_INSTALL_PARSER: Final = make_install_parser()
_UNINSTALL_PARSER: Final = make_change_parser("board_uninstall", _UNINSTALL_HELP)
_PACKAGES_PARSER: Final = make_parser("board_packages", _PACKAGES_HELP)
_UPGRADE_PARSER: Final = make_change_parser("board_upgrade", _UPGRADE_HELP)


@magics_class
class PackageMagics(TargetMagics):
    """``%board_install`` and its family."""

    parsers = {
        "%board_install": _INSTALL_PARSER,
        "%board_uninstall": _UNINSTALL_PARSER,
        "%board_packages": _PACKAGES_PARSER,
        "%board_upgrade": _UPGRADE_PARSER,
    }

    @line_magic
    def board_install(self, line: str) -> Results:
        """Install; the help of its options takes this place."""
        boards, words, options = self._parse_line(_INSTALL_PARSER, line)
        options.names = words
        if why := install_options_error(options):
            raise UsageError(why)
        given = install_arguments(options)
        return self._run_verb(
            lambda tell: PackageVerbs.install(boards, *words, progress=tell, **given),
            preparation=PLANNING_TEXT,
        )

    board_install.__doc__ = _INSTALL_PARSER.format_help()

    @no_var_expand
    @line_magic
    def board_uninstall(self, line: str) -> Results:
        """Take off; the help of its options takes this place."""
        boards, words, options = self._parse_line(_UNINSTALL_PARSER, line)
        if not words:
            raise UsageError("%board_uninstall TARGET NAME…")
        how = {"force": options.force, "dry_run": options.dry_run}
        return self._run_verb(lambda _: PackageVerbs.uninstall(boards, *words, **how))

    board_uninstall.__doc__ = _UNINSTALL_PARSER.format_help()

    @no_var_expand
    @line_magic
    def board_packages(self, line: str) -> Results:
        """Show what there is; the help of its options takes this place."""
        boards, words, _ = self._parse_line(_PACKAGES_PARSER, line)
        if words:
            raise UsageError("%board_packages TARGET")
        return self._run_verb(lambda _: PackageVerbs.packages(boards))

    board_packages.__doc__ = _PACKAGES_PARSER.format_help()

    @no_var_expand
    @line_magic
    def board_upgrade(self, line: str) -> Results:
        """Install the newest; the help of its options takes this place."""
        boards, words, options = self._parse_line(_UPGRADE_PARSER, line)
        how = {"force": options.force, "dry_run": options.dry_run}
        return self._run_verb(
            lambda tell: PackageVerbs.upgrade(boards, *words, progress=tell, **how),
            preparation=PLANNING_TEXT,
        )

    board_upgrade.__doc__ = _UPGRADE_PARSER.format_help()
