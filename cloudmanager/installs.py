"""Installs on boards, one plan for all of them: ask what is there, send what differs, switch."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from . import files, sources, verbs
from .downloads import read as read_files
from .errors import PackageError
from .exchange import Exchange
from .filejobs import Progress, act, alike, ask, results_of, send, together
from .jobs import JobGroup
from .packages import (
    JOURNAL,
    RECORD,
    Change,
    File,
    Installed,
    Record,
    change,
    read_record,
    removal,
    write_record,
)
from .results import Result, Results
from .syncing import ignore
from .text import fold
from .uploads import deliver
from .verbs import Targeted, ending

#: Does what a journal on the board says, if there is one, and lets go of the part that does.
_FINISH: Final = (
    '(__import__("cm.switch", None, None, ("finish",)).finish(), '
    '__import__("sys").modules.pop("cm.switch", None))[0]'
)
_SPARE_BYTES: Final = 16 * 1024  # that littlefs wants for folders, the record and the journal
_BLOCK_BYTES: Final = 4096


async def install(
    boards: Targeted,
    wanted: Sequence[str],
    options: Mapping[str, Any],
    *,
    dry_run: bool,
    progress: Progress | None,
) -> tuple[Results, dict[str, Any]]:
    """Install on all boards; return the results and the server's plan."""
    sent = {text: await _send_local(boards, Path(text)) for text in wanted if is_local(text)}
    body = {"target": boards.target, "wanted": list(wanted), "sent": sent, **options}
    told = await boards.exchange().request("plan", body)
    state = await finish(boards, boards.target)
    well = [name for name, result in state.items() if result.ok]
    kinds = [
        (names, int(kind)) for names, kind in alike({name: told["boards"][name] for name in well})
    ]
    parts = await together(
        *(
            _install_kind(
                boards, names, told, str(kind), bool(options.get("force")), dry_run, progress
            )
            for names, kind in kinds
        )
    )
    merged = {name: result for part in parts for name, result in part.items()}
    results = {name: merged.get(name, result) for name, result in state.items()}
    return Results(results, state.left_out), told


def is_local(text: str) -> bool:
    """Whether a requirement means a file or folder of this machine."""
    path = text.startswith((".", "/", "~")) or text.endswith((".py", ".mpy"))
    return path and "://" not in text and ":" not in text.partition("/")[0]


async def _send_local(boards: Targeted, path: Path) -> dict[str, str]:
    """Send files of this machine to the server."""
    found = _local(path)
    for source in found.values():
        await send(boards.exchange(), source)
    return {name: source.digest for name, source in found.items()}


def _local(path: Path) -> dict[str, sources.Source]:
    """Return a file, or the files of a folder, by their paths; a module's folder keeps its name."""
    if path.is_dir():
        ignored = ignore(path)
        before = f"{path.resolve().name}/" if (path / "__init__.py").exists() else ""
        return {
            before + str(inner): sources.of_file(file)
            for inner, file in sources.walk(path)
            if not ignored.match_file(str(inner))
        }
    return {path.name: sources.of_file(path)}


async def finish(boards: Targeted, target: str) -> Results:
    """Bring to its end what a power cut or a broken link left of an install."""
    group = JobGroup(verbs.cell_of(_FINISH, None))
    boards.exchange().submit(group, target, verbs.options(None, False, 0))
    return await ending(group)


async def records(boards: Targeted, target: str) -> dict[str, Record | Exception]:
    """Return what each board has; none is an empty record."""
    results = await read_files(boards, f":{RECORD}", target)
    found: dict[str, Record | Exception] = {}
    for name, result in results.items():
        try:
            found[name] = {} if _absent(result) else read_record(result.value)
        except (PackageError, OSError) as error:
            found[name] = error
    return found


def _absent(result: Result) -> bool:
    return isinstance(result.error, FileNotFoundError)


async def _install_kind(
    boards: Targeted,
    names: Sequence[str],
    told: Mapping[str, Any],
    kind: str,
    force: bool,
    dry_run: bool,
    progress: Progress | None,
) -> dict[str, Result]:
    """Install on boards of one kind of bytecode."""
    wanted = [File(*row) for row in told["files"][kind]]
    removed = told["plan"]["boards"][kind]["removed"]
    looked = await look(boards, names, wanted, removed)
    have = await records(boards, fold(names))
    changes: dict[str, Change] = {}
    results: dict[str, Result] = {}
    for name, (there, free, failure) in looked.items():
        record = have.get(name, {})
        try:
            if failure is not None:
                raise failure
            if isinstance(record, Exception):
                raise record
            planned = change(told["plan"], wanted, there, record, removed=removed, force=force)
            _check_space(name, planned, free)
        except Exception as error:
            results[name] = files.failed(name, error)
            continue
        if not planned.put and not planned.removed and planned.record == write_record(record):
            results[name] = files.nothing(name).with_value(_installed(told["plan"], planned))
        else:
            changes[name] = planned
    versions = {one["name"]: one["version"] for one in told["plan"]["packages"]}
    return {**results, **await apply(boards, changes, versions, dry_run, progress)}


def _installed(plan: Mapping[str, Any], planned: Change) -> Installed:
    versions = {one["name"]: one["version"] for one in plan["packages"]}
    return _outcome(versions, planned)


def _outcome(versions: Mapping[str, str], planned: Change) -> Installed:
    size = sum(file.size for file in planned.put)
    return Installed(dict(versions), tuple(f.path for f in planned.put), planned.removed, size)


def _check_space(name: str, planned: Change, free: int) -> None:
    blocks = sum(-(-file.size // _BLOCK_BYTES) * _BLOCK_BYTES for file in planned.put)
    if planned.put and blocks + _SPARE_BYTES > free:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{name}:/")


Looked = tuple[dict[str, str | None], int, Exception | None]


async def look(
    boards: Targeted, names: Sequence[str], wanted: Sequence[File], removed: Sequence[str]
) -> dict[str, Looked]:
    """Return of each board: the files that matter, its free bytes, and why it cannot be told."""
    folders = {path.rpartition("/")[0] for path in [*(f.path for f in wanted), *removed]}
    acts: list[list[Any]] = [["statvfs", "/"], ["ls", "/", True]]
    acts += [["hash", file.path, file.size] for file in wanted]
    told = results_of(await ask(boards, acts, target=fold(names)))
    found: dict[str, Looked] = {}
    for name, result in told.items():
        if not result.ok:
            found[name] = ({}, 0, result.error)
            continue
        space, listed, *hashes = result.value
        entries = files.entries(listed)
        there: dict[str, str | None] = {e.path: None for e in entries if not e.is_dir}
        for file, digest in zip(wanted, hashes, strict=True):
            if digest:
                there[file.path] = digest
        in_way = {e.path for e in entries if e.is_dir} & {file.path for file in wanted}
        in_way |= folders & set(there)
        error = PackageError(f"{min(in_way)} is in the way on it") if in_way else None
        found[name] = (there, files.space(space).free, error)
    return found


async def apply(
    boards: Targeted,
    changes: Mapping[str, Change],
    versions: Mapping[str, str],
    dry_run: bool,
    progress: Progress | None,
) -> dict[str, Result]:
    """Make the changes; boards with the same one do it together."""
    if dry_run:
        return {
            name: files.nothing(name).with_value(_outcome(versions, planned))
            for name, planned in changes.items()
        }
    parts = await together(
        *(_switch(boards, fold(names), planned, progress) for names, planned in alike(changes))
    )
    return {
        name: result.with_value(_outcome(versions, changes[name]))
        for part in parts
        for name, result in part.items()
    }


async def _switch(
    boards: Targeted, target: str, planned: Change, progress: Progress | None
) -> dict[str, Any]:
    """Stage, verify, and switch: from the journal's rename on the install has happened."""
    staged = results_of(await deliver(boards, target, planned.items(), progress))
    well = [name for name, result in staged.items() if result.ok]
    if not well:
        return dict(staged)
    renamed = await act(boards, [["rename", JOURNAL + ".new", JOURNAL]], target=fold(well))
    merged = {**staged, **results_of(renamed)}
    well = [name for name, result in renamed.items() if result.ok]
    if well:
        ended = await finish(boards, fold(well))
        for name, result in ended.items():
            if not result.ok:
                why = PackageError(f"{name}: its switch did not end; it does when it restarts")
                merged[name] = files.failed(name, result.error or why)
    return merged


async def uninstall(
    boards: Targeted, wanted: Sequence[str], *, force: bool, dry_run: bool
) -> Results:
    """Take packages off all boards."""
    state = await finish(boards, boards.target)
    well = [name for name, result in state.items() if result.ok]
    have = await records(boards, fold(well)) if well else {}
    changes: dict[str, Change] = {}
    results: dict[str, Result] = dict(state)
    for name, record in have.items():
        try:
            if isinstance(record, Exception):
                raise record
            changes[name] = removal(wanted, record, force=force)
        except (PackageError, OSError) as error:
            results[name] = files.failed(name, error)
    results.update(await apply(boards, changes, {}, dry_run, None))
    return Results(results, state.left_out)


class Some:
    """Some boards of a target, by their names."""

    def __init__(self, exchange: Callable[[], Exchange], target: str) -> None:
        self.exchange = exchange
        self.target = target


def wishes_of(record: Record | Exception, names: Sequence[str]) -> tuple[str, ...]:
    """Return what a board was asked to have, or the named ones of it.

    Raises:
        PackageError: it has no such package.
    """
    if isinstance(record, Exception):
        raise record
    if missing := [name for name in names if name not in record]:
        raise PackageError(f"it has no package {missing[0]}")
    asked = {key: told["wanted"] for key, told in record.items() if "wanted" in told}
    chosen = {key: asked.get(key, key) for key in names} if names else asked
    return tuple(sorted(wish for wish in chosen.values() if not is_local(wish)))
