"""Outcomes of installs, as the server reports them."""

from cloudmanager.client.packages import BoardPackages, InstallResult

BODY = {"put": ["/a"], "removed": ["/b"], "size_bytes": 3, "free_bytes": 9, "dry_run": True}


def test_install_result_is_read_with_and_without_packages():
    assert InstallResult.from_op_results([{**BODY, "notes": []}]) == (
        *({}, ("/a",), ("/b",), 3, 9, {}, (), True),
    )
    result = InstallResult.from_op_results(
        [{**BODY, "packages": {"x": "1"}, "notes": ["n"], "origins": {"x": "y"}}]
    )
    assert (result.packages, result.origins, result.notes) == ({"x": "1"}, {"x": "y"}, ("n",))


def test_install_results_are_merged():
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


def test_board_packages_are_a_mapping_with_attributes():
    result = BoardPackages.from_op_results(
        [{"packages": {"x": "1"}, "drift": ["d"], "record": {"x": {"local": 1}}}]
    )
    assert (result, result.drift, result.upgrade_info, result.as_of) == (
        {"x": "1"},
        ("d",),
        {"x": {"local": 1}},
        None,
    )
    row = {"packages": {"x": {"version": "1", "files": {}}}, "confirmed": 5.0}
    absent = BoardPackages.from_record(row)
    assert (absent, absent.as_of) == ({"x": "1"}, 5.0)
