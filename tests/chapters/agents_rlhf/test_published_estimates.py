"""What only published checkpoints give, on planted tables; and the paper's measures on nulls alone."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from threegates.estimates.paper import table_2
from threegates.geometry.principal import TARGETS
from threegates.register import estimate


class Given:
    def __init__(self, **tables: pd.DataFrame) -> None:
        self.tables = tables

    def table(self, name: str) -> pd.DataFrame:
        return self.tables[name]


def tensor(rows: list[tuple], size: int = 1000) -> pd.DataFrame:
    """One matrix a pair: (name, sparsity, printed in %, in a follow-up in %)."""
    frame = pd.DataFrame(rows, columns=["pair", "sparsity", "paper_sparsity", "followup_sparsity"])
    changed = ((1 - frame["sparsity"]) * size).round().astype(int)
    return frame.assign(
        base="b", method="rl", algorithm="grpo", data="d", seed=None, learning_rate=None, rate=None, role="q",
        run=frame["pair"], status="compared", size=size, changed=changed, sparsity_fp32=0.0,
        sparsity_storage_norm=0.5, stored_dtype_tuned="BF16",
    )  # fmt: skip


def agreement(jaccard: dict[str, float], runs: int = 3, layer: int = 13, noise: float = 0.5) -> pd.DataFrame:
    rows = []
    for (role, value), (a, b) in itertools.product(
        jaccard.items(), itertools.combinations("pqrst"[:runs], 2)
    ):
        rows.append({"role": role, "layer": layer, "run_a": a, "run_b": b, "jaccard": value, "method": "rl"})
    return pd.DataFrame(rows).assign(bernoulli=0.4, storage_norm_mean=noise, tensor="t")


def test_a_sparsity_counts_as_printed_within_half_a_point():
    found = tensor([("a", 0.538, "53.8", None), ("b", 0.459, "45.5", None), ("c", 0.461, "45.5", None)])
    assert estimate("table_1_values", Given(tensor=found)).value == pytest.approx(2 / 3)


def test_without_published_pairs_nothing_is_said_of_table_1_and_2():
    plain = tensor([("a", 0.5, None, None)])
    tables = Given(tensor=plain, agreement=agreement({"q": 0.58}))
    for name in ("table_1_values", "table_1_over_follow_up", "table_2_values"):
        found = estimate(name, tables)
        assert not found.has_interval and "paper's own checkpoints" in found.reason
    bare = Given(
        tensor=plain.drop(columns=["paper_sparsity", "followup_sparsity"]),
        agreement=tables.table("agreement"),
    )
    assert not estimate("table_1_values", bare).has_interval


def test_who_is_nearer_where_two_numbers_are_printed():
    found = tensor([("a", 0.70, "69.5", "69.9"), ("b", 0.799, "79.9", "79.0"), ("c", 0.5, "50.0", None)])
    assert estimate("table_1_over_follow_up", Given(tensor=found)).value == pytest.approx(0.5)


def test_table_2_is_compared_type_by_type_in_its_layer():
    printed = table_2().set_index("role")["paper_jaccard"].to_dict()
    of_paper = tensor([("a", 0.5, "50.0", None)])
    right = Given(tensor=of_paper, agreement=agreement(printed))
    assert estimate("table_2_values", right).value == 1.0
    wrong = Given(tensor=of_paper, agreement=agreement(printed | {"q": printed["q"] + 0.02}))
    assert estimate("table_2_values", wrong).value == pytest.approx(6 / 7)
    elsewhere = Given(tensor=of_paper, agreement=agreement(printed, layer=12))
    assert not estimate("table_2_values", elsewhere).has_interval


def test_noise_is_judged_by_its_smallest_matrix_type():
    rows = agreement({"q": 0.8, "k": 0.8}, runs=5)
    rows.loc[rows["role"] == "k", "storage_norm_mean"] = 0.43
    found = estimate("noise_jaccard_excess", Given(agreement=rows))
    assert found.value == pytest.approx(0.03) and found.n == 5
    assert not estimate("noise_jaccard_excess", Given(agreement=agreement({"q": 0.8}, runs=4))).has_interval


def test_the_jackknife_leaves_out_a_whole_seed():
    rows = agreement({"q": 0.5}, runs=5)
    seeds = dict(zip("pqrst", (1, 1, 2, 3, 4), strict=True))
    by_seed = rows.assign(seed_a=rows["run_a"].map(seeds), seed_b=rows["run_b"].map(seeds))
    found = estimate("noise_jaccard_excess", Given(agreement=by_seed))
    assert (found.n, found.unit) == (4, "seeds") and found.value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("name", "target", "expected"),
    [
        ("noise_principal_avoidance", "principal", 0.1),
        ("noise_low_preference", "low", -0.1),
        ("noise_principal_not_low_avoidance", "principal_not_low", 0.1),
    ],
)
def test_overlap_of_noise_is_held_against_the_density_of_the_target(name, target, expected):
    facts = {"method": "rl", "algorithm": "grpo", "rate": "mask", "role": "q", "variant": "raw"}
    facts |= {"density": 0.5, "overlap": 0.1, "stored_dtype_tuned": "F32"}
    kinds = itertools.product((1, 2, 3), {"bf16": 0.4, "fp32": np.nan}.items(), TARGETS)
    rows = pd.DataFrame(
        [
            {**facts, "pair": f"grpo-{seed}", "seed": seed, "view": view, "target": kind}
            | {"storage_norm_mean": of_noise}
            for seed, (view, of_noise), kind in kinds
        ]
    )
    found = estimate(name, Given(overlap=rows))
    assert found.value == pytest.approx(expected) and found.n == 3


def test_deepening_is_the_ratio_of_dispersion_at_the_end_to_that_at_a_third():
    dispersion = {10: 1.0, 20: 2.0, 60: 8.0}
    kinds = itertools.product("ab", {"q": "row", "o": "column"}.items(), ("row", "column"), dispersion)
    rows = pd.DataFrame(
        [
            {"run": run, "seed": ord(run), "method": "rl", "role": role, "tensor": role, "axis": axis}
            | {"step": step, "dispersion": dispersion[step] if axis == along else 99.0}
            for run, (role, along), axis, step in kinds
        ]
    )
    found = estimate("stripe_deepening", Given(emergence=rows))
    assert found.value == pytest.approx(4.0) and found.scale == "log" and found.n == 2
