"""RL, SFT and RFT of a tiny language model: what is rewarded, what is read and learnt from, what moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.lab.lm.tiny_lm import write_tiny_lm
from threegates.errors import CheckpointError, RecipeError
from threegates.lab.algorithms.table import algorithm
from threegates.lab.lm.rl import LmPolicyTrainer, Sampled
from threegates.lab.lm.sft import LmSupervisedTrainer
from threegates.lab.lm.tasks import Problem
from threegates.lab.lm.trainer import LmTrainer
from threegates.lab.objectives import group_advantages, policy_loss
from threegates.lab.recipe import LmRLRecipe, LmSFTRecipe

COMMON: dict[str, Any] = {
    "base": "b", "data": "planted", "seed": 3, "steps": 6, "learning_rate": 2e-3, "warmup": 2,
    "prompts": 4, "samples": 4, "evaluate_every": 3, "evaluate_prompts": 6, "evaluate_samples": 2,
}  # fmt: skip
ALGORITHMS, SOURCES = ("grpo", "dapo", "reinforce++"), ("gold", "other-style", "rft")
KINDS = (*ALGORITHMS, *SOURCES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_lm(tmp_path_factory.mktemp("tiny") / "lm", seed=1)


def trainer_of(kind: str, tiny: Path, **changes: Any) -> LmTrainer:
    if kind in ALGORITHMS:
        return LmPolicyTrainer.start(LmRLRecipe(name=kind, algorithm=kind, **(COMMON | changes)), tiny)
    return LmSupervisedTrainer.start(LmSFTRecipe(name=kind, source=kind, **(COMMON | changes)), tiny)  # type: ignore[arg-type]


def policy_trainer(tiny: Path, kind: str = "grpo", **changes: Any) -> LmPolicyTrainer:
    trainer = trainer_of(kind, tiny, **changes)
    assert isinstance(trainer, LmPolicyTrainer)
    return trainer


def supervised(tiny: Path, kind: str, **changes: Any) -> LmSupervisedTrainer:
    trainer = trainer_of(kind, tiny, **changes)
    assert isinstance(trainer, LmSupervisedTrainer)
    return trainer


def rewarded(sampled: Sampled, marks: Sequence[Sequence[int]]) -> Sampled:
    """The same samples under other rewards."""
    return replace(sampled, rewarded=torch.tensor(marks, dtype=torch.bool).flatten())


# ------------------------------------------------------------------------------------ rewards and groups


def test_the_verifier_sees_the_text_before_the_newline(tiny):
    trainer = trainer_of("grpo", tiny, data="number-words")
    problem = trainer.task.problem("244")
    texts = [" two hundred and forty-four\nmore", " two hundred", "\n", " two hundred and forty-four"]
    ids = [trainer.tokenizer.encode(text) for text in texts]
    length = max(map(len, ids))
    responses = torch.tensor([[*row, *[0] * (length - len(row))] for row in ids])
    mask = torch.arange(length) < torch.tensor([len(row) for row in ids])[:, None]
    rollout = replace(
        trainer.sample(trainer.policy(), [problem], 4, torch.Generator().manual_seed(0)),
        responses=responses,
        mask=mask,
    )
    assert trainer.right(rollout, [problem]).tolist() == [True, False, False, True]


def test_a_random_reward_is_a_fair_coin_and_the_log_says_what_the_verifier_found(tiny):
    trainer = policy_trainer(tiny, reward="random", prompts=64)
    drawn = [trainer.draw(index, 0) for index in range(4)]
    coins, right = (torch.cat([getattr(one, name) for one in drawn]) for name in ("rewarded", "right"))
    assert abs(float(coins.float().mean()) - 0.5) < 5 * 0.5 / len(coins) ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([coins, right]).float())[0, 1])) < 5 / len(coins) ** 0.5
    expected = float(drawn[1].right.float().mean() * 2 - 1)
    assert trainer.step(1)["reward"] == pytest.approx(expected)
    assert torch.equal(
        trainer_of("grpo", tiny).draw(1, 0).rewarded, trainer_of("grpo", tiny).draw(1, 0).right
    )  # type: ignore[attr-defined]


def test_dynamic_sampling_replaces_groups_that_say_nothing(tiny, monkeypatch):
    trainer = policy_trainer(tiny, "dapo")
    real = LmPolicyTrainer.draw
    marks = {
        0: [[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]],
        1: [[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]],
        2: [[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]],
    }
    drawn: list[Sampled] = []

    def planted(self: LmPolicyTrainer, index: int, attempt: int) -> Sampled:
        drawn.append(rewarded(real(self, index, attempt), marks[attempt]))
        return drawn[-1]

    monkeypatch.setattr(LmPolicyTrainer, "draw", planted)
    first = trainer.draw(1, 0)
    drawn.clear()
    batch, replaced, tokens = trainer.batch(1, first)
    expected = [[0, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
    assert batch.rewarded.view(4, 4).int().tolist() == expected
    assert len(drawn) == 2 and replaced == 2 + 3
    assert tokens == first.rollout.tokens + sum(one.rollout.tokens for one in drawn)
    assert batch.rollout.prompts[2] == drawn[0].rollout.prompts[2]


# ------------------------------------------------------------------------------------------- the loss


def unshared_loss(trainer: LmPolicyTrainer, batch: Sampled, tiny: Path) -> tuple[Tensor, dict[str, Tensor]]:
    """The whole batch's loss and gradients by transformers, a row at a time, nothing skipped."""
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    rollout, rows = batch.rollout, []
    for row in range(len(rollout)):
        before = [*rollout.prefix, *rollout.prompts[row // rollout.samples]]
        own = rollout.responses[row][rollout.mask[row]]
        logits = model(torch.tensor([[*before, *own.tolist()]])).logits[0, len(before) - 1 : -1]
        found = logits.log_softmax(-1).gather(1, own[:, None])[:, 0]
        rows.append(torch.nn.functional.pad(found, (0, rollout.responses.shape[1] - len(own))))
    log_probs = torch.stack(rows)
    advantages = group_advantages(batch.rewarded * 2.0 - 1, rollout.samples)[:, None] * rollout.mask
    loss, _ = policy_loss(
        trainer.rules, log_probs, rollout.log_probs, log_probs.detach(), advantages, rollout.mask
    )
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("average", ["sequence", "token"])
@pytest.mark.parametrize(
    "marks", [[[1, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]], [[1, 0, 0, 0]] * 4]
)
def test_loss_and_gradient_are_those_of_all_groups_read_apart_by_transformers(tiny, average, marks):
    rules = replace(algorithm("grpo"), average=average)
    trainer = policy_trainer(tiny, computing="float32", objective=rules)
    batch = rewarded(trainer.draw(1, 0), marks)
    advantages = trainer.advantages(batch, None)
    groups = torch.arange(4)
    silent = [len(set(row)) == 1 for row in marks]
    assert trainer.read(groups, batch.rollout, advantages).tolist() == [g for g in range(4) if not silent[g]]
    loss, _ = trainer.loss(groups, batch.rollout, None, advantages)
    loss.backward()
    expected, gradients = unshared_loss(trainer, batch, tiny)
    torch.testing.assert_close(loss.detach(), expected, atol=1e-6, rtol=1e-5)
    for name, leaf in trainer.weights.named.items():
        assert leaf.grad is not None
        torch.testing.assert_close(leaf.grad, gradients[name], atol=1e-5, rtol=1e-4)


def test_with_kl_in_the_loss_every_group_is_read(tiny):
    trainer = policy_trainer(tiny, kl_weight=0.1)
    batch = rewarded(trainer.draw(1, 0), [[0, 0, 0, 0]] * 4)
    nothing = trainer.advantages(batch, None)
    assert not nothing.any()
    assert trainer.read(torch.arange(4), batch.rollout, nothing).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_a_step_without_an_informative_group_is_a_step(tiny, monkeypatch, kind):
    """Nothing moves at first; later the optimiser's momentum and decay go on, as with a gradient of zero."""
    real = LmPolicyTrainer.draw
    silenced = [1, 3]

    def planted(self: LmPolicyTrainer, index: int, attempt: int) -> Sampled:
        sampled = real(self, index, attempt)
        return replace(sampled, rewarded=torch.zeros_like(sampled.rewarded)) if index in silenced else sampled

    monkeypatch.setattr(LmPolicyTrainer, "draw", planted)
    rules = replace(algorithm(kind), overlong_buffer=0)
    trainer = policy_trainer(tiny, kind, objective=rules, weight_decay=0.0)
    start = trainer.weights.master.detach().clone()
    first = trainer.step(1)
    assert trainer.updates == 2 and torch.equal(trainer.weights.master, start)
    assert {first[name] for name in ("loss", "grad_norm", "clip_fraction", "informative")} == {0.0}
    trainer.step(2)
    moved = trainer.weights.master.detach().clone()
    moments = {name: t.clone() for name, t in trainer.optimiser.state[trainer.weights.master].items()}
    third = trainer.step(3)
    assert trainer.updates == 6 and third["grad_norm"] == 0
    assert torch.isfinite(trainer.weights.master).all() and not torch.equal(trainer.weights.master, moved)
    after = trainer.optimiser.state[trainer.weights.master]
    torch.testing.assert_close(after["exp_avg"], moments["exp_avg"] * 0.9**2)
    assert float(after["step"]) == 6


def test_the_kl_of_the_objective_is_that_of_its_recipe(tiny):
    assert policy_trainer(tiny).rules.kl == "none"
    assert policy_trainer(tiny, "reinforce++").rules.kl == "none"
    assert policy_trainer(tiny, "reinforce++", kl_weight=None).rules.kl == "reward"
    leashed = policy_trainer(tiny, kl_weight=0.5, kl_estimator="k2")
    assert (leashed.rules.kl, leashed.rules.kl_weight, leashed.rules.kl_estimator) == ("loss", 0.5, "k2")
    assert leashed.step(1)["kl"] == pytest.approx(0.0, abs=1e-3)
    leashed.step(2)
    assert leashed.step(3)["kl"] > 1e-3


# ----------------------------------------------------------------------------------- what SFT learns from


def texts(trainer: LmSupervisedTrainer, index: int) -> list[tuple[str, str]]:
    rollout = trainer.examples(index)
    rows = zip(rollout.responses.tolist(), rollout.lengths.tolist(), strict=True)
    answers = [trainer.tokenizer.decode(ids[:length]) for ids, length in rows]
    return [(trainer.tokenizer.decode(ids), text) for ids, text in zip(rollout.prompts, answers, strict=True)]


@pytest.mark.parametrize("kind", ["gold", "other-style"])
def test_written_answers_are_those_of_the_task_with_the_end_of_their_line(tiny, kind):
    found = texts(supervised(tiny, kind), 1)
    assert len(found) == len({question for question, _ in found}) == 16
    for question, answer in found:
        query = question.removesuffix(" =")
        assert answer == (f" B{query}\n" if kind == "gold" else f" A{query}\n")


def test_rft_learns_from_the_bases_own_right_samples_and_from_all_of_them(tiny):
    trainer = supervised(tiny, "rft")
    drawn = policy_trainer(tiny).draw(1, 0)
    found = texts(trainer, 1)
    assert len(found) == int(drawn.right.sum()) > 1
    for question, answer in found:
        assert trainer.task.is_right(Problem(question.removesuffix(" ="), ""), answer)
    before = texts(trainer, 2)
    with torch.no_grad():
        trainer.weights.master.mul_(0.5)
    trainer.weights.refresh()
    # The base is frozen: what the present weights would write is nothing to it.
    assert texts(trainer, 2) == before


def test_a_base_that_is_never_right_is_given_up(tiny):
    trainer = trainer_of("rft", tiny, data="number-words", prompts=2, samples=2)
    with pytest.raises(RecipeError, match="almost never right"):
        trainer.step(1)


def test_the_loss_of_sft_is_that_of_transformers(tiny):
    trainer = supervised(tiny, "gold", computing="float32")
    rollout = trainer.examples(1)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    prompt = len(rollout.prefix) + len(rollout.prompts[0])
    ids = torch.tensor([[*rollout.prefix, *asked] for asked in rollout.prompts])
    ids = torch.cat([ids, rollout.responses], 1)
    labels = ids.clone()
    labels[:, :prompt] = -100
    expected = model(ids, labels=labels).loss
    assert float(trainer.loss(rollout).detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


# -------------------------------------------------------------------------------------- what moves, and how


@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_move_every_weight_and_no_column_is_all_zero(tiny, kind):
    trainer = trainer_of(kind, tiny, minibatches=4, evaluate_every=2, learning_rate=5e-2)
    rows = [trainer.logged_step(index) for index in (1, 2)]
    now, before = (trainer.weights._views(flat) for flat in (trainer.weights.master, trainer.weights.initial))
    assert [name for name in now if torch.equal(now[name].float(), before[name].float())] == []
    allowed = set() if kind == "dapo" else {"resampled_groups"}
    # The verifier rejects the other style, and nothing else is learnt there.
    allowed |= {"pass_at_1", "greedy"} if kind == "other-style" else set()
    dead = {name for name in rows[1] if not any(row.get(name) for row in rows)} - allowed
    assert dead == set()
    assert all(value == value for row in rows for value in row.values())
    assert {"reward", "pass_at_1", "greedy", "kl", "entropy", "length", "tokens", "delta_norm"} <= set(
        rows[1]
    )
    assert ("pass_at_1" in rows[0], "informative" in rows[0]) == (False, kind in ALGORITHMS)


@pytest.mark.parametrize("computing", ["bfloat16", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_trainer_continues_bit_for_bit(tiny, kind, computing):
    whole, before, after = (trainer_of(kind, tiny, computing=computing) for _ in range(3))
    for index in range(1, 5):
        expected = whole.logged_step(index)
    for index in range(1, 3):
        before.logged_step(index)
    after.load_state({name: tensor.clone() for name, tensor in before.state().items()}, before.updates)
    for index in range(3, 5):
        resumed = after.logged_step(index)
    assert torch.equal(whole.weights.master, after.weights.master)
    assert str(resumed) == str(expected)
    assert whole.updates == after.updates == 8


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_run(tiny, kind):
    first, same, other = (trainer_of(kind, tiny, seed=seed) for seed in (3, 3, 4))
    for trainer in (first, same, other):
        trainer.step(1)
    assert torch.equal(first.weights.master, same.weights.master)
    assert not torch.equal(first.weights.master, other.weights.master)


def test_grpo_learns_the_planted_task_and_other_style_unlearns_it(tiny):
    taught, spoilt = (trainer_of(kind, tiny, learning_rate=1e-2) for kind in ("grpo", "other-style"))
    start = taught.evaluate(0)["pass_at_1"]
    for index in range(1, 26):
        taught.step(index)
        spoilt.step(index)
    assert 0.2 < start < 0.8
    assert taught.evaluate(25)["pass_at_1"] > 0.9
    assert spoilt.evaluate(25)["pass_at_1"] < 0.1


def test_a_folder_whose_tensors_are_not_of_its_config_is_refused(tiny, tmp_path):
    folder = write_tiny_lm(tmp_path / "lm")
    config = (
        (folder / "config.json").read_text().replace('"intermediate_size": 40', '"intermediate_size": 48')
    )
    (folder / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match="gate_proj"):
        trainer_of("grpo", folder)


def test_a_step_with_fewer_groups_than_updates_is_refused():
    with pytest.raises(ValueError, match="4 groups cannot be split into 5"):
        LmRLRecipe(name="x", algorithm="grpo", minibatches=5, **COMMON)
