"""The only server of its fleet: what other servers would do for it is done here or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cm_server.store.store_queue import Operation, completed

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.job_history import ReportedResult
    from cm_server.jobs.model import Board
    from cm_server.sample_buffer import Sample
    from cm_server.store.rows import ClaimedBoard, TokenRow
    from cm_server.store.store import Store
    from cm_server.store.store_queue import StoreQueue


class SingleServer:
    """A server that shares its store with nobody; it has the methods of ``Cluster``.

    Args:
        store_queue: of its store.
        dispatch: has the jobs.

    Attributes:
        is_shared: whether there may be other servers.
        servers: the addresses of the live servers by id, if there are several.
        store_kind: the kind of its database.
        bus_state: "up", "down" or "none".
    """

    is_shared = False
    servers: Mapping[str, str] = {}
    store_kind = "SQLite"
    bus_state = "none"

    def __init__(self, store_queue: StoreQueue[Store], dispatch: Dispatch) -> None:
        self._store_queue = store_queue
        self._dispatch = dispatch

    def warnings(self) -> list[str]:
        """Return nothing: there are no faults between servers."""
        return []

    async def wait_until_ready(self) -> None:
        """Do nothing: there is nothing to hear from others."""

    async def count_links(self, _token: TokenRow) -> int:
        """Return 0: no caller is connected to another server."""
        return 0

    def start(self, _address: str) -> None:
        """Do nothing: there is no server to announce this one to."""

    def leave(self) -> None:
        """Do nothing: no server takes over."""

    async def close(self) -> None:
        """Do nothing: there is no bus."""

    def claim_board(self, board: Board, facts: dict[str, Any]) -> Operation[ClaimedBoard | None]:
        """Record that a board has authenticated; it has no other server."""
        self._store_queue.store.mark_board_seen(board.id, facts)
        self._dispatch.job_results.flush_later()
        return completed(None)

    def apply_claim(
        self,
        _board: Board,
        _claim: Operation[ClaimedBoard | None],
        _reported: ReportedResult | None,
    ) -> None:
        """Do nothing: the board was this server's before."""

    def on_sample(self, _board: Board, _sample: Sample) -> None:
        """Do nothing: nobody else has subscribers."""

    def publish_generation(self, _board: Board) -> None:
        """Do nothing: nobody else knows the board."""

    def follow_logs(self, _is_followed: bool) -> None:
        """Do nothing: all boards are connected here."""

    def stop_program(self, board: Board) -> bool:
        """Interrupt a board's own program; return whether it is connected."""
        return self._dispatch.stop_program(board)

    async def describe_jobs(
        self, is_visible: Callable[[str], bool]
    ) -> Iterable[tuple[str, dict[str, Any]]]:
        """Return open jobs, then recently ended ones, each with its board's id; newest first.

        Args:
            is_visible: returns whether the jobs of a board with this id are described.
        """
        return self._dispatch.job_results.describe_jobs(is_visible)

    async def describe_job(self, _number: int) -> dict[str, Any] | None:
        """Return None: no other server knows a job that this one does not know."""
        return None

    async def locate_jobs(self, _jobs: Iterable[int]) -> list[tuple[int, str, str]]:
        """Return nothing: this server knows all open jobs."""
        return []

    def interrupt_jobs(self, _places: Iterable[tuple[int, str, str]]) -> None:
        """Do nothing: no job is at another server."""
