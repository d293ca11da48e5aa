"""Tab and Shift-Tab in a cell for boards: from idle boards, earlier cells, and stubs."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from typing import Any, Final

from cloudmanager.client import board_names
from cloudmanager.protocol.text import fold_names
from cm_magics import fleet

from . import code_context, stubs

_TYPES_KEY: Final = "_jupyter_types_experimental"  # JupyterLab shows these types beside the names
_MAX_DOC_LINES: Final = 24  # lines of a docstring at detail level 0


class CompletionMatch:
    """A name to offer: its kind, and the boards that have it ("" if all of them have it)."""

    def __init__(self, kind: str, only_on: str = "") -> None:
        self.kind = kind
        self.only_on = only_on


async def find_matches(
    code: str, cursor: int, target: str, earlier_cells: Sequence[str]
) -> tuple[str, dict[str, CompletionMatch]]:
    """Return the names that may complete the code at the cursor.

    Args:
        code: the cell's text.
        cursor: the position in it, in characters.
        target: the boards that the cell is for; "" if none are chosen.
        earlier_cells: the texts of cells that ran.

    Returns:
        The part of the name that is typed already, and the names to offer, best first: those that
        most boards have, then those that are known without a board.
    """
    token = board_names.token_before(code, cursor)
    path, prefix, importing = token
    if not (path or prefix or importing):
        return "", {}
    on_boards: dict[str, board_names.FoundName] = {}
    answered: list[str] = []
    if target and not importing:
        on_boards, answered = await board_names.list_names(fleet().exchange, target, path, prefix)
    matches: dict[str, CompletionMatch] = {}
    by_boards = sorted(on_boards.items(), key=lambda pair: (-len(pair[1].boards), pair[0]))
    for name, found in by_boards:
        only_on = fold_names(found.boards) if len(found.boards) < len(answered) else ""
        matches[name] = CompletionMatch(found.kind, only_on)
    known = _known_names(token, code, earlier_cells, boards_answered=bool(answered))
    for name, kind in sorted(known.items()):
        if name.startswith(prefix) and name not in matches and (prefix or name[0] != "_"):
            matches[name] = CompletionMatch(kind)
    return prefix, matches


def _known_names(
    token: board_names.Token,
    code: str,
    earlier_cells: Sequence[str],
    *,
    boards_answered: bool,
) -> dict[str, str]:
    """Return names that are known without a board, with their kinds.

    If boards answered, names are left out that they would have reported themselves.
    """
    path, prefix, importing = token
    if importing and not path:
        return dict.fromkeys(stubs.module_names(), "module")
    if path:
        known = path if importing else code_context.resolve_path(path, [*earlier_cells, code])
        # If boards answered, they lack only the names that this cell imports.
        imported_here = path.partition(".")[0] in code_context.imported_names([code])
        if importing or imported_here or not boards_answered:
            return stubs.public_names(known)
        return {}
    names = dict.fromkeys(code_context.names_in(code) - {prefix}, "")
    if not boards_answered:
        earlier = (each for cell in earlier_cells for each in code_context.names_in(cell))
        names.update(dict.fromkeys(earlier, ""))
        names.update(stubs.public_names("builtins"))
    names.update(dict.fromkeys(keyword.kwlist, "keyword"))
    return names


def completion_reply(
    cursor: int, prefix: str, matches: dict[str, CompletionMatch]
) -> dict[str, Any]:
    """Return the content of a complete_reply."""
    start = cursor - len(prefix)
    types = []
    for name, match in matches.items():
        kind = match.kind
        if match.only_on:
            kind = f"{kind} only on {match.only_on}".strip()
        types.append({"start": start, "end": cursor, "text": name, "type": kind, "signature": ""})
    return {
        "status": "ok",
        "matches": list(matches),
        "cursor_start": start,
        "cursor_end": cursor,
        "metadata": {_TYPES_KEY: types},
    }


async def describe_name(
    path: str, code: str, target: str, earlier_cells: Sequence[str], detail: int
) -> str:
    """Return the description of a name: its signature, docstring, and value on each board.

    Args:
        path: the name, such as ``machine.Pin.value``.
        code: the text of the current cell.
        target: the boards to ask; "" for none.
        earlier_cells: the texts of cells that ran.
        detail: 0 shortens a long docstring.

    Returns:
        The description, or "" if nothing is known.
    """
    on_boards = await board_names.describe_name(fleet().exchange, target, path) if target else {}
    cells = [*earlier_cells, code]
    known = code_context.find_definition(path, cells) or code_context.find_definition(
        code_context.resolve_path(path, cells), cells
    )
    if known is None:
        known = stubs.find_info(code_context.resolve_path(path, cells))
        if known is None and "." not in path:
            known = stubs.find_info(f"builtins.{path}")
    paragraphs = []
    if known is not None:
        paragraphs += ["\n".join(known.signatures), _shorten_doc(known.doc, detail)]
    paragraphs.append(_board_values(on_boards))
    return "\n\n".join(filter(None, paragraphs))


def _shorten_doc(doc: str, detail: int) -> str:
    lines = doc.split("\n")
    if detail or len(lines) <= _MAX_DOC_LINES:
        return doc
    return "\n".join([*lines[:_MAX_DOC_LINES], "…"])


def _board_values(on_boards: dict[str, tuple[str, str, str]]) -> str:
    """Return a line for each different value of a name, with the boards that have it."""
    boards_by_value: dict[tuple[str, str, str], list[str]] = {}
    for board, description in on_boards.items():
        boards_by_value.setdefault(description, []).append(board)
    lines = []
    for (kind, type_, value), boards in boards_by_value.items():
        text = " ".join(filter(None, (_type_name(kind, type_), value)))
        lines.append(f"{fold_names(boards)}: {text}")
    return "\n".join(lines)


def _type_name(kind: str, type_: str) -> str:
    return kind if kind in ("class", "module", "function") else type_
