"""The resolver: from wishes to one version of each package; no sockets, no clock.

It works on what is known. Where it needs to know more it says so (`Unknown`); whoever asks
finds that out and calls it again, as often as it takes. So it is pure and deterministic, and
what it needs can be fetched side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import resolvelib

from cloudmanager.protocol.errors import PackageError
from cm_server import limits

from .release import Release
from .requirement import Requirement

_MAX_CAUSES = 6  # wishes that an explanation names


@dataclass
class KnownReleases:
    """What is known so far.

    Attributes:
        versions: those that a wish allows, the best first.
        releases: by key and version.
    """

    versions: dict[Requirement, list[str]] = field(default_factory=dict)
    releases: dict[tuple[str, str], Release] = field(default_factory=dict)


@dataclass(frozen=True)
class NotKnownYet(Exception):
    """Something has to be found out first.

    Attributes:
        requirement: its versions are not known; or
        version: that one of its versions is not.
    """

    requirement: Requirement
    version: str | None = None


@dataclass(frozen=True)
class _Candidate:
    requirement: Requirement
    version: str


def find_missing(wanted: Iterable[Requirement], known: KnownReleases) -> list[NotKnownYet]:
    """Return what has to be found out if nothing conflicts: to be asked side by side.

    Raises:
        PackageError: there are more packages than a plan may have.
    """
    missing: dict[NotKnownYet, None] = {}
    seen: set[Requirement] = set()
    todo = list(wanted)
    while todo:
        wish = todo.pop()
        if wish in seen:
            continue
        seen.add(wish)
        _check_requirement_count(len(seen))
        if wish not in known.versions:
            missing[NotKnownYet(wish)] = None
            continue
        version = known.versions[wish][0]
        release = known.releases.get((wish.key, version))
        if release is None:
            missing[NotKnownYet(wish, version)] = None
        else:
            todo.extend(release.dependencies)
    return list(missing)


def _check_requirement_count(count: int) -> None:
    """Raise PackageError if so many requirements cannot belong to a plan that is small enough.

    Several requirements may ask for the same package: hence four times the number of packages.
    """
    if count > limits.PACKAGES * 4:
        raise _too_many_packages()


def resolve(wanted: Sequence[Requirement], known: KnownReleases) -> list[Release]:
    """Return the packages to install, in the order of their keys.

    Raises:
        Unknown: something has to be found out first.
        PackageError: the wishes contradict each other, or are too many.
    """
    resolver: resolvelib.Resolver[Requirement, _Candidate, str] = resolvelib.Resolver(
        _Provider(known), resolvelib.BaseReporter()
    )
    try:
        result = resolver.resolve(wanted, max_rounds=limits.RESOLVE_ROUNDS)
    except resolvelib.ResolutionImpossible as error:
        raise PackageError(_explain_conflict(error.causes)) from None
    except resolvelib.ResolutionTooDeep:
        raise PackageError(
            f"no set of versions that fits was found in {limits.RESOLVE_ROUNDS} steps; "
            "name versions to make the choice smaller"
        ) from None
    chosen = [known.releases[key, one.version] for key, one in sorted(result.mapping.items())]
    if len(chosen) > limits.PACKAGES:
        raise _too_many_packages()
    return chosen


class _Provider(resolvelib.AbstractProvider[Requirement, _Candidate, str]):
    def __init__(self, known: KnownReleases) -> None:
        self._known = known

    def identify(self, requirement_or_candidate: Requirement | _Candidate) -> str:
        one = requirement_or_candidate
        return one.requirement.key if isinstance(one, _Candidate) else one.key

    def get_preference(
        self,
        identifier: str,
        resolutions: Mapping[str, _Candidate],
        candidates: Mapping[str, Iterator[_Candidate]],
        information: Mapping[str, Iterator[Any]],
        backtrack_causes: Sequence[Any],
    ) -> tuple[bool, str]:
        """Take what is named exactly first, then by name: the same order every time."""
        return (not any(info.requirement.version for info in information[identifier]), identifier)

    def find_matches(
        self,
        identifier: str,
        requirements: Mapping[str, Iterator[Requirement]],
        incompatibilities: Mapping[str, Iterator[_Candidate]],
    ) -> list[_Candidate]:
        wishes = sorted(set(requirements[identifier]))
        strict = [wish for wish in wishes if wish.version] or wishes[:1]
        bad = {one.version for one in incompatibilities[identifier]}
        allowed = [self._versions(wish) for wish in strict]
        return [
            _Candidate(strict[0], version)
            for version in allowed[0]
            if version not in bad and all(version in others for others in allowed[1:])
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
    """Say in one sentence who wants what."""
    told: list[str] = []
    for cause in sorted(causes, key=_cause_key):
        parent = cause.parent
        who = "you want" if parent is None else f"{_candidate_name(parent)} needs"
        what = f"{who} {cause.requirement}"
        if what not in told:
            told.append(what)
    more = f", and {len(told) - _MAX_CAUSES} more" if len(told) > _MAX_CAUSES else ""
    key = next((cause.requirement.key for cause in causes), "")
    return f"no version of {key} fits: {', '.join(told[:_MAX_CAUSES])}{more}"


def _cause_key(cause: Any) -> tuple[str, str]:
    return (_candidate_name(cause.parent) if cause.parent else "", str(cause.requirement))


def _candidate_name(candidate: _Candidate) -> str:
    version = candidate.version[:12]
    key = candidate.requirement.key
    mark = "==" if candidate.requirement.source == "pypi" else "@"
    return f"{key}{mark}{version}" if version else key


def _too_many_packages() -> PackageError:
    return PackageError(f"this needs more than {limits.PACKAGES} packages")
