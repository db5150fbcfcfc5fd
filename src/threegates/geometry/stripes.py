"""Stripes of an update mask: how unequal its rows and columns are, and which of the two."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float64, Shaped
from scipy.stats import spearmanr
from torch import Tensor

from threegates.errors import GeometryError
from threegates.geometry.masks import MaskCounts, column_ratio, row_ratio


def row_dispersion(mask: Bool[Tensor, "m n"] | MaskCounts) -> float:
    """Variance of the row ratios over what independent entries of equal density would give.

    D = mean_i (ρ_i − p)² / (p(1 − p)/n), p the density, n the number of columns.

    Returns
    -------
    float ≥ 0: about 1 without stripes, n for rows that changed wholly or not at all; NaN where p is 0 or 1,
    for the binomial variance is 0 there, and NaN for an empty matrix.

    Raises
    ------
    GeometryError : not a matrix.

    **Source** index of dispersion (Lexis 1877); the reading of Zhu et al. (2025), Fig. 2, is ours.
    """
    return ratio_dispersion(row_ratio(mask), mask.shape[1])


def column_dispersion(mask: Bool[Tensor, "m n"] | MaskCounts) -> float:
    """`row_dispersion` of the transposed mask: variance of κ_j over p(1 − p)/m.

    **Source** as `row_dispersion`.
    """
    return ratio_dispersion(column_ratio(mask), mask.shape[0])


def dispersion(mask: Bool[Tensor, "m n"] | MaskCounts) -> tuple[float, float]:
    """(row_dispersion, column_dispersion) of a mask or of its counts.

    **Source** as `row_dispersion`.
    """
    return row_dispersion(mask), column_dispersion(mask)


def ratio_dispersion(ratio: Float64[Tensor, " lines"], per_line: int) -> float:
    """Dispersion of ratios that are each a mean over `per_line` entries; see `row_dispersion`.

    **Source** as `row_dispersion`.
    """
    if not len(ratio) or not per_line:
        return math.nan
    p = float(ratio.mean())
    if p <= 0 or p >= 1:
        return math.nan
    return float(ratio.var(correction=0)) / (p * (1 - p) / per_line)


def orientation(mask: Bool[Tensor, "m n"] | MaskCounts) -> float:
    """Log of row dispersion over column dispersion.

    > 0 where rows stand out (the paper's Q, K, V), < 0 where columns do (O); NaN where a dispersion is, or
    where both are 0; ±inf where one is.

    **Source** Zhu et al. (2025), Figs 2 and 3; the measure is ours.
    """
    rows, columns = dispersion(mask)
    if math.isnan(rows) or math.isnan(columns) or rows == columns == 0:
        return math.nan
    if not rows or not columns:
        return math.copysign(math.inf, rows - columns)
    return math.log(rows / columns)


def smooth(ratio: Float64[Tensor, " lines"], window: int = 3) -> Float64[Tensor, " lines"]:
    """Centred moving average over `window` lines; at the ends, over the lines that exist.

    Raises
    ------
    GeometryError : window is not odd and positive.

    **Source** Zhu et al. (2025), Fig. 3 (window 3).
    """
    if window < 1 or window % 2 == 0:
        raise GeometryError("a centred window is odd and positive", found=window)
    if not len(ratio):
        return ratio.clone()
    return torch.nn.functional.avg_pool1d(
        ratio[None, None], window, stride=1, padding=window // 2, count_include_pad=False
    )[0, 0]


def rank_correlation(a: Shaped[Tensor, " a"], b: Shaped[Tensor, " b"]) -> float:
    """Spearman's ρ of two ratio vectors, in [−1, 1], tied values sharing their mean rank.

    NaN where a vector is constant or shorter than two.

    Raises
    ------
    GeometryError : lengths differ.

    **Source** Spearman (1904); with it the study reads Zhu et al. (2025), Figs 3 and 14.
    """
    if len(a) != len(b):
        raise GeometryError(
            "ratios of different length cannot be ranked together", expected=len(a), found=len(b)
        )
    if len(a) < 2 or bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return math.nan
    return float(spearmanr(a.cpu().numpy(), b.cpu().numpy()).statistic)
