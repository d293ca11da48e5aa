"""Packages: the attacks on them (FIELD.md 5, groups 25 to 34), and what keeps them out.

mip's own mishaps (FIELD.md 6) are among them: a hash that does not match, targets that lead out,
cycles, a version that is missing, two @, refs that leak, a source that hides bytecode.
"""

from __future__ import annotations

from typing import Final

from .defence import SERVER, defence
from .table import attack

TESTS: Final = "cm_server/packages/"
CODE: Final = SERVER + "packages/"

PACKAGE_ATTACKS: Final = [
    attack(
        25,
        "archives: names that lead out, links, bombs, members that are not what they seem",
        TESTS + "test_archives.py: member_that_is_not_plain_refuses_the_tar "
        "member_that_is_not_plain_refuses_the_zip name_with_a_nul_refuses_the_zip "
        "link_device_or_sparse_file_refuses_the_tar symbolic_link_refuses_the_zip "
        "names_that_differ_in_case_only_refuse_the_archive one_name_twice_refuses_the_archive "
        "pax_header_that_overrides_a_path_is_seen_through loop_of_gnu_long_names_ends "
        "gigabytes_from_kilobytes_are_refused_before_they_are_there "
        "zip_that_lies_about_its_sizes_is_refused zip_whose_headers_disagree_is_refused "
        "a_million_members_are_refused_quickly archive_in_an_archive_stays_one_file",
    ),
    attack(
        26,
        "targets that lead out or onto what is the board's own; a source that hides bytecode",
        TESTS + "test_install_paths.py: path_that_is_not_plain_is_refused "
        "boot_client_and_key_are_never_a_packages folder_that_is_not_for_packages_is_refused",
        TESTS + "test_index.py: target_that_is_not_the_packages_refuses_it "
        "boot_client_and_key_are_refused_at_the_root_too",
        TESTS + "test_plan.py: source_that_would_hide_bytecode_goes_and_the_reverse",
        "cm_server/installs/test_board_install.py: a_leftover_source_goes_and_what_is_in_the_way_is_said",
        "cm_server/installs/test_install_manifest.py: files_of_others_are_overwritten_by_force_only",
    ),
    attack(
        27,
        "content that is not what its hash says, short or whole",
        TESTS + "test_index.py: content_that_does_not_match_its_short_hash_is_refused "
        "content_of_another_source_with_the_same_short_hash_is_not_used",
        TESTS + "test_package_files.py: hash_that_is_right_with_another_length_cannot_be "
        "cache_does_not_answer_for_another_hash_than_the_locks",
        TESTS + "test_planner.py: cache_that_was_tampered_with_is_fetched_anew",
    ),
    attack(
        28,
        "cycles, very many dependencies, no version, two @, versions that conflict",
        TESTS + "test_planner.py: cycle_of_dependencies_ends conflict_is_told_in_one_sentence "
        "hundred_thousand_dependencies_are_refused chain_without_an_end_is_refused",
        TESTS + "test_resolve.py: package_that_needs_itself_ends search_that_leads_nowhere_ends",
        TESTS + "test_documents.py: dependency_without_a_version_is_fine",
        TESTS + "test_index.py: document_without_its_version_cannot_be_the_newest",
        TESTS + "test_requirement.py: what_names_no_package_is_refused_in_a_sentence",
    ),
    attack(
        29,
        "the server is to ask addresses inside, by name, number, redirect, rebinding or scheme",
        TESTS + "test_http_fetcher.py: private_address_is_known "
        "private_address_is_not_connected_to_however_it_is_written metadata_service_is_not_asked "
        "redirect_to_a_private_address_is_not_followed "
        "name_that_answers_otherwise_the_second_time_gains_nothing "
        "one_private_address_among_public_ones_refuses_all other_schemes_are_refused "
        "redirect_to_another_scheme_is_refused redirect_from_https_to_http_is_refused",
        TESTS + "test_direct_sources.py: url_of_a_private_address_is_refused "
        "public_package_cannot_lead_to_a_private_index "
        "sent_document_cannot_name_the_servers_own_files",
        "cm_server/installs/test_plan_cache.py: an_index_inside_is_only_an_administrators_to_name",
    ),
    attack(
        30,
        "an index that is slow, endless, a bomb, a web page, frozen, rolled back, or breaks off",
        TESTS + "test_http_fetcher.py: slow_answer_is_given_up endless_answer_is_cut "
        "gzip_bomb_does_not_go_off answer_that_is_too_big_is_refused",
        TESTS + "test_index.py: index_that_answers_nonsense_installs_nothing "
        "failure_half_way_leaves_no_plan_and_no_wrong_content",
        TESTS + "test_lock.py: frozen_index_gives_what_the_lock_has "
        "older_version_than_the_locks_is_a_rollback",
        TESTS + "test_planner.py: rollback_of_the_newest_version_is_refused",
        TESTS + "test_cache.py: write_that_fails_half_way_leaves_nothing",
    ),
    attack(
        31,
        "a private name that is public, too: no source falls through to another",
        TESTS + "test_index.py: private_name_is_never_looked_for_elsewhere "
        "unknown_name_in_a_private_index_is_an_error_and_never_a_fallback "
        "dependency_stays_in_its_packages_index package_cannot_choose_an_index",
        TESTS + "test_pypi.py: unknown_name_is_an_error_and_no_other_index_is_asked",
    ),
    attack(
        32,
        "refs that move or leak into another repository; paths that become another repository",
        TESTS + "test_planner.py: tag_that_moved_since_the_lock_is_refused_and_a_branch_told "
        "content_that_is_another_one_than_the_locks_is_refused",
        TESTS + "test_forge.py: ref_does_not_leak_into_files_of_another_repository "
        "ref_does_not_leak_into_dependencies_of_another_repository "
        "file_outside_of_the_repository_is_refused",
        TESTS + "test_dependencies.py: ref_of_a_package_never_leaks_into_another_repository",
    ),
    attack(
        33,
        "sources that have the compiler loop, crash or eat",
        TESTS + "test_compiler.py: source_that_makes_the_compiler_loop_is_cut "
        "compiler_that_goes_wrong_costs_a_sentence loop_of_the_compiler_does_not_block_the_server "
        "compiler_sees_no_secret_and_an_empty_folder",
        not_here="its network is not cut off: mpy-cross opens no socket, and runs nothing of a "
        "source",
    ),
    attack(
        34,
        "code of a package that is to run on the server",
        TESTS + "test_pypi.py: no_setup_py_no_build_backend_no_pth_and_no_entry_point_ever_runs",
    ),
]

PACKAGES: Final = [
    defence(
        "package: a member of an archive has a plain path",
        CODE + "archives.py",
        "_check_member_path = lambda path: None",
        TESTS + "test_archives.py::test_member_that_is_not_plain_refuses_the_tar",
        TESTS + "test_archives.py::test_member_that_is_not_plain_refuses_the_zip",
    ),
    defence(
        "package: a member of a tar is a plain file",
        CODE + "archives.py",
        "_is_plain_file = lambda member: True",
        TESTS + "test_archives.py::test_link_device_or_sparse_file_refuses_the_tar",
    ),
    defence(
        "package: a tar is inflated up to a limit only",
        CODE + "archives.py",
        "_max_inflated_bytes = lambda: 0  # no limit",
        TESTS + "test_archives.py::test_gigabytes_from_kilobytes_are_refused_before_they_are_there",
    ),
    defence(
        "package: names that differ in case only are refused",
        CODE + "archives.py",
        "_ignore_case = lambda path: path",
        TESTS + "test_archives.py::test_names_that_differ_in_case_only_refuse_the_archive",
    ),
    defence(
        "package: no path leaves the install's folder",
        CODE + "install_paths.py",
        "_leaves_folder = lambda parts: False",
        TESTS + "test_install_paths.py::test_path_that_is_not_plain_is_refused",
        TESTS + "test_index.py::test_target_that_is_not_the_packages_refuses_it",
    ),
    defence(
        "package: no package writes boot files, the client or its key",
        CODE + "install_paths.py",
        "_is_reserved = lambda path: False",
        TESTS + "test_install_paths.py::test_boot_client_and_key_are_never_a_packages",
        TESTS + "test_index.py::test_boot_client_and_key_are_refused_at_the_root_too",
    ),
    defence(
        "package: files of other packages are not overwritten",
        SERVER + "installs/install_manifest.py",
        "_check_owner = lambda *args: None",
        "cm_server/installs/test_install_manifest.py::test_files_of_others_are_overwritten_by_force_only",
    ),
    defence(
        "package: a leftover source that would hide bytecode is removed",
        SERVER + "installs/install_manifest.py",
        "_find_shadowing = lambda plan, mpy, file_hashes: set()",
        "cm_server/installs/test_install_manifest.py::test_what_would_hide_it_goes_if_it_is_there",
        "cm_server/installs/test_board_install.py::test_a_leftover_source_goes_and_what_is_in_the_way_is_said",
    ),
    defence(
        "package: content matches its hash",
        CODE + "package_files.py",
        "_is_as_promised = lambda content, part: True",
        TESTS + "test_index.py::test_content_that_does_not_match_its_short_hash_is_refused",
        TESTS + "test_package_files.py::test_hash_that_is_right_with_another_length_cannot_be",
    ),
    defence(
        "package: the number of dependencies is bounded",
        CODE + "resolve.py",
        "_check_requirement_count = lambda count: None",
        TESTS + "test_resolve.py::test_hundred_thousand_dependencies_are_refused_quickly",
    ),
    defence(
        "package: a version has no second @",
        CODE + "requirement.py",
        "_check_single_at = lambda text, version: None",
        TESTS + "test_requirement.py::test_what_names_no_package_is_refused_in_a_sentence",
    ),
    defence(
        "package: no private address is connected to",
        CODE + "http_fetcher.py",
        "is_public = lambda address: True",
        TESTS
        + "test_http_fetcher.py::test_private_address_is_not_connected_to_however_it_is_written",
        TESTS + "test_direct_sources.py::test_url_of_a_private_address_is_refused",
    ),
    defence(
        "package: a configured source is exempt at its own origin only",
        CODE + "http_fetcher.py",
        "_is_trusted = lambda url, trusted_url: bool(trusted_url)",
        TESTS + "test_http_fetcher.py::test_only_its_own_origin_is_exempt",
        TESTS + "test_http_fetcher.py::test_redirect_to_a_private_address_is_not_followed",
    ),
    defence(
        "package: a web page in place of a file is refused",
        CODE + "package_files.py",
        "_is_web_page = lambda content_type, name: False",
        TESTS + "test_direct_sources.py::test_web_page_in_a_files_place_is_refused",
    ),
    defence(
        "package: the newest version is not older than the lock's",
        CODE + "lock.py",
        "_is_rollback = lambda release, locked_release: False",
        TESTS + "test_planner.py::test_rollback_of_the_newest_version_is_refused",
    ),
    defence(
        "package: a lock is complete",
        CODE + "lock.py",
        "_check_complete = lambda wanted, releases: None",
        TESTS + "test_lock.py::test_lock_that_somebody_mended_badly_is_refused",
    ),
    defence(
        "package: a dependency stays in its package's index",
        CODE + "dependencies.py",
        "_keep_index = lambda need, package: need",
        TESTS + "test_index.py::test_dependency_stays_in_its_packages_index",
    ),
    defence(
        "package: a ref holds for its own repository only",
        CODE + "forge.py",
        "_has_same_commit = lambda file, package: True",
        TESTS + "test_forge.py::test_ref_does_not_leak_into_files_of_another_repository",
    ),
    defence(
        "package: a tag that moved is refused",
        CODE + "lock.py",
        "_is_tag = lambda ref: False",
        TESTS + "test_planner.py::test_tag_that_moved_since_the_lock_is_refused_and_a_branch_told",
    ),
    defence(
        "package: the compiler's run time is bounded",
        CODE + "compiler.py",
        "async def _wait_for_exit(process):\n    return await process.wait()",
        TESTS + "test_compiler.py::test_compiler_that_goes_wrong_costs_a_sentence[sleep]",
    ),
    defence(
        "package: what an interrupted install staged is removed",
        SERVER + "installs/board_install.py",
        "_is_leftover = lambda staged: False",
        "cm_server/installs/test_board_install.py::test_room_that_an_earlier_try_took_is_room",
    ),
]
