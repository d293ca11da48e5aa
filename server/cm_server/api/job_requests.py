"""Convert a caller's SUBMIT into what is sent to boards. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from cloudmanager.protocol import file_ops, wire
from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.run_options import RunOptions
from cloudmanager.protocol.text import one_line
from cm_server.auth.audit import shorten
from cm_server.installs import board_install, board_settings, upload_job
from cm_server.installs.content_store import Content
from cm_server.installs.job_steps import SteppedJobSpec
from cm_server.installs.mounts import MountOwner, MountSpec
from cm_server.installs.plan_cache import PreparedPlan
from cm_server.installs.services import InstallServices
from cm_server.installs.transfers import FileTransferSpec, ack_bytes_for
from cm_server.jobs.job_texts import JobOrigin
from cm_server.jobs.model import Cell
from cm_server.rollouts import board_drift, board_firmware

#: In the head of a SUBMIT that is no cell, see ``read_job_request``.
_OTHER_WORK = frozenset(("acts", "upload", "packages", "mount", "settings", "drift"))
_AUDIT_FILE_OPS = 20  # file operations that are listed in the audit log


class JobRequest(NamedTuple):
    """A checked request to run something on boards.

    Attributes:
        code: a cell, or file operations as boards read them.
        files: how the file operations are carried out; None for a cell.
        verb: the verb in the audit log.
        detail: the details in the audit log.
        kind: as in ``Cell``.
        contents: the contents of the files that are sent, besides those of a plan.
    """

    code: bytes
    files: FileTransferSpec | SteppedJobSpec | MountSpec | None = None
    verb: str = "submit"
    detail: str = ""
    kind: str = "cell"
    contents: Sequence[Content] = ()


class Caller(MountOwner, Protocol):
    """The link of a caller."""


class JobInputs(NamedTuple):
    """Where a request's contents and plans are.

    Attributes:
        find_content: returns the content with a SHA-256; None if it is not there.
        find_plan: returns the plan that a request names; raises ServerError if it is not there.
        mount_owner: the caller, whose folder may be mounted; None for work that waits.
    """

    find_content: Callable[[str], Content | None]
    find_plan: Callable[[object], PreparedPlan]
    mount_owner: MountOwner | None = None


def inputs_of(services: InstallServices, caller: Caller) -> JobInputs:
    """Return the contents that a caller's token has uploaded, and the plans of its link."""
    owner = caller.token.hash
    return JobInputs(
        lambda digest: services.content_store.get(digest, owner),
        lambda number: services.plan_cache.get(caller, number),
        caller,
    )


def is_cell(head: Mapping[str, Any]) -> bool:
    """Return whether a SUBMIT is a cell, or resets boards: its options are only read."""
    return _OTHER_WORK.isdisjoint(head)


def read_job_request(
    services: InstallServices, inputs: JobInputs, head: dict[str, Any], code: bytes, boards: int
) -> JobRequest:
    """Check a SUBMIT: a cell, file operations, files, an install, settings, firmware or drift.

    Args:
        services: what transfers and installs need.
        inputs: the contents and plans that the request refers to.
        head: the JSON head of the message.
        code: the rest of the message: a cell, or nothing.
        boards: the number of boards; the more, the smaller the windows of their transfers.

    Raises:
        ServerError: it is invalid, or refers to a content or plan that is not on the server.
    """
    if "acts" in head:
        packed, files = read_file_ops(services, inputs.find_content, head["acts"], boards)
        detail = describe_file_ops(head["acts"])
        return JobRequest(packed, files, detail=detail, kind="files", contents=files.contents)
    if "upload" in head:
        upload, contents = upload_job.read_upload_job(
            services, inputs.find_content, head["upload"], boards
        )
        detail = _describe_upload(head["upload"])
        return JobRequest(upload.code, upload, detail=detail, kind="files", contents=contents)
    if "packages" in head:
        request = head["packages"]
        spec = board_install.read_package_job(services, inputs.find_plan, request, boards)
        plan = inputs.find_plan(request["plan"]) if "plan" in request else None
        verb, detail = board_install.describe_for_audit(request, plan)
        return JobRequest(spec.code, spec, verb, detail, verb)
    if "mount" in head:
        if inputs.mount_owner is None:
            raise ServerError("a folder of the caller cannot be mounted by work that waits")
        mount, detail = services.mounts.read_request(inputs.mount_owner, head["mount"])
        return JobRequest(mount.code, mount, "mount", detail, "mount")
    if "settings" in head:
        settings, detail = board_settings.read_settings_job(services, head["settings"], boards)
        return JobRequest(settings.code, settings, "settings", detail, "settings")
    if "firmware" in head:
        if inputs.mount_owner is None:
            raise ServerError("an upgrade of firmware cannot wait for its boards; use fleet.toml")
        firmware, detail = board_firmware.read_firmware_job(
            services, inputs.mount_owner.token, head["firmware"], boards
        )
        return JobRequest(firmware.code, firmware, "firmware", detail, "firmware")
    if "drift" in head:
        drift = board_drift.read_drift_job(services, boards)
        return JobRequest(drift.code, drift, "drift", kind="drift")
    is_reset = bool(head.get("fresh")) and not code
    return JobRequest(code, kind="reset" if is_reset else "cell")


def make_cell(
    request: JobRequest, head: Mapping[str, Any], options: RunOptions, title_chars: int
) -> Cell:
    """Return what a request runs on each of its boards.

    Args:
        request: the checked request.
        head: the JSON head of the SUBMIT.
        options: how it is run.
        title_chars: more of its title is not kept.
    """
    title = request.detail if request.files else str(head.get("title", ""))
    return Cell(
        request.code,
        options,
        bool(head.get("awaits")),
        request.files,
        request.kind,
        title and shorten(title, title_chars),
        restarts=request.kind == "cell" and bool(head.get("restarts")),
    )


def read_origin(request: JobRequest, head: Mapping[str, Any], code: bytes) -> JobOrigin:
    """Return what a request runs and where it comes from, for the history.

    Args:
        request: the checked request.
        head: the JSON head of the SUBMIT.
        code: the rest of it.
    """
    if request.kind == "cell":
        return JobOrigin(request.kind, head, code)
    return JobOrigin(request.kind, head, detail=request.detail)


def read_file_ops(
    services: InstallServices,
    find_content: Callable[[str], Content | None],
    ops: object,
    boards: int,
) -> tuple[bytes, FileTransferSpec]:
    """Check a list of file operations.

    Args:
        services: what transfers need.
        find_content: returns an uploaded content by its SHA-256; None if there is none.
        ops: the operations in the caller's form, not checked yet.
        boards: the number of boards.

    Returns:
        The operations as boards read them, and what their transfers need.

    Raises:
        ServerError: an operation is invalid, or a content was not uploaded.
    """
    checked = file_ops.check_file_ops(
        ops, max_ops=services.limits.file_ops, path_bytes=services.limits.path_bytes
    )
    contents: list[Content] = []
    replaces_starter = any(map(file_ops.touches_starter, checked))
    board_ops = []
    for op in checked:
        if op[0] == "put":
            content = find_content(op[2])
            if content is None:
                raise ServerError(f"the content for {op[1]} was not uploaded")
            contents.append(content)
            board_ops.append(["put", op[1], content.size, content.digest])
        else:
            board_ops.append(op)
    names = {op[0] for op in checked}
    if {"put", "get"} <= names:
        raise ServerError("one job can either put or get files, not both")
    ack_bytes = ack_bytes_for(boards, services.limits)
    code = wire.pack_file_ops(ack_bytes, board_ops)
    max_bytes = services.limits.file_ops_bytes
    if len(code) > max_bytes:
        raise ServerError(f"the file operations of one job may have at most {max_bytes} bytes")
    return code, FileTransferSpec(ack_bytes, tuple(contents), "get" in names, replaces_starter)


def _describe_upload(request: dict[str, Any]) -> str:
    if "client" in request:
        return "a new client"
    return describe_file_ops(request["acts"])


def describe_file_ops(ops: list[list[Any]]) -> str:
    """Return the operations and their paths for the audit log, without contents."""
    return "; ".join(f"{op[0]} {one_line(op[1])}" for op in ops[:_AUDIT_FILE_OPS])
