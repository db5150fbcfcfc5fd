"""GRPO, DAPO and REINFORCE++ against the papers' formulas, worked out in plain Python floats.

One batch serves all: four responses to two prompts, of one to three tokens, with ratios on both sides of
every clipping bound and advantages of both signs.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import RecipeError
from threegates.lab.algorithms.table import ALGORITHMS, algorithm, own_trainer
from threegates.lab.kl import ESTIMATORS, k3
from threegates.lab.objectives import (
    batch_advantages,
    group_advantages,
    keep_informative,
    outcome_rewards,
    policy_loss,
    tilted_kl,
    with_kl,
)

# log π, log π_old and log π_ref of every token, response by response.
NEW = [[-0.9, -1.3, -0.4], [-2.0, -0.7], [-0.35], [-1.1, -0.2, -3.0]]
OLD = [[-1.0, -1.55, -0.1], [-1.6, -0.95], [-0.60], [-1.1, -0.44, -2.7]]
REFERENCE = [[-0.8, -1.5, -0.6], [-2.2, -0.7], [-0.55], [-1.0, -0.3, -2.5]]
REWARDS = [1.0, -1.0, 1.0, -1.0]
GROUPS = [[0, 1], [2, 3]]
LENGTH = 3
# A KL weight large enough that a wrong KL term would show.
BETA = 0.3
# Algorithms of the one objective that this module states; another's loss has tests of its own.
OF_ONE_OBJECTIVE = [name for name in ALGORITHMS if own_trainer(name) is None]
EVERY = {name: algorithm(name) for name in OF_ONE_OBJECTIVE}
RULES = {name: replace(rules, kl_weight=BETA * (rules.kl != "none")) for name, rules in EVERY.items()}


def padded(rows: list[list[float]], fill: float = 0.0) -> torch.Tensor:
    return torch.tensor([row + [fill] * (LENGTH - len(row)) for row in rows])


MASK = padded([[1.0] * len(row) for row in NEW]).bool()


# ------------------------------------------------------------------- the formulas, in plain floats


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def deviation(values: list[float]) -> float:
    return math.sqrt(sum((v - mean(values)) ** 2 for v in values) / (len(values) - 1))


def grouped(rewards: list[float]) -> list[list[float]]:
    """Every token gets its response's reward, standardised within the group (GRPO, §4.1.2)."""
    advantages = [0.0] * len(rewards)
    for group in GROUPS:
        values = [rewards[i] for i in group]
        for i in group:
            advantages[i] = (rewards[i] - mean(values)) / deviation(values)
    return [[advantage] * len(row) for advantage, row in zip(advantages, NEW, strict=True)]


def whitened(rewards: list[float], beta: float) -> list[list[float]]:
    """A_t ∝ r − β Σ_{i≥t} log(π_old/π_ref), standardised over the batch (REINFORCE++, eqs 8–10)."""
    returns = []
    for reward, old, ref in zip(rewards, OLD, REFERENCE, strict=True):
        penalties = [o - r for o, r in zip(old, ref, strict=True)]
        returns.append([reward - beta * sum(penalties[t:]) for t in range(len(old))])
    tokens = [value for row in returns for value in row]
    return [[(value - mean(tokens)) / deviation(tokens) for value in row] for row in returns]


def surrogates(advantages: list[list[float]], low: float, high: float) -> list[list[float]]:
    """min(r A, clip(r, 1 − ε_low, 1 + ε_high) A) of every token."""
    terms = []
    for new, old, row in zip(NEW, OLD, advantages, strict=True):
        ratios = [math.exp(n - o) for n, o in zip(new, old, strict=True)]
        terms.append(
            [min(r * a, min(max(r, 1 - low), 1 + high) * a) for r, a in zip(ratios, row, strict=True)]
        )
    return terms


def penalties() -> list[list[float]]:
    """π_ref/π − log(π_ref/π) − 1 of every token."""
    return [
        [math.exp(r - n) - (r - n) - 1 for n, r in zip(new, ref, strict=True)]
        for new, ref in zip(NEW, REFERENCE, strict=True)
    ]


def expected_loss(name: str) -> float:
    if name == "grpo":
        gains, costs = surrogates(grouped(REWARDS), 0.2, 0.2), penalties()
        rows = [
            mean([g - BETA * c for g, c in zip(*row, strict=True)]) for row in zip(gains, costs, strict=True)
        ]
        return -mean(rows)
    if name == "dapo":
        gains = surrogates(grouped(REWARDS), 0.2, 0.28)
    else:
        gains = surrogates(whitened(REWARDS, BETA), 0.2, 0.2)
    return -mean([gain for row in gains for gain in row])


def our_advantages(name: str) -> torch.Tensor:
    rules, rewards = RULES[name], torch.tensor(REWARDS)
    if rules.advantage == "group":
        return group_advantages(rewards, 2)[:, None] * MASK
    return batch_advantages(rewards, padded(OLD) - padded(REFERENCE), MASK, rules.kl_weight)


def our_loss(name: str, log_probs: torch.Tensor) -> tuple[torch.Tensor, float]:
    reference = padded(REFERENCE, -9.0)
    return policy_loss(RULES[name], log_probs, padded(OLD, -7.0), reference, our_advantages(name), MASK)


@pytest.mark.parametrize("name", OF_ONE_OBJECTIVE)
def test_losses_equal_the_hand_worked_batch(name):
    loss, _ = our_loss(name, padded(NEW, -8.0))
    assert float(loss) == pytest.approx(expected_loss(name), abs=2e-6)


def test_the_hand_worked_losses_are_these_numbers():
    """Two responses a group with rewards ±1 have advantages ±1/√2; the rest is arithmetic."""
    a = 1 / math.sqrt(2)
    grpo = [
        mean([math.exp(0.1) * a, 1.2 * a, math.exp(-0.3) * a]),
        mean([-0.8 * a, -math.exp(0.25) * a]),
        1.2 * a,
        mean([-a, -math.exp(0.24) * a, -0.8 * a]),
    ]
    assert expected_loss("grpo") == pytest.approx(
        -mean(grpo) + BETA * mean([mean(row) for row in penalties()])
    )
    tokens = [math.exp(0.1), 1.28, math.exp(-0.3), -0.8, -math.exp(0.25), 1.28, -1, -math.exp(0.24), -0.8]
    assert expected_loss("dapo") == pytest.approx(-a * mean(tokens))


# ---------------------------------------------------------------------------------------- gradients


def plain_loss(name: str, log_probs: list[list[torch.Tensor]]) -> torch.Tensor:
    """The formulas again, token by token, on scalars that autograd follows."""
    rules = {"grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "reinforce++": (0.2, 0.2)}[name]
    advantages = whitened(REWARDS, BETA) if name == "reinforce++" else grouped(REWARDS)
    responses = []
    for i, row in enumerate(log_probs):
        gains = []
        for t, new in enumerate(row):
            ratio, a = torch.exp(new - OLD[i][t]), advantages[i][t]
            bounded = min(max(float(ratio.detach()), 1 - rules[0]), 1 + rules[1])
            gain = bounded * a + 0 * new if bounded * a < float(ratio.detach()) * a else ratio * a
            if name == "grpo":
                d = REFERENCE[i][t] - new
                gain = gain - BETA * (torch.exp(d) - d - 1)
            gains.append(gain)
        responses.append(gains)
    if name == "grpo":
        return -sum(sum(row) / len(row) for row in responses) / len(responses)
    tokens = [gain for row in responses for gain in row]
    return -sum(tokens) / len(tokens)


@pytest.mark.parametrize("name", OF_ONE_OBJECTIVE)
def test_gradients_equal_autograd_of_the_plain_formula(name):
    scalars = [[torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in row] for row in NEW]
    plain_loss(name, scalars).backward()
    log_probs = padded(NEW, -8.0).requires_grad_()
    our_loss(name, log_probs)[0].backward()
    for i, row in enumerate(scalars):
        for t, scalar in enumerate(row):
            assert float(log_probs.grad[i, t]) == pytest.approx(float(scalar.grad), abs=1e-6), (i, t)
    assert (log_probs.grad[~MASK] == 0).all()


def test_gradients_of_dapo_are_minus_advantage_times_ratio_where_nothing_clips():
    """Tokens clipped from above (A > 0) or from below (A < 0) have no gradient at all."""
    log_probs = padded(NEW).requires_grad_()
    our_loss("dapo", log_probs)[0].backward()
    a = 1 / math.sqrt(2)
    assert float(log_probs.grad[0, 0]) == pytest.approx(-a * math.exp(0.1) / 9)
    assert float(log_probs.grad[3, 1]) == pytest.approx(a * math.exp(0.24) / 9)
    for clipped in ((0, 1), (2, 0), (1, 0), (3, 2)):
        assert float(log_probs.grad[clipped]) == 0


# ------------------------------------------------------------------------------------ clipping, rules


def test_the_clip_fraction_counts_binding_tokens_of_the_mask():
    # 0,1 and 2,0 are clipped from above, 1,0 and 3,2 from below; 1,1 and 3,1 leave the interval with A < 0
    # and 0,2 with A > 0, where the clip does not bind. Padding would clip, were it counted.
    for name in ("grpo", "dapo"):
        assert our_loss(name, padded(NEW, -8.0))[1] == pytest.approx(4 / 9)
        assert our_loss(name, padded(OLD))[1] == 0


def test_clip_higher_leaves_dapo_room_where_grpo_clips():
    inside = torch.tensor([[math.log(1.25)]])
    zero, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    losses = {
        name: policy_loss(algorithm(name), inside, zero, inside, torch.ones(1, 1), mask)
        for name in OF_ONE_OBJECTIVE
    }
    assert losses["dapo"] == (pytest.approx(-1.25), 0.0)
    assert losses["grpo"] == (pytest.approx(-1.2), 1.0)
    assert losses["reinforce++"] == (pytest.approx(-1.2), 1.0)


def test_algorithms_differ_in_what_the_papers_say():
    grpo, dapo, reinforce = (algorithm(name) for name in ("grpo", "dapo", "reinforce++"))
    assert (grpo.advantage, dapo.advantage, reinforce.advantage) == ("group", "group", "batch")
    assert (grpo.average, dapo.average) == ("sequence", "token")
    assert (grpo.clip_low, grpo.clip_high) == (0.2, 0.2)
    assert (dapo.clip_low, dapo.clip_high) == (0.2, 0.28)
    assert grpo.kl_weight > 0
    assert reinforce.kl_weight > 0
    assert (grpo.kl, dapo.kl, reinforce.kl) == ("loss", "none", "reward")
    assert [a.name for a in EVERY.values() if a.dynamic_sampling] == ["dapo"]
    assert [a.name for a in EVERY.values() if a.overlong_buffer] == ["dapo"]


def test_an_unknown_algorithm_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="no algorithm 'ppo'") as caught:
        algorithm("ppo")
    assert "grpo | dapo | reinforce++" in str(caught.value)


# --------------------------------------------------------------------------------- rewards, advantages


def test_overlong_answers_lose_up_to_one_unit():
    """DAPO, eq. 13: nothing up to limit − buffer, then linear, one whole unit at the limit."""
    lengths = torch.tensor([1, 30, 31, 32, 33, 34])
    right = torch.ones(6, dtype=torch.bool)
    assert outcome_rewards(right, lengths, 34, 4).tolist() == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0])
    assert outcome_rewards(~right, lengths, 34, 4).tolist() == pytest.approx([-1, -1, -1.25, -1.5, -1.75, -2])
    assert outcome_rewards(right, lengths, 34, 0).tolist() == [1] * 6
    assert outcome_rewards(~right, lengths, 34, 0).tolist() == [-1] * 6


def test_equal_rewards_give_no_advantage_and_are_not_kept():
    rewards = torch.tensor([1.0, 1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1])
    advantages = group_advantages(rewards, 4)
    assert (advantages[:4] == 0).all()
    assert (advantages[8:] == 0).all()
    # One of four right: mean −1/2, deviation 1.
    assert advantages[4:8].tolist() == pytest.approx([-0.5, 1.5, -0.5, -0.5], abs=1e-5)
    assert keep_informative(rewards > 0, 4).tolist() == [1]
    assert keep_informative(rewards > 0, 12).tolist() == [0]
    assert keep_informative(rewards > 0, 1).tolist() == []


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8), st.floats(-3, 3))
def test_group_advantages_are_centred_and_blind_to_a_shift(rewards, shift):
    values = torch.tensor(rewards, dtype=torch.float64)
    advantages = group_advantages(values, 4)
    assert advantages.view(2, 4).mean(1).abs().max() < 1e-9
    torch.testing.assert_close(group_advantages(values + shift, 4), advantages, atol=1e-6, rtol=1e-6)


def test_group_advantages_do_not_mix_groups():
    one = group_advantages(torch.tensor([1.0, -1, 1, 1]), 2)
    two = group_advantages(torch.tensor([1.0, -1, -9, 5]), 2)
    assert torch.equal(one[:2], two[:2])


@pytest.mark.parametrize("weight", [0.0, 0.001, 0.5])
def test_batch_advantages_equal_the_formula_and_are_white(weight):
    kl = padded(OLD, 50.0) - padded(REFERENCE)
    advantages = batch_advantages(torch.tensor(REWARDS), kl, MASK, weight)
    for i, row in enumerate(whitened(REWARDS, weight)):
        assert advantages[i, : len(row)].tolist() == pytest.approx(row, abs=1e-5)
    chosen = advantages[MASK]
    assert float(chosen.mean()) == pytest.approx(0, abs=1e-6)
    assert float(chosen.std()) == pytest.approx(1, abs=1e-5)
    assert (advantages[~MASK] == 0).all()


def test_a_kl_penalty_lowers_its_own_token_and_those_before():
    rewards, kl = torch.tensor([1.0, 1.0]), torch.zeros(2, 3)
    kl[0, 1] = 1.0
    mask = torch.ones(2, 3, dtype=torch.bool)
    advantages = batch_advantages(rewards, kl, mask, 0.1)
    assert advantages[0, 0] == advantages[0, 1] < advantages[0, 2] == advantages[1, 0]


# ----------------------------------------------------------------------------------------------- k3


@given(st.floats(-20, 0), st.floats(-20, 0))
def test_k3_is_never_negative(log_prob, reference):
    values = torch.tensor([log_prob, reference], dtype=torch.float64)
    assert float(k3(values[0], values[1])) >= 0
    assert float(k3(values[0], values[0])) == 0


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)), min_size=2, max_size=6))
def test_k3_has_the_expectation_of_kl(masses):
    """Σ p k3 = Σ p log(p/q) exactly, for every pair of distributions on a few outcomes."""
    totals = [sum(column) for column in zip(*masses, strict=True)]
    p = torch.tensor([a / totals[0] for a, _ in masses], dtype=torch.float64)
    q = torch.tensor([b / totals[1] for _, b in masses], dtype=torch.float64)
    divergence = sum(float(a) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float((p * k3(p.log(), q.log())).sum()) == pytest.approx(divergence, abs=1e-12)


def test_k3_grows_away_from_equality():
    for direction in (1.0, -1.0):
        values = [float(k3(torch.tensor(-1.0), torch.tensor(-1.0 + direction * d))) for d in (0, 0.1, 0.5, 1)]
        assert all(a < b for a, b in pairwise(values))


# ---------------------------------------------------------------------------------- KL terms, the leash


def test_a_kl_term_of_ones_own_replaces_the_algorithms():
    grpo, dapo = algorithm("grpo"), algorithm("dapo")
    assert with_kl(grpo, None, "k2") is grpo
    assert with_kl(grpo, 0.0, "k3").kl == "none"
    changed = with_kl(dapo, 0.04, "k2")
    assert (changed.kl, changed.kl_weight, changed.kl_estimator) == ("loss", 0.04, "k2")
    assert replace(changed, kl="none", kl_weight=0.0, kl_estimator="k3") == dapo


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_term_is_that_estimators_mean_times_its_weight(estimator):
    torch.manual_seed(0)
    log_probs, reference = (-torch.rand(2, 3) for _ in range(2))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rest = (log_probs, log_probs, reference, torch.zeros(2, 3), mask)
    bare, _ = policy_loss(with_kl(algorithm("dapo"), 0.0, "k3"), *rest)
    with_term, _ = policy_loss(with_kl(algorithm("dapo"), 0.5, estimator), *rest)
    values = ESTIMATORS[estimator](log_probs, reference)[mask]
    assert float(with_term - bare) == pytest.approx(0.5 * float(values.mean()), abs=1e-6)


@pytest.mark.parametrize("weight", [0.5, 2.0, 10.0])
def test_the_tilted_target_is_as_far_as_the_enumerated_policy_says(weight):
    """Four samples, two right: the tilted policy over them by its definition."""
    correct = torch.tensor([True, True, False, False])
    policy = torch.full((4,), 0.25, dtype=torch.float64)
    rewards = correct.double() * 2 - 1
    tilted = policy * (rewards / weight).exp()
    tilted = tilted / tilted.sum()
    expected = float((tilted * (tilted / policy).log()).sum())
    assert tilted_kl(correct, 4, weight) == pytest.approx(expected, rel=1e-12)


def test_without_a_weight_the_target_has_only_right_answers():
    right, wrong = torch.tensor([True, False]), torch.tensor([False, False])
    assert tilted_kl(right, 2, 0.0) == pytest.approx(math.log(2))
    assert tilted_kl(right, 2, 1e-3) == pytest.approx(math.log(2))
    assert tilted_kl(wrong, 2, 0.0) == tilted_kl(torch.tensor([True, True]), 2, 0.5) == 0.0
    assert tilted_kl(torch.cat([right, wrong]), 2, 0.0) == pytest.approx(math.log(2) / 2)
