"""Estimators of KL(π‖π_ref) from tokens that π sampled, with r = π_ref/π and d = log r.

| name | value | expectation | mean of its gradient as a loss |
|---|---|---|---|
| k1 | −d | KL, unbiased | zero: the score's mean is zero, whatever the reference |
| k2 | d²/2 | biased | that of KL(π‖π_ref) |
| k3 | r − d − 1 ≥ 0 | KL, unbiased | that of KL(π_ref‖π) |

In a loss, on samples that are not differentiated through, k1 therefore pulls nowhere.

Source: Schulman (2020), Approximating KL Divergence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Estimator = Literal["k1", "k2", "k3"]


def k1(log_probs: Tensor, reference: Tensor) -> Tensor:
    """−d = log π − log π_ref: unbiased, of either sign."""
    return log_probs - reference


def k2(log_probs: Tensor, reference: Tensor) -> Tensor:
    """d²/2: biased, never negative, of low variance where the policies are near."""
    return (log_probs - reference).square() / 2


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """Schulman's k3 = e^d − d − 1 with d = log π_ref − log π: unbiased for KL(π‖π_ref), never negative."""
    difference = reference - log_probs
    return difference.exp() - difference - 1


ESTIMATORS: dict[Estimator, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_after(before: Tensor, after: Tensor) -> Tensor:
    """KL(π₊‖π) per token from tokens that the *former* policy π sampled: r log r − r + 1, r = π₊/π.

    before, after : log-probabilities of the tokens under π and π₊. Unbiased, given π's contexts (the control
    variate 1 − r has mean zero), never negative.
    """
    difference = after - before
    return difference.exp() * difference - difference.expm1()
