"""Minutes that `threegates preflight` estimates against what the measurement then takes, on three sizes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measure import Row
from threegates.checkpoints.pairs import align
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.writer import write_checkpoint
from threegates.jobs.costs import Costs, measured_costs
from threegates.jobs.nulls import founding_nulls
from threegates.measures.by_tensor import Shared
from threegates.measures.tensor_table import PairTable

SHAPES = {"s": (1536, 1536), "m": (8960, 1536), "l": (4096, 4096)}
NAME = "model.layers.0.mlp.up_proj.weight"
#: An estimate is right within this factor, either way.
FACTOR = 2.0


def rows(sizes: Sequence[str]) -> list[Row]:
    """A row a size; none where no size is ours."""
    chosen = [size for size in sizes if size in SHAPES]
    if not chosen:
        return []
    costs = measured_costs(["table"])["table"]
    return [_row(size, costs) for size in chosen]


def _row(size: str, costs: Costs) -> Row:
    with tempfile.TemporaryDirectory(prefix="threegates-preflight-") as folder:
        base, tuned = _pair(Path(folder), SHAPES[size])
        (row,) = align(base, tuned)
        estimated = costs.seconds(row)
        start = time.perf_counter()
        PairTable(base, tuned, "pair", nulls=founding_nulls()).rows(NAME, Shared())
        taken = time.perf_counter() - start
    m, n = SHAPES[size]
    right = 1 / FACTOR <= taken / estimated <= FACTOR
    return Row(
        "preflight's estimate of one matrix",
        f"{size} {m} × {n}",
        1e3 * estimated,
        "measured afterwards",
        1e3 * taken,
        right,
        f"within a factor of {FACTOR:g}",
    )


def _pair(folder: Path, shape: tuple[int, int]) -> tuple[Checkpoint, Checkpoint]:
    generator = torch.Generator().manual_seed(1)
    base = 0.02 * torch.randn(shape, generator=generator)
    tuned = base + 2e-5 * torch.randn(shape, generator=generator)
    for side, weight in (("base", base), ("tuned", tuned)):
        write_checkpoint(folder / side, {NAME: weight.bfloat16()}, {"model_type": "llama"})
    return Checkpoint.open(folder / "base"), Checkpoint.open(folder / "tuned")
