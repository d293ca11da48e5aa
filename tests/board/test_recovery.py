"""Whatever runs on a board, it is back in the fleet by itself, and the next cell works.

Each row is something that a user does, in a cell, a task, a program or a file. All rows run at
once, each on a virtual board of its own; the times after which a board helps itself are shortened
in its /cm.json. `make soak` runs the rows with the times that boards have.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest

from cloudmanager import Fleet
from cloudmanager.board_client import BoardIdentity
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.conftest import RunningServer

#: Seconds: until a reset, until a task gives way, without a link, without a callback.
SHORT = {"stop_timeout": 1, "task_timeout": 0.5, "link_timeout": 2, "watchdog": 2}
BACK_SECONDS = {"short": 40, "real": 120}
OWN_ENDS = ("ok", "error", "interrupted")
STOPPED = ("timeout",)
STUBBORN = "it did not let itself be interrupted; the board was restarted"
SWALLOW = "while True:\n try:\n  while True: pass\n except: pass"


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        what: what the user does.
        where: cell, task, program or file.
        code: the code; for a file, its path or an operation.
        outcomes: how the job may end; for a file, whether it is refused.
        restarts: whether the job's record must say that the board was restarted.
    """

    what: str
    where: str
    code: str
    outcomes: tuple[str, ...] = OWN_ENDS
    restarts: bool = False


def task(body: str) -> str:
    """Return a cell that leaves a task behind."""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    head = "import asyncio, time, sys\nasync def left():\n    await asyncio.sleep(0.05)\n"
    return head + lines + "t = asyncio.create_task(left())"


def program(body: str) -> str:
    """Return an async program."""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    return "import asyncio, time, sys\nasync def main():\n" + lines


LOCK = "import micropython\nmicropython.heap_lock()"
CHAIN = (
    "for n in range(6):\n    with open('/chain%d.py' % n, 'w') as f:\n"
    "        f.write('import chain%d' % (n + 1) if n < 5 else 'x = 1')\nimport chain0"
)
FILL = (
    "try:\n    with open('/big', 'wb') as f:\n        while True: f.write(bytes(4096))\n"
    "except OSError: pass"
)
ROWS = [
    Row("a busy loop", "cell", "while True: pass", STOPPED),
    Row("a loop that prints", "cell", "while True: print('x' * 60)", STOPPED),
    Row("a bare except in a loop", "cell", SWALLOW, STOPPED, restarts=True),
    Row(
        "a bare except around a sleep",
        "cell",
        "import time\n" + SWALLOW.replace("while True: pass", "time.sleep(0.05)"),
        STOPPED,
        restarts=True,
    ),
    Row(
        "a finally that never ends",
        "cell",
        "try:\n while True: pass\nfinally:\n " + SWALLOW.replace("\n", "\n "),
        STOPPED,
        restarts=True,
    ),
    Row("a native loop", "cell", "sum(range(1 << 60))", (*STOPPED, "lost")),
    Row("input() that nobody answers", "cell", "input('? ')", (*STOPPED, "error")),
    Row("gc.disable()", "cell", "import gc\ngc.disable()"),
    Row("a locked heap", "cell", LOCK),
    Row("a locked heap in a loop", "cell", LOCK + "\nwhile True: pass", STOPPED),
    Row("a locked heap and output", "cell", LOCK + "\nprint('x')"),
    Row("sys.modules is emptied", "cell", "import sys\nsys.modules.clear()"),
    Row("sys.path is emptied", "cell", "import sys\nsys.path.clear()"),
    Row("sys.path is replaced", "cell", "import sys\nsys.path[:] = ['/nowhere']"),
    Row("len is replaced", "cell", "import builtins\nbuiltins.len = lambda x: 0"),
    Row(
        "built-in functions are replaced",
        "cell",
        "import builtins\nbuiltins.min = builtins.range = builtins.print = None",
    ),
    Row("__import__ is replaced", "cell", "import builtins\nbuiltins.__import__ = None"),
    Row(
        "kbd_intr(-1) in a loop",
        "cell",
        "import micropython\nmicropython.kbd_intr(-1)\nwhile True: pass",
        STOPPED,
    ),
    Row("the file system is unmounted", "cell", "import os\nos.umount('/')"),
    Row("the flash is full", "cell", FILL, (*OWN_ENDS, *STOPPED)),
    Row("chdir", "cell", "import os\nos.mkdir('/away')\nos.chdir('/away')"),
    Row("a chain of six imports", "cell", CHAIN),
    Row("deep recursion", "cell", "def f(): f()\nf()", ("error",)),
    Row(
        "a full heap",
        "cell",
        "def f():\n a = []\n while True: a.append(bytearray(500))\nf()",
        ("error",),
    ),
    Row("SystemExit", "cell", "raise SystemExit"),
    Row("BaseException", "cell", "raise BaseException"),
    Row("GeneratorExit", "cell", "raise GeneratorExit"),
    Row(
        "asyncio.run that never yields",
        "cell",
        "import asyncio\nasync def f():\n while True: pass\nasyncio.run(f())",
        STOPPED,
    ),
    Row("asyncio's queue is removed", "cell", "import asyncio\nasyncio.core._task_queue = None"),
    Row("the client's poll is replaced", "cell", "import cm.run\ncm.run.poll = None"),
    Row("the client's serve is replaced", "cell", "import cm.run\ncm.run.serve = None"),
    Row("a folder that hides a module", "cell", "import os\nos.mkdir('/time')\nos.mkdir('/json')"),
    Row("never yields", "task", task("while True: pass")),
    Row("sleeps for ever", "task", task("time.sleep(1000)")),
    Row("a bare except, never yields", "task", task(SWALLOW)),
    Row("raises KeyboardInterrupt", "task", task("raise KeyboardInterrupt")),
    Row("raises SystemExit", "task", task("raise SystemExit")),
    Row("raises BaseException", "task", task("raise BaseException")),
    Row("raises GeneratorExit", "task", task("raise GeneratorExit")),
    Row("locks the heap", "task", task("import micropython\nmicropython.heap_lock()")),
    Row("empties sys.modules", "task", task("sys.modules.clear()")),
    Row("a busy loop", "program", "while True: pass"),
    Row("a bare except in a loop", "program", SWALLOW),
    Row("never yields", "program", program("while True: pass")),
    Row(
        "never yields after a while",
        "program",
        program("await asyncio.sleep(0.1)\nwhile True: time.sleep(0.2)"),
    ),
    Row("a bare except, never yields", "program", program(SWALLOW)),
    Row("raises KeyboardInterrupt", "program", "raise KeyboardInterrupt"),
    Row("raises KeyboardInterrupt, async", "program", program("raise KeyboardInterrupt")),
    Row("sys.exit()", "program", "import sys\nsys.exit()"),
    Row("crashes", "program", "1 / 0"),
    Row("locks the heap", "program", LOCK),
    Row("/json.py", "file", "put /json.py"),
    Row("/time.py", "file", "put /time.py"),
    Row("/os.py", "file", "put /os.py"),
    Row("/lib/struct.py", "file", "put /lib/struct.py"),
    Row("a folder /time", "file", "mkdir /time"),
    Row("/cm.py", "file", "put /cm.py", ("refused",)),
    Row("/lib/cm/run.py", "file", "put /lib/cm/run.py", ("refused",)),
    Row("a folder /cm", "file", "mkdir /cm", ("refused",)),
    Row("/boot.py", "file", "put /boot.py", ("refused",)),
    Row("/main.py", "file", "put /main.py", ("refused",)),
]


@pytest.fixture(params=["short", pytest.param("real", marks=pytest.mark.soak)])
def table(
    request: pytest.FixtureRequest, server: RunningServer, fleet: Fleet
) -> Iterator[tuple[Fleet, dict[str, Row], float]]:
    """One board for each row, and the seconds in which each must be back."""
    names = [f"row-{request.param}-{number}" for number in range(1, len(ROWS) + 1)]
    times = SHORT if request.param == "short" else {}
    identities = [
        replace(one, extra={**one.extra, **times})
        for one in (BoardIdentity.from_enrolment(row, server.url) for row in fleet.enrol(names))
    ]
    folder = server.home / f"recovery-{request.param}"
    with VirtualBoards(identities, ("127.0.0.1", server.tcp_port), folder) as boards:
        assert boards.pids
        yield fleet, dict(zip(names, ROWS, strict=True)), BACK_SECONDS[request.param]
    for name in names:
        fleet.revoke(name)


def do(fleet: Fleet, name: str, row: Row) -> str:
    """Do what a row says; return how it ended."""
    board = fleet[name]
    if row.where == "file":
        verb, path = row.code.split()
        try:
            done = board.mkdir(f":{path}") if verb == "mkdir" else board.put(b"1 / 0\n", f":{path}")
        except CloudmanagerError:
            return "refused"
        return done[name].status if done[name].ok else "refused"
    if row.where == "program":
        assert board.put(row.code.encode(), ":/app.py")[name].ok
        board.reset()
        time.sleep(0.5)
        return "ok"
    return board.run(row.code, timeout=1, wait=20)[name].status


def check(fleet: Fleet, name: str, row: Row, seconds: float) -> str:
    """Do what a row says; return what was wrong with the board afterwards, or ""."""
    assert fleet[name].run("1", wait=30, timeout=10)[name].ok
    status = do(fleet, name, row)
    if row.where == "file":
        if (status == "refused") != (row.outcomes == ("refused",)):
            return f"the file: {status}"
        fleet[name].reset()
    elif status not in row.outcomes:
        return f"ended as {status}"
    ends = time.monotonic() + seconds
    fresh = row.where == "program" and "async" not in row.code and "while True" in row.code
    seen = []
    while time.monotonic() < ends:
        result = fleet[name].run("6 * 7", timeout=5, wait=ends - time.monotonic(), fresh=fresh)[
            name
        ]
        if result.ok and result.value == 42:
            break
        seen.append(f"{result.status}: {result.why or result.error}"[:200])
        time.sleep(0.2)
    else:
        return f"not back: {seen[-3:]}"
    if row.restarts:
        jobs = [job for job in fleet.jobs() if job["board"] == name and job["status"] == "timeout"]
        record = str(fleet.job(jobs[0]["job"])) if jobs else "no job"
        return "" if STUBBORN in record else f"its record says: {record}"
    return ""


@pytest.mark.timeout(150)
def test_board_is_back_by_itself_and_runs_the_next_cell(table):
    fleet, rows, seconds = table
    with ThreadPoolExecutor(len(rows)) as pool:
        checks = {name: pool.submit(check, fleet, name, row, seconds) for name, row in rows.items()}
        wrong = {}
        for name, future in checks.items():
            if why := future.result():
                wrong[f"{rows[name].where}: {rows[name].what}"] = why
    assert not wrong, "\n".join(f"{row}: {why}" for row, why in wrong.items())


def test_table_has_all_rows():
    assert len(ROWS) >= 40
    assert {row.where for row in ROWS} == {"cell", "task", "program", "file"}
    assert len({(row.where, row.what) for row in ROWS}) == len(ROWS)
