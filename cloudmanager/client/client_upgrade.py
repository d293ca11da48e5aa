"""Upgrade of the client on boards over the network, with automatic rollback.

```
/lib/cm.new ─hashes compared─▶ ok ─restart─▶ on trial ─it connects, a cell runs─▶ kept
                                                  └─ it does not ─▶ the old client is restored
```

The files are sent in cells, to all boards at once; mpy_client/cm_start.py switches to the new
client and back.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from cloudmanager.board_client import client_files
from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from .cells import Cell, prepare_cell
from .file_jobs import upload_content
from .future import Future
from .input_values import prelude
from .jobs import JobGroup
from .progress import ProgressCallback
from .sources import source_from_bytes
from .verb import HasTarget
from .waiting import WaitingUploadGroup

PIECE_BYTES: Final = 1024  # small: a board has each piece in memory twice
CELL_SECONDS: Final = 20.0
RECONNECT_SECONDS: Final = 90.0  # to restart, join the network and connect
POLL_SECONDS: Final = 0.2  # between two looks whether the boards have reconnected
SPARE_BYTES: Final = 8192  # that have to be free beside the files of a new client
_PREPARE_CODE: Final = """
import sys
if 'cm.console' not in sys.modules:
    raise OSError('its client was not installed by mbm flash')
import cm_start, os
if 'cm' not in os.listdir('/lib' if 'lib' in os.listdir('/') else '/'):
    raise OSError('its client is part of its firmware: flash new firmware to upgrade it')
for name in ('new', 'bad'):
    cm_start.remove('/lib/cm.' + name)
free = os.statvfs('/')
if free[3] > free[2] or free[0] * free[3] < size:
    raise OSError('its flash is too full for a second client')
os.mkdir('/lib/cm.new')
"""
_WRITE_CODE: Final = "with open('/lib/cm.new/' + name, mode) as file:\n    n = file.write(data)"
_HASHES_CODE: Final = """
import hashlib, os
hashes = {}
for name in os.listdir('/lib/cm.new'):
    h = hashlib.sha256()
    with open('/lib/cm.new/' + name, 'rb') as file:
        while True:
            piece = file.read(256)
            if not piece:
                break
            h.update(piece)
    hashes[name] = h.digest()
hashes
"""
_RESTART_CODE: Final = "import machine\nmachine.reset()"
_COMMIT_CODE: Final = "open('/lib/cm.new/ok', 'w').close()"
_CONFIRM_CODE: Final = """
import cm_start, os, sys
kept = 'trial' in os.listdir('/lib/cm')
if kept:
    for name, path in (('cm_start.mpy', '/lib/cm_start.mpy'), ('main.py', '/main.py')):
        if name in os.listdir('/lib/cm'):
            os.rename('/lib/cm/' + name, path)
    os.remove('/lib/cm/trial')
    cm_start.remove('/lib/cm.old')
del cm_start, sys.modules['cm_start']
kept
"""
#: The third job of an upgrade that waits: the next start of the board tries the new client.
_CHECK_STAGED_CODE: Final = f"""
import os
if not ('cm.new' in os.listdir('/lib') and set(names) <= set(os.listdir('/lib/cm.new'))):
    raise OSError('its new client was not written: the job before this one says why')
{_COMMIT_CODE}
"""
_CHECK_KEPT_CODE: Final = f"""{_CONFIRM_CODE.rpartition("kept")[0]}
if not kept:
    raise OSError('the new client did not start; the old one was restored')
"""


async def submit_upgrade(boards: HasTarget, options: RunOptions) -> Results:
    """Let an upgrade wait for its boards: prepare, write the files, check, restart and confirm.

    These are four jobs for each board, which run in this order. Each fails, and does nothing, if
    the one before it has failed.

    Args:
        boards: the boards.
        options: how long it waits.

    Returns:
        For each board, the job that confirms the upgrade, with the status ``waiting``.
    """
    contents = {
        path.rpartition("/")[2]: source_from_bytes(data) for path, data in client_files().items()
    }
    for source in contents.values():
        await upload_content(boards.exchange(), source)
    digests = {name: source.digest for name, source in contents.items()}
    size = sum(len(data) for data in client_files().values())
    names = {"names": sorted(digests)}
    groups = (
        _waiting_cell(_PREPARE_CODE, options, {"size": size + SPARE_BYTES}),
        WaitingUploadGroup({"client": digests}, options),
        _waiting_cell(_CHECK_STAGED_CODE, options, names),
        # Not a restart by the third job: the fourth one could be sent before that.
        _waiting_cell(_CHECK_KEPT_CODE, replace(options, fresh=True)),
    )
    results = Results({})
    for group in groups:
        boards.exchange().submit(group, boards.target)
        results = await group.completed()
    return results


def _waiting_cell(
    code: str, options: RunOptions, inputs: Mapping[str, Any] | None = None
) -> JobGroup:
    cell = prepare_cell(code, prelude(inputs) if inputs else "")
    return JobGroup(_name_cell(cell), replace(options, timeout=CELL_SECONDS))


class ClientUpgrade:
    """Upgrades the client of boards.

    Args:
        boards: which boards; those that are not connected fail.
        progress: called with a board, the bytes that are written there, and the total, which is
            reached once the new client has worked.
    """

    def __init__(self, boards: HasTarget, progress: ProgressCallback | None = None) -> None:
        self._boards, self._progress = boards, progress
        self._results: dict[str, Result] = {}
        self._remaining: list[str] = []
        files = client_files()
        # All in one folder; those that start the client are moved once the new client has worked.
        self._files = {path.rpartition("/")[2]: data for path, data in files.items()}

    async def run(self) -> Results:
        """Upgrade; return for each board whether it has the new client, or why not."""
        names = await self._find_boards()
        size = sum(map(len, self._files.values()))
        await self._run_cell(_PREPARE_CODE, {"size": size + SPARE_BYTES})
        written = 0
        for name, data in self._files.items():
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                inputs = {"name": name, "mode": "ab" if start else "wb", "data": piece}
                await self._run_cell(_WRITE_CODE, inputs)
                written += len(piece)
                self._report(min(written, size - 1), size)
        await self._verify_files()
        await self._run_cell(_COMMIT_CODE)
        await self._restart_boards()
        await self._confirm_boards()
        self._report(size, size)
        return Results({name: self._results[name] for name in names})

    async def _find_boards(self) -> list[str]:
        """Find the boards; return the names of all, connected or not."""
        body = {"target": self._boards.target, "as_for_cells": True}
        found = await self._boards.exchange().request("boards", body)
        for board in found:
            if board["connected_since"]:
                self._remaining.append(board["name"])
            else:
                self._results[board["name"]] = _failed_result(board["name"], "it is offline")
        return [board["name"] for board in found]

    def _report(self, done: int, total: int) -> None:
        if self._progress is not None:
            for name in self._remaining:
                self._progress(name, done, total)

    def _fail_board(self, result: Result) -> None:
        self._remaining.remove(result.board)
        self._results[result.board] = result

    async def _run_cell(self, code: str, inputs: Mapping[str, Any] | None = None) -> Results:
        """Run a cell on the remaining boards; a board that fails is not used any more."""
        if not self._remaining:
            return Results({})
        cell = _name_cell(prepare_cell(code, prelude(inputs) if inputs else ""))
        group = JobGroup(cell, RunOptions(timeout=CELL_SECONDS))
        self._boards.exchange().submit(group, fold_names(self._remaining))
        results = await group.completed()
        for result in results.values():
            if not result.ok:
                self._fail_board(result)
        return results

    async def _verify_files(self) -> None:
        expected = {name: hashlib.sha256(data).digest() for name, data in self._files.items()}
        for name, result in (await self._run_cell(_HASHES_CODE)).items():
            if result.ok and result.value != expected:
                why = "the files on the board differ from those that were sent"
                self._fail_board(_failed_result(name, why))

    async def _restart_boards(self) -> None:
        if not self._remaining:
            return
        before = await self._connection_times()
        cell = dataclasses.replace(prepare_cell(_RESTART_CODE), restarts=True)
        group = JobGroup(_name_cell(cell), RunOptions(timeout=CELL_SECONDS))
        self._boards.exchange().submit(group, fold_names(self._remaining))
        deadline = time.monotonic() + RECONNECT_SECONDS
        missing = list(self._remaining)
        while missing and time.monotonic() < deadline:
            await Future[None]().done_within(POLL_SECONDS)
            now = await self._connection_times()
            missing = [name for name in missing if now.get(name) in (None, before.get(name))]
        for name in missing:
            why = "it did not reconnect; after its next restart it runs the old client"
            self._fail_board(_failed_result(name, why))

    async def _connection_times(self) -> dict[str, float | None]:
        boards = await self._boards.exchange().request("boards", {"target": None})
        return {board["name"]: board["connected_since"] for board in boards}

    async def _confirm_boards(self) -> None:
        for name, result in (await self._run_cell(_CONFIRM_CODE)).items():
            if not result.ok:
                continue
            if result.value is True:
                self._results[name] = Result(name, result.job, "ok")
            else:
                why = "the new client did not start; the old one was restored"
                self._fail_board(_failed_result(name, why))


def _name_cell(cell: Cell) -> Cell:
    """Return a step of an upgrade, as lists of jobs call it."""
    return dataclasses.replace(cell, name="upgrade of the client", own=())


def _failed_result(board: str, why: str) -> Result:
    return Result(board, 0, "error", why=why)
