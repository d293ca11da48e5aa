# Runs on MicroPython: switches a littlefs to another generation and lets it go back, with the power
# cut at the k-th block write, for every k; prints in a line of JSON what it has after each start.
#
# The operations are those of the server's job, given as a JSON file: see test_trial.py.
import gc
import os
import sys
from json import dumps, loads

sys.path.insert(0, sys.argv[1])  # where cm/switch and cm/trial are
with open(sys.argv[2]) as file:
    GIVEN = loads(file.read())

from ramflash import Flash, power_off, power_on, read, write

import cm


class Stub:
    pass


link, state = Stub(), Stub()
link.cm = cm
link.drop = lambda part: None  # it could not be loaded again from this file system
state.calls, state.app_state, state.socket = [], "", None
for name, module in (("link", link), ("state", state)):
    setattr(cm, name, module)
    sys.modules["cm." + name] = module

from cm import switch, trial  # noqa: F401 - trial is loaded while there are its files

Flash.torn = sys.argv[3] == "torn"
STATE = "/.cm/state"


def makedirs(path):
    at = 0
    while at >= 0:
        at = path.find("/", at + 1)
        try:
            os.mkdir(path if at < 0 else path[:at])
        except OSError as e:
            if e.errno != 17:
                raise


# Executes the operations of the job, as cm/files.py does.
def execute(ops):
    for name, path, *more in ops:
        if name == "makedirs":
            makedirs(path)
        elif name == "rename":
            os.rename(path, more[0])
        elif name == "finish":
            switch.finish()
        elif path.startswith("/.cm/new/"):
            write(path, more[0])
        else:
            write(path + ".mbm-part", more[0])
            os.rename(path + ".mbm-part", path)


def fresh():
    flash = power_on(fresh=True)
    for path, text in GIVEN["before"].items():
        makedirs(path.rpartition("/")[0] or "/")
        write(path, text)
    power_off(flash)


# Starts the board, as boot.py does.
def start():
    state.calls.clear()
    try:
        switch.start()
    except OSError:
        pass


# Returns which files the board has, and what it says of them.
def look():
    found = "mixture"
    for name in ("before", "after", "between"):
        if name not in GIVEN:
            continue
        wanted = {path: text for path, text in GIVEN[name].items() if path != STATE}
        if all(read(path) == wanted.get(path) for path in GIVEN["paths"]):
            found = name
    said = (read(STATE) or "").split("\n")
    return "%s %s%s" % (found, (said[0].split() or ["nothing"])[0], " back" * (len(said) > 1))


# Cuts the power at the k-th write; then the board starts twice. Returns what it has after each
# start, or None if there are fewer writes. A cut in these starts, too, is in test_switch.py:
# littlefs itself crashes here on a cut at the first write after that of a rename.
def cut(image, k, act):
    Flash.data[:] = image
    flash = power_on(k)
    try:
        act()
        return None
    except OSError:
        pass
    finally:
        power_off(flash)
    seen = []
    for _ in range(2):
        flash = power_on()
        start()
        seen.append(look())
        power_off(flash)
        gc.collect()
    return " > ".join(seen)


def every(image, act):
    outcomes = []
    while True:
        outcome = cut(image, len(outcomes) + 1, act)
        if outcome is None:
            return outcomes
        outcomes.append(outcome)


os.umount("/")
fresh()
old = bytes(Flash.data)
seen = {"stage": every(old, lambda: execute(GIVEN["ops"]))}


# Switches the power on with this image, and does something; returns the image afterwards.
def after(image, act):
    Flash.data[:] = image
    flash = power_on()
    act()
    power_off(flash)
    return bytes(Flash.data)


staged = after(old, lambda: execute(GIVEN["ops"]))
# A start that fails at a cut raises nothing, since boot.py goes on: the first half does.
seen["start"] = every(staged, lambda: (switch.finish(), switch.start()))
trying = after(staged, start)
seen["back"] = every(trying, switch.start)


def note(name):
    seen[name] = look()


after(trying, lambda: note("trial"))
after(after(trying, start), lambda: note("end"))
print(dumps(seen))
