"""The board's clock, and cells that start at a time: real boards whose counters drift and wrap."""

import time

import pytest

from .peer import ERROR, INTERRUPTED, OK, TIMEOUT

#: Replaces the counters of the clock (cm.firmware.time): too fast by a share of 10**6, with the
#: 30 bits of chips, and ahead by some µs. The rest of the client keeps the real ones.
STANDIN = """
import sys, time as real
class Time:
    PERIOD = 1 << 30
    def __init__(self, ppm, ahead):
        self.ppm, self.ahead, self.start = ppm, ahead, real.ticks_us()
    def us(self):
        us = real.ticks_diff(real.ticks_us(), self.start)
        return us + us * self.ppm // 1000000 + self.ahead
    def ticks_us(self):
        return self.us() % self.PERIOD
    def ticks_ms(self):
        return self.us() // 1000 % self.PERIOD
    def ticks_add(self, a, b):
        return (a + b) % self.PERIOD
    def ticks_diff(self, a, b):
        return (a - b + self.PERIOD // 2) % self.PERIOD - self.PERIOD // 2
    def __getattr__(self, name):
        return getattr(real, name)
def replace_time(ppm=0, ahead=0):
    firmware = sys.modules["cm.firmware"]
    firmware.time = Time(ppm, ahead)
    for part in ("clock", "now_ms", "kept"):
        sys.modules["cm.link"].drop(part)
    sys.modules["cm.state"].clock = None
    sys.modules["cm.link"].find("clock").set_clock(TIME_MS)
def state():
    return sys.modules["cm.state"].clock
def measure(times=30):  # on a busy machine, an answer may take more than a second
    state()[3] = 1000000
    while state()[3] == 1000000 and times:
        times -= 1
        sys.modules["cm.link"].find("clock").measure()
import cm
"""
US = 1000  # ns


@pytest.fixture
def clock(lab):
    """A board's link; its clock is set by WELCOME's time, 1.5 s too late."""

    def replace(ppm=0, ahead=0):
        late_ms = lab.peer.clock() // 1_000_000 - 1500
        code = STANDIN.replace("TIME_MS", str(late_ms)) + f"replace_time({ppm}, {ahead})"
        assert link.run(code).status == OK

    link = lab.link()
    link.replace = replace
    yield link
    lab.link().run("sys.modules['cm.firmware'].time = real\nsys.modules['cm.state'].clock = None")
    lab.peer.clock = time.time_ns
    lab.peer.answers_time = True
    assert lab.link().run("__cm__((6 * 7))").value == b"42"


def error_ms(link, code="__cm__((cm.now_ms()))"):
    """Return the range in which the error of cm.now_ms() is: no exchange takes no time."""
    before = link.peer.clock() / 1e6
    job = link.run(code)
    after = link.peer.clock() / 1e6
    assert job.status == OK, job
    now = int(job.value)
    return now - after - 1, now - before + 1


def test_clock_is_set_by_welcome_and_measured_by_the_shortest_of_three_exchanges(clock):
    clock.replace()
    low, high = error_ms(clock)
    assert high < -1000, "WELCOME's time is all that is known"
    times = clock.times
    low, high = error_ms(clock, "measure()\n__cm__((cm.now_ms()))")
    assert low < 0 < high
    assert clock.times >= times + 3
    error = int(clock.run("__cm__((state()[3]))").value)
    assert 0 < error < (high - low) * 1000, "half of a round trip, not the 1.5 s of before"


def test_now_ms_needs_a_link_once(clock):
    clock.replace()
    job = clock.run("sys.modules['cm.state'].clock = None\ncm.now_ms()")
    assert job.status == ERROR
    assert "OSError: the time is not known" in job.error


@pytest.mark.parametrize("ahead", [(1 << 30) - 1000, 1000 * ((1 << 30) - 1), 1000 * (1 << 29)])
def test_now_ms_goes_on_where_ticks_wrap(clock, ahead):
    """Those in µs wrap each 18 minutes on chips, those in ms each 12 days."""
    clock.replace(ahead=ahead)
    code = "measure()\nt = firmware_time = sys.modules['cm.firmware'].time\n__cm__((cm.now_ms()))"
    low, high = error_ms(clock, code)
    assert low < 0 < high
    for days in (0.01, 0.5, 6.2):  # without another exchange
        us = int(days * 86400e6)
        job = clock.run(f"a = cm.now_ms()\nt.ahead += {us}\n__cm__((cm.now_ms() - a))")
        assert 0 <= int(job.value) - us // 1000 < 1000, days
        assert clock.run("t.ahead = %d" % ahead).status == OK


def test_drift_is_measured_and_corrected(clock):
    """A counter that is 400 ppm too fast: 240 ms in ten minutes."""
    clock.replace(ppm=400)
    clock.run("measure()\nt = sys.modules['cm.firmware'].time")
    # Ten minutes later, by both clocks.
    real = time.time_ns
    clock.peer.clock = lambda: real() + 600_000_000_000
    clock.run("t.ahead += 600240000\nclock = state()\nclock[3] = min(clock[3], 2000)")
    clock.run("sys.modules['cm.link'].find('clock').measure()")
    drift, ahead = eval(clock.run("__cm__((state()[4], state()[5]))").value)
    assert drift == pytest.approx(400_000, abs=50_000)
    assert ahead == pytest.approx(240_000, abs=30_000)
    # Again ten minutes later it is right without having asked.
    clock.peer.clock = lambda: real() + 1_200_000_000_000
    low, high = error_ms(clock, "t.ahead += 600240000\n__cm__((cm.now_ms()))")
    assert low - 30 < 0 < high + 30, "not the 240 ms that it would be without"
    waits = len(clock.clocks)
    clock.ping()
    clock.peer.until(lambda _: len(clock.clocks) > waits)
    assert clock.clocks[-1][2] == pytest.approx(400_000, abs=50_000)


def test_server_that_does_not_answer_costs_a_second(clock):
    clock.replace()
    clock.peer.answers_time = False
    assert clock.run("measure(1)").status == OK
    assert clock.run("__cm__((state()[3]))").value == b"1000000"


def test_cell_that_comes_during_an_exchange_runs(clock):
    clock.replace()
    clock.peer.answers_time = False
    times = clock.times
    waits = len(clock.facts)
    clock.run("state()[3] = 1000000")
    clock.peer.until(lambda _: clock.times > times)
    assert clock.run("__cm__((6 * 7))").value == b"42"
    clock.peer.until(lambda _: len(clock.facts) > waits)


def test_cell_starts_at_its_time(clock):
    clock.replace(ahead=1000 * (1 << 30) - 700_000)
    at = clock.peer.clock() + 1_500_000 * US
    job = clock.run("print('started')\n__cm__((cm.now_ms()))", at=at)
    assert (job.status, job.output) == (OK, b"started\n"), job
    late, error = job.lateness
    assert 0 <= late < 100_000
    assert abs(int(job.value) * 1000 - at // 1000 - late) < 10_000
    assert 0 < error < 500_000
    assert clock.peer.clock() >= at - error * US


def test_awaiting_cell_starts_at_its_time(clock):
    clock.replace()
    at = clock.peer.clock() + 1_200_000 * US
    code = (
        "async def __cm_cell__():\n    import asyncio\n    now = cm.now_ms()\n"
        "    await asyncio.sleep(0.01)\n    __cm__((now))"
    )
    job = clock.run(code, at=at, awaits=True)
    assert job.status == OK, job
    assert 0 <= int(job.value) - at // 1_000_000 < 200
    assert clock.run("__cm__(('__cm_cell__' in globals()))").value == b"False"


def test_long_cell_with_a_syntax_error_is_refused_at_once(clock):
    clock.replace()
    at = clock.peer.clock() + 200_000_000 * US
    job = clock.run("x = 1\n" * 400 + "if:", at=at)
    assert job.status == ERROR
    assert 'File "<cell>", line 401' in job.error, "the time changes no line numbers"


def test_late_cell_does_not_run(clock):
    clock.replace()
    clock.run("measure()\nran = []")
    at = clock.peer.clock() - 300_000 * US
    job = clock.run("ran.append(1)", at=at)
    assert job.status == ERROR
    assert "ms too late: it did not run" in job.error
    assert job.lateness is None
    assert clock.run("__cm__((ran))").value == b"[]"
    job = clock.run("ran.append(2)", at=at - 700_000_000 * US, late=True)
    assert job.status == OK
    assert 700_300_000 <= job.lateness[0] < 710_000_000
    assert clock.run("__cm__((ran))").value == b"[2]"


def test_waiting_cell_is_interrupted_and_answers_pings(clock):
    clock.replace()
    job = clock.submit("interrupted = 1", at=clock.peer.clock() + 200_000_000 * US)
    times = clock.times
    clock.peer.until(lambda _: clock.times >= times)
    for _ in range(3):
        clock.ping()
    assert job.status is None
    clock.interrupt(job)
    assert job.wait().status == INTERRUPTED
    assert clock.run("__cm__(('interrupted' in globals()))").value == b"False"


def test_interrupt_while_the_clock_is_measured_for_a_cell_is_not_lost(clock):
    clock.replace()
    clock.peer.answers_time = False  # it waits for a second
    clock.run("cm")
    times = clock.times
    job = clock.submit("measured = 1", at=clock.peer.clock() + 200_000_000 * US)
    clock.peer.until(lambda _: clock.times > times)
    clock.interrupt(job)
    clock.ping()
    assert job.wait().status == INTERRUPTED


def test_cell_waits_on_where_the_link_breaks_while_the_clock_is_measured(clock):
    clock.replace()
    clock.peer.answers_time = False
    times = clock.times
    clock.submit("instant = cm.now_ms()", at=clock.peer.clock() + 1_500_000 * US)
    clock.peer.until(lambda _: clock.times > times)
    clock.cut()
    link = clock.peer.link("id-1", after=clock)
    assert link.proof_fields["last"]["status"] == OK
    assert link.run("__cm__(('instant' in globals()))").value == b"True"


def test_tasks_go_on_while_a_cell_waits(clock):
    clock.replace()
    clock.run(
        "import asyncio\nturns = 0\nasync def turn():\n    global turns\n"
        "    while True:\n        turns += 1\n        await asyncio.sleep(0.01)\n"
        "task = asyncio.create_task(turn())"
    )
    at = clock.peer.clock() + 1_500_000 * US
    job = clock.submit("before = turns", at=at)
    clock.peer.until(lambda _: clock.peer.clock() > at - 1_000_000 * US)
    assert job.wait().status == OK
    assert int(clock.run("task.cancel()\n__cm__((before))").value) > 20


def test_interrupt_that_a_busy_task_delays_is_not_lost(clock):
    clock.replace()
    clock.run(
        "import asyncio, time\nasync def hog():\n    await asyncio.sleep(0.3)\n"
        "    end = time.ticks_add(time.ticks_ms(), 1500)\n"
        "    while time.ticks_diff(end, time.ticks_ms()) > 0: pass\n"
        "task = asyncio.create_task(hog())"
    )
    job = clock.submit("ran = 1", at=clock.peer.clock() + 200_000_000 * US)
    time.sleep(0.8)
    clock.interrupt(job)
    assert job.wait().status == INTERRUPTED


def test_timeout_counts_from_the_start(clock):
    """The server sends the wait and the timeout as one: the board cannot know more."""
    clock.replace()
    at = clock.peer.clock() + 1_500_000 * US
    job = clock.run("while True: pass", at=at, timeout_ms=1800)
    assert job.status == TIMEOUT
    assert job.lateness is not None
