"""What a caller wants done with boards' files or packages -> what goes to a board; no sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol import file_ops, wire
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.file_ops import STARTER_MARK
from cm_server import limits
from cm_server.installs import board_install
from cm_server.installs.content_store import Content
from cm_server.installs.job_steps import Work
from cm_server.installs.transfers import Files, step_for

if TYPE_CHECKING:
    from cm_server.app import Server

_LOOKED = 4096  # bytes of another starter in which it has to start the client


class Order(NamedTuple):
    """What goes to each board, and what stands in the audit log.

    Attributes:
        code: a cell; or acts on files.
        files: what is done with files; None: it is a cell.
    """

    code: bytes
    files: Files | Work | None = None
    verb: str = "submit"
    detail: str = ""


def order_of(
    server: Server, owner: object, head: dict[str, Any], code: bytes, boards: int
) -> Order:
    """Return what a SUBMIT asks for: a cell, acts on files, or something about packages.

    Raises:
        ServerError: it is unsound, or what it needs is not here.
    """
    if "acts" in head:
        return Order(*files_of(server, head["acts"], boards), detail=describe(head["acts"]))
    if "packages" in head:
        asked = head["packages"]
        work = board_install.work_of(server, owner, asked, boards)
        planned = server.plans.get(owner, asked["plan"]) if "plan" in asked else None
        return Order(work.code, work, *board_install.describe(asked, planned))
    return Order(code)


def files_of(server: Server, asked: object, boards: int) -> tuple[bytes, Files]:
    """Return acts as a board reads them, and what of files they move.

    Raises:
        ServerError: an act is unsound, or a content that it needs is not here.
    """
    checked = file_ops.check(asked, most=limits.ACTS, path_bytes=limits.PATH_BYTES)
    contents: list[Content] = []
    starter = False
    told = []
    for act in checked:
        if act[0] == "put":
            content = server.contents.get(act[2])
            if content is None:
                raise ServerError(f"the content for {act[1]} was not sent to it")
            contents.append(content)
            starter |= file_ops.touches_starter(act) and STARTER_MARK not in content.read(
                0, _LOOKED
            )
            act = ["put", act[1], content.size, content.digest]
        else:
            starter |= file_ops.touches_starter(act)
        told.append(act)
    names = {act[0] for act in checked}
    if {"put", "get"} <= names:
        raise ServerError("a job either puts or gets files")
    step = step_for(boards)
    code = wire.pack_acts(step, told)
    if len(code) > limits.ACTS_BYTES:
        raise ServerError(f"acts on files have at most {limits.ACTS_BYTES} bytes in one job")
    return code, Files(step, tuple(contents), "get" in names, starter)


def describe(asked: list[list[Any]]) -> str:
    """Return what stands in the audit log: the acts and their paths, no contents."""
    return "; ".join(" ".join(str(each) for each in act[:2]) for act in asked[:20])
