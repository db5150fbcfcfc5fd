from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from tests.planted import lens_frames
from threegates.errors import ClaimError
from threegates.estimates.intervals import jackknife_estimate, t_estimate
from threegates.measures.whole_models import pair_sparsity
from threegates.register import ESTIMATES, estimate

CLAIMS = Path(__file__).resolve().parents[2] / "claims.yaml"
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


class Given:
    """Tables given by hand."""

    def __init__(self, **tables: pd.DataFrame) -> None:
        self.tables = tables

    def table(self, name: str) -> pd.DataFrame:
        return self.tables[name]


def tensor_rows(sparsities: dict, **more) -> pd.DataFrame:
    """One pair for each (method, algorithm, rate, seed): a matrix of 80 entries and a norm of 20."""
    rows = []
    for (method, algorithm, rate, seed), sparsity in sparsities.items():
        facts = {"pair": f"{algorithm}-{rate}-{seed}", "base": "b", "method": method, "algorithm": algorithm}
        facts |= {"data": "d", "seed": seed, "learning_rate": 1e-5, "rate": rate, "run": f"{algorithm}{seed}"}
        for role, size, value in (("q", 80, sparsity), ("norm", 20, 1.0)):
            numbers = {"sparsity": value, "sparsity_fp32": 0.0, "sparsity_storage_norm": value - 0.2}
            numbers |= {"changed": round(size * (1 - value)), "size": size}
            rows.append(
                {**facts, "role": role, "status": "compared", "stored_dtype_tuned": "F32", **numbers, **more}
            )
    return pd.DataFrame(rows)


def named_estimates(awaiting: bool) -> set[str]:
    claims = [
        claim for claim in yaml.safe_load(CLAIMS.read_text())["claims"] if ("awaits" in claim) == awaiting
    ]
    return {rule["estimate"] for claim in claims for rule in (claim["rule"], *claim.get("controls", []))}


def test_every_estimate_of_the_claims_exists_and_no_other():
    assert named_estimates(awaiting=False) == set(ESTIMATES)


def test_estimates_of_runs_that_are_not_made_yet_do_not_exist():
    assert not named_estimates(awaiting=True) & set(ESTIMATES)


def test_an_unknown_estimate_is_refused():
    with pytest.raises(ClaimError, match="no such estimate"):
        estimate("guess", Given())


def test_the_t_interval_is_scipys():
    values = [0.2, 0.3, 0.5, 0.1]
    found = t_estimate(values, "seeds", 0.95)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))


def test_one_seed_has_no_interval_and_none_no_value():
    one, none = t_estimate([0.4], "seeds", 0.95), t_estimate([math.nan], "seeds", 0.95)
    assert one.value == 0.4 and not one.has_interval and "one of the seeds" in one.reason
    assert math.isnan(none.value) and not none.has_interval and "no seeds" in none.reason


def test_the_jackknife_of_a_mean_is_the_t_interval_of_the_mean():
    values = {"a": 0.1, "b": 0.5, "c": 0.7, "d": 0.2}
    jack = jackknife_estimate(
        lambda kept: float(np.mean([values[k] for k in kept])), dict.fromkeys(values, 1), "runs", 0.95
    )
    plain = t_estimate(values.values(), "runs", 0.95)
    assert (jack.value, jack.low, jack.high) == pytest.approx((plain.value, plain.low, plain.high))


def test_the_jackknife_of_unequal_units_finds_the_error_of_a_mean_over_runs():
    """Runs of one unit share a random part; the error over 4,000 studies is the truth it has to find."""
    rng, sizes = np.random.default_rng(5), {"a": 3, "b": 1, "c": 1, "d": 1, "e": 2, "f": 2}
    whole, errors, naive = [], [], []
    for _ in range(4000):
        runs = {name: rng.normal() + 0.3 * rng.normal(size=size) for name, size in sizes.items()}
        found = jackknife_estimate(
            lambda kept, of=runs: float(np.concatenate([of[name] for name in sorted(kept)]).mean()),
            sizes,
            "seeds",
            0.95,
        )
        whole.append(found.value)
        errors.append(found.error)
        every = np.concatenate(list(runs.values()))
        naive.append(every.std(ddof=1) / math.sqrt(len(every)))
    truth = np.std(whole)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(truth, rel=0.1)
    # Runs taken as independent would look far surer than they are.
    assert np.sqrt(np.mean(np.square(naive))) < 0.85 * truth


def test_whole_models_count_every_parameter_and_linear_layers_their_own():
    frame = tensor_rows({("rl", "grpo", "mask", 1): 0.5})
    skipped = {
        **frame.iloc[0].to_dict(),
        "status": "resized",
        "size": 1000,
        "changed": None,
        "sparsity": math.nan,
    }
    row = pair_sparsity(pd.concat([frame, pd.DataFrame([skipped])])).iloc[0]
    assert row["sparsity"] == pytest.approx((80 * 0.5 + 20) / 100)
    assert row["linear_sparsity"] == 0.5 and row["size"] == 100 and row["changed"] == 40


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
    tables = Given(tensor=sparsity_table())
    own = estimate("sparsity_gap_own_lr", tables)
    # The norm's 20 entries of 100 never change, so that gaps shrink by .8.
    assert own.value == pytest.approx(0.8 * 0.5) and own.n == 3 and own.unit == "seeds"
    matched = estimate("sparsity_gap_matched_lr", tables)
    assert matched.value == pytest.approx(0.8 * 0.2) and matched.low == pytest.approx(0.8 * 0.2)
    control = estimate("sparsity_gap_rl_rft", tables)
    assert control.value == pytest.approx(0) and control.low < 0 < control.high


def test_noise_and_precision_gaps():
    tables = Given(tensor=sparsity_table())
    excess = estimate("sparsity_excess_over_equal_norm_noise", tables)
    assert excess.value == pytest.approx(0.2) and excess.n == 3
    gap = estimate("precision_gap", tables)
    assert (gap.n, gap.unit) == (3, "seeds") and gap.value == pytest.approx(0.8 * 0.6 + 0.2)


def test_what_was_stored_in_bf16_says_nothing_of_fp32():
    frame = sparsity_table().assign(stored_dtype_tuned="BF16")
    assert "stored in bf16" in estimate("precision_gap", Given(tensor=frame)).reason


def test_groups_that_are_missing_are_named():
    frame = tensor_rows({("rl", "grpo", "mask", 1): 0.5})
    assert "sft-teacher at the rate 'own'" in estimate("sparsity_gap_own_lr", Given(tensor=frame)).reason
    assert "RL" in estimate("sparsity_gap_own_lr", Given(tensor=frame.assign(method="sft"))).reason


def test_only_the_papers_own_pairs_have_a_level():
    frame = tensor_rows({("rl", "grpo", "mask", seed): 0.5 for seed in (1, 2)})
    assert not estimate("sparsity_level_of_paper_pairs", Given(tensor=frame)).has_interval
    found = estimate("sparsity_level_of_paper_pairs", Given(tensor=frame.assign(paper_sparsity="53.8")))
    assert found.n == 2 and found.value == pytest.approx(0.6)


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
            line |= {f"{name}_mean": null, f"{name}_log_mean": math.log(null)}
        length = 10 if axis == "row" else 40
        lines.append(line | {"density": 0.5, "ratio": [0.5] * length})
    return pd.DataFrame(lines)


def test_stripes_are_a_geometric_mean_over_their_null():
    tables = Given(axis=axis_table())
    raw, null = (estimate(name, tables) for name in ("stripe_excess_bernoulli", "stripe_excess_magnitude"))
    assert raw.value == pytest.approx(4 * stats.gmean([1, 1.01, 1.02, 1.03, 1.04])) and raw.n == 5
    assert null.value == pytest.approx(raw.value / 2) and null.low < null.value < null.high


def test_runs_of_one_seed_are_one_unit_and_unknown_seeds_leave_each_run_alone():
    frame = axis_table()
    paired = estimate("stripe_excess_bernoulli", Given(axis=frame.assign(seed=frame["seed"] // 2)))
    by_seed = [stats.gmean([1, 1.01]), stats.gmean([1.02, 1.03]), 1.04]
    assert (paired.n, paired.unit) == (3, "seeds")
    assert paired.value == pytest.approx(4 * stats.gmean(by_seed))
    alone = estimate("stripe_excess_bernoulli", Given(axis=frame.assign(seed=pd.NA)))
    assert (alone.n, alone.unit) == (5, "runs")


def test_orientation_compares_spreads_that_do_not_grow_with_a_lines_length():
    frame = axis_table(rows=4.0, columns=0.9)
    # A row has 40 entries; columns spread less than chance.
    wide = [math.sqrt((4 * (1 + 0.01 * run) - 1) / 4 / 40) for run in range(5)]
    found = estimate("rows_over_columns_qkv", Given(axis=frame))
    assert found.value == pytest.approx(np.mean(wide)) and found.n == 5
    null = estimate("rows_over_columns_qkv_storage_density", Given(axis=frame))
    assert null.value == pytest.approx(np.mean(wide) - math.sqrt(1 / 4 / 40))


def test_the_orientation_of_o_is_judged_on_o_alone():
    frame = axis_table(rows=4.0, columns=0.9)
    # Along the columns of O a line has ten entries.
    assert estimate("columns_over_rows_o", Given(axis=frame)).value > math.sqrt(3 / 4 / 10)
    turned = frame.assign(
        dispersion=np.where(frame["role"] == "o", 5 - frame["dispersion"], frame["dispersion"])
    )
    assert estimate("columns_over_rows_o", Given(axis=turned)).value < 0
    same = estimate("rows_over_columns_qkv", Given(axis=turned)).value
    assert same == estimate("rows_over_columns_qkv", Given(axis=frame)).value


def agreement_table(runs: int = 5, method: str = "rl") -> pd.DataFrame:
    lines = []
    for role, (a, b) in itertools.product(MATRICES, itertools.combinations(range(runs), 2)):
        line = {"role": role, "method": method, "run_a": f"r{a}", "run_b": f"r{b}", "bernoulli": 0.4}
        line |= {"jaccard": 0.6 + 0.001 * (a + b) - 0.05 * (role == "down"), "storage_density_mean": 0.5}
        lines.append({**line, "storage_norm_mean": 0.45, "magnitude_mean": 0.54})
    return pd.DataFrame(lines)


def test_agreement_is_that_of_the_weakest_matrix_type():
    tables = Given(agreement=agreement_table())
    raw = estimate("jaccard_excess_bernoulli", tables)
    assert raw.value == pytest.approx(0.154) and raw.n == 5 and raw.low < raw.value < raw.high
    assert estimate("jaccard_excess_storage_density", tables).value == pytest.approx(0.054)
    assert estimate("jaccard_excess_storage_norm", tables).value == pytest.approx(0.104)
    assert estimate("jaccard_excess_magnitude", tables).value == pytest.approx(0.014)


@pytest.mark.parametrize("frame", [agreement_table(4), agreement_table(6, "sft"), agreement_table(0)])
def test_fewer_than_five_rl_runs_are_too_few(frame):
    found = estimate("jaccard_excess_bernoulli", Given(agreement=frame))
    assert not found.has_interval and "at least 5" in found.reason


def test_emergence_reads_the_step_nearest_to_a_third():
    lines = []
    for run, step, role, axis in itertools.product("abc", (5, 20, 60), ("q", "o"), ("row", "column")):
        along = (axis == "row") != (role == "o")
        value = {5: 0.1, 20: 0.6 + 0.01 * ord(run), 60: 1.0}[step] if along else -1.0
        line = {"run": run, "method": "rl", "role": role, "axis": axis, "step": step, "tensor": role}
        line |= {"seed": run}
        lines.append({**line, "spearman_with_final": value, "storage_path_mean": 0.5})
    tables = Given(emergence=pd.DataFrame(lines))
    assert estimate("emergence_correlation", tables).value == pytest.approx(0.6 + 0.98)
    assert estimate("emergence_excess_storage_path", tables).value == pytest.approx(0.1 + 0.98)
    empty = pd.DataFrame(lines).iloc[:0]
    assert not estimate("emergence_correlation", Given(emergence=empty)).has_interval


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
    found = estimate(f"drift_{measure}_ratio{name}", Given(drift=drift))
    assert found.value == pytest.approx(expected) and found.n == 3
    assert found.low == pytest.approx(expected) == found.high


def test_a_subject_with_one_rl_algorithm_has_the_same_estimates():
    drift = drift_rows({key: value for key, value in DRIFT.items() if key[1] != "dapo"})
    found = {name: estimate(f"drift_nss_ratio{name}", Given(drift=drift)) for name in ("", "_equal_norm")}
    assert found[""].value == pytest.approx(20) and found["_equal_norm"].value == pytest.approx(2)


def test_a_run_that_nobody_scaled_cannot_be_compared_at_equal_norm():
    drift = drift_rows({key: value for key, value in DRIFT.items() if "norm-matched" not in key[3]})
    assert "scaled to the norm" in estimate("drift_nss_ratio_equal_norm", Given(drift=drift)).reason
    orphan = drift_rows(DRIFT).assign(partner="elsewhere")
    assert not estimate("drift_nss_ratio_equal_norm", Given(drift=orphan)).has_interval


def test_noise_is_compared_with_the_runs_that_have_its_norm():
    # DAPO has no noise here, so only its own angle enters: 6 over the geometric mean of 1 and 4.
    assert estimate("drift_angle_noise_over_rl", Given(drift=drift_rows(DRIFT))).value == pytest.approx(3.0)
    alone = drift_rows({("sft", "sft-teacher", "own", "raw"): 1.0})
    for name in ("drift_angle_noise_over_rl", "drift_nss_ratio"):
        assert "no runs of RL" in estimate(name, Given(drift=alone)).reason


def test_a_vacuous_bound_is_no_evidence_and_one_violation_counts():
    names = ("weyl", "mirsky", "ky_fan")
    frame = pd.DataFrame({"pair": ["a", "a", "b", "b"]})
    for name in names:
        frame[f"{name}_vacuous"], frame[f"{name}_holds"] = False, True
    whole = estimate("drift_spectrum_bounds_hold", Given(drift=frame))
    assert (whole.value, whole.low, whole.high) == (1.0, 1.0, 1.0)
    frame.loc[0, "mirsky_holds"] = False
    assert estimate("drift_spectrum_bounds_hold", Given(drift=frame)).value == 0.75
    frame.loc[0, "mirsky_vacuous"] = True
    assert estimate("drift_spectrum_bounds_hold", Given(drift=frame)).value == 1.0
    frame["wedin_printed_vacuous"], frame["wedin_printed_holds"] = True, True
    assert "vacuous" in estimate("drift_wedin_printed_holds", Given(drift=frame)).reason


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
    tables = Given(overlap=overlap_rows(AVOIDING))
    found = estimate("principal_avoidance", tables)
    assert found.n == 2 and found.value == pytest.approx(0.06)
    assert found.high == pytest.approx(0.06 + stats.t.ppf(0.975, 1) * 0.02)
    for null in ("storage_density", "storage_norm", "magnitude"):
        assert estimate(f"principal_avoidance_{null}", tables).value == pytest.approx(-0.04)


def test_preference_for_low_weights_has_the_other_sign():
    tables = Given(overlap=overlap_rows(AVOIDING, target="low"))
    assert estimate("low_preference", tables).value == pytest.approx(-0.06)
    assert estimate("low_preference_storage_norm", tables).value == pytest.approx(0.04)


def test_views_are_kept_apart_and_fp32_needs_fp32():
    both = [overlap_rows(AVOIDING), overlap_rows(dict.fromkeys(AVOIDING, 0.5), view="fp32")]
    tables = Given(overlap=pd.concat(both))
    assert estimate("principal_avoidance", tables).value == pytest.approx(0.06)
    assert estimate("principal_avoidance_fp32", tables).value == 0
    lost = Given(overlap=overlap_rows(AVOIDING, view="fp32", stored_dtype_tuned="BF16"))
    assert "stored in bf16" in estimate("principal_avoidance_fp32", lost).reason
    assert "no runs of RL" in estimate("low_preference", lost).reason


@pytest.mark.parametrize("algorithm", ["sft-teacher", "cross-entropy"])
def test_sft_is_compared_with_rl_as_trained_and_with_its_partner_at_equal_norm(algorithm):
    tables = Given(overlap=with_sft(algorithm))
    raw = estimate("principal_overlap_sft_over_rl", tables)
    assert raw.value == pytest.approx(0.9 - 0.455) and raw.n == 2
    assert estimate("principal_overlap_sft_over_rl_equal_norm", tables).value == pytest.approx(0.04)
    assert not estimate("principal_overlap_sft_over_rl_fp32", tables).has_interval
    wide = Given(overlap=with_sft(algorithm, view="fp32"))
    assert estimate("principal_overlap_sft_over_rl_fp32", wide).value == pytest.approx(0.9 - 0.455)
    lost = Given(overlap=with_sft(view="fp32").assign(stored_dtype_tuned="BF16"))
    assert "stored in bf16" in estimate("principal_overlap_sft_over_rl_fp32", lost).reason


def test_energies_of_sft_and_rl_are_compared_geometrically():
    raw = estimate("principal_energy_sft_over_rl", Given(direction=with_sft(column="rho2", view="fp32")))
    rl = stats.gmean([0.40, 0.5, 0.42, 0.5])
    assert raw.value == pytest.approx(0.9 / rl) and raw.n == 2
    rounded = Given(direction=with_sft(column="rho2"))
    matched = estimate("principal_energy_sft_over_rl_equal_norm", rounded)
    assert matched.value == pytest.approx(stats.gmean([0.44 / 0.40, 0.46 / 0.42]))


def test_without_sft_or_rl_there_is_nothing_to_compare():
    rows = with_sft()
    alone = Given(overlap=rows[rows["method"] == "sft"])
    assert "no runs of RL" in estimate("principal_overlap_sft_over_rl", alone).reason
    other = Given(overlap=rows[rows["method"] == "rl"])
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
    found = estimate("off_principal_directions", Given(direction=rows))
    assert found.n == 2 and found.value == pytest.approx(0.5)
    nothing = Given(direction=rows[rows["method"] == "sft"])
    assert not estimate("off_principal_directions", nothing).has_interval


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
    found = estimate(name, Given(lens=lens_frames.lens()))
    assert (found.value, found.n) == (pytest.approx(value, abs=1e-9), n)


def test_the_lens_needs_displacements_steps_and_partners():
    pure = lens_frames.lens().query("master == 'bfloat16'")
    assert "more than bf16" in estimate("half_gap_agreement", Given(lens=pure)).reason
    assert "no runs of GRPO" in estimate("single_step_hidden", Given(lens=pure)).reason
    assert "float32 masters" in estimate("master_sparsity_gap", Given(lens=pure)).reason
    assert "sft-teacher" in estimate("master_sparsity_gap_sft", Given(lens=lens_frames.lens())).reason
    ends = lens_frames.lens().query("last")
    assert "along its training" in estimate("hidden_becomes_visible", Given(lens=ends)).reason


def test_one_exception_is_enough_to_break_the_rule_of_the_half_gap():
    broken = lens_frames.lens()
    broken.loc[0, "gap_exceptions"] = 1
    assert estimate("half_gap_agreement", Given(lens=broken)).low < 1
