"""The magics that run cells and show the fleet: ``%board``, ``%%board``, ``%boards``, ``%fleet``.

They parse a line and call the library; ``cell_display`` shows the results.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from IPython.core.error import UsageError
from IPython.core.getipython import get_ipython
from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

from cloudmanager.client.fleet import Fleet
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.log_lines import LogFollower
from cloudmanager.client.run_arguments import run_keywords
from cloudmanager.client.runner import run_blocking
from cloudmanager.display.cell_view import FULL_OUTPUT_HINT, DisplayOptions, results_text
from cloudmanager.display.log_view import log_rows
from cloudmanager.display.text_tables import fleet_table, job_text
from cloudmanager.display.waiting_view import waiting_text
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.targets import parse_target
from cloudmanager.protocol.text import fold_names, nearest_name
from cloudmanager.results.results import Results

from . import cell_display
from .cell_display import MakeOutput
from .comment_magic import uncomment
from .magic_completion import LineWords, MagicMatcher
from .magic_line import (
    CodeLine,
    expand_variables,
    read_target,
    remove_comment,
    split_cell_line,
    split_line,
)
from .magic_options import (
    check_wait_options,
    make_board_parser,
    make_logs_parser,
    make_plot_parser,
    make_result_parser,
    read_plot_names,
)

if TYPE_CHECKING:
    from .dashboard_widget import Dashboard

NO_TARGET_ERROR: Final = (
    "There is no target: write it after the magic's name, or choose boards once with "
    "`%board_use TARGET`."
)
_NO_LINE_TARGET_ERROR: Final = "There is no target: write `%board TARGET CODE`."
_NO_CODE_ERROR: Final = (
    "No code follows the target {}: write `%board TARGET CODE`, or use `%%board` with the code "
    "below it."
)
_EMPTY_CELL_ERROR: Final = (
    "The cell is empty: write its code below the `%%board` line. `%board_reset TARGET` restarts "
    "boards."
)
_LOCAL_AWAIT_ERROR: Final = (
    "--local cannot run a cell that awaits: the notebook's event loop is running already."
)
_NO_CELL_ERROR: Final = "No cell was submitted with --noblock yet: use `%%board --noblock TARGET`."

_BOARD_PARSER: Final = make_board_parser()
_LOGS_PARSER: Final = make_logs_parser()
_PLOT_PARSER: Final = make_plot_parser()
_RESULT_PARSER: Final = make_result_parser()
#: Frames from a magic to the code that runs it, which may be in a function of the user.
_MAGIC_TO_USER: Final = 2
_MAX_SUBMITTED: Final = 100  # background cells that %board_result can find by number

_Outcome = TypeVar("_Outcome")

_fleet: Fleet | None = None


def fleet() -> Fleet:
    """Return the session's only Fleet, which connects when it is first used, and reconnects."""
    global _fleet
    if _fleet is None:
        _fleet = Fleet()
    return _fleet


def close_fleet() -> None:
    """Close the session's Fleet, if there is one; running cells continue on the boards."""
    global _fleet
    # Not imported here: loading anywidget is slow, and unnecessary if no widget was created.
    if live_widget := sys.modules.get("cm_magics.live_widget"):
        live_widget.stop_all_watching()
    closing = _fleet
    _fleet = None
    if closing is not None:
        closing.close()


def dashboard(target: str = "") -> Dashboard:
    """Return the fleet as a live table, for a notebook to show.

    Args:
        target: the initial text of its filter; "" shows all boards.

    Raises:
        TargetError: the target is malformed.
    """
    from .dashboard_widget import Dashboard

    return Dashboard(fleet(), parse_target(target) if target else None)


def with_variables(magic: Callable[..., _Outcome]) -> Callable[..., _Outcome]:
    """Replace variables in the line of a magic, as ``expand_variables`` does, and remove a comment.

    IPython's own replacement leaves a line as it is if one variable does not exist.
    """

    @functools.wraps(magic)
    def expanded(self: Magics, line: str, *cell: str) -> _Outcome:
        shell: Any = self.shell
        variables = {**shell.user_ns, **sys._getframe(_MAGIC_TO_USER).f_locals}
        return magic(self, expand_variables(remove_comment(line), variables), *cell)

    return no_var_expand(expanded)


@contextlib.contextmanager
def _without_traceback() -> Iterator[None]:
    """Make IPython show errors of this library as one message, without a traceback."""
    try:
        yield
    except CloudmanagerError as error:
        cell_display.hide_traceback(error)
        raise


@magics_class
class BoardMagics(Magics):
    """``%%board`` and the magics that run cells, choose boards and show the fleet."""

    def __init__(self, shell: Any) -> None:
        super().__init__(shell)
        self._matcher = MagicMatcher(shell, _LINES)
        self.target = ""  # the default target, set by %board_use
        self.chosen_text = "%%board without a target means"  # how %board_use shows the target
        self.own_cell = "a cell without `%%board`"  # what runs in the notebook's own Python
        self._shown_results: Results | None = None  # what the running cell has displayed
        self._submitted: deque[JobGroup] = deque(maxlen=_MAX_SUBMITTED)  # with --noblock

    @no_var_expand
    @line_cell_magic
    def board(self, line: str, cell: str | None = None) -> Results | JobGroup | None:
        """Run code on boards; the parser's help replaces this docstring."""
        variables = {**self._variables(), **sys._getframe(_MAGIC_TO_USER).f_locals}
        if cell is None:
            parsed = split_line(_BOARD_PARSER, line, lambda text: expand_variables(text, variables))
            return run_blocking(self._run_line(parsed))
        below = self.board_cell(expand_variables(remove_comment(line), variables), cell)
        group = run_blocking(below)
        if group is None and self._shown_results is not None:
            cell_display.remember_value(self.shell, self._shown_results)
        return group

    board.__doc__ = _BOARD_PARSER.format_help()

    def expand(self, line: str) -> str:
        """Replace the notebook's variables in a `%%board` line, `{name}` and `$name`."""
        return expand_variables(remove_comment(line), self._variables())

    def read_target(self, line: str) -> str:
        """Return the target of a `%%board` line that may be incomplete; "" if it has none."""
        try:
            return split_cell_line(_BOARD_PARSER, self.expand(line)).target
        except UsageError:
            return ""

    async def board_cell(
        self, line: str, cell: str, make_output: MakeOutput | None = None
    ) -> JobGroup | None:
        """Run the cell below a `%%board` line; a coroutine for ``runner``, which awaits futures.

        Args:
            line: the options and the target.
            cell: the code.
            make_output: makes what shows the output; a kernel has its own.

        Returns:
            The running cell with ``--noblock``; else None, since the results are shown already.
        """
        outcome = await self._run_below(split_cell_line(_BOARD_PARSER, line), cell, make_output)
        return outcome if isinstance(outcome, JobGroup) else None

    @line_magic
    @with_variables
    def board_result(self, line: str) -> Results | None:
        """Wait for a background cell; the parser's help replaces this docstring."""
        options = split_cell_line(_RESULT_PARSER, line)
        number = options.target
        if number.isdecimal() and int(number) not in self._submitted_by_number():
            with _without_traceback():
                cell_display.display_text(job_text(fleet().job(int(number))))
            return None
        group = self._find_submitted(number)
        with _without_traceback():
            hint = _full_output_hint(options.options, "NAME")
            return run_blocking(self._follow_cell(group, options.options, hint, background=True))

    board_result.__doc__ = _RESULT_PARSER.format_help()

    @line_magic
    @with_variables
    def boards(self, line: str) -> None:
        """Show the fleet as a table: `%boards`, or part of it: `%boards TARGET`."""
        with _without_traceback():
            boards = fleet().boards(_read_line(line) or None)
            cell_display.display_text(fleet_table(boards), boards._repr_html_() if boards else None)

    @line_magic
    @with_variables
    def board_use(self, line: str) -> None:
        """Choose the boards for every `%%board` without a target: `%board_use TARGET`.

        Without a target, it shows the current choice and the boards that match it now.
        """
        target = _read_line(line) or self.target
        if not target:
            cell_display.display_text("No boards are chosen: use `%board_use TARGET`.")
            return
        with _without_traceback():
            matching = fleet().boards(target)
        self.target = target
        names = _describe_boards(matching)
        meaning = f", which is {names}" if names != target else ""
        cell_display.display_text(f"{self.chosen_text} {target}{meaning}.")

    def mark_shown(self, results: Results) -> None:
        """Remember that the running cell has displayed these results already."""
        self._shown_results = results

    @line_magic
    @with_variables
    def fleet(self, line: str) -> object:
        """Show the fleet as a live table: `%fleet`, or part of it: `%fleet TARGET`.

        Sort, filter and select boards; run a cell on them, interrupt, reset or label them. A double
        click, or Enter, opens a board's page. The table is updated while cells run. In Python, use
        `cm_magics.dashboard()`.
        """
        with _without_traceback():
            return dashboard(_read_line(line))

    @line_magic
    @with_variables
    def board_plot(self, line: str) -> object:
        """Plot the values that boards emit; the parser's help replaces this docstring."""
        parsed = split_line(_PLOT_PARSER, line)
        if not parsed.target:
            raise UsageError("There is no target: write `%board_plot TARGET [NAME…]`.")
        with _without_traceback():
            fleet().samples(parsed.target, 1)  # raises now if a board does not exist
        from .plot import Plot

        names, since = read_plot_names(parsed.code, parsed.options.since)
        with _without_traceback():
            return Plot(fleet(), parsed.target, names, since)

    board_plot.__doc__ = _PLOT_PARSER.format_help()

    @line_magic
    @with_variables
    def board_logs(self, line: str) -> None:
        """Show what boards print outside of cells; the parser's help replaces this docstring."""
        parsed = split_line(_LOGS_PARSER, line)
        if not parsed.target:
            raise UsageError("There is no target: write `%board_logs TARGET`.")
        since = parsed.options.since
        boards = fleet()[parsed.target]
        with _without_traceback():
            if parsed.options.follow:
                _follow_logs(boards.logs(since, follow=True))
                return
            rows = log_rows(boards.logs(since))
        nothing = f"{parsed.target}: nothing was printed outside of cells."
        cell_display.display_text("\n".join(rows) or nothing)

    board_logs.__doc__ = _LOGS_PARSER.format_help()

    def register_hooks(self) -> None:
        """Register completion, the formatters of results, and `# %%board` as a first line."""
        shell: Any = self.shell
        self._matcher.register()
        shell.display_formatter.ipython_display_formatter.for_type(Results, self._hide_if_shown)
        shell.display_formatter.formatters["text/plain"].for_type(Results, _pretty_print)
        shell.events.register("post_execute", self._forget_shown)
        cell_display.install_display_hook(shell, lambda value: value is self._shown_results)
        shell.input_transformers_cleanup.append(uncomment)

    def unregister_hooks(self) -> None:
        """Undo ``register_hooks``, and unregister the magics."""
        shell: Any = self.shell
        self._matcher.unregister()
        shell.display_formatter.ipython_display_formatter.type_printers.pop(Results, None)
        shell.display_formatter.formatters["text/plain"].type_printers.pop(Results, None)
        shell.events.unregister("post_execute", self._forget_shown)
        cell_display.remove_display_hook(shell)
        shell.input_transformers_cleanup.remove(uncomment)
        for kind, names in self.magics.items():
            for name in names:
                shell.magics_manager.magics[kind].pop(name, None)

    async def _run_line(self, parsed: CodeLine) -> Results | JobGroup:
        if not parsed.target:
            raise UsageError(_NO_LINE_TARGET_ERROR)
        if not parsed.code:
            raise UsageError(_NO_CODE_ERROR.format(parsed.target))
        return await self._run_cell(parsed.target, parsed.code, parsed.options, FULL_OUTPUT_HINT)

    async def _run_below(
        self, parsed: CodeLine, code: str, make_output: MakeOutput | None
    ) -> Results | JobGroup:
        target = parsed.target or self.target
        if not target:
            raise UsageError(NO_TARGET_ERROR)
        if not (code.strip() or parsed.options.fresh):
            raise UsageError(_EMPTY_CELL_ERROR)
        return await self._run_cell(
            target, code, parsed.options, _full_output_hint(parsed.options, "r"), make_output
        )

    async def _run_cell(
        self,
        target: str,
        code: str,
        options: Namespace,
        full_output_hint: str,
        make_output: MakeOutput | None = None,
    ) -> Results | JobGroup:
        """Run code on boards, show its output, store the results, raise the failures."""
        inputs = self._input_values(options)
        check_wait_options(options)
        local_error = None
        if options.local and cell_display.needs_await(self.shell, code):
            raise UsageError(_LOCAL_AWAIT_ERROR)
        with _without_traceback():
            group = self._submit(target, code, options, inputs)
            if options.when_online:
                return await self._show_waiting(group, options)
            if options.local:
                local_error = cell_display.run_locally(self.shell, code)
                if isinstance(local_error, KeyboardInterrupt):
                    group.interrupt()
            if options.noblock:
                self._submitted.append(group)
                self._store_value(options, group)
                outcome: Results | JobGroup = group
            else:
                outcome = await self._follow_cell(group, options, full_output_hint, make_output)
        if local_error is not None and options.on_error == "raise":
            raise local_error
        return outcome

    def _submit(
        self, target: str, code: str, options: Namespace, inputs: dict[str, Any]
    ) -> JobGroup:
        try:
            return fleet()[target].submit(
                code,
                inputs=inputs,
                **run_keywords(options),
                answers=not options.noblock and cell_display.can_answer(),
                listen=not options.noblock,
            )
        except (TypeError, ValueError) as error:
            if not inputs:
                raise
            cure = f" It can be used in {self.own_cell}." if isinstance(error, TypeError) else ""
            raise UsageError(f"{error}{cure}") from None

    async def _follow_cell(
        self,
        group: JobGroup,
        options: Namespace,
        full_output_hint: str,
        make_output: MakeOutput | None = None,
        *,
        background: bool = False,
    ) -> Results:
        """Show a cell's output until it ends, store the results, raise the failures."""
        display_options = DisplayOptions(
            options.on_error, full_output_hint, options.group_outputs, options.progress_after
        )
        results = await cell_display.follow_cell(
            group, display_options, make_output, background=background
        )
        self._shown_results = results
        self._store_value(options, results)
        if options.on_error == "raise":
            cell_display.raise_failures(results, self._own_names_hint(results))
        return results

    def _own_names_hint(self, results: Results) -> str:
        """Return what to do if boards lack a name that the notebook has; "" otherwise."""
        variables = self._variables()
        missing = {cell_display.missing_name(result) for result in results.failed.values()}
        names = sorted(name for name in missing if name in variables and name[0] != "_")
        if not names:
            return ""
        text = f"The notebook has {' and '.join(names)}: use {self.own_cell}"
        if any(isinstance(variables[name], (Results, JobGroup)) for name in names):
            return f"{text}."
        return f"{text}, or send it to the boards: `%%board -i {','.join(names)} TARGET`."

    async def _show_waiting(self, group: JobGroup, options: Namespace) -> Results:
        """Show which jobs wait on the server for their boards."""
        results = await group.completed()
        self._shown_results = results
        self._store_value(options, results)
        cell_display.display_text(waiting_text(results))
        return results

    def _store_value(self, options: Namespace, value: object) -> None:
        if options.out and self.shell is not None:
            self.shell.user_ns[options.out] = value

    def _input_values(self, options: Namespace) -> dict[str, Any]:
        """Return the variables named with ``-i``, with their values.

        Raises:
            UsageError: a variable does not exist.
        """
        variables = self._variables()
        names = [name for names in options.input for name in names]
        for name in names:
            if name not in variables:
                public_names = (each for each in variables if not each.startswith("_"))
                similar = nearest_name(name, public_names)
                hint = f" Did you mean {similar}?" if similar else ""
                raise UsageError(f"-i: the notebook has no variable {name}.{hint}")
        return {name: variables[name] for name in names}

    def _find_submitted(self, name: str) -> JobGroup:
        """Return a background cell by its variable or by the number of a job; "" means the last."""
        if not name:
            if not self._submitted:
                raise UsageError(_NO_CELL_ERROR)
            return self._submitted[-1]
        group = self._variables().get(name)
        if name.isdecimal():
            group = self._submitted_by_number().get(int(name))
        if not isinstance(group, JobGroup):
            raise UsageError(f"{name} is not a cell that was submitted with --noblock.")
        return group

    def _submitted_by_number(self) -> dict[int, JobGroup]:
        """Return the background cells by the numbers of their jobs."""
        return {
            job.number: submitted
            for submitted in self._submitted
            for job in submitted.jobs.values()
        }

    def _variables(self) -> dict[str, Any]:
        return self.shell.user_ns if self.shell is not None else {}

    def _hide_if_shown(self, results: Results) -> None:
        """Display nothing for the value of a cell that has displayed these results already."""
        if results is not self._shown_results:
            raise NotImplementedError  # IPython then uses the other formatters

    def _forget_shown(self) -> None:
        self._shown_results = None


def _follow_logs(follower: LogFollower) -> None:
    """Print new lines until the user interrupts the cell."""
    with follower, contextlib.suppress(KeyboardInterrupt):
        for lines in follower.batches():
            sys.stdout.write("\n".join([*log_rows(lines), ""]))
            sys.stdout.flush()


def target_words() -> list[str]:
    """Return what a target can be: all boards' names and labels, for completion."""
    try:
        boards = fleet().boards()
    except CloudmanagerError:
        return []  # completion shows no errors
    names = [board["name"] for board in boards]
    labels = {f"{key}={value}" for board in boards for key, value in board["labels"].items()}
    return [*names, *labels, "all"]


def _read_line(line: str) -> str:
    """Return the target of a line that contains nothing else."""
    return read_target(remove_comment(line))


def _full_output_hint(options: Namespace, name: str) -> str:
    """Return the end of the line that replaces omitted output: where the whole output is."""
    if options.out:
        return FULL_OUTPUT_HINT.replace("r[", f"{options.out}[")
    return f"`-o {name}` stores them {FULL_OUTPUT_HINT.replace('r[', f'{name}[')}"


def _pretty_print(results: Results, printer: Any, _: bool) -> None:
    printer.text(results_text(results) or repr(results))


def _describe_boards(boards: list[dict[str, Any]]) -> str:
    """Return the names of the boards that are connected, then of those that are not."""
    online = fold_names(board["name"] for board in boards if board["connected_since"])
    missing = fold_names(board["name"] for board in boards if not board["connected_since"])
    return "; ".join(filter(None, (online, missing and f"not connected: {missing}")))


def _submitted_names() -> list[str]:
    """Return the names of variables that hold a cell submitted with --noblock."""
    shell = get_ipython()
    variables = shell.user_ns if shell is not None else {}
    return [
        name
        for name, value in variables.items()
        if isinstance(value, JobGroup) and not name.startswith("_")
    ]


#: Name of each magic of ``BoardMagics`` -> what can be on its line.
_LINES: Final = {
    "%%board": LineWords(target_words, _BOARD_PARSER),
    "%board": LineWords(target_words, _BOARD_PARSER, "code"),
    "%board_result": LineWords(_submitted_names, _RESULT_PARSER),
    "%board_plot": LineWords(target_words),
    "%board_logs": LineWords(target_words, _LOGS_PARSER),
    "%board_use": LineWords(target_words),
    "%fleet": LineWords(target_words),
    "%boards": LineWords(target_words),
}
