"""Base class of the magics for files, packages and boards: parse a line, run a verb, show it."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from IPython.core.error import UsageError
from IPython.core.magic import Magics

from cloudmanager.client.fleet import Boards
from cloudmanager.display.progress import VerbWithProgress
from cloudmanager.display.wait_notice import new_waits
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.results.results import Results

from . import cell_display
from .cell_display import VerbDisplay
from .magic_completion import LineWords, MagicMatcher
from .magic_line import split_words
from .magic_options import MagicParser
from .magics import NO_TARGET_ERROR, BoardMagics, fleet, target_words


def make_parser(name: str, text: str) -> MagicParser:
    """Return a new parser for the magic ``name`` whose help begins with ``text``."""
    return MagicParser(name, description=text)


class TargetMagics(Magics):
    """Magics whose lines consist of a target, words and options."""

    #: Name of each magic, including its % or %%, and its parser.
    parsers: ClassVar[Mapping[str, MagicParser]] = {}

    #: Those of them whose target is followed by local files.
    with_files: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, shell: Any, boards: BoardMagics) -> None:
        super().__init__(shell)
        self._boards = boards
        self._matcher = MagicMatcher(
            shell,
            {
                key: LineWords(target_words, parser, "files" if key in self.with_files else "")
                for key, parser in self.parsers.items()
            },
        )

    def register_hooks(self) -> None:
        """Register the completion of each magic."""
        self._matcher.register()

    def unregister_hooks(self) -> None:
        """Unregister the completion and the magics."""
        shell: Any = self.shell
        self._matcher.unregister()
        for kind, magics in self.magics.items():
            for name in magics:
                shell.magics_manager.magics[kind].pop(name, None)

    def _parse_line(self, parser: MagicParser, line: str) -> tuple[Boards, list[str], Namespace]:
        """Return the boards, words and options of a line.

        A line without a target means the boards of ``%board_use``. A first word that begins with
        ``:`` is a path on the boards, not a target.

        Raises:
            UsageError: an option is wrong, or there is no target.
        """
        parsed = split_words(parser, line)
        target = parsed.target
        words = parsed.words
        if target.startswith(":"):
            words = [target, *words]
            target = ""
        target = target or self._boards.target
        if not target:
            raise UsageError(NO_TARGET_ERROR)
        return fleet()[target], words, parsed.options

    def _run_verb(
        self, verb: VerbWithProgress, style: VerbDisplay = cell_display.FILE_DISPLAY
    ) -> Results:
        """Run a verb, show its progress and outcome, and raise the errors of boards.

        Args:
            verb: called with a function that reports progress.
            style: how it is shown.
        """
        with without_traceback():
            waits = new_waits(fleet().queued_jobs)
            results = cell_display.run_verb(verb, style, waits)
            self._boards.mark_shown(results)
            cell_display.raise_failures(results)
            return results


@contextlib.contextmanager
def without_traceback() -> Iterator[None]:
    """Make IPython show expected errors as one message, without a traceback."""
    try:
        yield
    except (CloudmanagerError, OSError, ValueError) as error:
        cell_display.hide_traceback(error)
        raise
