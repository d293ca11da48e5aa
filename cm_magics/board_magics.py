"""The magics that manage boards, such as ``%board_reset``, and ``%fleet_health``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from cloudmanager.client.health import Health
from cloudmanager.client.run_arguments import add_wait_options, wait_keywords
from cloudmanager.display.text_tables import boards_text
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.fleet_plan import replacement_text
from cloudmanager.results.history import History
from cloudmanager.results.results import Results

from . import cell_display
from .base import TargetMagics, make_parser, without_traceback
from .magic_options import MagicParser, check_wait_options
from .magics import fleet, with_variables


def make_reset_parser() -> MagicParser:
    """Make the parser of `%board_reset`."""
    text = "Soft-reset boards, and wait until they are back: %board_reset lab-*"
    parser = make_parser("board_reset", text)
    parser.add_argument(
        "--hard", action="store_true", help="reset the chip, as its RESET button does"
    )
    add_wait_options(parser)
    return parser


_RESET_PARSER: Final = make_reset_parser()
_INFO_PARSER: Final = make_parser(
    "board_info", "Show the facts of boards, online or offline: %board_info lab-1"
)


def make_history_parser() -> MagicParser:
    """Make the parser of `%board_history`."""
    text = "Show what ran on boards: cells, files, installs, resets: %board_history lab-1"
    parser = make_parser("board_history", text)
    parser.add_argument(
        "--since", metavar="SPAN", help="only what ran in the last SPAN, such as 2h"
    )
    parser.add_argument(
        "--export", metavar="FILE.ipynb", help="write a notebook that runs the cells again"
    )
    return parser


_HISTORY_PARSER: Final = make_history_parser()
_HEALTH_PARSER: Final = make_parser(
    "fleet_health", "Show what is wrong in the fleet, and what to do: %fleet_health"
)
_REPLACE_PARSER: Final = make_parser(
    "board_replace", "Let a new board become what a dead one was: %board_replace lab-1 spare-1"
)
_RENAME_PARSER: Final = make_parser("board_rename", "Rename a board: %board_rename lab-1 roof")


def _reset_display(kind: str) -> cell_display.VerbDisplay:
    """Return how a reset is shown: the boards that were reset, if any."""

    def text(results: Results) -> str:
        succeeded = fold_names(name for name, result in results.items() if result.ok)
        return f"{succeeded}: {kind} reset done." if succeeded else ""

    return cell_display.VerbDisplay("resetting", unit="boards", text=text, html=lambda _: None)


@magics_class
class ManagementMagics(TargetMagics):
    """Reset, describe, rename and replace boards, what ran there; ``%fleet_health``."""

    parsers = {
        "%board_reset": _RESET_PARSER,
        "%board_info": _INFO_PARSER,
        "%board_rename": _RENAME_PARSER,
        "%board_history": _HISTORY_PARSER,
        "%board_replace": _REPLACE_PARSER,
        "%fleet_health": _HEALTH_PARSER,
    }

    @line_magic
    @with_variables
    def board_reset(self, line: str) -> Results:
        """Soft-reset boards; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_RESET_PARSER, line)
        check_wait_options(options)
        waits = wait_keywords(options)
        if words:
            raise UsageError("Usage: %board_reset TARGET")
        return self._run_verb(
            lambda progress: boards.reset(hard=options.hard, progress=progress, **waits),
            _reset_display("hard" if options.hard else "soft"),
        )

    board_reset.__doc__ = _RESET_PARSER.format_help()

    @line_magic
    @with_variables
    def board_info(self, line: str) -> None:
        """Show the facts of boards; the parser's help replaces this docstring."""
        boards, words, _ = self._parse_line(_INFO_PARSER, line)
        if words:
            raise UsageError("Usage: %board_info TARGET")
        with without_traceback():
            cell_display.display_text(boards_text(boards.info()))

    board_info.__doc__ = _INFO_PARSER.format_help()

    @line_magic
    @with_variables
    def board_rename(self, line: str) -> None:
        """Rename a board; the parser's help replaces this docstring."""
        boards, words, _ = self._parse_line(_RENAME_PARSER, line)
        if len(words) != 1:
            raise UsageError("Usage: %board_rename BOARD NAME")
        with without_traceback():
            name = fleet().rename(boards.target, words[0])
            cell_display.display_text(f"{boards.target} was renamed to {name}.")

    board_rename.__doc__ = _RENAME_PARSER.format_help()

    @line_magic
    @with_variables
    def board_history(self, line: str) -> History | None:
        """Return what ran on boards; the parser's help replaces this docstring."""
        boards, words, options = self._parse_line(_HISTORY_PARSER, line)
        if words:
            raise UsageError("Usage: %board_history TARGET [--since SPAN] [--export FILE.ipynb]")
        with without_traceback():
            history = boards.history(options.since)
            if options.export is None:
                return history
            Path(options.export).write_text(history.to_notebook(), encoding="utf-8")
            cell_display.display_text(f"Wrote {len(history):,} jobs to {options.export}.")
            return None

    board_history.__doc__ = _HISTORY_PARSER.format_help()

    @line_magic
    @with_variables
    def board_replace(self, line: str) -> None:
        """Replace a dead board; the parser's help replaces this docstring."""
        boards, words, _ = self._parse_line(_REPLACE_PARSER, line)
        if len(words) != 1:
            raise UsageError("Usage: %board_replace OLD NEW")
        with without_traceback():
            done = fleet().replace(boards.target, words[0])
            cell_display.display_text(replacement_text(done, "%fleet_status"))

    board_replace.__doc__ = _REPLACE_PARSER.format_help()

    @line_magic
    def fleet_health(self, line: str) -> Health:
        """Return what is wrong in the fleet; the parser's help replaces this docstring."""
        if line.strip():
            raise UsageError("Usage: %fleet_health")
        with without_traceback():
            return fleet().health()

    fleet_health.__doc__ = _HEALTH_PARSER.format_help()
