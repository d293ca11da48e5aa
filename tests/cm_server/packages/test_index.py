"""mip indexes (attack groups 27, 30 and 31)."""

from __future__ import annotations

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.packages.http_fetcher import SourceNotFound, SourceUnreachable
from cm_server.packages.lock import dump

from .package_server import PackageServer, digest, reply

MPY = 0x2806


def paths(plan, mpy=MPY):
    return [file.path for file in plan.files[mpy]]


async def planned_sources(planner, *wanted, **options):
    """Return the files of a plan without bytecode: path on the board -> content."""
    plan = await planner.make_plan(list(wanted), mpys=[MPY], source_only=True, **options)
    return {file.path: await planner.read_content(file.sha256) for file in plan.files[MPY]}


async def test_newest_version_is_the_default(package_server, planner):
    package_server.publish("log", "1.0", {"log.py": "V = 1\n"})
    package_server.publish("log", "2.0", {"log.py": "V = 2\n"})
    assert await planned_sources(planner, "log") == {"/lib/log.py": b"V = 2\n"}
    assert await planned_sources(planner, "log@1.0") == {"/lib/log.py": b"V = 1\n"}


async def test_error_for_a_missing_version_lists_existing_ones(package_server, planner):
    package_server.publish("log", "1.0")
    package_server.put(
        "/pi/index.json", {"v": 2, "packages": [{"name": "log", "versions": {"py": ["1.0"]}}]}
    )
    with pytest.raises(SourceNotFound, match=r"log@9 is not in .* at version 9; it has 1.0"):
        await planner.make_plan(["log@9"])


async def test_error_for_an_unknown_name_suggests_a_similar_one(package_server, planner):
    package_server.put(
        "/pi/index.json", {"v": 2, "packages": [{"name": "logging", "versions": {}}]}
    )
    with pytest.raises(SourceNotFound, match="loging is not in .*did you mean logging"):
        await planner.make_plan(["loging"])


async def test_newest_document_must_have_a_version(package_server, planner):
    package_server.publish("log", "1.0")
    package_server.put("/pi/package/py/log/latest.json", {"v": 1, "hashes": []})
    with pytest.raises(PackageError, match="does not specify the latest version"):
        await planner.make_plan(["log"])


async def test_document_of_another_version_is_refused(package_server, planner):
    package_server.publish("log", "1.0")
    package_server.put("/pi/package/py/log/2.0.json", {"v": 1, "version": "1.0"})
    with pytest.raises(PackageError, match="returns version 1.0 for 2.0"):
        await planner.make_plan(["log@2.0"])


async def test_content_that_differs_from_its_short_hash_is_refused(package_server, planner):
    document = package_server.publish("log")
    short = document["hashes"][0][1]
    package_server.put(f"/pi/file/{short[:2]}/{short}", b"something else")
    with pytest.raises(PackageError, match="not the expected file"):
        await planner.make_plan(["log"])


async def test_full_hash_is_recorded(package_server, planner):
    package_server.publish("log", files={"log.py": "V = 1\n"})
    plan = await planner.make_plan(["log"])
    assert plan.packages[0].parts[0].sha256 == digest(b"V = 1\n")


async def test_content_of_another_source_with_the_same_short_hash_is_not_used(
    package_server, planner
):
    """The cache is not searched by the beginning of a hash."""
    package_server.publish("log", files={"log.py": "V = 1\n"})
    real = digest(b"V = 1\n")
    evil = planner.cache._contents / real[:2] / (real[:8] + "0" * 56)
    evil.parent.mkdir(parents=True)
    evil.write_bytes(b"evil")
    assert await planned_sources(planner, "log") == {"/lib/log.py": b"V = 1\n"}


async def test_file_with_a_hash_is_fetched_once(package_server, planner, tmp_path):
    package_server.publish("log")
    await planner.make_plan(["log"])
    again = package_server.planner(tmp_path / "packages")
    package_server.requested_paths.clear()
    await again.make_plan(["log"])
    assert [path for path in package_server.requested_paths if "/file/" in path] == []


async def test_package_may_consist_of_bytecode_only(package_server, planner):
    package_server.publish("fast", files={"fast.mpy": b"M\x06\x00\x1f" + b"x"}, form="6")
    plan = await planner.make_plan(["fast"], mpys=[MPY])
    assert paths(plan) == ["/lib/fast.mpy"]
    with pytest.raises(PackageError, match="bytecode that a board with 5.0 cannot run"):
        await planner.make_plan(["fast"], mpys=[MPY, 5])


async def test_urls_are_relative_to_the_document(package_server, planner):
    package_server.publish("log", urls=[["extra.py", "extra-1.py"], ["deep/x.py", "/abs.py"]])
    package_server.put("/pi/package/py/log/extra-1.py", "E = 1\n")
    package_server.put("/abs.py", "A = 1\n")
    found = await planned_sources(planner, "log")
    assert (found["/lib/extra.py"], found["/lib/deep/x.py"]) == (b"E = 1\n", b"A = 1\n")


async def test_relative_urls_are_joined_as_mip_does(package_server, planner):
    package_server.publish("log", urls=[["a.py", "./a.py"], ["b.py", "../b.py", "third"]])
    package_server.put("/pi/package/py/log/a.py", "A = 1\n")
    package_server.put("/pi/package/py/b.py", "B = 1\n")
    found = await planned_sources(planner, "log")
    assert (found["/lib/a.py"], found["/lib/b.py"]) == (b"A = 1\n", b"B = 1\n")


@pytest.mark.parametrize("where", ["..\\secret", "file:///etc/passwd", "ftp://a/x"])
async def test_url_of_another_scheme_is_refused(package_server, planner, where):
    package_server.publish("log", urls=[["x.py", where]])
    with pytest.raises(PackageError):
        await planner.make_plan(["log"])


@pytest.mark.parametrize("path", ["../main.py", "/../boot.py", "lib/.."])
async def test_unsafe_path_of_a_package_is_refused(package_server, planner, path):
    package_server.publish("log", files={path: "evil\n"})
    with pytest.raises(PackageError, match=r"^log@1.0: "):
        await planner.make_plan(["log"], target_dir="/lib")


@pytest.mark.parametrize(
    "path", ["boot.py", "main.py", "lib/cm/link.mpy", "cm.json", ".cm/journal"]
)
async def test_reserved_paths_in_the_root_folder_are_left_out(package_server, planner, path):
    package_server.publish("log", files={path: "evil\n", "log.py": "L = 1\n"})
    plan = await planner.make_plan(["log"], target_dir="/", mpys=[MPY])
    assert paths(plan) == ["/log.mpy"]
    assert plan.notes == (f"log@1.0: /{path} is left out: packages may not write it",)


async def test_package_may_extend_a_builtin_module(package_server, planner):
    package_server.publish("os-path", files={"os/path.py": "P = 1\n", "ssl.py": "S = 1\n"})
    package_server.publish("__future__", files={"__future__.py": "F = 1\n"})
    found = await planned_sources(planner, "os-path")
    assert set(found) == {"/lib/os/path.py", "/lib/ssl.py"}
    assert set(await planned_sources(planner, "__future__")) == {"/lib/__future__.py"}


# Dependency confusion (attack group 31)


async def test_private_name_is_not_looked_up_in_another_index(package_server, planner, tmp_path):
    async with PackageServer().serving() as public:
        public.publish("secret", "99.0", {"secret.py": "evil\n"})
        package_server.publish("secret", "1.0", {"secret.py": "mine\n"})
        both = package_server.planner(
            tmp_path, indexes={"": f"{package_server.url}/pi", "public": f"{public.url}/pi"}
        )
        assert await planned_sources(both, "secret") == {"/lib/secret.py": b"mine\n"}
        assert public.requested_paths == []


async def test_unknown_private_name_is_an_error_without_a_fallback(package_server, tmp_path):
    async with PackageServer().serving() as public:
        public.publish("secret", "99.0")
        indexes = {"": f"{package_server.url}/pi", "public": f"{public.url}/pi"}
        both = package_server.planner(tmp_path, indexes=indexes)
        with pytest.raises(SourceNotFound, match="secret is not in"):
            await both.make_plan(["secret"])
        assert public.requested_paths == []


async def test_dependency_is_looked_up_in_its_packages_index(package_server, tmp_path):
    package_server.publish("a", files={"a.py": "1\n"}, index="/lab", deps=[["b", "latest"]])
    package_server.publish("b", files={"b.py": "lab's\n"}, index="/lab")
    package_server.publish("b", "99.0", files={"b.py": "the default index's\n"})
    indexes = {"": f"{package_server.url}/pi", "lab": f"{package_server.url}/lab"}
    assert (await planned_sources(package_server.planner(tmp_path, indexes=indexes), "lab:a"))[
        "/lib/b.py"
    ] == b"lab's\n"


async def test_package_cannot_choose_an_index(package_server, tmp_path):
    package_server.publish("a", deps=[["lab:b", "1"]])
    package_server.publish("b", "1", index="/lab")
    planner = package_server.planner(
        tmp_path, indexes={"": f"{package_server.url}/pi", "lab": f"{package_server.url}/lab"}
    )
    with pytest.raises(PackageError, match="no package may choose an index"):
        await planner.make_plan(["a"])


async def test_unknown_index_is_an_error(planner):
    with pytest.raises(PackageError, match="has no index with the alias 'nope'"):
        await planner.make_plan(["nope:a"])


PASSWORD = "s3cr%t/@:"
LOGIN = "user:s3cr%25t%2F%40%3A"  # as in a URL
LOCK = f'{{"format": 1, "wanted": ["http://{LOGIN}@a.example/x.py"], "packages": []}}'


def with_login(url: str, login: str = LOGIN) -> str:
    return url.replace("//", f"//{login}@")


@pytest.fixture
def private_index(package_server):
    """An index that needs a password, with a file by hash and one by URL."""
    package_server.login = f"user:{PASSWORD}"
    package_server.put("/pi/x.py", b"X = 1")
    package_server.publish("log", urls=[["x.py", with_login(f"{package_server.url}/pi/x.py")]])
    return package_server


async def test_password_of_an_index_is_used_and_written_nowhere(private_index, tmp_path):
    url = with_login(f"{private_index.url}/pi")
    planner = private_index.planner(tmp_path / "packages", indexes={"": url, "own": url})
    plan = await planner.make_plan(["log", "own:log"])
    lock = dump(plan.wanted, plan.packages)
    offline = private_index.planner(tmp_path / "other", indexes={"": url, "own": url})
    again = await offline.make_plan(["log", "own:log"], lock=lock, locked=True)
    assert again.packages == plan.packages
    written = [lock, repr(plan), repr(plan.describe())]
    written += [str(path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    written += list(map(str, tmp_path.rglob("*")))
    for text in written:
        assert "s3cr" not in text
        assert "user:" not in text


async def test_password_of_an_index_may_be_in_netrc(private_index, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    planner = private_index.planner(tmp_path / "packages")
    with pytest.raises(SourceUnreachable, match=r"status 401: it may need a user name .*\.netrc"):
        await planner.make_plan(["log"])
    netrc.write_text(f"machine 127.0.0.1 login user password {PASSWORD}")
    assert [str(each) for each in (await planner.make_plan(["log"])).packages] == ["log@1.0"]


async def test_callers_index_does_not_get_the_servers_password(
    private_index, tmp_path, monkeypatch
):
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {PASSWORD}")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    planner = private_index.planner(tmp_path / "packages")
    own = {"own": f"{private_index.url}/other"}
    with pytest.raises(SourceUnreachable, match="status 401"):
        await planner.make_plan(["own:log"], indexes=own, trusted=True)
    assert all("Authorization" not in head for head in private_index.request_heads)


@pytest.mark.parametrize(
    ("wanted", "options"),
    [
        ("loging", {}),
        ("log@9", {}),
        ("bad", {}),
        ("own:log", {"indexes": {"own": with_login("http://127.0.0.2:9/pi")}}),
        ("own:log", {"indexes": {"own": with_login("http://127.0.0.1:9/pi")}, "trusted": True}),
        ("own:log", {"indexes": {"own": with_login("ftp://a.example/pi")}}),
        ("own:log", {"indexes": {"own": with_login("http://[::1/pi")}}),
        ("own:log", {"indexes": {"own": with_login("http:///pi")}}),
        (with_login("https://a.example/x.py"), {}),
        (with_login("htp://a.example/x.py"), {}),
        ("github:a/b@" + with_login("https://a.example"), {}),
        ("log", {"lock": LOCK}),
        ("leak", {}),
    ],
)
async def test_errors_show_no_password(private_index, tmp_path, wanted, options):
    private_index.put("/pi/package/py/bad/latest.json", b"{")
    private_index.publish("leak", urls=[["x.py", with_login("https:/a.example/x.py")]])
    url = with_login(f"{private_index.url}/pi")
    planner = private_index.planner(tmp_path / "packages", indexes={"": url})
    with pytest.raises(PackageError) as raised:
        await planner.make_plan([wanted], **options)
    assert "s3cr" not in str(raised.value)


async def test_index_of_a_caller_must_not_be_private(package_server, planner):
    package_server.publish("a", index="/theirs")
    asked = [
        f"{package_server.url.replace('127.0.0.1', '127.0.0.3')}/theirs",
        f"{package_server.url}/theirs",
    ]
    for url in asked:
        with pytest.raises(PackageError, match="private address|cannot be reached"):
            await planner.make_plan(["a"], indexes={"": url})
    assert package_server.requested_paths == []


# A faulty index (attack group 30)


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
async def test_malformed_response_of_an_index_is_refused(
    package_server, planner, page, monkeypatch
):
    package_server.publish("log")
    for version in ("1.0", "latest"):
        package_server.pages[f"/pi/package/py/log/{version}.json"] = page
    with pytest.raises(PackageError):
        await planner.make_plan(["log"])


async def test_failed_fetch_leaves_no_wrong_content(package_server, planner):
    document = package_server.publish("log", files={"a.py": "A = 1\n", "b.py": "B = 1\n"})
    short = document["hashes"][1][1]
    good = package_server.pages[f"/pi/file/{short[:2]}/{short}"]
    for bad in (reply(b"", 500), reply(b"B = 1", 200), reply(b"<html>", 200, "text/html")):
        package_server.pages[f"/pi/file/{short[:2]}/{short}"] = bad
        with pytest.raises((PackageError, SourceUnreachable)):
            await planner.make_plan(["log"])
    package_server.pages[f"/pi/file/{short[:2]}/{short}"] = good
    assert await planned_sources(planner, "log") == {
        "/lib/a.py": b"A = 1\n",
        "/lib/b.py": b"B = 1\n",
    }
