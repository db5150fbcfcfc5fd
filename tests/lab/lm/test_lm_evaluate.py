"""pass@k against all choices of samples, its interval on drawn prompts, the loss against transformers'."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from threegates.errors import RecipeError
from threegates.estimates.accuracy import base_accuracy
from threegates.lab.lm.evaluate import evaluation_frame, negative_log_likelihood, pass_at_k, share_of_prompts
from threegates.lab.lm.tasks import TASKS


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(1, 5))
def test_pass_at_k_is_the_share_of_choices_that_hold_a_right_sample(table, k):
    found = pass_at_k(torch.tensor(table), k)
    for row, value in zip(table, found.tolist(), strict=True):
        chosen = [any(row[place] for place in places) for places in combinations(range(5), k)]
        assert value == pytest.approx(np.mean(chosen), abs=1e-12)


def test_pass_at_k_is_unbiased():
    """Over all tables of eight samples of a prompt that is right with chance .3, weighed by their chance."""
    p, n, k = 0.3, 8, 3
    counts = torch.arange(n + 1)
    tables = torch.arange(n)[None] < counts[:, None]
    weights = torch.tensor(stats.binom.pmf(counts.numpy(), n, p))
    assert float((weights * pass_at_k(tables, k)).sum()) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


@pytest.mark.parametrize("k", [0, 5])
def test_more_than_all_samples_are_refused(k):
    with pytest.raises(RecipeError, match=f"pass@{k} cannot be estimated from 4") as caught:
        pass_at_k(torch.ones(2, 4, dtype=torch.bool), k)
    assert "from 1 to 4" in str(caught.value)


@pytest.mark.parametrize("hits", [0, 1, 20, 39, 40])
def test_of_one_sample_a_prompt_the_interval_is_wilson_s(hits):
    values = torch.arange(40) < hits
    found = share_of_prompts(values.double())
    trials = 40 if hits in (0, 40) else 39
    oracle = stats.binomtest(hits, 40).proportion_ci(0.95, "wilson")
    assert found.value == hits / 40
    # The sample variance has one degree of freedom less, so the interval is that of 39 trials.
    assert found.low == pytest.approx(oracle.low, abs=0.003 if trials < 40 else 1e-12)
    assert found.high == pytest.approx(oracle.high, abs=0.003 if trials < 40 else 1e-12)


@pytest.mark.parametrize(("a", "b"), [(2, 2), (0.3, 0.7), (8, 0.8), (50, 50)])
@pytest.mark.parametrize("k", [1, 8])
def test_the_interval_covers_the_share_of_all_prompts_as_often_as_it_says(a, b, k):
    """Prompts whose chances follow Beta(a, b), eight samples each; the truth by integration."""
    rng, prompts, draws = np.random.default_rng(int(10 * a + k)), 64, 1500
    chances = stats.beta(a, b)
    truth = chances.expect(lambda p: 1 - (1 - p) ** k)
    covered = 0
    for _ in range(draws):
        right = rng.random((prompts, 8)) < rng.beta(a, b, prompts)[:, None]
        found = share_of_prompts(pass_at_k(torch.from_numpy(right), k))
        covered += found.low <= truth <= found.high
    assert covered / draws >= 0.92
    # No wider than it has to be, but where nearly every prompt is solved and none shows a spread.
    assert covered / draws <= 0.98 or truth > 0.95


def test_the_interval_is_that_of_prompts_and_not_of_samples():
    """Eight samples that always agree say no more than one."""
    once = (torch.arange(50) < 20).double()
    assert share_of_prompts(pass_at_k(once[:, None].bool().expand(50, 8), 1)) == share_of_prompts(once)


def test_the_ends_have_a_width_and_stay_inside():
    none, every = share_of_prompts(torch.zeros(30)), share_of_prompts(torch.ones(30))
    assert (none.value, none.low) == (0, 0)
    assert 0 < none.high < 0.2
    assert (every.value, every.high) == (1, 1)
    assert every.low == pytest.approx(1 - none.high)
    assert share_of_prompts(torch.tensor([1.0])).low > 0


def test_the_frame_is_read_as_all_final_evaluations_are():
    task = TASKS["dates"]
    problems = task.problems(True)[:3]
    right = torch.tensor([[True, False], [True, True], [False, False]])
    frame = evaluation_frame(task, problems, right)
    assert frame["correct"].tolist() == [1, 2, 0]
    assert frame["samples"].tolist() == [2, 2, 2]
    assert frame["prompt"].tolist() == [problem.query for problem in problems]
    assert base_accuracy(frame.assign(method=None)) == float(pass_at_k(right, 1).mean())


def test_the_loss_is_that_of_transformers():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2
        )
        model = LlamaForCausalLM(config).eval()
        ids = torch.randint(50, (20,))
    with torch.no_grad():
        done = model(ids[None], labels=ids[None])
    assert negative_log_likelihood(done.logits[0], ids) == pytest.approx(float(done.loss), rel=1e-6)
    assert negative_log_likelihood(torch.zeros(20, 50), ids) == pytest.approx(np.log(50), rel=1e-6)
