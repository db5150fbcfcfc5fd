from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from threegates import definitions
from threegates.digest import code_digest, digest_versions, file_digest, runtime_versions, value_digest


def test_the_digest_of_code_is_that_of_definitions():
    assert code_digest is definitions.code_digest
    assert len(code_digest("threegates.digest")) == 64


class Recipe(BaseModel):
    rate: float
    steps: int


@dataclass
class Step:
    number: int


def test_value_digest_is_the_sha256_of_canonical_json():
    expected = hashlib.sha256(b'{"a":[1,2.5,null],"b":{"rate":0.1,"steps":3}}').hexdigest()
    assert value_digest({"b": Recipe(rate=0.1, steps=3), "a": (1, 2.5, None)}) == expected


def test_value_digest_takes_dataclasses():
    assert value_digest(Step(3)) == value_digest({"number": 3})


@pytest.mark.parametrize("value", [Path("x"), {"a": [Path("x")]}, {1: 2}, {"a": {3}}, b"x"])
def test_value_digest_refuses_what_is_not_portable(value):
    with pytest.raises(TypeError):
        value_digest(value)


def test_value_digest_refuses_nan():
    with pytest.raises(ValueError, match="nan"):
        value_digest([float("nan")])


def test_file_digest(tmp_path):
    (tmp_path / "f").write_bytes(b"abc")
    assert file_digest(tmp_path / "f") == hashlib.sha256(b"abc").hexdigest()


def test_versions_have_no_build_tags():
    versions = runtime_versions()
    assert {"python", "torch", "numpy", "safetensors"} <= set(versions)
    assert not any("+" in version for version in versions.values())


def test_a_digest_does_not_cover_the_version_of_python():
    versions = runtime_versions()
    assert "python" not in digest_versions() and versions.pop("python")
    assert digest_versions() == versions
