"""Reads the user's text files, as ``decode_text`` decodes them."""

from __future__ import annotations

from pathlib import Path

from cloudmanager.protocol.text_encodings import decode_text


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark and with newlines as line ends.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not text in UTF-8, nor in UTF-16 or UTF-32 with a byte order mark.
    """
    try:
        text = decode_text(path.read_bytes())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
