"""Statements of the paper that need no checkpoint, the right ones too, each in the ways it may be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from threegates.chapters.errata import errata
from threegates.chapters.errata.estimates import NATS_THAT_SAY_NOTHING, unchanged_neighbours
from threegates.estimates.paper import averages

#: Digits of an output that are as good as all, and a power that is as good as two.
_KEPT, _QUADRATIC = 1e-10, 0.1
_ORDER_OF_MAGNITUDE = 10.0


@dataclass(frozen=True)
class Statement:
    """One place of the paper: what stands there, what comes out, how it holds, why it matters."""

    place: str
    printed: str
    computed: str
    readings: Mapping[str, bool]
    matters: str

    @property
    def told(self) -> str:
        """Each reading with yes or no."""
        return "; ".join(f"{reading}: {'yes' if holds else 'no'}" for reading, holds in self.readings.items())


def statements(degrees: float = 80.0, trace: float = 1e-3) -> list[Statement]:
    """Every statement, the theory's first, then storage's, the tables', and those on interventions.

    degrees, trace : of the counterexample to Theorem 3.3.
    """
    return [*_of_theory(degrees, trace), *_of_storage(), *_of_tables(), *_of_masks(), *_of_heads()]


def statement_table(found: list[Statement]) -> pd.DataFrame:
    """The statements as they stand on the page: place, printed, what comes out, holds, why it matters."""
    rows = [
        {
            "place": one.place,
            "printed": one.printed,
            "comes out": one.computed,
            "holds": one.told,
            "why it matters": one.matters,
        }
        for one in found
    ]
    return pd.DataFrame(rows)


def _of_theory(degrees: float, trace: float) -> list[Statement]:
    case, curve = errata.counterexample(degrees, trace), errata.counterexample_curve(trace)
    order, nats = errata.order_of(errata.rotation_by_size()), errata.clip_bound()
    held, clipped = errata.spectrum_bounds_held(), errata.clip_bound_held()
    return [
        Statement(
            "Thm 3.3",
            "sin Θ ≤ ‖ΔW‖₂ / (σₖ − σₖ₊₁), both values of W₀",
            f"sine {case['sine']:.3f} against a bound of {case['printed']:.3f}; with Wedin's gap "
            f"{case['corrected']:.3f}",
            {
                "for any update": bool(curve["printed_holds"].all()),
                "with Wedin's gap": bool(curve["corrected_holds"].all()),
                "with twice the bound": bool(curve["twice_holds"].all()),
            },
            "It lacks a condition on the gap of W₊. For updates small against the gap the bounds "
            "nearly agree.",
        ),
        Statement(
            "text on Thm 3.3",
            "the effect is called quadratic in the update",
            f"the sine grows with power {order:.2f} of ‖ΔW‖₂",
            {"of the sine": abs(order - 2) < _QUADRATIC, "of its square": abs(2 * order - 2) < _QUADRATIC},
            "A small update rotates little, but not as little as its square.",
        ),
        Statement(
            "Cor. 3.4, Cor. 3.5",
            "singular values move by at most ‖ΔW‖₂ each, ‖ΔW‖_F together, the k largest by k‖ΔW‖₂",
            f"{held.sum()} of {len(held)} drawn matrices and updates meet all three",
            {"for any update": bool(held.all())},
            "They are Weyl's, Mirsky's and Ky Fan's inequalities, and bound any update, SFT's too.",
        ),
        Statement(
            "Lemma F.9",
            "a bound on the KL divergence under clipping",
            f"{nats:.0f} nats at {errata.LENGTH} tokens and clip ratios {errata.CLIP_LOW} and "
            f"{errata.CLIP_HIGH}",
            {"as a bound": bool(clipped.all()), "as one that says something": nats < NATS_THAT_SAY_NOTHING},
            f"A divergence of that size excludes nothing (e^−{nats:.0f} of the probability). The clip ratios "
            "are DAPO's usual ones; the paper gives none.",
        ),
    ]


def _of_storage() -> list[Statement]:
    missed = errata.neighbours_called_unchanged()
    end = missed.loc[~missed["called_unchanged"], "lower"].min()
    unrounded = errata.errors_before_rounding()
    invented = float(errata.normal_values()[unrounded["invented"].argmax()])
    same, called = unchanged_neighbours(), missed["called_unchanged"].to_numpy()
    beyond, short = (errata.changed_around_half_a_ulp(beyond=one) for one in (True, False))
    ratios, equal = errata.ulp_ratios(), errata.equalities_of_lemma_e_1()
    up, down = errata.exact_steps(1.0, 1e-6)
    of_smaller, codes = errata.ulps_of_doubling(1e-6), errata.codes_between(1e-6, 2e-6)
    return [
        Statement(
            "Def. 2.1",
            "a weight is unchanged if it moved by at most a thousandth of itself",
            f"{(~same).sum()} of {len(same)} pairs of neighbouring bf16 values are called changed",
            {"as equality of stored values": not same.any()},
            "In bf16 the tolerance is none: neighbours lie further apart.",
        ),
        Statement(
            "Lemma E.1",
            "2⁻⁸ < ULP(x)/|x| < 2⁻⁷",
            f"from just above 2⁻⁸ to 2⁻⁷, which {equal} normal values have, the powers of two",
            {
                "both ends excluded": bool(((ratios > 2.0**-8) & (ratios < 2.0**-7)).all()),
                "upper end included": bool(((ratios > 2.0**-8) & (ratios <= 2.0**-7)).all()),
            },
            "At a power of two the gap towards zero is half the other.",
        ),
        Statement(
            "Lemma E.2, Cor. 3.6",
            "a stored weight changes if and only if an update reaches ½ ULP",
            f"changed without it: {short.sum()} of {short.size} values and sides, powers of two towards zero",
            {"past ½ ULP it changes": bool(beyond.all()), "short of it, it does not": not short.any()},
            f"At 1.0 and lr 1e-6, {up} aligned steps upwards or {down} downwards do it together: with "
            "float32 masters the accumulated displacement counts, not the single step.",
        ),
        Statement(
            "App. E",
            f"1e-6 and 2e-6 lie ≈ {errata.ULPS_BETWEEN} ULPs apart",
            f"{of_smaller:.0f} ULPs of the smaller, {codes} bf16 values",
            {
                "in ULPs of the smaller": round(of_smaller) == errata.ULPS_BETWEEN,
                "in bf16 values": codes == errata.ULPS_BETWEEN,
            },
            "Spacing doubles on the way; doubling a number is always as many values. The argument stands.",
        ),
        Statement(
            "App. E",
            "a tolerance of 1e-5 errs on both sides",
            f"of stored values it misses every change below |w| = {end:.6f}, and none above; before rounding "
            f"it also calls numbers from {invented:.6f} on changed that are stored as one value",
            {
                "of stored values": bool((called & ~same).any() and (~called & same).any()),
                "of values before rounding": all(one.any() for one in unrounded.values()),
            },
            "The second example has unrounded numbers, and is right of them. A checkpoint holds stored ones.",
        ),
    ]


def _of_tables() -> list[Statement]:
    printed, factors = averages(), errata.sparsity_factors()
    wrong, short = printed[printed["differs"]], printed[printed["steps"] == 320]
    bases = {name: factor for name, factor in factors.items() if name not in ("ends", "medians")}
    density = errata.mask_densities()["principal_not_low"]
    return [
        Statement(
            "Table 4, averages",
            f"averages of {len(short)} rows",
            "the same" if not short["differs"].any() else ", ".join(short["computed"]),
            {"as printed": not short["differs"].any()},
            "The scores are the paper's; averages are exact decimals, halves rounded up.",
        ),
        Statement(
            "Table 5, averages",
            ", ".join(wrong["average"]),
            ", ".join(wrong["computed"]),
            {"as printed": wrong.empty, "in the order of masks": errata.order_is_kept()},
            f"Rows {', '.join(wrong['mask'])}; the third is cut off, not rounded. What the table concludes "
            "does not hang on it.",
        ),
        Statement(
            "text on Table 1",
            "RL's sparsity is an order of magnitude above SFT's",
            f"least RL over largest SFT: {factors['ends']:.1f} times across bases; on bases that have both: "
            + ", ".join(f"{factor:.3g} ({name})" for name, factor in bases.items())
            + f"; median over median: {factors['medians']:.0f}",
            {
                "of every RL and every SFT": factors["ends"] >= _ORDER_OF_MAGNITUDE,
                "of their medians": factors["medians"] >= _ORDER_OF_MAGNITUDE,
            },
            "The difference is clear in the table; its size depends on the pair. Learning rates are not "
            "matched there.",
        ),
        Statement(
            "Fig. 5, baseline",
            f"overlap with M_princ without M_low against α = {errata.PRINCIPAL_SHARE}",
            f"that mask has density {density:.3f}, by the shares of Tables 4 and 5",
            {"as printed": abs(density - errata.PRINCIPAL_SHARE) < 0.05 * errata.PRINCIPAL_SHARE},
            "Overlap with a mask is to be held against that mask's own density.",
        ),
    ]


def _of_masks() -> list[Statement]:
    averaged, by_test = (errata.nearer_than("nearest", by) for by in ("of_average", "by_test"))
    blind = [errata.nearer_than("random", by) for by in ("of_average", "by_test")]
    low, last = errata.over_low_alone(), errata.over_principal()
    return [
        Statement(
            "Tables 4 and 5, text",
            "under the safe mask, M_low or not M_princ, training tracks the dense run",
            "nearer to the dense run than the nearest other mask by "
            + _by_steps(averaged)
            + ", in averages; by "
            + _by_steps(by_test)
            + ", test by test",
            {
                **{f"nearest mask at {steps} steps": gap >= 0 for steps, gap in averaged.items()},
                "nearest test by test": min(by_test.values()) >= 0,
                "nearer than a random mask of its size": min(min(one.values()) for one in blind) >= 0,
            },
            "In an average a test above the dense run makes up for one below it. One run each, no intervals.",
        ),
        Statement(
            "Tables 4 and 5, rows",
            "the safe mask beside its smaller part, M_low alone",
            f"above it, in points, by {_by_steps(low)}",
            {f"above it at {steps} steps": gap >= 0 for steps, gap in low.items()},
            "Whether weights outside M_princ add to those of low magnitude is not told by two tables that "
            "differ. The comparison is ours.",
        ),
        Statement(
            "Tables 4 and 5, text",
            "training principal weights alone falls behind",
            f"every other mask ends above M_princ, in points by at least {_by_steps(last)}",
            {"last of all masks": min(last.values()) > 0},
            "M_princ is also the smallest mask, beside its complement.",
        ),
    ]


def _by_steps(gaps: Mapping[int, float]) -> str:
    return " and ".join(f"{gap:.2f} at {steps} steps" for steps, gap in gaps.items()).replace("-", "−")


def _of_heads() -> list[Statement]:
    errors, turned = errata.head_permutation_errors(), errata.rotation_error()
    return [
        Statement(
            "App. D, permuted heads",
            "columns of W_o are taken by the inverse of the permutation of W_q's rows",
            f"relative error of the output {errors['inverse']:.1f} if columns are gathered by it, "
            f"{errors['matrix']:.0e} if W_o is multiplied by the inverse matrix",
            {"gathered by index": errors["inverse"] < _KEPT, "as a matrix": errors["matrix"] < _KEPT},
            f"By index the same permutation is right (error {errors['same']:.0e}); the two are one if it is "
            "its own inverse.",
        ),
        Statement(
            "App. D, rotated heads",
            "W_v R, b_v R and W_o R with one rotation in every head keep the function",
            f"relative error of the output {turned:.0e}",
            {"W_v from the right, W_o from the left": turned < _KEPT},
            "Exact until the weights are rounded to bf16 again.",
        ),
    ]
