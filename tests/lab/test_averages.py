"""The two ways of averaging tokens, by hand."""

from __future__ import annotations

import pytest
import torch

from threegates.lab.averages import average_tokens


def test_averages_by_hand():
    values = torch.tensor([[1.0, 2.0, 6.0], [4.0, 100.0, 100.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert float(average_tokens(values, mask, "sequence")) == pytest.approx((3 + 4) / 2)
    assert float(average_tokens(values, mask, "token")) == pytest.approx(13 / 4)
