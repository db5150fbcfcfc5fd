"""One row a tensor, against numpy and scipy, and where it comes from the same numbers as the other tables."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import torch

from tests.planted import planted
from threegates.checkpoints import pairs
from threegates.checkpoints.matching import brought_together
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry import decomposition, directions, spectral_norms
from threegates.jobs.nulls import founding_nulls
from threegates.measures import bases
from threegates.measures.by_tensor import Shared, measure_all
from threegates.measures.changes import measure_pair
from threegates.measures.drift import measure_drift
from threegates.measures.overlap import PairOverlap
from threegates.measures.tensor_table import MEASURED, SMALL_SIDE, PairTable, table_columns

NULLS = founding_nulls()
STATED = """
tensor shape size stored_dtype_base stored_dtype_tuned changed sparsity sparsity_fp32 norm_base norm_delta nss
k gap angle_left_max angle_left_mean angle_right_max angle_right_mean angle_bound angle_floor
overlap_principal density_principal overlap_low density_low
overlap_principal_not_low density_principal_not_low status
"""
ANGLES = ["angle_left_max", "angle_left_mean", "angle_right_max", "angle_right_mean"]
Q = "model.layers.0.self_attn.q_proj.weight"


def opened(folder, base, tuned):
    sides = {"base": base, "tuned": tuned}
    return [Checkpoint.open(planted.write(folder / name, tensors)) for name, tensors in sides.items()]


def table_of(folder, base, tuned):
    return measure_all(PairTable(*opened(folder, base, tuned), "p", nulls=NULLS))["tensor"].set_index(
        "tensor"
    )


def largest(values, count):
    mask = np.zeros(values.size, dtype=bool)
    mask[np.argsort(-values.ravel(), kind="stable")[:count]] = True
    return mask.reshape(values.shape)


def oracle(before, after):
    """What a row says of a matrix's spectra and overlaps, by full SVDs, sorts and bool sums."""
    a, b = before.double().numpy(), after.double().numpy()
    k = max(1, min(a.shape) // 8) if min(a.shape) < 512 else 64
    (ua, sa, va), (ub, sb, vb) = (np.linalg.svd(x, full_matrices=False) for x in (a, b))
    left = scipy.linalg.subspace_angles(ua[:, :k], ub[:, :k])
    right = scipy.linalg.subspace_angles(va[:k].T, vb[:k].T)
    stored = before.to(torch.bfloat16).double().numpy()
    u, s, v = np.linalg.svd(stored, full_matrices=False)
    principal = largest(np.abs((u[:, :k] * s[:k]) @ v[:k]), a.size // 2)
    low = largest(-np.abs(stored), a.size // 2)
    mask = (before.to(torch.bfloat16) != after.to(torch.bfloat16)).numpy()
    targets = {"principal": principal, "low": low, "principal_not_low": principal & ~low}
    return {
        "k": k,
        "nss": np.linalg.norm(sb - sa) / np.linalg.norm(sa),
        "gap": min(s[k - 1] - s[k] for s in (sa, sb)),
        "angle_left_max": left.max(),
        "angle_left_mean": left.mean(),
        "angle_right_max": right.max(),
        "angle_right_mean": right.mean(),
        **{f"overlap_{name}": (mask & target).sum() / mask.sum() for name, target in targets.items()},
        **{f"density_{name}": target.mean() for name, target in targets.items()},
    }


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    base = planted.base_tensors(width=64)
    tuned = planted.with_noise(base, 3e-4, seed=1)
    sides = opened(tmp_path_factory.mktemp("noisy"), base, tuned)
    return base, tuned, sides, measure_all(PairTable(*sides, "p", nulls=NULLS))["tensor"]


def test_every_stated_column_is_there_and_every_tensor_has_a_row(noisy):
    base, _, _, table = noisy
    columns = table_columns(NULLS)
    assert set(STATED.split()) <= set(columns) and list(table) == list(columns)
    assert set(table["tensor"]) == set(base) and (table["status"] == "compared").all()
    assert (table["spectra"] == MEASURED).sum() == 7


def test_matrices_agree_with_svds_and_full_sorts(noisy):
    base, tuned, _, table = noisy
    rows = table[table["spectra"] == MEASURED].to_dict("records")
    for row in rows:
        for name, value in oracle(base[row["tensor"]], tuned[row["tensor"]]).items():
            assert row[name] == pytest.approx(value, abs=1e-9), (row["tensor"], name)
        assert row["accuracy"] == "reference" and row["path"] == "svd" and row["proved"]
        assert 0 < row["angle_floor"] <= row["angle_bound"] < 1e-6 and row["resolved"] == 1
        assert row["overlap_low_bernoulli_low"] <= row["overlap_low_bernoulli_mean"] <= row["overlap_low"]


def test_a_side_beyond_the_svds_is_certified_and_agrees_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "REFERENCE_SIDE", 32)
    base = {Q: planted.base_tensors(width=128)[Q] * torch.linspace(0.2, 3, 128).bfloat16()}
    tuned = planted.with_noise(base, 3e-4, seed=1)
    row = measure_all(PairTable(*opened(tmp_path, base, tuned), "p"))["tensor"].iloc[0]
    assert row["accuracy"] == "certified" and row["path"] == "warm" and row["proof"] in ("weyl", "cholesky")
    for name, value in oracle(base[Q], tuned[Q]).items():
        exact = 1e-7 if name == "nss" else row["angle_bound"] if "angle" in name else 1e-6
        within = 2 / row["changed"] if "overlap" in name else exact
        assert row[name] == pytest.approx(value, abs=within), name
    assert row["angle_bound"] < 1e-4 < row["angle_left_max"]


@pytest.mark.parametrize(
    ("accuracy", "path", "proof"), [("fast", "warm", "assumed"), ("reference", "svd", "complete")]
)
def test_spectra_are_as_accurate_as_asked(tmp_path, monkeypatch, accuracy, path, proof):
    monkeypatch.setattr(bases, "REFERENCE_SIDE", 32)
    # The path of larger matrices.
    monkeypatch.setattr(decomposition, "SMALL", 0)
    base = {Q: planted.base_tensors(width=128)[Q] * torch.linspace(0.2, 3, 128).bfloat16()}
    tuned = planted.with_noise(base, 3e-4, seed=1)
    sides = opened(tmp_path, base, tuned)
    row = measure_all(PairTable(*sides, "p", accuracy=accuracy))["tensor"].iloc[0]
    assert (row["accuracy"], row["path"], row["proof"]) == (accuracy, path, proof)
    assert row["proved"] == (accuracy == "reference")
    for name, value in oracle(base[Q], tuned[Q]).items():
        exact = 1e-7 if name == "nss" else row["angle_bound"] if "angle" in name else 1e-6
        within = 2 / row["changed"] if "overlap" in name else exact
        assert row[name] == pytest.approx(value, abs=within), name
    certified = measure_all(PairTable(*sides, "p"))["tensor"].iloc[0]
    assert (row["angle_bound"] > certified["angle_bound"]) == (accuracy == "fast")


def test_an_update_of_float32_is_measured_as_stored_and_its_base_in_bf16_too(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "REFERENCE_SIDE", 32)
    base = {Q: planted.base_tensors(width=128)[Q].float() * torch.linspace(0.2, 3, 128) * 1.001}
    tuned = {Q: base[Q] + 1e-4 * torch.randn(128, 128, generator=torch.Generator().manual_seed(0))}
    row = measure_all(PairTable(*opened(tmp_path, base, tuned), "p"))["tensor"].iloc[0]
    delta = tuned[Q].double() - base[Q].double()
    assert row["norm_delta"] == pytest.approx(float(delta.norm()), rel=1e-12)
    assert row["spectral_norm_delta"] == pytest.approx(float(torch.linalg.matrix_norm(delta, 2)), rel=1e-6)
    for name, value in oracle(base[Q], tuned[Q]).items():
        exact = 1e-7 if name == "nss" else row["angle_bound"] if "angle" in name else 1e-6
        within = 2 / row["changed"] if "overlap" in name else exact
        assert row[name] == pytest.approx(value, abs=within), name


def test_the_numbers_are_those_of_the_other_tables(noisy):
    _, _, sides, table = noisy
    table = table.set_index("tensor")
    tensors = measure_pair(*sides, name="p")["tensor"].set_index("tensor")
    pd.testing.assert_frame_equal(table[list(tensors)], tensors)
    drift = measure_drift(*sides, name="p")["drift"].query("variant == 'raw'").set_index("tensor")
    for name in ("nss", "gap", *ANGLES):
        assert (table.loc[drift.index, name] == drift[name]).all()
    for name in ("stable_rank", "energy"):
        assert np.allclose(table.loc[drift.index, name], drift[name], rtol=1e-12, atol=0)


def test_stripes_stand_out_from_every_null_and_noise_from_none(tmp_path):
    base = planted.base_tensors(width=64)
    planted.write(tmp_path / "base", base)
    planted.write(tmp_path / "striped", planted.with_stripes(base, 1e-4, seed=1))
    planted.write(tmp_path / "noisy", planted.with_noise(base, 2e-4, seed=2))
    frames = {}
    for name in ("striped", "noisy"):
        pair = [Checkpoint.open(tmp_path / side) for side in ("base", name)]
        table = PairTable(*pair, name, axes=True, spectra=False, nulls=NULLS)
        axis = measure_all(table)["axis"]
        along = np.where(axis["role"] == "o", "column", "row")
        frames[name] = axis[axis["axis"] == along]
    for null in ("bernoulli", "storage_density", "storage_norm", "magnitude"):
        assert (frames["striped"][f"{null}_log10_p"] < -3).all()
        assert (frames["striped"]["dispersion"] > 2 * frames["striped"][f"{null}_mean"]).all()
        assert (frames["noisy"][f"{null}_log10_p"] > np.log10(0.05)).sum() >= 5


@pytest.mark.parametrize("tensor", [Q, "model.layers.0.mlp.down_proj.weight"])
def test_overlaps_and_laws_of_nulls_are_the_chapter_s(noisy, tensor):
    _, _, sides, table = noisy
    mine = table.set_index("tensor").loc[tensor]
    found = PairOverlap(*sides, "p", nulls=NULLS).rows(tensor, Shared())["overlap"]
    rows = [row for row in found if row["view"] == "bf16"]
    assert len(rows) == 3
    for row, null in itertools.product(rows, NULLS):
        stem = f"overlap_{row['target']}_{null.name}"
        law = {name: mine[f"{stem}_{name}"] for name in ("mean", "sd", "low", "high", "z", "log10_p", "how")}
        assert law == {name: row[f"{null.name}_{name}"] for name in law} and law["how"] == "law"
        observed = mine[f"overlap_{row['target']}"]
        assert observed == row["overlap"]
        assert law["z"] == pytest.approx((observed - law["mean"]) / law["sd"], rel=1e-12)
        assert (law["log10_p"] < np.log10(0.05)) == (not law["low"] <= observed <= law["high"]), stem


def test_the_norm_of_an_update_is_iterated_to_six_digits_here_and_to_the_last_in_the_drift(
    tmp_path, monkeypatch
):
    for module in (directions, spectral_norms):
        monkeypatch.setattr(module, "DENSE_SIDE", 16)
    base = {Q: planted.base_tensors(width=64)[Q]}
    tuned = planted.with_noise(base, 3e-3, seed=1)
    sides = opened(tmp_path, base, tuned)
    truth = np.linalg.norm(tuned[Q].double().numpy() - base[Q].double().numpy(), 2)
    drift = measure_drift(*sides, name="p")["drift"].query("variant == 'raw'").iloc[0]
    assert drift["spectral_norm_delta"] == pytest.approx(truth, rel=1e-11)
    monkeypatch.setattr(spectral_norms, "spectral_norm", None)
    row = measure_all(PairTable(*sides, "p"))["tensor"].iloc[0]
    assert truth * (1 - 1e-6) <= row["spectral_norm_delta"] <= truth * (1 + 1e-13)
    assert row["stable_rank"] == pytest.approx((row["norm_delta"] / truth) ** 2, rel=3e-6)


def test_what_has_no_spectra_says_why(tmp_path):
    base = planted.base_tensors() | {"model.layers.0.extra.weight": torch.zeros(0, 4, dtype=torch.bfloat16)}
    tuned = planted.with_noise(base, 1e-3, 1)
    tuned["model.embed_tokens.weight"] = torch.zeros(14, 32)
    del tuned["lm_head.weight"]
    table = table_of(tmp_path, base, tuned)
    assert table.loc["model.layers.0.input_layernorm.weight", "spectra"] == "not a matrix"
    assert table.loc["model.embed_tokens.weight", "spectra"] == "not compared: resized"
    assert table.loc["lm_head.weight", "spectra"] == "not compared: only-in-base"
    assert table.loc["model.layers.0.extra.weight", "spectra"] == "no entries"
    without = table[table["spectra"] != MEASURED]
    numbers = [
        name for name in table_columns(()) if name in ("k", "nss", "gap", "overlap_low", "proved", *ANGLES)
    ]
    beside = [name for name in table if name.startswith("overlap_")]
    assert len(beside) == 3 * (1 + 7 * len(NULLS))
    assert without[[*numbers, *beside]].isna().all(axis=None)
    head = opened(
        tmp_path / "again", planted.base_tensors(), planted.with_noise(planted.base_tensors(), 1e-3, 1)
    )
    assert (
        measure_all(PairTable(*head, "p"))["tensor"]
        .set_index("tensor")
        .loc[["lm_head.weight", "model.embed_tokens.weight"], "spectra"]
        .tolist()
        == ["not in a block"] * 2
    )


def test_an_unchanged_matrix_moves_nothing_and_overlaps_with_nothing(tmp_path):
    base = planted.base_tensors()
    row = (
        measure_all(PairTable(*opened(tmp_path, base, base), "p", nulls=NULLS))["tensor"]
        .set_index("tensor")
        .loc[Q]
    )
    assert row["path"] == "unchanged" and (row[["nss", *ANGLES]] == 0).all()
    assert (
        np.isnan(row["overlap_low"])
        and row["density_low"] == 0.5
        and np.isnan(row["overlap_low_bernoulli_log10_p"])
    )


TALL = "model.embed_tokens.weight"


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_an_embedding_has_the_spectrum_and_angles_of_its_smaller_side(tmp_path, stored, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", 700)
    generator = torch.Generator().manual_seed(0)
    tall = (torch.randn(300, 64, generator=generator) * torch.linspace(0.2, 3, 64)).bfloat16()
    after = (tall.float() + 1e-3 * torch.randn(300, 64, generator=generator)).to(stored)
    base, tuned = ({TALL: one, Q: torch.eye(64).bfloat16()} for one in (tall, after))
    table = table_of(tmp_path, base, tuned)
    row = table.loc[TALL]
    assert (row["spectra"], row["accuracy"], row["proof"]) == (SMALL_SIDE, "certified", "complete")
    for name, value in oracle(tall, after).items():
        if name in ("nss", "gap", "k") or "right" in name:
            within = row["angle_bound"] if "angle" in name else max(1e-9, row["nss_error"])
            assert row[name] == pytest.approx(value, abs=within), name
        else:
            assert pd.isna(row[name]), name
    assert (
        0 < row["angle_floor"] < row["angle_bound"] < 1e-8 < row["angle_right_max"] and row["resolved"] == 1
    )
    assert row["changed"] == int((tall != after.bfloat16()).sum())
    bare = measure_all(PairTable(*opened(tmp_path / "bare", base, tuned), "p", spectra=False))["tensor"]
    assert set(bare["spectra"]) == {"not in a block", "not asked for"}


def test_an_unchanged_embedding_moves_nothing_and_one_of_zeros_has_no_angles(tmp_path):
    tall = torch.randn(40, 24, generator=torch.Generator().manual_seed(0)).bfloat16()
    head = torch.zeros(40, 24).bfloat16()
    base = {TALL: tall, "lm_head.weight": head, Q: torch.eye(24).bfloat16()}
    table = table_of(tmp_path, base, base | {"lm_head.weight": head + 1})
    row = table.loc[TALL]
    assert row["path"] == "unchanged" and row["nss"] == row["angle_right_max"] == row["angle_bound"] == 0
    zero = table.loc["lm_head.weight"]
    assert pd.isna(zero["nss"]) and pd.isna(zero["angle_right_max"]) and zero["resolved"] == 0


def test_without_spectra_the_columns_stay_and_are_empty(noisy):
    _, _, sides, table = noisy
    bare = measure_all(PairTable(*sides, "p", nulls=NULLS, spectra=False))["tensor"]
    assert list(bare) == list(table) and MEASURED not in set(bare["spectra"])
    assert bare["nss"].isna().all() and bare.set_index("tensor").loc[Q, "spectra"] == "not asked for"
    pd.testing.assert_frame_equal(bare[["tensor", "sparsity"]], table[["tensor", "sparsity"]])


def test_a_base_is_decomposed_once_for_a_row(noisy, monkeypatch):
    _, _, sides, _ = noisy
    calls, original = [], bases.decompose_base_beside_spectrum
    monkeypatch.setattr(bases, original.__name__, lambda *a: calls.append(a) or original(*a))
    PairTable(*sides, "p", nulls=NULLS).rows(Q, Shared())
    assert len(calls) == 1


def test_where_no_subspace_leads_overlaps_with_it_are_empty_and_of_a_zero_base_all(tmp_path):
    q, o = (f"model.layers.0.self_attn.{one}_proj.weight" for one in ("q", "o"))
    base = planted.base_tensors(width=64)
    base[q], base[o] = 0.5 * torch.eye(64), torch.zeros(64, 64)
    tuned = planted.with_noise(base, 3e-3, 3)
    sides = [
        Checkpoint.open(planted.write(tmp_path / name, one)) for name, one in (("b", base), ("t", tuned))
    ]
    table = PairTable(*sides, "pair", nulls=NULLS)
    rows = pd.DataFrame([row for name in (q, o) for row in table.rows(name, Shared())["tensor"]])
    equal, zero = rows.reindex(columns=list(table.tables["tensor"])).to_dict("records")
    for row in (equal, zero):
        assert row["resolved"] == 0 and np.isnan(row["energy"]) and np.isnan(row["angle_left_max"])
        assert all(
            pd.isna(row[name]) for name in row if name.startswith(("overlap_principal", "density_principal"))
        )
    assert 0 <= equal["overlap_low"] <= 1 and equal["overlap_low_bernoulli_mean"] > 0
    assert pd.isna(zero["overlap_low"]) and pd.isna(zero["nss"]) and zero["changed"] > 0


@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, True)])
def test_experts_that_both_sides_stack_have_spectra_one_by_one(tmp_path, transposed):
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(3, 20, 32, generator=generator)
    tuned = base + 0.1 * torch.randn(3, 20, 32, generator=generator)
    name = "model.layers.0.mlp.experts.{}down_proj{}"
    sides = (
        planted.base_tensors() | {name.format("", ""): value.transpose(1, 2).contiguous() if turn else value}
        for value, turn in zip((base, tuned), transposed, strict=True)
    )
    pair = brought_together(*opened(tmp_path, *sides))
    table = measure_all(PairTable(*pair, "p"))["tensor"].set_index("tensor")
    # Which way round a stack lies that both sides have alike, nothing says here: its spectra are the same.
    for number in range(3):
        row = table.loc[name.format(f"{number}.", ".weight")]
        a, b = (np.linalg.svd(x[number].double().numpy(), compute_uv=False) for x in (base, tuned))
        assert (row["spectra"], row["role"], row["stack"], row["layer"]) == (MEASURED, "down", "decoder", 0)
        assert row["nss"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a), rel=1e-4)
        assert row["changed"] == (base[number].bfloat16() != tuned[number].bfloat16()).sum()
    assert name.format("", "") not in table.index
