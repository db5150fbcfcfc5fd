"""How early a run's rows and columns take their final pattern.

One table, ``emergence``: for every matrix, axis and saved step the ratios, their rank correlation with those
at the run's end, and the law of that correlation on coordinate-blind Gaussian walks seen through storage.

A rank correlation has no formula, so that its law is of draws; what is drawn is whole numbers of changed
entries along lines, `walk_line_counts`, and masks only where these do not hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.pairs import TensorPair, align, load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.geometry.laws.codes import CodeCounts, count_codes
from threegates.geometry.laws.law import Law, certain, unknown
from threegates.geometry.laws.rank_correlation import correlation_law, ranks_of
from threegates.geometry.laws.stopped import SMALL
from threegates.geometry.laws.walks import Pair, walk_line_counts
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.paths import storage_path
from threegates.geometry.precision import ETA
from threegates.measures.agreement import AXES
from threegates.measures.by_tensor import typed
from threegates.measures.changes import COARSE_ETAS, axis_facts, matrices
from threegates.measures.null_laws import DRAWABLE, beside, law_columns

WALK = "storage_path"

EMERGENCE_COLUMNS = {
    "run": "str",
    "tensor": "str",
    "role": "str",
    "layer": "Int64",
    "axis": "str",
    "step": "int64",
    "updates": "Int64",
    "density": "float64",
    "ratio": "object",
    "dispersion": "float64",
    "cosine_with_final": "float64",
    "walk_time": "float64",
    "spearman_with_final": "float64",
    **law_columns(WALK),
}
#: The same at tolerances coarser than the paper's.
EMERGENCE_SWEEP_COLUMNS = {**EMERGENCE_COLUMNS, "eta": "float64"}

#: Draws of counts along lines, and of walks where these are drawn instead. At coarser tolerances the mean
#: alone is looked at, over many matrices.
DRAWS, WALKS = 400, 100
SWEEP_DRAWS = 100
#: Fewer lines than these are drawn as walks.
FEW_LINES = 8


@dataclass(frozen=True)
class Snapshot:
    """A run's checkpoint after some step; `updates` counts optimizer updates where it is known."""

    step: int
    updates: int | None
    checkpoint: Checkpoint


def measure_emergence(
    base: Checkpoint, snapshots: Sequence[Snapshot], *, run: str, seed: int = 0
) -> dict[str, pd.DataFrame]:
    """Follow the row and column ratios of one run from its first saved step to its last.

    Returns
    -------
    tables ``emergence``, and ``emergence_sweep`` at coarser tolerances.

    Raises
    ------
    PairError : fewer than two snapshots, two of one step, or one that cannot be compared with the base.
    """
    ordered = sorted(snapshots, key=lambda one: one.step)
    steps = [one.step for one in ordered]
    if len(ordered) < 2 or len(set(steps)) < len(steps) or steps[0] <= 0:
        raise PairError(
            "emergence needs checkpoints along a run",
            where=run,
            expected="two steps or more, above 0",
            found=steps,
        )
    shared = set.intersection(*(set(matrices(align(base, one.checkpoint))) for one in ordered))
    names = sorted(name for name in shared if math.prod(base.infos[name].shape))
    rows: dict[float, list[dict]] = {eta: [] for eta in (ETA, *COARSE_ETAS)}
    for name in names:
        matrix = _Matrix([load_pair(base, one.checkpoint, name) for one in ordered], steps, run, seed)
        for eta in rows:
            rows[eta] += _rows(matrix, ordered, eta)
    coarse = [row | {"eta": eta} for eta in COARSE_ETAS for row in rows[eta]]
    return {
        "emergence": typed(rows[ETA], EMERGENCE_COLUMNS),
        "emergence_sweep": typed(coarse, EMERGENCE_SWEEP_COLUMNS),
    }


def walk_times(steps: Sequence[int], cosines: Sequence[float]) -> list[float]:
    """Times at which a Gaussian walk is observed, the last being 1.

    A Brownian walk seen at time t has cosine √t with its end at time 1. The null takes, at each step, the
    later of the step's share of training and the squared cosine of the run's own update with its final one:
    it keeps its direction at least as well as a free walk and as the run itself, so that a run which merely
    persists does not look like one that is drawn to certain rows.
    """
    share = np.asarray(steps, dtype=float) / steps[-1]
    persistence = np.square(np.clip(np.nan_to_num(np.asarray(cosines, dtype=float)), 0.0, 1.0))
    times = np.maximum.accumulate(np.maximum(share, persistence))
    # A millionth of the shares is mixed in, which keeps equal times apart: a walk is observed in order.
    return [float(time) for time in (1 - 1e-6) * times + 1e-6 * share]


def walk_correlations(
    base: Tensor,
    codes: CodeCounts,
    changed: tuple[int, int],
    times: tuple[float, float],
    generator: torch.Generator,
    eta: float = ETA,
    draws: int = DRAWS,
) -> tuple[Law, Law]:
    """Laws of the rank correlation of row ratios, and of column ratios, at two times of a blind walk.

    From draws of counts along lines; from `WALKS` walks where fewer than `SMALL` weights change or
    stay, or there are fewer than `FEW_LINES` lines, unless the tensor is large. Either is marked 'drawn'.

    Parameters
    ----------
    base : finite bfloat16 matrix on the CPU, whose codes are counted in `codes`.
    changed : entries of the mask at each time; times : 0 < earlier < later.
    eta : tolerance of Definition 2.1, by which a weight counts as changed.

    Returns
    -------
    laws of rows and columns; unknown where nothing, or everything, changes at a time.

    **Source** this study's null of emergence; Spearman (1904).
    """
    if {0, codes.size} & set(changed):
        return unknown(), unknown()
    rarest = min(*changed, *(codes.size - count for count in changed))
    if codes.size <= DRAWABLE and (rarest < SMALL or min(base.shape) < FEW_LINES):
        lines = _walked(base, changed, times, generator, eta)
    else:
        source = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        lines = walk_line_counts(base, codes, changed, times, draws, source, eta)
    rows, columns = (correlation_law(*map(ranks_of, pair)) for pair in lines)
    return rows, columns


def _walked(
    base: Tensor,
    changed: tuple[int, int],
    times: tuple[float, float],
    generator: torch.Generator,
    eta: float,
) -> tuple[Pair, Pair]:
    """As `walk_line_counts`, counted on walks."""
    walks = [storage_path(base, changed, times, generator, eta) for _ in range(WALKS)]
    rows, columns = (
        tuple(np.stack([_line_counts(walk[time], axis) for walk in walks]) for time in (0, 1))
        for axis in AXES
    )
    return (rows[0], rows[1]), (columns[0], columns[1])


@dataclass(frozen=True)
class _Matrix:
    """One matrix at every step of a run, beside the base."""

    pairs: Sequence[TensorPair]
    steps: Sequence[int]
    run: str
    seed: int

    @property
    def name(self) -> str:
        return self.pairs[0].name

    @cached_property
    def cosines(self) -> list[float]:
        """Of each step's update with the last's."""
        deltas = [(pair.tuned_stored.double() - pair.base_stored.double()).flatten() for pair in self.pairs]
        return [_cosine(delta, deltas[-1]) for delta in deltas]

    @cached_property
    def times(self) -> list[float]:
        """When a walk is seen."""
        return walk_times(self.steps, self.cosines)

    @cached_property
    def base(self) -> Tensor:
        """On the CPU, where draws are the same whatever the masks were taken on."""
        return self.pairs[0].base.cpu()

    @cached_property
    def codes(self) -> CodeCounts:
        """The base's."""
        return count_codes(self.base)

    def masks(self, eta: float) -> list[Tensor]:
        """Update masks at a tolerance."""
        return [update_mask(pair.base, pair.tuned, eta) for pair in self.pairs]

    def laws(self, masks: Sequence[Tensor], eta: float) -> list[tuple[Law, Law]]:
        """Laws of rows and columns for every step but the last."""
        counts, found = [int(mask.count_nonzero()) for mask in masks], []
        draws = DRAWS if eta == ETA else SWEEP_DRAWS
        for number, step in enumerate(self.steps[:-1]):
            source = noise_generator(self.seed, WALK, self.run, self.name, f"step {step}", f"eta {eta}")
            changed, times = (counts[number], counts[-1]), (self.times[number], self.times[-1])
            found.append(walk_correlations(self.base, self.codes, changed, times, source, eta, draws))
        return found


def _rows(matrix: _Matrix, snapshots: Sequence[Snapshot], eta: float) -> list[dict]:
    masks = matrix.masks(eta)
    laws = matrix.laws(masks, eta)
    facts = {
        "run": matrix.run,
        "tensor": matrix.name,
        "role": role(matrix.name, masks[0].shape),
        "layer": layer(matrix.name),
    }
    rows = []
    for which, axis in enumerate(AXES):
        found = _with_final(masks, axis)
        # The last step is compared with itself.
        of_axis = [*(both[which] for both in laws), unknown() if math.isnan(found[-1]) else certain(1.0)]
        for number, one in enumerate(snapshots):
            row: dict = {**facts, "axis": axis, "step": one.step, "updates": one.updates}
            row |= _numbers(masks[number], axis, matrix.cosines[number], matrix.times[number], found[number])
            rows.append(row | beside(WALK, found[number], of_axis[number], "upper"))
    return rows


def _numbers(mask: Tensor, axis: str, cosine: float, time: float, found: float) -> dict:
    ratio, dispersion = axis_facts(mask, axis)
    return {
        "density": float(ratio.mean()),
        "ratio": ratio.tolist(),
        "dispersion": dispersion,
        "cosine_with_final": cosine,
        "walk_time": time,
        "spearman_with_final": found,
    }


def _cosine(a: Tensor, b: Tensor) -> float:
    norms = float(torch.linalg.vector_norm(a) * torch.linalg.vector_norm(b))
    return float(a @ b) / norms if norms else math.nan


def _line_counts(mask: Tensor, axis: str) -> np.ndarray:
    return mask.sum(dim=1 if axis == "row" else 0).cpu().numpy()


def _with_final(masks: Sequence[Tensor], axis: str) -> list[float]:
    """Rank correlation of every mask's ratios with the last's; NaN where a mask's are all alike."""
    ranks = ranks_of(np.stack([_line_counts(mask, axis) for mask in masks]))
    return [float(value) for value in np.clip(ranks @ ranks[-1], -1.0, 1.0)]
