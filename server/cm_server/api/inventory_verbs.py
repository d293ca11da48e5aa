"""The verb ``import``: names, labels, serial numbers and notes of many boards, all or nothing.

No sockets, no SQL.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from cloudmanager.protocol.errors import NotAllowed, ServerError, TargetError
from cloudmanager.protocol.names import check_label
from cm_server.jobs.model import Board

from .request_context import RequestContext

MAX_SERIAL_CHARS: Final = 64
MAX_NOTE_CHARS: Final = 500
_FIELDS: Final = frozenset(("id", "board", "name", "serial", "note", "labels"))
_CONTROLS: Final = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")

#: Raises why a board may not get a name.
CheckName = Callable[[RequestContext, Any], None]


async def import_boards(context: RequestContext, check_name: CheckName) -> list[dict[str, Any]]:
    """Change boards as a list of rows says, if all of its rows are right; else none.

    Returns:
        For each row ``board`` (its name before), ``changes`` and ``error``: why it is wrong, or "".
    """
    rows = context.body.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ServerError("rows must be a list of objects")
    outcomes: list[dict[str, Any]] = []
    boards: list[Board | None] = []
    for row in rows:
        board, changes, error = _check_row(context, row, check_name)
        name = board.name if board else str(row.get("board") or row.get("id") or "")
        outcomes.append({"board": name[:64], "changes": changes, "error": error})
        boards.append(board)
    _check_together(context, boards, outcomes)
    wrong = sum(bool(outcome["error"]) for outcome in outcomes)
    changed = {
        board: outcome["changes"]
        for board, outcome in zip(boards, outcomes, strict=True)
        if board is not None and outcome["changes"]
    }
    context.audit_entry.boards = len(changed)
    if wrong:
        context.audit_entry.detail = f"nothing was changed: {wrong} of {len(rows)} rows are wrong"
    elif context.body.get("dry_run"):
        context.audit_entry.detail = "dry run"
    elif changed:
        await _apply(context, changed)
    return outcomes


def _check_row(
    context: RequestContext, row: dict[str, Any], check_name: CheckName
) -> tuple[Board | None, dict[str, Any], str]:
    """Return the board of a row, what changes there, and why the row is wrong, or ""."""
    board = _find_board(context, row)
    if board is None:
        return None, {}, "no board has this id" if row.get("id") else "no board has this name"
    try:
        if unknown := row.keys() - _FIELDS:
            raise ServerError(f"a row has no field {str(min(unknown))[:64]!r}")
        changes: dict[str, Any] = {}
        if "name" in row and row["name"] != board.name:
            check_name(context, row["name"])
            changes["name"] = row["name"]
        for field, longest in (("serial", MAX_SERIAL_CHARS), ("note", MAX_NOTE_CHARS)):
            if field in row and _check_text(field, row[field], longest) != getattr(board, field):
                changes[field] = row[field]
        if labels := _changed_labels(context, board, row.get("labels", {})):
            changes["labels"] = labels
    except TargetError as error:  # a name or a label that boards cannot have
        return board, {}, f"{error.args[0]} {error.hint}"
    except ServerError as error:
        return board, {}, error.reason
    except NotAllowed as error:
        return board, {}, error.detail
    return board, changes, ""


def _find_board(context: RequestContext, row: dict[str, Any]) -> Board | None:
    """Return the board of a row, by its id or else by its name; None if the token reaches none."""
    if row.get("id"):
        board = context.services.registry.by_id.get(str(row["id"]))
        return board if board and context.boards.get(board.name) is board else None
    name = row.get("board")
    return context.boards.get(name) if isinstance(name, str) else None


def _check_text(field: str, text: Any, longest: int) -> str:
    if not isinstance(text, str) or len(text) > longest:
        raise ServerError(f"{field} must be text of at most {longest} characters")
    if _CONTROLS.search(text):
        raise ServerError(f"{field} must be one line of printable text")
    return text


def _changed_labels(context: RequestContext, board: Board, labels: Any) -> dict[str, str]:
    """Return those labels that differ from the board's; an empty value removes one."""
    if not isinstance(labels, dict):
        raise ServerError("labels must be an object")
    for key, value in labels.items():
        if not isinstance(value, str):
            raise ServerError("a label must be text")
        check_label(key, value or "x")
    changed = {key: value for key, value in labels.items() if board.labels.get(key, "") != value}
    merged = {key: value for key, value in {**board.labels, **changed}.items() if value}
    if len(merged) > context.services.limits.labels:
        raise ServerError(f"a board may have at most {context.services.limits.labels} labels")
    return changed


def _check_together(
    context: RequestContext, boards: Sequence[Board | None], outcomes: Sequence[dict[str, Any]]
) -> None:
    """Note rows about the same board, and names that two boards would have."""
    rows = Counter(board for board in boards if board is not None)
    for board, outcome in zip(boards, outcomes, strict=True):
        if board is not None and rows[board] > 1 and not outcome["error"]:
            outcome["error"] = "several rows are about this board"
    new_names = {
        board: outcome["changes"]["name"]
        for board, outcome in zip(boards, outcomes, strict=True)
        if board is not None and "name" in outcome["changes"]
    }
    wanted = Counter(new_names.values())
    for board, outcome in zip(boards, outcomes, strict=True):
        name = outcome["changes"].get("name")
        if name is None or outcome["error"]:
            continue
        other = context.services.registry.by_name.get(name)
        if wanted[name] > 1:
            outcome["error"] = f"several boards would be called {name}"
        elif other is not None and other is not board and other not in new_names:
            outcome["error"] = f"another board is called {name}"


async def _apply(context: RequestContext, changed: dict[Board, dict[str, Any]]) -> None:
    services = context.services
    parts = [f"{board.name}: {', '.join(changes)}" for board, changes in changed.items()]
    context.audit_entry.detail = "; ".join(parts)[: services.limits.audit_chars]
    by_id = {board.id: changes for board, changes in changed.items()}
    audit_row = context.audit_entry.to_row()
    new_labels = await services.store_queue.run(
        lambda store: store.update_boards(by_id, audit_row), refusable=True, durable=True
    )
    context.audit_entry.written = True
    for board, changes in changed.items():
        if "name" in changes:
            services.registry.rename(board, changes["name"])
        board.serial = changes.get("serial", board.serial)
        board.note = changes.get("note", board.note)
        if board.id in new_labels:
            board.labels = new_labels[board.id]
        board.notify_changed()
