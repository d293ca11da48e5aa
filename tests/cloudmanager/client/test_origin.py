"""From which notebook and cell a job comes."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from cloudmanager.client.cells import prepare_cell
from cloudmanager.client.jobs import JobGroup
from cloudmanager.client.origin import find_origin


def in_kernel(
    monkeypatch: pytest.MonkeyPatch, metadata: Any, kernel: Any = True, **names: Any
) -> None:
    """Let this process be a kernel that executes a cell with this metadata."""
    if kernel is True:
        parent = {"header": {}, "metadata": metadata}
        kernel = SimpleNamespace(get_parent=lambda channel: parent)
    history = SimpleNamespace(input_hist_raw=["", *"1234567"])
    shell = SimpleNamespace(kernel=kernel, history_manager=history, user_ns=names)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))


def test_cell_of_a_notebook_is_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "/home/ann/lab.ipynb")
    in_kernel(monkeypatch, {"cellId": "a1b2"})
    assert find_origin() == {"number": 7, "notebook": "/home/ann/lab.ipynb", "cell": "a1b2"}
    head = JobGroup(prepare_cell("1 + 1")).submit_head()
    assert head["notebook"] == "/home/ann/lab.ipynb"
    assert (head["own"], head["title"]) == ((8, 13), "1 + 1")  # of b"__cm__((1 + 1))"


def test_notebook_of_vs_code_is_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    in_kernel(monkeypatch, {}, __vsc_ipynb_file__="C:\\lab.ipynb")
    assert find_origin() == {"number": 7, "notebook": "C:\\lab.ipynb"}


@pytest.mark.parametrize("metadata", [None, {"cellId": 5}, {"cellId": ""}])
def test_front_end_that_says_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch, metadata):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    in_kernel(monkeypatch, metadata)
    assert find_origin() == {"number": 7}


def test_other_kernels_and_terminals_are_no_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "lab.ipynb")
    in_kernel(monkeypatch, {}, kernel=SimpleNamespace())
    assert find_origin() == {"number": 7, "notebook": "lab.ipynb"}
    in_kernel(monkeypatch, {}, kernel=None)
    assert find_origin() == {}
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert find_origin() == {}
    monkeypatch.delitem(sys.modules, "IPython")
    assert find_origin() == {}
