"""Real packages from the real registry: installed on a real MicroPython, and imported there.

The registry is the one that pip is configured with. Where it cannot be reached the tests say so.
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
NO_ANSWER = ("cannot be reached", "gives no answer", "takes longer than")


@pytest.fixture
def board(fleet: Fleet, boards: object) -> Iterator[Boards]:
    board = fleet["demo-1"]
    yield board
    if have := board.packages().value:
        board.uninstall(*have, force=True).raise_for_error()


def install(board: Boards, wish: str) -> InstallResult:
    try:
        told = board.install(wish).value
    except PackageError as error:
        if any(words in str(error) for words in NO_ANSWER):
            pytest.skip(f"the registry that pip is configured with: {error.args[0]}")
        raise
    assert isinstance(told, InstallResult)
    return told


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", MODULES)
def test_old_package_installs_and_imports(board: Boards, name: str):
    told = install(board, f"pypi:{name}")
    assert told.put
    assert all(path.endswith(".mpy") for path in told.put)
    assert board.run(f"import {MODULES[name]}; 41", fresh=True).value == 41
    assert install(board, f"pypi:{name}").put == ()


@pytest.mark.timeout(120)
def test_logging_logs(board: Boards):
    install(board, "pypi:micropython-logging==0.5.2")
    logged = board.run("import logging; logging.info('it %s', 'works')", fresh=True)["demo-1"]
    assert logged.stdout == "it works\n"


@pytest.mark.timeout(120)
def test_name_that_there_is_not_is_told(board: Boards):
    with pytest.raises(PackageError, match="not in the index that pip is configured with"):
        install(board, "pypi:micropython-no-such-package-here")
