"""The interface of the kernel that its parts use."""

from __future__ import annotations

from typing import Any, Protocol

from .interrupts import InterruptHandler


class KernelHost(Protocol):
    """The attributes of ``BoardKernel`` that its parts use; see ipykernel's ``Kernel``."""

    shell: Any
    interrupts: InterruptHandler
    iopub_socket: Any
    execution_count: Any

    def send_response(self, stream: Any, msg_or_type: Any, content: Any = None) -> Any:
        """Send a message on one of the kernel's sockets."""
