"""What the paper prints (arXiv 2511.08567 v1), computed: theorems, storage, tables.

Printed numbers are typed as printed, in `paper` or here; everything set beside them is computed. None of
this decides whether the paper's claims hold: that is what the other chapters measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
import torch

from threegates.estimates.paper import averages, sparsity_ranges, table_1, tables_4_and_5
from threegates.geometry.bounds import Bound, ky_fan, mirsky, wedin_as_printed, wedin_corrected, weyl
from threegates.geometry.directions import principal_energy
from threegates.geometry.precision import (
    INFINITY_CODE,
    bf16_codes,
    bf16_from_codes,
    half_gaps,
    to_bf16,
    ulp,
)

#: Printed in the text of the paper.
ULPS_BETWEEN, TOLERANCE = 134, 1e-5
#: The usual clip ratios of DAPO, which the paper does not state, and its longest response.
CLIP_LOW, CLIP_HIGH, LENGTH = 0.2, 0.28, 8192
PRINCIPAL_SHARE = 0.5
#: Of half a gap: how far on either side of a midpoint a number is taken.
_ASIDE = 1e-3
_DENSE, _SAFE, _LOW, _PRINCIPAL = "dense", "M_low or not M_princ", "M_low", "M_princ"


def stored(x: float) -> torch.Tensor:
    """The bf16 value that storage holds of a number."""
    return to_bf16(torch.tensor(x, dtype=torch.float64))


def codes_between(small: float, large: float) -> int:
    """How many bf16 values further one stored number is than another."""
    return int(bf16_codes(stored(large))) - int(bf16_codes(stored(small)))


def counterexample(degrees: float, trace: float = 1e-3) -> dict[str, float]:
    """Thm 3.3 on W₀ = diag(1, 0) and W₊ = ½ I + trace · W₀ turned by an angle.

    The top direction of W₊ is the turned one, however small the trace: ½ I prefers none.

    Returns
    -------
    degrees, the measured sine, the bound as printed and with Wedin's gap, and whether each is met, as well as
    twice the printed one.

    **Source** Wedin (1972); the bound as printed in Zhu et al. (2025), Thm 3.3.
    """
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    base = np.diag([1.0, 0.0])
    tuned = 0.5 * np.eye(2) + trace * turn @ base @ turn.T
    (u0, s0, v0), (u1, s1, v1) = np.linalg.svd(base), np.linalg.svd(tuned)
    sine = max(abs(float(u0[:, 1] @ u1[:, 0])), abs(float(v0[1] @ v1[0])))
    norm = float(np.linalg.norm(tuned - base, 2))
    before, after = torch.from_numpy(s0), torch.from_numpy(s1)
    printed = wedin_as_printed(before, norm, 1, min(sine, 1.0))
    corrected = wedin_corrected(before, after, norm, 1, min(sine, 1.0))
    return {
        "degrees": degrees,
        "sine": printed.measured,
        "printed": printed.bound,
        "corrected": corrected.bound,
        "printed_holds": printed.holds(),
        "twice_holds": printed.measured <= 2 * printed.bound,
        "corrected_holds": corrected.holds(),
    }


def counterexample_curve(trace: float = 1e-3, number: int = 91) -> pd.DataFrame:
    """`counterexample` at angles from 0 to 90 degrees: one row an angle."""
    return pd.DataFrame([counterexample(float(d), trace) for d in np.linspace(0, 90, number)])


def rotation_by_size(seed: int = 0) -> pd.DataFrame:
    """Sine of the top-2 left subspace of diag(3, 2, 1, ½) under one update of several sizes: size, sine.

    Size is ‖ΔW‖₂; the direction of the update is fixed.
    """
    base = np.diag([3.0, 2.0, 1.0, 0.5])
    direction = np.random.default_rng(seed).standard_normal((4, 4))
    direction /= np.linalg.norm(direction, 2)
    rows = []
    for size in np.logspace(-5, -1, 9):
        vectors = np.linalg.svd(base + size * direction)[0][:, :2]
        # The base's other left vectors are the last two axes.
        rows.append({"size": size, "sine": float(np.linalg.norm(vectors[2:], 2))})
    return pd.DataFrame(rows)


def order_of(curve: pd.DataFrame) -> float:
    """Slope of log sine over log size where the update is small: one if linear, two if quadratic."""
    small = curve[curve["size"] <= 1e-3]
    return float(np.polyfit(np.log(small["size"]), np.log(small["sine"]), 1)[0])


def principal_update(size: float = 0.01) -> tuple[float, bool]:
    """Energy in the top-2 block of an update along the leading direction, and whether all bounds hold.

    W₀ = diag(3, 2, 1, ½), ΔW = size · u₁ v₁ᵀ: all of it lies in the principal block, and Thm 3.3 (corrected)
    and Corollaries 3.4 and 3.5 hold of it as of any small update.
    """
    base, k = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)), 2
    delta = torch.zeros_like(base)
    delta[0, 0] = size
    (u, before, vh), (u_after, after, _) = torch.linalg.svd(base), torch.linalg.svd(base + delta)
    sine = float(torch.linalg.matrix_norm(u[:, k:].T @ u_after[:, :k], 2))
    bounds = (
        wedin_corrected(before, after, size, k, min(sine, 1.0)),
        weyl(before, after, size),
        mirsky(before, after, size),
        ky_fan(before, after, size, k),
    )
    return principal_energy(delta, u[:, :k], vh[:k].T), all(bound.holds(1e-12) for bound in bounds)


def spectrum_bounds_held(seed: int = 0, draws: int = 25) -> np.ndarray:
    """Whether Cor. 3.4 and 3.5 hold, at every k, of drawn 6 × 4 matrices and updates: (draws · sizes,) bool.

    Updates have a thousandth to a thousandfold of the matrix's spectral norm.
    """
    generator = torch.Generator().manual_seed(seed)
    held = []
    for _ in range(draws):
        base, direction = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
        for size in (1e-3, 0.1, 1.0, 10.0, 1e3):
            delta = size * direction * (base.norm(2) / direction.norm(2))
            held.append(all(bound.holds(1e-9 * size) for bound in _spectrum_bounds(base, delta)))
    return np.array(held)


def _spectrum_bounds(base: torch.Tensor, delta: torch.Tensor) -> list[Bound]:
    before, after, of_delta = (torch.linalg.svdvals(matrix) for matrix in (base, base + delta, delta))
    norm, frobenius = float(of_delta[0]), float(delta.norm())
    of_sums = [ky_fan(before, after, norm, k) for k in range(1, len(before) + 1)]
    return [weyl(before, after, norm), mirsky(before, after, frobenius), *of_sums]


def normal_values() -> torch.Tensor:
    """All normal positive bf16 values, ascending."""
    return bf16_from_codes(torch.arange(0x80, INFINITY_CODE, dtype=torch.int32))


def ulp_ratios() -> torch.Tensor:
    """ULP(x)/|x| of every normal positive bf16 value, float64."""
    normal = normal_values()
    return ulp(normal) / normal.double()


def equalities_of_lemma_e_1() -> int:
    """Normal positive bf16 values with ULP(x)/|x| = 2⁻⁷, where Lemma E.1 prints a strict inequality."""
    return int((ulp_ratios() == 2.0**-7).sum())


def changed_around_half_a_ulp(beyond: bool) -> np.ndarray:
    """Whether a stored weight changes if it is moved by about half a ULP: (2, values) bool, up and down.

    Of every normal positive value; `beyond` moves it by a thousandth of half a ULP more, else by one less.
    """
    normal = normal_values()
    move = ulp(normal) / 2 * (1 + (_ASIDE if beyond else -_ASIDE))
    return np.stack([(to_bf16(normal.double() + side * move) != normal).numpy() for side in (1, -1)])


def errors_before_rounding(tolerance: float = TOLERANCE) -> dict[str, np.ndarray]:
    """Where a tolerance errs on two numbers before they are rounded, around every normal positive value.

    Returns
    -------
    missed : (values,) bool, two numbers beside a midpoint that are stored as two values and called unchanged;
    invented : the same of two numbers that are stored as one value and called changed.
    """
    normal = normal_values()
    middle, (down, up) = normal.double(), half_gaps(normal)
    sides = (middle + (1 - _ASIDE) * up, middle + (1 + _ASIDE) * up)
    ends = (middle - (1 - _ASIDE) * down, middle + (1 - _ASIDE) * up)
    apart, differ = (to_bf16(x) != to_bf16(y) for x, y in (sides, ends))
    return {
        "missed": (apart & (sides[1] - sides[0] <= tolerance)).numpy(),
        "invented": (~differ & (ends[1] - ends[0] > tolerance)).numpy(),
    }


def ulps_of_doubling(x: float) -> float:
    """The distance from a number to its double, in ULPs of the number."""
    return x / float(ulp(stored(x)))


def neighbours_called_unchanged(tolerance: float = TOLERANCE) -> pd.DataFrame:
    """Neighbouring bf16 values, all different: the lower, and whether a tolerance calls the two unchanged."""
    values = bf16_from_codes(torch.arange(0, INFINITY_CODE, dtype=torch.int32)).double()
    near = (values[1:] - values[:-1]) <= tolerance
    return pd.DataFrame({"lower": values[:-1].numpy(), "called_unchanged": near.numpy()})


def exact_steps(weight: float, rate: float) -> tuple[int, int]:
    """Steps of one size and sign, added exactly, until a stored weight changes: upwards and downwards."""
    down, up = half_gaps(stored(weight))
    return math.ceil(float(up) / rate), math.ceil(float(down) / rate)


def clip_bound(length: int = LENGTH, low: float = CLIP_LOW, high: float = CLIP_HIGH) -> float:
    """Lemma F.9's bound on the KL divergence in nats: length times the largest clipped log ratio."""
    return length * max(math.log(1 + high), -math.log(1 - low))


def clip_bound_held(seed: int = 0, draws: int = 200, tokens: int = 8) -> np.ndarray:
    """Whether KL(π‖π₀) and KL(π₀‖π) of one token are within the bound of length one: (draws,) bool.

    π₀ is drawn, and the ratios π/π₀ within the clip range; every other draw has them at its ends.
    """
    rng, bound = np.random.default_rng(seed), clip_bound(length=1)
    held = []
    for draw in range(draws):
        before = rng.dirichlet(np.full(tokens, 0.5)) + 1e-12
        drawn = rng.random(tokens) if draw % 2 else rng.integers(0, 2, tokens)
        ratio = _summing_to_one(before, 1 - CLIP_LOW + (CLIP_LOW + CLIP_HIGH) * drawn)
        logs = np.log(ratio)
        held.append(max(before @ (ratio * logs), -(before @ logs)) <= bound)
    return np.array(held)


def _summing_to_one(before: np.ndarray, ratio: np.ndarray) -> np.ndarray:
    """Ratios drawn nearer to one end of the clip range, until they make a distribution of the one before."""
    mean = before @ ratio / before.sum()
    end = 1 - CLIP_LOW if mean > 1 else 1 + CLIP_HIGH
    return ratio if mean == 1 else end + (ratio - end) * (1 - end) / (mean - end)


def order_is_kept() -> bool:
    """Whether the masks of each table stand in the same order by the printed and by the computed averages."""
    by_steps = [rows for _, rows in averages().groupby("steps")]
    orders = [
        [list(rows.sort_values(column)["mask"]) for column in ("average", "computed")] for rows in by_steps
    ]
    return all(printed == computed for printed, computed in orders)


def mask_densities() -> dict[str, float]:
    """What the shares of Tables 4 and 5 imply: density of M_princ without M_low, and of what both share."""
    shares = tables_4_and_5().set_index("mask")["share"].groupby("mask").first()
    alone = 1 - shares["M_low or not M_princ"]
    return {"principal_not_low": alone, "both": shares["M_princ"] - alone, "low": shares["M_low"]}


def sparsity_factors() -> dict[str, float]:
    """Sparsity of RL over that of SFT in Table 1, read in several ways.

    Returns
    -------
    ends : least of RL over largest of SFT, across bases; medians : median over median; and under the name of
    each base that has both, least over largest on it.
    """
    ranges, table = sparsity_ranges(), table_1()
    kinds = table["method"].where(table["method"] == "SFT", "RL")
    medians = table.groupby(kinds)["sparsity"].median()
    found = {"ends": ranges["RL"][0] / ranges["SFT"][1], "medians": float(medians["RL"] / medians["SFT"])}
    for base, rows in table.assign(kind=kinds).groupby("base"):
        of_kind = rows.groupby("kind")["sparsity"]
        if rows["kind"].nunique() == 2:
            found[str(base)] = float(of_kind.min()["RL"] / of_kind.max()["SFT"])
    return found


def distances_from_dense() -> pd.DataFrame:
    """How far each mask of Tables 4 and 5 ends from the dense run, in points.

    Columns: steps, mask, mean (of its scores), of_average (distance of the means) and by_test (mean absolute
    difference of the four scores). The dense run itself is left out.
    """
    rows = []
    for steps, table in tables_4_and_5().groupby("steps"):
        of_masks = table.set_index("mask")["scores"].items()
        scores = {mask: np.array([float(x) for x in str(text).split()]) for mask, text in of_masks}
        dense = scores.pop(_DENSE)
        for mask, own in scores.items():
            apart = {"of_average": abs(own.mean() - dense.mean()), "by_test": np.abs(own - dense).mean()}
            rows.append({"steps": steps, "mask": mask, "mean": own.mean(), **apart})
    return pd.DataFrame(rows)


def nearer_than(others: str, by: str) -> dict[int, float]:
    """By steps, how much nearer to the dense run the safe mask ends than others; below zero it is farther.

    others : "nearest", of all other masks, or the name of one. by : "of_average" or "by_test".
    """
    return {
        steps: float((table.drop(_SAFE).min() if others == "nearest" else table[others]) - table[_SAFE])
        for steps, table in _by_steps(by)
    }


def over_low_alone() -> dict[int, float]:
    """By steps, the mean of the safe mask's scores minus that of M_low alone."""
    return {steps: float(table[_SAFE] - table[_LOW]) for steps, table in _by_steps("mean")}


def over_principal() -> dict[int, float]:
    """By steps, the lowest mean of the other masks minus that of M_princ."""
    return {
        steps: float(table.drop(_PRINCIPAL).min() - table[_PRINCIPAL]) for steps, table in _by_steps("mean")
    }


def _by_steps(column: str) -> Iterator[tuple[int, pd.Series]]:
    for steps, rows in distances_from_dense().groupby("steps"):
        yield int(str(steps)), rows.set_index("mask")[column]


def head_permutation_errors(seed: int = 0) -> Mapping[str, float]:
    """Output error after permuting heads, under W_o's columns in several orders.

    Heads are any functions of their rows of W_q: head h gives tanh(W_h x), and W_o mixes them. Columns are
    gathered by the rows' permutation (same) or its inverse, or W_o is multiplied by the inverse of the matrix
    that W_q's rows are multiplied by (matrix).
    """
    rng = np.random.default_rng(seed)
    heads, size = 4, 3
    w_q, w_o = rng.standard_normal((heads, size, 5)), rng.standard_normal((2, heads, size))
    x, order = rng.standard_normal(5), np.array([1, 2, 3, 0])
    before = np.einsum("ohd,hd->o", w_o, np.tanh(w_q @ x))
    matrix = np.eye(heads)[order]
    columns = {"same": w_o[:, order], "inverse": w_o[:, np.argsort(order)]}
    columns["matrix"] = np.einsum("ohd,hg->ogd", w_o, np.linalg.inv(matrix))
    rows = np.einsum("gh,hdi->gdi", matrix, w_q)
    after = {name: np.einsum("ohd,hd->o", own, np.tanh(rows @ x)) for name, own in columns.items()}
    return {name: _relative_error(before, own) for name, own in after.items()}


def rotation_error(seed: int = 0) -> float:
    """Output error of a layer whose values and outputs are turned as App. D prints it, relative.

    W_v, its bias and W_o become W_v R, b_v R and W_o R, R one rotation in every head: values are x W_v + b_v,
    and the output is W_o times the heads' weighted means of them, two heads to each of the values' heads.
    """
    rng = np.random.default_rng(seed)
    length, width, size, groups, heads = 5, 6, 4, 2, 4
    x, bias = rng.standard_normal((length, width)), rng.standard_normal((groups, size))
    w_v, w_o = rng.standard_normal((groups, width, size)), rng.standard_normal((3, heads, size))
    attention = rng.dirichlet(np.ones(length), (heads, length))
    turn, _ = np.linalg.qr(rng.standard_normal((size, size)))

    def output(w_v: np.ndarray, bias: np.ndarray, w_o: np.ndarray) -> np.ndarray:
        values = np.repeat(x @ w_v + bias[:, None], heads // groups, axis=0)
        return np.einsum("ohd,htd->to", w_o, attention @ values)

    return _relative_error(output(w_v, bias, w_o), output(w_v @ turn, bias @ turn, w_o @ turn))


def _relative_error(before: np.ndarray, after: np.ndarray) -> float:
    return float(np.abs(after - before).max() / np.abs(before).max())
