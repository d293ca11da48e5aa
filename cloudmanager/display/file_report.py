"""The results of file and package verbs as text: equal results share one block. No I/O."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from cloudmanager.client.files import Checksum, Entry, FileResult, FolderTree, Space, Stat
from cloudmanager.client.packages import BoardPackages, InstallResult
from cloudmanager.client.syncing import SyncDryRun, SyncPlan
from cloudmanager.client.uploads import WrittenBytes
from cloudmanager.protocol.errors import BoardError
from cloudmanager.protocol.text import fold_names, one_line, os_error_text
from cloudmanager.results.html_table import render_table
from cloudmanager.results.results import Result, Results

from .folding import StyledLine, head_text, plain_text, printable_output
from .html_text import lines_html

_DRY_RUN: Final = "dry run, nothing was changed"


def files_text(results: Results) -> str:
    """Return results as text; that of a single board has no head."""
    return plain_text(files_lines(results))


def files_lines(results: Results) -> list[StyledLine]:
    """Return results as styled lines; those of a single board have no head."""
    groups: dict[tuple[str, str], list[str]] = {}  # (status, text) -> boards
    for name, result in results.items():
        status = "" if result.ok else f" · {result.status}"
        groups.setdefault((status, _outcome_text(result)), []).append(name)
    lines: list[StyledLine] = []
    for (status, text), names in groups.items():
        text += _free_space_text(results, names)
        if len(results) > 1:
            lines.append(_styled_head(fold_names(names), status))
            text = text or "done"
        if text:
            lines.append([(text, "")])
    if results.left_out:
        lines.append([(f"not connected: {fold_names(results.left_out)}", "note")])
    return lines


def _styled_head(names: str, status: str) -> StyledLine:
    """Return the head of a block in the colour of its status."""
    failure = {"": "", " · error": "bad"}.get(status, "warn")
    rest = head_text(names + status).removeprefix(f"── {names}{status}")
    rule = failure or "rule"
    return [("── ", rule), (names, f"{failure} name".strip()), (status + rest, rule)]


def files_html(results: Results) -> str | None:
    """Return results as HTML: packages as a table, failures in colours; None: text suffices."""
    return _packages_html(results) or lines_html(files_lines(results))


def _packages_html(results: Results) -> str | None:
    """Return the installed packages of boards as a table; None for all other results."""
    values = {name: result.value for name, result in results.items() if result.ok}
    if len(values) < len(results) or not values:
        return None
    if not all(isinstance(value, BoardPackages) for value in values.values()):
        return None
    packages = sorted({package for value in values.values() for package in value})
    boards_by_row: dict[tuple[str, ...], list[str]] = {}
    notes = [f"not connected: {fold_names(results.left_out)}"] if results.left_out else []
    for name, value in values.items():
        row = tuple(value.get(each, "-") or "installed" for each in packages)
        boards_by_row.setdefault(row, []).append(name)
        notes += [f"{name}: {text}" for text in _package_notes(value)]
    rows = [[fold_names(names), *row] for row, names in boards_by_row.items()]
    return render_table(["board", *packages], rows, notes) if packages else None


def single_failure_text(results: Results) -> str:
    """Return why a verb failed on its only board, as a sentence that names the board."""
    (result,) = results.values()
    error = result.error
    if isinstance(error, OSError):
        text = os_error_text(error)
        return text if error.filename else f"{result.board}: {text}"
    if isinstance(error, BoardError) and error.status == "error":  # of our code, not the user's
        last = ": ".join(filter(None, (error.ename, error.evalue))).removeprefix("OSError: ")
        return printable_output(f"{result.board}: {last.rstrip('.')}.")
    text = str(error)
    return text if text.startswith(result.board) else f"{result.board}: {text}"


def partial_text(result: Result) -> str:
    """Return what a failed verb has done for others of its paths, as text; "" for nothing."""
    partial = getattr(result, "partial", None)
    return "" if partial is None else printable_output(value_text(partial)).rstrip()


def _outcome_text(result: Result) -> str:
    if not result.ok:
        error = result.error
        if isinstance(error, OSError):
            text = os_error_text(error).removeprefix(result.board)
            text = text.replace(f"'{result.board}:", "':")  # in the errors of other files
            return "\n".join(filter(None, (partial_text(result), text)))
        return printable_output(result.traceback or result.why or result.status).rstrip()
    if isinstance(result, FileResult):
        return printable_output(value_text(result.value))
    return printable_output((result.stdout + result.text).rstrip())  # of a cell


def _install_text(result: InstallResult) -> str:
    """Return the packages, files and notes of an install, an uninstall, or a dry run."""
    lines = []
    for name, version in result.packages.items():
        origin = result.origins.get(name, "")
        lines.append(f"{name} {version}".rstrip() + (f"  from {origin}" if origin else ""))
    lines += [f"  {path}" for path in result.put]
    removed = "to be removed" if result.dry_run else "removed"
    lines += [f"  {path} ({removed})" for path in result.removed]
    if result.put:
        count = len(result.put)
        files = "1 file" if count == 1 else f"{count} files"
        lines.append(f"{files}, {size_text(result.size_bytes)}")
    elif not result.removed:
        already = "nothing to send: already installed"
        lines.append(already if result.packages else "no files to change")
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def _free_space_text(results: Results, names: Iterable[str]) -> str:
    """Return the free space of boards as a line after their dry run; "" without a dry run."""
    values = [results[name].value for name in names if results[name].ok]
    free = sorted(v.free_bytes for v in values if isinstance(v, InstallResult) and v.dry_run)
    if not free:
        return ""
    least = f"{free[0]:,} to " if free[0] < free[-1] else ""
    return f"\n{least}{size_text(free[-1])} free; {_DRY_RUN}"


def _packages_text(packages: BoardPackages) -> str:
    """Return the packages of a board; of an offline board, as of its last connection."""
    lines = [f"{name} {version}".rstrip() for name, version in packages.items()] or ["no packages"]
    return "\n".join([*lines, *_package_notes(packages)])


def _package_notes(packages: BoardPackages) -> list[str]:
    """Return which files differ from what was installed, and when the board reported that."""
    notes = [f"drift: {difference}" for difference in packages.drift]
    if packages.as_of is not None:
        notes.append(time.strftime("as of %Y-%m-%d %H:%M:%S", time.localtime(packages.as_of)))
    return notes


def value_text(value: Any) -> str:
    """Return the value of a verb's result as text for the user; "" for none."""
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
    if isinstance(value, WrittenBytes):
        return _written_text(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").replace("\r\n", "\n")
    if isinstance(value, Path):
        return one_line(str(value))
    return "" if value is None else str(value)


def _written_text(written: WrittenBytes) -> str:
    """Return what an upload wrote, and the notes on what it left out."""
    parts = [f"{size_text(written)} written"] if written or written.files else []
    if written.folders:
        folders = "1 folder" if written.folders == 1 else f"{written.folders:,} folders"
        parts.append(f"{folders} made")
    notes = (f"note: {note}" for note in written.notes)
    return "\n".join([", ".join(parts) or "already up to date", *notes])


def _value_lines(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, Entry):
            yield f"{value.size:>12,} {one_line(value.path)}{'/' if value.is_dir else ''}"
        elif isinstance(value, FolderTree):
            yield from _tree_lines(value)
        elif isinstance(value, Checksum):
            yield f"{value.sha256}  {one_line(value.path)}"
        else:
            yield value_text(value)


def _tree_lines(tree: FolderTree) -> Iterator[str]:
    """Yield a folder and what is in it as mpremote draws it, by name."""
    inner: dict[str, list[Entry]] = {}  # path of a folder -> its entries
    for entry in sorted(tree.entries, key=lambda entry: entry.path):
        inner.setdefault(entry.path.rpartition("/")[0] or "/", []).append(entry)

    def lines(folder: str, indent: str) -> Iterator[str]:
        entries = inner.get(folder, [])
        for number, entry in enumerate(entries, start=1):
            is_last = number == len(entries)
            size = "" if entry.is_dir else _tree_size(entry.size, tree.sizes)
            yield f"{indent}{'└── ' if is_last else '├── '}{size}{one_line(entry.name)}"
            yield from lines(entry.path, indent + ("    " if is_last else "│   "))

    yield f":{one_line(tree.path)}"
    yield from lines(tree.path, "")


def _tree_size(size: int, sizes: str) -> str:
    """Return a size in a tree, in brackets; "" if sizes are not shown."""
    if not sizes:
        return ""
    return f"[{size:>9}]  " if sizes == "bytes" else f"[{_size_in_units(size):>6}]  "


def _size_in_units(size: float) -> str:
    """Return a size as mpremote shows it to people: 999B, 1.5K, 2.0M."""
    if size < 1024:
        return f"{size:.0f}B"
    for unit in "KMG":
        size /= 1024
        if size < 1024 or unit == "G":
            break
    return f"{size:.1f}{unit}"


def _plan_text(plan: SyncPlan) -> str:
    is_dry = isinstance(plan, SyncDryRun)
    copy, delete = ("copy", "delete") if is_dry else ("copied", "deleted")
    lines = [f"{copy:<7} {one_line(path)}" for path in plan.put]
    lines += [f"{delete:<7} {one_line(path)}" for path in plan.delete]
    counts = []
    if plan.put:
        copied = "to copy" if is_dry else "copied"
        counts.append(f"{len(plan.put):,} {copied} ({size_text(plan.size_bytes)})")
    if plan.delete:
        deleted = "to delete" if is_dry else "deleted"
        counts.append(f"{len(plan.delete):,} {deleted}")
    counts.append(f"{plan.same:,} equal")
    end = f"; {_DRY_RUN}" if is_dry else ""
    notes = [f"note: {note}" for note in plan.notes]
    return "\n".join([*lines, ", ".join(counts) + end, *notes])


def size_text(size: int) -> str:
    """Return a size in bytes with separators: 1,234 bytes."""
    return f"{size:,} byte" if size == 1 else f"{size:,} bytes"
