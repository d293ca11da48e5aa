# A virtual board, first steps: mounts the flash in a file, copies the client there, starts it.
# Boards: virtual ones only; it runs on the host's file system, before "/" is the flash.
# Cost: nothing that stays in memory.
import gc
import os
import sys
import uctypes
from json import dumps, loads
from struct import pack_into

_BLOCK = 4096


# Flash in a file: the block device of MicroPython's file systems, with littlefs's extended calls.
class _Flash:
    def __init__(self, path, blocks):
        self.blocks = blocks
        self.file = open(path, "r+b")

    def readblocks(self, n, buf, offset=0):
        self.file.seek(n * _BLOCK + offset)
        self.file.readinto(buf)

    def writeblocks(self, n, buf, offset=0):
        self.file.seek(n * _BLOCK + offset)
        self.file.write(buf)

    def ioctl(self, op, arg):
        if op == 4:
            return self.blocks
        if op == 5:
            return _BLOCK
        return 0


def _read(path):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None


def _write(path, data):
    if _read(path) != data:
        with open(path, "wb") as file:
            file.write(data)


def _mkdir(path):
    try:
        os.mkdir(path)
    except OSError:
        pass


# sys.argv: "-c", then the address and length of the settings that the host left in memory.
def start():
    told = loads(uctypes.bytes_at(int(sys.argv[1]), int(sys.argv[2])))
    sys.argv[:] = [""]
    parts = {}
    for name in os.listdir(told["client"] + "/cm"):
        parts[name] = _read(told["client"] + "/cm/" + name)
    pipe = open(told["pipe"], "wb")
    flash = _Flash(told["flash"], told["blocks"])
    os.umount("/")
    try:
        fs = os.VfsLfs2(flash)
    except OSError:
        os.VfsLfs2.mkfs(flash)
        fs = os.VfsLfs2(flash)
    os.mount(fs, "/")
    os.chdir("/")
    sys.path[:] = ["", "/lib", ".frozen"]
    _mkdir("/lib")
    _mkdir("/lib/cm")
    for name in parts:
        _write("/lib/cm/" + name, parts[name])
    _write("/cm.json", dumps(told["config"]).encode())
    box = uctypes.bytearray_at(told["box"], 32)
    del told, parts
    del sys.modules["virtual_boot"]
    from cm import link, unix

    unix.box = box
    unix.pipe = pipe
    pack_into("<q", box, 8, id(unix.note))  # it lives on as the module's
    gc.collect()
    if "app.py" in os.listdir("/"):
        from cm import app

        app.begin()
    link.start(unix)
