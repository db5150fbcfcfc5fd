"""What the encoder's policy does on items, exactly: all candidates are enumerated, nothing is sampled."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from threegates.lab.encoder.policy import right_places
from threegates.lab.encoder.task import Item


def policy_metrics(log_probs: Tensor, base: Tensor) -> dict[str, float]:
    """KL(π‖π_base) and entropy in nats, means over items; both (items, candidates) of log π."""
    probabilities = log_probs.exp()
    return {
        "kl": float((probabilities * (log_probs - base)).sum(1).mean()),
        "entropy": float(-(probabilities * log_probs).sum(1).mean()),
        "length": 1.0,
    }


def accuracies(items: Sequence[Item], log_probs: Tensor) -> tuple[float, float]:
    """Expected share of right answers under π, and the share of right ones among its most probable."""
    right = right_places(items)
    expected = log_probs.exp().gather(1, right[:, None]).mean()
    return float(expected), float((log_probs.argmax(1) == right).float().mean())


def held_out_metrics(items: Sequence[Item], log_probs: Tensor, base: Tensor) -> dict[str, float]:
    """Reward (±1, expected), pass@1 (expected accuracy), greedy accuracy, KL and entropy."""
    expected, greedy = accuracies(items, log_probs)
    found = {"reward": 2 * expected - 1, "pass_at_1": expected, "greedy": greedy}
    return found | policy_metrics(log_probs, base)


def evaluation_frame(data: str, items: Sequence[Item], log_probs: Tensor) -> pd.DataFrame:
    """One row an item: the most probable candidate, whether it is right, and π of the right one."""
    right, chosen = right_places(items), log_probs.argmax(1)
    return pd.DataFrame(
        {
            "data": data,
            "family": [item.family for item in items],
            "prompt": [item.query for item in items],
            "answer": [item.answer for item in items],
            "chosen": [item.candidates[place] for item, place in zip(items, chosen.tolist(), strict=True)],
            "samples": 1,
            "correct": (chosen == right).to(torch.int64).tolist(),
            "probability": log_probs.exp().gather(1, right[:, None])[:, 0].tolist(),
        }
    )
