"""Folders of callers that are mounted on boards: the server passes their files on. No sockets.

    FILE(mount, list of the files) ──▶                     on the board: a file system
                                       ◀── READ(path, offset)       a file is opened or read
    READ(path, piece) ──▶ caller, unless the piece is known
                          caller ──▶ BLOCK(piece)
    BLOCK(a part of the piece) ──▶

The pieces of a folder are kept for all boards on which one request has mounted it, and for nobody
else: a request of another token, or with another list, has its own.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from cloudmanager.protocol import wire
from cloudmanager.protocol.errors import PeerWireError, ServerError
from cm_server import cleanup
from cm_server.jobs.model import Board, Cell, PendingRead, Requester
from cm_server.limits import Limits
from cm_server.store.rows import CellAudit

from .transfers import RelayedTransfer

if TYPE_CHECKING:
    from cm_server.jobs.model import BoardChannel, Job, TimerHandle
    from cm_server.store.rows import TokenRow

PART: Final = "mount"  # of the client
_OPERATION: Final = "mount"
_ROOT: Final = "/"
_PATH_BYTES: Final = 512  # of a file, relative to its folder: a board's buffer has room for it
_PIECE_BYTES: Final = 256  # as which a piece counts, besides its bytes
#: Pieces that boards have given up, and that a caller may still send; besides one for each board.
_ABANDONED_PIECES: Final = 16


class MountOwner(Protocol):
    """The link of a caller whose folder is mounted.

    Attributes:
        token: of the caller.
    """

    token: TokenRow

    def send_read(self, message: bytes) -> None:
        """Send a READ to the caller."""

    def reaches(self, board: Board) -> bool:
        """Return whether the caller's token reaches a board now."""


class Mount:
    """A caller's folder, as one request mounts it on boards.

    Args:
        owner: the caller's link.
        number: chosen by the caller; READ and BLOCK have it.
        paths: of the files that boards may read.

    Attributes:
        boards: on which it is mounted.
        requested: number of a READ to the caller -> path and number of the piece.
    """

    def __init__(self, owner: MountOwner, number: int, paths: frozenset[bytes]) -> None:
        self.owner, self.number, self.paths = owner, number, paths
        self.boards: set[Board] = set()
        self.requested: dict[int, tuple[bytes, int]] = {}


class MountSpec:
    """The job that mounts a folder on boards, replaces its list, or unmounts it.

    Args:
        mounts: has all mounted folders.
        mount: the folder; None to unmount.
        code: for boards.

    Attributes:
        mount: the folder; None to unmount.
        code: for boards.
    """

    reads_files = replaces_starter = False
    part = PART
    is_local = True

    def __init__(self, mounts: Mounts, mount: Mount | None, code: bytes) -> None:
        self._mounts = mounts
        self.mount, self.code = mount, code

    def start(self, job: Job, _channel: BoardChannel) -> RelayedTransfer:
        """Note on which board the folder is mounted from now on."""
        self._mounts.attach(job, self)
        return RelayedTransfer(reads_files=False, replaces_starter=False)

    def check_boards(self, boards: Sequence[Board]) -> None:
        """Check the boards of a request: called before its jobs exist.

        What a board that is away has is forgotten at once: its job will not run.

        Raises:
            ServerError: one has the folder of another caller.
        """
        for board in boards:
            if self.mount is not None:
                self._mounts.check_free(board, self.mount.owner)
            elif board.link is None:
                self._mounts.detach(board)


class _Mounted(NamedTuple):
    """What is mounted on a board: the folder, and the cell that mounts it again."""

    mount: Mount
    cell: Cell
    caller: str
    token_hash: str


class Mounts:
    """All folders that are mounted on boards of this server.

    Args:
        limits: of lists and of what is kept of files.
        call_later: calls a function after a number of seconds; returns a handle to cancel it.
        run_first: runs a job of the server itself on a board, before those that wait there.
    """

    def __init__(
        self,
        limits: Limits,
        call_later: Callable[[float, Callable[[], None]], TimerHandle],
        run_first: Callable[[Board, Cell, Requester, CellAudit], None],
    ) -> None:
        self._limits = limits
        self._call_later = call_later
        self._run_first = run_first
        self._by_board: dict[Board, _Mounted] = {}
        self._by_number: dict[tuple[MountOwner, int], Mount] = {}
        #: From a multiple of ``Limits.mount_piece_bytes`` on.
        self._pieces: OrderedDict[tuple[Mount, bytes, int], bytes] = OrderedDict()
        self._pieces_bytes = 0
        self._last_number = 0
        self._stopped = False

    def read_request(self, owner: MountOwner, request: object) -> tuple[MountSpec, str]:
        """Return the job of a caller's ``mount`` request, and its text for the audit log.

        Args:
            owner: the caller's link.
            request: the JSON of the request: docs/protocol.md.

        Raises:
            ServerError: the request is malformed, or lists too much.
        """
        if not isinstance(request, dict):
            raise ServerError("a request to mount a folder must be a JSON object")
        if "files" not in request:
            return self._unmount_spec(), "unmount"
        path, number = request.get("path"), request.get("number")
        if type(number) is not int or not 0 <= number < 1 << 32:
            raise ServerError("`number` of a mounted folder must be a whole number of 32 bits")
        if not _is_mount_point(path):
            raise ServerError("a folder can be mounted at a path such as /remote, with one name")
        text = self._list_text(request["files"])
        code = wire.pack_file_ops(0, [[_OPERATION, path, text]])
        paths = frozenset(line.split("\t")[0].encode() for line in text.splitlines())
        mount = Mount(owner, number, paths - {b""})
        return MountSpec(self, mount, code), f"{path}: {len(mount.paths)} files"

    def _unmount_spec(self) -> MountSpec:
        return MountSpec(self, None, wire.pack_file_ops(0, [[_OPERATION, _ROOT]]))

    def _list_text(self, files: object) -> str:
        """Return the list of files as boards read it: a line for each, sorted by path."""
        max_files, max_bytes = self._limits.mount_files, self._limits.mount_list_bytes
        if not isinstance(files, list) or not all(map(_is_file_row, files)):
            raise ServerError("the list of a folder's files is malformed")
        if len(files) > max_files:
            raise ServerError(f"a folder of at most {max_files} files can be mounted")
        rows = sorted(files, key=lambda row: row[0].encode())
        text = "\n" + "".join(f"{path}\t{size}\n" for path, size in rows)
        if len(text.encode()) > max_bytes:
            raise ServerError(
                f"the list of a mounted folder's files may have at most {max_bytes} bytes"
            )
        return text

    def check_free(self, board: Board, owner: MountOwner) -> None:
        """Refuse a board that has the folder of another caller.

        Raises:
            ServerError: it has.
        """
        mounted = self._by_board.get(board)
        if mounted is not None and mounted.mount.owner is not owner:
            raise ServerError(f"{board.name} has a folder of {mounted.caller!r} mounted already")

    def attach(self, job: Job, spec: MountSpec) -> None:
        """Note what the job of a request mounts on its board, or that it unmounts."""
        self.detach(job.board)
        if spec.mount is not None:
            spec.mount.boards.add(job.board)
            self._by_number[spec.mount.owner, spec.mount.number] = spec.mount
            self._by_board[job.board] = _Mounted(spec.mount, job.cell, job.caller, job.token_hash)

    def detach(self, board: Board) -> None:
        """Forget what is mounted on a board."""
        mounted = self._by_board.pop(board, None)
        if mounted is not None:
            mounted.mount.boards.discard(board)
            if not mounted.mount.boards:
                self._forget(mounted.mount)

    def _forget(self, mount: Mount) -> None:
        """Forget a folder that is mounted nowhere, and the pieces of its files."""
        self._by_number.pop((mount.owner, mount.number), None)
        for key in [key for key in self._pieces if key[0] is mount]:
            self._pieces_bytes -= _cost(self._pieces.pop(key))

    # Boards

    def has(self, board: Board) -> bool:
        """Return whether a folder is mounted on a board, and its caller still reaches the board."""
        mounted = self._by_board.get(board)
        return mounted is not None and mounted.mount.owner.reaches(board)

    def mount_again(self, board: Board) -> None:
        """Mount a board's folder, if it has one, again on a new link: a board unmounts it before.

        The folder's job is the first that the board gets.
        """
        mounted = self._by_board.get(board)
        if mounted is None:
            return
        if not self.has(board):
            self.detach(board)
            return
        requester = Requester(mounted.caller, token=mounted.token_hash)
        audit = CellAudit(target=board.name, detail="again", verb=_OPERATION)
        self._run_first(board, mounted.cell, requester, audit)

    def on_read(self, board: Board, message: wire.Message) -> bool:
        """Handle a READ of a board; return False if nothing is mounted there.

        Raises:
            PeerWireError: it is malformed.
        """
        request = wire.read_read_request(message)
        board.pending_read = PendingRead(message.job, request)
        mounted = self._by_board.get(board)
        if mounted is None:
            self._refuse(board)
            return False
        mount = mounted.mount
        if not self._may_read(mount, board, request.path):
            self._refuse(board)
            return True
        place = request.path, request.offset // self._limits.mount_piece_bytes
        piece = self._pieces.get((mount, *place))
        if piece is not None:
            self._pieces.move_to_end((mount, *place))
            self._answer(board, piece)
        elif place not in mount.requested.values():
            if self._has_too_many_requests(mount):
                self._refuse(board)
            else:
                self._request_piece(mount, *place)
        return True

    def _has_too_many_requests(self, mount: Mount) -> bool:
        """Return whether a caller owes more pieces than boards can wait for."""
        return len(mount.requested) >= len(mount.boards) + _ABANDONED_PIECES

    def _may_read(self, mount: Mount, board: Board, path: bytes) -> bool:
        """Return whether a board may read a file: the list names it, and the token allows it."""
        return path in mount.paths and mount.owner.reaches(board)

    def _request_piece(self, mount: Mount, path: bytes, index: int) -> None:
        """Ask the caller for a piece of a file."""
        self._last_number = self._last_number % 0xFFFF_FFFF + 1
        number, size = self._last_number, self._limits.mount_piece_bytes
        mount.requested[number] = path, index
        request = wire.ReadRequest(number, index * size, size, path)
        self._call_later(self._limits.mount_read_seconds, lambda: self._on_no_answer(mount, number))
        mount.owner.send_read(wire.pack_read_request(request, job=mount.number))

    def _on_no_answer(self, mount: Mount, number: int) -> None:
        """Refuse the reads for which the caller has sent nothing, before the boards give up."""
        place = mount.requested.pop(number, None)
        if place is not None:
            self._answer_all(mount, place, None)

    def _answer_all(self, mount: Mount, place: tuple[bytes, int], piece: bytes | None) -> None:
        """Answer the boards that wait for a piece; None: it cannot be read."""
        for board in list(mount.boards):
            read = board.pending_read
            if read is None or read.place(self._limits.mount_piece_bytes) != place:
                continue
            if piece is None:
                self._refuse(board)
            else:
                self._answer(board, piece)

    def _answer(self, board: Board, piece: bytes) -> None:
        """Send a board what it has asked for, or as much as its buffer has room for."""
        read, board.pending_read = board.pending_read, None
        if read is None or board.link is None:
            return
        start = read.request.offset % self._limits.mount_piece_bytes
        room = board.buffer_size - wire.HEADER.size - wire.BLOCK_NUMBER_BYTES
        data = piece[start : start + min(room, read.request.size)]
        board.link.send(wire.pack_block(read.request.number, data, job=read.job))

    def _refuse(self, board: Board) -> None:
        """Tell a board that what it has asked for cannot be read."""
        read, board.pending_read = board.pending_read, None
        if read is not None and board.link is not None:
            number = read.request.number
            block = wire.pack_block(number, b"", job=read.job, flags=wire.UNREADABLE)
            board.link.send(block)

    # Callers

    def on_block(self, owner: MountOwner, message: wire.Message) -> None:
        """Handle a piece of a file that its caller sends; one that is late is ignored.

        Raises:
            PeerWireError: it is malformed.
        """
        number, data = wire.read_block(message)
        mount = self._by_number.get((owner, message.job))
        place = mount.requested.pop(number, None) if mount is not None else None
        if mount is None or place is None:
            return
        if len(data) > self._limits.mount_piece_bytes:
            raise PeerWireError("BLOCK has more bytes than were asked for")
        if message.flags & wire.UNREADABLE:
            self._answer_all(mount, place, None)
        else:
            self._keep((mount, *place), data)
            self._answer_all(mount, place, data)

    def _keep(self, key: tuple[Mount, bytes, int], piece: bytes) -> None:
        """Keep a piece for other boards; of too many, those that were not used for longest go."""
        self._pieces[key] = piece
        self._pieces_bytes += _cost(piece)
        while self._pieces_bytes > self._limits.mount_cache_bytes:
            _, oldest = self._pieces.popitem(last=False)
            self._pieces_bytes -= _cost(oldest)

    def close_owner(self, owner: MountOwner) -> None:
        """Unmount the folders of a caller that has disconnected."""
        for board, mounted in list(self._by_board.items()):
            if mounted.mount.owner is owner:
                self.detach(board)
                self._refuse(board)
                if board.link is not None and not self._stopped:
                    unmount = functools.partial(self._unmount, board, mounted.caller)
                    cleanup.run_all("a mounted folder", unmount)

    def _unmount(self, board: Board, caller: str) -> None:
        """Unmount a folder whose caller is gone: a job of the server, before the next one."""
        spec = self._unmount_spec()
        audit = CellAudit(target=board.name, detail="unmount: its caller is gone", verb=_OPERATION)
        self._run_first(
            board, Cell(spec.code, files=spec, kind=_OPERATION), Requester(caller), audit
        )

    def stop(self) -> None:
        """Leave boards as they are: the server stops, and they unmount by themselves."""
        self._stopped = True


def _cost(piece: bytes) -> int:
    """Return as how many bytes a piece counts."""
    return len(piece) + _PIECE_BYTES


def _is_mount_point(path: object) -> bool:
    """Return whether boards can mount a folder at a path: one name, in the root."""
    return (
        isinstance(path, str)
        and path[:1] == "/"
        and 1 < len(path) <= 32
        and path[1:].replace("-", "").replace("_", "").isalnum()
        and path.isascii()
    )


def _is_file_row(row: Any) -> bool:
    """Return whether a value of JSON is a file in a list: path and size."""
    if not isinstance(row, list) or [type(each) for each in row] != [str, int]:
        return False
    path, size = row
    parts = path.split("/")
    return (
        0 <= size < 1 << 32
        and all(part not in ("", ".", "..") for part in parts)
        and path.isprintable()
        and len(path.encode()) <= _PATH_BYTES
    )
