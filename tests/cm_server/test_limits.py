"""docs/security.md lists each limit with its value, and no others."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from cm_server.limits import KIB, MIB, Limits

GIB = 1024 * MIB

ROOT = Path(__file__).parents[2]
NAMES = [field.name for field in dataclasses.fields(Limits)]


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
