"""The verbs of ``mbm`` for the inventory: ``board-export`` and ``board-import``."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloudmanager.client.fleet import Fleet
from cloudmanager.protocol.targets import ALL
from cloudmanager.protocol.text import sanitize_text

from .commands import FAILED, OK, AddVerb, check_writable, print_outcome


def add_verbs(add_verb: AddVerb) -> None:
    """Add the verbs of this module to the parser of ``mbm``."""
    export = add_verb(
        "board-export",
        board_export,
        "write names, serial numbers, notes and labels of boards to a CSV file",
    )
    export.add_argument("file", metavar="FILE", help="the file; - for standard output")
    export.add_argument(
        "--target", default=ALL, metavar="TARGET", help="which boards (default: all)"
    )
    importer = add_verb(
        "board-import",
        board_import,
        "change names, serial numbers, notes and labels of boards as a CSV file says",
    )
    importer.add_argument("file", metavar="FILE", help="the file; - for standard input")
    importer.add_argument("--dry-run", action="store_true", help="check only, change nothing")


def board_export(options: argparse.Namespace) -> int:
    """Write the inventory to a file."""
    with Fleet() as fleet:
        data = fleet.export_inventory(options.target)
    if options.file == "-":
        sys.stdout.buffer.write(data)
        return OK
    _replace_file(Path(options.file), data)
    count = data.count(b"\n") - 1
    boards = "1 board" if count == 1 else f"{count} boards"
    return print_outcome(options, {"boards": count}, f"Wrote {boards} to {options.file}.")


def _replace_file(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what is there.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():  # such as /dev/stdout
        path.write_bytes(data)
        return
    check_writable(path)  # its error names this file, not the draft
    with tempfile.NamedTemporaryFile(dir=path.absolute().parent, delete=False) as draft:
        try:
            draft.write(data)
            draft.close()
            mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
            Path(draft.name).chmod(mode)
            Path(draft.name).replace(path)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def board_import(options: argparse.Namespace) -> int:
    """Change boards as a file says; print the outcome of each row."""
    if options.file == "-":
        data, name = sys.stdin.buffer.read(), "standard input"
    else:
        data, name = Path(options.file).read_bytes(), options.file
    with Fleet() as fleet:
        try:
            outcomes = fleet.import_inventory(data, dry_run=options.dry_run)
        except ValueError as error:
            raise ValueError(f"{name}: {error}.") from error
    wrong = sum(bool(each["error"]) for each in outcomes)
    changed = sum(bool(each["changes"]) for each in outcomes)
    lines = [_outcome_text(each) for each in outcomes if each["error"] or each["changes"]]
    print_outcome(options, outcomes, "\n".join([*lines, _summary(options, changed, wrong)]))
    return FAILED if wrong else OK


def _outcome_text(outcome: Mapping[str, Any]) -> str:
    """Return what a row changes, or why it is wrong."""
    changes = dict(outcome["changes"])
    parts = [f"renamed to {changes['name']}"] if "name" in changes else []
    parts += [f"{key} {changes[key]!r}" for key in ("serial", "note") if key in changes]
    parts += [f"{key}={value}" for key, value in changes.get("labels", {}).items()]
    what = outcome["error"] or ", ".join(parts)
    return sanitize_text(f"line {outcome['line']}: {outcome['board']}: {what}")


def _summary(options: argparse.Namespace, changed: int, wrong: int) -> str:
    if wrong:
        rows = "1 row is" if wrong == 1 else f"{wrong} rows are"
        return f"Nothing was changed: {rows} wrong."
    boards = "1 board" if changed == 1 else f"{changed} boards"
    if options.dry_run:
        return f"This would change {boards}."
    return f"Changed {boards}." if changed else "Nothing to change."
