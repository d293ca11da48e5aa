# Runs on MicroPython: replays recorded writes of an install, cuts the power at the k-th, for every
# k, and prints in a line of JSON which files a board has after it has started again.
import hashlib
import os
import sys
from binascii import hexlify
from json import dumps
from struct import unpack

BLOCK = 4096
CLIENT, IMAGE, WRITES, PATHS = sys.argv[1:5]
sys.path.insert(0, CLIENT)  # where cm/switch is

from cm import switch


class Flash:
    def __init__(self, image):
        self.data = memoryview(bytearray(image))

    def readblocks(self, n, buf, offset=0):
        at = n * BLOCK + offset
        buf[:] = self.data[at : at + len(buf)]

    def writeblocks(self, n, buf, offset=0):
        at = n * BLOCK + offset
        self.data[at : at + len(buf)] = buf

    def ioctl(self, op, arg):
        return len(self.data) // BLOCK * (op == 4) + BLOCK * (op == 5)


def sha(path):
    try:
        with open(path, "rb") as file:
            return hexlify(hashlib.sha256(file.read()).digest()).decode()
    except OSError:
        return None


def look(flash, image):
    flash.data[:] = image
    os.mount(os.VfsLfs2(flash), "/")
    switch.finish()
    found = [sha(path) for path in PATHS.split(",")]
    os.umount("/")
    return found


with open(IMAGE, "rb") as file:
    image = memoryview(bytearray(file.read()))
seen = []
with open(WRITES, "rb") as writes:
    os.umount("/")
    flash = Flash(image)
    seen.append(look(flash, image))
    while True:
        head = writes.read(8)
        if not head:
            break
        at, n = unpack("<II", head)
        data = writes.read(n)
        image[at : at + n // 2] = data[: n // 2]  # torn
        seen.append(look(flash, image))
        image[at : at + n] = data
    seen.append(look(flash, image))
print(dumps(seen))
