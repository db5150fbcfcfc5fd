"""Whether two trees of this package measure the same: planted runs, measured by each in a process of its own.

Where the code that measures was put otherwise, trees of syntax cannot show that numbers stay. Then both codes
measure the same runs from the released base, with several norms, storage formats, stripes and partners, and
every table has to be the same to the last bit.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from scripts.trees import in_tree

# Present and later trees: kinds of job by name, nulls by name.
PROBE = """
import inspect
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.jobs.batches import opened
from threegates.jobs.kinds.known import KINDS, jobs_of
from threegates.jobs.nulls import with_nulls
from threegates.jobs.sources import named_pairs, narrowed
from threegates.measures.by_tensor import measure_all

def found(manifest, runs, kinds, options):
    pairs = narrowed(named_pairs(runs, read_manifest(manifest)), options.pop("layers"), None)
    if "draws" not in inspect.signature(jobs_of).parameters:
        del options["draws"]
    for kind in kinds:
        given = {**options, **KINDS[kind].asked(), **({"axes": True} if kind == "table" else {})}
        for job in KINDS[kind].jobs(pairs, given):
            whole = KINDS[kind].measure
            tables = whole(**with_nulls(job.arguments)) if whole else measure_all(opened(job))
            yield f"{kind}/{job.name}", {name: tables[name] for name in job.tables}
"""
_ASKED = """
import pickle, sys, torch
from pathlib import Path
torch.set_num_threads(1)
manifest, target, runs, kinds, options = __import__("json").load(sys.stdin)
tables = dict(found(Path(manifest), runs, kinds, options))
Path(target).write_bytes(pickle.dumps(tables))
"""
#: Of each planted run: method, algorithm, seed, size of its noise, whether it is striped, storage format.
_RUNS: dict[str, tuple[str, str, int, float, bool, torch.dtype]] = {
    "rl-1": ("rl", "grpo", 1, 2e-4, False, torch.float32),
    "rl-2": ("rl", "grpo", 2, 2e-4, True, torch.float32),
    "rl-3": ("rl", "dapo", 1, 1e-3, False, torch.bfloat16),
    "sft-1": ("sft", "teacher", 1, 3e-3, True, torch.float32),
}
# One block has every kind of matrix. Trees of before nulls were laws ask for a number of draws.
_OPTIONS = {"draws": 5, "seed": 3, "layers": [1]}


def differing(
    old: Path, new: Path, base: Path, kinds: Iterable[str], work: Path, probe: str = PROBE
) -> list[str]:
    """Tables of these kinds that the two trees measure otherwise, by kind, job and table; none if all agree.

    base : folder of a checkpoint to plant runs from. probe : of the old tree, where it has no `KINDS`.

    Raises
    ------
    RuntimeError : a tree does not measure.
    """
    manifest = _planted(base, work / "planted")
    named = sorted(kinds)
    sides = [
        _measured(tree, code, manifest, named, work / f"{name}.pickle")
        for name, tree, code in (("old", old, probe), ("new", new, PROBE))
    ]
    return list(_told(*sides))


def _planted(base: Path, folder: Path) -> Path:
    """Runs with planted updates, and their manifest."""
    shutil.copytree(base, folder / "base")
    weights = {
        name: one for path in sorted(base.glob("*.safetensors")) for name, one in load_file(path).items()
    }
    entries: list[dict[str, Any]] = [{"name": "base", "source": {"folder": "base"}, "method": "pretrain"}]
    for name, (method, algorithm, seed, size, striped, dtype) in _RUNS.items():
        (folder / name).mkdir()
        shutil.copy(base / "config.json", folder / name)
        save_file(_moved(weights, seed, size, striped, dtype), folder / name / "model.safetensors")
        known = {"method": method, "algorithm": algorithm, "seed": seed, "data": "planted"}
        told = {"base": "base", "run": name, "learning_rate": 1e-5, "labels": {"rate": "mask"}}
        entries.append({"name": name, "source": {"folder": name}, **known, **told})
    path = folder / "manifest.yaml"
    # JSON is YAML.
    path.write_text(json.dumps({"version": 1, "checkpoints": entries}), encoding="utf-8")
    return path


def _moved(
    weights: dict[str, Tensor], seed: int, size: float, striped: bool, dtype: torch.dtype
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, weight in sorted(weights.items()):
        noise = torch.randn(weight.shape, generator=generator)
        if striped and weight.dim() == 2:
            noise[::3] *= 4
        moved[name] = (weight.float() + size * noise).to(dtype)
    return moved


def _measured(tree: Path, probe: str, manifest: Path, kinds: list[str], target: Path) -> dict[str, Any]:
    in_tree(tree, probe + _ASKED, [str(manifest), str(target), list(_RUNS), kinds, _OPTIONS])
    return pickle.loads(target.read_bytes())


def _told(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for job in sorted(old.keys() | new.keys()):
        one, other = old.get(job, {}), new.get(job, {})
        for table in sorted(one.keys() | other.keys()):
            if table not in one or table not in other or not _alike(one[table], other[table]):
                yield f"{job}/{table}"


def _alike(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Equal columns, types and values, missing ones and lists among them, to the last bit."""
    if list(one.columns) != list(other.columns) or len(one) != len(other):
        return False
    return all(
        one[name].dtype == other[name].dtype
        and pickle.dumps(one[name].tolist()) == pickle.dumps(other[name].tolist())
        for name in one.columns
    )
