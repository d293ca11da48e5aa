"""The board directory: which server has the link of each board, and in what state the board is.

Each server has all boards in its registry; for a board that another server holds, it keeps the
state that that server publishes. The store has the rest: which boards are enrolled, and which
server has the lease of each. No sockets, no SQL.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import frames
from cloudmanager.protocol.errors import ServerError
from cm_server.jobs.model import Board, RemoteBoardState
from cm_server.sample_buffer import Sample

from .peer_messages import ALL

if TYPE_CHECKING:
    from cm_server.jobs.job_history import ReportedResult
    from cm_server.store.rows import BoardRow, ClaimedBoard
    from cm_server.store.store_queue import Operation

    from .remote_jobs import RemoteJobs
    from .services import ClusterContext, ClusterServices

log = logging.getLogger("cm_server")

PUBLISH_SECONDS = 0.1  # that a change is delayed, so that several share one message
BOARDS_PER_MESSAGE = 500
SAMPLES_PER_MESSAGE = 2000  # of older samples; each message takes some milliseconds


class BoardDirectory:
    """Keeps the registry up to date about boards of other servers, and publishes this one's.

    Args:
        services: the parts of this server.
        context: the store and the other servers.
        remote_jobs: takes the jobs of boards that move to another server.
    """

    def __init__(
        self, services: ClusterServices, context: ClusterContext, remote_jobs: RemoteJobs
    ) -> None:
        self._services, self._remote_jobs = services, remote_jobs
        self._store_queue, self._peer_messages = context.store_queue, context.peer_messages
        self._tasks, self._call_later = context.tasks, context.call_later
        # Messages about boards that wait for rows of unknown boards, in their order.
        self._delayed_updates: deque[tuple[str, list[Any]]] = deque()
        self._registry = services.registry
        self._changed: dict[Board, None] = {}
        self._pending_samples: list[list[Any]] = []
        self._sample_counts: Counter[str] = Counter()  # of this server's boards, by id
        # Of other servers' boards: the server, and the number of the last sample from there.
        self._last_samples: dict[str, tuple[str, int]] = {}
        self._publish_scheduled = self._closed = False
        self._has_samples = False  # whether older samples of other servers' boards were requested
        self._epochs = context.epochs
        self._released: set[str] = set()  # ids of those whose link is closed, also in the store
        self._published_facts: dict[
            str, dict[str, Any]
        ] = {}  # board id -> facts, as last published
        self._registry.directory_listener = self._on_board_changed
        self._peer_messages.handlers |= {
            "boards": self._on_boards,
            "samples": self._on_samples,
            "older-samples": self._on_older_samples,
            "who": self._on_boards_requested,
            "rows": self._on_rows_changed,
            "generation": self._on_generation,
        }

    @property
    def held_count(self) -> int:
        """The number of boards that are connected to this server."""
        return len(self._epochs) - len(self._released)

    # To other servers

    def claim_board(self, board: Board, facts: dict[str, Any]) -> Operation[ClaimedBoard | None]:
        """Acquire the lease of a board that has just authenticated, and the jobs sent to it."""
        board_id = board.id
        return self._store_queue.run(lambda store: store.claim_board(board_id, facts))

    def apply_claim(
        self,
        board: Board,
        claim: Operation[ClaimedBoard | None],
        reported: ReportedResult | None,
    ) -> None:
        """Know a board as one of this server, if its lease was acquired.

        Args:
            board: it has just authenticated.
            claim: its lease, and the jobs sent to it.
            reported: its report of its last job.

        Raises:
            ServerError: it is no longer enrolled, or the store is unavailable.
        """
        claimed = claim.result()
        if claimed is None:
            self._refuse_revoked(board)
        else:
            self._apply_lease(board, claimed, reported)

    def _refuse_revoked(self, board: Board) -> None:
        """Remove a board that another server revoked, and refuse its link."""
        self._remove_boards([board.id])
        raise ServerError("it is no longer enrolled")

    def _apply_lease(
        self, board: Board, claimed: ClaimedBoard, reported: ReportedResult | None
    ) -> None:
        # If no other server has had it since, a current job that is not among those claimed was
        # written during the claim, and sent to the board's older link: it stays this server's.
        was_elsewhere = self._epochs.get(board.id) != claimed.epoch - 1
        current = board.current_job
        if was_elsewhere and current and current.id not in {row.id for row in claimed.sent_jobs}:
            self._services.dispatch.recovery.hand_over_current(board)
        self._services.enrolment.apply_row(claimed.row)
        board.epoch = self._epochs[board.id] = claimed.epoch
        self._released.discard(board.id)
        board.remote_state = None
        self._services.dispatch.recovery.adopt_jobs(board, claimed.sent_jobs, reported)
        self._schedule_publish(0)  # before any message about what the board does

    def _on_board_changed(self, board: Board) -> None:
        if board.id in self._epochs:
            self._changed[board] = None
            self._schedule_publish()

    def _schedule_publish(self, seconds: float = PUBLISH_SECONDS) -> None:
        if not self._publish_scheduled or not seconds:
            self._publish_scheduled = True
            self._call_later(seconds, self.publish_changes)

    def on_sample(self, board: Board, sample: Sample) -> None:
        """Publish a sample of a board of this server, with its number: the bus may lose some."""
        self._sample_counts[board.id] += 1
        self._pending_samples.append([board.id, self._sample_counts[board.id], *sample])
        self._schedule_publish()

    def publish_generation(self, board: Board) -> None:
        """Publish the generation of a board, which another server may hold.

        It reports it itself only when it connects. Without this, its server would publish what it
        reported before.
        """
        body = {"board": board.id, "generation": board.reported_facts.get("generation")}
        self._peer_messages.send(ALL, "generation", body)

    def _on_generation(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        board = self._registry.by_id.get(head["board"])
        if board is not None:
            board.reported_facts = {**board.reported_facts, "generation": head["generation"]}
            board.notify_changed()

    def publish_changes(self) -> None:
        """Publish pending changes and samples, and record closed links in the store."""
        self._publish_scheduled = False
        if self._closed:
            return
        changed = [board for board in self._changed if board.id in self._epochs]
        # Others know soon enough if it is not back in time, see ``Rebalancer``.
        changed = [board for board in changed if not board.expected_seconds]
        self._changed = {}
        self._send_boards(ALL, changed)
        if self._pending_samples:
            self._peer_messages.send(ALL, "samples", {"samples": self._pending_samples})
            self._pending_samples = []
        self._release_boards({b.id for b in changed if b.link is None} - self._released)

    def close(self) -> None:
        """Publish pending changes, then stop."""
        self.publish_changes()
        self._closed = True

    def _send_boards(self, recipient: str, boards: Sequence[Board]) -> None:
        """Send the states of boards, a bounded number in each message."""
        for start in range(0, len(boards), BOARDS_PER_MESSAGE):
            part = boards[start : start + BOARDS_PER_MESSAGE]
            updates = [self._board_update(board) for board in part]
            self._peer_messages.send(recipient, "boards", {"boards": updates})

    def _release_boards(self, ids: set[str]) -> None:
        """Record in the store that boards have no link."""
        if not ids:
            return
        epochs = {board_id: self._epochs[board_id] for board_id in ids}
        self._released |= ids
        operation = self._store_queue.run(lambda store: store.release_boards(epochs))
        operation.when_done(lambda _: self._on_released(epochs, operation))

    def _on_released(self, epochs: Mapping[str, int], operation: Operation[int]) -> None:
        """If the store was unavailable, try again with the next change, or at a heartbeat."""
        if operation.error is None:
            return
        for board_id, epoch in epochs.items():
            board = self._registry.by_id.get(board_id)
            if board is not None and self._epochs.get(board_id) == epoch:
                self._released.discard(board_id)
                self._changed[board] = None

    def _board_update(self, board: Board) -> list[Any]:
        """Return a board's id, state and facts as they are sent; facts only if they changed."""
        facts = (
            None
            if self._published_facts.get(board.id) is board.reported_facts
            else board.reported_facts
        )
        self._published_facts[board.id] = board.reported_facts
        job = board.current_job.describe() if board.current_job else None
        since, queued = board.connected_since, len(board.queue)
        return [board.id, [self._epochs[board.id], board.state, since, job, queued], facts]

    def _on_boards_requested(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Send all boards of this server, with their facts, to the server that requests them.

        A server that has just started also gets their samples.
        """
        self._published_facts.clear()
        boards = [self._registry.by_id[board_id] for board_id in self._epochs]
        self._send_boards(sender, boards)
        if head.get("samples"):
            self._send_older_samples(sender, deque(boards))

    def _send_older_samples(self, server: str, boards: deque[Board]) -> None:
        """Send the samples of boards, some boards at a time; other messages go on meanwhile."""
        samples: list[list[Any]] = []
        while boards and len(samples) < SAMPLES_PER_MESSAGE:
            board = boards.popleft()
            samples += [[board.id, *sample] for sample in board.samples]
        if samples:
            self._peer_messages.send(server, "older-samples", {"samples": samples})
        if boards and not self._closed:
            self._call_later(
                PUBLISH_SECONDS, functools.partial(self._send_older_samples, server, boards)
            )

    # From other servers

    def _on_boards(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Apply the states of boards that another server publishes."""
        updates = head["boards"]
        unknown = [update[0] for update in updates if update[0] not in self._registry.by_id]
        if unknown or self._delayed_updates:
            self._delayed_updates.append((sender, updates))
            self._tasks.start(self._apply_delayed_updates(unknown))
        else:
            self._apply_updates(sender, updates)

    async def _apply_delayed_updates(self, unknown: Sequence[str]) -> None:
        """Read the rows of boards that this server does not know, then apply the oldest message."""
        try:
            if unknown:
                await self.reload_boards(unknown)
        finally:
            self._apply_updates(*self._delayed_updates.popleft())

    def _apply_updates(self, sender: str, updates: list[Any]) -> None:
        for board_id, fields, facts in updates:
            board = self._registry.by_id.get(board_id)
            state = RemoteBoardState(sender, *fields)
            if board is not None and not _is_outdated(board, state.epoch):
                self._set_remote_state(board, state, facts)

    def _set_remote_state(
        self, board: Board, remote_state: RemoteBoardState, facts: dict[str, Any] | None
    ) -> None:
        """Set the state of a board at another server; close its link here, if there is one."""
        if self._epochs.get(board.id) == remote_state.epoch:
            return  # this server has the lease of this epoch
        if facts is not None:
            board.reported_facts = facts
        board.epoch = remote_state.epoch
        self._drop_claim(board.id)
        if remote_state.online or (board.remote_state is not None and board.remote_state.online):
            board.last_seen = time.time()
        board.remote_state = remote_state
        if board.link is not None:
            text = "%s connected to another server: closing its older link"
            self._services.peer_log.write(board.name, logging.WARNING, text, board.name)
            link = board.link
            board.disconnect()
            link.close(frames.CLOSE_REPLACED, "a newer link took over")
        if board.current_job is not None or (board.queue and remote_state.online):
            self._remote_jobs.on_board_moved(board)

    def _on_samples(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Add samples of boards of another server; those that the bus has lost are counted."""
        for board_id, number, *fields in head["samples"]:
            board = self._registry.by_id.get(board_id)
            if board is None:
                continue
            sample = Sample(*fields)
            server, last = self._last_samples.get(board_id, ("", 0))
            if server == sender:
                sample = sample._replace(missed=sample.missed + max(number - last - 1, 0))
            self._last_samples[board_id] = sender, number
            self._services.samples.add_sample(board, sample)

    def _on_older_samples(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        """Add samples that boards of another server sent before this server started."""
        samples: dict[str, list[Sample]] = {}
        for board_id, *fields in head["samples"]:
            samples.setdefault(board_id, []).append(Sample(*fields))
        for board_id, older in samples.items():
            board = self._registry.by_id.get(board_id)
            if board is not None:
                self._services.samples.add_older_samples(board, older)

    def _drop_claim(self, board_id: str) -> None:
        """Remove what is known of a board as one of this server."""
        self._epochs.pop(board_id, None)
        self._released.discard(board_id)
        self._published_facts.pop(board_id, None)
        self._sample_counts.pop(board_id, None)

    def clear(self) -> None:
        """Clear the directory: this server has no boards, and knows no others."""
        self._epochs.clear()
        self._released.clear()
        for board in self._registry.by_id.values():
            board.epoch, board.remote_state = 0, None

    def holders(self) -> set[str]:
        """Return the ids of the other servers that have, or had, boards."""
        boards = self._registry.by_id.values()
        return {board.remote_state.server for board in boards if board.remote_state} - {""}

    def on_server_lost(self, server: str) -> None:
        """Mark the boards of a dead server as offline, until they reconnect to another one."""
        for board in self._registry.by_id.values():
            if board.remote_state is not None and board.remote_state.server == server:
                board.remote_state = None

    async def request_boards(self) -> None:
        """Read the holders of all boards from the store, and request the states from them.

        The first time, their samples are requested, too.
        """
        holders = await self._store_queue.run(lambda store: store.board_holders())
        own_id = self._store_queue.store.server_id
        for board_id, (server, epoch) in holders.items():
            board = self._registry.by_id.get(board_id)
            if board is not None and server != own_id and epoch > board.epoch:
                since = board.last_seen or time.time()
                self._set_remote_state(board, RemoteBoardState(server, epoch, "idle", since), None)
        self._peer_messages.send(ALL, "who", {"samples": not self._has_samples})
        self._has_samples = self._has_samples or self._peer_messages.pubsub.connected

    # Rows of the store that another server changed

    def _on_rows_changed(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        if head.get("tokens"):
            self._on_tokens_changed()
        if head.get("boards"):
            self._on_enrolment_changed(head["boards"])

    def _on_tokens_changed(self) -> None:
        """Read the tokens again: another server created or revoked one."""
        self._tasks.start(self._services.callers.reload_tokens())

    def _on_enrolment_changed(self, ids: Sequence[str]) -> None:
        """Read boards again that another server enrolled, changed or revoked."""
        self._tasks.start(self.reload_boards(ids))

    async def reload_boards(self, ids: Sequence[str]) -> None:
        """Read some boards from the store again; remove those that are not enrolled any more."""
        operation = self._store_queue.run(lambda store: store.boards_by_id(ids))
        # As soon as they are read: a change after that must not be undone.
        operation.when_done(lambda _: self._apply_rows(operation, ids))
        await operation

    async def reload_all(self) -> None:
        """Read all boards and tokens from the store again."""
        operation = self._store_queue.run(lambda store: store.boards())
        operation.when_done(lambda _: self._apply_rows(operation, list(self._registry.by_id)))
        await operation
        await self._services.callers.reload_tokens()

    def _apply_rows(self, operation: Operation[list[BoardRow]], ids: Iterable[str]) -> None:
        """Apply the rows that were read; those of these boards that have none are removed."""
        if operation.error is not None:
            return
        rows = {row.id: row for row in operation.result()}
        for row in rows.values():
            self._services.enrolment.apply_row(row)
        self._remove_boards(board_id for board_id in ids if board_id not in rows)

    def _remove_boards(self, ids: Iterable[str]) -> None:
        for board_id in ids:
            board = self._registry.by_id.get(board_id)
            if board is not None:
                self._drop_claim(board_id)
                self._last_samples.pop(board_id, None)
                self._services.enrolment.remove_board(board)
                self._services.enrolment.read_replaced(board_id)

    def publish_row_changes(self, boards: Sequence[str] = (), *, tokens: bool = False) -> None:
        """Notify the other servers of rows that this one changed, so that they read them again."""
        self._peer_messages.send(ALL, "rows", {"boards": list(boards), "tokens": tokens})


def _is_outdated(board: Board, epoch: int) -> bool:
    """Return whether a message about a board is older than what this server knows of it."""
    return epoch < board.epoch
