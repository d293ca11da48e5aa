# What a board keeps over deep sleep, how it starts after one, and how it sleeps.
# Boards: all; loaded to start app.py, and kept only if cm.sleep has put the board to sleep.
# Cost: 1,513 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# ESP32 and ESP8266 keep it in RTC memory, behind what the user's program keeps there; load() cuts
# it off before that program starts. It ends with _HEAD; before it are samples, each after its age
# and length. RP2 has nothing but the scratch registers of its watchdog, which survive each reset
# but that of power: 0 counts bad starts of app.py, 1 and 2 are the ms of a sleep and of its rest.
from cm import link, state
from cm.firmware import json, machine, struct, sys, time

# ms of the sleep and of its rest, connect_every, skipped, lost, bytes, _MAGIC
_HEAD = const(">IIHHHHH")
_HEAD_BYTES = const(18)
_ENTRY = const(">IH")
_ENTRY_BYTES = const(6)
_MAGIC = const(0x5C4D)
_RP2_MAGIC = const(0xC3 << 24)
_SHORT_TURN_MS = const(70 * 60000)  # RP2 refuses more than 71 minutes, and ESP8266 wraps there
_HOLD_MS = const(15000)  # ms after which a program that does not sleep lets the board connect
_LOOK_MS = const(500)  # ms between two looks whether the program sleeps
_TURN_MS = const(10 * 86400000)  # a small int

slept = 0  # ms of the cm.sleep from which the board woke; -1: it woke from another deep sleep
every = 1  # it connects at each such wake
skipped = 0  # wakes since it was connected
rp2 = sys.platform == "rp2"
registers = 0x4005800C  # RP2040's; the first of the scratch registers
if "RP2350" in getattr(sys.implementation, "_machine", ""):
    registers = 0x400D800C


def _memory():
    if hasattr(state.console, "memory"):  # a virtual board
        return state.console.memory
    return getattr(machine.RTC(), "memory", _none)


def _none(*_):
    return b""


# Returns for how many ms the board has been awake.
def awake():
    return time.ticks_diff(time.ticks_ms(), getattr(state.console, "started", 0))


# Reads what was kept, at a start. It does not return if the sleep is not over: chips sleep in
# turns.
def load():
    global slept, every, skipped
    rest = 0
    if rp2:
        if machine.mem32[registers] & 0xFF000000 == _RP2_MAGIC:
            slept = machine.mem32[registers + 4]
            rest = slept and machine.mem32[registers + 8]
            machine.mem32[registers + 4] = 0
    else:
        memory = _memory()
        data = memory()
        end = len(data) - _HEAD_BYTES
        if end >= 0 and data[-2:] == b"\x5c\x4d":
            kept = link.find("kept")
            slept, rest, every, skipped, kept.lost, size, _ = struct.unpack_from(_HEAD, data, end)
            at = end - size
            memory(data[:at])
            while at < end:
                age, n = struct.unpack_from(_ENTRY, data, at)
                at += _ENTRY_BYTES + n
                kept.items.append((-age, data[at - n : at]))
        elif getattr(machine, "DEEPSLEEP_RESET", _none) == getattr(machine, "reset_cause", _none)():
            slept = -1
    if rest:
        _sleep(slept, rest)


# RP2: counts the bad starts in a row of a version of app.py; without n, returns their number. Other
# ports keep it in flash; there it returns None.
def count(version, n=None):
    if rp2:
        tag = _RP2_MAGIC | (hash(version) & 0xFFFF) << 8
        if n is None:
            n = machine.mem32[registers]
            return n & 0xFF if n & ~0xFF == tag else 0
        machine.mem32[registers] = tag | n
        return n
    return None


# Returns a setting of /cm.json.
def setting(name, default):
    with open("/cm.json") as file:
        return json.load(file).get(name, default)


# Keeps an async program's board from connecting at a wake at which it does not.
def hold():
    if skipped + 1 < every:
        while awake() < _HOLD_MS:
            link.idle(_LOOK_MS)


# Sleeps; afterwards the board starts again.
def sleep(ms):
    _sleep(ms, ms)


def _sleep(ms, rest):
    console = state.console
    turn = min(rest, _SHORT_TURN_MS if rp2 or sys.platform == "esp8266" else _TURN_MS)
    if rp2:
        if machine.mem32[registers] & 0xFF000000 != _RP2_MAGIC:
            machine.mem32[registers] = _RP2_MAGIC
        machine.mem32[registers + 4] = ms
        machine.mem32[registers + 8] = rest - turn
    else:
        memory = _memory()
        data = memory()
        kept = link.find("kept")
        kept.trim((492 if sys.platform == "esp8266" else 2048) - _HEAD_BYTES - len(data))
        now = awake()
        size = 0
        for at, sample in kept.items:
            entry = struct.pack(_ENTRY, now - at + turn, len(sample)) + sample
            size += len(entry)
            data += entry
        memory(data + struct.pack(_HEAD, ms, rest - turn, every, skipped, kept.lost, size, _MAGIC))
    if state.nic:  # RP2 wakes at once while Wi-Fi is on
        try:
            state.nic.disconnect()
            state.nic.active(False)
        except OSError:
            pass
    if hasattr(console, "deepsleep"):
        console.deepsleep(turn)
    console.close()
    machine.deepsleep(turn)
    machine.reset()  # RP2, if it could not sleep
