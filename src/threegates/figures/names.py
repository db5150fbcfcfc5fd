"""Names and colours of methods, runs and roles, one for all figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pandas as pd

from threegates.figures.style import colour

#: Names on the page of the algorithms in the manifest.
METHODS = {
    "pretraining": "pre-training",
    "sft-teacher": "SFT (teacher)",
    "cross-entropy": "SFT (cross-entropy)",
    "sft-same-style": "SFT (same style)",
    "rft": "RFT",
    "grpo": "GRPO",
    "dapo": "DAPO",
    "reinforce++": "REINFORCE++",
}


def method_name(algorithm: Any) -> str:
    """Name on the page of an algorithm; one the study does not know keeps its own."""
    if pd.isna(algorithm):
        return "your pair"
    return METHODS.get(str(algorithm).lower(), str(algorithm))


def group_label(name: str, rate: float, pair: str) -> str:
    """Label of a method at a learning rate; of a pair that stands for itself its name."""
    if name == pair:
        return pair
    return f"{name}, lr {rate:.0e}" if rate == rate else f"{name}, {pair}"


def run_labels(frame: pd.DataFrame) -> dict[str, str]:
    """Label of each pair or run by its name: method, data, seed, and the name where that is not unique.

    Pairs that a reader has chosen go by their names.
    """
    if "alone" in frame:
        return {pair: pair for pair in dict.fromkeys(frame["pair"])}
    rows = frame.drop_duplicates("pair").to_dict("records")
    labels = {row["pair"]: f"{method_name(row['algorithm'])} · {row['data']} · {row['seed']}" for row in rows}
    taken = Counter(labels.values())
    return {pair: label if taken[label] == 1 else f"{label} · {pair}" for pair, label in labels.items()}


def run_colours(frame: pd.DataFrame) -> dict[str, str]:
    """Colour of each run's method by the run's label, RL first, in the order of the figures."""
    order = {"rl": 0, "rft": 1, "sft": 2}
    rows = frame.drop_duplicates("pair").sort_values("method", key=lambda m: m.map(order), kind="stable")
    labels = run_labels(rows)
    return {labels[row["pair"]]: colour(method_name(row["algorithm"])) for row in rows.to_dict("records")}


def head_size(config: Mapping[str, Any]) -> int | None:
    """Rows of one attention head in Q, K and V, by a checkpoint's config.json; None where it has no heads."""
    if config.get("head_dim"):
        return int(config["head_dim"])
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return width // heads if width and heads else None


def method_order(pairs: pd.DataFrame) -> pd.Series:
    """RL first, then what is on-policy, then the teacher; the smaller learning rate first."""
    place = {name: number for number, name in enumerate(reversed(METHODS))}
    return pairs["algorithm"].map(place).fillna(len(place)) + pairs["learning_rate"].fillna(0)


#: Matrix types in the order of a block, with the names used on axes.
ROLES: dict[str, str] = {"q": "Q", "k": "K", "v": "V", "o": "O", "gate": "gate", "up": "up", "down": "down"}
