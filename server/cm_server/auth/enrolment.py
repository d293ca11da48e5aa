"""Who is in the fleet: boards enrolled, renamed, given new keys, taken out. No sockets, no SQL.

An identity is an id that never comes again, and a key. A name belongs to one board at a
time, and whoever gets it next inherits nothing.

A key is changed in two phases. The server writes down what the next one is derived with and
tells the board, which derives it, keeps it and says so; the old key opens until the new one
has been used, and nothing after. So neither a lost answer nor a power cut locks a board out.
"""

from __future__ import annotations

import base64
import hmac
import logging
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from cloudmanager.protocol import proofs
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.targets import check_name, parse_target
from cm_server.jobs.registry import Board
from cm_server.store.rows import BoardRow, TokenRow, new_board_row

from . import credentials
from .access import UnenrolledBoard
from .audit import AuditEntry

if TYPE_CHECKING:
    from cm_server.app import Server

log = logging.getLogger("cm_server")

CLOSE_REVOKED = 4004  # the code of the close
_UID = re.compile(r"[0-9a-zA-Z]{1,32}")  # what a board says that no other is called
_KEY = re.compile(r"[0-9a-f]{64}")


class Enrolment:
    """Changes who is in the fleet; each change is on the disk before it counts.

    Args:
        server: whose fleet it is.
    """

    def __init__(self, server: Server) -> None:
        self._server = server

    def enrol(
        self, names: Iterable[str], audit_entry: AuditEntry | None = None, *, plain: bool = False
    ) -> list[dict[str, Any]]:
        """Give each name an identity; a board of that name gets another key.

        Args:
            names: legal ones.
            audit_entry: the row that the audit log gets.
            plain: whether they cannot verify a certificate, and may dial with MACs.

        Returns:
            What each board has to know (``/cm.json``), and its name.
        """
        rows = [self._new_row(name, plain=plain) for name in names]
        self._server.store.enrol_boards(rows, audit_entry.to_row() if audit_entry else None)
        if audit_entry is not None:
            audit_entry.written = True
        for row in rows:
            self._register_board(row)
        return [self._board_config(row) for row in rows]

    def _new_row(self, name: str, *, plain: bool) -> BoardRow:
        """Return a new identity, or a known one with a key that is newer than all of its own."""
        board = self._server.registry.by_name.get(name)
        if board is None:
            return new_board_row(
                credentials.new_board_id(), name, credentials.new_key(), plain=plain
            )
        return new_board_row(board.id, name, credentials.new_key(), gen=board.gen + 2, plain=plain)

    def _register_board(self, row: BoardRow) -> None:
        board = self._server.registry.by_name.get(row.name)
        if board is None:
            self._server.registry.add(row)
        else:
            self._apply_key(board, row)
        self._server.update_lost_after()

    def _apply_key(self, board: Board, row: BoardRow) -> None:
        """Take over a board's key; a link that one before it opened, not by a rotation, ends."""
        link = board.link
        if link is not None and row.gen > board.gen + 1:
            self._server.dispatch.on_link_closed(board, link)
            link.close(CLOSE_REVOKED, "enrolled anew: this key opens nothing any more")
        board.key, board.gen, board.nonce = row.key, row.gen, row.nonce
        board.plain, board.token = row.plain, row.token

    def _board_config(self, row: BoardRow) -> dict[str, Any]:
        told: dict[str, Any] = {"name": row.name, "id": row.id, "key": row.key.hex()}
        if row.gen:
            told["gen"] = row.gen
        return {**told, "mac": True} if row.plain else {**told, "ca": self.ca_base64}

    @property
    def ca_base64(self) -> str:
        """What boards verify the server by, as it stands in their configuration."""
        return base64.b64encode(self._server.certificates.ca).decode()

    def enrol_with_token(self, body: dict[str, Any], address: str) -> BoardRow:
        """Enrol a board that came with a token (ENROL).

        A board that never heard the answer asks again with the same token and key, and gets
        the same identity.

        Raises:
            ServerError: the token does not open, or not to this name.
            TargetError: the name is none.
        """
        server, key = self._server, str(body.get("key"))
        token = server.tokens.find_enrolment_token(str(body.get("token")))
        if token is None or not _KEY.fullmatch(key):
            raise ServerError("the server does not know this token")
        again = self._find_enrolled(token, bytes.fromhex(key))
        if again is not None:
            return again
        why = server.tokens.refusal_reason(token)
        if why or not token.uses:
            raise ServerError(why or f"the token {token.name!r} was used already")
        name = self._choose_name(token.target, body)
        row = new_board_row(credentials.new_board_id(), name, bytes.fromhex(key), token=token.hash)
        note = AuditEntry(token.name, address, "enrol", name)
        note.boards = 1
        server.store.enrol_with_token(token, row, note.to_row())
        server.tokens.count_use(token)
        self._register_board(row)
        log.info("%s enrolled itself with the token %s", name, token.name)
        return row

    def _find_enrolled(self, token: TokenRow, key: bytes) -> BoardRow | None:
        for board in self._server.registry.by_id.values():
            if board.token == token.hash and hmac.compare_digest(board.key, key):
                return new_board_row(board.id, board.name, key)
        return None

    def _choose_name(self, target: str, body: dict[str, Any]) -> str:
        """Return a name for a board within its token's target: its own, else the first free."""
        taken, asked = self._server.registry.by_name, str(body.get("name") or "")
        if asked:
            if not parse_target(target).covers(check_name(asked), UnenrolledBoard()):
                raise ServerError(f"the token is not for a board called {asked}")
            if asked in taken:
                raise ServerError(f"there is a board called {asked} already")
            return asked
        uid, platform = str(body.get("uid")), str(body.get("platform"))
        if not (_UID.fullmatch(uid) and _UID.fullmatch(platform)):
            raise ServerError("a board tells its name, or its platform and unique id")
        for name in parse_target(target).candidate_names(uid, f"{platform}-{uid}"):
            if name not in taken and parse_target(target).covers(name, UnenrolledBoard()):
                return name
        raise ServerError(f"the names of {target} are taken")

    def revoke(self, boards: Iterable[Board], audit_entry: AuditEntry) -> None:
        """Take boards out: their keys open nothing, their links and what they owe end now."""
        boards = list(boards)
        self._server.store.delete_boards([board.id for board in boards], audit_entry.to_row())
        audit_entry.written = True
        for board in boards:
            self.remove_board(board)

    def remove_board(self, board: Board) -> None:
        """End what a board owes, and its link: it is enrolled no more."""
        self._server.dispatch.end_board_jobs(board)
        self._server.registry.remove(board)
        if board.link is not None:
            board.link.close(CLOSE_REVOKED, "revoked")

    def apply_row(self, row: BoardRow) -> None:
        """Take over what another server wrote of a board."""
        board = self._server.registry.by_id.get(row.id)
        if board is None:
            self._server.registry.add(row)
            self._server.update_lost_after()
            return
        if board.name != row.name:
            self._server.registry.rename(board, row.name)
        if board.labels != row.labels:
            board.labels = row.labels
        new_nonce = row.nonce != board.nonce
        self._apply_key(board, row)
        board.last_seen = row.last_seen
        if new_nonce:
            self._server.dispatch.send_rekey(board)

    def rename(self, board: Board, name: str, audit_entry: AuditEntry) -> None:
        """Give a board another name; everything that is its own goes with it.

        Raises:
            ServerError: somebody has that name.
        """
        if name in self._server.registry.by_name:
            raise ServerError(f"there is a board called {name} already")
        self._server.store.update_board(board.id, audit_entry.to_row(), name=name)
        audit_entry.written = True
        self._server.registry.rename(board, name)

    def rotate(self, boards: Iterable[Board], audit_entry: AuditEntry) -> None:
        """Give boards new keys: at once, or when they are idle, or when they dial in."""
        boards = list(boards)
        nonces = {board.id: board.nonce or credentials.new_nonce() for board in boards}
        self._server.store.start_key_rotation(nonces, audit_entry.to_row())
        audit_entry.written = True
        for board in boards:
            board.nonce = nonces[board.id]
            self._server.dispatch.send_rekey(board)

    def on_key_used(self, board: Board, gen: int) -> None:
        """Note with which of its keys a board proved itself: the next one ends the old one."""
        key = board.next_key
        if gen != board.gen + 1 or key is None:
            return
        note = AuditEntry("", "", "board-rotate", board.name)
        note.detail, note.boards = f"key {gen} is used; the one before opens nothing now", 1
        self._server.store.update_board(board.id, note.to_row(), key=key, gen=gen, nonce=None)
        board.key, board.gen, board.nonce = key, gen, None

    def on_rekeyed(self, board: Board, proof: bytes) -> None:
        """Take a board's word that it has its next key, if it proves it."""
        gen, key = board.gen + 1, board.next_key
        if key is None or board.nonce is None:
            return
        if hmac.compare_digest(proofs.rekey_proof(key, gen, board.nonce), proof):
            self.on_key_used(board, gen)
        else:
            text = "%s did not prove its new key; the old one goes on"
            self._server.peer_log.write(board.name, logging.WARNING, text, board.name)
