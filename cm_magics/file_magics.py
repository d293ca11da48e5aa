"""The magics for files on boards: they parse a line and call the library."""

from __future__ import annotations

import sys
from typing import Any, Final

from IPython.core.error import UsageError
from IPython.core.magic import cell_magic, line_magic, magics_class

from cloudmanager.client.copy_words import copy_words
from cloudmanager.client.mounts import MountedFolder
from cloudmanager.client.run_arguments import add_wait_options, wait_keywords
from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.results import Results

from .base import TargetMagics, make_parser, without_traceback
from .magic_options import MagicParser, check_wait_options
from .magics import BoardMagics, with_variables

_CP_HELP: Final = """Copy files and folders to boards, or from them: `:` marks a path on the boards.

%board_cp lab-* *.py :               to the boards' root, under their own names
%board_cp lab-* app :lib             a folder: /lib/app; `app/` is only what is in it: /lib
%board_cp lab-* a.py :new.py         to a name; `:new/` is a folder
%board_cp lab-1 :log.txt .           from a board; from several boards, into a folder for each
%board_cp lab-* :a.py :old/          on the boards themselves

Identical files are not sent again, and an interrupted copy resumes where it stopped.
"""
_LS_HELP: Final = (
    "List folders on boards, by default the root, or a pattern: %board_ls lab-1 :lib :*.csv"
)
_MOUNT_HELP: Final = """Mount a local folder on boards, read-only: edit, run, and nothing is copied.

%board_mount lab-1 src               at :/remote, first in sys.path and the working directory
%board_mount lab-1 --end             unmount it; the end of the kernel does so, too

A cell that follows a change imports the changed modules again. At most 200 files.
"""
_RM_HELP: Final = (
    "Remove files from boards, or with -r folders: %board_rm lab-* :old.py :logs/*.csv"
)
_SYNC_HELP: Final = """Make a folder on boards equal to a local one: %board_sync lab-* src :lib

Only differences are sent. `.mbmignore` in the folder excludes files, as .gitignore does.
"""
_WRITE_HELP: Final = "Write the lines below to a file on boards: %%board_writefile lab-* :boot.py"


def make_cp_parser() -> MagicParser:
    """Make the parser of `%board_cp`."""
    parser = make_parser("board_cp", _CP_HELP)
    parser.add_argument(
        "-r", action="store_true", help="accepted as in mpremote; folders are always copied whole"
    )
    add_wait_options(parser)
    return parser


def make_ls_parser() -> MagicParser:
    """Make the parser of `%board_ls`."""
    parser = make_parser("board_ls", _LS_HELP)
    parser.add_argument("-r", "--recursive", action="store_true", help="include subfolders")
    return parser


def make_rm_parser() -> MagicParser:
    """Make the parser of `%board_rm`."""
    parser = make_parser("board_rm", _RM_HELP)
    parser.add_argument(
        "-r", "--recursive", action="store_true", help="remove a folder and everything in it"
    )
    return parser


def make_sync_parser() -> MagicParser:
    """Make the parser of `%board_sync`."""
    parser = make_parser("board_sync", _SYNC_HELP)
    parser.add_argument(
        "--delete", action="store_true", help="remove from the boards what does not exist locally"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    add_wait_options(parser)
    return parser


def make_mount_parser() -> MagicParser:
    """Make the parser of `%board_mount`."""
    parser = make_parser("board_mount", _MOUNT_HELP)
    parser.add_argument("--end", action="store_true", help="unmount what this target has")
    return parser


def make_write_parser() -> MagicParser:
    """Make the parser of `%%board_writefile`."""
    parser = make_parser("board_writefile", _WRITE_HELP)
    add_wait_options(parser)
    return parser


_CP_PARSER: Final = make_cp_parser()
_LS_PARSER: Final = make_ls_parser()
_MOUNT_PARSER: Final = make_mount_parser()
_RM_PARSER: Final = make_rm_parser()
_SYNC_PARSER: Final = make_sync_parser()
_WRITE_PARSER: Final = make_write_parser()

_PARSERS: Final = {
    "%board_cp": _CP_PARSER,
    "%board_ls": _LS_PARSER,
    "%board_mount": _MOUNT_PARSER,
    "%board_rm": _RM_PARSER,
    "%board_sync": _SYNC_PARSER,
    "%%board_writefile": _WRITE_PARSER,
}


@magics_class
class FileMagics(TargetMagics):
    """The magics for files: see ``parsers``."""

    parsers = _PARSERS
    with_files = frozenset({"%board_cp", "%board_mount", "%board_sync"})

    def __init__(self, shell: Any, boards: BoardMagics) -> None:
        super().__init__(shell, boards)
        self._mounted: dict[str, MountedFolder] = {}  # by target

    def unregister_hooks(self) -> None:
        """Unmount folders; unregister the completion and the magics."""
        while self._mounted:
            self._mounted.popitem()[1].close()
        super().unregister_hooks()

    @line_magic
    @with_variables
    def board_mount(self, line: str) -> MountedFolder | None:
        """Mount a local folder; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_MOUNT_PARSER, line)
        if len(words) not in ((0,) if options.end else (1, 2)):
            raise UsageError("Usage: %board_mount TARGET FOLDER [:PATH], or TARGET --end")
        if options.end and boards.target not in self._mounted:
            others = ", ".join(self._mounted)
            raise UsageError(
                f"No folder is mounted on {boards.target}"
                + (f": `%board_mount` has mounted one on {others}." if others else ".")
            )
        with without_traceback():
            earlier = self._mounted.pop(boards.target, None)
            if earlier is not None:
                earlier.close()
            if options.end:
                return None
            mounted = boards.mount(*words, on_note=_print_note)
            self._mounted[boards.target] = mounted
            for name, result in mounted.results.items():
                if not result.ok:
                    _print_note(f"{name}: {result.error}")
            return mounted

    board_mount.__doc__ = _MOUNT_PARSER.format_help()

    @line_magic
    @with_variables
    def board_cp(self, line: str) -> Results:
        """Copy files; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_CP_PARSER, line)
        check_wait_options(options)
        if len(words) < 2:
            raise UsageError(
                "Usage: %board_cp TARGET FROM… TO (a path on the boards begins with `:`)"
            )
        waits = wait_keywords(options)
        return self._run_verb(
            lambda progress: copy_words(boards, *words, progress=progress, **waits)
        )

    board_cp.__doc__ = _CP_PARSER.format_help()

    @line_magic
    @with_variables
    def board_ls(self, line: str) -> Results:
        """List a folder; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_LS_PARSER, line)
        paths = words or ":/"
        return self._run_verb(lambda _: boards.ls(paths, recursive=options.recursive, glob=True))

    board_ls.__doc__ = _LS_PARSER.format_help()

    @line_magic
    @with_variables
    def board_rm(self, line: str) -> Results:
        """Remove files; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_RM_PARSER, line)
        if not words:
            raise UsageError("Usage: %board_rm TARGET :PATH… (files, or with -r folders)")
        return self._run_verb(lambda _: boards.rm(words, recursive=options.recursive, glob=True))

    board_rm.__doc__ = _RM_PARSER.format_help()

    @line_magic
    @with_variables
    def board_sync(self, line: str) -> Results:
        """Make folders equal; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_SYNC_PARSER, line)
        check_wait_options(options)
        if len(words) not in (1, 2):
            raise UsageError("Usage: %board_sync TARGET FOLDER [:DEST]")
        return self._run_verb(
            lambda progress: boards.sync(
                words[0],
                words[1] if len(words) > 1 else ":/",
                delete=options.delete,
                dry_run=options.dry_run,
                progress=progress,
                **wait_keywords(options),
            )
        )

    board_sync.__doc__ = _SYNC_PARSER.format_help()

    @cell_magic
    @with_variables
    def board_writefile(self, line: str, cell: str) -> None:
        """Write a file; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_WRITE_PARSER, line)
        check_wait_options(options)
        if len(words) != 1:
            raise UsageError("Usage: %%board_writefile TARGET :PATH")
        content = cell.encode()
        waits = wait_keywords(options)
        self._run_verb(lambda progress: boards.put(content, words[0], progress=progress, **waits))

    board_writefile.__doc__ = _WRITE_PARSER.format_help()


def _print_note(text: str) -> None:
    """Print a remark on a mounted folder that is no matter of a single cell."""
    sys.stderr.write(sanitize_text(text) + "\n")
