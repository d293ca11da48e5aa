# The link to the server: dials, proves both ends, frames messages (RFC 6455), redials for ever.
# Boards: ESP8266 (2 MB), ESP32 family, RP2 W, unix; MicroPython 1.23 or later.
# Cost: 0 bytes of .mpy, 0 bytes of heap (mpy-cross 1.29 -O3 xtensawin; 32-bit MicroPython 1.27).
import gc
import hashlib
import json
import os
import select
import socket
from binascii import b2a_base64, hexlify, unhexlify
from micropython import const
from struct import pack_into
from time import sleep_ms, ticks_diff, ticks_ms

_BUF = const(1536)  # bytes: the one buffer, for what comes and for what goes
_IN = const(8)  # where an idle board reads: room before it for the head of a pong
_OUT = const(16)  # where output starts: room before it for all heads
_SIDE = const(1408)  # where a busy board reads, behind the output that it gathers
_STALL = const(5000)  # ms without progress in the middle of a frame: the link is lost
_PATIENCE = const(10000)  # ms for each step of dialling

_HELLO = const(0x01)
_CHALLENGE = const(0x02)
_PROOF = const(0x03)
_WELCOME = const(0x04)

_ACCEPT = b"sec-websocket-accept:"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


# HMAC-SHA256 of the parts; keys have 32 bytes.
def _mac(key, *parts):
    inner = hashlib.sha256(bytes([b ^ 0x36 for b in key]) + b"\x36" * 32)
    for part in parts:
        inner.update(part)
    return hashlib.sha256(bytes([b ^ 0x5C for b in key]) + b"\x5c" * 32 + inner.digest()).digest()


class Link:
    def __init__(self, config):
        self.buf = bytearray(_BUF)
        self.mv = memoryview(self.buf)
        self.side = self.mv[_SIDE:]
        self.config = config
        self.job = bytearray(4)
        self.sock = None  # the raw socket, to poll
        self.io = None  # the stream to read and write: the socket, or TLS over it
        self.poll = select.poll()
        self.heard = self.lost = 0
        self.silence = 60000  # ms without a word until an idle board dials again
        self.spread = 2000  # ms, the server names it
        self.tries = 0

    # Waits until the raw socket is ready; says whether it is.
    def wait(self, ms, event=select.POLLIN):
        self.poll.modify(self.sock, event)
        for _ in self.poll.ipoll(ms):
            return True
        return False

    def drop(self):
        if self.sock:
            self.poll.unregister(self.sock)
            self.sock.close()
            self.sock = self.io = None
            self.lost = ticks_ms()

    # Reads n bytes to the start of view, all of them. A short read is the exception.
    def _fill(self, view, n):
        got = self.io.readinto(view, n) or 0
        while got < n:
            if not self.wait(_STALL):
                raise OSError(1006)
            more = self.io.readinto(view[got:n])
            if more == 0:
                raise OSError(1006)
            got += more or 0

    # Writes buf[a:b] without allocating; gives up when nothing moves.
    def _write(self, a, b):
        while a < b:
            n = self.io.write(self.buf, a, b - a)
            if n:
                a += n
            elif not self.wait(_STALL, select.POLLOUT):
                raise OSError(1006)

    # Sends buf[a:b] as one frame: the head goes before it, with a mask of zero.
    def frame(self, op, a, b):
        n = b - a
        if n < 126:
            a -= 6
            pack_into(">BBI", self.buf, a, op, 0x80 | n, 0)
        else:
            a -= 8
            pack_into(">BBHI", self.buf, a, op, 0xFE, n, 0)
        self._write(a, b)

    # Sends buf[a:b] as one message of the current job.
    def send(self, op, a, b, flags=0):
        a -= 6
        pack_into(">BB4s", self.buf, a, op, flags, self.job)
        self.frame(0x82, a, b)

    def say(self, op, data):
        end = _OUT + len(data)
        self.mv[_OUT:end] = data
        self.send(op, _OUT, end)

    # Closes the WebSocket with a code of RFC 6455, 7.4, and leaves.
    def refuse(self, code, at):
        pack_into(">H", self.buf, at, code)
        self.frame(0x88, at, at + 2)
        raise OSError(code)

    # Reads one message to buf[at:] and gives its length; 0 when there is none yet.
    # A busy board passes over what does not fit behind its output.
    def recv(self, at=_IN):
        view = self.side if at == _SIDE else self.mv[at:]
        while True:
            n = self.io.readinto(view, 2)
            if n is None:
                return 0
            if n == 0:
                raise OSError(1006)
            if n == 1:
                self._fill(view[1:], 1)
            self.heard = ticks_ms()
            op = view[0]
            n = view[1]
            if n == 126 and op == 0x82:
                self._fill(view, 2)
                n = view[0] << 8 | view[1]
            elif n > 125:
                self.refuse(1009 if n == 127 else 1002, at)
            if n > len(view):
                if at != _SIDE:
                    self.refuse(1009, at)
                while n > 128:
                    self._fill(view, 128)
                    n -= 128
                self._fill(view, n)
                continue
            if n:
                self._fill(view, n)
            if op == 0x82:
                if n < 6:
                    self.refuse(1002, at)
                return n
            if op == 0x89:
                self.frame(0x8A, at, at + n)
            elif op == 0x88:
                self.tries = 2  # told to go: stay away for up to the whole spread
                self.frame(0x88, at, at + min(n, 2))
                raise OSError(1000)
            elif op != 0x8A:
                self.refuse(1002, at)

    # The next message of the handshake; it must be this one.
    def _hear(self, op):
        since = ticks_ms()
        while ticks_diff(ticks_ms(), since) < _PATIENCE:
            n = self.recv()
            if n:
                if self.buf[_IN] != op:
                    self.refuse(1002, _IN)
                return n + _IN
            self.wait(1000)
        raise OSError(1006)

    def _upgrade(self):
        config = self.config
        key = b2a_base64(os.urandom(16)).strip()
        text = (
            b"GET /board HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n"
        ) % (config["host"].encode(), config["tcp_port"], key)
        n = len(text)
        self.mv[:n] = text
        self._write(0, n)
        n = 0
        while self.mv[max(n - 4, 0) : n] != b"\r\n\r\n":
            self._fill(self.mv[n:], 1)
            n += 1
        text = bytes(self.mv[:n])
        at = text.lower().find(_ACCEPT)
        accept = text[at + len(_ACCEPT) :].split(b"\r\n", 1)[0].strip()
        if text[:12] != b"HTTP/1.1 101" or accept != b2a_base64(hashlib.sha1(key + _GUID).digest()).strip():
            raise OSError(1002)

    def _prove(self):
        key = unhexlify(self.config["key"])
        name = self.config["id"].encode()
        nonce = os.urandom(16)
        self.job[:] = b"\0\0\0\0"
        text = json.dumps({"v": 1, "id": self.config["id"], "nonce": hexlify(nonce).decode()})
        self.say(_HELLO, text.encode())
        end = self._hear(_CHALLENGE)
        at = _IN + 6
        head = nonce + self.mv[at : at + 16] + name
        mac = _mac(key, b"cm1 server", head, self.mv[at + 48 : end])
        wrong = end - at < 48
        for i in range(32):
            wrong |= mac[i] ^ self.buf[at + 16 + i]
        if wrong:
            self.refuse(1008, _IN)
        text = json.dumps(self.about()).encode()
        self.say(_PROOF, _mac(key, b"cm1 board", head, text) + text)
        end = self._hear(_WELCOME)
        told = json.loads(bytes(self.mv[at:end]))
        self.silence = int(told["beat"] * 2500)
        self.spread = int(told["spread"] * 1000)
        self.tries = 0

    # Connects and shakes hands; after it the link is open.
    def dial(self):
        place = socket.getaddrinfo(self.config["host"], self.config["tcp_port"], 0, socket.SOCK_STREAM)[0]
        self.sock = self.io = socket.socket(place[0], place[1])
        self.poll.register(self.sock, select.POLLIN)
        self.sock.settimeout(_PATIENCE // 1000)
        self.sock.connect(place[-1])
        self.sock.setblocking(False)
        self.port.tune(self.sock)
        self._upgrade()
        self._prove()

    # Full jitter: a random part of a span that doubles up to the spread.
    def pause(self):
        span = max(1, self.spread >> max(0, 2 - self.tries))
        self.tries += 1
        return int.from_bytes(os.urandom(4), "big") % span


# Reads the settings and serves for ever.
def start():
    from cm.run import Board

    with open("/cm.json") as file:
        board = Board(json.load(file))
    while True:
        try:
            board.dial()
            board.serve()
        except Exception as e:  # no link error may end the client; the server sees it redial
            board.drop()
            import sys; sys.print_exception(e)
            del e
        gc.collect()
        board.rest(board.pause())
