"""A small strict server for boards (docs/protocol.md), written with the `websockets` library.

It runs in a thread of its own, so that tests are plain functions which block.
"""

import asyncio
import hashlib
import hmac
import json
import os
import struct
import threading
import time
from dataclasses import dataclass, field

from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed

WAIT = 60  # seconds that anything here may take on a busy machine

HELLO, CHALLENGE, PROOF, WELCOME = 1, 2, 3, 4
EXEC, MORE, INTERRUPT, ANSWER, RESET = 0x10, 0x11, 0x12, 0x13, 0x14
FILE, DATA = 0x16, 0x17
OUTPUT, VALUE, RESULT, INPUT, CHUNK = 0x20, 0x21, 0x22, 0x23, 0x24
EMIT, PROGRAM, FACTS, LOG = 0x26, 0x27, 0x28, 0x29
SLEEP, SLEEP_REPLY, STAY_AWAKE = 0x2B, 0x19, 1
TIME, TIME_REPLY, LATENESS, AT_TIME, RUN_LATE = 0x2A, 0x18, 0x2E, 4, 8
OK, ERROR, INTERRUPTED, TIMEOUT, RUNNING = range(5)


def message(op, job, payload=b"", flags=0):
    return struct.pack(">BB4s", op, flags, job) + payload


@dataclass(repr=False)
class Job:
    """What a board has sent for one cell so far."""

    number: bytes
    output: bytearray = field(default_factory=bytearray)
    value: bytearray = field(default_factory=bytearray)
    error: str = ""
    status: int | None = None
    cut: bool = False
    messages: int = 0
    prompts: list[str] = field(default_factory=list)
    lateness: tuple[int, int] | None = None  # µs after its time, µs of error
    chunks: list[tuple[int, bytes]] = field(default_factory=list)  # flags and bytes of files
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __repr__(self):
        output = bytes(self.output[-80:])
        return f"Job(status={self.status}, output={output!r}, error={self.error[-300:]!r})"

    def until(self, true, timeout=WAIT):
        with self.changed:
            assert self.changed.wait_for(lambda: true(self), timeout), self
        return self

    def wait(self, timeout=WAIT):
        return self.until(lambda job: job.status is not None, timeout)


class Link:
    """The link of an authenticated board."""

    def __init__(self, peer, socket, name, proof_fields):
        self.peer, self.socket, self.name, self.proof_fields = peer, socket, name, proof_fields
        self.jobs = {}
        self.samples = []  # (ticks in ms, how many were lost before it, values)
        self.facts = []  # (free heap in bytes, RSSI in dBm)
        self.clocks = []  # (µs ahead, µs of error, drift in parts in 10**9)
        self.times = 0  # how often it has asked for the time
        self.programs = []  # what it said of its own program
        self.log = bytearray()  # what it has printed outside of cells
        self.log_lost = 0  # bytes of that which were lost
        self.sleeps = []  # (ms until it connects again, ms for which it was awake)
        self.closed = threading.Event()

    def send(self, data):
        self.peer.call(self.socket.send(data))

    def files(self, *acts, step=16384, **more):
        """Start a job with file operations."""
        return self.submit(json.dumps([step, acts]), op=FILE, **more)

    def data(self, job, data, flags=0):
        self.send(message(DATA, job.number, data, flags))

    def put(self, job, data, at=0):
        """Send a file's bytes from an offset on, without waiting for acknowledgements."""
        step = self.proof_fields["buf"] - 6
        for start in range(at, len(data) or 1, step):
            self.data(job, data[start : start + step], int(start == 0))

    def submit(self, code, timeout_ms=0, awaits=False, number=None, op=EXEC, at=None, late=False):
        """Start a cell; `at`: ns by the peer's clock at which it starts."""
        code = code.encode() if isinstance(code, str) else code
        flags = int(awaits)
        if at is not None:
            code += b"\n#%016d" % (at // 1000)
            flags |= AT_TIME | RUN_LATE * late
        job = Job(number or os.urandom(4))
        self.jobs[job.number] = job
        room = self.proof_fields["buf"] - 14
        head = struct.pack(">II", timeout_ms, len(code))
        self.send(message(op, job.number, head + code[:room], flags))
        room += 8
        for at in range(room - 8, len(code), room):
            self.send(message(MORE, job.number, code[at : at + room]))
        return job

    def run(self, code, timeout=WAIT, **more):
        return self.submit(code, **more).wait(timeout)

    def interrupt(self, job):
        self.send(message(INTERRUPT, job.number))

    def answer(self, job, text, flags=0):
        self.send(message(ANSWER, job.number, text.encode(), flags))

    def program(self, *wanted, timeout=WAIT):
        """Wait until the board has reported this state of its program: (flags, text)."""
        self.peer.until(lambda _: wanted in self.programs, timeout)

    def logged(self, text, timeout=WAIT):
        """Wait until the board's log contains a text."""
        self.peer.until(lambda _: text in self.log, timeout)

    def stop(self):
        """Interrupt the board's program."""
        self.send(message(INTERRUPT, bytes(4)))

    def reset(self):
        self.send(message(RESET, os.urandom(4)))  # the number of the job that waits for it

    def raw(self, data):
        """Send bytes past the library, as they are."""
        self.peer.loop.call_soon_threadsafe(self.socket.transport.write, data)

    def ping(self, data=None):
        """Send a ping; return the seconds until its answer."""

        async def there_and_back():
            return await (await self.socket.ping(data))

        return self.peer.call(there_and_back())

    def cut(self):
        """Break the TCP connection without a close frame."""
        self.peer.loop.call_soon_threadsafe(self.socket.transport.abort)

    def close(self, code=1001):
        self.peer.call(self.socket.close(code))

    async def listen(self):
        try:
            async for data in self.socket:
                self.take(data)
        except ConnectionClosed:
            pass
        self.closed.set()
        with self.peer.changed:
            if self.peer.links.get(self.name) is self:
                del self.peer.links[self.name]

    def take(self, data):
        assert isinstance(data, bytes), "only binary messages"
        op, flags, number = struct.unpack_from(">BB4s", data)
        if op == EMIT:
            with self.peer.changed:
                (ticks,) = struct.unpack_from(">Q", data, 6)
                self.samples.append((ticks, flags, json.loads(data[14:])))
                self.peer.samples += self.samples[-1:]
                self.peer.changed.notify_all()
            return
        if op == FACTS:
            with self.peer.changed:
                self.facts.append(struct.unpack_from(">Ib", data, 6))
                if len(data) > 11:
                    self.clocks.append(struct.unpack(">iIi", data[11:]))
                self.peer.changed.notify_all()
            return
        if op == TIME:
            with self.peer.changed:
                self.times += 1
                self.peer.changed.notify_all()
            assert len(data) == 10
            if self.peer.answers_time:
                reply = message(
                    TIME_REPLY, bytes(4), data[6:] + struct.pack(">Q", self.peer.clock() // 1000)
                )
                self.peer.loop.create_task(self.socket.send(reply))
            return
        if op == SLEEP:
            with self.peer.changed:
                self.sleeps.append(struct.unpack(">II", data[6:]))
                self.peer.sleeps += self.sleeps[-1:]
                self.peer.changed.notify_all()
            reply = self.peer.sleep_reply(self)
            if reply is not None:
                self.peer.loop.create_task(self.socket.send(reply))
            return
        if op == LOG:
            with self.peer.changed:
                self.log_lost += struct.unpack_from(">I", data, 6)[0]
                self.log += data[10:]
                self.peer.changed.notify_all()
            return
        if number == bytes(4):  # the board's own program
            if op == PROGRAM:
                with self.peer.changed:
                    self.programs.append((flags, data[6:].decode()))
                    self.peer.changed.notify_all()
            return
        job, payload = self.jobs[number], data[6:]
        with job.changed:
            job.messages += 1
            if op == OUTPUT:
                job.output += payload
            elif op == VALUE:
                job.value += payload
            elif op == CHUNK:
                job.chunks.append((flags, payload))
            elif op == INPUT:
                job.prompts.append(payload.decode())
            elif op == LATENESS:
                job.lateness = struct.unpack(">iI", payload)
            elif op == RESULT:
                (n,) = struct.unpack_from(">H", payload)
                job.output += payload[2 : 2 + n]
                if flags & 15 == OK:
                    job.value += payload[2 + n :]
                else:
                    job.value, job.error = bytearray(), payload[2 + n :].decode()
                job.cut = bool(flags & 16)
                job.status = flags & 15
            else:
                raise AssertionError(op)
            job.changed.notify_all()


class Peer:
    """The server: authenticates boards by their keys and keeps the newest link of each.

    Args:
        keys: id -> key.
        beat: seconds between pings, as WELCOME states it.
        spread: seconds over which boards reconnect.
        lie: send a wrong proof.
        tls: an SSL context.
    """

    def __init__(self, keys, *, beat=15.0, spread=2.0, lie=False, tls=None):
        self.clock = time.time_ns
        self.answers_time = True
        self.keys, self.beat, self.spread, self.lie = keys, beat, spread, lie
        self.tls = tls
        self.links, self.seen, self.refused = {}, [], []
        self.sleeps, self.samples = [], []  # those of all links
        self.sleep_reply = lambda link: message(SLEEP_REPLY, bytes(4))  # None: no answer
        #: Called with what a board that woke has sent behind PROOF, up to SLEEP, before WELCOME;
        #: returns whether it is welcome. None: WELCOME is sent at once.
        self.before_welcome = None
        self.rejections = 0  # how many of the next attempts to connect are refused
        #: Called before CHALLENGE; returns whether to send it, rather than close the link.
        self.before_challenge = None
        self.changed = threading.Condition()
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.tcp_port = 0
        self.open()

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def open(self):
        async def start():
            return await serve(
                self.meet,
                "127.0.0.1",
                self.tcp_port,
                compression=None,
                max_size=65536,
                ping_interval=None,
                ssl=self.tls,
            )

        self.server = self.call(start())
        self.tcp_port = self.server.sockets[0].getsockname()[1]

    def shut(self):
        """Close the listening socket and all links, as a server that is stopped."""

        async def end():
            self.server.close()
            await self.server.wait_closed()

        self.call(end())
        with self.changed:
            self.links.clear()

    def stop(self):
        self.shut()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def meet(self, socket):
        if self.rejections:
            self.rejections -= 1
            await socket.close(1001)
            return
        try:
            link = await self.prove(socket)
        except ConnectionClosed as error:
            link = None
            with self.changed:
                self.refused.append(error.rcvd.code if error.rcvd else 1006)
                self.changed.notify_all()
        if link:
            await link.listen()

    async def prove(self, socket):
        assert socket.request.path == "/board"
        hello = await socket.recv()
        assert hello[:6] == message(HELLO, bytes(4))
        said = json.loads(hello[6:])
        if self.before_challenge and not self.before_challenge():
            await socket.close(1001)
            return None
        key, name = self.keys[said["id"]], said["id"].encode()
        ours, theirs = os.urandom(16), bytes.fromhex(said["nonce"])
        assert said["v"] == 1
        assert len(theirs) == 16

        def proof(who, text):
            data = b"cm1 " + who + theirs + ours + name + text
            return hmac.new(key, data, hashlib.sha256).digest()

        mac = os.urandom(32) if self.lie else proof(b"server", b'{"v":1}')
        await socket.send(message(CHALLENGE, bytes(4), ours + mac + b'{"v":1}'))
        reply = await socket.recv()
        assert reply[0] == PROOF
        if not hmac.compare_digest(reply[6:38], proof(b"board", reply[38:])):
            await socket.close(4001)
            return None
        link = Link(self, socket, said["id"], json.loads(reply[38:]))
        early = []
        if self.before_welcome and "wake" in link.proof_fields:
            while not early or early[-1][0] != SLEEP:
                early.append(await socket.recv())
            if not self.before_welcome(early):
                await socket.close(1001)
                return None
        welcome = {"name": said["id"], "beat": self.beat, "spread": self.spread}
        welcome["time"] = self.clock() // 1_000_000
        await socket.send(message(WELCOME, bytes(4), json.dumps(welcome).encode()))
        with self.changed:
            self.links[said["id"]] = link
            self.seen.append(said["id"])
            self.changed.notify_all()
        for data in early:
            link.take(data)
        return link

    def until(self, true, timeout=WAIT):
        with self.changed:
            assert self.changed.wait_for(lambda: true(self), timeout)

    def link(self, name, after=None, timeout=WAIT):
        """Wait for a link of a board that is newer than `after`, and return it."""
        self.until(lambda peer: peer.links.get(name, after) is not after, timeout)
        return self.links[name]
