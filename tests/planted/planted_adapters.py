"""Logs and evaluations of runs with adapters by hand, and how to plant each of their estimates.

They stand beside the tables of `planted_masks`, which have full fine-tuning, the dense runs, and the base.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from tests.planted.planted_masks import ACCURACY, SEEDS, Plant

#: pass@1 at the best rate, mean over ranks.
BEST = {"lora": 0.7, "pissa": 0.7, "milora": 0.65}
#: Ranks lie this far from the mean of theirs, the highest on it, so that one left out is seen.
RANKS = {2: -0.02, 8: 0.02, 32: 0.0}
#: Learning rates, how far below the best they end, whether the KL there is that of a collapsed run, ‖ΔW‖.
GRID = {0.0003: (0.1, False, 0.5), 0.001: (0.0, False, 1.0), 0.003: (0.1, False, 1.5), 0.01: (0.9, True, 2.0)}
#: LoRA collapses at the last rate, PiSSA two rates below it, at a smaller norm.
EARLIER = {"pissa": {0.003: (0.2, True, 1.0)}}
RATE_RATIO, NORM_RATIO = 0.01 / 0.003, 2.0


def facts(init: str, rank: int, rate: float, seed: int) -> dict:
    """What a row of a table says of its run."""
    known = {"run": f"{init}-r{rank}-{rate:g}-s{seed}", "base": "lab-base", "method": "rl", "seed": seed}
    known |= {"algorithm": "grpo", "init": init, "rank": str(rank), "rate": f"{rate:g}"}
    return {**known, "learning_rate": rate}


def _runs(seeds: tuple[int, ...]) -> list[tuple[dict, float, bool, float]]:
    cells = []
    for init, rank, rate, seed in product(BEST, RANKS, GRID, seeds):
        below, gone, norm = EARLIER.get(init, {}).get(rate, GRID[rate])
        passed = max(0.0, BEST[init] + RANKS[rank] - below)
        cells.append((facts(init, rank, rate, seed), passed, gone, norm))
    return cells


def evaluation(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    """One prompt a run; runs under SFT and DAPO, which no estimate may count, are right on it every time."""
    rows = [
        {**known, "prompt": "a", "samples": 8, "correct": 8 * passed} for known, passed, _, _ in _runs(seeds)
    ]
    others = [
        {"run": name, "method": method, "algorithm": algorithm, "init": "pissa", "rank": "2", "seed": 1}
        for name, method, algorithm in (("sft", "sft", "sft-teacher"), ("dapo", "rl", "dapo"))
    ]
    own = {"learning_rate": 0.001, "prompt": "a", "samples": 8, "correct": 8}
    return pd.DataFrame([*rows, *({**facts, **own} for facts in others)])


def log(seeds: tuple[int, ...] = SEEDS) -> pd.DataFrame:
    """Two evaluations a run, and a step between them whose KL is that of no evaluation."""
    rows = []
    for known, passed, gone, norm in _runs(seeds):
        for step, share in ((2, 0.5), (3, 99.0), (4, 1.0)):
            moved = {"kl": (2.0 if gone else 0.1) * share, "delta_norm": norm * share}
            rows.append(
                {**known, "step": step, "pass_at_1": np.nan if step == 3 else passed * share, **moved}
            )
    return pd.DataFrame(rows)


def _values(frame: pd.DataFrame, values: np.ndarray) -> pd.Series:
    return frame["seed"].map(dict(zip(SEEDS, values, strict=True)))


def _best(own: str, other: float, sign: int, frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """A start's accuracy, at every rank and rate, so that its difference from another has the values."""
    moved = 8 * (other - BEST[own] + sign * _values(frame, values))
    is_own = (frame["init"] == own) & (frame["algorithm"] == "grpo")
    frame["correct"] = frame["correct"].astype(float).where(~is_own, frame["correct"] + moved)
    return frame


def _full(frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """Accuracy in full, so that LoRA of the highest rank exceeds it by the values."""
    moved = 8 * (BEST["lora"] - ACCURACY["dense"] - _values(frame, values))
    dense = frame["mask"] == "dense"
    frame["correct"] = frame["correct"].astype(float).where(~dense, frame["correct"] + moved)
    return frame


def _collapse_rate(frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """The learning rate of LoRA's collapsed runs over that of PiSSA's first."""
    gone = (frame["init"] == "lora") & (frame["learning_rate"] == 0.01)
    frame["learning_rate"] = frame["learning_rate"].where(
        ~gone, 0.003 * _values(frame, values) * _apart(frame)
    )
    return frame


def _collapse_norm(frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """‖ΔW‖ at the end of LoRA's collapsed runs over that of PiSSA's first; a healthy run ends just below."""
    for rate, share in ((0.01, 1.0), (0.003, 0.999)):
        last = (frame["init"] == "lora") & (frame["learning_rate"] == rate) & (frame["step"] == 4)
        norms = share * _values(frame, values) * _apart(frame)
        frame["delta_norm"] = frame["delta_norm"].where(~last, norms)
    return frame


def _apart(frame: pd.DataFrame) -> pd.Series:
    """Ranks differ, and their geometric mean does not."""
    return np.exp(frame["rank"].map({str(rank): aside for rank, aside in RANKS.items()}))


#: By the name of the estimate: the table, the number of seeds, what plants, whether it is a ratio.
PLANTERS: dict[str, tuple[str, int, Plant, bool]] = {
    "best_lora_minus_pissa": ("evaluation", 3, partial(_best, "pissa", BEST["lora"], -1), False),
    "best_lora_minus_milora": ("evaluation", 3, partial(_best, "milora", BEST["lora"], -1), False),
    "best_lora_minus_full": ("evaluation", 3, _full, False),
    "collapse_rate_lora_over_pissa": ("evaluation", 3, _collapse_rate, True),
    "collapse_norm_lora_over_pissa": ("log", 3, _collapse_norm, True),
}
