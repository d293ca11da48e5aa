"""Who the boards of a bridge are: their identities, kept in the user's folder."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

from cloudmanager import config
from cloudmanager.board_client import Identity
from cloudmanager.client.fleet import Fleet

from .flash import NameBook


class Members:
    """Who the bridged boards are: their identities, kept in the user's folder.

    Args:
        fleet: enrols new ones; for administrators.
        names: what new ones may be called; empty: by platform.
    """

    def __init__(self, fleet: Fleet, names: Sequence[str]) -> None:
        self._fleet = fleet
        self._book = NameBook(fleet, names)
        self._file = config.make_home() / "bridge.json"
        self._lock = threading.Lock()

    def identity(self, hardware: str, platform: str) -> Identity:
        """Return who the board with this hardware id is; a new one is enrolled."""
        with self._lock:
            known = self._read()
            row = known.get(hardware)
            if row is None or row["id"] not in {board["id"] for board in self._fleet.boards()}:
                name = row["name"] if row else self._book.take(platform)
                (row,) = self._fleet.enrol([name])
                self._keep(hardware, row)
            return Identity.of(row, self._fleet.address.url)

    def rekey(self, hardware: str, key: bytes, gen: int) -> Identity:
        """Give the board with this hardware id another key, number ``gen``."""
        with self._lock:
            row = {**self._read()[hardware], "key": key.hex(), "gen": gen}
            self._keep(hardware, row)
            return Identity.of(row, self._fleet.address.url)

    def _keep(self, hardware: str, row: dict[str, Any]) -> None:
        config.write_private(self._file, json.dumps({**self._read(), hardware: row}))

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
