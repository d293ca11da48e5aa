# File operations on the board's file systems; their data passes through the link's one buffer.
# Boards: all; loaded for a job with files, dropped after it. Without it such jobs fail.
# Cost: 2,091 bytes of .mpy, 2,352 bytes of heap (mpy-cross 1.29, 32-bit, 2026-11-30).
from cm import link, run, state
from cm.firmware import binascii, hashlib, json, os, struct

hexlify = binascii.hexlify
pack_into = struct.pack_into
buf = link.buf
mv = link.mv
send = link.send

# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)
_OUT = const(16)
_HEADER = const(6)
_TAG = const(16)
_CHUNK = const(0x24)
_RESTART_FILE = const(0x01)
_RESUME_STATE = const(0x01)
_OP_RESULT = const(0x02)
_NEXT_OPS = const(0x02)

_DIR = const(0x4000)  # of st_mode

# Bytes: between two progress reports, transferred in this job, transferred at the last report.
step = moved = reported = 0
view = mv[_OUT:-_TAG]  # the rest is for a MAC (mac.py)


# Serves the link between two steps. Returns the length of a message for this job, or 0; with `wait`
# it waits for one. A lost link, or a server that stands still, ends the job, since the rest of its
# data would not arrive.
def receive(wait):
    state.answer = 0
    while True:
        if not state.socket or run.ticks_diff(run.ticks_ms(), link.heard) > state.timeout:
            raise KeyboardInterrupt("link lost")
        if run.poll(_IN):
            raise KeyboardInterrupt
        if state.answer or not wait:
            return state.answer
        link.wait(50)  # ms: resolution of the job's timeout


# Returns the SHA-256 of a file as it is on the flash.
def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            n = file.readinto(view)
            if not n:
                return h.digest()
            h.update(view[:n])
            receive(False)


# Returns the SHA-256 of a file of this size (-1: any size) in hex; "" if its size differs, None
# without a file, False for a folder.
def hash(path, size):
    try:
        st = os.stat(path)
        if st[0] & _DIR:
            return False
        return hexlify(sha256(path)).decode() if size in (st[6], -1) else ""
    except OSError:
        pass


# Lists a folder. The paths are bytes in one that has a name that is not UTF-8. Older versions of
# MicroPython return such a name as a str, which cannot be decoded again. Where another file system
# is mounted, "/" has an entry without size (extmod/vfs.c): it is no part of a whole tree, so that
# sync does not delete what is on an SD card.
def ls(path, deep):
    slash = "/" if isinstance(path, str) else b"/"
    found = []
    try:
        for entry in os.ilistdir(path):
            if deep and len(entry) < 4:
                continue
            name = path.rstrip(slash) + slash + entry[0]
            if slash == "/":
                name.encode().decode()
            found.append((name, entry[1], entry[-1]))
            receive(False)
            if deep and entry[1] == _DIR:
                found += ls(name, deep)
        return found
    except UnicodeError:
        return ls(path.encode(), deep)


def rm(path, deep):
    if os.stat(path)[0] & _DIR:
        if not deep:
            raise OSError(21)
        for entry in ls(path, False):
            rm(entry[0], deep)
        os.rmdir(path)
    else:
        os.remove(path)


# Makes a folder and its parents; existing ones are no error.
def makedirs(path):
    at = 0
    while at >= 0:
        at = path.find("/", at + 1)
        try:
            os.mkdir(path if at < 0 else path[:at])
        except OSError as e:
            if e.errno != 17:
                raise


# Writes to PATH.mbm-part, verifies what the flash holds, and renames: after a power cut there is
# the old file or the new one. The server decides whether a partial file of an earlier attempt is of
# the same content. Returns how many bytes were written. A staged file, which nothing uses yet, is
# written in place, since a rename costs littlefs more.
def put(path, size, digest, staged=False):
    global moved, reported
    if path == ":firmware":
        return ota("write", size, digest)
    part = path if staged else path + ".mbm-part"
    have = 0
    file = None
    there = hash(path, size)
    if there is False:
        raise OSError(21)
    if there == digest:
        part = path
    try:
        have = os.stat(part)[6]
        view[4:36] = sha256(part)
    except OSError:
        pass
    before = moved
    pack_into(">I", buf, _OUT, have)
    send(_CHUNK, _RESUME_STATE, _OUT, _OUT + 36)
    try:
        while not file or have < size:
            n = receive(True)
            if there == digest:
                return 0
            if not file:
                fresh = buf[_IN + 1] & _RESTART_FILE
                if fresh:
                    have = 0
                file = open(part, "wb" if fresh else "ab")
            file.write(mv[_IN + _HEADER : _IN + n])
            have += n - _HEADER
            moved += n - _HEADER
            if moved - reported >= step:
                file.flush()
                reported = moved
                pack_into(">I", buf, _OUT, reported)
                send(_CHUNK, 0, _OUT, _OUT + 4)
        file.close()
        if hexlify(sha256(part)).decode() != digest:
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
    global moved, reported
    h = hashlib.sha256()
    size = 0
    with open(path, "rb") as file:
        send(_CHUNK, _RESUME_STATE, _OUT, _OUT)
        while True:
            n = file.readinto(view)
            if not n:
                return size, hexlify(h.digest()).decode()
            h.update(view[:n])
            send(_CHUNK, 0, _OUT, _OUT + n)
            size += n
            moved += n
            while True:
                n = receive(moved - reported > 4 * step)
                if not n:
                    break
                reported = struct.unpack_from(">I", buf, _IN + _HEADER)[0]


# Completes the install that a journal describes, if there is one.
def finish(_):
    from cm.switch import finish

    finish()
    link.drop("switch")


# Firmware; only the server may send it.
def ota(name, *args):
    from cm import ota

    link.drop("ota")
    return getattr(ota, name)(*args)


# Mounts a caller's folder, or unmounts it; only the server may send it.
def mount(path, files=""):
    from cm.mount import update

    update(path, files)


# Performs operations in order and returns their results. They are functions of this module or of
# `os`. A path that is not UTF-8 is a list of its bytes. If the JSON has a third item, each result
# is sent to the server, which then sends the next operations.
def run_part(text):
    global moved, step, reported
    moved = reported = 0
    while True:
        step, ops, *more = json.loads(text)
        answers = []
        for name, path, *rest in ops:
            if isinstance(path, list):
                path = bytes(path)
            try:
                op = globals().get(name) or getattr(os, name)
                answer = op(path, *rest)
            except OSError as e:
                if not more:
                    raise OSError(e.errno, path)
                answer = {"errno": e.errno}
            if not more:
                answers.append(answer)
                continue
            data = json.dumps(answer).encode()
            view[: len(data)] = data
            send(_CHUNK, _OP_RESULT, _OUT, _OUT + len(data))
            if isinstance(answer, dict):
                break
        if not more:
            return answers or None
        n = receive(True)
        while not buf[_IN + 1] & _NEXT_OPS:  # a late acknowledgement of file data
            n = receive(True)
        text = mv[_IN + _HEADER : _IN + n]
