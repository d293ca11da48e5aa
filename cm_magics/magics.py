"""The magics: they parse; everything else is the library's, and how it looks is show.py's."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import Any, Final

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

from cloudmanager.errors import CloudmanagerError
from cloudmanager.fleet import Fleet
from cloudmanager.jobs import Results
from cloudmanager.show import KEPT, results_text
from cloudmanager.tables import fleet_table
from cloudmanager.text import fold

from . import show
from .complete import completer
from .line import Line, split_cell_line, split_line
from .options import board_parser

_NO_TARGET: Final = (
    "Say on which boards: `%%board TARGET`, or choose them once with `%board_use TARGET`."
)
_NO_CODE: Final = "Write code behind the target, or `%%board` with the code below it."

_BOARD: Final = board_parser()

_fleet: Fleet | None = None


def fleet() -> Fleet:
    """Return the session's one Fleet. It dials when it is first used, and again when it must."""
    global _fleet
    if _fleet is None:
        _fleet = Fleet()
    return _fleet


def hang_up() -> None:
    """Close the session's Fleet, if there is one; what runs goes on on the boards."""
    global _fleet
    held, _fleet = _fleet, None
    if held is not None:
        held.close()


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Let errors be shown as their own words."""
    try:
        yield
    except CloudmanagerError as error:
        show.render(error)
        raise


@magics_class
class BoardMagics(Magics):
    """``%%board`` and its family."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._target = ""  # what %board_use chose
        self._seen: Results | None = None  # shown by the cell that runs now

    @no_var_expand
    @line_cell_magic
    def board(self, line: str, cell: str | None = None) -> Results | None:
        """Run code on boards; the help of its options takes this place."""
        if cell is None:
            return self._board_line(split_line(_BOARD, line))
        self._board_cell(split_cell_line(_BOARD, line), cell)
        return None

    board.__doc__ = _BOARD.format_help()

    @no_var_expand
    @line_magic
    def boards(self, line: str) -> None:
        """Show the fleet as a table: `%boards`, or some of it: `%boards TARGET`."""
        with _plain_errors():
            show.publish(fleet_table(fleet().boards(line.strip() or None)))

    @no_var_expand
    @line_magic
    def board_use(self, line: str) -> None:
        """Choose boards for every `%%board` without a target: `%board_use TARGET`.

        Alone, it tells which are chosen, and which boards that means now.
        """
        target = line.strip() or self._target
        if not target:
            show.publish("No boards are chosen. `%board_use TARGET` chooses some.")
            return
        with _plain_errors():
            found = fleet().boards(target)
        self._target = target
        who = _who(found)
        now = f", which is {who}" if who != target else ""
        show.publish(f"%%board without a target means {target}{now}.")

    def plug_in(self) -> None:
        """Add completion, and how results look."""
        shell: Any = self.shell
        for key, hook in _COMPLETERS.items():
            shell.set_hook("complete_command", hook, str_key=key)
        shell.display_formatter.ipython_display_formatter.for_type(Results, self._once)
        shell.display_formatter.formatters["text/plain"].for_type(Results, _pretty)
        shell.events.register("post_execute", self._forget)

    def unplug(self) -> None:
        """Take back what ``plug_in`` added, and the magics."""
        shell: Any = self.shell
        for key in _COMPLETERS:
            shell.strdispatchers["complete_command"].strs.pop(key, None)
        shell.display_formatter.ipython_display_formatter.type_printers.pop(Results, None)
        shell.display_formatter.formatters["text/plain"].type_printers.pop(Results, None)
        shell.events.unregister("post_execute", self._forget)
        for kind, names in self.magics.items():
            for name in names:
                shell.magics_manager.magics[kind].pop(name, None)

    def _board_line(self, said: Line) -> Results:
        if not said.target:
            raise UsageError(_NO_TARGET)
        if not said.code:
            raise UsageError(_NO_CODE)
        return self._run(said.target, said.code, said.options, KEPT)

    def _board_cell(self, said: Line, code: str) -> None:
        target = said.target or self._target
        if not target:
            raise UsageError(_NO_TARGET)
        out = said.options.out
        kept = KEPT.replace("r[", f"{out}[") if out else f"`-o r` keeps them {KEPT}"
        self._run(target, code, said.options, kept)

    def _run(self, target: str, code: str, options: Namespace, kept: str) -> Results:
        """Run code, show what it does, keep the results, raise what failed."""
        with _plain_errors():
            group = fleet()[target].submit(
                code, timeout=options.timeout, listen=True, answers=show.can_answer()
            )
            results = show.follow(group, failures=options.on_error, kept=kept)
            self._seen = results
            if options.out and self.shell is not None:
                self.shell.user_ns[options.out] = results
            if options.on_error == "raise":
                show.raise_failures(results)
            return results

    def _once(self, results: Results) -> None:
        """Show nothing as the value of a cell that has shown these results already."""
        if results is not self._seen:
            raise NotImplementedError  # IPython's word for: go on as if I were not here
        show.erase_prompt()

    def _forget(self) -> None:
        self._seen = None


def _names() -> list[str]:
    try:
        return [board["name"] for board in fleet().boards()]
    except CloudmanagerError:
        return []  # Tab is no place to complain


def _pretty(results: Results, printer: Any, _: bool) -> None:
    printer.text(results_text(results) or repr(results))


def _who(boards: list[dict[str, Any]]) -> str:
    """Say which boards these are, and which of them are not there."""
    there = fold(board["name"] for board in boards if board["connected_since"])
    away = fold(board["name"] for board in boards if not board["connected_since"])
    return "; ".join(filter(None, (there, away and f"not there: {away}")))


_COMPLETERS: Final[dict[str, Callable[[Any, Any], list[str]]]] = {
    "%%board": completer(_names, _BOARD),
    "%board": completer(_names, _BOARD, code=True),
    "%board_use": completer(_names),
    "%boards": completer(_names),
}
