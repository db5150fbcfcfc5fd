"""Random numbers of a step: decided by seed, stream and step, whatever was drawn before."""

from __future__ import annotations

import torch

from threegates.lab.randomness import step_generator, step_rng

KEYS = [(1, "a", 1), (2, "a", 1), (1, "b", 1), (1, "a", 2), (0, "a", 0)]


def test_a_steps_randomness_depends_on_seed_stream_and_step_alone():
    def draw(*key) -> tuple[int, ...]:
        return tuple(step_rng(*key).integers(0, 2**62, 4).tolist())

    assert len({draw(*key) for key in KEYS}) == len(KEYS)
    step_rng(1, "a", 1).random(1000)
    assert draw(1, "a", 1) == draw(1, "a", 1)


def test_so_does_torchs():
    def draw(*key) -> tuple[float, ...]:
        return tuple(torch.rand(4, generator=step_generator(*key)).tolist())

    assert len({draw(*key) for key in KEYS}) == len(KEYS)
    torch.rand(3)
    assert draw(1, "a", 1) == draw(1, "a", 1)
