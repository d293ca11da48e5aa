"""Replace several files of a folder atomically: after a crash all are old, or all are new.

The new files are written to a folder of their own beside the old ones (``staging``). When they are
on the disk, a journal that names them is renamed into its place: that rename commits the
replacement. Before it, nothing has changed. After it, the files that the journal names are moved,
by this process or by the next one that calls ``finish``, repeatedly if necessary: each step can be
repeated.

Call these functions only while no other process changes the folder (lockfile.py).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cloudmanager.config import sync_folder
from cloudmanager.protocol.errors import ServerError

JOURNAL = "replacement.json"
_STAGING = "replacement-"  # prefix of the names of folders with new files
#: Files that SQLite keeps beside a database; those of the old database would damage the new one.
_SIDE_FILES = ("-wal", "-shm", "-journal")


@contextlib.contextmanager
def staging(home: Path) -> Iterator[Path]:
    """Create a folder for new files, on the same file system; remove it at the end."""
    folder = Path(tempfile.mkdtemp(dir=home, prefix=_STAGING))
    try:
        yield folder
    finally:
        _remove_staging(home, folder)


def _remove_staging(home: Path, folder: Path) -> None:
    """Remove the folder with new files, unless a committed replacement still needs them."""
    if not is_pending(home):
        shutil.rmtree(folder, ignore_errors=True)


def replace_all(home: Path, folder: Path, names: Sequence[str], operation: str) -> str:
    """Put the new files into the places of the old ones, which are kept beside them.

    Args:
        home: the folder with the old files.
        folder: the folder with the new ones, from ``staging``.
        names: the files' names, the same in both.
        operation: what this replacement does, for messages: "restore".

    Returns:
        The suffix of the kept files' names: ".before", ".before-2", and so on; "" if there was
        no old file. No kept file is ever overwritten.
    """
    _sync_files(folder / name for name in names)
    suffix = _unused_suffix(home, names)
    journal: dict[str, Any] = {
        "what": operation,
        "folder": folder.name,
        "names": list(names),
        "kept": suffix,
    }
    draft = folder / JOURNAL
    draft.write_text(json.dumps(journal), encoding="utf-8")
    _sync(draft)
    sync_folder(folder)
    _commit_journal(draft, home)
    _carry_out(home, journal)
    kept = any((home / f"{name}{suffix}").exists() for name in names)
    return suffix if kept else ""


def is_pending(home: Path) -> bool:
    """Return whether a replacement was committed and is not finished."""
    return (home / JOURNAL).exists()


def finish(home: Path) -> str:
    """Finish an interrupted replacement, or undo it if it had not been committed.

    Returns:
        A sentence that says what was done; "" if there was nothing to do.

    Raises:
        ServerError: the journal cannot be read, or a file cannot be moved.
    """
    try:
        if is_pending(home):
            journal = _read_journal(home / JOURNAL)
            _carry_out(home, journal)
            names = ", ".join(journal["names"])
            return f"An interrupted {journal['what']} was finished: {names} are the new ones."
        left = [path for path in home.glob(f"{_STAGING}*") if path.is_dir()]
        for path in left:
            shutil.rmtree(path)
    except OSError as error:
        why = f"an interrupted replacement of files in {home} cannot be finished: {error}"
        raise ServerError(why) from error
    if left:
        return "A replacement of files was interrupted before it changed any: all are unchanged."
    return ""


def _read_journal(path: Path) -> dict[str, Any]:
    try:
        journal = json.loads(path.read_text(encoding="utf-8"))
        names = [journal["what"], journal["folder"], journal["kept"], *journal["names"]]
        if not all(isinstance(name, str) and "/" not in name for name in names):
            raise ValueError(names)
    except (ValueError, KeyError, TypeError) as error:
        why = f"{path}, which names the files that are being replaced, cannot be read"
        raise ServerError(f"{why}; restore a backup into an empty folder") from error
    return dict(journal)


def _commit_journal(draft: Path, home: Path) -> None:
    """Commit a replacement: from now on, a crash leads to the new files."""
    draft.replace(home / JOURNAL)
    sync_folder(home)


def _carry_out(home: Path, journal: dict[str, Any]) -> None:
    """Carry out a committed replacement, which may have been interrupted at any step before."""
    folder = home / journal["folder"]
    _move_files(home, folder, journal)
    sync_folder(home)
    shutil.rmtree(folder, ignore_errors=True)
    _remove_journal(home)


def _move_files(home: Path, folder: Path, journal: dict[str, Any]) -> None:
    """Move the new files into their places, and keep the old ones.

    A new file that is still in its folder has not been moved, so the file in its place is old.
    """
    kept = journal["kept"]
    for name in journal["names"]:
        new, place = folder / name, home / name
        if new.exists():
            _keep(place, home / f"{name}{kept}")
            for end in _SIDE_FILES:
                if (home / f"{name}{end}").exists():
                    (home / f"{name}{end}").replace(home / f"{name}{kept}{end}")
            new.replace(place)


def _remove_journal(home: Path) -> None:
    (home / JOURNAL).unlink(missing_ok=True)
    sync_folder(home)


def _keep(old: Path, kept: Path) -> None:
    """Give an old file a second name, so that at no moment it has none."""
    if not old.exists() or kept.exists():
        return
    try:
        kept.hardlink_to(old)
    except OSError:  # a file system without hard links: FAT, some network folders
        old.replace(kept)


def _unused_suffix(home: Path, names: Sequence[str]) -> str:
    """Return a suffix under which none of the files, nor their side files, was kept before."""
    for number in itertools.count(1):
        suffix = ".before" if number == 1 else f".before-{number}"
        kept = [f"{name}{suffix}{side}" for name in names for side in ("", *_SIDE_FILES)]
        if not any((home / name).exists() for name in kept):
            return suffix
    raise AssertionError


def _sync_files(paths: Iterable[Path]) -> None:
    for path in paths:
        _sync(path)


def _sync(path: Path) -> None:
    """Wait until a file's content is on the disk, or a folder with its files."""
    if path.is_dir():
        _sync_files(path.iterdir())
        sync_folder(path)
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
