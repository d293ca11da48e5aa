"""Logs of boards of other servers, for callers of this one that follow them. No sockets, no SQL.

Each server writes what its boards print into the store, once a second; the others read it from
there while somebody follows logs at them. The bus would carry the same bytes once more.
"""

from __future__ import annotations

from cm_server.board_logs import LogText

from .services import ClusterContext, ClusterServices


class RemoteLogs:
    """Reads what other servers write into boards' logs, while somebody follows logs here.

    Args:
        services: the parts of this server.
        context: the store.
    """

    def __init__(self, services: ClusterServices, context: ClusterContext) -> None:
        self._registry = services.registry
        self._listener = services.log_listener
        self._max_chars = services.limits.subscription_pending_log_chars
        self._store_queue, self._tasks = context.store_queue, context.tasks
        self._is_followed = False

    def set_followed(self, is_followed: bool) -> None:
        """Begin to read, from now on; or end it."""
        self._is_followed = is_followed
        if is_followed:
            self.poll()
        else:
            self._store_queue.run_later(lambda store: store.log_rows.stop_reading_others())

    def poll(self) -> None:
        """Read what is new, if somebody follows logs; call it once a second."""
        if self._is_followed:
            self._tasks.start_one("logs", self._read())

    async def _read(self) -> None:
        max_chars = self._max_chars
        rows, left_out = await self._store_queue.run(
            lambda store: store.log_rows.read_others(max_chars)
        )
        if left_out:
            self._listener.on_logs_left_out(left_out)
        for row in rows:
            board = self._registry.by_id.get(row.board_id)
            if board is not None:
                self._listener.on_log(board, LogText(row.at, row.lost, row.text))
