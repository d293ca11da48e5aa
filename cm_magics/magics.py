"""The magics: they parse; everything else is the library's, and how it looks is show.py's."""

from __future__ import annotations

import contextlib
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.display.cell_view import FULL_OUTPUT_HINT, DisplayOptions, results_text
from cloudmanager.display.tables import fleet_table
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.targets import parse_target
from cloudmanager.protocol.text import fold_names, nearest_name
from cloudmanager.results.results import Results

from . import cell_display
from .cell_display import BLOCKING_RUNNER, CellRunner
from .comment_magic import uncomment
from .magic_completion import make_completer
from .magic_line import CodeLine, split_cell_line, split_line
from .magic_options import MagicParser, make_board_parser, make_result_parser

if TYPE_CHECKING:
    from .dashboard_widget import Dashboard

NO_TARGET_ERROR: Final = (
    "Say on which boards: `%%board TARGET`, or choose them once with `%board_use TARGET`."
)
_NO_CODE_ERROR: Final = "Write code behind the target, or `%%board` with the code below it."

_LOCAL_AWAIT_ERROR: Final = (
    "--local cannot run a cell that awaits: a notebook's own loop is busy with it."
)
_NO_CELL_ERROR: Final = (
    "No cell was submitted with --noblock yet: `%%board --noblock TARGET` does so."
)

_BOARD_PARSER: Final = make_board_parser()
_PLOT_PARSER: Final = MagicParser("board_plot")
_RESULT_PARSER: Final = make_result_parser()
_MAX_SUBMITTED: Final = 100  # cells that were submitted with --noblock

_fleet: Fleet | None = None
T = TypeVar("T")


def fleet() -> Fleet:
    """Return the session's one Fleet. It dials when it is first used, and again when it must."""
    global _fleet
    if _fleet is None:
        _fleet = Fleet()
    return _fleet


def close_fleet() -> None:
    """Close the session's Fleet, if there is one; what runs goes on on the boards."""
    global _fleet
    if live := sys.modules.get("cm_magics.live_widget"):  # else no widget was ever made
        live.stop_all_watching()
    held, _fleet = _fleet, None
    if held is not None:
        held.close()


def dashboard(target: str = "") -> Dashboard:
    """Return the fleet as a live table, for a notebook to show.

    Args:
        target: what its filter begins with.

    Raises:
        TargetError: that is malformed.
    """
    from .dashboard_widget import Dashboard

    return Dashboard(fleet(), parse_target(target) if target else None)


@contextlib.contextmanager
def _without_traceback() -> Iterator[None]:
    """Let errors be shown as their own words."""
    try:
        yield
    except CloudmanagerError as error:
        cell_display.hide_traceback(error)
        raise


@magics_class
class BoardMagics(Magics):
    """``%%board`` and its family."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self.target = ""  # what %board_use chose
        self.chosen_text = "%%board without a target means"  # it, as %board_use tells
        self._shown_results: Results | None = None  # shown by the cell that runs now
        self._submitted: deque[JobGroup] = deque(maxlen=_MAX_SUBMITTED)  # with --noblock

    @no_var_expand
    @line_cell_magic
    def board(self, line: str, cell: str | None = None) -> Results | JobGroup | None:
        """Run code on boards; the help of its options takes this place."""
        if cell is None:
            return _run_blocking(self._run_line(split_line(_BOARD_PARSER, line)))
        return _run_blocking(self.board_cell(line, cell))

    board.__doc__ = _BOARD_PARSER.format_help()

    def read_target(self, line: str) -> str:
        """Return the target of a `%%board` line that may be half typed; "" for none."""
        try:
            return split_cell_line(_BOARD_PARSER, line).target
        except UsageError:
            return ""

    async def board_cell(
        self, line: str, cell: str, runner: CellRunner = BLOCKING_RUNNER
    ) -> JobGroup | None:
        """Run the cell below a `%%board` line; a kernel has a way of its own to follow it."""
        done = await self._run_below(split_cell_line(_BOARD_PARSER, line), cell, runner)
        return done if isinstance(done, JobGroup) else None  # results are shown already

    @no_var_expand
    @line_magic
    def board_result(self, line: str) -> Results:
        """Wait for a cell; the help of its options takes this place."""
        options = split_cell_line(_RESULT_PARSER, line)
        group = self._find_submitted(options.target)
        with _without_traceback():
            kept = _full_output_hint(options.options, "NAME")
            return _run_blocking(self._follow_cell(group, options.options, kept, background=True))

    board_result.__doc__ = _RESULT_PARSER.format_help()

    @no_var_expand
    @line_magic
    def boards(self, line: str) -> None:
        """Show the fleet as a table: `%boards`, or some of it: `%boards TARGET`."""
        with _without_traceback():
            cell_display.display_text(fleet_table(fleet().boards(line.strip() or None)))

    @no_var_expand
    @line_magic
    def board_use(self, line: str) -> None:
        """Choose boards for every `%%board` without a target: `%board_use TARGET`.

        Alone, it tells which are chosen, and which boards that means now.
        """
        target = line.strip() or self.target
        if not target:
            cell_display.display_text("No boards are chosen. `%board_use TARGET` chooses some.")
            return
        with _without_traceback():
            found = fleet().boards(target)
        self.target = target
        who = _describe_boards(found)
        now = f", which is {who}" if who != target else ""
        cell_display.display_text(f"{self.chosen_text} {target}{now}.")

    def mark_shown(self, results: Results) -> None:
        """Take it that these results are shown already, in the cell that runs now."""
        self._shown_results = results

    @no_var_expand
    @line_magic
    def fleet(self, line: str) -> object:
        """Show the fleet as a live table: `%fleet`, or some of it: `%fleet TARGET`.

        Sort, filter, select; run a cell on the selection, interrupt, reset, label it. A double
        click, or Enter, opens a board's page. It lives while cells run. In Python it is
        `cm_magics.dashboard()`.
        """
        with _without_traceback():
            return dashboard(line.strip())

    @no_var_expand
    @line_magic
    def board_plot(self, line: str) -> object:
        """Plot what boards emit, as it comes: `%board_plot TARGET [NAME…]`.

        Boards emit by `cm.emit(temp=21.5)`. Without a name, all numbers are plotted.
        """
        said = split_line(_PLOT_PARSER, line)
        if not said.target:
            raise UsageError("Say of which boards: `%board_plot TARGET [NAME…]`.")
        with _without_traceback():
            fleet().samples(said.target, 1)  # who is not there is an error here, and not below
        from .plot import Plot

        return Plot(fleet(), said.target, said.code.split())

    def register_hooks(self) -> None:
        """Add completion, and how results look."""
        shell: Any = self.shell
        for key, hook in _COMPLETERS.items():
            shell.set_hook("complete_command", hook, str_key=key)
        shell.display_formatter.ipython_display_formatter.for_type(Results, self._hide_if_shown)
        shell.display_formatter.formatters["text/plain"].for_type(Results, _pretty_print)
        shell.events.register("post_execute", self._forget_shown)
        shell.input_transformers_cleanup.append(uncomment)

    def unregister_hooks(self) -> None:
        """Take back what ``plug_in`` added, and the magics."""
        shell: Any = self.shell
        for key in _COMPLETERS:
            shell.strdispatchers["complete_command"].strs.pop(key, None)
        shell.display_formatter.ipython_display_formatter.type_printers.pop(Results, None)
        shell.display_formatter.formatters["text/plain"].type_printers.pop(Results, None)
        shell.events.unregister("post_execute", self._forget_shown)
        shell.input_transformers_cleanup.remove(uncomment)
        for kind, names in self.magics.items():
            for name in names:
                shell.magics_manager.magics[kind].pop(name, None)

    async def _run_line(self, parsed: CodeLine) -> Results | JobGroup:
        if not parsed.target:
            raise UsageError(NO_TARGET_ERROR)
        if not parsed.code:
            raise UsageError(_NO_CODE_ERROR)
        return await self._run_cell(parsed.target, parsed.code, parsed.options, FULL_OUTPUT_HINT)

    async def _run_below(
        self, parsed: CodeLine, code: str, runner: CellRunner
    ) -> Results | JobGroup:
        target = parsed.target or self.target
        if not target:
            raise UsageError(NO_TARGET_ERROR)
        return await self._run_cell(
            target, code, parsed.options, _full_output_hint(parsed.options, "r"), runner
        )

    async def _run_cell(
        self,
        target: str,
        code: str,
        options: Namespace,
        full_output_hint: str,
        runner: CellRunner = BLOCKING_RUNNER,
    ) -> Results | JobGroup:
        """Run code, show what it does, keep the results, raise what failed."""
        inputs = self._input_values(options)
        failed_here = None
        if options.local and cell_display.needs_await(self.shell, code):
            raise UsageError(_LOCAL_AWAIT_ERROR)
        with _without_traceback():
            group = self._submit(target, code, options, inputs, runner)
            if options.local:
                failed_here = cell_display.run_locally(self.shell, code)
                if isinstance(failed_here, KeyboardInterrupt):
                    group.interrupt()
            if options.noblock:
                self._submitted.append(group)
                self._store_value(options, group)
                done: Results | JobGroup = group
            else:
                done = await self._follow_cell(group, options, full_output_hint, runner)
        if failed_here is not None and options.on_error == "raise":
            raise failed_here
        return done

    def _submit(
        self, target: str, code: str, options: Namespace, inputs: dict[str, Any], runner: CellRunner
    ) -> JobGroup:
        heard = {} if options.noblock else runner.submit_arguments()
        try:
            return fleet()[target].submit(
                code,
                inputs=inputs,
                timeout=options.timeout,
                fresh=options.fresh,
                wait=options.wait,
                answers=not options.noblock and cell_display.can_answer(),
                **heard,
            )
        except (TypeError, ValueError) as error:
            if not inputs:
                raise
            raise UsageError(str(error)) from None

    async def _follow_cell(
        self,
        group: JobGroup,
        options: Namespace,
        full_output_hint: str,
        runner: CellRunner = BLOCKING_RUNNER,
        *,
        background: bool = False,
    ) -> Results:
        """Show what a cell does, keep the results, raise what failed."""
        looks = DisplayOptions(
            options.on_error, full_output_hint, options.group_outputs, options.progress_after
        )
        results = await runner.follow_cell(group, looks, background=background)
        self._shown_results = results
        self._store_value(options, results)
        if options.on_error == "raise":
            cell_display.raise_failures(results)
        return results

    def _store_value(self, options: Namespace, value: object) -> None:
        if options.out and self.shell is not None:
            self.shell.user_ns[options.out] = value

    def _input_values(self, options: Namespace) -> dict[str, Any]:
        """Return the variables that the boards are to have."""
        there = self._variables()
        names = [name for names in options.input for name in names]
        for name in names:
            if name not in there:
                meant = nearest_name(name, (each for each in there if not each.startswith("_")))
                guess = f" Did you mean {meant}?" if meant else ""
                raise UsageError(f"-i: there is no variable {name} here.{guess}")
        return {name: there[name] for name in names}

    def _find_submitted(self, name: str) -> JobGroup:
        """Return the cell that somebody asks for."""
        if not name:
            if not self._submitted:
                raise UsageError(_NO_CELL_ERROR)
            return self._submitted[-1]
        group = self._variables().get(name)
        if name.isdecimal():
            numbers = {job.number: each for each in self._submitted for job in each.jobs.values()}
            group = numbers.get(int(name))
        if not isinstance(group, JobGroup):
            raise UsageError(f"{name} is no cell that was submitted with --noblock.")
        return group

    def _variables(self) -> dict[str, Any]:
        return self.shell.user_ns if self.shell is not None else {}

    def _hide_if_shown(self, results: Results) -> None:
        """Show nothing as the value of a cell that has shown these results already."""
        if results is not self._shown_results:
            raise NotImplementedError  # IPython's word for: go on as if I were not here
        cell_display.erase_prompt()

    def _forget_shown(self) -> None:
        self._shown_results = None


def _run_blocking(verb: Coroutine[Any, Any, T]) -> T:
    """Run to its end what waits by blocking, and so never awaits."""
    try:
        verb.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("it awaited")


def board_names() -> list[str]:
    """Return all boards' names, for completion."""
    try:
        return [board["name"] for board in fleet().boards()]
    except CloudmanagerError:
        return []  # Tab is no place to complain


def _full_output_hint(options: Namespace, name: str) -> str:
    """Say where the whole output of a cell is."""
    if options.out:
        return FULL_OUTPUT_HINT.replace("r[", f"{options.out}[")
    return f"`-o {name}` keeps them {FULL_OUTPUT_HINT.replace('r[', f'{name}[')}"


def _pretty_print(results: Results, printer: Any, _: bool) -> None:
    printer.text(results_text(results) or repr(results))


def _describe_boards(boards: list[dict[str, Any]]) -> str:
    """Say which boards these are, and which of them are not there."""
    there = fold_names(board["name"] for board in boards if board["connected_since"])
    away = fold_names(board["name"] for board in boards if not board["connected_since"])
    return "; ".join(filter(None, (there, away and f"not there: {away}")))


def _submitted_names() -> list[str]:
    """Return the names of cells that were submitted with --noblock."""
    shell = get_ipython()
    there = shell.user_ns if shell is not None else {}
    return [name for name, value in there.items() if isinstance(value, JobGroup) and name[0] != "_"]


_COMPLETERS: Final[dict[str, Callable[[Any, Any], list[str]]]] = {
    "%%board": make_completer(board_names, _BOARD_PARSER),
    "%board": make_completer(board_names, _BOARD_PARSER, code=True),
    "%board_result": make_completer(_submitted_names, _RESULT_PARSER, extra=()),
    "%board_plot": make_completer(board_names),
    "%board_use": make_completer(board_names),
    "%fleet": make_completer(board_names),
    "%boards": make_completer(board_names),
}
