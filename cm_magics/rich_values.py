"""A board's value -> what a notebook can show of it: pictures, tables, trees. Pure.

Only harmless kinds are made, whatever the board said: text that is safe to show, a PNG picture, and
JSON; never HTML, SVG or script, which a notebook trusts where its own cells made them.

    bytes of a PNG                                                       a picture
    {"framebuf": buf, "width": 128, "height": 64, "format": 0}           a picture, of its buffer
    [{"pin": 2, "volt": 3.1}, {"pin": 4, "volt": 1.2}]                   a table
    {"config": {"rates": [1, 2]}} and what else nests and is long        a tree
"""

from __future__ import annotations

import ast
import base64
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final

from cloudmanager.client.cells import parse
from cloudmanager.display.cell_view import printable
from cloudmanager.display.tables import table
from cloudmanager.protocol.text import clean
from cloudmanager.results.results import Result

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_SIDE: Final = 1024  # pixels of a framebuf's width and height, at most
_WIDE: Final = 256  # pixels that a small screen's picture is enlarged to
_ROWS: Final = 200  # of a table
_COLUMNS: Final = 12
_CELL: Final = 40  # characters
_LINE: Final = 80  # characters of a value that is shown as the line it is
_TREE: Final = 256 * 1024  # characters of a value that becomes a tree
_DEPTH: Final = 20  # of a tree
#: framebuf's formats that have one value a pixel: bits of it, and whether the first is the highest.
_BITS: Final = {2: (4, True), 3: (1, True), 4: (1, False), 5: (2, False), 6: (8, True)}
_MONO_VLSB: Final = 0
_RGB565: Final = 1


def bundle(result: Result) -> dict[str, Any]:
    """Return the value's MIME bundle, which always has a text."""
    plain = {"text/plain": printable(result.text)}
    if result.cut:
        return plain
    value = _read(result.text)
    if isinstance(value, bytes) and value.startswith(_PNG):
        return _picture(value)
    if isinstance(value, dict) and "framebuf" in value:
        return _picture(made) if (made := _screen(value)) else plain
    if isinstance(value, list) and (rows := _table(value)):
        return {"text/plain": rows}
    if isinstance(value, (list, dict)) and _is_tree(value, result.text):
        return {**plain, "application/json": value}
    return plain


def _read(text: str) -> Any:
    """Read a literal, in which a ``bytearray`` may stand; None where it is none."""
    try:
        tree = _Bytes().visit(parse(text, "eval"))
        return ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


class _Bytes(ast.NodeTransformer):
    """``bytearray(b"…")`` -> ``b"…"``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        named = isinstance(node.func, ast.Name) and node.func.id == "bytearray"
        return node.args[0] if named and len(node.args) == 1 and not node.keywords else node


def _picture(png: bytes) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24]) if len(png) >= 24 else (0, 0)
    text = f"<PNG picture, {width} x {height} pixels, {len(png):,} bytes>"
    return {"text/plain": text, "image/png": base64.b64encode(png).decode()}


def _screen(value: dict[Any, Any]) -> bytes | None:
    """Make a PNG of a framebuf's buffer; None where it is none."""
    buf, kind = value["framebuf"], value.get("format")
    width, height = value.get("width"), value.get("height")
    if not isinstance(buf, bytes) or not isinstance(kind, int):
        return None
    if not isinstance(width, int) or not isinstance(height, int):
        return None
    if not (0 < width <= _SIDE and 0 < height <= _SIDE):
        return None
    try:
        if kind == _RGB565:
            rows = [_colours(buf, width, y) for y in range(height)]
        elif kind == _MONO_VLSB:
            rows = [
                bytes(255 * (buf[(y >> 3) * width + x] >> (y & 7) & 1) for x in range(width))
                for y in range(height)
            ]
        else:
            bits, high = _BITS[kind]
            rows = [_greys(buf, width, y, bits, high=high) for y in range(height)]
    except (IndexError, KeyError, TypeError, struct.error):
        return None
    return _png(rows, 3 if kind == _RGB565 else 1, width, height)


def _colours(buf: bytes, width: int, y: int) -> bytes:
    row = struct.unpack_from(f"<{width}H", buf, 2 * y * width)
    return b"".join(
        bytes(((p >> 11) * 255 // 31, (p >> 5 & 63) * 255 // 63, (p & 31) * 255 // 31)) for p in row
    )


def _greys(buf: bytes, width: int, y: int, bits: int, *, high: bool) -> bytes:
    """Return a row of pixels; each row of the buffer begins with a byte of its own."""
    each = 8 // bits
    start, most = y * ((width + each - 1) // each), (1 << bits) - 1
    shifts = [bits * (each - 1 - n if high else n) for n in range(each)]
    return bytes(
        (buf[start + x // each] >> shifts[x % each] & most) * 255 // most for x in range(width)
    )


def _png(rows: Sequence[bytes], depth: int, width: int, height: int) -> bytes:
    """Write pixels as a PNG (RFC 2083), small ones enlarged, so that their pixels are seen."""
    scale = max(1, _WIDE // width)
    data = b"".join((b"\0" + _stretched(row, depth, scale)) * scale for row in rows)
    colour = 2 if depth == 3 else 0
    head = struct.pack(">IIBBBBB", width * scale, height * scale, 8, colour, 0, 0, 0)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return _PNG + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _stretched(row: bytes, depth: int, scale: int) -> bytes:
    return b"".join(row[at : at + depth] * scale for at in range(0, len(row), depth))


def _table(value: list[Any]) -> str:
    """Return rows of one shape as a table; "" where they are none."""
    if len(value) < 2:
        return ""
    first = value[0]
    if isinstance(first, dict) and 0 < len(first) <= _COLUMNS:
        if not all(isinstance(row, dict) and row.keys() == first.keys() for row in value):
            return ""
        heads = [_cell(key) for key in first]
        rows = [[_cell(row[key]) for key in first] for row in value[:_ROWS]]
    elif isinstance(first, (list, tuple)) and 1 < len(first) <= _COLUMNS:
        shape = type(first), len(first)
        if not all(
            isinstance(row, (list, tuple)) and (type(row), len(row)) == shape for row in value
        ):
            return ""
        heads = [str(number) for number in range(len(first))]
        rows = [[_cell(each) for each in row] for row in value[:_ROWS]]
    else:
        return ""
    more = len(value) - len(rows)
    return table(heads, rows) + (f"\n… and {more:,} rows more" if more else "")


def _cell(value: Any) -> str:
    text = clean(value if isinstance(value, str) else repr(value)).replace("\n", " ")
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _is_tree(value: Any, text: str) -> bool:
    """Whether a value is one that JSON can say, and worth to be folded."""
    nested = any(isinstance(each, (list, dict)) for each in _inside(value))
    return nested and _LINE < len(text) <= _TREE and _is_json(value, _DEPTH)


def _inside(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)


def _is_json(value: Any, depth: int) -> bool:
    if isinstance(value, (list, dict)):
        keys = not isinstance(value, dict) or all(isinstance(key, str) for key in value)
        return keys and depth > 0 and all(_is_json(each, depth - 1) for each in _inside(value))
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    if isinstance(value, int):
        return value.bit_length() <= 53  # a browser's numbers are floats
    return value is None or isinstance(value, str)
