"""Overlaps and directions on pairs whose update is planted, against a plain numpy computation."""

from __future__ import annotations

import dataclasses
from itertools import islice

import numpy as np
import pandas as pd
import pytest
import torch

from tests.planted import planted
from threegates.checkpoints.tensors import Checkpoint
from threegates.geometry.laws.masks import see
from threegates.geometry.masks import update_mask
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.null import Observed
from threegates.geometry.precision import ETA
from threegates.geometry.principal import headline_rank
from threegates.jobs.nulls import FOUNDING, founding_nulls
from threegates.measures.overlap import (
    ALPHAS,
    DIRECTION_COLUMNS,
    DIRECTION_SWEEP_COLUMNS,
    ETAS,
    FRAMES,
    RANKS,
    dtype_name,
    measure_overlap,
    overlap_columns,
    sweep_columns,
    sweep_ranks,
)

NULLS = founding_nulls()
Q = "model.layers.0.self_attn.q_proj.weight"
WIDTH = 64


def matrices(base):
    return [name for name in base if "_proj" in name]


def measured(folder, base, tuned, **options):
    planted.write(folder / "base", base)
    planted.write(folder / "tuned", tuned)
    sides = (Checkpoint.open(folder / side) for side in ("base", "tuned"))
    return measure_overlap(*sides, name="p", **{"nulls": NULLS, **options})


def largest(values, count):
    """Mask of the `count` largest entries, those of lowest flat index first."""
    mask = np.zeros(values.size, dtype=bool)
    mask[np.argsort(-values.ravel(), kind="stable")[:count]] = True
    return mask.reshape(values.shape)


def by_hand(weight, k, alpha):
    """Principal, low, and principal but not low, by a full SVD and full sorts."""
    w = weight.double().numpy()
    u, s, vh = np.linalg.svd(w, full_matrices=False)
    count = int(np.floor(alpha * w.size + 0.5))
    principal = largest(np.abs((u[:, :k] * s[:k]) @ vh[:k]), count)
    low = largest(-np.abs(w), count)
    return {"principal": principal, "low": low, "principal_not_low": principal & ~low}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    base = planted.base_tensors(width=WIDTH)
    tuned = planted.with_noise(base, 3e-4, seed=1)
    return base, tuned, measured(tmp_path_factory.mktemp("noisy"), base, tuned)


def test_tables_have_their_columns_and_a_row_for_every_matrix_view_and_target(noisy):
    base, _, tables = noisy
    kinds = {"overlap": overlap_columns(NULLS), "sweep": sweep_columns(NULLS), "direction": DIRECTION_COLUMNS}
    kinds |= {"direction_sweep": DIRECTION_SWEEP_COLUMNS}
    assert {table: list(frame) for table, frame in tables.items()} == {t: list(c) for t, c in kinds.items()}
    number = len(matrices(base))
    grid = len(sweep_ranks((WIDTH, WIDTH))) * len(ALPHAS)
    # Three targets in float32, and in bf16 at each tolerance.
    swept = number * 3 * (1 + len(ETAS)) * grid
    directions = [number * 2, number * 2 * len(sweep_ranks((WIDTH, WIDTH)))]
    assert [len(tables[t]) for t in kinds] == [number * 6, swept, *directions]
    assert set(tables["overlap"]["role"]) == {"q", "k", "v", "o", "gate", "up", "down"}
    assert set(tables["overlap"]["stored_dtype_tuned"]) == {"F32"}


def test_overlaps_are_those_of_full_sorts(noisy):
    base, tuned, tables = noisy
    rows = tables["overlap"].set_index(["tensor", "view", "target"])
    for name in matrices(base):
        k = headline_rank(base[name].shape)
        delta = (tuned[name] - base[name].float()).abs().numpy()
        masks = {
            "bf16": (tuned[name].to(torch.bfloat16) != base[name]).numpy(),
            "fp32": largest(delta, delta.size // 2),
        }
        for target, marked in by_hand(base[name], k, 0.5).items():
            for view, mask in masks.items():
                row = rows.loc[name, view, target]
                assert row["overlap"] == (mask & marked).sum() / mask.sum()
                assert row["density"] == marked.mean() and row["k"] == k
                assert row["lift"] == pytest.approx(row["overlap"] / row["density"])
                assert row["lift_low"] < row["lift"] < row["lift_high"]


def test_the_sweep_holds_the_headline_and_agrees_with_full_sorts(noisy):
    base, tuned, tables = noisy
    k = headline_rank(base[Q].shape)
    at_headline = tables["sweep"].query(f"eta == {ETA} or eta.isna()")
    sweep = at_headline.set_index(["tensor", "view", "target", "k", "alpha"])
    head = tables["overlap"].set_index(["tensor", "view", "target", "k", "alpha"])
    swept = sweep["overlap"].reindex(head.index)
    assert swept.notna().all() and np.allclose(head["overlap"], swept, atol=2e-3)
    mask = (tuned[Q].to(torch.bfloat16) != base[Q]).numpy()
    for rank in sweep_ranks(base[Q].shape):
        for alpha in ALPHAS:
            marked = by_hand(base[Q], rank, alpha)["principal"]
            found = sweep.loc[Q, "bf16", "principal", rank, alpha]
            assert found["overlap"] == pytest.approx((mask & marked).sum() / mask.sum(), abs=2 / mask.sum())
    assert k in sweep_ranks(base[Q].shape)


@pytest.mark.parametrize("eta", [5e-3, 1e-2])
def test_the_sweep_at_a_coarser_tolerance_leaves_small_changes_out(noisy, eta):
    base, tuned, tables = noisy
    sweep = tables["sweep"].query("eta == @eta and k == 4 and alpha == 0.5").set_index(["tensor", "target"])
    before, after = base[Q].double(), tuned[Q].to(torch.bfloat16).double()
    mask = ((after - before).abs() > eta * torch.maximum(before.abs(), after.abs())).numpy()
    assert 0 < mask.sum() < (after != before).sum()
    for target, marked in by_hand(base[Q], 4, 0.5).items():
        found = sweep.loc[(Q, target)]
        assert found["changed"] == mask.sum()
        assert found["overlap"] == pytest.approx((mask & marked).sum() / mask.sum(), abs=2 / mask.sum())


@pytest.mark.parametrize(("eta", "k", "alpha"), [(ETA, 4, 0.5), (ETA, 16, 0.1), (5e-3, 8, 0.3)])
def test_means_of_the_sweep_are_those_of_drawn_masks(noisy, eta, k, alpha):
    base, tuned, tables = noisy
    after = tuned[Q].to(torch.bfloat16)
    mask = update_mask(base[Q], after, eta)
    norm = float((after.double() - base[Q].double()).norm())
    scale = see(base[Q], mask, norm=norm).scale
    at = None if eta == ETA else eta
    observed = Observed("r", Q, base[Q], mask, int(mask.sum()), scale, at)
    marked = by_hand(base[Q], k, alpha)
    cells = tables["sweep"].query(
        "tensor == @Q and view == 'bf16' and eta == @eta and k == @k and alpha == @alpha"
    )
    found = cells.set_index("target")
    for null in NULLS:
        if null.uniform:
            continue
        masks = islice(null.sampler(observed, noise_generator(0, null.name)), 400)
        shares = np.array(
            [[(m.numpy() & one).sum() / int(m.sum()) for one in marked.values()] for m in masks]
        )
        error = 4.5 * shares.std(axis=0) / 20 + 1e-3
        means = found.loc[list(marked), f"{null.name}_mean"]
        assert (np.abs(means - shares.mean(axis=0)) < error).all()


def test_means_of_the_sweep_at_the_headline_are_those_of_the_laws(noisy):
    keys = ["tensor", "target"]
    swept = {"bf16": ("storage_density", "storage_norm", "magnitude"), "fp32": ("magnitude",)}
    for view, nulls in swept.items():
        head = noisy[2]["overlap"].query(f"view == '{view}'").set_index(keys)
        cells = noisy[2]["sweep"].query(f"(eta == {ETA} or eta.isna()) and alpha == .5 and view == '{view}'")
        cells = cells[cells["k"] == cells["tensor"].map(head["k"].groupby("tensor").first())].set_index(keys)
        for null in nulls:
            law, mean = head[f"{null}_mean"], cells[f"{null}_mean"].reindex(head.index)
            # A few weights lie on other sides of a threshold by rounding.
            assert np.allclose(law, mean, atol=2e-3) and set(head[f"{null}_how"]) == {"law"}


def test_nulls_without_a_law_are_drawn(tmp_path):
    bare = [dataclasses.replace(null, name=f"{null.name}_bare", law=None) for null in NULLS[1:2]]
    base = planted.base_tensors()
    tables = measured(tmp_path, base, planted.with_noise(base, 3e-4, 1), nulls=[*NULLS, *bare])
    rows = tables["overlap"].query("view == 'bf16'")
    assert set(rows["storage_density_bare_how"]) == {"drawn"}
    spread = rows["storage_density_sd"] / 200**0.5
    apart = (rows["storage_density_bare_mean"] - rows["storage_density_mean"]) / spread
    assert apart.abs().max() < 4.5
    swept = tables["sweep"].query("view == 'bf16'").groupby(["eta", "target"]).mean(numeric_only=True)
    assert np.allclose(swept["storage_density_bare_mean"], swept["storage_density_mean"], atol=0.01)


def test_directions_over_ranks_are_energies_of_blocks(noisy):
    base, tuned, tables = noisy
    rows = tables["direction_sweep"].query("tensor == @Q and view == 'fp32'").set_index("k")
    delta = tuned[Q].double() - base[Q].double()
    u, _, vh = torch.linalg.svd(base[Q].double())
    for k, row in rows.iterrows():
        block = u[:, :k].T @ delta @ vh[:k].T
        assert row["rho2"] == pytest.approx(float((block.norm() / delta.norm()) ** 2), rel=1e-6)
        assert row["rotation_mean"] == pytest.approx(k**2 / delta.numel())


def test_planted_avoidance_of_principal_weights_is_seen_against_every_null(tmp_path):
    base = planted.base_tensors(width=WIDTH)
    tuned = dict(base)
    generator = torch.Generator().manual_seed(5)
    for name in matrices(base):
        weight = base[name].float()
        principal = torch.from_numpy(by_hand(base[name], headline_rank(weight.shape), 0.5)["principal"])
        chosen = (torch.rand(weight.shape, generator=generator) < 0.4) & ~principal
        tuned[name] = torch.where(chosen, weight * (1 + 2**-6), weight)
    tables = measured(tmp_path, base, tuned)
    rows = tables["overlap"].query("target == 'principal'")
    assert (rows["overlap"] == 0).all()
    for null in FOUNDING:
        seen = rows[rows["view"] == "bf16"]
        assert (seen[f"{null}_z"] < -5).all() and (seen[f"{null}_log10_p"] < -12).all()
    for null in ("bernoulli", "magnitude"):
        assert (rows.loc[rows["view"] == "fp32", f"{null}_z"] < -5).all()
    assert (
        rows.loc[rows["view"] == "fp32", ["storage_density_mean", "storage_norm_mean"]]
        .isna()
        .to_numpy()
        .all()
    )


def test_planted_storage_noise_stands_out_from_bernoulli_but_not_from_the_storage_nulls(tmp_path):
    base = planted.base_tensors(width=WIDTH)
    seeds = [measured(tmp_path / str(seed), base, planted.with_noise(base, 3e-4, seed)) for seed in (1, 2, 3)]
    rows = pd.concat([tables["overlap"] for tables in seeds])
    seen = rows.query("view == 'bf16' and target == 'principal'")
    assert len(seen) == 21
    for null in ("storage_density", "storage_norm"):
        assert abs(seen[f"{null}_z"].mean()) < 3.5 / len(seen) ** 0.5
        assert (seen[f"{null}_log10_p"] <= -1).sum() <= 7
    # The paper's own baseline takes the same noise for avoidance.
    assert (seen["lift"] < 1).mean() > 0.8 and seen["bernoulli_z"].mean() < -1
    low = rows.query("view == 'bf16' and target == 'low'")
    assert (low["bernoulli_z"] > 5).all() and abs(low["magnitude_mean"] - low["overlap"]).max() < 0.02
    largest_changes = rows.query("view == 'fp32' and target == 'principal'")
    assert abs(largest_changes["bernoulli_z"].mean()) < 3.5 / len(largest_changes) ** 0.5


def projected(base, inside, seed=9, scale=1e-3):
    """Runs whose update lies in the block of the leading singular directions, or has nothing there."""
    tuned, generator = {}, torch.Generator().manual_seed(seed)
    for name, weight in base.items():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if name in matrices(base):
            k = headline_rank(weight.shape)
            u, _, vh = torch.linalg.svd(weight.double(), full_matrices=False)
            u, v = u[:, :k], vh[:k].T
            block = u @ (u.T @ noise @ v) @ v.T
            noise = block if inside else noise - block
        tuned[name] = weight.double() + scale * noise
    return tuned


@pytest.mark.parametrize("inside", [True, False])
def test_an_update_in_or_off_the_principal_block_is_told_from_random_frames(inside, tmp_path):
    base = planted.base_tensors(width=WIDTH)
    rows = measured(tmp_path, base, projected(base, inside))["direction"].query("view == 'fp32'")
    assert np.allclose(rows["rho2"], float(inside), atol=1e-12)
    assert (np.sign(rows["rotation_z"]) == (1 if inside else -1)).all() and (
        rows["rotation_z"].abs() > 3
    ).all()
    assert np.allclose(rows["rotation_log10_p"], np.log10(2 / (1 + FRAMES)))
    assert np.allclose(rows["rotation_mean"], rows["expected"], rtol=0.2)
    sides = np.array([min(base[name].shape) for name in rows["tensor"]])
    assert (rows["stable_rank"] >= 1).all() and (rows["stable_rank"] <= sides).all()


def matched(folder, base, tuned, partner):
    planted.write(folder / "partner", partner)
    options = {"partner": Checkpoint.open(folder / "partner"), "partner_name": "r"}
    return measured(folder, base, tuned, **options)


def test_a_scaled_update_has_the_partners_norm_and_is_rounded_like_any(tmp_path):
    base = planted.base_tensors(width=WIDTH)
    tuned, partner = planted.with_noise(base, 3e-3, 3), planted.with_noise(base, 3e-4, 4)
    tables = matched(tmp_path, base, tuned, partner)
    start, delta = base[Q].double(), tuned[Q].double() - base[Q].double()
    norm = (partner[Q].double() - start).norm()
    scaled = start + norm / delta.norm() * delta
    mask = (scaled.to(torch.bfloat16) != base[Q]).numpy()
    marked = by_hand(base[Q], 8, 0.5)["principal"]
    own = tables["overlap"].query("tensor == @Q and target == 'principal'").set_index(["variant", "view"])
    found = own.loc[("norm-matched", "bf16")]
    assert found["overlap"] == pytest.approx((mask & marked).sum() / mask.sum(), abs=1e-12)
    assert found["changed"] == mask.sum() < own.loc[("raw", "bf16"), "changed"]
    assert found["partner"] == "r" and own.loc[("raw", "bf16"), "partner"] == ""
    # Scaling does not change which changes are the largest, nor where their energy is.
    assert own.loc[("norm-matched", "fp32"), "overlap"] == own.loc[("raw", "fp32"), "overlap"]
    energy = tables["direction"].query("tensor == @Q").set_index(["variant", "view"])["rho2"]
    assert energy["norm-matched", "fp32"] == pytest.approx(energy["raw", "fp32"], rel=1e-6)
    u, _, vh = torch.linalg.svd(start)
    moved = scaled.to(torch.bfloat16).double() - start
    by_frames = float((u[:, :8].T @ moved @ vh[:8].T).norm() / moved.norm()) ** 2
    assert energy["norm-matched", "bf16"] == pytest.approx(by_frames, rel=1e-9)
    swept = tables["sweep"].query("variant == 'norm-matched'")
    assert len(swept) and swept["storage_norm_mean"].isna().all()


def test_what_was_measured_without_a_partner_is_the_same_with_one(tmp_path):
    base = planted.base_tensors()
    tuned, partner = planted.with_noise(base, 3e-3, 3), planted.with_noise(base, 3e-4, 4)
    alone, beside = measured(tmp_path, base, tuned), matched(tmp_path, base, tuned, partner)
    for table, frame in alone.items():
        kept = beside[table].query("variant == 'raw'").reset_index(drop=True)
        pd.testing.assert_frame_equal(frame, kept)
        assert len(beside[table]) == 2 * len(frame)


def test_an_update_of_zero_is_not_scaled(tmp_path):
    base = planted.base_tensors()
    partner = planted.with_noise(base, 3e-4, 4)
    tables = matched(tmp_path, base, planted.with_noise(base, 3e-3, 3) | {Q: base[Q]}, partner)
    assert set(tables["overlap"].query("tensor == @Q")["variant"]) == {"raw"}


def test_without_nulls_there_are_no_columns_of_them_and_an_unchanged_matrix_has_no_overlap(tmp_path):
    base = planted.base_tensors()
    tuned = planted.with_noise(base, 3e-4, 1) | {Q: base[Q]}
    tables = measured(tmp_path, base, tuned, nulls=())
    assert not {f"{null}_mean" for null in FOUNDING} & {*tables["overlap"], *tables["sweep"]}
    moved = tables["direction"].query("tensor != @Q")
    assert (moved.query("view == 'bf16'")["rotation_z"].isna()).all()
    assert (moved.query("view == 'fp32'")["rotation_z"].notna()).all()
    still = tables["overlap"].query("tensor == @Q")
    assert (still["changed"] == 0).all() and still["overlap"].isna().all()
    assert (
        tables["direction"]
        .set_index("tensor")
        .loc[[Q], ["rho2", "stable_rank", "rotation_z"]]
        .isna()
        .to_numpy()
        .all()
    )
    empty = measured(tmp_path / "again", base, tuned)["overlap"].query("tensor == @Q")
    assert empty["bernoulli_mean"].isna().all()


def test_one_seed_gives_one_table_and_another_seed_other_frames_alone(noisy, tmp_path):
    base, tuned, tables = noisy
    again = measured(tmp_path / "a", base, tuned)
    other = measured(tmp_path / "b", base, tuned, seed=1)
    for table, frame in tables.items():
        pd.testing.assert_frame_equal(frame, again[table])
    for table in ("overlap", "sweep", "direction_sweep"):
        pd.testing.assert_frame_equal(tables[table], other[table])
    assert not tables["direction"]["rotation_mean"].equals(other["direction"]["rotation_mean"])


def test_ranks_of_the_sweep_ascend_hold_the_headline_and_stay_few_for_wide_matrices():
    assert sweep_ranks((64, 128)) == [4, 8, 16, 32]
    assert sweep_ranks((1, 9)) == [1]
    assert sweep_ranks((4096, 11008)) == list(RANKS)


def test_a_matrix_with_a_long_side_goes_through_certified_triplets(tmp_path):
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(512, 512, generator=generator).to(torch.bfloat16)
    base = {Q: weight}
    tuned = {Q: weight.float() + 1e-2 * torch.randn(512, 512, generator=generator)}
    tables = measured(tmp_path, base, tuned, nulls=())
    row = tables["overlap"].query("view == 'bf16' and target == 'principal'").iloc[0]
    mask = (tuned[Q].to(torch.bfloat16) != weight).numpy()
    marked = by_hand(weight, 64, 0.5)["principal"]
    assert row["k"] == 64
    assert row["overlap"] == pytest.approx((mask & marked).sum() / mask.sum(), abs=4 / mask.sum())


def test_types_are_named_as_in_a_safetensors_header():
    assert dtype_name(torch.zeros(1, dtype=torch.bfloat16)) == "BF16"
    assert dtype_name(torch.zeros(1, dtype=torch.float64)) == "F64"
