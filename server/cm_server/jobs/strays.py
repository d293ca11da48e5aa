"""Messages of boards about jobs that are not their own. No sockets, no SQL."""

from __future__ import annotations

import logging

from cloudmanager.protocol import frames
from cm_server.logs import PeerLog
from cm_server.rate_limits import TokenBucket

from .model import Board


class StrayMessages:
    """Logs stray messages, and closes the link of a board that sends too many.

    That also helps a board with a fault: when it reconnects, it reports its current job.

    Args:
        peer_log: bounds the lines about one board.
        per_minute: messages of one board after which its link is closed.
    """

    def __init__(self, peer_log: PeerLog, per_minute: int) -> None:
        self._peer_log = peer_log
        self._per_minute = per_minute

    def on_stray(self, board: Board, job: int) -> None:
        """Handle a board's message about a job that is not its own."""
        text = "%s sent a message about job %d, which is not its own"
        self._peer_log.write(board.name, logging.WARNING, text, board.name, job)
        if self._has_too_many(board) and board.link is not None:
            why = "too many messages about jobs that are not its own"
            board.link.close(frames.CLOSE_POLICY, why)

    def _has_too_many(self, board: Board) -> bool:
        """Count one message of a board; return whether they exceed the limit."""
        if board.strays is None:
            board.strays = TokenBucket(self._per_minute / 60, self._per_minute)
        return board.strays.spend() > 0
