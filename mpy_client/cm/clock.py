# Sets the board's clock by the server's time, which WELCOME carries.
# Boards: those with machine.RTC; loaded to connect, then dropped.
# Cost: 263 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import state
from cm.firmware import machine, time

_MAX_OFF_S = const(2)  # s by which the clock may differ
_1970_TO_2000_S = const(946684800)  # MicroPython counts from 2000 on ESP8266 and ESP32


# ms: since 1970, UTC. Integers only: a float of 32 bits has 128 s of resolution here. The clock is
# never set back while the user's program runs.
def set_clock(ms):
    if not hasattr(machine, "RTC"):  # a virtual board uses the clock of its host
        return
    now = ms // 1000 - (_1970_TO_2000_S if time.gmtime(0)[0] == 2000 else 0)
    late = now - time.time()
    if late > _MAX_OFF_S or (late < -_MAX_OFF_S and not state.task):
        year, month, day, hour, minute, second, weekday = time.gmtime(now)[:7]
        machine.RTC().datetime((year, month, day, weekday, hour, minute, second, 0))
