"""Rollouts: groups chosen, joined and cut keep what belongs to each response."""

from __future__ import annotations

import torch

from threegates.lab.lm.rollout import Rollout, written


def numbered(lengths: list[int], first: int) -> Rollout:
    """Two samples a prompt; token t of row r is 100 r + t, its log-probability the negative of that."""
    responses = [[100 * (first + row) + time for time in range(n)] for row, n in enumerate(lengths)]
    prompts = [[first + group] for group in range(len(lengths) // 2)]
    found = written([7, 8], prompts, responses)
    return Rollout(
        found.prefix, found.prompts, found.responses, found.mask, -found.responses.float(), found.entropy
    )


def rows(rollout: Rollout) -> list[list[int]]:
    return [own[kept].tolist() for own, kept in zip(rollout.responses, rollout.mask, strict=True)]


def test_written_responses_are_masked_behind_their_ends():
    rollout = numbered([3, 1, 2, 4], 0)
    assert rows(rollout) == [[0, 1, 2], [100], [200, 201], [300, 301, 302, 303]]
    assert (rollout.samples, rollout.tokens, rollout.lengths.tolist()) == (2, 10, [3, 1, 2, 4])


def test_chosen_groups_bring_their_rows_and_are_cut_to_the_longest():
    rollout = numbered([3, 1, 2, 4, 2, 2], 0)
    chosen = rollout.select(torch.tensor([2, 0]))
    assert chosen.prompts == ((2,), (0,)) and chosen.responses.shape == (4, 3)
    assert rows(chosen) == [[400, 401], [500, 501], [0, 1, 2], [100]]
    assert torch.equal(chosen.log_probs[chosen.mask], -chosen.responses[chosen.mask].float())


def test_joined_rollouts_are_padded_to_the_longest():
    joined = Rollout.join([numbered([1, 2], 0), numbered([4, 1], 5)])
    assert joined.prompts == ((0,), (5,)) and joined.responses.shape == (4, 4)
    assert rows(joined) == [[0], [100, 101], [500, 501, 502, 503], [600]]
    assert joined.samples == 2 and joined.tokens == 8
