"""Tab and Shift-Tab in a cell for boards: what they tell, and what is known where they are busy."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from typing import Any, Final

from cloudmanager.protocol.text import fold

from . import code_context, introspection, stubs

_TYPES: Final = "_jupyter_types_experimental"  # what JupyterLab shows beside a name
_DOC_LINES: Final = 24  # of a docstring, unless all is asked for


class Match:
    """A name to offer: its kind, and the boards that alone have it ("" for all of them)."""

    def __init__(self, kind: str, only: str = "") -> None:
        self.kind = kind
        self.only = only


async def matches(
    code: str, cursor: int, target: str, before: Sequence[str]
) -> tuple[str, dict[str, Match]]:
    """Return what may stand at the cursor.

    Args:
        code: the cell's text.
        cursor: the place in it, counted in characters.
        target: the boards that it is for; "" where none are chosen.
        before: the texts of cells that ran.

    Returns:
        What is there of the name already, and the names to offer, best first.
    """
    path, start, importing = code_context.token(code, cursor)
    if not (path or start or importing):
        return "", {}
    found: dict[str, introspection.Found] = {}
    who: list[str] = []
    if target and not importing:
        found, who = await introspection.names(target, path, start)
    offered = {
        name: Match(each.kind, fold(each.boards) if len(each.boards) < len(who) else "")
        for name, each in sorted(found.items(), key=lambda pair: (-len(pair[1].boards), pair[0]))
    }
    for name, kind in sorted(_known(code, path, start, importing, before, told=bool(who)).items()):
        if name.startswith(start) and name not in offered and (start or name[0] != "_"):
            offered[name] = Match(kind)
    return start, offered


def _known(
    code: str, path: str, start: str, importing: bool, before: Sequence[str], *, told: bool
) -> dict[str, str]:
    """Return what is known without a board; less of it where boards told theirs."""
    if importing and not path:
        return dict.fromkeys(stubs.modules(), "module")
    if path:
        known = path if importing else code_context.real(path, [*before, code])
        # Where boards answered, only what this cell imports may be missing on them.
        fits = importing or not told or path.partition(".")[0] in code_context.imports([code])
        return stubs.names(known) if fits else {}
    words = dict.fromkeys(code_context.words(code) - {start}, "")
    if not told:
        earlier = (each for cell in before for each in code_context.words(cell))
        words.update(dict.fromkeys(earlier, ""))
        words.update(stubs.names("builtins"))
    words.update(dict.fromkeys(keyword.kwlist, "keyword"))
    return words


def reply(cursor: int, start: str, offered: dict[str, Match]) -> dict[str, Any]:
    """Return what a kernel answers to a complete_request."""
    begin = cursor - len(start)
    types = [
        {
            "start": begin,
            "end": cursor,
            "text": name,
            "type": f"{match.kind} only on {match.only}".strip() if match.only else match.kind,
            "signature": "",
        }
        for name, match in offered.items()
    ]
    return {
        "status": "ok",
        "matches": list(offered),
        "cursor_start": begin,
        "cursor_end": cursor,
        "metadata": {_TYPES: types},
    }


async def about(path: str, code: str, target: str, before: Sequence[str], detail: int) -> str:
    """Return all that is known of a name, as one text; "" for nothing."""
    on_boards = await introspection.about(target, path) if target else {}
    cells = [*before, code]
    known = code_context.defined(path, cells) or code_context.defined(
        code_context.real(path, cells), cells
    )
    if known is None:
        known = stubs.about(code_context.real(path, cells))
        if known is None and "." not in path:
            known = stubs.about(f"builtins.{path}")
    parts = ["\n".join(known.signatures), _doc(known.doc, detail)] if known else []
    return "\n\n".join(filter(None, [*parts, _values(on_boards)]))


def _doc(doc: str, detail: int) -> str:
    lines = doc.split("\n")
    if detail or len(lines) <= _DOC_LINES:
        return doc
    return "\n".join([*lines[:_DOC_LINES], "…"])


def _values(on_boards: dict[str, tuple[str, str, str]]) -> str:
    """Say what the name is on each board; boards where it is the same share a line."""
    alike: dict[tuple[str, str, str], list[str]] = {}
    for board, told in on_boards.items():
        alike.setdefault(told, []).append(board)
    return "\n".join(
        f"{fold(boards)}: {' '.join(filter(None, (_type(kind, type_), value)))}"
        for (kind, type_, value), boards in alike.items()
    )


def _type(kind: str, type_: str) -> str:
    return kind if kind in ("class", "module", "function") else type_
