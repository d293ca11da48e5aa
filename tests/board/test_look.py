"""Introspection on a real board: it runs no code of the user's, and leaves nothing in memory."""

import ast

import pytest

from .peer import ERROR, OK

TRAPS = """\
class Base:
    def below(self):
        pass

class Trap(Base):
    calls = 0
    @property
    def prop(self):
        Trap.calls += 1
        return 1
    @staticmethod
    def static():
        Trap.calls += 1
    def __getattr__(self, name):
        Trap.calls += 1
        raise AttributeError(name)
    def __call__(self):
        Trap.calls += 1
    def __len__(self):
        Trap.calls += 1
        return 1
    def __repr__(self):
        Trap.calls += 1
        return "trap"
    def __eq__(self, other):
        Trap.calls += 1
        return True
    def __bool__(self):
        Trap.calls += 1
        return True
    def __hash__(self):
        Trap.calls += 1
        return 1
trap = Trap()
trap.own = Trap()
trap.own.inner = None
"""


def look(board, call):
    job = board.run(f'__cm__((__import__("cm.look").look.{call}))')
    assert job.status == OK, job
    return ast.literal_eval(job.value.decode())


def names(board, path, start=""):
    return {name: kind for kind, name in look(board, f"names({path!r}, {start!r})")}


@pytest.fixture
def traps(board):
    board.run(TRAPS)
    return board


def test_names_of_the_user_and_builtins(board):
    board.run("look_function = lambda: 1\nlook_value = 1\nimport os as look_module")
    assert names(board, "", "look_") == {
        "look_function": "function",
        "look_module": "module",
        "look_value": "instance",
    }
    assert names(board, "", "zi") == {"zip": "class"}


def test_names_of_an_object_its_class_and_base_classes(traps):
    found = names(traps, "trap")
    assert {"own", "prop", "static", "below", "calls"} <= set(found)
    assert found["below"] == "function"


@pytest.mark.parametrize("path", ["", "trap", "trap.own", "trap.prop", "Trap", "trap.static"])
def test_no_code_of_the_user_runs(traps, path):
    names(traps, path)
    names(traps, path, "n")
    if path:
        look(traps, f"about({path!r})")
    assert traps.run("__cm__((Trap.calls))").value == b"0"


def test_path_uses_only_attributes_that_objects_hold(traps):
    assert look(traps, "about('trap.own.inner')") == ("instance", "NoneType", "None")
    for path in ("trap.nothing", "trap.prop.nothing", "nothing", "trap..own"):
        job = traps.run(f'__cm__((__import__("cm.look").look.about({path!r})))')
        assert job.status == ERROR
    assert traps.run("__cm__((Trap.calls))").value == b"0"


def test_lazy_package_imports_nothing(board):
    board.run("import asyncio, cm.tasks")  # tasks.py would be imported between two cells
    before = board.run("import sys\n__cm__((sorted(sys.modules)))").value
    names(board, "asyncio")
    assert board.run("__cm__((sorted(sys.modules)))").value == before


def test_names_of_modules(board):
    board.run("import os, sys")
    assert names(board, "os", "listd") == {"listdir": "function"}
    assert "implementation" in names(board, "sys")
    assert names(board, "sys", "std")["stdout"] == "instance"


@pytest.mark.parametrize(
    ("value", "description"),
    [
        ("42", ("instance", "int", "42")),
        ("None", ("instance", "NoneType", "None")),
        ("'x' * 99", ("instance", "str", repr("x" * 80))),
        ("[1, 2]", ("instance", "list", "len 2")),
        ("int", ("class", "type", "")),
        ("len", ("function", "function", "")),
    ],
)
def test_about_describes_a_value(board, value, description):
    board.run(f"value = {value}")
    assert look(board, "about('value')") == description


def test_introspection_leaves_nothing_in_memory(board):
    board.run("import sys\nbefore = set(globals())")
    names(board, "", "be")
    left = "set(globals()) - before, [n for n in sys.modules if 'look' in n]"
    assert board.run(f"__cm__(({left}))").value == b"({'before'}, [])"
    assert board.run("import cm\n__cm__(('look' in cm.__dict__))").value == b"False"


def test_package_of_the_client_lacks_what_is_no_part_of_it(board):
    assert board.run("import cm\n__cm__((hasattr(cm, 'nonsense')))").value == b"False"
