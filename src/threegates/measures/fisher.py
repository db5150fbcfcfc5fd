"""The empirical Fisher matrix of a base of the lab: its eigenvalues over sampled responses.

One table, ``fisher``, with a row a base. The matrix is (1/n) Σᵢ gᵢgᵢᵀ over n responses, gᵢ the gradient of a
whole response's log-probability in all weights, so that ½ ΔWᵀFΔW is a step's KL in nats a response, to second
order. Its rank is at most n of d weights: on all other directions it is zero, and says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from threegates.errors import PairError
from threegates.geometry.curvature import empirical_fisher_eigenvalues
from threegates.geometry.directions import frobenius_norm
from threegates.lab.evaluate import held_out_problems, sample_problems
from threegates.lab.language import load_weights
from threegates.lab.model import ModelShape
from threegates.lab.randomness import step_generator
from threegates.lab.rollout import Rollout, response_log_probs, token_log_probs
from threegates.lab.task import data_set
from threegates.measures.by_tensor import typed

FISHER_COLUMNS = {
    "base": "str",
    "data": "str",
    "responses": "int64",
    "parameters": "int64",
    "rank": "int64",
    "smallest": "float64",
    "largest": "float64",
    "trace": "float64",
    "norm": "float64",
}
#: Held-out prompts, each answered once: for the lab's models their scores take half a gigabyte.
RESPONSES = 256


def measure_fisher(
    folder: Path | str, *, base: str, data: str, seed: int = 0, responses: int = RESPONSES
) -> dict[str, pd.DataFrame]:
    """Eigenvalues of the empirical Fisher matrix of a base on held-out prompts of a data set.

    Parameters
    ----------
    folder : of the base's checkpoint. base : its name. responses : one a prompt, sampled at temperature 1.
    seed : of the samples.

    Returns
    -------
    table ``fisher``: `rank` eigenvalues are not zero up to rounding; `smallest` and `largest` of them and
    their sum, `trace`, in squared nats per squared unit of the weights; `norm`, ‖W‖_F over all `parameters`.

    Raises
    ------
    PairError : all scores are zero.
    """
    shape, weights = load_weights(Path(folder))
    generator = step_generator(seed, f"fisher/{data}", 0)
    problems, length = held_out_problems(data, responses), data_set(data).response_length
    rollout = sample_problems(weights, shape, problems, 1, generator, length)
    scores = response_scores(weights, shape, rollout)
    values = empirical_fisher_eigenvalues(scores)
    if not len(values):
        raise PairError("the Fisher matrix is zero", where=base, remedy="look at the base's samples")
    row = {
        "base": base,
        "data": data,
        "responses": len(scores),
        "parameters": scores.shape[1],
        "rank": len(values),
        "smallest": float(values[0]),
        "largest": float(values[-1]),
        "trace": float(values.sum()),
        "norm": math.hypot(*(frobenius_norm(weight) for weight in weights.values())),
    }
    return {"fisher": typed([row], FISHER_COLUMNS)}


def response_scores(weights: Mapping[str, Tensor], shape: ModelShape, rollout: Rollout) -> Tensor:
    """∇ Σ_t log π(o_t) of each response o in all weights, float32: (responses, parameters).

    Parameters are in the order of `weights`, each tensor flat. Tokens after a response's end do not count.
    """
    leaves = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
    scores = torch.empty(len(rollout), sum(leaf.numel() for leaf in leaves.values()))
    for number in range(len(rollout)):
        one = rollout.select(torch.tensor([number]))
        everything = response_log_probs(leaves, shape, one.prompts, one.responses)
        total = (token_log_probs(everything, one.responses) * one.mask).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)
        scores[number] = torch.cat([gradient.flatten() for gradient in gradients])
    return scores
