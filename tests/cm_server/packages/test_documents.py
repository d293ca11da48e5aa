"""Untrusted documents are parsed strictly (attack groups 24, 28 and 30)."""

from __future__ import annotations

import json

import pytest

from cloudmanager.protocol.errors import PackageError
from cm_server.limits import Limits
from cm_server.packages import documents
from cm_server.packages.documents import read_document, read_metadata, read_refs, read_requires


def read(**fields):
    return read_document(json.dumps(fields).encode(), "the document", Limits.package_files)


def test_document_of_a_mip_index_is_read():
    found = read(v=1, version="0.6.1", hashes=[["logging.py", "0123abcd"]])
    assert found == ("0.6.1", [("logging.py", "0123abcd")], [], [])


def test_missing_fields_are_empty_and_unknown_ones_ignored():
    assert read(author="x", extra={"a": 1}) == ("", [], [], [])
    assert read(version=None, urls=None, deps=None) == ("", [], [], [])


def test_dependency_may_lack_a_version():
    assert read(deps=[["a"], "b", ["c", "1"], ["d", None]]).deps == [
        ("a", ""),
        ("b", ""),
        ("c", "1"),
        ("d", ""),
    ]


def test_numeric_version_becomes_text():
    assert read(version=0.1).version == "0.1"


def test_further_items_of_an_entry_are_ignored():
    document = read_document(
        b'{"urls": [["a.py", "b", {"arch": 1}], ["c.py", "d", 1, 2]]}', "it", 9
    )
    assert document.urls == [("a.py", "b"), ("c.py", "d")]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>not found</html>",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b'{"a": 1, "a": 2}',
        b'{"version": NaN}',
        b'{"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"version": [1]}',
        b'{"version": true}',
        b'{"version": "' + b"1" * 100 + b'"}',
        b'{"version": "1\\n2"}',
        b'{"v": 99}',
        b'{"hashes": "x"}',
        b'{"hashes": [["a.py"]]}',
        b'{"hashes": [["a.py", 1]]}',
        b'{"hashes": [[1, "0123abcd"]]}',
        b'{"hashes": [["a.py", "0123"]]}',
        b'{"hashes": [["a.py", "../../xx"]]}',
        b'{"urls": [["a.py"]]}',
        b'{"urls": [{"a": 1}]}',
        b'{"deps": [[["a"], "1"]]}',
        b'{"deps": [["a", 1]]}',
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_malformed_document_is_refused(raw):
    with pytest.raises(PackageError):
        read_document(raw, "the document", Limits.package_files)


def test_document_with_too_many_files_or_deps_is_refused():
    for field in ("hashes", "urls", "deps"):
        rows = [[f"a{n}", "0123abcd"] for n in range(Limits.package_files + 1)]
        with pytest.raises(PackageError, match="too long"):
            read(**{field: rows})


def test_requires_are_read_without_extras_and_markers():
    raw = b"micropython-os\nmicropython-b (>=1.0)\n# no\nc[x]; python_version<'3'\n\n[extra]\nd\n"
    assert read_requires(raw) == ["micropython-os", "micropython-b>=1.0", "c"]


def test_metadata_is_read_without_extras_and_description():
    raw = b"Name: x\nRequires-Dist: a (==1)\nRequires-Dist: b; extra == 'c'\n\nRequires-Dist: d\n"
    assert read_metadata(raw) == ["a==1"]


def test_byte_order_mark_of_metadata_is_left_out():
    assert read_requires(b"\xef\xbb\xbfmicropython-os\r\nb\r\n") == ["micropython-os", "b"]
    assert read_metadata(b"\xef\xbb\xbfRequires-Dist: a\r\n\r\n") == ["a"]
    assert documents.is_dummy(b"\xef\xbb\xbfSummary: Dummy abc\r\n")


def test_dummy_is_recognised_by_its_summary():
    assert documents.is_dummy(b"Name: x\nSummary: Dummy abc module for MicroPython\n")
    assert not documents.is_dummy(b"Summary: no Dummy\n")


def test_annotated_tag_is_read_as_its_commit():
    one, two = b"1" * 40, b"2" * 40
    lines = [one + b" HEAD\0caps\n", one + b" refs/tags/v1\n", two + b" refs/tags/v1^{}\n"]
    raw = b"001e# service=git-upload-pack\n0000"
    raw += b"".join(b"%04x" % (len(line) + 4) + line for line in lines) + b"0000"
    assert read_refs(raw, "the repository") == {"HEAD": "1" * 40, "refs/tags/v1": "2" * 40}


@pytest.mark.parametrize("raw", [b"", b"<html>", b"00", b"0001", b"ffff", b"0000", b"-001abc"])
def test_malformed_list_of_refs_is_refused(raw):
    with pytest.raises(PackageError):
        read_refs(raw, "the repository")
