"""What runs of the language model share: the policy and its base, prompts, evaluation, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError
from threegates.lab.device import require_device
from threegates.lab.kl import ESTIMATORS
from threegates.lab.lm.evaluate import evaluation_frame
from threegates.lab.lm.model import Weights, response_log_probs
from threegates.lab.lm.rollout import Rollout
from threegates.lab.lm.sampling import Policy, sample, uniform
from threegates.lab.lm.shape import LlamaShape
from threegates.lab.lm.tasks import Problem, draw, task
from threegates.lab.lm.tokenizer import Tokenizer
from threegates.lab.lm.weights import MixedWeights
from threegates.lab.randomness import step_generator, step_rng
from threegates.lab.recipe import LmRecipe
from threegates.lab.trainer import Contents, Metrics, Trainer
from threegates.lab.weights import TrainedWeights, dtype

EXTRA_COLUMNS = ("greedy", "informative", "tokens")
#: Of the base's folder, what its tuned checkpoints get too.
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
# The embedding of a small model fills a file of its own.
SHARD_BYTES = 100_000_000
# One fixed set of held-out prompts for every run, so that runs are compared on the same questions.
EVALUATION_SEED = 20_251_111
# Rows that are sampled at once: more are not faster, and take more memory.
ROWS = 128


class LmTrainer(Trainer):
    """A Llama-shaped model beside its frozen base, on one task; subclasses add the step.

    base : weights as stored in the base's folder. prefix : ids of the task's examples.
    """

    recipe: LmRecipe
    extra_columns = EXTRA_COLUMNS

    def __init__(
        self,
        recipe: LmRecipe,
        config: Mapping[str, Any],
        base: Weights,
        tokenizer: Tokenizer,
        files: Mapping[str, bytes],
    ) -> None:
        require_device(recipe.device, recipe.name)
        self.shape, self.config, self.files = LlamaShape.of(config), config, files
        self.computing = dtype(recipe.computing)
        self.base = {name: tensor.to(recipe.device) for name, tensor in base.items()}
        super().__init__(recipe, self.base)
        self.tokenizer, self.task = tokenizer, task(recipe.data)
        self.prefix = tokenizer.encode(self.task.prefix)
        if recipe.optimiser == "adamw" and self.device.type == "cpu":
            # One pass over weights and moments in place of several; on a GPU torch fuses by itself.
            self.optimiser = fused_adamw(recipe, self.weights.master)

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        assert base is not None
        config, weights = read_base(base)
        files = {name: (base / name).read_bytes() for name in COPIED if (base / name).is_file()}
        return cls(recipe, config, weights, Tokenizer.open(base), files)

    @property
    def device(self) -> torch.device:
        """Where weights, samples and losses are."""
        return self.weights.master.device

    def trained_weights(self, initial: Mapping[str, Tensor]) -> TrainedWeights:
        recipe = self.recipe
        return MixedWeights(
            initial, master=recipe.master_dtype, storage=recipe.storage_dtype, computing=recipe.computing
        )

    def policy(self) -> Policy:
        """The present policy."""
        return Policy(self.weights.named, self.shape, self.computing)

    def problems(self, count: int, attempt: int, index: int) -> list[Problem]:
        """A step's problems, drawn from those for training."""
        rng = step_rng(self.recipe.seed, f"prompts/{self.recipe.data}/{attempt}", index)
        return draw(self.task, count, rng, held_out=False)

    def asked(self, problems: Sequence[Problem]) -> list[list[int]]:
        """Ids of the problems' questions, which go on from the prefix."""
        return [self.tokenizer.encode(self.task.question(problem)) for problem in problems]

    def sample(
        self, policy: Policy, problems: Sequence[Problem], samples: int, generator: torch.Generator | None
    ) -> Rollout:
        """Responses to problems; without a generator the most probable ones."""
        length = self.task.answer_tokens
        numbers = None if generator is None else uniform(len(problems) * samples, length, generator)
        return sample(
            policy,
            self.prefix,
            self.asked(problems),
            numbers,
            samples=samples,
            length=length,
            end=self.tokenizer.newline,
        )

    def right(self, rollout: Rollout, problems: Sequence[Problem]) -> Tensor:
        """What the verifier says of each response, (rows,) bool on the CPU."""
        rows = zip(rollout.responses.tolist(), rollout.lengths.tolist(), strict=True)
        texts = [self.tokenizer.answer(ids[:length]) for ids, length in rows]
        asked = [problem for problem in problems for _ in range(rollout.samples)]
        return torch.tensor([self.task.is_right(one, text) for one, text in zip(asked, texts, strict=True)])

    def log_probs(self, weights: Weights, rollout: Rollout) -> Tensor:
        """Log-probabilities of a rollout's tokens under some weights, zero outside its mask."""
        return response_log_probs(weights, self.shape, rollout.layout(), self.computing)

    @torch.no_grad()
    def reference(self, rollout: Rollout) -> Tensor:
        """The same under the base."""
        return self.log_probs(self.base, rollout)

    def held_out(self, count: int) -> list[Problem]:
        """The first problems of a fixed order of those that no run trains on."""
        rng = step_rng(EVALUATION_SEED, f"held-out/{self.recipe.data}", 0)
        everything = draw(self.task, len(self.task.problems(True)), rng, held_out=True)
        return everything[:count]

    @torch.no_grad()
    def evaluate(self, index: int) -> Metrics:
        """Held-out reward, pass@1 of samples, accuracy of the most probable responses, KL and entropy."""
        recipe = self.recipe
        problems = self.held_out(recipe.evaluate_prompts)
        chunks = list(self._sampled(problems, recipe.evaluate_samples, "evaluation", index))
        rollout = Rollout.join([part for part, _ in chunks])
        right = torch.cat([marks for _, marks in chunks])
        greedy = [
            self.right(self.sample(self.policy(), some, 1, None), some) for some in _chunks(problems, ROWS)
        ]
        metrics = rollout_metrics(rollout, right) | kl_metrics(rollout, self.reference(rollout))
        accuracy = {"pass_at_1": right.float().mean(), "greedy": torch.cat(greedy).float().mean()}
        return metrics | {name: float(value) for name, value in accuracy.items()}

    def _sampled(
        self, problems: Sequence[Problem], samples: int, stream: str, index: int
    ) -> Iterator[tuple[Rollout, Tensor]]:
        """Samples of held-out problems and what is right, some rows at a time."""
        for place, some in enumerate(_chunks(problems, max(1, ROWS // samples))):
            generator = step_generator(self.recipe.seed, f"{stream}/{place}", index, self.device)
            rollout = self.sample(self.policy(), some, samples, generator)
            yield rollout, self.right(rollout, some)

    @torch.no_grad()
    def final_evaluation(self) -> pd.DataFrame | None:
        """How many samples of each held-out prompt are right: one row a prompt."""
        recipe = self.recipe
        if not recipe.final_prompts:
            return None
        problems = self.held_out(recipe.final_prompts)
        sampled = self._sampled(problems, recipe.final_samples, "final-evaluation", recipe.steps)
        right = torch.cat([marks for _, marks in sampled])
        return evaluation_frame(self.task, problems, right.view(len(problems), -1))

    def contents(self) -> Contents:
        stored = self.recipe.save_dtype
        config = {**self.config, "dtype": stored}
        return Contents(self.weights.saved(stored), config, self.files, SHARD_BYTES)


def fused_adamw(recipe: LmRecipe, master: torch.nn.Parameter) -> torch.optim.Optimizer:
    """AdamW of the recipe in one pass."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    return torch.optim.AdamW([master], lr=rate, betas=recipe.betas, weight_decay=decay, fused=True)


def _chunks(problems: Sequence[Problem], size: int) -> list[Sequence[Problem]]:
    return [problems[start : start + size] for start in range(0, len(problems), size)]


def read_base(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and weights of a checkpoint as stored, in the model's order.

    Raises
    ------
    CheckpointError : the folder is no Llama-shaped model's, or a tensor is not of the shape in its config.
    """
    checkpoint = Checkpoint.open(folder)
    weights = {}
    for name, shape in LlamaShape.of(checkpoint.config).parameter_shapes().items():
        weights[name] = checkpoint.stored(name)
        if tuple(weights[name].shape) != shape:
            raise CheckpointError(
                "A tensor has not the shape that its model's config says.",
                where=f"{folder}, tensor '{name}'",
                expected=shape,
                found=tuple(weights[name].shape),
                remedy="Take config.json and weights from one checkpoint.",
            )
    return checkpoint.config, weights


def rollout_metrics(rollout: Rollout, right: Tensor) -> Metrics:
    """Reward of the verifier (±1), entropy (nats a token) and length (tokens), means."""
    return {
        "reward": float(right.float().mean() * 2 - 1),
        "entropy": float(rollout.entropy.sum() / rollout.tokens),
        "length": float(rollout.lengths.float().mean()),
    }


def kl_metrics(rollout: Rollout, reference: Tensor) -> Metrics:
    """KL of the sampling policy to the base (nats a token) on its own tokens; ``kl`` is the k3 estimate."""
    found = {
        name: float((estimate(rollout.log_probs, reference) * rollout.mask).sum() / rollout.tokens)
        for name, estimate in ESTIMATORS.items()
    }
    return {"kl": found["k3"], "kl_k1": found["k1"], "kl_k2": found["k2"]}
