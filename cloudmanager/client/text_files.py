"""Reads the user's text files: UTF-8, or what editors and shells of Windows write."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import Final

#: Byte order mark -> encoding of the text after it. Windows PowerShell redirects as UTF-16.
_ENCODINGS: Final = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark and with newlines as line ends.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not text in UTF-8, nor in UTF-16 with a byte order mark.
    """
    try:
        text = decode_text(path.read_bytes())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def decode_text(data: bytes) -> str:
    """Return the text that bytes encode, without a byte order mark.

    Raises:
        UnicodeDecodeError: they are not text in UTF-8, nor in UTF-16 with a byte order mark.
    """
    for mark, encoding in _ENCODINGS.items():
        has_text = len(data) > len(mark) or encoding == "utf-8"
        if data.startswith(mark) and has_text:
            return data[len(mark) :].decode(encoding)
    return data.decode("utf-8")
