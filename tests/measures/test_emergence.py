from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted import planted
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.measures.draws import COARSE_ETAS
from threegates.measures.emergence import (
    EMERGENCE_COLUMNS,
    EMERGENCE_SWEEP_COLUMNS,
    Snapshot,
    measure_emergence,
    walk_times,
)


def snapshots(folder, base, states):
    planted.write(folder / "base", base)
    for step, tensors in states.items():
        planted.write(folder / f"s{step}", tensors)
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


def test_planted_stripes_emerge_early_and_beat_the_walks(tmp_path):
    base = planted.base_tensors(width=64)
    checkpoint, taken = snapshots(tmp_path, base, walk(base, (2, 4, 12), 3e-5, stripes=True))
    frame = measure_emergence(checkpoint, taken, run="r", draws=19)["emergence"]
    assert list(frame.columns) == list(EMERGENCE_COLUMNS)
    rows = stripes_of(frame, 4)
    assert (rows["spearman_with_final"] > 0.6).all() and (rows["storage_path_p"] == 0.05).all()
    assert (frame[frame["step"] == 12]["spearman_with_final"].round(9) == 1).all()
    assert (frame["updates"] == 4 * frame["step"]).all()


def test_a_blind_walk_is_not_told_from_the_null(tmp_path):
    base = planted.base_tensors(width=64)
    checkpoint, taken = snapshots(tmp_path, base, walk(base, (2, 4, 12), 6e-5, stripes=False))
    rows = measure_emergence(checkpoint, taken, run="r", draws=19)["emergence"].query("step == 4")
    assert abs((rows["spearman_with_final"] - rows["storage_path_mean"]).mean()) < 0.12
    assert (rows["storage_path_p"] > 0.05).sum() >= len(rows) - 2


def test_walk_times_persist_at_least_as_long_as_run_and_free_walk():
    assert walk_times([1, 2, 4], [0.0, 0.0, 1.0]) == pytest.approx([0.25, 0.5, 1.0])
    persistent = walk_times([1, 2, 4], [0.9, 0.95, 1.0])
    assert persistent == pytest.approx([0.81, 0.9025, 1.0], abs=1e-5)
    tied = walk_times([1, 2, 4], [1.0, 1.0, 1.0])
    assert all(np.diff(tied) > 0) and tied[-1] == 1.0
    assert walk_times([1, 2], [float("nan"), 1.0]) == pytest.approx([0.5, 1.0])


def test_one_step_and_a_repeated_step_are_refused(tmp_path):
    base = planted.base_tensors()
    checkpoint, taken = snapshots(tmp_path, base, {3: {k: v.float() for k, v in base.items()}})
    for wrong in (taken, taken * 2):
        with pytest.raises(PairError, match="two steps or more"):
            measure_emergence(checkpoint, wrong, run="r", draws=1)


def test_a_step_without_any_change_has_no_correlation(tmp_path):
    base = planted.base_tensors()
    still = {name: weight.float() for name, weight in base.items()}
    checkpoint, taken = snapshots(tmp_path, base, {1: still, 2: planted.with_noise(base, 3e-4, 1)})
    frame = measure_emergence(checkpoint, taken, run="r", draws=3)["emergence"]
    first = frame[frame["step"] == 1]
    assert first["spearman_with_final"].isna().all() and first["storage_path_p"].isna().all()
    assert (first["density"] == 0).all() and torch.tensor(first["ratio"].iloc[0]).eq(0).all()


def test_coarser_tolerances_are_followed_beside_walks_of_their_own(tmp_path):
    base = planted.base_tensors(width=64)
    checkpoint, taken = snapshots(tmp_path, base, walk(base, (2, 4, 12), 1e-4, stripes=True))
    tables = measure_emergence(checkpoint, taken, run="r", draws=5)
    coarse = tables["emergence_sweep"]
    assert list(coarse.columns) == list(EMERGENCE_SWEEP_COLUMNS) and set(coarse["eta"]) == set(COARSE_ETAS)
    last = tables["emergence"].query("step == 12")["density"].mean()
    densities = coarse.query("step == 12").groupby("eta")["density"].mean()
    assert 0 < densities[1e-2] < densities[5e-3] < last
    assert coarse["storage_path_mean"].notna().all()
