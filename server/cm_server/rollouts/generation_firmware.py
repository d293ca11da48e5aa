"""The firmware of a generation: found once, checked for its boards, and kept in its manifest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cloudmanager.protocol.errors import PackageError, ServerError
from cloudmanager.protocol.firmware_images import AppImage, read_app_image
from cm_server.installs.content_store import Content
from cm_server.installs.services import InstallServices
from cm_server.jobs.model import Board

from . import firmware_ops
from .desired import ANY_MACHINE, DesiredFirmware


class GenerationFirmware(NamedTuple):
    """The images of a generation.

    Attributes:
        name: the version, or the name of a file.
        images: what boards call themselves -> the image for them; ``ANY_MACHINE``: for all.
        errors: what boards call themselves -> why there is none for them.
        contents: the images by SHA-256.
    """

    name: str
    images: Mapping[str, tuple[AppImage, Content]]
    errors: Mapping[str, str]
    contents: Mapping[str, Content]

    def describe(self) -> dict[str, Any]:
        """Return it for a generation's manifest."""
        return {
            "name": self.name,
            "images": {
                machine: [content.digest, content.size]
                for machine, (_, content) in sorted(self.images.items())
            },
        }

    def image_for(self, board: Board) -> AppImage | None:
        """Return the image for a board; None if there is none."""
        found = self.images.get(machine_of(board)) or self.images.get(ANY_MACHINE)
        return None if found is None else found[0]

    def refusal_reason(self, board: Board) -> str:
        """Return why a board cannot get it, as far as it has reported; "" if it can."""
        if why := firmware_ops.refusal_reason(board):
            return why
        image = self.image_for(board)
        if image is None:
            return self.errors.get(machine_of(board), "")
        return firmware_ops.explain_image(board, image)


def machine_of(board: Board) -> str:
    """Return what a board calls itself; "" if that is not known."""
    return str(board.reported_facts.get("machine") or "")


async def find_firmware(
    services: InstallServices, wanted: DesiredFirmware, boards: Sequence[Board], owner: str
) -> GenerationFirmware:
    """Find the images for boards; download those of a version.

    Args:
        services: the contents, and where firmware is downloaded.
        wanted: which firmware.
        boards: for which boards.
        owner: the hash of the token that has uploaded the file.

    Raises:
        ServerError: the file was not uploaded, or is no image.
    """
    images: dict[str, tuple[AppImage, Content]] = {}
    errors: dict[str, str] = {}
    if wanted.digest:
        content = services.content_store.get(wanted.digest, owner)
        if content is None or content.size != wanted.size:
            raise ServerError(f"{wanted.name} was not uploaded, or is no longer on the server")
        images[ANY_MACHINE] = (await _read_image(content), content)
    else:
        able = [board for board in boards if not firmware_ops.refusal_reason(board)]
        for machine in sorted({machine_of(board) for board in able}):
            try:
                data = await services.firmware_source.find(wanted.name, machine)
            except PackageError as error:
                errors[machine] = str(error.args[0])
                continue
            content = services.content_store.make_unshared(data)
            images[machine] = (await _read_image(content), content)
    contents = {content.digest: content for _, content in images.values()}
    return GenerationFirmware(wanted.name, images, errors, contents)


async def _read_image(content: Content) -> AppImage:
    data = content.read(0, content.size)
    return await asyncio.to_thread(read_app_image, data)
