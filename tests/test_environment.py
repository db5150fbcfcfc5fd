"""What a process was asked for: options before variables, children told in their own environment."""

from __future__ import annotations

import ast
import os
import subprocess
import sys

import pytest

from threegates.digest import PACKAGE
from threegates.environment import for_child, forget, keep, variable

NAME = "THREEGATES_OF_A_TEST"
# Who reads variables, and why not through `variable`.
READERS = {
    "environment.py": "all others read through it",
    "cli.py": "the edge itself",
    # Records' digests cover it, and a worker's environment is that of the command.
    "measures/base_cache.py": "read where the cache is opened, in workers too",
    "checkpoints/hub/range_cache.py": "read where the cache is opened, in workers too",
}
_CHANGING = ("clear", "pop", "popitem", "setdefault", "update", "__setitem__", "__delitem__", "__ior__")


def of_environment(node: ast.AST) -> bool:
    return ast.unparse(node) in ("os.environ", "environ", "os.environb")


def writes(tree: ast.AST) -> list[str]:
    """Places of code that change the environment of the process that runs it."""
    found = []
    for node in ast.walk(tree):
        targets: list[ast.AST] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.NamedExpr):
            targets = [node.target]
        changed = [one for target in targets for one in ast.walk(target)]
        changed = [one.value if isinstance(one, ast.Subscript) else one for one in changed]
        calls = isinstance(node, ast.Call) and (
            ast.unparse(node.func) in ("os.putenv", "os.unsetenv", "putenv", "unsetenv")
            or (
                isinstance(node.func, ast.Attribute)
                and node.func.attr in _CHANGING
                and of_environment(node.func.value)
            )
        )
        if calls or any(of_environment(one) for one in changed):
            found.append(f"line {node.lineno}: {ast.unparse(node)[:60]}")
    return found


@pytest.mark.parametrize(
    "code",
    [
        "os.environ['A'] = 'b'",
        "os.environ['A'], x = 'b', 1",
        "os.environ |= {'A': 'b'}",
        "del os.environ['A']",
        "os.environ.update(A='b')",
        "environ.pop('A')",
        "os.putenv('A', 'b')",
        "os.environ = {}",
    ],
)
def test_every_way_to_change_the_environment_is_seen(code):
    assert writes(ast.parse(code))
    assert not writes(ast.parse("own = {**os.environ, 'A': 'b'}; own['A'] = 'c'; os.environ.get('A')"))


def test_no_module_of_ours_writes_into_the_environment():
    """A build runs pages in threads, and a variable that one sets is there for all the others.

    Who calls us would find it changed, too. What is for a child goes into the child's own environment.
    """
    found = {
        str(path.relative_to(PACKAGE)): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := writes(ast.parse(path.read_text())))
    }
    assert found == {}


def test_variables_are_read_in_one_module_but_for_those_that_say_why():
    readers = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if any(
            of_environment(node) or ast.unparse(node) == "os.getenv"
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute | ast.Name)
        )
    }
    assert readers == set(READERS)


def test_what_is_kept_comes_before_a_variable_until_it_is_forgotten(monkeypatch):
    assert variable(NAME) == ""
    monkeypatch.setenv(NAME, "theirs")
    assert variable(NAME) == "theirs"
    keep({NAME: ""})
    assert variable(NAME) == "" and os.environ[NAME] == "theirs"
    keep({NAME: "ours", f"{NAME}_ELSE": "more"})
    assert (variable(NAME), variable(f"{NAME}_ELSE")) == ("ours", "more")
    forget()
    assert (variable(NAME), variable(f"{NAME}_ELSE")) == ("theirs", "")


def test_a_child_finds_what_was_kept_and_what_is_for_it_alone(monkeypatch):
    monkeypatch.setenv(f"{NAME}_1", "of the process")
    keep({f"{NAME}_2": "kept", f"{NAME}_3": "kept"})
    code = f"import os; print([os.environ['{NAME}_' + one] for one in '123'])"
    command = [sys.executable, "-c", code]
    own = for_child({f"{NAME}_3": "its own"})
    done = subprocess.run(command, env=own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["of the process", "kept", "its own"])
    assert not [name for name in os.environ if name in (f"{NAME}_2", f"{NAME}_3")]
