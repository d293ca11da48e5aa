"""The wheel and the source archive, built without the network from this repository's files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def tracked() -> list[Path]:
    """The files that are, or would be, in the repository."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def build(folder: Path) -> Path:
    """Build it below an empty folder."""
    return build_wheel(_copy_source(folder / "source"), folder / "wheel")


def build_wheel(source: Path, out: Path) -> Path:
    """Build the wheel of a source tree, or of a source archive, into a folder."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, source)
    (built,) = out.glob("cloudmanager-*.whl")
    return built


def build_sdist(folder: Path) -> Path:
    """Build the source archive below an empty folder."""
    out = folder / "sdist"
    code = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", code, str(out)]
    source = _copy_source(folder / "source")
    subprocess.run(command, cwd=source, check=True, capture_output=True, text=True)
    (built,) = out.glob("cloudmanager-*.tar.gz")
    return built


def _copy_source(source: Path) -> Path:
    for path in tracked():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return source


def pip(*args: str | Path) -> None:
    """Run pip, quietly."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *args]
    subprocess.run(command, check=True, capture_output=True, text=True)
