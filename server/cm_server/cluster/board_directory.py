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
from cm_server.jobs.registry import Away, Board
from cm_server.sample_buffer import Sample

from .peer_messages import ALL

if TYPE_CHECKING:
    from cm_server.app import Server
    from cm_server.store.shared_store import SharedStore

    from .peer_messages import Post
    from .remote_jobs import Elsewhere

log = logging.getLogger("cm_server")

REPLACED = 4003  # the code of the close, as in board_socket.py
TELL_SECONDS = 0.1  # that changes wait for others, so that they share a letter
TELL_BOARDS = 500  # in one letter


class Presence:
    """Where all boards are.

    Args:
        server: whose registry it keeps true.
        store: where who holds what is written.
        post: letters to the other servers.
        elsewhere: which has the jobs of boards that move.
        later: calls a function after so many seconds.
    """

    def __init__(
        self,
        server: Server,
        store: SharedStore,
        post: Post,
        elsewhere: Elsewhere,
        later: Callable[[float, Callable[[], None]], Any],
    ) -> None:
        self._server, self._store, self._post = server, store, post
        self._elsewhere, self._later = elsewhere, later
        self._registry = server.registry
        self._changed: dict[Board, None] = {}
        self._samples: list[list[Any]] = []
        self._waits = self._closed = False
        self._epochs: dict[str, int] = {}  # boards that this server had last: in which epoch
        self._released: set[str] = set()  # those whose link is gone, as the store knows
        self._facts: dict[str, dict[str, Any]] = {}  # that the others know
        self._registry.on_touch = self._on_touch
        post.handlers |= {
            "boards": self._on_boards,
            "samples": self._on_samples,
            "who": self._on_who,
            "rows": self._on_rows,
        }

    @property
    def held(self) -> int:
        """How many boards have their link here."""
        return len(self._epochs) - len(self._released)

    def epoch_for(self, board_id: str) -> int | None:
        """Return the epoch in which a job would be sent to a board at once; None where not."""
        board = self._registry.by_id.get(board_id)
        return self._epochs.get(board_id) if board is not None and board.idle else None

    # Out

    def hold(self, board: Board, facts: dict[str, Any]) -> None:
        """Take a board that has just proven itself here, with what was sent to it.

        Raises:
            ServerError: it is enrolled no more, or the store is away.
        """
        held = self._store.hold(board.id, facts)
        if held is None:
            self.refresh([board.id])
            raise ServerError("it is enrolled no more")
        self._server.enrolment.refresh(held.row)
        board.epoch = self._epochs[board.id] = held.epoch
        self._released.discard(board.id)
        board.away = None
        self._server.dispatch.adopt(board, held.sent)
        self._wake(0)  # before it has done anything that others may hear of

    def _on_touch(self, board: Board) -> None:
        if board.id in self._epochs:
            self._changed[board] = None
            self._wake()

    def _wake(self, seconds: float = TELL_SECONDS) -> None:
        if not self._waits or not seconds:
            self._waits = True
            self._later(seconds, self.tell)

    def on_sample(self, board: Board, sample: Sample) -> None:
        """Pass on what a board here emitted."""
        self._samples.append([board.id, *sample])
        self._wake()

    def tell(self) -> None:
        """Tell the others what changed, and the store whose links are gone."""
        self._waits = False
        if self._closed:
            return
        changed, self._changed = [b for b in self._changed if b.id in self._epochs], {}
        for at in range(0, len(changed), TELL_BOARDS):
            some = changed[at : at + TELL_BOARDS]
            self._post.send(ALL, "boards", {"boards": [self._told(board) for board in some]})
        if self._samples:
            self._post.send(ALL, "samples", {"samples": self._samples})
            self._samples = []
        self._release({b.id for b in changed if b.link is None} - self._released)

    def close(self) -> None:
        """Say the last, and no more."""
        self.tell()
        self._closed = True

    def _release(self, gone: set[str]) -> None:
        try:
            if gone:
                self._store.release({board_id: self._epochs[board_id] for board_id in gone})
            self._released |= gone
        except ServerError:  # it is tried again with the next change, or beat
            self._changed.update((self._registry.by_id[board_id], None) for board_id in gone)

    def _told(self, board: Board) -> list[Any]:
        """Return a board as it travels; its facts only where they are new."""
        facts = None if self._facts.get(board.id) is board.told else board.told
        self._facts[board.id] = board.told
        job = board.current.describe() if board.current else None
        since, queued = board.connected_since, len(board.queue)
        return [board.id, [self._epochs[board.id], board.state, since, job, queued], facts]

    def _on_who(self, sender: str, _head: dict[str, Any], _payload: bytes) -> None:
        """Tell a server that asks all there is."""
        self._facts.clear()
        boards = [self._registry.by_id[board_id] for board_id in self._epochs]
        for at in range(0, len(boards), TELL_BOARDS):
            some = [self._told(board) for board in boards[at : at + TELL_BOARDS]]
            self._post.send(sender, "boards", {"boards": some})

    # In

    def _on_boards(self, sender: str, head: dict[str, Any], _payload: bytes) -> None:
        if unknown := [row[0] for row in head["boards"] if row[0] not in self._registry.by_id]:
            self.refresh(unknown)
        for board_id, told, facts in head["boards"]:
            board = self._registry.by_id.get(board_id)
            if board is not None and told[0] >= board.epoch:
                self._place(board, Away(sender, *told), facts)

    def _place(self, board: Board, away: Away, facts: dict[str, Any] | None) -> None:
        if self._epochs.get(board.id) == away.epoch:
            return  # nobody else can have it in this epoch
        if facts is not None:
            board.told = facts
        board.epoch = away.epoch
        self._let_go(board.id)
        if away.online or (board.away is not None and board.away.online):
            board.last_seen = time.time()
        board.away = away
        if board.link is not None:
            text = "%s dialled another server: its older link is closed"
            self._server.peer_log.write(board.name, logging.WARNING, text, board.name)
            link = board.link
            board.disconnect()
            link.close(REPLACED, "a newer link took over")
        if board.current is not None or (board.queue and away.online):
            self._elsewhere.moved(board)

    def _on_samples(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        for board_id, *sample in head["samples"]:
            board = self._registry.by_id.get(board_id)
            if board is not None:
                self._server.samples.keep(board, Sample(*sample))

    def _let_go(self, board_id: str) -> None:
        self._epochs.pop(board_id, None)
        self._released.discard(board_id)
        self._facts.pop(board_id, None)

    def begin_anew(self) -> None:
        """Know nothing of where boards are."""
        self._epochs.clear()
        self._released.clear()
        for board in self._registry.by_id.values():
            board.epoch, board.away = 0, None

    def lost(self, server: str) -> None:
        """Note that a server is gone: its boards are nowhere until they dial in again."""
        for board in self._registry.by_id.values():
            if board.away is not None and board.away.server == server:
                board.away = None

    def ask(self) -> None:
        """See where all boards are: in the store, and from who has them."""
        mine = self._store.server
        for board_id, (server, epoch) in self._store.holders().items():
            board = self._registry.by_id.get(board_id)
            if board is not None and server != mine and epoch > board.epoch:
                since = board.last_seen or time.time()
                self._place(board, Away(server, epoch, "idle", since), None)
        self._post.send(ALL, "who", {})

    # Rows that another server wrote

    def _on_rows(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        if head.get("tokens"):
            self._server.reload_tokens()
        if head.get("boards"):
            self.refresh(head["boards"])

    def refresh(self, ids: Sequence[str]) -> None:
        """Read anew what the store has of some boards."""
        rows = {row.id: row for row in self._store.some_boards(ids)}
        for row in rows.values():
            self._server.enrolment.refresh(row)
        self._remove(board_id for board_id in ids if board_id not in rows)

    def refresh_all(self) -> None:
        """Read anew what the store has of all boards and tokens."""
        rows = {row.id: row for row in self._store.boards()}
        for row in rows.values():
            self._server.enrolment.refresh(row)
        self._remove(list(self._registry.by_id.keys() - rows.keys()))
        self._server.reload_tokens()

    def _remove(self, ids: Iterable[str]) -> None:
        for board_id in ids:
            board = self._registry.by_id.get(board_id)
            if board is not None:
                self._let_go(board_id)
                self._server.enrolment.let_go(board)

    def tell_rows(self, boards: Sequence[str] = (), *, tokens: bool = False) -> None:
        """Have the other servers read anew what this one wrote."""
        self._post.send(ALL, "rows", {"boards": list(boards), "tokens": tokens})
