"""A caller's link to the server: a socket and the thread that reads from it.

Frames are sent through ``Outgoing``; received bytes are passed to ``Exchange``, which implements
the protocol.

A thread that waits for the result of a cell reads it itself, where nobody else waits for the
server: two switches between threads take as long as the rest of what a caller does for a short
cell. So the link's own thread pauses after such a result, and reads again as soon as somebody waits
who cannot read, or nobody has read for ``PAUSE_SECONDS``.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import struct
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, Final

from cloudmanager import config
from cloudmanager.config import DEFAULT_TCP_PORT, ServerAddress
from cloudmanager.protocol.errors import ServerUnreachable

from . import forks
from .connecting import open_connection
from .exchange import Exchange
from .interruptible import PostponedInterrupt
from .outgoing import DO_NOT_WAIT, Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .future import Future
    from .tls import TlsSocket

CONNECT_SECONDS: Final = 10.0  # to connect and complete the handshake
#: A server whose machine lost its power is noticed within a minute (seconds, seconds, probes).
TCP_KEEPALIVE: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
#: After this time without data a ping is sent; after the same time again the link is lost. TCP
#: does not notice a middlebox that silently drops packets.
HEARTBEAT_SECONDS: Final = 15.0
#: Raised by recv after SO_RCVTIMEO.
RECEIVE_TIMEOUT_ERROR: Final = TimeoutError if sys.platform == "win32" else BlockingIOError
#: How long the link's thread leaves reading to threads that wait, after the last one has read.
PAUSE_SECONDS: Final = 0.02
#: How long a thread reads that waits: most cells are short. Ctrl-C is postponed meanwhile.
READ_SECONDS: Final = 0.02
#: Appends what a call returns, with one bytecode: a signal handler cannot run between the two.
_record: Final = list[bool].extend
READ_BYTES: Final = 64 * 1024  # larger buffers would be allocated with mmap for each read


class ServerLink:
    """One open WebSocket to the server; for use from any thread.

    Args:
        address: the server, and the caller's token.
        on_open: called with the open link before the constructor returns. Ctrl-C can come between
            that return and an assignment of its result, and would leave a link without an owner.

    Attributes:
        exchange: the protocol.
        forked: whether the link belongs to the parent of this process.
        is_pausing: whether the link's thread leaves reading to threads that wait for a result.

    Raises:
        ServerUnreachable: no answer, or not from a Cloudmanager server.
        NotAllowed: the server does not accept the token.
        VersionMismatch: the server uses another version of the protocol.
    """

    def __init__(
        self, address: ServerAddress, on_open: Callable[[ServerLink], object] | None = None
    ) -> None:
        try:
            self._socket, host = _open_socket(address)
        except (OSError, ValueError) as error:
            reason, hint = _failure_reason(error), _failure_hint(error)
            raise ServerUnreachable(address.url, address.source, reason, hint) from error
        self._outgoing = Outgoing(self._socket)
        self.exchange = Exchange(address, host, self._outgoing.send)
        self.exchange.on_watch_deleted = self._close_if_unused
        self.forked = self.is_pausing = False
        self._closes_when_unused = False
        self._turn = threading.Lock()  # held by the thread that reads
        self._reads_on = threading.Lock()  # released to end a pause of the link's thread
        self._reads_on.acquire()
        self._is_wanted = False  # whether a thread would have read that had to wait
        self._reads_of_others = 0
        self._other_reader = 0  # the number of the other thread that reads
        self._is_handling = False  # whether it has bytes that are not handled
        self._failure = ""  # why it could not read
        if DO_NOT_WAIT and hasattr(select, "poll"):  # not on Windows
            self._poll = select.poll()
            self._poll.register(self._socket.fileno(), select.POLLIN)
            self.exchange.source = self
        self._reader = threading.Thread(target=self._read_loop, name="cloudmanager", daemon=True)
        forks.notify_in_child(self)
        try:
            self._outgoing.start()
            self._outgoing.send(self.exchange.handshake_request())
            self._reader.start()
            self.exchange.opened.result()
            if on_open is not None:
                on_open(self)
        except BaseException:  # such as Ctrl-C: the caller gets no link that it could close
            self._outgoing.stop()
            raise

    @property
    def closed(self) -> bool:
        """Whether the link is lost; it never reconnects, a new one has to be made."""
        return self.exchange.closed or self._outgoing.closed

    def close(self) -> None:
        """Close the link and wait for its thread; running jobs continue on the boards."""
        self._outgoing.close()
        self.read_on()
        reading = (self._reader.ident, self._other_reader)
        if threading.get_ident() not in reading:
            self._reader.join(CONNECT_SECONDS)

    def close_when_unused(self) -> None:
        """Close the link, now or as soon as nobody waits for the server any more.

        Called when the Fleet of the link was deleted, by the garbage collector. It may interrupt
        any thread at any place, also one that holds a lock of this link: so none is acquired here.
        """
        self._closes_when_unused = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        """End the reading thread if the link is not needed any more; acquires no lock."""
        if self._is_unused():
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _is_unused(self) -> bool:
        """Whether the link's Fleet was deleted, and nobody waits for the server."""
        return self._closes_when_unused and not self.exchange.in_use

    def after_fork_in_child(self) -> None:
        """Leave the link to the parent process: it has the same socket."""
        self.forked = True
        self._turn = threading.Lock()  # another thread may have held it during the fork
        self.exchange.source = None
        self._outgoing.after_fork_in_child()
        self.exchange.after_fork_in_child()
        self._socket.close()  # this process's descriptor; the connection stays open

    def _read_loop(self) -> None:
        reason = "it closed the connection"
        in_handshake = True
        deadline = time.monotonic() + CONNECT_SECONDS
        try:
            while self._read():
                if in_handshake:  # not in __init__: a recv keeps the timeout it began with
                    in_handshake = not self.exchange.opened.done
                    remaining = max(deadline - time.monotonic(), 0.001)
                    self._socket.settimeout(remaining if in_handshake else None)
                if self._is_unused():
                    break
                if self._may_pause():
                    self._pause()
        except OSError as error:
            reason = _failure_reason(error)
        finally:
            self._outgoing.stop()  # first: an incomplete frame can then never become complete
            self.exchange.on_link_lost(self._outgoing.why or self._failure or reason)
            self._socket.close()

    def _read(self) -> bool:
        """Read once, and handle that; return whether the link goes on."""
        with self._turn:
            if self._has_unread_bytes():
                return False
            data = self._receive()
            return bool(data) and self.exchange.handle_data(data)

    # Threads that read while they wait

    def _has_unread_bytes(self) -> bool:
        """Whether a thread was interrupted while it handled a message, or met the link's end."""
        return self._is_handling

    def _may_pause(self) -> bool:
        """Whether a thread that could have read has its result, and nobody waits for the server.

        Not asked while this thread has the turn: one that could not read then waits already.
        """
        if not self._is_wanted or self.exchange.in_use:
            return False
        self._is_wanted = False
        return True

    def _pause(self) -> None:
        """Leave reading to threads that wait, until none has read for a while, or ``read_on``."""
        before, self.is_pausing = -1, True
        while self._reads_of_others != before or self._turn.locked():
            before = self._reads_of_others
            if self._reads_on.acquire(timeout=PAUSE_SECONDS):
                break
        self.is_pausing = False

    def read_on(self) -> None:
        """Let the link's thread read from now on: somebody waits who does not read."""
        with contextlib.suppress(RuntimeError):  # it is released already
            self._reads_on.release()

    def read_until(self, future: Future[Any], seconds: float) -> None:
        """Read in this thread until a future is set, at most for ``READ_SECONDS``.

        If another thread reads already, nothing is done: that one sets the future.

        Args:
            future: set by a message of the server.
            seconds: how long to read at most; -1: no limit of its own.
        """
        if self._turn.locked() or self.forked:
            self._is_wanted = True
            if self._other_reader == threading.get_ident():
                self._read_in_handler(future, seconds)
            return
        limit = READ_SECONDS if seconds < 0 else min(seconds, READ_SECONDS)
        has_turn: list[bool] = []
        try:
            with PostponedInterrupt():
                try:
                    _record(has_turn, map(self._turn.acquire, (False,)))
                    if has_turn[0]:
                        self._read_here(future, time.monotonic() + limit, self._poll)
                finally:  # another signal's handler may have raised an exception: no call before
                    if has_turn and has_turn[0]:
                        self._other_reader = 0
                        self._turn.release()
        finally:  # after the turn: a thread that could not read meanwhile waits for the link's
            if has_turn and has_turn[0] and (self._has_unread_bytes() or self.exchange.in_use):
                self.read_on()
            if self._closes_when_unused:
                self._close_if_unused()

    def _read_in_handler(self, future: Future[Any], seconds: float) -> None:
        """Read in the handler of a signal, which has interrupted this thread while it reads.

        Raises:
            RuntimeError: it has interrupted it within a message; what is raised in the handler ends
                the link.
        """
        if self._is_handling:
            raise RuntimeError("a signal's handler waits for the message that it interrupts")
        poll = select.poll()  # the other one is in use
        poll.register(self._socket.fileno(), select.POLLIN)
        deadline = math.inf if seconds < 0 else time.monotonic() + seconds
        self._read_here(future, deadline, poll)

    def _read_here(self, future: Future[Any], deadline: float, poll: select.poll) -> None:
        """Read until a future is set, or a deadline by ``time.monotonic()``.

        At the end of the link, ``_is_handling`` stays set.
        """
        self._other_reader = threading.get_ident()
        self._reads_of_others += 1
        is_plain = isinstance(self._socket, socket.socket)
        must_wait = is_plain  # TLS may have the next record already
        while not future.done:
            left = None if deadline == math.inf else max(deadline - time.monotonic(), 0) * 1000
            if must_wait and not poll.poll(left):
                return
            must_wait = True
            self._is_handling = True
            try:
                data = self._socket.recv(READ_BYTES, DO_NOT_WAIT)
            except BlockingIOError:  # a part of a record
                self._is_handling = False
                continue
            except OSError as error:
                self._failure = _failure_reason(error)
                return
            if not data or not self.exchange.handle_data(data):
                return
            self._is_handling = False
            must_wait = is_plain

    def _receive(self) -> bytes:
        """Return received bytes, b"" at the end; check a silent server with a ping.

        Raises:
            TimeoutError: the server does not answer, or does not read.
        """
        ping_sent = False
        written = -1
        while True:
            try:
                return self._socket.recv(READ_BYTES)
            except RECEIVE_TIMEOUT_ERROR:
                if self._outgoing.busy:  # a ping would have to wait behind the other frames
                    if self._has_stopped_reading(written):
                        raise TimeoutError from None
                    written = self._outgoing.written
                elif self._has_stopped_answering(ping_sent):
                    raise TimeoutError from None
                else:
                    ping_sent = True
                    self._outgoing.send(self.exchange.ping_frame())

    def _has_stopped_reading(self, written_before: int) -> bool:
        """Whether the server read nothing since ``written_before`` bytes were written."""
        return self._outgoing.written == written_before

    def _has_stopped_answering(self, ping_sent: bool) -> bool:
        """Whether the server has ignored a ping, given that nothing was received."""
        return ping_sent


class LinkHolder:
    """The link of a ``Fleet`` or an ``AsyncFleet``; it is closed when that is deleted.

    Args:
        owner: the fleet.

    Attributes:
        link: the link; None if there is none.
        lock: for threads that connect.
    """

    def __init__(self, owner: object) -> None:
        self.lock = threading.Lock()
        self._owner = weakref.ref(owner)
        self._finalizer: weakref.finalize[..., object] | None = None
        self.link: ServerLink | None = None
        forks.notify_in_child(self)

    def after_fork_in_child(self) -> None:
        """Replace the lock, which another thread may have held during the fork."""
        self.lock = threading.Lock()

    def usable(self) -> ServerLink | None:
        """Return the link; None if there is none, or it is lost.

        Raises:
            CloudmanagerError: it belongs to the parent of this process.
        """
        if self.link is not None and self.link.forked:
            raise forks.forked_error()
        return None if self.link is None or self.link.closed else self.link

    def hold(self, link: ServerLink) -> None:
        """Replace the link; the one before it is closed as soon as nobody uses it."""
        owner = self._owner()
        if owner is None:  # deleted while a thread connected
            link.close_when_unused()
            return
        before = self._finalizer
        self.link = link
        self._finalizer = weakref.finalize(owner, link.close_when_unused)
        self._finalizer.atexit = False  # the process closes its sockets
        if before is not None:
            before()  # not detach(): a close that was interrupted may have left that link open

    def release(self) -> ServerLink | None:
        """Return the link, if there is one, and forget it."""
        link, self.link = self.link, None
        return link


def _open_socket(address: ServerAddress) -> tuple[socket.socket | TlsSocket, str]:
    """Return a connected socket, with TLS if the URL requires it, and the Host header."""
    parts = config.split_url(address.url)
    host, tcp_port = parts.hostname or "", parts.port or DEFAULT_TCP_PORT
    is_tls = parts.scheme in ("https", "wss")
    if not is_tls:
        _check_unencrypted(address.url)
    sock = open_connection(parts.scheme, host, tcp_port, CONNECT_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in TCP_KEEPALIVE.items():
        if hasattr(socket, name):  # not on every platform
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _timeval(HEARTBEAT_SECONDS))
    if not is_tls:
        return sock, parts.netloc
    from .tls import start_tls

    try:
        return start_tls(sock, (host, tcp_port), address), parts.netloc
    except BaseException:
        sock.close()
        raise


class _Unencrypted(ValueError):
    """The token would be sent to another machine without encryption."""

    hint = "A server that other machines can reach uses TLS."

    def __str__(self) -> str:
        return "the token would be sent without encryption; write https://"


def _check_unencrypted(url: str) -> None:
    """Refuse to send a token without TLS to any other machine.

    Raises:
        ValueError: the server is not on this machine.
    """
    if not config.is_local(url):
        raise _Unencrypted


def _timeval(seconds: float) -> bytes:
    """Return the value of SO_RCVTIMEO (POSIX: a timeval of seconds and us; Windows: ms)."""
    if sys.platform == "win32":
        return struct.pack("L", int(seconds * 1000))
    return struct.pack("ll", int(seconds), int(seconds % 1 * 1_000_000))


def _failure_reason(error: Exception) -> str:
    """Return why the connection failed, as a phrase."""
    if isinstance(error, ConnectionRefusedError):
        return "no program listens there"
    if isinstance(error, socket.gaierror):
        return "the host name cannot be resolved"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if (untrusted := getattr(error, "verify_message", "")) != "":
        return f"its certificate cannot be trusted ({untrusted})"
    if getattr(error, "reason", "") == "WRONG_VERSION_NUMBER":  # ssl.SSLError's
        return "the server does not use TLS"
    message = error.strerror if isinstance(error, OSError) else None
    return message or str(error) or type(error).__name__


def _failure_hint(error: Exception) -> str:
    """Return what to do about a failure; "" for what ``ServerUnreachable`` says."""
    if getattr(error, "verify_message", "") != "":
        return "Check the host name in the URL, and that CM_TOKEN is a token of this server."
    if getattr(error, "reason", "") == "WRONG_VERSION_NUMBER":
        return "Check host and port in the URL."
    return getattr(error, "hint", "")
