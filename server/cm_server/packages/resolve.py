"""Resolve requirements to one version of each package; no sockets, no clock.

The resolver works on releases that were loaded before. If it needs one that was not, it raises
`NotKnownYet`; the caller loads it and calls the resolver again. So it is pure and deterministic,
and releases can be loaded concurrently.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import resolvelib

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import Limits

from .release import Release
from .requirement import Requirement

_MAX_CAUSES = 6  # requirements that the explanation of a conflict lists


@dataclass
class KnownReleases:
    """Versions and releases that were loaded so far.

    Attributes:
        versions: requirement -> the versions that it allows, in order of preference.
        releases: package key and version -> release.
    """

    versions: dict[Requirement, list[str]] = field(default_factory=dict)
    releases: dict[tuple[str, str], Release] = field(default_factory=dict)


@dataclass(frozen=True)
class NotKnownYet(Exception):
    """The resolver needs something that was not loaded.

    Attributes:
        requirement: the requirement whose versions are needed.
        version: if not None, the release of this version is needed instead.
    """

    requirement: Requirement
    version: str | None = None


@dataclass(frozen=True)
class _Candidate:
    requirement: Requirement
    version: str


def find_missing(
    wanted: Iterable[Requirement], known: KnownReleases, max_packages: int
) -> list[NotKnownYet]:
    """Return what must be loaded if the preferred version of each package is installed.

    It can be loaded concurrently.

    Raises:
        PackageError: a plan cannot have so many packages.
    """
    missing: dict[NotKnownYet, None] = {}
    seen: set[Requirement] = set()
    todo = list(wanted)
    while todo:
        requirement = todo.pop()
        if requirement in seen:
            continue
        seen.add(requirement)
        _check_requirement_count(len(seen), max_packages)
        if requirement not in known.versions:
            missing[NotKnownYet(requirement)] = None
            continue
        version = known.versions[requirement][0]
        release = known.releases.get((requirement.key, version))
        if release is None:
            missing[NotKnownYet(requirement, version)] = None
        else:
            todo.extend(release.dependencies)
    return list(missing)


def _check_requirement_count(count: int, max_packages: int) -> None:
    """Raise PackageError if there are too many requirements for a plan of the permitted size.

    Several requirements may refer to the same package, hence the factor.
    """
    if count > max_packages * 4:
        raise _too_many_packages(max_packages)


def resolve(wanted: Sequence[Requirement], known: KnownReleases, limits: Limits) -> list[Release]:
    """Return the packages to install, in the order of their keys.

    Raises:
        NotKnownYet: something must be loaded first.
        PackageError: the requirements conflict, or need too many packages or steps.
    """
    resolver: resolvelib.Resolver[Requirement, _Candidate, str] = resolvelib.Resolver(
        _Provider(known), resolvelib.BaseReporter()
    )
    try:
        result = resolver.resolve(wanted, max_rounds=limits.resolve_rounds)
    except resolvelib.ResolutionImpossible as error:
        raise PackageError(_explain_conflict(error.causes)) from None
    except resolvelib.ResolutionTooDeep:
        raise PackageError(
            f"no compatible versions were found in {limits.resolve_rounds} steps; "
            "request particular versions to reduce the choice"
        ) from None
    chosen = [
        known.releases[key, candidate.version] for key, candidate in sorted(result.mapping.items())
    ]
    if len(chosen) > limits.packages:
        raise _too_many_packages(limits.packages)
    return chosen


class _Provider(resolvelib.AbstractProvider[Requirement, _Candidate, str]):
    """What resolvelib needs to know about requirements and versions."""

    def __init__(self, known: KnownReleases) -> None:
        self._known = known

    def identify(self, requirement_or_candidate: Requirement | _Candidate) -> str:
        if isinstance(requirement_or_candidate, _Candidate):
            return requirement_or_candidate.requirement.key
        return requirement_or_candidate.key

    def get_preference(
        self,
        identifier: str,
        resolutions: Mapping[str, _Candidate],
        candidates: Mapping[str, Iterator[_Candidate]],
        information: Mapping[str, Iterator[Any]],
        backtrack_causes: Sequence[Any],
    ) -> tuple[bool, str]:
        """Order packages: those with a requested version first, then by name; deterministic."""
        has_version = any(info.requirement.version for info in information[identifier])
        return (not has_version, identifier)

    def find_matches(
        self,
        identifier: str,
        requirements: Mapping[str, Iterator[Requirement]],
        incompatibilities: Mapping[str, Iterator[_Candidate]],
    ) -> list[_Candidate]:
        """Return the candidates that all requirements for a package allow.

        Requirements without a version allow every version, so the others decide if there are any.
        """
        ordered = sorted(set(requirements[identifier]))
        deciding = [each for each in ordered if each.version] or ordered[:1]
        excluded = {candidate.version for candidate in incompatibilities[identifier]}
        preferred, *others = [self._versions(requirement) for requirement in deciding]
        return [
            _Candidate(deciding[0], version)
            for version in preferred
            if version not in excluded and all(version in versions for versions in others)
        ]

    def is_satisfied_by(self, requirement: Requirement, candidate: _Candidate) -> bool:
        return not requirement.version or candidate.version in self._versions(requirement)

    def get_dependencies(self, candidate: _Candidate) -> tuple[Requirement, ...]:
        release = self._known.releases.get((candidate.requirement.key, candidate.version))
        if release is None:
            raise NotKnownYet(candidate.requirement, candidate.version)
        return release.dependencies

    def _versions(self, requirement: Requirement) -> list[str]:
        if requirement not in self._known.versions:
            raise NotKnownYet(requirement)
        return self._known.versions[requirement]


def _explain_conflict(causes: Iterable[Any]) -> str:
    """Return a sentence that lists the conflicting requirements and where they come from."""
    reasons: list[str] = []
    for cause in sorted(causes, key=_cause_key):
        parent = cause.parent
        origin = "you request" if parent is None else f"{_candidate_name(parent)} needs"
        reason = f"{origin} {cause.requirement}"
        if reason not in reasons:
            reasons.append(reason)
    omitted = len(reasons) - _MAX_CAUSES
    more = f", and {omitted} more" if omitted > 0 else ""
    key = next((cause.requirement.key for cause in causes), "")
    return f"no version of {key} fulfils all requirements: {', '.join(reasons[:_MAX_CAUSES])}{more}"


def _cause_key(cause: Any) -> tuple[str, str]:
    return (_candidate_name(cause.parent) if cause.parent else "", str(cause.requirement))


def _candidate_name(candidate: _Candidate) -> str:
    version = candidate.version[:12]
    key = candidate.requirement.key
    mark = "==" if candidate.requirement.source == "pypi" else "@"
    return f"{key}{mark}{version}" if version else key


def _too_many_packages(max_packages: int) -> PackageError:
    return PackageError(f"the install needs more than {max_packages} packages")
