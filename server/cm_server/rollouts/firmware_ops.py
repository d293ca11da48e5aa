"""Firmware of one board, as steps of its job: look, write, start it; no sockets, no SQL.

An image is written to the slot of the flash that does not run (mpy_client/cm/ota.py). The boot
loader starts it once; a reset before it is kept starts the old one again.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Generator, Sequence
from typing import Final, NamedTuple

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.firmware_images import AppImage
from cm_server.installs.board_install import CLEAN_OP, OpResults
from cm_server.installs.content_store import Content
from cm_server.installs.install_manifest import JOURNAL_PATH
from cm_server.installs.job_steps import FileOp
from cm_server.jobs.model import Board

PART: Final = "ota"  # of the client
FIRMWARE_ROLE: Final = "admin"  # the lowest role that may change firmware
MARK_PATH: Final = "/.cm/ota"  # which slots a trial is about
IMAGE_PATH: Final = ":firmware"
KEEP_OP: Final[FileOp] = ["ota", "keep"]
_MAX_LABEL: Final = 16  # of a partition (esp_partition.h)
_CABLE: Final = "flash it over its cable (mbm flash)"
_KINDS: Final = {"esp8266": "an ESP8266", "rp2": "an RP2040 or RP2350"}


class Slots(NamedTuple):
    """The slots of a board.

    Attributes:
        free: label of the one that an image is written to.
        free_bytes: its size.
        running: label of the one that runs.
    """

    free: str
    free_bytes: int
    running: str

    @property
    def mark(self) -> bytes:
        """What the board notes for a trial of the image in the free slot."""
        return f"{self.free} {self.running}".encode()


def refusal_reason(board: Board) -> str:
    """Return why a board gets no firmware over the air, as far as it has reported; "" if it may."""
    facts = board.reported_facts
    platform = facts.get("platform") or ""
    if platform in _KINDS:
        return f"{_KINDS[platform]} cannot get firmware over the air: {_CABLE}"
    if board.client_parts and PART not in board.client_parts:
        return (
            "its client cannot write firmware: run mbm board-upgrade-client, or, if the client is "
            f"part of its firmware, {_CABLE}"
        )
    if platform and platform != "esp32":
        return f"a board of the platform {platform} has no firmware that can be replaced"
    if facts.get("slots") == 0:
        return (
            "its flash has no second slot for firmware: flash an image with OTA slots over its "
            "cable (mbm flash), which erases its files"
        )
    return ""


def explain_image(board: Board, image: AppImage) -> str:
    """Return why an image does not suit a board, as far as it has reported; "" if it does."""
    if why := refusal_reason(board):
        return why
    facts = board.reported_facts
    machine, mpy, slot = (facts.get(name) for name in ("machine", "mpy", "slots"))
    if not machine or not isinstance(mpy, int):
        return ""  # it was never connected: looked at again before the image is sent
    if why := image.refusal_reason(str(machine), mpy):
        return why
    if isinstance(slot, int) and len(image.data) > slot:
        return _too_large(len(image.data), slot)
    return ""


def _too_large(size: int, slot: int) -> str:
    return f"the image has {size:,} bytes, and the slot for it {slot:,}"


def _is_label(label: object) -> bool:
    return isinstance(label, str) and len(label.split()) == 1 and len(label) <= _MAX_LABEL


def look(image: Content) -> Generator[Sequence[FileOp], OpResults, tuple[Slots, bool]]:
    """Return the slots of a board, and whether the image is what runs there.

    Raises:
        PackageError: it cannot get it, or could not go back from it.
    """
    try:
        (((free, free_bytes, running), runs),) = yield [["ota", "look", image.size, image.digest]]
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise PackageError(f"its flash has no second slot for firmware: {_CABLE}") from error
        raise PackageError(
            f"its firmware cannot go back to an earlier one, so none is sent: {_CABLE}"
        ) from error
    if not (_is_label(free) and _is_label(running) and isinstance(free_bytes, int)):
        raise PackageError("the names of its slots are malformed")
    if image.size > free_bytes:
        raise PackageError(_too_large(image.size, free_bytes))
    return Slots(free, free_bytes, running), runs is True


def write_image(image: Content) -> Generator[Sequence[FileOp], OpResults, None]:
    """Write an image to the slot that does not run; the board verifies it by reading it back."""
    yield [["put", IMAGE_PATH, image]]


def start_on_trial() -> Generator[Sequence[FileOp], OpResults, None]:
    """Let the next restart start the image; the journal of the trial is active already.

    Raises:
        PackageError: the chip's own check refuses the image; nothing has changed.
    """
    try:
        yield [["ota", "boot"]]
    except OSError as error:
        with contextlib.suppress(OSError):
            yield [["rm", JOURNAL_PATH, False], CLEAN_OP]
        raise PackageError("the chip's own check refuses the image") from error
