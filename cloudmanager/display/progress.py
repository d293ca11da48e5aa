"""The progress of a verb: a line of text, or a bar in a terminal.

Nothing that lasts over two seconds is silent::

    with ProgressBar() as progress:
        results = boards.put("main.py", ":", progress=progress)
"""

from __future__ import annotations

import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cloudmanager.client.progress import ProgressCallback
from cloudmanager.results.results import Results

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import ProgressColumn

REFRESH_SECONDS: Final = 0.12  # between two updates of the display
SHOW_AFTER_SECONDS: Final = 1.0  # a shorter transfer shows no progress
SHOW_PREPARATION_AFTER_SECONDS: Final = 2.0  # the same for the work before the first byte
WORKING: Final = "working"  # what a verb does that says nothing else
_MB: Final = 1_000_000

#: Runs a verb that reports its progress to the given callback.
VerbWithProgress = Callable[[ProgressCallback], Results]


class ProgressMeter:
    """Adds up what a verb has done on each board.

    The thread that runs the verb updates it, another one shows it.

    Args:
        clock: returns seconds since any fixed time.
        preparation: what the verb does before it reports progress, or without doing so.
        unit: what is counted: "bytes" or "boards".
        waits: returns what the verb's jobs wait for, as sentences; see ``wait_sentences``.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        preparation: str = WORKING,
        unit: str = "bytes",
        waits: Callable[[], list[str]] = list,
    ) -> None:
        self._clock = clock
        self._preparation = preparation
        self._waits = waits
        self._started_at = clock()
        self._boards: dict[str, tuple[int, int]] = {}
        self.unit = unit

    def update(self, board: str, done: int, total: int) -> None:
        """Set how much is done for a board, and its total; a verb's ``progress=``."""
        self._boards[board] = (done, total)

    @property
    def done(self) -> int:
        """How much is done, of all boards."""
        return sum(done for done, _ in list(self._boards.values()))

    @property
    def total(self) -> int:
        """The total of all boards that have begun."""
        return sum(total for _, total in list(self._boards.values()))

    @property
    def should_show(self) -> bool:
        """Whether the verb has taken long enough to show its progress."""
        seconds = self._clock() - self._started_at
        if self.total:
            return seconds >= SHOW_AFTER_SECONDS
        return seconds >= SHOW_PREPARATION_AFTER_SECONDS

    def text(self) -> str:
        """Return the progress as one line, and what its jobs wait for, a line for each reason."""
        return "\n".join([self._done_text(), *self._waits()])

    def _done_text(self) -> str:
        seconds = max(self._clock() - self._started_at, 0.001)
        if not self.total:
            return f"{self._preparation} · {seconds:.0f} s"
        if self.unit == "boards":
            return f"{self.done:,} of {self.total:,} boards are done · {seconds:.0f} s"
        boards = f" on {len(self._boards)} boards" if len(self._boards) > 1 else ""
        share = 100 * self.done // max(self.total, 1)
        rate = self.done / seconds / 1000
        return f"{share} % of {self.total / _MB:.1f} MB{boards}, {rate:,.0f} KB/s"


class LiveProgress:
    """Shows the progress of a verb while it runs; as a context manager, returns a ``progress=``.

    Args:
        show: called again and again in a thread of its own, once the progress is worth showing;
            not after the end of the block.
        preparation: what the verb does before it reports progress, or without doing so.
        unit: what is counted: "bytes" or "boards".
        waits: see ``ProgressMeter``.
    """

    def __init__(
        self,
        show: Callable[[ProgressMeter], object],
        preparation: str = WORKING,
        *,
        unit: str = "bytes",
        waits: Callable[[], list[str]] = list,
    ) -> None:
        self._show = show
        self._meter = ProgressMeter(preparation=preparation, unit=unit, waits=waits)
        self._ended = threading.Event()
        context = contextvars.copy_context()  # by which ipykernel knows the cell that displays
        self._thread = threading.Thread(
            target=context.run, args=(self._show_repeatedly,), name="cloudmanager-progress"
        )
        self._thread.daemon = True

    def __enter__(self) -> ProgressCallback:
        self._thread.start()
        return self._meter.update

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _show_repeatedly(self) -> None:
        with contextlib.suppress(OSError):  # such as a terminal that was closed
            while not self._ended.wait(REFRESH_SECONDS):
                if self._meter.should_show:
                    self._show(self._meter)


class ProgressBar(LiveProgress):
    """A progress bar on standard error, if that is a terminal; it disappears at the end.

    Args:
        preparation: what the verb does before it reports progress, or without doing so.
        unit: what is counted: "bytes" or "boards".
        quiet: whether to show nothing, for ``--json``.
        waits: see ``ProgressMeter``.
    """

    def __init__(
        self,
        preparation: str = WORKING,
        *,
        unit: str = "bytes",
        quiet: bool = False,
        waits: Callable[[], list[str]] = list,
    ) -> None:
        super().__init__(self._draw, preparation, unit=unit, waits=waits)
        self._bar: RichProgress | None = None
        self._quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> ProgressCallback:
        return self._meter.update if self._quiet else super().__enter__()

    def __exit__(self, *_: object) -> None:
        if not self._quiet:
            super().__exit__()
        if self._bar is not None:
            self._bar.stop()

    def _draw(self, meter: ProgressMeter) -> None:
        if self._bar is None:
            self._bar = _start_rich_bar()
            self._task = self._bar.add_task("", total=None)
        self._bar.columns = _columns(meter)
        description = "" if meter.total else meter.text()
        self._bar.update(
            self._task, completed=meter.done, total=meter.total or None, description=description
        )


def _columns(meter: ProgressMeter) -> tuple[ProgressColumn, ...]:
    """Return what a bar shows: before there is progress, only what the verb does."""
    from rich import progress  # importing rich takes 60 ms

    columns: list[ProgressColumn] = [progress.TextColumn("{task.description}")]
    columns.append(progress.BarColumn())
    if not meter.total:
        return tuple(columns)
    columns.append(progress.TaskProgressColumn())
    if meter.unit == "bytes":
        columns += [progress.DownloadColumn(), progress.TransferSpeedColumn()]
    else:
        columns += [progress.MofNCompleteColumn(), progress.TextColumn(meter.unit)]
    columns.append(progress.TimeRemainingColumn())
    return tuple(columns)


def _start_rich_bar() -> RichProgress:
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(console=Console(stderr=True), transient=True)
    bar.start()
    return bar
