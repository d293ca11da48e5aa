"""The tables hold: every attack has its place, every test that they name exists."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

from .defence import Defence
from .defences import DEFENCES
from .packages import PACKAGE_ATTACKS
from .servers import SERVER_ATTACKS
from .table import ATTACKS, Attack

TESTS = Path(__file__).parent.parent
ALL = sorted([*ATTACKS, *PACKAGE_ATTACKS, *SERVER_ATTACKS], key=lambda attack: attack.number)


@functools.cache
def names_in(file: str) -> set[str]:
    """The names of the tests in a file."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def exists(test: str) -> bool:
    file, _, name = test.removeprefix("tests/").partition("::")
    return (TESTS / file).is_file() and name.partition("[")[0] in names_in(file)


def test_every_group_of_attacks_has_its_place():
    assert [attack.number for attack in ALL] == [*range(1, 40)]


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: f"{attack.number}")
def test_every_attack_is_tried_or_says_why_not(attack: Attack):
    assert attack.tests or attack.not_here
    assert [test for test in attack.tests if not exists(test)] == []


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_every_defence_is_where_its_table_says(defence: Defence):
    """`make attacks` takes each out and shows that its tests notice."""
    for place in defence.places:
        source = (TESTS.parent / place.file).read_text(encoding="utf-8")
        assert source.count(place.text) == 1
    assert defence.tests
    assert [test for test in defence.tests if not exists(test)] == []
