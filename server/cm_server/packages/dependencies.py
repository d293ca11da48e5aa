"""What a package.json needs, as requirements: each keeps to the source that it names; pure.

A package's own ref or index never reaches beyond its own repository or index.
"""

from __future__ import annotations

from dataclasses import replace

from cloudmanager.protocol.errors import PackageError

from .documents import PackageDocument
from .requirement import COMMIT_PATTERN, FORGE_NAMES, Requirement, parse_requirement


def read_dependencies(
    document: PackageDocument, package: Requirement, commit: str = ""
) -> tuple[Requirement, ...]:
    """Return what a package needs.

    Args:
        document: its package.json.
        package: the package.
        commit: of its repository, for what it needs from there and gives no version of.

    Raises:
        PackageError: a dependency is malformed, or names what no package may.
    """
    return tuple(
        _read_dependency(text, version, package, commit) for text, version in document.deps
    )


def _read_dependency(text: str, version: str, package: Requirement, commit: str) -> Requirement:
    try:
        need = parse_requirement(_with_version(text, version))
    except PackageError as error:
        raise PackageError(f"{package} needs something odd: {error.args[0]}") from error
    if need.source == "index":
        if need.alias:
            raise PackageError(f"{package} needs {need}: no package may choose an index")
        return _keep_index(need, package)
    same = need.source == package.source in FORGE_NAMES and need.repository == package.repository
    if same and not need.version and COMMIT_PATTERN.fullmatch(commit):
        return replace(need, version=commit)
    return need


def _keep_index(need: Requirement, package: Requirement) -> Requirement:
    """Return a dependency, looked up in the index that its package came from."""
    return replace(need, alias=package.alias) if package.source == "index" else need


def _with_version(text: str, version: str) -> str:
    if version in ("", "latest", "*") or text.startswith(("http://", "https://")):
        return text
    if text.startswith("pypi:"):
        return text + (version if version[0] in "=<>!~" else f"=={version}")
    return f"{text}@{version}"
