"""Syntax trees in several threads, though CPython counts their depth per interpreter."""

from __future__ import annotations

import ast
import gc
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from threegates import digest
from threegates.pages import syntax
from threegates.pages.syntax import parse_package, syntax_tree

SOURCES = [path.read_text() for path in sorted(Path(syntax.__file__).parent.glob("*.py"))]


@pytest.fixture
def restless(monkeypatch):
    """Every garbage collection lets other threads in."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)

    def give_way(*_: object) -> None:
        time.sleep(0)

    gc.callbacks.append(give_way)
    yield
    gc.callbacks.remove(give_way)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("restless")
def test_trees_are_right_whatever_other_threads_parse():
    with ThreadPoolExecutor(3) as pool:
        found = [*pool.map(syntax_tree, SOURCES * 3)]
    assert all(
        ast.dump(tree) == ast.dump(ast.parse(source))
        for tree, source in zip(found[: len(SOURCES)], SOURCES, strict=True)
    )


def test_what_is_no_python_is_refused_and_others_go_on():
    with pytest.raises(SyntaxError):
        syntax_tree("%matplotlib inline")
    assert len(syntax_tree("a = 1").body) == 1


def test_after_the_whole_package_was_parsed_no_digest_of_code_parses(monkeypatch):
    parse_package()

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("parsed again")

    names = [f"threegates.{name}" for name in ("cli", "book.build", "lab.train", "geometry")]
    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", refused)
        assert len(digest.code_digest(*names)) == 64
