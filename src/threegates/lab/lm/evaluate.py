"""How well a language model answers and predicts: pass@k of samples with an interval, and perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from threegates.errors import RecipeError
from threegates.lab.lm.tasks import Problem, Task

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """A share of prompts in [0, 1] with the ends of its interval."""

    value: float
    low: float
    high: float


def pass_at_k(right: Tensor, k: int) -> Tensor:
    """Of each prompt, the unbiased estimate of the chance that one of ``k`` samples is right, (prompts,).

    1 − C(n−c, k) / C(n, k), for c right ones of n samples: the share of all choices of k among the n that
    hold a right one.

    Parameters
    ----------
    right : (prompts, samples) bool. k : 1..samples.

    Raises
    ------
    RecipeError : there are fewer samples than k.

    **Source** Chen et al. (2021), arXiv 2107.03374, equation 1.
    """
    samples = right.shape[1]
    if not 1 <= k <= samples:
        raise RecipeError(
            f"pass@{k} cannot be estimated from {samples} samples a prompt.",
            expected=f"k from 1 to {samples}",
            found=k,
            remedy="Sample more answers to every prompt, or ask for a smaller k.",
        )
    choices = math.comb(samples, k)
    missed = [math.comb(samples - count, k) / choices for count in right.sum(1).tolist()]
    return 1 - torch.tensor(missed, dtype=torch.float64)


def share_of_prompts(values: Tensor, confidence: float = CONFIDENCE) -> Share:
    """The mean over prompts with Wilson's interval, which stays inside [0, 1] and has a width at its ends.

    Prompts are drawn, not samples: the interval is that of m right answers in m trials a mean, where m is as
    many as have the variance that the prompts show: m = p (1 − p) / (s² / n). Where they show none, m = n.

    Parameters
    ----------
    values : (prompts,) in [0, 1], one a prompt, such as those of `pass_at_k`.

    **Source** Korn and Graubard (1998), Survey Methodology 24, 193–201, for the effective number of trials;
    Wilson (1927), JASA 22, 209–212, for the interval.
    """
    n, p = len(values), float(values.double().mean())
    spread = float(values.double().var()) / n if n > 1 else 0.0
    trials = p * (1 - p) / spread if spread > 0 else n
    z = float(stats.norm.ppf((1 + confidence) / 2))
    middle = (p + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2) / (1 + z**2 / trials)
    # Both ends are exact where no answer or every answer is right, whatever the sums round to.
    return Share(p, 0.0 if p == 0 else max(0.0, middle - half), 1.0 if p == 1 else min(1.0, middle + half))


def evaluation_frame(task: Task, problems: Sequence[Problem], right: Tensor) -> pd.DataFrame:
    """How many samples were right: one row a prompt, with the columns that all final evaluations have.

    right : (prompts, samples) bool.
    """
    return pd.DataFrame(
        {
            "data": task.name,
            "prompt": [problem.query for problem in problems],
            "samples": right.shape[1],
            "correct": right.sum(1).tolist(),
        }
    )


def negative_log_likelihood(logits: Tensor, ids: Tensor) -> float:
    """Mean of −log p of every token but the first, in nats; its exponential is the perplexity.

    Parameters
    ----------
    logits : (time, vocabulary), of the token after each. ids : (time,), the text's own.
    """
    log_probs = logits[:-1].float().log_softmax(-1)
    return -float(log_probs.gather(1, ids[1:, None]).mean())
