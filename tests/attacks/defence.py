"""One defence: a place in the code, what takes it out, and the tests that must notice.

``make attacks`` takes each out of a copy, one at a time, and runs its tests (``__main__.py``).
A text that is not in its file any more is an error: a defence that moved has to be found again.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Place(NamedTuple):
    """Where a defence stands.

    Attributes:
        file: below the project.
        text: what stands there, exactly once.
        out: what stands there when it is taken out.
    """

    file: str
    text: str
    out: str


class Defence(NamedTuple):
    """One defence.

    Attributes:
        name: what it keeps out.
        places: where it stands; two, where a second line stands behind the first.
        tests: what must fail then, as pytest names it; with a parameter where one is enough.
    """

    name: str
    places: tuple[Place, ...]
    tests: tuple[str, ...]


SERVER: Final = "server/cm_server/"
LIBRARY: Final = "cloudmanager/"
BOARD: Final = "mpy_client/cm/"
ROUTES: Final = "cm_server/test_matrix.py::test_every_route_by_every_credential"
VERBS: Final = "cm_server/test_matrix.py::test_every_verb_by_every_role_leaves_exactly_one_row"


def defence(
    name: str, file: str, text: str, out: str, *tests: str, behind: Place | None = None
) -> Defence:
    """Return a row; ``tests`` are below tests/."""
    places = (Place(file, text, out), *([behind] if behind else []))
    return Defence(name, places, tuple(f"tests/{test}" for test in tests))
