from __future__ import annotations

import pandas as pd
import pytest

from tests.planted.planted_tables import given
from tests.planted.tensor_frames import tensor_rows
from threegates.register import estimate


def sparsity_table() -> pd.DataFrame:
    levels = {}
    for seed, shift in ((1, 0.0), (2, 0.02), (3, -0.02)):
        for algorithm, level in (("grpo", 0.5), ("dapo", 0.6), ("reinforce++", 0.7)):
            levels["rl", algorithm, "mask", seed] = level + shift
            levels["rl", algorithm, "reward", seed] = 0.1
        levels["sft", "sft-teacher", "own", seed] = 0.1
        levels["sft", "sft-teacher", "mask", seed] = 0.4 + shift
        levels["sft", "sft-same-style", "mask", seed] = 0.9
        levels["rft", "rft", "mask", seed] = 0.6 + 2 * shift
    return tensor_rows(levels)


def test_gaps_are_paired_by_seed_and_average_the_algorithms():
    tables = given(tensor=sparsity_table())
    own = estimate("sparsity_gap_own_lr", tables)
    # The norm's 20 entries of 100 never change, so that gaps shrink by .8.
    assert own.value == pytest.approx(0.8 * 0.5) and own.n == 3 and own.unit == "seeds"
    matched = estimate("sparsity_gap_matched_lr", tables)
    assert matched.value == pytest.approx(0.8 * 0.2) and matched.low == pytest.approx(0.8 * 0.2)
    control = estimate("sparsity_gap_rl_rft", tables)
    assert control.value == pytest.approx(0) and control.low < 0 < control.high


def test_noise_and_precision_gaps():
    tables = given(tensor=sparsity_table())
    excess = estimate("sparsity_excess_over_equal_norm_noise", tables)
    assert excess.value == pytest.approx(0.2) and excess.n == 3
    gap = estimate("precision_gap", tables)
    assert (gap.n, gap.unit) == (3, "seeds") and gap.value == pytest.approx(0.8 * 0.6 + 0.2)


def test_what_was_stored_in_bf16_says_nothing_of_fp32():
    frame = sparsity_table().assign(stored_dtype_tuned="BF16")
    assert "stored in bf16" in estimate("precision_gap", given(tensor=frame)).reason


def test_groups_that_are_missing_are_named():
    frame = tensor_rows({("rl", "grpo", "mask", 1): 0.5})
    assert "sft-teacher at the rate 'own'" in estimate("sparsity_gap_own_lr", given(tensor=frame)).reason
    assert "RL" in estimate("sparsity_gap_own_lr", given(tensor=frame.assign(method="sft"))).reason


def test_only_the_papers_own_pairs_have_a_level():
    frame = tensor_rows({("rl", "grpo", "mask", seed): 0.5 for seed in (1, 2)})
    assert not estimate("sparsity_level_of_paper_pairs", given(tensor=frame)).has_interval
    found = estimate("sparsity_level_of_paper_pairs", given(tensor=frame.assign(paper_sparsity="53.8")))
    assert found.n == 2 and found.value == pytest.approx(0.6)
