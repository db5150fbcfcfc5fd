"""What an extension makes stale: nothing that existed. And a changed constant: just what computes with it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.planted import planted
from tests.planted.planted import ROOT
from threegates.digest import code_digest
from threegates.jobs.closures import roots

# Digests of the smallest profile's runs, of every kind's code, and of every job of one pair.
TOLD = """
import json, sys
from threegates.digest import code_digest
from threegates.jobs.closures import roots
from threegates.jobs.kinds.known import KINDS, jobs_of
from threegates.jobs.nulls import asked_for
from threegates.jobs.sources import own_pair
from threegates.lab.plans.plan import plan

pair = own_pair(*sys.argv[1:])
kinds = ("pair", "group", "drift", "overlap", "lens", "table")
nulls = {"nulls": asked_for(), "seed": 0}
code = {
    f"{what} {kind}": code_digest(*one.roots, outside=one.outside, inside=one.inside)
    for what, known in roots().items()
    for kind, one in known.items()
}
jobs = {f"job {job.kind} {job.name}": job.digest for kind in kinds for job in KINDS[kind].jobs([pair], nulls)}
runs = {f"planned {item.run.name}": item.run.digest for item in plan("smoke")}
json.dump(code | jobs | runs, sys.stdout)
"""
# Of each extension, new files, and lines that go behind a passage of a file that there is.
NEW: dict[str, dict[str, str]] = {
    "a null": {
        "geometry/nulls/mirrored.py": """
\"\"\"A null that mirrors the mask: made for this test.\"\"\"
from threegates.geometry.nulls.null import Null

def masks(observed, generator):
    while True:
        yield observed.mask.flip(0)

NULL = Null(
    name="mirrored", title="mirrored", colour="#888888", marker="d", source="this test", holds="the count",
    destroys="the order of rows", matched_to=("mask",), sampler=masks,
)
"""
    },
    "an algorithm": {
        "lab/algorithms/centred.py": """
\"\"\"A loss of its own: made for this test.\"\"\"
from dataclasses import dataclass
from threegates.lab.objectives import Algorithm
from threegates.lab.rl import PolicyTrainer

@dataclass(frozen=True)
class Centred(Algorithm):
    pull: float = 0.5

class CentredTrainer(PolicyTrainer):
    def loss(self, log_probs, old, reference, advantages, mask):
        return self.rules.pull * (log_probs * mask).square().sum(), 0.0

ALGORITHM = Centred("centred", "group", 0.2, 0.2, "token", "none", 0.0, False, 0)
TRAINER = CentredTrainer
"""
    },
    "a chapter": {
        "chapters/novel/__init__.py": '"""A chapter made for this test."""\n',
        "chapters/novel/estimates.py": '"""Its estimates."""\nESTIMATES = {}\n',
    },
}
ADDED: dict[str, list[tuple[str, str, str]]] = {
    "a null": [
        ("geometry/nulls/table.py", "import bernoulli, magnitude,", " mirrored,"),
        ("geometry/nulls/table.py", "        magnitude.NULL,\n", "        mirrored.NULL,\n"),
    ],
    "an algorithm": [
        (
            "lab/algorithms/table.py",
            '    "dapo": "threegates.lab.algorithms.dapo",\n',
            '    "centred": "threegates.lab.algorithms.centred",\n',
        )
    ],
    "a chapter": [
        (
            "register.py",
            "from threegates.chapters.emergence import estimates as emergence\n",
            "from threegates.chapters.novel import estimates as novel\n",
        ),
        (
            "register.py",
            "_CHAPTERS = (\n",
            '    Chapter("novel", jobs=("pair",), estimates=novel.ESTIMATES),\n',
        ),
    ],
    "a subject": [
        ("lab/subjects.py", 'LARGER = "larger"\n', '#: Another.\nANOTHER = "another"\n'),
        (
            "jobs/subjects.py",
            "SUBJECTS = {subject.name: subject for subject in (_LAB, _ENCODER, _LARGER",
            ', Subject("another", "another", "another", label="another", colour="#CC79A7")',
        ),
    ],
    "a log column": [("lab/columns.py", "MORE_COLUMNS: tuple[str, ...] = (", '"tail_mass",')],
    "an error": [
        (
            "errors.py",
            "from __future__ import annotations\n",
            "\n\nclass EarlyError(Exception):\n    pass\n\n",
        )
    ],
    "a function beside others": [
        (
            "geometry/nulls/noise.py",
            "from __future__ import annotations\n",
            "\n\ndef brown_noise(size: int) -> int:\n    return size + 1\n\n",
        ),
        (
            "measures/norms.py",
            "from __future__ import annotations\n",
            "\n\ndef twice(size: int) -> int:\n    return 2 * size\n\n",
        ),
    ],
    "a family of models": [
        (
            "checkpoints/formats/families.yaml",
            "families:\n",
            "  Novel:\n    model_types: [novel]\n    rename: {norm_f: norm}\n",
        )
    ],
}


@pytest.fixture(scope="module")
def sides(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("sides")
    base = planted.base_tensors()
    tensors = {"base": base, "tuned": planted.with_noise(base, 1e-3, 1)}
    return [str(planted.write(folder / name, one)) for name, one in tensors.items()]


def copied(folder: Path) -> Path:
    """A copy of the package's tree."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src" / "threegates", folder / "threegates", ignore=skip)
    return folder


def behind(tree: Path, place: str, passage: str, lines: str) -> None:
    """Put lines behind a passage that stands once in a file."""
    path = tree / "threegates" / place
    text = path.read_text(encoding="utf-8")
    assert text.count(passage) == 1, (place, passage)
    path.write_text(text.replace(passage, passage + lines), encoding="utf-8")


def extend(tree: Path, what: str) -> None:
    """Make an extension in a copy of the tree."""
    for place, text in NEW.get(what, {}).items():
        path = tree / "threegates" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for place, passage, lines in ADDED[what]:
        behind(tree, place, passage, lines)


def told(tree: Path, sides: list[str]) -> Mapping[str, str]:
    """All digests that a tree gives, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "THREEGATES_ROOT": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", TOLD, *sides], capture_output=True, text=True, env=environment, cwd=tree
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def codes(tree: Path) -> Mapping[str, str]:
    """Digests of the code of every kind of record and run in a tree, by today's roots."""
    return {
        f"{what} {kind}": code_digest(
            *one.roots, root=tree / "threegates", outside=one.outside, inside=one.inside
        )
        for what, known in roots().items()
        for kind, one in known.items()
    }


@pytest.fixture(scope="module")
def before(tmp_path_factory, sides) -> Mapping[str, str]:
    return told(copied(tmp_path_factory.mktemp("before")), sides)


def stale(before: Mapping[str, str], after: Mapping[str, str]) -> set[str]:
    """What has another digest now, or none."""
    return {name for name, digest in before.items() if after.get(name) != digest}


@pytest.mark.parametrize("what", sorted(ADDED))
def test_an_extension_leaves_all_code_that_computes_as_it_was(what, tmp_path):
    tree = copied(tmp_path)
    unchanged = codes(tree)
    extend(tree, what)
    assert codes(tree) == unchanged


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A tree with all extensions at once."""
    tree = copied(tmp_path_factory.mktemp("extended"))
    for what in sorted(ADDED):
        extend(tree, what)
    return tree


@pytest.mark.slow
def test_all_extensions_together_make_no_run_and_no_record_stale(before, extended, sides):
    after = told(extended, sides)
    assert stale(before, after) == set()
    # An algorithm with a trainer of its own is a sort of run of its own.
    assert set(after) - set(before) == {"run rl:centred"}


@pytest.mark.slow
def test_what_is_added_works(extended):
    script = (
        "from threegates.geometry.nulls.table import NULLS\n"
        "from threegates.jobs.subjects import SUBJECTS\n"
        "from threegates.lab.recipe import RLRecipe\n"
        "from threegates.lab.trainers import trainer_of\n"
        "from threegates.register import CHAPTERS\n"
        "recipe = RLRecipe(name='r', base='b', algorithm='centred', data='arith-4', seed=1, steps=2,"
        " learning_rate=1e-3)\n"
        "assert recipe.model_dump(mode='json')['objective']['pull'] == 0.5\n"
        "print(trainer_of(recipe).__name__, 'mirrored' in NULLS, 'another' in SUBJECTS,"
        " 'novel' in CHAPTERS)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(extended)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=extended
    )
    assert done.stdout.split() == ["CentredTrainer", "True", "True", "True"], done.stderr[-2000:]


CHANGED: dict[str, tuple[str, str, str, set[str]]] = {
    "of one null": (
        "geometry/nulls/magnitude.py",
        "min(62, 63 - index_bits",
        "min(61, 63 - index_bits",
        {"record group", "record overlap", "record table"},
    ),
    "of an advantage": (
        "lab/objectives.py",
        "epsilon: float = 1e-6",
        "epsilon: float = 1e-5",
        {
            "record curvature",
            "record steepness",
            "run rl",
            "run masked-rl",
            "run adapter-rl",
            "run encoder-rl",
            "run lm-rl",
        },
    ),
}


@pytest.mark.parametrize("what", sorted(CHANGED))
def test_a_changed_constant_makes_stale_what_computes_with_it_and_no_more(what, tmp_path):
    place, passage, other, kinds = CHANGED[what]
    tree = copied(tmp_path)
    path = tree / "threegates" / place
    text = path.read_text(encoding="utf-8")
    assert text.count(passage) == 1
    unchanged = codes(tree)
    path.write_text(text.replace(passage, other), encoding="utf-8")
    assert stale(unchanged, codes(tree)) == kinds
