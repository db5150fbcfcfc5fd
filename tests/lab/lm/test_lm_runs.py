"""Runs of the language model as folders: resumed to the same bytes, read by transformers, logged in full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from threegates.checkpoints.tensors import Checkpoint
from threegates.digest import file_digest
from threegates.lab import training as loop
from threegates.lab.columns import LOG_COLUMNS
from threegates.lab.lm import trainer as lm_trainer
from threegates.lab.lm.sampling import Policy, sample, uniform
from threegates.lab.lm.shape import LlamaShape
from threegates.lab.lm.tokenizer import Tokenizer
from threegates.lab.lm.trainer import read_base
from threegates.lab.randomness import step_generator
from threegates.lab.recipe import LmRLRecipe, LmSFTRecipe, LmTinyRecipe
from threegates.lab.runs import Run, execute, make_run
from threegates.lab.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "base": "lm-tiny", "data": "planted", "seed": 3, "steps": 4, "learning_rate": 3e-3, "prompts": 4,
    "samples": 4, "evaluate_every": 2, "evaluate_prompts": 4, "evaluate_samples": 2, "final_prompts": 6,
    "final_samples": 4,
}  # fmt: skip
BASE = LmTinyRecipe(name="lm-tiny", seed=1)
GRPO = LmRLRecipe(name="grpo", algorithm="grpo", checkpoint_steps=(1, 3), **SETTINGS)
RANDOM = LmRLRecipe(name="random", algorithm="dapo", reward="random", computing="float32", **SETTINGS)
SFT = LmSFTRecipe(name="sft", source="gold", **SETTINGS)


class Killed(BaseException):
    """Stands for a signal: no code of ours catches it."""


def _runs() -> list[Run]:
    base = make_run(BASE, None)
    return [base, *(make_run(recipe, base) for recipe in (GRPO, RANDOM, SFT))]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several shards, and a snapshot after every step."""
    monkeypatch.setattr(lm_trainer, "SHARD_BYTES", 16_000)
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab folder in which one run of every kind was trained without a break."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_trainer, "SHARD_BYTES", 16_000)
        for run in _runs():
            execute(folder, run)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "when.json")
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def test_a_finished_run_has_exactly_these_files(lab):
    for run in _runs()[1:]:
        steps = (1, 3, 4) if run.name == "grpo" else (4,)
        names = {path.name for path in (lab / "runs" / run.folder).iterdir()}
        written = {f"step-{step:06d}" for step in steps}
        assert names == {"run.json", "when.json", "log.parquet", "evaluation.parquet", *written}
    assert list((lab / "partial").iterdir()) == []


def test_logs_have_every_column_of_the_lab_and_the_language_models_own(lab):
    for run in _runs()[1:]:
        log = pd.read_parquet(lab / "runs" / run.folder / "log.parquet")
        assert tuple(log.columns) == (*LOG_COLUMNS, "greedy", "informative", "tokens")
        assert log["step"].tolist() == [1, 2, 3, 4] and log["updates"].tolist() == [2, 4, 6, 8]
        assert log["pass_at_1"].notna().tolist() == [False, True, False, True]
        assert log["delta_norm"].is_monotonic_increasing and log["tokens"].gt(0).all()
        assert log["informative"].notna().all() == (run.name != "sft")


def test_tuned_checkpoints_start_from_the_base_and_open_in_transformers(lab):
    base, grpo, *_ = _runs()
    start, end = Checkpoint.open(lab / base.checkpoint(0)), Checkpoint.open(lab / grpo.checkpoint(4))
    assert {info.dtype for info in end.infos.values()} == {"F32"} and end.config["dtype"] == "float32"
    assert len(list((lab / grpo.checkpoint(4)).glob("model-*-of-*.safetensors"))) > 2
    squared = sum(float((end.stored(name) - start.stored(name).float()).square().sum()) for name in end.infos)
    log = pd.read_parquet(lab / "runs" / grpo.folder / "log.parquet")
    assert squared**0.5 == pytest.approx(log["delta_norm"].iloc[-1], rel=1e-4)
    folder = lab / grpo.checkpoint(4)
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    text = "ab = Bab"
    assert AutoTokenizer.from_pretrained(folder).encode(text) == Tokenizer.open(folder).encode(text)
    assert torch.equal(model.model.norm.weight, end.stored("model.norm.weight"))


def test_the_final_evaluation_is_that_of_the_saved_weights(lab):
    """Counts come out again from the checkpoint, rounded as the forward pass rounds them."""
    grpo = _runs()[1]
    config, weights = read_base(lab / grpo.checkpoint(4))
    tokenizer = Tokenizer.open(lab / grpo.checkpoint(4))
    task = lm_trainer.task("planted")
    frame = pd.read_parquet(lab / "runs" / grpo.folder / "evaluation.parquet")
    problems = [task.problem(query) for query in frame["prompt"]]
    assert len(set(frame["prompt"])) == 6 and set(problems) <= set(task.problems(True))
    policy = Policy(
        {name: tensor.bfloat16() for name, tensor in weights.items()}, LlamaShape.of(config), torch.bfloat16
    )
    rollout = sample(
        policy,
        tokenizer.encode(task.prefix),
        [tokenizer.encode(task.question(problem)) for problem in problems],
        uniform(24, task.answer_tokens, step_generator(3, "final-evaluation/0", 4)),
        samples=4,
        length=task.answer_tokens,
        end=tokenizer.newline,
    )
    rows = zip(rollout.responses.tolist(), rollout.lengths.tolist(), strict=True)
    right = [
        task.is_right(problems[row // 4], tokenizer.answer(ids[:length]))
        for row, (ids, length) in enumerate(rows)
    ]
    assert frame["correct"].tolist() == [sum(right[start : start + 4]) for start in range(0, 24, 4)]


@pytest.mark.parametrize("index", [1, 2, 3], ids=["grpo", "random", "sft"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_killed_run_resumes_to_the_same_bytes(monkeypatch, tmp_path, lab, index, steps):
    run, other = _runs()[index], tmp_path
    (other / "runs").mkdir()
    (other / "runs" / _runs()[0].folder).symlink_to(lab / "runs" / _runs()[0].folder)
    step, done = Trainer.logged_step, []

    def limited(self: Trainer, index: int) -> dict[str, float]:
        if not resumed and index > steps:
            raise Killed
        done.append(index)
        return step(self, index)

    monkeypatch.setattr(Trainer, "logged_step", limited)
    resumed = False
    with pytest.raises(Killed):
        execute(other, run)
    resumed = True
    execute(other, run)
    assert done == [1, 2, 3, 4]
    assert _digests(other / "runs" / run.folder) == _digests(lab / "runs" / run.folder)
