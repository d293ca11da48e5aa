# Finishes an install: moves staged files to their places, as a journal says, however often.
# Boards: all; safe against power cuts on littlefs. Imported where a journal is, then dropped.
# Cost: 448 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-25).
#
# Whoever installs puts the files into /.cm/new, and their names last into /.cm/journal, by a
# rename: from that moment the install has happened, even if the power goes. Each line is one of
#   +NUMBER PATH   /.cm/new/NUMBER goes to PATH, whose folders are made
#   -PATH          this file goes
#   _PATH          this folder goes, if it is empty
# A line that is done already changes nothing. What cannot be done leaves the journal as it is.
import os

_ENOENT = const(2)


# Calls; that there is no such thing, or that there is one already, is as good as done.
def _do(act, *path):
    try:
        act(*path)
    except OSError as e:
        if e.errno not in (_ENOENT, 17, 39):  # EEXIST, ENOTEMPTY
            raise


def _move(staged, path):
    at = path.find("/", 1)
    while at > 0:
        _do(os.mkdir, path[:at])
        at = path.find("/", at + 1)
    _do(os.rename, staged, path)


# Does what the journal says, if there is one.
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
                _do(os.remove, path)
            elif line[0] == "_":
                _do(os.rmdir, path)
    os.remove("/.cm/journal")
    _do(os.rmdir, "/.cm/new")
