"""The magics for boards' files: they parse; the rest is the library's."""

from __future__ import annotations

from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import cell_magic, line_magic, magics_class, no_var_expand

from cloudmanager.client.file_verbs import FileVerbs
from cloudmanager.results.results import Results

from .base import TargetMagics, make_parser
from .magic_options import MagicParser

_CP_HELP: Final = """Copy files and folders to boards, or from them: `:` marks a path on the boards.

%board_cp lab-* main.py :            to the boards' root, under its own name
%board_cp lab-* src/ :lib/           a folder, whole
%board_cp lab-1 :log.txt .           from a board; from several, into a folder of each

What is there and equal is not sent again; a copy that broke off goes on where it stopped.
"""
_LS_HELP: Final = "List a folder of boards, the root unless told: %board_ls lab-1 :lib"
_RM_HELP: Final = "Remove files from boards: %board_rm lab-* :old.py"
_SYNC_HELP: Final = """Make a folder on boards equal to one here: %board_sync lab-* src :lib

Only what differs is sent. `.mbmignore` in the folder names what stays out, as .gitignore does.
"""
_WRITE_HELP: Final = "Write the lines below to a file on boards: %%board_writefile lab-* :boot.py"


def make_cp_parser() -> MagicParser:
    """Make the parser of `%board_cp`."""
    made = make_parser("board_cp", _CP_HELP)
    made.add_argument("-r", action="store_true", help="as in mpremote; folders go whole anyway")
    return made


def make_ls_parser() -> MagicParser:
    """Make the parser of `%board_ls`."""
    made = make_parser("board_ls", _LS_HELP)
    made.add_argument("-r", "--recursive", action="store_true", help="the folders below, too")
    return made


def make_rm_parser() -> MagicParser:
    """Make the parser of `%board_rm`."""
    made = make_parser("board_rm", _RM_HELP)
    made.add_argument("-r", "--recursive", action="store_true", help="a folder and all in it")
    return made


def make_sync_parser() -> MagicParser:
    """Make the parser of `%board_sync`."""
    made = make_parser("board_sync", _SYNC_HELP)
    made.add_argument("--delete", action="store_true", help="files that are not here go there")
    made.add_argument("--dry-run", action="store_true", help="only show what would be done")
    return made


_CP_PARSER: Final = make_cp_parser()
_LS_PARSER: Final = make_ls_parser()
_RM_PARSER: Final = make_rm_parser()
_SYNC_PARSER: Final = make_sync_parser()
_WRITE_PARSER: Final = make_parser("board_writefile", _WRITE_HELP)

_PARSERS: Final = {
    "%board_cp": _CP_PARSER,
    "%board_ls": _LS_PARSER,
    "%board_rm": _RM_PARSER,
    "%board_sync": _SYNC_PARSER,
    "%%board_writefile": _WRITE_PARSER,
}


@magics_class
class FileMagics(TargetMagics):
    """``%board_cp`` and its family."""

    parsers = _PARSERS

    @no_var_expand
    @line_magic
    def board_cp(self, line: str) -> Results:
        """Copy; the help of its options takes this place."""
        boards, words, _ = self._parse_line(_CP_PARSER, line)
        if len(words) < 2:
            raise UsageError("%board_cp TARGET FROM… TO: a path on the boards begins with `:`.")
        *sources, dest = words
        if dest.startswith(":"):
            one = sources[0] if len(sources) == 1 else sources
            return self._run_verb(lambda tell: FileVerbs.put(boards, one, dest, progress=tell))
        if len(sources) != 1 or not sources[0].startswith(":"):
            raise UsageError("Either TO or the one FROM is a path on the boards, such as `:lib/`.")
        return self._run_verb(lambda tell: FileVerbs.get(boards, sources[0], dest, progress=tell))

    board_cp.__doc__ = _CP_PARSER.format_help()

    @no_var_expand
    @line_magic
    def board_ls(self, line: str) -> Results:
        """List; the help of its options takes this place."""
        boards, words, options = self._parse_line(_LS_PARSER, line)
        path = words[0] if words else ":/"
        return self._run_verb(lambda _: FileVerbs.ls(boards, path, recursive=options.recursive))

    board_ls.__doc__ = _LS_PARSER.format_help()

    @no_var_expand
    @line_magic
    def board_rm(self, line: str) -> Results:
        """Remove; the help of its options takes this place."""
        boards, words, options = self._parse_line(_RM_PARSER, line)
        if len(words) != 1:
            raise UsageError("%board_rm TARGET :PATH removes one file, or with -r one folder.")
        return self._run_verb(lambda _: FileVerbs.rm(boards, words[0], recursive=options.recursive))

    board_rm.__doc__ = _RM_PARSER.format_help()

    @no_var_expand
    @line_magic
    def board_sync(self, line: str) -> Results:
        """Make equal; the help of its options takes this place."""
        boards, words, options = self._parse_line(_SYNC_PARSER, line)
        if len(words) not in (1, 2):
            raise UsageError("%board_sync TARGET FOLDER [:DEST]")
        return self._run_verb(
            lambda tell: FileVerbs.sync(
                boards,
                words[0],
                words[1] if len(words) > 1 else ":/",
                delete=options.delete,
                dry_run=options.dry_run,
                progress=tell,
            )
        )

    board_sync.__doc__ = _SYNC_PARSER.format_help()

    @no_var_expand
    @cell_magic
    def board_writefile(self, line: str, cell: str) -> None:
        """Write a file; the help of its options takes this place."""
        boards, words, _ = self._parse_line(_WRITE_PARSER, line)
        if len(words) != 1:
            raise UsageError("%%board_writefile TARGET :PATH")
        self._run_verb(lambda tell: FileVerbs.put(boards, cell.encode(), words[0], progress=tell))

    board_writefile.__doc__ = _WRITE_PARSER.format_help()
