# Completes an install or a switch: moves files to their places as a journal lists them. Repeatable.
# Boards: all; safe against power cuts on littlefs. Loaded at a start and for installs; dropped.
# Cost: 797 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# The installer writes the files to /.cm/new, and last a list of them to /.cm/journal, by a
# rename. From then on the install is complete, even if the power fails. A line is one of
#   +NUMBER PATH   move /.cm/new/NUMBER to PATH; make its folders
#   -PATH          remove this file
#   _PATH          remove this folder if it is empty
#   *NUMBER PATH   the same as +, but what was at PATH is kept as /.cm/old/NUMBER
#   ~NUMBER PATH   remove PATH, but keep it as /.cm/old/NUMBER
#   <NUMBER PATH   move /.cm/old/NUMBER to PATH
# A line that was already applied has no effect. If a line fails, the journal stays as it is.
#
# A switch to another generation (docs/decisions/0028) uses the last three, and has the way back in
# /.cm/back, which is a journal, too. The first line of /.cm/state says which generation the board
# has: "proven HASH" or, until it has proven itself, "trial HASH GOOD LIMIT"; see trial.py.
from cm.firmware import os

_ENOENT = const(2)


# Calls a function; "does not exist" and "exists already" mean that an earlier run has done it.
def _try(func, *path):
    try:
        func(*path)
    except OSError as e:
        if e.errno not in (_ENOENT, 17, 39):  # EEXIST, ENOTEMPTY
            raise


def _move(staged, path):
    at = path.find("/", 1)
    while at > 0:
        _try(os.mkdir, path[:at])
        at = path.find("/", at + 1)
    _try(os.rename, staged, path)


def _has(path):
    try:
        os.stat(path)
        return True
    except OSError:
        return False


# Applies the journal, if there is one.
def finish():
    # After a power cut in a rename, littlefs hides another file of the folder, which may be the
    # journal, until something is written: lfs_remove() mends that first, and finds nothing.
    _try(os.remove, "/.cm/none")
    try:
        journal = open("/.cm/journal")
    except OSError:
        return
    with journal:
        for line in journal:
            path = line[1:].rstrip("\n")
            kind = line[0]
            if kind in "+*~<":
                number, path = path.split(" ", 1)
                new = "/.cm/new/" + number
                old = "/.cm/old/" + number
                if kind == "*" and not _has(new):
                    continue
                if kind in "*~" and not _has(old):
                    _move(path, old)
                if kind != "~":
                    _move(old if kind == "<" else new, path)
            elif kind == "-":
                _try(os.remove, path)
            elif kind == "_":
                _try(os.rmdir, path)
    os.remove("/.cm/journal")
    _try(os.rmdir, "/.cm/new")


# Called when the board starts, if there is a /.cm. A generation that has yet to prove itself gets
# one start for it. If its journal cannot be applied, such as for a full flash, the board goes back
# at once.
def start(_=None):
    from cm import link

    failed = ""
    try:
        finish()
    except OSError as e:
        failed = repr(e)
    with open("/.cm/state") as file:
        text = file.readline()
    if text.startswith("tr"):
        from cm import trial

        link.drop("trial")
        trial.start(text, failed)
