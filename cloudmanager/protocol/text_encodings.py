"""Decodes text files: UTF-8, or what editors and shells of Windows write; no I/O."""

from __future__ import annotations

import codecs
from typing import Final

#: Byte order mark -> encoding of the text after it. Windows PowerShell redirects as UTF-16. Those
#: of UTF-32 are first: one of them begins as a mark of UTF-16 does.
_ENCODINGS: Final = {
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_MARK: Final = "\ufeff"


def has_mark(data: bytes) -> bool:
    """Whether bytes begin with a byte order mark."""
    return data.startswith(tuple(_ENCODINGS))


def decode_text(data: bytes) -> str:
    """Return the text that bytes encode, without byte order marks at its beginning.

    Raises:
        UnicodeDecodeError: they are not text in UTF-8, nor in UTF-16 or UTF-32 with a byte order
            mark; or it has a NUL, as text in UTF-16 without a mark does.
    """
    encoding = "utf-8"
    for mark, name in _ENCODINGS.items():
        if data.startswith(mark) and (len(data) > len(mark) or name == "utf-8"):
            encoding = name
            break
    text = data.decode(encoding).lstrip(_MARK)
    if "\0" in text:
        at = max(data.find(b"\0"), 0)
        raise UnicodeDecodeError(encoding, data, at, at + 1, "text has no NUL")
    return text
