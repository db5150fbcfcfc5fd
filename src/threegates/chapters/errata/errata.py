"""Errata of the paper (arXiv 2511.08567 v1): what is printed, and what comes out when it is computed.

Printed numbers are typed as printed, in `paper` or here; everything set beside them is computed. None of
this decides whether the paper's claims hold: that is what the other chapters measure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from threegates.estimates.paper import averages, sparsity_ranges, table_1, tables_4_and_5
from threegates.geometry.bounds import ky_fan, mirsky, wedin_as_printed, wedin_corrected, weyl
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


@dataclass(frozen=True)
class Erratum:
    """One place of the paper: what stands there, what comes out, why it matters."""

    place: str
    printed: str
    computed: str
    matters: str


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
    degrees, the measured sine, the bound as printed and with Wedin's gap, and whether each is met.

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


def equalities_of_lemma_e_1() -> int:
    """Normal positive bf16 values with ULP(x)/|x| = 2⁻⁷, where Lemma E.1 prints a strict inequality."""
    normal = bf16_from_codes(torch.arange(0x80, INFINITY_CODE, dtype=torch.int32))
    return int((ulp(normal) / normal.double() == 2.0**-7).sum())


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


def sparsity_factors() -> tuple[float, float]:
    """Least sparsity of RL over the largest of SFT, Table 1: across bases, and on the base that has both."""
    ranges, table = sparsity_ranges(), table_1()
    of_14b = table[table["base"] == "Qwen3-14B-Base"].set_index("method")["sparsity"]
    return ranges["RL"][0] / ranges["SFT"][1], of_14b["GRPO"] / of_14b["SFT"]


def head_permutation_errors(seed: int = 0) -> dict[str, float]:
    """Output error after permuting heads, W_o's columns gathered by the rows' permutation or its inverse.

    Heads are any functions of their rows of W_q: head h gives tanh(W_h x), and W_o mixes them.
    """
    rng = np.random.default_rng(seed)
    heads, size = 4, 3
    w_q, w_o = rng.standard_normal((heads, size, 5)), rng.standard_normal((2, heads, size))
    x, order = rng.standard_normal(5), np.array([1, 2, 3, 0])
    before = np.einsum("ohd,hd->o", w_o, np.tanh(w_q @ x))
    found = {}
    for name, columns in (("same", order), ("inverse", np.argsort(order))):
        after = np.einsum("ohd,hd->o", w_o[:, columns], np.tanh(w_q[order] @ x))
        found[name] = float(np.abs(after - before).max() / np.abs(before).max())
    return found


def errata(degrees: float = 80.0, trace: float = 1e-3) -> list[Erratum]:
    """Every erratum, the theory's first, then storage's, then the tables'."""
    return [*_of_theory(degrees, trace), *_of_storage(), *_of_tables()]


def erratum_table(found: list[Erratum]) -> pd.DataFrame:
    """The errata as they stand on the page: place, printed, computed, why it matters."""
    names = {"computed": "comes out", "matters": "why it matters"}
    return pd.DataFrame([vars(one) for one in found]).rename(columns=names)


def _of_theory(degrees: float, trace: float) -> list[Erratum]:
    case, order, nats = counterexample(degrees, trace), order_of(rotation_by_size()), clip_bound()
    return [
        Erratum(
            "Thm 3.3",
            "sin Θ ≤ ‖ΔW‖₂ / (σₖ − σₖ₊₁), both values of W₀",
            f"sine {case['sine']:.3f} against a bound of {case['printed']:.3f}; with Wedin's gap "
            f"{case['corrected']:.3f}",
            "False without a condition on the gap of W₊. For updates small against the gap both bounds "
            "nearly agree.",
        ),
        Erratum(
            "text on Thm 3.3",
            "the effect is called quadratic in the update",
            f"the sine grows with power {order:.2f} of ‖ΔW‖₂",
            "It is linear. A small update still rotates little, but not as little as its square.",
        ),
        Erratum(
            "Lemma F.9",
            "a bound on the KL divergence under clipping",
            f"{nats:.0f} nats at {LENGTH} tokens and clip ratios {CLIP_LOW} and {CLIP_HIGH}",
            f"A divergence of that size excludes nothing (e^−{nats:.0f} of the probability). The clip ratios "
            "are DAPO's usual ones; the paper gives none.",
        ),
    ]


def _of_storage() -> list[Erratum]:
    missed = neighbours_called_unchanged()
    end = missed.loc[~missed["called_unchanged"], "lower"].min()
    up, down = exact_steps(1.0, 1e-6)
    return [
        Erratum(
            "Lemma E.1",
            "ULP(x)/|x| < 2⁻⁷",
            f"equal to 2⁻⁷ at {equalities_of_lemma_e_1()} normal values, the powers of two",
            "There the gap towards zero is half the other, and Lemma E.2's ½ ULP is a quarter on that side.",
        ),
        Erratum(
            "Cor. 3.6, Lemma E.2",
            "a stored weight changes if an update reaches ½ ULP",
            f"at 1.0 and lr 1e-6, {up} aligned steps upwards or {down} downwards do it together",
            "With float32 masters the accumulated displacement counts, not the single step: see the "
            "precision lens.",
        ),
        Erratum(
            "App. E",
            f"≈ {ULPS_BETWEEN} ULPs",
            f"1e-6 to 2e-6: {ulps_of_doubling(1e-6):.0f} ULPs of the smaller, {codes_between(1e-6, 2e-6)} "
            "bf16 values",
            "Spacing doubles on the way; doubling a number is always as many values. The argument stands.",
        ),
        Erratum(
            "App. E",
            "a tolerance of 1e-5 errs on both sides",
            f"on stored values on one side only: it misses every change below |w| = {end:.6f}, and none "
            "above",
            "Numbers further apart than the tolerance that Def. 2.1 calls unchanged share one bf16 value "
            "once stored.",
        ),
    ]


def _of_tables() -> list[Erratum]:
    printed, densities = averages(), mask_densities()
    wrong = printed[printed["differs"]]
    at_320 = printed[printed["steps"] == 320].set_index("mask")["computed"]
    across, within = sparsity_factors()
    errors = head_permutation_errors()
    return [
        Erratum(
            "Table 5, averages",
            ", ".join(wrong["average"]),
            ", ".join(wrong["computed"]),
            f"Rows {', '.join(wrong['mask'])}; the third is cut off, not rounded. The order of the masks "
            f"{'stays' if order_is_kept() else 'changes'}.",
        ),
        Erratum(
            "Table 4",
            f"the “safe” mask, M_low or not M_princ: {at_320['M_low or not M_princ']}",
            f"M_low alone, a smaller mask, stands above it: {at_320['M_low']}",
            "At 320 steps adding weights outside M_princ does not help. One run each, no intervals: "
            "neither order is sure.",
        ),
        Erratum(
            "Fig. 5, baseline",
            f"overlap with M_princ without M_low against α = {PRINCIPAL_SHARE}",
            f"that mask has density {densities['principal_not_low']:.3f}, by the shares of Tables 4 and 5",
            "Overlap with a mask is to be held against that mask's own density.",
        ),
        Erratum(
            "text on Table 1",
            "the gap between SFT and RL is called an order of magnitude",
            f"least RL over largest SFT: {across:.1f} times across bases, {within:.1f} on the one base "
            "with both",
            "The difference is clear in the table and smaller than said. Learning rates are not matched "
            "there.",
        ),
        Erratum(
            "App. D",
            "columns of W_o are gathered by the inverse permutation of heads",
            f"relative error of the output {errors['inverse']:.1f}; with the same permutation "
            f"{errors['same']:.0e}",
            "The inverse changes the function, unless the permutation is its own inverse.",
        ),
    ]
