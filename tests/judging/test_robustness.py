"""Verdicts over the choices k, α and η: cells, their tables, and how many agree."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from threegates.geometry.precision import ETA
from threegates.judging.claims import judge as judged
from threegates.judging.claims import read_claims, verdict_table
from threegates.judging.robustness import COLUMNS, cells, counted

CLAIMS = {c.id: c for c in read_claims(Path(__file__).resolve().parents[2] / "claims.yaml").claims}
AVOIDS = CLAIMS["rl-avoids-principal-weights"]


class Given:
    def __init__(self, **tables: pd.DataFrame) -> None:
        self.tables, self.asked = tables, []

    def table(self, name: str) -> pd.DataFrame:
        self.asked.append(name)
        return self.tables[name]


def overlaps(avoided: dict[tuple, float], side: int = 64) -> pd.DataFrame:
    """Rows of three GRPO runs in each cell (k, α, η) that lie so far below density and every null."""
    rows = []
    for (k, alpha, eta), gap in avoided.items():
        for seed, role in itertools.product((1, 2, 3), ("q", "o")):
            row = {"pair": f"grpo-{seed}", "method": "rl", "algorithm": "grpo", "rate": "mask", "seed": seed}
            row |= {"role": role, "variant": "raw", "view": "bf16", "target": "principal", "partner": ""}
            row |= {"k": k, "alpha": alpha, "eta": eta, "smaller_side": side, "density": alpha}
            row |= {"overlap": alpha - gap + 0.001 * seed, "stored_dtype_tuned": "F32"}
            nulls = {f"{name}_mean": alpha for name in ("storage_density", "storage_norm", "magnitude")}
            rows.append(row | nulls)
    return pd.DataFrame(rows)


def tables(gaps: dict[tuple, float]) -> Given:
    return Given(overlap=overlaps({(8, 0.5, ETA): gaps[8, 0.5, ETA]}), sweep=overlaps(gaps))


GRID = list(itertools.product((4, 8, 16), (0.1, 0.5), (ETA, 1e-2)))


def test_every_cell_is_judged_by_the_claims_own_rule_and_controls():
    found = cells([AVOIDS], tables({cell: 0.1 if cell[1] == 0.1 else 0.0 for cell in GRID}), 0.95)
    assert len(found) == len(GRID) and list(found) == list(COLUMNS)
    assert set(found.loc[found["alpha"] == 0.1, "verdict"]) == {"reproduced"}
    assert set(found.loc[found["alpha"] == 0.5, "verdict"]) == {"no effect of the size asked for"}
    # Ranks are over the headline's, an eighth of the smaller side.
    assert sorted(found["k"].unique()) == [0.5, 1.0, 2.0]
    (own,) = found[found["headline"]].itertuples()
    assert (own.k, own.alpha, own.eta) == (1.0, 0.5, ETA)


def test_the_headline_cell_has_the_headlines_numbers():
    given = tables(dict.fromkeys(GRID, 0.05))
    own = cells([AVOIDS], given, 0.95).query("headline").iloc[0]
    verdict = judged(AVOIDS, given, "", 0.95)
    assert (own["value"], own["low"], own["high"]) == pytest.approx(
        (verdict.estimate.value, verdict.estimate.low, verdict.estimate.high)
    )


def test_an_avoidance_that_only_small_shares_show_stands_in_those_cells_alone():
    given = tables({cell: 0.1 if cell[1] == 0.1 else 0.0 for cell in GRID})
    verdicts = verdict_table([judged(AVOIDS, given, "the lab", 0.95)]).assign(about="lab")
    table = counted(verdicts, cells([AVOIDS], given, 0.95))
    rule = table[table["kind"] == "rule"].iloc[0]
    none = "no effect of the size asked for"
    assert (rule["verdict"], rule["cells"], rule["cells_same"]) == (none, 12, 6)
    assert (table.loc[table["kind"] != "rule", ["cells", "cells_same"]] == 0).all(axis=None)


def test_a_storage_null_counts_in_each_cell():
    sweep = overlaps(dict.fromkeys(GRID, 0.1))
    sweep.loc[sweep["k"] == 16, "storage_norm_mean"] = sweep["overlap"]
    given = Given(overlap=overlaps({(8, 0.5, ETA): 0.1}), sweep=sweep)
    found = cells([AVOIDS], given, 0.95)
    assert set(found.loc[found["k"] == 2.0, "verdict"]) == {"explained by storage"}
    assert set(found.loc[found["k"] != 2.0, "verdict"]) == {"reproduced"}


def test_a_claim_without_free_choices_and_one_that_awaits_runs_have_no_cells():
    awaiting = CLAIMS["rl-walks-where-it-is-flat"].model_copy(update={"awaits": "other runs"})
    still = [CLAIMS["rl-keeps-the-spectrum"], awaiting]
    given = Given()
    assert cells(still, given, 0.95).empty and not given.asked
    table = counted(verdict_table([judged(still[1], given, "the lab")]), cells(still, given, 0.95))
    assert (table["cells"] == 0).all()


def test_a_tolerance_that_hides_every_change_gives_no_verdict_that_counts():
    sweep = overlaps(dict.fromkeys(GRID, 0.1))
    nulls = ["storage_density_mean", "storage_norm_mean", "magnitude_mean"]
    sweep.loc[sweep["eta"] == 1e-2, ["overlap", *nulls]] = np.nan
    found = cells([AVOIDS], Given(overlap=overlaps({(8, 0.5, ETA): 0.1}), sweep=sweep), 0.95)
    assert set(found.loc[found["eta"] == 1e-2, "verdict"]) == {"cannot be tested here"}


def test_sparsity_over_tolerances_takes_the_papers_own_from_the_headline_table():
    def pairs(sparsity: float, **more) -> pd.DataFrame:
        rows = []
        for (method, algorithm), seed in itertools.product((("rl", "grpo"), ("rft", "rft")), (1, 2, 3)):
            facts = {"pair": f"{algorithm}{seed}", "base": "b", "method": method, "algorithm": algorithm}
            facts |= {"data": "d", "seed": seed, "learning_rate": 1e-5, "rate": "mask"}
            facts["run"] = f"{algorithm}{seed}"
            numbers = {"role": "q", "status": "compared", "size": 100, "changed": 50, "sparsity_fp32": 0.0}
            value = sparsity + 0.001 * seed if method == "rl" else 0.5
            rows.append({**facts, **numbers, "sparsity": value, "sparsity_storage_norm": 0.5, **more})
        return pd.DataFrame(rows)

    given = Given(tensor=pairs(0.5), tensor_sweep=pairs(0.9, eta=1e-2))
    found = cells([CLAIMS["rft-as-sparse-as-rl"]], given, 0.95).set_index("eta")
    assert found.loc[ETA, "verdict"] == "reproduced" and found.loc[1e-2, "verdict"] == "contradicted"
    assert bool(found.loc[ETA, "headline"]) and not bool(found.loc[1e-2, "headline"])


def test_a_claim_that_cannot_be_tested_at_its_headline_has_no_cells():
    given = tables(dict.fromkeys(GRID, 0.1))
    one_seed = {name: frame[frame["seed"] == 1] for name, frame in given.tables.items()}
    assert cells([AVOIDS], Given(**one_seed), 0.95).empty
