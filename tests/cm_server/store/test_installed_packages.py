"""The store's table of installed packages."""

from __future__ import annotations

import time
from typing import Any

from cm_server.store.rows import new_board_row
from cm_server.store.store import Store

A = "a" * 64
MANIFEST: dict[str, dict[str, Any]] = {
    "logging": {
        "version": "0.6.1",
        "source": "an index",
        "needs": ["os"],
        "files": {"/lib/logging.mpy": A},
        "wanted": "logging",
        "how": {"target_dir": "/lib"},
    },
    "mine": {"version": "1", "source": "", "needs": [], "files": {}, "local": True},
}


def test_manifest_is_stored_and_replaced():
    store = Store(None)
    before = time.time()
    store.installed_packages.store_manifest("b1", MANIFEST)
    assert store.installed_packages.packages_of("b1") == MANIFEST
    at = store.installed_packages.of_boards(["b1"])["b1"].confirmed
    assert at is not None
    assert before <= at <= time.time()
    store.installed_packages.store_manifest("b1", {"mine": MANIFEST["mine"]})
    assert store.installed_packages.packages_of("b1") == {"mine": MANIFEST["mine"]}
    store.installed_packages.store_manifest("b1", {})
    assert (
        store.installed_packages.packages_of("b1"),
        store.installed_packages.of_boards(["b1"])["b1"].confirmed,
    ) == ({}, None)
    store.close()


def test_deleting_a_board_deletes_its_manifest():
    store = Store(None)
    store.enrol_boards(
        [new_board_row("b1", "lab-1", b"k" * 32), new_board_row("b2", "lab-2", b"k" * 32)]
    )
    for board in ("b1", "b2"):
        store.installed_packages.store_manifest(board, MANIFEST)
    store.delete_boards(["b1"])
    assert (
        store.installed_packages.packages_of("b1"),
        store.installed_packages.packages_of("b2"),
    ) == ({}, MANIFEST)
    store.close()


def test_manifest_survives_a_restart(tmp_path):
    store = Store(tmp_path / "server.db")
    store.installed_packages.store_manifest("b1", MANIFEST)
    store.close()
    store = Store(tmp_path / "server.db")
    assert store.installed_packages.packages_of("b1") == MANIFEST
    store.close()
