"""The folder in which samples are kept: its files, copies of them, the list to erase. No SQL.

    2026-11-30.1.duckdb                 the day that is not over
    raw-2026-11-29.1-000.parquet        board_id, board, name, time, value
    minutes-2026-11-29.1-000.parquet    … time, count, sum, min, max, last, last_time
    erase.json                          ids of boards whose values are still to be deleted

The number after the date differs if a day begins again, because the clock was set.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from cloudmanager.config import sync_folder

from .sample_query import HistoryError

FOLDER: Final = "history"  # beside the server's database
LOCK: Final = "lock"  # held while a file changes; a backup holds it while it copies
ERASE: Final = "erase.json"
DAMAGED: Final = ".damaged"
OPEN_NAME: Final = re.compile(r"(\d{4}-\d\d-\d\d)\.(\d+)\.duckdb")
CLOSED_NAME: Final = re.compile(r"(raw|minutes)-((\d{4}-\d\d-\d\d)\.\d+)-\d+\.parquet")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class ClosedFile(NamedTuple):
    """A Parquet file."""

    path: Path
    kind: str
    stem: str
    first: int
    last: int

    @property
    def day(self) -> int:
        """The day in which its values came."""
        return day_of(self.stem)


def is_file_name(name: str) -> bool:
    """Return whether a file of a folder of samples has this name."""
    names = (OPEN_NAME, CLOSED_NAME)
    is_day = any(pattern.fullmatch(name.removesuffix(".wal")) for pattern in names)
    return is_day or name == ERASE


def copy_files(folder: Path, target: Path) -> list[str]:
    """Copy the files of samples as they are at one moment; a server may use them meanwhile.

    Args:
        folder: of the samples; it may not exist.
        target: an empty folder, on the same file system.

    Returns:
        The names of the copies.

    Raises:
        OSError: they cannot be copied.
    """
    if not (folder / LOCK).exists():
        return []
    names: list[str] = []
    with (folder / LOCK).open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in sorted(folder.iterdir()):
            if not is_file_name(path.name):
                continue
            copy = target / path.name
            try:
                if path.suffix != ".parquet":  # those of the day that is not over change
                    raise OSError
                copy.hardlink_to(path)
            except OSError:  # also where the file system has no hard links
                shutil.copyfile(path, copy)
            names.append(path.name)
    return names


def add_ids_to_erase(folder: Path, ids: Iterable[str]) -> None:
    """Write down boards whose values are to be deleted, with those that are written down already.

    Raises:
        HistoryError: the list cannot be read.
        OSError: it cannot be written.
    """
    draft = folder / f"{ERASE}.part"
    draft.write_text(json.dumps(sorted({*read_ids_to_erase(folder), *ids})), encoding="utf-8")
    draft.replace(folder / ERASE)
    sync_folder(folder)


def read_ids_to_erase(folder: Path) -> list[str]:
    """Return the ids of boards whose values are still to be deleted.

    Raises:
        HistoryError: the list cannot be read.
    """
    path = folder / ERASE
    try:
        return [str(each) for each in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise HistoryError(f"{path} cannot be read") from error


def day_of(stem: str) -> int:
    """Return the day of a file, in days since 1970."""
    date = datetime.strptime(stem.partition(".")[0], "%Y-%m-%d").replace(tzinfo=UTC)
    return (date - _EPOCH).days


def date_text(day: int) -> str:
    """Return the date in the name of a day's files."""
    return (_EPOCH + timedelta(days=day)).strftime("%Y-%m-%d")
