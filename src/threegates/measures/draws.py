"""Null masks for an observed update mask: how one is drawn, and how a statistic stands among many."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from threegates.checkpoints.pairs import TensorPair
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import NullMasks, Observed
from threegates.geometry.nulls.storage_norm import change_probability, storage_scale_for_norm
from threegates.geometry.nulls.summaries import summarise
from threegates.geometry.precision import ETA

#: Tolerances of Definition 2.1 that stored changes are also looked at with, beside the paper's own: bf16
#: values lie .4 to .8 % apart, so that these leave out some or all changes by one code.
COARSE_ETAS = (5e-3, 1e-2)
SUMMARY = ("mean", "sd", "low", "high", "p", "z", "log_mean")

# Above this many entries the scale of null 1b is found on an even sample: 2²² entries fix it to .1 %.
SAMPLE = 1 << 22


class EvenSample:
    """Every so many-th entry of a tensor that comes in pieces: all of up to `SAMPLE`, no more of larger ones.

    size : entries of the whole tensor; the sample depends on it alone, not on the pieces.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._step = max(1, -(-size // SAMPLE))
        self._seen = 0
        self._taken = torch.empty(0)

    def add(self, piece: Tensor) -> None:
        """Take from the next entries."""
        flat = piece.reshape(-1)
        taken = flat[-self._seen % self._step :: self._step]
        if not self._seen:
            # One buffer for all: small pieces, kept one by one, would leave the heap full of holes.
            self._taken = flat.new_empty(-(-self.size // self._step))
        start = -(-self._seen // self._step)
        self._taken[start : start + len(taken)] = taken
        self._seen += len(flat)

    def entries(self) -> Tensor:
        """What was taken, flat."""
        return self._taken


def even_sample(x: Tensor) -> EvenSample:
    """The sample of a tensor that is held as a whole."""
    sample = EvenSample(x.numel())
    sample.add(x)
    return sample


def observe(run: str, pair: TensorPair, seed: int, scale: float | None = None) -> Observed:
    """The update mask of one tensor of one run, and the scales of its nulls; `scale`, where it is known."""
    mask = update_mask(pair.base, pair.tuned)
    if scale is None:
        scale = noise_scale(pair, noise_generator(seed, "scale", run, pair.name))
    return Observed(run, pair.name, pair.base, mask, int(mask.count_nonzero()), scale)


def coarsened(observed: Observed, tuned: Tensor, eta: float) -> Observed:
    """The same run's mask at another tolerance; the noise of its nulls keeps its scale."""
    mask = update_mask(observed.base, tuned, eta)
    return replace(observed, mask=mask, changed=int(mask.count_nonzero()), eta=eta)


def update_norm(pair: TensorPair) -> float:
    """Frobenius norm of the difference of the two bf16 tensors, in float64."""
    return frobenius(pair.tuned, pair.base)


def frobenius(x: Tensor, minus: Tensor | None = None) -> float:
    """‖x‖ or ‖x − minus‖ in float64, over pieces: a large tensor is never held in float64 as a whole."""
    return math.sqrt(squared_norm(x, minus))


def squared_norm(x: Tensor, minus: Tensor | None = None) -> float:
    """‖x‖² or ‖x − minus‖², as `frobenius` sums it."""
    pieces = x.reshape(-1).split(SAMPLE)
    less = minus.reshape(-1).split(SAMPLE) if minus is not None else [None] * len(pieces)
    total = 0.0
    for piece, other in zip(pieces, less, strict=True):
        wide = piece.double() if other is None else piece.to(torch.float64, copy=True).sub_(other)
        total += float(wide @ wide)
    return total


def noise_scale(pair: TensorPair, generator: torch.Generator) -> float:
    """Scale of Gaussian noise whose rounded update has the norm of the stored one (null 1b)."""
    return noise_scale_for(update_norm(pair), even_sample(pair.base), generator)


def noise_scale_for(norm: float, base: EvenSample, generator: torch.Generator) -> float:
    """`noise_scale` of an update of that norm; the scale is found on the sample of its base."""
    entries = base.entries()
    if norm == 0 or not base.size:
        return 0.0
    return storage_scale_for_norm(entries, norm * math.sqrt(len(entries) / base.size), generator)


def noise_sparsity(base: EvenSample, scale: float, eta: float = ETA) -> tuple[float, float]:
    """Expected sparsity of null 1b's noise and its standard deviation, exact up to `SAMPLE` entries."""
    if not base.size:
        return math.nan, math.nan
    if scale == 0:
        return 1.0, 0.0
    probability = change_probability(base.entries(), scale, eta)
    variance = float((probability * (1 - probability)).mean()) / base.size
    return 1 - float(probability.mean()), math.sqrt(variance)


def null_masks(null: NullMasks, observed: Observed, seed: int) -> Iterator[Tensor]:
    """Masks of a null beside an observed one, without end.

    The stream depends on seed, null, run and tensor alone, so that jobs may be cut in any way.
    """
    return null.sampler(observed, noise_generator(seed, null.name, observed.run, observed.tensor))


def summary_columns(nulls: Sequence[NullMasks]) -> dict[str, str]:
    """Names and types of what `null_columns` gives for these nulls."""
    return {f"{null.name}_{name}": "float64" for null in nulls for name in SUMMARY}


def null_columns(kind: str, observed: float, draws: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Columns ``<kind>_mean, _sd, _low, _high, _p, _z, _log_mean`` of a statistic beside its draws.

    low and high are the 2.5 % and 97.5 % quantiles, p is upper-tailed with floor 1/(draws + 1), log_mean is
    the mean logarithm (NaN unless every draw is positive). Draws that are not finite are left out, and
    without any every column is NaN.
    """
    values = np.asarray(draws, dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        return dict.fromkeys((f"{kind}_{name}" for name in SUMMARY), math.nan)
    summary = summarise(observed, values)
    log_mean = float(np.log(values).mean()) if (values > 0).all() else math.nan
    numbers = (summary.mean, summary.sd, summary.low, summary.high, summary.p, summary.z, log_mean)
    return {f"{kind}_{name}": number for name, number in zip(SUMMARY, numbers, strict=True)}
