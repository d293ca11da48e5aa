# Firmware over the air: writes an image to the other slot of the flash, and lets it be on trial.
# Boards: ESP32 with two slots for firmware; loaded for that, then dropped.
# Cost: 1,175 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
#
# The boot loader starts a slot that boot() has chosen once; unless keep() is called before the next
# reset, that reset starts the old slot again (ESP-IDF's app rollback). The trial of a generation
# (trial.py) decides which. While firmware is on trial, /.cm/ota is "NEW OLD", the labels of both
# slots, and "NEW OLD kept" from just before keep() confirms it to the boot loader. The server's
# journal brings and removes this file together with the state of the trial.
from cm import link
from cm.firmware import binascii, hashlib, sys

# Numbers: written by `python -m tests.board.client_numbers`.
_IN = const(8)
_OUT = const(16)
_HEADER = const(6)
_CHUNK = const(0x24)
_RESUME_STATE = const(0x01)

_SECTOR = const(4096)  # bytes that are erased at a time
_ERASE = const(6)  # MP_BLOCKDEV_IOCTL_BLOCK_ERASE
_MARK = const("/.cm/ota")

# Imported while no file can hide it (firmware.py).
path = sys.path[:]
sys.path[:] = ()
try:
    from esp32 import Partition
finally:
    sys.path[:] = path

running = Partition(Partition.RUNNING)
label = running.info()[4]


# Returns label and size of the slot that an image is written to, and the label of the one that
# runs. Raises OSError(2) if there is no other slot.
def slots():
    other = running.get_next_update().info()
    if other[4] == label:
        raise OSError(2)
    return other[4], other[3], label


# Adds to the facts how large an image may be.
def add(facts):
    link.drop("ota")
    facts["slots"] = 0
    facts["slots"] = slots()[1]


# Returns whether a slot has an image.
def _has(slot, size, digest):
    from cm import files

    h = hashlib.sha256()
    at = 0
    while at < size:
        piece = files.view[: size - at]
        slot.readblocks(0, piece, at)
        h.update(piece)
        at += len(piece)
        files.receive(False)
    return h.digest() == binascii.unhexlify(digest)


# Returns slots(), and whether an image is what runs. Raises another OSError if the boot loader
# cannot go back: the call that confirms firmware has no effect on one that is not on trial, and
# says whether it could (-1, ESP_FAIL, is that of firmware from a cable).
def look(size, digest):
    found = slots()
    try:
        Partition.mark_app_valid_cancel_rollback()
    except OSError as e:
        if e.errno != 1:
            raise
    return found, _has(running, size, digest)


# Writes an image, as files.put() writes a file, and verifies what the flash holds.
def write(size, digest):
    from cm import files

    slot = running.get_next_update()
    have = size * _has(slot, size, digest)
    flags = _RESUME_STATE
    end = _OUT + 36
    files.view[4:36] = binascii.unhexlify(digest)
    count = have
    while True:
        files.pack_into(">I", files.buf, _OUT, count)
        files.send(_CHUNK, flags, _OUT, end)
        if have >= size:
            break
        piece = files.mv[_IN + _HEADER : _IN + files.receive(True)]
        files.moved += len(piece)
        count = files.moved
        flags = 0
        end = _OUT + 4
        while piece:
            at = have % _SECTOR
            if not at:
                slot.ioctl(_ERASE, have // _SECTOR)
            part = piece[: _SECTOR - at]
            slot.writeblocks(0, part, have)
            have += len(part)
            piece = piece[len(part) :]
    if flags:  # the image is there already; the server sends an empty piece
        files.receive(True)
    elif not _has(slot, size, digest):
        raise OSError(5)


# Lets the boot loader start the other slot at the next reset, once. Raises OSError if the chip's
# own check of the image fails.
def boot():
    running.get_next_update().set_boot()


def _mark():
    with open(_MARK) as file:
        return file.read().split()


# Returns 0 if the old firmware runs, 1 if the new one does, 2 if that was kept, -1 if the new one
# is yet to be started: there was no reset since boot().
def trial():
    mark = _mark()
    if label == mark[0]:
        return len(mark) - 1
    return -(Partition(Partition.BOOT).info()[4] == mark[0])


# Keeps the firmware that is on trial, and runs.
def keep():
    with open(_MARK, "a") as file:
        file.write(" kept")
    Partition.mark_app_valid_cancel_rollback()


# Lets the next reset start the old firmware: for a boot loader that does not do that by itself.
def back():
    Partition(_mark()[1]).set_boot()
