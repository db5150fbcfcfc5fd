"""A step of GRPO of a language model, 8 prompts × 8 samples in two updates: TRL's trainer against the lab's.

Both sides sample with the same prompts, the same longest answer and the newline as its end, on one thread.
TRL computes in float32. There are no rows without the extra `rl`, and none of the real model without its
package.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Row
from threegates.checkpoints.writer import write_checkpoint
from threegates.errors import ThreeGatesError
from threegates.lab.lm.base import converted
from threegates.lab.lm.package import verified_file
from threegates.lab.lm.rl import LmPolicyTrainer, Sampled
from threegates.lab.lm.rollout import Rollout
from threegates.lab.lm.shape import EMBEDDING
from threegates.lab.lm.tasks import Problem
from threegates.lab.lm.tiny import tiny_contents
from threegates.lab.recipe import LmBaseRecipe, LmRLRecipe, LmTinyRecipe
from threegates.lab.trainer import Contents

#: Of the lab on the real model: in float32 with every group trained, in bfloat16 with silent ones unread.
GATES = {"float32": 6.0, "bfloat16": 10.0}
#: Largest difference of a loss, and of the gradient in units of its norm.
CLOSE = 1e-5
PROMPTS, SAMPLES, UPDATES = 8, 8, 2
TASK = {"s": "planted", "l": "dates"}
#: Steps of the lab that are timed; the first one warms up and is not.
STEPS = 3


def rows(sizes: Sequence[str]) -> list[Row]:
    """Rows of the tiny random model at size s, and of the installed one at size l."""
    if importlib.util.find_spec("trl") is None:
        return []
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("WANDB_DISABLED", "true")
    found = []
    for size in sizes:
        contents = base_of(size)
        if contents is not None:
            found += measured(size, contents)
    return found


def base_of(size: str) -> Contents | None:
    """The checkpoint of a size; None where there is none, or its package is missing."""
    if size == "s":
        return tiny_contents(LmTinyRecipe(name="lm-tiny", seed=1))
    if size != "l":
        return None
    try:
        return converted(verified_file(), LmBaseRecipe(name="lm-base"))
    except ThreeGatesError:
        return None


class EveryGroup(LmPolicyTrainer):
    """Every other sample is called right, so that no group is silent."""

    def right(self, rollout: Rollout, problems: Sequence[Problem]) -> Tensor:
        return torch.arange(len(rollout)) % 2 == 0


def measured(size: str, contents: Contents) -> list[Row]:
    """Both rows of one model."""
    with tempfile.TemporaryDirectory(prefix="threegates-lm-") as kept:
        folder = Path(kept) / "base"
        write_checkpoint(folder, contents.tensors, contents.config, contents.files, contents.shard_bytes)
        loss, gradient = differences(size, folder, Path(kept))
        # Trainers hold each other in cycles.
        gc.collect()
        theirs = 1e3 * seconds_of_trl(size, folder, Path(kept))
        notes = {"loss": loss, "gradient": gradient}
        kinds = {
            "float32": ("every group trained", EveryGroup),
            "bfloat16": ("silent groups unread", LmPolicyTrainer),
        }
        return [
            row(size, folder, computing, *kinds[computing], theirs, notes)
            for computing in ("float32", "bfloat16")
        ]


def row(
    size: str,
    folder: Path,
    computing: str,
    what: str,
    kind: type[LmPolicyTrainer],
    theirs: float,
    notes: dict[str, float],
) -> Row:
    """A step of the lab in one computing type."""
    ours, informative, tokens = seconds_of_ours(kind, recipe(size, computing), folder)
    off = max(notes["loss"], notes["gradient"])
    return Row(
        f"GRPO step, {computing}, {what}",
        f"{size} {PROMPTS} × {SAMPLES}",
        1e3 * ours,
        "TRL's GRPOTrainer, float32",
        theirs,
        off <= CLOSE,
        f"{off:.0e} off TRL's in float64",
        gate=GATES[computing] if size == "l" else None,
        notes=notes | {"informative": informative, "tokens": tokens},
    )


def recipe(size: str, computing: str) -> LmRLRecipe:
    """The lab's own defaults."""
    return LmRLRecipe(
        name="benchmark",
        base="base",
        algorithm="grpo",
        data=TASK[size],
        seed=1,
        computing=computing,  # type: ignore[arg-type]
        prompts=PROMPTS,
        samples=SAMPLES,
        minibatches=UPDATES,
    )


def seconds_of_ours(
    kind: type[LmPolicyTrainer], recipe: LmRLRecipe, folder: Path
) -> tuple[float, float, float]:
    """Mean processor seconds of a step, and its means of informative groups and sampled tokens."""
    trainer = kind.start(recipe, folder)
    trainer.step(1)
    taken, informative, tokens = 0.0, 0.0, 0.0
    for index in range(2, 2 + STEPS):
        start = time.process_time()
        metrics = trainer.step(index)
        taken += (time.process_time() - start) / STEPS
        informative += metrics["informative"] / STEPS
        tokens += metrics["tokens"] / STEPS
    return taken, informative, tokens


# ---------------------------------------------------------------------------------------------- TRL


def trl_trainer(size: str, folder: Path, scratch: Path, rows: int, reward: Callable[..., list[float]]) -> Any:
    """TRL's trainer of the same model, prompts, longest answer, end and optimiser; ``rows`` a generation."""
    import datasets
    import trl
    from transformers import AutoTokenizer

    given = recipe(size, "float32")
    ours = LmPolicyTrainer.start(given, folder)
    prompts = [ours.task.prefix + ours.task.question(problem) for problem in ours.problems(PROMPTS, 0, 1)]
    length, end = ours.task.answer_tokens, ours.tokenizer.newline
    del ours
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    settings = trl.GRPOConfig(
        output_dir=str(scratch / "trl"), loss_type="grpo", beta=0.0, temperature=1.0, top_k=0,
        epsilon=0.2, learning_rate=given.learning_rate, weight_decay=given.weight_decay, max_grad_norm=1.0,
        per_device_train_batch_size=rows // UPDATES, steps_per_generation=UPDATES,
        gradient_accumulation_steps=1, num_generations=SAMPLES, max_completion_length=length,
        max_steps=UPDATES, shuffle_dataset=False, activation_checkpointing=False, optim="adamw_torch_fused",
        # None would switch autocast to bf16 on.
        bf16=False, fp16=False, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    return trl.GRPOTrainer(
        model=str(folder),
        reward_funcs=reward,
        args=settings,
        train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )


def _alternating(completions: Sequence[str], **_: Any) -> list[float]:
    return [1.0 - 2 * (place % 2) for place in range(len(completions))]


def seconds_of_trl(size: str, folder: Path, scratch: Path) -> float:
    """Processor seconds of sampling once and updating twice, from the first step to the end of the last."""
    from transformers import TrainerCallback

    marks: list[float] = []

    class Noted(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append(time.process_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.append(time.process_time())

    trainer = trl_trainer(size, folder, scratch, PROMPTS * SAMPLES, _alternating)
    trainer.model.float()
    trainer.add_callback(Noted)
    trainer.train()
    assert trainer.state.global_step == UPDATES
    del trainer
    gc.collect()
    return marks[-1] - marks[0]


def differences(size: str, folder: Path, scratch: Path) -> tuple[float, float]:
    """How far ours in float32 is from TRL's in float64, on one mini-batch of two groups.

    Returns the difference of the loss, and that of the gradient in units of its norm. In float32 TRL's own
    sums are no truth either. Old log-probabilities are disturbed, so that some ratios are clipped.
    """
    ours = EveryGroup.start(recipe(size, "float32"), folder)
    drawn = disturbed(ours.draw(1, 0).select(torch.arange(2)))
    advantages = ours.advantages(drawn, None)
    loss, _ = ours.loss(torch.arange(2), drawn.rollout, None, advantages)
    loss.backward()
    expected, gradients = trl_loss(size, folder, scratch, drawn.rollout, advantages)
    off, whole = 0.0, 0.0
    for name, leaf in ours.weights.named.items():
        assert leaf.grad is not None
        difference = leaf.grad - gradients[name]
        if name == EMBEDDING:
            # transformers lets no gradient into the row of the padding.
            difference[ours.config["pad_token_id"]] = 0
        off += float(difference.square().sum())
        whole += float(gradients[name].square().sum())
    return abs(float(loss.detach()) - expected), (off / whole) ** 0.5


def disturbed(drawn: Sampled) -> Sampled:
    """The same samples as of a policy a little away."""
    rollout = drawn.rollout
    noise = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(1))
    return replace(drawn, rollout=replace(rollout, log_probs=rollout.log_probs + 0.2 * noise * rollout.mask))


def trl_loss(
    size: str, folder: Path, scratch: Path, rollout: Rollout, advantages: Tensor
) -> tuple[float, dict[str, Tensor]]:
    """TRL's loss and gradients of given samples in float64, each read with its prefix and prompt."""
    trainer = trl_trainer(size, folder, scratch, UPDATES * SAMPLES, _alternating)
    model = trainer.model.double().train()
    trainer.current_gradient_accumulation_steps = 1
    asked = [[*rollout.prefix, *prompt] for prompt in rollout.prompts for _ in range(rollout.samples)]
    width = max(map(len, asked))
    prompts = torch.tensor([[*[0] * (width - len(row)), *row] for row in asked])
    valid = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in asked])
    batch = {
        "prompt_ids": prompts,
        "prompt_mask": valid,
        "completion_ids": rollout.responses,
        "completion_mask": rollout.mask.long(),
        "advantages": advantages[:, 0],
        "old_per_token_logps": rollout.log_probs,
        "num_items_in_batch": rollout.mask.sum(),
    }
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}
