"""Attention over stretches against torch's own over their concatenation."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from threegates.lab.lm.attention import Stretch, attend, causal_bias, padding_bias


def drawn(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("batches", [(1, 2, 6), (2, 6), (6,), (1,)])
def test_stretches_that_are_shared_are_as_if_each_query_had_its_own_copy(kv_heads, batches):
    query = drawn(6, 4, 6, 8, seed=0)
    stretches, keys, values = [], [], []
    for place, count in enumerate(batches):
        key, value = (drawn(kv_heads, count, 3 + place, 8, seed=10 * place + i) for i in (1, 2))
        stretches.append(Stretch(key, value))
        for into, x in ((keys, key), (values, value)):
            # (heads, batches, keys, dim) → (6, 6 heads, keys, dim)
            into.append(
                x.repeat_interleave(6 // count, 1).repeat_interleave(6 // kv_heads, 0).transpose(0, 1)
            )
    expected = scaled_dot_product_attention(query.transpose(1, 2), torch.cat(keys, 2), torch.cat(values, 2))
    torch.testing.assert_close(attend(query, stretches), expected.transpose(1, 2), atol=1e-6, rtol=1e-5)


def test_biases_hide_what_comes_later_and_what_is_padding():
    query, key, value = (drawn(2, 5, 3, 8, seed=seed) for seed in range(3))
    own = Stretch(key.permute(2, 0, 1, 3), value.permute(2, 0, 1, 3), causal_bias(5))
    by_head = [x.transpose(1, 2) for x in (query, key, value)]
    expected = scaled_dot_product_attention(*by_head, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(attend(query, [own]), expected, atol=1e-6, rtol=1e-5)
    padded = own.biased(padding_bias(torch.tensor([2, 5]), 5))
    found = attend(query, [padded])
    alone = attend(query[:1], [Stretch(own.keys[:, :1, :2], own.values[:, :1, :2])])
    torch.testing.assert_close(found[:1], alone, atol=1e-6, rtol=1e-5)
