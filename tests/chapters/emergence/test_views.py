"""Frames of the emergence of stripes, on tables whose numbers say where they come from."""

from __future__ import annotations

import pandas as pd
import pytest

from threegates.chapters.emergence import views as emergence_views


def _emergence() -> pd.DataFrame:
    """Two runs of different length, two blocks; the correlation says where a row comes from."""
    rows = []
    for run, steps in (("a", (5, 20, 60)), ("b", (5, 40))):
        for step in steps:
            for role, axis in (("q", "row"), ("q", "column"), ("o", "row"), ("o", "column"), ("up", "row")):
                for layer in (0, 1):
                    rho = 1.0 if step == steps[-1] else step / 100 + 0.2 * layer + 10 * (axis == "column")
                    rows.append((run, step, role, axis, layer, rho, rho - 0.1, rho - 0.3, rho + 0.2))
    walk = [f"storage_path_{name}" for name in ("mean", "low", "high")]
    columns = ["run", "step", "role", "axis", "layer", "spearman_with_final", *walk]
    return pd.DataFrame(rows, columns=columns)


def test_correlations_leave_out_each_runs_own_last_step_and_the_other_axis():
    view = emergence_views.correlation_view(_emergence())
    assert set(zip(view["role"], view["run"], view["step"], strict=True)) == {
        (role, run, step) for role in "qo" for run, step in (("a", 5), ("a", 20), ("b", 5))
    }
    rows = view.set_index(["role", "run", "step"])
    # Mean over the two blocks; a column's ratio carries a ten.
    assert rows.loc[("q", "a", 20), "spearman"] == pytest.approx(0.3)
    assert rows.loc[("o", "a", 20), "spearman"] == pytest.approx(10.3)
    walk = rows.loc[("q", "b", 5), ["storage_path_mean", "storage_path_low", "storage_path_high"]]
    assert list(walk) == pytest.approx([0.05, -0.15, 0.35])


def test_ratios_are_those_of_one_run_and_block_at_every_step_along_the_axis_of_the_type():
    view = emergence_views.ratio_view(_emergence(), layer=1, run="a")
    assert set(zip(view["role"], view["axis"], strict=True)) == {("q", "row"), ("o", "column")}
    assert list(view["step"]) == [5, 5, 20, 20, 60, 60]
    assert set(view["run"]) == {"a"} and set(view["layer"]) == {1}
