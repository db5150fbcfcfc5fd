"""The released records of this repository: whole, and what runs that are trained again give."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from scipy import stats

from tests.planted.planted import ROOT
from threegates.chapters.learning_rate.estimates import last_evaluations
from threegates.lab.plans.plan import plan
from threegates.lab.runs import execute
from threegates.measures.whole_models import pair_sparsity
from threegates.releases.making import RELEASED_PROFILE, RESULTS
from threegates.releases.packing import BASE, read_release, unpack
from threegates.study import Study

#: Runs that are trained again: RL, and the two kinds of fine-tuning on the base's own style.
SAMPLE = ("grpo-arith-4-s102", "rft-arith-4-s103", "sft-same-style-arith-4-s101")
MEASURES = ("sparsity", "sparsity_fp32", "delta_norm", "pass_at_1", "kl")
CONFIDENCE = 0.99
# Fewer would give intervals that hold nearly everything.
SEEDS = 6


@pytest.fixture(scope="module")
def release():
    return read_release(ROOT / RESULTS / RELEASED_PROFILE)


@pytest.fixture(scope="module")
def kept(release, tmp_path_factory):
    """The sparsity chapter's study from the released records alone."""
    build = tmp_path_factory.mktemp("kept")
    unpack(release, build)
    manifest, records = build / "lab" / "manifest.yaml", build / "records"
    return Study.open("update-sparsity", manifest=manifest, records=records, measure=False)


@pytest.fixture
def trained(name, release, tmp_path):
    """A run that is trained anew from the released base: folders of the base and of the run."""
    lab, run = tmp_path / "lab", next(one.run for one in plan(release.profile) if one.run.name == name)
    base = lab / str(run.base_folder)
    shutil.copytree(release.folder / BASE, base)
    return base, execute(lab, run)


def numbers(tensor: pd.DataFrame, log: pd.DataFrame) -> pd.DataFrame:
    """One row a run: sparsity in bf16 and fp32, ‖ΔW‖, pass@1 and KL of the last evaluation."""
    rows = pair_sparsity(tensor).set_index("run")
    ends = log.sort_values("step").groupby("run")["delta_norm"].last()
    return rows.join(last_evaluations(log)).assign(delta_norm=ends)[list(MEASURES)]


def within(value: float, others: pd.Series) -> bool:
    """Whether a value lies in the prediction interval of one more observation beside the others."""
    count, spread = len(others), others.std()
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * spread * (1 + 1 / count) ** 0.5
    return abs(value - others.mean()) <= reach


def test_the_release_is_small_and_holds_the_same_seeds_of_every_arm(release, kept):
    size = sum(path.stat().st_size for path in release.folder.rglob("*") if path.is_file())
    assert size < 25e6
    seeds = kept.frame[kept.frame["rate"].isin(["mask", "own"])].groupby(["algorithm", "rate"])["seed"]
    assert seeds.apply(frozenset).nunique() == 1 and seeds.nunique().min() >= SEEDS


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_run_trained_again_lies_among_the_released_ones(name, kept, trained, tmp_path):
    base, folder = trained
    again = Study.open(
        "update-sparsity",
        base=str(base),
        tuned=str(max(folder.glob("step-*"))),
        records=tmp_path / "records",
    )
    log = pd.read_parquet(folder / "log.parquet").assign(run=again.pairs[0].name)
    found = numbers(again.table("tensor"), log).iloc[0]
    alike = kept.frame[(kept.frame["run"].str.rpartition("-s")[0] == name.rpartition("-s")[0])]["run"]
    others = numbers(kept.table("tensor"), kept.table("log")).loc[alike]
    assert len(others) >= SEEDS
    for measure in MEASURES:
        assert within(found[measure], others[measure]), (measure, found[measure], others[measure].tolist())
        # An interval that holds everything would say nothing.
        far = 3 * others[measure].abs().max()
        assert not within(far, others[measure])
