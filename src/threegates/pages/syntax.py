"""Syntax trees, built by one thread at a time.

CPython before 3.13 keeps the depth of the tree that is being built per interpreter, not per thread: where a
garbage collection lets another thread in, both fail with SystemError "AST constructor recursion depth
mismatch" (python/cpython issue 106905). Pages of the book are prepared in threads.
"""

from __future__ import annotations

import ast
import threading

from threegates.digest import PACKAGE, code_digest

_ONE_AT_A_TIME = threading.Lock()


def syntax_tree(source: str) -> ast.Module:
    """The syntax tree of some code.

    Raises
    ------
    SyntaxError : it is not Python.
    """
    with _ONE_AT_A_TIME:
        return ast.parse(source)


def parse_package() -> None:
    """Parse every module of this package, so that no digest of code has to later on, in whichever thread."""
    places = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob("*.py")]
    with _ONE_AT_A_TIME:
        code_digest(*sorted(".".join(place.parts).removesuffix(".__init__") for place in places))
