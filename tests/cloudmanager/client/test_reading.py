"""A thread that waits for a result reads it itself; interrupts and other threads do no harm."""

from __future__ import annotations

import contextlib
import functools
import itertools
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from cloudmanager.client import interruptible, link
from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.interruptible import PostponedInterrupt
from cloudmanager.client.jobs import Job, JobGroup
from cloudmanager.client.link import ServerLink
from cloudmanager.config import ServerAddress
from cloudmanager.protocol import frames, wire

WAIT = 20.0  # seconds that anything here may take on a busy machine
LONG = 60.0  # seconds of a pause that does not end by itself


class Answering:
    """A server for one link: each cell has one board, whose result follows at once.

    Attributes:
        answer: whether a cell's result is sent.
        held: the results that were not sent.
        received: the codes of the cells, and of requests their verbs.
    """

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(WAIT)
        self._socket: socket.socket | None = None
        self._jobs = itertools.count(1)
        self.answer = True
        self.held: list[bytes] = []
        self.received: list[str] = []
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def address(self) -> ServerAddress:
        return ServerAddress(f"http://127.0.0.1:{self._listening.getsockname()[1]}", "cm_x", "url=")

    def _serve(self) -> None:
        with contextlib.suppress(OSError), self._listening.accept()[0] as self._socket:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += self._socket.recv(1)
            key = head.decode().partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
            answer = "HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: "
            self._socket.sendall(f"{answer}{frames.accept_key(key)}\r\n\r\n".encode())
            reader = frames.FrameReader(1 << 20, masked=True)
            while data := self._socket.recv(65536):
                for frame in reader.feed(data):
                    if frame.opcode == frames.BINARY:
                        self._on_message(wire.unpack(frame.payload))

    def _on_message(self, message: wire.Message) -> None:
        if message.op == wire.REQUEST:
            self.received.append(wire.read_json(message.payload)["verb"])
            self.send(wire.pack_json(wire.REPLY, {"reply": 1}, job=message.job))
            return
        _, code = wire.read_submit(message)
        self.received.append(code.decode())
        job = next(self._jobs)
        accepted = {"jobs": [[job, "lab"]], "left_out": [], "queued": []}
        result = wire.pack(wire.RESULT, struct.pack(">H", 0) + b"None", job=job)
        messages = [wire.pack_json(wire.ACCEPTED, accepted, job=message.job)]
        if self.answer:
            messages.append(result)
        else:
            self.held.append(wire.pack_events([result]))
        self.send(wire.pack_events(messages))

    def send(self, message: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(frames.encode_frame(message))

    def send_held(self) -> None:
        for message in self.held:
            self.send(message)
        self.held.clear()

    def hang_up(self) -> None:
        assert self._socket is not None
        self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.close()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(WAIT)


@pytest.fixture
def answering() -> Iterator[Answering]:
    made = Answering()
    yield made
    made.close()


@pytest.fixture
def opened(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerLink]:
    """A link whose own thread pauses: it does not read again by itself."""
    monkeypatch.setattr(link, "PAUSE_SECONDS", LONG)
    made = ServerLink(answering.address)
    await_pause(made)
    yield made
    made.close()


class Recording(JobGroup):
    """A group that records which threads handle its messages."""

    def __init__(self) -> None:
        super().__init__(prepare_cell("1"))
        self.threads: set[int] = set()
        self.on_message: Callable[[], object] = lambda: None

    def handle_message(self, job: Job, message: wire.Message) -> None:
        self.threads.add(threading.get_ident())
        super().handle_message(job, message)
        self.on_message()


def submit(made: ServerLink) -> Recording:
    group = Recording()
    made.exchange.submit(group, "lab")
    return group


def run(made: ServerLink) -> Recording:
    group = submit(made)
    assert group.results(WAIT)["lab"].status == "ok"
    return group


def wait_until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.002)


def await_pause(made: ServerLink) -> None:
    """Run cells until the link's thread leaves reading to others."""

    def runs_in_a_pause() -> bool:
        run(made)
        return made.is_pausing

    wait_until(runs_in_a_pause, "its thread does not pause")


def submit_and_receive(made: ServerLink) -> Recording:
    """Submit a cell in a pause, and wait until its result can be read; nobody has read it yet."""
    group = submit(made)
    wait_until(lambda: made._poll.poll(0), "no result came")
    return group


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act)
    thread.start()
    return thread


def test_thread_that_waits_reads_its_result(opened):
    group = submit_and_receive(opened)
    assert group.results(WAIT)["lab"].status == "ok"
    assert group.threads == {threading.get_ident()}


def test_threads_share_a_link(opened):
    groups: list[Recording] = []
    workers = [in_thread(lambda: groups.extend(run(opened) for _ in range(50))) for _ in range(4)]
    for worker in workers:
        worker.join(WAIT)
    assert len(groups) == 200


def test_result_of_a_thread_that_could_not_read_comes_after_the_other_has_its_own(
    opened, answering
):
    """While one thread reads, another one waits for its lock; then the link's thread reads."""
    first = submit_and_receive(opened)
    answering.answer = False
    second: list[Recording] = []
    worker: list[threading.Thread] = []

    def wait_elsewhere() -> None:  # in the first one's turn
        worker.append(in_thread(lambda: second.append(run(opened))))
        wait_until(lambda: answering.held, "the second cell was not sent")

    first.on_message = wait_elsewhere
    first.results(WAIT)
    answering.send_held()
    worker[0].join(WAIT)
    assert [group.threads for group in second] == [{opened._reader.ident}]


def test_long_cell_is_left_to_the_thread_of_the_link(opened, answering):
    answering.answer = False
    group = submit(opened)
    timer = threading.Timer(3 * link.READ_SECONDS, answering.send_held)
    timer.start()
    assert group.results(WAIT)["lab"].status == "ok"
    timer.join(WAIT)
    assert group.threads == {opened._reader.ident}


def test_request_is_answered_in_a_pause(opened):
    assert opened.exchange.request("status", {}).result() == 1


def test_callback_is_called_in_a_pause(opened, answering):
    ended = threading.Event()
    group = submit(opened)
    group.finished.add_done_callback(ended.set)
    assert ended.wait(WAIT)


def test_events_come_in_a_pause(opened):
    group = JobGroup(prepare_cell("1"), listen=True)
    opened.exchange.submit(group, "lab")
    assert [event.kind for event in group.events()] == ["ended"]


def test_wait_is_not_longer_than_its_timeout(opened, answering):
    answering.answer = False
    group = submit(opened)
    begun = time.monotonic()
    assert not group.wait(5 * link.READ_SECONDS)
    assert 5 * link.READ_SECONDS <= time.monotonic() - begun < WAIT / 2
    answering.send_held()
    assert group.wait(WAIT)


def test_end_of_the_link_is_met_by_the_thread_that_reads(opened, answering, monkeypatch):
    monkeypatch.setattr(link, "READ_SECONDS", WAIT)
    answering.answer = False
    group = submit(opened)
    threading.Timer(0.05, answering.hang_up).start()
    assert group.results(WAIT)["lab"].status == "lost"
    opened._reader.join(WAIT)
    assert opened.closed


def test_link_is_closed_in_a_pause(opened):
    begun = time.monotonic()
    opened.close()
    assert not opened._reader.is_alive()
    assert time.monotonic() - begun < WAIT / 2


def test_link_can_be_closed_by_a_callback_in_the_thread_that_reads(opened):
    group = submit_and_receive(opened)
    group.on_message = opened.close
    begun = time.monotonic()
    group.results(WAIT)
    assert time.monotonic() - begun < link.CONNECT_SECONDS / 2  # it did not wait for itself
    opened._reader.join(WAIT)
    assert opened.closed


# Interrupts


def test_ctrl_c_while_a_message_is_handled_is_raised_after_it(opened):
    group = submit_and_receive(opened)
    after: list[str] = []

    def interrupt() -> None:
        signal.raise_signal(signal.SIGINT)
        after.append("handled")

    group.on_message = interrupt
    with pytest.raises(KeyboardInterrupt):
        group.results(WAIT)
    assert after == ["handled"]
    assert group.finished.done
    run(opened)  # the link goes on
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_while_nothing_comes_interrupts_the_wait(opened, answering):
    answering.answer = False
    group = submit(opened)
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.01, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        group.results(WAIT)
    answering.send_held()
    assert group.wait(WAIT)  # by the link's thread, or by this one
    assert not opened.closed


class Alarm(Exception):
    """What the handler of another signal raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    """Let SIGUSR1 raise ``Alarm``: only Ctrl-C is postponed."""

    def raise_alarm(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, raise_alarm)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("alarm")
def test_other_signal_while_nothing_comes_does_not_end_the_link(opened, answering):
    answering.answer = False
    group = submit(opened)
    main = threading.main_thread().ident
    assert main is not None
    threading.Timer(0.005, lambda: signal.pthread_kill(main, signal.SIGUSR1)).start()
    with pytest.raises(Alarm):
        group.results(WAIT)
    answering.send_held()
    assert group.wait(WAIT)
    assert not opened.closed


@pytest.mark.usefixtures("alarm")
def test_other_signal_while_a_message_is_handled_ends_the_link(opened):
    """A message may be half handled: nothing after it could be trusted."""
    group = submit_and_receive(opened)
    group.on_message = lambda: signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(Alarm):
        group.results(WAIT)
    opened._reader.join(WAIT)
    assert opened.closed


@pytest.fixture
def on_signal() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Return a function that sets what SIGUSR1 does."""
    before = signal.getsignal(signal.SIGUSR1)

    def set_action(act: Callable[[], object]) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: act())

    yield set_action
    signal.signal(signal.SIGUSR1, before)


def test_handler_of_another_signal_runs_a_cell(opened, answering, on_signal, monkeypatch):
    """Such as one that leaves a board in a safe state before the program ends."""
    monkeypatch.setattr(link, "READ_SECONDS", WAIT)
    answering.answer = False
    first = submit(opened)
    others: list[Recording] = []

    def run_another() -> None:
        answering.answer = True
        others.append(run(opened))
        answering.send_held()

    on_signal(run_another)
    main = threading.main_thread().ident
    assert main is not None
    wait_until(lambda: answering.held, "the first cell was not sent")
    timer = threading.Timer(0.05, lambda: signal.pthread_kill(main, signal.SIGUSR1))
    timer.start()
    assert first.results(WAIT)["lab"].status == "ok"
    assert [group.threads for group in others] == [{main}]
    timer.join(WAIT)


def test_handler_that_interrupts_a_message_cannot_wait_for_another(opened, on_signal):
    group = submit_and_receive(opened)
    on_signal(lambda: run(opened))
    group.on_message = lambda: signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(RuntimeError, match="waits for the message that it interrupts"):
        group.results(WAIT)
    opened._reader.join(WAIT)
    assert opened.closed


def test_exception_at_any_place_leaves_the_turn_to_others(answering, monkeypatch):
    """Each wait after it ends: by a result, or since the link has ended."""
    monkeypatch.setattr(link, "PAUSE_SECONDS", 1.0)  # the longest wait after a missed ``read_on``
    modules = {link.__file__, interruptible.__file__}
    servers = [answering]
    before = signal.getsignal(signal.SIGINT)
    made = ServerLink(answering.address)
    try:
        step = 0
        while True:
            await_pause(made)
            group = submit(made)
            is_raised = raised_at(step, modules, functools.partial(group.wait, WAIT))
            assert group.wait(WAIT)
            signal.signal(signal.SIGINT, before)  # an exception may have left ours behind
            if made._is_handling:  # a message was not handled, or halfway
                made._reader.join(WAIT)
                assert made.closed
                made.close()
                servers.append(Answering())
                made = ServerLink(servers[-1].address)
            if is_raised:
                step += 1
            elif group.threads == {threading.get_ident()}:  # else the pause was over before
                break
        assert step > 10
        assert 1 < len(servers) < step
    finally:
        made.close()
        for server in servers:
            server.close()


def raised_at(step: int, modules: set[str], act: Callable[[], object]) -> bool:
    """Call a function and raise Alarm at one place; return False if it ended before."""
    places = itertools.count()

    def is_ours(frame: FrameType | None) -> bool:
        return frame is not None and frame.f_code.co_filename in modules

    def profile(frame: FrameType, event: str, _: Any) -> None:
        here = is_ours(frame) and event in ("call", "return", "c_return")
        after_call = event == "return" and is_ours(frame.f_back)
        if (here or after_call) and next(places) == step:
            sys.setprofile(None)
            raise Alarm

    try:
        sys.setprofile(profile)
        act()
    except Alarm:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_interrupt_is_postponed_in_the_main_thread():
    reached: list[str] = []

    def interrupt() -> None:
        with PostponedInterrupt():
            signal.raise_signal(signal.SIGINT)
            reached.append("end")

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert reached == ["end"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("handler", [signal.SIG_IGN, signal.SIG_DFL])
def test_handler_that_is_not_of_python_stays(handler):
    before = signal.signal(signal.SIGINT, handler)
    try:
        with PostponedInterrupt():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_own_handler_of_a_program_gets_the_postponed_interrupt():
    numbers: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: numbers.append(number))
    try:
        with PostponedInterrupt():
            signal.raise_signal(signal.SIGINT)
            assert numbers == []
        assert numbers == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_handler_that_was_left_behind_passes_ctrl_c_on(monkeypatch):
    """Another signal's handler can raise an exception before the context has begun."""
    monkeypatch.setattr(interruptible, "MAX_POSTPONED_SECONDS", -1.0)
    postponed = PostponedInterrupt()
    with pytest.raises(KeyboardInterrupt), postponed:
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
