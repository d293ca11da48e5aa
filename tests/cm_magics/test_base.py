"""The parsers of the magics whose lines consist of a target and words."""

from __future__ import annotations

from pathlib import Path

import pytest

import cm_magics
from cm_magics.base import TargetMagics, make_parser
from cm_magics.magic_line import option_names

MAGICS_MD = Path(__file__).parents[2] / "docs/magics.md"


def names(kind: type[TargetMagics]) -> set[str]:
    """Return the names of a class's magics, with their % or %%."""
    signs = {"line": "%", "cell": "%%"}
    return {signs[way] + name for way, names in kind.magics.items() for name in names}


def test_help_keeps_percent_signs_as_typed():
    made = make_parser("board_x", "Do it: %board_x lab-* 5 %")
    assert "Do it: %board_x lab-* 5 %" in made.format_help()


def test_every_class_of_target_magics_is_listed():
    assert set(cm_magics.TARGET_MAGICS) == set(TargetMagics.__subclasses__())


@pytest.mark.parametrize("kind", cm_magics.TARGET_MAGICS)
def test_every_target_magic_has_a_parser(kind: type[TargetMagics]):
    assert set(kind.parsers) == names(kind)


@pytest.mark.parametrize("kind", cm_magics.TARGET_MAGICS)
def test_every_target_magic_and_its_options_are_in_the_docs(kind: type[TargetMagics]):
    text = MAGICS_MD.read_text(encoding="utf-8")
    rows = {line.split("`")[1].split()[0] for line in text.splitlines() if line.startswith("| `%")}
    assert names(kind) - rows == set()
    for parser in kind.parsers.values():
        assert [name for name in option_names(parser) if f"`{name}" not in text] == []
