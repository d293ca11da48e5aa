"""Copies of the tutorials, so that running them changes no file of a checkout."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any


def copy_tutorials(source: Path, folder: Path) -> list[Path]:
    """Copy notebooks and pictures to a folder; return the user's own versions that were kept.

    A copy whose cells the user has changed is kept under another name: 01_first_cells-1.ipynb.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = []
    for original in sorted([*source.glob("*.ipynb"), *source.glob("*.png")]):
        copy = folder / original.name
        if copy.suffix == ".ipynb" and copy.exists() and _cells(copy) != _cells(original):
            kept.append(copy.rename(_free_path(copy)))
        shutil.copyfile(original, copy)
    return kept


def _cells(path: Path) -> list[tuple[str, str]] | None:
    """Return the type and the source of each cell; None if the file is not a notebook."""
    try:
        cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    except (ValueError, LookupError, TypeError):
        return None


def _free_path(path: Path) -> Path:
    """Return a path in the same folder that does not exist: NAME-1, NAME-2 and so on."""
    candidates = (path.with_stem(f"{path.stem}-{number}") for number in itertools.count(1))
    return next(candidate for candidate in candidates if not candidate.exists())
