"""How the outcomes of verbs for files read: boards that say the same are one block; pure."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cloudmanager.client.files import Entry, FileResult, Space, Stat
from cloudmanager.client.packages import BoardPackages, InstallResult
from cloudmanager.client.syncing import SyncPlan
from cloudmanager.protocol.text import fold_names
from cloudmanager.results.results import Result, Results

from .layout import head_text, printable_output


def files_text(results: Results) -> str:
    """Return results as text; of one board, without its name."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, result in results.items():
        status = "" if result.ok else f" · {result.status}"
        alike.setdefault((status, _outcome_text(result)), []).append(name)
    told = [
        (names, how, text + _free_space_text(results, names))
        for (how, text), names in alike.items()
    ]
    left_out = [f"not there: {fold_names(results.left_out)}"] if results.left_out else []
    if len(results) == 1:
        return "\n".join([*(text for _, _, text in told if text), *left_out])
    blocks = [
        f"{head_text(fold_names(names) + how)}\n{text or 'done'}" for names, how, text in told
    ]
    return "\n".join([*blocks, *left_out])


def _outcome_text(result: Result) -> str:
    if not result.ok:
        return printable_output(result.traceback or result.why or result.status).rstrip()
    if isinstance(result, FileResult):
        return printable_output(value_text(result.value))
    return printable_output((result.stdout + result.text).rstrip())  # a cell's


def _install_text(result: InstallResult) -> str:
    """Return what an install, an uninstall or its dry run came to."""
    lines = [
        f"{name} {version}".rstrip() + (f"  from {origin}" if origin else "")
        for name, version in result.packages.items()
        for origin in [result.origins.get(name, "")]
    ]
    lines += [f"  {path}" for path in result.put]
    lines += [f"  {path} goes" for path in result.removed]
    files = len(result.put)
    said = f"{files} {'file' if files == 1 else 'files'}, {size_text(result.size_bytes)}"
    if files or not result.removed:
        there = "nothing to send: all of it is there" if result.packages else "no files to change"
        lines.append(said if files else there)
    return "\n".join(filter(None, [*lines, *(f"note: {note}" for note in result.notes)]))


def _free_space_text(results: Results, names: Iterable[str]) -> str:
    """Return how much room there is on boards for which a dry run comes to the same."""
    values = [results[name].value for name in names if results[name].ok]
    free = sorted(v.free_bytes for v in values if isinstance(v, InstallResult) and v.dry_run)
    if not free:
        return ""
    least = f"{free[0]:,} to " if free[0] < free[-1] else ""
    return f"\n{least}{size_text(free[-1])} free; nothing was done"


def _packages_text(packages: BoardPackages) -> str:
    """Return what a board has, and had when it was last there."""
    lines = [f"{name} {version}".rstrip() for name, version in packages.items()] or ["no packages"]
    lines += [f"drift: {told}" for told in packages.drift]
    if packages.as_of is not None:
        lines.append(time.strftime("as of %Y-%m-%d %H:%M:%S", time.localtime(packages.as_of)))
    return "\n".join(lines)


def value_text(value: Any) -> str:
    """Return what a verb gave, as a person reads it; "" for nothing."""
    if isinstance(value, SyncPlan):
        return _plan_text(value)
    if isinstance(value, InstallResult):
        return _install_text(value)
    if isinstance(value, BoardPackages):
        return _packages_text(value)
    if isinstance(value, Stat):
        return "folder" if value.is_dir else size_text(value.size)
    if isinstance(value, Space):
        return f"{size_text(value.free)} free of {size_text(value.total)}"
    if isinstance(value, list):
        return "\n".join(_value_lines(value))
    if isinstance(value, int):
        return f"{size_text(value)} written" if value else "it is there already"
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return "" if value is None else str(value)


def _value_lines(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, Entry):
            yield f"{value.size:>12,} {value.path}{'/' if value.is_dir else ''}"
        else:
            yield str(value) if isinstance(value, Path) else value_text(value)


def _plan_text(plan: SyncPlan) -> str:
    lines = [*(f"+ {path}" for path in plan.put), *(f"- {path}" for path in plan.delete)]
    equal = f"{plan.same} equal"
    moved = f"{len(plan.put)} to put ({size_text(plan.size_bytes)}), " if plan.put else ""
    gone = f"{len(plan.delete)} to delete, " if plan.delete else ""
    return "\n".join([*lines, f"{moved}{gone}{equal}"])


def size_text(size: int) -> str:
    """Return a size in bytes as a person reads it."""
    return f"{size:,} bytes"
