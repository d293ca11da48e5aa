"""`python -m benchmarks [NAME…]`: run benchmarks and print their table.

Every module of `benchmarks/rows` is a benchmark; its `rows()` returns the rows. Those that take
many minutes run only if they are named. Exit status 1 if a budget is exceeded.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys

from benchmarks import rows as benches
from benchmarks.report import Row, format_table

_ONLY_IF_NAMED = frozenset(("large",))


def main(chosen_names: list[str]) -> int:
    """Run the named benchmarks, or all; return the exit status."""
    names = [module.name for module in pkgutil.iter_modules(benches.__path__)]
    if unknown := set(chosen_names) - set(names):
        print(f"unknown benchmark: {', '.join(sorted(unknown))}; choose from {', '.join(names)}")
        return 2
    measured: list[Row] = []
    for name in names:
        if name in chosen_names or not (chosen_names or name in _ONLY_IF_NAMED):
            measured += _measure_rows(name)
    print(format_table(measured))
    return 1 if any(row.ok is False for row in measured) else 0


def _measure_rows(name: str) -> list[Row]:
    print(f"measuring {name} …", file=sys.stderr, flush=True)
    return list(importlib.import_module(f"benchmarks.rows.{name}").rows())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
