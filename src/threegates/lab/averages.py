"""How losses average the tokens of a batch."""

from __future__ import annotations

from torch import Tensor


def average_tokens(values: Tensor, mask: Tensor, how: str) -> Tensor:
    """Mean over responses of token means ("sequence"), or mean over all tokens ("token"); a scalar."""
    if how == "sequence":
        return ((values * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
    return (values * mask).sum() / mask.sum().clamp(min=1)
