"""Real packages from the real registry: resolved, compiled, imported by a real MicroPython.

The registry is the one that pip is configured with. Where it cannot be reached the tests say so.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cm_server.packages.plan import Plan
from cm_server.packages.planner import Packages
from cm_server.packages.web import NotFound, Unreachable

MICROPYTHON = str(Path(sys.executable).parent / "micropython")
MPY = 0x2806  # what MicroPython's unix port says of itself, 64-bit
MODULES = {
    "micropython-logging": "logging",
    "micropython-argparse": "argparse",
    "micropython-base64": "base64",
    "micropython-bisect": "bisect",
    "micropython-cmd": "cmd",
    "micropython-contextlib": "contextlib",
    "micropython-copy": "copy",
    "micropython-hmac": "hmac",
    "micropython-html": "html",
    "micropython-umqtt.simple": "umqtt.simple",
    "micropython-urequests": "urequests",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that the tests share, so that each archive is fetched once."""
    return tmp_path_factory.mktemp("packages")


async def planned(folder: Path, wish: str) -> tuple[Packages, Plan]:
    packages = Packages(folder)
    try:
        return packages, await packages.plan([wish], mpys=[MPY])
    except Unreachable as error:
        pytest.skip(f"the registry that pip is configured with: {error.args[0]}")


async def installed(folder: Path, wish: str, place: Path) -> list[str]:
    """Put a package where a board would have it; return its paths."""
    packages, plan = await planned(folder, wish)
    for file in plan.files[MPY]:
        path = place / file.path[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(await packages.content(file.sha256))
    return [file.path for file in plan.files[MPY]]


def micropython(place: Path, program: str) -> str:
    """All that a real MicroPython says to a program, with that in its path."""
    path = f"import sys; sys.path[:] = [{str(place / 'lib')!r}, '.frozen']\n"
    command = [MICROPYTHON, "-c", path + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", MODULES)
async def test_old_package_installs_and_imports(folder: Path, tmp_path: Path, name: str):
    paths = await installed(folder, f"pypi:{name}", tmp_path)
    assert all(path.endswith(".mpy") for path in paths)
    assert micropython(tmp_path, f"import {MODULES[name]}\nprint('imported')") == "imported\n"


@pytest.mark.timeout(120)
async def test_logging_logs(folder: Path, tmp_path: Path):
    await installed(folder, "pypi:micropython-logging==0.5.2", tmp_path)
    assert micropython(tmp_path, "import logging; logging.info('it %s', 'works')") == "it works\n"


@pytest.mark.timeout(120)
async def test_name_that_there_is_not_is_told(folder: Path):
    with pytest.raises(NotFound, match="not in the index that pip is configured with"):
        await planned(folder, "pypi:micropython-no-such-package-here")
