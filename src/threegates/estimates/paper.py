"""Numbers printed in the paper, so that a page can set them beside ours; none is a result of this study."""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

import pandas as pd

_TABLE_1 = """
Qwen2.5-Math-1.5B|DS-R1-Distill-Qwen-1.5B|SFT|mixed|2.8
DS-R1-Distill-Qwen-1.5B|DeepScaleR-1.5B-Preview|GRPO|math|53.8
DS-R1-Distill-Qwen-1.5B|DeepCoder-1.5B-Preview|GRPO|code|45.5
DS-R1-Distill-Qwen-1.5B|Archer-Code-1.5B|GRPO|code|52.5
DS-R1-Distill-Qwen-1.5B|NV-ProRL|GRPO|mixed|38.4
DS-R1-Distill-Qwen-1.5B|NV-ProRL-v2|REINFORCE++|mixed|36.3
Qwen3-8B-Base|Klear-Reasoner-8B-SFT|SFT|math and code|0.6
Klear-Reasoner-8B-SFT|Klear-Reasoner-8B|GRPO|math and code|69.5
Qwen3-8B-Base|GT-Qwen3-8B-Base|GRPO|math|79.9
Qwen3-8B-Base|the authors' own, unpublished|DAPO|math|79.7
Qwen3-14B-Base|UniReason-Qwen3-14B-think-SFT|SFT|math|18.8
Qwen3-14B-Base|UniReason-Qwen3-14B-RL|GRPO|math|68.3
Qwen3-4B|Polaris-4B-Preview|DAPO|math|79.3
DS-R1-Distill-Qwen-7B|Polaris-7B-Preview|DAPO|math|61.7
Qwen3-30B-A3B|UloRL-A3B|GRPO|math|91.7
"""
_TABLE_2 = {
    "q": (0.580, 0.430),
    "k": (0.580, 0.413),
    "v": (0.597, 0.467),
    "o": (0.552, 0.373),
    "gate": (0.575, 0.437),
    "up": (0.578, 0.443),
    "down": (0.585, 0.453),
}
# Scores on MATH500, AMC23, AIME24 and AIME25, the printed average, and the share of linear parameters.
_TABLES_4_5 = """
320|dense|84.20 81.56 36.98 27.03|57.44|100
320|M_princ|83.60 77.19 30.16 24.32|53.82|50
320|not M_princ|82.70 78.90 34.28 25.73|55.40|50
320|M_low|84.50 80.08 35.62 26.56|56.69|58.59
320|M_low or not M_princ|85.20 78.83 34.74 26.20|56.24|74.02
320|random|84.50 77.35 34.48 25.01|55.34|74.02
500|dense|84.5 83.52 38.28 28.075|58.59|100
500|M_princ|83.60 78.83 34.06 25.63|55.44|50
500|not M_princ|84.0 77.97 38.64 27.81|56.90|50
500|M_low|83.8 82.42 37.03 27.82|57.77|58.59
500|M_low or not M_princ|84.10 81.41 40.30 27.70|58.37|74.02
500|random|84.10 81.72 34.69 27.34|56.89|74.02
"""


def table_1() -> pd.DataFrame:
    """Shares of weights unchanged in bf16: base, tuned, method, data, sparsity in [0, 1].

    **Source** Zhu et al. (2025), Table 1.
    """
    rows = [line.split("|") for line in _TABLE_1.split("\n") if line]
    frame = pd.DataFrame(rows, columns=["base", "tuned", "method", "data", "sparsity"])
    return frame.assign(sparsity=frame["sparsity"].astype(float) / 100)


def sparsity_ranges() -> dict[str, tuple[float, float]]:
    """Smallest and largest sparsity that the paper reports for SFT and for RL.

    **Source** Zhu et al. (2025), Table 1.
    """
    table = table_1()
    kinds = table["method"].where(table["method"] == "SFT", "RL")
    found = table.groupby(kinds)["sparsity"].agg(["min", "max"])
    return {kind: (float(low), float(high)) for kind, low, high in found.itertuples()}


def table_2() -> pd.DataFrame:
    """Mean Jaccard index of five RL runs and its Bernoulli expectation, layer 13 of DS-Qwen-1.5B.

    **Source** Zhu et al. (2025), Table 2.
    """
    rows = [(role, *values) for role, values in _TABLE_2.items()]
    return pd.DataFrame(rows, columns=["role", "paper_jaccard", "paper_bernoulli"])


def tables_4_and_5() -> pd.DataFrame:
    """Sparse fine-tuning under fixed masks: steps, mask, scores and average as printed, share of parameters.

    Scores stay text, digits as printed, so that averages can be taken exactly. Table 4 is of 320 steps,
    Table 5 of 500.

    **Source** Zhu et al. (2025), Tables 4 and 5.
    """
    rows = [line.split("|") for line in _TABLES_4_5.split("\n") if line]
    frame = pd.DataFrame(rows, columns=["steps", "mask", "scores", "average", "share"])
    return frame.assign(steps=frame["steps"].astype(int), share=frame["share"].astype(float) / 100)


def exact_average(scores: str) -> Decimal:
    """Mean of printed scores, exactly."""
    numbers = [Decimal(x) for x in scores.split()]
    return sum(numbers, Decimal(0)) / len(numbers)


def half_up(points: float | Decimal) -> Decimal:
    """Two decimals, halves rounded up, as tables of the paper have them; floats by the digits they print."""
    exact = points if isinstance(points, Decimal) else Decimal(f"{points:.9f}")
    return exact.quantize(Decimal("0.01"), ROUND_HALF_UP)


def averages() -> pd.DataFrame:
    """Tables 4 and 5 with the average of each row computed, and whether the printed one differs.

    Columns beside theirs: exact, the mean itself; computed, as printed with two decimals; differs.
    """
    frame = tables_4_and_5()
    exact = frame["scores"].map(exact_average)
    computed = exact.map(half_up).map(str)
    return frame.assign(exact=exact.astype(float), computed=computed, differs=computed != frame["average"])
