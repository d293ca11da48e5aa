"""The kernel's request handlers: cells for boards go to ``BoardCells``, all others to IPython."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from ipykernel.ipkernel import IPythonKernel
from IPython.core.interactiveshell import ExecutionInfo, ExecutionResult
from IPython.utils.tokenutil import token_at_cursor
from traitlets import List, Type

from cloudmanager import __version__

from .interrupts import InterruptHandler
from .shell import BoardShell

if TYPE_CHECKING:
    from .board_cells import BoardCells
    from .cell_routing import CellPart

#: Time to wait after an error, so that the other cells of a Run All have arrived and are aborted.
_ARRIVE_SECONDS: Final = 0.002


class BoardKernel(IPythonKernel):
    """The kernel "MicroPython (Cloudmanager)"."""

    implementation = "cm_kernel"
    implementation_version = __version__
    language_info = {
        "name": "micropython",
        "version": "",
        "mimetype": "text/x-python",
        "file_extension": ".py",
        "pygments_lexer": "python3",
        "codemirror_mode": {"name": "python", "version": 3},
        "nbconvert_exporter": "python",
    }
    banner = "MicroPython on the boards of your fleet. Choose boards with %board_use TARGET."
    shell_class = Type(BoardShell)
    _execute_sleep = 0.0  # seconds; no need to wait, since all output is sent before the reply

    help_links = List(
        [
            {"text": "MicroPython", "url": "https://docs.micropython.org/en/latest/"},
            {"text": "Python", "url": "https://docs.python.org/3/"},
        ]
    )

    def __init__(self, **kwargs: Any) -> None:
        self.interrupts = InterruptHandler()
        super().__init__(**kwargs)

    @cached_property
    def boards(self) -> BoardCells:
        """Runs cells on boards; loaded with the first cell, so that the kernel starts quickly."""
        with _without_working_directory():
            from .board_cells import BoardCells

        return BoardCells(self)

    @property
    def kernel_info(self) -> dict[str, Any]:
        """The content of kernel_info_reply, without the debugger, which cannot debug boards."""
        content: dict[str, Any] = super().kernel_info
        features = [each for each in content["supported_features"] if each != "debugger"]
        return {**content, "supported_features": features}

    def start(self) -> None:
        """Start to serve requests, and install the interrupt handler."""
        super().start()
        loop: Any = self.io_loop  # tornado's wrapper of the asyncio loop
        self.interrupts.install(loop.asyncio_loop)

    async def shell_main(self, subshell_id: str | None, msg: Any) -> None:
        """Handle a shell message; Tab and Shift-Tab do not wait for a running cell."""
        if (
            subshell_id is not None
            or not self._main_asyncio_lock.locked()
            or not self._is_name_request(msg)
        ):
            await super().shell_main(subshell_id, msg)
            return
        ident, parent = self._parent_ident["shell"], self.get_parent("shell")
        try:
            await asyncio.create_task(self.dispatch_shell(msg, concurrent=True))
        finally:
            self.set_parent(ident, parent)

    def _is_name_request(self, msg: Any) -> bool:
        """Return whether a message requests completion or inspection."""
        session: Any = self.session
        _, frames = session.feed_identities(msg, copy=False)
        header = session.unpack(frames[1].bytes)
        return header.get("msg_type") in ("complete_request", "inspect_request")

    def pre_handler_hook(self) -> None:
        """Keep the handler of ``interrupts``: ipykernel's SIGINT handler could end the kernel."""

    def post_handler_hook(self) -> None:
        """Keep the handler of ``interrupts``; do not restore Python's."""

    @contextlib.contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Iterator[None]:
        yield

    def set_parent(self, ident: Any, parent: dict[str, Any], channel: str = "shell") -> None:
        """Set the request that is handled now; if it runs a cell, interrupts count from here on."""
        if channel == "shell" and not self.interrupts.busy:
            self.interrupts.expect_cell(parent["header"]["msg_type"] == "execute_request")
        super().set_parent(ident, parent, channel)

    async def do_execute(  # noqa: PLR0913 (ipykernel's)
        self,
        code: str,
        silent: bool,
        store_history: bool = True,
        user_expressions: dict[str, str] | None = None,
        allow_stdin: bool = False,
        *,
        cell_meta: dict[str, Any] | None = None,
        cell_id: str | None = None,
    ) -> dict[str, Any]:
        """Run a cell; reply to every error, because a frontend without a reply waits forever."""
        arguments = code, silent, store_history, user_expressions, allow_stdin
        try:
            host_lines, part = self.boards.split_cell(code)
            if part is not None and part.kind == "board" and not host_lines:
                info = ExecutionInfo(code, store_history and not silent, silent, True, cell_id)
                reply = await self._run_on_boards(part, info, user_expressions or {}, allow_stdin)
            else:
                reply = await super().do_execute(*arguments, cell_meta=cell_meta, cell_id=cell_id)
        except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:
            reply = self._send_uncaught_error(error)
        if reply["status"] == "error":
            with contextlib.suppress(asyncio.CancelledError):  # the stop button was pressed twice
                await asyncio.sleep(_ARRIVE_SECONDS)
        return reply

    async def _run_on_boards(
        self,
        part: CellPart,
        info: ExecutionInfo,
        user_expressions: dict[str, str],
        allow_stdin: bool,
    ) -> dict[str, Any]:
        """Run a cell whose lines are all for boards, without IPython, which takes 1 ms longer."""
        shell: Any = self.shell
        result: Any = ExecutionResult(info)
        result.execution_count = shell.execution_count
        if info.store_history:
            shell.history_manager.store_inputs(shell.execution_count, info.raw_cell, info.raw_cell)
            shell.execution_count += 1
        self._forward_input(allow_stdin)
        shell.events.trigger("pre_execute")
        if not info.silent:
            shell.events.trigger("pre_run_cell", info)
        try:
            with self.interrupts.running_cell():
                result.result = await self.boards.run(part.text, part.line, silent=info.silent)
            if not info.silent:
                shell.displayhook(result.result)
        except (Exception, KeyboardInterrupt, asyncio.CancelledError) as error:
            shell.showtraceback()
            result.error_in_exec = error
            return self._error_reply(error, shell._last_traceback or [])
        finally:
            self._restore_input()
            shell.last_execution_succeeded = result.success
            shell.last_execution_result = result
            shell.events.trigger("post_execute")
            if not info.silent:
                shell.events.trigger("post_run_cell", result)
        return {
            "status": "ok",
            "execution_count": shell.execution_count - 1,
            "user_expressions": await self.boards.evaluate(user_expressions, part.line),
            "payload": [],
        }

    async def do_complete(self, code: str, cursor_pos: int | None) -> dict[str, Any]:
        """Complete names on boards; IPython completes code for the notebook's own Python."""
        cursor = len(code) if cursor_pos is None else cursor_pos
        if (target := self.boards.target_at(code, cursor)) is None:
            return dict(super().do_complete(code, cursor))
        return await self.boards.completion_reply(code, cursor, target)

    async def do_inspect(
        self, code: str, cursor_pos: int, detail_level: int = 0, omit_sections: Any = ()
    ) -> dict[str, Any]:
        """Describe a name on boards; IPython describes names in the notebook's own Python."""
        if (target := self.boards.target_at(code, cursor_pos)) is None:
            reply: dict[str, Any] = super().do_inspect(
                code, cursor_pos, detail_level, omit_sections
            )
            return reply
        name = token_at_cursor(code, cursor_pos)
        text = await self.boards.describe_name(name, code, target, detail_level) if name else ""
        data = {"text/plain": text} if text else {}
        return {"status": "ok", "found": bool(text), "data": data, "metadata": {}}

    async def do_history(self, *args: Any, **named: Any) -> dict[str, Any]:
        """Return earlier cells; IPython's 0 for the current session is replaced by its number."""
        reply: dict[str, Any] = super().do_history(*args, **named)
        shell: Any = self.shell
        current = shell.history_manager.session_number
        reply["history"] = [(session or current, *rest) for session, *rest in reply["history"]]
        return reply

    def _send_uncaught_error(self, error: BaseException) -> dict[str, Any]:
        """Send an error that IPython did not catch; return the reply for it."""
        reply = self._error_reply(error, [f"{type(error).__name__}: {error}"])
        content = {key: reply[key] for key in ("ename", "evalue", "traceback")}
        self.send_response(self.iopub_socket, "error", content, ident=self._topic("error"))
        return reply

    def _error_reply(self, error: BaseException, traceback: list[str]) -> dict[str, Any]:
        return {
            "status": "error",
            "execution_count": self.execution_count - 1,
            "user_expressions": {},
            "payload": [],
            "ename": type(error).__name__,
            "evalue": str(error),
            "traceback": traceback,
        }

    async def interrupt_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Interrupt the running cell and its child processes; called in the control thread."""
        self._send_interrupt_children()
        self.interrupts.wake_handler()
        session: Any = self.session
        session.send(stream, "interrupt_reply", {"status": "ok"}, parent, ident=ident)


@contextlib.contextmanager
def _without_working_directory() -> Iterator[None]:
    """Import from installed packages only: a user's own rich.py must not hide the library."""
    before = list(sys.path)
    sys.path[:] = [folder for folder in before if folder]
    try:
        yield
    finally:
        sys.path[:] = before
