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

from cloudmanager.client.cells import parse_python
from cloudmanager.display.cell_view import printable_output
from cloudmanager.display.tables import format_table
from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.results import Result

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MAX_SIDE: Final = 1024  # pixels of a framebuf's width and height, at most
_ENLARGED_WIDTH: Final = 256  # pixels that a small screen's picture is enlarged to
_MAX_ROWS: Final = 200  # of a table
_MAX_COLUMNS: Final = 12
_MAX_CELL_CHARS: Final = 40  # characters
_MAX_LINE_CHARS: Final = 80  # characters of a value that is shown as the line it is
_MAX_TREE_CHARS: Final = 256 * 1024  # characters of a value that becomes a tree
_MAX_DEPTH: Final = 20  # of a tree
#: framebuf's formats that have one value a pixel: bits of it, and whether the first is the highest.
_PIXEL_FORMATS: Final = {2: (4, True), 3: (1, True), 4: (1, False), 5: (2, False), 6: (8, True)}
_MONO_VLSB: Final = 0
_RGB565: Final = 1


def mime_bundle(result: Result) -> dict[str, Any]:
    """Return the value's MIME bundle, which always has a text."""
    plain = {"text/plain": printable_output(result.text)}
    if result.value_truncated:
        return plain
    value = _read_literal(result.text)
    if isinstance(value, bytes) and value.startswith(_PNG_SIGNATURE):
        return _png_bundle(value)
    if isinstance(value, dict) and "framebuf" in value:
        return _png_bundle(made) if (made := _framebuf_png(value)) else plain
    if isinstance(value, list) and (rows := _table_text(value)):
        return {"text/plain": rows}
    if isinstance(value, (list, dict)) and _is_tree(value, result.text):
        return {**plain, "application/json": value}
    return plain


def _read_literal(text: str) -> Any:
    """Read a literal, in which a ``bytearray`` may stand; None where it is none."""
    try:
        tree = _BytearrayToBytes().visit(parse_python(text, "eval"))
        return ast.literal_eval(tree)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


class _BytearrayToBytes(ast.NodeTransformer):
    """``bytearray(b"…")`` -> ``b"…"``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        named = isinstance(node.func, ast.Name) and node.func.id == "bytearray"
        return node.args[0] if named and len(node.args) == 1 and not node.keywords else node


def _png_bundle(png: bytes) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24]) if len(png) >= 24 else (0, 0)
    text = f"<PNG picture, {width} x {height} pixels, {len(png):,} bytes>"
    return {"text/plain": text, "image/png": base64.b64encode(png).decode()}


def _framebuf_png(value: dict[Any, Any]) -> bytes | None:
    """Make a PNG of a framebuf's buffer; None where it is none."""
    buf, kind = value["framebuf"], value.get("format")
    width, height = value.get("width"), value.get("height")
    if not isinstance(buf, bytes) or not isinstance(kind, int):
        return None
    if not isinstance(width, int) or not isinstance(height, int):
        return None
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        return None
    try:
        if kind == _RGB565:
            rows = [_rgb565_row(buf, width, y) for y in range(height)]
        elif kind == _MONO_VLSB:
            rows = [
                bytes(255 * (buf[(y >> 3) * width + x] >> (y & 7) & 1) for x in range(width))
                for y in range(height)
            ]
        else:
            bits, high = _PIXEL_FORMATS[kind]
            rows = [_grey_row(buf, width, y, bits, high=high) for y in range(height)]
    except (IndexError, KeyError, TypeError, struct.error):
        return None
    return _png(rows, 3 if kind == _RGB565 else 1, width, height)


def _rgb565_row(buf: bytes, width: int, y: int) -> bytes:
    row = struct.unpack_from(f"<{width}H", buf, 2 * y * width)
    return b"".join(
        bytes(((p >> 11) * 255 // 31, (p >> 5 & 63) * 255 // 63, (p & 31) * 255 // 31)) for p in row
    )


def _grey_row(buf: bytes, width: int, y: int, bits: int, *, high: bool) -> bytes:
    """Return a row of pixels; each row of the buffer begins with a byte of its own."""
    each = 8 // bits
    start, most = y * ((width + each - 1) // each), (1 << bits) - 1
    shifts = [bits * (each - 1 - n if high else n) for n in range(each)]
    return bytes(
        (buf[start + x // each] >> shifts[x % each] & most) * 255 // most for x in range(width)
    )


def _png(rows: Sequence[bytes], depth: int, width: int, height: int) -> bytes:
    """Write pixels as a PNG (RFC 2083), small ones enlarged, so that their pixels are seen."""
    scale = max(1, _ENLARGED_WIDTH // width)
    data = b"".join((b"\0" + _stretch_row(row, depth, scale)) * scale for row in rows)
    colour = 2 if depth == 3 else 0
    head = struct.pack(">IIBBBBB", width * scale, height * scale, 8, colour, 0, 0, 0)
    chunks = (b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _stretch_row(row: bytes, depth: int, scale: int) -> bytes:
    return b"".join(row[at : at + depth] * scale for at in range(0, len(row), depth))


def _table_text(value: list[Any]) -> str:
    """Return rows of one shape as a table; "" where they are none."""
    if len(value) < 2:
        return ""
    first = value[0]
    if isinstance(first, dict) and 0 < len(first) <= _MAX_COLUMNS:
        if not all(isinstance(row, dict) and row.keys() == first.keys() for row in value):
            return ""
        heads = [_cell_text(key) for key in first]
        rows = [[_cell_text(row[key]) for key in first] for row in value[:_MAX_ROWS]]
    elif isinstance(first, (list, tuple)) and 1 < len(first) <= _MAX_COLUMNS:
        shape = type(first), len(first)
        if not all(
            isinstance(row, (list, tuple)) and (type(row), len(row)) == shape for row in value
        ):
            return ""
        heads = [str(number) for number in range(len(first))]
        rows = [[_cell_text(each) for each in row] for row in value[:_MAX_ROWS]]
    else:
        return ""
    more = len(value) - len(rows)
    return format_table(heads, rows) + (f"\n… and {more:,} rows more" if more else "")


def _cell_text(value: Any) -> str:
    text = sanitize_text(value if isinstance(value, str) else repr(value)).replace("\n", " ")
    return text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"


def _is_tree(value: Any, text: str) -> bool:
    """Whether a value is one that JSON can say, and worth to be folded."""
    nested = any(isinstance(each, (list, dict)) for each in _children(value))
    return nested and _MAX_LINE_CHARS < len(text) <= _MAX_TREE_CHARS and _is_json(value, _MAX_DEPTH)


def _children(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)


def _is_json(value: Any, depth: int) -> bool:
    if isinstance(value, (list, dict)):
        keys = not isinstance(value, dict) or all(isinstance(key, str) for key in value)
        return keys and depth > 0 and all(_is_json(each, depth - 1) for each in _children(value))
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    if isinstance(value, int):
        return value.bit_length() <= 53  # a browser's numbers are floats
    return value is None or isinstance(value, str)
