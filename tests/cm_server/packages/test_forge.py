"""Packages in repositories (attack group 32)."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.http_fetcher import SourceNotFound
from cm_server.packages.lock import dump

from .package_server import COMMITS
from .test_index import planned_sources


def document(**urls: str) -> dict[str, object]:
    return {
        "urls": [[name.replace("_", "."), where] for name, where in urls.items()],
        "version": "1",
    }


async def test_package_is_read_at_the_commit_of_its_ref(package_server, planner):
    package_server.refs("o/r", HEAD="a", heads_main="a", tags_v1="b")
    package_server.commit(
        "o/r", "a", {"package.json": document(m_py="src/m.py"), "src/m.py": "A = 1\n"}
    )
    package_server.commit("o/r", "b", {"package.json": document(m_py="m.py"), "m.py": "B = 1\n"})
    assert await planned_sources(planner, "github:o/r") == {"/lib/m.py": b"A = 1\n"}
    assert await planned_sources(planner, "gitlab:o/r@v1") == {"/lib/m.py": b"B = 1\n"}
    assert await planned_sources(planner, f"codeberg:o/r@{COMMITS['a']}") == {
        "/lib/m.py": b"A = 1\n"
    }


async def test_path_may_be_of_a_folder_a_file_or_a_document(package_server, planner):
    package_server.refs("o/r", HEAD="a")
    files = {
        "p/package.json": document(m_py="m.py"),
        "p/m.py": "M = 1\n",
        "x.json": document(n_py="p/m.py"),
    }
    package_server.commit("o/r", "a", files)
    assert list(await planned_sources(planner, "github:o/r/p")) == ["/lib/m.py"]
    assert list(await planned_sources(planner, "github:o/r/p/m.py")) == ["/lib/m.py"]
    assert list(await planned_sources(planner, "github:o/r/x.json")) == ["/lib/n.py"]


async def test_lock_contains_the_commit(package_server, planner):
    package_server.refs("o/r", HEAD="a", tags_v1="b")
    package_server.commit("o/r", "b", {"package.json": document(m_py="m.py"), "m.py": "B = 1\n"})
    plan = await planner.make_plan(["github:o/r@v1"])
    assert plan.packages[0].version == COMMITS["b"]
    assert plan.packages[0].ref == "refs/tags/v1"
    assert COMMITS["b"] in dump(plan.wanted, plan.packages)


async def test_ref_does_not_apply_to_files_of_another_repository(package_server, planner):
    package_server.refs("o/r", HEAD="a", heads_dev="b")
    package_server.refs("other/lib", HEAD="c")
    package_server.commit(
        "o/r", "b", {"package.json": document(m_py="github:other/lib/m.py", n_py="github:o/r/n.py")}
    )
    package_server.commit("o/r", "b", {"n.py": "same repository, same ref\n"})
    package_server.commit("other/lib", "c", {"m.py": "its own head\n"})
    assert await planned_sources(planner, "github:o/r@dev") == {
        "/lib/m.py": b"its own head\n",
        "/lib/n.py": b"same repository, same ref\n",
    }


async def test_ref_does_not_apply_to_dependencies_in_another_repository(package_server, planner):
    package_server.refs("o/r", HEAD="a", heads_dev="b")
    package_server.refs("other/lib", HEAD="c")
    deps = {"urls": [], "deps": [["github:other/lib", ""], ["github:o/r/part", ""]]}
    package_server.commit(
        "o/r", "b", {"package.json": deps, "part/package.json": document(p_py="part.py")}
    )
    package_server.commit("o/r", "b", {"part/part.py": "at dev\n"})
    package_server.commit(
        "other/lib", "c", {"package.json": document(m_py="m.py"), "m.py": "head\n"}
    )
    found = await planned_sources(planner, "github:o/r@dev")
    assert found == {"/lib/m.py": b"head\n", "/lib/p.py": b"at dev\n"}


async def test_refs_are_fetched_once_for_a_plan(package_server, planner):
    package_server.refs("o/r", HEAD="a")
    files = {f"{n}/package.json": document(**{f"m{n}_py": "m.py"}) for n in range(5)}
    package_server.commit("o/r", "a", {**files, **{f"{n}/m.py": f"{n}\n" for n in range(5)}})
    await planner.make_plan([f"github:o/r/{n}" for n in range(5)])
    assert len([path for path in package_server.requested_paths if "info/refs" in path]) == 1


@pytest.mark.parametrize("ref", ["nope", "abc1234"])
async def test_unknown_ref_is_an_error(package_server, planner, ref):
    package_server.refs("o/r", HEAD="a")
    with pytest.raises(SourceNotFound, match="no branch and no tag"):
        await planner.make_plan([f"github:o/r@{ref}"])


async def test_unknown_repository_or_missing_document_is_an_error(package_server, planner):
    with pytest.raises(SourceNotFound, match="no repository github:o/none"):
        await planner.make_plan(["github:o/none"])
    package_server.refs("o/r", HEAD="a")
    with pytest.raises(SourceNotFound, match=r"has no p/package.json at commit"):
        await planner.make_plan(["github:o/r/p"])


async def test_document_names_files_and_packages_relative_to_itself(package_server, planner):
    package_server.refs("o/r", HEAD="a")
    urls = [["a.py", "./a.py"], ["b.py", "../src/b.py", "a third item"]]
    files = {
        "pkg/other.json": {"urls": urls, "deps": [["../lib/package.json", ""]]},
        "pkg/a.py": "A = 1\n",
        "src/b.py": "B = 1\n",
        "lib/package.json": {"urls": [["c.py", "c.py"]]},
        "lib/c.py": "C = 1\n",
    }
    package_server.commit("o/r", "a", files)
    assert set(await planned_sources(planner, "github:o/r/pkg/other.json")) == {
        "/lib/a.py",
        "/lib/b.py",
        "/lib/c.py",
    }


@pytest.mark.parametrize(
    "where",
    [
        "../../../other/repo/HEAD/x.py",
        "a/../../x.py",
        "github:o/r/../../x",
        "github:o/r",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x.py",
        "http://169.254.169.254/x.py",
        "//a.example/x.py",
        "",
    ],
)
async def test_file_outside_the_repository_is_refused(package_server, planner, where):
    package_server.refs("o/r", HEAD="a")
    package_server.commit("o/r", "a", {"package.json": document(m_py=where)})
    with pytest.raises(PackageError):
        await planner.make_plan(["github:o/r"])
    assert not [path for path in package_server.requested_paths if "other/repo" in path]


async def test_hashes_in_a_repository_are_refused(package_server, planner):
    package_server.refs("o/r", HEAD="a")
    package_server.commit("o/r", "a", {"package.json": {"hashes": [["a.py", "01234567"]]}})
    with pytest.raises(PackageError, match="only an index serves files by hash"):
        await planner.make_plan(["github:o/r"])


async def test_file_in_git_lfs_is_refused(package_server, planner):
    package_server.refs("o/r", HEAD="a")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    package_server.commit("o/r", "a", {"m.py": pointer})
    with pytest.raises(PackageError, match="Git LFS"):
        await planner.make_plan(["github:o/r/m.py"])
