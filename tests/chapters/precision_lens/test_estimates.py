from __future__ import annotations

import pytest

from tests.planted import lens_frames
from tests.planted.planted_tables import given
from threegates.register import estimate

LENS_CLAIMS = {
    "half_ulp_agreement": (0.999, 2),
    "half_gap_agreement": (1.0, 2),
    "single_step_hidden": (0.98, 2),
    "accumulation_gap": (0.48, 2),
    "hidden_becomes_visible": (0.4, 2),
    "hidden_energy_deficit": (0.3, 2),
    "hidden_energy_deficit_over_noise": (0.01, 2),
    "master_sparsity_gap": (0.49, 2),
}


@pytest.mark.parametrize("name", LENS_CLAIMS)
def test_the_lens_counts_weights_of_the_runs_it_is_about(name):
    value, n = LENS_CLAIMS[name]
    found = estimate(name, given(lens=lens_frames.lens()))
    assert (found.value, found.n) == (pytest.approx(value, abs=1e-9), n)


def test_the_lens_needs_displacements_steps_and_partners():
    pure = lens_frames.lens().query("master == 'bfloat16'")
    assert "more than bf16" in estimate("half_gap_agreement", given(lens=pure)).reason
    assert "no runs of GRPO" in estimate("single_step_hidden", given(lens=pure)).reason
    assert "float32 masters" in estimate("master_sparsity_gap", given(lens=pure)).reason
    assert "sft-teacher" in estimate("master_sparsity_gap_sft", given(lens=lens_frames.lens())).reason
    ends = lens_frames.lens().query("last")
    assert "along its training" in estimate("hidden_becomes_visible", given(lens=ends)).reason


def test_one_exception_is_enough_to_break_the_rule_of_the_half_gap():
    broken = lens_frames.lens()
    broken.loc[0, "gap_exceptions"] = 1
    assert estimate("half_gap_agreement", given(lens=broken)).low < 1
