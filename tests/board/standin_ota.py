# A STAND-IN for esp32.Partition and for the boot loader with app rollback, on a file. It follows
# ports/esp32/esp32_partition.c, and of ESP-IDF esp_ota_ops.c, bootloader_utility.c and
# esp_flash_partitions.h:
#
# * Two slots, ota_0 and ota_1, and otadata: two entries of a number that grows and a state. The
#   valid entry with the highest number says which slot starts; without one, the first does.
# * set_boot() checks the image and adds an entry NEW. A reset makes it PENDING, and starts it; the
#   next reset makes that ABORTED, which is not valid. mark_app_valid_cancel_rollback() makes it
#   VALID. Firmware from a cable has no entry: then that call is ESP_FAIL.
# * Flash is erased in sectors, to ones, and writing only clears bits.
#
# Runs on MicroPython, and on CPython for the tests. With `cut`, the power goes at that write.
import hashlib
import struct

SECTOR = 4096
SLOT_SECTORS = 16
SLOT = SLOT_SECTORS * SECTOR
LABELS = ("ota_0", "ota_1")
NEW, PENDING, VALID, INVALID, ABORTED, NONE = 0, 1, 2, 3, 4, 0xFFFFFFFF
SIZE = 2 * SECTOR + 2 * SLOT
ESP_FAIL = -1
ESP_ERR_NOT_FOUND = 0x105
ESP_ERR_OTA_VALIDATE_FAILED = 0x1503


class Memory:
    """The flash in memory."""

    def __init__(self, image=None):
        self.data = bytearray(image or b"\xff" * SIZE)

    def read(self, at, size):
        return bytes(self.data[at : at + size])

    def write(self, at, data):
        self.data[at : at + len(data)] = data


class File:
    """The flash in a file that is open for reading and writing."""

    def __init__(self, file):
        self.file = file

    def read(self, at, size):
        self.file.seek(at)
        return self.file.read(size)

    def write(self, at, data):
        self.file.seek(at)
        self.file.write(data)
        self.file.flush()


# A chip from reset to reset. `rolls_back`: whether its boot loader does; `on_cut` is called instead
# of the `cut`-th write.
class Chip:
    def __init__(self, flash, rolls_back=True, cut=-1, on_cut=None):
        self.flash, self.rolls_back = flash, rolls_back
        self.cut, self.on_cut = cut, on_cut
        self.writes = 0
        self.running = 0

    def _write(self, at, data):
        self.writes += 1
        if self.writes == self.cut:
            self.flash.write(at, data[: len(data) // 2])
            self.on_cut()
        self.flash.write(at, data)

    # An entry is written as a whole: the boot loader uses the other one if its checksum is wrong.
    def _write_entry(self, number, entry):
        self.writes += 1
        if self.writes == self.cut:
            self.on_cut()
        self.flash.write(number * SECTOR, struct.pack("<II", *entry))

    def entries(self):
        return [struct.unpack("<II", self.flash.read(n * SECTOR, 8)) for n in range(2)]

    # Returns the number of the entry that counts; -1 for none.
    def _active(self):
        entries = self.entries()
        valid = [n for n in range(2) if entries[n][0] != NONE and entries[n][1] < INVALID]
        return max(valid, key=lambda n: entries[n][0]) if valid else -1

    def boot_slot(self):
        active = self._active()
        return 0 if active < 0 else (self.entries()[active][0] - 1) % 2

    # What the boot loader does; a soft reset does not go through it.
    def reset(self):
        if self.rolls_back:
            for number, (sequence, state) in enumerate(self.entries()):
                if state == PENDING:
                    self.flash.write(number * SECTOR, struct.pack("<II", sequence, ABORTED))
            active = self._active()
            if active >= 0 and self.entries()[active][1] == NEW:
                sequence = self.entries()[active][0]
                self.flash.write(active * SECTOR, struct.pack("<II", sequence, PENDING))
        self.running = self.boot_slot()
        if not self.is_image(self.running) and self.is_image(1 - self.running):
            self.running = 1 - self.running

    # What happens at each start of the client. Which slot runs is kept behind the flash.
    def start(self, soft):
        if soft:
            self.running = self.flash.read(SIZE, 1)[0]
        else:
            self.reset()
            self.flash.write(SIZE, bytes([self.running]))

    # Returns the version of MicroPython in the slot that runs.
    def version(self):
        data = self.flash.read(2 * SECTOR + self.running * SLOT, SLOT)
        start = data.find(b"MicroPython v") + 13
        return data[start : data.find(b" on ", start)].decode() if start > 12 else "1.28.0"

    # esp_image_verify: the digest that is appended to the image.
    def is_image(self, slot):
        start = 2 * SECTOR + slot * SLOT
        head = self.flash.read(start, 24)
        size = image_size(self.flash.read(start, SLOT)) if head[:1] == b"\xe9" else 0
        if not size:
            return False
        data = self.flash.read(start, size)
        return hashlib.sha256(data[:-32]).digest() == data[-32:]

    def set_boot(self, slot):
        if not self.is_image(slot):
            raise OSError(-ESP_ERR_OTA_VALIDATE_FAILED)
        active = self._active()
        sequence = slot + 1
        if active >= 0:
            while sequence <= self.entries()[active][0]:
                sequence += 2
        self._write_entry(0 if active < 0 else 1 - active, (sequence, NEW))

    def mark_valid(self):
        active = self._active()
        if active < 0:
            raise OSError(-ESP_FAIL)
        sequence, state = self.entries()[active]
        if state != VALID:
            self._write_entry(active, (sequence, VALID))


# Returns the size of an image with its digest, by its segments; 0 if they are wrong.
def image_size(data):
    at = 24
    for _ in range(data[1]):
        at += 8 + struct.unpack("<I", data[at + 4 : at + 8])[0]
        if at > len(data):
            return 0
    return (at // 16 + 1) * 16 + 32


# Returns the class esp32.Partition of a chip.
def make_partition(chip):
    class Partition:
        BOOT, RUNNING, TYPE_APP, TYPE_DATA = 0, 1, 0, 1

        def __init__(self, which):
            if which == self.RUNNING:
                self.slot = chip.running
            elif which == self.BOOT:
                self.slot = chip.boot_slot()
            elif which in LABELS:
                self.slot = LABELS.index(which)
            else:
                raise OSError(2)

        def info(self):
            start = 0x10000 + self.slot * SLOT
            return (self.TYPE_APP, 0x10 + self.slot, start, SLOT, LABELS[self.slot], False)

        def _place(self, block, offset, size):
            at = block * SECTOR + offset
            if at + size > SLOT:
                raise OSError(-0x104)  # ESP_ERR_INVALID_SIZE
            return 2 * SECTOR + self.slot * SLOT + at

        def readblocks(self, block, buf, offset=0):
            buf[:] = chip.flash.read(self._place(block, offset, len(buf)), len(buf))

        def writeblocks(self, block, buf, offset=None):
            at = self._place(block, offset or 0, len(buf))
            if offset is None:
                chip._write(at, b"\xff" * len(buf))
            old = chip.flash.read(at, len(buf))
            chip._write(at, bytes([old[n] & buf[n] for n in range(len(buf))]))

        def ioctl(self, op, arg):
            if op == 4:
                return SLOT_SECTORS
            if op == 5:
                return SECTOR
            if op == 6:
                chip._write(self._place(arg, 0, SECTOR), b"\xff" * SECTOR)
            return 0

        def set_boot(self):
            chip.set_boot(self.slot)

        def get_next_update(self):
            return Partition(LABELS[1 - self.slot])

        @classmethod
        def mark_app_valid_cancel_rollback(cls):
            chip.mark_valid()

    return Partition
