"""What rounding to codes explains: planted rounding is all of it, planted moves are none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.checkpoints.coded import BLOCKS, block_fp8, write_gguf
from tests.checkpoints.made import values, written
from threegates.checkpoints import pairs
from threegates.checkpoints.coded import GAPS, reading
from threegates.checkpoints.dequantised import dequantised
from threegates.checkpoints.gguf import open_gguf
from threegates.checkpoints.pairs import load_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.measures.by_tensor import Shared
from threegates.measures.floors import floor_numbers, floor_of
from threegates.measures.tensor_table import PairTable, table_columns

NAME = "model.layers.0.mlp.up_proj.weight"
SIZES = {"hidden": 128, "inner": 192, "blocks": 1, "heads": 4, "key_heads": 2, "vocabulary": 8}


def weights() -> dict[str, Tensor]:
    """One matrix in bf16, and what has no codes beside it."""
    return {NAME: values("up", (192, 128)).bfloat16(), "model.norm.weight": torch.ones(128)}


def coded(tmp_path, kind: str, tensors: dict[str, Tensor]) -> Checkpoint:
    if kind == "F8_E4M3":
        return dequantised(written(tmp_path / "fp8", block_fp8(tensors), **BLOCKS))
    return open_gguf(write_gguf(tmp_path / f"{kind}.gguf", tensors, SIZES, "qwen2", kind))


@pytest.mark.parametrize("kind", ["F8_E4M3", "Q8_0", "Q4_1"])
def test_rounding_alone_has_the_norm_of_the_floor_and_nothing_beyond_it(tmp_path, kind):
    """All that differs is what rounding took: to 5 % in norm, and no weight further than half a gap."""
    base, tuned = coded(tmp_path, kind, weights()), written(tmp_path / "plain", weights())
    floor = floor_of(base, tuned, NAME)
    assert floor is not None
    pair = load_pair(base, tuned, NAME)
    moved = pair.tuned_stored.double() - pair.base_stored.double()
    assert floor.norm == pytest.approx(float(moved.norm()), rel=0.05)
    assert floor.beyond == 0
    assert floor_of(tuned, base, NAME) == floor


@pytest.mark.parametrize("kind", ["F8_E4M3", "Q8_0", "Q4_1"])
def test_what_moved_by_a_gap_or_more_is_counted_to_the_weight(tmp_path, kind):
    base = coded(tmp_path, kind, weights())
    gaps = reading(base, GAPS).stored(NAME)
    chosen = torch.randperm(gaps.numel(), generator=torch.Generator().manual_seed(2))[:77]
    moved = weights()[NAME].float()
    moved.view(-1)[chosen] += torch.where(torch.arange(77) % 2 == 0, 1.7, -1.7) * gaps.view(-1)[chosen]
    tuned = written(tmp_path / "moved", weights() | {NAME: moved})
    assert floor_of(base, tuned, NAME).beyond == 77


def test_two_roundings_add_up_and_equal_codes_are_no_change(tmp_path):
    fp8, q4 = (coded(tmp_path, kind, weights()) for kind in ("F8_E4M3", "Q4_1"))
    plain = written(tmp_path / "plain", weights())
    one, other = floor_of(fp8, plain, NAME), floor_of(plain, q4, NAME)
    both = floor_of(fp8, q4, NAME)
    assert both.norm == pytest.approx(math.hypot(one.norm, other.norm), rel=1e-12)
    assert both.beyond == 0 == floor_of(fp8, fp8, NAME).beyond


def test_nothing_is_said_where_neither_side_is_rounded(tmp_path):
    base, tuned = coded(tmp_path, "Q8_0", weights()), written(tmp_path / "plain", weights())
    assert floor_of(base, tuned, "model.norm.weight") is None
    assert floor_numbers(tuned, tuned, NAME) == {}
    halves = coded(tmp_path, "F16", weights())
    assert floor_of(halves, tuned, NAME) is None


def test_blocks_of_rows_change_nothing(tmp_path, monkeypatch):
    base, tuned = coded(tmp_path, "F8_E4M3", weights()), written(tmp_path / "plain", weights())
    whole = floor_of(base, tuned, NAME)
    monkeypatch.setattr("threegates.measures.floors.row_ranges", lambda shape: pairs.row_ranges(shape, 1000))
    cut = floor_of(base, tuned, NAME)
    assert (cut.norm, cut.beyond) == (pytest.approx(whole.norm, rel=1e-12), whole.beyond)


def test_the_table_has_both_columns_and_leaves_them_empty_for_floats(tmp_path):
    base, tuned = coded(tmp_path, "F8_E4M3", weights()), written(tmp_path / "plain", weights())
    assert {"norm_floor", "changed_beyond"} <= set(table_columns(()))
    for spectra in (True, False):
        pair = PairTable(base, tuned, "pair", spectra=spectra)
        (row,), (norm,) = (pair.rows(name, Shared())["tensor"] for name in (NAME, "model.norm.weight"))
        assert (row["norm_floor"], row["changed_beyond"]) == (floor_of(base, tuned, NAME).norm, 0)
        assert row["stored_dtype_base"] == "F8_E4M3" and "norm_floor" not in norm
