# Runs on MicroPython: upgrades a client on a littlefs whose power is cut at the k-th block write,
# for every k; prints in a line of JSON which client a board has after it starts again.
#
# It runs cm_start.py and the cells of cloudmanager/client/client_upgrade.py, given as a JSON file.
import os
import sys
from json import dumps, loads

sys.path.insert(0, sys.argv[1])  # where cm_start is
with open(sys.argv[2]) as file:
    CELLS = loads(file.read())
BROKEN = "broken" in sys.argv  # the new client does not start

from ramflash import Flash, mkdir, mount, power_off, power_on, read, write

import cm_start

sys.modules["cm.console"] = sys  # as on a board that was installed by mbm flash

Flash.torn = "torn" in sys.argv
NAMES = ("link.mpy", "run.mpy", "about.mpy")
PIECE = 600


# The files of a client: long enough to take blocks of their own.
def client(version):
    return {name: ("%s of client %d, " % (name, version)).encode() * 40 for name in NAMES}


def cell(which, **inputs):
    sys.modules["cm_start"] = cm_start
    exec(CELLS[which], inputs)


def upgrade(flash, version):
    cell("prepare", size=1)
    for name, data in client(version).items():
        for at in range(0, len(data), PIECE):
            cell("write", name=name, mode="ab" if at else "wb", data=data[at : at + PIECE])
    cell("hashes")
    cell("commit")
    os.umount("/")  # it restarts
    mount(flash)
    boot(version)


# Like start() in cm_start.py; if the new client connects, the fleet confirms it.
def boot(version):
    if cm_start._choose():
        if BROKEN and running() == version:
            cm_start._roll_back()
        else:
            cell("confirm")


# Returns the version of the client, if exactly its files exist.
def running():
    found = {name: (read("/lib/cm/" + name) or "").encode() for name in NAMES}
    for version in (1, 2, 3):
        if found == client(version):
            return version
    return "a mixture"


def installed():
    flash = power_on(fresh=True)
    mkdir("/lib")
    mkdir("/lib/cm")
    for name, data in client(1).items():
        write("/lib/cm/" + name, data.decode())
    power_off(flash)
    return bytes(Flash.data)


# Cuts the power at the k-th write of an upgrade; then the board starts. Returns None if the upgrade
# has fewer writes.
def cut(image, k, starts):
    Flash.data[:] = image
    flash = power_on(k)
    try:
        upgrade(flash, 2)
        return None
    except OSError:
        pass
    finally:
        power_off(flash)
    for left in starts:
        flash = power_on(left)
        try:
            boot(2)
        except OSError:
            pass
        power_off(flash)
    flash = power_on()
    outcome = running()
    upgrade(flash, 3)
    if running() != 3 and not BROKEN:
        outcome = "the next upgrade fails"
    power_off(flash)
    return outcome


os.umount("/")
image = installed()
seen = {}
for name, starts in (("once", (-1,)), ("again", (1, 2, 3, -1))):  # it may go while it starts, too
    outcomes = []
    while True:
        outcome = cut(image, len(outcomes) + 1, starts)
        if outcome is None:
            break
        outcomes.append(outcome)
    seen[name] = outcomes
print(dumps(seen))
