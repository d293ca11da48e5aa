# Runs on MicroPython: a trial of a generation with a clock that the test sets; prints a line of
# JSON: when it ended, whether the board was reset, and what /.cm/state says.
import os
import sys
from json import dumps, loads

sys.path.insert(0, sys.argv[1])  # where cm/switch and cm/trial are
GIVEN = loads(sys.argv[2])

from ramflash import mkdir, power_on, read, write

import cm


class Stub:
    pass


link, state = Stub(), Stub()
link.cm = cm
link.drop = lambda part: None
state.calls, state.app_state, state.socket, state.console = [], "", None, Stub()
resets = []
state.console.hard_reset = lambda: resets.append(True)
for name, module in (("link", link), ("state", state)):
    setattr(cm, name, module)
    sys.modules["cm." + name] = module

from cm import switch, trial


class Clock:
    now = 0


clock = Clock()
clock.ticks_ms = lambda: clock.now
clock.ticks_diff = lambda a, b: a - b
trial.time = clock

os.umount("/")
power_on(fresh=True)
mkdir("/.cm")
write("/.cm/state", "trial 0123456789abcdef %d %d" % tuple(GIVEN["times"]))
write("/.cm/back", "-/.cm/state\n")
switch.start()
ended = None
while state.calls and ended is None and clock.now < 1000000:
    second = clock.now // 1000
    for at, name, value in GIVEN["events"]:
        if at == second:
            if name == "healthy":
                cm.healthy()
            elif name == "confirm":
                write("/.cm/state", "proven 0123456789abcdef")
            else:
                setattr(state, name, value)
    if state.calls[0]() or resets:
        ended = second
    clock.now += 1000
before = read("/.cm/state")
if resets:
    switch.start()
print(dumps([ended, bool(resets), before, read("/.cm/state")]))
