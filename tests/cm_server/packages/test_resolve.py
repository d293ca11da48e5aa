"""The resolver, with releases that the tests define (attack group 28)."""

from __future__ import annotations

import time

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import Limits
from cm_server.packages.release import Release
from cm_server.packages.requirement import parse_requirement
from cm_server.packages.resolve import KnownReleases, NotKnownYet, find_missing, resolve

LIMITS = Limits()


def known(**releases: dict[str, list[str]]) -> KnownReleases:
    """Return PyPI packages: name -> version, newest first -> dependencies."""
    from packaging.specifiers import SpecifierSet

    known_releases = KnownReleases()
    requirements = set()
    for name, versions in releases.items():
        key = parse_requirement(f"pypi:{name}")
        for version, needs in versions.items():
            wanted = tuple(parse_requirement(f"pypi:{need}") for need in needs)
            requirements |= {key, *wanted}
            known_releases.releases[key.key, version] = Release(key, version, (), wanted)
    for requirement in requirements:
        available = list(releases[requirement.name])
        known_releases.versions[requirement] = list(
            SpecifierSet(requirement.version).filter(available)
        )
    return known_releases


def solve(known_releases: KnownReleases, *wanted: str, limits: Limits = LIMITS) -> dict[str, str]:
    from packaging.specifiers import SpecifierSet

    requirements = [parse_requirement(f"pypi:{text}") for text in wanted]
    for requirement in requirements:
        available = [version for key, version in known_releases.releases if key == requirement.key]
        known_releases.versions[requirement] = list(
            SpecifierSet(requirement.version).filter(available)
        )
    return {
        release.requirement.name: release.version
        for release in resolve(requirements, known_releases, limits)
    }


def test_newest_compatible_versions_are_chosen():
    known_releases = known(a={"2": ["b<2"], "1": []}, b={"2": [], "1": []})
    assert solve(known_releases, "a") == {"a": "2", "b": "1"}


def test_older_version_is_chosen_after_a_conflict():
    known_releases = known(
        a={"2": ["b==2"], "1": ["b==1"]}, b={"2": ["c==1"], "1": []}, c={"2": [], "1": []}
    )
    assert solve(known_releases, "a", "c==2") == {"a": "1", "b": "1", "c": "2"}


def test_cycle_is_resolved():
    known_releases = known(a={"1": ["b"]}, b={"1": ["c"]}, c={"1": ["a"]})
    assert solve(known_releases, "a") == {"a": "1", "b": "1", "c": "1"}


def test_package_that_needs_itself_is_resolved():
    assert solve(known(a={"1": ["a"]}), "a") == {"a": "1"}


def test_conflict_lists_packages_and_requirements():
    known_releases = known(a={"1": ["c==1"]}, b={"1": ["c==2"]}, c={"2": [], "1": []})
    with pytest.raises(PackageError) as raised:
        solve(known_releases, "a", "b")
    assert raised.value.args[0] == (
        "no version of pypi:c fulfils all requirements: "
        "pypi:a==1 needs pypi:c==1, pypi:b==1 needs pypi:c==2"
    )


def test_conflict_names_the_users_request():
    known_releases = known(a={"1": ["c==1"]}, c={"2": [], "1": []})
    with pytest.raises(PackageError, match="you request pypi:c==2, pypi:a==1 needs pypi:c==1"):
        solve(known_releases, "c==2", "a")


def test_order_of_requirements_does_not_matter():
    known_releases = known(
        a={"2": ["c<2"], "1": []}, b={"2": ["c>=1"]}, c={"3": [], "2": [], "1": []}
    )
    assert (
        solve(known_releases, "a", "b")
        == solve(known_releases, "b", "a")
        == {"a": "2", "b": "2", "c": "1"}
    )


def test_missing_releases_are_requested_together():
    known_releases = KnownReleases()
    a, b = parse_requirement("a"), parse_requirement("b@1")
    assert set(find_missing([a, b], known_releases, LIMITS.packages)) == {
        NotKnownYet(a),
        NotKnownYet(b),
    }
    known_releases.versions = {a: ["2"], b: ["1"]}
    assert set(find_missing([a, b], known_releases, LIMITS.packages)) == {
        NotKnownYet(a, "2"),
        NotKnownYet(b, "1"),
    }
    with pytest.raises(NotKnownYet):
        resolve([a, b], known_releases, LIMITS)


def test_requirement_without_version_accepts_a_requested_version():
    known_releases = KnownReleases(
        {parse_requirement("a@1"): ["1"], parse_requirement("a"): ["2"]},
        {("a", "1"): Release(parse_requirement("a"), "1", ())},
    )
    assert [
        str(release)
        for release in resolve(
            [parse_requirement("a"), parse_requirement("a@1")], known_releases, LIMITS
        )
    ] == ["a@1"]


def test_two_versions_of_one_package_conflict():
    known_releases = KnownReleases(
        {parse_requirement("a@1"): ["1"], parse_requirement("a@2"): ["2"]}
    )
    with pytest.raises(PackageError, match="no version of a .*: you request a@1, you request a@2"):
        resolve([parse_requirement("a@1"), parse_requirement("a@2")], known_releases, LIMITS)


def test_hundred_thousand_dependencies_are_refused_quickly():
    known_releases = KnownReleases()
    needs = tuple(parse_requirement(f"d{n}") for n in range(100_000))
    known_releases.versions[parse_requirement("a")] = ["1"]
    known_releases.releases["a", "1"] = Release(parse_requirement("a"), "1", (), needs)
    since = time.monotonic()
    with pytest.raises(PackageError, match="more than 200 packages"):
        find_missing([parse_requirement("a")], known_releases, LIMITS.packages)
    assert time.monotonic() - since < 2


def test_endless_chain_of_dependencies_is_refused():
    known_releases = KnownReleases()
    for n in range(50):
        known_releases.versions[parse_requirement(f"a{n}")] = ["1"]
        known_releases.releases[f"a{n}", "1"] = Release(
            parse_requirement(f"a{n}"), "1", (), (parse_requirement(f"a{n + 1}"),)
        )
    with pytest.raises(PackageError, match="more than 10 packages"):
        find_missing([parse_requirement("a0")], known_releases, 10)


def test_too_many_packages_are_refused():
    known_releases = known(**{f"a{n}": {"1": [f"a{n + 1}"]} for n in range(14)}, a14={"1": []})
    with pytest.raises(PackageError, match="more than 10 packages"):
        solve(known_releases, "a0", limits=Limits(packages=10))


def test_number_of_resolver_steps_is_bounded():
    """Many versions of many packages, of which no combination is compatible."""
    versions = [str(n) for n in range(9, 0, -1)]
    known_releases = known(
        **{f"p{n}": {version: [f"p{n + 1}", "end<0.5"] for version in versions} for n in range(6)},
        p6={version: [] for version in versions},
        end={"1": []},
    )
    since = time.monotonic()
    with pytest.raises(PackageError):
        solve(known_releases, "p0", limits=Limits(resolve_rounds=50))
    assert time.monotonic() - since < 5
