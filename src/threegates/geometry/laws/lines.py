"""Sums over the rows and the columns of a tensor of what depends on a weight's code alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from threegates.geometry.laws.codes import PATTERNS, CodeCounts
from threegates.geometry.laws.strata import Strata

TILE = 1 << 16


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
    tables = _by_pattern(codes, functions)
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
    return torch.from_numpy(_by_pattern(codes, functions)).to(base.device)[:, index]


def _by_pattern(codes: CodeCounts, functions: np.ndarray) -> np.ndarray:
    """Functions of the code by its bit pattern; −0 is counted as +0."""
    tables = np.zeros((len(functions), PATTERNS))
    tables[:, codes.patterns] = functions
    tables[:, 0x8000] = tables[:, 0]
    return tables


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


def stratum_counts(
    base: Shaped[Tensor, "m n"], codes: CodeCounts, strata: Strata
) -> tuple[np.ndarray, np.ndarray]:
    """How many weights of each stratum lie in each row, (m, B), and in each column, (n, B); float32.

    **Source** this study.
    """
    m, n = base.shape
    if strata.number == 1:
        return np.full((m, 1), n, dtype=np.float32), np.full((n, 1), m, dtype=np.float32)
    table = np.zeros(PATTERNS, dtype=np.intp)
    table[codes.patterns] = strata.of_code
    table[0x8000] = table[0]
    words = base.cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
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
