"""Rounding to bfloat16 against a search over every bfloat16 value."""

from __future__ import annotations

import numpy as np
import torch

from threegates.checkpoints.rounding import round_to_bf16

# Every finite non-negative bfloat16 value; the list index is the code.
CODES = torch.arange(0x7F80, dtype=torch.int16).view(torch.bfloat16).to(torch.float64).numpy()
# Where rounding goes over to the next code; the last one leads to infinity.
MIDPOINTS = (CODES + np.append(CODES[1:], 2.0**128)) / 2


def nearest_codes(x: np.ndarray) -> np.ndarray:
    """Codes of |x|: midpoints are exact in float64, so comparing with them decides; a tie goes to even."""
    size = np.abs(x)
    code = np.searchsorted(MIDPOINTS, size, side="left")
    tie = (code < len(MIDPOINTS)) & (MIDPOINTS[np.minimum(code, len(MIDPOINTS) - 1)] == size)
    return np.where(tie & (code % 2 == 1), code + 1, code)


def check(x: torch.Tensor) -> None:
    rounded = round_to_bf16(x)
    codes = (rounded.view(torch.int16).to(torch.int32) & 0x7FFF).numpy()
    assert rounded.dtype == torch.bfloat16
    assert np.array_equal(codes, nearest_codes(x.to(torch.float64).numpy()))
    assert torch.equal(rounded.signbit(), x.signbit())


def test_every_fp16_value_goes_to_the_nearest_code():
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)
    check(x[x.isfinite()])


def test_fp32_at_beside_and_between_all_midpoints():
    middle = torch.from_numpy(MIDPOINTS[:-1]).to(torch.float32)
    up, down = torch.tensor(torch.inf), torch.tensor(0.0)
    both = torch.cat([middle, torch.nextafter(middle, up), torch.nextafter(middle, down)])
    check(torch.cat([both, -both]))


def test_random_fp32_codes():
    codes = torch.randint(-(2**31), 2**31 - 1, (100_000,), generator=torch.Generator().manual_seed(3))
    x = codes.to(torch.int32).view(torch.float32)
    check(x[x.isfinite()])


def test_fp64_is_rounded_once_at_beside_and_between_all_midpoints():
    middle = torch.from_numpy(MIDPOINTS)
    sides = [torch.nextafter(middle, torch.tensor(side, dtype=torch.float64)) for side in (0.0, torch.inf)]
    # 2^-40 of the value is far below what float32 can hold, so float32 sees a tie that is none.
    near = [middle * (1 + 2.0**-40), middle * (1 - 2.0**-40)]
    x = torch.cat([middle, *sides, *near])
    check(torch.cat([x, -x]))


def test_rounding_fp64_by_way_of_fp32_would_be_wrong():
    x = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert x.to(torch.float32).to(torch.bfloat16).item() == 1.0
    assert round_to_bf16(x).item() == 1 + 2.0**-7


def test_fp64_beyond_fp32_and_not_finite():
    x = torch.tensor([1e300, -1e300, 1e-300, -1e-300, torch.inf, -torch.inf, 0.0, -0.0], dtype=torch.float64)
    rounded = round_to_bf16(x)
    assert rounded.tolist() == [torch.inf, -torch.inf, 0.0, 0.0, torch.inf, -torch.inf, 0.0, 0.0]
    assert torch.equal(rounded.signbit(), x.signbit())
    assert round_to_bf16(torch.tensor([torch.nan], dtype=torch.float64)).isnan().all()


def test_bf16_stays_and_shape_is_kept():
    x = torch.tensor([[1.0, -0.0], [3.0, 0.5]], dtype=torch.bfloat16)
    assert torch.equal(round_to_bf16(x), x)
    assert round_to_bf16(torch.zeros(3, 0, 2, dtype=torch.float64)).shape == (3, 0, 2)
