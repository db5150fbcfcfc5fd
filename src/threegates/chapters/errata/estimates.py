"""Estimates that need no checkpoint: arithmetic on what is printed, and storage noise on made weights."""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
import pandas as pd
import torch

from threegates.chapters.errata import errata, noise
from threegates.estimates import paper
from threegates.estimates.intervals import Estimate, exact, t_estimate
from threegates.estimates.rows import Estimator, Tables
from threegates.geometry.precision import INFINITY_CODE, bf16_from_codes, unchanged_by_definition

#: A divergence of as many nats excludes next to nothing: e^(−10) of the probability.
NATS_THAT_SAY_NOTHING = 10.0
#: Steps of an aligned AdamW at lr 1e-6 until a stored weight changes, as this study inferred them: size of
#: the weight, upwards, downwards.
FIRST_STEPS = ((0.005, 16, 16), (0.02, 62, 62), (0.1, 245, 245), (1.0, 3907, 1954))
_MOST_DIGITS = 16.0


def _share(holds: np.ndarray, unit: str) -> Estimate:
    return exact(float(np.mean(holds)), len(holds), unit)


def _eta_rule() -> Estimate:
    """Share of neighbouring non-negative bf16 values that Def. 2.1 calls changed; all are different."""
    return _share(~unchanged_neighbours(), "neighbouring bf16 values")


def unchanged_neighbours() -> np.ndarray:
    """Which neighbouring non-negative bf16 values Def. 2.1 calls the same."""
    values = bf16_from_codes(torch.arange(0, INFINITY_CODE, dtype=torch.int32)).double()
    return unchanged_by_definition(values[:-1], values[1:]).numpy()


def _ends_of_tolerance() -> Estimate:
    """At how many ends a fixed tolerance errs on stored values: missed changes, equal ones called changed."""
    near = errata.neighbours_called_unchanged()["called_unchanged"].to_numpy()
    same = unchanged_neighbours()
    ends = (near & ~same).any(), (~near & same).any()
    return exact(float(sum(ends)), len(near), "neighbouring bf16 values")


def _ends_before_rounding() -> Estimate:
    """At how many ends a fixed tolerance errs on numbers that are not rounded yet."""
    errors = errata.errors_before_rounding()
    return exact(float(sum(one.any() for one in errors.values())), len(errors["missed"]), "bf16 values")


def _strict_lemma() -> Estimate:
    """Share of normal positive bf16 values with ULP(x)/|x| strictly below 2⁻⁷."""
    return _share((errata.ulp_ratios() < 2.0**-7).numpy(), "normal bf16 values")


def _lemma_with_its_end() -> Estimate:
    """Share of normal positive bf16 values with 2⁻⁸ < ULP(x)/|x| ≤ 2⁻⁷."""
    ratios = errata.ulp_ratios()
    return _share(((ratios > 2.0**-8) & (ratios <= 2.0**-7)).numpy(), "normal bf16 values")


def _half_ulp_suffices() -> Estimate:
    """Share of normal positive bf16 values and sides at which a move past half a ULP changes the value."""
    return _share(errata.changed_around_half_a_ulp(beyond=True).ravel(), "values and sides")


def _half_ulp_is_needed() -> Estimate:
    """Share of normal positive bf16 values and sides at which a move short of half a ULP changes nothing."""
    return _share(~errata.changed_around_half_a_ulp(beyond=False).ravel(), "values and sides")


def _printed_ulps() -> Estimate:
    """bf16 values from 1e-6 to 2e-6 over the printed number of ULPs."""
    return exact(errata.codes_between(1e-6, 2e-6) / errata.ULPS_BETWEEN, 1, "pair of numbers")


def _smaller_ulps() -> Estimate:
    """Distance from 1e-6 to 2e-6 in ULPs of the smaller over the printed number."""
    return exact(errata.ulps_of_doubling(1e-6) / errata.ULPS_BETWEEN, 1, "pair of numbers")


def _first_steps() -> Estimate:
    """Share of weights whose first changing step is the one inferred, upwards and downwards."""
    holds = [errata.exact_steps(size, 1e-6) == (up, down) for size, up, down in FIRST_STEPS]
    return _share(np.array(holds), "sizes of a weight")


def _right_averages(*steps: int) -> Estimate:
    """Share of the printed averages that are right, of the tables of these steps."""
    printed = paper.averages()
    return _share(~printed.loc[printed["steps"].isin(steps), "differs"].to_numpy(), "printed averages")


def _order_of_masks() -> Estimate:
    return exact(float(errata.order_is_kept()), 2, "tables")


def _sparsity_factor(reading: str) -> Estimate:
    """Share of unchanged weights under RL over that under SFT, as printed in Table 1."""
    return exact(errata.sparsity_factors()[reading], len(paper.table_1()), "rows of the table")


def _order_of_rotation() -> Estimate:
    """Power of ‖ΔW‖₂ with which the sine grows where the update is small."""
    curve = errata.rotation_by_size()
    return exact(errata.order_of(curve), len(curve), "sizes of an update")


def _wedin_in_general(which: str) -> Estimate:
    """Share of the counterexample's angles at which a bound holds."""
    return _share(errata.counterexample_curve()[f"{which}_holds"].to_numpy(), "angles")


def _spectrum_bounds() -> Estimate:
    return _share(errata.spectrum_bounds_held(), "matrices and updates")


def _clip_bound_holds() -> Estimate:
    return _share(errata.clip_bound_held(), "pairs of distributions")


def _clip_bound() -> Estimate:
    """Share of the paper's longest response up to which Lemma F.9's bound excludes anything."""
    per_token = errata.clip_bound() / errata.LENGTH
    return exact(NATS_THAT_SAY_NOTHING / per_token / errata.LENGTH, errata.LENGTH, "tokens")


def _safe_over_low(steps: int) -> Estimate:
    """Average of the paper's “safe” mask minus the low-magnitude mask's own average."""
    return exact(errata.over_low_alone()[steps], 1, "pair of runs")


def _safe_nearest(*steps: int, by: str = "of_average") -> Estimate:
    """How much nearer to the dense run the safe mask ends than the nearest other, the least of the tables."""
    nearer = errata.nearer_than("nearest", by)
    return exact(min(nearer[one] for one in steps), len(steps), "tables")


def _safe_nearer_than_random() -> Estimate:
    """How much nearer to the dense run it ends than the random mask, the least of tables and distances."""
    found = [errata.nearer_than("random", by) for by in ("of_average", "by_test")]
    return exact(min(min(one.values()) for one in found), len(found[0]), "tables")


def _principal_is_last() -> Estimate:
    """Lowest average of the other masks minus that of M_princ, the least of the tables."""
    found = errata.over_principal()
    return exact(min(found.values()), len(found), "tables")


def _baseline_of_third_panel() -> Estimate:
    """Density of M_princ without M_low, by the shares of Tables 4 and 5, over the share α of M_princ."""
    found = errata.mask_densities()["principal_not_low"]
    return exact(found / errata.PRINCIPAL_SHARE, 1, "mask")


def _kept_digits(which: str) -> Estimate:
    """Decimal digits of the output that a permutation of heads keeps, at most 16."""
    return exact(_digits(errata.head_permutation_errors()[which]), 1, "permutation")


def _kept_by_rotation() -> Estimate:
    """Decimal digits of the output that the printed rotation of V and O keeps, at most 16."""
    return exact(_digits(errata.rotation_error()), 1, "rotation")


def _digits(error: float) -> float:
    return _MOST_DIGITS if error == 0 else min(_MOST_DIGITS, -math.log10(error))


def _principal_update_meets_bounds() -> Estimate:
    """Energy in the principal block of an update along the leading direction that meets every bound."""
    energy, holds = errata.principal_update()
    return exact(energy if holds else 0.0, 1, "update")


@cache
def _noise(exponent: float) -> pd.DataFrame:
    return noise.storage_alone(exponent=exponent)


def _noise_jaccard(exponent: float, confidence: float) -> Estimate:
    found = _noise(exponent)
    return t_estimate(found["jaccard"] - found["bernoulli"], "draws", confidence)


def _noise_overlap(target: str, exponent: float, confidence: float) -> Estimate:
    found = _noise(exponent)
    return t_estimate(found[f"{target}_density"] - found[f"{target}_overlap"], "draws", confidence)


def _without_tables(tables: Tables, confidence: float, *, of: partial) -> Estimate:
    return of()


def _drawn(tables: Tables, confidence: float, *, of: partial) -> Estimate:
    return of(confidence=confidence)


_TABLES = (320, 500)
_EXACT = {
    "eta_rule_calls_neighbours_changed": partial(_eta_rule),
    "fixed_tolerance_wrong_ends": partial(_ends_of_tolerance),
    "fixed_tolerance_wrong_ends_unrounded": partial(_ends_before_rounding),
    "ulp_ratio_below_bound": partial(_strict_lemma),
    "ulp_ratio_up_to_bound": partial(_lemma_with_its_end),
    "half_ulp_suffices": partial(_half_ulp_suffices),
    "half_ulp_is_needed": partial(_half_ulp_is_needed),
    "codes_over_printed_ulps": partial(_printed_ulps),
    "smaller_ulps_over_printed": partial(_smaller_ulps),
    "first_steps_as_inferred": partial(_first_steps),
    "printed_averages_right": partial(_right_averages, *_TABLES),
    "printed_averages_right_at_320": partial(_right_averages, 320),
    "order_of_masks_kept": partial(_order_of_masks),
    "printed_sparsity_factor": partial(_sparsity_factor, "ends"),
    "printed_sparsity_factor_of_medians": partial(_sparsity_factor, "medians"),
    "order_of_rotation": partial(_order_of_rotation),
    "wedin_printed_in_general": partial(_wedin_in_general, "printed"),
    "wedin_corrected_in_general": partial(_wedin_in_general, "corrected"),
    "wedin_twice_in_general": partial(_wedin_in_general, "twice"),
    "spectrum_bounds_in_general": partial(_spectrum_bounds),
    "clip_bound_reach": partial(_clip_bound),
    "clip_bound_holds": partial(_clip_bound_holds),
    "safe_mask_over_low": partial(_safe_over_low, 320),
    "safe_mask_over_low_at_500": partial(_safe_over_low, 500),
    "safe_mask_nearest_at_320": partial(_safe_nearest, 320),
    "safe_mask_nearest_at_500": partial(_safe_nearest, 500),
    "safe_mask_nearest_by_test": partial(_safe_nearest, *_TABLES, by="by_test"),
    "safe_mask_nearer_than_random": partial(_safe_nearer_than_random),
    "principal_mask_last": partial(_principal_is_last),
    "third_panel_baseline": partial(_baseline_of_third_panel),
    "inverse_permutation_digits": partial(_kept_digits, "inverse"),
    "same_permutation_digits": partial(_kept_digits, "same"),
    "inverse_matrix_digits": partial(_kept_digits, "matrix"),
    "rotation_digits": partial(_kept_by_rotation),
    "bounds_allow_principal_updates": partial(_principal_update_meets_bounds),
}
_DRAWN = {
    "made_noise_jaccard_excess": partial(_noise_jaccard, noise.EXPONENT),
    "made_noise_principal_avoidance": partial(_noise_overlap, "principal", noise.EXPONENT),
    "made_noise_principal_not_low_avoidance": partial(_noise_overlap, "principal_not_low", noise.EXPONENT),
    "made_noise_avoidance_without_structure": partial(_noise_overlap, "principal", 0.0),
}
ESTIMATES: dict[str, Estimator] = {
    **{name: partial(_without_tables, of=of) for name, of in _EXACT.items()},
    **{name: partial(_drawn, of=of) for name, of in _DRAWN.items()},
}
