from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import brentq
from scipy.special import ndtr

from tests.planted import planted
from tests.planted.searched_noise import storage_scale_for_norm
from threegates.checkpoints import pairs
from threegates.checkpoints.pairs import TensorPair, row_ranges, rows_of_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError, PairError
from threegates.geometry.laws.codes import CodeCounter
from threegates.geometry.masks import pack, unpack
from threegates.geometry.precision import gaps_beyond
from threegates.measures import changes
from threegates.measures.by_tensor import Shared
from threegates.measures.changes import (
    TENSOR_COLUMNS,
    PairTensors,
    count,
    difference,
    measure_pair,
    numbers_by_codes,
    packed_masks,
    write_masks,
)

Q = "model.layers.0.self_attn.q_proj.weight"
OUT = "model.layers.0.self_attn.o_proj.weight"


@pytest.fixture
def flipped(tmp_path):
    base = planted.base_tensors()
    tuned, masks = planted.with_flips(base, {Q: 17, OUT: 300, "lm_head.weight": 1})
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "tuned", tuned)
    return Checkpoint.open(tmp_path / "base"), Checkpoint.open(tmp_path / "tuned"), masks


def test_planted_masks_are_counted_exactly(flipped):
    base, tuned, masks = flipped
    tables = measure_pair(base, tuned, name="p")
    tensor = tables["tensor"].set_index("tensor")
    assert list(tables["tensor"].columns) == list(TENSOR_COLUMNS)
    assert dict(tensor["changed"]) == {name: int(mask.sum()) for name, mask in masks.items()}
    assert tensor.loc[Q, "sparsity"] == 1 - 17 / 1024 and tensor.loc[Q, "role"] == "q"
    assert set(tables) == {"tensor", "tensor_sweep"}


def test_norms_are_those_of_the_difference(flipped):
    base, tuned, _ = flipped
    row = measure_pair(base, tuned, name="p")["tensor"].set_index("tensor").loc[OUT]
    difference = tuned.bf16(OUT).double() - base.bf16(OUT).double()
    assert row["norm_delta_bf16"] == pytest.approx(float(difference.norm()))
    assert row["norm_base"] == pytest.approx(float(base.bf16(OUT).double().norm()))


def test_of_bf16_on_both_sides_what_is_stored_is_what_bf16_shows(tmp_path):
    base = planted.base_tensors()
    base[Q][0, :3] = torch.tensor([0.0, -0.0, 0.0])
    tuned = {name: weight.clone() for name, weight in base.items()}
    tuned[Q][0, :4] = torch.tensor([-0.0, 0.0, 1.0, 2.0])
    sides = [
        Checkpoint.open(planted.write(tmp_path / name, one)) for name, one in (("a", base), ("b", tuned))
    ]
    row = measure_pair(*sides, name="p")["tensor"].set_index("tensor").loc[Q]
    before, after = (side[Q].double().numpy() for side in (base, tuned))
    assert row["changed_stored"] == row["changed"] == (before != after).sum() == 2
    assert row["norm_delta"] == row["norm_delta_bf16"] == pytest.approx(np.linalg.norm(after - before))


def test_fp32_and_bf16_sparsity_differ_where_storage_hides_updates(tmp_path):
    base = planted.base_tensors()
    tuned = {name: weight.float() * (1 + 2**-12) for name, weight in base.items()}
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "tuned", tuned)
    pair = [Checkpoint.open(tmp_path / side) for side in ("base", "tuned")]
    row = measure_pair(*pair, name="p")["tensor"].set_index("tensor").loc[Q]
    assert row["sparsity"] == 1.0 and row["sparsity_fp32"] == 0.0
    assert row["norm_delta"] > 0 and row["norm_delta_bf16"] == 0
    assert row["sparsity_storage_norm"] == 1.0, "no stored update, so no noise"


def test_noise_of_equal_norm_predicts_the_sparsity_of_planted_noise(tmp_path):
    base = planted.base_tensors(width=64)
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "tuned", planted.with_noise(base, 2e-4, seed=3))
    pair = [Checkpoint.open(tmp_path / side) for side in ("base", "tuned")]
    rows = measure_pair(*pair, name="p")["tensor"]
    rows = rows[rows["role"].isin(["q", "k", "v", "o", "gate", "up", "down"])]
    error = (rows["sparsity"] - rows["sparsity_storage_norm"]).abs()
    assert (error < 5 * rows["sparsity_storage_norm_sd"] + 0.02).all()
    assert rows["sparsity"].between(0.2, 0.9).all()


def test_a_head_that_one_side_lacks_and_a_resized_embedding_keep_a_row(tmp_path):
    base = planted.base_tensors()
    tuned = dict(base)
    tuned["model.embed_tokens.weight"] = torch.zeros(14, 32, dtype=torch.bfloat16)
    del tuned["lm_head.weight"]
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "tuned", tuned)
    pair = [Checkpoint.open(tmp_path / side) for side in ("base", "tuned")]
    rows = measure_pair(*pair, name="p")["tensor"].set_index("tensor")
    assert rows.loc["lm_head.weight", "status"] == "only-in-base"
    assert rows.loc["model.embed_tokens.weight", "status"] == "resized"
    assert list(rows.loc["model.embed_tokens.weight", "shape_tuned"]) == [14, 32]
    assert math.isnan(rows.loc["lm_head.weight", "sparsity"]) and rows.loc[Q, "status"] == "compared"


def test_packed_masks_unpack_to_the_planted_ones(flipped, tmp_path):
    base, tuned, masks = flipped
    write_masks(base, tuned, tmp_path / "masks.safetensors")
    packed = load_file(tmp_path / "masks.safetensors")
    with safe_open(tmp_path / "masks.safetensors", "pt") as file:
        assert Q in file.metadata()["shapes"]
    for name, mask in masks.items():
        assert torch.equal(unpack(packed[name], mask.shape), mask)


def test_a_truncated_shard_is_refused_by_name(flipped, tmp_path):
    path = tmp_path / "tuned" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="model.safetensors"):
        Checkpoint.open(tmp_path / "tuned")


def test_a_value_that_is_not_finite_is_refused_in_a_tensor_that_is_only_reported(tmp_path):
    tensors = planted.base_tensors()
    resized = tensors | {"model.embed_tokens.weight": torch.zeros(20, 32, dtype=torch.bfloat16)}
    resized["model.embed_tokens.weight"][3, 4] = torch.nan
    base = Checkpoint.open(planted.write(tmp_path / "base", tensors))
    tuned = Checkpoint.open(planted.write(tmp_path / "tuned", resized))
    with pytest.raises(PairError, match=r"model\.embed_tokens\.weight"):
        measure_pair(base, tuned, name="pair")


def test_sparsity_at_coarser_tolerances_counts_by_definition_2_1(tmp_path):
    base = planted.base_tensors()
    tuned = planted.with_noise(base, 1e-3, 1)
    tables = measure_pair(
        Checkpoint.open(planted.write(tmp_path / "b", base)),
        Checkpoint.open(planted.write(tmp_path / "t", tuned)),
        name="p",
    )
    for row in tables["tensor_sweep"].itertuples():
        before, after = base[row.tensor].double(), tuned[row.tensor].to(torch.bfloat16).double()
        changed = (after - before).abs() > row.eta * torch.maximum(before.abs(), after.abs())
        assert row.changed == int(changed.sum()) and row.sparsity == 1 - row.changed / row.size
    whole = tables["tensor"].set_index("tensor")
    coarse = tables["tensor_sweep"].query("eta == 0.01").set_index("tensor")
    # Noise of the stored norm is as sparse as this planted noise, at any tolerance.
    linear = coarse["role"].isin(["q", "k", "v", "o", "gate", "up", "down"])
    assert (coarse["sparsity"] - coarse["sparsity_storage_norm"])[linear].abs().max() < 0.05
    assert (coarse["sparsity"] > whole["sparsity"])[linear].all()
    assert (coarse["sparsity_fp32"] == whole["sparsity_fp32"]).all()


# --- by blocks of rows


def planted_pair(shape, seed=0, store=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).bfloat16()
    tuned = (base.float() + 4e-3 * torch.randn(shape, generator=generator)).to(store)
    return TensorPair("w", base, tuned.bfloat16(), base, tuned)


SHAPES = st.one_of(
    st.tuples(st.integers(0, 40)),
    st.tuples(st.integers(0, 25), st.integers(0, 25)),
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6)),
    st.just(()),
)


@given(SHAPES, st.integers(1, 300), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_counts_do_not_depend_on_the_blocks_and_norms_only_by_rounding(shape, entries, store):
    pair = planted_pair(shape, store=store)
    mask, etas = pair.base != pair.tuned, (5e-3, 1e-2)
    found, whole = count(rows_of_pair(pair, entries), etas), count(rows_of_pair(pair), etas)
    assert (found.counts.changed, found.counts.size) == (int(mask.sum()), mask.numel())
    assert found.counts.shape == tuple(shape)
    if len(shape) == 2:
        assert torch.equal(found.counts.rows, mask.sum(1)) and torch.equal(found.counts.columns, mask.sum(0))
    before, after = pair.base.double(), pair.tuned.double()
    assert found.stored == int((pair.base_stored.double() != pair.tuned_stored.double()).sum())
    for eta in etas:
        beyond = (after - before).abs() > eta * torch.maximum(before.abs(), after.abs())
        assert found.coarse[eta] == int(beyond.sum())
    delta = pair.tuned_stored.double() - pair.base_stored.double()
    for name, value in (("base", before), ("delta", delta), ("delta_bf16", after - before)):
        norm = getattr(found, f"norm_{name}")
        assert norm == pytest.approx(float(value.norm()), rel=1e-12, abs=0)
        assert getattr(whole, f"norm_{name}") == pytest.approx(norm, rel=1e-14, abs=0)


@given(SHAPES, st.integers(1, 300))
def test_whoever_looks_on_sees_every_block_of_the_base_once_in_order(shape, entries):
    pair, seen = planted_pair(shape), []
    count(rows_of_pair(pair, entries), look=seen.append)
    flat = torch.cat([block.reshape(-1) for block in seen]) if seen else pair.base.reshape(-1)[:0]
    assert all(block.dtype == torch.bfloat16 for block in seen) and torch.equal(flat, pair.base.reshape(-1))


@given(SHAPES, st.integers(1, 300))
def test_pieces_of_a_packed_mask_are_the_packed_mask(shape, entries):
    pair = planted_pair(shape)
    pieces = list(packed_masks(rows_of_pair(pair, entries)))
    assert torch.equal(torch.cat(pieces), pack(pair.base != pair.tuned))


@given(st.tuples(st.integers(0, 25), st.integers(0, 25)), st.integers(1, 50))
def test_the_update_in_float64_is_the_difference_by_blocks(shape, entries):
    pair = planted_pair(shape)
    original = row_ranges
    changes.row_ranges = lambda shape: original(shape, entries)
    try:
        found = difference(pair.tuned_stored, pair.base_stored)
    finally:
        changes.row_ranges = original
    assert torch.equal(found, pair.tuned_stored.double() - pair.base_stored.double())


@pytest.fixture
def noisy(tmp_path):
    base = planted.base_tensors(width=48)
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "tuned", planted.with_noise(base, 1e-3, seed=4))
    return [Checkpoint.open(tmp_path / side) for side in ("base", "tuned")]


def rows_of(sides):
    pair = PairTensors(*sides, "p")
    return {name: pair.rows(name, Shared()) for name in pair.names}


def test_rows_of_any_blocks_are_the_same_but_for_rounding_of_norms(noisy, monkeypatch):
    whole = rows_of(noisy)
    original = row_ranges
    monkeypatch.setattr(pairs, "row_ranges", lambda shape, entries=0: original(shape, 480))
    blocks = rows_of(noisy)
    for name, found in blocks.items():
        for table in ("tensor", "tensor_sweep"):
            for ours, theirs in zip(found[table], whole[name][table], strict=True):
                # The norm decides the scale of the noise that a row is held against: rounding shows there.
                rest = {key: value for key, value in ours.items() if isinstance(value, float)}
                assert rest == pytest.approx({key: theirs[key] for key in rest}, rel=1e-11, nan_ok=True)
                assert {key: ours[key] for key in ours.keys() - rest.keys()} == {
                    key: theirs[key] for key in ours.keys() - rest.keys()
                }


# --- noise of the stored norm

#: Every finite code once, and where a sum beyond the largest of them lies.
CODES = np.unique(torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16).double().numpy())
CODES = np.concatenate([[-(2.0**128)], CODES[np.isfinite(CODES)], [2.0**128]])
BORDERS = (CODES[1:] + CODES[:-1]) / 2


def summed_over_all_codes(base, scale):
    """E ‖round(w + s Z) − w‖², cell by cell."""
    total = 0.0
    for weight in base.double().flatten().tolist():
        z = np.concatenate([[-np.inf], (BORDERS - weight) / scale, [np.inf]])
        chance = np.where(z[:-1] > 0, ndtr(-z[:-1]) - ndtr(-z[1:]), ndtr(z[1:]) - ndtr(z[:-1]))
        total += float(((CODES - weight) ** 2 * chance).sum())
    return total


@pytest.mark.parametrize("step", [1e-4, 3e-3, 0.4])
def test_noise_of_the_stored_norm_is_that_of_a_sum_over_all_codes(tmp_path, step):
    base = {Q: planted.base_tensors()[Q][:5, :6].clone()}
    base[Q][0, :3] = torch.tensor([0.0, -0.0, 1e-39])
    tuned = planted.with_noise(base, step, seed=6)
    sides = [Checkpoint.open(planted.write(tmp_path / n, x)) for n, x in (("b", base), ("t", tuned))]
    tables = measure_pair(*sides, name="p")
    row = tables["tensor"].iloc[0]
    norm = float((tuned[Q].bfloat16().double() - base[Q].double()).norm())
    assert row["norm_delta_bf16"] == pytest.approx(norm) and norm > 0
    exact = np.exp(
        brentq(
            lambda log: summed_over_all_codes(base[Q], np.exp(log)) / norm**2 - 1,
            np.log(step / 50),
            np.log(step * 50),
            xtol=1e-13,
            rtol=1e-15,
        )
    )
    assert row["storage_norm_scale"] == pytest.approx(exact, rel=1e-10)
    # The share of weights that such noise leaves where Definition 2.1 sees no change, by the gaps of each.
    found = [(1e-3, row["sparsity_storage_norm"])]
    found += list(tables["tensor_sweep"][["eta", "sparsity_storage_norm"]].itertuples(index=False))
    for eta, share in found:
        down, up = gaps_beyond(base[Q], eta)
        moved = ndtr(-down.numpy() / exact) + ndtr(-up.numpy() / exact)
        assert share == pytest.approx(1 - moved.mean(), abs=1e-10)
        spread = np.sqrt((moved * (1 - moved)).sum()) / moved.size
        assert eta != 1e-3 or row["sparsity_storage_norm_sd"] == pytest.approx(spread, rel=1e-8)


@given(SHAPES, st.integers(1, 300))
def test_noise_is_the_same_to_the_last_bit_whatever_the_blocks(shape, entries):
    pair, counters = planted_pair(shape), (CodeCounter(), CodeCounter())
    counted = count(rows_of_pair(pair), (), counters[0].add)
    count(rows_of_pair(pair, entries), (), counters[1].add)
    one, other = (numbers_by_codes(counted, counter.whole()) for counter in counters)
    assert str(one) == str(other)


def test_the_scale_is_what_the_search_with_noise_finds(noisy):
    rows = rows_of(noisy)
    for name in (Q, OUT):
        row, base = rows[name]["tensor"][0], noisy[0].bf16(name)
        searched = storage_scale_for_norm(base, row["norm_delta_bf16"], 7, draws=16)
        # The norm of one draw varies by about 1/√(2 size).
        assert row["storage_norm_scale"] == pytest.approx(searched, rel=0.02)


def test_no_tensor_is_held_as_a_whole(noisy, monkeypatch):
    held: list[int] = []
    monkeypatch.setattr(pairs, "row_ranges", lambda shape, entries=0: row_ranges(shape, 480))
    monkeypatch.setattr(CodeCounter, "add", lambda self, piece: held.append(piece.numel()))
    monkeypatch.setattr(changes, "numbers_by_codes", lambda *_: {})
    monkeypatch.setattr(changes, "_coarse_rows", lambda *_: [])
    rows_of(noisy)
    assert 0 < max(held) <= 480


def test_masks_are_written_a_block_at_a_time_as_safetensors_would(noisy, tmp_path, monkeypatch):
    base, tuned = noisy
    original = row_ranges
    sizes: list[int] = []
    monkeypatch.setattr(pairs, "row_ranges", lambda shape, entries=0: original(shape, 100))
    monkeypatch.setattr(changes, "update_mask", lambda a, b: sizes.append(a.numel()) or a != b)
    write_masks(base, tuned, tmp_path / "masks.safetensors")
    assert max(sizes) <= 100
    expected = {name: pack(base.bf16(name) != tuned.bf16(name)) for name in base.infos}
    with safe_open(tmp_path / "masks.safetensors", "pt") as file:
        metadata = file.metadata()
    save_file(expected, tmp_path / "theirs", metadata=metadata)
    assert (tmp_path / "masks.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_masks_file_of_a_damaged_pair_is_not_left_half_written(noisy, tmp_path):
    path = tmp_path / "tuned" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = b"\xff\xff\xff\x7f"
    path.write_bytes(content)
    out = tmp_path / "out"
    with pytest.raises(PairError, match="not finite"):
        write_masks(noisy[0], Checkpoint.open(tmp_path / "tuned"), out / "masks.safetensors")
    assert list(out.iterdir()) == []
