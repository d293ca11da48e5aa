"""``mbm board BOARD edit``: edits files of a board in the user's editor.

What was edited is never lost: unless it is on the board, it stays in a file of ``CM_HOME``, and a
message says where.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from cloudmanager import config
from cloudmanager.client import board_paths
from cloudmanager.client.files import FileResult, empty_result, failed_result
from cloudmanager.client.fleet import Fleet
from cloudmanager.display.file_report import size_text
from cloudmanager.display.terminal import print_error
from cloudmanager.protocol.errors import CloudmanagerError
from cloudmanager.protocol.file_ops import belongs_to_client
from cloudmanager.protocol.text import one_line
from cloudmanager.results.results import Results

from .command_words import find_program, join_words, split_words

#: Opens a connection to the server. One is opened to read, another one to write: nobody knows how
#: long a file is edited.
OpenFleet = Callable[[], AbstractContextManager[Fleet]]
_FOLDER: Final = "edited"  # in CM_HOME, which is private; it outlasts a restart of this computer


def edit_files(open_fleet: OpenFleet, target: str, *paths: str) -> Results:
    """Edit files of one board, one after the other; write those that have changed.

    Args:
        open_fleet: opens a connection to the server.
        target: the board.
        paths: on the board, with colons. A file that does not exist is created.

    Raises:
        ValueError: the target is not one board, or a path is the client's; nothing was edited.
        CloudmanagerError: no editor is set, or the server cannot be reached.
    """
    command = _editor_command()
    for path in paths:
        if belongs_to_client(board_paths.parse_board_path(path)):
            raise ValueError(f"{path} belongs to the board's client and cannot be edited")
    with open_fleet() as fleet:
        names = fleet[target].names()
    if len(names) != 1:
        raise ValueError(f"edit is for one board; {target} selects {len(names)}")
    name = names[0]
    outcomes: list[str] = []
    for path in paths:
        result = _edit_file(open_fleet, name, path, command)
        if not result.ok:
            return Results({name: result.with_partial("\n".join(outcomes) or None)})
        outcomes.append(result.value)
    return Results({name: empty_result(name).with_value("\n".join(outcomes))})


def _editor_command() -> list[str]:
    """Return the user's editor with its arguments.

    Raises:
        CloudmanagerError: none is set.
    """
    editor = (os.environ.get("VISUAL") or os.environ.get("EDITOR") or "").strip()
    if not editor:
        error = CloudmanagerError("No editor is set.")
        error.hint = "Set the environment variable EDITOR, such as EDITOR=nano."
        raise error
    program, *arguments = split_words(editor)
    return [find_program(program), *arguments]


def _edit_file(open_fleet: OpenFleet, name: str, path: str, command: list[str]) -> FileResult:
    """Edit one file; its result's value is a line about what was done."""
    with open_fleet() as fleet:
        results = fleet[name].read(path)
    (read,) = results.values()
    if not read.ok and not isinstance(read.error, FileNotFoundError):
        return failed_result(name, read.error or OSError(errno.EIO, read.why))
    before: bytes | None = read.value if read.ok else None
    shown = one_line(board_paths.parse_board_path(path))
    with _local_copy(name, path, before or b"") as local:
        status = _run_editor([*command, str(local)])
        after = local.read_bytes()
        if status != 0:
            why = f"the editor ended with status {status}, so nothing was written"
            return failed_result(name, OSError(errno.ECANCELED, why, f"{name}:{shown}"))
        if after == (before or b""):
            return empty_result(name).with_value(f"{shown}: unchanged")
        with open_fleet() as fleet:
            written = _write_file(fleet, name, path, before, after)
        if written.ok:
            local.unlink()
            written = written.with_value(f"{shown}: {size_text(len(after))} written")
        return written


@contextlib.contextmanager
def _local_copy(name: str, path: str, content: bytes) -> Iterator[Path]:
    """Make a private file with the content; if that has changed at the end, say where it is."""
    parent = config.make_home_folder() / _FOLDER
    config.make_private_folder(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    local = folder / board_paths.escape_name(board_paths.parse_board_path(path).rpartition("/")[2])
    try:
        _write_private(local, content)
        yield local
    finally:
        if local.is_file() and local.read_bytes() != content:
            send = join_words(["mbm", "board-upload", name, str(local), path])
            print_error(f"your text is in {local}; `{send}` writes it to the board", role="note")
        else:
            shutil.rmtree(folder, ignore_errors=True)  # also the editor's own copies


def _write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can read: it may contain passwords."""
    with config.open_private(path) as file:
        file.write(content)


def _run_editor(command: list[str]) -> int:
    """Run the editor in this terminal; return its exit status. Ctrl-C is the editor's."""
    before = signal.signal(signal.SIGINT, lambda *_: None)  # not SIG_IGN, which would be inherited
    try:
        return subprocess.run(command, check=False).returncode
    except OSError as error:
        problem = CloudmanagerError(f"The editor {command[0]} cannot be started: {error.strerror}.")
        problem.hint = "Correct the environment variable VISUAL or EDITOR, such as EDITOR=nano."
        raise problem from None
    finally:
        signal.signal(signal.SIGINT, before)


def _write_file(
    fleet: Fleet, name: str, path: str, before: bytes | None, after: bytes
) -> FileResult:
    """Write a file to the board, unless it has changed there since it was read."""
    (now,) = fleet[name].sha256sum(path).values()
    error = now.error
    if error is not None and not isinstance(error, FileNotFoundError):
        return failed_result(name, error)
    if not _is_as_read(now.value[0].sha256 if now.ok else None, before):
        why = "it has changed on the board while it was edited, so nothing was written"
        return failed_result(name, OSError(errno.EBUSY, why, f"{name}:{one_line(path[1:])}"))
    (written,) = fleet[name].put(after, path).values()
    if written.error is not None:
        return failed_result(name, written.error)
    return empty_result(name)


def _is_as_read(digest: str | None, before: bytes | None) -> bool:
    """Whether a file on the board still is what was read; None: there is, or was, no file."""
    return digest == (None if before is None else hashlib.sha256(before).hexdigest())
