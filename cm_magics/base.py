"""What the magics for files, packages and boards share: a line of words, and what comes of it."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from IPython.core.error import UsageError
from IPython.core.magic import Magics

from cloudmanager.client.fleet import Boards
from cloudmanager.display.progress import VerbWithProgress
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.results.results import Results

from . import cell_display
from .magic_completion import make_completer
from .magic_line import split_words
from .magic_options import MagicParser
from .magics import NO_TARGET_ERROR, BoardMagics, board_names, fleet


def make_parser(name: str, text: str) -> MagicParser:
    """Make the parser of a magic."""
    return MagicParser(name, description=text)


class TargetMagics(Magics):
    """Magics whose lines are a target, words and options."""

    #: Each magic, with its signs, and its parser.
    parsers: ClassVar[Mapping[str, MagicParser]] = {}

    def __init__(self, shell: Any, boards: BoardMagics) -> None:
        super().__init__(shell)
        self._boards = boards

    def register_hooks(self) -> None:
        """Add completion."""
        shell: Any = self.shell
        for key, known in self.parsers.items():
            shell.set_hook("complete_command", make_completer(board_names, known), str_key=key)

    def unregister_hooks(self) -> None:
        """Take back what ``plug_in`` added, and the magics."""
        shell: Any = self.shell
        for key in self.parsers:
            shell.strdispatchers["complete_command"].strs.pop(key, None)
        for kind, magics in self.magics.items():
            for name in magics:
                shell.magics_manager.magics[kind].pop(name, None)

    def _parse_line(self, parser: MagicParser, line: str) -> tuple[Boards, list[str], Namespace]:
        """Return boards, words and options of a line; without a target, `%board_use`'s boards."""
        said = split_words(parser, line)
        target, words = said.target, said.words
        if target.startswith(":"):
            target, words = "", [target, *words]
        target = target or self._boards.target
        if not target:
            raise UsageError(NO_TARGET_ERROR)
        return fleet()[target], words, said.options

    def _run_verb(self, verb: VerbWithProgress, *, preparation: str = "") -> Results:
        """Do it, show what came of it, raise what failed; ``preparation``: what it begins with."""
        with without_traceback():
            results = cell_display.run_file_verb(verb, preparation)
            self._boards.mark_shown(results)
            cell_display.raise_failures(results)
            return results


@contextlib.contextmanager
def without_traceback() -> Iterator[None]:
    """Let errors be shown as their own words, also those of this machine's files."""
    try:
        yield
    except (CloudmanagerError, OSError, ValueError) as error:
        cell_display.hide_traceback(error)
        raise
