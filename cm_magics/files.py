"""The magics for boards' files: they parse; the rest is the library's."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Iterator
from typing import Any, Final

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, line_magic, magics_class, no_var_expand

from cloudmanager.errors import CloudmanagerError
from cloudmanager.fileverbs import FileVerbs
from cloudmanager.fleet import Boards
from cloudmanager.meter import Work
from cloudmanager.results import Results

from . import show
from .complete import completer
from .line import split_words
from .magics import NO_TARGET, BoardMagics, board_names, fleet
from .options import Options

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


def cp_parser() -> Options:
    """Make the parser of `%board_cp`."""
    parser = _parser("board_cp", _CP_HELP)
    parser.add_argument("-r", action="store_true", help="as in mpremote; folders go whole anyway")
    return parser


def ls_parser() -> Options:
    """Make the parser of `%board_ls`."""
    parser = _parser("board_ls", _LS_HELP)
    parser.add_argument("-r", "--recursive", action="store_true", help="the folders below, too")
    return parser


def rm_parser() -> Options:
    """Make the parser of `%board_rm`."""
    parser = _parser("board_rm", _RM_HELP)
    parser.add_argument("-r", "--recursive", action="store_true", help="a folder and all in it")
    return parser


def sync_parser() -> Options:
    """Make the parser of `%board_sync`."""
    parser = _parser("board_sync", _SYNC_HELP)
    parser.add_argument("--delete", action="store_true", help="files that are not here go there")
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    return parser


def _parser(name: str, text: str) -> Options:
    return Options(name, description=text.replace("%", "%%"))


_CP: Final = cp_parser()
_LS: Final = ls_parser()
_RM: Final = rm_parser()
_SYNC: Final = sync_parser()
_WRITE: Final = _parser("board_writefile", _WRITE_HELP)

_PARSERS: Final = {
    "%board_cp": _CP,
    "%board_ls": _LS,
    "%board_rm": _RM,
    "%board_sync": _SYNC,
    "%%board_writefile": _WRITE,
}


@magics_class
class FileMagics(Magics):
    """``%board_cp`` and its family."""

    def __init__(self, shell: Any, boards: BoardMagics) -> None:
        super().__init__(shell)
        self._boards = boards

    @no_var_expand
    @line_magic
    def board_cp(self, line: str) -> Results:
        """Copy; the help of its options takes this place."""
        boards, words, _ = self._said(_CP, line)
        if len(words) < 2:
            raise UsageError("%board_cp TARGET FROM… TO: a path on the boards begins with `:`.")
        *sources, dest = words
        if dest.startswith(":"):
            one = sources[0] if len(sources) == 1 else sources
            return self._done(lambda tell: FileVerbs.put(boards, one, dest, progress=tell))
        if len(sources) != 1 or not sources[0].startswith(":"):
            raise UsageError("Either TO or the one FROM is a path on the boards, such as `:lib/`.")
        return self._done(lambda tell: FileVerbs.get(boards, sources[0], dest, progress=tell))

    board_cp.__doc__ = _CP.format_help()

    @no_var_expand
    @line_magic
    def board_ls(self, line: str) -> Results:
        """List; the help of its options takes this place."""
        boards, words, options = self._said(_LS, line)
        path = words[0] if words else ":/"
        return self._done(lambda _: FileVerbs.ls(boards, path, recursive=options.recursive))

    board_ls.__doc__ = _LS.format_help()

    @no_var_expand
    @line_magic
    def board_rm(self, line: str) -> Results:
        """Remove; the help of its options takes this place."""
        boards, words, options = self._said(_RM, line)
        if len(words) != 1:
            raise UsageError("%board_rm TARGET :PATH removes one file, or with -r one folder.")
        return self._done(lambda _: FileVerbs.rm(boards, words[0], recursive=options.recursive))

    board_rm.__doc__ = _RM.format_help()

    @no_var_expand
    @line_magic
    def board_sync(self, line: str) -> Results:
        """Make equal; the help of its options takes this place."""
        boards, words, options = self._said(_SYNC, line)
        if len(words) not in (1, 2):
            raise UsageError("%board_sync TARGET FOLDER [:DEST]")
        return self._done(
            lambda tell: FileVerbs.sync(
                boards,
                words[0],
                words[1] if len(words) > 1 else ":/",
                delete=options.delete,
                dry_run=options.dry_run,
                progress=tell,
            )
        )

    board_sync.__doc__ = _SYNC.format_help()

    @no_var_expand
    @cell_magic
    def board_writefile(self, line: str, cell: str) -> None:
        """Write a file; the help of its options takes this place."""
        boards, words, _ = self._said(_WRITE, line)
        if len(words) != 1:
            raise UsageError("%%board_writefile TARGET :PATH")
        self._done(lambda tell: FileVerbs.put(boards, cell.encode(), words[0], progress=tell))

    board_writefile.__doc__ = _WRITE.format_help()

    def plug_in(self) -> None:
        """Add completion."""
        shell: Any = self.shell
        for key, parser in _PARSERS.items():
            shell.set_hook("complete_command", completer(board_names, parser), str_key=key)

    def unplug(self) -> None:
        """Take back what ``plug_in`` added, and the magics."""
        shell: Any = self.shell
        for key in _PARSERS:
            shell.strdispatchers["complete_command"].strs.pop(key, None)
        for kind, magics in self.magics.items():
            for name in magics:
                shell.magics_manager.magics[kind].pop(name, None)

    def _said(self, parser: Options, line: str) -> tuple[Boards, list[str], Namespace]:
        """Return boards, words and options of a line; without a target, `%board_use`'s boards."""
        said = split_words(parser, line)
        target, words = said.target, said.words
        if target.startswith(":"):
            target, words = "", [target, *words]
        target = target or self._boards.target
        if not target:
            raise UsageError(NO_TARGET)
        return fleet()[target], words, said.options

    def _done(self, work: Work) -> Results:
        """Do it, show what came of it, raise what failed."""
        with _plain_errors():
            results = show.follow_files(work)
            self._boards.note_shown(results)
            show.raise_failures(results)
            return results


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Let errors be shown as their own words, also those of this machine's files."""
    try:
        yield
    except (CloudmanagerError, OSError, ValueError) as error:
        show.render(error)
        raise
