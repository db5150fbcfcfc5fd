"""Numbers printed in the paper, so that a page can set them beside ours; none is a result of this study."""

from __future__ import annotations

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
