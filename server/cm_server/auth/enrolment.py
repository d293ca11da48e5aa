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
from cloudmanager.protocol.targets import check_name, parse
from cm_server.jobs.registry import Board
from cm_server.store.rows import BoardRow, TokenRow, new_board

from . import credentials
from .access import NewBoard
from .audit import Note

if TYPE_CHECKING:
    from cm_server.app import Server

log = logging.getLogger("cm_server")

REVOKED = 4004  # the code of the close
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
        self, names: Iterable[str], note: Note | None = None, *, plain: bool = False
    ) -> list[dict[str, Any]]:
        """Give each name an identity; a board of that name gets another key.

        Args:
            names: legal ones.
            note: the row that the audit log gets.
            plain: whether they cannot verify a certificate, and may dial with MACs.

        Returns:
            What each board has to know (``/cm.json``), and its name.
        """
        rows = [self._row(name, plain=plain) for name in names]
        self._server.store.enrol(rows, note.row() if note else None)
        if note is not None:
            note.written = True
        for row in rows:
            self._take_in(row)
        return [self._told(row) for row in rows]

    def _row(self, name: str, *, plain: bool) -> BoardRow:
        """Return a new identity, or a known one with a key that is newer than all of its own."""
        board = self._server.registry.by_name.get(name)
        if board is None:
            return new_board(credentials.new_board_id(), name, credentials.new_key(), plain=plain)
        return new_board(board.id, name, credentials.new_key(), gen=board.gen + 2, plain=plain)

    def _take_in(self, row: BoardRow) -> None:
        board = self._server.registry.by_name.get(row.name)
        if board is None:
            self._server.registry.add(row)
        else:
            self._take_key(board, row)
        self._server.spread_changed()

    def _take_key(self, board: Board, row: BoardRow) -> None:
        """Take over a board's key; a link that one before it opened, not by a rotation, ends."""
        link = board.link
        if link is not None and row.gen > board.gen + 1:
            self._server.dispatch.on_link_gone(board, link)
            link.close(REVOKED, "enrolled anew: this key opens nothing any more")
        board.key, board.gen, board.nonce = row.key, row.gen, row.nonce
        board.plain, board.token = row.plain, row.token

    def _told(self, row: BoardRow) -> dict[str, Any]:
        told: dict[str, Any] = {"name": row.name, "id": row.id, "key": row.key.hex()}
        if row.gen:
            told["gen"] = row.gen
        return {**told, "mac": True} if row.plain else {**told, "ca": self.authority}

    @property
    def authority(self) -> str:
        """What boards verify the server by, as it stands in their configuration."""
        return base64.b64encode(self._server.certificates.ca).decode()

    def admit(self, body: dict[str, Any], address: str) -> BoardRow:
        """Enrol a board that came with a token (ENROL).

        A board that never heard the answer asks again with the same token and key, and gets
        the same identity.

        Raises:
            ServerError: the token does not open, or not to this name.
            TargetError: the name is none.
        """
        server, key = self._server, str(body.get("key"))
        token = server.tokens.find_enrolment(str(body.get("token")))
        if token is None or not _KEY.fullmatch(key):
            raise ServerError("the server does not know this token")
        again = self._already(token, bytes.fromhex(key))
        if again is not None:
            return again
        why = server.tokens.refusal(token)
        if why or not token.uses:
            raise ServerError(why or f"the token {token.name!r} was used already")
        name = self._choose_name(token.target, body)
        row = new_board(credentials.new_board_id(), name, bytes.fromhex(key), token=token.hash)
        note = Note(token.name, address, "enrol", name)
        note.boards = 1
        server.store.enrol_by(token, row, note.row())
        server.tokens.use(token)
        self._take_in(row)
        log.info("%s enrolled itself with the token %s", name, token.name)
        return row

    def _already(self, token: TokenRow, key: bytes) -> BoardRow | None:
        for board in self._server.registry.by_id.values():
            if board.token == token.hash and hmac.compare_digest(board.key, key):
                return new_board(board.id, board.name, key)
        return None

    def _choose_name(self, target: str, body: dict[str, Any]) -> str:
        """Return a name for a board within its token's target: its own, else the first free."""
        taken, asked = self._server.registry.by_name, str(body.get("name") or "")
        if asked:
            if not parse(target).covers(check_name(asked), NewBoard()):
                raise ServerError(f"the token is not for a board called {asked}")
            if asked in taken:
                raise ServerError(f"there is a board called {asked} already")
            return asked
        uid, platform = str(body.get("uid")), str(body.get("platform"))
        if not (_UID.fullmatch(uid) and _UID.fullmatch(platform)):
            raise ServerError("a board tells its name, or its platform and unique id")
        for name in parse(target).candidates(uid, f"{platform}-{uid}"):
            if name not in taken and parse(target).covers(name, NewBoard()):
                return name
        raise ServerError(f"the names of {target} are taken")

    def revoke(self, boards: Iterable[Board], note: Note) -> None:
        """Take boards out: their keys open nothing, their links and what they owe end now."""
        boards = list(boards)
        self._server.store.forget([board.id for board in boards], note.row())
        note.written = True
        for board in boards:
            self.let_go(board)

    def let_go(self, board: Board) -> None:
        """End what a board owes, and its link: it is enrolled no more."""
        self._server.dispatch.abandon(board)
        self._server.registry.remove(board)
        if board.link is not None:
            board.link.close(REVOKED, "revoked")

    def refresh(self, row: BoardRow) -> None:
        """Take over what another server wrote of a board."""
        board = self._server.registry.by_id.get(row.id)
        if board is None:
            self._server.registry.add(row)
            self._server.spread_changed()
            return
        if board.name != row.name:
            self._server.registry.rename(board, row.name)
        if board.labels != row.labels:
            board.labels = row.labels
        new_nonce = row.nonce != board.nonce
        self._take_key(board, row)
        board.last_seen = row.last_seen
        if new_nonce:
            self._server.dispatch.rekey(board)

    def rename(self, board: Board, name: str, note: Note) -> None:
        """Give a board another name; everything that is its own goes with it.

        Raises:
            ServerError: somebody has that name.
        """
        if name in self._server.registry.by_name:
            raise ServerError(f"there is a board called {name} already")
        self._server.store.set_board(board.id, note.row(), name=name)
        note.written = True
        self._server.registry.rename(board, name)

    def rotate(self, boards: Iterable[Board], note: Note) -> None:
        """Give boards new keys: at once, or when they are idle, or when they dial in."""
        boards = list(boards)
        nonces = {board.id: board.nonce or credentials.new_nonce() for board in boards}
        self._server.store.open_rotation(nonces, note.row())
        note.written = True
        for board in boards:
            board.nonce = nonces[board.id]
            self._server.dispatch.rekey(board)

    def used(self, board: Board, gen: int) -> None:
        """Note with which of its keys a board proved itself: the next one ends the old one."""
        key = board.next_key
        if gen != board.gen + 1 or key is None:
            return
        note = Note("", "", "board-rotate", board.name)
        note.detail, note.boards = f"key {gen} is used; the one before opens nothing now", 1
        self._server.store.set_board(board.id, note.row(), key=key, gen=gen, nonce=None)
        board.key, board.gen, board.nonce = key, gen, None

    def on_rekeyed(self, board: Board, proof: bytes) -> None:
        """Take a board's word that it has its next key, if it proves it."""
        gen, key = board.gen + 1, board.next_key
        if key is None or board.nonce is None:
            return
        if hmac.compare_digest(proofs.rekey_proof(key, gen, board.nonce), proof):
            self.used(board, gen)
        else:
            text = "%s did not prove its new key; the old one goes on"
            self._server.peer_log.write(board.name, logging.WARNING, text, board.name)
