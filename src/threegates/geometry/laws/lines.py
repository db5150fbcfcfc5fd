"""Sums over the rows and the columns of a tensor of what depends on a weight's code alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from threegates.geometry.laws.codes import CodeCounts, bit_patterns
from threegates.geometry.laws.strata import Strata

TILE = 1 << 16
#: Rows and columns of a block that is counted at a time, if no more kinds are told apart.
BLOCK = (128, 256)
#: Distances that are counted along lines at most; beyond, looking values up takes no longer.
MOST_PAIRS = 512


@dataclass(frozen=True)
class LineSums:
    """Sums of T functions of the code over each row, (m, T), and over each column, (n, T); float64."""

    rows: np.ndarray
    columns: np.ndarray


def line_sums(base: Shaped[Tensor, "m n"], codes: CodeCounts, functions: np.ndarray) -> LineSums:
    """Look up T functions of the code at every weight, and sum along rows and columns.

    Parameters
    ----------
    base : finite bfloat16 matrix whose codes were counted; functions : (T, K) values by code, float64.

    Returns
    -------
    sums in a fixed order: the same bits on the CPU whoever computes them; on other devices to about 1e-13.

    **Source** this study.
    """
    tables = codes.by_pattern(functions)
    bits = base.contiguous().view(torch.int16)
    return _on_cpu(bits, tables) if bits.device.type == "cpu" else _anywhere(bits, tables)


def at_weights(
    base: Shaped[Tensor, "m n"], codes: CodeCounts, functions: np.ndarray
) -> Float64[Tensor, "t m n"]:
    """Values of T functions of the code at every weight.

    Parameters
    ----------
    base : finite bfloat16 matrix whose codes were counted; functions : (T, K) values by code, float64.

    **Source** this study.
    """
    index = base.contiguous().view(torch.int16).to(torch.int64) & 0xFFFF
    return torch.from_numpy(codes.by_pattern(functions)).to(base.device)[:, index]


def _on_cpu(bits: Tensor, tables: np.ndarray) -> LineSums:
    (m, n), kinds = bits.shape, len(tables)
    rows, columns = np.zeros((kinds, m)), np.zeros((kinds, n))
    height = max(1, TILE // max(n, 1))
    buffer = np.empty((height, n))
    words = bits.numpy().view(np.uint16)
    for top in range(0, m, height):
        index = words[top : top + height].astype(np.intp)
        found = buffer[: len(index)]
        for kind, table in enumerate(tables):
            # Without a bounds check numpy writes straight into the buffer; a pattern cannot lie outside.
            np.take(table, index, out=found, mode="wrap")
            rows[kind, top : top + height] = found.sum(axis=1)
            columns[kind] += found.sum(axis=0)
    return LineSums(rows.T, columns.T)


def _anywhere(bits: Tensor, tables: np.ndarray) -> LineSums:
    index = bits.to(torch.int64) & 0xFFFF
    rows, columns = [], []
    for table in tables:
        found = torch.from_numpy(table).to(bits.device)[index]
        rows.append(found.sum(dim=1).cpu().numpy())
        columns.append(found.sum(dim=0).cpu().numpy())
    return LineSums(np.stack(rows, axis=1), np.stack(columns, axis=1))


@dataclass(frozen=True)
class DistanceCounts:
    """How many weights of each pair of distances to the next change lie in each row (m, D) and column (n, D).

    All codes of a binade but its least lie equally far from their neighbours, so that there are few pairs,
    and what depends on the distances alone is summed along lines by a product with these counts.
    examples : (D,) a code of each pair.
    """

    rows: np.ndarray
    columns: np.ndarray
    examples: np.ndarray

    def sums(self, functions: np.ndarray) -> LineSums:
        """`line_sums` of functions (T, K) that have one value for all codes of a pair."""
        values = functions[:, self.examples].T
        return LineSums(self.rows @ values, self.columns @ values)


def distance_counts(
    base: Shaped[Tensor, "m n"], codes: CodeCounts, down: np.ndarray, up: np.ndarray
) -> DistanceCounts | None:
    """Count pairs of distances along lines; None where more than `MOST_PAIRS` differ, as at a coarse η.

    Parameters
    ----------
    base : finite bfloat16 matrix whose codes were counted; down, up : (K,) distances, in either order.

    **Source** this study.
    """
    pairs = np.sort(np.stack([down, up]), axis=0)
    _, examples, place = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
    if len(examples) > MOST_PAIRS:
        return None
    return DistanceCounts(*_along_both(base, codes, place.reshape(-1), len(examples)), examples)


def _along_both(
    base: Tensor, codes: CodeCounts, kind_of_code: np.ndarray, kinds: int
) -> tuple[np.ndarray, np.ndarray]:
    """How many entries of each kind lie in each row (m, kinds) and column (n, kinds).

    By blocks of about as many rows and columns as there are kinds, lest most counters of a block count none.
    """
    table, words = codes.by_pattern(kind_of_code), bit_patterns(base)
    (m, n), (height, width) = words.shape, (max(side, kinds) for side in BLOCK)
    rows, columns = np.zeros((m, kinds)), np.zeros((n, kinds))
    for top in range(0, m, height):
        for left in range(0, n, width):
            labels = np.take(table, words[top : top + height, left : left + width], mode="wrap")
            h, w = labels.shape
            here = np.bincount((labels + kinds * np.arange(h)[:, None]).ravel(), minlength=h * kinds)
            rows[top : top + h] += here.reshape(h, kinds)
            labels += kinds * np.arange(w)
            columns[left : left + w] += np.bincount(labels.ravel(), minlength=w * kinds).reshape(w, kinds)
    return rows, columns


def stratum_counts(
    base: Shaped[Tensor, "m n"], codes: CodeCounts, strata: Strata
) -> tuple[np.ndarray, np.ndarray]:
    """How many weights of each stratum lie in each row, (m, B), and in each column, (n, B); float32.

    **Source** this study.
    """
    m, n = base.shape
    if strata.number == 1:
        return np.full((m, 1), n, dtype=np.float32), np.full((n, 1), m, dtype=np.float32)
    table, words = codes.by_pattern(strata.of_code), bit_patterns(base)
    return _of_each(words, table, strata.number), _of_each(words.T, table, strata.number)


def _of_each(words: np.ndarray, table: np.ndarray, number: int) -> np.ndarray:
    """Counts of each of `number` labels in every row, some rows at a time."""
    m, n = words.shape
    found = np.empty((m, number), dtype=np.float32)
    height = max(1, TILE // max(n, number, 1))
    for top in range(0, m, height):
        labels = table[words[top : top + height]]
        labels += np.arange(len(labels), dtype=np.intp)[:, None] * number
        counted = np.bincount(labels.ravel(), minlength=len(labels) * number)
        found[top : top + height] = counted.reshape(len(labels), number)
    return found
