"""The parsers of the magics whose lines consist of a target and words."""

from __future__ import annotations

import cm_magics
from cm_magics.base import make_parser


def test_help_keeps_percent_signs_as_typed():
    made = make_parser("board_x", "Do it: %board_x lab-* 5 %")
    assert "Do it: %board_x lab-* 5 %" in made.format_help()


def test_every_target_magic_has_a_parser():
    for kind in (cm_magics.FileMagics, cm_magics.PackageMagics):
        signs = {"line": "%", "cell": "%%"}
        magics = {signs[way] + name for way, names in kind.magics.items() for name in names}
        assert set(kind.parsers) == magics
