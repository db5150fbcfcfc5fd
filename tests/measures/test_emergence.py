from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest, rankdata

from tests.planted import planted, tensors
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.geometry.laws.codes import count_codes
from threegates.geometry.nulls.noise import noise_generator
from threegates.geometry.nulls.paths import storage_path
from threegates.measures import emergence
from threegates.measures.changes import COARSE_ETAS
from threegates.measures.emergence import (
    EMERGENCE_COLUMNS,
    EMERGENCE_SWEEP_COLUMNS,
    Snapshot,
    measure_emergence,
    walk_correlations,
    walk_times,
)


@pytest.fixture
def few_draws(monkeypatch):
    """A tenth of a second a matrix and step is much for a test that looks at tables."""
    monkeypatch.setattr(emergence, "DRAWS", 200)
    monkeypatch.setattr(emergence, "SWEEP_DRAWS", 50)


def snapshots(folder, base, states):
    planted.write(folder / "base", base)
    for step, state in states.items():
        planted.write(folder / f"s{step}", state)
    opened = [Snapshot(step, 4 * step, Checkpoint.open(folder / f"s{step}")) for step in states]
    return Checkpoint.open(folder / "base"), opened


def walk(base, steps, scale, stripes):
    """A Gaussian walk whose increments are larger in every third row or column, if `stripes` says so."""
    state = {name: weight.float() for name, weight in base.items()}
    states, before = {}, 0
    for number, step in enumerate(steps):
        make = planted.with_stripes if stripes else planted.with_noise
        for name, moved in make(base, scale * (step - before) ** 0.5, 50 + number).items():
            state[name] = state[name] + moved - base[name].float()
        states[step], before = {name: value.clone() for name, value in state.items()}, step
    return states


def stripes_of(frame, step):
    along = np.where(frame["role"] == "o", "column", "row")
    return frame[(frame["axis"] == along) & (frame["step"] == step) & frame["role"].isin(list("qkvo"))]


def test_planted_stripes_emerge_early_and_beat_the_walks(tmp_path, few_draws):
    base = planted.base_tensors(width=64)
    checkpoint, taken = snapshots(tmp_path, base, walk(base, (2, 4, 12), 3e-5, stripes=True))
    frame = measure_emergence(checkpoint, taken, run="r")["emergence"]
    assert list(frame.columns) == list(EMERGENCE_COLUMNS)
    rows = stripes_of(frame, 4)
    assert (rows["spearman_with_final"] > 0.6).all() and (rows["storage_path_log10_p"] < -2).all()
    assert (frame[frame["step"] == 12]["spearman_with_final"].round(9) == 1).all()
    assert (frame["updates"] == 4 * frame["step"]).all()
    assert (frame[frame["step"] < 12]["storage_path_how"] == "drawn").all()


def test_a_blind_walk_is_not_told_from_the_null(tmp_path, few_draws):
    base = planted.base_tensors(width=64)
    checkpoint, taken = snapshots(tmp_path, base, walk(base, (2, 4, 12), 6e-5, stripes=False))
    rows = measure_emergence(checkpoint, taken, run="r")["emergence"].query("step == 4")
    assert abs((rows["spearman_with_final"] - rows["storage_path_mean"]).mean()) < 0.12
    assert (rows["storage_path_log10_p"] > np.log10(0.05)).sum() >= len(rows) - 2


def test_walk_times_persist_at_least_as_long_as_run_and_free_walk():
    assert walk_times([1, 2, 4], [0.0, 0.0, 1.0]) == pytest.approx([0.25, 0.5, 1.0])
    persistent = walk_times([1, 2, 4], [0.9, 0.95, 1.0])
    assert persistent == pytest.approx([0.81, 0.9025, 1.0], abs=1e-5)
    tied = walk_times([1, 2, 4], [1.0, 1.0, 1.0])
    assert all(np.diff(tied) > 0) and tied[-1] == 1.0
    assert walk_times([1, 2], [float("nan"), 1.0]) == pytest.approx([0.5, 1.0])


def test_one_step_and_a_repeated_step_are_refused(tmp_path, few_draws):
    base = planted.base_tensors()
    checkpoint, taken = snapshots(tmp_path, base, {3: {k: v.float() for k, v in base.items()}})
    for wrong in (taken, taken * 2):
        with pytest.raises(PairError, match="two steps or more"):
            measure_emergence(checkpoint, wrong, run="r")


def test_a_step_without_any_change_has_no_correlation(tmp_path, few_draws):
    base = planted.base_tensors()
    still = {name: weight.float() for name, weight in base.items()}
    checkpoint, taken = snapshots(tmp_path, base, {1: still, 2: planted.with_noise(base, 3e-4, 1)})
    frame = measure_emergence(checkpoint, taken, run="r")["emergence"]
    first = frame[frame["step"] == 1]
    assert first["spearman_with_final"].isna().all() and first["storage_path_mean"].isna().all()
    assert first["storage_path_log10_p"].isna().all() and (first["density"] == 0).all()
    assert torch.tensor(first["ratio"].iloc[0]).eq(0).all()


def test_coarser_tolerances_are_followed_beside_walks_of_their_own(tmp_path, few_draws):
    base = planted.base_tensors(width=64)
    checkpoint, taken = snapshots(tmp_path, base, walk(base, (2, 4, 12), 1e-4, stripes=True))
    tables = measure_emergence(checkpoint, taken, run="r")
    coarse = tables["emergence_sweep"]
    assert list(coarse.columns) == list(EMERGENCE_SWEEP_COLUMNS) and set(coarse["eta"]) == set(COARSE_ETAS)
    last = tables["emergence"].query("step == 12")["density"].mean()
    densities = coarse.query("step == 12").groupby("eta")["density"].mean()
    assert 0 < densities[1e-2] < densities[5e-3] < last
    assert coarse["storage_path_mean"].notna().all()


def test_the_last_step_is_certain_and_the_same_numbers_come_again(tmp_path, few_draws):
    base = {name: one for name, one in planted.base_tensors(width=64).items() if "layers.0.self" in name}
    checkpoint, taken = snapshots(tmp_path, base, walk(base, (2, 4, 12), 1e-4, stripes=True))
    first, again = (measure_emergence(checkpoint, taken[::way], run="r") for way in (1, -1))
    for name, frame in first.items():
        assert frame.equals(again[name])
    last = first["emergence"].query("step == 12")
    assert (last["storage_path_mean"] == 1).all() and (last["storage_path_sd"] == 0).all()
    assert (last["storage_path_how"] == "law").all() and (last["storage_path_log10_p"] == 0).all()
    other = measure_emergence(checkpoint, taken, run="r", seed=1)["emergence"].query("step == 4")
    means = first["emergence"].query("step == 4")["storage_path_mean"].to_numpy()
    assert not np.array_equal(means, other["storage_path_mean"]) and np.allclose(
        means, other["storage_path_mean"], atol=0.03
    )


def correlations_of_walks(base, changed, times, number, eta):
    """Rank correlations of rows, and of columns, of walks' masks at two times: (number,) each."""
    source, found = noise_generator(9, "oracle"), []
    for _ in range(number):
        ends = [
            [mask.sum(dim=dim).numpy() for dim in (1, 0)]
            for mask in storage_path(base, changed, times, source, eta)
        ]
        with np.errstate(invalid="ignore"):
            found.append(
                [
                    np.corrcoef(rankdata(a), rankdata(b))[0, 1] if len(a) > 1 else np.nan
                    for a, b in zip(*ends, strict=True)
                ]
            )
    return np.array(found).T


TINY = tensors.family("row-scaled")[:3, :5].contiguous()


@pytest.mark.parametrize(
    ("base", "changed", "times", "eta", "draws"),
    [
        (tensors.family("power-law"), (900, 2000), (0.2, 1.0), 1e-3, 1000),
        (tensors.family("row-scaled"), (150, 5900), (0.01, 1.0), 1e-3, 1000),
        (tensors.family("clustered"), (2500, 2600), (0.9, 1.0), 5e-3, 1000),
        (tensors.family("subnormal"), (5000, 5500), (0.5, 1.0), 1e-2, 1000),
        (tensors.family("row-scaled"), (20, 40), (0.5, 1.0), 1e-3, 200),
        (tensors.family("row-scaled"), (6100, 6120), (0.5, 1.0), 1e-3, 200),
        (tensors.family("row-scaled")[:7].contiguous(), (200, 300), (0.5, 1.0), 1e-3, 200),
        (tensors.family("one-row"), (700, 900), (0.5, 1.0), 1e-3, 200),
        (TINY, (4, 6), (0.5, 1.0), 1e-3, 200),
    ],
    ids=["power", "rows", "clusters", "subnormal", "few", "nearly-all", "seven-rows", "one-row", "tiny"],
)
def test_correlations_spread_as_those_of_walks(base, changed, times, eta, draws):
    """Mean, spread and quantiles; and p-values of walks are uniform, as far as ties let them be."""
    laws = walk_correlations(base, count_codes(base), changed, times, noise_generator(4), eta)
    for law, walked in zip(laws, correlations_of_walks(base, changed, times, 500, eta), strict=True):
        walked = walked[np.isfinite(walked)]
        if not len(walked):
            assert np.isnan(law.mean)
            continue
        tensors.assert_agrees(law, walked, draws)
        p = np.array([law.against(rho).p for rho in walked])
        farthest = kstest(p, "uniform", alternative="greater").statistic
        # Smirnov's bound for two samples, at a chance of one in ten thousand.
        assert farthest < np.sqrt(np.log(1e4) / 2 * (1 / len(walked) + 1 / draws))
        # The oracle rounds otherwise, and on few lines a bound of the interval is one of few values.
        share = np.mean((walked >= law.low - 1e-12) & (walked <= law.high + 1e-12))
        assert share > 0.95 - 4.5 * np.sqrt(0.95 * 0.05 * (1 / 500 + 1 / draws))


def test_where_all_or_nothing_changes_no_correlation_has_a_law():
    base = tensors.family("row-scaled")
    codes, size = count_codes(base), base.numel()
    for changed in ((0, 500), (500, size), (0, 0)):
        for law in walk_correlations(base, codes, changed, (0.5, 1.0), noise_generator(0)):
            assert np.isnan(law.mean) and np.isnan(law.against(0.3).log10_p)


def test_of_a_large_tensor_no_walk_is_drawn(monkeypatch):
    def walked(*_):
        raise AssertionError("a walk")

    base = tensors.family("row-scaled")
    monkeypatch.setattr(emergence, "storage_path", walked)
    monkeypatch.setattr(emergence, "DRAWABLE", base.numel() - 1)
    laws = walk_correlations(base, count_codes(base), (20, 40), (0.5, 1.0), noise_generator(0))
    assert all(np.isfinite(law.mean) and law.how == "drawn" for law in laws)
    monkeypatch.setattr(emergence, "DRAWABLE", base.numel())
    with pytest.raises(AssertionError, match="a walk"):
        walk_correlations(base, count_codes(base), (20, 40), (0.5, 1.0), noise_generator(0))
