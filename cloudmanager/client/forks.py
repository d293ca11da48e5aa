"""What a forked process does with the links of its parent: it leaves them alone.

Both processes have the same socket. If the child wrote to it, its messages would be mixed with the
parent's; and the threads of the links exist in the parent only. Programs that fork without knowing
it use ``multiprocessing`` (by default on Linux before Python 3.14) or a web server.
"""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

from cloudmanager.protocol.errors import CloudmanagerError

#: Why a cell of the parent has no result in the child.
RESULT_IN_PARENT: Final = "the process forked while it ran: only the parent gets its result"


class _ForkAware(Protocol):
    def after_fork_in_child(self) -> None:
        """Adapt to the child process, in which only the forking thread exists."""


_objects: Final[weakref.WeakSet[_ForkAware]] = weakref.WeakSet()


def notify_in_child(each: _ForkAware) -> None:
    """Call the object's ``after_fork_in_child`` in each process that this one forks."""
    _objects.add(each)


def forked_error() -> CloudmanagerError:
    """Return the error of a child process that uses a Fleet of its parent."""
    error = CloudmanagerError("This Fleet was connected by the parent of this process")
    error.hint = "Make a new Fleet in the forked process, or connect after the fork."
    return error


def _notify_all() -> None:
    for each in list(_objects):
        each.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_notify_all)
