"""Re-keying a release: what is proved, what is refused by name, and what becomes of the files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts import rekey_release as script
from scripts.rekeyings import REKEYINGS, Rekeying, Rewrite, rekeying
from threegates.atomic import write_json
from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, read_manifest, write_manifest
from threegates.digest import file_digest
from threegates.jobs.kept import COLUMNS
from threegates.jobs.released import FILE
from threegates.lab.algorithms.table import ALGORITHMS
from threegates.releases.packing import KEPT, _pack_kept, _write_table, read_kept_tables, read_release

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "c" * 40
#: A package that measures one kind of record and trains one kind of run.
TREE = {
    "__init__.py": "",
    "sparsity.py": "from threegates.numbers import SCALE\n\ndef measure(x):\n    return round(x) * SCALE\n\n"
    "def round(x):\n    return x // 1\n",
    "numbers.py": "SCALE = 3\n",
    "loop.py": "def train(recipe):\n    return table()[recipe]\n\ndef table():\n    return {'a': 1}\n",
}  # fmt: skip
#: What such a tree tells: digests over the text of all its modules, in a module that may lie anywhere.
TELLER = """
from hashlib import sha256
from pathlib import Path

ROOTS = {roots!r}
OBJECTIVE = {objective!r}
HERE = Path(__file__).resolve()
PACKAGE = next(one for one in HERE.parents if one.name == "threegates")
CODE = sha256("".join(p.read_text() for p in sorted(PACKAGE.rglob("*.py")) if p != HERE).encode()).hexdigest()

def digest(*values):
    return sha256(repr(values).encode()).hexdigest()

def told(provenance, profile):
    records = {{
        table: {{
            name: {{"kind": "pair", "code": CODE, "digest": digest(CODE, sorted(one["inputs"]))}}
            for name, one in known.items()
        }}
        for table, known in provenance.items()
    }}
    runs, base = {{}}, None
    for name in ("base", "tuned"):
        recipe = {{"kind": "rl", "name": name, **OBJECTIVE}}
        made = digest(CODE, sorted(recipe.items()), base)
        runs[name] = {{"digest": made, "code": CODE, "base": base, "recipe": recipe}}
        base = f"runs/{{name}}-{{made[:12]}}/step-000002"
    bounds = {{
        what: {{kind: {{"roots": [one], "outside": [], "inside": []}} for kind, one in known.items()}}
        for what, known in ROOTS.items()
    }}
    return {{"roots": bounds, "records": records, "runs": runs}}
"""
NAMES = {"record": {"pair": "threegates.sparsity.measure"}, "run": {"rl": "threegates.loop.train"}}


def make_tree(folder: Path, files: dict[str, str], names=NAMES, place="closures.py", objective=None) -> Path:
    told = TELLER.format(roots=names, objective=objective or {})
    for name, text in (files | {place: told}).items():
        path = folder / "src" / "threegates" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def make_release(folder: Path, tree: Path) -> Path:
    """A release that the tree would have made: two runs, two records of one table, a log."""
    provenance = {"tensor": {"x": {"inputs": {"checkpoints": {"base": "b1"}}, "versions": {}}}}
    told = script.ask(tree, provenance, "full", Rekeying())
    made = told["records"]["tensor"]["x"]
    one = {"job": "tuned", "table": "tensor", "threads": 1, **provenance["tensor"]["x"]}
    one |= {key: made[key] for key in ("code", "digest")}
    stem = f"tuned-{made['digest'][:12]}"
    runs = {
        f"{name}-{run['digest'][:12]}": {"run": {"name": name, "versions": {}, **run}, "when": {"seconds": 1}}
        for name, run in told["runs"].items()
    }
    folder.mkdir(parents=True)
    (folder / "logs").mkdir()
    (folder / "records").mkdir()
    parts = folder.with_name("parts")
    parts.mkdir()
    pd.DataFrame({"step": [1, 2]}).to_parquet(parts / "log.parquet")
    pd.DataFrame({"sparsity": [0.5, 0.25]}).to_parquet(parts / "tensor.parquet")
    _write_table(folder / "logs" / "log.parquet", [(name, parts / "log.parquet") for name in runs])
    _write_table(folder / "records" / "tensor.parquet", [(stem, parts / "tensor.parquet")])
    places = [f"runs/{name}/step-000002" for name in runs]
    entries = [
        Entry(name=name.rpartition("-")[0], source=Folder(path=place), method="pretrain")
        for name, place in zip(runs, places, strict=True)
    ]
    write_manifest(folder / "manifest.yaml", Manifest(version=1, profile="full", checkpoints=entries))
    write_json(folder / "provenance.json", {"tensor": {stem: one}})
    write_json(folder / "runs.json", runs)
    kept = {place: {"digest": "d" * 64, "layout": "l"} for place in places}
    write_json(folder / "checkpoints.json", {"layouts": {"l": {}}, "checkpoints": kept})
    files = {str(path.relative_to(folder)): file_digest(path) for path in folder.rglob("*") if path.is_file()}
    facts = {"version": 1, "profile": "full", "made": {"commit": "m"}, "versions": {}, "files": files}
    write_json(folder / FILE, facts)
    return folder


@pytest.fixture
def old(tmp_path):
    return make_tree(tmp_path / "old", TREE)


@pytest.fixture
def release(tmp_path, old):
    return make_release(tmp_path / "results" / "full", old)


def rekeyed(old, new, release, known=None, **how):
    return script.rekey_from(old, new, release, COMMIT, known or Rekeying(), **{"check": False, **how})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(path: Path):
    return json.loads(path.read_text())


MOVED = {
    "__init__.py": "",
    "measures/__init__.py": "",
    "measures/masks.py": "from ..deep import values as v, tools\n\n"
    "def count(x):\n    return tools.whole(x) * v.FACTOR\n",
    "deep/__init__.py": "",
    "deep/tools.py": "def whole(x):\n    return x // 1\n",
    "deep/values.py": "FACTOR = 3\nOTHER = 4\n",
    "train.py": "def row():\n    return {'a': 1}\n\ndef run(recipe):\n    return row()[recipe]\n",
}
NEW_NAMES = {"record": {"pair": "threegates.measures.masks.count"}, "run": {"rl": "threegates.train.run"}}


@pytest.fixture
def new(tmp_path):
    return make_tree(tmp_path / "new", MOVED, NEW_NAMES, "deep/closures.py")


def test_moved_renamed_split_and_folded_code_is_the_same(old, new, release):
    before = {name: read(release / f"{name}.json") for name in ("runs", "provenance", "checkpoints")}
    told = script.ask(new, before["provenance"], "full", Rekeying())
    assert "1 of 1 records and 2 of 2 runs" in rekeyed(old, new, release)
    found = read_release(release)
    runs, provenance = read(release / "runs.json"), read(release / "provenance.json")
    for name, one in told["runs"].items():
        run = runs[f"{name}-{one['digest'][:12]}"]["run"]
        assert {key: run[key] for key in one} == one
        first = next(old["run"] for old in before["runs"].values() if old["run"]["name"] == name)
        assert run["measured_by"] == {"digest": first["digest"], "code": first["code"], "commit": COMMIT}
    ((stem, record),) = provenance["tensor"].items()
    (was,) = before["provenance"]["tensor"].values()
    assert stem == f"tuned-{record['digest'][:12]}" and record["digest"] != was["digest"]
    assert record["measured_by"] == {"digest": was["digest"], "code": was["code"], "commit": COMMIT}
    checkpoints = read(release / "checkpoints.json")["checkpoints"]
    assert {place.split("/")[1] for place in checkpoints} == {*runs}
    assert [one["digest"] for one in checkpoints.values()] == ["d" * 64] * 2
    entries = read_manifest(release / "manifest.yaml").checkpoints
    assert {entry.source.path for entry in entries} == {*checkpoints}
    assert found.made == {"commit": "m"} and read(release / FILE)["rekeyed"][0]["commit"] == COMMIT
    assert {*pq.read_table(release / "logs" / "log.parquet")["_of"].to_pylist()} == {*runs}
    table = pq.read_table(release / "records" / "tensor.parquet")
    assert table["_of"].to_pylist() == [stem] * 2 and table["sparsity"].to_pylist() == [0.5, 0.25]
    assert [*json.loads(table.schema.metadata[b"_of"])["parts"]] == [stem]


def test_a_second_run_does_nothing_and_a_further_one_keeps_what_was_first(old, new, release, tmp_path):
    rekeyed(old, new, release)
    after = contents(release)
    assert "nothing to do" in rekeyed(old, new, release)
    assert contents(release) == after
    first = [one["run"]["measured_by"] for one in read(release / "runs.json").values()]
    further = make_tree(tmp_path / "further", MOVED | {"deep/new.py": "NEW = 1\n"}, NEW_NAMES, "closures.py")
    assert "keys now" in rekeyed(new, further, release)
    assert [one["run"]["measured_by"] for one in read(release / "runs.json").values()] == first
    assert len(read(release / FILE)["rekeyed"]) == 2


def test_what_is_kept_and_the_parts_stay_under_the_new_names_of_runs(old, new, release):
    places = [*read(release / "checkpoints.json")["checkpoints"]]
    rows = [
        {"tensor": name, "base": "d" * 64, "changed": 1, "mask": b"m", "moves": name.encode()}
        for name in "ab"
    ]
    _pack_kept({place: pa.Table.from_pylist(rows, COLUMNS) for place in places[1:]}, release)
    told, facts = read(release / FILE), [{"name": "1-all", "measured_by": ["c"]}]
    files = told["files"] | {KEPT: file_digest(release / KEPT)}
    write_json(release / FILE, told | {"parts": facts, "files": files})
    before = read_kept_tables(read_release(release))
    rekeyed(old, new, release)
    found = read_release(release)
    after = read_kept_tables(found)
    assert [*after] == [*read(release / "checkpoints.json")["checkpoints"]][1:] != places[1:]
    assert [one.equals(two) for one, two in zip(after.values(), before.values(), strict=True)] == [True]
    assert found.parts == facts


def test_to_check_writes_nothing(old, new, release):
    before = contents(release)
    assert "are the same" in rekeyed(old, new, release, check=True)
    assert contents(release) == before


@pytest.mark.parametrize(
    ("name", "before", "after", "told"),
    [
        ("deep/values.py", "FACTOR = 3", "FACTOR = 3.5", "numbers.py:SCALE in the old tree, deep/values"),
        ("measures/masks.py", "tools.whole(x)", "tools.whole(x, 2)", "sparsity.py:measure in the old"),
        ("deep/tools.py", "x // 1", "x // 2", "deep/tools.py:whole in the new one"),
        ("train.py", "{'a': 1}", "{'a': 2}", "run rl: loop.py:table in the old tree, train.py:row"),
        ("deep/values.py", "OTHER = 4", "OTHER = 4\nOTHER.x = 1", "nothing in the old tree, deep/values.py"),
    ],
)  # fmt: skip
def test_changed_code_is_refused_by_name(name, before, after, told, old, release, tmp_path):
    assert MOVED[name].count(before) == 1
    files = MOVED | {name: MOVED[name].replace(before, after)}
    new, whole = make_tree(tmp_path / "new", files, NEW_NAMES), contents(release)
    with pytest.raises(script.Refused) as refusal:
        rekeyed(old, new, release)
    assert told in str(refusal.value)
    assert contents(release) == whole and not list(release.parent.glob(".*"))


def test_a_release_of_other_code_is_refused_by_name(new, release, tmp_path):
    other = make_tree(tmp_path / "other", TREE | {"more.py": "MORE = 1\n"})
    with pytest.raises(script.Refused, match="3 records and runs are not what the old code makes") as refusal:
        rekeyed(other, new, release)
    assert "record tensor/tuned-" in str(refusal.value) and "run base-" in str(refusal.value)


def test_what_is_stale_by_the_old_code_is_left_as_it_is_where_that_is_asked_for(old, new, release):
    provenance = read(release / "provenance.json")
    ((stem, one),) = provenance["tensor"].items()
    one["digest"] = "0" * 64
    write_json(release / "provenance.json", provenance)
    facts = read(release / FILE)
    facts["files"]["provenance.json"] = file_digest(release / "provenance.json")
    write_json(release / FILE, facts)
    runs, rows = read(release / "runs.json"), (release / "records" / "tensor.parquet").read_bytes()
    with pytest.raises(script.Refused, match="record tensor/tuned-"):
        rekeyed(old, new, release)
    told = rekeyed(old, new, release, leave_stale=True)
    assert "0 of 0 records and 2 of 2 runs" in told and "1 records are stale by the old code" in told
    assert read(release / "provenance.json") == {"tensor": {stem: one}}
    assert (release / "records" / "tensor.parquet").read_bytes() == rows
    assert not read(release / "runs.json").keys() & runs.keys()


OBJECTIVE = {"objective": {"clip": 0.2}}
FROM_RECIPE = MOVED | {"train.py": "def run(recipe):\n    return recipe.objective\n"}
REWRITE = Rewrite("threegates.loop", "table()[recipe]", "recipe.objective", "the recipe has it")


def test_declared_rewrites_and_maps_of_recipes_are_applied(old, release, tmp_path):
    new = make_tree(tmp_path / "new", FROM_RECIPE, NEW_NAMES, objective=OBJECTIVE)
    known = Rekeying((REWRITE,), recipes=lambda recipe, told: recipe | OBJECTIVE)
    rekeyed(old, new, release, known)
    assert all(
        one["run"]["recipe"]["objective"] == {"clip": 0.2} for one in read(release / "runs.json").values()
    )
    assert read(release / FILE)["rekeyed"][0]["rewrites"] == ["threegates.loop: the recipe has it"]


def test_a_recipe_that_is_not_mapped_as_planned_is_refused(old, release, tmp_path):
    new = make_tree(tmp_path / "new", FROM_RECIPE, NEW_NAMES, objective=OBJECTIVE)
    with pytest.raises(script.Refused, match="tuned: another recipe"):
        rekeyed(old, new, release, Rekeying((REWRITE,)))


@pytest.mark.parametrize("before", ["not there", "return"])
def test_a_rewrite_that_does_not_fit_once_is_refused(before, old, new, release):
    with pytest.raises(script.Refused, match="does not fit once"):
        rekeyed(old, new, release, Rekeying((Rewrite("threegates.loop", before, "", "why"),)))


def test_maps_of_inputs_are_applied(old, new, release):
    rekeyed(old, new, release, Rekeying(inputs=lambda inputs, told: inputs | {"further": 1}))
    (record,) = read(release / "provenance.json")["tensor"].values()
    assert record["inputs"]["further"] == 1


def test_every_declared_rewrite_fits_the_tree_that_it_is_of(tmp_path):
    for commit, known in REKEYINGS.items():
        listed = subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", commit], capture_output=True)
        if listed.returncode:
            pytest.skip("the history is not here")
        script.archived(commit, tmp_path / commit)
        script.rewritten(tmp_path / commit, known)
        assert all(one.why for one in known.rewrites)


def test_declarations_are_found_by_the_start_of_a_commit():
    assert rekeying("3806e52" + "0" * 33) is REKEYINGS["3806e52"]
    assert rekeying(COMMIT) == Rekeying()


def test_the_first_release_s_recipes_take_their_algorithms_values():
    known, told = REKEYINGS["3806e52"], {"objectives": {name: {"name": name} for name in ALGORITHMS}}
    assert known.recipes({"kind": "sft"}, told) == {"kind": "sft"}
    assert known.recipes({"algorithm": "dapo"}, told)["objective"] == {"name": "dapo"}


def test_a_tree_that_fails_is_refused_with_what_it_said_last(tmp_path):
    tree = make_tree(tmp_path / "tree", TREE)
    (tree / "src" / "threegates" / "closures.py").write_text("\ndef told(*given):\n    return given[2]\n")
    with pytest.raises(script.Refused, match="(?s)does not tell its digests.*IndexError"):
        script.ask(tree, {}, "full", Rekeying())


def test_this_tree_tells_its_digests():
    assert script.teller(ROOT).startswith("threegates.")
