"""What is known without a board, from the stubs that the `test` extra brings."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm_kernel import stubs


def test_modules():
    assert {"machine", "time", "asyncio", "framebuf"} <= stubs.modules()


def test_names_of_a_module_and_of_a_class():
    assert stubs.names("machine")["Pin"] == "class"
    assert stubs.names("machine.Pin")["value"] == "function"
    assert not [name for name in stubs.names("machine") if name.startswith("_")]


def test_package_tells_what_it_imports_from_its_own_modules():
    assert {"sleep_ms", "create_task", "gather"} <= set(stubs.names("asyncio"))


def test_about_an_overloaded_method():
    told = stubs.about("machine.Pin.value")
    assert told is not None
    assert told.signatures[0] == "value() -> int"
    assert "value of the pin" in told.doc


def test_about_a_class_and_a_constant():
    pin = stubs.about("machine.Pin")
    assert pin is not None
    assert pin.signatures[0].startswith("Pin(id: Any, /, mode: int")
    out = stubs.about("machine.Pin.OUT")
    assert out is not None
    assert out.kind == "instance"


@pytest.mark.parametrize("path", ["", ".", "nothing", "machine.nothing", "machine..Pin", "../os"])
def test_nothing_is_known(path: str):
    assert stubs.about(path) is None
    assert stubs.names(path) == {}


def test_without_stubs_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    for cached in (stubs._folders, stubs._module, stubs.modules):
        cached.cache_clear()
    try:
        assert stubs.modules() == frozenset()
        assert stubs.about("machine.Pin") is None
    finally:
        for cached in (stubs._folders, stubs._module, stubs.modules):
            cached.cache_clear()
