"""Tab and Shift-Tab in a cell for boards: what they tell, and what is known where they are busy."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from typing import Any, Final

from cloudmanager.protocol.text import fold_names

from . import code_context, introspection, stubs

_TYPES_KEY: Final = "_jupyter_types_experimental"  # what JupyterLab shows beside a name
_MAX_DOC_LINES: Final = 24  # of a docstring, unless all is asked for


class CompletionMatch:
    """A name to offer: its kind, and the boards that alone have it ("" for all of them)."""

    def __init__(self, kind: str, only_on: str = "") -> None:
        self.kind = kind
        self.only_on = only_on


async def find_matches(
    code: str, cursor: int, target: str, earlier_cells: Sequence[str]
) -> tuple[str, dict[str, CompletionMatch]]:
    """Return what may stand at the cursor.

    Args:
        code: the cell's text.
        cursor: the place in it, counted in characters.
        target: the boards that it is for; "" where none are chosen.
        earlier_cells: the texts of cells that ran.

    Returns:
        What is there of the name already, and the names to offer, best first.
    """
    path, start, importing = code_context.token_before(code, cursor)
    if not (path or start or importing):
        return "", {}
    found: dict[str, introspection.FoundName] = {}
    who: list[str] = []
    if target and not importing:
        found, who = await introspection.list_names(target, path, start)
    offered = {
        name: CompletionMatch(
            each.kind, fold_names(each.boards) if len(each.boards) < len(who) else ""
        )
        for name, each in sorted(found.items(), key=lambda pair: (-len(pair[1].boards), pair[0]))
    }
    for name, kind in sorted(
        _known_names(code, path, start, importing, earlier_cells, boards_answered=bool(who)).items()
    ):
        if name.startswith(start) and name not in offered and (start or name[0] != "_"):
            offered[name] = CompletionMatch(kind)
    return start, offered


def _known_names(
    code: str,
    path: str,
    prefix: str,
    importing: bool,
    earlier_cells: Sequence[str],
    *,
    boards_answered: bool,
) -> dict[str, str]:
    """Return what is known without a board; less of it where boards told theirs."""
    if importing and not path:
        return dict.fromkeys(stubs.module_names(), "module")
    if path:
        known = path if importing else code_context.resolve_path(path, [*earlier_cells, code])
        # Where boards answered, only what this cell imports may be missing on them.
        fits = (
            importing
            or not boards_answered
            or path.partition(".")[0] in code_context.imported_names([code])
        )
        return stubs.public_names(known) if fits else {}
    words = dict.fromkeys(code_context.names_in(code) - {prefix}, "")
    if not boards_answered:
        earlier = (each for cell in earlier_cells for each in code_context.names_in(cell))
        words.update(dict.fromkeys(earlier, ""))
        words.update(stubs.public_names("builtins"))
    words.update(dict.fromkeys(keyword.kwlist, "keyword"))
    return words


def completion_reply(
    cursor: int, prefix: str, matches: dict[str, CompletionMatch]
) -> dict[str, Any]:
    """Return what a kernel answers to a complete_request."""
    begin = cursor - len(prefix)
    types = [
        {
            "start": begin,
            "end": cursor,
            "text": name,
            "type": f"{match.kind} only on {match.only_on}".strip()
            if match.only_on
            else match.kind,
            "signature": "",
        }
        for name, match in matches.items()
    ]
    return {
        "status": "ok",
        "matches": list(matches),
        "cursor_start": begin,
        "cursor_end": cursor,
        "metadata": {_TYPES_KEY: types},
    }


async def describe_name(
    path: str, code: str, target: str, earlier_cells: Sequence[str], detail: int
) -> str:
    """Return all that is known of a name, as one text; "" for nothing."""
    on_boards = await introspection.describe_name(target, path) if target else {}
    cells = [*earlier_cells, code]
    known = code_context.find_definition(path, cells) or code_context.find_definition(
        code_context.resolve_path(path, cells), cells
    )
    if known is None:
        known = stubs.find_info(code_context.resolve_path(path, cells))
        if known is None and "." not in path:
            known = stubs.find_info(f"builtins.{path}")
    parts = ["\n".join(known.signatures), _shorten_doc(known.doc, detail)] if known else []
    return "\n\n".join(filter(None, [*parts, _board_values(on_boards)]))


def _shorten_doc(doc: str, detail: int) -> str:
    lines = doc.split("\n")
    if detail or len(lines) <= _MAX_DOC_LINES:
        return doc
    return "\n".join([*lines[:_MAX_DOC_LINES], "…"])


def _board_values(on_boards: dict[str, tuple[str, str, str]]) -> str:
    """Say what the name is on each board; boards where it is the same share a line."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for board, told in on_boards.items():
        alike.setdefault(told, []).append(board)
    return "\n".join(
        f"{fold_names(boards)}: {' '.join(filter(None, (_type_name(kind, type_), value)))}"
        for (kind, type_, value), boards in alike.items()
    )


def _type_name(kind: str, type_: str) -> str:
    return kind if kind in ("class", "module", "function") else type_
