"""What counts as a process's own memory."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import psutil
import pytest

from .memory import own_bytes

SIZE = 32 * 1024 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says which pages are of files")
def test_pages_of_files_are_not_counted_and_others_are(tmp_path: Path):
    (tmp_path / "big").write_bytes(bytes(SIZE))
    process = psutil.Process()
    own, resident = own_bytes(os.getpid()), process.memory_info().rss
    with (
        (tmp_path / "big").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        assert sum(mapped[:: mmap.PAGESIZE]) == 0  # reads each page
        assert process.memory_info().rss - resident > SIZE / 2
        assert own_bytes(os.getpid()) - own < SIZE / 4
    kept = b"x" * SIZE
    assert own_bytes(os.getpid()) - own > SIZE / 2
    assert len(kept) == SIZE
