# Runs on MicroPython: firmware over the air with the power cut at every write, to the slots and to
# the file system; prints in a line of JSON how each cut ended.
#
# The operations are those of the server's job, given as a JSON file: see test_ota.py.
import builtins
import os
import sys
from binascii import a2b_base64
from json import dumps, loads

sys.path.insert(0, sys.argv[1])  # where cm/ota, cm/switch and cm/trial are
with open(sys.argv[2]) as file:
    GIVEN = loads(file.read())
IMAGE, OLD = a2b_base64(GIVEN["image"]), a2b_base64(GIVEN["old"])

import standin_ota
from ramflash import Flash, power_off, power_on, read, write
from standin_ota import SECTOR, SLOT

import cm


class Stub:
    pass


class PowerCut(BaseException):
    pass


class Reset(BaseException):
    pass


def end(error):
    raise error


link, state, files, esp32 = Stub(), Stub(), Stub(), Stub()
link.cm = cm
link.drop = lambda part: None  # it could not be loaded again from this file system
state.calls, state.app_state, state.socket, state.console = [], "", None, Stub()
state.console.hard_reset = lambda: end(Reset)
buf = bytearray(900)
files.buf, files.mv = buf, memoryview(buf)
files.view = files.mv[16:-16]
files.moved = files.reported = 0
from struct import pack_into

files.pack_into = pack_into
for name, module in (("link", link), ("state", state), ("files", files)):
    setattr(cm, name, module)
    sys.modules["cm." + name] = module
real_import = __import__
# With an empty sys.path, only built-in modules are imported.
builtins.__import__ = lambda name, *rest: esp32 if name == "esp32" else real_import(name, *rest)
SENT = 14  # where a received piece begins, after the header

sent = [0, True]  # offset in the image; whether the board has said where to begin


def send(op, flags, start, stop):
    if flags:
        sent[0] = int.from_bytes(buf[16:20], "big")


def receive(wait):
    if not wait:
        return 0
    piece = IMAGE[sent[0] : sent[0] + 800]
    files.mv[SENT : SENT + len(piece)] = piece
    sent[0] += len(piece)
    return 6 + len(piece)


files.send, files.receive = send, receive

import asyncio  # noqa: F401 - what is imported later would need the file system that is unmounted

esp32.Partition = standin_ota.make_partition(standin_ota.Chip(standin_ota.Memory()))
from cm import firmware, ota, switch, trial  # noqa: F401


class Board:
    """A chip, its slots and its file system."""

    def __init__(self, slots, files_image, rolls_back=True):
        self.slots = standin_ota.Memory(slots)
        self.files_image = files_image
        self.rolls_back = rolls_back
        self.flash = None
        self.chip = None

    def on(self, cut_slots=-1, cut_files=-1):
        self.chip = standin_ota.Chip(self.slots, self.rolls_back, cut_slots, lambda: end(PowerCut))
        self.chip.reset()
        self.wake(cut_files)

    def wake(self, cut_files=-1):
        ota.Partition = standin_ota.make_partition(self.chip)
        ota.running = ota.Partition(ota.Partition.RUNNING)
        ota.label = ota.running.info()[4]
        trial.ota = None
        state.calls.clear()
        Flash.data[:] = self.files_image
        self.flash = power_on(cut_files)

    def off(self):
        power_off(self.flash)
        self.files_image = bytes(Flash.data)


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
        elif name == "rm":
            os.remove(path)
        elif name == "ota":
            getattr(ota, path)(*more)
        elif path == ":firmware":
            ota.write(*more)
        elif path.startswith("/.cm/new/"):
            write(path, more[0])
        else:
            write(path + ".mbm-part", more[0])
            os.rename(path + ".mbm-part", path)


# Starts the client until it resets no more; returns what runs, and what the board says of itself.
def start(board, cut_slots=-1, cut_files=-1):
    for _ in range(4):
        board.on(cut_slots, cut_files)
        try:
            if cut_files >= 0:  # switch.start() goes on after an OSError in the journal
                switch.finish()
            switch.start()
        except OSError:
            if cut_files >= 0:
                board.off()
                raise PowerCut
        except Reset:
            board.off()
            continue
        except PowerCut:
            board.off()
            raise
        board.off()
        break
    else:
        return "it resets for ever"
    return look(board)


def look(board):
    place = 2 * SECTOR + board.chip.running * SLOT
    data = board.slots.data[place : place + max(len(IMAGE), len(OLD))]
    which = "new" if data[: len(IMAGE)] == IMAGE else "old" if data[: len(OLD)] == OLD else "BROKEN"
    Flash.data[:] = board.files_image
    flash = power_on()
    lines = (read("/.cm/state") or "").split("\n")
    program = (read("/app.py") or "none").split("\n")[0]
    power_off(flash)
    said = (lines[0].split() or ["nothing"])[0]
    back = " back" if len(lines) > 1 else ""
    return "%s %s %s%s" % (which, program, said, back)


# Does something with the power cut at the k-th write of one kind; then the board starts until it is
# at rest, and once more. Returns what it is after each.
def every(make, act, kind):
    outcomes = []
    while True:
        k = len(outcomes) + 1
        board = make()
        cuts = (k, -1) if kind == "slots" else (-1, k)
        was_cut = False
        try:
            act(board, *cuts)
        except PowerCut:
            was_cut = True
        if not was_cut:
            return outcomes
        seen = [start(board)]
        seen.append(start(board))
        outcomes.append(" > ".join(seen))


os.umount("/")
flash = power_on(fresh=True)
for path, text in GIVEN["before"].items():
    makedirs(path.rpartition("/")[0] or "/")
    write(path, text)
power_off(flash)
before = bytes(Flash.data)
old_slots = standin_ota.Memory()
old_slots.write(2 * SECTOR, OLD)


def fresh(rolls_back=True):
    return Board(bytes(old_slots.data), before, rolls_back)


def upgrade(board, cut_slots=-1, cut_files=-1):
    board.on(cut_slots, cut_files)
    sent[0] = 0
    try:
        execute(GIVEN["ops"])
    except OSError:
        raise PowerCut
    finally:
        board.off()


def upgraded(rolls_back=True):
    board = fresh(rolls_back)
    upgrade(board)
    return board


def first_start(board, cut_slots=-1, cut_files=-1):
    start(board, cut_slots, cut_files)


def on_trial(rolls_back=True):
    board = upgraded(rolls_back)
    assert start(board).startswith("new")
    return board


# The server keeps it, or the board goes back, while it runs.
def running(board, cut_slots, cut_files, act):
    board.chip.cut, board.chip.writes = cut_slots, 0
    board.chip.on_cut = lambda: end(PowerCut)
    board.wake(cut_files)
    try:
        act()
    except OSError:
        raise PowerCut
    finally:
        board.off()


def keep(board, cut_slots=-1, cut_files=-1):
    running(board, cut_slots, cut_files, lambda: execute(GIVEN["keep"]))


def go_back(board, cut_slots=-1, cut_files=-1):
    start(board, cut_slots, cut_files)


seen = {}
for kind in GIVEN["kinds"]:
    seen["write " + kind] = every(fresh, upgrade, kind)
    seen["start " + kind] = every(upgraded, first_start, kind)
    seen["keep " + kind] = every(on_trial, keep, kind)
    seen["back " + kind] = every(on_trial, go_back, kind)
board = on_trial()
seen["trial"] = look(board)
keep(board)
seen["kept"] = start(board)
board = on_trial()
seen["restarted"] = start(board)
# A boot loader that does not go back by itself: the client does.
board = on_trial(False)
seen["helped"] = start(board)
# A soft reset, which does not go through the boot loader, starts the new firmware all the same.
board = upgraded()
board.chip.on_cut = None
board.wake()
try:
    switch.start()
except Reset:
    seen["soft"] = "reset"
board.off()
seen["after soft"] = start(board)
# An image that the boot loader does not start.
board = upgraded()
board.slots.data[2 * SECTOR + SLOT + 100] ^= 1
seen["damaged"] = start(board)
print(dumps(seen))
