from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from tests.planted import planted
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.geometry.laws.law import DRAWN, LAW
from threegates.geometry.masks import jaccard
from threegates.jobs.nulls import founding_nulls
from threegates.measures import agreement
from threegates.measures.agreement import (
    columns_of,
    consensus_map,
    measure_agreement,
    rank_correlations,
)
from threegates.measures.by_tensor import measure_all
from threegates.measures.changes import COARSE_ETAS
from threegates.measures.tensor_table import PairTable

NULLS = founding_nulls()


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """Fewer masks and counts of lines: those are proved in `tests/geometry/laws`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("threegates.measures.null_laws.LINE_DRAWS", 100)
        patch.setattr("threegates.measures.null_laws.DRAWS", 40)
        yield


Q = "model.layers.0.self_attn.q_proj.weight"


def opened(folder, base, runs):
    planted.write(folder / "base", base)
    for name, tensors in runs.items():
        planted.write(folder / name, tensors)
    return Checkpoint.open(folder / "base"), {name: Checkpoint.open(folder / name) for name in runs}


def test_planted_masks_have_their_jaccard_and_consensus(tmp_path):
    base = planted.base_tensors()
    flips = {seed: planted.with_flips(base, {Q: 400}, seed) for seed in (1, 2, 3)}
    checkpoints = opened(tmp_path, base, {f"r{seed}": tuned for seed, (tuned, _) in flips.items()})
    tables = measure_agreement(*checkpoints, of_layer=0, nulls=NULLS)
    rows = tables["agreement"].set_index(["tensor", "run_a", "run_b"])
    masks = {f"r{seed}": masks[Q] for seed, (_, masks) in flips.items()}
    for a, b in (("r1", "r2"), ("r1", "r3"), ("r2", "r3")):
        assert rows.loc[(Q, a, b), "jaccard"] == jaccard(masks[a], masks[b])
    assert rows.loc[(Q, "r1", "r2"), "density_a"] == 400 / 1024
    seen = tables["map"].query("role == 'q' and kind == 'observed'").iloc[0]
    expected = sum(mask.float() for mask in masks.values()) / 3
    assert np.allclose(consensus_map(seen), expected)
    assert set(tables["map"]["kind"]) == {
        "observed",
        "bernoulli",
        "storage_density",
        "storage_norm",
        "magnitude",
    }


def test_tables_have_their_columns_and_rows(tmp_path):
    base = planted.base_tensors()
    checkpoints = opened(tmp_path, base, {f"r{s}": planted.with_noise(base, 2e-4, s) for s in (1, 2, 3)})
    tables = measure_agreement(*checkpoints, of_layer=0, nulls=NULLS)
    columns = columns_of(NULLS)
    assert {name: list(frame.columns) for name, frame in tables.items()} == {
        k: list(v) for k, v in columns.items()
    }
    assert len(tables["agreement"]) == 7 * 3 and len(tables["rates"]) == 7 * 3 * 2
    assert len(tables["axis"]) == 7 * 3 * 2


def test_coordinate_blind_noise_beats_bernoulli_but_not_the_storage_nulls(tmp_path):
    base = planted.base_tensors(width=64)
    checkpoints = opened(tmp_path, base, {f"r{s}": planted.with_noise(base, 1.5e-4, s) for s in range(4)})
    rows = measure_agreement(*checkpoints, of_layer=0, nulls=NULLS, maps=False)["agreement"]
    assert (rows["jaccard"] - rows["bernoulli"]).mean() > 0.05
    for null in ("storage_density", "storage_norm"):
        assert abs((rows["jaccard"] - rows[f"{null}_mean"]).mean()) < 0.01
        assert 0.3 < (10 ** rows[f"{null}_log10_p"]).mean() < 0.7


def test_shared_stripes_beat_every_null(tmp_path):
    base = planted.base_tensors(width=64)
    checkpoints = opened(
        tmp_path, base, {f"r{s}": planted.with_stripes(base, 5e-5, s, 8.0) for s in range(3)}
    )
    tables = measure_agreement(*checkpoints, of_layer=0, nulls=NULLS, maps=False)
    rows, rates = tables["agreement"], tables["rates"]
    for null in ("storage_density", "magnitude"):
        assert (rows[f"{null}_log10_p"] < -2).all() and (rows[f"{null}_how"] == LAW).all()
    along = np.where(rates["role"] == "o", "column", "row")
    assert (rates.loc[rates["axis"] == along, "spearman"] > 0.5).all()


def test_the_axis_rows_are_those_of_the_table_of_a_pair(tmp_path):
    base = planted.base_tensors()
    checkpoint, runs = opened(tmp_path, base, {"r1": planted.with_noise(base, 2e-4, 1)})
    alone = measure_all(PairTable(checkpoint, runs["r1"], "r1", 2, axes=True, spectra=False, nulls=NULLS))
    group = measure_agreement(checkpoint, runs, of_layer=0, nulls=NULLS, seed=2)["axis"]
    assert len(group) and alone["axis"].to_json() == group.to_json()


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    base = planted.base_tensors()
    tuned = {f"r{s}": planted.with_noise(base, size, s) for s, size in ((1, 2e-4), (2, 4e-4), (3, 1e-5))}
    checkpoints = opened(tmp_path_factory.mktemp("three"), base, tuned)
    return *checkpoints, measure_agreement(*checkpoints, of_layer=0, nulls=NULLS)


def test_another_run_changes_nothing_of_the_others(three):
    base, runs, whole = three
    two = {name: runs[name] for name in ("r1", "r3")}
    found = measure_agreement(base, two, of_layer=0, nulls=NULLS)
    for table in ("agreement", "rates", "agreement_sweep"):
        kept = whole[table][(whole[table]["run_a"] == "r1") & (whole[table]["run_b"] == "r3")]
        assert kept.reset_index(drop=True).equals(found[table]), table
    for table in ("axis", "axis_sweep"):
        assert whole[table].query("pair != 'r2'").reset_index(drop=True).equals(found[table]), table


def test_where_few_weights_change_masks_are_drawn_and_say_so(three):
    *_, tables = three
    rows = tables["agreement"].set_index(["run_a", "run_b"])
    assert (rows.loc[("r1", "r3"), "density_b"] < 100 / 1024).all()
    assert set(rows.loc[("r1", "r2"), "storage_density_how"]) == {LAW}
    assert set(rows.loc[("r1", "r3"), "storage_density_how"]) == {DRAWN}
    # What strata hold stays a law, however few change.
    assert set(rows["bernoulli_how"]) | set(rows["magnitude_how"]) == {LAW}
    # Two runs of noise: the null expects what is seen, whichever way it is found.
    assert abs((rows["jaccard"] - rows["storage_density_mean"]).mean()) < 0.01
    of_lines = tables["rates"]
    assert set(of_lines["storage_norm_how"]) == {DRAWN} and of_lines["storage_norm_mean"].notna().all()
    assert abs((of_lines["spearman"] - of_lines["storage_density_mean"]).mean()) < 0.05


def test_runs_that_change_nothing_have_no_agreement_and_no_null(tmp_path):
    base = planted.base_tensors()
    tuned = {"none": base, "nor": base, "some": planted.with_noise(base, 2e-4, 1)}
    tables = measure_agreement(*opened(tmp_path, base, tuned), of_layer=0, nulls=NULLS)
    rows = tables["agreement"].set_index(["run_a", "run_b"])
    numbers = [name for name in rows if name.endswith(("_mean", "_sd", "_log10_p")) or name == "jaccard"]
    assert rows.loc[("none", "nor"), numbers].isna().all(axis=None)
    beside = rows.loc[("none", "some")]
    assert (beside["jaccard"] == 0).all() and (beside["storage_density_mean"] == 0).all()
    assert (beside["storage_density_log10_p"] == 0).all()
    assert tables["rates"].query("run_a == 'none'")["bernoulli_mean"].isna().all()


def test_rank_correlations_are_spearmans():
    vectors = np.random.default_rng(0).integers(0, 5, (4, 30)).astype(float)
    found = rank_correlations(vectors)
    for i in range(4):
        for j in range(4):
            assert found[i, j] == pytest.approx(spearmanr(vectors[i], vectors[j]).statistic)
    assert np.isnan(rank_correlations(np.array([[1.0, 1.0], [1.0, 2.0]]))[0, 1])


def test_long_sides_are_averaged_for_the_map(monkeypatch):
    monkeypatch.setattr(agreement, "LONGEST_SIDE", 8)
    masks = [torch.zeros(4, 16, dtype=torch.bool), torch.ones(4, 16, dtype=torch.bool)]
    row = agreement._map_row({"tensor": "t"}, "observed", masks)
    assert (row["rows"], row["columns"], row["block"]) == (2, 8, 2) and set(row["consensus"]) == {0.5}


def test_no_run_is_refused(tmp_path):
    checkpoint, _ = opened(tmp_path, planted.base_tensors(), {})
    with pytest.raises(PairError, match="at least one run"):
        measure_agreement(checkpoint, {}, of_layer=0, nulls=NULLS)


@pytest.mark.parametrize("eta", COARSE_ETAS)
def test_at_a_coarser_tolerance_masks_and_nulls_are_those_of_definition_2_1(tmp_path, eta):
    base = planted.base_tensors()
    tuned = {f"r{s}": planted.with_noise(base, 1e-3, s) for s in (1, 2)}
    tables = measure_agreement(*opened(tmp_path, base, tuned), of_layer=0, nulls=NULLS)
    rows = tables["agreement_sweep"].query("eta == @eta").set_index("tensor")
    for name, row in rows.iterrows():
        before = base[name].double()
        after = [tuned[run][name].to(torch.bfloat16).double() for run in ("r1", "r2")]
        a, b = (
            ((one - before).abs() > eta * torch.maximum(one.abs(), before.abs())).numpy() for one in after
        )
        assert row["jaccard"] == (a & b).sum() / (a | b).sum()
        assert (row["density_a"], row["density_b"]) == (a.mean(), b.mean())
    # Planted storage noise: both storage nulls expect what is seen, Bernoulli less.
    excess = rows["jaccard"] - rows[["storage_density_mean", "storage_norm_mean"]].mean(axis=1)
    assert abs(excess.mean()) < 0.02 < (rows["jaccard"] - rows["bernoulli"]).mean()


def test_a_matrix_without_entries_has_no_rows(tmp_path):
    base = planted.base_tensors()
    empty = next(name for name in base if "_proj" in name)
    base[empty] = base[empty][:0]
    tuned = {f"r{seed}": planted.with_noise(base, 2e-4, seed) | {empty: base[empty]} for seed in (1, 2)}
    tables = measure_agreement(*opened(tmp_path, base, tuned), of_layer=0, nulls=NULLS)
    assert all(len(frame) and empty not in set(frame["tensor"]) for frame in tables.values())
