"""Names and signatures from the stubs that the `test` extra installs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm_kernel import stubs


def test_modules_with_stubs_are_listed():
    assert {"machine", "time", "asyncio", "framebuf"} <= stubs.module_names()


def test_public_names_of_modules_and_classes():
    assert stubs.public_names("machine")["Pin"] == "class"
    assert stubs.public_names("machine.Pin")["value"] == "function"
    assert not [name for name in stubs.public_names("machine") if name.startswith("_")]


def test_package_contains_names_from_its_modules():
    assert {"sleep_ms", "create_task", "gather"} <= set(stubs.public_names("asyncio"))


def test_info_of_an_overloaded_method():
    info = stubs.find_info("machine.Pin.value")
    assert info is not None
    assert info.signatures[0] == "value() -> int"
    assert "value of the pin" in info.doc


def test_info_of_a_class_and_a_constant():
    pin = stubs.find_info("machine.Pin")
    assert pin is not None
    assert pin.signatures[0].startswith("Pin(id: Any, /, mode: int")
    out = stubs.find_info("machine.Pin.OUT")
    assert out is not None
    assert out.kind == "instance"


@pytest.mark.parametrize("path", ["", ".", "nothing", "machine.nothing", "machine..Pin", "../os"])
def test_unknown_path_has_no_info(path: str):
    assert stubs.find_info(path) is None
    assert stubs.public_names(path) == {}


def test_without_stubs_results_are_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    for cached in (stubs._stub_folders, stubs._parse_module, stubs.module_names):
        cached.cache_clear()
    try:
        assert stubs.module_names() == frozenset()
        assert stubs.find_info("machine.Pin") is None
    finally:
        for cached in (stubs._stub_folders, stubs._parse_module, stubs.module_names):
            cached.cache_clear()
