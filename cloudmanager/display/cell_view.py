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

from cloudmanager.client.jobs import Event, Job, JobGroup, Place
from cloudmanager.results.html_table import results_html
from cloudmanager.results.results import Result, Results

from .interleaved_log import Record
from .layout import LEFT_OUT, RESETTING, WAITING, Line, Page, Told, plain
from .layout import printable as printable

WIDTH: Final = 80  # characters, where nobody knows better
KEPT: Final = "in r['{board}'].stdout"  # where the whole output is
GROUPED: Final = ("same", "board", "order")
PROGRESS_AFTER: Final = 2.0  # seconds; as ipyparallel's


class Looks(NamedTuple):
    """How a cell's jobs are to be shown.

    Attributes:
        failures: "show"; "raise": if there is one board, its failure is left to the exception;
            "ignore": what failing boards printed is shown, and nothing else of them.
        kept: where the whole output is, such as ``KEPT``; for the note on what is left out.
        grouped: "same": boards that told the same are one block; "board": each has a block,
            in the target's order; "order": line by line, in the order of coming.
        progress_after: seconds until a live view says how many boards are done; never if negative.
    """

    failures: str = "show"
    kept: str = KEPT
    grouped: str = "same"
    progress_after: float = PROGRESS_AFTER


LOOKS: Final = Looks()


class View:
    """What a cell's jobs look like by now. Feed it the group's events, or let it look.

    Args:
        group: the jobs; it may be shown before the first event came.
        looks: see ``Looks``.
        clock: seconds from anywhere.
    """

    def __init__(
        self,
        group: JobGroup,
        looks: Looks = LOOKS,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self._looks = looks
        self._clock = clock
        self._born = clock()
        self._told: dict[str, Told] = {}
        self._read: dict[str, Place] = {}
        self._record = Record(group.jobs) if looks.grouped == "order" else None

    def show_failures(self) -> None:
        """Show failures from now on: nothing will raise them."""
        self._looks = self._looks._replace(failures="show")

    def take(self, event: Event) -> None:
        """Take one event of the group."""
        board, told = event.job.board, self._of(event.job.board)
        if event.kind == "output":
            self._print(board, told, event.text)
        elif event.kind == "queued":
            told.state = _waiting(event.text)
        elif event.kind == "resetting":
            told.state = RESETTING
        elif event.kind == "started":
            told.state, told.since = "running", self._clock()
        elif event.kind == "truncated":
            told.truncated = True
            if self._record is not None:
                self._record.say(board, [[(LEFT_OUT, "note")]])
        elif event.kind == "ended" and event.job.result is not None:
            self._end(event.job.result)

    def look(self) -> None:
        """Take what the jobs have told by now, from their own memory: nobody read the events."""
        for board, job in self._group.jobs.items():
            if not self._of(board).active:
                continue
            text, place = job.read(self._read.get(board))
            if board in self._read and place[0] is not self._read[board][0]:
                self._told[board] = Told(self._born)  # the text has all that is kept, again
            self._read[board] = place
            self._print(board, self._of(board), text)
            if job.result is not None:
                self._end(job.result)
            else:
                self._note(self._of(board), job)

    def lines(self, width: int = WIDTH, *, final: bool = False) -> list[Line]:
        """Return all blocks as lines.

        Args:
            width: characters of a line; heads keep to it where they can, output does not.
            final: nothing more will come: show more of it.
        """
        boards = {board: self._of(board) for board in self._group.jobs}
        page = self._page(width, final)
        if self._record is None:
            lines = list(page.lines(boards, self._group.left_out))
        else:
            lines = list(self._record.lines(final=final, kept=self._looks.kept))
            lines += page.missing(self._group.left_out)
        seconds = self._clock() - self._born
        if not final and 0 <= self._looks.progress_after <= seconds:
            lines += [[]] if lines else []
            lines.append(page.progress(boards, seconds))
        return lines

    def text(self, width: int = WIDTH, *, final: bool = False) -> str:
        """Return the same as one text without a newline at its end; "" for nothing to show."""
        return plain(self.lines(width, final=final))

    def html(self) -> str | None:
        """Return the values as a table, once all boards have one; None where text is better."""
        if self._record is not None or self._looks.grouped != "same":
            return None
        results = {name: job.result for name, job in self._group.jobs.items() if job.result}
        whole = len(results) == len(self._group.jobs)
        return results_html(results, self._group.left_out) if whole else None

    def ending(self, board: str, width: int = WIDTH) -> list[Line]:
        """Return what comes after the output of a board that ended: value or traceback."""
        return self._page(width, final=True).ending(board, self._of(board))

    def _print(self, board: str, told: Told, text: str) -> None:
        if not text:
            return
        told.print(text)
        if told.state == RESETTING:
            told.state, told.since = "running", self._clock()
        if self._record is not None:
            self._record.print(board, text)

    def _end(self, result: Result) -> None:
        told = self._told[result.board] = Told.of(result)
        if self._record is not None:
            alone = len(self._group.jobs) == 1
            page = self._page(WIDTH, final=True)
            self._record.say(result.board, page.outcome(result.board, told, alone=alone))

    def _note(self, told: Told, job: Job) -> None:
        """Note the state of a job that has not ended."""
        told.truncated = job.truncated
        told.since = self._clock() - job.elapsed()
        named = {"queued": _waiting(job.waits), "resetting": RESETTING}
        told.state = named.get(job.state, "running")

    def _page(self, width: int, final: bool) -> Page:
        looks = self._looks
        return Page(width, final, looks.failures, looks.kept, self._clock(), looks.grouped)

    def _of(self, board: str) -> Told:
        return self._told.setdefault(board, Told(self._born))


def results_text(results: Results, width: int = WIDTH, *, kept: str = KEPT) -> str:
    """Return the text of results, as ``View.text`` shows them in the end."""
    boards = {board: Told.of(result) for board, result in results.items()}
    return Page(width, True, "show", kept, 0.0).text(boards, results.left_out)


def _waiting(behind: str) -> str:
    return f"queued {printable(behind)}" if behind else WAITING
