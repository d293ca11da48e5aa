"""The magics for boards themselves: reset them, tell what they are, call them another name."""

from __future__ import annotations

from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class, no_var_expand

from cloudmanager.display.tables import facts_text
from cloudmanager.protocol.text import fold
from cloudmanager.results.results import Results

from . import cell_display
from .base import WordMagics, parser, plain_errors
from .magics import fleet

_RESET: Final = parser("board_reset", "Have boards make a soft reset: %board_reset lab-*")
_INFO: Final = parser("board_info", "Show what boards are, there or not: %board_info lab-1")
_RENAME: Final = parser("board_rename", "Give a board another name: %board_rename lab-1 roof")


@magics_class
class ManageMagics(WordMagics):
    """``%board_reset``, ``%board_info``, ``%board_rename``."""

    parsers = {"%board_reset": _RESET, "%board_info": _INFO, "%board_rename": _RENAME}

    @no_var_expand
    @line_magic
    def board_reset(self, line: str) -> Results:
        """Reset; the help of its options takes this place."""
        boards, words, _ = self._said(_RESET, line)
        if words:
            raise UsageError("%board_reset TARGET")
        with plain_errors():
            results = boards.reset()
            self._boards.note_shown(results)
            if back := [name for name, result in results.items() if result.ok]:
                cell_display.publish(f"{fold(back)}: back from a soft reset.")
            cell_display.raise_failures(results)
            return results

    board_reset.__doc__ = _RESET.format_help()

    @no_var_expand
    @line_magic
    def board_info(self, line: str) -> None:
        """Show what boards are; the help of its options takes this place."""
        boards, words, _ = self._said(_INFO, line)
        if words:
            raise UsageError("%board_info TARGET")
        with plain_errors():
            cell_display.publish(facts_text(boards.info()))

    board_info.__doc__ = _INFO.format_help()

    @no_var_expand
    @line_magic
    def board_rename(self, line: str) -> None:
        """Rename a board; the help of its options takes this place."""
        boards, words, _ = self._said(_RENAME, line)
        if len(words) != 1:
            raise UsageError("%board_rename BOARD NAME")
        with plain_errors():
            name = fleet().rename(boards.target, words[0])
            cell_display.publish(f"{boards.target} is called {name} now.")

    board_rename.__doc__ = _RENAME.format_help()
