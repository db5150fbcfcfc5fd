"""Laws of nulls against drawing their masks, and a whole pair with them against what one would write."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Row
from benchmarks.spectra import Svd, pair, svd
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.writer import write_checkpoint
from threegates.geometry.laws.law import Law
from threegates.geometry.laws.masks import Seen, see
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import Null, Observed
from threegates.geometry.stripes import dispersion
from threegates.jobs.nulls import founding_nulls
from threegates.measures.by_tensor import Shared
from threegates.measures.tensor_table import PairTable

SHAPES = {"s": (1536, 1536), "m": (1536, 8960), "l": (4096, 4096)}
#: Draws that are timed, and those that laws stand for: as many give a tail of 1 %.
TIMED, DRAWS = 5, 200
#: Of laws against 200 draws, and of a pair against two float64 SVDs alone, at size m.
LAWS_AIM, LAWS_GATE, PAIR_AIM, PAIR_GATE = 800.0, 300.0, 4.0, 2.5
#: Of a shift of singular values that were found in float64.
ROUNDING = 1e-12
_NAME = "model.layers.0.mlp.up_proj.weight"


def rows(sizes: Sequence[str]) -> list[Row]:
    """All rows of this file at these sizes."""
    chosen = {size: shape for size, shape in SHAPES.items() if size in sizes}
    return [row for size, shape in chosen.items() for row in measured(size, shape, TIMED)]


def measured(size: str, shape: tuple[int, int], draws: int) -> list[Row]:
    """Both rows of one pair; each way is timed once, or for draws as a mean over them."""
    base, tuned = pair(shape)
    label = f"{size} {shape[0]} × {shape[1]}"
    return [laws_row(label, base, tuned, draws), pair_row(label, base, tuned)]


def laws_row(label: str, base: Tensor, tuned: Tensor, draws: int) -> Row:
    """Overlaps with three targets and both dispersions under every null, by laws and by masks."""
    mask, targets = update_mask(base, tuned), _targets(base)
    norm = float((tuned.double() - base.double()).norm())
    ours, (seen, laws) = timed(partial(_laws, base, mask, targets, norm))
    theirs, accurate = 0.0, True
    for null, found in laws.items():
        taken, drawn = timed(partial(_drawn, null, seen, base, mask, targets, draws))
        theirs += taken * DRAWS / draws
        accurate &= all(_agree(law, values) for law, values in zip(found, drawn.T, strict=True))
    aims: dict[str, float] = {"aim": LAWS_AIM, "gate": LAWS_GATE} if label[0] == "m" else {}
    other = f"{DRAWS} masks of each, from {draws}"
    return Row("laws of all nulls", label, ours, other, theirs, accurate, "means within 4.5 s.e.", **aims)


def pair_row(label: str, base: Tensor, tuned: Tensor) -> Row:
    """A row of `threegates measure` with all nulls, end to end, against two float64 SVDs and nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        sides = opened(Path(folder), base, tuned)
        table = PairTable(*sides, "pair", axes=True, nulls=founding_nulls())
        ours, found = timed(lambda: table.rows(_NAME, Shared())["tensor"][0])
    theirs, (before, after) = timed(lambda: [svd(side, torch.float64) for side in (base, tuned)])
    aims: dict[str, float] = {"aim": PAIR_AIM, "gate": PAIR_GATE} if label[0] == "m" else {}
    accurate = abs(found["nss"] - _nss(before, after)) <= found["nss_error"] + ROUNDING
    return Row(
        "pair with all nulls",
        label,
        ours,
        "two float64 SVDs",
        theirs,
        accurate,
        "NSS within its bound",
        notes={"changed": found["changed"] / found["size"]},
        **aims,
    )


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of processor time of a call, and its result."""
    start = time.process_time()
    found = call()
    return 1e3 * (time.process_time() - start), found


def _targets(base: Tensor) -> list[Tensor]:
    """Half of the weights by size, half at random, and what is in the second alone."""
    low = base.abs() < base.abs().reshape(-1)[:: 1 + base.numel() // 100_000].median()
    blind = torch.rand(base.shape, generator=noise_generator(0, "benchmark")) < 0.5
    return [blind, low, blind & ~low]


def _laws(
    base: Tensor, mask: Tensor, targets: list[Tensor], norm: float
) -> tuple[Seen, dict[Null, list[Law]]]:
    seen = see(base, mask, targets, norm=norm)
    laws: dict[Null, list[Law]] = {}
    for null in founding_nulls():
        assert null.law is not None
        found = [null.law.overlap(seen, seen.inside(bit)) for bit in range(1, len(targets) + 1)]
        laws[null] = [*found, *null.law.dispersions(seen, base)]
        # What a reader is told: a p-value of each.
        for law in laws[null]:
            law.against(law.mean + 3 * law.sd, "two-sided")
    return seen, laws


def _drawn(
    null: Null, seen: Seen, base: Tensor, mask: Tensor, targets: list[Tensor], draws: int
) -> np.ndarray:
    scale = seen.scale if "scale" in null.matched_to else math.nan
    observed = Observed("run", _NAME, base, mask, seen.changed, scale)
    found = []
    for drawn in islice(null.sampler(observed, noise_generator(0, null.name)), draws):
        count = int(drawn.count_nonzero())
        found.append([*(int((drawn & one).count_nonzero()) / count for one in targets), *dispersion(drawn)])
    return np.array(found)


def _agree(law: Law, drawn: np.ndarray) -> bool:
    return abs(law.mean - float(drawn.mean())) <= 4.5 * law.sd / math.sqrt(len(drawn)) + 1e-12


def opened(folder: Path, base: Tensor, tuned: Tensor) -> list[Checkpoint]:
    """A pair of one matrix, written and opened."""
    for side, tensor in (("base", base), ("tuned", tuned)):
        write_checkpoint(folder / side, {_NAME: tensor}, {"model_type": "llama"})
    return [Checkpoint.open(folder / side) for side in ("base", "tuned")]


def _nss(before: Svd, after: Svd) -> float:
    return float((after.values - before.values).norm() / before.values.norm())
