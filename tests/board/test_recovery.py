"""Whatever runs on a board, it is back in the fleet by itself, and the next cell works.

Each row is something that a user does, in a cell, a task, a program or a file. All rows run at
once, each on a board of its own; the times after which a board helps itself are shortened in its
/cm.json. `make soak` runs the rows with the times that boards have.

Most boards are virtual ones. Rows about what the unix port does not have name a port: they run on
the stand-in for its chips (standin_boot.py, standin_timers.py).
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cloudmanager import Fleet
from cloudmanager.board_client import BoardIdentity
from cloudmanager.cable import reconfigure
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.virtual.virtual_boards import VirtualBoards
from tests.cloudmanager.chip import Chip
from tests.conftest import RunningServer

from .bootlab import Flash

#: Seconds: until a reset, until a task gives way, without a link, without a callback.
SHORT = {"stop_timeout": 1, "task_timeout": 0.5, "link_timeout": 2, "watchdog": 2}
BACK_SECONDS = {"short": 40, "real": 120}
#: The same for chips: their watchdog bites after this time, also on a busy machine.
SHORT_CHIP = {**SHORT, "watchdog": 8}
AIR = {"home": "x"}
STOPPED = ("timeout",)
GONE = ("timeout", "lost")  # it could not be interrupted, or its link was lost at once
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
        port: port and version of the chip; "": a virtual board.
    """

    what: str
    where: str
    code: str
    outcomes: tuple[str, ...] = ("ok",)
    restarts: bool = False
    port: str = ""


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
#: A program that starts after four failed attempts to connect.
SKIP_A_MINUTE = b"""
import machine, os
async def main():
    if "cm.new.trial" in os.listdir("/"):
        machine.skip(61000)
"""
NEVER_RETURNS = (
    "import micropython\ndef never(_):\n while True: pass\n"
    "micropython.schedule(never, 0)\nwhile True: pass"
)
THREAD = (
    "import _thread, time\ndone = []\ndef talk():\n for n in range(50): print('thread', n)\n"
    " done.append(1)\n_thread.start_new_thread(talk, ())\nwhile not done: print('main')"
)
SECOND_CORE = (
    "import _thread\ndone = []\ndef talk():\n for n in range(9): print('second', n)\n"
    " done.append(1)\n_thread.start_new_thread(talk, ())\nwhile not done: print('first')"
)
KEEP = (
    "kept = None\nfor size in (500, 50):\n try:\n  while True: kept = (bytearray(size), kept)\n"
    " except MemoryError: pass"
)
SETTINGS = "configure 10.9.9.9"
NATIVE = "sum(range(1 << 60))"
TIMER = (
    "from machine import Timer\ndef never(_):\n while True: pass\ntry: t = Timer(-1)\n"
    "except ValueError: t = Timer(0)\nt.init(period=10, callback=never)\nwhile True: pass"
)
OWN_WDT = "from machine import WDT\nmine = WDT(timeout=1500)\nwhile True: pass"
LIGHTSLEEP = "import machine\nwhile True: machine.lightsleep(200)"
DETACHED = "import os\nos.dupterm(None)\nwhile True: pass"
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
    Row("a native loop", "cell", "sum(range(1 << 60))", GONE),
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
    Row("the flash is full", "cell", FILL, ("ok", *STOPPED)),
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
    Row("BaseException", "cell", "raise BaseException", ("error",)),
    Row("GeneratorExit", "cell", "raise GeneratorExit", ("error",)),
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
    Row("a scheduled call that never returns", "cell", NEVER_RETURNS, GONE),
    Row("its process is killed", "cell", "import os\nos.system('kill -9 $PPID')", GONE),
    Row("native code crashes", "cell", "import uctypes\nuctypes.bytes_at(8, 8)", GONE),
    Row("a thread that prints", "cell", THREAD),
    Row("a heap that stays nearly full", "cell", KEEP),
    Row("the second core prints", "cell", SECOND_CORE, port="rp2-1.28"),
    Row("the console is detached", "cell", DETACHED, STOPPED, port="rp2-1.28"),
    Row("the file system is unmounted", "cell", "import os\nos.umount('/')", port="rp2-1.28"),
    Row("a wrong static IP", "file", SETTINGS, port="rp2-1.28"),
    *(
        row
        for port in ("rp2-1.28", "esp32-1.28")
        for row in (
            Row("a native loop", "cell", NATIVE, GONE, port=port),
            Row("a Timer callback never returns", "cell", TIMER, GONE, port=port),
            Row("its own WDT is not fed", "cell", OWN_WDT, GONE, port=port),
            Row("its own WDT is not fed", "program", OWN_WDT, port=port),
            Row("lightsleep", "cell", "import machine\nmachine.lightsleep(700)", port=port),
            Row("lightsleep in a loop", "cell", LIGHTSLEEP, STOPPED, port=port),
            Row("a bare except in a loop", "cell", SWALLOW, STOPPED, True, port),
            Row("a bare except in a loop", "program", SWALLOW, port=port),
        )
    ),
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
    request: pytest.FixtureRequest,
    server: RunningServer,
    fleet: Fleet,
    client: dict[str, bytes],
    tmp_path: Path,
) -> Iterator[tuple[Fleet, dict[str, Row], float]]:
    """One board for each row, and the seconds in which each must be back."""
    is_short = request.param == "short"
    rows = {f"row-{request.param}-{number}": row for number, row in enumerate(ROWS, 1)}
    folder = tmp_path  # a board has nothing of a run before
    virtual = []
    image = folder / "client.img"
    Flash(image).write(client)
    with contextlib.ExitStack() as stack:
        for enrolment in fleet.enrol(list(rows)):
            one = BoardIdentity.from_enrolment(enrolment, server.url)
            if port := rows[one.name].port:
                times = SHORT_CHIP if is_short else {"watchdog": 8}
                if rows[one.name].code == SETTINGS:  # else the minute that passes is an outage
                    times = {"link_timeout": 100_000}
                settings = {**times, "host": "127.0.0.1", "tcp_port": server.tcp_port}
                chip = boot_chip(folder / one.name, port, image, {**one.settings(), **settings})
                stack.callback(chip.stop)
            else:
                times = SHORT if is_short else {}
                virtual.append(replace(one, extra={**one.extra, **times}))
        address = ("127.0.0.1", server.tcp_port)
        boards = stack.enter_context(VirtualBoards(virtual, address, folder))
        assert boards.pids
        yield fleet, rows, BACK_SECONDS[request.param]
    for name in rows:
        fleet.revoke(name)


def boot_chip(folder: Path, port: str, image: Path, config: dict[str, Any]) -> Chip:
    """Start the stand-in for a chip, with the client on its flash."""
    folder.mkdir(exist_ok=True)
    shutil.copy(image, folder / "files.img")
    config["wifi"] = [list(one) for one in AIR.items()]
    Flash(folder / "files.img").write({"/cm.json": json.dumps(config).encode()})
    chip = Chip(folder, port=port, air=AIR)
    chip.flash[0] = 0xE9
    chip.press_reset()
    return chip


def do(fleet: Fleet, name: str, row: Row) -> str:
    """Do what a row says; return how it ended."""
    board = fleet[name]
    if row.where == "file":
        verb, path = row.code.split()
        if verb == "configure":
            return configure(fleet, name, path)
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


def configure(fleet: Fleet, name: str, address: str) -> str:
    """Give a board a static address; its clock is advanced while it tries the new settings."""
    assert fleet[name].put(SKIP_A_MINUTE, ":/app.py")[name].ok
    new = [address, "255.255.255.0", "10.9.9.1", "10.9.9.1"]
    return reconfigure.configure_by_link(fleet[name], {"ip": new})[name].status


def check(fleet: Fleet, name: str, row: Row, seconds: float) -> str:
    """Do what a row says; return what was wrong with the board afterwards, or ""."""
    assert fleet[name].run("1", wait=30, timeout=10)[name].ok
    status = do(fleet, name, row)
    if row.where == "file":
        if (status == "refused") != (row.outcomes == ("refused",)):
            return f"the file: {status}"
        if row.code.startswith("configure"):
            return await_settings(fleet, name, seconds)
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
        ends = time.monotonic() + seconds
        while STUBBORN not in (record := str(fleet.job(jobs[-1]["job"]))):
            if time.monotonic() > ends:
                return f"its record says: {record}"
            time.sleep(0.2)
    return ""


def await_settings(fleet: Fleet, name: str, seconds: float) -> str:
    """Wait until a board is back with its old settings; return what was wrong, or ""."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        code = "import json, os\nwith open('/cm.json') as f: old = json.load(f)\n"
        code += "('ip' in old, 'cm.new.trial' in os.listdir('/'))"
        result = fleet[name].run(code, timeout=5, wait=ends - time.monotonic())[name]
        if result.ok and result.value == (False, False):
            return ""
        time.sleep(0.2)
    return "not back with its old settings"


@pytest.mark.timeout(150)
def test_board_is_back_by_itself_and_runs_the_next_cell(table):
    fleet, rows, seconds = table
    with ThreadPoolExecutor(len(rows)) as pool:
        checks = {name: pool.submit(check, fleet, name, row, seconds) for name, row in rows.items()}
        wrong = {}
        for name, future in checks.items():
            if why := future.result():
                wrong[f"{rows[name].where}: {rows[name].what} {rows[name].port}"] = why
    assert not wrong, "\n".join(f"{row}: {why}" for row, why in wrong.items())


def test_table_has_all_rows():
    assert len(ROWS) >= 40
    assert {row.where for row in ROWS} == {"cell", "task", "program", "file"}
    assert len({(row.where, row.what, row.port) for row in ROWS}) == len(ROWS)
