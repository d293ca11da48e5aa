"""``python -m cm_kernel install``: install the kernelspec, so that Jupyter lists the kernel.

A wheel installs the kernelspec by itself; this command is for editable installs, other prefixes,
and users of several environments. The installed kernel uses this Python, by its absolute path.
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
    """Install the kernelspec and print its folder; return the exit status."""
    options = _make_parser().parse_args(argv)
    prefix = sys.prefix if options.sys_prefix else options.prefix
    folder = install(
        user=options.user, prefix=prefix, name=options.name, display=options.display_name
    )
    print(f"Installed the kernel in {folder}")  # noqa: T201 - the output of a command
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
        user: install for this user; else below ``prefix``, or for all users without a prefix.
        prefix: the folder of an environment.
        name: the kernel's name in ``jupyter kernelspec list``.
        display: the name that JupyterLab shows; by default that of kernel.json.

    Returns:
        The folder in which the kernelspec was installed.
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
    where.add_argument("--user", action="store_true", help="install for this user")
    where.add_argument("--sys-prefix", action="store_true", help="install into this environment")
    where.add_argument("--prefix", help="install into the environment in this folder")
    parser.add_argument(
        "--name", default=KERNEL_NAME, help="the kernel's name in `jupyter kernelspec list`"
    )
    parser.add_argument("--display-name", help="the name that JupyterLab shows")
    return parser
