from __future__ import annotations

import pandas as pd
import pytest

from tests.planted.planted_tables import given
from threegates.register import estimate


def drift_rows(values: dict, seeds: int = 3) -> pd.DataFrame:
    """Two matrices for each seed of (algorithm, rate, variant): NSS and angles about the given value."""
    rows = []
    for (method, algorithm, rate, variant), value in values.items():
        for seed in range(seeds):
            facts = {"pair": f"{algorithm}-{rate}-{seed}", "base": "b", "method": method}
            facts |= {"algorithm": algorithm, "data": "d", "seed": seed, "learning_rate": 1e-5, "rate": rate}
            for share in (0.5, 1.5):
                size = share * value * (1 + 0.01 * seed)
                numbers = {"nss": size, "angle_left_mean": 2 * size, "angle_right_mean": 4 * size}
                partner = f"grpo-mask-{seed}" if "norm-matched" in variant else ""
                named = {"run": facts["pair"], "variant": variant, "partner": partner}
                rows.append({**facts, **named, **numbers})
    return pd.DataFrame(rows)


DRIFT = {
    ("rl", "grpo", "mask", "raw"): 1.0,
    ("rl", "dapo", "mask", "raw"): 4.0,
    ("rl", "grpo", "mask", "rounded"): 3.0,
    ("rl", "grpo", "mask", "noise"): 6.0,
    ("sft", "sft-teacher", "own", "raw"): 20.0,
    ("sft", "sft-teacher", "own", "norm-matched"): 2.0,
    ("sft", "sft-teacher", "own", "norm-matched, rounded"): 1.5,
    ("sft", "sft-teacher", "mask", "raw"): 8.0,
    ("sft", "sft-same-style", "own", "raw"): 900.0,
}


@pytest.mark.parametrize(
    ("name", "expected"),
    # At equal norm a run stands over GRPO alone, whose norm it took; else over GRPO and DAPO together.
    [("", 10.0), ("_equal_norm", 2.0), ("_equal_norm_rounded", 0.5), ("_equal_rate", 4.0)],
)
@pytest.mark.parametrize("measure", ["nss", "angle"])
@pytest.mark.parametrize("algorithm", ["sft-teacher", "cross-entropy"])
def test_drift_ratios_are_geometric_means_over_seeds(algorithm, measure, name, expected):
    drift = drift_rows(DRIFT).replace({"algorithm": {"sft-teacher": algorithm}})
    found = estimate(f"drift_{measure}_ratio{name}", given(drift=drift))
    assert found.value == pytest.approx(expected) and found.n == 3
    assert found.low == pytest.approx(expected) == found.high


def test_a_subject_with_one_rl_algorithm_has_the_same_estimates():
    drift = drift_rows({key: value for key, value in DRIFT.items() if key[1] != "dapo"})
    found = {name: estimate(f"drift_nss_ratio{name}", given(drift=drift)) for name in ("", "_equal_norm")}
    assert found[""].value == pytest.approx(20) and found["_equal_norm"].value == pytest.approx(2)


def test_a_run_that_nobody_scaled_cannot_be_compared_at_equal_norm():
    drift = drift_rows({key: value for key, value in DRIFT.items() if "norm-matched" not in key[3]})
    assert "scaled to the norm" in estimate("drift_nss_ratio_equal_norm", given(drift=drift)).reason
    orphan = drift_rows(DRIFT).assign(partner="elsewhere")
    assert not estimate("drift_nss_ratio_equal_norm", given(drift=orphan)).has_interval


def test_noise_is_compared_with_the_runs_that_have_its_norm():
    # DAPO has no noise here, so only its own angle enters: 6 over the geometric mean of 1 and 4.
    assert estimate("drift_angle_noise_over_rl", given(drift=drift_rows(DRIFT))).value == pytest.approx(3.0)
    alone = drift_rows({("sft", "sft-teacher", "own", "raw"): 1.0})
    for name in ("drift_angle_noise_over_rl", "drift_nss_ratio"):
        assert "no runs of RL" in estimate(name, given(drift=alone)).reason


def test_a_vacuous_bound_is_no_evidence_and_one_violation_counts():
    names = ("weyl", "mirsky", "ky_fan")
    frame = pd.DataFrame({"pair": ["a", "a", "b", "b"]})
    for name in names:
        frame[f"{name}_vacuous"], frame[f"{name}_holds"] = False, True
    whole = estimate("drift_spectrum_bounds_hold", given(drift=frame))
    assert (whole.value, whole.low, whole.high) == (1.0, 1.0, 1.0)
    frame.loc[0, "mirsky_holds"] = False
    assert estimate("drift_spectrum_bounds_hold", given(drift=frame)).value == 0.75
    frame.loc[0, "mirsky_vacuous"] = True
    assert estimate("drift_spectrum_bounds_hold", given(drift=frame)).value == 1.0
    frame["wedin_printed_vacuous"], frame["wedin_printed_holds"] = True, True
    assert "vacuous" in estimate("drift_wedin_printed_holds", given(drift=frame)).reason
