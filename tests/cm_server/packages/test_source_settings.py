"""The default URLs of forges and of the index."""

from __future__ import annotations

import pytest

from cm_server.packages.source_settings import DEFAULT_FORGES, SourceSettings


@pytest.mark.parametrize("name", DEFAULT_FORGES)
def test_forge_urls_have_placeholders(name):
    forge = DEFAULT_FORGES[name]
    assert forge.refs_url.format(repo="o/r").endswith("/o/r.git/info/refs?service=git-upload-pack")
    raw = forge.raw_url.format(repo="o/r", commit="c0ffee", path="a/b.py")
    assert forge.refs_url.startswith("https://")
    assert raw.startswith("https://")
    assert all(part in raw for part in ("o/r", "c0ffee", "a/b.py"))


def test_default_index_is_micropython_org():
    assert SourceSettings().indexes == {"": "https://micropython.org/pi/v2"}
