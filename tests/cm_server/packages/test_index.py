"""mip indexes; FIELD 5, groups 27, 30 and 31, and FIELD 6."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.http_fetcher import SourceNotFound, SourceUnreachable

from .shelf import Shelf, digest, reply

MPY = 0x2806


def paths(plan, mpy=MPY):
    return [file.path for file in plan.files[mpy]]


async def sources(packages, *wanted, **how):
    """What a plan installs, uncompiled."""
    plan = await packages.make_plan(list(wanted), mpys=[MPY], source_only=True, **how)
    return {file.path: await packages.read_content(file.sha256) for file in plan.files[MPY]}


async def test_newest_version_is_taken_where_none_is_named(shelf, packages):
    shelf.publish("log", "1.0", {"log.py": "V = 1\n"})
    shelf.publish("log", "2.0", {"log.py": "V = 2\n"})
    assert await sources(packages, "log") == {"/lib/log.py": b"V = 2\n"}
    assert await sources(packages, "log@1.0") == {"/lib/log.py": b"V = 1\n"}


async def test_missing_version_is_told_with_those_that_there_are(shelf, packages):
    shelf.publish("log", "1.0")
    shelf.put(
        "/pi/index.json", {"v": 2, "packages": [{"name": "log", "versions": {"py": ["1.0"]}}]}
    )
    with pytest.raises(SourceNotFound, match=r"log@9 is not in .* at version 9; it has 1.0"):
        await packages.make_plan(["log@9"])


async def test_unknown_name_is_an_error_with_the_nearest_one(shelf, packages):
    shelf.put("/pi/index.json", {"v": 2, "packages": [{"name": "logging", "versions": {}}]})
    with pytest.raises(SourceNotFound, match="loging is not in .*did you mean logging"):
        await packages.make_plan(["loging"])


async def test_document_without_its_version_cannot_be_the_newest(shelf, packages):
    shelf.publish("log", "1.0")
    shelf.put("/pi/package/py/log/latest.json", {"v": 1, "hashes": []})
    with pytest.raises(PackageError, match="does not say which version"):
        await packages.make_plan(["log"])


async def test_document_of_another_version_is_refused(shelf, packages):
    shelf.publish("log", "1.0")
    shelf.put("/pi/package/py/log/2.0.json", {"v": 1, "version": "1.0"})
    with pytest.raises(PackageError, match="gives version 1.0 for 2.0"):
        await packages.make_plan(["log@2.0"])


async def test_content_that_does_not_match_its_short_hash_is_refused(shelf, packages):
    document = shelf.publish("log")
    short = document["hashes"][0][1]
    shelf.put(f"/pi/file/{short[:2]}/{short}", b"something else")
    with pytest.raises(PackageError, match="not what was promised"):
        await packages.make_plan(["log"])


async def test_whole_hash_is_recorded_though_the_index_gives_eight_digits(shelf, packages):
    shelf.publish("log", files={"log.py": "V = 1\n"})
    plan = await packages.make_plan(["log"])
    assert plan.packages[0].parts[0].sha256 == digest(b"V = 1\n")


async def test_content_of_another_source_with_the_same_short_hash_is_not_used(shelf, packages):
    """The cache is no way in: what is there under some hash is not asked for by its beginning."""
    shelf.publish("log", files={"log.py": "V = 1\n"})
    real = digest(b"V = 1\n")
    evil = packages.cache._contents / real[:2] / (real[:8] + "0" * 56)
    evil.parent.mkdir(parents=True)
    evil.write_bytes(b"evil")
    assert await sources(packages, "log") == {"/lib/log.py": b"V = 1\n"}


async def test_file_under_its_hash_is_fetched_once_for_ever(shelf, packages, tmp_path):
    shelf.publish("log")
    await packages.make_plan(["log"])
    again = shelf.packages(tmp_path / "packages")
    shelf.asked.clear()
    await again.make_plan(["log"])
    assert [path for path in shelf.asked if "/file/" in path] == []


async def test_package_that_has_bytecode_only_is_taken_as_that(shelf, packages):
    shelf.publish("fast", files={"fast.mpy": b"M\x06\x00\x1f" + b"x"}, form="6")
    plan = await packages.make_plan(["fast"], mpys=[MPY])
    assert paths(plan) == ["/lib/fast.mpy"]
    with pytest.raises(PackageError, match="bytecode that a board with 5.0 cannot run"):
        await packages.make_plan(["fast"], mpys=[MPY, 5])


async def test_urls_of_a_package_are_beside_its_document(shelf, packages):
    shelf.publish("log", urls=[["extra.py", "extra-1.py"], ["deep/x.py", "/abs.py"]])
    shelf.put("/pi/package/py/log/extra-1.py", "E = 1\n")
    shelf.put("/abs.py", "A = 1\n")
    found = await sources(packages, "log")
    assert (found["/lib/extra.py"], found["/lib/deep/x.py"]) == (b"E = 1\n", b"A = 1\n")


@pytest.mark.parametrize("where", ["../../secret", "file:///etc/passwd", "ftp://a/x"])
async def test_url_that_leads_elsewhere_is_refused(shelf, packages, where):
    shelf.publish("log", urls=[["x.py", where]])
    with pytest.raises(PackageError):
        await packages.make_plan(["log"])


@pytest.mark.parametrize("path", ["../main.py", "/../boot.py", "lib/..", "cm/link.py", "os.py"])
async def test_target_that_is_not_the_packages_refuses_it(shelf, packages, path):
    shelf.publish("log", files={path: "evil\n"})
    with pytest.raises(PackageError, match=r"^log@1.0: "):
        await packages.make_plan(["log"], target_dir="/lib")


@pytest.mark.parametrize(
    "path", ["boot.py", "main.py", "lib/cm/link.mpy", "cm.json", ".cm/journal"]
)
async def test_boot_client_and_key_are_refused_at_the_root_too(shelf, packages, path):
    shelf.publish("log", files={path: "evil\n"})
    with pytest.raises(PackageError, match="the board's own"):
        await packages.make_plan(["log"], target_dir="/", force=True)


# Dependency confusion, group 31


async def test_private_name_is_never_looked_for_elsewhere(shelf, packages, tmp_path):
    async with Shelf().serving() as public:
        public.publish("secret", "99.0", {"secret.py": "evil\n"})
        shelf.publish("secret", "1.0", {"secret.py": "mine\n"})
        both = shelf.packages(
            tmp_path, indexes={"": f"{shelf.url}/pi", "public": f"{public.url}/pi"}
        )
        assert await sources(both, "secret") == {"/lib/secret.py": b"mine\n"}
        assert public.asked == []


async def test_unknown_name_in_a_private_index_is_an_error_and_never_a_fallback(shelf, tmp_path):
    async with Shelf().serving() as public:
        public.publish("secret", "99.0")
        indexes = {"": f"{shelf.url}/pi", "public": f"{public.url}/pi"}
        both = shelf.packages(tmp_path, indexes=indexes)
        with pytest.raises(SourceNotFound, match="secret is not in"):
            await both.make_plan(["secret"])
        assert public.asked == []


async def test_dependency_stays_in_its_packages_index(shelf, tmp_path):
    shelf.publish("a", files={"a.py": "1\n"}, index="/lab", deps=[["b", "latest"]])
    shelf.publish("b", files={"b.py": "lab's\n"}, index="/lab")
    shelf.publish("b", "99.0", files={"b.py": "the default index's\n"})
    indexes = {"": f"{shelf.url}/pi", "lab": f"{shelf.url}/lab"}
    assert (await sources(shelf.packages(tmp_path, indexes=indexes), "lab:a"))[
        "/lib/b.py"
    ] == b"lab's\n"


async def test_package_cannot_choose_an_index(shelf, tmp_path):
    shelf.publish("a", deps=[["lab:b", "1"]])
    shelf.publish("b", "1", index="/lab")
    packages = shelf.packages(tmp_path, indexes={"": f"{shelf.url}/pi", "lab": f"{shelf.url}/lab"})
    with pytest.raises(PackageError, match="no package may choose an index"):
        await packages.make_plan(["a"])


async def test_unknown_index_is_told(packages):
    with pytest.raises(PackageError, match="knows no index called 'nope'"):
        await packages.make_plan(["nope:a"])


async def test_index_that_somebody_names_may_not_be_private(shelf, packages):
    shelf.publish("a", index="/theirs")
    asked = [f"{shelf.url.replace('127.0.0.1', '127.0.0.3')}/theirs", f"{shelf.url}/theirs"]
    for url in asked:
        with pytest.raises(PackageError, match="private address|cannot be reached"):
            await packages.make_plan(["a"], indexes={"": url})
    assert shelf.asked == []


# An index that is unwell, group 30


async def endless(writer):
    while True:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 65536)
        await writer.drain()


@pytest.mark.parametrize(
    "page",
    [
        reply(b"<html>it works</html>", 200, "text/html"),
        reply(b"[1, 2]", 200, "application/json"),
        reply(b'{"v": 1, "hashes": {"a": [1]}, "version": "1.0"}', 200, "application/json"),
        reply(b"", 500),
        endless,
    ],
)
async def test_index_that_answers_nonsense_installs_nothing(shelf, packages, page, monkeypatch):
    shelf.publish("log")
    for version in ("1.0", "latest"):
        shelf.pages[f"/pi/package/py/log/{version}.json"] = page
    with pytest.raises(PackageError):
        await packages.make_plan(["log"])


async def test_failure_half_way_leaves_no_plan_and_no_wrong_content(shelf, packages):
    document = shelf.publish("log", files={"a.py": "A = 1\n", "b.py": "B = 1\n"})
    short = document["hashes"][1][1]
    good = shelf.pages[f"/pi/file/{short[:2]}/{short}"]
    for bad in (reply(b"", 500), reply(b"B = 1", 200), reply(b"<html>", 200, "text/html")):
        shelf.pages[f"/pi/file/{short[:2]}/{short}"] = bad
        with pytest.raises((PackageError, SourceUnreachable)):
            await packages.make_plan(["log"])
    shelf.pages[f"/pi/file/{short[:2]}/{short}"] = good
    assert await sources(packages, "log") == {"/lib/a.py": b"A = 1\n", "/lib/b.py": b"B = 1\n"}
