"""Estimators of KL(π‖π_ref) from tokens that π sampled.

Source: Schulman (2020), Approximating KL Divergence.
"""

from __future__ import annotations

from torch import Tensor


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 = e^d − d − 1 with d = log π_ref − log π: unbiased for KL(π‖π_ref), never negative."""
    difference = reference - log_probs
    return difference.exp() - difference - 1
