from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import BaseModel

from threegates.digest import code_digest, file_digest, import_closure, runtime_versions, value_digest


@pytest.fixture
def package(tmp_path):
    root = tmp_path / "demo"
    files = {
        "__init__.py": "",
        "a.py": 'from .inner import b\n\ndef f(x):\n    """Twice."""\n    return b.g(x) * 2\n',
        "inner/__init__.py": "",
        "inner/b.py": "def g(x):\n    from demo.c import SCALE\n    return x * SCALE\n",
        "c.py": "SCALE = 3\n",
        "apart.py": "ALONE = 1\n",
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def rewrite(path: Path, text: str) -> None:
    time.sleep(0.002)
    path.write_text(text)


def test_closure_follows_relative_and_inner_imports_and_parents(package):
    assert import_closure("demo.a", root=package) == {
        "demo",
        "demo.a",
        "demo.inner",
        "demo.inner.b",
        "demo.c",
    }


def test_comments_docstrings_and_layout_do_not_count(package):
    before = code_digest("demo.a", root=package)
    rewrite(
        package / "a.py",
        '"""New."""\nfrom .inner import (\n    b,\n)\n\n\n'
        'def f(x):\n    """Other words."""\n    # why\n    return (b.g(x) * 2)\n',
    )
    assert code_digest("demo.a", root=package) == before


@pytest.mark.parametrize("name", ["c.py", "inner/__init__.py", "__init__.py", "inner/b.py"])
def test_a_constant_anywhere_in_the_closure_counts(package, name):
    before = code_digest("demo.a", root=package)
    rewrite(package / name, (package / name).read_text().replace("3", "4") + "EXTRA = 1\n")
    assert code_digest("demo.a", root=package) != before


def test_a_changed_constant_of_an_indirect_import_counts(package):
    before = code_digest("demo.a", root=package)
    rewrite(package / "c.py", "SCALE = 4\n")
    assert code_digest("demo.a", root=package) != before


def test_a_module_outside_the_closure_does_not_count(package):
    before = code_digest("demo.a", root=package)
    rewrite(package / "apart.py", "ALONE = 2\n")
    assert code_digest("demo.a", root=package) == before


def test_an_unknown_module_is_refused(package):
    with pytest.raises(ModuleNotFoundError, match="demo.nothing"):
        code_digest("demo.nothing", root=package)


def test_own_package_is_the_default():
    closure = import_closure("threegates.digest")
    assert closure == {"threegates", "threegates.digest"}
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
