"""Display the output of jobs below a notebook's cell, updated in place while the cell runs.

The text is the same in three environments:

* A frontend that accepts input (JupyterLab, VS Code): the display is updated while the cell runs.
* A frontend that does not (nbclient, nbval), or if ``CM_PLAIN`` is set: the display is sent once,
  in its final state, because nbval would store the first one.
* IPython in a terminal: the output is written to the terminal.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from IPython.core.error import StdinNotImplementedError
from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display

from cloudmanager.client.jobs import Event, JobGroup
from cloudmanager.display import following, progress, terminal
from cloudmanager.display.cell_view import CellView, DisplayOptions, printable_output
from cloudmanager.display.file_report import files_html, files_text
from cloudmanager.display.folding import head_text, plain_text
from cloudmanager.display.following import REFRESH_SECONDS, CellOutput
from cloudmanager.display.html_text import lines_html
from cloudmanager.display.progress import VerbWithProgress
from cloudmanager.display.waiting_view import all_wait, waiting_text
from cloudmanager.protocol.errors import BoardError, CloudmanagerError
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

#: What MicroPython says of a name that does not exist.
_MISSING_NAME: Final = re.compile(r"name '(\w+)' isn't defined")
#: Characters of a cell's values up to which they are kept as `_` and `Out[n]`.
_MAX_REMEMBERED_CHARS: Final = 256 * 1024


def can_answer() -> bool:
    """Return whether a user can answer ``input()``."""
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return terminal.can_answer()
    # The frontend sends allow_stdin with each execute_request.
    return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


#: Makes the output of a cell: called with the cell, its view, and whether it is followed later.
MakeOutput = Callable[[JobGroup, CellView, bool], CellOutput]


async def follow_cell(
    group: JobGroup,
    options: DisplayOptions,
    make_output: MakeOutput | None = None,
    *,
    background: bool = False,
) -> Results:
    """Show the output of a cell until all boards are done; return the results.

    Args:
        group: the jobs; submitted with ``listen=True`` unless ``background`` is true.
        options: how to display the output.
        make_output: makes the output; a kernel has its own.
        background: whether the cell was submitted with ``--noblock``.

    Raises:
        KeyboardInterrupt: the stop button was pressed. The boards were interrupted, unless
            ``background`` is true: then they continue. The message says which.
    """
    view = CellView(group, options)
    output = (make_output or _make_output)(group, view, background)
    try:
        return await following.follow_cell(group, view, output, background=background)
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupt = KeyboardInterrupt()
        render_interrupt(interrupt, group, background=background)
        raise interrupt from None


def _make_output(group: JobGroup, view: CellView, background: bool) -> CellOutput:
    if getattr(get_ipython(), "kernel", None) is None:
        return terminal.make_output(group, view, sys.stdout, background=background)
    return CellDisplay(view, live=is_live())


class VerbDisplay(NamedTuple):
    """How a verb is shown while it runs, and at its end.

    Attributes:
        preparation: what it does before it reports progress.
        unit: what its progress counts: "bytes" or "boards".
        text: returns the outcome as text.
        html: returns the same as HTML; None: there is only the text.
    """

    preparation: str = progress.WORKING
    unit: str = "bytes"
    text: Callable[[Results], str] = files_text
    html: Callable[[Results], str | None] = files_html


FILE_DISPLAY: Final = VerbDisplay()


def run_verb(
    verb: VerbWithProgress, style: VerbDisplay, waits: Callable[[], list[str]] = list
) -> Results:
    """Run a verb, and show its progress and its outcome.

    Args:
        verb: called with a function that reports progress.
        style: how it is shown.
        waits: returns what its jobs wait for; see ``progress.ProgressMeter``.

    Raises:
        CloudmanagerError, OSError: the verb did not start, or could not start on all boards.
    """
    preparation, unit = style.preparation, style.unit
    if getattr(get_ipython(), "kernel", None) is None:
        with progress.ProgressBar(preparation, unit=unit, waits=waits) as report:
            results = verb(report)
        handle = None
    else:
        line = _ProgressLine(live=can_answer() and not os.environ.get("CM_PLAIN"))
        with progress.LiveProgress(line.draw, preparation, unit=unit, waits=waits) as report:
            results = verb(report)
        handle = line.handle
    text, html = style.text(results), style.html(results)
    if all_wait(results):
        text, html = waiting_text(results), None
    if handle is not None:
        handle.update(_mime_bundle(text, html), raw=True)
    elif text and (results.ok or len(results) > 1):
        display_text(text, html)
    return results


class _ProgressLine:
    """One line in a notebook that shows the progress of a transfer."""

    def __init__(self, *, live: bool) -> None:
        self._live = live
        self.handle: DisplayHandle | None = None

    def draw(self, meter: progress.ProgressMeter) -> None:
        """Show the current progress."""
        if self.handle is not None:
            self.handle.update(_mime_bundle(meter.text()), raw=True)
        elif self._live:
            self.handle = display(_mime_bundle(meter.text()), raw=True, display_id=True)


def render_interrupt(interrupt: BaseException, group: JobGroup, *, background: bool) -> None:
    """Replace the traceback of an interrupt by one line: whether the cell still runs, and where."""
    names = fold_names(group.jobs)
    outcome = "the cell continues" if background else "the cell was stopped"
    hide_traceback(interrupt, f"KeyboardInterrupt: {outcome} on {names}.")


def is_live() -> bool:
    """Return whether to update a display in place: a user is watching, and CM_PLAIN is not set."""
    return can_answer() and not os.environ.get("CM_PLAIN")


def needs_await(shell: Any, code: str) -> bool:
    """Return whether a cell awaits, so that it cannot run inside this thread's running loop."""
    try:
        asyncio.get_running_loop()
        transformed = shell.transform_cell(code)
    except (RuntimeError, SyntaxError):  # no loop runs; or a syntax error, which running it shows
        return False
    return bool(shell.should_run_async(code, transformed_cell=transformed))


def run_locally(shell: Any, code: str) -> BaseException | None:
    """Run a cell in the notebook's own Python, below the heading ``here``.

    Returns:
        The error that the cell raised, or None. IPython has shown its traceback already.
    """
    display_text(head_text("here"))
    executed = shell.run_cell(code)
    error: BaseException | None = executed.error_before_exec or executed.error_in_exec
    if error is not None:
        error._render_traceback_ = _TracebackText(  # type: ignore[attr-defined]
            f"{type(error).__name__}: the cell failed here."
        )
    return error


def display_text(text: str, html: str | None = None) -> None:
    """Display a text below the cell; where a frontend shows HTML, ``html`` in its place."""
    display(_mime_bundle(text, html), raw=True)


def remember_value(shell: Any, results: Results) -> None:
    """Assign ``_``, ``__``, ``_3`` and ``Out[3]`` in the notebook, as IPython does for a value.

    It is the value on a single board, and the results of several. Nothing is assigned after a cell
    without a value, or if the values are too long to be kept.
    """
    texts = [result.text for result in results.values()]
    if any(texts) and sum(map(len, texts)) <= _MAX_REMEMBERED_CHARS:
        shell.displayhook.update_user_ns(results.value if len(results) == 1 else results)


class _DisplayHook:
    """IPython's display hook for a terminal; it shows no "Out[1]: " of values shown already.

    IPython's own writes this before it formats the value. The value is in `_` and `Out` anyway.

    Args:
        inner: IPython's hook.
        is_shown: returns whether a value was shown.
    """

    def __init__(self, inner: Any, is_shown: Callable[[object], bool]) -> None:
        self.inner = inner
        self._is_shown = is_shown

    def __call__(self, value: object = None) -> None:
        if value is not None and self._is_shown(value):
            self.inner.check_for_underscore()
            self.inner.update_user_ns(value)
            self.inner.fill_exec_result(value)
        else:
            self.inner(value)


def install_display_hook(shell: Any, is_shown: Callable[[object], bool]) -> None:
    """Make IPython in a terminal show nothing of values that were shown; not for a kernel.

    Args:
        shell: IPython.
        is_shown: returns whether a value was shown.
    """
    if getattr(shell, "kernel", None) is None:
        _set_display_hook(shell, _DisplayHook(shell.displayhook, is_shown))


def remove_display_hook(shell: Any) -> None:
    """Undo ``install_display_hook``."""
    if isinstance(shell.display_trap.hook, _DisplayHook):
        _set_display_hook(shell, shell.display_trap.hook.inner)


def _set_display_hook(shell: Any, hook: Any) -> None:
    """Set what shows the values of cells, also of the cell that runs now."""
    if sys.displayhook is shell.display_trap.hook:
        sys.displayhook = hook
    shell.display_trap.hook = hook


def missing_name(result: Result) -> str:
    """Return the name that a board does not have, if its cell failed for that; "" otherwise."""
    error = result.error
    if not isinstance(error, BoardError) or error.ename != "NameError":
        return ""
    found = _MISSING_NAME.match(error.evalue)
    return found[1] if found else ""


def raise_failures(results: Results, hint: str = "") -> None:
    """Raise if a board failed; the message does not repeat tracebacks that were displayed.

    Args:
        results: of a cell.
        hint: the last line of the message.

    Raises:
        BoardError, BoardOffline, LinkLost, FleetError: as ``Results.raise_for_error``.
    """
    try:
        results.raise_for_error()
    except (CloudmanagerError, OSError) as error:
        text = _brief_text(error, results) if len(results) > 1 else ""
        if hint:
            text = f"{text or _full_text(error)}\n{hint}"
        hide_traceback(error, text)
        raise


def hide_traceback(error: BaseException, text: str = "") -> None:
    """Make IPython show an error as a message only, without a traceback of this library.

    Args:
        error: the exception; changed in place.
        text: the message to show; by default the error's own, with the board's traceback.
    """
    if "_render_traceback_" not in vars(error):
        vars(error)["_render_traceback_"] = _TracebackText(text or _full_text(error))


class _TracebackText:
    """IPython's hook for the lines of an error; a class, so that errors can still be pickled."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self) -> list[str]:
        return self._text.split("\n")


class CellDisplay:
    """The display below a cell in a notebook."""

    def __init__(self, view: CellView, *, live: bool) -> None:
        self._view = view
        self._live = live
        # A cell that ends before this time is displayed once, in its final state.
        self._next_draw = time.monotonic() + REFRESH_SECONDS
        self._shown_text = ""
        self._handle: DisplayHandle | None = None

    def handle_event(self, event: Event) -> None:
        """Do nothing: the view has the new state."""

    def draw(self) -> None:
        """Show the current state, unless it was drawn a moment ago."""
        now = time.monotonic()
        if self._live and now >= self._next_draw:
            self._show(self._view.text())
            self._next_draw = now + REFRESH_SECONDS

    def ask(self, prompt: str) -> str | None:
        """Ask the user in the notebook; return None if the frontend accepts no input."""
        self._show(self._view.text())
        try:
            return input(prompt)
        except (EOFError, StdinNotImplementedError):
            return None

    def close(self) -> None:
        """Show the final state: values that differ also as a table, failures also in colours."""
        lines = self._view.lines(final=True)
        self._show(plain_text(lines), self._view.html() or lines_html(lines))

    def _show(self, text: str, html: str | None = None) -> None:
        if text == self._shown_text and html is None:
            return
        self._shown_text = text
        if self._handle is None:
            self._handle = display(_mime_bundle(text, html), raw=True, display_id=True)
        else:
            self._handle.update(_mime_bundle(text, html), raw=True)


def _mime_bundle(text: str, html: str | None = None) -> dict[str, Any]:
    """Return a MIME bundle; in ``html``, all text of boards must be escaped."""
    return {"text/plain": text} | ({"text/html": html} if html is not None else {})


def _brief_text(error: Exception, results: Results) -> str:
    """Return one line that names the failed boards; their tracebacks were displayed already."""
    failed = results.failed
    reasons = {_error_line(result) for result in failed.values()}
    reason = f": {reasons.pop()}" if len(reasons) == 1 else ""
    count = f"{len(failed):,} of {len(results):,} boards"
    return f"{type(error).__name__}: {fold_names(failed)} failed ({count}){reason}"


def _full_text(error: BaseException) -> str:
    """Return the whole message of an error, with the board's traceback."""
    if isinstance(error, BoardError):
        state = "" if error.status == "error" else f" · {error.status}"
        return f"{type(error).__name__}: {error.board}{state}\n{error.message_without_subject()}"
    return f"{type(error).__name__}: {error}"


def _error_line(result: Result) -> str:
    """Return the error of one board as one line that does not name the board."""
    error = result.error
    if isinstance(error, BoardError):
        if error.status != "error":
            text = error.status
        elif error.evalue:
            text = f"{error.ename}: {error.evalue}"
        else:
            text = error.ename
    elif isinstance(error, CloudmanagerError):
        text = error.message_without_subject()
    else:
        text = result.traceback
    return printable_output(text).split("\n")[0]
