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
# On a chip it is in C, where no interrupt comes between, and littlefs is not made for one that
# flies through it. Here a pending interrupt comes out at a jump: so these methods have none.
# A test may set how many writes are left until the power is cut, in the middle of the next.
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

    def cut(self, left):
        self.left = left
        self.write = self.last

    def last(self, buf):
        self.left -= 1
        if self.left < 0:
            self.file.write(memoryview(buf)[: len(buf) // 2])
            os.system("kill -9 $PPID")
        self.file.write(buf)


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


def _mount(flash):
    os.umount("/")
    try:
        fs = os.VfsLfs2(flash)
    except OSError:
        os.VfsLfs2.mkfs(flash)
        fs = os.VfsLfs2(flash)
    os.mount(fs, "/")
    os.chdir("/")


# The settings; an identity or a key that the board was given since is the one that counts.
def _settled(config):
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


# An install that lost its power comes to its end before all else.
def _finish_install():
    try:
        os.stat("/.cm/journal")
        from cm import switch

        switch.finish()
    except Exception:  # whatever happens, the board dials in, so that it can be mended
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
    _mount(flash)
    sys.path[:] = ["", "/lib", ".frozen"]
    _mkdir("/lib")
    _mkdir("/lib/cm")
    for name in parts:
        _write("/lib/cm/" + name, parts[name])
    _write("/cm.json", dumps(_settled(told["config"])).encode())
    _finish_install()
    box = uctypes.bytearray_at(told["box"], 32)
    del told, parts
    del sys.modules["virtual_boot"]
    from cm import link, unix

    unix.box = box
    unix.pipe = pipe
    unix.flash = flash
    pack_into("<q", box, 8, id(unix.note))  # it lives on as the module's
    gc.collect()
    if "app.py" in os.listdir("/"):
        from cm import app

        app.begin()
    link.start(unix)
