from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.planted.planted_tables import given
from threegates.register import estimate

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


def axis_table(rows: float = 4.0, columns: float = 1.0, runs: int = 5) -> pd.DataFrame:
    """Dispersion `rows` along rows and `columns` along columns, turned for o; nulls at 2 and 1."""
    lines = []
    for run, role, axis in itertools.product(range(runs), ("q", "k", "v", "o", "up"), ("row", "column")):
        along = (axis == "row") != (role == "o")
        null = 2.0 if along else 1.0
        line = {"pair": f"r{run}", "method": "rl", "role": role, "tensor": f"{role}.0", "axis": axis}
        line |= {"seed": run}
        line |= {"dispersion": (rows if along else columns) * (1 + 0.01 * run)}
        for name in ("storage_density", "magnitude"):
            line |= {f"{name}_mean": null}
        length = 10 if axis == "row" else 40
        lines.append(line | {"density": 0.5, "ratio": [0.5] * length})
    return pd.DataFrame(lines)


def test_stripes_are_a_geometric_mean_over_their_null():
    tables = given(axis=axis_table())
    raw, null = (estimate(name, tables) for name in ("stripe_excess_bernoulli", "stripe_excess_magnitude"))
    assert raw.value == pytest.approx(4 * stats.gmean([1, 1.01, 1.02, 1.03, 1.04])) and raw.n == 5
    assert null.value == pytest.approx(raw.value / 2) and null.low < null.value < null.high


def test_runs_of_one_seed_are_one_unit_and_unknown_seeds_leave_each_run_alone():
    frame = axis_table()
    paired = estimate("stripe_excess_bernoulli", given(axis=frame.assign(seed=frame["seed"] // 2)))
    by_seed = [stats.gmean([1, 1.01]), stats.gmean([1.02, 1.03]), 1.04]
    assert (paired.n, paired.unit) == (3, "seeds")
    assert paired.value == pytest.approx(4 * stats.gmean(by_seed))
    alone = estimate("stripe_excess_bernoulli", given(axis=frame.assign(seed=pd.NA)))
    assert (alone.n, alone.unit) == (5, "runs")


def test_orientation_compares_spreads_that_do_not_grow_with_a_lines_length():
    frame = axis_table(rows=4.0, columns=0.9)
    # A row has 40 entries; columns spread less than chance.
    wide = [math.sqrt((4 * (1 + 0.01 * run) - 1) / 4 / 40) for run in range(5)]
    found = estimate("rows_over_columns_qkv", given(axis=frame))
    assert found.value == pytest.approx(np.mean(wide)) and found.n == 5
    null = estimate("rows_over_columns_qkv_storage_density", given(axis=frame))
    assert null.value == pytest.approx(np.mean(wide) - math.sqrt(1 / 4 / 40))


def test_the_orientation_of_o_is_judged_on_o_alone():
    frame = axis_table(rows=4.0, columns=0.9)
    # Along the columns of O a line has ten entries.
    assert estimate("columns_over_rows_o", given(axis=frame)).value > math.sqrt(3 / 4 / 10)
    turned = frame.assign(
        dispersion=np.where(frame["role"] == "o", 5 - frame["dispersion"], frame["dispersion"])
    )
    assert estimate("columns_over_rows_o", given(axis=turned)).value < 0
    same = estimate("rows_over_columns_qkv", given(axis=turned)).value
    assert same == estimate("rows_over_columns_qkv", given(axis=frame)).value


def agreement_table(runs: int = 5, method: str = "rl") -> pd.DataFrame:
    lines = []
    for role, (a, b) in itertools.product(MATRICES, itertools.combinations(range(runs), 2)):
        line = {"role": role, "method": method, "run_a": f"r{a}", "run_b": f"r{b}", "bernoulli": 0.4}
        line |= {"jaccard": 0.6 + 0.001 * (a + b) - 0.05 * (role == "down"), "storage_density_mean": 0.5}
        lines.append({**line, "storage_norm_mean": 0.45, "magnitude_mean": 0.54})
    return pd.DataFrame(lines)


def test_agreement_is_that_of_the_weakest_matrix_type():
    tables = given(agreement=agreement_table())
    raw = estimate("jaccard_excess_bernoulli", tables)
    assert raw.value == pytest.approx(0.154) and raw.n == 5 and raw.low < raw.value < raw.high
    assert estimate("jaccard_excess_storage_density", tables).value == pytest.approx(0.054)
    assert estimate("jaccard_excess_storage_norm", tables).value == pytest.approx(0.104)
    assert estimate("jaccard_excess_magnitude", tables).value == pytest.approx(0.014)


@pytest.mark.parametrize("frame", [agreement_table(4), agreement_table(6, "sft"), agreement_table(0)])
def test_fewer_than_five_rl_runs_are_too_few(frame):
    found = estimate("jaccard_excess_bernoulli", given(agreement=frame))
    assert not found.has_interval and "at least 5" in found.reason
