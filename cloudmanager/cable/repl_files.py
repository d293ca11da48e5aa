"""Files of a board behind a raw REPL: the acts that mpy_client/cm/files.py does on other boards.

Paths and bytes travel as literals, in short pieces of code; the names that those need begin with
``__cm_``, so that they are nobody's. A board whose files are in no folders (a micro:bit) does what
it can (flatfiles.py), and says the rest in a sentence.
"""

from __future__ import annotations

import ast
import binascii
import errno
import hashlib
import json
import re
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from cloudmanager.protocol import wire
from cloudmanager.protocol.file_ops import ACTS

from . import install_helper

#: What the board can: print((files at all, folders and renames, hashes, base64)).
ABILITIES: Final = """
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
FOLDER: Final = 0x4000  # of a mode, as MicroPython has it
_STEPS: Final = 4  # of the window, as in mpy_client/cm/files.py
_LEAST_PIECE, _MOST_PIECE = 64, 2048  # bytes that travel at once
_SHARE: Final = 64  # of its heap that a piece may be, which a board holds some times
_SHA_BYTES, _BLOCK_BYTES = 32, 512
#: Hashes some blocks of the open file: an interrupt waits so long. Prints how long the last was.
_HASH: Final = f"""
for __cm_n__ in range(32):
 __cm_n__=__cm_f__.readinto(__cm_b__)
 __cm_h__.update(__cm_b__ if __cm_n__=={_BLOCK_BYTES} else __cm_b__[:__cm_n__])
 if __cm_n__<{_BLOCK_BYTES}:break
print(__cm_n__)
"""
_COUNT: Final = struct.Struct(">I")
_NUMBER: Final = re.compile(r"OSError: \(?(?:\[Errno )?(\d+)")
_WORDS: Final = {"file not found": errno.ENOENT, "no more storage": errno.ENOSPC}  # micro:bit's


class Abilities(NamedTuple):
    """What a board has for files; ``heap`` in bytes."""

    heap: int
    files: bool
    folders: bool
    hashes: bool
    base64: bool


class ActFailed(Exception):
    """An act failed on the board, with this traceback."""


class Carrier(Protocol):
    """Who brings messages of this job to the server, and from there."""

    def tell(self, flags: int, payload: bytes) -> None:
        """Send a CHUNK."""

    def check(self) -> None:
        """Raise ActFailed if the job shall end."""

    def hear(self) -> wire.Message:
        """Return the next DATA as soon as it is there; raise as ``check`` does."""


class Files:
    """Does acts on a board's files, one after the other.

    Args:
        run: runs code on the board; returns what it printed, and its traceback.
        carrier: of the job's messages.
        can: what the board has.
    """

    def __init__(
        self, run: Callable[[str], tuple[bytes, str]], carrier: Carrier, can: Abilities
    ) -> None:
        self._on_board, self._carrier, self._can = run, carrier, can
        self._piece = max(_LEAST_PIECE, min(_MOST_PIECE, can.heap // _SHARE))
        self._step = self._moved = self._confirmed = 0

    def do(self, text: bytes) -> list[Any]:
        """Do what a FILE says; return what each act gave, but for what was told already.

        Raises:
            OSError: an act failed; it has the path that it is about.
            ActFailed: one failed in another way, or was interrupted.
        """
        self._moved = self._confirmed = 0
        while True:
            self._step, acts, *more = json.loads(text)
            if not more:
                return [self._act(*act) for act in acts]
            self._tell_each(acts)
            message = self._carrier.hear()
            while not message.flags & wire.NEXT:  # a late word on what was taken of a file
                message = self._carrier.hear()
            text = message.payload

    def _tell_each(self, acts: list[Any]) -> None:
        """Tell what each act gave, up to the first that failed."""
        for act in acts:
            try:
                answer = self._act(*act)
            except OSError as error:
                answer = {"errno": error.errno}
            self._carrier.tell(wire.GAVE, json.dumps(answer).encode())
            if isinstance(answer, dict):
                return

    def _act(self, name: str, path: str, *more: Any) -> Any:
        self._carrier.check()
        act = getattr(self, name) if name in ACTS or name == "finish" else None
        if act is None:
            raise ActFailed(f"AttributeError: there is no act {name}")
        try:
            return act(path, *more)
        except OSError as error:
            raise OSError(error.errno, "", path) from error

    # The acts

    def stat(self, path: str) -> Any:
        """Return what the board's ``os.stat`` gives."""
        return self._os("stat", path)

    def statvfs(self, path: str) -> Any:
        """Return what the board's ``os.statvfs`` gives."""
        return self._os("statvfs", path)

    def mkdir(self, path: str) -> None:
        """Make a folder."""
        self._os("mkdir", path)

    def rmdir(self, path: str) -> None:
        """Remove a folder that is empty."""
        self._os("rmdir", path)

    def rename(self, path: str, to: str) -> None:
        """Give a file another path, in place of what is there."""
        self._os("rename", path, to)

    def makedirs(self, path: str) -> None:
        """Make a folder, and those that it is in; they may be there."""
        for end in [at for at, sign in enumerate(path + "/") if sign == "/" and at]:
            try:
                self.mkdir(path[:end])
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise

    def ls(self, path: str, deep: bool) -> list[tuple[str, int, int]]:
        """Return path, type and size of what is in a folder."""
        code = f"for __cm_e__ in __import__('os').ilistdir({path!r}):print(repr(__cm_e__),end=',')"
        found = []
        for name, kind, _, *size in self._told(code, "[", "]"):
            inner = f"{path.rstrip('/')}/{name}"
            found.append((inner, kind, size[0] if size else 0))
            self._carrier.check()
            if deep and kind == FOLDER:
                found += self.ls(inner, True)
        return found

    def rm(self, path: str, deep: bool) -> None:
        """Remove a file, or a folder and all that is in it."""
        if not self.stat(path)[0] & FOLDER:
            self._os("remove", path)
            return
        if not deep:
            raise OSError(errno.EISDIR, "")
        for inner, *_ in self.ls(path, False):
            self.rm(inner, True)
        self.rmdir(path)

    def finish(self, path: str) -> None:
        """Do what a journal says, if there is one; the board is lent what does that."""
        try:
            self.stat(path)
        except OSError:
            return
        self._run(install_helper.lend())
        try:
            self._run(install_helper.FINISH)
        finally:
            self._run(install_helper.TAKE_BACK)

    def hash(self, path: str, size: int) -> str | bool | None:
        """Return the SHA-256 of a file of this size, or of any (-1).

        "" for one of another size; None: there is none, False: a folder.
        """
        try:
            stat = self.stat(path)
            if stat[0] & FOLDER:
                return False
            return self._sha(path).hex() if size in (stat[6], -1) else ""
        except OSError:
            return None

    def get(self, path: str) -> tuple[int, str]:
        """Send a file; return its size and SHA-256."""
        self._open(path, "rb")
        self._carrier.tell(wire.HAVE, b"")
        h, size = hashlib.sha256(), 0
        while piece := self._read():
            h.update(piece)
            self._carrier.tell(0, piece)
            size += len(piece)
            self._moved += len(piece)
            self._carrier.check()
            while self._moved - self._confirmed > _STEPS * self._step:
                (self._confirmed,) = _COUNT.unpack(self._carrier.hear().payload)
        self._close()
        return size, h.hexdigest()

    def put(self, path: str, size: int, digest: str, staged: int = 0) -> int:
        """Write a file beside its place, verify what the flash holds, and rename it.

        Where nobody looks for it yet (``staged``), it is written in its place.

        Returns:
            How many bytes were written: 0 where it was there.
        """
        there = self.hash(path, size)
        if there is False:
            raise OSError(errno.EISDIR, "")
        if there == digest:
            self._offer(size, bytes.fromhex(digest))
            return 0
        part = path if staged else path + ".part"
        first, have = self._resumed(part)
        before = self._moved
        self._open(part, "ab" if have else "wb")
        try:
            self._receive(first, size - have)
            self._close()
            if self._sha(part).hex() != digest:
                raise OSError(errno.EIO, "")
            if not staged:
                self.rename(part, path)
        except OSError:
            self._tidy(part)
            raise
        except ActFailed:
            self._tidy()  # what is there of it, the next try goes on with
            raise
        return self._moved - before

    def _resumed(self, part: str) -> tuple[wire.Message, int]:
        """Say what an earlier try left; return the first DATA, and how much of that counts."""
        try:
            have, digest = self.stat(part)[6], self._sha(part)
        except OSError:
            have, digest = 0, bytes(_SHA_BYTES)
        first = self._offer(have, digest)
        return first, 0 if first.flags & wire.FRESH else have

    def _offer(self, have: int, digest: bytes) -> wire.Message:
        self._carrier.tell(wire.HAVE, _COUNT.pack(have) + digest)
        return self._carrier.hear()

    def _receive(self, message: wire.Message, left: int) -> None:
        """Write what the server sends, up to the file's end."""
        while True:
            self._write(message.payload)
            left -= len(message.payload)
            if left <= 0:
                return
            message = self._carrier.hear()

    def _tidy(self, path: str = "") -> None:
        """Close what is open, and remove a file; whatever fails here failed before."""
        remove = f"\n__import__('os').remove({path!r})" if path else ""
        self._on_board(f"if __cm_f__:__cm_f__.close()\n__cm_f__=None{remove}")

    # On the board

    def _run(self, code: str) -> str:
        """Run a piece of code; return what it printed."""
        printed, error = self._on_board(code)
        if not error:
            return printed.decode().strip()
        last = error.rstrip().rpartition("\n")[2]
        if number := _NUMBER.match(last):
            raise OSError(int(number[1]), "")
        for words, known in _WORDS.items():
            if words in last:
                raise OSError(known, "")
        raise ActFailed(error)

    def _told(self, code: str, before: str = "", behind: str = "") -> Any:
        """Run a piece of code that prints a literal, and return it."""
        try:
            return ast.literal_eval(before + self._run(code) + behind)
        except (ValueError, SyntaxError) as error:
            raise ActFailed("ValueError: what the board says of its files is no answer") from error

    def _os(self, name: str, *args: Any) -> Any:
        """Call a function of the board's ``os``."""
        return self._told(f"print(repr(__import__('os').{name}({','.join(map(repr, args))})))")

    def _open(self, path: str, mode: str) -> None:
        self._run(f"__cm_f__=open({path!r},{mode!r})")

    def _close(self) -> None:
        self._run("__cm_f__.close()\n__cm_f__=None")

    def _read(self) -> bytes:
        """Return the next piece of the open file."""
        got = f"__cm_f__.read({self._piece})"
        if self._can.base64:
            got = f"__import__('binascii').b2a_base64({got})"
        told = bytes(self._told(f"print(repr({got}))"))
        return binascii.a2b_base64(told) if self._can.base64 else told

    def _write(self, data: bytes) -> None:
        """Write to the open file, piece by piece."""
        for start in range(0, len(data), self._piece):
            piece = data[start : start + self._piece]
            literal = repr(piece)
            if self._can.base64:
                packed = binascii.b2a_base64(piece, newline=False)
                literal = f"__import__('binascii').a2b_base64({packed!r})"
            self._run(f"__cm_n__=__cm_f__.write({literal})")
            self._moved += len(piece)
            if self._moved - self._confirmed >= self._step:
                self._confirm()
            self._carrier.check()

    def _confirm(self) -> None:
        """Say how many bytes are on the flash."""
        if self._can.folders:
            self._run("__cm_f__.flush()")
        self._confirmed = self._moved
        self._carrier.tell(0, _COUNT.pack(self._moved))

    def _sha(self, path: str) -> bytes:
        """Return the SHA-256 of a file as it stands on the flash."""
        self._open(path, "rb")
        if not self._can.hashes:
            return self._sha_here()
        self._run("__cm_h__=__import__('hashlib').sha256()\n__cm_b__=bytearray(512)")
        while self._told(_HASH) == _BLOCK_BYTES:
            self._carrier.check()
        digest = bytes(self._told("print(__cm_h__.digest())\ndel __cm_h__,__cm_b__"))
        self._close()
        return digest

    def _sha_here(self) -> bytes:
        h = hashlib.sha256()
        while piece := self._read():
            h.update(piece)
            self._carrier.check()
        self._close()
        return h.digest()
