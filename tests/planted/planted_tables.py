"""Tables by hand on which every claim is reproduced, and for each estimate how to give it any value.

A planter writes one value for each unit (a seed, a run, a pair) into the columns that its estimate alone
reads, so that the estimate is the mean of those values (of a ratio: the geometric mean) and the other
estimates of its claim stay what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations, product

import numpy as np
import pandas as pd

from tests.planted import (
    planted_adapters,
    planted_curvature,
    planted_leash,
    planted_masks,
    planted_rates,
    planted_rotation,
)
from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.paper import table_2
from threegates.estimates.rows import STRIPES
from threegates.geometry.principal import TARGETS
from threegates.jobs.nulls import founding_nulls
from threegates.measures.agreement import columns_of
from threegates.measures.changes import TENSOR_COLUMNS
from threegates.measures.drift import DRIFT_COLUMNS
from threegates.measures.emergence import EMERGENCE_COLUMNS
from threegates.measures.lens import LENS_COLUMNS
from threegates.measures.overlap import DIRECTION_COLUMNS, overlap_columns

SEEDS = (1, 2, 3)
RL = ("grpo", "dapo", "reinforce++")
#: RL's algorithms lie this far from their mean, so that an estimate which forgets one of them is seen.
APART = dict(zip(RL, (-0.01, 0.01, 0.0), strict=True))
#: Runs whose stripes are measured, each of a seed of its own.
RUNS = {f"r{number}": number for number in range(5)}
#: Matrices of a pair for which some bound says something.
TESTED = 10
SIZE = 10**9
#: Optimiser updates of a run, and of SFT's shorter one at its own rate: both stand in its mean, and the
#: longer one alone is compared after equal updates.
UPDATES, FEWER = 192, 96

Frames = dict[str, pd.DataFrame]
Values = np.ndarray


@dataclass(frozen=True)
class Given:
    """Tables by name."""

    frames: Mapping[str, pd.DataFrame]

    def table(self, name: str) -> pd.DataFrame:
        return self.frames[name]


def given(**frames: pd.DataFrame) -> Given:
    """These tables."""
    return Given(frames)


@dataclass(frozen=True)
class Planter:
    """How to give an estimate a value for each of its units.

    log : the estimate is a geometric mean. tenths : it is a share of `TESTED` rows, at most 1. counted : it
    is the share of the units that are 1 and not 0, without an interval. exact : it is one number, which its
    units share. at : a value that it can have.
    """

    table: str
    units: int
    plant: Callable[[pd.DataFrame, Values], pd.DataFrame]
    log: bool = False
    tenths: bool = False
    counted: bool = False
    exact: bool = False
    at: float = 0.3


def planted(name: str, values: Sequence[float], start: Given | None = None) -> Given:
    """Tables on which the estimate's units have these values, the rest as in the baseline or `start`."""
    planter, frames = PLANTERS[name], dict(start.frames if start else baseline())
    assert len(values) == planter.units
    frames[planter.table] = planter.plant(frames[planter.table].copy(), np.asarray(values, dtype=float))
    return Given(frames)


@cache
def baseline() -> Mapping[str, pd.DataFrame]:
    """Tables on which every claim is reproduced and every control holds."""
    return {
        "tensor": _tensor(),
        "overlap": _overlap(),
        "direction": _direction(),
        "drift": _drift(),
        "axis": _axis(),
        "agreement": _agreement(),
        "emergence": _emergence(),
        "lens": _lens(),
        "curvature": planted_curvature.table(),
        "steepness": planted_curvature.steepness(),
        **planted_rotation.tables(),
        "log": pd.concat([_log(), planted_masks.log(), planted_adapters.log()], ignore_index=True),
        "fisher": planted_leash.fisher(),
        "evaluation": pd.concat(
            [planted_masks.evaluation(), planted_adapters.evaluation()], ignore_index=True
        ),
    }


def _frame(rows: Sequence[Mapping], columns: Mapping[str, str]) -> pd.DataFrame:
    """Rows in all columns of the real table, joined with facts; what nobody set is zero, or missing."""
    zeros = {
        name: False if kind == "bool" else 0 for name, kind in columns.items() if kind in ("bool", "int64")
    }
    frame = pd.DataFrame([{**zeros, **row} for row in rows])
    return frame.reindex(columns=[*columns, *(name for name in frame if name not in columns)])


def _facts(method: str, algorithm: str, rate: str, seed: int) -> dict:
    name = f"{algorithm}-{rate}-{seed}"
    facts = {"pair": name, "base": "b", "method": method, "algorithm": algorithm, "data": "d", "seed": seed}
    return {**facts, "learning_rate": 1e-5, "rate": rate, "run": name, "updates": UPDATES}


def _rl() -> list[dict]:
    return [_facts("rl", algorithm, "mask", seed) for algorithm, seed in product(RL, SEEDS)]


def _sft(rate: str, algorithm: str = "sft-teacher", method: str = "sft") -> list[dict]:
    return [_facts(method, algorithm, rate, seed) for seed in SEEDS]


def _sft_own() -> list[dict]:
    """SFT at its own rate, of as many updates as RL and of fewer."""
    short = [
        {**facts, "pair": f"{facts['pair']}-short", "run": f"{facts['run']}-short", "updates": FEWER}
        for facts in _sft("own")
    ]
    return [*_sft("own"), *short]


def _beside_rl() -> list[dict]:
    """Runs that a claim on RL against SFT sets beside RL's: SFT at both rates and in one more style, RFT."""
    return [*_sft_own(), *_sft("mask"), *_own_style(), *_sft("mask", "rft", "rft")]


def _own_style() -> list[dict]:
    return [*_sft("mask", "sft-same-style"), *_sft("own", "sft-same-style")]


def _apart(facts: Mapping) -> float:
    return APART.get(facts["algorithm"], 0.0)


# --- the tables


def _tensor() -> pd.DataFrame:
    """Two tensors of each pair, alike in all shares."""
    levels = [(facts, 0.7 + _apart(facts)) for facts in _rl()]
    levels += [(facts, 0.3) for facts in (*_sft_own(), *_sft("mask"), *_own_style())]
    levels += [(facts, 0.7) for facts in _sft("mask", "rft", "rft")]
    printed = {"paper_sparsity": "60", "followup_sparsity": "65"}
    levels += [(_facts("rl", "grpo", "theirs", seed) | printed, 0.6) for seed in SEEDS]
    rows = []
    for facts, level in levels:
        for role, size in (("q", 80), ("norm", 20)):
            shares = {"sparsity": level, "sparsity_fp32": 0.1, "sparsity_storage_norm": level - 0.2}
            known = {"status": "compared", "stored_dtype_tuned": "F32", "size": size, "tensor": role}
            rows.append({**facts, **known, "role": role, **shares})
    rows += planted_rates.tensor_rows(_facts, SEEDS)
    return planted_rates.with_norms(_frame(rows, TENSOR_COLUMNS))


def _log() -> pd.DataFrame:
    """Training logs and evaluations of the chapters that read them."""
    parts = (planted_rates, planted_leash)
    return pd.DataFrame([row for part in parts for row in part.log_rows(_facts, SEEDS)])


def _variants(facts: Mapping) -> list[dict]:
    """As trained, and SFT on the teacher's traces at the norm of GRPO's run of its seed."""
    raw = {**facts, "variant": "raw", "partner": ""}
    if facts["algorithm"] != "sft-teacher":
        return [raw]
    return [raw, {**facts, "variant": "norm-matched", "partner": f"grpo-mask-{facts['seed']}"}]


def _overlap() -> pd.DataFrame:
    rows = []
    places = product((*_rl(), *_beside_rl()), ("q", "up"), TARGETS, ("bf16", "fp32"))
    for facts, role, target, view in places:
        low = target == "low"
        found = (0.6 if low else 0.3 if facts["method"] == "rl" else 0.45) + _apart(facts)
        nulls = ("storage_density", "storage_norm", "magnitude")
        beside = {f"{null}_mean": found + (-0.05 if low else 0.05) for null in nulls}
        beside |= {"density": 0.5, "stored_dtype_tuned": "F32", "tensor": role, "role": role}
        changed = 4 * 10**11 if facts["method"] == "rl" else 6 * 10**11
        named = {"target": target, "view": view, "overlap": found, "changed": changed, "size": 10**12}
        rows += [{**variant, **named, **beside} for variant in _variants(facts)]
    return _frame(rows, overlap_columns(founding_nulls()))


def _direction() -> pd.DataFrame:
    rows = []
    for facts, role, view in product((*_rl(), *_beside_rl()), ("q", "up"), ("bf16", "fp32")):
        found = (0.01 if facts["method"] == "rl" else 0.02) * np.exp(_apart(facts))
        numbers = {"rho2": found, "rotation_mean": 1.5 * found, "tensor": role, "role": role, "view": view}
        rows += [{**variant, **numbers} for variant in _variants(facts)]
    return _frame(rows, DIRECTION_COLUMNS)


def _drift() -> pd.DataFrame:
    """Five matrices of each pair in every variant; RL moves by 1, SFT by 3."""
    of_rl, of_sft = ("raw", "rounded", "noise", "noise"), ("raw", "norm-matched", "norm-matched, rounded")
    rows = []
    for facts, role in product((*_rl(), *_beside_rl()), ("q", "k", "v", "o", "up")):
        rl = facts["method"] == "rl"
        for variant in of_rl if rl else of_sft:
            size = (1.5 if variant == "noise" else 1.0) * np.exp(_apart(facts)) if rl else 3.0
            partner = f"grpo-mask-{facts['seed']}" if "norm-matched" in variant else ""
            named = {**facts, "tensor": role, "role": role, "variant": variant, "partner": partner}
            rows.append({**named, "nss": size, "angle_left_mean": size / 2, "angle_right_mean": size * 3 / 2})
    frame = _frame(rows, DRIFT_COLUMNS)
    vacuous = frame.groupby("pair").cumcount() >= TESTED
    for bound in ("weyl", "mirsky", "ky_fan", "wedin_printed", "wedin_corrected"):
        frame[f"{bound}_vacuous"], frame[f"{bound}_holds"] = vacuous, True
    return frame


#: Sides of a matrix whose stripes are measured, and the density of its mask.
_LINES, _DENSITY = 20, 0.5


def _dispersion(spread: Values | float) -> Values | float:
    """The dispersion that lines of that spread beyond chance have."""
    return 1 + spread**2 * _LINES / (_DENSITY * (1 - _DENSITY))


def _axis() -> pd.DataFrame:
    """Where the paper sees stripes lines spread by .2, elsewhere by .1; noise spreads by .15 and .1."""
    rows = []
    for run, role, axis in product(RUNS, STRIPES, ("row", "column")):
        along = (axis == "row") != (role == "o")
        null = _dispersion(0.15 if along else 0.1)
        numbers = {"dispersion": _dispersion(0.2 if along else 0.1), "density": _DENSITY}
        numbers |= {"storage_density_mean": null, "magnitude_mean": null, "ratio": [_DENSITY] * _LINES}
        facts = {"pair": run, "seed": RUNS[run], "method": "rl"}
        facts |= {"tensor": role, "role": role, "axis": axis}
        rows.append({**facts, **numbers})
    return _frame(rows, columns_of(founding_nulls())["axis"])


def _agreement() -> pd.DataFrame:
    """As in the paper's Table 2; above each null by .05 in the weakest type of matrix, else by .1."""
    printed = table_2().set_index("role")["paper_jaccard"]
    rows = []
    for role, (a, b) in product(LINEAR, combinations(RUNS, 2)):
        null = printed[role] - 0.05 - _stronger(role)
        nulls = dict.fromkeys(("storage_density_mean", "storage_norm_mean", "magnitude_mean"), null)
        facts = {"method": "rl", "tensor": role, "role": role, "layer": 13}
        facts |= {"run_a": a, "run_b": b, "seed_a": RUNS[a], "seed_b": RUNS[b]}
        numbers = {"jaccard": printed[role], "bernoulli": null - 0.05 - _stronger(role), **nulls}
        rows.append({**facts, **numbers})
    return _frame(rows, columns_of(founding_nulls())["agreement"])


def _stronger(role: str) -> float:
    """By how much masks of that type agree more than those of the weakest."""
    return 0.0 if role == "down" else 0.05


def _emergence() -> pd.DataFrame:
    rows = []
    for run, step, role, axis in product("abc", (5, 20, 60), STRIPES, ("row", "column")):
        along = (axis == "row") != (role == "o")
        found = {5: 0.2, 20: 0.8, 60: 1.0}[step] if along else 0.0
        facts = {"run": run, "seed": "abc".index(run) + 1, "method": "rl", "step": step}
        facts |= {"tensor": role, "role": role, "axis": axis, "dispersion": step / 10}
        rows.append({**facts, "spearman_with_final": found, "storage_path_mean": found - 0.3})
    return _frame(rows, EMERGENCE_COLUMNS)


def _lens() -> pd.DataFrame:
    """GRPO and SFT with and without float32 masters; GRPO with them has an early checkpoint, too."""
    rows = []
    for algorithm, seed, master in product(("grpo", "sft-teacher"), SEEDS, (None, "bfloat16")):
        facts = _facts("rl" if algorithm == "grpo" else "sft", algorithm, "mask", seed)
        facts["run"] += "-pure" if master else ""
        for step in (20, 60) if algorithm == "grpo" and not master else (60,):
            place = {"pair": f"{facts['run']}-{step}", "step": step, "updates": 4 * step, "last": step == 60}
            rows += [
                {**facts, **place, "master": master, **_lens_tensor(role, master)} for role in ("q", "up")
            ]
    return _frame(rows, LENS_COLUMNS)


def _lens_tensor(role: str, master: str | None) -> dict:
    shares = {"size": 1.0, "moved": 1.0, "changed": 0.2 if master else 0.6, "single_step": 0.3}
    shares |= {"hidden": 0.7, "hidden_later": 0.5, "noise_changed": 0.3}
    energies = {"energy": 1.0, "energy_hidden": 0.2, "noise_energy": 1.0, "noise_energy_hidden": 0.3}
    counts = {name: round(share * SIZE) for name, share in shares.items()}
    stored = "BF16" if master else "F32"
    return {"tensor": role, "role": role, "layer": 0, "stored_dtype_tuned": stored, **counts, **energies}


# --- the planters: by seed, by run, by pair


def _of_seed(frame: pd.DataFrame, values: Values) -> pd.Series:
    return frame["seed"].map(dict(zip(SEEDS, values, strict=True))).astype(float)


def _of(keys: pd.Series, values: Values) -> pd.Series:
    """Values by run or pair, in the order of their names."""
    return keys.map(dict(zip(sorted(keys.unique()), values, strict=True))).astype(float)


def _is_rl(frame: pd.DataFrame) -> pd.Series:
    return (frame["method"] == "rl") & (frame["rate"] == "mask")


def _is(frame: pd.DataFrame, algorithm: str, rate: str) -> pd.Series:
    return (frame["algorithm"] == algorithm) & (frame["rate"] == rate)


def _write(frame: pd.DataFrame, where: pd.Series, **columns: pd.Series) -> pd.DataFrame:
    for name, values in columns.items():
        frame.loc[where, name] = values[where].astype(frame[name].dtype)
    return frame


def _sparsity_gap(algorithm: str, rate: str, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    return _write(frame, _is(frame, algorithm, rate), sparsity=0.7 - _of_seed(frame, values))


def _own(frame: pd.DataFrame, updates: int) -> pd.Series:
    """Rows of SFT at its own rate, of the runs of that length."""
    return _is(frame, "sft-teacher", "own") & (frame["updates"] == updates)


def _beside(level: float, wanted: pd.Series, log: bool) -> pd.Series:
    """What one of two runs has to have, the other being at a level, so that their mean is the wanted one."""
    return wanted**2 / level if log else 2 * wanted - level


def _kept(level: float, given: pd.Series, log: bool) -> pd.Series:
    """What one of two runs has to have, the other being given a value, so that their mean stays a level."""
    return level**2 / given if log else 2 * level - given


def _own_sparsity_gap(equal: bool, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """RL above SFT at its own rate: over both runs of SFT, or beside the one of as many updates alone."""
    wanted = 0.7 - _of_seed(frame, values)
    if not equal:
        return _write(frame, _own(frame, FEWER), sparsity=_beside(0.3, wanted, log=False))
    frame = _write(frame, _own(frame, FEWER), sparsity=_kept(0.3, wanted, log=False))
    return _write(frame, _own(frame, UPDATES), sparsity=wanted)


def _excess_over_noise(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    noise = frame["sparsity"] - _of_seed(frame, values)
    return _write(frame, _is_rl(frame), sparsity_storage_norm=noise)


def _precision_gap(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    return _write(frame, _is_rl(frame), sparsity_fp32=frame["sparsity"] - _of_seed(frame, values))


def _paper_level(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    return _write(frame, frame["paper_sparsity"].notna(), sparsity=_of_seed(frame, values))


def _as_printed(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """Sparsity as in the paper, or as in the follow-up."""
    return _paper_level(frame, np.where(values == 1, 0.6, 0.65))


def _as_in_table_2(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    frame["jaccard"] += 0.02 * (1 - _of(frame["role"], values))
    return frame


def _baseline_of_overlap(
    target: str, view: str, column: str, frame: pd.DataFrame, values: Values
) -> pd.DataFrame:
    """What RL's overlap is held against: the target's density or a null's mean."""
    where = _is_rl(frame) & (frame["target"] == target) & (frame["view"] == view)
    sign = -1 if target == "low" else 1
    return _write(frame, where, **{column: frame["overlap"] + sign * _of_seed(frame, values)})


def _overlap_of_noise(target: str, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    where = _is_rl(frame) & (frame["target"] == target) & (frame["view"] == "bf16")
    sign = 1 if target == "low" else -1
    return _write(frame, where, storage_norm_mean=frame["density"] + sign * _of_seed(frame, values))


def _overlap_of_sft(
    variant: str, view: str, algorithm: str, rate: str, frame: pd.DataFrame, values: Values
) -> pd.DataFrame:
    where = _is(frame, algorithm, rate) & (frame["target"] == "principal")
    where &= (frame["variant"] == variant) & (frame["view"] == view)
    of_rl = 0.3 + (APART["grpo"] if variant == "norm-matched" else 0.0)
    return _write(frame, where, overlap=of_rl + _of_seed(frame, values))


def _sparsity_of_scaled(rate: str, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    where = _is(frame, "sft-teacher", rate) & (frame["variant"] == "norm-matched") & (frame["view"] == "bf16")
    return _write(frame, where, changed=1e12 * (0.4 + _of_seed(frame, values)))


def _own_overlap(equal: bool, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """SFT at its own rate above RL: over both of its runs, or by the one of as many updates alone."""
    where = (frame["target"] == "principal") & (frame["variant"] == "raw") & (frame["view"] == "bf16")
    return _own_values(frame, where, "overlap", 0.45, 0.3 + _of_seed(frame, values), equal, log=False)


def _own_energy(equal: bool, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    where = (frame["variant"] == "raw") & (frame["view"] == "fp32")
    return _own_values(frame, where, "rho2", 0.02, 0.01 * _of_seed(frame, values), equal, log=True)


def _own_values(
    frame: pd.DataFrame,
    where: pd.Series,
    column: str,
    level: float,
    wanted: pd.Series,
    equal: bool,
    log: bool,
) -> pd.DataFrame:
    beside = _kept(level, wanted, log) if equal else _beside(level, wanted, log)
    frame = _write(frame, where & _own(frame, FEWER), **{column: beside})
    return _write(frame, where & _own(frame, UPDATES), **{column: wanted}) if equal else frame


def _energy_of_sft(
    variant: str, view: str, algorithm: str, rate: str, frame: pd.DataFrame, values: Values
) -> pd.DataFrame:
    where = _is(frame, algorithm, rate) & (frame["variant"] == variant) & (frame["view"] == view)
    of_rl = 0.01 * np.exp(APART["grpo"] if variant == "norm-matched" else 0.0)
    return _write(frame, where, rho2=of_rl * _of_seed(frame, values))


def _off_principal(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    where = _is_rl(frame) & (frame["view"] == "fp32")
    return _write(frame, where, rotation_mean=frame["rho2"] * _of_seed(frame, values))


def _moves(frame: pd.DataFrame, where: pd.Series, measure: str, sizes: pd.Series) -> pd.DataFrame:
    if measure == "nss":
        return _write(frame, where, nss=sizes)
    return _write(frame, where, angle_left_mean=sizes / 2, angle_right_mean=sizes * 3 / 2)


def _own_drift(measure: str, equal: bool, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    raw, wanted = frame["variant"] == "raw", _of_seed(frame, values)
    beside = _kept(3.0, wanted, log=True) if equal else _beside(3.0, wanted, log=True)
    frame = _moves(frame, raw & _own(frame, FEWER), measure, beside)
    return _moves(frame, raw & _own(frame, UPDATES), measure, wanted) if equal else frame


def _drift_ratio(
    measure: str, algorithm: str, rate: str, variant: str, frame: pd.DataFrame, values: Values
) -> pd.DataFrame:
    where = _is(frame, algorithm, rate) & (frame["variant"] == variant)
    of_rl = np.exp(0.0 if variant == "raw" else APART["grpo"])
    return _moves(frame, where, measure, of_rl * _of_seed(frame, values))


def _noise_over_rl(measure: str, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    where = _is_rl(frame) & (frame["variant"] == "noise")
    of_rl = frame["algorithm"].map(APART).fillna(0).map(np.exp)
    return _moves(frame, where, measure, of_rl * _of_seed(frame, values))


def _broken(names: Sequence[str], frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """In each pair one of the bounds is broken by as many matrices as its share leaves."""
    broken = (TESTED * (1 - _of(frame["pair"], values))).round()
    breaks = frame.groupby("pair").cumcount() < broken
    turn = frame.groupby("pair").ngroup() % len(names)
    for number, name in enumerate(names):
        frame[f"{name}_holds"] = ~(breaks & (turn == number))
    return frame


def _along(frame: pd.DataFrame) -> pd.Series:
    return (frame["axis"] == "row") != (frame["role"] == "o")


def _stripes(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """The dispersion, and with it both nulls: what stands out from them stays the same."""
    found = _of(frame["pair"], values)
    nulls = {f"{null}_mean": found * frame[f"{null}_mean"] / frame["dispersion"] for null in _STRIPE_NULLS}
    return _write(frame, _along(frame), dispersion=found, **nulls)


_STRIPE_NULLS = ("storage_density", "magnitude")


def _stripe_null(null: str, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    return _write(frame, _along(frame), **{f"{null}_mean": frame["dispersion"] / _of(frame["pair"], values)})


def _orientation(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """Lines along which stripes are looked for spread by .1 and the value; noise by .05 less."""
    found = _of(frame["pair"], values)
    null = _dispersion(0.05 + found)
    return _write(frame, _along(frame), dispersion=_dispersion(0.1 + found), storage_density_mean=null)


def _orientation_null(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    null = _dispersion(0.2 - _of(frame["pair"], values))
    return _write(frame, _along(frame), storage_density_mean=null)


def _agrees(column: str, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """Two runs agree by the mean of their values in the weakest type of matrix, and more in the others."""
    frame[column] = frame["jaccard"] - _of_two(frame, values)
    return frame


def _of_two(frame: pd.DataFrame, values: Values) -> pd.Series:
    of_run = dict(zip(RUNS, values, strict=True))
    excess = (frame["run_a"].map(of_run) + frame["run_b"].map(of_run)) / 2
    return excess.astype(float) + frame["role"].map(_stronger)


def _noise_agrees(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    frame["storage_norm_mean"] = frame["bernoulli"] + _of_two(frame, values)
    return frame


def _early(frame: pd.DataFrame) -> pd.Series:
    return (frame["step"] == 20) & _along(frame)


def _emerges(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    found = _of(frame["run"], values)
    return _write(frame, _early(frame), spearman_with_final=found, storage_path_mean=found - 0.3)


def _emerges_early(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    path = frame["spearman_with_final"] - _of(frame["run"], values)
    return _write(frame, _early(frame), storage_path_mean=path)


def _deepens(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    last = (frame["step"] == 60) & _along(frame)
    return _write(frame, last, dispersion=20 / 10 * _of(frame["run"], values))


def _fine(frame: pd.DataFrame) -> pd.Series:
    return frame["master"].isna()


def _exceptions(column: str, every: bool, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """Exceptions to a rule on displacements among the weights of each run that keeps float32."""
    where = _fine(frame) & (frame["last"] | every)
    return _write(frame, where, **{column: ((1 - _of_seed(frame, values)) * SIZE).round()})


def _grpo(frame: pd.DataFrame, last: bool = True) -> pd.Series:
    return _fine(frame) & (frame["algorithm"] == "grpo") & (frame["last"] == last)


def _single_step(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    return _write(frame, _grpo(frame), single_step=((1 - _of_seed(frame, values)) * SIZE).round())


def _accumulated(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    more = (_of_seed(frame, values) * SIZE).round()
    return _write(frame, _grpo(frame), changed=frame["single_step"] + more)


def _becomes_visible(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    later = (_of_seed(frame, values) * frame["hidden"]).round()
    return _write(frame, _grpo(frame, last=False), hidden_later=later)


def _deficit(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    """The deficit, and with it that of noise: what it has above noise stays the same."""
    moved = frame["energy_hidden"] - (0.7 - _of_seed(frame, values))
    energies = {name: frame[name] - moved for name in ("energy_hidden", "noise_energy_hidden")}
    energies["noise_energy_hidden"] = frame["noise_energy_hidden"] - moved
    return _write(frame, _grpo(frame), **energies)


def _deficit_over_noise(frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    noise = frame["hidden"] / SIZE - frame["energy_hidden"] - _of_seed(frame, values)
    return _write(frame, _grpo(frame), noise_energy_hidden=0.7 - noise)


def _master(algorithm: str, frame: pd.DataFrame, values: Values) -> pd.DataFrame:
    where = (frame["master"] == "bfloat16") & (frame["algorithm"] == algorithm)
    return _write(frame, where, changed=((0.6 - _of_seed(frame, values)) * SIZE).round())


STORAGE = ("storage_density", "storage_norm")
_BY_SEED, _BY_RUN = len(SEEDS), len(RUNS)


def _seeds(table: str, plant: Callable, *choices: object, log: bool = False) -> Planter:
    return Planter(table, _BY_SEED, partial(plant, *choices), log)


def _gaps(name: str, target: str, view: str, *nulls: str) -> dict[str, Planter]:
    """The overlap with a target against its density, and against nulls."""
    columns = {name: "density", **{f"{name}_{null}": f"{null}_mean" for null in nulls}}
    return {
        key: _seeds("overlap", _baseline_of_overlap, target, view, column) for key, column in columns.items()
    }


def _runs(plant: Callable, *choices: object, log: bool = False) -> Planter:
    return Planter("axis", _BY_RUN, partial(plant, *choices), log, at=0.1)


def _agreeing(column: str) -> Planter:
    return Planter("agreement", _BY_RUN, partial(_agrees, column))


def _bounds(*names: str) -> Planter:
    return Planter("drift", len(_rl()) + len(_beside_rl()), partial(_broken, names), tenths=True)


def _leash_steps(column: str, level: float) -> Planter:
    return Planter("log", _BY_SEED, partial(planted_leash.broken, column, level), tenths=True)


def _drifts(measure: str) -> dict[str, Planter]:
    variants = {
        "equal_norm": ("sft-teacher", "own", "norm-matched"),
        "equal_norm_rounded": ("sft-teacher", "own", "norm-matched, rounded"),
        "equal_rate": ("sft-teacher", "mask", "raw"),
        "same_style": ("sft-same-style", "mask", "raw"),
        "same_style_own_rate": ("sft-same-style", "own", "raw"),
        "rft": ("rft", "mask", "raw"),
    }
    found = {
        f"drift_{measure}_ratio_{name}": _seeds("drift", _drift_ratio, measure, *place, log=True)
        for name, place in variants.items()
    }
    found[f"drift_{measure}_ratio"] = _seeds("drift", _own_drift, measure, False, log=True)
    found[f"drift_{measure}_ratio_equal_steps"] = _seeds("drift", _own_drift, measure, True, log=True)
    found[f"drift_{measure}_noise_over_rl"] = _seeds("drift", _noise_over_rl, measure, log=True)
    return found


def _beside_groups(measure: str, table: str, plant: Callable, view: str, log: bool) -> dict[str, Planter]:
    """Of overlap or energy, what stands beside RL in place of SFT at its own rate."""
    places = {
        f"{measure}_sft_over_rl_equal_rate": ("sft-teacher", "mask"),
        f"{measure}_same_style_over_rl": ("sft-same-style", "mask"),
        f"{measure}_same_style_own_rate_over_rl": ("sft-same-style", "own"),
        f"{measure}_rft_over_rl": ("rft", "mask"),
    }
    return {name: _seeds(table, plant, "raw", view, *place, log=log) for name, place in places.items()}


_OWN = ("sft-teacher", "own")
#: By the name of the estimate.
PLANTERS: dict[str, Planter] = {
    "sparsity_gap_own_lr": _seeds("tensor", _own_sparsity_gap, False),
    "sparsity_gap_equal_steps": _seeds("tensor", _own_sparsity_gap, True),
    "sparsity_gap_rft": _seeds("tensor", _sparsity_gap, "rft", "mask"),
    "sparsity_gap_matched_lr": _seeds("tensor", _sparsity_gap, "sft-teacher", "mask"),
    "sparsity_gap_same_style": _seeds("tensor", _sparsity_gap, "sft-same-style", "mask"),
    "sparsity_gap_same_style_own_rate": _seeds("tensor", _sparsity_gap, "sft-same-style", "own"),
    "sparsity_gap_rl_rft": _seeds("tensor", _sparsity_gap, "rft", "mask"),
    "sparsity_excess_over_equal_norm_noise": _seeds("tensor", _excess_over_noise),
    "sparsity_level_of_paper_pairs": _seeds("tensor", _paper_level),
    "precision_gap": _seeds("tensor", _precision_gap),
    "table_1_values": Planter("tensor", _BY_SEED, _as_printed, counted=True),
    "table_1_over_follow_up": Planter("tensor", _BY_SEED, _as_printed, counted=True),
    "table_2_values": Planter("agreement", len(LINEAR), _as_in_table_2, counted=True),
    **_gaps("principal_avoidance", "principal", "bf16", *STORAGE, "magnitude"),
    **_gaps("principal_not_low_avoidance", "principal_not_low", "bf16", *STORAGE, "magnitude"),
    **_gaps("principal_avoidance_fp32", "principal", "fp32", "magnitude"),
    **_gaps("low_preference", "low", "bf16", *STORAGE),
    "noise_principal_avoidance": _seeds("overlap", _overlap_of_noise, "principal"),
    "noise_low_preference": _seeds("overlap", _overlap_of_noise, "low"),
    "noise_principal_not_low_avoidance": _seeds("overlap", _overlap_of_noise, "principal_not_low"),
    "off_principal_directions": _seeds("direction", _off_principal, log=True),
    "principal_overlap_sft_over_rl": _seeds("overlap", _own_overlap, False),
    "principal_overlap_sft_over_rl_equal_steps": _seeds("overlap", _own_overlap, True),
    "principal_overlap_sft_over_rl_equal_norm": _seeds(
        "overlap", _overlap_of_sft, "norm-matched", "bf16", *_OWN
    ),
    "principal_overlap_sft_over_rl_fp32": _seeds("overlap", _overlap_of_sft, "raw", "fp32", *_OWN),
    "linear_sparsity_gap_equal_norm": _seeds("overlap", _sparsity_of_scaled, "own"),
    "linear_sparsity_gap_equal_norm_and_rate": _seeds("overlap", _sparsity_of_scaled, "mask"),
    **_beside_groups("principal_overlap", "overlap", _overlap_of_sft, "bf16", log=False),
    "principal_energy_sft_over_rl": _seeds("direction", _own_energy, False, log=True),
    "principal_energy_sft_over_rl_equal_steps": _seeds("direction", _own_energy, True, log=True),
    "principal_energy_sft_over_rl_equal_norm": _seeds(
        "direction", _energy_of_sft, "norm-matched", "bf16", *_OWN, log=True
    ),
    **_beside_groups("principal_energy", "direction", _energy_of_sft, "fp32", log=True),
    **_drifts("nss"),
    **_drifts("angle"),
    "drift_spectrum_bounds_hold": _bounds("weyl", "mirsky", "ky_fan"),
    "drift_wedin_printed_holds": _bounds("wedin_printed"),
    "drift_wedin_corrected_holds": _bounds("wedin_corrected"),
    "stripe_excess_bernoulli": _runs(_stripes, log=True),
    "stripe_excess_storage_density": _runs(_stripe_null, "storage_density", log=True),
    "stripe_excess_magnitude": _runs(_stripe_null, "magnitude", log=True),
    "rows_over_columns_qkv": _runs(_orientation),
    "rows_over_columns_qkv_storage_density": _runs(_orientation_null),
    "columns_over_rows_o": _runs(_orientation),
    "columns_over_rows_o_storage_density": _runs(_orientation_null),
    "jaccard_excess_bernoulli": _agreeing("bernoulli"),
    "jaccard_excess_storage_density": _agreeing("storage_density_mean"),
    "jaccard_excess_storage_norm": _agreeing("storage_norm_mean"),
    "jaccard_excess_magnitude": _agreeing("magnitude_mean"),
    "noise_jaccard_excess": Planter("agreement", _BY_RUN, _noise_agrees),
    "stripe_deepening": Planter("emergence", _BY_SEED, _deepens, log=True),
    "emergence_correlation": Planter("emergence", _BY_SEED, _emerges),
    "emergence_excess_storage_path": Planter("emergence", _BY_SEED, _emerges_early),
    "half_ulp_agreement": _seeds("lens", _exceptions, "half_ulp_exceptions", False),
    "half_gap_agreement": Planter(
        "lens", _BY_SEED, partial(_exceptions, "gap_exceptions", True), tenths=True
    ),
    "single_step_hidden": _seeds("lens", _single_step),
    "accumulation_gap": _seeds("lens", _accumulated),
    "hidden_becomes_visible": _seeds("lens", _becomes_visible),
    "hidden_energy_deficit": _seeds("lens", _deficit),
    "hidden_energy_deficit_over_noise": _seeds("lens", _deficit_over_noise),
    "master_sparsity_gap": _seeds("lens", _master, "grpo"),
    "master_sparsity_gap_sft": _seeds("lens", _master, "sft-teacher"),
    **{
        name: Planter(table, units, plant, exact=exact)
        for name, (table, units, plant, exact) in planted_rotation.PLANTERS.items()
    },
    **{name: Planter("curvature", 3, plant, log=True) for name, plant in planted_curvature.PLANTERS.items()},
    **{
        name: Planter("steepness", len(planted_curvature.DRAWS), plant, log=True)
        for name, plant in planted_curvature.NEUTRAL_PLANTERS.items()
    },
    "leash_of_one_step_holds_response": _leash_steps("step_kl_response", 2.0),
    "fisher_norm_bound_holds": _leash_steps("step_norm", 3.0),
    "kl_sft_over_rl": _seeds("log", planted_leash.ratio, "sft-teacher", 2.0, log=True),
    "kl_sft_over_rl_equal_steps": _seeds("log", planted_leash.at_common_step, log=True),
    "kl_sft_over_rl_equal_rate": _seeds("log", planted_leash.at_mask_rate, "sft-teacher", log=True),
    "kl_same_style_over_rl": _seeds("log", planted_leash.ratio, "sft-same-style", 2.0, log=True),
    "kl_same_style_over_rl_equal_rate": _seeds("log", planted_leash.at_mask_rate, "sft-same-style", log=True),
    "kl_sft_over_rl_equal_norm": _seeds("log", planted_leash.ratio, "sft-teacher", 1.0, log=True),
    "kl_rft_over_rl": _seeds("log", planted_leash.ratio, "rft", 0.9, log=True),
    "kl_without_over_with_term": _seeds("log", planted_leash.without, log=True),
    "sparsity_fall_at_ten_times_rate": _seeds("tensor", planted_rates.at_rate, "5e-05", -1),
    "sparsity_sgd_minus_adamw": _seeds("tensor", planted_rates.at_rate, "0.02", 1),
    "sparsity_sgd_minus_adamw_equal_norm": _seeds("tensor", planted_rates.at_rate, "0.06", 1),
    **{name: Planter(*how) for name, how in planted_masks.PLANTERS.items()},
    **{name: Planter(*how) for name, how in planted_adapters.PLANTERS.items()},
}
