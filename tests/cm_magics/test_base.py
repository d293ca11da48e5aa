"""What magics of words share: their parsers, and errors in their own words."""

from __future__ import annotations

import cm_magics
from cm_magics.base import make_parser


def test_help_says_what_the_magic_does_with_its_signs_as_they_are_typed():
    made = make_parser("board_x", "Do it: %board_x lab-* 5 %")
    assert "Do it: %board_x lab-* 5 %" in made.format_help()


def test_each_magic_of_words_has_a_parser_and_no_other():
    for kind in (cm_magics.FileMagics, cm_magics.PackageMagics):
        signs = {"line": "%", "cell": "%%"}
        magics = {signs[way] + name for way, names in kind.magics.items() for name in names}
        assert set(kind.parsers) == magics
