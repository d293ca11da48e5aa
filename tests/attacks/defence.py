"""One defence: where it is in the code, how it is switched off, and the tests that must notice.

``make attacks`` switches each off in a copy of the code, one at a time, and runs its tests
(``__main__.py``). A defence has a *seam*: a function, a method, a constant or a flag of a class
that holds the defence and nothing else, so that a row needs names only, and no source text:

    defence(
        "each challenge is fresh",
        "server/cm_server/auth/credentials.py",
        "new_nonce = lambda: bytes(16)",
        "cm_server/net/test_board_socket.py::test_recorded_proof_is_refused",
    )

The override is appended to the file, so it replaces what the file defines. ``test_table.py``
checks that the names exist.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Final, NamedTuple


class Override(NamedTuple):
    """Code that switches a defence off.

    Attributes:
        file: below the project.
        code: statements that assign to names of the file, ``Class.method`` or ``function``.
    """

    file: str
    code: str

    def names(self) -> Iterator[str]:
        """Yield the names that the code assigns or defines, such as ``Class.method``."""
        for node in ast.parse(self.code).body:
            if isinstance(node, ast.Assign):
                yield from map(ast.unparse, node.targets)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield node.name


class Defence(NamedTuple):
    """One defence.

    Attributes:
        name: what it prevents.
        places: where it is; two, if a second line of defence is behind the first.
        tests: what must fail without it, as pytest names it; with a parameter if one is enough.
    """

    name: str
    places: tuple[Override, ...]
    tests: tuple[str, ...]


SERVER: Final = "server/cm_server/"
LIBRARY: Final = "cloudmanager/"
BOARD: Final = "mpy_client/cm/"
ROUTES: Final = "cm_server/test_matrix.py::test_every_route_with_every_credential"
VERBS: Final = "cm_server/test_matrix.py::test_every_verb_with_every_role_writes_one_audit_row"


def defence(
    name: str, file: str, override: str, *tests: str, behind: Override | None = None
) -> Defence:
    """Return a row; ``tests`` are below tests/, ``behind`` is a second line of defence."""
    places: list[Override] = [Override(file, override), *([behind] if behind else [])]
    return Defence(name, tuple(places), tuple(f"tests/{test}" for test in tests))
