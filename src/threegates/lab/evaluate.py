"""What a policy does on held-out prompts: reward, pass@1, pass@k, KL to the base, entropy, length."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from threegates.lab.kl import ESTIMATORS
from threegates.lab.model import ModelShape, Weights, device_of
from threegates.lab.randomness import step_generator, step_rng
from threegates.lab.rollout import Rollout, pad_prompts, sample, sampled_log_probs
from threegates.lab.task import RESPONSE_LENGTH, Problem, data_set, draw_problems, is_correct

# One fixed set of held-out prompts for every run, so that runs are compared on the same questions.
EVALUATION_SEED = 20_251_111
CHUNK = 512


def held_out_problems(data: str, count: int) -> list[Problem]:
    """The first ``count`` of the fixed held-out problems of a data set."""
    rng = step_rng(EVALUATION_SEED, f"held-out/{data}", 0)
    return draw_problems(data_set(data), count, rng, held_out=True)


def verify(rollout: Rollout, problems: Sequence[Problem], samples: int) -> Tensor:
    """Whether each response is right; ``samples`` consecutive rows belong to one problem. (batch,) bool."""
    rows = rollout.responses.tolist()
    right = [is_correct(row, problems[i // samples].answer) for i, row in enumerate(rows)]
    return torch.tensor(right, device=rollout.responses.device)


def sample_problems(
    weights: Weights,
    shape: ModelShape,
    problems: Sequence[Problem],
    samples: int,
    generator: torch.Generator,
    length: int = RESPONSE_LENGTH,
) -> Rollout:
    """``samples`` responses of at most ``length`` tokens to every problem, in consecutive rows."""
    prompts = pad_prompts([problem.prompt() for problem in problems]).to(generator.device)
    return sample(weights, shape, prompts.repeat_interleave(samples, 0), generator, length=length)


@torch.no_grad()
def reference_log_probs(weights: Weights, shape: ModelShape, rollout: Rollout) -> Tensor:
    """Log-probabilities of the sampled tokens under another model, zero outside the mask."""
    return sampled_log_probs(weights, shape, rollout.prompts, rollout.responses, rollout.mask)


def rollout_metrics(rollout: Rollout, correct: Tensor, reference: Tensor | None) -> dict[str, float]:
    """Reward (±1), token KL to the base (nats), token entropy (nats) and length of a batch of samples.

    ``kl`` is the k3 estimate; ``kl_k1`` and ``kl_k2`` are the others, to be compared with it.
    """
    tokens = rollout.mask.sum()
    kl = dict.fromkeys(ESTIMATORS, float("nan"))
    if reference is not None:
        kl = {
            name: float((estimate(rollout.log_probs, reference) * rollout.mask).sum() / tokens)
            for name, estimate in ESTIMATORS.items()
        }
    return {
        "reward": float(correct.float().mean() * 2 - 1),
        "kl": kl["k3"],
        "kl_k1": kl["k1"],
        "kl_k2": kl["k2"],
        "entropy": float(rollout.entropy.sum() / tokens),
        "length": float(rollout.lengths.float().mean()),
    }


def evaluate(
    weights: Weights, shape: ModelShape, base: Weights | None, data: str, prompts: int, seed: int, step: int
) -> dict[str, float]:
    """One sample a held-out prompt: the metrics of `rollout_metrics` and pass@1."""
    problems = held_out_problems(data, prompts)
    generator = step_generator(seed, "evaluation", step, device_of(weights))
    length = data_set(data).response_length
    rollout = sample_problems(weights, shape, problems, 1, generator, length)
    correct = verify(rollout, problems, 1)
    reference = None if base is None else reference_log_probs(base, shape, rollout)
    return rollout_metrics(rollout, correct, reference) | {"pass_at_1": float(correct.float().mean())}


def final_evaluation(
    weights: Weights, shape: ModelShape, data: str, prompts: int, samples: int, seed: int
) -> pd.DataFrame:
    """How many of ``samples`` responses to each held-out prompt are right: one row a prompt."""
    problems = held_out_problems(data, prompts)
    length = data_set(data).response_length
    counts: list[int] = []
    for start in range(0, prompts, CHUNK // samples):
        chunk = problems[start : start + CHUNK // samples]
        generator = step_generator(seed, "final-evaluation", start, device_of(weights))
        rollout = sample_problems(weights, shape, chunk, samples, generator, length)
        counts += verify(rollout, chunk, samples).view(-1, samples).sum(1).tolist()
    return pd.DataFrame(
        {
            "data": data,
            "prompt": [" ".join(problem.prompt()) for problem in problems],
            "samples": samples,
            "correct": counts,
        }
    )
