"""Values of boards as pictures, tables and trees; never as HTML or script."""

from __future__ import annotations

import base64
import struct
import zlib
from typing import Any

import pytest

from cloudmanager.results.results import Result
from cm_magics.rich_values import mime_bundle

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 5, 3)


def bundle(text: str, **arguments: Any) -> dict[str, Any]:
    return mime_bundle(Result("demo-1", 1, "ok", text=text, **arguments))


@pytest.mark.parametrize(
    "text",
    ["42", "'<b>'", "[1, 2]", "{'a': 1}", "<Pin 4>", "[[1, 2], [3]]", "b'GIF89a'", "((", "x(1)"],
)
def test_plain_value_is_shown_as_text(text: str):
    assert bundle(text) == {"text/plain": text}


def test_text_is_sanitized():
    assert bundle("'\x1b[2J'") == {"text/plain": "'\\x1b[2J'"}


def test_png_is_shown_as_picture():
    made = bundle(repr(PNG))
    assert base64.b64decode(made["image/png"]) == PNG
    assert made["text/plain"] == "<PNG picture, 5 x 3 pixels, 24 bytes>"


def test_truncated_value_is_shown_as_text():
    assert set(bundle(repr(PNG), value_truncated=True)) == {"text/plain"}


def pixels(png: bytes) -> list[list[int]]:
    """Return the grey or red value of each pixel, before the picture was enlarged."""
    width, height, _, colour = struct.unpack(">IIBB", png[16:26])
    at, data = 8, b""
    while at < len(png):
        size, name = struct.unpack(">I4s", png[at : at + 8])
        data += png[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        at += size + 12
    raw, depth = zlib.decompress(data), 3 if colour == 2 else 1
    line = 1 + width * depth
    rows = [raw[y * line + 1 : (y + 1) * line] for y in range(height)]
    scale = 256 // 8
    return [list(row[:: depth * scale]) for row in rows[::scale]]


@pytest.mark.parametrize(
    ("format_", "buffer"),
    [
        (0, bytes([1, 0, 0, 0, 0, 0, 0, 2])),  # MONO_VLSB
        (3, b"\x80\x01" + bytes(6)),  # MONO_HLSB
        (4, b"\x01\x80" + bytes(6)),  # MONO_HMSB
        (2, b"\xf0\x00\x00\x00\x00\x00\x00\x0f" + bytes(24)),  # GS4_HMSB
        (5, b"\x03\x00\x00\xc0" + bytes(12)),  # GS2_HMSB
        (6, b"\xff" + bytes(7) + bytes(7) + b"\xff" + bytes(48)),  # GS8
        (1, b"\xff\xff" + bytes(14) + bytes(14) + b"\xff\xff" + bytes(96)),  # RGB565
    ],
)
def test_framebuf_is_shown_as_picture(format_: int, buffer: bytes):
    value = f"{{'framebuf': bytearray({buffer!r}), 'width': 8, 'height': 8, 'format': {format_}}}"
    rows = pixels(base64.b64decode(bundle(value)["image/png"]))
    if format_ in (0, 6):
        assert [(y, x) for y in range(8) for x in range(8) if rows[y][x]] == [(0, 0), (1, 7)]
    assert rows[0][0] == 255
    assert rows[1][7] == 255
    assert sum(map(sum, rows)) == 510


@pytest.mark.parametrize(
    "value",
    [
        "{'framebuf': 1, 'width': 8, 'height': 8, 'format': 0}",
        "{'framebuf': b'', 'width': 8, 'height': 8, 'format': 0}",
        "{'framebuf': b'1', 'width': 8, 'height': 8, 'format': 9}",
        "{'framebuf': b'1', 'width': 10**9, 'height': 8, 'format': 0}",
        "{'framebuf': b'1', 'width': 99999, 'height': 99999, 'format': 0}",
        "{'framebuf': b'1', 'width': -1, 'height': 8, 'format': 1}",
        "{'framebuf': b'1', 'width': 'a', 'height': 8, 'format': 1}",
    ],
)
def test_invalid_framebuf_is_shown_as_text(value: str):
    assert set(bundle(value)) == {"text/plain"}


def test_rows_are_shown_as_table():
    shown = bundle("[{'pin': 2, 'note': 'a\\nb'}, {'pin': 14, 'note': '<b>'}]")
    assert shown["text/plain"] == "pin  note\n───  ────\n2    a b\n14   <b>"
    assert shown["text/html"].startswith("<table>")
    assert "&lt;b&gt;" in shown["text/html"]
    assert bundle("[(1, 2), (3, 4)]")["text/plain"] == "0  1\n─  ─\n1  2\n3  4"


def test_table_size_is_limited():
    text = bundle(repr([{"n": n, "text": "x" * 90} for n in range(1000)]))["text/plain"]
    assert text.endswith("… and 800 more rows")
    assert max(map(len, text.split("\n"))) < 60


def test_long_nested_value_is_shown_as_tree_and_text():
    value = {"config": {"rates": [1, 2.5, None, True], "name": "x" * 80}}
    assert bundle(repr(value)) == {"text/plain": repr(value), "application/json": value}


@pytest.mark.parametrize(
    "value",
    [
        {"a": [float("inf")], "b": "x" * 80},
        {"a": [2**64], "b": "x" * 80},
        {"a": [(1, 2)], "b": "x" * 80},
        {"a": {1: 2}, "b": "x" * 80},
        {"a": ["x" * 300_000]},
    ],
)
def test_value_that_is_not_json_is_shown_as_text(value: Any):
    assert set(bundle(repr(value))) == {"text/plain"}


def test_deeply_nested_value_is_shown_as_text():
    assert set(bundle("[" * 90 + "]" * 90)) == {"text/plain"}
    assert set(bundle("[" * 9000 + "]" * 9000)) == {"text/plain"}
