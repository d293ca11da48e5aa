# The trial of a new generation (switch.py): it proves itself, or the board goes back by itself.
# Boards: all; loaded at a start on trial, and until that is over.
# Cost: 1,152 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# /.cm/state is "trial HASH GOOD LIMIT" after the switch and "trying HASH GOOD LIMIT" from the first
# start on. A second start finds that, and goes back. The generation is proven when it has run for
# GOOD seconds (0: the server decides, by writing "proven HASH"), or the program calls cm.healthy(),
# and the board has a link. After LIMIT seconds the board goes back. Then a second line of the file
# says "reverted HASH REASON"; a REASON that begins with a "?" says nothing against the generation.
#
# A generation may bring firmware (ota.py), which is on trial with it: a reset goes back to the old.
from cm import link, state
from cm.firmware import os, time

_STATE = const("/.cm/state")

text = ""  # the state
good = 0  # ms
limit = 0
begun = 0  # ticks
ota = None  # the module, if there is firmware on trial


def _write(line):
    with open(_STATE + ".new", "w") as file:
        file.write(line)
    os.rename(_STATE + ".new", _STATE)


# Goes back, before the user's program starts. The journal of the way back restores the old state.
def _revert(name, reason):
    from cm import switch

    try:
        os.rename("/.cm/back", "/.cm/journal")
    except OSError:  # it is applied already
        pass
    switch.finish()
    old = ""
    try:
        with open(_STATE) as file:
            old = file.readline().rstrip("\n")
    except OSError:  # it had no generation
        pass
    _write("%s\nreverted %s %s" % (old, name, reason))


# Called about once a second until it returns True.
def _check():
    global text
    run = time.ticks_diff(time.ticks_ms(), begun)
    with open(_STATE) as file:
        if file.readline() != text:  # the server has decided
            return True
    app = state.app_state
    if app.startswith("app.py ended: ") or app.startswith("safe"):
        reason = app
    elif good and run >= good and state.socket:
        if ota:
            ota.keep()
        _write("proven " + text.split()[1])
        return True
    elif run < limit:
        return False
    else:
        reason = "?not confirmed in time" if state.socket else "?no link"
    text = "%s %s" % (text, reason)
    _write(text)
    return state.console.hard_reset()


# The program's cm.healthy(): it has proven itself.
def _healthy():
    global good
    good = 1


def start(line, failed):
    global text, good, limit, begun, ota
    word, name, good, limit, *reason = line.split(None, 4)
    firmware = 0
    if "ota" in os.listdir("/.cm"):
        from cm import ota

        link.drop("ota")
        firmware = ota.trial()
        if firmware > 1:
            return _write("proven " + name)  # the power was cut between keep() and this
        if word == "trial":
            if firmware < 0:  # this start is a soft reset
                return state.console.hard_reset()
            if not firmware:
                failed = failed or "the new firmware did not start"
    if failed or word == "trying":
        if firmware:
            ota.back()
        _revert(name, failed or "".join(reason) or "it restarted")
        if firmware:
            state.console.hard_reset()
        return None
    text = "trying" + line[5:]
    good = int(good) * 1000
    limit = int(limit) * 1000
    begun = time.ticks_ms()
    _write(text)
    link.cm.healthy = _healthy
    state.calls.append(_check)
    return None
