"""Jobs -> the notebook: one display, changed in place while the cell runs.

There are three ways, the text is the same. A kernel whose frontend takes input (JupyterLab, VS
Code) sees the display change. One whose frontend does not (nbclient, nbval, or any with
``CM_PLAIN`` set) gets it once, in the end: nbval, for one, would keep the first state. IPython in
a terminal is a terminal.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any, Final, Protocol

from IPython.core.error import StdinNotImplementedError
from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from cloudmanager.client.jobs import Event, JobGroup
from cloudmanager.display import progress, terminal
from cloudmanager.display.cell_view import CellView, DisplayOptions, printable_output
from cloudmanager.display.file_report import files_text
from cloudmanager.display.layout import head_text
from cloudmanager.display.progress import VerbWithProgress
from cloudmanager.protocol.errors import BoardError, CloudmanagerError
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results


def can_answer() -> bool:
    """Whether a person is there to answer ``input()``."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return terminal.can_answer()
    # What the frontend said of the cell that runs now.
    return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def follow_cell(group: JobGroup, options: DisplayOptions, *, background: bool = False) -> Results:
    """Show what a cell does until all boards are done; return the results.

    Args:
        group: what was submitted, with ``listen=True`` unless ``background``.
        options: how it is to look.
        background: the group has been running by itself.

    Raises:
        KeyboardInterrupt: the stop button; the boards were interrupted, and that is shown. If
            ``background``, they go on, and that is said.
    """
    try:
        if getattr(get_ipython(), "kernel", None) is None:
            return terminal.follow_cell(group, options=options, background=background)
        view = CellView(group, options)
        screen = CellDisplay(view, live=is_live())
        return terminal.run_display(
            group, view, screen.draw, screen.ask, screen.close, background=background
        )
    except KeyboardInterrupt as stop:
        render_interrupt(stop, group, background=background)
        raise


def run_file_verb(verb: VerbWithProgress, preparation: str = "") -> Results:
    """Do what is done with files, show how far it is, and what came of it.

    Args:
        verb: what is to be done.
        preparation: what it does before it moves bytes.

    Raises:
        CloudmanagerError, OSError: nothing was begun, or not all could be.
    """
    if getattr(get_ipython(), "kernel", None) is None:
        with progress.ProgressBar() as bar:
            results = progress.run_with_progress(verb, bar, preparation)
        handle = None
    else:
        line = _ProgressLine(live=can_answer() and not os.environ.get("CM_PLAIN"))
        results = progress.run_with_progress(verb, line.draw, preparation)
        handle = line.handle
    text = files_text(results)
    if handle is not None:
        handle.update(_mime_bundle(text), raw=True)
    elif text and (results.ok or len(results) > 1):
        display_text(text)
    return results


class _ProgressLine:
    """One line in a notebook that says how far a transfer is."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self.handle: DisplayHandle | None = None

    def draw(self, meter: progress.ProgressMeter) -> None:
        """Show it."""
        if self.handle is not None:
            self.handle.update(_mime_bundle(meter.text()), raw=True)
        elif self._live:
            self.handle = display(_mime_bundle(meter.text()), raw=True, display_id=True)


def render_interrupt(interrupt: BaseException, group: JobGroup, *, background: bool) -> None:
    """Let an interrupt say what became of the cell."""
    names = fold_names(group.jobs)
    told = f"the cell goes on, on {names}" if background else f"the cell was stopped on {names}"
    hide_traceback(interrupt, f"KeyboardInterrupt: {told}.")


def is_live() -> bool:
    """Whether a display may change in place, since a person looks at it."""
    return can_answer() and not os.environ.get("CM_PLAIN")


class CellRunner(Protocol):
    """A way of waiting for a cell."""

    def submit_arguments(self) -> dict[str, Any]:
        """Return what ``submit`` is told, so that the cell's events are heard."""

    async def follow_cell(
        self, group: JobGroup, options: DisplayOptions, *, background: bool
    ) -> Results:
        """Show what it does, as ``follow`` below."""


class _BlockingRunner:
    """Waits in the calling thread: nothing else goes on there."""

    def submit_arguments(self) -> dict[str, Any]:
        return {"listen": True}

    async def follow_cell(
        self, group: JobGroup, options: DisplayOptions, *, background: bool
    ) -> Results:
        return follow_cell(group, options, background=background)


BLOCKING_RUNNER: Final = _BlockingRunner()


def needs_await(shell: Any, code: str) -> bool:
    """Whether a cell cannot run here, since it awaits while this thread's loop is running."""
    try:
        asyncio.get_running_loop()
        python = shell.transform_cell(code)
    except (RuntimeError, SyntaxError):  # no loop; or no Python, which will be said
        return False
    return bool(shell.should_run_async(code, transformed_cell=python))


def run_locally(shell: Any, code: str) -> BaseException | None:
    """Run a cell in this Python, below a head; return its error, which is shown already."""
    display_text(head_text("here"))
    ran = shell.run_cell(code)
    error: BaseException | None = ran.error_before_exec or ran.error_in_exec
    if error is not None:
        error._render_traceback_ = _TracebackText(  # type: ignore[attr-defined]
            f"{type(error).__name__}: the cell failed here."
        )
    return error


def display_text(text: str) -> None:
    """Show a text below the cell."""
    display(_mime_bundle(text), raw=True)


def erase_prompt() -> None:
    """Take back the "Out[1]: " that a terminal shows before a value that is shown already."""
    if getattr(get_ipython(), "kernel", None) is None and sys.stdout.isatty():
        sys.stdout.write("\r\x1b[2K")


def raise_failures(results: Results) -> None:
    """Raise if a board failed; what was shown already is not said again.

    Raises:
        BoardError, BoardOffline, LinkLost, FleetError: as ``Results.raise_for_error``.
    """
    try:
        results.raise_for_error()
    except (CloudmanagerError, OSError) as error:
        hide_traceback(error, _brief_text(error, results) if len(results) > 1 else "")
        raise


def hide_traceback(error: BaseException, text: str = "") -> None:
    """See that IPython shows an error as its own words, without a traceback of ours."""
    if "_render_traceback_" not in vars(error):
        vars(error)["_render_traceback_"] = _TracebackText(text or _full_text(error))


class _TracebackText:
    """What IPython calls for an error's lines; a class, so that errors can still be pickled."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self) -> list[str]:
        return self._text.split("\n")


class CellDisplay:
    """The display below a cell in a notebook."""

    def __init__(self, view: CellView, *, live: bool) -> None:
        self._view = view
        self._live = live
        self._next_draw = (
            time.monotonic() + terminal.REFRESH_SECONDS
        )  # a short cell is shown once, in the end
        self._shown_text = ""
        self._handle: DisplayHandle | None = None

    def draw(self, _: Event | None) -> None:
        """Show the present state, if it is time to."""
        now = time.monotonic()
        if self._live and now >= self._next_draw:
            self._show(self._view.text())
            self._next_draw = now + terminal.REFRESH_SECONDS

    def ask(self, prompt: str) -> str | None:
        """Ask in the notebook; None where nobody can answer."""
        self._show(self._view.text())
        try:
            return input(prompt)
        except (EOFError, StdinNotImplementedError):
            return None

    def close(self) -> None:
        """Leave the final state; values that differ are a table, too."""
        self._show(self._view.text(final=True), self._view.html())

    def _show(self, text: str, html: str | None = None) -> None:
        if text == self._shown_text and html is None:
            return
        self._shown_text = text
        if self._handle is None:
            self._handle = display(_mime_bundle(text, html), raw=True, display_id=True)
        else:
            self._handle.update(_mime_bundle(text, html), raw=True)


def _mime_bundle(text: str, html: str | None = None) -> dict[str, Any]:
    """Make what is shown; HTML comes from results/html_table.py only, which escapes it."""
    return {"text/plain": text} | ({"text/html": html} if html is not None else {})


def _brief_text(error: Exception, results: Results) -> str:
    """Say in one line who failed, for those whose tracebacks are in sight."""
    failed = results.failed
    reasons = {_error_line(each) for each in failed.values()}
    reason = f": {reasons.pop()}" if len(reasons) == 1 else ""
    count = f"{len(failed):,} of {len(results):,} boards"
    return f"{type(error).__name__}: {fold_names(failed)} failed ({count}){reason}"


def _full_text(error: BaseException) -> str:
    """Say all, with the board's own traceback."""
    if isinstance(error, BoardError):
        state = "" if error.status == "error" else f" · {error.status}"
        return f"{type(error).__name__}: {error.board}{state}\n{error.message_without_subject()}"
    return f"{type(error).__name__}: {error}"


def _error_line(result: Result) -> str:
    """Say in one line what is wrong, the same for each board."""
    error = result.error
    told = (
        error.message_without_subject()
        if isinstance(error, CloudmanagerError)
        else result.traceback
    )
    if isinstance(error, BoardError):
        words = f"{error.ename}: {error.evalue}" if error.evalue else error.ename
        told = words if error.status == "error" else error.status
    return printable_output(told).split("\n")[0]
