"""Drift of planted updates, against float64 SVDs and angles computed in another way."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from tests.planted import planted
from threegates.checkpoints.tensors import Checkpoint
from threegates.measures import bases, drift
from threegates.measures.by_tensor import Shared
from threegates.measures.drift import (
    DRIFT_COLUMNS,
    SPECTRUM_COLUMNS,
    example_matrix,
    measure_drift,
    sweep_ranks,
)

Q = "model.layers.0.self_attn.q_proj.weight"
O = "model.layers.0.self_attn.o_proj.weight"  # noqa: E741


def opened(folder, **sides):
    return {name: Checkpoint.open(planted.write(folder / name, tensors)) for name, tensors in sides.items()}


def measured(folder, base, tuned, partner=None):
    sides = opened(folder, base=base, tuned=tuned, **({"partner": partner} if partner else {}))
    partnered = {"partner": sides["partner"], "partner_name": "p"} if partner else {}
    return measure_drift(sides["base"], sides["tuned"], name="pair", **partnered)


def row(tables, tensor, variant="raw"):
    frame = tables["drift"]
    return frame[(frame["tensor"] == tensor) & (frame["variant"] == variant)].iloc[0]


def oracle(before, after, k):
    """NSS and the angles in degrees by numpy and scipy."""
    a, b = before.double().numpy(), after.double().numpy()
    (ua, sa, va), (ub, sb, vb) = np.linalg.svd(a), np.linalg.svd(b)
    left = scipy.linalg.subspace_angles(ua[:, :k], ub[:, :k])
    right = scipy.linalg.subspace_angles(va[:k].T, vb[:k].T)
    return np.linalg.norm(sb - sa) / np.linalg.norm(sa), left, right


def test_every_matrix_agrees_with_a_float64_svd(tmp_path):
    base = planted.base_tensors(width=64)
    tuned, partner = (planted.with_noise(base, scale, 3) for scale in (3e-3, 1e-3))
    tables = measured(tmp_path, base, tuned, partner)
    frame = tables["drift"]
    assert list(frame.columns) == list(DRIFT_COLUMNS)
    assert list(tables["spectrum"].columns) == list(SPECTRUM_COLUMNS)
    assert len(frame) == 7 * (4 + drift.NOISE_DRAWS) and set(frame["variant"]) == set(drift.VARIANTS)
    for found in frame[frame["variant"] == "raw"].to_dict("records"):
        nss, left, right = oracle(base[found["tensor"]], tuned[found["tensor"]], found["k"])
        assert found["nss"] == pytest.approx(nss, abs=1e-12) and found["nss_error"] < 1e-11
        assert found["angle_left_max"] == pytest.approx(left.max(), abs=1e-9)
        assert found["angle_right_mean"] == pytest.approx(right.mean(), abs=1e-9)
        assert found["resolved"] == 1 and found["proved"] and found["k"] == 8
    for name in ("weyl", "mirsky", "ky_fan", "nss", "wedin_corrected"):
        assert frame[f"{name}_holds"].all()


def test_the_gap_aware_angle_is_the_largest_at_the_widest_gap_of_the_base(tmp_path):
    base = planted.base_tensors(width=64)
    tuned = planted.with_noise(base, 3e-3, 3)
    for found in measured(tmp_path, base, tuned)["drift"].query("variant == 'raw'").to_dict("records"):
        values = np.linalg.svd(base[found["tensor"]].double().numpy(), compute_uv=False)
        gaps = values[:-1] - values[1:]
        widest = max(range(4, 9), key=lambda k: gaps[k - 1])
        assert found["gap_aware_k"] == widest
        _, left, right = oracle(base[found["tensor"]], tuned[found["tensor"]], widest)
        assert found["angle_left_gap_aware_max"] == pytest.approx(left.max(), abs=1e-9)
        assert found["angle_right_gap_aware_max"] == pytest.approx(right.max(), abs=1e-9)


def test_every_draw_of_the_noise_has_the_norm_and_is_another(tmp_path):
    base = planted.base_tensors()
    frame = measured(tmp_path, base, planted.with_noise(base, 3e-3, 3))["drift"].query("tensor == @Q")
    noise, raw = frame[frame["variant"] == "noise"], frame[frame["variant"] == "raw"]
    assert len(noise) == drift.NOISE_DRAWS > 1 and noise["nss"].nunique() == len(noise)
    assert np.allclose(noise["norm_delta"], raw["norm_delta"].iloc[0], rtol=1e-12)


def test_norm_matched_updates_have_the_partners_norm_and_keep_their_direction(tmp_path):
    base = planted.base_tensors()
    tuned, partner = planted.with_noise(base, 3e-3, 3), planted.with_noise(base, 1e-3, 4)
    tables = measured(tmp_path, base, tuned, partner)
    raw, matched = (row(tables, Q, variant) for variant in ("raw", "norm-matched"))
    wanted = float((partner[Q].double() - base[Q].double()).norm())
    assert matched["norm_delta"] == pytest.approx(wanted, rel=1e-12)
    assert matched["partner"] == "p" and raw["partner"] == ""
    assert matched["stable_rank"] == pytest.approx(raw["stable_rank"], rel=1e-9)
    assert matched["energy"] == pytest.approx(raw["energy"], rel=1e-9)
    assert row(tables, Q, "noise")["norm_delta"] == pytest.approx(raw["norm_delta"], rel=1e-12)
    scaled = base[Q].double() + wanted / raw["norm_delta"] * (tuned[Q].double() - base[Q].double())
    assert matched["nss"] == pytest.approx(oracle(base[Q], scaled, 4)[0], abs=1e-12)
    stored = row(tables, Q, "norm-matched, rounded")
    assert stored["nss"] == pytest.approx(oracle(base[Q], scaled.to(torch.bfloat16), 4)[0], abs=1e-12)


def test_pure_scaling_moves_values_and_turns_nothing(tmp_path):
    base = planted.base_tensors()
    tables = measured(tmp_path, base, {name: 1.25 * weight.float() for name, weight in base.items()})
    found = row(tables, Q)
    assert found["nss"] == pytest.approx(0.25, abs=1e-12)
    assert max(found["angle_left_max"], found["angle_right_max"]) < 1e-12
    # Weyl and Mirsky are equalities here: they must hold, with nothing to spare.
    assert found["weyl_holds"] and found["mirsky_holds"]
    assert found["weyl_measured"] == pytest.approx(found["weyl_bound"], rel=1e-9)
    assert found["resolved"] < 1


def test_a_planted_rotation_turns_one_side_and_keeps_the_values(tmp_path):
    base = {name: weight.double() for name, weight in planted.base_tensors().items()}
    u, s, v = torch.linalg.svd(base[Q])
    angle = 0.3
    turn = u.clone()
    # The fourth left vector, the last of the leading ones, turns towards the fifth.
    turn[:, 3] = np.cos(angle) * u[:, 3] + np.sin(angle) * u[:, 4]
    turn[:, 4] = -np.sin(angle) * u[:, 3] + np.cos(angle) * u[:, 4]
    found = row(measured(tmp_path, base, {**base, Q: turn @ torch.diag(s) @ v}), Q)
    assert found["angle_left_max"] == pytest.approx(angle, abs=1e-9)
    assert found["angle_left_mean"] == pytest.approx(angle / 4, abs=1e-6)
    assert found["angle_right_max"] < 1e-9 and found["nss"] < 1e-12


def test_the_gap_of_the_base_alone_does_not_hold(tmp_path):
    base = {name: weight.double() for name, weight in planted.base_tensors().items()}
    shape, turn = base[Q].shape, np.deg2rad(80)
    # diag(1, 0) beside ½ I and a trace of a turned copy, in the last leading direction and the next.
    before, after = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    before[range(3), range(3)] = after[range(3), range(3)] = 2.0
    before[3, 3] = 1.0
    direction = torch.tensor([np.cos(turn), np.sin(turn)])
    after[3:5, 3:5] = 0.5 * torch.eye(2) + 1e-3 * torch.outer(direction, direction)
    found = row(measured(tmp_path, {**base, Q: before}, {**base, Q: after}), Q)
    assert found["k"] == 4
    assert found["wedin_printed_measured"] == pytest.approx(np.sin(turn), abs=1e-9)
    assert not found["wedin_printed_vacuous"] and not found["wedin_printed_holds"]
    assert found["wedin_corrected_holds"]


def test_an_unchanged_weight_moves_nothing(tmp_path):
    base = planted.base_tensors()
    tables = measured(tmp_path, base, base, planted.with_noise(base, 1e-3, 1))
    frame = tables["drift"]
    assert set(frame["variant"]) == {"raw", "rounded", "noise"}
    assert (frame[["nss", "angle_left_max", "angle_right_max", "norm_delta"]] == 0).all(axis=None)
    assert frame[[f"{name}_holds" for name in drift.BOUNDS]].all(axis=None)


def test_an_unchanged_weight_has_the_spectrum_of_its_base(monkeypatch):
    monkeypatch.setattr(bases, "REFERENCE_SIDE", 16)
    weight = planted.base_tensors()[Q]
    moved = drift.moved_from(weight, weight.clone(), Shared())
    assert moved.leading.path == "unchanged" and moved.spectrum is moved.side.spectrum
    assert drift.moved_from(weight, weight * 2, Shared()).spectrum is not moved.side.spectrum


def test_the_example_is_the_o_of_the_middle_block():
    blocks = {f"model.layers.{n}.self_attn.{x}_proj.weight": (8, 8) for n in range(3) for x in "qo"}
    assert example_matrix(blocks) == "model.layers.1.self_attn.o_proj.weight"
    assert example_matrix({"model.layers.2.self_attn.q_proj.weight": (8, 8)}).endswith("q_proj.weight")
    assert example_matrix({}) is None


def test_the_spectrum_of_the_example_is_what_the_drift_summarises(tmp_path):
    base = planted.base_tensors()
    tuned, partner = planted.with_noise(base, 3e-3, 3), planted.with_noise(base, 1e-3, 4)
    tables = measured(tmp_path, base, tuned, partner)
    shown = tables["spectrum"]
    assert list(shown["variant"]) == ["raw", "norm-matched"] and set(shown["tensor"]) == {O}
    first = shown.iloc[0]
    before, after = np.array(first["values_base"]), np.array(first["values_tuned"])
    shift = np.linalg.norm(after - before) / np.linalg.norm(before)
    assert shift == pytest.approx(row(tables, O)["nss"], rel=1e-12)
    assert max(first["angles_left"]) == row(tables, O)["angle_left_max"]


def test_noise_repeats_with_its_seed(tmp_path):
    base = planted.base_tensors()
    sides = opened(tmp_path, base=base, tuned=planted.with_noise(base, 1e-3, 1))
    runs = [measure_drift(sides["base"], sides["tuned"], name="p", seed=s)["drift"] for s in (0, 0, 1)]
    noise = [frame.loc[frame["variant"] == "noise", "nss"].tolist() for frame in runs]
    assert noise[0] == noise[1] != noise[2]


def test_large_matrices_take_the_certified_engine(tmp_path, monkeypatch):
    base = planted.base_tensors(width=128)
    sides = opened(tmp_path, base=base, tuned=planted.with_noise(base, 1e-3, 1))
    exact = measure_drift(sides["base"], sides["tuned"], name="p")["drift"]
    monkeypatch.setattr(bases, "REFERENCE_SIDE", 16)
    quick = measure_drift(sides["base"], sides["tuned"], name="p")["drift"]
    assert set(quick["accuracy"]) == {"certified"} and set(exact["accuracy"]) == {"reference"}
    # The noise is rounded to float32 there, so only what is stored agrees to all digits.
    kept = quick["variant"] != "noise"
    for column in ("angle_left_max", "angle_right_mean"):
        assert np.abs(quick[column] - exact[column])[kept].max() < 2e-5
    assert np.abs(quick["nss"] - exact["nss"])[kept].max() < 1e-7
    assert quick["wedin_corrected_holds"].all()


def test_angles_over_ranks_are_scipys_and_hold_the_headline(tmp_path):
    base = planted.base_tensors(width=32)
    tuned = planted.with_noise(base, 3e-3, 1)
    start, end = planted.write(tmp_path / "b", base), planted.write(tmp_path / "t", tuned)
    tables = measure_drift(Checkpoint.open(start), Checkpoint.open(end), name="p")
    name = "model.layers.0.self_attn.q_proj.weight"
    rows = tables["drift_sweep"].query("tensor == @name and variant == 'raw'").set_index("k")
    head = tables["drift"].query("tensor == @name and variant == 'raw'").iloc[0]
    assert list(rows.index) == sweep_ranks(tuple(base[name].shape))
    assert rows.loc[head["k"], "angle_left_mean"] == head["angle_left_mean"]
    u0, _, v0 = np.linalg.svd(base[name].double().numpy())
    u1, _, v1 = np.linalg.svd(tuned[name].double().numpy())
    for k, row in rows.iterrows():
        left = scipy.linalg.subspace_angles(u0[:, :k], u1[:, :k]).mean()
        right = scipy.linalg.subspace_angles(v0[:k].T, v1[:k].T).mean()
        assert row["angle_left_mean"] == pytest.approx(left, abs=1e-8)
        assert row["angle_right_mean"] == pytest.approx(right, abs=1e-8)
        assert row["nss"] == head["nss"]


def test_large_matrices_are_swept_up_to_the_headline_rank_alone():
    assert sweep_ranks((128, 320)) == [8, 16, 32]
    assert sweep_ranks((384, 1536)) == [24, 48]


def test_a_base_without_leading_subspaces_has_no_angles_and_a_zero_base_no_shift(tmp_path):
    """Equal singular values leave the subspaces open: their bound is a right angle, which bounds nothing."""
    base = planted.base_tensors(width=64)
    base[Q] = 0.5 * torch.eye(64)
    base[O] = torch.zeros(64, 64)
    tables = measured(tmp_path, base, planted.with_noise(base, 3e-3, 3))
    for tensor in (Q, O):
        found = row(tables, tensor)
        assert found["resolved"] == 0
        assert found.filter(regex="^angle_(left|right)_(max|mean)$").isna().all()
    assert np.isnan(row(tables, O)["nss"]) and np.isfinite(row(tables, Q)["nss"])
