"""The text of a cell's jobs: boards with equal output and outcome share one block. No I/O.

    ── demo-[1-38,40] ─────────────────────
    reading the sensor
    Out: 23.5

    ── demo-39 · error ────────────────────
    Traceback (most recent call last):
      File "<cell>", line 2, in <module>
        read()
    OSError: [Errno 110] ETIMEDOUT
    not connected: demo-41

The notebook, a terminal and ``mbm`` show the same text. Output of boards is made safe to show. The
length of the text is bounded, whatever the boards print: a live display draws it again and again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cloudmanager.client.jobs import Event, Job, JobGroup, OutputPosition
from cloudmanager.results.html_table import results_html
from cloudmanager.results.results import Result, Results

from .folding import (
    OUTPUT_OMITTED,
    RESETTING,
    WAITING_FOR_BOARD,
    BoardOutput,
    Report,
    StyledLine,
    plain_text,
)
from .folding import printable_output as printable_output
from .interleaved_log import InterleavedLog

DEFAULT_WIDTH: Final = 80  # characters, if the width of the screen is unknown
#: Where the user finds the whole output; ``{board}`` is replaced by the board's name.
FULL_OUTPUT_HINT: Final = "in r['{board}'].stdout"
GROUPINGS: Final = ("same", "board", "order")
PROGRESS_AFTER_SECONDS: Final = 2.0  # as in ipyparallel


class DisplayOptions(NamedTuple):
    """Options of the text of a cell's jobs.

    Attributes:
        failures: ``show``: show all failures. ``raise``: with a single board, leave its failure
            to the exception. ``ignore``: of boards that failed, show the output only.
        full_output_hint: where the user finds the whole output; part of the note about omitted
            lines. See ``FULL_OUTPUT_HINT``.
        grouping: ``same``: boards with equal output and outcome share a block. ``board``: one
            block per board, in the target's order. ``order``: line by line as output arrives.
        progress_after: seconds after which a live view shows how many boards are done; negative:
            never.
    """

    failures: str = "show"
    full_output_hint: str = FULL_OUTPUT_HINT
    grouping: str = "same"
    progress_after: float = PROGRESS_AFTER_SECONDS


DEFAULT_OPTIONS: Final = DisplayOptions()


class CellView:
    """The text of a cell's jobs at the moment.

    Pass it the group's events (``handle_event``), or let it read the jobs (``poll_jobs``).

    Args:
        group: the jobs.
        options: how they are shown.
        clock: returns seconds since any fixed time.

    Attributes:
        options: how they are shown.
    """

    def __init__(
        self,
        group: JobGroup,
        options: DisplayOptions = DEFAULT_OPTIONS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self.options = options
        self._clock = clock
        self._started_at = clock()
        self._outputs: dict[str, BoardOutput] = {}
        self._read_positions: dict[str, OutputPosition] = {}
        self._log = InterleavedLog(group.jobs) if options.grouping == "order" else None

    def show_failures(self) -> None:
        """Show failures from now on, because no exception will report them."""
        self.options = self.options._replace(failures="show")

    def handle_event(self, event: Event) -> None:
        """Process one event of the group."""
        board = event.job.board
        output = self._output_of(board)
        if event.kind == "output":
            self._add_output(board, output, event.text)
        elif event.kind == "queued":
            output.state = _queued_state(event.text)
        elif event.kind == "resetting":
            output.state = RESETTING
        elif event.kind == "started":
            output.state = "running"
            output.since = self._clock()
        elif event.kind == "truncated":
            output.truncated = True
            if self._log is not None:
                self._log.add_lines(board, [[(OUTPUT_OMITTED, "note")]])
        elif event.kind == "ended" and event.job.result is not None:
            self._on_end(event.job.result)

    def poll_jobs(self) -> None:
        """Read output and results from the jobs themselves, if the events are not read."""
        for board, job in self._group.jobs.items():
            if not self._output_of(board).active:
                continue
            previous = self._read_positions.get(board)
            text, position = job.read_output(previous)
            if previous is not None and position[0] is not previous[0]:
                # The job dropped its oldest output: `text` is everything that it still has.
                self._outputs[board] = BoardOutput(self._started_at)
            self._read_positions[board] = position
            output = self._output_of(board)
            self._add_output(board, output, text)
            if job.result is not None:
                self._on_end(job.result)
            else:
                self._update_state(output, job)

    def lines(self, width: int = DEFAULT_WIDTH, *, final: bool = False) -> list[StyledLine]:
        """Return the text as styled lines.

        Args:
            width: characters per line. Heads are shortened to it where possible, output is not.
            final: whether the jobs have ended; the final text has larger limits.
        """
        boards = {board: self._output_of(board) for board in self._group.jobs}
        report = self._make_report(width, final)
        if self._log is None:
            lines = list(report.lines(boards, self._group.left_out))
        else:
            lines = list(
                self._log.lines(final=final, full_output_hint=self.options.full_output_hint)
            )
            lines += report.missing_lines(self._group.left_out)
        seconds = self._clock() - self._started_at
        if not final and 0 <= self.options.progress_after <= seconds:
            if lines:
                lines.append([])
            lines.append(report.progress_line(boards, seconds))
        return lines

    def text(self, width: int = DEFAULT_WIDTH, *, final: bool = False) -> str:
        """Return the text without styles and without a newline at its end; "" if empty."""
        return plain_text(self.lines(width, final=final))

    def html(self) -> str | None:
        """Return the values as an HTML table once all jobs have ended; None if text is better."""
        if self._log is not None or self.options.grouping != "same":
            return None
        results = {name: job.result for name, job in self._group.jobs.items() if job.result}
        if len(results) < len(self._group.jobs):
            return None
        return results_html(results, self._group.left_out)

    def end_lines(self, board: str, width: int = DEFAULT_WIDTH) -> list[StyledLine]:
        """Return the lines that follow the output of a board that ended: value or traceback."""
        return self._make_report(width, final=True).end_lines(board, self._output_of(board))

    def _add_output(self, board: str, output: BoardOutput, text: str) -> None:
        if not text:
            return
        output.add_output(text)
        if output.state == RESETTING:
            output.state, output.since = "running", self._clock()
        if self._log is not None:
            self._log.add_output(board, text)

    def _on_end(self, result: Result) -> None:
        output = BoardOutput.from_result(result)
        self._outputs[result.board] = output
        if self._log is not None:
            single_board = len(self._group.jobs) == 1
            report = self._make_report(DEFAULT_WIDTH, final=True)
            lines = report.outcome_lines(result.board, output, single_board=single_board)
            self._log.add_lines(result.board, lines)

    def _update_state(self, output: BoardOutput, job: Job) -> None:
        """Copy the state of a job that has not ended."""
        output.truncated = job.truncated
        output.since = self._clock() - job.elapsed()
        waits_for = job.wait.text if job.wait else ""
        states = {"queued": _queued_state(waits_for), "resetting": RESETTING}
        output.state = states.get(job.state, "running")

    def _make_report(self, width: int, final: bool) -> Report:
        return Report(
            width=width,
            final=final,
            failures=self.options.failures,
            full_output_hint=self.options.full_output_hint,
            now=self._clock(),
            grouping=self.options.grouping,
        )

    def _output_of(self, board: str) -> BoardOutput:
        return self._outputs.setdefault(board, BoardOutput(self._started_at))


def results_text(
    results: Results, width: int = DEFAULT_WIDTH, *, full_output_hint: str = FULL_OUTPUT_HINT
) -> str:
    """Return the text of results; the same as the final text of ``CellView``."""
    boards = {board: BoardOutput.from_result(result) for board, result in results.items()}
    return Report(width, True, "show", full_output_hint, 0.0).text(boards, results.left_out)


def _queued_state(waiting_for: str) -> str:
    return f"queued {printable_output(waiting_for)}" if waiting_for else WAITING_FOR_BOARD
