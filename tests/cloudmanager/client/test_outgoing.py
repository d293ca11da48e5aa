"""Frames are sent completely, or nothing is sent after them; with real sockets and signals."""

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from cloudmanager.client import link as link_module
from cloudmanager.client.async_fleet import AsyncFleet
from cloudmanager.client.fleet import Fleet
from cloudmanager.client.outgoing import Outgoing
from cloudmanager.protocol import frames
from cloudmanager.protocol.errors import CloudmanagerError, ServerUnreachable
from cm_server.net import certificates
from tests.conftest import running_boards, running_server

WAIT = 60.0  # seconds that anything here may take on a busy machine
BIG = 3_000_000  # bytes: more than the sockets' buffers hold (see Lab.shrink_send_buffer)
LONG = f"x = 1\n#{'a' * BIG}"  # a cell that stands still on its way to a server that does not read


@pytest.fixture
def pair():
    """Two connected sockets with small buffers."""
    ours, theirs = socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    theirs.settimeout(WAIT)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def outgoing(pair):
    made = Outgoing(pair[0])
    made.start()
    yield made
    made.stop()
    made._thread.join(WAIT)
    assert not made._thread.is_alive()


def frame(char, size):
    return frames.encode_frame(char * size)


def read_to_end(sock):
    data = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := sock.recv(65536):
            data += piece
    return bytes(data)


def whole_frames(data):
    """Return the payloads of a stream, which must end between two frames."""
    reader = frames.FrameReader(1 << 30, masked=False)
    found = [each.payload for each in reader.feed(data)]
    assert b"".join(frames.encode_frame(each) for each in found) == data
    return found


# Without a link


def test_send_does_not_wait_for_a_server_that_does_not_read(outgoing):
    begun = time.monotonic()
    sent = [outgoing.send(frame(b"a", 1_000_000)) for _ in range(5)]
    assert time.monotonic() - begun < WAIT
    assert [each.begun for each in sent] == [True, False, False, False, False]
    assert not any(each.complete for each in sent)


def test_concurrent_sends_do_not_mix_frames(pair, outgoing):
    def send(number):
        for size in range(1, 60_000, 4_000):
            outgoing.send(frame(b"%d" % number, size))

    def send_all():
        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT)
        outgoing.close()

    sending = threading.Thread(target=send_all)
    sending.start()
    payloads = whole_frames(read_to_end(pair[1]))
    sending.join(WAIT)
    assert all(len(set(payload)) == 1 for payload in payloads)
    for number in range(4):
        mine = [len(payload) for payload in payloads if payload[:1] == b"%d" % number]
        assert mine == list(range(1, 60_000, 4_000))


def test_only_the_withdrawn_frame_is_not_sent(pair, outgoing):
    first = outgoing.send(frame(b"a", 300_000))
    second, third = outgoing.send(frame(b"b", 300_000)), outgoing.send(frame(b"c", 300_000))
    assert second.withdraw()
    ending = threading.Thread(target=outgoing.close)
    ending.start()
    payloads = whole_frames(read_to_end(pair[1]))
    ending.join(WAIT)
    assert [payload[:1] for payload in payloads] == [b"a", b"c"]
    assert (first.complete, second.complete, third.complete) == (True, False, True)


def test_nothing_follows_a_partial_frame(pair, outgoing):
    first = outgoing.send(frame(b"a", 300_000))
    second = outgoing.send(frame(b"b", 10))
    assert first.withdraw()
    third = outgoing.send(frame(b"c", 10))
    got = read_to_end(pair[1])
    assert outgoing.closed
    assert len(got) < 300_000
    assert frame(b"a", 300_000).startswith(got)
    assert not any(each.complete for each in (first, second, third))


def test_sent_frame_cannot_be_withdrawn(pair, outgoing):
    sent = outgoing.send(frame(b"a", 10))
    assert not sent.withdraw()
    assert not outgoing.closed
    assert pair[1].recv(100) == frame(b"a", 10)


def test_end_of_tls_is_no_error_of_send_but_ends_the_stream(pair, outgoing):
    """The server may end TLS between two cells; the reading thread reports that."""

    def ended(_data: object) -> bytes:
        raise ssl.SSLEOFError

    outgoing._encrypt = ended
    sent = outgoing.send(frame(b"a", 100))
    assert read_to_end(pair[1]) == b""
    assert not sent.complete
    assert outgoing.closed


def test_memory_error_ends_the_stream(pair, outgoing):
    def encrypt(_):
        raise MemoryError

    outgoing._encrypt = encrypt
    with pytest.raises(MemoryError):
        outgoing.send(frame(b"a", 10))
    outgoing._encrypt = None
    assert not outgoing.send(frame(b"b", 10)).complete
    assert read_to_end(pair[1]) == b""


#: Sends frames while SIGINT comes at many instants; says what arrived (in the child, as JSON).
_STORM = """
import gc, json, os, random, signal, socket, ssl, sys, threading, time
from cloudmanager.client import tls
from cloudmanager.protocol import frames
from cloudmanager.client.outgoing import Outgoing

seconds, seed, folder = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
Raised = KeyboardInterrupt if sys.argv[4] == "twice" else TimeoutError  # an OSError
choose = random.Random(seed)
counts = {"interrupts": 0, "streams": 0, "cuts": 0, "frames": 0, "foreign": 0}
counts |= {"missing": 0, "caught": 0}
arrived = set()

def payload(number):
    size = random.Random(f"{seed} {number}").choice((10,) * 40 + (500,) * 40 + (20_000, 200_000))
    return b"%08d" % number + bytes([number % 251]) * size

def read(sock):
    reader, last = frames.FrameReader(1 << 30, masked=False), -1
    slow = random.Random(seed)
    try:
        while data := sock.recv(slow.choice((100, 5_000, 65536))):
            for each in reader.feed(data):
                number = int(each.payload[:8])
                counts["foreign"] += each.payload != payload(number) or number <= last
                counts["frames"] += 1
                last = number
                arrived.add(number)
            if slow.random() < 0.02:
                time.sleep(0.001)
    except ssl.SSLEOFError:
        pass
    except (ValueError, ConnectionError):
        counts["foreign"] += not isinstance(sys.exc_info()[1], ConnectionError)

def connect():
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    if not folder:
        reader = threading.Thread(target=read, args=(theirs,))
        reader.start()
        return started(Outgoing(ours)), reader
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder + "/server.pem")
    def serve():
        with context.wrap_socket(theirs, server_side=True) as sock:
            read(sock)
    reader = threading.Thread(target=serve)
    reader.start()
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
    return started(Outgoing(tls.TlsSocket(ours, trust, "cloudmanager"))), reader

def started(outgoing):
    outgoing.start()
    return outgoing

def on_interrupt(*_):
    global armed
    if armed:  # it may come twice, the second time while the first is handled
        armed -= 1
        counts["interrupts"] += 1
        raise Raised

def send_some(outgoing):
    global armed, number
    try:
        try:
            armed = choose.choice((1, 1, 1, 2)) if Raised is KeyboardInterrupt else 1
            while not outgoing.closed and time.monotonic() < until:
                if outgoing._queued_count < 20:
                    number += 1
                    sent[number] = outgoing.send(frames.encode_frame(payload(number)))
                else:
                    time.sleep(0.0005)
        except Raised:
            counts["caught"] += 1
        armed = 0
    except Raised:
        counts["caught"] += 1

armed, number = 0, 0
gc.disable()  # Python drops what a handler raises in a callback of its garbage collector
signal.signal(signal.SIGINT, on_interrupt)
until = time.monotonic() + seconds
print("ready", flush=True)
while time.monotonic() < until:
    outgoing, reader = connect()
    counts["streams"] += 1
    sent = {}
    gc.collect()
    while time.monotonic() < until and not outgoing.closed:
        send_some(outgoing)
    counts["cuts"] += bool(outgoing.why)
    outgoing.close()
    reader.join()
    counts["missing"] += sum(each.complete and key not in arrived for key, each in sent.items())
print(json.dumps(counts), flush=True)
os._exit(0)  # while it ends in the usual way, SIGINT kills it
"""


def storm(seconds, seed, folder="", raised="twice"):
    """Run a process that sends frames, and send SIGINT to it at random instants."""
    command = [sys.executable, "-c", _STORM, str(seconds), str(seed), str(folder), raised]
    choose = random.Random(seed)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n"
            while child.poll() is None:
                time.sleep(choose.uniform(0, 0.004))
                child.send_signal(signal.SIGINT)
            assert child.returncode == 0
            return json.loads(child.stdout.read())
        finally:
            child.kill()


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.soak) for n in range(20))])
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_interrupts_at_any_instant_mix_no_frames(tmp_path, secure, seed):
    if secure:
        certificates.load(tmp_path)
    counts = storm(0.5, seed, tmp_path if secure else "")
    assert counts["foreign"] == counts["missing"] == 0
    assert counts["interrupts"] > 20
    assert counts["frames"] > 50


def test_exception_of_a_signal_handler_is_raised_and_mixes_no_frames():
    """An OSError of the handler, such as a TimeoutError, is not taken for one of the socket."""
    counts = storm(0.5, 1, raised="once")
    assert counts["foreign"] == counts["missing"] == 0
    assert counts["caught"] == counts["interrupts"] > 20


# Over a link


class Proxy:
    """A proxy between callers and a server; the direction to the server can be stopped."""

    def __init__(self, tcp_port):
        self.open = threading.Event()
        self.open.set()
        self._target = tcp_port
        self._listening = socket.socket()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._listening.bind(("127.0.0.1", 0))
        self._listening.listen()
        self.tcp_port = self._listening.getsockname()[1]
        self._threads, self._sockets = [], [self._listening]
        self._start(self._accept)

    def _start(self, act, *args):
        thread = threading.Thread(target=act, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near = self._listening.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._target), WAIT)
                self._sockets += near, far
                self._start(self._pass, near, far, self.open)
                self._start(self._pass, far, near, None)

    def _pass(self, source, sink, gate):
        with contextlib.suppress(OSError):
            while (gate is None or gate.wait(WAIT)) and (data := source.recv(65536)):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self):
        self.open.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(WAIT)
        for sock in self._sockets:
            sock.close()


class Lab:
    """A server with two boards, a proxy before it, and a caller that uses the proxy."""

    def __init__(self, server, token):
        self.proxy = Proxy(server.tcp_port)
        self.token = token
        scheme = server.url.partition(":")[0]
        self.url = f"{scheme}://127.0.0.1:{self.proxy.tcp_port}"
        self.fleet = Fleet(self.url, token)

    def jobs(self, board):
        """Return the numbers of all jobs of the board so far."""
        return {job["job"] for job in self.fleet.jobs(board)}

    def shrink_send_buffer(self, fleet: Any = None) -> Any:
        """Make the caller's send buffer small; return the link."""
        link: Any = (fleet or self.fleet)._holder.link
        sock: Any = getattr(link._socket, "_sock", link._socket)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        return link


@pytest.fixture(scope="module", params=["plain", "tls"])
def lab(request, tmp_path_factory):
    home = tmp_path_factory.mktemp("lab")
    listen = ("--listen", "0.0.0.0") if request.param == "tls" else ()
    with running_server(home, *listen) as server:
        pin = f".{certificates.load(home).pin}" if listen else ""
        made = Lab(server, (home / "token").read_text().strip() + pin)
        with made.fleet as fleet, running_boards(server, fleet, ["near", "far"]):
            yield made
        made.proxy.close()


#: For what does not differ much between the two; the soak looks at both.
PLAIN_ONLY = pytest.mark.parametrize(
    "lab", ["plain", pytest.param("tls", marks=pytest.mark.soak)], indirect=True
)


@pytest.fixture
def stopped(lab):
    """Yield a function that stops the proxy; it is opened again after the test."""
    assert lab.fleet["near,far"].run("1").ok
    lab.shrink_send_buffer()
    yield lab.proxy.open.clear
    lab.proxy.open.set()


def interrupt_when(true):
    """Send SIGINT to this process as soon as a condition is true."""

    def watch():
        deadline = time.monotonic() + WAIT
        while not true() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def interrupt_in(lab, act):
    """Call ``act`` and interrupt it while frames are queued."""
    link = lab.fleet._holder.link
    thread = interrupt_when(lambda: link._outgoing.busy)
    with pytest.raises(KeyboardInterrupt):
        act()
    thread.join()


@pytest.mark.parametrize("verb", ["run", "submit"])
def test_interrupted_partly_sent_cell_does_not_run(lab, stopped, verb):
    before = lab.jobs("near")
    link = lab.fleet._holder.link
    stopped()
    begun = time.monotonic()
    interrupt_in(lab, lambda: getattr(lab.fleet["near"], verb)(LONG))
    assert time.monotonic() - begun < WAIT  # it does not wait for the server, which reads nothing
    lab.proxy.open.set()
    link._reader.join(WAIT)
    assert lab.fleet["near"].run("'the next'")["near"].value == "the next"
    assert len(lab.jobs("near") - before) == 1


@PLAIN_ONLY
def test_cell_is_withdrawn_although_its_send_was_interrupted(lab, stopped, monkeypatch):
    """Ctrl-C as soon as the rest of the cell is queued, before ``send`` has returned."""
    before = lab.jobs("near")
    link = lab.fleet._holder.link
    stopped()
    write_now = link._outgoing._write_now

    def write_and_interrupt(frame):
        write_now(frame)
        raise KeyboardInterrupt

    monkeypatch.setattr(link._outgoing, "_write_now", write_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        lab.fleet["near"].submit(LONG)
    monkeypatch.undo()
    lab.proxy.open.set()
    link._reader.join(WAIT)
    assert lab.fleet["near"].run("'the next'")["near"].value == "the next"
    assert len(lab.jobs("near") - before) == 1


@PLAIN_ONLY
def test_other_jobs_have_correct_outcomes_after_an_interrupt(lab, stopped):
    """A running job is lost here, but recorded by the server; a queued cell was not sent."""
    running = lab.fleet["far"].submit("import time\ntime.sleep(0.5)\n'ran'")
    job = running.jobs["far"].number
    before = lab.jobs("near")
    stopped()
    outgoing = lab.fleet._holder.link._outgoing
    failed = []

    def behind():
        try:
            lab.fleet["near"].run("'behind'")
        except CloudmanagerError as error:
            failed.append(error)

    thread = threading.Thread(target=behind)

    def cell_waits_behind():
        if outgoing.busy and not thread.ident:
            thread.start()
        return outgoing._queued_count == 2

    watching = interrupt_when(cell_waits_behind)
    with pytest.raises(KeyboardInterrupt):
        lab.fleet["near"].run(LONG)
    watching.join()
    thread.join(WAIT)
    lab.proxy.open.set()
    (error,) = failed
    assert isinstance(error, ServerUnreachable)
    assert "interrupted, and the cell was not sent: it does not run" in str(error)
    (lost,) = running.results(WAIT).values()
    assert (lost.status, "the server records its outcome" in lost.why) == ("lost", True)
    assert lab.jobs("near") == before
    deadline = time.monotonic() + WAIT
    while (record := lab.fleet.job(job))["status"] is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert record["status"] == "ok"


def test_interrupted_upload_does_not_affect_jobs(lab, stopped):
    """Pieces of files are not cells: one that was begun is sent completely, and the link stays."""
    running = lab.fleet["far"].submit("import time\ntime.sleep(0.3)\n'ran'")
    link = lab.fleet._holder.link
    real = link.exchange.send_content
    pieces: list[bytes] = []

    def send_content(upload, piece):
        if not pieces:
            stopped()
        pieces.append(piece)
        return real(upload, piece)

    link.exchange.send_content = send_content
    interrupt_in(lab, lambda: lab.fleet["near"].put(os.urandom(BIG), ":x"))
    lab.proxy.open.set()
    assert running.results(WAIT)["far"].value == "ran"
    assert lab.fleet["near"].run("1 + 1")["near"].value == 2
    assert lab.fleet._holder.link is link


async def test_cancelled_partly_sent_cell_does_not_run(lab):
    async with AsyncFleet(lab.url, lab.token) as fleet:
        assert (await fleet["near"].run("1"))["near"].value == 1
        before = lab.jobs("near")
        lab.shrink_send_buffer(fleet)
        lab.proxy.open.clear()
        try:
            begun = time.monotonic()
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(fleet["near"].run(LONG), 0.3)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(fleet["near"].submit(LONG), 0.01)
            assert time.monotonic() - begun < WAIT
        finally:
            lab.proxy.open.set()
        assert (await fleet["near"].run("'the next'"))["near"].value == "the next"
        assert len(lab.jobs("near") - before) == 1


@PLAIN_ONLY
def test_server_that_stops_reading_is_disconnected(lab, stopped, monkeypatch):
    """A frame that makes no progress ends the link without an interrupt, too."""
    monkeypatch.setattr(link_module, "HEARTBEAT_SECONDS", 0.3)
    with Fleet(lab.url, lab.token) as fleet:
        fleet.status()
        lab.shrink_send_buffer(fleet)
        stopped()
        with pytest.raises(ServerUnreachable, match="no answer in time, and the cell was not sent"):
            fleet["near"].run(LONG)


#: Runs cells while SIGINT comes at many instants; says which were counts to have run, as JSON.
_CELLS = """
import json, os, signal, sys
from cloudmanager import Fleet

def on_interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt

signal.signal(signal.SIGINT, on_interrupt)
fleet = Fleet(sys.argv[1], sys.argv[2])
armed, ran, wrong, interrupts = False, [], 0, 0
fleet["near"].run("done = []")
print("ready", flush=True)
for number in range(int(sys.argv[3])):
    try:
        armed = True
        result = fleet["near"].run(f"done.append({number})\\n{number}")["near"]
        armed = False
        wrong += result.value != number
        ran.append(number)
    except KeyboardInterrupt:
        interrupts += 1
done = fleet["near"].run("done")["near"].value
print(json.dumps([ran, done, wrong, interrupts]), flush=True)
os._exit(0)
"""


@PLAIN_ONLY
@pytest.mark.parametrize("count", [30, pytest.param(3_000, marks=pytest.mark.soak)])
def test_cells_run_at_most_once_whenever_they_are_interrupted(lab, count):
    choose = random.Random(count)
    command = [sys.executable, "-c", _CELLS, lab.url, lab.token, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            assert child.stdout.readline() == "ready\n"
            while child.poll() is None:
                time.sleep(choose.uniform(0, 0.004))
                child.send_signal(signal.SIGINT)
            ran, done, wrong, interrupts = json.loads(child.stdout.read())
        finally:
            child.kill()
    assert wrong == 0
    assert interrupts > count // 10
    assert done == sorted(set(done))
    assert set(ran) <= set(done)
