"""Command lines as words, by the rules of this system."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence

_WINDOWS: bool = os.name == "nt"


def split_words(text: str, *, windows: bool = _WINDOWS) -> list[str]:
    """Return the words of a command line.

    On Windows, a backslash separates folders, and only double quotation marks count.

    Raises:
        ValueError: a quotation mark has no counterpart (not on Windows).
    """
    if not windows:
        return shlex.split(text)
    return [word.replace('"', "") for word in re.findall(r'(?:[^\s"]|"[^"]*"?)+', text)]


def join_words(words: Sequence[str], *, windows: bool = _WINDOWS) -> str:
    """Return a command line that a user can paste into a shell."""
    return subprocess.list2cmdline(words) if windows else shlex.join(words)


def find_program(name: str) -> str:
    """Return a program's path; its name if it is not found.

    Windows starts a script, such as ``code.cmd`` for ``code``, only by its path.
    """
    return shutil.which(name) or name
