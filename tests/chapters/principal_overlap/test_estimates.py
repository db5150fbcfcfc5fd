from __future__ import annotations

import pandas as pd
import pytest
from scipy import stats

from tests.planted.planted_tables import given
from threegates.register import estimate


def overlap_rows(overlaps: dict, target="principal", view="bf16", **more) -> pd.DataFrame:
    """One matrix of density .5 for each (algorithm, seed); under every null the overlap is .4."""
    rows = []
    for (algorithm, seed), found in overlaps.items():
        method = "sft" if algorithm.startswith("sft") else "rl"
        facts = {"pair": f"{algorithm}-{seed}", "method": method, "rate": "mask", "seed": seed, "role": "q"}
        nulls = {f"{null}_mean": 0.4 for null in ("storage_density", "storage_norm", "magnitude")}
        facts |= {"algorithm": algorithm, "variant": "raw", "partner": ""}
        numbers = {"overlap": found, "density": 0.5, **nulls, "stored_dtype_tuned": "F32", **more}
        rows.append({"target": target, "view": view, **facts, **numbers})
    return pd.DataFrame(rows)


def with_sft(algorithm="sft-teacher", column="overlap", view="bf16") -> pd.DataFrame:
    """RL at .4 and .5, its SFT at .9 as trained and at .44 and .46 at GRPO's norm."""
    rl = overlap_rows({("grpo", 1): 0.40, ("grpo", 2): 0.42, ("dapo", 1): 0.5, ("dapo", 2): 0.5}, view=view)
    sft = overlap_rows({("sft", 1): 0.9, ("sft", 2): 0.9}, view=view).assign(algorithm=algorithm, rate="own")
    scaled = sft.assign(variant="norm-matched", partner=["grpo-1", "grpo-2"], overlap=[0.44, 0.46])
    other = sft.assign(rate="mask", overlap=0.0, pair=["x-1", "x-2"])
    return pd.concat([rl, sft, scaled, other]).rename(columns={"overlap": column})


AVOIDING = {("grpo", 1): 0.40, ("dapo", 1): 0.44, ("grpo", 2): 0.46, ("dapo", 2): 0.46, ("sft", 3): 0.9}


def test_avoidance_is_density_minus_overlap_over_seeds():
    tables = given(overlap=overlap_rows(AVOIDING))
    found = estimate("principal_avoidance", tables)
    assert found.n == 2 and found.value == pytest.approx(0.06)
    assert found.high == pytest.approx(0.06 + stats.t.ppf(0.975, 1) * 0.02)
    for null in ("storage_density", "storage_norm", "magnitude"):
        assert estimate(f"principal_avoidance_{null}", tables).value == pytest.approx(-0.04)


def test_preference_for_low_weights_has_the_other_sign():
    tables = given(overlap=overlap_rows(AVOIDING, target="low"))
    assert estimate("low_preference", tables).value == pytest.approx(-0.06)
    assert estimate("low_preference_storage_norm", tables).value == pytest.approx(0.04)


def test_views_are_kept_apart_and_fp32_needs_fp32():
    both = [overlap_rows(AVOIDING), overlap_rows(dict.fromkeys(AVOIDING, 0.5), view="fp32")]
    tables = given(overlap=pd.concat(both))
    assert estimate("principal_avoidance", tables).value == pytest.approx(0.06)
    assert estimate("principal_avoidance_fp32", tables).value == 0
    lost = given(overlap=overlap_rows(AVOIDING, view="fp32", stored_dtype_tuned="BF16"))
    assert "stored in bf16" in estimate("principal_avoidance_fp32", lost).reason
    assert "no runs of RL" in estimate("low_preference", lost).reason


@pytest.mark.parametrize("algorithm", ["sft-teacher", "cross-entropy"])
def test_sft_is_compared_with_rl_as_trained_and_with_its_partner_at_equal_norm(algorithm):
    tables = given(overlap=with_sft(algorithm))
    raw = estimate("principal_overlap_sft_over_rl", tables)
    assert raw.value == pytest.approx(0.9 - 0.455) and raw.n == 2
    assert estimate("principal_overlap_sft_over_rl_equal_norm", tables).value == pytest.approx(0.04)
    assert not estimate("principal_overlap_sft_over_rl_fp32", tables).has_interval
    wide = given(overlap=with_sft(algorithm, view="fp32"))
    assert estimate("principal_overlap_sft_over_rl_fp32", wide).value == pytest.approx(0.9 - 0.455)
    lost = given(overlap=with_sft(view="fp32").assign(stored_dtype_tuned="BF16"))
    assert "stored in bf16" in estimate("principal_overlap_sft_over_rl_fp32", lost).reason


def test_energies_of_sft_and_rl_are_compared_geometrically():
    raw = estimate("principal_energy_sft_over_rl", given(direction=with_sft(column="rho2", view="fp32")))
    rl = stats.gmean([0.40, 0.5, 0.42, 0.5])
    assert raw.value == pytest.approx(0.9 / rl) and raw.n == 2
    rounded = given(direction=with_sft(column="rho2"))
    matched = estimate("principal_energy_sft_over_rl_equal_norm", rounded)
    assert matched.value == pytest.approx(stats.gmean([0.44 / 0.40, 0.46 / 0.42]))


def test_without_sft_or_rl_there_is_nothing_to_compare():
    rows = with_sft()
    alone = given(overlap=rows[rows["method"] == "sft"])
    assert "no runs of RL" in estimate("principal_overlap_sft_over_rl", alone).reason
    other = given(overlap=rows[rows["method"] == "rl"])
    assert "no runs of SFT" in estimate("principal_overlap_sft_over_rl", other).reason
    assert "scaled to the norm" in estimate("principal_overlap_sft_over_rl_equal_norm", other).reason


def test_directions_compare_random_frames_with_principal_ones_geometrically():
    energy = {("grpo", 1): 0.01, ("dapo", 1): 0.04, ("grpo", 2): 0.02, ("sft", 1): 1.0}
    rows = overlap_rows(energy).rename(columns={"overlap": "rho2"})
    rows = rows.assign(rotation_mean=0.01, view="fp32")
    # Neither what was rounded nor what was scaled counts.
    rows = pd.concat(
        [rows, rows.assign(view="bf16", rho2=9.0), rows.assign(variant="norm-matched", rho2=9.0)]
    )
    found = estimate("off_principal_directions", given(direction=rows))
    assert found.n == 2 and found.value == pytest.approx(0.5)
    nothing = given(direction=rows[rows["method"] == "sft"])
    assert not estimate("off_principal_directions", nothing).has_interval
