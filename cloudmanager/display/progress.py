"""The progress of a transfer: a line of text, or a bar in a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from cloudmanager.client.file_jobs import ProgressCallback
from cloudmanager.client.verbs import run_blocking
from cloudmanager.results.results import Results

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SHOW_AFTER_SECONDS: Final = 1.0  # a shorter transfer shows no progress
SHOW_PREPARATION_AFTER_SECONDS: Final = 2.0  # the same for the work before the first byte
_MB: Final = 1_000_000


class ProgressMeter:
    """Counts the bytes that a verb has moved.

    The link's thread updates it, the user's thread reads it.

    Args:
        clock: returns seconds since any fixed time.
        preparation: what the verb does before it moves bytes; "" if that takes no time.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, preparation: str = "") -> None:
        self._clock = clock
        self._preparation = preparation
        self._started_at = clock()
        self._boards: dict[str, tuple[int, int]] = {}

    def update(self, board: str, moved: int, total: int) -> None:
        """Set the bytes that were moved for a board, and its total."""
        self._boards[board] = (moved, total)

    @property
    def moved(self) -> int:
        """The bytes that have been moved, of all boards."""
        return sum(moved for moved, _ in list(self._boards.values()))

    @property
    def total(self) -> int:
        """The total bytes of all boards whose transfer has begun."""
        return sum(total for _, total in list(self._boards.values()))

    @property
    def should_show(self) -> bool:
        """Whether the verb has taken long enough to show its progress."""
        seconds = self._clock() - self._started_at
        if self.total:
            return seconds >= SHOW_AFTER_SECONDS
        return bool(self._preparation) and seconds >= SHOW_PREPARATION_AFTER_SECONDS

    def text(self) -> str:
        """Return the progress as one line."""
        seconds = max(self._clock() - self._started_at, 0.001)
        if not self.total:
            return f"{self._preparation} · {seconds:.0f} s"
        boards = f" on {len(self._boards)} boards" if len(self._boards) > 1 else ""
        share = 100 * self.moved // max(self.total, 1)
        rate = self.moved / seconds / 1000
        return f"{share} % of {self.total / _MB:.1f} MB{boards}, {rate:,.0f} KB/s"


#: Starts a verb that reports its progress to the given callback.
VerbWithProgress = Callable[[ProgressCallback], Coroutine[Any, Any, Results]]


def run_with_progress(
    verb: VerbWithProgress, show: Callable[[ProgressMeter], object], preparation: str = ""
) -> Results:
    """Run a verb and return its results; show its progress meanwhile.

    Args:
        verb: starts the verb with a progress callback.
        show: called again and again in this thread, once the progress is worth showing.
        preparation: what the verb does before it moves bytes.
    """
    meter = ProgressMeter(preparation=preparation)
    return run_blocking(verb(meter.update), lambda: show(meter) if meter.should_show else None)


class ProgressBar:
    """A progress bar on standard error, if that is a terminal: ``with ProgressBar() as show``."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, meter: ProgressMeter) -> None:
        """Draw the progress."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = _start_rich_bar()
            self._task = self._bar.add_task("", total=None)
        description = "" if meter.total else meter.text()
        self._bar.update(
            self._task, completed=meter.moved, total=meter.total or None, description=description
        )


def _start_rich_bar() -> RichProgress:
    from rich import progress  # importing rich takes 60 ms
    from rich.console import Console

    bar = progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar
