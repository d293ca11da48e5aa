"""Defences of files: paths on boards and here, what is deleted, replaced, or sent by mistake."""

from __future__ import annotations

from typing import Final

from .defence import LIBRARY, SERVER, Defence, defence

OPS: Final = "cloudmanager/protocol/test_file_ops.py::test_"
MOUNTS: Final = "cm_server/installs/test_mounts.py::test_"
CLIENT: Final = "cloudmanager/client/"

FILES: Final[list[Defence]] = [
    # On boards
    defence(
        "files: no verb writes or removes the board's client",
        LIBRARY + "protocol/file_ops.py",
        "_check_client_paths = lambda path, *, include_parents: None",
        OPS + "operations_on_client_files_are_refused",
    ),
    defence(
        "files: a path of an operation is absolute, normal and not too long",
        LIBRARY + "protocol/file_ops.py",
        "_check_path = lambda path, max_bytes: None",
        OPS + "path_that_no_board_can_have_is_refused",
    ),
    defence(
        "files: nothing is moved into itself, where it would be lost",
        LIBRARY + "protocol/file_ops.py",
        "is_inside = lambda path, folder: False",
        OPS + "folder_is_not_moved_into_itself",
        CLIENT + "test_moves.py::test_folder_is_not_moved_into_itself",
    ),
    defence(
        "files: sync deletes nothing while a local file cannot be read",
        LIBRARY + "client/syncing.py",
        "_may_delete = lambda local: True",
        CLIENT + "test_syncing.py::test_unreadable_file_fails_alone_and_nothing_is_deleted",
    ),
    defence(
        "files: a client of 0.1 overwrites no file that is called like its temporary one",
        SERVER + "installs/transfers.py",
        "_is_client_of_0_1 = lambda board: False",
        "board/test_old_client.py::test_file_with_the_name_of_a_temporary_one_is_kept",
    ),
    # Mounted folders
    defence(
        "files: a file of a mounted folder that became a link out of it is not served",
        LIBRARY + "client/mounts.py",
        "is_inside = lambda folder, path: True",
        CLIENT + "test_mounts.py::test_file_that_becomes_a_link_out_of_the_folder_is_not_served",
    ),
    defence(
        "files: a file that changed since its list is not served in pieces of two versions",
        LIBRARY + "client/mounts.py",
        "is_unchanged = lambda file, facts: True",
        CLIENT + "test_mounts.py::test_file_that_changes_while_a_cell_runs_is_not_served",
    ),
    defence(
        "files: a board reads only listed files of a mounted folder, while the token reaches it",
        SERVER + "installs/mounts.py",
        "Mounts._may_read = lambda self, mount, board, path: True",
        MOUNTS + "file_that_is_not_listed_is_not_asked_for",
        MOUNTS + "board_that_the_token_does_not_reach_any_more_is_refused",
    ),
    defence(
        "files: a board does not make a caller send pieces of a mounted folder without end",
        SERVER + "installs/mounts.py",
        "Mounts._has_too_many_requests = lambda self, mount: False",
        MOUNTS + "requests_to_the_caller_are_bounded",
    ),
    defence(
        "files: what the server keeps of mounted folders is bounded",
        SERVER + "installs/mounts.py",
        "_cost = lambda piece: 0",
        MOUNTS + "pieces_that_are_kept_are_bounded",
    ),
    defence(
        "files: a mounted folder is not replaced by that of another caller",
        SERVER + "installs/mounts.py",
        "Mounts.check_free = lambda self, board, owner: None",
        MOUNTS + "board_with_the_folder_of_another_caller_is_refused",
        CLIENT + "test_mounts.py::test_second_caller_is_refused_while_a_folder_is_mounted",
    ),
    defence(
        "files: the list of a mounted folder has only paths inside of it",
        SERVER + "installs/mounts.py",
        "_is_file_row = lambda row: True",
        MOUNTS + "malformed_requests_are_refused",
    ),
    # On this machine
    defence(
        "files: control characters in names of boards are escaped",
        LIBRARY + "client/board_paths.py",
        "escape_name = lambda name: name",
        CLIENT + "test_board_paths.py::test_invisible_characters_of_a_name_are_escaped",
    ),
    defence(
        "files: a download replaces no device",
        LIBRARY + "client/downloads.py",
        "_is_device = lambda path: False",
        CLIENT + "test_downloads.py::test_device_or_pipe_is_written_and_not_replaced",
    ),
    defence(
        "files: a link that leads out of an uploaded folder is not followed",
        LIBRARY + "client/sources.py",
        "_Walk._is_inside = lambda self, target: True",
        CLIENT + "test_sources.py::test_folder_is_walked_in_order_without_leaving_it",
    ),
    defence(
        "files: a byte order mark does not void the first ignored pattern",
        LIBRARY + "protocol/text_encodings.py",
        "decode_text = lambda data: data.decode()",
        CLIENT + "test_text_files.py::test_first_pattern_of_an_ignore_file_with_a_mark_holds",
    ),
    # Packages of one's own, and passwords of indexes
    defence(
        "package: a folder from elsewhere sends no hidden file of this machine",
        LIBRARY + "client/local_packages.py",
        "_is_hidden_outside = lambda path: False",
        CLIENT + "test_local_packages.py::test_package_that_cannot_be_read_is_an_error",
    ),
    defence(
        "package: a folder from elsewhere sends no file from outside of its project",
        LIBRARY + "client/local_packages.py",
        "_is_in_project = lambda folder, path: True",
        CLIENT + "test_local_packages.py::test_package_may_name_any_file_of_its_repository",
    ),
    defence(
        "package: a password of an index is in no lock file and in no cache",
        SERVER + "packages/http_fetcher.py",
        "without_credentials = lambda url: url",
        "cm_server/packages/test_index.py::test_password_of_an_index_is_used_and_written_nowhere",
    ),
    defence(
        "package: no password is in an error message",
        LIBRARY + "protocol/package_references.py",
        "hide_credentials = lambda text: text",
        "cm_server/packages/test_index.py::test_errors_show_no_password",
    ),
    defence(
        "package: a password is sent to its own origin only",
        SERVER + "packages/http_fetcher.py",
        "OriginAccess.includes = lambda self, url: True",
        "cm_server/packages/test_http_fetcher.py::"
        "test_password_is_sent_to_its_origin_only_and_not_shown",
    ),
]
