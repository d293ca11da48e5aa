"""How fast boards come back after a restart of the server. No I/O here."""

from __future__ import annotations

from .registry import Registry

MIN_SPREAD = 2.0  # seconds
BOARDS_PER_SECOND = 150  # that one server can authenticate


class Reconnects:
    """The times within which the boards of a fleet reconnect.

    Args:
        registry: all boards.
        lost_after: seconds within which a board may reconnect before its job is lost, at least.

    Attributes:
        servers: how many servers share the boards.
    """

    def __init__(self, registry: Registry, lost_after: float) -> None:
        self._registry = registry
        self._lost_after = lost_after
        self.servers = 1

    @property
    def spread(self) -> float:
        """Return the seconds over which boards distribute their reconnects after a restart."""
        boards_per_server = len(self._registry.by_id) / max(self.servers, 1)
        return max(MIN_SPREAD, boards_per_server / BOARDS_PER_SECOND)

    def lost_after(self) -> float:
        """Return the seconds after which a job is lost: never less than its board needs."""
        return max(self._lost_after, self.spread)
