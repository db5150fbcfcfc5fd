"""The benchmarks' table, file and exit status; the measurements themselves run with `make bench`."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from benchmarks import __main__ as program
from benchmarks import masks
from benchmarks.measure import Row, in_turn

FAST = Row("count", "2 × 2", 1.0, "torch", 40.0, True, "same counts", aim=30.0, gate=15.0)


@pytest.fixture
def rows(monkeypatch):
    given: list[Row] = []
    monkeypatch.setattr(masks, "rows", lambda sizes: given)
    return given


def test_rows_that_hold_end_well_and_land_in_the_file(rows, tmp_path, capsys):
    rows += [FAST, replace(FAST, other_ms=2.0, gate=None, aim=None)]
    assert program.main(["--only", "masks", "--json", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "40.0×" in out and "15× met" in out and "threads 1" in out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [row["ratio"] for row in written["rows"]] == [40, 2]
    assert written["machine"]["threads"] == 1 and "torch" in written["machine"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


@pytest.mark.parametrize(
    ("row", "said"),
    [(replace(FAST, accurate=False), "NOT same counts"), (replace(FAST, other_ms=14.9), "15× MISSED")],
)
def test_unequal_results_and_missed_gates_fail(rows, row, said, capsys):
    rows += [FAST, row]
    assert program.main(["--only", "masks"]) == 1
    assert said in capsys.readouterr().out


def test_only_what_exists_can_be_chosen(capsys):
    with pytest.raises(SystemExit):
        program.main(["--only", "nothing"])
    assert "masks" in capsys.readouterr().err


def test_both_sides_are_measured_in_turn_after_a_warm_up():
    calls: list[str] = []
    in_turn(lambda: calls.append("ours"), lambda: calls.append("other"), rounds=2)
    assert calls == ["ours", "other"] * 3


def test_the_gate_on_results_sees_a_wrong_count(monkeypatch):
    base, tuned = masks.pair((8, 16))
    assert all(row.accurate for row in masks.counting("tiny", base, tuned))
    monkeypatch.setattr(masks, "torch_idiom", lambda base, tuned: masks.paper_formula(base, base))
    assert [row.accurate for row in masks.counting("tiny", base, tuned)] == [False, True]
