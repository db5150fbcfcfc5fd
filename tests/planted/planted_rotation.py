"""The rotation's part of `planted_tables`: tables on which its claims are reproduced, and its planters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd

from tests.planted import rotation_frames
from threegates.measures.rotation import BACK, ROTATED, UNTOUCHED

SEEDS = rotation_frames.SEEDS
_LEVELS = {(UNTOUCHED, True): 0.5, (ROTATED, True): 0.0, (BACK, True): 0.3}


def tables() -> dict[str, pd.DataFrame]:
    """Masks agree at random in rotated V and O, in part when rotated back, and elsewhere as they did."""
    rotation = rotation_frames.rotation()
    keys = zip(rotation["comparison"], rotation["touched"], strict=True)
    places = list(zip(rotation["comparison"], rotation["touched"], strict=True))
    return {
        "rotation": rotation.assign(
            excess=[_LEVELS.get(key, 0.5) for key in keys],
            jaccard=[0.6 if key == (UNTOUCHED, True) else 0.2 for key in places],
            jaccard_null=0.1,
        ),
        "frame": rotation_frames.frame(),
    }


def _own(frame: pd.DataFrame, comparison: str, touched: bool) -> pd.Series:
    """Rows that an estimate reads; those of runs of one seed say something else."""
    return (frame["comparison"] == comparison) & (frame["touched"] == touched) & ~frame["same_seed"]


def _excess(
    comparison: str, touched: bool, level: float, sign: int, frame: pd.DataFrame, values: np.ndarray
) -> pd.DataFrame:
    """The excess is a level plus, or minus, a value for each seed."""
    where = _own(frame, comparison, touched)
    of_seed = frame["seed"].map(dict(zip(SEEDS, values, strict=True))).astype(float)
    frame.loc[where, "excess"] = (level + sign * of_seed)[where]
    return frame


def _beyond_storage(frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    """Untouched runs agree by the values more than an untouched and a rotated one."""
    of_seed = frame["seed"].map(dict(zip(SEEDS, values, strict=True))).astype(float)
    frame.loc[_own(frame, UNTOUCHED, True), "jaccard"] = 0.2 + of_seed
    return frame


def _digits(frame: pd.DataFrame, values: np.ndarray) -> pd.DataFrame:
    return frame.assign(nss_exact=10.0**-values)


#: Of each estimate: its table, how many units it has, how it is planted, whether it is an exact number.
Planted = tuple[str, int, Callable[[pd.DataFrame, np.ndarray], pd.DataFrame], bool]
PLANTERS: dict[str, Planted] = {
    "rotation_loss": ("rotation", 3, partial(_excess, ROTATED, True, 0.5, -1), False),
    "rotation_loss_elsewhere": ("rotation", 3, partial(_excess, ROTATED, False, 0.5, -1), False),
    "rotation_loss_rotated_back": ("rotation", 3, partial(_excess, BACK, True, 0.5, -1), False),
    "rotation_loss_beyond_storage": ("rotation", 3, _beyond_storage, False),
    "rotated_excess_jaccard": ("rotation", 3, partial(_excess, ROTATED, True, 0.0, 1), False),
    "rotated_back_excess_jaccard": ("rotation", 3, partial(_excess, BACK, True, 0.0, 1), False),
    "rotation_spectrum_digits": ("frame", 6, _digits, True),
}
