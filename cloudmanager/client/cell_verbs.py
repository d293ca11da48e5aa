"""The verbs that run cells on the boards of a target, and those about the boards themselves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, Unpack

from cloudmanager.protocol.run_options import DEFAULT_OPTIONS, RunKeywords, RunOptions, WaitKeywords
from cloudmanager.protocol.spans import parse_span, time_since
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.history import History
from cloudmanager.results.results import Results
from cloudmanager.results.rows import BoardList

from . import cells, restarts
from .cells import Cell
from .histories import read_history
from .input_values import argv_assignment, prelude
from .jobs import Event, JobGroup
from .keywords import run_keywords, wait_keywords
from .log_lines import Since
from .progress import ProgressCallback
from .verb import HasTarget, verb
from .waiting import wait_options

_NO_FILES: Final = ("", "-", "-c")  # `sys.argv[0]` of code that is in no file
#: Cached, because the same cell is often run again.
prepare_cached = functools.lru_cache(maxsize=64)(cells.prepare_cell)


class CellVerbs(HasTarget):
    """Verbs that concern the boards of a target; the server resolves it at each call."""

    @verb
    @run_keywords
    async def run(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        inputs_by_board: Mapping[str, Mapping[str, Any]] | None = None,
        argv: Sequence[str] | None = None,
        progress: ProgressCallback | None = None,
        **options: Unpack[RunKeywords],
    ) -> Results:
        """Run a cell on all of the boards in parallel and wait for the results.

        A board's failure is in its Result and is not raised. If the wait is interrupted (Ctrl-C,
        a cancelled task), the cell is interrupted on the boards, too.

        Args:
            code: Python; the value of a trailing expression is returned. It may ``await``.
            inputs: name -> value, assigned on the boards before the cell: Python literals, and
                objects with a ``tolist()``.
            inputs_by_board: board -> inputs for this board alone, in addition to ``inputs``; an
                entry for each board on which the cell runs.
            argv: what ``sys.argv`` contains on the boards, such as ``["main.py", "-v"]``.
            progress: called with a board, 0 or 1 (whether the cell has ended there) and 1; see
                ``ProgressCallback``.
            options: see ``RunOptions``.

        Raises:
            CellSyntaxError: it is not valid Python; nothing was sent.
            TypeError, ValueError: a value of the inputs cannot be sent, or the boards of
                ``inputs_by_board`` are not those of the target; nothing was sent.
            TargetError, NoSuchBoard: the target selects no boards; nothing ran.
            ServerUnreachable: no server answers.
        """
        run_options = RunOptions(**options) if options else DEFAULT_OPTIONS
        if inputs_by_board is not None:
            names = await _run_names(self)
            _check_boards(inputs_by_board, names)
            given = {name: {**(inputs or {}), **inputs_by_board[name]} for name in names}
            prepared = {name: make_cell(code, each, argv) for name, each in given.items()}
            return await _run_cells(self, prepared, run_options, progress)
        return await _run_cell(self, make_cell(code, inputs, argv), run_options, progress)

    @verb
    @wait_keywords
    async def reset(
        self,
        *,
        hard: bool = False,
        progress: ProgressCallback | None = None,
        **options: Unpack[WaitKeywords],
    ) -> Results:
        """Make a soft reset of each board, and wait until it has reconnected.

        The board does not start ``app.py`` this time, as for a cell with ``fresh``.

        Args:
            hard: whether to reset the chip, as its RESET button does: ``app.py`` starts.
            progress: see ``run``.
            options: see ``RunOptions``.
        """
        run_options = wait_options(options)
        if run_options.when_online:
            cell = restarts.hard_reset_cell() if hard else prepare_cached("")
            return await _run_cell(self, cell, replace(run_options, fresh=True), None)
        if hard:
            return await restarts.reset_chips(self, progress)
        return await _run_cell(self, prepare_cached(""), RunOptions(fresh=True), progress)

    @verb
    async def bootloader(self) -> Results:
        """Start each board's boot loader, in which firmware is installed over a cable.

        The board leaves the fleet until it is reset.
        """
        return await restarts.start_bootloaders(self)

    @verb
    @wait_keywords
    async def upgrade_client(
        self,
        *,
        progress: ProgressCallback | None = None,
        **options: Unpack[WaitKeywords],
    ) -> Results:
        """Install this version's client on the boards over the network, and restart them.

        A board whose new client does not start goes back to the old one.

        Args:
            progress: called with a board, the bytes that are written there, and the total, which
                is reached once the new client has worked; see ``ProgressCallback``.
            options: see ``RunOptions``.

        Returns:
            For each board, whether it runs the new client, or why not. With ``when_online``, each
            board has four jobs that wait, and the results are of the last one.
        """
        from .client_upgrade import ClientUpgrade, submit_upgrade  # their imports take 20 ms

        run_options = wait_options(options)
        if run_options.when_online:
            return await submit_upgrade(self, run_options)
        return await ClientUpgrade(self, progress).run()

    @verb
    async def upgrade_firmware(
        self, firmware: str, *, progress: ProgressCallback | None = None
    ) -> Results:
        """Write firmware over the network to boards with two slots for it, and restart them.

        It is kept when the board has connected with it and has run a job; otherwise the board goes
        back to what it had. Needs the role admin.

        Args:
            firmware: a version of MicroPython such as 1.29.0, which the server downloads, or the
                path of an image (``.app-bin``).
            progress: called with a board, the bytes that are written there, and the total, which
                is reached once the new firmware has worked; see ``ProgressCallback``.

        Returns:
            For each board, whether it runs the firmware, or why not.

        Raises:
            NotAllowed: the token may not change firmware.
            OSError: the image cannot be read.
        """
        from .firmware_upgrade import FirmwareUpgrade  # most programs do not need it

        return await FirmwareUpgrade(self, firmware, progress).run()

    @verb
    async def names(self) -> list[str]:
        """Return the names of the boards on which a cell would run now.

        Raises:
            TargetError, NoSuchBoard: the target selects no boards.
        """
        return await _run_names(self)

    @verb
    async def info(self) -> BoardList:
        """Return the server's information about each of the boards, as a list of dicts."""
        return BoardList(await self.exchange().request("boards", {"target": self.target}))

    @verb
    async def history(self, since: Since = None) -> History:
        """Return what ran on the boards, connected or not, the oldest job first.

        The texts of cells, and from which notebooks they came, are for their authors and for
        administrators; the server keeps texts for 30 days (`mbm server-start --keep-texts`).

        Args:
            since: only jobs from then on: a span before now (``"2h"``), seconds since 1970, or a
                datetime; None: all that the server has, 90 days by default.

        Raises:
            TargetError, NoSuchBoard: the target selects no boards.
            ValueError: ``since`` is no time.
        """
        return await read_history(self.exchange(), self.target, time_since(since))

    @verb
    async def stop(self) -> list[str]:
        """Stop the boards' own programs (``app.py``); return the names of the connected boards."""
        return list(await self.exchange().request("stop", {"target": self.target}))

    @verb
    async def label(self, labels: Mapping[str, str]) -> list[str]:
        """Set labels on the boards; an empty value removes one. Return the boards' names."""
        body = {"target": self.target, "labels": dict(labels)}
        return list(await self.exchange().request("label", body))

    @verb
    async def reserve(self, seconds: str | float) -> float:
        """Reserve the boards for this token: jobs of others wait until the reservation ends.

        Jobs that run go on. One's own reservation can be made longer or shorter.

        Args:
            seconds: for how long: seconds, or a span such as ``"1h"``; 30 days at most.

        Returns:
            When it ends, in seconds since 1970.

        Raises:
            ValueError: ``seconds`` is no span.
            ServerError: somebody else has reserved one of the boards; none is reserved.
        """
        number = parse_span(seconds) if isinstance(seconds, str) else seconds
        body = {"target": self.target, "seconds": number}
        return float((await self.exchange().request("reserve", body))["until"])

    @verb
    async def stay(self, seconds: str | float) -> list[str]:
        """Keep boards awake that sleep (``cm.sleep``), from the next time that they wake.

        A board that is awake now stays awake from its next ``cm.sleep`` on. It keeps until then
        for 7 days.

        Args:
            seconds: for how long: seconds, or a span such as ``"10m"``; one day at most. 0: not
                any more.

        Returns:
            The names of the boards.

        Raises:
            ValueError: ``seconds`` is no span.
            ServerError: it is too long.
        """
        number = parse_span(seconds) if isinstance(seconds, str) else seconds
        body = {"target": self.target, "seconds": number}
        return list(await self.exchange().request("stay", body))

    @verb
    async def release(self) -> list[str]:
        """End reservations of the boards; return the names of those that were reserved.

        Those of others can be ended with the role admin.
        """
        return list(await self.exchange().request("release", {"target": self.target}))


async def _run_names(boards: HasTarget) -> list[str]:
    body = {"target": boards.target, "as_for_cells": True}
    return [str(board["name"]) for board in await boards.exchange().request("boards", body)]


def _check_boards(inputs_by_board: Mapping[str, object], names: Sequence[str]) -> None:
    """Check that there are inputs for all boards of a cell, and for no others.

    Raises:
        ValueError: there are not.
    """
    missing = fold_names(name for name in names if name not in inputs_by_board)
    others = fold_names(name for name in inputs_by_board if name not in names)
    if missing:
        raise ValueError(f"inputs_by_board has nothing for {missing}; nothing was sent.")
    if others:
        raise ValueError(
            f"inputs_by_board has inputs for {others}, where the cell would not run; "
            "nothing was sent."
        )


async def _run_cells(
    boards: HasTarget,
    prepared: Mapping[str, Cell],
    options: RunOptions,
    progress: ProgressCallback | None,
) -> Results:
    """Run a cell of its own on each board and wait for the results."""
    groups = {name: _make_group(cell, options, progress) for name, cell in prepared.items()}
    parts = []
    try:
        for name, group in groups.items():
            boards.exchange().submit(group, name)
        for group in groups.values():
            parts.append(await group.completed())
    except BaseException:
        for group in groups.values():
            if not group.finished.done:
                group.interrupt()
        raise
    results = {name: result for part in parts for name, result in part.items()}
    return Results(results, tuple(name for part in parts for name in part.left_out))


async def _run_cell(
    boards: HasTarget, cell: Cell, options: RunOptions, progress: ProgressCallback | None
) -> Results:
    """Run a cell on the boards and wait for the results."""
    group = _make_group(cell, options, progress)
    boards.exchange().submit(group, boards.target)
    return await group.completed()


def _make_group(cell: Cell, options: RunOptions, progress: ProgressCallback | None) -> JobGroup:
    """Return the jobs of a cell, which report their progress once they are submitted."""
    if progress is None:
        return JobGroup(cell, options)

    def on_event(event: Event) -> None:
        if event.kind == "ended":
            progress(event.job.board, 1, 1)

    def on_accepted() -> None:
        for board in group.jobs:
            progress(board, 0, 1)

    group = JobGroup(cell, options, on_event=on_event)
    group.accepted.add_done_callback(on_accepted)
    return group


def make_cell(
    code: str, inputs: Mapping[str, Any] | None, argv: Sequence[str] | None = None
) -> Cell:
    """Prepare a cell with its inputs and arguments; a program is called as its file."""
    lines = [argv_assignment(argv)] if argv is not None else []
    if inputs:
        lines.append(prelude(inputs))
    if not lines:
        return prepare_cached(code)
    cell = cells.prepare_cell(code, "\n".join(lines))
    name = argv[0] if argv and argv[0] not in _NO_FILES else ""
    return dataclasses.replace(cell, name=name, inputs=tuple(inputs or ()))
