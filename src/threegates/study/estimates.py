"""The numbers that claims are judged by: each a named function from tables to an estimate with an interval.

A name here is the name that a rule or a control in claims.yaml gives. Nothing here reads a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import pandas as pd
from scipy import stats

from threegates.errors import ClaimError

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
STRIPES = ("q", "k", "v", "o")
#: Algorithms that stand for SFT in comparisons: on a teacher's traces in the lab, on the encoder plainly.
SFT = ("sft-teacher", "cross-entropy")
MINIMUM_RUNS = 5
_SPARSITIES = ("sparsity", "sparsity_fp32", "sparsity_storage_norm")
_PAIR_COLUMNS = (
    "pair",
    "base",
    "method",
    "algorithm",
    "data",
    "seed",
    "learning_rate",
    "rate",
    "run",
    "steps",
)


class Tables(Protocol):
    """Whatever gives the study's tables by name."""

    def table(self, name: str) -> pd.DataFrame:
        """The table of that name, one row as its module documents, joined with the pairs' facts."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its confidence interval over `n` units; without an interval, the reason why."""

    value: float
    low: float
    high: float
    n: int
    unit: str
    reason: str = ""

    @property
    def has_interval(self) -> bool:
        """Whether a rule can be applied to it."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def missing(reason: str, unit: str = "runs") -> Estimate:
    """An estimate that the tables cannot give."""
    return Estimate(math.nan, math.nan, math.nan, 0, unit, reason)


def t_estimate(values: Iterable[float], unit: str, confidence: float) -> Estimate:
    """Mean of independent values and Student's interval; one value has no interval.

    **Source** Student (1908), *The probable error of a mean*.
    """
    x = np.asarray([v for v in values if math.isfinite(v)], dtype=float)
    if len(x) == 0:
        return missing(f"no {unit} to estimate it from", unit)
    if len(x) == 1:
        return Estimate(float(x[0]), math.nan, math.nan, 1, unit, f"one of the {unit} gives no interval")
    half = stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x))
    return Estimate(float(x.mean()), float(x.mean() - half), float(x.mean() + half), len(x), unit)


def jackknife_estimate(
    statistic: Callable[[set], float], units: set, unit: str, confidence: float
) -> Estimate:
    """Leave-one-out estimate and interval of a statistic of a set of units, with t quantiles.

    The value is the statistic of all units; the spread is that of the pseudo-values
    n θ̂ − (n − 1) θ̂₍₋ᵢ₎.

    **Source** Tukey (1958), *Bias and confidence in not quite large samples*.
    """
    n, whole = len(units), statistic(units)
    left_out = np.array([statistic(units - {one}) for one in sorted(units)])
    pseudo = n * whole - (n - 1) * left_out
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * pseudo.std(ddof=1) / math.sqrt(n)
    return Estimate(whole, whole - half, whole + half, n, unit)


def _exponential(log: Estimate) -> Estimate:
    """Back from the mean of logarithms to a geometric mean."""
    return Estimate(math.exp(log.value), math.exp(log.low), math.exp(log.high), log.n, log.unit, log.reason)


def pair_sparsity(tensor: pd.DataFrame) -> pd.DataFrame:
    """Sparsity of whole models: one row a pair, over all parameters and over linear layers alone.

    Sparsity is 1 − Σ changed / Σ size over the tensors that both sides have in equal shape (status
    ``compared``). Columns: the pair's facts, `changed`, `size`, and for every measure (`sparsity` in bf16,
    `sparsity_fp32`, `sparsity_storage_norm` of noise of equal stored norm) its value and, as
    ``linear_…``, its value over linear layers.

    **Source** Zhu et al. (2025), Definition 2.2.
    """
    rows = tensor[(tensor["status"] == "compared") & (tensor["size"] > 0)]
    keys = [column for column in _PAIR_COLUMNS if column in rows.columns]
    lines = _totals(rows[rows["role"].isin(LINEAR)], keys)[list(_SPARSITIES)].add_prefix("linear_")
    return _totals(rows, keys).join(lines).reset_index()


def _totals(rows: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Per pair, sums of `changed` and `size`, and sparsities weighted by size."""
    weighted = {name: rows[name] * rows["size"] for name in _SPARSITIES}
    sums = rows.assign(**weighted).groupby(keys, dropna=False, sort=False)
    # One tensor without a number leaves the whole without one.
    totals = sums[["changed", "size", *_SPARSITIES]].sum(skipna=False)
    return totals.assign(**{name: totals[name] / totals["size"] for name in _SPARSITIES})


def _seed_gap(plus: pd.DataFrame, minus: pd.DataFrame, column: str = "sparsity") -> pd.Series:
    """Per seed, the mean of one group over its algorithms minus the mean of the other."""
    means = [
        group.groupby(["seed", "algorithm"])[column].mean().groupby("seed").mean() for group in (plus, minus)
    ]
    return (means[0] - means[1]).dropna()


def _rl(pairs: pd.DataFrame, rate: str = "mask") -> pd.DataFrame:
    return pairs[(pairs["method"] == "rl") & (pairs["rate"] == rate)]


def _gap_to(algorithm: str, rate: str, tables: Tables, confidence: float) -> Estimate:
    pairs = pair_sparsity(tables.table("tensor"))
    other = pairs[(pairs["algorithm"] == algorithm) & (pairs["rate"] == rate)]
    if _rl(pairs).empty or other.empty:
        absent = "RL at the mask learning rate" if _rl(pairs).empty else f"{algorithm} at the rate '{rate}'"
        return missing(f"no runs of {absent}", "seeds")
    return t_estimate(_seed_gap(_rl(pairs), other), "seeds", confidence)


def _excess_over_noise(tables: Tables, confidence: float) -> Estimate:
    pairs = _rl(pair_sparsity(tables.table("tensor")))
    pairs = pairs.assign(excess=pairs["sparsity"] - pairs["sparsity_storage_norm"])
    by_seed = pairs.groupby(["seed", "algorithm"])["excess"].mean().groupby("seed").mean()
    return t_estimate(by_seed, "seeds", confidence)


def _precision_gap(tables: Tables, confidence: float) -> Estimate:
    tensor = tables.table("tensor")
    rl = _rl(tensor)
    if not rl.empty and (rl["stored_dtype_tuned"].dropna() == "BF16").all():
        return missing("the RL checkpoints were stored in bf16; what fp32 would show is lost")
    pairs = pair_sparsity(rl)
    return t_estimate(pairs["sparsity"] - pairs["sparsity_fp32"], "runs", confidence)


def _paper_level(tables: Tables, confidence: float) -> Estimate:
    tensor = tables.table("tensor")
    if "paper_sparsity" not in tensor.columns:
        return missing("none of the paper's own checkpoints is among the pairs", "pairs")
    rows = tensor[(tensor["method"] == "rl") & tensor["paper_sparsity"].notna()]
    return t_estimate(pair_sparsity(rows)["sparsity"], "pairs", confidence)


def _stripe_rows(tables: Tables) -> pd.DataFrame:
    """Rows of Q, K, V and columns of O of the RL runs: where the paper sees stripes."""
    axis = tables.table("axis")
    along = np.where(axis["role"] == "o", "column", "row")
    return axis[(axis["method"] == "rl") & axis["role"].isin(STRIPES) & (axis["axis"] == along)]


def _stripe_excess(null: str | None, tables: Tables, confidence: float) -> Estimate:
    rows = _stripe_rows(tables)
    # The dispersion is the variance over the binomial one, so that Bernoulli masks are its unit.
    excess = np.log(rows["dispersion"]) - (np.log(rows[f"{null}_mean"]) if null else 0.0)
    per_run = excess.groupby(rows["pair"]).mean()
    return _exponential(t_estimate(per_run, "runs", confidence))


def _orientation(
    roles: tuple[str, ...], along: str, null: str | None, tables: Tables, confidence: float
) -> Estimate:
    """Spread of the ratios along one axis minus that along the other, per run, mean over matrices."""
    axis = tables.table("axis")
    axis = axis[(axis["method"] == "rl") & axis["role"].isin(roles)]
    if axis.empty:
        return missing("no RL runs whose stripes were measured")
    spread = excess_spread(axis, "dispersion") - (excess_spread(axis, f"{null}_mean") if null else 0.0)
    signed = spread * np.where(axis["axis"] == along, 1.0, -1.0)
    per_tensor = signed.groupby([axis["pair"], axis["tensor"]]).sum(min_count=2)
    return t_estimate(per_tensor.groupby("pair").mean(), "runs", confidence)


def excess_spread(axis: pd.DataFrame, column: str) -> pd.Series:
    """Standard deviation of row or column ratios beyond the binomial one, √(max(D − 1, 0) p(1 − p)/n).

    D is the dispersion in `column`, p the density and n the length of a line. Unlike D itself it does not
    grow with n, so rows and columns of a matrix that is not square can be compared. In [0, 1].

    **Source** variance components of a binomial with varying rate; Cochran (1943).
    """
    lines = axis["ratio"].map(len)
    matrix = [axis["pair"], axis["tensor"]]
    # A row is as long as there are columns, and the other way round.
    length = lines.groupby(matrix).transform("sum") - lines
    density = axis["density"]
    return np.sqrt((axis[column] - 1).clip(lower=0) * density * (1 - density) / length)


def _jaccard_excess(null: str, tables: Tables, confidence: float) -> Estimate:
    rows = tables.table("agreement")
    rows = rows[(rows["method"] == "rl") & rows["role"].isin(LINEAR)] if len(rows) else rows
    runs = set(rows["run_a"]) | set(rows["run_b"]) if len(rows) else set()
    if len(runs) < MINIMUM_RUNS:
        return missing(f"{len(runs)} RL runs of one base, at least {MINIMUM_RUNS} are needed")
    column = "bernoulli" if null == "bernoulli" else f"{null}_mean"
    rows = rows.assign(excess=rows["jaccard"] - rows[column])
    return jackknife_estimate(partial(_smallest_role, rows), runs, "runs", confidence)


def _smallest_role(rows: pd.DataFrame, runs: set) -> float:
    kept = rows[rows["run_a"].isin(runs) & rows["run_b"].isin(runs)]
    return float(kept.groupby("role")["excess"].mean().min())


def _emergence(null: str | None, tables: Tables, confidence: float) -> Estimate:
    rows = tables.table("emergence")
    if rows.empty:
        return missing("no RL run with checkpoints along its training")
    along = np.where(rows["role"] == "o", "column", "row")
    rows = rows[(rows["method"] == "rl") & rows["role"].isin(STRIPES) & (rows["axis"] == along)]
    rows = pd.concat([_nearest_to_third(run) for _, run in rows.groupby("run")]) if len(rows) else rows
    excess = rows["spearman_with_final"] - (rows[f"{null}_mean"] if null else 0.0)
    return t_estimate(excess.groupby(rows["run"]).mean(), "runs", confidence)


def _nearest_to_third(run: pd.DataFrame) -> pd.DataFrame:
    steps = np.sort(run["step"].unique())
    target = steps[-1] / 3
    return run[run["step"] == min(steps[:-1], key=lambda step: abs(step - target), default=-1)]


def pair_drift(drift: pd.DataFrame) -> pd.DataFrame:
    """Spectral drift of whole models: one row a pair and variant, means over the blocks' matrices.

    Columns: the pair's facts, `partner` (whose norm it was scaled to), `variant`, `nss`, and `angle`, the
    mean principal angle in rad of the left and right leading subspaces together.

    **Source** NSS and angles by Zhu et al. (2025), §4.
    """
    rows = drift.assign(angle=(drift["angle_left_mean"] + drift["angle_right_mean"]) / 2)
    keys = [column for column in (*_PAIR_COLUMNS, "partner") if column in rows.columns]
    means = rows.groupby([*keys, "variant"], dropna=False, sort=False)[["nss", "angle"]].mean()
    return means.reset_index()


def _log_drift(tables: Tables, measure: str) -> pd.DataFrame:
    pairs = pair_drift(tables.table("drift"))
    # A model that did not move at all has no logarithm, and its seed no ratio.
    return pairs.assign(log=np.log(pairs[measure].where(pairs[measure] > 0)))


def _sft(pairs: pd.DataFrame, rate: str = "own") -> pd.DataFrame:
    return pairs[pairs["algorithm"].isin(SFT) & (pairs["rate"] == rate)]


def _drift_ratio(measure: str, rate: str, tables: Tables, confidence: float) -> Estimate:
    """SFT over RL as trained, geometric mean over seeds."""
    pairs = _log_drift(tables, measure)
    pairs = pairs[pairs["variant"] == "raw"]
    rl, other = _rl(pairs), _sft(pairs, rate)
    if rl.empty or other.empty:
        absent = "RL at the mask learning rate" if rl.empty else f"SFT at the rate '{rate}'"
        return missing(f"no runs of {absent}", "seeds")
    return _exponential(t_estimate(_seed_gap(other, rl, "log"), "seeds", confidence))


def _drift_ratio_equal_norm(measure: str, rounded: bool, tables: Tables, confidence: float) -> Estimate:
    """SFT scaled to the norm of an RL run over that very run, geometric mean over seeds."""
    pairs = _log_drift(tables, measure)
    scaled = _sft(pairs[pairs["variant"] == ("norm-matched, rounded" if rounded else "norm-matched")])
    own = pairs[pairs["variant"] == ("rounded" if rounded else "raw")]
    return _exponential(_over_partner(scaled, own, "log", confidence))


def _over_partner(scaled: pd.DataFrame, own: pd.DataFrame, column: str, confidence: float) -> Estimate:
    """Per seed, the value of the runs that were scaled minus that of the runs whose norms they took."""
    scaled = scaled[scaled["partner"].isin(own["pair"])]
    if scaled.empty:
        return missing("no runs of SFT that were scaled to the norm of an RL run", "seeds")
    gaps = scaled[column] - scaled["partner"].map(own.set_index("pair")[column])
    return t_estimate(gaps.groupby(scaled["seed"]).mean(), "seeds", confidence)


def _noise_over_rl(tables: Tables, confidence: float) -> Estimate:
    pairs = _rl(_log_drift(tables, "angle"))
    noise, own = (pairs[pairs["variant"] == variant] for variant in ("noise", "raw"))
    if own.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    return _exponential(t_estimate(_seed_gap(noise, own, "log"), "seeds", confidence))


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


def _overlap_gap(
    target: str, sign: int, null: str | None, view: str, tables: Tables, confidence: float
) -> Estimate:
    """Sign times (overlap − baseline) of RL's masks, mean over matrices, then over a seed's algorithms.

    The baseline is the target's own density, or the mean overlap of a null's masks.
    """
    rows = _as_trained(_rl(tables.table("overlap")))
    rows = rows[(rows["target"] == target) & (rows["view"] == view) & rows["role"].isin(LINEAR)]
    if rows.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    if view == "fp32" and _lost(rows):
        return missing(_FP32_IS_LOST, "seeds")
    baseline = rows[f"{null}_mean"] if null else rows["density"]
    return t_estimate(_seed_means(rows, sign * (rows["overlap"] - baseline)), "seeds", confidence)


def _seed_means(rows: pd.DataFrame, values: pd.Series) -> pd.Series:
    """Means over the matrices of a run, then over the runs of a seed."""
    per_run = values.groupby([rows["seed"], rows["pair"]]).mean()
    return per_run.groupby("seed").mean()


def _as_trained(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["variant"] == "raw"]


_FP32_IS_LOST = "the RL checkpoints were stored in bf16; what fp32 would show is lost"


def _lost(rows: pd.DataFrame) -> bool:
    return bool((rows["stored_dtype_tuned"] == "BF16").all())


def _run_means(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Means of a column over the linear matrices of each run; undefined where a matrix has no value."""
    rows = rows[rows["role"].isin(LINEAR)]
    keys = ["pair", "method", "algorithm", "rate", "seed", "variant", "partner"]
    return rows.groupby(keys, dropna=False)[column].mean().reset_index()


def _sft_beside_rl(rows: pd.DataFrame, column: str, matched: bool, confidence: float) -> Estimate:
    """SFT minus RL: both as trained, or SFT scaled to the norm of an RL run minus that very run."""
    runs = _run_means(rows, column)
    rl = _rl(_as_trained(runs))
    if rl.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    if matched:
        return _over_partner(_sft(runs[runs["variant"] == "norm-matched"]), rl, column, confidence)
    other = _sft(_as_trained(runs))
    if other.empty:
        return missing("no runs of SFT at the rate 'own'", "seeds")
    return t_estimate(_seed_gap(other, rl, column), "seeds", confidence)


def _overlap_of_sft(view: str, matched: bool, tables: Tables, confidence: float) -> Estimate:
    """Overlap of SFT's mask with principal weights minus that of RL's."""
    rows = tables.table("overlap")
    rows = rows[(rows["target"] == "principal") & (rows["view"] == view)]
    if view == "fp32" and not rows.empty and _lost(rows):
        return missing(_FP32_IS_LOST, "seeds")
    return _sft_beside_rl(rows, "overlap", matched, confidence)


def _energy_of_sft(view: str, matched: bool, tables: Tables, confidence: float) -> Estimate:
    """Energy of SFT's update in the principal block over that of RL's, geometric mean."""
    rows = tables.table("direction")
    rows = rows[rows["view"] == view]
    # An update that has nothing there has no logarithm.
    rows = rows.assign(log=np.log(rows["rho2"].where(rows["rho2"] > 0)))
    return _exponential(_sft_beside_rl(rows, "log", matched, confidence))


def _off_principal(tables: Tables, confidence: float) -> Estimate:
    """Energy that random frames find in an update over that of the principal frames, geometric mean."""
    rows = _as_trained(_rl(tables.table("direction")))
    rows = rows[rows["role"].isin(LINEAR) & (rows["view"] == "fp32")]
    if rows.empty:
        return missing("no runs of RL at the mask learning rate", "seeds")
    ratio = np.log(rows["rotation_mean"]) - np.log(rows["rho2"])
    return _exponential(t_estimate(_seed_means(rows, ratio), "seeds", confidence))


def lens_totals(lens: pd.DataFrame) -> pd.DataFrame:
    """The lens table summed over tensors: one row a checkpoint with its facts, `master` and `only_bf16`.

    `master` is the format of the run's master weights where it is known; `only_bf16` says that nothing finer
    than bf16 was stored, so that a displacement below the gap cannot be seen.
    """
    keys = [column for column in (*_PAIR_COLUMNS, "step", "updates", "last") if column in lens.columns]
    numbers = [column for column in lens.select_dtypes("number") if column not in {*keys, "layer"}]
    totals = lens.groupby(keys, dropna=False, sort=False)[numbers].sum().reset_index()
    coarse = (lens["stored_dtype_tuned"] == "BF16").groupby(lens["pair"]).all()
    pairs = totals["pair"]
    return totals.assign(master=pairs.map(masters(lens)), only_bf16=pairs.map(coarse))


def masters(frame: pd.DataFrame, key: str = "pair") -> pd.Series:
    """Format of the master weights by pair or run: the label, or float32 where a run of the lab has none.

    A pair of one's own says nothing of its training; its master is missing.
    """
    rows = frame.drop_duplicates(key).set_index(key)
    known = rows["rate"].map({"mask": "float32", "own": "float32", "reward": "float32"})
    return rows["master"].fillna(known) if "master" in rows else known


def _lens_runs(tables: Tables, algorithm: str | None, master: str = "float32") -> pd.DataFrame:
    """Checkpoints of the runs at RL's rate, or of all runs, that have such a master."""
    rows = lens_totals(tables.table("lens"))
    of_master = rows["master"].fillna("float32") == master
    of_method = (rows["algorithm"] == algorithm) & (rows["rate"] == "mask") if algorithm else True
    return rows[of_master & of_method]


def _lens_share(
    rows: pd.DataFrame,
    part: str,
    whole: str,
    confidence: float,
    absent: str = "runs of GRPO with float32 masters",
) -> Estimate:
    sums = rows.groupby("run")[[part, whole]].sum()
    if sums.empty:
        return missing(f"no {absent}")
    return t_estimate(sums[part] / sums[whole].where(sums[whole] > 0), "runs", confidence)


def _rule_agreement(exceptions: str, every_step: bool, tables: Tables, confidence: float) -> Estimate:
    """Share of weights for which a rule on displacements says whether storage changed."""
    rows = _lens_runs(tables, None)
    rows = rows[~rows["only_bf16"]]
    rows = rows if every_step else rows[rows["last"]]
    rows = rows.assign(agree=rows["size"] - rows[exceptions])
    return _lens_share(rows, "agree", "size", confidence, "checkpoint that keeps more than bf16")


def _single_step_hidden(tables: Tables, confidence: float) -> Estimate:
    rows = _lens_runs(tables, "grpo")
    rows = rows[rows["last"]]
    rows = rows.assign(below=rows["size"] - rows["single_step"])
    return _lens_share(rows, "below", "size", confidence)


def _accumulation_gap(tables: Tables, confidence: float) -> Estimate:
    rows = _lens_runs(tables, "grpo")
    rows = rows[rows["last"]]
    return _lens_share(rows.assign(more=rows["changed"] - rows["single_step"]), "more", "size", confidence)


def _hidden_becomes_visible(tables: Tables, confidence: float) -> Estimate:
    rows = _lens_runs(tables, "grpo")
    runs = [run for _, run in rows.groupby("run") if run["step"].nunique() > 1]
    if not runs:
        return missing("no GRPO run with float32 masters and checkpoints along its training")
    early = pd.concat([_nearest_to_third(run) for run in runs])
    return _lens_share(early, "hidden_later", "hidden", confidence)


def _hidden_energy_deficit(over_noise: bool, tables: Tables, confidence: float) -> Estimate:
    """Share of hidden weights minus their share of the energy; the same of noise taken off, or not."""
    rows = _lens_runs(tables, "grpo")
    rows = rows[rows["last"]].set_index("run")
    if rows.empty:
        return missing("no runs of GRPO with float32 masters")
    deficit = rows["hidden"] / rows["moved"] - rows["energy_hidden"] / rows["energy"]
    noise = 1 - rows["noise_changed"] / rows["size"] - rows["noise_energy_hidden"] / rows["noise_energy"]
    return t_estimate(deficit - noise if over_noise else deficit, "runs", confidence)


def _master_gap(algorithm: str, tables: Tables, confidence: float) -> Estimate:
    """Sparsity without float32 masters minus that with them, per seed."""
    by_master = {}
    for master in ("bfloat16", "float32"):
        rows = _lens_runs(tables, algorithm, master)
        rows = rows[rows["last"]]
        if rows.empty:
            return missing(f"no runs of {algorithm} with {master} masters", "seeds")
        by_master[master] = (1 - rows["changed"] / rows["size"]).groupby(rows["seed"]).mean()
    return t_estimate((by_master["bfloat16"] - by_master["float32"]).dropna(), "seeds", confidence)


ESTIMATES: dict[str, Callable[[Tables, float], Estimate]] = {
    "sparsity_gap_own_lr": partial(_gap_to, "sft-teacher", "own"),
    "sparsity_gap_matched_lr": partial(_gap_to, "sft-teacher", "mask"),
    "sparsity_gap_same_style": partial(_gap_to, "sft-same-style", "mask"),
    "sparsity_gap_rl_rft": partial(_gap_to, "rft", "mask"),
    "sparsity_excess_over_equal_norm_noise": _excess_over_noise,
    "sparsity_level_of_paper_pairs": _paper_level,
    "precision_gap": _precision_gap,
    "stripe_excess_bernoulli": partial(_stripe_excess, None),
    "stripe_excess_storage_density": partial(_stripe_excess, "storage_density"),
    "stripe_excess_magnitude": partial(_stripe_excess, "magnitude"),
    "rows_over_columns_qkv": partial(_orientation, ("q", "k", "v"), "row", None),
    "rows_over_columns_qkv_storage_density": partial(_orientation, ("q", "k", "v"), "row", "storage_density"),
    "columns_over_rows_o": partial(_orientation, ("o",), "column", None),
    "columns_over_rows_o_storage_density": partial(_orientation, ("o",), "column", "storage_density"),
    "jaccard_excess_bernoulli": partial(_jaccard_excess, "bernoulli"),
    "jaccard_excess_storage_density": partial(_jaccard_excess, "storage_density"),
    "jaccard_excess_storage_norm": partial(_jaccard_excess, "storage_norm"),
    "jaccard_excess_magnitude": partial(_jaccard_excess, "magnitude"),
    "emergence_correlation": partial(_emergence, None),
    "emergence_excess_storage_path": partial(_emergence, "storage_path"),
    "drift_nss_ratio": partial(_drift_ratio, "nss", "own"),
    "drift_nss_ratio_equal_norm": partial(_drift_ratio_equal_norm, "nss", False),
    "drift_nss_ratio_equal_norm_rounded": partial(_drift_ratio_equal_norm, "nss", True),
    "drift_nss_ratio_equal_rate": partial(_drift_ratio, "nss", "mask"),
    "drift_angle_ratio": partial(_drift_ratio, "angle", "own"),
    "drift_angle_ratio_equal_norm": partial(_drift_ratio_equal_norm, "angle", False),
    "drift_angle_ratio_equal_norm_rounded": partial(_drift_ratio_equal_norm, "angle", True),
    "drift_angle_ratio_equal_rate": partial(_drift_ratio, "angle", "mask"),
    "drift_angle_noise_over_rl": _noise_over_rl,
    "drift_spectrum_bounds_hold": partial(_bounds_hold, ("weyl", "mirsky", "ky_fan")),
    "drift_wedin_printed_holds": partial(_bounds_hold, ("wedin_printed",)),
    "drift_wedin_corrected_holds": partial(_bounds_hold, ("wedin_corrected",)),
    "principal_avoidance": partial(_overlap_gap, "principal", -1, None, "bf16"),
    "principal_avoidance_storage_density": partial(_overlap_gap, "principal", -1, "storage_density", "bf16"),
    "principal_avoidance_storage_norm": partial(_overlap_gap, "principal", -1, "storage_norm", "bf16"),
    "principal_avoidance_magnitude": partial(_overlap_gap, "principal", -1, "magnitude", "bf16"),
    "principal_avoidance_fp32": partial(_overlap_gap, "principal", -1, None, "fp32"),
    "principal_avoidance_fp32_magnitude": partial(_overlap_gap, "principal", -1, "magnitude", "fp32"),
    "low_preference": partial(_overlap_gap, "low", 1, None, "bf16"),
    "low_preference_storage_density": partial(_overlap_gap, "low", 1, "storage_density", "bf16"),
    "low_preference_storage_norm": partial(_overlap_gap, "low", 1, "storage_norm", "bf16"),
    "off_principal_directions": _off_principal,
    "principal_overlap_sft_over_rl": partial(_overlap_of_sft, "bf16", False),
    "principal_overlap_sft_over_rl_equal_norm": partial(_overlap_of_sft, "bf16", True),
    "principal_overlap_sft_over_rl_fp32": partial(_overlap_of_sft, "fp32", False),
    "principal_energy_sft_over_rl": partial(_energy_of_sft, "fp32", False),
    "principal_energy_sft_over_rl_equal_norm": partial(_energy_of_sft, "bf16", True),
    "half_ulp_agreement": partial(_rule_agreement, "half_ulp_exceptions", False),
    "half_gap_agreement": partial(_rule_agreement, "gap_exceptions", True),
    "single_step_hidden": _single_step_hidden,
    "accumulation_gap": _accumulation_gap,
    "hidden_becomes_visible": _hidden_becomes_visible,
    "hidden_energy_deficit": partial(_hidden_energy_deficit, False),
    "hidden_energy_deficit_over_noise": partial(_hidden_energy_deficit, True),
    "master_sparsity_gap": partial(_master_gap, "grpo"),
    "master_sparsity_gap_sft": partial(_master_gap, "sft-teacher"),
}


def estimate(name: str, tables: Tables, confidence: float = 0.95) -> Estimate:
    """Compute the estimate of that name.

    Raises
    ------
    ClaimError : there is no estimate of that name.
    """
    if name not in ESTIMATES:
        raise ClaimError("there is no such estimate", expected=", ".join(sorted(ESTIMATES)), found=name)
    return ESTIMATES[name](tables, confidence)
