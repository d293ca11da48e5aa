"""What servers tell each other of their boards: where each is, how it is, and what changed of it.

Each keeps all boards in its registry; of those that another server holds, what that says of them.
The store has the rest: who is enrolled, and who holds which board. No sockets, no SQL.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol.errors import ServerError
from cm_server.jobs.registry import Board, RemoteBoardState
from cm_server.sample_buffer import Sample

from .peer_messages import ALL

if TYPE_CHECKING:
    from cm_server.app import Server
    from cm_server.store.rows import ClaimedBoard
    from cm_server.store.shared_store import SharedStore

    from .peer_messages import PeerMessages
    from .remote_jobs import RemoteJobs

log = logging.getLogger("cm_server")

CLOSE_REPLACED = 4003  # the code of the close, as in board_socket.py
PUBLISH_SECONDS = 0.1  # that changes wait for others, so that they share a letter
BOARDS_PER_MESSAGE = 500  # in one letter


class BoardDirectory:
    """Where all boards are.

    Args:
        server: whose registry it keeps true.
        store: where who holds what is written.
        peer_messages: letters to the other servers.
        remote_jobs: which has the jobs of boards that move.
        call_later: calls a function after so many seconds.
    """

    def __init__(
        self,
        server: Server,
        store: SharedStore,
        peer_messages: PeerMessages,
        remote_jobs: RemoteJobs,
        call_later: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self._server, self._store, self._peer_messages = server, store, peer_messages
        self._remote_jobs, self._call_later = remote_jobs, call_later
        self._registry = server.registry
        self._changed: dict[Board, None] = {}
        self._pending_samples: list[list[Any]] = []
        self._publish_scheduled = self._closed = False
        self._epochs: dict[str, int] = {}  # boards that this server had last: in which epoch
        self._released: set[str] = set()  # those whose link is gone, as the store knows
        self._published_facts: dict[str, dict[str, Any]] = {}  # that the others know
        self._registry.directory_listener = self._on_board_changed
        peer_messages.handlers |= {
            "boards": self._on_boards,
            "samples": self._on_samples,
            "who": self._on_boards_requested,
            "rows": self._on_rows_changed,
        }

    @property
    def held_count(self) -> int:
        """How many boards have their link here."""
        return len(self._epochs) - len(self._released)

    def epoch_for(self, board_id: str) -> int | None:
        """Return the epoch in which a job would be sent to a board at once; None where not."""
        board = self._registry.by_id.get(board_id)
        return self._epochs.get(board_id) if board is not None and board.idle else None

    # Out

    def claim_board(self, board: Board, facts: dict[str, Any]) -> None:
        """Take a board that has just proven itself here, with what was sent to it.

        Raises:
            ServerError: it is enrolled no more, or the store is away.
        """
        held = self._store.claim_board(board.id, facts)
        if held is None:
            self._refuse_revoked(board)
        else:
            self._apply_lease(board, held)

    def _refuse_revoked(self, board: Board) -> None:
        self.reload_boards([board.id])
        raise ServerError("it is enrolled no more")

    def _apply_lease(self, board: Board, held: ClaimedBoard) -> None:
        self._server.enrolment.apply_row(held.row)
        board.epoch = self._epochs[board.id] = held.epoch
        self._released.discard(board.id)
        board.remote_state = None
        self._server.dispatch.adopt_jobs(board, held.sent_jobs)
        self._schedule_publish(0)  # before it has done anything that others may hear of

    def _on_board_changed(self, board: Board) -> None:
        if board.id in self._epochs:
            self._changed[board] = None
            self._schedule_publish()

    def _schedule_publish(self, seconds: float = PUBLISH_SECONDS) -> None:
        if not self._publish_scheduled or not seconds:
            self._publish_scheduled = True
            self._call_later(seconds, self.publish_changes)

    def on_sample(self, board: Board, sample: Sample) -> None:
        """Pass on what a board here emitted."""
        self._pending_samples.append([board.id, *sample])
        self._schedule_publish()

    def publish_changes(self) -> None:
        """Tell the others what changed, and the store whose links are gone."""
        self._publish_scheduled = False
        if self._closed:
            return
        changed, self._changed = [b for b in self._changed if b.id in self._epochs], {}
        for at in range(0, len(changed), BOARDS_PER_MESSAGE):
            some = changed[at : at + BOARDS_PER_MESSAGE]
            self._peer_messages.send(
                ALL, "boards", {"boards": [self._board_update(board) for board in some]}
            )
        if self._pending_samples:
            self._peer_messages.send(ALL, "samples", {"samples": self._pending_samples})
            self._pending_samples = []
        self._release_boards({b.id for b in changed if b.link is None} - self._released)

    def close(self) -> None:
        """Say the last, and no more."""
        self.publish_changes()
        self._closed = True

    def _release_boards(self, gone: set[str]) -> None:
        try:
            if gone:
                self._store.release_boards({board_id: self._epochs[board_id] for board_id in gone})
            self._released |= gone
        except ServerError:  # it is tried again with the next change, or beat
            self._changed.update((self._registry.by_id[board_id], None) for board_id in gone)

    def _board_update(self, board: Board) -> list[Any]:
        """Return a board as it travels; its facts only where they are new."""
        facts = (
            None
            if self._published_facts.get(board.id) is board.reported_facts
            else board.reported_facts
        )
        self._published_facts[board.id] = board.reported_facts
        job = board.current_job.describe() if board.current_job else None
        since, queued = board.connected_since, len(board.queue)
        return [board.id, [self._epochs[board.id], board.state, since, job, queued], facts]

    def _on_boards_requested(self, sender: str, _head: dict[str, Any], _payload: bytes) -> None:
        """Tell a server that asks all there is."""
        self._published_facts.clear()
        boards = [self._registry.by_id[board_id] for board_id in self._epochs]
        for at in range(0, len(boards), BOARDS_PER_MESSAGE):
            some = [self._board_update(board) for board in boards[at : at + BOARDS_PER_MESSAGE]]
            self._peer_messages.send(sender, "boards", {"boards": some})

    # In

    def _on_boards(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        if unknown := [row[0] for row in head["boards"] if row[0] not in self._registry.by_id]:
            self.reload_boards(unknown)
        for board_id, told, facts in head["boards"]:
            board = self._registry.by_id.get(board_id)
            if board is not None and not _is_outdated(board, told[0]):
                self._set_remote_state(board, RemoteBoardState(sender, *told), facts)

    def _set_remote_state(
        self, board: Board, remote_state: RemoteBoardState, facts: dict[str, Any] | None
    ) -> None:
        if self._epochs.get(board.id) == remote_state.epoch:
            return  # nobody else can have it in this epoch
        if facts is not None:
            board.reported_facts = facts
        board.epoch = remote_state.epoch
        self._drop_claim(board.id)
        if remote_state.online or (board.remote_state is not None and board.remote_state.online):
            board.last_seen = time.time()
        board.remote_state = remote_state
        if board.link is not None:
            text = "%s dialled another server: its older link is closed"
            self._server.peer_log.write(board.name, logging.WARNING, text, board.name)
            link = board.link
            board.disconnect()
            link.close(CLOSE_REPLACED, "a newer link took over")
        if board.current_job is not None or (board.queue and remote_state.online):
            self._remote_jobs.on_board_moved(board)

    def _on_samples(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        for board_id, *sample in head["samples"]:
            board = self._registry.by_id.get(board_id)
            if board is not None:
                self._server.sample_collector.add_sample(board, Sample(*sample))

    def _drop_claim(self, board_id: str) -> None:
        self._epochs.pop(board_id, None)
        self._released.discard(board_id)
        self._published_facts.pop(board_id, None)

    def clear(self) -> None:
        """Know nothing of where boards are."""
        self._epochs.clear()
        self._released.clear()
        for board in self._registry.by_id.values():
            board.epoch, board.remote_state = 0, None

    def on_server_lost(self, server: str) -> None:
        """Note that a server is gone: its boards are nowhere until they dial in again."""
        for board in self._registry.by_id.values():
            if board.remote_state is not None and board.remote_state.server == server:
                board.remote_state = None

    def request_boards(self) -> None:
        """See where all boards are: in the store, and from who has them."""
        mine = self._store.server_id
        for board_id, (server, epoch) in self._store.board_holders().items():
            board = self._registry.by_id.get(board_id)
            if board is not None and server != mine and epoch > board.epoch:
                since = board.last_seen or time.time()
                self._set_remote_state(board, RemoteBoardState(server, epoch, "idle", since), None)
        self._peer_messages.send(ALL, "who", {})

    # Rows that another server wrote

    def _on_rows_changed(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        if head.get("tokens"):
            self._on_tokens_changed()
        if head.get("boards"):
            self._on_enrolment_changed(head["boards"])

    def _on_tokens_changed(self) -> None:
        """Read the tokens again: another server created or revoked one."""
        self._server.reload_tokens()

    def _on_enrolment_changed(self, ids: Sequence[str]) -> None:
        """Read boards again that another server enrolled, changed or revoked."""
        self.reload_boards(ids)

    def reload_boards(self, ids: Sequence[str]) -> None:
        """Read anew what the store has of some boards."""
        rows = {row.id: row for row in self._store.boards_by_id(ids)}
        for row in rows.values():
            self._server.enrolment.apply_row(row)
        self._remove_boards(board_id for board_id in ids if board_id not in rows)

    def reload_all(self) -> None:
        """Read anew what the store has of all boards and tokens."""
        rows = {row.id: row for row in self._store.boards()}
        for row in rows.values():
            self._server.enrolment.apply_row(row)
        self._remove_boards(list(self._registry.by_id.keys() - rows.keys()))
        self._server.reload_tokens()

    def _remove_boards(self, ids: Iterable[str]) -> None:
        for board_id in ids:
            board = self._registry.by_id.get(board_id)
            if board is not None:
                self._drop_claim(board_id)
                self._server.enrolment.remove_board(board)

    def publish_row_changes(self, boards: Sequence[str] = (), *, tokens: bool = False) -> None:
        """Have the other servers read anew what this one wrote."""
        self._peer_messages.send(ALL, "rows", {"boards": list(boards), "tokens": tokens})


def _is_outdated(board: Board, epoch: int) -> bool:
    """Return whether a message about a board is older than what this server knows of it."""
    return epoch < board.epoch
