"""How results look: equal outcomes of several boards are one block; pure, no I/O.

    ── demo-[1-38,40] ─────────────────────
    reading the sensor
    Out: 23.5

    ── demo-39 · error ────────────────────
    Traceback (most recent call last):
      File "<cell>", line 2, in <module>
        read()
    OSError: [Errno 110] ETIMEDOUT
    not there: demo-41

The notebook, a terminal and `mbm` show the same text. What came from boards is made safe to
show. The cost of a text is bounded, whatever the boards print, so that a live display does not
grow with the square of the output.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from cloudmanager.client.jobs import Event, Job, JobGroup, OutputPosition
from cloudmanager.results.html_table import results_html
from cloudmanager.results.results import Result, Results

from .interleaved_log import InterleavedLog
from .layout import (
    OUTPUT_OMITTED,
    RESETTING,
    WAITING_FOR_BOARD,
    BoardOutput,
    Report,
    StyledLine,
    plain_text,
)
from .layout import printable_output as printable_output

DEFAULT_WIDTH: Final = 80  # characters, where nobody knows better
FULL_OUTPUT_HINT: Final = "in r['{board}'].stdout"  # where the whole output is
GROUPINGS: Final = ("same", "board", "order")
PROGRESS_AFTER_SECONDS: Final = 2.0  # seconds; as ipyparallel's


class DisplayOptions(NamedTuple):
    """How a cell's jobs are to be shown.

    Attributes:
        failures: "show"; "raise": if there is one board, its failure is left to the exception;
            "ignore": what failing boards printed is shown, and nothing else of them.
        full_output_hint: where the whole output is, for the note on omitted lines; see ``KEPT``.
        grouping: "same": boards that told the same are one block; "board": each has a block,
            in the target's order; "order": line by line, in the order of coming.
        progress_after: seconds until a live view says how many boards are done; never if negative.
    """

    failures: str = "show"
    full_output_hint: str = FULL_OUTPUT_HINT
    grouping: str = "same"
    progress_after: float = PROGRESS_AFTER_SECONDS


DEFAULT_OPTIONS: Final = DisplayOptions()


class CellView:
    """What a cell's jobs look like by now. Feed it the group's events, or let it look.

    Args:
        group: the jobs; it may be shown before the first event came.
        options: see ``Looks``.
        clock: seconds from anywhere.
    """

    def __init__(
        self,
        group: JobGroup,
        options: DisplayOptions = DEFAULT_OPTIONS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._options = options
        self._clock = clock
        self._started_at = clock()
        self._outputs: dict[str, BoardOutput] = {}
        self._read_positions: dict[str, OutputPosition] = {}
        self._log = InterleavedLog(group.jobs) if options.grouping == "order" else None

    def show_failures(self) -> None:
        """Show failures from now on: nothing will raise them."""
        self._options = self._options._replace(failures="show")

    def handle_event(self, event: Event) -> None:
        """Take one event of the group."""
        board, told = event.job.board, self._output_of(event.job.board)
        if event.kind == "output":
            self._add_output(board, told, event.text)
        elif event.kind == "queued":
            told.state = _queued_state(event.text)
        elif event.kind == "resetting":
            told.state = RESETTING
        elif event.kind == "started":
            told.state, told.since = "running", self._clock()
        elif event.kind == "truncated":
            told.truncated = True
            if self._log is not None:
                self._log.add_lines(board, [[(OUTPUT_OMITTED, "note")]])
        elif event.kind == "ended" and event.job.result is not None:
            self._on_end(event.job.result)

    def poll_jobs(self) -> None:
        """Take what the jobs have told by now, from their own memory: nobody read the events."""
        for board, job in self._group.jobs.items():
            if not self._output_of(board).active:
                continue
            text, place = job.read_output(self._read_positions.get(board))
            if board in self._read_positions and place[0] is not self._read_positions[board][0]:
                self._outputs[board] = BoardOutput(
                    self._started_at
                )  # the text has all that is kept, again
            self._read_positions[board] = place
            self._add_output(board, self._output_of(board), text)
            if job.result is not None:
                self._on_end(job.result)
            else:
                self._update_state(self._output_of(board), job)

    def lines(self, width: int = DEFAULT_WIDTH, *, final: bool = False) -> list[StyledLine]:
        """Return all blocks as lines.

        Args:
            width: characters of a line; heads keep to it where they can, output does not.
            final: nothing more will come: show more of it.
        """
        boards = {board: self._output_of(board) for board in self._group.jobs}
        page = self._make_report(width, final)
        if self._log is None:
            lines = list(page.lines(boards, self._group.left_out))
        else:
            lines = list(
                self._log.lines(final=final, full_output_hint=self._options.full_output_hint)
            )
            lines += page.missing_lines(self._group.left_out)
        seconds = self._clock() - self._started_at
        if not final and 0 <= self._options.progress_after <= seconds:
            lines += [[]] if lines else []
            lines.append(page.progress_line(boards, seconds))
        return lines

    def text(self, width: int = DEFAULT_WIDTH, *, final: bool = False) -> str:
        """Return the same as one text without a newline at its end; "" for nothing to show."""
        return plain_text(self.lines(width, final=final))

    def html(self) -> str | None:
        """Return the values as a table, once all boards have one; None where text is better."""
        if self._log is not None or self._options.grouping != "same":
            return None
        results = {name: job.result for name, job in self._group.jobs.items() if job.result}
        whole = len(results) == len(self._group.jobs)
        return results_html(results, self._group.left_out) if whole else None

    def end_lines(self, board: str, width: int = DEFAULT_WIDTH) -> list[StyledLine]:
        """Return what comes after the output of a board that ended: value or traceback."""
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
        told = self._outputs[result.board] = BoardOutput.from_result(result)
        if self._log is not None:
            alone = len(self._group.jobs) == 1
            page = self._make_report(DEFAULT_WIDTH, final=True)
            self._log.add_lines(
                result.board, page.outcome_lines(result.board, told, single_board=alone)
            )

    def _update_state(self, output: BoardOutput, job: Job) -> None:
        """Note the state of a job that has not ended."""
        output.truncated = job.truncated
        output.since = self._clock() - job.elapsed()
        named = {"queued": _queued_state(job.waiting_for), "resetting": RESETTING}
        output.state = named.get(job.state, "running")

    def _make_report(self, width: int, final: bool) -> Report:
        looks = self._options
        return Report(
            width, final, looks.failures, looks.full_output_hint, self._clock(), looks.grouping
        )

    def _output_of(self, board: str) -> BoardOutput:
        return self._outputs.setdefault(board, BoardOutput(self._started_at))


def results_text(
    results: Results, width: int = DEFAULT_WIDTH, *, full_output_hint: str = FULL_OUTPUT_HINT
) -> str:
    """Return the text of results, as ``View.text`` shows them in the end."""
    boards = {board: BoardOutput.from_result(result) for board, result in results.items()}
    return Report(width, True, "show", full_output_hint, 0.0).text(boards, results.left_out)


def _queued_state(waiting_for: str) -> str:
    return f"queued {printable_output(waiting_for)}" if waiting_for else WAITING_FOR_BOARD
