"""Attacks by packages and by the sources of packages (groups 25 to 34), and the defences.

They include known faults of mip: hashes that are not verified, paths that leave the folder, cycles,
missing versions, a second @, refs that apply to other repositories, sources that hide bytecode.
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
        "archives: paths that leave the folder, links, bombs, inconsistent headers",
        TESTS + "test_archives.py: unsafe_member_path_in_tar_is_refused "
        "unsafe_member_path_in_zip_is_refused nul_in_zip_member_name_is_refused "
        "tar_with_link_device_or_sparse_file_is_refused zip_with_symbolic_link_is_refused "
        "names_that_differ_in_case_only_are_refused duplicate_member_is_refused "
        "path_in_pax_header_is_checked endless_gnu_long_names_are_refused "
        "decompression_bomb_is_refused_before_it_is_inflated "
        "zip_with_wrong_sizes_is_refused zip_with_inconsistent_headers_is_refused "
        "archive_of_many_members_is_refused_quickly archive_in_archive_is_not_unpacked",
    ),
    attack(
        26,
        "paths that leave the folder or are reserved; a source that hides bytecode",
        TESTS + "test_install_paths.py: unsafe_path_is_refused "
        "path_of_owner_or_client_is_reserved invalid_or_reserved_folder_is_refused",
        TESTS + "test_index.py: unsafe_path_of_a_package_is_refused "
        "reserved_paths_in_the_root_folder_are_left_out",
        TESTS + "test_plan.py: shadowing_paths_are_the_other_forms_of_modules",
        "cm_server/installs/test_board_install.py: shadowing_source_is_removed_and_obstacle_is_an_error",
        "cm_server/installs/test_install_manifest.py: overwriting_other_files_needs_force",
    ),
    attack(
        27,
        "content that does not match its hash, short or full",
        TESTS + "test_index.py: content_that_differs_from_its_short_hash_is_refused "
        "content_of_another_source_with_the_same_short_hash_is_not_used",
        TESTS + "test_package_files.py: content_with_another_size_than_the_lock_is_refused "
        "cached_content_with_another_hash_than_the_lock_is_refused",
        TESTS + "test_planner.py: damaged_cache_is_fetched_again",
    ),
    attack(
        28,
        "cycles, very many dependencies, no version, two @, versions that conflict",
        TESTS + "test_planner.py: cycle_of_dependencies_is_resolved conflict_is_explained "
        "hundred_thousand_dependencies_are_refused endless_chain_of_dependencies_is_refused",
        TESTS
        + "test_resolve.py: package_that_needs_itself_is_resolved number_of_resolver_steps_is_bounded",
        TESTS + "test_documents.py: dependency_may_lack_a_version",
        TESTS + "test_index.py: newest_document_must_have_a_version",
        TESTS + "test_requirement.py: invalid_requirement_is_refused_with_a_reason",
    ),
    attack(
        29,
        "requests to private addresses, by name, number, redirect, DNS rebinding or scheme",
        TESTS + "test_http_fetcher.py: private_address_is_not_public "
        "private_address_is_refused_in_every_notation cloud_metadata_service_is_refused "
        "redirect_to_a_private_address_is_not_followed "
        "dns_rebinding_does_not_reach_a_private_address "
        "host_with_one_private_address_is_refused other_schemes_are_refused "
        "redirect_to_another_scheme_is_refused redirect_from_https_to_http_is_refused",
        TESTS + "test_direct_sources.py: url_of_a_private_address_is_refused "
        "public_package_cannot_refer_to_a_private_index "
        "sent_document_cannot_refer_to_files_of_the_server",
        "cm_server/installs/test_plan_cache.py: only_an_administrator_may_name_a_private_index",
    ),
    attack(
        30,
        "an index that is slow, endless, malformed, truncated, a bomb, frozen or rolled back",
        TESTS + "test_http_fetcher.py: slow_response_times_out endless_response_is_refused "
        "gzip_bomb_is_refused too_big_response_is_refused",
        TESTS + "test_index.py: malformed_response_of_an_index_is_refused "
        "failed_fetch_leaves_no_wrong_content",
        TESTS + "test_lock.py: unchanged_release_is_accepted older_newest_version_is_refused",
        TESTS + "test_planner.py: rollback_of_the_newest_version_is_refused",
        TESTS + "test_cache.py: failed_write_leaves_no_file",
    ),
    attack(
        31,
        "a private name that exists publicly too: there is no fallback to another source",
        TESTS + "test_index.py: private_name_is_not_looked_up_in_another_index "
        "unknown_private_name_is_an_error_without_a_fallback "
        "dependency_is_looked_up_in_its_packages_index package_cannot_choose_an_index",
        TESTS + "test_pypi.py: unknown_name_is_an_error_without_a_fallback",
    ),
    attack(
        32,
        "refs that move or apply to another repository; paths that leave the repository",
        TESTS + "test_planner.py: moved_tag_is_refused_and_moved_branch_is_noted "
        "content_that_differs_from_the_lock_is_refused",
        TESTS + "test_forge.py: ref_does_not_apply_to_files_of_another_repository "
        "ref_does_not_apply_to_dependencies_in_another_repository "
        "file_outside_the_repository_is_refused",
        TESTS + "test_dependencies.py: ref_does_not_apply_to_another_repository",
    ),
    attack(
        33,
        "sources that make the compiler loop, crash or exhaust the memory",
        TESTS + "test_compiler.py: compiler_that_loops_is_killed "
        "faulty_compiler_causes_an_error_only loop_of_the_compiler_does_not_block_the_server "
        "compiler_has_no_environment_and_an_empty_folder",
        not_here="the network of the compiler is not disabled: mpy-cross opens no sockets and "
        "executes nothing of a source",
    ),
    attack(
        34,
        "code of a package that would run on the server",
        TESTS + "test_pypi.py: no_code_of_a_distribution_runs_on_the_server",
    ),
]

PACKAGES: Final = [
    defence(
        "package: a member of an archive has a plain path",
        CODE + "archives.py",
        "_check_member_path = lambda path: None",
        TESTS + "test_archives.py::test_unsafe_member_path_in_tar_is_refused",
        TESTS + "test_archives.py::test_unsafe_member_path_in_zip_is_refused",
    ),
    defence(
        "package: a member of a tar is a plain file",
        CODE + "archives.py",
        "_is_plain_file = lambda member: True",
        TESTS + "test_archives.py::test_tar_with_link_device_or_sparse_file_is_refused",
    ),
    defence(
        "package: a tar is inflated up to a limit only",
        CODE + "archives.py",
        "_max_inflated_bytes = lambda max_bytes: 0  # no limit",
        TESTS + "test_archives.py::test_decompression_bomb_is_refused_before_it_is_inflated",
    ),
    defence(
        "package: names that differ in case only are refused",
        CODE + "archives.py",
        "_ignore_case = lambda path: path",
        TESTS + "test_archives.py::test_names_that_differ_in_case_only_are_refused",
    ),
    defence(
        "package: no path leaves the install's folder",
        CODE + "install_paths.py",
        "_leaves_folder = lambda parts: False",
        TESTS + "test_install_paths.py::test_unsafe_path_is_refused",
        TESTS + "test_index.py::test_unsafe_path_of_a_package_is_refused",
    ),
    defence(
        "package: a path in a package.json stays in its repository",
        "cloudmanager/protocol/package_references.py",
        'join_path = lambda folder, reference, package: f"{folder}/{reference}"',
        "cloudmanager/protocol/test_package_references.py::test_path_that_is_not_below_the_root_is_refused",
    ),
    defence(
        "package: no package writes boot files, the client or its key",
        CODE + "install_paths.py",
        "is_reserved = lambda path: False",
        TESTS + "test_install_paths.py::test_path_of_owner_or_client_is_reserved",
        TESTS + "test_index.py::test_reserved_paths_in_the_root_folder_are_left_out",
    ),
    defence(
        "package: files of other packages are not overwritten",
        SERVER + "installs/install_manifest.py",
        "_check_owner = lambda *args: None",
        "cm_server/installs/test_install_manifest.py::test_overwriting_other_files_needs_force",
    ),
    defence(
        "package: a leftover source that would hide bytecode is removed",
        SERVER + "installs/install_manifest.py",
        "_find_shadowing = lambda plan, mpy, file_hashes: set()",
        "cm_server/installs/test_install_manifest.py::test_shadowing_file_is_removed",
        "cm_server/installs/test_board_install.py::test_shadowing_source_is_removed_and_obstacle_is_an_error",
    ),
    defence(
        "package: content matches its hash",
        CODE + "package_files.py",
        "_is_as_promised = lambda content, part: True",
        TESTS + "test_index.py::test_content_that_differs_from_its_short_hash_is_refused",
        TESTS + "test_package_files.py::test_content_with_another_size_than_the_lock_is_refused",
    ),
    defence(
        "package: the number of dependencies is bounded",
        CODE + "resolve.py",
        "_check_requirement_count = lambda count, max_packages: None",
        TESTS + "test_resolve.py::test_hundred_thousand_dependencies_are_refused_quickly",
    ),
    defence(
        "package: a version has no second @",
        CODE + "requirement.py",
        "_check_single_at = lambda text, version: None",
        TESTS + "test_requirement.py::test_invalid_requirement_is_refused_with_a_reason",
    ),
    defence(
        "package: no private address is connected to",
        CODE + "http_fetcher.py",
        "is_public = lambda address: True",
        TESTS + "test_http_fetcher.py::test_private_address_is_refused_in_every_notation",
        TESTS + "test_direct_sources.py::test_url_of_a_private_address_is_refused",
    ),
    defence(
        "package: no private address is requested from a proxy",
        CODE + "http_fetcher.py",
        "_is_private_literal = lambda host: False",
        TESTS + "test_proxied_http.py::test_private_address_is_refused_in_every_notation",
    ),
    defence(
        "package: this machine is not reached through a proxy",
        "cloudmanager/protocol/proxies.py",
        "is_this_machine = lambda host: False",
        TESTS
        + "test_proxied_http.py::test_this_machine_is_not_reached_through_the_proxy[localhost]",
        "cloudmanager/protocol/test_proxies.py::test_this_machine_is_always_direct",
    ),
    defence(
        "package: a configured source is exempt at its own origin only",
        CODE + "http_fetcher.py",
        "_may_be_private = lambda url, access: access.may_be_private",
        TESTS + "test_http_fetcher.py::test_only_the_configured_origin_may_be_private",
        TESTS + "test_http_fetcher.py::test_redirect_to_a_private_address_is_not_followed",
    ),
    defence(
        "package: a web page in place of a file is refused",
        CODE + "package_files.py",
        "_is_web_page = lambda content_type, name: False",
        TESTS + "test_direct_sources.py::test_web_page_instead_of_a_file_is_refused",
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
        TESTS + "test_lock.py::test_malformed_or_incomplete_lock_is_refused",
    ),
    defence(
        "package: a dependency stays in its package's index",
        CODE + "dependencies.py",
        "_keep_index = lambda need, package: need",
        TESTS + "test_index.py::test_dependency_is_looked_up_in_its_packages_index",
    ),
    defence(
        "package: a ref holds for its own repository only",
        CODE + "forge.py",
        "_has_same_commit = lambda file, package: True",
        TESTS + "test_forge.py::test_ref_does_not_apply_to_files_of_another_repository",
    ),
    defence(
        "package: a tag that moved is refused",
        CODE + "lock.py",
        "_is_tag = lambda ref: False",
        TESTS + "test_planner.py::test_moved_tag_is_refused_and_moved_branch_is_noted",
    ),
    defence(
        "package: the compiler's run time is bounded",
        CODE + "compiler.py",
        "async def _wait_for_exit(process, seconds):\n    return await process.wait()",
        TESTS + "test_compiler.py::test_faulty_compiler_causes_an_error_only[sleep]",
    ),
    defence(
        "package: what an interrupted install staged is removed",
        SERVER + "installs/board_install.py",
        "_is_leftover = lambda staged: False",
        "cm_server/installs/test_board_install.py::test_space_of_leftover_staged_files_counts_as_free",
    ),
]
