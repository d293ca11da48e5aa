"""Packages: the attacks on them (FIELD.md 5, groups 25 to 34), and what keeps them out.

mip's own mishaps (FIELD.md 6) are among them: a hash that does not match, targets that lead out,
cycles, a version that is missing, two @, refs that leak, a source that hides bytecode.
"""

from __future__ import annotations

from typing import Final

from .defence import SERVER, text_defence
from .table import attack

HERE: Final = "cm_server/packages/"
ROOM: Final = SERVER + "packages/"

PACKAGE_ATTACKS: Final = [
    attack(
        25,
        "archives: names that lead out, links, bombs, members that are not what they seem",
        HERE + "test_archives.py: member_that_is_not_plain_refuses_the_tar "
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
        HERE + "test_install_paths.py: path_that_is_not_plain_is_refused "
        "boot_client_and_key_are_never_a_packages folder_that_is_not_for_packages_is_refused",
        HERE + "test_index.py: target_that_is_not_the_packages_refuses_it "
        "boot_client_and_key_are_refused_at_the_root_too",
        HERE + "test_plan.py: source_that_would_hide_bytecode_goes_and_the_reverse",
        "cm_server/installs/test_board_install.py: a_leftover_source_goes_and_what_is_in_the_way_is_said",
        "cm_server/installs/test_install_manifest.py: files_of_others_are_overwritten_by_force_only",
    ),
    attack(
        27,
        "content that is not what its hash says, short or whole",
        HERE + "test_index.py: content_that_does_not_match_its_short_hash_is_refused "
        "content_of_another_source_with_the_same_short_hash_is_not_used",
        HERE + "test_package_files.py: hash_that_is_right_with_another_length_cannot_be "
        "cache_does_not_answer_for_another_hash_than_the_locks",
        HERE + "test_planner.py: cache_that_was_tampered_with_is_fetched_anew",
    ),
    attack(
        28,
        "cycles, very many dependencies, no version, two @, versions that conflict",
        HERE + "test_planner.py: cycle_of_dependencies_ends conflict_is_told_in_one_sentence "
        "hundred_thousand_dependencies_are_refused chain_without_an_end_is_refused",
        HERE + "test_resolve.py: package_that_needs_itself_ends search_that_leads_nowhere_ends",
        HERE + "test_documents.py: dependency_without_a_version_is_fine",
        HERE + "test_index.py: document_without_its_version_cannot_be_the_newest",
        HERE + "test_requirement.py: what_names_no_package_is_refused_in_a_sentence",
    ),
    attack(
        29,
        "the server is to ask addresses inside, by name, number, redirect, rebinding or scheme",
        HERE + "test_http_fetcher.py: private_address_is_known "
        "private_address_is_not_connected_to_however_it_is_written metadata_service_is_not_asked "
        "redirect_to_a_private_address_is_not_followed "
        "name_that_answers_otherwise_the_second_time_gains_nothing "
        "one_private_address_among_public_ones_refuses_all other_schemes_are_refused "
        "redirect_to_another_scheme_is_refused redirect_from_https_to_http_is_refused",
        HERE + "test_direct_sources.py: url_of_a_private_address_is_refused "
        "public_package_cannot_lead_to_a_private_index "
        "sent_document_cannot_name_the_servers_own_files",
        "cm_server/installs/test_plan_cache.py: an_index_inside_is_only_an_administrators_to_name",
    ),
    attack(
        30,
        "an index that is slow, endless, a bomb, a web page, frozen, rolled back, or breaks off",
        HERE + "test_http_fetcher.py: slow_answer_is_given_up endless_answer_is_cut "
        "gzip_bomb_does_not_go_off answer_that_is_too_big_is_refused",
        HERE + "test_index.py: index_that_answers_nonsense_installs_nothing "
        "failure_half_way_leaves_no_plan_and_no_wrong_content",
        HERE + "test_lock.py: frozen_index_gives_what_the_lock_has "
        "older_version_than_the_locks_is_a_rollback",
        HERE + "test_planner.py: rollback_of_the_newest_version_is_refused",
        HERE + "test_cache.py: write_that_fails_half_way_leaves_nothing",
    ),
    attack(
        31,
        "a private name that is public, too: no source falls through to another",
        HERE + "test_index.py: private_name_is_never_looked_for_elsewhere "
        "unknown_name_in_a_private_index_is_an_error_and_never_a_fallback "
        "dependency_stays_in_its_packages_index package_cannot_choose_an_index",
        HERE + "test_pypi.py: unknown_name_is_an_error_and_no_other_index_is_asked",
    ),
    attack(
        32,
        "refs that move or leak into another repository; paths that become another repository",
        HERE + "test_planner.py: tag_that_moved_since_the_lock_is_refused_and_a_branch_told "
        "content_that_is_another_one_than_the_locks_is_refused",
        HERE + "test_forge.py: ref_does_not_leak_into_files_of_another_repository "
        "ref_does_not_leak_into_dependencies_of_another_repository "
        "file_outside_of_the_repository_is_refused",
        HERE + "test_dependencies.py: ref_of_a_package_never_leaks_into_another_repository",
    ),
    attack(
        33,
        "sources that have the compiler loop, crash or eat",
        HERE + "test_compiler.py: source_that_makes_the_compiler_loop_is_cut "
        "compiler_that_goes_wrong_costs_a_sentence loop_of_the_compiler_does_not_block_the_server "
        "compiler_sees_no_secret_and_an_empty_folder",
        not_here="its network is not cut off: mpy-cross opens no socket, and runs nothing of a "
        "source",
    ),
    attack(
        34,
        "code of a package that is to run on the server",
        HERE + "test_pypi.py: no_setup_py_no_build_backend_no_pth_and_no_entry_point_ever_runs",
    ),
]

PACKAGES: Final = [
    text_defence(
        "package: a member of an archive has a plain path",
        ROOM + "archives.py",
        "        check_plain(path)\n",
        "",
        HERE + "test_archives.py::test_member_that_is_not_plain_refuses_the_tar",
        HERE + "test_archives.py::test_member_that_is_not_plain_refuses_the_zip",
    ),
    text_defence(
        "package: a member of a tar is a plain file",
        ROOM + "archives.py",
        "if not member.isreg() or member.issparse():",
        "if False:",
        HERE + "test_archives.py::test_link_device_or_sparse_file_refuses_the_tar",
    ),
    text_defence(
        "package: a tar grows so far and no further",
        ROOM + "archives.py",
        "inflater.decompress(raw, limits.PACKAGE_UNPACKED_BYTES + 1)",
        "inflater.decompress(raw)",
        HERE + "test_archives.py::test_gigabytes_from_kilobytes_are_refused_before_they_are_there",
    ),
    text_defence(
        "package: names that are one where no case is told are refused",
        ROOM + "archives.py",
        "        if path.casefold() in spellings:\n",
        "        if path in spellings:\n",
        HERE + "test_archives.py::test_names_that_differ_in_case_only_refuse_the_archive",
    ),
    text_defence(
        "package: no target leads out of its folder",
        ROOM + "install_paths.py",
        'any(not part.strip(". ") or part[-1] in ". " or part[0] == " " for part in parts)',
        "False",
        HERE + "test_install_paths.py::test_path_that_is_not_plain_is_refused",
        HERE + "test_index.py::test_target_that_is_not_the_packages_refuses_it",
    ),
    text_defence(
        "package: boot, client and key are nobody's to write",
        ROOM + "install_paths.py",
        "    if _OWNERS.fullmatch(full):\n",
        "    if False:\n",
        HERE + "test_install_paths.py::test_boot_client_and_key_are_never_a_packages",
        HERE + "test_index.py::test_boot_client_and_key_are_refused_at_the_root_too",
    ),
    text_defence(
        "package: files of others stay",
        SERVER + "installs/install_manifest.py",
        "if differs and owner != file.package and not force:",
        "if False:",
        "cm_server/installs/test_install_manifest.py::test_files_of_others_are_overwritten_by_force_only",
    ),
    text_defence(
        "package: a leftover source that would hide bytecode goes",
        SERVER + "installs/install_manifest.py",
        "sorted((old - kept) | hiding)",
        "sorted(old - kept)",
        "cm_server/installs/test_install_manifest.py::test_what_would_hide_it_goes_if_it_is_there",
        "cm_server/installs/test_board_install.py::test_a_leftover_source_goes_and_what_is_in_the_way_is_said",
    ),
    text_defence(
        "package: content is what its hash says",
        ROOM + "package_files.py",
        "if not sha256(content).startswith(promised) or "
        "(part.sha256 and len(content) != part.size):",
        "if False:",
        HERE + "test_index.py::test_content_that_does_not_match_its_short_hash_is_refused",
        HERE + "test_package_files.py::test_hash_that_is_right_with_another_length_cannot_be",
    ),
    text_defence(
        "package: dependencies are so many and no more",
        ROOM + "resolve.py",
        "        if len(seen) > limits.PACKAGES * 4:\n",
        "        if False:\n",
        HERE + "test_resolve.py::test_hundred_thousand_dependencies_are_refused_quickly",
    ),
    text_defence(
        "package: a version has no second @",
        ROOM + "requirement.py",
        '    if "@" in version:\n',
        "    if False:\n",
        HERE + "test_requirement.py::test_what_names_no_package_is_refused_in_a_sentence",
    ),
    text_defence(
        "package: no address inside is asked",
        ROOM + "http_fetcher.py",
        "            if not is_public(str(address[0])):\n",
        "            if False:\n",
        HERE
        + "test_http_fetcher.py::test_private_address_is_not_connected_to_however_it_is_written",
        HERE + "test_direct_sources.py::test_url_of_a_private_address_is_refused",
    ),
    text_defence(
        "package: what is configured is exempt at its own origin only",
        ROOM + "http_fetcher.py",
        "private = bool(own) and origin_of(url) == origin_of(own)",
        "private = bool(own)",
        HERE + "test_http_fetcher.py::test_only_its_own_origin_is_exempt",
        HERE + "test_http_fetcher.py::test_redirect_to_a_private_address_is_not_followed",
    ),
    text_defence(
        "package: a web page is no file",
        ROOM + "package_files.py",
        'if content_type == "text/html" and not what.endswith((".html", ".htm")):',
        "if False:",
        HERE + "test_direct_sources.py::test_web_page_in_a_files_place_is_refused",
    ),
    text_defence(
        "package: the newest is not older than the lock's",
        ROOM + "lock.py",
        "_numbers(release.version) < _numbers(was.version)",
        "False",
        HERE + "test_planner.py::test_rollback_of_the_newest_version_is_refused",
    ),
    text_defence(
        "package: a lock is whole",
        ROOM + "lock.py",
        "    _check_whole(wanted, releases)\n",
        "",
        HERE + "test_lock.py::test_lock_that_somebody_mended_badly_is_refused",
    ),
    text_defence(
        "package: a dependency stays in its package's index",
        ROOM + "dependencies.py",
        'replace(need, alias=owner.alias) if owner.source == "index" else need',
        "need",
        HERE + "test_index.py::test_dependency_stays_in_its_packages_index",
    ),
    text_defence(
        "package: a ref holds for its own repository only",
        ROOM + "forge.py",
        "at = commit if same and not wish.version else (await self.pin(wish))[0]",
        "at = commit",
        HERE + "test_forge.py::test_ref_does_not_leak_into_files_of_another_repository",
    ),
    text_defence(
        "package: a tag that moved is refused",
        ROOM + "lock.py",
        '    if was.ref.startswith("refs/tags/"):\n',
        "    if False:\n",
        HERE + "test_planner.py::test_tag_that_moved_since_the_lock_is_refused_and_a_branch_told",
    ),
    text_defence(
        "package: the compiler has so much time and no more",
        ROOM + "compiler.py",
        "asyncio.wait_for(process.wait(), limits.COMPILE_SECONDS)",
        "process.wait()",
        HERE + "test_compiler.py::test_compiler_that_goes_wrong_costs_a_sentence[sleep]",
    ),
    text_defence(
        "package: what an interrupted install staged gives its room back",
        SERVER + "installs/board_install.py",
        "    if staged is False and not dry_run:\n",
        "    if False:\n",
        "cm_server/installs/test_board_install.py::test_room_that_an_earlier_try_took_is_room",
    ),
]
