"""Enrols, renames, replaces and removes boards, and replaces their keys. No sockets, no SQL.

A board's identity is an id, which is never used again, and a key. A name belongs to one board at a
time; another board that gets it later inherits nothing, unless it replaces the first on request.
The identity of a board that was replaced is kept, so that it is recognised if it comes back.

A key is replaced in two phases. The server stores a nonce, from which the next key is derived, and
sends it to the board. The board derives the key, stores it, and proves that it has it. The old key
is valid until the new one has been used once. So neither a lost message nor a power cut locks
a board out.
"""

from __future__ import annotations

import base64
import hmac
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cloudmanager.protocol import frames, proofs
from cloudmanager.protocol.errors import ServerError, TargetError
from cloudmanager.protocol.targets import check_name, parse_target
from cm_server.jobs.model import Board, read_reservation, read_stay
from cm_server.store.replaced_rows import BoardPeriod, ReplacedBoard, find_periods
from cm_server.store.rollout_replacements import BoardReplacement
from cm_server.store.rollout_rows import RolloutPlace
from cm_server.store.rows import BoardRow, TokenRow, new_board_row

from . import credentials
from .access import UnenrolledBoard
from .audit import AuditEntry, AuditLog
from .tokens import Tokens

if TYPE_CHECKING:
    from cm_server.jobs.dispatch import Dispatch
    from cm_server.jobs.registry import Registry
    from cm_server.logs import PeerLog
    from cm_server.store.board_store import ReplacedWith
    from cm_server.store.store import Store
    from cm_server.store.store_queue import Operation, StoreQueue

T = TypeVar("T")

log = logging.getLogger("cm_server")

_UID = re.compile(r"[0-9a-zA-Z]{1,32}")  # a board's unique id, or its platform
_KEY = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class EnrolmentServices:
    """The parts of the server that enrolment uses.

    Attributes:
        store_queue: of the store.
        registry: all boards.
        dispatch: the jobs and links of boards.
        tokens: boards may enrol themselves with one.
        audit_log: records it.
        peer_log: for lines about boards.
        ca: the certificate of the server's authority, which boards verify (DER).
    """

    store_queue: StoreQueue[Store]
    registry: Registry
    dispatch: Dispatch
    tokens: Tokens
    audit_log: AuditLog
    peer_log: PeerLog
    ca: bytes


class Enrolment:
    """Changes the enrolled boards; each change is in the store before it takes effect.

    Args:
        services: the parts of the server that it uses.

    Attributes:
        on_erased: called with the ids of boards whose samples must be erased.
    """

    def __init__(self, services: EnrolmentServices) -> None:
        self.on_erased: Callable[[Sequence[str]], None] = lambda _ids: None
        self._services = services
        self._registry = services.registry
        self._dispatch = services.dispatch
        store = services.store_queue.store  # the server does not serve yet
        found = store.read(store.replaced_rows.all)
        self._replaced = {replaced.id: replaced for replaced in found}

    async def enrol(
        self, names: Iterable[str], audit_entry: AuditEntry | None = None, *, plain: bool = False
    ) -> list[dict[str, Any]]:
        """Enrol boards by name; a board that exists already gets a new key.

        Args:
            names: legal names.
            audit_entry: for the audit log.
            plain: whether the boards cannot verify a certificate, and may connect without TLS,
                with MACs.

        Returns:
            For each board, the contents of its ``/cm.json``: name, id, key and more.
        """
        rows = [self._new_row(name, plain=plain) for name in names]
        audit_row = audit_entry.to_row() if audit_entry else None
        await self._write(lambda store: store.enrol_boards(rows, audit_row))
        if audit_entry is not None:
            audit_entry.written = True
        for row in rows:
            self._register_board(row)
        return [self._board_config(row) for row in rows]

    def _write(self, use: Callable[[Store], T]) -> Operation[T]:
        """Write a change to the store, which has it on the disk when the operation is done."""
        return self._services.store_queue.run(use, refusable=True, durable=True)

    def _new_row(self, name: str, *, plain: bool) -> BoardRow:
        """Return a new identity, or the identity of an existing board with a new key."""
        board = self._registry.by_name.get(name)
        if board is None:
            return _new_identity(name, plain=plain)
        # The board may know the key after its current one, from a replacement in progress; so the
        # new key's number is larger by two.
        row = new_board_row(board.id, name, credentials.new_key())
        return row._replace(gen=board.gen + 2, plain=plain)

    def _register_board(self, row: BoardRow) -> None:
        board = self._registry.by_name.get(row.name)
        if board is None:
            self._registry.add(row)
        else:
            self._apply_key(board, row)

    def _apply_key(self, board: Board, row: BoardRow) -> None:
        """Set a board's key; close a link that used an older one, except after a rotation."""
        link = board.link
        if link is not None and row.gen > board.gen + 1:
            self._dispatch.recovery.on_link_closed(board, link)
            link.close(frames.CLOSE_REVOKED, "enrolled again: this key is no longer valid")
        board.key, board.gen, board.nonce = row.key, row.gen, row.nonce
        board.plain, board.token = row.plain, row.token

    def _board_config(self, row: BoardRow) -> dict[str, Any]:
        """Return what a board needs to connect: the contents of its ``/cm.json``."""
        config: dict[str, Any] = {"name": row.name, "id": row.id, "key": row.key.hex()}
        if row.gen:
            config["gen"] = row.gen
        return {**config, "mac": True} if row.plain else {**config, "ca": self.ca_base64}

    @property
    def ca_base64(self) -> str:
        """The certificate of the server's authority, as in the configuration of boards."""
        return base64.b64encode(self._services.ca).decode()

    async def enrol_with_token(self, body: dict[str, Any], address: str) -> BoardRow:
        """Enrol a board that has sent an enrolment token (ENROL).

        If the answer is lost, the board sends the same token and key again, and gets the same
        identity.

        Args:
            body: the contents of the message.
            address: the board's address, for the audit log.

        Returns:
            The board's row.

        Raises:
            ServerError: the token is not valid, or not for this name, or the name is taken.
            TargetError: the name is not legal.
        """
        async with self._services.store_queue.change_lock:
            return await self._enrol_with_token(body, address)

    async def _enrol_with_token(self, body: dict[str, Any], address: str) -> BoardRow:
        services, key = self._services, str(body.get("key"))
        token = services.tokens.find_enrolment_token(str(body.get("token")))
        if token is None or not _KEY.fullmatch(key):
            raise ServerError("the server does not know this token")
        enrolled = self._find_enrolled(token, bytes.fromhex(key))
        if enrolled is not None:
            return enrolled
        if reason := services.tokens.refusal_reason(token):
            raise ServerError(reason)
        if _is_used_up(token):
            raise ServerError(f"the token {token.name!r} was used already")
        name = self._choose_name(token.target, body)
        row = new_board_row(credentials.new_board_id(), name, bytes.fromhex(key))
        row = row._replace(token=token.hash)
        entry = services.audit_log.new_entry(token.name, address, "enrol", name)
        entry.boards = 1
        audit_row = entry.to_row()
        await self._write(lambda store: store.enrol_with_token(token, row, audit_row))
        services.tokens.count_use(token)
        self._register_board(row)
        log.info("%s enrolled itself with the token %s", name, token.name)
        return row

    def _find_enrolled(self, token: TokenRow, key: bytes) -> BoardRow | None:
        """Return the row of a board that has enrolled itself with this token and key."""
        for board in self._registry.by_id.values():
            if board.token == token.hash and hmac.compare_digest(board.key, key):
                return new_board_row(board.id, board.name, key)
        return None

    def _choose_name(self, target: str, body: dict[str, Any]) -> str:
        """Return a name within the token's target: the board's own, else the first free one."""
        requested = str(body.get("name") or "")
        if requested:
            if not _is_name_allowed(check_name(requested), target):
                raise ServerError(f"the token is not for a board called {requested}")
            self._require_free_name(requested)
            return requested
        uid, platform = str(body.get("uid")), str(body.get("platform"))
        if not (_UID.fullmatch(uid) and _UID.fullmatch(platform)):
            raise ServerError("a board has to send its name, or its platform and unique id")
        legal = False
        for name in parse_target(target).candidate_names(uid, f"{platform}-{uid}"):
            if not (_is_legal_name(name) and _is_name_allowed(name, target)):
                continue
            legal = True
            if name not in self._registry.by_name:
                return name
        if not legal:
            raise ServerError(f"{target} makes no valid name for this board: give it a name")
        raise ServerError(f"the names of {target} are taken")

    def _require_free_name(self, name: str) -> None:
        if name in self._registry.by_name:
            raise ServerError(f"there is a board called {name} already")

    async def revoke(self, boards: Iterable[Board], audit_entry: AuditEntry) -> None:
        """Remove boards: their keys are not valid any more, their links and jobs end now."""
        boards = list(boards)
        ids, audit_row = [board.id for board in boards], audit_entry.to_row()
        erased = await self._write(lambda store: store.delete_boards(ids, audit_row))
        audit_entry.written = True
        for board in boards:
            self.remove_board(board)
        self.on_erased(erased)

    async def replace(
        self, request: BoardReplacement, place: RolloutPlace, audit_entry: AuditEntry
    ) -> ReplacedWith:
        """Let a board become what another one was, and remove that one.

        The new board gets the name, the labels, the note, the reservation, the log and the waiting
        jobs; its identity stays. The old identity is no longer valid; its samples and its jobs are
        found under the new board (``find_periods``).

        Args:
            request: which boards; both are enrolled, the old one is not connected.
            place: of the rollout that brings the new board to the old one's generation.
            audit_entry: for the audit log.

        Raises:
            ServerError: see ``Store.replace_board``; nothing has changed.
        """
        audit_row = audit_entry.to_row()
        done = await self._write(lambda store: store.replace_board(request, place, audit_row))
        audit_entry.written = True
        old, new = self._registry.by_id.get(request.old), self._registry.by_id.get(request.new)
        if old is not None:
            self.remove_board(old)
        self._replaced[done.old.id] = done.old
        for board_id in done.forgotten:
            self._replaced.pop(board_id, None)
        self.on_erased(done.forgotten)
        if new is not None:
            self.apply_row(done.row._replace(key=new.key, gen=new.gen, nonce=new.nonce))
        return done

    def find_replaced(self, board_id: str) -> ReplacedBoard | None:
        """Return the identity of a board that was replaced; None if no such board was."""
        return self._replaced.get(board_id)

    def find_periods(self, boards: Iterable[Board]) -> dict[str, list[BoardPeriod]]:
        """Return by id what belongs to boards: their own, and that of boards they replaced."""
        return find_periods([board.id for board in boards], self._replaced.values())

    def read_replaced(self, board_id: str) -> None:
        """Look whether another server has replaced a board that it has removed."""
        operation = self._services.store_queue.run(
            lambda store: store.read(lambda: store.replaced_rows.find(board_id))
        )

        def on_read(_: object) -> None:
            if operation.error is None and (replaced := operation.result()) is not None:
                self._replaced[board_id] = replaced

        operation.when_done(on_read)

    def remove_board(self, board: Board) -> None:
        """End the jobs and the link of a board that is not enrolled any more."""
        if self._registry.by_id.get(board.id) is not board:
            return  # another server has removed it meanwhile
        self._dispatch.scheduler.end_board_jobs(board)
        self._registry.remove(board)
        _close_link(board)

    def apply_row(self, row: BoardRow) -> None:
        """Apply a board's row that another server has written."""
        board = self._registry.by_id.get(row.id)
        if board is None:
            self._registry.add(row)
            return
        if board.name != row.name:
            self._registry.rename(board, row.name)
        if board.labels != row.labels:
            board.labels = row.labels
        if (board.serial, board.note) != (row.serial or "", row.note or ""):
            board.serial, board.note = row.serial or "", row.note or ""
            board.notify_changed()
        reservation = read_reservation(row)
        if board.reservation != reservation:
            self._dispatch.scheduler.set_reservation(board, reservation)
        if board.stay != (stay := read_stay(row)):
            board.stay = stay
        new_nonce = row.nonce != board.nonce
        self._apply_key(board, row)
        # The row of a board that this server had has the time at which it connected.
        known = board.last_seen if row.last_seen is not None else None
        board.last_seen = row.last_seen if known is None else max(known, row.last_seen or 0.0)
        if new_nonce:
            self._dispatch.scheduler.send_rekey(board)

    async def rename(self, board: Board, name: str, audit_entry: AuditEntry) -> None:
        """Rename a board, which keeps its identity, labels and jobs.

        Raises:
            ServerError: another board has that name.
        """
        self._require_free_name(name)
        audit_row = audit_entry.to_row()
        await self._write(lambda store: store.update_board(board.id, audit_row, name=name))
        audit_entry.written = True
        self._registry.rename(board, name)

    async def rotate(self, boards: Iterable[Board], audit_entry: AuditEntry) -> None:
        """Replace boards' keys: now, or when a board is idle, or when it connects."""
        boards = list(boards)
        nonces = {board.id: board.nonce or credentials.new_nonce() for board in boards}
        audit_row = audit_entry.to_row()
        await self._write(lambda store: store.start_key_rotation(nonces, audit_row))
        audit_entry.written = True
        for board in boards:
            board.nonce = nonces[board.id]
            self._dispatch.scheduler.send_rekey(board)

    def on_key_used(self, board: Board, gen: int) -> None:
        """Finish a key's replacement when a board has authenticated with its next key."""
        key = board.next_key
        if gen != board.gen + 1 or key is None:
            return
        entry = self._services.audit_log.new_entry("", "", "board-rotate", board.name)
        entry.detail = f"key {gen} is in use; the key before it is no longer valid"
        entry.boards = 1
        # The board does not wait for the store: if this is never written, the next start of the
        # server finds the rotation pending, and accepts the new key again.
        board_id, audit_row = board.id, entry.to_row()
        self._services.store_queue.run(
            lambda store: store.update_board(board_id, audit_row, key=key, gen=gen, nonce=None),
            durable=True,
        )
        board.key, board.gen, board.nonce = key, gen, None

    def on_rekeyed(self, board: Board, proof: bytes) -> None:
        """Handle REKEYED: finish the key's replacement if the board proves its next key."""
        gen, key = board.gen + 1, board.next_key
        if key is None or board.nonce is None:
            return
        if _proves_key(key, gen, board.nonce, proof):
            self.on_key_used(board, gen)
        else:
            text = "%s did not prove its new key; the old key stays valid"
            self._services.peer_log.write(board.name, logging.WARNING, text, board.name)


def _new_identity(name: str, *, plain: bool) -> BoardRow:
    """Return a row with an id that was never used before, and a new key."""
    row = new_board_row(credentials.new_board_id(), name, credentials.new_key())
    return row._replace(plain=plain)


def _is_used_up(token: TokenRow) -> bool:
    """Return whether no further board may enrol itself with a token."""
    return not token.uses


def _is_legal_name(name: str) -> bool:
    """Return whether a board may have a name that was made from a target and its unique id."""
    try:
        check_name(name)
    except TargetError:
        return False
    return True


def _is_name_allowed(name: str, target: str) -> bool:
    """Return whether a token's target covers the name of a board that is not enrolled yet."""
    return parse_target(target).covers(name, UnenrolledBoard())


def _close_link(board: Board) -> None:
    """Close the link of a board that was removed."""
    if board.link is not None:
        board.link.close(frames.CLOSE_REVOKED, "revoked")


def _proves_key(key: bytes, gen: int, nonce: bytes, proof: bytes) -> bool:
    """Return whether a proof shows that a board has derived its next key (constant time)."""
    return hmac.compare_digest(proofs.rekey_proof(key, gen, nonce), proof)
