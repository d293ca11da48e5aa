"""How far a transfer is, for a person who waits: one line, or one bar in a terminal."""

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

SHOW_AFTER_SECONDS: Final = 1.0  # seconds until it is shown: what is short needs no bar
SHOW_PREPARATION_AFTER_SECONDS: Final = (
    2.0  # seconds until it is shown what is done before bytes are moved
)
_MB: Final = 1_000_000


class ProgressMeter:
    """The bytes that a verb has moved; fed by the link's thread, read by a person's.

    Args:
        clock: tells seconds.
        preparation: what is done before any byte is moved; "" for nothing that lasts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, preparation: str = "") -> None:
        self._clock = clock
        self._preparation = preparation
        self._started_at = clock()
        self._boards: dict[str, tuple[int, int]] = {}

    def update(self, board: str, moved: int, total: int) -> None:
        """Take a board's word."""
        self._boards[board] = (moved, total)

    @property
    def moved(self) -> int:
        """The bytes of all boards that have been moved."""
        return sum(moved for moved, _ in list(self._boards.values()))

    @property
    def total(self) -> int:
        """The bytes of all boards that there are to move, as far as they have begun."""
        return sum(total for _, total in list(self._boards.values()))

    @property
    def should_show(self) -> bool:
        """Whether it has lasted long enough to be shown."""
        begun = bool(self.total or self._preparation)
        return begun and self._clock() - self._started_at >= (
            SHOW_AFTER_SECONDS if self.total else SHOW_PREPARATION_AFTER_SECONDS
        )

    def text(self) -> str:
        """Return it in one line."""
        seconds = max(self._clock() - self._started_at, 0.001)
        if not self.total:
            return f"{self._preparation} · {seconds:.0f} s"
        boards = f" on {len(self._boards)} boards" if len(self._boards) > 1 else ""
        share = 100 * self.moved // max(self.total, 1)
        rate = self.moved / seconds / 1000
        return f"{share} % of {self.total / _MB:.1f} MB{boards}, {rate:,.0f} KB/s"


#: A verb that is yet to be told whom to tell how far it is.
VerbWithProgress = Callable[[ProgressCallback], Coroutine[Any, Any, Results]]


def run_with_progress(
    verb: VerbWithProgress, show: Callable[[ProgressMeter], object], preparation: str = ""
) -> Results:
    """Do the work; meanwhile, ``show`` is called in this thread, once it is due."""
    meter = ProgressMeter(preparation=preparation)
    return run_blocking(verb(meter.update), lambda: show(meter) if meter.should_show else None)


class ProgressBar:
    """A bar on standard error, if that is a terminal: ``with Bar() as show``."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, meter: ProgressMeter) -> None:
        """Draw it."""
        if not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = _start_rich_bar()
            self._task = self._bar.add_task("", total=None)
        words = "" if meter.total else meter.text()
        self._bar.update(
            self._task, completed=meter.moved, total=meter.total or None, description=words
        )


def _start_rich_bar() -> RichProgress:
    from rich import progress  # rich takes 60 ms to import
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
