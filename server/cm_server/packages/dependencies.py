"""Convert the dependencies of a package.json to requirements; pure.

A ref applies only within the package's own repository, an alias only within its own index.
"""

from __future__ import annotations

from dataclasses import replace

from cloudmanager.protocol.errors import PackageError
from cloudmanager.protocol.package_references import (
    FORGE_NAMES,
    is_relative_document,
    join_path,
    join_url,
)

from .documents import PackageDocument
from .requirement import COMMIT_PATTERN, Requirement, parse_requirement


def read_dependencies(
    document: PackageDocument, package: Requirement, commit: str = "", base: str = ""
) -> tuple[Requirement, ...]:
    """Return the requirements of a package.

    Args:
        document: the package's package.json.
        package: the package.
        commit: the commit at which the package's repository is read. It applies to dependencies
            from the same repository that have no version.
        base: the folder of the package.json in its repository, or its URL.

    Raises:
        PackageError: a dependency is malformed, or chooses an index.
    """
    return tuple(
        _read_relative(text, package, commit, base)
        if is_relative_document(text) and package.source in (*FORGE_NAMES, "url")
        else _read_dependency(text, version, package, commit)
        for text, version in document.deps
    )


def _read_relative(text: str, package: Requirement, commit: str, base: str) -> Requirement:
    """Return a dependency that is the path of another package.json beside the package's."""
    if package.source == "url":
        return parse_requirement(join_url(base, text, package))
    path = join_path(base, text, package)
    return Requirement(package.source, f"{package.repository}/{path}", commit)


def _read_dependency(text: str, version: str, package: Requirement, commit: str) -> Requirement:
    try:
        need = parse_requirement(_with_version(text, version))
    except PackageError as error:
        raise PackageError(f"{package} has an invalid dependency: {error.args[0]}") from error
    if need.source == "index":
        if need.alias:
            raise PackageError(f"{package} needs {need}: no package may choose an index")
        return _keep_index(need, package)
    is_same_repository = (
        package.source in FORGE_NAMES
        and need.source == package.source
        and need.repository == package.repository
    )
    if is_same_repository and not need.version and COMMIT_PATTERN.fullmatch(commit):
        return replace(need, version=commit)
    return need


def _keep_index(need: Requirement, package: Requirement) -> Requirement:
    """Return a dependency, looked up in the index that its package came from."""
    return replace(need, alias=package.alias) if package.source == "index" else need


def _with_version(text: str, version: str) -> str:
    """Return a dependency's name and version as the text of a requirement."""
    if version in ("", "latest", "*") or text.startswith(("http://", "https://")):
        return text
    if text.startswith("pypi:"):
        return text + (version if version[0] in "=<>!~" else f"=={version}")
    return f"{text}@{version}"
