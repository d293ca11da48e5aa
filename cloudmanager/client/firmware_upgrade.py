"""Upgrade of boards' firmware over the network, with automatic rollback.

```
image ─verified on the board─▶ restart ─▶ on trial ─it connects, a cell runs─▶ kept
                                             └─ it does not ─▶ the old firmware runs again
```
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from .cells import prepare_cell
from .file_jobs import upload_content
from .files import FileJobGroup, OnMoved
from .future import sleep
from .jobs import JobGroup
from .progress import ProgressCallback
from .sources import ContentSource, source_from_file
from .verb import HasTarget

RECONNECT_SECONDS: Final = 90.0  # to restart twice, join the network and connect
_POLL_SECONDS: Final = 0.2  # between two looks whether the boards have reconnected
_VERSION: Final = re.compile(r"v?(\d+(?:\.\d+){1,2})", re.ASCII)


class _FirmwareJobGroup(FileJobGroup):
    """The jobs that write firmware, or keep it.

    Args:
        request: what the server reads: ``sha256`` or ``keep``.
        on_moved: called with a board and the bytes that were written there.
    """

    def __init__(self, request: Mapping[str, Any], on_moved: OnMoved | None = None) -> None:
        super().__init__((), make_value=lambda op_results: op_results[0], on_moved=on_moved)
        self._request = request

    def submit_head(self) -> dict[str, Any]:
        """Return the entries of the group in the JSON of a SUBMIT."""
        return {**JobGroup.submit_head(self), "firmware": dict(self._request)}


def read_firmware(text: str, folder: Path) -> tuple[dict[str, Any], ContentSource | None]:
    """Return which firmware is meant, as the server takes it, and the source of its file.

    Args:
        text: a version such as 1.29.0, or the path of an image.
        folder: to which the path is relative.

    Raises:
        OSError: the file cannot be read.
    """
    if found := _VERSION.fullmatch(text):
        return {"name": found[1]}, None
    path = folder / Path(text).expanduser()
    source = source_from_file(path)
    return {"name": path.name[-64:], "sha256": source.digest, "size": source.size}, source


class FirmwareUpgrade:
    """Upgrades the firmware of boards.

    Args:
        boards: which boards; those that are not connected fail.
        firmware: a version such as 1.29.0, or the path of an image.
        progress: called with a board, the bytes that are written there, and the total, which is
            reached once the new firmware has worked.
    """

    def __init__(
        self, boards: HasTarget, firmware: str, progress: ProgressCallback | None = None
    ) -> None:
        self._boards, self._firmware, self._progress = boards, firmware, progress
        self._results: dict[str, Result] = {}
        self._sizes: dict[str, int] = {}

    async def run(self) -> Results:
        """Upgrade; return for each board whether it runs the firmware, or why not."""
        wanted, source = read_firmware(self._firmware, Path())
        body = {"target": self._boards.target, "as_for_cells": True}
        found = await self._boards.exchange().request("boards", body)
        names = [board["name"] for board in found]
        for board in found:
            if not board["connected_since"]:
                self._fail(board["name"], "it is offline")
        present = [name for name in names if name not in self._results]
        for digest, size, boards in await self._find_images(wanted, source, present):
            self._sizes.update(dict.fromkeys(boards, size))
            await self._upgrade(digest, boards)
        return Results({name: self._results[name] for name in names})

    async def _find_images(
        self, wanted: Mapping[str, Any], source: ContentSource | None, names: Sequence[str]
    ) -> list[tuple[str, int, list[str]]]:
        """Return the SHA-256 and the size of each image, and the boards that get it."""
        if not names:
            return []
        exchange = self._boards.exchange()
        if source is not None:
            await upload_content(exchange, source)
            return [(source.digest, source.size, list(names))]
        body = {"version": wanted["name"], "target": fold_names(names)}
        images = []
        for row in await exchange.request("firmware", body):
            if row["sha256"]:
                images.append((row["sha256"], row["size"], row["boards"]))
            else:
                for name in row["boards"]:
                    self._fail(name, row["error"] or "there is no image for it")
        return images

    async def _upgrade(self, digest: str, boards: Sequence[str]) -> None:
        """Bring boards to one image."""
        written = await self._run({"sha256": digest}, boards)
        waiting = [name for name, value in written.items() if value == "written"]
        for name, value in written.items():
            if value != "written":
                self._succeed(name)
        if not waiting:
            return
        back = await self._restart(waiting)
        for name, why in (await self._run({"keep": True}, back)).items():
            if why:
                self._fail(name, f"the new firmware did not work, and the old one runs: {why}")
            else:
                self._succeed(name)

    async def _run(self, request: Mapping[str, Any], boards: Sequence[str]) -> dict[str, str]:
        """Run a job on boards; return its values on those where it succeeded."""
        if not boards:
            return {}
        group = _FirmwareJobGroup(request, self._report)
        self._boards.exchange().submit(group, fold_names(boards))
        values = {}
        for name, result in (await group.completed()).items():
            if result.ok:
                values[name] = str(result.value)
            else:
                self._results[name] = result
        return values

    async def _restart(self, boards: Sequence[str]) -> list[str]:
        """Restart boards, and wait; return those that are back.

        A soft reset also ends a program that keeps a board busy. The client that starts then, with
        firmware that is not started yet, resets the chip (mpy_client/cm/trial.py).
        """
        before = await self._connection_times()
        group = JobGroup(prepare_cell(""), RunOptions(fresh=True))
        self._boards.exchange().submit(group, fold_names(boards))
        deadline = time.monotonic() + RECONNECT_SECONDS
        missing = list(boards)
        while missing and time.monotonic() < deadline:
            await sleep(_POLL_SECONDS)
            now = await self._connection_times()
            missing = [name for name in missing if now.get(name) in (None, before.get(name))]
        for name in missing:
            self._fail(name, "it did not reconnect; its next restart starts the old firmware")
        return [name for name in boards if name not in missing]

    async def _connection_times(self) -> dict[str, float | None]:
        boards = await self._boards.exchange().request("boards", {"target": None})
        return {board["name"]: board["connected_since"] for board in boards}

    def _report(self, board: str, moved: int) -> None:
        if self._progress is not None:
            size = self._sizes[board]
            self._progress(board, min(moved, size - 1), size)

    def _succeed(self, board: str) -> None:
        self._results[board] = Result(board, 0, "ok")
        if self._progress is not None:
            self._progress(board, self._sizes[board], self._sizes[board])

    def _fail(self, board: str, why: str) -> None:
        self._results[board] = Result(board, 0, "error", why=why)
