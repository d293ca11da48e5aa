"""Identities of bridged boards, kept in a file in CM_HOME."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any

from cloudmanager import config
from cloudmanager.board_client import BoardIdentity
from cloudmanager.client.fleet import Fleet

from .flash import NameAllocator


class BridgedIdentities:
    """Maps hardware ids to identities in the fleet, and enrols new boards.

    Args:
        fleet: the fleet; enrolling needs the administrator's role.
        names: names for new boards; empty: by platform.
    """

    def __init__(self, fleet: Fleet, names: Sequence[str]) -> None:
        self._fleet, self._names = fleet, list(names)
        self._name_allocator = NameAllocator(fleet, names)
        self._file = config.make_home_folder() / "bridge.json"
        self._lock = threading.Lock()

    def get_identity(self, hardware: str, platform: str) -> BoardIdentity:
        """Return the identity of the board with this hardware id; enrol a new board."""
        with self._lock:
            known = self._load()
            row = known.get(hardware)
            if row is None or row["id"] not in {board["id"] for board in self._fleet.boards()}:
                name = row["name"] if row else self._name_allocator.allocate(platform)
                (row,) = self._fleet.enrol([name])
                self._save(hardware, row)
            self._rename(hardware, row)
            return BoardIdentity.from_enrolment(row, self._fleet.address.url)

    def _rename(self, hardware: str, row: dict[str, Any]) -> None:
        """Give the board the requested name, if one was requested and it has another."""
        known = {board["id"]: board["name"] for board in self._fleet.boards()}
        name = self._names[0] if len(self._names) == 1 else known[row["id"]]
        if known[row["id"]] != name:
            self._fleet.rename(known[row["id"]], name)
            self._save(hardware, {**row, "name": name})

    def change_key(self, hardware: str, key: bytes, gen: int) -> BoardIdentity:
        """Save key number ``gen`` of the board with this hardware id; return its identity."""
        with self._lock:
            row = {**self._load()[hardware], "key": key.hex(), "gen": gen}
            self._save(hardware, row)
            return BoardIdentity.from_enrolment(row, self._fleet.address.url)

    def _save(self, hardware: str, row: dict[str, Any]) -> None:
        config.write_private(self._file, json.dumps({**self._load(), hardware: row}))

    def _load(self) -> dict[str, dict[str, Any]]:
        try:
            known = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}
