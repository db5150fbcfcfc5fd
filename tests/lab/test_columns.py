"""The columns of a training log."""

from __future__ import annotations

from threegates.definitions import code_digest, reached
from threegates.lab import columns
from threegates.lab.columns import LOG_COLUMNS, log_columns
from threegates.lab.runs import reach
from threegates.lab.trainers import TRAINERS

# What every log of the first release has, in this order.
FIRST = (
    "step", "updates", "reward", "pass_at_1", "kl", "grad_norm", "entropy", "length", "delta_norm", "loss",
    "clip_fraction", "resampled_groups", "advantage_scale", "kl_k1", "kl_k2", "step_kl", "step_kl_response",
    "step_norm", "tilt_kl",
)  # fmt: skip


def test_every_log_has_the_columns_of_the_first_ones_and_its_trainers_own():
    assert LOG_COLUMNS == FIRST
    assert log_columns([{"step": 1.0, "loss": 2.0}], ("greedy",)) == [*FIRST, "greedy"]


def test_a_later_column_is_in_the_logs_that_measure_it_alone(monkeypatch):
    monkeypatch.setattr(columns, "MORE_COLUMNS", ("later", "latest"))
    assert log_columns([{"step": 1.0}, {"latest": 1.0}], ("greedy",)) == [*FIRST, "latest", "greedy"]
    assert log_columns([{"step": 1.0}], ()) == [*FIRST]


def test_tables_of_columns_trainers_and_algorithms_are_no_part_of_a_runs_digest():
    for kind in TRAINERS:
        names = reached(*reach(kind).roots, outside=reach(kind).outside, inside=reach(kind).inside)
        places = {name.rpartition(".")[0] for name in names}
        assert "threegates.lab.training.train" in names
        assert not places & {
            f"threegates.lab.{name}" for name in ("columns", "trainers", "algorithms", "runs")
        }


def test_kinds_of_runs_have_digests_of_their_own():
    found = {code_digest(*reach(kind).roots) for kind in TRAINERS}
    assert len(found) == len(TRAINERS)
