"""The columns of a training log, in their order. Which there are is no part of any run's digest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

#: Every log has these, empty where its trainer measures no such thing.
LOG_COLUMNS = (
    "step",
    "updates",
    "reward",
    "pass_at_1",
    "kl",
    "grad_norm",
    "entropy",
    "length",
    "delta_norm",
    "loss",
    "clip_fraction",
    "resampled_groups",
    "advantage_scale",
    "kl_k1",
    "kl_k2",
    "step_kl",
    "step_kl_response",
    "step_norm",
    "tilt_kl",
)
#: Later ones: in the log of a run whose trainer measures them, and in no other.
MORE_COLUMNS: tuple[str, ...] = ()


def log_columns(rows: Iterable[Mapping[str, float]], own: Sequence[str]) -> list[str]:
    """Columns of the log of these rows: the common ones, later ones that are measured, the trainer's own."""
    measured = {name for row in rows for name in row}
    return [*LOG_COLUMNS, *(name for name in MORE_COLUMNS if name in measured), *own]
