"""Random numbers of one step of one stream: no state is carried, so a resumed run repeats nothing."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def step_rng(seed: int, stream: str, step: int) -> np.random.Generator:
    """NumPy's random numbers of one step of one stream."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(stream.encode()), step]))


def step_generator(seed: int, stream: str, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Torch's random numbers of one step of one stream. Another kind of device gives other numbers."""
    state = int(step_rng(seed, stream, step).integers(0, 2**63 - 1))
    return torch.Generator(device).manual_seed(state)
