"""From which notebook a job comes, and from which cell of it, as far as this process knows."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

_MAX_CHARS: Final = 300  # of a notebook's path, whose end is kept, and of a cell's id


def find_origin() -> dict[str, Any]:
    """Return what a SUBMIT says of where its cell comes from; empty outside of Jupyter kernels.

    Returns:
        ``notebook``: its path, if the Jupyter server or VS Code says it; ``cell``: the id that
        the front end gave the cell whose code calls this, if it says it; ``number``: of the
        cell's execution, as ``In [3]`` shows it.
    """
    # Not imported: programs without notebooks do not need it. This costs them 0.1 us for each cell.
    ipython: Any = sys.modules.get("IPython")
    if ipython is None:
        return {}
    shell = ipython.get_ipython()
    kernel = getattr(shell, "kernel", None)
    if kernel is None:  # a terminal
        return {}
    # Not its execution_count: versions of IPython increase that before or after a cell.
    inputs = getattr(getattr(shell, "history_manager", None), "input_hist_raw", [""])
    found: dict[str, Any] = {"number": len(inputs) - 1}
    # The Jupyter server sets the variable when it starts the kernel; VS Code sets a name instead.
    path = os.environ.get("JPY_SESSION_NAME") or shell.user_ns.get("__vsc_ipynb_file__")
    if isinstance(path, str) and path:
        found["notebook"] = path[-_MAX_CHARS:]
    get_parent = getattr(kernel, "get_parent", None)  # kernels other than ipykernel have none
    metadata = (get_parent("shell") or {}).get("metadata") if get_parent is not None else None
    cell_id = (metadata or {}).get("cellId")  # JupyterLab, Notebook 7 and VS Code send it
    if isinstance(cell_id, str) and cell_id:
        found["cell"] = cell_id[:_MAX_CHARS]
    return found
