"""The client's one timer, on chips whose machine.Timer is that of each port and version.

How each port behaves is in standin_timers.py, which names the sources; the clock is advanced if a
timer takes a minute or more.
"""

from __future__ import annotations

import time

import pytest

from cloudmanager.cable.serial_ports import BoardRepl

from .peer import INTERRUPTED, OK
from .test_boot import TICKING
from .test_console import BUSY as BUSY_CELLS
from .test_output import IN_THREAD
from .test_start import CONFIRM, WHO, staged

pytestmark = pytest.mark.timeout(120)  # a chip that starts several times on a busy machine
#: Port and version -> which numbers machine.Timer accepts, and the hardware timer of the client.
PORTS = {
    "esp32-1.24": (range(-1, 6), 3),
    "esp32-1.28": (range(4), 3),
    "esp32c3-1.28": (range(2), 1),
    "esp32-1.29": (range(-1, 4), None),
    "rp2-1.28": (range(-1, 0), None),
    "esp8266-1.28": (range(-1, 6), None),
}
#: More ports and versions, each of which behaves as one of the others.
MORE = {
    "esp32-1.25": (range(4), 3),
    "esp32s3-1.27": (range(4), 3),
    "esp32c3-1.24": (range(-1, 6), 1),
    "esp32c2-1.28": (range(1), 0),
    "esp32c6-1.29": (range(-1, 2), None),
    "rp2-1.23": (range(-1, 0), None),
    "esp8266-1.23": (range(-1, 6), None),
}
ALL = [*PORTS, *(pytest.param(port, marks=pytest.mark.soak) for port in MORE)]
APPS = [
    pytest.param(TICKING, id="async"),
    pytest.param("while True: pass", id="busy", marks=pytest.mark.soak),
]
WATCHDOG = {"rp2": 8, "esp8266": 5}  # the longest timeout of the chip's watchdog in seconds
BUSY = "while True: pass"
CRASH = b"Fatal exception"
COLLECT = "import gc, machine\nfor _ in range(5): gc.collect()\n"
MINUTE = COLLECT + "machine.skip(61000)"
ACCEPTED = """
from machine import Timer
def accepts(n):
    try:
        Timer(n)
        return True
    except ValueError:
        return False
__cm__(([n for n in range(-1, 6) if accepts(n)]))
"""


@pytest.fixture
def lab(boot_lab):
    boot_lab.peer.beat = 1000.0  # seconds: skipped time is no reason to reconnect
    return boot_lab


def boot(lab, port, app=TICKING, **settings):
    return started(lab.boot(app, chip_options={"port": port}, **settings).link(), app)


def started(link, app=TICKING):
    """Wait until the board's program has started: before that the board would skip a cell."""
    if app:
        link.program(int(app == BUSY), "app.py" if app in (TICKING, BUSY) else app)
    return link


def value(link, code):
    job = link.run(code)
    assert job.status == OK, job
    return job.value.decode()


def interrupt(link, code=BUSY):
    job = link.submit(code)
    time.sleep(0.02)
    link.interrupt(job)
    assert job.wait(5).status == INTERRUPTED


def bad_starts(link):
    """Return the number of bad starts in a row: RP2 keeps it in a register, the others in flash."""
    in_flash = "open('/cm.boot').read().split()[0]"
    code = f"try:\n n = {in_flash}\nexcept OSError:\n import cm.app\n n = str(cm.app.bad)"
    return value(link, f"{code}\n__cm__((n))").strip("'")


def until(link, what, wanted):
    """Wait for an answer of the board; each question is a cell, and each cell's end is a tick."""
    deadline = time.monotonic() + 5
    while (found := what(link)) != wanted:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)


# All ports


@pytest.mark.parametrize("port", ALL)
def test_client_interrupts_a_cell_and_ends_its_trial_on_one_timer(lab, client, port):
    """A new client on trial, with a program and a watchdog, all on one timer."""
    accepted, number = {**PORTS, **MORE}[port]
    lab.flash.write(staged(client))
    link = boot(lab, port, watchdog=WATCHDOG.get(port.split("-")[0], 60))
    assert value(link, ACCEPTED) == str(list(accepted))
    if number is not None:
        code = f"import machine, cm.console\n__cm__((machine.Timer({number}) is cm.console.timer))"
        assert value(link, code) == "True"
    interrupt(link)
    assert bad_starts(link) == "1", "its first minute is not over"
    assert link.run(MINUTE).status == OK
    until(link, bad_starts, "0")
    if port.startswith("esp32"):  # RP2 has a hard timer for it, ESP8266 the firmware's own
        fed = "import machine\n__cm__((machine.dogs[0].fed))"
        assert int(value(link, fed)) < int(value(link, fed))
    assert value(link, WHO) == "'new'"
    interrupt(link)
    link.submit("import machine\nmachine.skip(240000)")
    assert value(started(lab.link(after=link)), WHO) == "'old'"


# Timers that need a reference


def test_good_program_starts_after_any_number_of_power_cuts(lab):
    """RP2 stops a timer that is collected, as the timer of the first minute was in the past."""
    link = boot(lab, "rp2-1.28")
    for _ in range(3):
        assert link.run(MINUTE).status == OK
        until(link, bad_starts, "0")
        lab.chip.press_reset()
        link = started(lab.link(after=link))


LOOSE = """
from machine import Timer
n = []
def loose(k):
    Timer(-1).init(period=10, callback=lambda _: n.append(k))
def shallow(depth):
    return depth and shallow(depth - 1)
for k in range(3):
    loose(k)
shallow(20)  # what is left of it on the stack
"""
AWAIT_ALL = """
import time
since = time.ticks_ms()
while len(set(n)) < 3 and time.ticks_diff(time.ticks_ms(), since) < 1000:
    time.sleep_ms(20)
"""


@pytest.mark.parametrize(
    ("port", "goes_on"),
    [("rp2-1.28", False), pytest.param("esp32-1.29", True, marks=pytest.mark.soak)],
)
def test_unreferenced_timer_runs_if_its_port_refers_to_it(lab, port, goes_on):
    """The stand-in behaves as the port does.

    There are several timers: a stale pointer on the stack may keep one.
    """
    link = boot(lab, port, app="")
    assert link.run(LOOSE).status == OK
    assert link.run(COLLECT + "del n[:]\n" + AWAIT_ALL).status == OK
    assert (int(value(link, "__cm__((len(set(n))))")) == 3) == goes_on


def test_unreferenced_timer_crashes_an_esp8266(lab):
    """The stand-in behaves as the port does."""
    link = boot(lab, "esp8266-1.28", app="")
    link.submit(LOOSE + COLLECT + BUSY)
    lab.link(after=link)
    lab.chip.hear(CRASH)
    lab.chip.said.clear()


@pytest.mark.parametrize("port", ["rp2-1.28", pytest.param("esp8266-1.28", marks=pytest.mark.soak)])
def test_earlier_client_is_on_trial_with_a_referenced_timer(lab, client, port):
    older = {path: data for path, data in client.items() if "ticker" not in path}
    lab.flash.write(staged(older))
    link = boot(lab, port, app="")
    assert value(link, WHO) == "'new'"
    interrupt(link)
    link.submit(COLLECT + "machine.skip(300000)")
    assert value(lab.link(after=link), WHO) == "'old'"


@pytest.mark.soak
@pytest.mark.parametrize("port", ["esp32-1.28", "rp2-1.28"])
def test_interrupts_end_busy_cells_while_the_timer_has_other_calls(lab, port):
    link = boot(lab, port, app="", watchdog=8)
    for turn in range(60):
        interrupt(link, BUSY_CELLS[turn % len(BUSY_CELLS)])
        assert link.run("print('well')").output == b"well\r\n"


# Timers between cells


@pytest.mark.parametrize("port", ["esp32-1.28", pytest.param("rp2-1.28", marks=pytest.mark.soak)])
def test_confirmed_client_is_not_reset_when_its_trial_would_end(lab, client, port):
    lab.flash.write(staged(client))
    link = boot(lab, port, app="", watchdog=0)
    assert link.run(CONFIRM).status == OK
    assert link.run("import machine\nmachine.skip(301000)").status == OK
    calls = "from cm import state\n__cm__((state.calls))"
    until(link, lambda link: value(link, calls), "[]")
    assert value(link, WHO) == "'new'"


def test_crashed_program_is_no_good_start_a_minute_later(lab):
    link = lab.boot("1 / 0", chip_options={"port": "esp32-1.29"}, watchdog=0).link()
    started(link, "app.py ended: ZeroDivisionError: divide by zero")
    assert link.run(MINUTE).status == OK
    until(link, lambda link: value(link, "from cm import state\n__cm__((state.calls))"), "[]")
    assert bad_starts(link) == "1"


ARMED = [
    ("rp2-1.28", None, "timer, 60 s"),
    ("rp2-1.28", 20, "timer, 20 s"),  # its WDT waits for 8,388 ms at most
    ("rp2-1.28", 8, "hardware, 8 s"),
    ("rp2-1.28", 0, "off, by its settings"),
    ("rp2-1.25", None, "none: its MicroPython is older than 1.26"),
    ("esp32-1.28", None, "hardware, 60 s"),
    ("esp8266-1.28", None, "the firmware's own"),
]


@pytest.mark.parametrize(("port", "seconds", "armed"), ARMED)
def test_board_reports_which_watchdog_is_armed(lab, port, seconds, armed):
    settings = {} if seconds is None else {"watchdog": seconds}
    link = boot(lab, port, app="", **settings)
    assert link.proof_fields["facts"]["watchdog"] == armed


def test_watchdog_is_fed_during_cells_in_quick_succession(lab):
    link = boot(lab, "esp32-1.28", app="", watchdog=60)
    fed = "import machine\n__cm__((machine.dogs[0].fed))"
    first = int(value(link, fed))
    for _ in range(10):
        assert link.run("1").status == OK
    assert int(value(link, fed)) - first >= 10


@pytest.mark.soak
def test_watchdog_is_fed_between_cells(lab):
    link = boot(lab, "esp32-1.28", app="", watchdog=60)
    # Without a name for it: a watchdog among the user's names is the user's, and is not fed.
    code = "import machine\n__cm__((machine.dogs[0].fed, machine.dogs[0].longest))"
    before = eval(value(link, code))
    time.sleep(1.2)
    fed, longest = eval(value(link, code))
    assert fed > before[0] + 1, "by more than the ends of the two cells"
    assert longest < 1500


def test_no_timer_runs_between_cells_unless_needed(lab):
    link = boot(lab, "rp2-1.28")
    assert link.run(MINUTE).status == OK
    until(link, bad_starts, "0")
    code = "import cm.console as c\nc.timer.deinit = lambda: print('stopped')\nc.idle()"
    assert b"stopped" in link.run(code).output


# ESP8266 frees the memory of a timer that is armed at a soft reset


@pytest.mark.parametrize("settings", [{}, {"watchdog": 5}], ids=["plain", "watchdog"])
def test_soft_reset_by_the_server_leaves_no_timer_armed(lab, client, settings):
    lab.flash.write(staged(client))
    link = boot(lab, "esp8266-1.28", **settings)
    link.reset()
    assert lab.link(after=link).run("__cm__((6 * 7))").value == b"42"
    assert CRASH not in lab.chip.said


@pytest.mark.parametrize("app", APPS)
def test_soft_reset_from_the_repl_finds_no_timer_armed(lab, app):
    link = boot(lab, "esp8266-1.28", app)
    with BoardRepl(lab.chip.port) as repl:
        repl.await_prompt(60)
        assert int(repl.run("import cm.state; print(len(cm.state.calls))")) > 0
        repl.transport.serial.write(b"\x02\x04")  # the friendly REPL, then Ctrl-D
    started(lab.link(after=link), app)
    assert CRASH not in lab.chip.said


# Virtual boards have no machine.Timer


@pytest.mark.parametrize("app", APPS)
def test_virtual_board_starts_a_good_program_after_power_cuts(make_lab, app):
    lab = make_lab()
    link = lab.link()
    app = "import cm.app\ncm.app.started -= 61000\n" + app
    assert link.run(f"with open('/app.py', 'w') as f: f.write({app!r})").status == OK
    for _ in range(4):
        lab.boards.restart("lab-1")
        link = lab.link(after=link)
        assert "safe mode" not in link.proof_fields["facts"]["program"]
        if app.endswith(BUSY):
            started(link, BUSY)
            time.sleep(0.05)  # until it is in its loop
            link.ping()
        else:
            until(started(link), bad_starts, "0")


# RP2's second core


def boot_pico(lab):
    air = {"air": {"home": "x"}}
    chip_options = {"port": "rp2-1.28", **air}
    return lab.boot(chip_options=chip_options, wifi=[["home", "x"]]).link()


PRINTS = """
import _thread, time
done = []
def other():
    for n in range(20): print("other", n)
    done.append(1)
n = 0
for turn in range(30):
    _thread.start_new_thread(other, ())
    while len(done) <= turn:
        print("x" * 60)
        n += 1
__cm__((n))
"""


def test_second_core_that_prints_never_uses_the_link(lab):
    """It prints while the client sends, too: then its output is lost, and the job says so."""
    link = boot_pico(lab)
    assert link.run(SENDS).status == OK
    job = link.run(PRINTS)
    assert job.status == OK, job
    assert value(link, "__cm__((sent_by))") == "{0}"
    lines = job.output.decode().split("\r\n")
    assert lines.count("x" * 60) <= int(job.value)
    assert "other 19" in lines
    assert lines.count("other 19") == 30 or "[output was lost]" in lines
    assert lab.peer.link("id-1") is link


SENDS = """
import _thread, cm.link, cm.run
sent_by = set()
send = cm.link.send
def counted(*args):
    sent_by.add(_thread.get_ident())
    send(*args)
cm.run.send = counted
"""


@pytest.mark.parametrize(
    ("call", "error"), [("cm.emit(n=1)", "'RuntimeError'"), ("input('? ')", "'EOFError'")]
)
def test_second_core_that_would_use_the_link_is_refused(lab, call, error):
    link = boot_pico(lab)
    assert value(link, IN_THREAD.format(call=call)) == error
    assert link.samples == []
