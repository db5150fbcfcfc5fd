"""What the models of the study descend, as functions of their weights, for the curvature at a base.

Three functions of the base's weights on a batch that depends on its number alone, so that every update of a
base is looked at on the same batches:

| name | the lab's model | the encoder |
|---|---|---|
| loss | cross-entropy of the pre-training mixture's tokens | cross-entropy of the right candidate |
| fisher | log-probabilities at tokens that the base itself sampled | of all candidates |
| reward | GRPO's surrogate on the base's own samples, negative | expected reward, negative: exact |

The loss is what the base was made to be flat in; the Fisher matrix is the curvature of the KL leash; the
surrogate is what RL itself descends, whose Hessian a batch of samples shows with much noise.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.lab.averages import average_tokens
from threegates.lab.evaluate import sample_problems, verify
from threegates.lab.language import load_weights
from threegates.lab.model import ModelShape, Weights
from threegates.lab.objectives import group_advantages
from threegates.lab.randomness import step_generator, step_rng
from threegates.lab.rollout import pad_prompts, pad_responses, response_log_probs, token_log_probs
from threegates.lab.task import data_set, draw_problems, pretraining_example
from threegates.measures.batch import SEED, Batch, Losses

EXAMPLES, PROMPTS, SAMPLES = 24, 8, 8
DATA = "arith-4"


def base_losses(base: Checkpoint) -> Losses:
    """Losses of the lab's model or of the encoder.

    Raises
    ------
    PairError : the base is neither; nobody has said what its loss and its data are.
    """
    kind = base.config.get("model_type")
    if kind == "llama" and base.config.get("vocab_size") == ModelShape().vocabulary:
        shape, weights = load_weights(base.folder)
        return Losses(weights, lambda number: _language_batch(shape, weights, number))
    if kind == "bert":
        # The encoder brings transformers along, which every notebook would wait for.
        from threegates.measures.encoder_losses import encoder_losses

        return encoder_losses(base)
    raise PairError(
        "curvature needs a loss and data, and for this base nobody has named them",
        where=base.folder.name,
        expected="the lab's model or its encoder",
        found=str(kind),
        remedy="add its loss in threegates/measures/losses.py",
    )


def _language_batch(shape: ModelShape, base: Weights, number: int) -> Batch:
    rng = step_rng(SEED, "curvature/mixture", number)
    examples = [pretraining_example(data_set("pretraining"), rng) for _ in range(EXAMPLES)]
    prompts = pad_prompts([prompt for prompt, _ in examples])
    responses, mask = pad_responses([response for _, response in examples])

    def loss(weights: Mapping[str, Tensor]) -> Tensor:
        chosen = token_log_probs(response_log_probs(weights, shape, prompts, responses), responses)
        return -average_tokens(chosen, mask, "token")

    problems = draw_problems(
        data_set(DATA), PROMPTS, step_rng(SEED, "curvature/prompts", number), held_out=False
    )
    rollout = sample_problems(
        base, shape, problems, SAMPLES, step_generator(SEED, "curvature/samples", number)
    )
    correct = verify(rollout, problems, SAMPLES)
    advantages = group_advantages(correct.float() * 2 - 1, SAMPLES)[:, None]

    def log_probs(weights: Mapping[str, Tensor]) -> Tensor:
        return response_log_probs(weights, shape, rollout.prompts, rollout.responses)[rollout.mask]

    def reward(weights: Mapping[str, Tensor]) -> Tensor:
        scores = response_log_probs(weights, shape, rollout.prompts, rollout.responses)
        ratio = (token_log_probs(scores, rollout.responses) - rollout.log_probs).exp()
        return -average_tokens(ratio * advantages, rollout.mask, "sequence")

    return Batch(loss, reward, log_probs)
