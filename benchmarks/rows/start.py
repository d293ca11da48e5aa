"""What the user waits for before the first cell: the server's start, the library's import."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from benchmarks import own_server
from benchmarks.report import Row
from cloudmanager import local_server

_STARTS = 7
_IMPORT = """\
import time
begun = time.perf_counter()
from cloudmanager import Fleet
print(time.perf_counter() - begun)
"""


def rows() -> list[Row]:
    """Time `mbm server-start` as a process, and the import in a new interpreter."""
    with _compiled_code():
        _time_server_start()
        return [
            Row(
                "mbm server-start, until it answers",
                [_time_server_start() for _ in range(_STARTS)],
                [],
                0.4,
            ),
            Row("import cloudmanager", [_time_import() for _ in range(_STARTS)], [], 0.150),
        ]


@contextlib.contextmanager
def _compiled_code() -> Iterator[None]:
    """Let Python keep its bytecode, as pip does where it installs a package.

    Some environments of developers forbid it: then each start compiles 36,000 lines.
    """
    with tempfile.TemporaryDirectory(prefix="cm-bench-") as folder:
        given = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": folder}
        before = {name: os.environ.get(name) for name in given}
        os.environ.update(given)
        try:
            yield
        finally:
            for name, value in before.items():
                del os.environ[name]
                if value is not None:
                    os.environ[name] = value


def _time_server_start() -> float:
    """Time the first start of a server in an empty folder."""
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
