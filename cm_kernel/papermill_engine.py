"""Parameters for papermill: ``papermill in.ipynb out.ipynb -p n 5`` with a notebook of this kernel.

papermill has no entry point for translators, but loads all engines when it is imported. So this
engine, which is papermill's own, registers the translator.
"""

from __future__ import annotations

from typing import Any

from papermill.engines import NBClientEngine
from papermill.translators import PythonTranslator, papermill_translators

_NAMES = "cm_kernel", "micropython"  # of the kernel, and of its language


class ParametersTranslator(PythonTranslator):
    """Writes the injected cell, which runs in the notebook's own Python and on the boards."""

    @classmethod
    def codify(cls, parameters: dict[str, Any], comment: str = "Parameters") -> str:
        """Return the injected cell."""
        return f"%%parameters\n{super().codify(parameters, comment)}"


class KernelEngine(NBClientEngine):
    """papermill's own engine, under the kernel's name."""


for _name in _NAMES:
    papermill_translators.register(_name, ParametersTranslator)
