# Runs on MicroPython: installs onto a littlefs whose power is cut at the k-th block write, for
# every k; prints in a line of JSON which version a board has after it starts again.
import os
import sys
from json import dumps

sys.path.insert(0, sys.argv[1])  # where cm/switch is
BROKEN = sys.argv[2] == "naive"  # without a journal: files are moved one by one

from ramflash import Flash, mkdir, power_off, power_on, read, write

from cm import switch

Flash.torn = sys.argv[2] == "torn"


# Like the installer: staged files first, the journal's name last.
def install(moves, gone):
    switch.finish()
    mkdir("/.cm")
    mkdir("/.cm/new")
    lines = []
    for number, (path, text) in enumerate(moves):
        write("/.cm/new/%d" % number, text)
        lines.append("+%d %s\n" % (number, path))
    lines += gone
    if BROKEN:
        switch_without(moves, gone)
        return
    write("/.cm/journal.new", "".join(lines))
    os.rename("/.cm/journal.new", "/.cm/journal")
    switch.finish()


def switch_without(moves, gone):
    for number, (path, _) in enumerate(moves):
        switch._move("/.cm/new/%d" % number, path)
    for line in gone:
        switch._try(os.remove if line[0] == "-" else os.rmdir, line[1:-1])
    os.rmdir("/.cm/new")


# The files of a package: long enough to take blocks of their own.
def files(version):
    body = "V = %d\n" % version + "# %d " % version * 150
    return [
        ("/lib/pack/__init__.mpy", body),
        ("/lib/pack/part.mpy", body),
        ("/lib/pack/deep/inner.mpy", body),
        ("/lib/helper%d.mpy" % version, body),
        ("/.cm/packages", "pack %d" % version),
    ]


OLD = files(1) + [("/lib/shadow.py", "old source"), ("/lib/gone/x.mpy", "goes")]
NEW = files(2) + [("/lib/shadow.mpy", "new bytecode")]
GONE = ["-/lib/helper1.mpy\n", "-/lib/shadow.py\n", "-/lib/gone/x.mpy\n", "_/lib/gone\n"]
ALL = sorted({path for path, _ in OLD + NEW})


def state(before, after):
    found = [(path, read(path)) for path in ALL]
    for name, wanted in (("old", before), ("new", after)):
        wanted = dict(wanted)
        if all(wanted.get(path) == text for path, text in found):
            return name
    return "mixture"


def fresh(installed):
    flash = power_on(fresh=True)
    mkdir("/lib")
    write("/lib/theirs.py", "the user's own")
    if installed:
        install(OLD, [])
    power_off(flash)
    return bytes(Flash.data)


# Cuts the power at the k-th write of an install; then the board starts again. Returns None if the
# install has fewer writes.
def cut(image, k, before, gone):
    Flash.data[:] = image
    flash = power_on(k)
    try:
        install(NEW, gone)
        return None
    except OSError:
        pass
    finally:
        power_off(flash)
    for again in (1, 2, 3, -1):  # the power may go while it starts, too
        flash = power_on(again)
        try:
            switch.finish()
        except OSError:
            pass
        power_off(flash)
    flash = power_on()
    outcome = state(before, NEW)
    if read("/lib/theirs.py") != "the user's own":
        outcome = "the user's file is gone"
    install(NEW, gone)
    if state(before, NEW) != "new" or set(os.listdir("/.cm")) != {"packages"}:
        outcome = "the next install does not complete it"
    power_off(flash)
    return outcome


os.umount("/")
seen = {}
for name, before, gone in (("install", [], []), ("upgrade", OLD, GONE)):
    image = fresh(bool(before))
    outcomes = []
    while True:
        outcome = cut(image, len(outcomes) + 1, before, gone)
        if outcome is None:
            break
        outcomes.append(outcome)
    seen[name] = outcomes
print(dumps(seen))
