"""``python -m cm_kernel install``: makes the kernel known to Jupyter.

A wheel brings the kernelspec by itself; this is for editable installs, other prefixes, and users
of several environments. The installed kernel runs this Python, by its whole path.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Final

KERNEL_NAME: Final = "cm_kernel"


def main(argv: Sequence[str]) -> int:
    """Install the kernelspec and say where it is."""
    asked = _make_parser().parse_args(argv)
    prefix = sys.prefix if asked.sys_prefix else asked.prefix
    place = install(user=asked.user, prefix=prefix, name=asked.name, display=asked.display_name)
    print(f"Installed the kernel in {place}")  # noqa: T201 - a command's own word
    return 0


def install(
    *,
    user: bool = False,
    prefix: str | None = None,
    name: str = KERNEL_NAME,
    display: str | None = None,
) -> str:
    """Install the kernelspec.

    Args:
        user: for this user; else under ``prefix``, or for everybody where there is none.
        prefix: of an environment.
        name: what ``jupyter kernelspec list`` calls it.
        display: what people see; the usual name when not given.

    Returns:
        The folder that it is in now.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    with tempfile.TemporaryDirectory() as folder, as_file(files(__package__)) as package:
        copy = Path(folder) / KERNEL_NAME
        shutil.copytree(package / "kernelspec", copy)
        spec = json.loads((copy / "kernel.json").read_text(encoding="utf-8"))
        spec["argv"][0] = sys.executable
        spec["display_name"] = display or spec["display_name"]
        (copy / "kernel.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")
        manager = KernelSpecManager()
        return str(manager.install_kernel_spec(str(copy), name, user=user, prefix=prefix))


def _make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m cm_kernel install", description=__doc__)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="for this user")
    where.add_argument("--sys-prefix", action="store_true", help="into this environment")
    where.add_argument("--prefix", help="into the environment of this folder")
    parser.add_argument("--name", default=KERNEL_NAME, help="what Jupyter calls it")
    parser.add_argument("--display-name", help="what people see")
    return parser
