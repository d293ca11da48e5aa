"""File operations through a board's raw REPL, as mpy_client/cm/files.py does them on other boards.

Paths and bytes are sent as literals, in short pieces of code; names that the code needs on the
board begin with ``__cm_``, so that they collide with no name of the user's; built-in functions are
used by such names, too, since user code may replace them (repl_output.py). A board without folders
(a micro:bit) supports only some operations (flat_files.py).
"""

from __future__ import annotations

import binascii
import errno
import hashlib
import json
import re
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from cloudmanager.protocol import wire
from cloudmanager.protocol.file_ops import OP_ARGUMENTS
from cloudmanager.results.board_values import UnreadableValue, parse_value

from . import install_helper

#: Prints what the board supports: (files, folders and renames, hashes, base64).
ABILITIES_CODE: Final = """
def __cm_h__(m,*n):
 try:
  m=__import__(m)
  return all([hasattr(m,x) for x in n])
 except ImportError:
  return False
print((__cm_h__("os","remove"),__cm_h__("os","rename","stat","ilistdir"),
 __cm_h__("hashlib","sha256"),__cm_h__("binascii","a2b_base64")))
del __cm_h__
__cm_f__=None
"""
FOLDER_MODE: Final = 0x4000  # of a mode, as MicroPython has it
_ACKS_PER_WINDOW: Final = 4  # as in mpy_client/cm/files.py
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 64, 2048  # bytes in one piece of code
_HEAP_FRACTION: Final = 64  # a piece is at most 1/64 of the heap, which holds several copies of it
_SHA_BYTES, _BLOCK_BYTES = 32, 512
#: Hashes some blocks of the open file, so that an interrupt waits only for these. Prints the size
#: of the last block.
_HASH_CODE: Final = f"""
for __cm_n__ in (0,)*32:
 __cm_n__=__cm_f__.readinto(__cm_b__)
 __cm_h__.update(__cm_b__ if __cm_n__=={_BLOCK_BYTES} else __cm_b__[:__cm_n__])
 if __cm_n__<{_BLOCK_BYTES}:break
__cm_p__(__cm_n__)
"""
_BYTE_COUNT: Final = struct.Struct(">I")
_ERRNO_PATTERN: Final = re.compile(r"OSError: \(?(?:\[Errno )?(\d+)")
_ERRNO_BY_MESSAGE: Final = {
    "file not found": errno.ENOENT,
    "no more storage": errno.ENOSPC,
}  # micro:bit's


class FileAbilities(NamedTuple):
    """What a board supports of files; ``heap`` in bytes."""

    heap: int
    files: bool
    folders: bool
    hashes: bool
    base64: bool


class FileOpFailed(Exception):
    """An operation failed on the board, with this traceback."""


class FileJobChannel(Protocol):
    """Sends and receives the job's messages."""

    def send_chunk(self, flags: int, payload: bytes) -> None:
        """Send a CHUNK."""

    def check_running(self) -> None:
        """Raise FileOpFailed if the job must end."""

    def next_data(self) -> wire.Message:
        """Wait for the next DATA and return it; raise FileOpFailed if the job must end."""


class ReplFiles:
    """Performs file operations on a board, one after the other.

    Args:
        execute: runs code on the board; returns its output and its traceback.
        channel: for the job's messages.
        abilities: what the board supports.
    """

    def __init__(
        self,
        execute: Callable[[str], tuple[bytes, str]],
        channel: FileJobChannel,
        abilities: FileAbilities,
    ) -> None:
        self._execute, self._channel, self._abilities = execute, channel, abilities
        self._piece_bytes = max(
            _MIN_PIECE_BYTES, min(_MAX_PIECE_BYTES, abilities.heap // _HEAP_FRACTION)
        )
        self._ack_bytes = self._bytes_moved = self._bytes_acknowledged = 0

    def run_ops(self, text: bytes) -> list[Any]:
        """Perform the operations of a FILE message.

        Args:
            text: the JSON of the message.

        Returns:
            The results of the last list of operations; those of earlier lists have been sent.

        Raises:
            OSError: an operation failed; ``filename`` is its path.
            FileOpFailed: an operation failed in another way, or was interrupted.
        """
        self._bytes_moved = self._bytes_acknowledged = 0
        while True:
            self._ack_bytes, ops, *more = json.loads(text)
            if not more:
                return [self._run_op(*op) for op in ops]
            self._run_stepwise(ops)
            message = self._channel.next_data()
            while not message.flags & wire.NEXT_OPS:  # a late acknowledgement of file data
                message = self._channel.next_data()
            text = message.payload

    def _run_stepwise(self, ops: list[Any]) -> None:
        """Perform operations and send the result of each, up to the first that fails."""
        for op in ops:
            try:
                answer = self._run_op(*op)
            except OSError as error:
                answer = {"errno": error.errno}
            self._channel.send_chunk(wire.OP_RESULT, json.dumps(answer).encode())
            if isinstance(answer, dict):
                return

    def _run_op(self, name: str, path: Any, *arguments: Any) -> Any:
        path = bytes(path) if isinstance(path, list) else path  # not UTF-8
        self._channel.check_running()
        op = getattr(self, name) if name in OP_ARGUMENTS or name == "finish" else None
        if op is None:
            raise FileOpFailed(f"AttributeError: unknown file operation {name}")
        try:
            return op(path, *arguments)
        except OSError as error:
            raise OSError(error.errno, "", str(path)) from error

    # The operations

    def stat(self, path: Any) -> Any:
        """Return the result of the board's ``os.stat``."""
        return self._call_os("stat", path)

    def statvfs(self, path: str) -> Any:
        """Return the result of the board's ``os.statvfs``."""
        return self._call_os("statvfs", path)

    def mkdir(self, path: str) -> None:
        """Make a folder."""
        self._call_os("mkdir", path)

    def rmdir(self, path: Any) -> None:
        """Remove an empty folder."""
        self._call_os("rmdir", path)

    def rename(self, path: Any, to: Any) -> None:
        """Rename a file; a file at the new path is replaced."""
        self._call_os("rename", path, to)

    def makedirs(self, path: str) -> None:
        """Make a folder and its parents; existing ones are no error."""
        ends = [at for at, character in enumerate(path + "/") if character == "/" and at]
        for end in ends:
            try:
                self.mkdir(path[:end])
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise

    def ls(self, path: Any, deep: bool) -> list[tuple[Any, int, int]]:
        """Return path, type and size of each entry of a folder; with ``deep``, recursively.

        Paths are bytes in a folder with a name that is not UTF-8.
        """
        try:
            return self._list_folder(path, deep)
        except FileOpFailed as error:
            if isinstance(path, bytes) or "UnicodeError" not in str(error):
                raise
            return self._list_folder(path.encode(), deep)

    def _list_folder(self, path: Any, deep: bool) -> list[tuple[Any, int, int]]:
        slash = "/" if isinstance(path, str) else b"/"
        entries = f"__cm_i__('os').ilistdir({path!r})"
        code = f"for __cm_e__ in {entries}:__cm_p__(__cm_r__(__cm_e__),end=',')"
        found = []
        for name, kind, _, *size in self._eval_code(code, "[", "]"):
            inner = path.rstrip(slash) + slash + name
            found.append((inner, kind, size[0] if size else 0))
            self._channel.check_running()
            if deep and kind == FOLDER_MODE:
                found += self.ls(inner, True)
        return found

    def rm(self, path: Any, deep: bool) -> None:
        """Remove a file or, with ``deep``, a folder and its content."""
        if not self.stat(path)[0] & FOLDER_MODE:
            self._call_os("remove", path)
            return
        if not deep:
            raise OSError(errno.EISDIR, "")
        for inner, *_ in self.ls(path, False):
            self.rm(inner, True)
        self.rmdir(path)

    def finish(self, path: str) -> None:
        """Complete the install that the journal at ``path`` describes, if there is one.

        The code for that is sent to the board and removed afterwards.
        """
        try:
            self.stat(path)
        except OSError:
            return
        self._run_code(install_helper.make_install_code())
        try:
            self._run_code(install_helper.FINISH_CODE)
        finally:
            self._run_code(install_helper.REMOVE_CODE)

    def hash(self, path: Any, size: int) -> str | bool | None:
        """Return the SHA-256 of a file of this size (-1: any size) in hex.

        Returns:
            "" if its size differs, None if the file does not exist, False if it is a folder.
        """
        try:
            stat = self.stat(path)
            if stat[0] & FOLDER_MODE:
                return False
            return self._file_sha256(path).hex() if size in (stat[6], -1) else ""
        except OSError:
            return None

    def get(self, path: Any) -> tuple[int, str]:
        """Send a file; return its size and SHA-256."""
        self._open_file(path, "rb")
        self._channel.send_chunk(wire.RESUME_STATE, b"")
        h, size = hashlib.sha256(), 0
        while piece := self._read_piece():
            h.update(piece)
            self._channel.send_chunk(0, piece)
            size += len(piece)
            self._bytes_moved += len(piece)
            self._channel.check_running()
            while self._bytes_moved - self._bytes_acknowledged > _ACKS_PER_WINDOW * self._ack_bytes:
                (self._bytes_acknowledged,) = _BYTE_COUNT.unpack(self._channel.next_data().payload)
        self._close_file()
        return size, h.hexdigest()

    def put(self, path: str, size: int, digest: str, staged: int = 0) -> int:
        """Write to PATH.mbm-part, verify what the flash holds, and rename.

        A file that nothing uses yet (``staged``) is written in place.

        Returns:
            How many bytes were written; 0 if the board had the file already.
        """
        there = self.hash(path, size)
        if there is False:
            raise OSError(errno.EISDIR, "")
        if there == digest:
            self._send_resume_state(size, bytes.fromhex(digest))
            return 0
        part = path if staged else path + ".mbm-part"
        first, have = self._resume_upload(part)
        before = self._bytes_moved
        self._open_file(part, "ab" if have else "wb")
        try:
            self._receive_file(first, size - have)
            self._close_file()
            if self._file_sha256(part).hex() != digest:
                raise OSError(errno.EIO, "")
            if not staged:
                self.rename(part, path)
        except OSError:
            self._clean_up(part)
            raise
        except FileOpFailed:
            self._clean_up()  # the partial file stays: the next attempt continues it
            raise
        return self._bytes_moved - before

    def _resume_upload(self, part_path: str) -> tuple[wire.Message, int]:
        """Report the partial file of an earlier attempt to the server.

        Returns:
            The first DATA, and how many bytes of the partial file are kept.
        """
        try:
            have, digest = self.stat(part_path)[6], self._file_sha256(part_path)
        except OSError:
            have, digest = 0, bytes(_SHA_BYTES)
        first = self._send_resume_state(have, digest)
        return first, 0 if first.flags & wire.RESTART_FILE else have

    def _send_resume_state(self, size: int, digest: bytes) -> wire.Message:
        self._channel.send_chunk(wire.RESUME_STATE, _BYTE_COUNT.pack(size) + digest)
        return self._channel.next_data()

    def _receive_file(self, message: wire.Message, bytes_left: int) -> None:
        """Write the server's data up to the end of the file."""
        while True:
            self._write_data(message.payload)
            bytes_left -= len(message.payload)
            if bytes_left <= 0:
                return
            message = self._channel.next_data()

    def _clean_up(self, path: str = "") -> None:
        """Close the open file and remove the file at ``path``; errors are ignored."""
        remove = f"\n__cm_i__('os').remove({path!r})" if path else ""
        self._execute(f"if __cm_f__:__cm_f__.close()\n__cm_f__=None{remove}")

    # On the board

    def _run_code(self, code: str) -> str:
        """Run a piece of code; return its output.

        Raises:
            OSError: the code raised one.
            FileOpFailed: the code raised another exception.
        """
        printed, error = self._execute(code)
        if not error:
            return printed.decode().strip()
        last = error.rstrip().rpartition("\n")[2]
        if number := _ERRNO_PATTERN.match(last):
            raise OSError(int(number[1]), "")
        for words, known in _ERRNO_BY_MESSAGE.items():
            if words in last:
                raise OSError(known, "")
        raise FileOpFailed(error)

    def _eval_code(self, code: str, prefix: str = "", suffix: str = "") -> Any:
        """Run a piece of code that prints a literal, and return it."""
        try:
            return parse_value(prefix + self._run_code(code) + suffix)
        except UnreadableValue as error:
            raise FileOpFailed(
                "ValueError: the board's answer to a file operation cannot be parsed"
            ) from error

    def _call_os(self, name: str, *args: Any) -> Any:
        """Call a function of the board's ``os``."""
        return self._eval_code(
            f"__cm_p__(__cm_r__(__cm_i__('os').{name}({','.join(map(repr, args))})))"
        )

    def _open_file(self, path: Any, mode: str) -> None:
        self._run_code(f"__cm_f__=__cm_o__({path!r},{mode!r})")

    def _close_file(self) -> None:
        self._run_code("__cm_f__.close()\n__cm_f__=None")

    def _read_piece(self) -> bytes:
        """Return the next piece of the open file."""
        got = f"__cm_f__.read({self._piece_bytes})"
        if self._abilities.base64:
            got = f"__cm_i__('binascii').b2a_base64({got})"
        piece = bytes(self._eval_code(f"__cm_p__(__cm_r__({got}))"))
        return binascii.a2b_base64(piece) if self._abilities.base64 else piece

    def _write_data(self, data: bytes) -> None:
        """Write to the open file, piece by piece."""
        for start in range(0, len(data), self._piece_bytes):
            piece = data[start : start + self._piece_bytes]
            literal = repr(piece)
            if self._abilities.base64:
                packed = binascii.b2a_base64(piece, newline=False)
                literal = f"__cm_i__('binascii').a2b_base64({packed!r})"
            self._run_code(f"__cm_n__=__cm_f__.write({literal})")
            self._bytes_moved += len(piece)
            if self._bytes_moved - self._bytes_acknowledged >= self._ack_bytes:
                self._acknowledge()
            self._channel.check_running()

    def _acknowledge(self) -> None:
        """Report how many bytes are on the flash."""
        if self._abilities.folders:
            self._run_code("__cm_f__.flush()")
        self._bytes_acknowledged = self._bytes_moved
        self._channel.send_chunk(0, _BYTE_COUNT.pack(self._bytes_moved))

    def _file_sha256(self, path: Any) -> bytes:
        """Return the SHA-256 of a file as it is on the flash."""
        self._open_file(path, "rb")
        if not self._abilities.hashes:
            return self._file_sha256_on_host()
        self._run_code("__cm_h__=__cm_i__('hashlib').sha256()\n__cm_b__=__cm_a__(512)")
        while self._eval_code(_HASH_CODE) == _BLOCK_BYTES:
            self._channel.check_running()
        digest = bytes(self._eval_code("__cm_p__(__cm_h__.digest())\ndel __cm_h__,__cm_b__"))
        self._close_file()
        return digest

    def _file_sha256_on_host(self) -> bytes:
        h = hashlib.sha256()
        while piece := self._read_piece():
            h.update(piece)
            self._channel.check_running()
        self._close_file()
        return h.digest()
