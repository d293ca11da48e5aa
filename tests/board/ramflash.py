# Runs on MicroPython: a littlefs in memory, whose power is cut after a number of block writes.
import os

SIZE = 512
BLOCKS = 256


class Flash:
    data = memoryview(bytearray(SIZE * BLOCKS))  # one for all: allocating costs the most here
    torn = False  # whether the block at which the power goes is half written

    def __init__(self):
        self.left = -1  # writes until the power goes; never

    def readblocks(self, n, buf, offset=0):
        at = n * SIZE + offset
        buf[:] = self.data[at : at + len(buf)]

    def writeblocks(self, n, buf, offset=0):
        buf = memoryview(buf)
        at = n * SIZE + offset
        if self.left == 0:
            raise OSError(5)
        self.left -= 1
        if self.left == 0:
            if self.torn:
                half = len(buf) // 2
                self.data[at : at + half] = buf[:half]
            raise OSError(5)
        self.data[at : at + len(buf)] = buf

    def ioctl(self, op, arg):
        if op == 4:
            return BLOCKS
        if op == 5:
            return SIZE
        return 0


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def read(path):
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return None


def mkdir(path):
    try:
        os.mkdir(path)
    except OSError:
        pass


# Switches the power on, for `left` writes; -1: without limit.
def power_on(left=-1, fresh=False):
    flash = Flash()
    if fresh:
        os.VfsLfs2.mkfs(flash, readsize=32, progsize=32, lookahead=32)
    flash.left = left
    mount(flash)
    return flash


def mount(flash):
    os.mount(os.VfsLfs2(flash, readsize=32, progsize=32, lookahead=32), "/")


# A file that is still open may write when it is collected; that write fails, too.
def power_off(flash):
    os.umount("/")
    flash.left = 0
