from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.study import planted
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import CheckpointError, PairError
from threegates.geometry.masks import unpack
from threegates.study.measure import AXIS_COLUMNS, TENSOR_COLUMNS, measure_pair, write_masks

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
    assert list(tables["axis"].columns) == list(AXIS_COLUMNS)
    assert len(tables["axis"]) == 2 * 7


def test_norms_are_those_of_the_difference(flipped):
    base, tuned, _ = flipped
    row = measure_pair(base, tuned, name="p")["tensor"].set_index("tensor").loc[OUT]
    difference = tuned.bf16(OUT).double() - base.bf16(OUT).double()
    assert row["norm_delta_bf16"] == pytest.approx(float(difference.norm()))
    assert row["norm_base"] == pytest.approx(float(base.bf16(OUT).double().norm()))


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
        axis = measure_pair(*pair, name=name, draws=19)["axis"]
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
