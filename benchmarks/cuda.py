"""On a GPU: the leading triplets of an 8B model's matrices, all warm, against torch.linalg.svd there.

One block of Qwen3-8B has seven matrices of five shapes, and the model has 36 blocks; one block is measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Row, interleaved
from benchmarks.spectra import Svd, oracle_error, pair, subspace_error, svd
from threegates.geometry.decomposition import (
    CERTIFIED_SINE,
    BaseDecomposition,
    LeadingSpectrum,
    decompose,
    update,
)

BLOCK = {
    "q": (4096, 4096),
    "k": (1024, 4096),
    "v": (1024, 4096),
    "o": (4096, 4096),
    "gate": (12288, 4096),
    "up": (12288, 4096),
    "down": (4096, 12288),
}
BLOCKS = 36
RANK = 128

Weights = Mapping[str, Tensor]


def rows(sizes: Sequence[str]) -> list[Row]:
    """All rows of this file where there is a GPU; none elsewhere."""
    return block_rows(BLOCK, RANK, torch.device("cuda")) if torch.cuda.is_available() else []


def block_rows(shapes: Mapping[str, tuple[int, int]], k: int, device: torch.device) -> list[Row]:
    """Every matrix of a block, warm, in both accuracies, against SVDs of the same type."""
    pairs = {name: tuple(side.to(device) for side in pair(shape)) for name, shape in shapes.items()}
    tuned = {name: after for name, (_, after) in pairs.items()}
    starts = {name: decompose(before, k, "certified") for name, (before, _) in pairs.items()}
    ways = {
        "fast": partial(_updated, starts, tuned, "fast"),
        "certified": partial(_updated, starts, tuned, "certified"),
        "svd fp32": partial(_decomposed, tuned, torch.float32),
        "svd fp64": partial(_decomposed, tuned, torch.float64),
    }
    times, found = interleaved(ways, 2, clock=partial(_clock, device))
    return [_row(accuracy, k, times, found, shapes) for accuracy in ("fast", "certified")]


def _clock(device: torch.device) -> float:
    """Seconds, after all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _updated(starts: Mapping[str, BaseDecomposition], tuned: Weights, accuracy: str) -> dict:
    return {name: update(start, tuned[name], accuracy) for name, start in starts.items()}


def _decomposed(tuned: Weights, dtype: torch.dtype) -> dict:
    return {name: svd(weight, dtype) for name, weight in tuned.items()}


def _row(accuracy: str, k: int, times: dict, found: dict, shapes: Mapping[str, tuple[int, int]]) -> Row:
    other = {"fast": "svd fp32", "certified": "svd fp64"}[accuracy]
    errors = {name: _errors(name, accuracy, k, found) for name in shapes}
    exact: Mapping[str, Svd] = found["svd fp64"]
    ours: Mapping[str, LeadingSpectrum] = found[accuracy]
    if accuracy == "fast":
        accurate = all(error <= its for error, its in errors.values())
        said = "error no worse on every matrix"
    else:
        accurate = all(
            ours[name].certificate.proved
            and ours[name].bound <= CERTIFIED_SINE
            and errors[name][0] <= ours[name].bound + oracle_error(exact[name], shapes[name], k)
            for name in shapes
        )
        said = f"proved {max(one.bound for one in ours.values()):.0e}"
    return Row(
        f"warm {accuracy}, on the GPU",
        f"one block of {len(shapes)}, k = {k}",
        times[accuracy],
        other,
        times[other],
        accurate,
        said,
        notes={
            "largest error": max(error for error, _ in errors.values()),
            f"seconds, {BLOCKS} blocks": 1e-3 * BLOCKS * times[accuracy],
            "warm": sum(one.path == "warm" for one in ours.values()),
        },
    )


def _errors(name: str, accuracy: str, k: int, found: dict) -> tuple[float, float]:
    exact = found["svd fp64"][name]
    theirs = subspace_error(exact, found["svd fp32"][name], k) if accuracy == "fast" else math.nan
    return subspace_error(exact, found[accuracy][name], k), theirs
