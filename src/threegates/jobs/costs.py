"""How long measuring takes on this machine: the measuring code itself, timed on small made-up tensors.

Time of one tensor is modelled as

    t = e·mn + g·mn·min(m, n) + h·min(m, n)³

for a matrix in a block, and as t = s·(entries) for any other tensor: passes over the entries, products with
thin and square matrices, decompositions. The coefficients are fitted, not negative, to times of tensors that
are made in a temporary folder, so that they are those of the machine, its load and the installed code.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from threegates.checkpoints.formats.roles import block, is_matrix
from threegates.checkpoints.pairs import AlignedTensor, Status
from threegates.checkpoints.preflight import shape_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import on_device
from threegates.checkpoints.writer import write_checkpoint
from threegates.jobs.kinds.known import BY_TENSOR, KINDS
from threegates.jobs.nulls import with_nulls
from threegates.jobs.sources import Source, StudyPair
from threegates.measures.by_tensor import ByTensor, Shared

#: Shapes of the matrices that are timed: square and oblong, all beyond the size of plain decompositions.
PROBED = ((320, 320), (640, 640), (1024, 1024), (512, 2048))
#: Shape of the tensor outside blocks that is timed.
OUTSIDE = (4096, 512)
#: Change of the made-up update, relative to the weights' standard deviation: as in the lab's RL runs.
_STEP = 1e-3
_SCALE = 0.02


@dataclass(frozen=True)
class Costs:
    """Seconds of one kind of job on one process, by the terms of the model."""

    entry: float
    product: float
    cube: float
    outside: float

    def seconds(self, row: AlignedTensor) -> float:
        """Seconds of one tensor; one that is only reported is read once."""
        shape = shape_of(row)
        entries = math.prod(shape)
        if block(row.name) is None or not is_matrix(row.name, shape) or row.status is not Status.compared:
            return self.outside * entries
        return float(np.array(_terms(shape)) @ (self.entry, self.product, self.cube))


def measured_costs(kinds: Iterable[str], device: str = "cpu") -> dict[str, Costs]:
    """Costs of kinds of job that are measured by tensor; takes some seconds a kind."""
    with tempfile.TemporaryDirectory(prefix="threegates-costs-") as folder:
        base, tuned = (on_device(one, device) for one in _made_up(Path(folder)))
        return {kind: _fitted(_pair_of(kind, base, tuned)) for kind in kinds}


def _made_up(folder: Path) -> tuple[Checkpoint, Checkpoint]:
    """A pair of checkpoints, bf16 on both sides, whose update is small noise."""
    generator = torch.Generator().manual_seed(0)
    names = {_name(shape): shape for shape in PROBED} | {"model.embed_tokens.weight": OUTSIDE}
    base = {name: _SCALE * torch.randn(shape, generator=generator) for name, shape in names.items()}
    moved = {
        name: weight + _STEP * _SCALE * torch.randn(weight.shape, generator=generator)
        for name, weight in base.items()
    }
    config = {"model_type": "llama", "tie_word_embeddings": True}
    for side, tensors in (("base", base), ("tuned", moved)):
        stored = {name: weight.bfloat16() for name, weight in tensors.items()}
        write_checkpoint(folder / side, stored, config)
    return Checkpoint.open(folder / "base"), Checkpoint.open(folder / "tuned")


def _name(shape: Sequence[int]) -> str:
    return f"model.layers.{PROBED.index(tuple(shape))}.mlp.up_proj.weight"  # type: ignore[arg-type]


def _pair_of(kind: str, base: Checkpoint, tuned: Checkpoint) -> ByTensor:
    alone = StudyPair("probe", Source("base", base), Source("tuned", tuned))
    (cut,) = KINDS[kind].cut([alone], {"seed": 0, **KINDS[kind].asked()})
    return BY_TENSOR[kind](base=base, tuned=tuned, **with_nulls(cut.options))


def _fitted(pair: ByTensor) -> Costs:
    # The first call loads libraries and tables.
    _time(pair, _name(PROBED[0]))
    entry, product, cube = fit(PROBED, [_time(pair, _name(shape)) for shape in PROBED])
    embedding = "model.embed_tokens.weight"
    outside = _time(pair, embedding) / math.prod(OUTSIDE) if embedding in pair.names else 0.0
    return Costs(entry, product, cube, outside)


def _terms(shape: Sequence[int]) -> tuple[float, float, float]:
    entries, smaller = math.prod(shape), min(shape)
    return float(entries), float(entries * smaller), float(smaller**3)


def fit(shapes: Sequence[Sequence[int]], seconds: Sequence[float]) -> tuple[float, float, float]:
    """Seconds per entry, per mn·min(m, n) and per min(m, n)³ of matrices that took so many seconds.

    Coefficients are not negative and of least squared *relative* error, so that each shape counts alike.
    """
    table, taken = np.array([_terms(shape) for shape in shapes]), np.array(seconds)
    scale = table.max(axis=0)
    found, _ = nnls(table / scale / taken[:, None], np.ones(len(taken)))
    entry, product, cube = (float(value) for value in found / scale)
    return entry, product, cube


def _time(pair: ByTensor, tensor: str) -> float:
    """The lesser of two times in seconds: other processes' use of the machine can only add to either."""
    taken = []
    for _ in range(2):
        start = time.perf_counter()
        pair.rows(tensor, Shared())
        taken.append(time.perf_counter() - start)
    return min(taken)
