"""Replaces several files of a folder at once: after a crash all are old, or all are new.

The new files are put into a folder of their own beside the old ones (``staging``). When they are
on the disk, a journal that names them is renamed into its place: that rename is the decision.
Before it, nothing has changed. After it, what the journal says is done, by this process, or by
the next one that calls ``finish``, as often as it takes: each step can be repeated.

The folder's owner calls this while nobody else changes the folder (claim.py).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cloudmanager.config import sync_folder
from cloudmanager.protocol.errors import ServerError

JOURNAL = "replacement.json"
_STAGING = "replacement-"  # what the names of the folders with new files begin with
#: What SQLite keeps beside a database; it belongs to the old one, and would spoil the new one.
_SIDE_FILES = ("-wal", "-shm", "-journal")


@contextlib.contextmanager
def staging(home: Path) -> Iterator[Path]:
    """Make a folder for new files, on the same file system; it is gone at the end."""
    folder = Path(tempfile.mkdtemp(dir=home, prefix=_STAGING))
    try:
        yield folder
    finally:
        if not is_pending(home):  # else the journal wants the files that are left in it
            shutil.rmtree(folder, ignore_errors=True)


def replace_all(home: Path, folder: Path, names: Sequence[str], what: str) -> str:
    """Put the new files into the places of the old ones, which are kept beside them.

    Args:
        home: the folder with the old files.
        folder: the folder with the new ones, of ``staging``.
        names: the files' names, the same in both.
        what: what is done by this, for people: "restore".

    Returns:
        What is behind the kept files' names: ".before", ".before-2", and so on; "" where there
        was no old file. No kept file is ever overwritten.
    """
    for name in names:
        _sync(folder / name)
    end = _free_ending(home, names)
    journal: dict[str, Any] = {
        "what": what,
        "folder": folder.name,
        "names": list(names),
        "kept": end,
    }
    draft = folder / JOURNAL
    draft.write_text(json.dumps(journal), encoding="utf-8")
    _sync(draft)
    sync_folder(folder)
    draft.replace(home / JOURNAL)
    sync_folder(home)
    _carry_out(home, journal)
    kept = any((home / f"{name}{end}").exists() for name in names)
    return end if kept else ""


def is_pending(home: Path) -> bool:
    """Say whether a replacement was decided and is not finished."""
    return (home / JOURNAL).exists()


def finish(home: Path) -> str:
    """Finish a replacement that was broken off, or undo one that had not been decided.

    Returns:
        What was done, a sentence; "" where there was nothing to do.

    Raises:
        ServerError: the journal cannot be read, or a file cannot be moved.
    """
    try:
        if is_pending(home):
            journal = _read(home / JOURNAL)
            _carry_out(home, journal)
            names = ", ".join(journal["names"])
            return (
                f"A {journal['what']} that was broken off was finished: {names} are the new ones."
            )
        left = [path for path in home.glob(f"{_STAGING}*") if path.is_dir()]
        for path in left:
            shutil.rmtree(path)
    except OSError as error:
        why = f"files in {home} that are being replaced cannot be: {error}"
        raise ServerError(why) from error
    if left:
        return "Files were to be replaced, and nothing had been yet: all are as they were before."
    return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        journal = json.loads(path.read_text(encoding="utf-8"))
        names = [journal["what"], journal["folder"], journal["kept"], *journal["names"]]
        if not all(isinstance(name, str) and "/" not in name for name in names):
            raise ValueError(names)
    except (ValueError, KeyError, TypeError) as error:
        why = f"{path} says which files are being replaced, and cannot be read"
        raise ServerError(f"{why}; restore a backup into an empty folder") from error
    return dict(journal)


def _carry_out(home: Path, journal: dict[str, Any]) -> None:
    """Do what a journal says; it may have been begun, at any step, before.

    A new file that is still in its folder has not been moved, so that what is in its place is old.
    """
    folder, kept = home / journal["folder"], journal["kept"]
    for name in journal["names"]:
        new, place = folder / name, home / name
        if new.exists():
            _keep(place, home / f"{name}{kept}")
            for end in _SIDE_FILES:
                if (home / f"{name}{end}").exists():
                    (home / f"{name}{end}").replace(home / f"{name}{kept}{end}")
            new.replace(place)
    sync_folder(home)
    shutil.rmtree(folder, ignore_errors=True)
    (home / JOURNAL).unlink(missing_ok=True)
    sync_folder(home)


def _keep(old: Path, kept: Path) -> None:
    """Give an old file a second name, so that there is no moment in which it has none."""
    if not old.exists() or kept.exists():
        return
    try:
        kept.hardlink_to(old)
    except OSError:  # a file system without hard links: FAT, some network folders
        old.replace(kept)


def _free_ending(home: Path, names: Sequence[str]) -> str:
    """Return an ending under which none of the files, nor what is beside them, was kept before."""
    for number in itertools.count(1):
        end = ".before" if number == 1 else f".before-{number}"
        kept = [f"{name}{end}{side}" for name in names for side in ("", *_SIDE_FILES)]
        if not any((home / name).exists() for name in kept):
            return end
    raise AssertionError


def _sync(path: Path) -> None:
    """Have a file on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
