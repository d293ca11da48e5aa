"""Jobs of callers at other servers, on boards whose link is here; no sockets, no SQL."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from cloudmanager import wire
from cloudmanager.errors import CloudmanagerError, ServerError

from . import limits
from .jobs import Cell, Job
from .transfers import Files

if TYPE_CHECKING:
    from .contents import Content, Contents
    from .dispatch import Dispatch
    from .post import Post
    from .registry import Board, Registry
    from .shared_store import SharedStore

log = logging.getLogger("cm_server")

PIECE_BYTES = 256 * 1024  # of a file that another server has


class Absent:
    """The callers at another server, as far as a job here sees them."""

    def __init__(self, post: Post, server: str) -> None:
        self._post = post
        self._server = server
        self._cut: set[tuple[int, int]] = set()  # of which something was left out

    def deliver(self, message: bytes, *, droppable: bool = False) -> None:
        """Pass on one message; where the bus does not keep up, output is left out."""
        if droppable and self._post.bus.waiting > limits.UNSENT_BYTES:
            op, _, job = wire.HEADER.unpack_from(message)
            flags = wire.CUT if op == wire.VALUE else 0
            if (job, flags) in self._cut:
                return
            self._cut.add((job, flags))
            message = wire.pack(wire.TRUNCATED, job=job, flags=flags)
        elif self._cut and self._post.bus.waiting <= limits.UNSENT_BYTES:
            self._cut.clear()
        self._post.send(self._server, "say", {}, message)


class Guests:
    """Runs them.

    Args:
        dispatch: which has the queues.
        store: which says whose a job is.
        registry: the boards.
        contents: what files hold.
        post: letters to the other servers.
    """

    def __init__(
        self,
        dispatch: Dispatch,
        store: SharedStore,
        registry: Registry,
        contents: Contents,
        post: Post,
    ) -> None:
        self._dispatch, self._store, self._registry = dispatch, store, registry
        self._contents, self._post = contents, post
        self._absent: dict[str, Absent] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        post.handlers |= {
            "run": self._on_run,
            "interrupt": self._on_interrupt,
            "answer": self._on_answer,
            "left": self._on_left,
            "content": self._on_content,
        }

    def _on_run(self, sender: str, head: dict[str, Any], code: bytes) -> None:
        if head.get("files") is None:
            self._run(sender, head, code, None)
            return
        task = asyncio.ensure_future(self._run_with_files(sender, head, code))
        self._fetches.add(task)
        task.add_done_callback(self._fetches.discard)

    async def _run_with_files(self, sender: str, head: dict[str, Any], code: bytes) -> None:
        step, wanted, gets = head["files"]
        try:
            contents = [await self._fetch(sender, digest, size) for digest, size in wanted]
        except CloudmanagerError as error:
            why = f"{error.detail}; it did not run"
            self._post.send(sender, "refused", {"jobs": [n for n, _ in head["jobs"]], "why": why})
            return
        self._run(sender, head, code, Files(step, tuple(contents), gets))

    async def _fetch(self, sender: str, digest: str, size: int) -> Content:
        """Return a content, which the other server has if it is not here."""
        owner = object()
        number = self._contents.offer(owner, digest, size)
        at = 0
        try:
            while number and at < size:
                asked = {"digest": digest, "at": at}
                _, piece = await self._post.ask(sender, "content", asked)
                if not piece:
                    raise ServerError("another server has a file no more that it needs")
                at = self._contents.write(owner, number, piece)
        finally:
            self._contents.forget(owner)
        found = self._contents.get(digest)
        assert found is not None
        return found

    def _on_content(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        content = self._contents.get(head["digest"])
        return {}, content.read(head["at"], PIECE_BYTES) if content is not None else b""

    def _run(self, sender: str, head: dict[str, Any], code: bytes, files: Files | None) -> None:
        """Take the jobs whose boards are here, and run them; refuse the others."""
        boards = {number: self._registry.by_id.get(board_id) for number, board_id in head["jobs"]}
        here = {n: board for n, board in boards.items() if board is not None and board.link}
        now = [number for number, board in here.items() if board.idle]
        try:
            taken = self._store.take(sender, now, here.keys() - set(now)) if here else set()
        except ServerError as error:
            why = f"{error.reason}; it did not run"
            self._post.send(sender, "refused", {"jobs": list(boards), "why": why})
            return
        cell = Cell(
            code,
            head["timeout"],
            head["awaits"],
            head["fresh"],
            0.0,
            head["answers"],
            files,
        )
        jobs = [self._job(number, here[number], cell, sender, head["caller"]) for number in taken]
        told = [[job.id, not job.board.idle] for job in jobs]
        self._post.send(sender, "taken", {"jobs": told})
        if gone := boards.keys() - taken:
            self._post.send(sender, "refused", {"jobs": sorted(gone)})
        self._dispatch.admit(jobs)
        self._dispatch.launch(jobs)

    def _job(self, number: int, board: Board, cell: Cell, sender: str, caller: str) -> Job:
        """Return a job; it may be one of this server's own that comes back with its board."""
        own = self._dispatch.jobs.get(number)
        if own is not None:
            own.away, own.state = "", "queued"
            return own
        absent = self._absent.setdefault(sender, Absent(self._post, sender))
        return Job(number, board, cell, caller, absent)

    def lost(self, server: str) -> None:
        """Go on without the callers at a server that is gone."""
        absent = self._absent.pop(server, None)
        if absent is not None:
            self._dispatch.forget(absent)

    def _on_interrupt(self, _sender: str, head: dict[str, Any], _payload: bytes) -> Any:
        found = [job for number in head["jobs"] if (job := self._dispatch.jobs.get(number))]
        for job in found:
            if not job.away:
                self._dispatch.interrupt(job)
        return {"found": len(found)}, b""

    def _on_answer(self, _sender: str, head: dict[str, Any], text: bytes) -> None:
        job = self._dispatch.jobs.get(head["job"])
        if job is not None:
            self._dispatch.answer(job, text, nobody=head["nobody"])

    def _on_left(self, _sender: str, head: dict[str, Any], _payload: bytes) -> None:
        self._dispatch.left(head["job"], head["size"])

    def close(self) -> None:
        """Let go of what is under way."""
        for task in self._fetches:
            task.cancel()
