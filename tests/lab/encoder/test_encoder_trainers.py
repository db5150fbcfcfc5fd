"""GRPO, cross-entropy and RFT of a tiny encoder: what is rewarded, what is learnt from, what moves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lab.encoder.tiny_encoder import write_tiny_encoder
from threegates.errors import RecipeError
from threegates.lab.encoder.policy import Encoder, log_policy, right_places
from threegates.lab.encoder.rl import EncoderPolicyTrainer
from threegates.lab.encoder.sft import EncoderSupervisedTrainer
from threegates.lab.encoder.trainer import EncoderTrainer
from threegates.lab.kl import k3
from threegates.lab.recipe import EncoderRLRecipe, EncoderSFTRecipe

COMMON: dict[str, Any] = {
    "base": "b", "data": "numbers", "seed": 3, "steps": 6, "learning_rate": 2e-3, "warmup": 2,
    "minibatches": 2, "prompts": 16, "samples": 8, "evaluate_every": 3,
}  # fmt: skip
KINDS = ("grpo", "answers", "rft")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder", seed=1)


def _trainer(kind: str, tiny: Path, **changes: Any) -> EncoderTrainer:
    if kind == "grpo":
        return EncoderPolicyTrainer.start(EncoderRLRecipe(name=kind, **(COMMON | changes)), tiny)
    recipe = EncoderSFTRecipe(name=kind, source=kind, **(COMMON | changes))  # type: ignore[arg-type]
    return EncoderSupervisedTrainer.start(recipe, tiny)


# ----------------------------------------------------------------------------------- reward and loss


def test_the_reward_is_one_for_the_right_candidate_and_minus_one_for_any_other(tiny):
    trainer = _trainer("grpo", tiny)
    assert isinstance(trainer, EncoderPolicyTrainer)
    places = trainer.draw(1)
    actions = torch.arange(8).expand(len(places), 8)
    for item, rewards in zip(trainer.chosen(places), trainer.rewards(places, actions).tolist(), strict=True):
        assert rewards == [1.0 if word == item.answer else -1.0 for word in item.candidates]


def test_actions_are_drawn_from_the_policy_anew_at_every_step(tiny):
    trainer = _trainer("grpo", tiny, samples=4000)
    log_probs = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01]]).log()
    drawn = trainer.sample(log_probs, "actions", 1)
    shares = torch.stack([(drawn == place).float().mean(1) for place in range(4)], 1)
    torch.testing.assert_close(shares, log_probs.exp(), atol=0.03, rtol=0)
    assert torch.equal(drawn, trainer.sample(log_probs, "actions", 1))
    assert not torch.equal(drawn, trainer.sample(log_probs, "actions", 2))


def test_the_grpo_loss_and_its_gradient_equal_the_plain_formula(tiny):
    """Off the sampling policy, so that ratios are not one and some are clipped."""
    trainer = _trainer("grpo", tiny)
    assert isinstance(trainer, EncoderPolicyTrainer)
    generator = torch.Generator().manual_seed(4)
    places = trainer.draw(2)
    old = torch.randn(16, 8, generator=generator).log_softmax(1)
    logits = (old + 0.4 * torch.randn(16, 8, generator=generator)).requires_grad_()
    actions = torch.randint(0, 8, (16, 8), generator=generator)
    advantages = torch.randn(16, 8, generator=generator)
    loss, clipped = trainer.loss(logits.log_softmax(1), places, actions, old, advantages)
    (gradient,) = torch.autograd.grad(loss, logits)
    total, beyond = torch.zeros(()), 0
    log_probs = logits.log_softmax(1)
    for row in range(16):
        for action, advantage in zip(actions[row], advantages[row], strict=True):
            new, before = log_probs[row, action], old[row, action]
            ratio = (new - before).exp()
            plain, cut = ratio * advantage, ratio.clamp(0.8, 1.2) * advantage
            beyond += int(cut < plain)
            total = total - torch.minimum(plain, cut)
            total = total + 1e-3 * k3(new, trainer.base[places[row], action])
    (expected,) = torch.autograd.grad(total / 128, logits)
    assert float(loss.detach()) == pytest.approx(float(total.detach()) / 128, rel=1e-5)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)
    assert clipped == pytest.approx(beyond / 128)
    assert 0 < beyond < 128


def test_a_step_of_grpo_learns_from_its_own_rewards(tiny, monkeypatch):
    """The advantages that reach the loss are (R − mean)/std within the samples of one query."""
    trainer = _trainer("grpo", tiny)
    assert isinstance(trainer, EncoderPolicyTrainer)
    seen = []
    loss = trainer.loss

    def noted(log_probs, places, actions, old, advantages):
        seen.append((trainer.rewards(places, actions), advantages))
        return loss(log_probs, places, actions, old, advantages)

    monkeypatch.setattr(trainer, "loss", noted)
    row = trainer.step(1)
    rewards, advantages = (torch.cat(parts) for parts in zip(*seen, strict=True))
    expected = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(advantages, expected)
    assert row["reward"] == pytest.approx(float(rewards.mean()))
    assert row["advantage_scale"] == pytest.approx(float(expected.square().mean().sqrt()), rel=1e-5)
    assert len(seen) == trainer.updates == 2


def test_cross_entropy_is_the_surprise_at_the_right_candidate(tiny):
    trainer = _trainer("answers", tiny)
    assert isinstance(trainer, EncoderSupervisedTrainer)
    places, weights = trainer.examples(1)
    assert weights.tolist() == [1.0] * 16
    log_probs = trainer.log_policy(places).detach()
    expected = [-float(row[item.right]) for row, item in zip(log_probs, trainer.chosen(places), strict=True)]
    assert float(trainer.loss(log_probs, places, weights)) == pytest.approx(sum(expected) / 16, rel=1e-5)


def test_rft_counts_each_item_by_the_bases_own_right_samples(tiny):
    """Weights come from the frozen base: they stay the same however far the policy has moved."""
    trainer = _trainer("rft", tiny, samples=4000)
    assert isinstance(trainer, EncoderSupervisedTrainer)
    places, weights = trainer.examples(1)
    share = trainer.base[places].exp().gather(1, trainer.right(places)[:, None])[:, 0]
    torch.testing.assert_close(weights / 4000, share, atol=0.03, rtol=0)
    with torch.no_grad():
        trainer.weights.master.add_(0.1)
    trainer.weights.refresh()
    assert torch.equal(trainer.examples(1)[1], weights)
    log_probs = trainer.log_policy(places).detach()
    taken = log_probs.gather(1, trainer.right(places)[:, None])[:, 0]
    expected = -float((weights * taken).sum() / weights.sum())
    assert float(trainer.loss(log_probs, places, weights)) == pytest.approx(expected, rel=1e-5)


def test_rft_of_a_base_that_is_never_right_is_refused(tiny):
    trainer = _trainer("rft", tiny)
    trainer.base = torch.full_like(trainer.base, -1e4)
    wrong = (trainer.right(torch.arange(len(trainer.train))) + 1) % 8
    trainer.base[torch.arange(len(wrong)), wrong] = 0.0
    with pytest.raises(RecipeError, match="almost never right") as caught:
        trainer.step(1)
    assert "rft, step 1" in str(caught.value)


# -------------------------------------------------------------------------------------- what is learnt


def test_grpo_raises_the_expected_accuracy_on_what_it_trains_on(tiny):
    """From a random encoder, which answers one in eight."""
    trainer = _trainer("grpo", tiny, prompts=32, learning_rate=1e-3)
    assert trainer.evaluate(0)["pass_at_1_train"] == pytest.approx(1 / 8, abs=0.02)
    for index in range(1, 31):
        trainer.step(index)
    assert trainer.evaluate(30)["pass_at_1_train"] > 0.18


def test_cross_entropy_lowers_the_surprise_at_what_it_trains_on(tiny):
    """Below that of knowing nothing, from a random encoder that is sure of wrong answers."""
    trainer = _trainer("answers", tiny, prompts=64, learning_rate=1e-3)
    right = right_places(trainer.train)[:, None]
    assert float(-trainer.base.gather(1, right).mean()) > math.log(8) + 0.3
    for index in range(1, 31):
        trainer.step(index)
    with torch.no_grad():
        after = log_policy(trainer.encoder, trainer.weights.named, trainer.train)
    assert float(-after.gather(1, right).mean()) < math.log(8) - 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_looks_at_a_held_out_item(tiny, kind):
    trainer = _trainer(kind, tiny)
    queries = {item.query for item in trainer.held_out}
    drawn = {item.query for index in range(1, 20) for item in trainer.chosen(trainer.draw(index))}
    assert drawn.isdisjoint(queries)
    assert len(drawn) > 0.6 * len(trainer.train)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_blocks_move_and_the_checkpoint_has_every_parameter(tiny, kind):
    trainer = _trainer(kind, tiny)
    trainer.step(1)
    written, base = trainer.contents(), Encoder.open(tiny)
    assert written.tensors.keys() == {name for name, _ in base.module.named_parameters()}
    for name, tensor in base.frozen().items():
        assert torch.equal(written.tensors[name], tensor), name
    moved = [
        name for name, tensor in base.trained().items() if not torch.equal(written.tensors[name], tensor)
    ]
    assert len(moved) == len(base.trained())


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_trainer_continues_bit_for_bit(tiny, kind):
    whole, before, after = (_trainer(kind, tiny) for _ in range(3))
    for index in range(1, 7):
        expected = whole.logged_step(index)
    for index in range(1, 4):
        before.logged_step(index)
    after.load_state({name: tensor.clone() for name, tensor in before.state().items()}, before.updates)
    for index in range(4, 7):
        resumed = after.logged_step(index)
    assert torch.equal(whole.weights.master, after.weights.master)
    assert str(resumed) == str(expected)
    assert whole.updates == after.updates == 12


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_the_run(tiny, kind):
    first, same, other = (_trainer(kind, tiny, seed=seed) for seed in (3, 3, 4))
    for trainer in (first, same, other):
        trainer.step(1)
    assert torch.equal(first.weights.master, same.weights.master)
    assert not torch.equal(first.weights.master, other.weights.master)


# ----------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_log_have_evaluations_where_due(tiny, kind):
    trainer = _trainer(kind, tiny)
    rows = [trainer.logged_step(index) for index in range(1, 7)]
    measured = ("pass_at_1", *trainer.extra_columns)
    for index, row in enumerate(rows, start=1):
        assert all((name in row) == (index % 3 == 0) for name in measured)
        assert row["updates"] == 2 * index
        assert ("clip_fraction" in row) == (kind == "grpo")
    if kind == "grpo":
        assert all({"reward", "kl", "entropy", "length", "advantage_scale"} <= set(row) for row in rows)


def test_an_evaluation_is_exact_on_every_held_out_item(tiny):
    """KL against its sum by hand; accuracy against the drawn one of many samples."""
    trainer = _trainer("answers", tiny, learning_rate=2e-2)
    assert trainer.evaluate(0)["kl"] == pytest.approx(0.0, abs=1e-6)
    for index in range(1, 4):
        trainer.step(index)
    found = trainer.evaluate(3)
    with torch.no_grad():
        here = log_policy(trainer.encoder, trainer.weights.named, trainer.held_out).double()
    base = trainer.base_held_out.double()
    assert found["kl"] == pytest.approx(float((here.exp() * (here - base)).sum(1).mean()), rel=1e-4)
    assert found["kl"] > 1e-3
    right = torch.tensor([item.right for item in trainer.held_out])
    drawn = torch.multinomial(here.exp(), 4000, True, generator=torch.Generator().manual_seed(1))
    assert found["pass_at_1"] == pytest.approx(float((drawn == right[:, None]).double().mean()), abs=0.01)
    assert found["reward"] == pytest.approx(2 * found["pass_at_1"] - 1)
    frame = trainer.final_evaluation()
    assert len(frame) == len(trainer.held_out)
    assert frame["correct"].mean() == pytest.approx(found["greedy"])
    assert frame["probability"].mean() == pytest.approx(found["pass_at_1"], rel=1e-5)
    assert ((frame["chosen"] == frame["answer"]) == (frame["correct"] == 1)).all()
