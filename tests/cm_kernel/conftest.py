"""A real kernel and a frontend that listens to it."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from jupyter_client.manager import KernelManager

from cloudmanager.virtual.virtual_boards import VirtualBoards
from cm_kernel.install import install

WAIT = 60.0  # seconds that a cell may take on a busy machine
ROOT = Path(__file__).parents[2]
PATHS = os.pathsep.join(str(ROOT / name) for name in ("", "server"))


class Output(NamedTuple):
    """One message of a cell: its kind and its content."""

    kind: str
    content: dict[str, Any]

    @property
    def text(self) -> str:
        """The text that the user sees."""
        data = self.content.get("data", {})
        text = self.content.get("text") or data.get("text/plain")
        return str(text or "\n".join(self.content.get("traceback", ())))


class Kernel:
    """A running kernel and a frontend that listens to it."""

    def __init__(self, manager: KernelManager, folder: Path) -> None:
        self.manager = manager
        self.folder = folder  # below which it is installed
        self.client: Any = manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(WAIT)
        self.prompts: list[str] = []
        self._replies: dict[str, dict[str, Any]] = {}
        self._unanswered_interrupts = 0

    def run(
        self,
        code: str,
        *,
        person: bool = False,
        answers: tuple[str, ...] = (),
        begun: Callable[[], None] = lambda: None,
        watch: Callable[[Output], None] = lambda _: None,
    ) -> tuple[str, list[Output]]:
        """Run a cell; return its status and its outputs.

        Args:
            code: the cell.
            person: whether the frontend accepts input, as JupyterLab does.
            answers: the answers to input prompts.
            begun: called when the kernel has started to run the cell.
            watch: called with each output as it arrives.
        """
        self.prompts = []
        asked = self.client.execute(code, allow_stdin=person, stop_on_error=False)
        outputs: list[Output] = []
        waiting, deadline = list(answers), time.monotonic() + WAIT
        while (message := self._next(asked, waiting)) != "idle":
            assert time.monotonic() < deadline, outputs
            if message == "busy":
                begun()
            elif isinstance(message, Output):
                outputs.append(message)
                watch(message)
        return str(self.reply(asked)["status"]), outputs

    def request(self, code: str, **options: Any) -> tuple[dict[str, Any], list[Output]]:
        """Send an execute_request with options of the protocol; return its reply and outputs."""
        asked = self.client.execute(code, allow_stdin=False, stop_on_error=False, **options)
        outputs: list[Output] = []
        while (message := self._next(asked, [])) != "idle":
            outputs += [message] if isinstance(message, Output) else []
        return self.reply(asked), outputs

    def reply(self, asked: str) -> dict[str, Any]:
        """Return the content of the reply to a request."""
        while asked not in self._replies:
            message = self.client.get_shell_msg(timeout=WAIT)
            self._replies[message["parent_header"]["msg_id"]] = dict(message["content"])
        return self._replies.pop(asked)

    def complete(self, code: str, cursor: int | None = None) -> dict[str, Any]:
        """Request completion, as Tab does; return the reply."""
        return self.reply(self.client.complete(code, cursor))

    def inspect(self, code: str, cursor: int | None = None) -> str:
        """Request inspection, as Shift-Tab does; return the text, or "" if nothing was found."""
        reply = self.reply(self.client.inspect(code, cursor))
        return str(reply["data"]["text/plain"]) if reply["found"] else ""

    def interrupt(self) -> None:
        """Press the stop button."""
        self.client.control_channel.send(self.client.session.msg("interrupt_request", {}))
        self._unanswered_interrupts += 1

    def settle(self) -> None:
        """Wait for the replies to all interrupts."""
        while self._unanswered_interrupts:
            self.client.get_control_msg(timeout=WAIT)
            self._unanswered_interrupts -= 1

    def _next(self, asked: str, answers: list[str]) -> Output | str | None:
        with contextlib.suppress(queue.Empty):
            request = self.client.get_stdin_msg(timeout=0) if answers else None
            if request is not None:
                self.prompts.append(request["content"]["prompt"])
                self.client.input(answers.pop(0))
        try:
            message = self.client.get_iopub_msg(timeout=0.05)
        except queue.Empty:
            return None
        kind = message["msg_type"]
        if message["parent_header"].get("msg_id") != asked:
            return None
        if kind == "status":
            return str(message["content"]["execution_state"])
        return None if kind == "execute_input" else Output(kind, message["content"])


@contextlib.contextmanager
def running_kernel(folder: Path, cwd: Path | None = None, **environment: str) -> Iterator[Kernel]:
    """Run a kernel that is installed below a folder; its notebook is in ``cwd``."""
    install(prefix=str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "share/jupyter"))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        patch.setenv("PYTHONPATH", PATHS)
        for name, value in environment.items():
            patch.setenv(name, value)
        manager = KernelManager(kernel_name="cm_kernel")
        manager.start_kernel(env=dict(os.environ), cwd=str(cwd) if cwd else None)
    try:
        kernel = Kernel(manager, folder)
        try:
            yield kernel
        finally:
            kernel.client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)


@pytest.fixture(scope="package")
def shared(
    boards: VirtualBoards, home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kernel]:
    """The kernel that most tests share."""
    with running_kernel(tmp_path_factory.mktemp("kernel")) as kernel:
        yield kernel


@pytest.fixture
def kernel(shared: Kernel) -> Kernel:
    """The shared kernel, with all three boards chosen."""
    assert shared.run("%board_use demo-[1-3]")[0] == "ok"
    return shared
