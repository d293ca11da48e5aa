"""Makes standard input and output usable: closed, not UTF-8, or with a reader that has gone."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any, Final

from cloudmanager.protocol.text import os_error_text

OUTPUT_NAME: Final = "standard output"  # the file name of errors while writing to it
_FAILED: Final = 1  # exit status
#: What is written for characters of tables and progress bars that the encoding lacks.
_REPLACEMENTS: Final = {
    "─": "-",
    "━": "=",
    "╸": "-",
    "╺": "-",
    "│": "|",
    "├": "|",
    "└": "`",
    "·": "|",
    "…": "...",
    "—": "-",
    "–": "-",
    "’": "'",
    "“": '"',
    "”": '"',
    "×": "x",
    "µ": "u",
    "μ": "u",
    "±": "+-",
}
_ERROR_HANDLER: Final = "mbm"


def prepare_streams() -> None:
    """Replace streams that are closed, and make the others write any text in any encoding."""
    codecs.register_error(_ERROR_HANDLER, _replace_characters)
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _open_null(descriptor, name)
    _name_output()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not if a test replaced it
            stream.reconfigure(errors=_ERROR_HANDLER)


class _Output(io.FileIO):
    """Standard output, whose errors have a name, as those of files do."""

    def write(self, data: Any) -> int:
        """Write bytes."""
        try:
            return super().write(data)
        except OSError as error:
            error.filename = OUTPUT_NAME
            raise


def _name_output() -> None:
    """Make ``sys.stdout`` an ``_Output``, unless a test or a program has replaced it."""
    stdout = sys.__stdout__
    buffer = getattr(stdout, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # the same, with PYTHONUNBUFFERED
    # Not the console of Windows, which is no FileIO.
    if (
        sys.stdout is not stdout
        or not isinstance(stdout, io.TextIOWrapper)
        or type(raw) is not io.FileIO
    ):
        return
    output = _Output(stdout.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        output if raw is buffer else io.BufferedWriter(output),
        encoding=stdout.encoding,
        line_buffering=stdout.line_buffering,
        write_through=stdout.write_through,
    )


def _open_null(descriptor: int, name: str) -> None:
    """Open the null device as a standard stream, and as its descriptor.

    Otherwise the next file or socket would get the number of the closed descriptor.
    """
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
    mode = "r" if name == "stdin" else "w"
    setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _replace_characters(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters for ``str.encode``: lines by ASCII, others by a backslash escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escape: Callable[[Any], tuple[str | bytes, int]] = codecs.backslashreplace_errors
    text = error.object[error.start : error.end]
    if any(char not in _REPLACEMENTS for char in text):
        first = next(n for n, char in enumerate(text) if char not in _REPLACEMENTS)
        if first == 0:
            error.end = error.start + 1
            return escape(error)
        text = text[:first]
    return "".join(_REPLACEMENTS[char] for char in text), error.start + len(text)


def run_with_output(run: Callable[[], int]) -> int:
    """Run a function and write all of its output; return its exit status.

    If the reader of the output has gone, as in `mbm … | head`, the rest is discarded.
    """
    try:
        try:
            return run()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError):
                print(f"mbm: {os_error_text(error)}", file=sys.stderr, flush=True)
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(null, stream.fileno())
        return _FAILED
