"""Work that waits for its boards: what a SUBMIT asks for, as the store keeps it. No sockets.

The store has the request of a SUBMIT, and the contents and the plan to which it refers. When a
board is there, the request is read again, as if the caller had just sent it. Before it is a line
that says what it is, for lists of jobs.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from cloudmanager.protocol.errors import ServerError
from cloudmanager.protocol.run_options import RunOptions
from cm_server.installs.content_store import Content
from cm_server.installs.plan_cache import PreparedPlan
from cm_server.installs.services import InstallServices
from cm_server.jobs.model import Cell
from cm_server.limits import MIB, Limits
from cm_server.packages.plan import InstallPlan
from cm_server.store.waiting_rows import TakenJob, WaitingWork

from .job_requests import Caller, JobInputs, JobRequest, inputs_of, make_cell, read_job_request

#: Entries of the head of a SUBMIT that say what runs.
_KEPT: Final = ("awaits", "acts", "upload", "packages", "settings", "title")


class WaitingRequest(NamedTuple):
    """A SUBMIT of work that waits.

    Attributes:
        head: the JSON head of the message.
        code: the rest of it.
        options: how it is run.
        expires: until when it waits, in seconds since 1970.
        boards: on how many boards it runs.
    """

    head: Mapping[str, Any]
    code: bytes
    options: RunOptions
    expires: float
    boards: int


class WaitingWorkReader:
    """Packs work for the store, and reads it again.

    Args:
        services: what transfers and installs need.
    """

    def __init__(self, services: InstallServices) -> None:
        self._services = services
        #: Contents that jobs use now, by SHA-256: boards that wake together share them.
        self._contents: weakref.WeakValueDictionary[str, Content] = weakref.WeakValueDictionary()

    def pack(self, caller: Caller, submitted: WaitingRequest) -> tuple[WaitingWork, JobRequest]:
        """Return the work of a SUBMIT, and what the audit log needs to know of it.

        Args:
            caller: the caller's link.
            submitted: what it submits.

        Raises:
            ServerError: it is invalid or too large, or cannot wait.
        """
        head, code, options, expires, boards = submitted
        inputs = inputs_of(self._services, caller)._replace(mount_owner=None)
        request = read_job_request(self._services, inputs, dict(head), code, boards)
        if request.files is not None and request.files.reads_files:
            raise ServerError("files of a board cannot be read by work that waits for it")
        kept: dict[str, Any] = {name: head[name] for name in _KEPT if name in head}
        contents = {content.digest: content for content in request.contents}
        package_request = kept.get("packages")
        if isinstance(package_request, dict) and "plan" in package_request:
            planned = inputs.find_plan(package_request["plan"])
            kept["packages"] = {**package_request, "plan": _plan_to_json(planned)}
            contents = dict(planned.contents)
        kept |= {"options": options.to_fields(), "boards": boards}
        cell = make_cell(request, head, options, self._services.limits.title_chars)
        what = {"kind": cell.kind, "what": cell.title}
        packed = b"\n".join((json.dumps(what).encode(), json.dumps(kept).encode(), code))
        size = len(packed) + sum(content.size for content in contents.values())
        _check_size(size, self._services.limits)
        work = WaitingWork(
            token=caller.token.hash,
            request=packed,
            contents={digest: _reader(content) for digest, content in contents.items()},
            size=size,
            expires=expires,
            fresh=options.fresh,
        )
        return work, request

    def read_cell(self, taken: TakenJob) -> Cell:
        """Return what a job runs that has waited.

        Raises:
            ServerError: this version of the server cannot carry it out.
        """
        _, text, code = taken.request.split(b"\n", 2)
        head = json.loads(text)
        contents = {digest: self._content(digest, data) for digest, data in taken.contents.items()}

        def find_plan(body: Any) -> PreparedPlan:
            return _plan_from_json(body, contents)

        inputs = JobInputs(contents.get, find_plan)
        request = read_job_request(self._services, inputs, head, code, head["boards"])
        options = RunOptions.from_fields(head["options"])
        return make_cell(request, head, options, self._services.limits.title_chars)

    def _content(self, digest: str, data: bytes) -> Content:
        content = self._contents.get(digest)
        if content is None:
            content = self._services.content_store.make_unshared(data)
            self._contents[digest] = content
        return content


def _check_size(size: int, limits: Limits) -> None:
    """Refuse work that is too large for the store.

    Raises:
        ServerError: it is.
    """
    if size > limits.waiting_work_bytes:
        mib = limits.waiting_work_bytes // MIB
        raise ServerError(f"what waits for boards may have at most {mib} MiB; nothing waits")


def _reader(content: Content) -> Callable[[], bytes]:
    """Return a function that returns the bytes of a content (any thread)."""
    return lambda: content.read(0, content.size)


def _plan_to_json(planned: PreparedPlan) -> dict[str, Any]:
    return {"plan": planned.plan.to_json(), "options": dict(planned.options)}


def _plan_from_json(body: Mapping[str, Any], contents: Mapping[str, Content]) -> PreparedPlan:
    return PreparedPlan(InstallPlan.from_json(body["plan"]), contents, body["options"])
