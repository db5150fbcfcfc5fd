"""REINFORCE++: the reward-to-go of every token, KL penalties in it, whitened over the batch.

Source: Hu (2025), arXiv 2501.03262.
"""

from __future__ import annotations

from threegates.lab.objectives import Algorithm

ALGORITHM = Algorithm("reinforce++", "batch", 0.2, 0.2, "token", "reward", 1e-3, False, 0)
