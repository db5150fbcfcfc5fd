"""Tidy frames of the precision lens: what is drawn, computed from its tables or from bf16 itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from threegates.chapters.precision_lens.estimates import masters
from threegates.estimates.intervals import t_estimate
from threegates.figures.names import method_name
from threegates.geometry.accumulation import first_visible_step
from threegates.geometry.precision import INFINITY_CODE, bf16_codes, bf16_from_codes, half_gaps
from threegates.lab.recipe import LanguageRecipe
from threegates.measures.lens import PER_OCTAVE

#: The way a weight is pushed, as it stands on axes, with the sign of the push on a positive weight.
SIDES = {"away from zero": 1, "towards zero": -1}
MASTERS = {"float64": torch.float64, "float32": torch.float32}
#: Shares of weights followed over training: column of the totals, and how the figure names it.
SHARES = {
    "moved": "moved in float32",
    "changed": "changed in bf16",
    "noise_changed": "changed by noise of equal norm",
    "aligned_path": "reachable by a straight path",
    "single_step": "reachable by one update",
}
#: Held-out prompts of an evaluation during training, one sample each.
PROMPTS = LanguageRecipe.model_fields["evaluate_prompts"].default
#: bf16 has 2⁷ values in every octave; the paths are followed from every eighth.
_SPACING = 8
LEAST_NORMAL_CODE = 0x80


def _positive(low: int, high: int, spacing: int = 1) -> torch.Tensor:
    """The bf16 values in [2^low, 2^high), or every so many of them."""
    ends = bf16_codes(torch.tensor([2.0**low, 2.0**high], dtype=torch.bfloat16))
    return bf16_from_codes(torch.arange(int(ends[0]), int(ends[1]), spacing, dtype=torch.int32))


def gap_view(low: int = -12, high: int = 2) -> pd.DataFrame:
    """Half gaps of the bf16 values in [2^low, 2^high) over their size: weight, side, relative."""
    weights = _positive(low, high)
    size = weights.double()
    down, up = half_gaps(weights)
    frames = [
        pd.DataFrame({"weight": size.numpy(), "side": side, "relative": (gap / size).numpy()})
        for side, gap in zip(SIDES, (up, down), strict=True)
    ]
    return pd.concat(frames, ignore_index=True)


def gap_facts() -> pd.Series:
    """Over every normal positive bf16 value: how many, range of relative half gaps, values at the borders."""
    weights = bf16_from_codes(torch.arange(LEAST_NORMAL_CODE, INFINITY_CODE, dtype=torch.int32))
    down, up = (gap / weights.double() for gap in half_gaps(weights))
    return pd.Series(
        {
            "values": len(weights),
            "smallest": float(torch.minimum(down, up).min()),
            "largest": float(torch.maximum(down, up).max()),
            "equalities": int((up == 2.0**-8).sum()),
            "uneven": int((down != up).sum()),
        }
    )


def weight_view(bins: pd.DataFrame) -> pd.DataFrame:
    """The base's weights over |w|: part, weight (left end of a quarter octave), share of the part."""
    rows = bins[(bins["quantity"] == "weight") & (bins["pair"] == bins["pair"].iloc[0])]
    whole = rows.groupby("part")["count"].transform("sum")
    return pd.DataFrame(
        {"part": rows["part"], "weight": 2.0 ** rows["log2"], "share": rows["count"] / whole}
    ).reset_index(drop=True)


def middle(weights: pd.DataFrame, part: str = "linear", tail: float = 0.05) -> tuple[float, float]:
    """Sizes between which all but a tail on either side of a part's weights lie, to a quarter octave."""
    rows = weights[weights["part"] == part]
    rows = (rows if len(rows) else weights).sort_values("weight")
    below = rows["share"].cumsum() / rows["share"].sum()
    inside = rows.loc[(below > tail) & (below.shift(fill_value=0) < 1 - tail), "weight"]
    return float(inside.min()), float(inside.max() * 2 ** (1 / PER_OCTAVE))


def first_step_view(rate: float, low: int = -10, high: int = 1, limit: int = 5000) -> pd.DataFrame:
    """First step at which AdamW, always of one sign, changes the stored weight: weight, side, master, step.

    Every path is run, on float64 and on float32 masters; `step` is missing where `limit` steps do not do.
    """
    weights = _positive(low, high, _SPACING)
    signs = torch.tensor(list(SIDES.values())).repeat_interleave(len(weights))
    frames = []
    for name, master in MASTERS.items():
        steps = first_visible_step(weights.repeat(len(SIDES)), rate, signs, master, limit).double()
        sizes = weights.double().repeat(len(SIDES)).numpy()
        sides = np.repeat(list(SIDES), len(weights))
        found = {"weight": sizes, "side": sides, "master": name, "step": steps.where(steps > 0, torch.nan)}
        frames.append(pd.DataFrame(found))
    return pd.concat(frames, ignore_index=True)


def float32_over_exact(first: pd.DataFrame) -> pd.DataFrame:
    """Steps that a float32 master takes over the steps of exact sums: weight, side, ratio."""
    wide = first.pivot(index=["side", "weight"], columns="master", values="step").reset_index()
    return wide.assign(ratio=wide["float32"] / wide["float64"])[["weight", "side", "ratio"]]


def followed(totals: pd.DataFrame) -> pd.DataFrame:
    """Checkpoints of the runs that are followed: GRPO's with float32 masters, or whatever there is."""
    usual = totals[(totals["algorithm"] == "grpo") & (totals["master"] == "float32")]
    return usual if len(usual) else totals[~totals["only_bf16"]]


def ratio_view(bins: pd.DataFrame, shown: pd.DataFrame) -> pd.DataFrame:
    """How far weights moved, in half gaps: updates, ratio (left end of a bin), share and shown share of all.

    Means over the runs shown. The shares of one checkpoint sum to its share of weights that moved. Pairs
    that a reader has chosen are not averaged: a column `pair` names them.
    """
    rows = bins[(bins["quantity"] == "ratio") & bins["pair"].isin(shown["pair"])]
    sums = rows.groupby(["pair", "log2"])[["count", "changed"]].sum().reset_index()
    facts = shown.set_index("pair")
    whole = sums["pair"].map(facts["size"])
    sums = sums.assign(
        updates=sums["pair"].map(facts["updates"]), share=sums["count"] / whole, shown=sums["changed"] / whole
    )
    if "alone" in shown:
        return sums.assign(ratio=2.0 ** sums["log2"])[["pair", "updates", "ratio", "share", "shown"]]
    runs = facts.groupby("updates", dropna=False)["run"].nunique()
    view = sums.groupby(["updates", "log2"], dropna=False)[["share", "shown"]].sum().reset_index()
    view[["share", "shown"]] = view[["share", "shown"]].div(view["updates"].map(runs), axis=0)
    return view.assign(ratio=2.0 ** view["log2"]).drop(columns="log2")


def along_training(shown: pd.DataFrame) -> bool:
    """Whether several checkpoints of one run are among those shown."""
    return bool((shown.groupby("run")["updates"].nunique() > 1).any())


def path_view(shown: pd.DataFrame) -> pd.DataFrame:
    """Shares of weights over training: run, seed, updates, measure (of `SHARES`), share.

    What one update or a straight path could reach has no rows where the learning rate is not known.
    """
    shares = {column: shown[column] / shown["size"] for column in SHARES}
    shares |= {column: reachable(shown, column) for column in ("aligned_path", "single_step")}
    frames = [
        shown[["run", "seed", "updates"]].assign(measure=name, share=shares[column])
        for column, name in SHARES.items()
    ]
    return pd.concat(frames, ignore_index=True).dropna(subset="share").reset_index(drop=True)


def reachable(totals: pd.DataFrame, column: str = "single_step") -> pd.Series:
    """Share of weights within reach of paths as long as the learning rate; missing where it is not known.

    The lens counts none for an unknown rate, which says nothing of the weights.
    """
    return (totals[column] / totals["size"]).where(totals["learning_rate"].notna())


def hidden_view(shown: pd.DataFrame) -> pd.DataFrame:
    """What storage hides, over training: shares by number, of energy, of noise's, and what shows later.

    `later` is the share of hidden weights that differ at the run's end, `cosine` that between the update in
    float32 and as stored, `norm` the stored norm over the float32 one.
    """
    names = shown[["run", "seed", "step", "updates", "last"]]
    return names.assign(
        number=shown["hidden"] / shown["moved"],
        energy=shown["energy_hidden"] / shown["energy"],
        noise_number=1 - shown["noise_changed"] / shown["size"],
        noise_energy=shown["noise_energy_hidden"] / shown["noise_energy"],
        later=(shown["hidden_later"] / shown["hidden"]).where(~shown["last"]),
        cosine=shown["energy_common"] / np.sqrt(shown["energy"] * shown["energy_stored"]),
        norm=np.sqrt(shown["energy_stored"] / shown["energy"]),
    ).reset_index(drop=True)


def exceptions_view(totals: pd.DataFrame) -> pd.DataFrame:
    """How often the two rules fail to say which weights changed: one row a method, over its checkpoints."""
    rows = totals[~totals["only_bf16"]]
    columns = ["size", "changed", "ties", "gap_exceptions", "half_ulp_exceptions"]
    columns += ["half_ulp_exceptions_at_powers"]
    sums = rows.assign(runs=group_names(rows)).groupby("runs", sort=False)[columns].sum()
    counted = rows.groupby(group_names(rows), sort=False)["pair"].nunique()
    view = sums.assign(checkpoints=counted).reset_index()
    return view.rename(
        columns={
            "size": "weights",
            "gap_exceptions": "exceptions, half gap",
            "half_ulp_exceptions": "exceptions, half ULP",
            "half_ulp_exceptions_at_powers": "of these at powers of two",
        }
    )


def group_names(rows: pd.DataFrame) -> pd.Series:
    """Names of method, learning rate and master, as the figures call a group of runs."""
    return pd.Series(
        [
            _group(*facts)
            for facts in zip(rows["algorithm"], rows["learning_rate"], rows["master"], strict=True)
        ],
        index=rows.index,
        dtype="str",
    )


def _group(algorithm: Any, rate: float, master: Any) -> str:
    parts = [method_name(algorithm)]
    parts += [f"lr {rate:.0e}"] if pd.notna(rate) else []
    parts += [{"bfloat16": "pure bf16"}.get(master, "float32 masters")] if pd.notna(master) else []
    return ", ".join(parts)


def ends(totals: pd.DataFrame) -> pd.DataFrame:
    """The last checkpoint of every run: facts, group, sparsity, stored norm, share one update can reach."""
    rows = totals[totals["last"]]
    return rows.assign(
        method=rows["algorithm"].map(method_name),
        group=group_names(rows),
        sparsity=1 - rows["changed"] / rows["size"],
        norm=np.sqrt(rows["energy_stored"]),
        reachable=reachable(rows),
    ).sort_values(["rate", "algorithm", "master"], ascending=[True, True, False], kind="stable")


def size_view(bins: pd.DataFrame, last: pd.DataFrame) -> pd.DataFrame:
    """Share of weights that changed by |w|, at the end: group, method, rate, master, weight, share, count."""
    facts = last.set_index("pair")
    rows = bins[(bins["quantity"] == "weight") & bins["pair"].isin(facts.index)]
    names = ["group", "method", "rate", "master"]
    rows = rows.assign(**{name: rows["pair"].map(facts[name]) for name in names})
    view = rows.groupby([*names, "log2"], dropna=False, sort=False)[["count", "changed"]].sum().reset_index()
    view = view.assign(weight=2.0 ** view["log2"], share=view["changed"] / view["count"])
    order = {group: number for number, group in enumerate(dict.fromkeys(last["group"]))}
    view = view.sort_values("group", key=lambda groups: groups.map(order), kind="stable")
    return view[[*names, "weight", "share", "count"]].reset_index(drop=True)


def course_view(log: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Evaluations along training at RL's rate: group, method, master, run, updates, pass@1, KL, ‖ΔW‖."""
    rows = log[(log["rate"] == "mask") & log["pass_at_1"].notna()]
    rows = rows.assign(master=rows["run"].map(masters(frame, "run")))
    named = rows.assign(method=rows["algorithm"].map(method_name), group=group_names(rows))
    columns = ["group", "method", "master", "run", "seed", "updates", "pass_at_1", "kl", "delta_norm"]
    return named[columns].reset_index(drop=True)


def master_summary(last: pd.DataFrame, course: pd.DataFrame) -> pd.DataFrame:
    """Sparsity with its interval over seeds, what one update could reach, norms, KL and pass@1 at the end."""
    final = course.sort_values("updates").groupby("run")[["pass_at_1", "kl"]].last()
    rows = last.join(final, on="run")
    out = []
    for group, own in rows.groupby("group", sort=False):
        found = t_estimate(own["sparsity"], "seeds", 0.95)
        means = own[["reachable", "norm", "kl", "pass_at_1"]].mean()
        numbers = {"seeds": found.n, "unchanged": found.value, "low": found.low, "high": found.high}
        out.append({"runs": group, **numbers, **means})
    names = {"reachable": "reachable by one update", "norm": "‖ΔW‖ stored", "kl": "KL to base"}
    return pd.DataFrame(out).rename(columns={**names, "pass_at_1": "pass@1"})


def together(**panels: pd.DataFrame) -> pd.DataFrame:
    """The frames of a figure's panels one under the other, for the file of its data: `panel` names them."""
    return pd.concat([frame.assign(panel=name) for name, frame in panels.items()], ignore_index=True)
