"""Seeded random input that is almost right: requests of strangers, messages of boards and callers.

Valid messages are built from the protocol's own parts, with some fields replaced by values at the
edges; a few are cut, extended or have bits flipped. So most of them get past the first check.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any, Final

from cloudmanager.protocol import frames, wire

NUMBERS: Final = (
    *(0, 1, -1, 2, 3, 7, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**32),
    *(2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**63), 0.5, 1e308, 1e-9),
    *(float("inf"), float("nan")),
)
TEXTS: Final = (
    *("", "all", "fuzz-1", "fuzz-[1-3]", "fuzz-1!fuzz-1", "nobody", "safe-1", "x" * 70, "*", "["),
    *("\ud800", "\0", "a\nb", "\N{RIGHT-TO-LEFT OVERRIDE}", "%s", "{0}", "platform=unix", "k=v"),
    *("../../x", "/x", "/main.py", "/cm.json", "/lib/cm", "a" * 64, "f" * 64, "fuzz-[1-99999]"),
    *("state=idle", "viewer", "operator", "admin", "board", "./x"),
    *("http://127.0.0.1:1/x.json", "file:///etc/passwd", "local", "cm_" + "x" * 43),
)
#: What a field of a request usually has.
USUAL: Final[dict[str, tuple[Any, ...]]] = {
    "target": ("all", "fuzz-1", "fuzz-[1-3]", "fuzz-*"),
    "labels": ({"a": "b"}, {"a": ""}),
    "jobs": ([1, 2], [3, 3, 3]),
    "job": (1, 2, 3),
    "size": (10, 10**9),
    "sha256": ("f" * 64, "e" * 64),
    "wanted": (["./x"], ["x"]),
    "sent": ({"./x": {"a.py": "f" * 64}},),
    "count": (1, 5),
    "names": (["fuzz-9"], ["fuzz-1", "fuzz-1"]),
    "acts": (
        [["get", "/x"]],
        [["ls", "/", True]],
        [["put", "/y", "f" * 64]],
        [["hash", "/z", -1]],
        [["rm", "/a"], ["mkdir", "/b"], ["rename", "/c", "/d"]],
    ),
    "packages": ({}, {"remove": ["x"]}, {"plan": 1}),
    "timeout": (0.2, 5),
    "logs": (True,),
    "samples": (True, False),
    "since": (0, 1e9),
    "seconds": (0, 60, 1e300),
    "after": (0, 1),
}
OTHER_FIELDS: Final = (
    *("target_dir", "source_only", "indexes", "lock", "locked", "force", "plain", "uses"),
    *("expires", "name", "role", "idle", "awaits", "fresh", "wait", "answers"),
)
_HEADERS: Final = (
    *("Host: 127.0.0.1", "Host: evil.example", "Host: 127.0.0.1\r\nHost: x", "Upgrade: websocket"),
    *("Connection: Upgrade", "Connection: keep-alive, upgrade", "Sec-WebSocket-Version: 8"),
    *("Sec-WebSocket-Key: \xff\xfe", "Sec-WebSocket-Extensions: permessage-deflate"),
    *("Content-Length: 5", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: -1"),
    *("Content-Length: 1_0", "Content-Length: +5", "Transfer-Encoding: chunked"),
    *("Transfer-Encoding: chunked\r\nContent-Length: 3", "Transfer-Encoding: gzip, chunked"),
    *("Transfer-Encoding: \x0bchunked", "Authorization: Bearer cm_x", "Authorization: bearer  "),
    *("Authorization: Basic Og==", "Cookie: a=b", "Origin: http://evil", "Origin: null"),
    *("X-Forwarded-For: 127.0.0.1", "X-Forwarded-For: " + "1," * 500, "Expect: 100-continue"),
    *("Cm-Protocol: 1", "X: " + "y" * 9000, "X:", ": y", " folded: z", "A\0: b", "Range: bytes=0-"),
)
_PATHS: Final = (
    *("/board", "/caller", "/healthz", "/metrics", "/ca.pem", "/", "//", "/%00", "/../x", "*"),
    *("http://x/board", "/board?token=cm_x", "/caller#x", "/\xff", "/board" + "a" * 5000),
)
_METHODS: Final = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "TRACE", "CONNECT", "PRI", "G\0T", "")
_UPGRADE: Final = (
    *("Host: 127.0.0.1", "Upgrade: websocket", "Connection: Upgrade"),
    *("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"),
)


class HostileInput:
    """Returns random input, always the same for the same seed.

    Args:
        seed: of all random choices.
        verbs: names of requests.
    """

    def __init__(self, seed: object, verbs: tuple[str, ...] = ()) -> None:
        self.dice = random.Random(f"{seed}")
        self._verbs = (*verbs, "nothing")

    # Values

    def value(self, depth: int = 0) -> Any:
        """Return any value of JSON."""
        kind = self.dice.randrange(7 if depth < 3 else 5)
        if kind == 0:
            return self.dice.choice(NUMBERS)
        if kind == 1:
            return self.dice.choice(TEXTS)
        if kind == 2:
            return self.dice.choice((None, True, False))
        if kind == 3:
            return self.dice.choice(TEXTS) + str(self.dice.randrange(9))
        if kind == 4:
            return self.dice.randrange(1, 60)
        items = [self.value(depth + 1) for _ in range(self.dice.randrange(4))]
        if kind == 5:
            return items
        names = ("job", "status", "files", "version", "needs", *TEXTS)
        return {self.dice.choice(names): item for item in items}

    def fields(self) -> dict[str, Any]:
        """Return some fields of a request."""
        body = {}
        for name in self.dice.sample((*USUAL, *OTHER_FIELDS), self.dice.randrange(6)):
            usual = USUAL.get(name, ()) if self.dice.random() < 0.6 else ()
            body[name] = self.dice.choice(usual) if usual else self.value()
        if self.dice.random() < 0.8:
            body["target"] = self.dice.choice(USUAL["target"])
        return body

    def _bytes(self, below: int) -> bytes:
        return self.dice.randbytes(self.dice.randrange(below))

    def damaged(self, data: bytes) -> bytes:
        """Return data with some bytes changed, added or removed."""
        changed = bytearray(data)
        for _ in range(self.dice.randrange(1, 4)):
            place = self.dice.randrange(len(changed) + 1)
            kind = self.dice.randrange(4)
            if kind == 0:
                changed[place : place + 1] = self.dice.randbytes(1)
            elif kind == 1:
                del changed[place : place + self.dice.randrange(1, 9)]
            elif kind == 2:
                changed[place:place] = self._bytes(9)
            else:
                del changed[place:]
        return bytes(changed)

    def _sometimes_damaged(self, data: bytes, chance: float) -> bytes:
        return self.damaged(data) if self.dice.random() < chance else data

    # Callers

    def caller_message(self, ref: int) -> bytes:
        """Return a message of a caller."""
        return self._sometimes_damaged(self._caller_message(ref), 0.06)

    def _caller_message(self, ref: int) -> bytes:
        dice, body = self.dice, self.fields()
        chance = dice.random()
        if chance < 0.45:
            verb = dice.choice(self._verbs)
            flags = dice.choice((0, wire.ACCEPTS_PARTS, 255))
            return wire.pack(wire.REQUEST, _json({"verb": verb, **body}), job=ref, flags=flags)
        if chance < 0.75:
            head = _json(body)
            code = struct.pack(">I", len(head)) + head + b"1"
            return wire.pack(wire.SUBMIT, code, job=ref)
        if chance < 0.8:
            number = struct.pack(">I", dice.randrange(20))
            return wire.pack(wire.CONTENT, number + self._bytes(30), job=ref)
        if chance < 0.88:
            return wire.pack(wire.WATCH, _json(body), job=dice.randrange(20))
        if chance < 0.93:
            return wire.pack(wire.UNWATCH, job=dice.randrange(20))
        if chance < 0.97:
            job = dice.randrange(1, 4000)
            return wire.pack(wire.ANSWER, dice.randbytes(5), job=job, flags=dice.randrange(3))
        op, job = dice.randrange(256), dice.randrange(2**32)
        return wire.pack(op, self._bytes(40), job=job, flags=dice.randrange(256))

    # Boards

    def report(self, job: int) -> dict[str, Any]:
        """Return what a board reports in PROOF, besides what it usually does."""
        dice = self.dice
        last = {"job": f"{job:08x}", "status": dice.choice((0, 1, 2, 3, 4, 9, -1)), "error": "e\0"}
        facts = {"platform": "unix", "version": "1.28", "mpy": 0x2506, "client": "1"}
        return {
            "boot": dice.choice(("aa", None, f"{dice.random()}")),
            "last": dice.choice((None, None, {**last, "dropped": 0}, self.value())),
            "facts": dice.choice(
                (facts, {**facts, "mpy": self.value()}, {**facts, "heap": self.value()}, None)
            ),
            "parts": dice.choice((["run", "files", "boot"], ["run"], self.value())),
            "buf": dice.choice((4096, 4096, 1, self.value())),
            **dice.choice(({}, {}, {"wake": self.value()})),
        }

    def board_message(self, current_job: int) -> bytes:
        """Return a message of a board, most often about its current job."""
        dice = self.dice
        others = (0, 1, current_job + 1, 2**32 - 1)
        job = current_job if dice.random() < 0.85 else dice.choice(others) % 2**32
        return self._sometimes_damaged(dice.choice(self._BOARD_MESSAGES)(self, job), 0.03)

    def _output(self, job: int) -> bytes:
        return wire.pack(wire.OUTPUT, self._bytes(200), job=job, flags=self.dice.randrange(256))

    def _value(self, job: int) -> bytes:
        return wire.pack(wire.VALUE, self._bytes(200), job=job)

    def _result(self, job: int) -> bytes:
        size = struct.pack(">H", self.dice.choice((0, 0, 0, 3, 65535)))
        flags = self.dice.choice((0, 1, 2, 3, 4, 5, 15, 16, 255))
        return wire.pack(wire.RESULT, size + self._bytes(20), job=job, flags=flags)

    def _input(self, job: int) -> bytes:
        return wire.pack(wire.INPUT, self._bytes(20), job=job)

    def _op_result(self, job: int) -> bytes:
        numbers = [*range(1, 11)]
        errors = {"errno": self.dice.choice(NUMBERS)}
        usual = (numbers, None, False, "f" * 64, errors, True, [["a", 1, 2]])
        body = self.dice.choice((*usual, self.value(), self.value()))
        return wire.pack(wire.CHUNK, _json(body), job=job, flags=wire.OP_RESULT)

    def _resume_state(self, job: int) -> bytes:
        state = struct.pack(">I32s", self.dice.choice((0, 1, 2**32 - 1)), self.dice.randbytes(32))
        return wire.pack(wire.CHUNK, state, job=job, flags=wire.RESUME_STATE)

    def _acknowledgement(self, job: int) -> bytes:
        count = struct.pack(">I", self.dice.choice((0, 1, 4096, self.dice.randrange(2**32))))
        return wire.pack(wire.CHUNK, count, job=job, flags=self.dice.choice((0, 4, 8, 255)))

    def _piece(self, job: int) -> bytes:
        package = {name: self.value() for name in ("version", "source", "needs", "files")}
        piece = self.dice.choice((self._bytes(50), _json({"pkg": package})))
        return wire.pack(wire.CHUNK, piece, job=job)

    def _emit(self, job: int) -> bytes:
        values = self.dice.choice(({"a": 1}, {self.dice.choice(TEXTS): self.value()}, self.value()))
        ticks = struct.pack(">Q", self.dice.randrange(2**64))
        flags = self.dice.randrange(256)
        return wire.pack(wire.EMIT, ticks + _json(values), job=job, flags=flags)

    def _program(self, _job: int) -> bytes:
        name = self.dice.choice((b"app.py", b"", self._bytes(20)))
        return wire.pack(wire.PROGRAM, name, flags=self.dice.randrange(3))

    def _facts(self, _job: int) -> bytes:
        numbers = self.dice.randrange(2**32), self.dice.randrange(-128, 127)
        return wire.pack(wire.FACTS, struct.pack(">Ib", *numbers))

    def _log(self, _job: int) -> bytes:
        lost = struct.pack(">I", self.dice.choice((0, 0, 1, 2**32 - 1)))
        text = self.dice.choice((b"hello\n", b"", b"\0\xff", self._bytes(300)))
        return wire.pack(wire.LOG, lost + text)

    def _sleep(self, job: int) -> bytes:
        times = (0, 1, 600_000, 2**31, 30 * 86_400_000, 30 * 86_400_000 + 1, 2**32 - 1)
        return wire.pack(wire.SLEEP, struct.pack(">II", *self.dice.choices(times, k=2)), job=job)

    def _rekeyed(self, _job: int) -> bytes:
        return wire.pack(wire.REKEYED, self.dice.randbytes(self.dice.choice((0, 32, 31, 64))))

    def _unexpected(self, job: int) -> bytes:
        if self.dice.random() < 0.9:
            return self._output(job)
        op = self.dice.choice((wire.HELLO, wire.EXEC, wire.REQUEST, 0x30, 0xFF))
        return wire.pack(op, b"{}", job=job)

    _BOARD_MESSAGES: Final[tuple[Callable[[HostileInput, int], bytes], ...]] = (
        *(_output, _value, _result, _input, _op_result, _op_result, _resume_state),
        *(_acknowledgement, _piece, _emit, _program, _facts, _log, _sleep, _rekeyed, _unexpected),
    )

    # Strangers

    def stranger_bytes(self, board_id: str) -> bytes:
        """Return what a stranger sends: HTTP, an upgrade, a handshake, or the begin of TLS."""
        dice = self.dice
        if dice.random() < 0.12:
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(50)
            long = b"\x16\x03\x01\xff\xff" + bytes(500)
            return dice.choice((hello, b"\x16" + self._bytes(200), long, b"\x16\x03\x00\x00\x00"))
        data = self._request_head()
        if dice.random() < 0.5:
            data += self._early_frames(board_id)
        return self._sometimes_damaged(data, 0.15)

    def _request_head(self) -> bytes:
        dice = self.dice
        headers = [*dice.sample(_HEADERS, dice.randrange(9))]
        if dice.random() < 0.5:
            headers = [*_UPGRADE, *headers[:3]]
        version = dice.choice(("HTTP/1.1",) * 9 + ("HTTP/1.0", "HTTP/2.0", ""))
        method = dice.choice(_METHODS) if dice.random() < 0.3 else "GET"
        path = dice.choice(_PATHS[:2]) if dice.random() < 0.5 else dice.choice(_PATHS)
        ends = ("\r\n",) * 20 + ("\n", "\r")
        lines = "".join(header + dice.choice(ends) for header in headers)
        return f"{method} {path} {version}\r\n{lines}\r\n".encode("latin-1")

    def _early_frames(self, board_id: str) -> bytes:
        dice = self.dice
        hello = {
            "v": dice.choice((1, 1, 1, 2, None, "1")),
            "id": dice.choice((board_id, board_id, "x", "\xe9", "", 5)),
            "nonce": dice.choice(("00" * 16, "00" * 16, "zz", "")),
            "gen": dice.choice((0, 0, 1, 2**32, -1, None)),
        }
        enrol: dict[str, Any] = {
            "v": 1,
            "token": dice.choice(("cm_x", None, [], "\xe9" * 300)),
            "key": "0" * 64,
            "name": dice.choice(("", "a b", None, {})),
        }
        return dice.choice(
            (
                frames.encode_frame(wire.pack(wire.HELLO, _json(hello)), mask=True),
                frames.encode_frame(wire.pack(wire.ENROL, _json(enrol)), mask=True),
                frames.encode_frame(wire.pack(wire.PROOF, dice.randbytes(60)), mask=True),
                frames.encode_frame(b"x" * 200, mask=True),
                frames.encode_frame(b"", frames.PING, mask=True) * 20,
                b"hello",
                b"\x82\xff" + b"\xff" * 12,  # a frame of 2**64 bytes
                b"5\r\nhello\r\n0\r\n\r\n",
                b"\xc1\x80\0\0\0\0",  # a reserved bit
                b"\x02\x81\0\0\0\0a\x80\x81\0\0\0\0b",  # fragments
                b"\x88\x82\0\0\0\0\x03\xe7",  # a close frame with the code 999
                self._bytes(40),
            )
        )


def _json(body: Any) -> bytes:
    return json.dumps(body).encode()
