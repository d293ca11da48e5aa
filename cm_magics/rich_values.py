"""Convert a value from a board to a MIME bundle: a picture, a table or a tree.

Whatever the board sends, the bundle contains sanitized text, a PNG, JSON, or a table with escaped
cells: never HTML, SVG or script of the board, which a notebook would trust as the output of its own
cell.

    bytes of a PNG                                                       a picture
    {"framebuf": buf, "width": 128, "height": 64, "format": 0}           a picture of the buffer
    [{"pin": 2, "volt": 3.1}, {"pin": 4, "volt": 1.2}]                   a table
    {"config": {"rates": [1, 2]}}, if it is longer than a line           a tree
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any, Final

from cloudmanager.display.cell_view import printable_output
from cloudmanager.display.text_tables import format_table
from cloudmanager.protocol.text import sanitize_text
from cloudmanager.results.board_values import read_value
from cloudmanager.results.html_table import render_table
from cloudmanager.results.results import Result

_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_MAX_SIDE: Final = 1024  # pixels: maximum width and height of a framebuf
_ENLARGED_WIDTH: Final = 256  # pixels: narrower pictures are enlarged, at most to this width
_MAX_ROWS: Final = 200  # rows of a table
_MAX_COLUMNS: Final = 12  # columns of a table
_MAX_CELL_CHARS: Final = 40  # characters of a table's cell
_MAX_LINE_CHARS: Final = 80  # a value with more characters becomes a tree
_MAX_TREE_CHARS: Final = 256 * 1024  # a value with more characters stays text
_MAX_DEPTH: Final = 20  # levels of a tree
#: Greyscale formats of framebuf (extmod/modframebuf.c): bits of a pixel, and whether a byte's first
#: pixel is in its highest bits.
_PIXEL_FORMATS: Final = {2: (4, True), 3: (1, True), 4: (1, False), 5: (2, False), 6: (8, True)}
_MONO_VLSB: Final = 0
_RGB565: Final = 1


def mime_bundle(result: Result) -> dict[str, Any]:
    """Return the MIME bundle of a result's value; it always contains text."""
    plain = {"text/plain": printable_output(result.text)}
    if result.value_truncated:
        return plain
    value = read_value(result.text)
    if isinstance(value, (bytes, bytearray)) and value.startswith(_PNG_SIGNATURE):
        return _png_bundle(bytes(value))
    if isinstance(value, dict) and "framebuf" in value:
        return _png_bundle(png) if (png := _framebuf_png(value)) else plain
    if isinstance(value, list) and (table := _read_table(value)):
        heads, rows, note = table
        html = render_table(heads, rows, [note] if note else [])
        return {"text/plain": format_table(heads, rows, note), "text/html": html}
    if isinstance(value, (list, dict)) and _is_tree(value, result.text):
        return {**plain, "application/json": value}
    return plain


def _png_bundle(png: bytes) -> dict[str, Any]:
    width, height = struct.unpack(">II", png[16:24]) if len(png) >= 24 else (0, 0)
    text = f"<PNG picture, {width} x {height} pixels, {len(png):,} bytes>"
    return {"text/plain": text, "image/png": base64.b64encode(png).decode()}


def _framebuf_png(value: dict[Any, Any]) -> bytes | None:
    """Convert a framebuf's buffer to a PNG; return None if the description is not valid."""
    buf = value["framebuf"]
    pixel_format = value.get("format")
    width = value.get("width")
    height = value.get("height")
    if not isinstance(buf, (bytes, bytearray)) or not isinstance(pixel_format, int):
        return None
    if not isinstance(width, int) or not isinstance(height, int):
        return None
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        return None
    try:
        if pixel_format == _RGB565:
            rows = [_rgb565_row(buf, width, y) for y in range(height)]
        elif pixel_format == _MONO_VLSB:  # each byte holds 8 pixels of one column
            rows = [
                bytes(255 * (buf[(y >> 3) * width + x] >> (y & 7) & 1) for x in range(width))
                for y in range(height)
            ]
        else:
            bits, high_first = _PIXEL_FORMATS[pixel_format]
            rows = [_grey_row(buf, width, y, bits, high_first=high_first) for y in range(height)]
    except (IndexError, KeyError, TypeError, struct.error):
        return None
    return _png(rows, 3 if pixel_format == _RGB565 else 1, width, height)


def _rgb565_row(buf: bytes | bytearray, width: int, y: int) -> bytes:
    """Return a row of pixels, three bytes each, from 5 bits of red, 6 of green and 5 of blue."""
    row = bytearray()
    for pixel in struct.unpack_from(f"<{width}H", buf, 2 * y * width):
        row.append((pixel >> 11) * 255 // 31)
        row.append((pixel >> 5 & 63) * 255 // 63)
        row.append((pixel & 31) * 255 // 31)
    return bytes(row)


def _grey_row(buf: bytes | bytearray, width: int, y: int, bits: int, *, high_first: bool) -> bytes:
    """Return a row of pixels, one byte each; each row of the buffer starts at a whole byte."""
    per_byte = 8 // bits
    start = y * ((width + per_byte - 1) // per_byte)
    white = (1 << bits) - 1
    shifts = [bits * (per_byte - 1 - n if high_first else n) for n in range(per_byte)]
    return bytes(
        (buf[start + x // per_byte] >> shifts[x % per_byte] & white) * 255 // white
        for x in range(width)
    )


def _png(rows: Sequence[bytes], depth: int, width: int, height: int) -> bytes:
    """Encode pixels as a PNG (RFC 2083); a small picture is enlarged.

    Args:
        rows: the pixels.
        depth: bytes of a pixel: 1 (grey) or 3 (red, green, blue).
        width: in pixels.
        height: in pixels.
    """
    scale = max(1, _ENLARGED_WIDTH // width)
    # Filter type 0 (none) precedes each row.
    data = b"".join((b"\0" + _stretch_row(row, depth, scale)) * scale for row in rows)
    colour_type = 2 if depth == 3 else 0
    header = struct.pack(">IIBBBBB", width * scale, height * scale, 8, colour_type, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b"")
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def _stretch_row(row: bytes, depth: int, scale: int) -> bytes:
    """Repeat each pixel of a row ``scale`` times."""
    return b"".join(row[start : start + depth] * scale for start in range(0, len(row), depth))


def _read_table(value: list[Any]) -> tuple[list[str], list[list[str]], str] | None:
    """Return headings, rows and a note of a list of dicts or sequences of one shape.

    Returns:
        None for any other list.
    """
    if len(value) < 2:
        return None
    first = value[0]
    if isinstance(first, dict) and 0 < len(first) <= _MAX_COLUMNS:
        if not all(isinstance(row, dict) and row.keys() == first.keys() for row in value):
            return None
        heads = [_cell_text(key) for key in first]
        rows = [[_cell_text(row[key]) for key in first] for row in value[:_MAX_ROWS]]
    elif isinstance(first, (list, tuple)) and 1 < len(first) <= _MAX_COLUMNS:
        shape = type(first), len(first)
        if not all(
            isinstance(row, (list, tuple)) and (type(row), len(row)) == shape for row in value
        ):
            return None
        heads = [str(number) for number in range(len(first))]
        rows = [[_cell_text(each) for each in row] for row in value[:_MAX_ROWS]]
    else:
        return None
    omitted = len(value) - len(rows)
    return heads, rows, f"… and {omitted:,} more rows" if omitted else ""


def _cell_text(value: Any) -> str:
    text = sanitize_text(value if isinstance(value, str) else repr(value)).replace("\n", " ")
    return text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"


def _is_tree(value: Any, text: str) -> bool:
    """Return whether to show a value as a tree: nested, longer than a line, and valid JSON."""
    nested = any(isinstance(each, (list, dict)) for each in _children(value))
    return nested and _MAX_LINE_CHARS < len(text) <= _MAX_TREE_CHARS and _is_json(value, _MAX_DEPTH)


def _children(value: Any) -> list[Any]:
    return list(value.values() if isinstance(value, dict) else value)


def _is_json(value: Any, depth: int) -> bool:
    """Return whether JSON can represent a value exactly, with at most ``depth`` levels."""
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        return False
    if isinstance(value, (list, dict)):
        return depth > 0 and all(_is_json(each, depth - 1) for each in _children(value))
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return value.bit_length() <= 53  # JavaScript's numbers are 64-bit floats
    return value is None or isinstance(value, str)
