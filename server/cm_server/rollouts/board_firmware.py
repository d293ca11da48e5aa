"""Upgrade the firmware of one board, as jobs of several steps; no sockets, no SQL.

Two jobs: the first writes the image and lets the next restart start it on trial, the second keeps
it. In between the caller restarts the board and runs a cell. Without the second one, the board goes
back by itself (mpy_client/cm/trial.py).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final

from cloudmanager.protocol.errors import NotAllowed, PackageError, ServerError
from cloudmanager.protocol.file_ops import disk_space
from cloudmanager.protocol.firmware_images import AppImage, read_app_image
from cm_server.auth import access
from cm_server.installs import board_install
from cm_server.installs.board_install import ANY_SIZE, AddBytes
from cm_server.installs.content_store import Content
from cm_server.installs.install_manifest import STAGING_PATH
from cm_server.installs.job_steps import FileOp, OpGenerator, SteppedJobSpec
from cm_server.installs.services import InstallServices
from cm_server.installs.transfers import ack_bytes_for
from cm_server.store.rows import TokenRow

from . import board_switch, desired, firmware_ops
from .board_switch import BACK_PATH, KEPT_PATH, STATE_PATH
from .firmware_ops import MARK_PATH

if TYPE_CHECKING:
    from cm_server.jobs.model import Board

NO_GENERATION: Final = "firmware"  # in place of a generation's id, on a board that has none
LIMIT_SECONDS: Final = 180  # after which a board goes back
_FIRST_OPS: Final[tuple[FileOp, ...]] = (
    board_install.FINISH_OP,
    ["statvfs", "/"],
    ["hash", STAGING_PATH, ANY_SIZE],
    ["hash", KEPT_PATH, ANY_SIZE],
    ["hash", MARK_PATH, ANY_SIZE],
    ["hash", STATE_PATH, ANY_SIZE],
)
_KEEP_OPS: Final[tuple[FileOp, ...]] = (
    ["hash", MARK_PATH, ANY_SIZE],
    ["hash", STATE_PATH, ANY_SIZE],
)


def read_firmware_job(
    services: InstallServices, token: TokenRow, request: Any, boards: int
) -> tuple[SteppedJobSpec, str]:
    """Return the job of a caller's ``firmware`` request, and what the audit log says of it.

    Args:
        services: provide the contents.
        token: the caller's.
        request: ``{"sha256": …}``, of an image that was uploaded or found, or ``{"keep": true}``.
        boards: the number of boards that get the job.

    Raises:
        NotAllowed: the token may not change firmware.
        ServerError: the request is malformed, or the image is none.
    """
    if not access.has_role(token, firmware_ops.FIRMWARE_ROLE):
        raise NotAllowed(firmware_ops.FIRMWARE_ROLE)
    if not isinstance(request, dict):
        raise ServerError("firmware must be a JSON object")
    add_bytes = services.content_store.make_unshared
    if request.get("keep") is True:
        return _spec(services, boards, _KEEP_OPS, lambda board: _keep(services, board)), "keep"
    digest = request.get("sha256")
    content = services.content_store.get(digest, token.hash) if isinstance(digest, str) else None
    if content is None:
        raise ServerError("the firmware was not uploaded")
    image = read_app_image(content.read(0, content.size))

    def make(board: Board) -> OpGenerator:
        return upgrade(board, image, content, add_bytes)

    detail = f"MicroPython {image.version} for {image.chip}, {content.digest[:16]}"
    return _spec(services, boards, _FIRST_OPS, make), detail


def _keep(services: InstallServices, board: Board) -> OpGenerator:
    """Keep the firmware of a board, and note what the board would report now."""
    why = yield from keep(services.content_store.make_unshared)
    if not why:
        reported = desired.read_board_generation(board.reported_facts.get("generation"))
        is_none = reported.generation in ("", NO_GENERATION)
        state = "" if is_none else f"proven {reported.generation}"
        facts = board.reported_facts = {**board.reported_facts, "generation": state}
        services.store_queue.run(lambda store: store.mark_board_seen(board.id, facts))
        board.notify_changed()
    return why


def _spec(
    services: InstallServices, boards: int, first_ops: tuple[FileOp, ...], make: Any
) -> SteppedJobSpec:
    def make_generator(board: Board, _stored: None) -> OpGenerator:
        made: OpGenerator = make(board)
        return made

    return SteppedJobSpec(
        first_ops,
        make_generator,
        lambda _: services.store_queue.run(lambda _store: None),
        ack_bytes_for(boards, services.limits),
        services.limits.manifest_bytes,
    )


def upgrade(board: Board, image: AppImage, content: Content, add_bytes: AddBytes) -> OpGenerator:
    """Write an image, and let the next restart of the board start it on trial.

    Args:
        board: the board.
        image: the image.
        content: its bytes.
        add_bytes: makes a content of bytes that are sent to the board.

    Returns:
        "same" (it runs there already) or "written" (the board has to restart).

    Raises:
        PackageError: the image does not suit the board, or something else is on trial there.
        OSError: an operation failed; nothing has changed.
    """
    _, space, staged, kept, mark, state_hash = yield list(_FIRST_OPS)
    if why := firmware_ops.explain_image(board, image):
        raise PackageError(why)
    state = b""
    if state_hash:
        (state,) = yield [["get", STATE_PATH]]
    current = desired.read_board_generation(state.decode("utf-8", "replace"))
    if current.state in ("trial", "trying"):
        raise PackageError("something else is on trial there; try again when it has ended")
    if current.state == "cleared":
        raise PackageError("its generation is incomplete; try again when the rollout has ended")
    leftovers: list[FileOp] = [
        ["rm", path, True]
        for path, found in ((STAGING_PATH, staged), (KEPT_PATH, kept), (MARK_PATH, mark))
        if found is not None
    ]
    if leftovers:
        *_, space = yield [*leftovers, ["statvfs", "/"]]
    slots, runs = yield from firmware_ops.look(content)
    if runs:
        return "same"
    name = current.generation if current.state == "proven" else NO_GENERATION
    change = board_switch.Change(
        staged={
            STATE_PATH: add_bytes(f"trial {name} 0 {LIMIT_SECONDS}".encode()),
            MARK_PATH: add_bytes(slots.mark),
        },
        removed=(),
        existing=frozenset([STATE_PATH] if state_hash is not None else []),
        new_folders=(),
        emptied=(),
    )
    board_install.check_space([each.size for each in change.staged.values()], disk_space(space)[1])
    yield from firmware_ops.write_image(content)
    yield from board_switch.stage_change(change, add_bytes)
    yield from firmware_ops.start_on_trial()
    return "written"


def keep(add_bytes: AddBytes) -> OpGenerator:
    """Keep the firmware that is on trial on a board.

    Returns:
        "": it is kept; otherwise why the board went back.
    """
    mark, state_hash = yield list(_KEEP_OPS)
    state = b""
    if state_hash:
        (state,) = yield [["get", STATE_PATH]]
    current = desired.read_board_generation(state.decode("utf-8", "replace"))
    if current.reverted:
        return current.reason.lstrip("?") or "it went back"
    if mark is None or current.state != "trying":
        return "no firmware is on trial there"
    end: FileOp = ["rm", STATE_PATH, False]
    if current.generation != NO_GENERATION:
        end = ["put", STATE_PATH, add_bytes(f"proven {current.generation}".encode())]
    yield [firmware_ops.KEEP_OP, end]
    for path in (KEPT_PATH, BACK_PATH, MARK_PATH):
        with contextlib.suppress(OSError):  # what is left is removed by the next upgrade
            yield [["rm", path, True]]
    return ""
