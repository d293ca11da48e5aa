# Completes an install: moves staged files to their places as a journal lists them. Repeatable.
# Boards: all; safe against power cuts on littlefs. Loaded if there is a journal, then dropped.
# Cost: 466 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# The installer writes the files to /.cm/new, and last a list of them to /.cm/journal, by a
# rename. From then on the install is complete, even if the power fails. A line is one of
#   +NUMBER PATH   move /.cm/new/NUMBER to PATH; make its folders
#   -PATH          remove this file
#   _PATH          remove this folder if it is empty
# A line that was already applied has no effect. If a line fails, the journal stays as it is.
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


# Applies the journal, if there is one.
def finish():
    try:
        journal = open("/.cm/journal")
    except OSError:
        return
    with journal:
        for line in journal:
            path = line[1:].rstrip("\n")
            if line[0] == "+":
                number, path = path.split(" ", 1)
                _move("/.cm/new/" + number, path)
            elif line[0] == "-":
                _try(os.remove, path)
            elif line[0] == "_":
                _try(os.rmdir, path)
    os.remove("/.cm/journal")
    _try(os.rmdir, "/.cm/new")
