"""Frames of the drift figures, from tables small enough to work by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tests.planted import frames
from threegates.chapters.spectral_drift import views


@pytest.fixture
def drift() -> pd.DataFrame:
    return frames.drift()


def test_angles_are_in_degrees_and_a_vacuous_bound_is_a_right_angle(drift):
    drift = drift.assign(angle_left_mean=0.1, angle_right_mean=0.3, angle_left_max=0.2, angle_right_max=0.5)
    found = views.in_degrees(drift.assign(wedin_corrected_bound=[0.5, *[np.inf] * (len(drift) - 1)]))
    assert found["angle_mean"].iloc[0] == pytest.approx(np.degrees(0.2))
    assert found["angle_max"].iloc[0] == pytest.approx(np.degrees(0.5))
    assert found["angle_limit"].iloc[0] == pytest.approx(30) and found["angle_limit"].iloc[1] == 90


def test_a_model_is_the_mean_of_its_matrices(drift):
    view = views.drift_view(drift)
    draws = drift["pair"].nunique()  # noise is drawn twice
    assert len(view) == drift.groupby(["pair", "variant"]).ngroups + draws
    one = view[(view["pair"] == "grpo-1") & (view["variant"] == "raw")].iloc[0]
    rows = drift[(drift["pair"] == "grpo-1") & (drift["variant"] == "raw")]
    assert one["nss"] == pytest.approx(rows["nss"].mean()) and one["label"] == "GRPO, lr 5e-06"
    assert one["floor"] == pytest.approx(np.degrees(rows["angle_bound"].max()))


def test_the_summary_has_students_interval_and_no_equal_norm_for_rl(drift):
    summary = views.drift_summary(views.drift_view(drift)).set_index("method")
    rl, sft = summary.loc["GRPO, lr 5e-06"], summary.loc["SFT (teacher), lr 3e-04"]
    assert rl["seeds"] == 2 and rl["low"] < rl["angle"] < rl["high"]
    assert np.isnan(rl["angle, equal norm"]) and sft["angle, equal norm"] > 0
    noise = drift[(drift["variant"] == "noise") & (drift["algorithm"] == "grpo")]
    degrees = np.degrees(noise.assign(draw=noise.groupby(["pair", "tensor"]).cumcount())["angle_left_mean"])
    means = degrees.groupby([noise["pair"], noise.groupby(["pair", "tensor"]).cumcount()]).mean()
    assert rl["noise, sd"] == pytest.approx(means.groupby("pair").std().mean()) and rl["noise, sd"] > 0
    assert rl["largest, widest gap"] == pytest.approx(rl["largest"] / 2)


def test_rl_stands_at_its_own_norm_beside_the_scaled_runs(drift):
    view = views.matrix_view(drift)
    panels = {panel: set(rows["method"]) for panel, rows in view.groupby("panel")}
    assert panels == {panel: {"GRPO", "SFT (teacher)"} for panel in views.PANELS.values()}
    own = view[view["method"] == "GRPO"].groupby("panel")["nss"].apply(list)
    assert own.iloc[0] == own.iloc[1]
    # The smaller learning rate of a method that has two is left out.
    assert set(view["label"]) == {"GRPO, lr 5e-06", "SFT (teacher), lr 3e-04"}
    assert view.drop_duplicates(["tick"])["position"].is_unique


def test_blocks_stand_apart_and_roles_that_a_model_lacks_leave_no_hole(drift):
    places = views.matrix_view(drift).drop_duplicates("tick").set_index("tick")["position"]
    assert places.sort_values().to_dict() == {"q0": 0, "o0": 1, "q1": 3, "o1": 4}


def test_matrices_of_no_known_role_are_shown_all_the_same(drift):
    view = views.matrix_view(drift.assign(role="other"))
    assert len(view) and set(view["tick"]) == {"other0", "other1"}


def test_the_example_keeps_one_seed_and_every_value(drift):
    view = views.example_view(frames.spectrum(), drift)
    assert set(view["quantity"]) == {"base", "value", "shift", "left", "right"}
    of_rl = view[(view["method"] == "GRPO") & (view["panel"] == views.PANELS["raw"])]
    shift = of_rl[of_rl["quantity"] == "shift"]["number"]
    assert shift.tolist() == pytest.approx([0.1, 0.1, 0.0]) and len(of_rl) == 3 * 3 + 2 * 2
    assert of_rl[of_rl["quantity"] == "left"]["number"].tolist() == pytest.approx(np.degrees([0.01, 0.02]))
    assert view["resolved"].all()
    blurred = frames.spectrum().assign(angle_bound=0.015)
    hidden = views.example_view(blurred, drift).query("not resolved")
    assert set(hidden["quantity"]) == {"left", "right"} and np.allclose(hidden["number"], np.degrees(0.01))


def test_the_encoders_sft_is_its_example(drift):
    named = {"algorithm": lambda frame: frame["algorithm"].replace("sft-teacher", "cross-entropy")}
    view = views.example_view(frames.spectrum().assign(**named), drift.assign(**named))
    assert set(view["method"]) == {"GRPO", "SFT (cross-entropy)"}
    assert set(view["label"]) == {"GRPO, lr 5e-06", "SFT (cross-entropy), lr 3e-04"}


def test_bounds_are_counted_where_they_say_something(drift):
    drift = drift.assign(weyl_vacuous=drift["method"] == "rl", weyl_measured=1.0, weyl_bound=4.0)
    found = views.bound_view(drift).set_index("bound").loc["Cor. 3.4, each value"]
    assert found["says something, RL"] == 0 and found["says something, others"] == 1
    assert found["largest"] == found["median"] == 0.25 and found["holds"] == 1


def test_a_pair_without_partner_or_seed_has_one_panel(drift):
    own = drift[(drift["pair"] == "grpo-1") & (drift["variant"] == "raw")]
    own = own.assign(seed=pd.NA, learning_rate=np.nan, algorithm=None, rate=None, method="unknown")
    view = views.matrix_view(own)
    assert set(view["panel"]) == {"as trained"} and set(view["method"]) == {"your pair"}
    assert view["nss"].notna().all() and (views.drift_view(own)["label"] == "your pair, grpo-1").all()
