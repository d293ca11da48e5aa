"""Upgrade of the client on boards over the network, with automatic rollback.

```
/lib/cm.new ─hashes compared─▶ ok ─restart─▶ on trial ─it connects, a cell runs─▶ kept
                                                  └─ it does not ─▶ the old client is restored
```

The files are sent in cells, to all boards at once; mpy_client/cm_start.py switches to the new
client and back.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from cloudmanager.board_client import client_files
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Results, error_text

from .fleet import Fleet

PIECE_BYTES: Final = 1024  # small: a board has each piece in memory twice
CELL_SECONDS: Final = 20.0
RECONNECT_SECONDS: Final = 90.0  # to restart, join the network and connect
_PREPARE_CODE: Final = """
import sys
if 'cm_start' not in sys.modules:
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
_COMMIT_CODE: Final = "open('/lib/cm.new/ok', 'w').close()"
_CONFIRM_CODE: Final = """
import cm_start, os
kept = 'trial' in os.listdir('/lib/cm')
if kept:
    for name, path in (('cm_start.mpy', '/lib/cm_start.mpy'), ('main.py', '/main.py')):
        if name in os.listdir('/lib/cm'):
            os.rename('/lib/cm/' + name, path)
    os.remove('/lib/cm/trial')
    cm_start.remove('/lib/cm.old')
kept
"""


class ClientUpgrade:
    """Upgrades the client of the boards of a target.

    Args:
        fleet: the fleet of the boards.
        target: which boards; those that are not connected fail.
        on_progress: called with a line of text for each step.

    Attributes:
        failed: board -> why it still has its old client.
    """

    def __init__(self, fleet: Fleet, target: str, on_progress: Callable[[str], None]) -> None:
        self._fleet, self._on_progress = fleet, on_progress
        boards = fleet.request("boards", target=target, as_for_cells=True)
        self._remaining = {board["name"] for board in boards if board["connected_since"]}
        absent = {board["name"] for board in boards} - self._remaining
        self.failed = dict.fromkeys(sorted(absent), "it is offline")
        files = client_files()
        # All in one folder; those that start the client are moved once the new client has worked.
        self._files = {path.rpartition("/")[2]: data for path, data in files.items()}

    def run(self) -> list[str]:
        """Upgrade; return the names of the boards that have the new client."""
        self._run_cell(_PREPARE_CODE, size=sum(map(len, self._files.values())) + 8192)
        for number, (name, data) in enumerate(self._files.items(), 1):
            if not self._remaining:
                return []
            self._on_progress(f"writing {name}, {number} of {len(self._files)}")
            for start in range(0, len(data), PIECE_BYTES):
                piece = data[start : start + PIECE_BYTES]
                self._run_cell(_WRITE_CODE, name=name, mode="ab" if start else "wb", data=piece)
        self._verify_files()
        self._run_cell(_COMMIT_CODE)
        self._restart_boards()
        self._confirm_boards()
        return sorted(self._remaining)

    def _fail_board(self, name: str, why: str) -> None:
        self._remaining.discard(name)
        self.failed[name] = why

    def _run_cell(self, code: str, **inputs: Any) -> Results | None:
        """Run a cell on the remaining boards; a board that fails is not used any more."""
        if not self._remaining:
            return None
        boards = self._fleet[fold_names(self._remaining)]
        results = boards.run(code, inputs=inputs or None, timeout=CELL_SECONDS)
        for name, result in results.items():
            if not result.ok:
                self._fail_board(name, error_text(result.error))
        return results

    def _verify_files(self) -> None:
        expected = {name: hashlib.sha256(data).digest() for name, data in self._files.items()}
        for name, result in (self._run_cell(_HASHES_CODE) or {}).items():
            if result.ok and result.value != expected:
                self._fail_board(name, "the files on the board differ from those that were sent")

    def _restart_boards(self) -> None:
        if not self._remaining:
            return
        before = self._connection_times()
        self._on_progress("restarting")
        self._fleet[fold_names(self._remaining)].submit("import machine\nmachine.reset()")
        deadline = time.monotonic() + RECONNECT_SECONDS
        while missing := {
            n for n in self._remaining if self._connection_times()[n] in (None, before[n])
        }:
            if time.monotonic() > deadline:
                for name in missing:
                    self._fail_board(
                        name, "it did not reconnect; after its next restart it runs the old client"
                    )
                return
            time.sleep(0.1)

    def _connection_times(self) -> Mapping[str, float | None]:
        return {board["name"]: board["connected_since"] for board in self._fleet.boards()}

    def _confirm_boards(self) -> None:
        for name, result in (self._run_cell(_CONFIRM_CODE) or {}).items():
            if result.ok and result.value is not True:
                self._fail_board(name, "the new client did not start; the old one was restored")
