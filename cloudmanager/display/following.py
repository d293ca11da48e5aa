"""Follows the jobs of a cell until all have ended: the loop of every live display.

A terminal, a notebook, the kernel and the dashboard each have a ``CellOutput``. ``follow_cell`` is
a coroutine that awaits only futures: ``runner.run_blocking`` runs it in a thread,
``runner.run_in_loop`` in asyncio.
"""

from __future__ import annotations

import time
from typing import Final, Protocol

from cloudmanager.client.jobs import INTERRUPT_GRACE_SECONDS, Event, JobGroup
from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.results import Results

from .cell_view import CellView

#: Seconds between two updates of a live display: looks live and costs a few percent of a core.
REFRESH_SECONDS: Final = 0.12


class CellOutput(Protocol):
    """Shows the output of a cell."""

    def handle_event(self, event: Event) -> None:
        """Handle an event that the view has handled already."""

    def draw(self) -> None:
        """Show what has changed, if enough time has passed."""

    def ask(self, prompt: str) -> str | None:
        """Show a prompt to the user; return the answer, or None if there is none."""

    def close(self) -> None:
        """Show the final state; called once, also after an exception."""


async def follow_cell(
    group: JobGroup,
    view: CellView,
    output: CellOutput,
    *,
    background: bool = False,
    grace_seconds: float = INTERRUPT_GRACE_SECONDS,
) -> Results:
    """Update a view and its output until all jobs have ended, and return the results.

    Args:
        group: the jobs; submitted with ``listen=True`` unless ``background``.
        view: updated with the jobs' events.
        output: shows the view.
        background: poll the jobs instead of reading their events, and do not interrupt them.
        grace_seconds: how long to wait for the outcomes after an interrupt.

    Raises:
        KeyboardInterrupt, CancelledError: after the boards were interrupted and their outcomes
            received; if ``background``, immediately, and the boards continue.
        CloudmanagerError: the server refused the cell. Failures of boards are not raised.
    """
    try:
        try:
            if background:
                await _poll_jobs(group, view, output)
            else:
                await _handle_events(group, view, output)
        except (Exception, GeneratorExit):
            raise
        except BaseException:  # KeyboardInterrupt, or CancelledError of asyncio
            if not background:
                await _interrupt_and_drain(group, view, output, grace_seconds)
            raise
    finally:
        output.close()
    return group.results(0)


async def _handle_events(group: JobGroup, view: CellView, output: CellOutput) -> None:
    next_draw = 0.0
    async for event in group.read_events(REFRESH_SECONDS):
        if event is not None:
            view.handle_event(event)
            output.handle_event(event)
        # Not after each event: events that arrive together are drawn together.
        if not group.has_unread_events or time.monotonic() >= next_draw:
            output.draw()
            next_draw = time.monotonic() + REFRESH_SECONDS
        if event is not None and event.kind == "input":
            group.answer(event.job, output.ask(sanitize_text(f"{event.job.board}: {event.text}")))


async def _poll_jobs(group: JobGroup, view: CellView, output: CellOutput) -> None:
    while not await group.finished.done_within(REFRESH_SECONDS):
        view.poll_jobs()
        output.draw()
    view.poll_jobs()


async def _interrupt_and_drain(
    group: JobGroup, view: CellView, output: CellOutput, grace_seconds: float
) -> None:
    """Interrupt the boards and receive their outcomes for up to ``grace_seconds``."""
    group.interrupt()
    view.show_failures()  # the interrupt is raised instead of them
    deadline = time.monotonic() + grace_seconds
    async for event in group.read_events(REFRESH_SECONDS):
        if event is not None:
            view.handle_event(event)
            output.handle_event(event)
            if event.kind == "input":
                group.answer(event.job, None)
        output.draw()
        if time.monotonic() > deadline:
            return
