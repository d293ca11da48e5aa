"""An emulated ROM loader of the ESP8266 and of the ESP32: what esptool talks to, byte for byte.

It follows Espressif's serial protocol as esptool 5 (loader.py, targets/) speaks it: SLIP frames,
commands with checksums, registers, a flash that is erased in sectors and whose bits can only be
cleared. The flasher stub that esptool loads into RAM is Xtensa code and cannot run here: once its
bytes have arrived whole and are jumped to, this answers as the stub would.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator

SYNC, WRITE_REG, READ_REG = 0x08, 0x09, 0x0A
FLASH_BEGIN, FLASH_DATA, FLASH_END = 0x02, 0x03, 0x04
MEM_BEGIN, MEM_END, MEM_DATA = 0x05, 0x06, 0x07
SPI_SET_PARAMS, SPI_ATTACH, CHANGE_BAUD = 0x0B, 0x0D, 0x0F
DEFL_BEGIN, DEFL_DATA, DEFL_END, MD5 = 0x10, 0x11, 0x12, 0x13
ERASE_FLASH, ERASE_REGION, RUN_USER_CODE = 0xD0, 0xD1, 0xD3

SECTOR = 4096
FLASH_BYTES = 4 * 1024 * 1024
FLASH_ID = 0x1640EF  # a W25Q32: 4 MB
INVALID = b"\x01\x05"  # status: failed, "received message is invalid"
FAILED = b"\x01\x06"  # status: failed to act on it
MAGIC_REGISTER = 0x40001000

#: What a chip is known by: its magic, where its SPI registers are and what it boots from.
CHIPS = {
    "esp8266": {"magic": 0xFFF0C101, "spi": 0x60000200, "w0": 0x40, "boot": 0, "status": 2},
    "esp32": {"magic": 0x00F01D83, "spi": 0x3FF42000, "w0": 0x80, "boot": 0x1000, "status": 4},
}
ROM_COMMANDS = {SYNC, WRITE_REG, READ_REG, FLASH_BEGIN, FLASH_DATA, FLASH_END}
ROM_COMMANDS |= {MEM_BEGIN, MEM_END, MEM_DATA}
ESP32_COMMANDS = {SPI_SET_PARAMS, SPI_ATTACH, CHANGE_BAUD, DEFL_BEGIN, DEFL_DATA, DEFL_END, MD5}
STUB_COMMANDS = {ERASE_FLASH, ERASE_REGION, RUN_USER_CODE} | ESP32_COMMANDS


def slip(packet: bytes) -> bytes:
    """Return a packet as a frame."""
    return b"\xc0" + packet.replace(b"\xdb", b"\xdb\xdd").replace(b"\xc0", b"\xdb\xdc") + b"\xc0"


def checksum(data: bytes) -> int:
    """Return the loader's checksum of a block."""
    state = 0xEF
    for byte in data:
        state ^= byte
    return state


class Loader:
    """A chip whose ROM loader, or stub, listens; ``run`` says that it has left for its program.

    Args:
        chip: "esp8266" or "esp32".
        flash: what is in its flash; it is changed in place.
        faults: command -> what goes wrong with it: "silent", "refused" or "corrupt".
    """

    def __init__(self, chip: str, flash: bytearray, faults: dict[int, str] | None = None) -> None:
        self.chip, self.flash = CHIPS[chip], flash
        self.esp32 = chip == "esp32"
        self.faults = faults if faults is not None else {}
        self.stub = self.run = False
        self.seen: list[int] = []
        self._bytes = bytearray()
        self._ram: dict[int, bytes] = {}
        self._registers: dict[int, int] = {MAGIC_REGISTER: self.chip["magic"]}
        self._at = self._left = self._load = 0
        self._inflate = zlib.decompressobj()

    def feed(self, data: bytes) -> bytes:
        """Handle bytes from the cable and return the chip's answer."""
        self._bytes += data
        return b"".join(self._answer(packet) for packet in self._packets())

    def _packets(self) -> Iterator[bytes]:
        while (start := self._bytes.find(b"\xc0")) >= 0:
            end = self._bytes.find(b"\xc0", start + 1)
            if end < 0:
                return
            packet = bytes(self._bytes[start + 1 : end])
            del self._bytes[: end + 1 if packet else end]
            if packet:
                yield packet.replace(b"\xdb\xdc", b"\xc0").replace(b"\xdb\xdd", b"\xdb")

    def _answer(self, packet: bytes) -> bytes:
        if len(packet) < 8 or packet[0] != 0:
            return b""
        _, op, size, check = struct.unpack_from("<BBHI", packet)
        body = packet[8:]
        self.seen.append(op)
        fault = self.faults.get(op, "")
        if fault == "silent":
            return b""
        if op not in self._known():  # answered eight times, under another op (loader.py: command)
            return self._reply(0, status=INVALID) * 8
        if fault == "refused" or size != len(body):
            return self._reply(op, status=FAILED)
        if op in (FLASH_DATA, MEM_DATA, DEFL_DATA) and check != checksum(body[16:]):
            return self._reply(op, status=b"\x01\x07")
        answer = self._run_command(op, body)
        if fault == "corrupt":
            self.flash[self._at - 1] ^= 0x10
        return answer

    def _known(self) -> set[int]:
        more = STUB_COMMANDS if self.stub else ESP32_COMMANDS if self.esp32 else set()
        return ROM_COMMANDS | more

    def _reply(self, op: int, value: int = 0, data: bytes = b"", status: bytes = b"\0\0") -> bytes:
        width = 2 if self.stub else self.chip["status"]
        data += status.ljust(width, b"\0")
        return slip(struct.pack("<BBHI", 1, op, len(data), value) + data)

    def _run_command(self, op: int, body: bytes) -> bytes:
        words = struct.unpack_from(f"<{min(len(body) // 4, 4)}I", body)
        if op == SYNC:  # the stub answers with a value of zero: so esptool tells them apart
            return self._reply(op, 0 if self.stub else 0x20120707) * 8
        if op == READ_REG:
            return self._reply(op, self._registers.get(words[0], 0))
        if op == WRITE_REG:
            self._write_register(words[0], words[1])
        elif op in (FLASH_BEGIN, DEFL_BEGIN):
            self._start_writing(op, words)
        elif op == FLASH_DATA:
            self._program(body[16:])
        elif op == DEFL_DATA:
            self._program(self._inflate.decompress(body[16:]))
        elif op in (FLASH_END, DEFL_END):
            # 0: restart, 1: run the program. The stub only stays if it is requested to run.
            self.run = words[0] == 0 if self.stub else True
        elif op == MEM_BEGIN:
            self._load = words[3]
            self._ram[self._load] = b""
        elif op == MEM_DATA:
            self._ram[self._load] += body[16:]
        elif op == MEM_END:
            return self._reply(op) + self._jump(words[1])
        elif op == MD5:
            return self._md5(words)
        elif op == ERASE_FLASH:
            self.flash[:] = b"\xff" * len(self.flash)
        elif op == ERASE_REGION:
            self._erase(words[0], words[1])
        elif op == RUN_USER_CODE:
            self.run = True
            return b""
        return self._reply(op)

    def _jump(self, entry: int) -> bytes:
        """Become the stub loader if a loaded address is jumped to."""
        if not any(start <= entry < start + len(code) for start, code in self._ram.items()):
            return b""
        self.stub = True
        return slip(b"OHAI")

    def _start_writing(self, op: int, words: tuple[int, ...]) -> None:
        """Erase and set the address. (A real ESP8266 erases more; esptool allows for that.)"""
        size, blocks, block, self._at = words
        self._inflate = zlib.decompressobj()
        self._erase(self._at, max(size, blocks * block if op == FLASH_BEGIN else 0))

    def _erase(self, start: int, size: int) -> None:
        first, last = start // SECTOR * SECTOR, -(-(start + size) // SECTOR) * SECTOR
        self.flash[first:last] = b"\xff" * (last - first)

    def _program(self, data: bytes) -> None:
        """Write as NOR flash does: bits change from one to zero only."""
        end = self._at + len(data)
        old = int.from_bytes(self.flash[self._at : end], "big")
        new = old & int.from_bytes(data, "big")
        self.flash[self._at : end] = new.to_bytes(len(data), "big")
        self._at = end

    def _md5(self, words: tuple[int, ...]) -> bytes:
        digest = hashlib.md5(self.flash[words[0] : words[0] + words[1]])
        data = digest.digest() if self.stub else digest.hexdigest().encode()
        return self._reply(MD5, data=data)

    def _write_register(self, address: int, value: int) -> None:
        """Store the register; the SPI controller's command register starts a flash command."""
        spi = self.chip["spi"]
        self._registers[address] = value
        if address == spi and value & 1 << 18:
            command = self._registers.get(spi + 0x24, 0) & 0xFF
            found = {0x9F: FLASH_ID, 0x5A: 0x50444653 if not self._registers.get(spi + 4) else 0}
            self._registers[spi + self.chip["w0"]] = found.get(command, 0)
            self._registers[spi] = 0

    @property
    def bootable(self) -> bool:
        """Whether there is a program at the address where the ROM expects one."""
        return self.flash[self.chip["boot"]] == 0xE9
