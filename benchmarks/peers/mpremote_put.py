"""mpremote's `fs_writefile` over a pty, to the same MicroPython that virtual boards run."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.peers.mpremote_exec import running_repl


@contextlib.contextmanager
def running_mpremote_write(data: bytes) -> Iterator[Callable[[], object]]:
    """Yield the call to time: one file written, in a raw REPL that was entered once.

    It writes to the host's own file system, which is faster than a flash.
    """
    from mpremote.transport_serial import SerialTransport

    with tempfile.TemporaryDirectory(prefix="cm-bench-") as folder, running_repl() as device:
        transport = SerialTransport(device)
        transport.enter_raw_repl(soft_reset=False)
        place = Path(folder) / "data.bin"
        try:
            yield lambda: transport.fs_writefile(str(place), data)
            if place.read_bytes() != data:
                raise RuntimeError("mpremote did not write the file")
        finally:
            transport.close()
