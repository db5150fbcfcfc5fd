"""Logits in float32 from a head in bfloat16, and log-probabilities of tokens with their gradient.

A product in bfloat16 is rounded when it is written: of logits near 20, to steps of 1/8. Its sums are taken in
float32, so a second product that starts at minus the first leaves what rounding took away. Two products in
bfloat16 cost less than one in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def logits_of(hidden: Tensor, head: Tensor) -> Tensor:
    """h Wᵀ in float32, (rows, vocabulary), from hidden states and a head of one type.

    Where that type is bfloat16, with relative errors near 2⁻¹⁶ of the largest logit.
    """
    rounded = F.linear(hidden, head)
    if rounded.dtype == torch.float32:
        return rounded
    lost = torch.addmm(rounded, hidden, head.T, beta=-1)
    return rounded.float().add_(lost)


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(h Wᵀ) at given rows and tokens; the softmax is formed once, in the backward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
        logits = logits_of(hidden, head)
        normaliser = logits.logsumexp(-1)
        ctx.save_for_backward(hidden, head, rows, tokens, logits, normaliser)
        return logits[rows, tokens] - normaliser[rows]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, head, rows, tokens, logits, normaliser = ctx.saved_tensors
        # d log p[token]/d logits = one-hot − softmax, summed over the tokens that share a row.
        of_row = torch.zeros_like(normaliser).index_add_(0, rows, gradient)
        change = (logits - normaliser[:, None]).exp_().mul_(-of_row[:, None])
        change.index_put_((rows, tokens), gradient, accumulate=True)
        change = change.to(hidden.dtype)
        return change @ head, change.T @ hidden, None, None


def log_probs_of(hidden: Tensor, head: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """Log-probability of ``tokens`` under softmax(h Wᵀ) of ``rows``, float32, of the shape of both.

    hidden : (rows, width), head : (vocabulary, width), of one type; a row may be asked about several tokens.
    """
    return _TokenLogProbs.apply(hidden, head, rows, tokens)  # type: ignore[no-untyped-call]
