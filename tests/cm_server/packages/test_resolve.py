"""The resolver alone: what is known is written down here; FIELD 5, group 28."""

from __future__ import annotations

import time

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server import limits
from cm_server.packages.release import Release
from cm_server.packages.requirement import parse_requirement
from cm_server.packages.resolve import KnownReleases, NotKnownYet, find_missing, resolve


def known(**releases: dict[str, list[str]]) -> KnownReleases:
    """Packages of pypi:, by name: their versions, newest first, and what each needs."""
    from packaging.specifiers import SpecifierSet

    found = KnownReleases()
    wishes = set()
    for name, versions in releases.items():
        key = parse_requirement(f"pypi:{name}")
        for version, needs in versions.items():
            wanted = tuple(parse_requirement(f"pypi:{need}") for need in needs)
            wishes |= {key, *wanted}
            found.releases[key.key, version] = Release(key, version, (), wanted)
    found.wishes = wishes  # type: ignore[attr-defined]
    for wish in wishes:
        there = list(releases[wish.name])
        found.versions[wish] = list(SpecifierSet(wish.version).filter(there))
    return found


def solve(about: KnownReleases, *wanted: str) -> dict[str, str]:
    from packaging.specifiers import SpecifierSet

    wishes = [parse_requirement(f"pypi:{text}") for text in wanted]
    for wish in wishes:
        there = [version for key, version in about.releases if key == wish.key]
        about.versions[wish] = list(SpecifierSet(wish.version).filter(there))
    return {release.requirement.name: release.version for release in resolve(wishes, about)}


def test_newest_versions_that_fit_are_chosen():
    about = known(a={"2": ["b<2"], "1": []}, b={"2": [], "1": []})
    assert solve(about, "a") == {"a": "2", "b": "1"}


def test_older_version_is_taken_where_the_newest_leads_nowhere():
    about = known(
        a={"2": ["b==2"], "1": ["b==1"]}, b={"2": ["c==1"], "1": []}, c={"2": [], "1": []}
    )
    assert solve(about, "a", "c==2") == {"a": "1", "b": "1", "c": "2"}


def test_cycle_ends():
    about = known(a={"1": ["b"]}, b={"1": ["c"]}, c={"1": ["a"]})
    assert solve(about, "a") == {"a": "1", "b": "1", "c": "1"}


def test_package_that_needs_itself_ends():
    assert solve(known(a={"1": ["a"]}), "a") == {"a": "1"}


def test_conflict_is_told_in_one_sentence_who_wants_what():
    about = known(a={"1": ["c==1"]}, b={"1": ["c==2"]}, c={"2": [], "1": []})
    with pytest.raises(PackageError) as raised:
        solve(about, "a", "b")
    assert raised.value.args[0] == (
        "no version of pypi:c fits: pypi:a==1 needs pypi:c==1, pypi:b==1 needs pypi:c==2"
    )


def test_wish_of_a_person_is_told_as_his():
    about = known(a={"1": ["c==1"]}, c={"2": [], "1": []})
    with pytest.raises(PackageError, match="you want pypi:c==2, pypi:a==1 needs pypi:c==1"):
        solve(about, "c==2", "a")


def test_order_of_the_wishes_changes_nothing():
    about = known(a={"2": ["c<2"], "1": []}, b={"2": ["c>=1"]}, c={"3": [], "2": [], "1": []})
    assert solve(about, "a", "b") == solve(about, "b", "a") == {"a": "2", "b": "2", "c": "1"}


def test_what_is_not_known_is_asked_for_and_side_by_side():
    about = KnownReleases()
    a, b = parse_requirement("a"), parse_requirement("b@1")
    assert set(find_missing([a, b], about)) == {NotKnownYet(a), NotKnownYet(b)}
    about.versions = {a: ["2"], b: ["1"]}
    assert set(find_missing([a, b], about)) == {NotKnownYet(a, "2"), NotKnownYet(b, "1")}
    with pytest.raises(NotKnownYet):
        resolve([a, b], about)


def test_unversioned_wish_is_content_with_what_another_one_names():
    about = KnownReleases(
        {parse_requirement("a@1"): ["1"], parse_requirement("a"): ["2"]},
        {("a", "1"): Release(parse_requirement("a"), "1", ())},
    )
    assert [
        str(release)
        for release in resolve([parse_requirement("a"), parse_requirement("a@1")], about)
    ] == ["a@1"]


def test_two_versions_of_one_package_conflict():
    about = KnownReleases({parse_requirement("a@1"): ["1"], parse_requirement("a@2"): ["2"]})
    with pytest.raises(PackageError, match="no version of a fits: you want a@1, you want a@2"):
        resolve([parse_requirement("a@1"), parse_requirement("a@2")], about)


def test_hundred_thousand_dependencies_are_refused_quickly():
    about = KnownReleases()
    needs = tuple(parse_requirement(f"d{n}") for n in range(100_000))
    about.versions[parse_requirement("a")] = ["1"]
    about.releases["a", "1"] = Release(parse_requirement("a"), "1", (), needs)
    since = time.monotonic()
    with pytest.raises(PackageError, match="more than 200 packages"):
        find_missing([parse_requirement("a")], about)
    assert time.monotonic() - since < 2


def test_chain_without_an_end_is_refused(monkeypatch):
    monkeypatch.setattr(limits, "PACKAGES", 10)
    about = KnownReleases()
    for n in range(50):
        about.versions[parse_requirement(f"a{n}")] = ["1"]
        about.releases[f"a{n}", "1"] = Release(
            parse_requirement(f"a{n}"), "1", (), (parse_requirement(f"a{n + 1}"),)
        )
    with pytest.raises(PackageError, match="more than 10 packages"):
        find_missing([parse_requirement("a0")], about)


def test_more_packages_than_a_plan_may_have_are_refused(monkeypatch):
    monkeypatch.setattr(limits, "PACKAGES", 10)
    about = known(**{f"a{n}": {"1": [f"a{n + 1}"]} for n in range(14)}, a14={"1": []})
    with pytest.raises(PackageError, match="more than 10 packages"):
        solve(about, "a0")


def test_search_that_leads_nowhere_ends(monkeypatch):
    """Many versions of many packages, none of which fit: the steps are bounded."""
    monkeypatch.setattr(limits, "RESOLVE_ROUNDS", 50)
    versions = [str(n) for n in range(9, 0, -1)]
    about = known(
        **{f"p{n}": {version: [f"p{n + 1}", "end<0.5"] for version in versions} for n in range(6)},
        p6={version: [] for version in versions},
        end={"1": []},
    )
    since = time.monotonic()
    with pytest.raises(PackageError):
        solve(about, "p0")
    assert time.monotonic() - since < 5
