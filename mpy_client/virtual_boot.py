# Boot of a virtual board: mounts the flash in a file, copies the client there, starts it.
# Boards: virtual ones only; it runs on the host's file system, before "/" is the flash.
# Cost: nothing that stays in memory.
import gc
import os
import sys
import uctypes
from io import BytesIO
from json import dumps, loads
from struct import calcsize, pack_into

import virtual_thread

_BLOCK = 4096
# The parts of the client that each wake needs.
_WAKE_PARTS = (
    "firmware state link run log unix boot restart switch app wake dial mac about facts clock sleep"
)


# A block device in a file, with littlefs's extended calls. On a chip this is C code, which no
# interrupt can end, and littlefs cannot handle an exception raised inside a block operation. Here a
# pending interrupt is raised at a jump: so these methods contain none. A test may cut the power in
# the middle of a write, after a number of writes.
class _Flash:
    def __init__(self, path, blocks):
        self.blocks = blocks
        self.file = open(path, "r+b")
        self.write = self.file.write

    def readblocks(self, n, buf, offset=0):
        self.file.seek(n * _BLOCK + offset)
        self.file.readinto(buf)

    def writeblocks(self, n, buf, offset=0):
        self.file.seek(n * _BLOCK + offset)
        self.write(buf)

    def ioctl(self, op, arg):
        return self.blocks * (op == 4) + _BLOCK * (op == 5)

    def cut_power_after(self, writes_left):
        self.writes_left = writes_left
        self.write = self._counted_write

    def _counted_write(self, buf):
        self.writes_left -= 1
        if self.writes_left < 0:
            self.file.write(memoryview(buf)[: len(buf) // 2])
            os.system("kill -9 $PPID")
        self.file.write(buf)


def _read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


# Writes the content of an open file to another file, unless it is there already; in pieces, because
# the heap may be small.
def _copy(source, path):
    piece = memoryview(bytearray(512))
    old = memoryview(bytearray(512))
    try:
        with open(path, "rb") as file:
            n = -1
            while n:
                n = source.readinto(piece)
                if file.readinto(old) != n or old[:n] != piece[:n]:
                    break
            else:
                return
    except OSError:
        pass
    source.seek(0)
    with open(path, "wb") as file:
        while True:
            n = source.readinto(piece)
            if not n:
                return
            file.write(piece[:n])


def _mkdir(path):
    try:
        os.mkdir(path)
    except OSError:
        pass


def _mount(flash):
    os.umount("/")
    try:
        fs = os.VfsLfs2(flash)
    except OSError:
        os.VfsLfs2.mkfs(flash)
        fs = os.VfsLfs2(flash)
    os.mount(fs, "/")
    os.chdir("/")


# Merges the host's settings with those on the board: a newer identity or key of the board wins.
def _merged_settings(config):
    try:
        own = loads(_read("/cm.json"))
        newer = own.get("gen", 0) > config.get("gen", 0)
        if "id" not in config or (own["id"] == config["id"] and newer):
            config.update({name: own[name] for name in ("id", "key", "gen") if name in own})
            if "id" in own:
                config.pop("token", None)
    except (KeyError, TypeError, ValueError):
        pass
    return config


# Returns the memory of the file descriptor in a stream (extmod/vfs_posix_file.c).
def _descriptor(stream):
    return uctypes.bytearray_at(id(stream) + calcsize("P"), 4)


# Returns whether the board has slept (cm/wake.py): then the client is on its flash already.
def _has_slept(rtc):
    end = 6 + rtc[4] + (rtc[5] << 8)
    return rtc[end - 2 : end] == b"\x5c\x4d"


# Imports what a wake needs from the host: from a file system in Python, it takes 6,000 reads. The
# files are those on the flash. Others are imported from there, as ever.
def _import_parts(folder):
    sys.path[:] = [folder]
    for name in _WAKE_PARTS.split():
        __import__("cm." + name)
    cm = sys.modules["cm"]
    cm.__path__ = "/lib/cm"
    del cm.sleep  # for user code, it is the function: see find() in cm/link.py


# Boots. sys.argv: "-c", then the address and length of the settings in the process's memory.
def start():
    spec = loads(uctypes.bytes_at(int(sys.argv[1]), int(sys.argv[2])))
    sys.argv[:] = [""]
    rtc = uctypes.bytearray_at(spec["rtc"], spec["rtc_bytes"])
    parts = None
    if _has_slept(rtc):  # then the flash has the client, and the settings
        _import_parts(spec["client"])
    else:
        parts = {}
        for name in os.listdir(spec["client"] + "/cm"):
            parts[name] = open(spec["client"] + "/cm/" + name, "rb")
    pipe = open(spec["pipe"], "wb")
    output = open(spec["output"], "rb")
    log = open(spec["log"], "ab")
    flash = _Flash(spec["flash"], spec["blocks"])
    _mount(flash)
    sys.path[:] = ["/lib"]
    if parts is not None:
        _mkdir("/lib")
        _mkdir("/lib/cm")
    name = part = None
    while parts:
        name, part = parts.popitem()
        with part:
            _copy(part, "/lib/cm/" + name)
    if parts is not None:
        _copy(BytesIO(dumps(_merged_settings(spec["config"])).encode()), "/cm.json")
    mailbox = uctypes.bytearray_at(spec["box"], 40)
    started = spec["started"]
    del spec, parts, name, part
    del sys.modules["virtual_boot"]
    del sys.modules["virtual_thread"]
    gc.collect()  # so that the client is at the start of the heap, and what is free is in one piece
    from cm import firmware, link, unix

    firmware.path = ["", "/lib", ".frozen"]
    unix.mailbox = mailbox
    unix.rtc = rtc
    unix.started = started
    unix.pipe = pipe
    unix.output = output
    unix.log_file = log
    unix.stdout_fd = _descriptor(sys.stdout)
    unix.stderr_fd = _descriptor(sys.stderr)
    unix.threads = virtual_thread
    unix.flash = flash
    virtual_thread._prepare = unix.prepare_threads
    pack_into("<q", mailbox, 8, id(unix.callback))  # a global of its module
    gc.collect()
    link.start(unix)
