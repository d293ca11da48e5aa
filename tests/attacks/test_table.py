"""Checks of the tables: no attack is missing, and all tests and seams exist."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator
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
    """Return the names of the functions in a file."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


def exists(test: str) -> bool:
    file, _, name = test.removeprefix("tests/").partition("::")
    return (TESTS / file).is_file() and name.partition("[")[0] in names_in(file)


def test_every_attack_number_is_listed():
    assert [attack.number for attack in ALL] == [*range(1, 44)]


@pytest.mark.parametrize("attack", ALL, ids=lambda attack: f"{attack.number}")
def test_every_attack_has_tests_or_a_reason(attack: Attack):
    assert attack.tests or attack.not_here
    assert [test for test in attack.tests if not exists(test)] == []


def test_table_of_rights_names_tests_of_attacks():
    """docs/security.md: each test of "Who may do what" exists, and is one of an attack or defence."""
    page = (TESTS.parent / "docs/security.md").read_text(encoding="utf-8")
    table = page.partition("## Who may do what")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(test_\w+)`", table))
    tests = [test for attack in ALL for test in attack.tests]
    tests += [test for defence in DEFENCES for test in defence.tests]
    known = {test.partition("::")[2].partition("[")[0] for test in tests}
    assert named - known == set()
    assert len(named) > 20


@functools.cache
def defined_in(file: str) -> set[str]:
    """Return the names that a file defines at its top, and in its classes as ``Class.name``."""
    found = set()
    for node in statements(ast.parse((TESTS.parent / file).read_text(encoding="utf-8")).body):
        found |= names_of(node)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for each in node.body for name in names_of(each)}
    return found


def statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield statements, and those of the loops and try blocks among them."""
    for node in body:
        yield node
        if isinstance(node, (ast.For, ast.Try)):
            yield from statements(node.body)


def names_of(node: ast.stmt) -> set[str]:
    """Return the names that a statement binds."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets += [node.target] if isinstance(node, ast.AnnAssign) else []
    return {
        each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)
    }


@pytest.mark.parametrize("defence", DEFENCES, ids=lambda defence: defence.name)
def test_every_defence_has_its_seam_and_its_tests(defence: Defence):
    """`make attacks` switches each defence off and shows that its tests then fail."""
    for place in defence.places:
        assert list(place.names())
        assert set(place.names()) <= defined_in(place.file)
    assert defence.tests
    assert [test for test in defence.tests if not exists(test)] == []
