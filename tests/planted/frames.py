"""Small synthetic frames with the columns of the real records, for tests of figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from threegates.figures.names import ROLES
from threegates.figures.style import METHOD_COLOURS
from threegates.jobs.nulls import FOUNDING

RUNS = {
    "GRPO add 0": "GRPO",
    "GRPO add 1": "GRPO",
    "DAPO mul 0": "DAPO",
    "REINFORCE++ add 0": "REINFORCE++",
    "SFT (teacher) 0": "SFT (teacher)",
}
COLOURS = {run: METHOD_COLOURS[method] for run, method in RUNS.items()}


def sparsity() -> pd.DataFrame:
    """Three seeds of six methods, RL and SFT at two learning rates."""
    rng = np.random.default_rng(1)
    levels = {
        ("GRPO", 1e-5): 0.38, ("DAPO", 1e-5): 0.36, ("REINFORCE++", 1e-5): 0.4, ("RFT", 1e-5): 0.36,
        ("SFT (same style)", 1e-5): 0.3, ("SFT (teacher)", 1e-5): 0.25, ("SFT (teacher)", 3e-4): 0.03,
    }  # fmt: skip
    rows = [
        (f"{m}, lr {lr:g}", m, s, p + rng.normal(0, 0.012), 0.001, p + 0.02)
        for (m, lr), p in levels.items()
        for s in range(3)
    ]
    columns = ["label", "method", "seed", "sparsity", "sparsity_fp32", "sparsity_storage_norm"]
    return pd.DataFrame(rows, columns=columns)


def consensus() -> pd.DataFrame:
    """Five matrices of the miniature model, striped, and a null without stripes."""
    rng = np.random.default_rng(2)
    shapes = {"q": (128, 128), "k": (64, 128), "v": (64, 128), "o": (128, 128), "down": (128, 320)}
    rows = []
    for role, (m, n) in shapes.items():
        wave = rng.beta(2, 2, n if role == "o" else m)
        rate = np.broadcast_to(wave if role == "o" else wave[:, None], (m, n))
        rows.append((role, "observed", rng.binomial(5, rate) / 5))
        rows.append((role, "storage_density", rng.binomial(5, 0.5, (m, n)) / 5))
    return pd.DataFrame(rows, columns=["role", "kind", "consensus"]).sort_values("kind", kind="stable")


def pairs_of_runs() -> pd.DataFrame:
    """Jaccard and rate correlations of every two runs, one triangle."""
    rng, runs = np.random.default_rng(3), list(RUNS)
    rows = [
        (a, b, axis, rng.uniform(0.5, 0.8), 0.5, rng.uniform(0.2, 0.9))
        for i, a in enumerate(runs)
        for b in runs[i + 1 :]
        for axis in ("row", "column")
    ]
    return pd.DataFrame(rows, columns=["run_a", "run_b", "axis", "jaccard", "bernoulli", "spearman"])


def nulls() -> pd.DataFrame:
    """Mean Jaccard of seven matrix types with four baselines, for RL and for SFT."""
    rng, rows = np.random.default_rng(4), []
    for group in ("RL runs", "SFT runs"):
        for role in ROLES:
            j = rng.uniform(0.6, 0.7)
            row = {
                "group": group,
                "role": role,
                "jaccard": j,
                "jaccard_low": j - 0.03,
                "jaccard_high": j + 0.03,
            }
            for name, low in zip(FOUNDING, (0.45, 0.55, 0.53, 0.57), strict=True):
                row |= {name: low, f"{name}_low": low - 0.01, f"{name}_high": low + 0.01}
            rows.append(row)
    return pd.DataFrame(rows)


def ratios() -> pd.DataFrame:
    """Ratios of four matrices that deepen over four steps."""
    rng, rows = np.random.default_rng(5), []
    for role, axis, n in (("q", "row", 128), ("k", "row", 64), ("v", "row", 64), ("o", "column", 128)):
        base = rng.normal(size=n)
        for step in (5, 20, 40, 60):
            z = base * step / 60 + rng.normal(scale=0.3, size=n)
            rows.append((role, axis, step, (1 / (1 + np.exp(1.5 - z - step / 40))).tolist()))
    return pd.DataFrame(rows, columns=["role", "axis", "step", "ratio"])


def emergence() -> pd.DataFrame:
    """Correlations with the final ratios over training, three runs."""
    rng, rows = np.random.default_rng(6), []
    for role in "qkvo":
        for run in range(3):
            for step in (5, 10, 20, 40, 50):
                rise, walk = step**0.5 / 8 + rng.normal(0, 0.03), step / 80
                rows.append((role, f"run {run}", step, min(1, rise + 0.1), walk, walk - 0.1, walk + 0.1))
    path = [f"storage_path_{x}" for x in ("mean", "low", "high")]
    return pd.DataFrame(rows, columns=["role", "run", "step", "spearman", *path])


def log() -> pd.DataFrame:
    """Training logs of three algorithms; pass@1 only every tenth step."""
    rng, frames = np.random.default_rng(7), []
    for method in ("GRPO", "DAPO", "REINFORCE++"):
        t = np.arange(1, 61)
        frame = pd.DataFrame({"method": method, "run": f"{method} 0", "step": t})
        frame["reward"] = 0.35 + 0.5 * (1 - np.exp(-t / 20)) + rng.normal(0, 0.04, 60)
        frame["pass_at_1"] = np.where(t % 10 == 0, frame["reward"], np.nan)
        frame["kl"], frame["entropy"] = t / 600, 0.8 * np.exp(-t / 40)
        frame["length"], frame["delta_norm"] = 20 + t / 10, np.sqrt(t) / 10
        frame["clip_fraction"] = rng.uniform(0, 0.02, 60)
        frame["resampled_groups"] = rng.integers(0, 4, 60) * (method == "DAPO")
        frame["advantage_scale"] = rng.uniform(0.3, 0.5, 60)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def pass_rates() -> pd.DataFrame:
    """Pass rates of a base and two tuned models."""
    rows = []
    for label, method, p in (
        ("base", "pre-training", 0.35),
        ("GRPO, lr 1e-4", "GRPO", 0.8),
        ("RFT", "RFT", 0.6),
    ):
        rows += [
            (label, method, "pass@1", p, p - 0.03, p + 0.03),
            (label, method, "pass@8", 0.95, 0.93, 0.97),
        ]
    return pd.DataFrame(rows, columns=["label", "method", "measure", "value", "low", "high"])


def stripes() -> pd.DataFrame:
    """Dispersion of row and column ratios of seven matrix types beside the nulls."""
    rng, rows = np.random.default_rng(8), []
    for role in ROLES:
        for axis in ("row", "column"):
            means = {f"{name}_mean": rng.uniform(0.9, 1.3) for name in FOUNDING}
            rows.append({"role": role, "axis": axis, "dispersion": rng.uniform(1.2, 4.0), **means})
    return pd.DataFrame(rows)


def drift() -> pd.DataFrame:
    """Drift of two matrices in two blocks: two seeds of GRPO, and of SFT at two learning rates."""
    rng, rows = np.random.default_rng(9), []
    runs = {("rl", "grpo", "mask", 5e-6): 1, ("sft", "sft-teacher", "mask", 5e-6): 3}
    runs[("sft", "sft-teacher", "own", 3e-4)] = 30
    for (method, algorithm, rate, speed), size in runs.items():
        for seed in (1, 2):
            name = f"{algorithm}-{seed}" if rate == "mask" else f"{algorithm}-own-{seed}"
            facts = {"pair": name, "method": method, "algorithm": algorithm, "rate": rate, "seed": seed}
            scaled = ["norm-matched", "norm-matched, rounded"] if method == "sft" else []
            for variant in ["raw", "rounded", "noise", "noise", *scaled]:
                for block in (0, 1):
                    for role in ("q", "o"):
                        moved = size * rng.uniform(0.9, 1.1) if variant not in scaled else 1.0
                        named = {"tensor": f"{role}{block}", "role": role, "layer": block, "variant": variant}
                        rows.append({**facts, "learning_rate": speed, **named, **_drift_numbers(moved)})
    return pd.DataFrame(rows).astype({"seed": "Int64", "layer": "Int64"})


def _drift_numbers(moved: float) -> dict:
    angles = {f"angle_{side}_{what}": 1e-3 * moved for side in ("left", "right") for what in ("max", "mean")}
    angles |= {"angle_left_gap_aware_max": 5e-4 * moved, "angle_right_gap_aware_max": 4e-4 * moved}
    row = {"nss": 1e-4 * moved, **angles, "angle_bound": 1e-9, "spectral_norm_delta": 0.01 * moved}
    for name in ("weyl", "mirsky", "ky_fan", "nss", "wedin_printed", "wedin_corrected"):
        row |= {f"{name}_bound": 0.02 * moved, f"{name}_measured": 0.002 * moved}
        row |= {f"{name}_vacuous": False, f"{name}_holds": True}
    return row


def spectrum() -> pd.DataFrame:
    """Singular values and angles of one matrix of the runs in `drift`."""
    rows = drift()
    shown = rows[(rows["tensor"] == "o1") & rows["variant"].isin(["raw", "norm-matched"])]
    facts = ["pair", "method", "algorithm", "rate", "seed", "learning_rate"]
    own = shown[[*facts, "tensor", "role", "layer", "variant", "angle_bound"]].reset_index(drop=True)
    lists = {
        "values_base": [3.0, 2.0, 1.0],
        "values_tuned": [3.1, 1.9, 1.0],
        "angles_left": [0.01, 0.02],
        "angles_right": [0.01, 0.03],
    }
    columns = {name: pd.Series([values] * len(own), dtype=object) for name, values in lists.items()}
    return own.assign(k=2, **columns)


def evaluation() -> pd.DataFrame:
    """A base and two seeds of one algorithm on four prompts, eight samples each."""
    correct = {
        ("base", None, None): [0, 2, 4, 8],
        ("grpo-1", "grpo", 1): [4, 6, 8, 8],
        ("grpo-2", "grpo", 2): [8, 8, 8, 8],
    }
    rows = [
        {"run": run, "algorithm": algorithm, "seed": seed, "prompt": i, "samples": 8, "correct": c}
        for (run, algorithm, seed), counts in correct.items()
        for i, c in enumerate(counts)
    ]
    return pd.DataFrame(rows).astype({"seed": "Int64"})


#: Four runs as their pairs are known by, and the labels that figures give them.
OF_RUNS = pd.DataFrame(
    {
        "pair": ["t", "g1", "g2", "x"],
        "method": ["sft", "rl", "rl", "rl"],
        "algorithm": ["sft-teacher", "grpo", "grpo", "flow-grpo"],
        "data": ["arith-4", "arith-4", "addsub-4", "arith-4"],
        "seed": pd.array([101, 101, 112, 7], dtype="Int64"),
    }
)
LABELS = {
    "t": "SFT (teacher) · arith-4 · 101",
    "g1": "GRPO · arith-4 · 101",
    "g2": "GRPO · addsub-4 · 112",
    "x": "flow-grpo · arith-4 · 7",
}
