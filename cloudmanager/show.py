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
from typing import Final

from .jobs import Event, JobGroup, Results
from .layout import Page, Told
from .layout import printable as printable

WIDTH: Final = 80  # characters, where nobody knows better
KEPT: Final = "in r['{board}'].stdout"  # where the whole output is


class View:
    """What a cell's jobs look like by now. Feed it the group's events.

    Args:
        group: the jobs; it may be shown before the first event came.
        failures: "show"; "raise": if there is one board, its failure is left to the exception;
            "ignore": what failing boards printed is shown, and nothing else of them.
        kept: where the whole output is, such as ``KEPT``; for the note on what is left out.
        clock: seconds from anywhere.
    """

    def __init__(
        self,
        group: JobGroup,
        *,
        failures: str = "show",
        kept: str = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group = group
        self.failures = failures
        self._kept = kept
        self._clock = clock
        self._born = clock()
        self._told: dict[str, Told] = {}

    def take(self, event: Event) -> None:
        """Take one event of the group."""
        told = self._of(event.job.board)
        if event.kind == "output":
            told.print(event.text)
        elif event.kind == "queued":
            told.state = f"queued {printable(event.text)}".rstrip()
        elif event.kind == "started":
            told.state, told.since = "running", self._clock()
        elif event.kind == "truncated":
            told.truncated = True
        elif event.kind == "ended" and event.job.result is not None:
            self._told[event.job.board] = Told.of(event.job.result)

    def text(self, width: int = WIDTH, *, final: bool = False) -> str:
        """Return all blocks as one text without a newline at its end; "" for nothing to show.

        Args:
            width: characters of a line; heads keep to it where they can, output does not.
            final: nothing more will come: show more of it.
        """
        boards = {board: self._of(board) for board in self._group.jobs}
        return self._page(width, final).text(boards, self._group.left_out)

    def ending(self, board: str, width: int = WIDTH) -> str:
        """Return what comes after the output of a board that ended: value or traceback."""
        return self._page(width, final=True).ending(board, self._of(board))

    def _page(self, width: int, final: bool) -> Page:
        return Page(width, final, self.failures, self._kept, self._clock())

    def _of(self, board: str) -> Told:
        return self._told.setdefault(board, Told(self._born))


def results_text(results: Results, width: int = WIDTH, *, kept: str = KEPT) -> str:
    """Return the text of results, as ``View.text`` shows them in the end."""
    boards = {board: Told.of(result) for board, result in results.items()}
    return Page(width, True, "show", kept, 0.0).text(boards, results.left_out)
