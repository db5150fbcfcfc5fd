"""Digests of definitions: what counts wherever it is reached, and what never does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from threegates import canonical, definitions
from threegates.definitions import closure, code_digest, differences, reached

#: A small package in which every construct that counts occurs: `demo.top.measure` reaches all of it.
FILES = {
    "__init__.py": "",
    "top.py": '''
"""About."""
from __future__ import annotations
import functools
import numpy as np
from typing import TYPE_CHECKING
from demo.inner import steps
from .inner.values import SCALE as FACTOR, Kind
from demo import errors
if TYPE_CHECKING:
    from demo.inner.shape import Shape

LIMIT: int = 3
LIMIT += 1
left, right = 1, 2

@functools.cache
def measure(x, shape: Shape, *, limit=LIMIT, kind=Kind.FIRST):
    """Words."""
    total = np.linalg.norm(x) * FACTOR
    for step in range(limit):
        total += steps.advance(step, x)
    if total < 0:
        raise errors.Wrong("negative")
    return [steps.scaled(item) for item in total if (last := item) > left] + [last, right]

def unreached():
    return 99
''',
    "errors.py": 'class Wrong(Exception):\n    """Says."""\n\n    code = 17\n',
    "inner/__init__.py": "",
    "inner/steps.py": """
from demo.inner.values import offset
import demo.deep.wells

WARM = [1, 2]
WARM[0] = 5

def advance(step, x):
    from demo.inner.values import SCALE
    return odd(step) + SCALE + offset(x)

def odd(n):
    return n != 0 and even(n - 1)

def even(n):
    return n == 0 or odd(n - 1)

def scaled(item):
    return demo.deep.wells.depth(item)
""",
    "inner/values.py": """
import enum

SCALE = 2.5

class Kind(enum.Enum):
    FIRST = "first"

def offset(x, by=7):
    return x + by
""",
    "inner/shape.py": "class Shape:\n    sides = 4\n\n    def area(self):\n        return self.sides ** 2\n",
    "deep/__init__.py": "",
    "deep/wells.py": "try:\n    import fast\nexcept ImportError:\n    fast = None\n\n"
    "def depth(x):\n    return f'{x:.3f}' if fast else 11\n",
    "alone.py": "ALONE = 1\n",
}
ROOT = "demo.top.measure"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "demo"


class Trees:
    """Packages of files, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def make(self, files: dict[str, str]) -> Path:
        self.count += 1
        return write(self.folder / str(self.count), files)

    def digest(self, files: dict[str, str], *roots: str, **bounds) -> str:
        return code_digest(*(roots or (ROOT,)), root=self.make(files), **bounds)


@pytest.fixture
def trees(tmp_path):
    return Trees(tmp_path)


def changed(name: str, before: str, after: str) -> dict[str, str]:
    assert FILES[name].count(before) == 1, (name, before)
    return FILES | {name: FILES[name].replace(before, after)}


COUNTS = {
    "a constant": ("inner/values.py", "2.5", "2.25"),
    "a type of a constant": ("inner/values.py", "by=7", "by=7.0"),
    "a default": ("top.py", "limit=LIMIT", "limit=5"),
    "an operator": ("top.py", "np.linalg.norm(x) *", "np.linalg.norm(x) /"),
    "an external name": ("top.py", "np.linalg.norm", "np.linalg.cond"),
    "a package": ("top.py", "import numpy as np", "import cupy as np"),
    "a decorator": ("top.py", "@functools.cache\n", ""),
    "an annotation": ("top.py", "shape: Shape, ", "shape, "),
    "a method of an annotated class": ("inner/shape.py", "** 2", "** 3"),
    "an attribute of an annotated class": ("inner/shape.py", "sides = 4", "sides = 5"),
    "a base class": ("inner/values.py", "enum.Enum", "enum.Flag"),
    "a member": ("inner/values.py", '"first"', '"second"'),
    "an assignment that adds": ("top.py", "LIMIT += 1", "LIMIT += 2"),
    "a tuple of constants": ("top.py", "= 1, 2", "= 1, 3"),
    "a called function": ("top.py", "steps.scaled(item)", "steps.odd(item)"),
    "an order of statements": (
        "inner/steps.py", "odd(step) + SCALE + offset(x)", "SCALE + odd(step) + offset(x)"
    ),
    "a member of a circle": ("inner/steps.py", "n == 0 or", "n == 1 or"),
    "a function after a module's alias": ("deep/wells.py", "11", "12"),
    "an import that may fail": ("deep/wells.py", "import fast", "import faster as fast"),
    "an f-string's format": ("deep/wells.py", ".3f", ".4f"),
    "an effect": ("inner/steps.py", "WARM[0] = 5", "WARM[0] = 6"),
    "what an effect changes": ("inner/steps.py", "WARM = [1, 2]", "WARM = [1, 3]"),
    "a name of an outer function": ("top.py", "(last := item) >", "(last := item) >="),
}  # fmt: skip


@pytest.mark.parametrize("what", COUNTS)
def test_what_computes_counts_wherever_it_is_reached(what, trees):
    assert trees.digest(changed(*COUNTS[what])) != trees.digest(FILES)


def moved() -> dict[str, str]:
    """`deep.wells` in another folder."""
    files = {name: text.replace("demo.deep.wells", "demo.far.off.wells") for name, text in FILES.items()}
    files["far/off/wells.py"] = files.pop("deep/wells.py")
    return files | {"far/__init__.py": "", "far/off/__init__.py": ""}


def split() -> dict[str, str]:
    """`odd` and `even` in a module of their own."""
    text = FILES["inner/steps.py"]
    start, end = text.index("def odd"), text.index("def scaled")
    rest = text[:start].replace("WARM =", "from demo.pair import odd\nWARM =") + text[end:]
    return FILES | {"inner/steps.py": rest, "pair.py": text[start:end]}


def folded() -> dict[str, str]:
    """`values` written into `steps`, whose importers take it from there."""
    own = FILES["inner/steps.py"].replace("from demo.inner.values import offset\n", FILES["inner/values.py"])
    files = {name: text.replace("inner.values", "inner.steps") for name, text in FILES.items()}
    return files | {"inner/steps.py": own.replace("    from demo.inner.values import SCALE\n", "")}


def renamed() -> dict[str, str]:
    return {
        name: text.replace("measure", "gauge").replace("offset", "shift").replace("odd", "uneven")
        for name, text in FILES.items()
    }


SAME = {
    "words": changed("top.py", '"""Words."""', '"""Other words."""\n    # why'),
    "layout": changed("top.py", "(last := item) > left", "(\n    (last := item) > left  )"),
    "a neighbour": changed("top.py", "99", "98"),
    "a module that is not reached": changed("alone.py", "1", "2"),
    "a new error": changed("errors.py", "17", "18"),
    "a new definition": FILES | {"inner/values.py": FILES["inner/values.py"] + "\nNEW = 1\n"},
    "an import of a module": changed(
        "top.py", "from demo.inner import steps", "import demo.inner.steps as steps"
    ),
    "an import of a name": FILES
    | {
        "top.py": FILES["top.py"]
        .replace("import numpy as np", "from numpy import linalg as alg")
        .replace("np.linalg", "alg")
    },
    "an absolute import": changed("top.py", "from .inner.values", "from demo.inner.values"),
    "an import inside": FILES
    | {
        "inner/steps.py": FILES["inner/steps.py"]
        .replace("    from demo.inner.values import SCALE\n", "")
        .replace("import offset", "import offset, SCALE")
    },
    "a re-export": changed("top.py", "from demo.inner import steps", "from demo.shop import steps")
    | {"shop.py": "from demo.inner import steps\n"},
    "an annotation in quotes": changed("top.py", "shape: Shape", 'shape: "Shape"'),
    "an order of definitions": FILES
    | {"inner/values.py": FILES["inner/values.py"].replace("SCALE = 2.5\n", "") + "\nSCALE = 2.5\n"},
    "what runs as a script": FILES
    | {"top.py": FILES["top.py"] + "\nif __name__ == '__main__':\n    measure(1)\n"},
    "a place": moved(),
    "a module in two": split(),
    "two modules in one": folded(),
}


@pytest.mark.parametrize("what", SAME)
def test_names_places_imports_and_what_is_not_reached_do_not_count(what, trees):
    assert trees.digest(SAME[what]) == trees.digest(FILES)


def test_names_of_definitions_do_not_count(trees):
    assert trees.digest(renamed(), "demo.top.gauge") == trees.digest(FILES)


def test_all_of_it_at_once(trees):
    files = {name: text.replace("measure", "gauge") for name, text in moved().items()}
    assert trees.digest(files, "demo.top.gauge") == trees.digest(FILES)


@pytest.mark.parametrize(
    ("inside", "reaches"),
    [
        ("def f(g):\n    return g", False),
        ("def f(*g):\n    return g", False),
        ("def f():\n    g = 1\n    return g", False),
        ("def f():\n    return [g for g in ()]", False),
        ("def f():\n    return [x for x in g]", True),
        ("def f():\n    return (lambda g: g)", False),
        ("def f():\n    return (lambda x=g: x)", True),
        ("def f():\n    for g in (): return g", False),
        ("def f():\n    with open() as g: return g", False),
        ("def f():\n    try: pass\n    except OSError as g: return g", False),
        ("def f(x):\n    match x:\n        case [g, *_]: return g", False),
        ("def f(x):\n    match x:\n        case g(): return x", True),
        ("def f():\n    if (g := 1): return g", False),
        ("def f():\n    [(g := x) for x in ()]\n    return g", False),
        ("def f():\n    import g\n    return g", False),
        ("def f():\n    def g(): pass\n    return g", False),
        ("def f():\n    global g\n    g = 1", True),
        ("def f(g):\n    def inner():\n        return g\n    return inner", False),
        ("def f(g):\n    def inner():\n        global g\n        return g\n    return inner", True),
        ("def f():\n    class A:\n        g = 1\n        def m(self):\n            return g", True),
        ("class f:\n    g = 1\n    h = 2", False),
        ("class f:\n    g = g", True),
        ("class f:\n    g = 1\n    def m(self, x=g): return x", True),
        ("class f:\n    def m(self):\n        return self.g", False),
        ("class f:\n    h = 1\n    def m(self):\n        return [g for h in h]", True),
        ("f = [g for h in ()]", True),
        ("f: g = 1", True),
        ("f = lambda: g", True),
        ("if X:\n    f = g", True),
        ("f, h = g()", True),
        ("def f(x):\n    return x.g", False),
        ("def f(x):\n    return x(g=1)", False),
    ],
)
def test_names_are_resolved_as_scopes_do_it(inside, reaches, trees):
    files = {"__init__.py": "", "a.py": f"def g():\n    return 1\n\n{inside}\n"}
    tree = trees.make(files)
    assert ("demo.a.g" in reached("demo.a.f", root=tree)) == reaches
    again = trees.digest(files | {"a.py": files["a.py"].replace("return 1\n", "return 2\n", 1)}, "demo.a.f")
    assert (again != code_digest("demo.a.f", root=tree)) == reaches


def test_what_is_reached_is_told_with_its_file(trees):
    tree = trees.make(FILES)
    found = reached(ROOT, root=tree)
    assert found["demo.inner.steps.even"] == tree / "inner" / "steps.py"
    assert "demo.inner.steps.<effects>" in found
    assert not {"demo.top.unreached", "demo.errors.Wrong", "demo.alone.ALONE"} & set(found)


def test_a_module_stands_for_all_its_definitions_and_effects(trees):
    before = trees.digest(FILES, "demo.top")
    assert trees.digest(changed("top.py", "99", "98"), "demo.top") != before
    texts = ("", "ALONE = 1\n", "print(2)\n", "ALONE = 1\nprint(2)\n")
    found = {trees.digest(FILES | {"alone.py": text}, "demo.alone") for text in texts}
    assert len(found) == len(texts)


@pytest.mark.parametrize("name", ["__init__.py", "deep/__init__.py", "inner/values.py"])
def test_effects_of_modules_and_of_their_packages_count(name, trees):
    assert trees.digest(FILES | {name: FILES[name] + "\nprint(1)\n"}) != trees.digest(FILES)
    assert trees.digest(FILES | {"alone.py": "print(1)\n"}) == trees.digest(FILES)


def test_a_module_that_is_used_as_a_value_counts_whole(trees):
    using = "from demo import b\n\ndef f(n):\n    return getattr(b, n)\n"
    files = {"__init__.py": "", "a.py": using, "b.py": "x = 1\n"}
    before = trees.digest(files, "demo.a.f")
    assert trees.digest(files | {"b.py": "x = 1\ny = 2\n"}, "demo.a.f") != before
    assert trees.digest(files | {"b.py": "z = 1\n"}, "demo.a.f") != before


def test_what_is_outside_counts_by_its_name_alone(trees):
    bounds = {"outside": ["demo.inner"], "inside": ["demo.inner.values.offset", "demo.inner.steps.advance"]}
    before = trees.digest(FILES, **bounds)
    for name in ("a constant", "a method of an annotated class", "a member of a circle"):
        assert trees.digest(changed(*COUNTS[name]), **bounds) == before
    assert trees.digest(changed(*COUNTS["a called function"]), **bounds) != before
    assert trees.digest(changed("inner/steps.py", "+ SCALE +", "- SCALE +"), **bounds) != before


def test_names_below_a_longer_prefix_are_followed(trees):
    files = {
        "__init__.py": "",
        "a.py": "from demo.b import c\nfrom demo import b\n\ndef f():\n    return c.g(), b.c.h()\n",
        "b/__init__.py": "",
        "b/c.py": "def g():\n    return h()\n\ndef h():\n    return 1\n",
    }
    tree = trees.make(files)
    assert "demo.b.c.g" not in reached("demo.a.f", root=tree, outside=["demo.b"])
    found = reached("demo.a.f", root=tree, outside=["demo.b"], inside=["demo.b.c.g"])
    assert {"demo.b.c.g", "demo.a.f"} == set(found)


def test_what_a_definition_inside_takes_from_elsewhere_is_followed(trees):
    """`decompose_base` in the study's cache on disk, which is outside, calls `decompose`, which is not."""
    files = {
        "__init__.py": "",
        "a.py": "from demo.b import g\n\ndef f():\n    return g()\n",
        "b.py": "from demo.c import h\n\ndef g():\n    return h() + own()\n\ndef own():\n    return 1\n",
        "c.py": "def h():\n    return 1\n",
    }
    bounds = {"outside": ["demo.b"], "inside": ["demo.b.g"]}
    assert {*reached("demo.a.f", root=trees.make(files), **bounds)} == {"demo.a.f", "demo.b.g", "demo.c.h"}


def circle(members: int, change: int | None = None, name: str = "f") -> list[str]:
    """Functions that call each other round and round, with a constant each."""
    numbers = [k + 100 * (k == change) for k in range(members)]
    return [
        f"def {name}{k}(n):\n    return {numbers[k]} + {name}{(k + 1) % members}(n)\n" for k in range(members)
    ]


@pytest.mark.parametrize("members", [1, 2, 5])
def test_every_member_of_a_circle_counts_and_its_names_do_not(members, trees):
    def digest(lines: list[str], root: str = "demo.a.f0") -> str:
        return trees.digest({"__init__.py": "", "a.py": "\n".join(lines)}, root)

    before = digest(circle(members))
    found = {digest(circle(members, k)) for k in range(members)}
    assert len(found | {before}) == members + 1
    assert digest(circle(members, name="other"), "demo.a.other0") == before
    assert digest(circle(members)[::-1]) == before


def test_a_long_chain_needs_no_recursion(trees):
    lines = [f"def f{k}():\n    return f{k + 1}()\n" for k in range(3000)] + ["def f3000():\n    return 1\n"]
    assert len(reached("demo.a.f0", root=trees.make({"__init__.py": "", "a.py": "\n".join(lines)}))) == 3001


@pytest.mark.parametrize("name", ["demo.nothing", "demo.top.nothing", "other.top"])
def test_an_unknown_root_is_refused(name, trees):
    with pytest.raises(ModuleNotFoundError, match=name):
        code_digest(name, root=trees.make(FILES))


def test_a_file_that_changes_is_read_again(trees):
    tree = trees.make(FILES)
    before = code_digest(ROOT, root=tree)
    path = tree / "inner" / "values.py"
    stat = path.stat()
    path.write_text(FILES["inner/values.py"].replace("2.5", "3.5"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert code_digest(ROOT, root=tree) != before


@pytest.mark.parametrize(
    ("what", "place"),
    [
        ("a constant", "inner/values.py:SCALE"),
        ("a called function", "inner/steps.py:scaled"),
        ("a member of a circle", "inner/steps.py:even"),
        ("a method of an annotated class", "inner/shape.py:Shape"),
        ("an effect", "inner/steps.py:<effects>"),
    ],
)
def test_differences_are_told_by_name(what, place, trees):
    old, new = (closure(ROOT, root=trees.make(files)) for files in (FILES, changed(*COUNTS[what])))
    found = differences(old, new)
    assert place in [one for pair in found for one in pair] and len(found) <= 2
    assert differences(old, closure(ROOT, root=trees.make(moved()))) == []


def test_differences_name_the_same_definition_in_another_place(trees):
    old = closure(ROOT, root=trees.make(FILES))
    files = moved()
    files["far/off/wells.py"] = files["far/off/wells.py"].replace("else 11", "else 12")
    found = differences(old, closure(ROOT, root=trees.make(files)))
    assert found == [("deep/wells.py:depth", "far/off/wells.py:depth")]


def other_pythons() -> list[str]:
    """Those of 3.11 and later that are there and start."""
    found = [shutil.which(f"python3.{minor}") for minor in range(11, 15)]
    found += map(str, sorted(Path.home().glob(".pyenv/versions/3.1[1-9]*/bin/python")))
    started = {path: subprocess.run([path, "-c", ""], capture_output=True) for path in found if path}
    return [path for path, done in started.items() if done.returncode == 0]


IN_ANOTHER_PYTHON = """
import json, sys, types
sys.path.insert(0, sys.argv[1])
from threegates.definitions import code_digest
from pathlib import Path
print(json.dumps([sys.version_info[1], [code_digest(name, root=Path(sys.argv[2])) for name in sys.argv[3:]]]))
"""
TRICKY = """
def f(x, y=..., /, *a: int, k=-1e-05, **w) -> "list[int]":
    return f"{x:}{x!r:>{y}}{x = }" f"a" "b" f"{{}}{x:%d é}{'q'}", b"\\x00", "\\u0378é", 1_0, 2j, u"u", {**w}

async def g(x):
    async with x as y, x: yield await y
    try: pass
    except* OSError: raise
    return_ = [i async for i in x if i]
    match x:
        case {"a": [1, *rest], **more} | (str() as more): return
"""


def test_every_python_gives_the_same_digest(trees):
    tree = trees.make(FILES | {"tricky.py": TRICKY})
    names = [ROOT, "demo.tricky"]
    own = [code_digest(name, root=tree) for name in names]
    source = str(Path(definitions.__file__).parents[1])
    for python in other_pythons():
        command = [python, "-c", IN_ANOTHER_PYTHON, source, str(tree), *names]
        done = subprocess.run(command, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        version, found = json.loads(done.stdout)
        assert found == own, version


def test_texts_say_nothing_of_the_version_of_python(trees):
    tree = trees.make(FILES | {"tricky.py": TRICKY})
    module = canonical.read_module(tree / "tricky.py", "demo.tricky")
    text = "".join(part for part in module.form("f") if isinstance(part, str))
    for word in ("type_params", "ctx", "lineno", "kind", "type_comment"):
        assert word not in text
