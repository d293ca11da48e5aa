"""Writes the parts of reference pages that the code declares: verbs, magics, options.

A page has a line ``<!-- generated: NAME -->``; `PARTS` has a function for each NAME, which returns
Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

_MARKER: Final = re.compile(r"^<!-- generated: ([\w-]+) -->$", re.M)
_NO_OPTIONS: Final = ("help", "json", "version")


def fill_in(app: object, docname: str, source: list[str]) -> None:
    """Replace the markers in a page's source; Sphinx calls this for each page."""
    source[0] = _MARKER.sub(lambda found: PARTS[found[1]](), source[0])


def _cell(text: str) -> str:
    """Return a text as the content of a table's cell."""
    return _escape(text).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _escape(text: str) -> str:
    """Return a text in which asterisks outside of code, as in ``lab-*``, are no emphasis."""
    parts = text.split("`")
    return "`".join(
        part.replace("*", "\\*") if n % 2 == 0 else part for n, part in enumerate(parts)
    )


def _prose(text: str) -> str:
    """Return a text as paragraphs; those of which each line is an example become a block."""
    blocks = []
    for block in inspect.cleandoc(text).split("\n\n"):
        lines = block.splitlines()
        if len(lines) > 1 and all(line.startswith("%") for line in lines):
            blocks.append(f"```text\n{block}\n```")
        else:  # in MyST, a line that begins with % is a comment
            blocks.append(re.sub(r"^%", r"\\%", _escape(block), flags=re.M))
    return "\n\n".join(blocks)


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _table(head: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    lines += [f"| {_code(name)} | {_cell(text)} |" for name, text in rows]
    return "\n".join(lines) if len(lines) > 2 else ""


def _usage(parser: argparse.ArgumentParser) -> str:
    text = parser.format_usage().removeprefix("usage: ").strip()
    return re.sub(r"\n\s+", "\n    ", text)


def _rows(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield the name and the help text of each argument, except those that all verbs have."""
    for action in parser._actions:
        if action.dest in _NO_OPTIONS or action.help == argparse.SUPPRESS:
            continue
        metavar = action.metavar if isinstance(action.metavar, str) else ""
        if action.choices and not metavar:
            metavar = "|".join(map(str, action.choices))
        if not action.option_strings:
            name = metavar or action.dest
        else:
            takes_value = action.nargs != 0
            value = metavar or action.dest.upper()
            name = ", ".join(action.option_strings) + (f" {value}" if takes_value else "")
        text = action.help or ""
        if "%(" in text or "%%" in text:
            text %= {**vars(action), "prog": parser.prog}
        if name != "TARGET" or text:
            yield name, text


def verbs() -> str:
    """Return a section for each verb of ``mbm``."""
    from cloudmanager.cli import command_line

    (choices,) = [
        action.choices
        for action in command_line._make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    parts = []
    for name, parser in sorted(choices.items()):
        parts += [f"## {name}", parser.description or "", f"```text\n{_usage(parser)}\n```"]
        parts.append(_table(("argument", "meaning"), _rows(parser)))
        if parser.epilog and "\n" in parser.epilog:
            parts.append(f"```text\n{parser.epilog}\n```")
        elif parser.epilog:
            parts.append(parser.epilog)
    return "\n\n".join(part for part in parts if part)


def magics() -> str:
    """Return a section for each magic."""
    from cm_magics import TARGET_MAGICS, BoardMagics, magic_options

    parsers: dict[str, argparse.ArgumentParser] = {
        "%%board, %board": magic_options.make_board_parser(),
        "%board_result": magic_options.make_result_parser(),
        "%board_logs": magic_options.make_logs_parser(),
        "%board_plot": magic_options.make_plot_parser(),
    }
    for kind in TARGET_MAGICS:
        parsers |= kind.parsers
    parts = []
    for name, parser in parsers.items():
        parts += [f"## {name}", _prose(parser.description or "")]
        parts.append(_table(("argument", "meaning"), _rows(parser)))
    for name in ("board_use", "boards", "fleet"):  # they have a target, and no options
        parts += [f"## %{name}", _prose(getattr(BoardMagics, name).__doc__)]
    return "\n\n".join(part for part in parts if part)


def server_options() -> str:
    """Return a table of the options of the server."""
    from cloudmanager import server_options

    parser = argparse.ArgumentParser()
    server_options.add_options(parser)
    variables = {
        f"--{field.name.replace('_', '-')}": field.metadata["variable"]
        for field in dataclasses.fields(server_options.ServerOptions)
    }
    rows = []
    for name, text in _rows(parser):
        variable = variables.get(name.partition(" ")[0])
        rows.append((name, f"{text}; environment variable {variable}" if variable else text))
    return _table(("option", "meaning"), rows)


def run_options() -> str:
    """Return a table of the options of a cell: keywords of ``run`` and ``submit``."""
    return _option_table("cloudmanager.protocol.run_options", "RunOptions")


def install_options() -> str:
    """Return a table of the options of an install: keywords of ``install``."""
    return _option_table("cloudmanager.client.install_options", "InstallOptions")


def _option_table(module: str, name: str) -> str:
    import importlib

    from cloudmanager.protocol.option_info import option_infos

    rows = []
    for keyword, info in option_infos(getattr(importlib.import_module(module), name)).items():
        flag = f" (`{info.flag} {info.metavar}`".rstrip("` ") + "`)" if info.flag else ""
        rows.append((keyword, f"{info.text}{flag}"))
    return _table(("keyword", "meaning"), rows)


PARTS: Final[dict[str, Callable[[], str]]] = {
    "verbs": verbs,
    "magics": magics,
    "server-options": server_options,
    "run-options": run_options,
    "install-options": install_options,
}
