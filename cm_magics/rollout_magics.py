"""The magics about desired state: ``%fleet_plan``, ``%fleet_apply``, ``%fleet_status``."""

from __future__ import annotations

from typing import Final

from IPython.core.error import UsageError
from IPython.core.magic import line_magic, magics_class

from cloudmanager.results.fleet_plan import FleetPlan, RolloutList, started_text

from . import cell_display
from .base import TargetMagics, make_parser, without_traceback
from .magic_line import split_words
from .magic_options import MagicParser
from .magics import fleet

_PLAN_PARSER: Final = make_parser(
    "fleet_plan", "Show what applying a file would change: %fleet_plan fleet.toml"
)
_APPLY_PARSER: Final = make_parser(
    "fleet_apply", "Bring boards to what a file says: %fleet_apply fleet.toml"
)
_STATUS_PARSER: Final = make_parser(
    "fleet_status", "Show the newest rollout of each group: %fleet_status"
)


@magics_class
class RolloutMagics(TargetMagics):
    """``%fleet_plan``, ``%fleet_apply``, ``%fleet_status``."""

    parsers = {
        "%fleet_plan": _PLAN_PARSER,
        "%fleet_apply": _APPLY_PARSER,
        "%fleet_status": _STATUS_PARSER,
    }

    @line_magic
    def fleet_plan(self, line: str) -> FleetPlan:
        """Return what would change; the parser's help replaces this docstring."""
        path = _read_path(_PLAN_PARSER, line)
        with without_traceback():
            return fleet().plan(path)

    fleet_plan.__doc__ = _PLAN_PARSER.format_help()

    @line_magic
    def fleet_apply(self, line: str) -> FleetPlan:
        """Begin what a file says; the parser's help replaces this docstring."""
        path = _read_path(_APPLY_PARSER, line)
        with without_traceback():
            plan = fleet().plan(path)
            if plan.changed:
                cell_display.display_text(started_text(fleet().apply(plan), "%fleet_status"))
            return plan

    fleet_apply.__doc__ = _APPLY_PARSER.format_help()

    @line_magic
    def fleet_status(self, line: str) -> RolloutList:
        """Return the newest rollouts; the parser's help replaces this docstring."""
        if line.strip():
            raise UsageError("Usage: %fleet_status")
        with without_traceback():
            return fleet().rollouts()

    fleet_status.__doc__ = _STATUS_PARSER.format_help()


def _read_path(parser: MagicParser, line: str) -> str:
    """Return the path in a line.

    Raises:
        UsageError: it is missing, or there is more.
    """
    parsed = split_words(parser, line)
    if not parsed.target or parsed.words:
        raise UsageError(f"Usage: %{parser.prog} FILE")
    return parsed.target
