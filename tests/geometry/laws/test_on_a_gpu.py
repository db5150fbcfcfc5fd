"""Laws on a GPU: counts of codes are the CPU's, and with them every law, to 1e-12."""

from __future__ import annotations

import pytest
import torch

from tests.planted import tensors
from threegates.geometry.laws.masks import see
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.table import NULLS
from threegates.jobs.nulls import FOUNDING

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("null", FOUNDING)
@pytest.mark.parametrize("name", ["power-law", "row-scaled", "clustered"])
def test_laws_are_the_cpu_s(null, name):
    base, target = tensors.family(name), tensors.target(name)
    noise = torch.randn(base.shape, generator=noise_generator(0, name))
    tuned = (base.double() * (1 + 2e-3 * noise)).bfloat16()
    norm = float((tuned.double() - base.double()).norm())
    found = []
    for device in ("cpu", "cuda"):
        weight, mask = base.to(device), update_mask(base, tuned).to(device)
        seen = see(weight, mask, [target.to(device)], norm=norm)
        law = NULLS[null].law
        found.append([law.overlap(seen, seen.inside(1)), *law.dispersions(seen, weight)])
    for cpu, cuda in zip(*found, strict=True):
        assert cpu.sd >= 0
        for at in (cpu.mean, cpu.low, 1.02 * cpu.mean):
            here, there = (one.against(at, "two-sided") for one in (cpu, cuda))
            for field in ("mean", "sd", "low", "high", "log10_p"):
                assert getattr(there, field) == pytest.approx(
                    getattr(here, field), rel=1e-12, abs=1e-12, nan_ok=True
                )
