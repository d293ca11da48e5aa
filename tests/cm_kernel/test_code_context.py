"""Names, imports and definitions in the text of cells."""

from __future__ import annotations

from cm_kernel import code_context


def test_imports():
    cell = "import os, machine as m\nfrom time import sleep as nap, ticks_ms\nimport a.b"
    assert code_context.imported_names([cell]) == {
        "os": "os",
        "m": "machine",
        "nap": "time.sleep",
        "ticks_ms": "time.ticks_ms",
        "a": "a",
    }


def test_path_is_resolved_through_imports_and_instances():
    cells = ["from machine import Pin", "led = Pin(2)"]
    assert code_context.resolve_path("led.value", cells) == "machine.Pin.value"
    assert code_context.resolve_path("os.path", cells) == "os.path"


def test_last_definition_is_found():
    cells = ["def f(a): pass", "class C:\n    def m(self, x: int = 1) -> str:\n        'Does.'"]
    found = code_context.find_definition("f", [*cells, "def f(b): pass"])
    assert found is not None
    assert found.signatures == ("f(b)",)
    method = code_context.find_definition("C.m", cells)
    assert method is not None
    assert (method.signatures, method.doc) == (("m(x: int=1) -> str",), "Does.")
    assert code_context.find_definition("C.n", cells) is None


def test_incomplete_cell_defines_nothing():
    assert code_context.find_definition("f", ["def f(:"]) is None
