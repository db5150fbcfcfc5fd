"""One run under two versions of Python: what it is known by is the same, and its numbers agree.

The other interpreter is named by ``THREEGATES_OTHER_PYTHON`` and has the same packages; without it there is
nothing to compare.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.planted.planted import ROOT

VARIABLE = "THREEGATES_OTHER_PYTHON"
OTHER = os.environ.get(VARIABLE, "")
SCRIPT = """
import json, platform, sys
from pathlib import Path
import pandas as pd
import torch
torch.set_num_threads(1)
from tests.lab.tiny import TINY
from threegates.checkpoints.tensors import Checkpoint
from threegates.lab.recipe import PretrainRecipe, RLRecipe
from threegates.lab.runs import execute, make_run

lab = Path(sys.argv[1])
common = {"seed": 3, "evaluate_prompts": 8, "evaluate_every": 2, "warmup": 2}
base = make_run(PretrainRecipe(name="base", steps=4, batch=8, shape=TINY, **common), None)
told = {"python": platform.python_version()}
rl = make_run(
    RLRecipe(
        name="rl", base="base", algorithm="dapo", data="arith-4", prompts=4, samples=2, steps=4,
        learning_rate=1e-3, minibatches=2, **common,
    ),
    base,
)
for run in (base, rl):
    folder = execute(lab, run)
    log = pd.read_parquet(folder / "log.parquet").drop(columns=["step"])
    told[run.name] = {
        "digest": run.digest,
        "code": run.code,
        "recipe": json.loads((folder / "run.json").read_text())["recipe"],
        "checkpoint": Checkpoint.open(folder / "step-000004").digest(),
        "log": {name: log[name].tolist() for name in log},
    }
print(json.dumps(told))
"""


def told(python: str, folder: Path) -> dict[str, Any]:
    """What a version of Python gives of the two runs."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [python, "-c", SCRIPT, str(folder)], capture_output=True, text=True, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    if not OTHER:
        pytest.skip(f"{VARIABLE} names no other Python")
    folder = tmp_path_factory.mktemp("pythons")
    return told(sys.executable, folder / "own"), told(OTHER, folder / "other")


def test_they_are_two_versions(both):
    assert both[0]["python"].split(".")[:2] != both[1]["python"].split(".")[:2]


@pytest.mark.parametrize("name", ["base", "rl"])
@pytest.mark.parametrize("what", ["digest", "code", "recipe"])
def test_what_a_run_is_known_by_is_the_same(what, name, both):
    assert both[0][name][what] == both[1][name][what]


@pytest.mark.parametrize("name", ["base", "rl"])
def test_numbers_agree_as_far_as_one_build_of_torch_agrees_with_another(name, both):
    own, other = (one[name] for one in both)
    assert own["log"].keys() == other["log"].keys()
    for column, values in own["log"].items():
        assert other["log"][column] == pytest.approx(values, rel=1e-4, abs=1e-6, nan_ok=True), column
    print(name, "checkpoints are the same bytes:", own["checkpoint"] == other["checkpoint"])
