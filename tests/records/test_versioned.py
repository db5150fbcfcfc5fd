"""A JSON file with a version is read whole, or refused with what, where, expected, found and a remedy."""

from __future__ import annotations

import json

import pytest

from threegates.errors import RecordError
from threegates.records.versioned import read_versioned


def read(path):
    return read_versioned(
        path, 3, lambda told: told["name"].upper(), what="a list", remedy="fetch it", renew="write it anew"
    )


def test_what_is_made_of_the_content_is_given_back(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"version": 3, "name": "über"}), encoding="utf-8")
    assert read(path) == "ÜBER"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'version'"),
        ('{"version": 3}', "KeyError: 'name'"),
        ('{"version": 3, "name": 5}', "AttributeError"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(text, found, tmp_path):
    path = tmp_path / "list.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RecordError, match="a list cannot be read") as failure:
        read(path)
    error = failure.value
    assert (error.where, error.expected, error.remedy) == (path, "JSON of version 3", "fetch it")
    assert str(error.found).startswith(found)


def test_bytes_that_are_no_text_are_refused_too(tmp_path):
    (tmp_path / "list.json").write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match="UnicodeDecodeError"):
        read(tmp_path / "list.json")


@pytest.mark.parametrize("version", [2, 4, "3", None])
def test_a_file_of_another_version_is_not_looked_into(version, tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"version": version}))
    with pytest.raises(RecordError, match="a list is of another version") as failure:
        read(path)
    error = failure.value
    assert (error.where, error.expected, error.found) == (path, 3, version)
    assert error.remedy == "write it anew"


def test_an_error_of_ours_inside_is_not_renamed(tmp_path):
    (tmp_path / "list.json").write_text('{"version": 3}')

    def refuse(told):
        raise RecordError("a matter of its own")

    with pytest.raises(RecordError, match="a matter of its own"):
        read_versioned(tmp_path / "list.json", 3, refuse, what="a list", remedy="", renew="")
