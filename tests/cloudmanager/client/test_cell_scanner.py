"""What the tokens of a cell show, compared with what Python's parser finds."""

import ast
from pathlib import Path

import pytest

from cloudmanager.client.cell_scanner import ScannedSyntax
from cloudmanager.client.cell_syntax import parse_syntax

ROOT = Path(__file__).parents[3]
PROGRAMS = sorted((ROOT / "mpy_client").rglob("*.py")) + sorted((ROOT / "cm_magics").glob("*.py"))


def statements(path: Path) -> list[str]:
    """Return the statements of a file at its top level, as cells of their own."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    body = ast.parse(text).body
    return ["\n".join(lines[each.lineno - 1 : each.end_lineno]) for each in body]


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_scanner_finds_what_the_parser_finds(path: Path):
    for text in [path.read_text(encoding="utf-8"), *statements(path)]:
        parsed, scanned = parse_syntax(text), ScannedSyntax(text)
        assert scanned.value_span() == parsed.value_span(), text
        assert scanned.awaits == parsed.awaits, text
        assert scanned.star_import() == parsed.star_import(), text
        assert scanned.begins_with_block() == parsed.begins_with_block(), text
        assert scanned.definition_lines() == parsed.definition_lines(), text
        assert scanned.bound_names() >= parsed.bound_names(), text
        # The parser also counts lines between strings that are joined, which does no harm.
        assert scanned.lines_inside_strings() <= parsed.lines_inside_strings(), text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("f'{a['b']}'", "f'{a['b']}'"),
        ("x = 1\nf'{a['b']:>{w['x']}}' + 'c' # d", "f'{a['b']:>{w['x']}}' + 'c'"),
        ("f'{ {'a': 1}['a'] }';", None),
        ("t'{x}'", "t'{x}'"),
        ("Rt'{x!r:{y}}'; 2", "2"),
        ("f'{{}}' '}'", "f'{{}}' '}'"),
        ('f"""{\n1}\n"""\n', 'f"""{\n1}\n"""'),
        ("lambda x=1, *, y: x == y", "lambda x=1, *, y: x == y"),
        ("lambda: (lambda x=1: x)", "lambda: (lambda x=1: x)"),
        ("x: int", None),
        ("x[1]: int = 5", None),
        ("f'{a['b']}' + \\\n 1", "f'{a['b']}' + \\\n 1"),
        ("x := f'{a['b']}'", "x := f'{a['b']}'"),
        ("a <= b >= c != d == e", "a <= b >= c != d == e"),
        ("a **= b", None),
        ("print(f'{a['b']}', end='')", "print(f'{a['b']}', end='')"),
        ("if x: f'{a['b']}'", None),
        ("for i in x:\n  f'{i['b']}'", None),
        ("match f'{a['b']}':\n  case 1: 2", None),
        ("match + f'{a['b']}'", "match + f'{a['b']}'"),
        ("del f'{a['b']}'", None),
        ("'unterminated\nx", "x"),
        ("'''unterminated\nx", "'''unterminated\nx"),
        (") x", ") x"),
        ("(x", "(x"),
        ("", None),
        ("# f'{a['b']}'", None),
    ],
)
def test_trailing_expression_is_found_in_code_that_python_refuses(text: str, value: str | None):
    span = ScannedSyntax(text).value_span()
    if span is None:
        assert value is None
        return
    starts = [0, *(index + 1 for index, char in enumerate(text) if char == "\n")]
    (first, start), (last, end) = span
    assert text[starts[first] + start : starts[last] + end] == value


@pytest.mark.parametrize(
    ("text", "awaits", "leaves"),
    [
        ("await f(f'{a['b']}')", True, False),
        ("async def f():\n  await x\n  return 1\nf'{a['b']}'", False, False),
        ("async def f(): await x; return 1\nf()", False, False),
        ("def f(a=(yield)): return 1", False, True),
        ("async with f'{a['b']}': pass", True, False),
        ("[i async for i in f'{a['b']}']", True, False),
        ("class A:\n  def f(self):\n    await x\nawait y\nreturn", True, True),
        ("a.await_\n'await'  # await", False, False),
    ],
)
def test_awaiting_and_leaving_outside_of_functions(text: str, awaits: bool, leaves: bool):
    scanned = ScannedSyntax(text)
    assert (scanned.awaits, scanned.leaves) == (awaits, leaves)


def test_line_of_an_error_is_that_of_the_cell():
    text = "def f(a):\n  return f'{a['k']}'\n\nclass C:\n  x = f'{1:{'2'}}'\n\nf(1)"
    assert ScannedSyntax(text).definition_lines() == {("f", 1), ("f", 2), ("C", 4), ("C", 5)}
