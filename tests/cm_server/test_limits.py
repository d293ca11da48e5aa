"""docs/security.md lists each limit with its value, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cm_server.limits import KIB, MIB, Limits

GIB = 1024 * MIB

ROOT = Path(__file__).parents[2]
NAMES = list(Limits.__annotations__)


def shown(name: str) -> str:
    """Return a limit's value as the documentation writes it."""
    value = getattr(Limits(), name)
    if name.endswith("_bytes"):
        unit, size = next(
            (u, s) for u, s in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)) if value % s == 0
        )
        return f"{value // size} {unit}"
    if name.endswith("_seconds"):
        days = f"{value / 86400:,.0f} day{'' if value == 86400 else 's'}"
        return days if value >= 86400 else f"{value:g} s"
    return f"{value:,}"


def documented() -> dict[str, str]:
    text = (ROOT / "docs/security.md").read_text()
    return dict(re.findall(r"^\| `([a-z_]+)` \| ([^|]+) \| [^|]+ \| [^|]+ \|$", text, flags=re.M))


@pytest.mark.parametrize("name", NAMES)
def test_limit_is_documented_with_its_value(name):
    assert documented().get(name) == shown(name)


def test_every_documented_limit_exists():
    assert set(documented()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_limit_is_used(name):
    sources = (ROOT / "server/cm_server").rglob("*.py")
    used = re.compile(rf"\b_?[Ll]imits\.{name}\b")
    assert any(used.search(path.read_text()) for path in sources)


def test_limits_are_given_by_their_names_and_never_changed():
    limits = Limits(callers=3)
    assert (limits.callers, limits.head_bytes) == (3, Limits.head_bytes)
    assert Limits().callers == Limits.callers != 3
    with pytest.raises(TypeError, match="there is no limit 'caller'"):
        Limits(**{"caller": 3})
    with pytest.raises(AttributeError, match="callers cannot be changed"):
        limits.callers = 4  # type: ignore[misc]
    assert limits.callers == 3
