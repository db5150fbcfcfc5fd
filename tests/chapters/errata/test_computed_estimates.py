"""Estimates without checkpoints: each against a computation of another kind."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from threegates.chapters.errata import errata, estimates, noise
from threegates.estimates.paper import tables_4_and_5
from threegates.judging.claims import NoTables
from threegates.register import EXACT, estimate


def value(name: str) -> float:
    return estimate(name, NoTables()).value


def bf16_values() -> np.ndarray:
    """All non-negative finite bf16 values, from their bits."""
    codes = np.arange(0x7F80, dtype=np.uint32) << 16
    return codes.view(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", sorted(EXACT))
def test_none_reads_a_table_and_each_has_an_interval(name):
    found = estimate(name, NoTables())
    assert found.has_interval and found.n > 0 and found.low <= found.value <= found.high


def test_every_neighbour_is_changed_by_the_eta_rule():
    values = bf16_values()
    distance, largest = np.diff(values), values[1:]
    assert value("eta_rule_calls_neighbours_changed") == np.mean(distance > 1e-3 * largest) == 1.0


def test_a_fixed_tolerance_errs_at_one_end_only():
    values = bf16_values()
    missed = np.diff(values) <= 1e-5
    assert missed.any() and not missed.all()
    assert value("fixed_tolerance_wrong_ends") == 1.0


def test_the_tolerance_would_err_at_both_ends_if_the_definition_did(monkeypatch):
    monkeypatch.setattr(estimates, "unchanged_neighbours", lambda: np.diff(bf16_values()) > 1.0)
    assert value("fixed_tolerance_wrong_ends") == 2.0


def test_averages_are_checked_with_fractions():
    rows = tables_4_and_5()
    right = []
    for scores, printed in zip(rows["scores"], rows["average"], strict=True):
        mean = sum(Fraction(x) for x in scores.split()) / len(scores.split())
        right.append(abs(mean - Fraction(printed)) <= Fraction(1, 200))
    assert value("printed_averages_right") == pytest.approx(np.mean(right))


def test_an_update_along_the_leading_direction_meets_every_bound():
    energy, holds = errata.principal_update()
    assert energy == pytest.approx(1.0) and holds
    assert value("bounds_allow_principal_updates") == pytest.approx(1.0)


def test_the_clipping_bound_reaches_as_many_tokens_as_it_takes_for_ten_nats():
    tokens = value("clip_bound_reach") * errata.LENGTH
    assert tokens * np.log(1.28) == pytest.approx(estimates.NATS_THAT_SAY_NOTHING)


def test_the_third_panel_has_the_density_that_parameter_counts_imply():
    assert value("third_panel_baseline") == pytest.approx((1 - 0.7402) / 0.5, abs=1e-6)


def test_noise_on_made_weights_is_the_mean_over_draws():
    found = noise.storage_alone()
    gap = found["jaccard"] - found["bernoulli"]
    shown = estimate("made_noise_jaccard_excess", NoTables())
    assert shown.value == pytest.approx(gap.mean()) and shown.n == noise.DRAWS
    assert shown.error == pytest.approx(gap.std() / np.sqrt(len(gap)))


def test_the_permutations_of_heads_differ_in_the_digits_they_keep():
    assert value("same_permutation_digits") > 12 > 1 > value("inverse_permutation_digits")
