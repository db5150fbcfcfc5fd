"""GRPO: advantages within each prompt's samples, tokens averaged within each response.

Source: Shao et al. (2024), arXiv 2402.03300, eq. 3.
"""

from __future__ import annotations

from threegates.lab.objectives import Algorithm

ALGORITHM = Algorithm("grpo", "group", 0.2, 0.2, "sequence", "loss", 1e-3, False, 0)
