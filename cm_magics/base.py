"""What the magics for files, packages and boards share: a line of words, and what comes of it."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from IPython.core.error import UsageError
from IPython.core.magic import Magics

from cloudmanager.client.fleet import Boards
from cloudmanager.display.progress import Work
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.results.results import Results

from . import cell_display
from .magic_completion import completer
from .magic_line import split_words
from .magic_options import Options
from .magics import NO_TARGET, BoardMagics, board_names, fleet


def parser(name: str, text: str) -> Options:
    """Make the parser of a magic."""
    return Options(name, description=text)


class WordMagics(Magics):
    """Magics whose lines are a target, words and options."""

    #: Each magic, with its signs, and its parser.
    parsers: ClassVar[Mapping[str, Options]] = {}

    def __init__(self, shell: Any, boards: BoardMagics) -> None:
        super().__init__(shell)
        self._boards = boards

    def plug_in(self) -> None:
        """Add completion."""
        shell: Any = self.shell
        for key, known in self.parsers.items():
            shell.set_hook("complete_command", completer(board_names, known), str_key=key)

    def unplug(self) -> None:
        """Take back what ``plug_in`` added, and the magics."""
        shell: Any = self.shell
        for key in self.parsers:
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

    def _done(self, work: Work, *, before: str = "") -> Results:
        """Do it, show what came of it, raise what failed; ``before``: what it begins with."""
        with plain_errors():
            results = cell_display.follow_files(work, before)
            self._boards.note_shown(results)
            cell_display.raise_failures(results)
            return results


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Let errors be shown as their own words, also those of this machine's files."""
    try:
        yield
    except (CloudmanagerError, OSError, ValueError) as error:
        cell_display.render(error)
        raise
