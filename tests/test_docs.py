"""The documentation: links resolve, lines are wrapped, verbs and options are described."""

from __future__ import annotations

import argparse
import ast
import configparser
import errno
import functools
import importlib.util
import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pygments.lexers import get_lexer_by_name
from pygments.token import Error

import cm_magics
from cloudmanager import AsyncFleet, Boards, Fleet, server_options
from cloudmanager.cli import board_commands, command_line

from .site_links import broken_links
from .wheel import ROOT

DOCS = ROOT / "docs"
PAGES = [ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SOURCES = ["cloudmanager", "server", "cm_magics", "mpy_client"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
_WIDTH = 100  # characters; tables and pictures may be wider
#: What stands for the parts of a quoted message that differ.
_PLACEHOLDER = re.compile(r"…|\b(?:URL|WHERE|NAME)\b|\b\d+\b")
#: Messages that the code puts together: their parts, as they are in it.
_COMPOSED = {
    "queued behind": ("queued ", "behind "),
    "it was asked to stop and has not confirmed it": (
        "it was asked ",
        "to stop and has not confirmed it",
    ),
}
#: Kinds of alarms, which look like verbs of `mbm`.
_ALARMS = {"board-lost", "board-overdue"}


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_to_files_and_headings_resolve(page: Path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" in link:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=page_id)
def test_links_of_tutorials_lead_to_files_in_their_folder(notebook: Path):
    """JupyterLab serves only the folder that it was started in."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    names = {path.name for path in notebook.parent.iterdir()}
    assert [link for link in links if link.partition("#")[0] not in names] == []


def test_table_of_changes_counts_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| an? .+? \| [\d–]+ \| (\d+) \| (.+) \|$", text, flags=re.M)
    assert len(rows) == 9
    for count, files in rows:
        assert len(files.split(", ")) == int(count), files
        for name in re.findall(r"`([^`]+\.py)`", files):
            assert any(list((ROOT / folder).rglob(name)) for folder in SOURCES), name


def test_readme_lists_all_tutorials():
    listed = re.findall(r"\(notebooks/([^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert listed == [notebook.name for notebook in NOTEBOOKS]


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_lines_are_wrapped(page: Path):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [each for each in lines if len(each) > _WIDTH and not each.startswith(("|", "!["))] == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_line_is_a_comment_of_myst(page: Path):
    """Outside of blocks, Sphinx leaves out a line that begins with %, which GitHub shows."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert re.findall(r"^ {0,3}%.*", text, flags=re.M) == []


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_blocks_of_code_are_of_their_language(page: Path):
    """Sphinx warns of what Pygments cannot read, and `make docs` fails at a warning."""
    blocks = re.findall(
        r"^ *```(\w+)\n(.*?)^ *```", page.read_text(encoding="utf-8"), flags=re.M | re.S
    )
    for language, text in blocks:
        tokens = get_lexer_by_name(language).get_tokens(text)
        assert [value for kind, value in tokens if kind is Error] == [], text


def test_every_page_is_reachable_from_the_index():
    seen: set[Path] = set()
    waiting = [ROOT / "docs/index.md", ROOT / "docs/decisions/README.md"]
    while waiting:
        page = waiting.pop()
        seen.add(page)
        links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        found = {(page.parent / link).resolve() for link in links} & set(PAGES)
        waiting += found - seen - set(waiting)
    assert set(PAGES) - seen == set()


@functools.cache
def verbs() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each verb of ``mbm``."""
    (found,) = [
        action.choices
        for action in command_line._make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(found)


@pytest.mark.parametrize("verb", verbs())
def test_arguments_of_verbs_are_explained(verb: str):
    actions = verbs()[verb]._actions
    assert [a.dest for a in actions if not a.help and a.metavar != "TARGET"] == []


def option_names(parser: argparse.ArgumentParser) -> set[str]:
    """Return the last, longest spelling of each option, except those that all verbs have."""
    spelled = {action.option_strings[-1] for action in parser._actions if action.option_strings}
    return spelled - {"--help", "--json"}


def rows() -> dict[str, str]:
    """Return the rows of the tables in docs/cli.md, by their first word."""
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `([\w-]+)[^`]*` \| (.+) \|$", text, flags=re.M)
    return dict(found)


@pytest.mark.parametrize("verb", verbs())
def test_verb_of_mbm_is_described_with_its_options(verb: str):
    row = rows()[verb]
    described = set(re.findall(r"`(--?[\w-]+)", row))
    assert described >= option_names(verbs()[verb])


def test_described_verbs_exist():
    sections = (ROOT / "docs/cli.md").read_text(encoding="utf-8").split("| verb | does |\n")[1:]
    tables = "".join(section.partition("\n\n")[0] + "\n" for section in sections)
    assert set(re.findall(r"^\| `([\w-]+)", tables, flags=re.M)) == set(verbs())


def test_options_of_the_server_are_described():
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    parser = argparse.ArgumentParser()
    server_options.add_options(parser)
    assert [name for name in option_names(parser) if f"`{name}" not in text] == []


def shell_commands(page: Path) -> Iterator[str]:
    """Yield the commands `mbm …` of a page's blocks: indented by four, or between fences."""
    fence = ""
    for line in page.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("```"):
            fence = "" if fence else text
        found = re.match(r"(?:\$ |- run: )?mbm ", text)
        if found and (fence or line.startswith("    ")):
            yield text[found.end() :]


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=page_id)
def test_commands_of_pages_are_accepted_by_the_parser(page: Path, capsys):
    for command in shell_commands(page):
        words = shlex.split(command.replace("JOB", "7"), comments=True)
        try:
            options = command_line.parse_arguments(words)
        except SystemExit as ended:
            pytest.fail(f"mbm {command}: {ended.code} {capsys.readouterr().err}")
        macro = getattr(options, "macro", None)
        assert macro is None or macro in board_commands.MACROS or macro == board_commands.EDIT


def verb_names(page: Path) -> set[str]:
    """Return the words in a page's text, between backticks, that are used as verbs of ``mbm``."""
    text = page.read_text(encoding="utf-8")
    words = set(re.findall(r"`mbm ([a-z][\w-]*)", text))
    families = {verb.partition("-")[0] for verb in verbs() if "-" in verb}
    return words | set(re.findall(rf"`((?:{'|'.join(sorted(families))})-[a-z-]+)[ `]", text))


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=page_id)
def test_verbs_that_sentences_name_exist(page: Path):
    assert verb_names(page) - set(verbs()) - _ALARMS == set()


@functools.cache
def magic_names() -> frozenset[str]:
    """Return the names of all magics."""
    kinds: tuple[Any, ...] = (cm_magics.BoardMagics, *cm_magics.TARGET_MAGICS)
    return frozenset(name for kind in kinds for names in kind.magics.values() for name in names)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=page_id)
def test_magics_of_pages_exist(page: Path):
    used = re.findall(r"(?<![\w%])%{1,2}((?:board|fleet)\w*)", page.read_text(encoding="utf-8"))
    assert set(used) - magic_names() == set()


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=page_id)
def test_methods_of_pages_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    unknown = []
    for pattern, owners in (
        (r"\b[Ff]leet(?:\(\))?\.(\w+)\(", (Fleet, AsyncFleet)),
        (r"\b[Ff]leet(?:\(\))?\[[^]\n]*\](?!\])\.(\w+)\(|\bboards\.(\w+)\(", (Boards,)),
    ):
        for found in re.finditer(pattern, text):
            name = found[found.lastindex or 1]
            if not any(hasattr(owner, name) for owner in owners):
                unknown.append(found[0])
    assert unknown == []


def source_texts() -> str:
    """Return the texts in the sources, one a line; a tab stands for each value in one."""
    texts = []
    for folder in (*SOURCES, "cm_kernel"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.append(node.value)
                elif isinstance(node, ast.JoinedStr):
                    values = [getattr(part, "value", None) for part in node.values]
                    texts.append("".join(v if isinstance(v, str) else "\t" for v in values))
    texts += errno.errorcode.values()
    texts += map(os.strerror, errno.errorcode)
    return "\n".join(texts)


def quoted_messages() -> Iterator[tuple[str, str]]:
    """Yield the messages in tables of what programs say, each with one of its stable parts."""
    pages = (DOCS / "troubleshooting.md", DOCS / "boards.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for table in text.split("\n| it says |")[1:]:
        for row in table.partition("\n\n")[0].splitlines()[2:]:
            for message in re.findall(r"`([^`]+)`", row.split(" | ")[0]):
                for stable in re.split(rf"{_PLACEHOLDER.pattern}|: ", message):
                    if part := stable.strip(" .,:;()[]'"):
                        yield message, part


def test_quoted_messages_are_those_of_the_code():
    texts = source_texts()
    quoted = list(quoted_messages())
    assert len({message for message, _ in quoted}) > 60
    missing = {
        message
        for message, stable in quoted
        if any(part not in texts for part in _COMPOSED.get(stable, (stable,)))
    }
    assert missing == set()


def test_all_extras_are_described():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    text = (DOCS / "installing.md").read_text(encoding="utf-8")
    table = text.partition("| extra |")[2].partition("\n\n")[0]
    described = re.findall(r"`(\w+)`", "".join(re.findall(r"^\|[^|]+\|", table, flags=re.M)))
    assert sorted(described) == sorted(config["options.extras_require"])


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_install_lines_say_where_the_package_is(page: Path):
    """No release is published: a page that shows ``pip install`` leads to how it is done now."""
    lines = page.read_text(encoding="utf-8").splitlines()
    if any(line.startswith("    pip install 'cloudmanager[") for line in lines):
        assert page.name == "installing.md" or any("installing.md" in line for line in lines)


@pytest.fixture(scope="module")
def generated_pages() -> ModuleType:
    """The module that fills in reference pages when the site is built."""
    spec = importlib.util.spec_from_file_location("generated_pages", DOCS / "generated_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_generated_part_is_on_a_page(generated_pages: ModuleType):
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"<!-- generated: ([\w-]+) -->", text)
    assert sorted(named) == sorted(generated_pages.PARTS)


def test_generated_reference_has_all_verbs_magics_and_options(generated_pages: ModuleType):
    parts = {name: make() for name, make in generated_pages.PARTS.items()}
    for verb, parser in verbs().items():
        _, _, section = parts["verbs"].partition(f"## {verb}\n")
        section = section.partition("\n## ")[0]
        assert [name for name in option_names(parser) if name not in section] == [], verb
    assert "| `--timeout S` |" in parts["magics"]
    headings = re.findall(r"^## (.+)$", parts["magics"], flags=re.M)
    assert {heading.lstrip("%") for heading in headings[1:]} | {"board"} == magic_names()
    assert "\\%%board TARGET runs the lines below it" in parts["magics"]
    assert "```text\n%board_cp lab-* *.py :  " in parts["magics"]
    assert "a pattern: %board_ls lab-1 :lib :\\*.csv" in parts["magics"]
    assert "| `--listen ADDRESS` | network address to listen on (default: 127.0.0.1) |" in (
        parts["server-options"].splitlines()
    )
    assert "environment variable CM_STORE" in parts["server-options"]
    assert "| `fresh` |" in parts["run-options"]
    assert "| `no_mpy` |" in parts["install-options"]


def test_broken_links_of_a_site_are_found(tmp_path: Path):
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html#here"></a><a href="b.html#gone"></a><img src="no.png">'
        '<a href="https://lab.example/x"></a><a href="#top"></a><a href="../outside.html"></a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p>')
    assert list(broken_links(tmp_path)) == [
        "a.html: ../outside.html does not exist",
        "a.html: b.html#gone has no such anchor",
        "a.html: no.png does not exist",
    ]
