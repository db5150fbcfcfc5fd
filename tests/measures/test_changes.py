from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.planted import planted
from threegates.checkpoints import pairs
from threegates.checkpoints.pairs import TensorPair, row_ranges, rows_of_pair
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError, PairError
from threegates.geometry.masks import pack, unpack
from threegates.jobs.nulls import founding_nulls
from threegates.measures import changes, draws
from threegates.measures.by_tensor import Shared
from threegates.measures.changes import (
    TENSOR_COLUMNS,
    PairTensors,
    axis_columns,
    count,
    difference,
    measure_pair,
    packed_masks,
    write_masks,
)
from threegates.measures.draws import EvenSample, even_sample

NULLS = founding_nulls()
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
    rows = tables["axis"].set_index(["tensor", "axis"])
    assert np.allclose(rows.loc[(Q, "row"), "ratio"], masks[Q].float().mean(1))
    assert np.allclose(rows.loc[(OUT, "column"), "ratio"], masks[OUT].float().mean(0))
    assert list(tables["axis"].columns) == list(axis_columns(()))
    assert len(tables["axis"]) == 2 * 7


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


def test_stripes_stand_out_from_every_null_and_noise_from_none(tmp_path):
    base = planted.base_tensors(width=64)
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "striped", planted.with_stripes(base, 1e-4, seed=1))
    planted.write(tmp_path / "noisy", planted.with_noise(base, 2e-4, seed=2))
    frames = {}
    for name in ("striped", "noisy"):
        pair = [Checkpoint.open(tmp_path / side) for side in ("base", name)]
        axis = measure_pair(*pair, name=name, draws=19, nulls=NULLS)["axis"]
        along = np.where(axis["role"] == "o", "column", "row")
        frames[name] = axis[axis["axis"] == along]
    for null in ("bernoulli", "storage_density", "storage_norm", "magnitude"):
        assert (frames["striped"][f"{null}_p"] == 0.05).all()
        assert (frames["striped"]["dispersion"] > 2 * frames["striped"][f"{null}_mean"]).all()
        assert (frames["noisy"][f"{null}_p"] > 0.05).sum() >= 5


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


@given(st.integers(0, 500), st.lists(st.integers(0, 90), max_size=9), st.integers(1, 60))
def test_a_sample_is_every_so_many_th_entry_whatever_the_pieces(size, cuts, limit):
    x = torch.arange(size, dtype=torch.int32)
    before, draws.SAMPLE = draws.SAMPLE, limit
    try:
        sample, start = EvenSample(size), 0
        for piece in [*cuts, size]:
            sample.add(x[start : start + piece])
            start += piece
        step = max(1, -(-size // limit))
        assert torch.equal(sample.entries(), x[::step]) and len(x[::step]) <= limit
        assert torch.equal(even_sample(x).entries(), x[::step])
    finally:
        draws.SAMPLE = before


def test_the_sample_of_a_streamed_tensor_does_not_keep_its_blocks(monkeypatch):
    monkeypatch.setattr(draws, "SAMPLE", 8)
    sample = EvenSample(64)
    for piece in torch.arange(64).split(16):
        sample.add(piece)
    assert sample.entries().untyped_storage().nbytes() == 8 * 8


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


AXIS = ("axis", "density", "ratio", "dispersion")


def rows_of(sides, **more):
    pair = PairTensors(*sides, "p", seed=3, nulls=NULLS, **more)
    return {name: pair.rows(name, Shared()) for name in pair.names}


@pytest.fixture
def noisy(tmp_path):
    base = planted.base_tensors(width=48)
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "tuned", planted.with_noise(base, 1e-3, seed=4))
    return [Checkpoint.open(tmp_path / side) for side in ("base", "tuned")]


@pytest.mark.parametrize("drawn", [0, 2])
def test_rows_of_any_blocks_are_the_same_but_for_rounding_of_norms(noisy, monkeypatch, drawn):
    whole = rows_of(noisy, draws=drawn)
    original = row_ranges
    monkeypatch.setattr(pairs, "row_ranges", lambda shape, entries=0: original(shape, 480))
    blocks = rows_of(noisy, draws=drawn)
    norms = {name for name in TENSOR_COLUMNS if name.startswith("norm_")}
    for name, found in blocks.items():
        for ours, theirs in zip(found["axis"], whole[name]["axis"], strict=True):
            assert [ours[key] for key in AXIS] == [theirs[key] for key in AXIS]
        for table in ("tensor", "tensor_sweep"):
            for ours, theirs in zip(found[table], whole[name][table], strict=True):
                same = {key: value for key, value in ours.items() if key in norms}
                assert same == pytest.approx({key: theirs[key] for key in same}, rel=1e-14)
                # The norm decides the scale of the noise that a row is held against: rounding shows there.
                rest = {key: value for key, value in ours.items() if isinstance(value, float)}
                assert rest == pytest.approx({key: theirs[key] for key in rest}, rel=1e-9, nan_ok=True)
                assert {key: ours[key] for key in ours.keys() - rest.keys()} == {
                    key: theirs[key] for key in ours.keys() - rest.keys()
                }


def test_only_a_matrix_that_is_drawn_for_is_held_as_a_whole(noisy, monkeypatch):
    held: list[str] = []
    load = changes.load_pair
    monkeypatch.setattr(
        changes, "load_pair", lambda base, tuned, name: held.append(name) or load(base, tuned, name)
    )
    rows_of(noisy)
    rows_of(noisy, axes=False, draws=2)
    assert held == []
    rows_of(noisy, draws=2)
    assert held == [
        name for name in PairTensors(*noisy, "p").names if ".layers." in name and "norm" not in name
    ]


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
