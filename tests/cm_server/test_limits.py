"""docs/security.md lists each limit with its value, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cm_server import limits

ROOT = Path(__file__).parents[2]
NAMES = [name for name in vars(limits) if name.isupper() and name not in ("KIB", "MIB")]


def shown(name: str) -> str:
    """Return a limit's value as the documentation writes it."""
    value = getattr(limits, name)
    if name.endswith("_BYTES"):
        mib = value % limits.MIB == 0
        return f"{value // limits.MIB} MiB" if mib else f"{value // limits.KIB} KiB"
    if name.endswith("_SECONDS"):
        return f"{value / 86400:,.0f} days" if value >= 86400 else f"{value:g} s"
    return f"{value:,}"


def documented() -> dict[str, str]:
    text = (ROOT / "docs/security.md").read_text()
    return dict(re.findall(r"^\| `([A-Z_]+)` \| ([^|]+) \| [^|]+ \| [^|]+ \|$", text, flags=re.M))


@pytest.mark.parametrize("name", NAMES)
def test_limit_is_documented_with_its_value(name):
    assert documented().get(name) == shown(name)


def test_every_documented_limit_exists():
    assert set(documented()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_limit_is_used(name):
    sources = (ROOT / "server/cm_server").rglob("*.py")
    assert any(f"limits.{name}" in path.read_text() for path in sources)
