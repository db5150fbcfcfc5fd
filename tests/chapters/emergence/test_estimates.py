from __future__ import annotations

import itertools

import pandas as pd
import pytest

from tests.planted.planted_tables import given
from threegates.register import estimate


def test_emergence_reads_the_step_nearest_to_a_third():
    lines = []
    for run, step, role, axis in itertools.product("abc", (5, 20, 60), ("q", "o"), ("row", "column")):
        along = (axis == "row") != (role == "o")
        value = {5: 0.1, 20: 0.6 + 0.01 * ord(run), 60: 1.0}[step] if along else -1.0
        line = {"run": run, "method": "rl", "role": role, "axis": axis, "step": step, "tensor": role}
        line |= {"seed": run}
        lines.append({**line, "spearman_with_final": value, "storage_path_mean": 0.5})
    tables = given(emergence=pd.DataFrame(lines))
    assert estimate("emergence_correlation", tables).value == pytest.approx(0.6 + 0.98)
    assert estimate("emergence_excess_storage_path", tables).value == pytest.approx(0.1 + 0.98)
    empty = pd.DataFrame(lines).iloc[:0]
    assert not estimate("emergence_correlation", given(emergence=empty)).has_interval
