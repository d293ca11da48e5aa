"""A wake of a board that sleeps, over TLS, beside a bare TLS connection of the same binary.

Both are processes that are forked from this one, timed from the fork until they have ended: the
board has asked whether anything waits, and sleeps; the bare script has connected, verified the
server's certificate, and closed the link.
"""

from __future__ import annotations

import ctypes
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import own_server
from benchmarks.report import Row
from benchmarks.timing import time_in_turns
from cloudmanager import Fleet, config, local_server
from cloudmanager.board_client import BoardIdentity, compile_client
from cloudmanager.server_options import ServerOptions
from cloudmanager.virtual.interrupt_thread import ASLEEP, SleepMemory, run_board
from cloudmanager.virtual.virtual_boards import VirtualBoards

_WAKES = 40
_PROGRAM = "import cm\ncm.sleep(3600)\n"
_BARE = """
import socket, tls
from binascii import a2b_base64
context = tls.SSLContext(tls.PROTOCOL_TLS_CLIENT)
context.verify_mode = tls.CERT_REQUIRED
context.load_verify_locations(a2b_base64("{ca}"))
address = socket.getaddrinfo("127.0.0.1", {tcp_port}, 0, socket.SOCK_STREAM)[0]
link = socket.socket(address[0], address[1])
link.connect(address[-1])
context.wrap_socket(link, server_hostname="cloudmanager").close()
link.close()
"""


def rows() -> list[Row]:
    """Time wakes and bare connections, in turns."""
    import micropython_run

    library = ctypes.CDLL(micropython_run.__file__)
    with own_server.temporary_home() as folder, Fleet() as fleet:
        local_server.start(ServerOptions(listen="0.0.0.0", port=0))
        try:
            spec = _prepare_board(fleet, folder)
            memory = SleepMemory()
            wake = functools.partial(_time_process, functools.partial(_wake, spec, library, memory))
            script = folder / "bare.py"
            script.write_text(_BARE.format(**spec["config"]))
            bare = functools.partial(_time_process, functools.partial(_connect, spec, script))
            wakes, bares = time_in_turns([wake, bare], _WAKES)
        finally:
            local_server.stop()
    return [Row("a wake with nothing to do, beside a bare TLS connection", wakes, bares, 1.3)]


def _prepare_board(fleet: Fleet, folder: Path) -> dict[str, Any]:
    """Enrol a board, put the program on its flash, and return what ``run_board`` needs."""
    (row,) = fleet.enrol(["bench-1"])
    identity = BoardIdentity.from_enrolment(row, fleet.address.url)
    address = ("127.0.0.1", config.split_url(fleet.address.url).port or 0)
    with VirtualBoards([identity], address, folder / "virtual"):
        code = f"with open('/app.py', 'w') as file:\n    file.write({_PROGRAM!r})"
        assert fleet["bench-1"].run(code, wait=30).ok
    return {
        "name": "bench-1",
        "folder": str(folder / "virtual" / "bench-1"),
        "client": str(compile_client(folder / "virtual" / ".client")),
        "heap": 128 * 1024,
        "blocks": 256,
        "config": {"host": address[0], "tcp_port": address[1], **identity.settings()},
    }


def _time_process(run: Callable[[], int]) -> None:
    """Run a function in a process of its own, which has to end with its status."""
    pid = os.fork()
    if not pid:
        try:
            os._exit(run())
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, ASLEEP), status


def _wake(spec: dict[str, Any], library: ctypes.CDLL, memory: SleepMemory) -> int:
    reader, writer = os.pipe()
    for number in (1, 2):
        os.dup2(writer, number)
    return run_board(spec, library, reader, memory)


def _connect(spec: dict[str, Any], script: Path) -> int:
    import micropython_run

    micropython_run.run_main(["micropython", "-X", f"heapsize={spec['heap']}", str(script)])
    return 0


if __name__ == "__main__":
    began = time.perf_counter()
    for row in rows():
        print(row.name, row.ratio, min(row.ours), min(row.peer), time.perf_counter() - began)
