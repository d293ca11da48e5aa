"""What a caller wants done with boards' files or packages -> what goes to a board; no sockets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cloudmanager.protocol import file_ops, wire
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.file_ops import STARTER_MARK
from cm_server import limits
from cm_server.installs import board_install
from cm_server.installs.content_store import Content
from cm_server.installs.job_steps import SteppedJobSpec
from cm_server.installs.transfers import FileTransferSpec, ack_bytes_for

if TYPE_CHECKING:
    from cm_server.app import Server

_STARTER_SCAN_BYTES = 4096  # bytes of another starter in which it has to start the client


class JobRequest(NamedTuple):
    """What goes to each board, and what stands in the audit log.

    Attributes:
        code: a cell; or acts on files.
        files: what is done with files; None: it is a cell.
    """

    code: bytes
    files: FileTransferSpec | SteppedJobSpec | None = None
    verb: str = "submit"
    detail: str = ""


def read_job_request(
    server: Server, connection: object, head: dict[str, Any], code: bytes, boards: int
) -> JobRequest:
    """Return what a SUBMIT asks for: a cell, acts on files, or something about packages.

    Raises:
        ServerError: it is unsound, or what it needs is not here.
    """
    if "acts" in head:
        return JobRequest(
            *read_file_ops(server, head["acts"], boards), detail=describe_file_ops(head["acts"])
        )
    if "packages" in head:
        asked = head["packages"]
        work = board_install.read_package_job(server, connection, asked, boards)
        planned = server.plan_cache.get(connection, asked["plan"]) if "plan" in asked else None
        return JobRequest(work.code, work, *board_install.describe_for_audit(asked, planned))
    return JobRequest(code)


def read_file_ops(server: Server, ops: object, boards: int) -> tuple[bytes, FileTransferSpec]:
    """Return acts as a board reads them, and what of files they move.

    Raises:
        ServerError: an act is unsound, or a content that it needs is not here.
    """
    checked = file_ops.check_file_ops(ops, max_ops=limits.FILE_OPS, path_bytes=limits.PATH_BYTES)
    contents: list[Content] = []
    starter = False
    told = []
    for act in checked:
        if act[0] == "put":
            content = server.content_store.get(act[2])
            if content is None:
                raise ServerError(f"the content for {act[1]} was not sent to it")
            contents.append(content)
            starter |= file_ops.touches_starter(act) and STARTER_MARK not in content.read(
                0, _STARTER_SCAN_BYTES
            )
            act = ["put", act[1], content.size, content.digest]
        else:
            starter |= file_ops.touches_starter(act)
        told.append(act)
    names = {act[0] for act in checked}
    if {"put", "get"} <= names:
        raise ServerError("a job either puts or gets files")
    step = ack_bytes_for(boards)
    code = wire.pack_file_ops(step, told)
    if len(code) > limits.FILE_OPS_BYTES:
        raise ServerError(f"acts on files have at most {limits.FILE_OPS_BYTES} bytes in one job")
    return code, FileTransferSpec(step, tuple(contents), "get" in names, starter)


def describe_file_ops(ops: list[list[Any]]) -> str:
    """Return what stands in the audit log: the acts and their paths, no contents."""
    return "; ".join(" ".join(str(each) for each in act[:2]) for act in ops[:20])
