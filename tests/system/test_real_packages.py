"""Install packages of the real PyPI index on a real MicroPython, and import them there.

The index is the one that pip is configured with. If it cannot be reached the tests are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cloudmanager.client.fleet import Boards, Fleet
from cloudmanager.client.packages import InstallResult
from cloudmanager.protocol.errors import PackageError

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
UNREACHABLE = ("cannot be reached", "does not respond", "takes longer than")


@pytest.fixture
def board(fleet: Fleet, boards: object) -> Iterator[Boards]:
    board = fleet["demo-1"]
    yield board
    if installed := board.packages().value:
        board.uninstall(*installed, force=True).raise_for_error()


def install(board: Boards, requirement: str) -> InstallResult:
    try:
        result = board.install(requirement).value
    except PackageError as error:
        if any(phrase in str(error) for phrase in UNREACHABLE):
            pytest.skip(f"the index that pip is configured with: {error.args[0]}")
        raise
    assert isinstance(result, InstallResult)
    return result


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", MODULES)
def test_old_package_installs_and_imports(board: Boards, name: str):
    result = install(board, f"pypi:{name}")
    assert result.put
    assert all(path.endswith(".mpy") for path in result.put)
    assert board.run(f"import {MODULES[name]}; 41", fresh=True).value == 41
    assert install(board, f"pypi:{name}").put == ()


@pytest.mark.timeout(120)
def test_logging_prints_to_stdout(board: Boards):
    install(board, "pypi:micropython-logging==0.5.2")
    result = board.run("import logging; logging.info('it %s', 'works')", fresh=True)["demo-1"]
    assert result.stdout == "it works\n"


@pytest.mark.timeout(120)
def test_unknown_name_is_an_error(board: Boards):
    with pytest.raises(PackageError, match="not in the index that pip is configured with"):
        install(board, "pypi:micropython-no-such-package-here")
