"""Estimates of how far spectra and leading subspaces move, and of bounds on that."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from threegates.estimates.intervals import Estimate, exponential, missing, noted, t_estimate
from threegates.estimates.rows import (
    Estimator,
    Tables,
    of_equal_updates,
    over_partner,
    rft_runs,
    rl_runs,
    same_style_runs,
    seed_gap,
    sft_runs,
)
from threegates.measures.whole_models import PAIR_COLUMNS


def pair_drift(drift: pd.DataFrame) -> pd.DataFrame:
    """Spectral drift of whole models: one row a pair and variant, means over the blocks' matrices.

    Columns: the pair's facts, `partner` (whose norm it was scaled to), `variant`, `nss`, and `angle`, the
    mean principal angle in rad of the left and right leading subspaces together.

    **Source** NSS and angles by Zhu et al. (2025), §4.
    """
    rows = drift.assign(angle=(drift["angle_left_mean"] + drift["angle_right_mean"]) / 2)
    keys = [column for column in (*PAIR_COLUMNS, "updates", "partner") if column in rows.columns]
    means = rows.groupby([*keys, "variant"], dropna=False, sort=False)[["nss", "angle"]].mean()
    return means.reset_index()


def _log_drift(tables: Tables, measure: str) -> pd.DataFrame:
    pairs = pair_drift(tables.table("drift"))
    # A model that did not move at all has no logarithm, and its seed no ratio.
    return pairs.assign(log=np.log(pairs[measure].where(pairs[measure] > 0)))


def _drift_ratio(
    group: Callable[[pd.DataFrame], pd.DataFrame], whose: str, measure: str, tables: Tables, confidence: float
) -> Estimate:
    """A group of runs over RL as trained, geometric mean over seeds."""
    pairs = _log_drift(tables, measure)
    pairs = pairs[pairs["variant"] == "raw"]
    rl, other = rl_runs(pairs), group(pairs)
    if rl.empty or other.empty:
        return missing(f"no runs of {'RL at the mask learning rate' if rl.empty else whose}", "seeds")
    return exponential(t_estimate(seed_gap(other, rl, "log"), "seeds", confidence))


def _drift_ratio_equal_steps(measure: str, tables: Tables, confidence: float) -> Estimate:
    pairs = _log_drift(tables, measure)
    pairs = pairs[pairs["variant"] == "raw"]
    rl, other, told = of_equal_updates(rl_runs(pairs), sft_runs(pairs))
    if rl.empty:
        return missing(told, "seeds")
    return noted(exponential(t_estimate(seed_gap(other, rl, "log"), "seeds", confidence)), told)


def _drift_ratio_equal_norm(measure: str, rounded: bool, tables: Tables, confidence: float) -> Estimate:
    """SFT scaled to the norm of an RL run over that very run, geometric mean over seeds."""
    pairs = _log_drift(tables, measure)
    scaled = sft_runs(pairs[pairs["variant"] == ("norm-matched, rounded" if rounded else "norm-matched")])
    own = pairs[pairs["variant"] == ("rounded" if rounded else "raw")]
    return exponential(over_partner(scaled, own, "log", confidence))


def _noise_over_rl(measure: str, tables: Tables, confidence: float) -> Estimate:
    pairs = rl_runs(_log_drift(tables, measure))
    noise, own = (pairs[pairs["variant"] == variant] for variant in ("noise", "raw"))
    if own.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    return exponential(t_estimate(seed_gap(noise, own, "log"), "seeds", confidence))


def _bounds_hold(names: tuple[str, ...], tables: Tables, confidence: float) -> Estimate:
    """Share of matrices for which every bound that says anything holds, per pair."""
    drift = tables.table("drift")
    says = pd.DataFrame({name: ~drift[f"{name}_vacuous"].astype(bool) for name in names})
    holds = pd.DataFrame({name: drift[f"{name}_holds"].astype(bool) | ~says[name] for name in names})
    tested = says.any(axis=1)
    share = holds[tested].all(axis=1).astype(float).groupby(drift.loc[tested, "pair"]).mean()
    if share.empty:
        return missing("every bound is vacuous", "pairs")
    return t_estimate(share, "pairs", confidence)


ESTIMATES: dict[str, Estimator] = {
    "drift_nss_ratio_equal_norm": partial(_drift_ratio_equal_norm, "nss", False),
    "drift_nss_ratio_equal_norm_rounded": partial(_drift_ratio_equal_norm, "nss", True),
    "drift_angle_ratio_equal_norm": partial(_drift_ratio_equal_norm, "angle", False),
    "drift_angle_ratio_equal_norm_rounded": partial(_drift_ratio_equal_norm, "angle", True),
    "drift_angle_noise_over_rl": partial(_noise_over_rl, "angle"),
    "drift_nss_noise_over_rl": partial(_noise_over_rl, "nss"),
    **{
        f"drift_{measure}_ratio{beside}": partial(_drift_ratio, group, whose, measure)
        for measure in ("nss", "angle")
        for beside, group, whose in (
            ("", sft_runs, "SFT at the rate 'own'"),
            ("_equal_rate", partial(sft_runs, rate="mask"), "SFT at the rate 'mask'"),
            ("_same_style", same_style_runs, "SFT in the base's own style at the mask learning rate"),
            (
                "_same_style_own_rate",
                partial(same_style_runs, rate="own"),
                "SFT in the base's own style at the rate 'own'",
            ),
            ("_rft", rft_runs, "RFT at the mask learning rate"),
        )
    },
    **{
        f"drift_{measure}_ratio_equal_steps": partial(_drift_ratio_equal_steps, measure)
        for measure in ("nss", "angle")
    },
    "drift_spectrum_bounds_hold": partial(_bounds_hold, ("weyl", "mirsky", "ky_fan")),
    "drift_wedin_printed_holds": partial(_bounds_hold, ("wedin_printed",)),
    "drift_wedin_corrected_holds": partial(_bounds_hold, ("wedin_corrected",)),
}
