"""What the user waits for before the first cell: the server's start, the library's import."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks import own_server
from benchmarks.report import Row
from cloudmanager import local_server

_STARTS = 5
_IMPORT = """\
import time
begun = time.perf_counter()
from cloudmanager import Fleet
print(time.perf_counter() - begun)
"""


def rows() -> list[Row]:
    """Time `mbm server-start` as a process, and the import in a new interpreter."""
    return [
        Row(
            "mbm server-start, until it answers",
            [_time_server_start() for _ in range(_STARTS)],
            [],
            1.0,
        ),
        Row("import cloudmanager", [_time_import() for _ in range(_STARTS)], [], 0.150),
    ]


def _time_server_start() -> float:
    with own_server.temporary_home():
        begun = time.perf_counter()
        command = [sys.executable, "-m", "cloudmanager", "server-start", "--port", "0"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - begun
        local_server.stop()
    return took


def _time_import() -> float:
    done = subprocess.run([sys.executable, "-c", _IMPORT], check=True, capture_output=True)
    return float(done.stdout)
