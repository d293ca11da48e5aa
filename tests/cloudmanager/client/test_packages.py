"""What installs came to, as the server tells it."""

from cloudmanager.client.packages import BoardPackages, InstallResult

TOLD = {"put": ["/a"], "removed": ["/b"], "size_bytes": 3, "free_bytes": 9, "dry_run": True}


def test_installed_is_read_with_and_without_packages():
    assert InstallResult.from_op_results([{**TOLD, "notes": []}]) == (
        *({}, ("/a",), ("/b",), 3, 9, {}, (), True),
    )
    told = InstallResult.from_op_results(
        [{**TOLD, "packages": {"x": "1"}, "notes": ["n"], "origins": {"x": "y"}}]
    )
    assert (told.packages, told.origins, told.notes) == ({"x": "1"}, {"x": "y"}, ("n",))


def test_two_installs_are_one_with_the_sums_of_both():
    one = InstallResult({"x": "1"}, ("/x",), (), 3, 100, {"x": "here"}, ("n",))
    two = InstallResult({"y": "2"}, ("/y",), ("/z",), 4, 90, {"y": "there"}, ("n", "m"))
    assert one.merged_with(two) == InstallResult(
        {"x": "1", "y": "2"},
        ("/x", "/y"),
        ("/z",),
        7,
        100,
        {"x": "here", "y": "there"},
        ("n", "m"),
    )


def test_packages_are_a_mapping_that_knows_more():
    told = BoardPackages.from_op_results(
        [{"packages": {"x": "1"}, "drift": ["d"], "record": {"x": {"local": 1}}}]
    )
    assert (told, told.drift, told.upgrade_info, told.as_of) == (
        {"x": "1"},
        ("d",),
        {"x": {"local": 1}},
        None,
    )
    row = {"packages": {"x": {"version": "1", "files": {}}}, "confirmed": 5.0}
    absent = BoardPackages.from_record(row)
    assert (absent, absent.as_of) == ({"x": "1"}, 5.0)
