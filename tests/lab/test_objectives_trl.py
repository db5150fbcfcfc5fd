"""The same batch through TRL's GRPOTrainer gives the same loss and the same gradients."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.lab.tiny import TINY, random_weights
from threegates.checkpoints.writer import write_checkpoint
from threegates.lab.algorithms.table import algorithm
from threegates.lab.objectives import Algorithm, group_advantages, policy_loss
from threegates.lab.rollout import Rollout, pad_prompts, response_log_probs, sample, token_log_probs
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID, Problem, data_set
from threegates.lab.tokenizer import tokenizer_files

pytestmark = [
    pytest.mark.rl,
    pytest.mark.slow,
    # TRL sets an option that transformers is about to rename.
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]

SAMPLES = 4
# The KL weight of the recipes would hide in the last digits.
RULES = {
    "grpo": algorithm("grpo"),
    "grpo with a strong KL": replace(algorithm("grpo"), kl_weight=0.5),
    "dapo": algorithm("dapo"),
    "clip-higher per sequence": replace(algorithm("grpo"), clip_high=0.28, kl_weight=0.0, kl="none"),
}


@pytest.fixture(scope="module")
def trl():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("WANDB_DISABLED", "true")
    return pytest.importorskip("trl", reason="the extra `rl` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint in Hub format, written by our own writer."""
    path = tmp_path_factory.mktemp("trl") / "policy"
    config = TINY.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype="float32")
    write_checkpoint(
        path, random_weights(seed=1, sharpness=2.0), config, tokenizer_files(data_set("arith-4")), 8000
    )
    return path


def _disturbed(weights: dict[str, Tensor], seed: int, size: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + size * torch.randn(tensor.shape, generator=generator)
        for name, tensor in weights.items()
    }


@pytest.fixture(scope="module")
def batch() -> tuple[Rollout, Tensor, Tensor]:
    """Samples of a policy a little away from the current one, its reference, and advantages of both signs."""
    weights = random_weights(seed=1, sharpness=2.0)
    problems = [Problem((4, 7), ("+",)), Problem((1, 2, 3, 4), ("+", "*", "-"))]
    prompts = pad_prompts([problem.prompt() for problem in problems]).repeat_interleave(SAMPLES, 0)
    generator = torch.Generator().manual_seed(3)
    rollout = sample(_disturbed(weights, 2, 0.02), TINY, prompts, generator, length=16)
    everything = response_log_probs(_disturbed(weights, 5, 0.05), TINY, prompts, rollout.responses)
    reference = token_log_probs(everything, rollout.responses) * rollout.mask
    rewards = torch.tensor([1.0, -1, -1, 1, -1, -1, -1, 1])
    return rollout, reference, group_advantages(rewards, SAMPLES)


def _ours(rules: Algorithm, batch: tuple[Rollout, Tensor, Tensor]) -> tuple[float, float, dict[str, Tensor]]:
    rollout, reference, advantages = batch
    weights = {n: t.requires_grad_() for n, t in random_weights(seed=1, sharpness=2.0).items()}
    everything = response_log_probs(weights, TINY, rollout.prompts, rollout.responses)
    log_probs = token_log_probs(everything, rollout.responses)
    spread = advantages[:, None] * rollout.mask
    loss, clipped = policy_loss(rules, log_probs, rollout.log_probs, reference, spread, rollout.mask)
    loss.backward()
    return float(loss.detach()), clipped, {n: t.grad for n, t in weights.items() if t.grad is not None}


def _theirs(trl, folder: Path, rules: Algorithm, batch: tuple[Rollout, Tensor, Tensor], scratch: Path):
    datasets = pytest.importorskip("datasets")
    rollout, reference, advantages = batch
    settings = trl.GRPOConfig(
        output_dir=str(scratch), loss_type="grpo" if rules.average == "sequence" else "dapo",
        epsilon=rules.clip_low, epsilon_high=rules.clip_high, beta=rules.kl_weight, temperature=1.0,
        per_device_train_batch_size=len(rollout), num_generations=SAMPLES, max_completion_length=16,
        # GRPO's paper has the plain k3; TRL's default multiplies it by the ratio (DeepSeek-V3.2).
        use_bias_correction_kl=False,
        # None would switch autocast to bf16 on.
        bf16=False, fp16=False, use_cpu=True, report_to=[],
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=str(folder),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["<bos> cot : 1 + 1 ="] * len(rollout)}),
    )
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer.compute_loss(
        trainer.model,
        {
            "prompt_ids": rollout.prompts,
            "prompt_mask": (rollout.prompts != PAD_ID).long(),
            "completion_ids": rollout.responses,
            "completion_mask": rollout.mask.long(),
            "advantages": advantages,
            "old_per_token_logps": rollout.log_probs,
            "ref_per_token_logps": reference,
            "num_items_in_batch": rollout.mask.sum(),
        },
    )
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in trainer.model.named_parameters()}
    return float(loss.detach()), gradients


@pytest.mark.parametrize("name", RULES)
def test_loss_and_gradients_equal_trls(trl, folder, batch, tmp_path, name):
    rules = RULES[name]
    loss, clipped, gradients = _ours(rules, batch)
    expected, expected_gradients = _theirs(trl, folder, rules, batch, tmp_path)
    assert loss == pytest.approx(expected, abs=1e-5, rel=1e-5)
    assert set(gradients) == set(expected_gradients)
    # transformers keeps the padding's embedding fixed; ours moves if a policy says <pad> before its end.
    gradients["model.embed_tokens.weight"][PAD_ID] = 0
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[parameter], atol=1e-5, rtol=1e-4)
    # A batch in which nothing clips, or everything, would not tell the rules apart.
    assert 0.05 < clipped < 0.6
    assert max(float(gradient.abs().max()) for gradient in gradients.values()) > 1e-2


def test_the_rules_compared_differ_on_this_batch(batch):
    losses = [_ours(rules, batch)[0] for rules in RULES.values()]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-5
