"""What a build says while it trains: lines without a terminal, bars on one, nothing of broken files."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.lab.tiny import TINY
from threegates.atomic import write_json, write_text
from threegates.lab import progress as module
from threegates.lab.progress import Display, described, read_progress
from threegates.lab.recipe import PretrainRecipe
from threegates.lab.runs import Run

HALF_WAY = {"step": 12, "steps": 60, "rate": 4.0, "reward": 0.25, "kl": 0.00123, "loss": -0.0421}
SHOWN = "12/60 steps, reward 0.25, kl 0.00123, loss -0.0421, 4.0 steps/s, 12 s left"


def _run(name: str) -> Run:
    recipe = PretrainRecipe(name=name, seed=1, steps=60, shape=TINY)
    return Run(recipe, "0123456789abcdef", "code", None)


def _write(lab: Path, run: Run, content: str) -> None:
    write_text(lab / "partial" / run.folder / "progress.json", content)


def _finish(lab: Path, run: Run, seconds: float) -> None:
    write_json(lab / "partial" / run.folder / "when.json", {"seconds": seconds})
    (lab / "runs").mkdir(exist_ok=True)
    os.replace(lab / "partial" / run.folder, lab / "runs" / run.folder)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the display writes; no terminal."""
    written = io.StringIO()
    monkeypatch.setattr(module, "sys", SimpleNamespace(stderr=written))
    return written


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look often, and let every look give lines."""
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)


# ------------------------------------------------------------------------------------------- in words


def test_a_run_is_described_by_steps_reward_divergence_speed_and_time_left():
    assert described(HALF_WAY) == SHOWN


@pytest.mark.parametrize("unknown", ["reward", "kl", "loss"])
def test_what_is_not_measured_yet_is_left_out(unknown):
    text = described(HALF_WAY | {unknown: None})
    assert unknown not in text
    assert text.startswith("12/60 steps, ")
    assert text.endswith(", 4.0 steps/s, 12 s left")
    assert text.count(",") == SHOWN.count(",") - 1


def test_a_last_step_has_no_time_left_and_no_speed_is_no_division_by_zero():
    assert described(HALF_WAY | {"step": 60}).endswith("4.0 steps/s, 0 s left")
    assert "0.0 steps/s" in described(HALF_WAY | {"rate": 0.0})


@pytest.mark.parametrize("content", ["", "{", '{"step": 1'])
def test_a_progress_file_that_cannot_be_read_counts_as_none(tmp_path, content):
    path = tmp_path / "progress.json"
    assert read_progress(path) is None
    path.write_text(content)
    assert read_progress(path) is None
    path.write_text(json.dumps(HALF_WAY))
    assert read_progress(path) == HALF_WAY


# --------------------------------------------------------------------------------- without a terminal


def test_lines_tell_of_each_run_under_way_and_of_none_that_has_not_begun(quick, tmp_path, console):
    under_way, waiting = _run("under-way"), _run("waiting")
    _write(tmp_path, under_way, json.dumps(HALF_WAY))
    with Display(tmp_path, [under_way, waiting], planned=5) as display:
        _wait(lambda: console.getvalue().count("under-way") > 2)
    assert display.bars == {}
    lines = console.getvalue().splitlines()
    assert lines[0] == "train: 2 of 5 runs to do, 3 finished before"
    assert set(lines[1:]) == {f"train: under-way {SHOWN}"}


def test_lines_come_only_every_so_often(monkeypatch, tmp_path, console):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.005)
    monkeypatch.setattr(module, "LINE_SECONDS", 1000.0)
    run = _run("slow")
    _write(tmp_path, run, json.dumps(HALF_WAY))
    with Display(tmp_path, [run], planned=1) as display:
        time.sleep(0.1)
        assert "slow" not in console.getvalue()
        display.last_lines -= 1000.0
        _wait(lambda: time.monotonic() - display.last_lines < 100)
        time.sleep(0.05)
    assert console.getvalue().splitlines()[1:] == [f"train: slow {SHOWN}"]


def test_a_finished_run_is_told_once_with_its_time_and_what_is_left(quick, tmp_path, console):
    first, second, third = (_run(name) for name in ("first", "second", "third"))
    with Display(tmp_path, [first, second, third], planned=3) as display:
        _finish(tmp_path, first, 61.4)
        _wait(lambda: display.finished == {"first"})
        time.sleep(0.05)
        _finish(tmp_path, third, 5.0)
        _wait(lambda: len(display.finished) == 2)
    assert console.getvalue().splitlines() == [
        "train: 3 of 3 runs to do, 0 finished before",
        "train: first done in 61 s, runs left: 2",
        "train: third done in 5 s, runs left: 1",
    ]


def test_a_run_that_ends_after_the_last_look_is_told_at_the_end(monkeypatch, tmp_path, console):
    monkeypatch.setattr(module, "POLL_SECONDS", 1000.0)
    run = _run("last")
    with Display(tmp_path, [run], planned=1):
        _finish(tmp_path, run, 3.0)
    assert console.getvalue().splitlines()[-1] == "train: last done in 3 s, runs left: 0"


def test_a_broken_progress_file_neither_shows_nor_stops_the_display(quick, tmp_path, console):
    broken, well = _run("broken"), _run("well")
    _write(tmp_path, broken, '{"step": 3')
    _write(tmp_path, well, json.dumps(HALF_WAY))
    with Display(tmp_path, [broken, well], planned=2) as display:
        _wait(lambda: "well" in console.getvalue())
        assert display.thread.is_alive()
        _write(tmp_path, broken, json.dumps(HALF_WAY | {"step": 13}))
        _wait(lambda: "broken 13/60 steps" in console.getvalue())


def test_an_error_inside_ends_the_display_and_goes_on(quick, tmp_path, console):
    with pytest.raises(ZeroDivisionError), Display(tmp_path, [_run("any")], planned=1) as display:
        _ = 1 / 0
    assert not display.thread.is_alive()


# -------------------------------------------------------------------------------------- on a terminal


def test_bars_follow_the_steps_and_close_when_a_run_is_done(quick, monkeypatch, tmp_path, console):
    monkeypatch.setattr(console, "isatty", lambda: True)
    run = _run("grpo")
    with Display(tmp_path, [run], planned=1) as display:
        _write(tmp_path, run, json.dumps(HALF_WAY))
        _wait(lambda: "grpo" in display.bars)
        bar = display.bars["grpo"]
        _write(tmp_path, run, json.dumps(HALF_WAY | {"step": 30}))
        _wait(lambda: bar.n == 30 and "30/60 steps" in str(bar))
        assert bar.total == 60
        assert "reward 0.25, kl 0.00123" in str(bar)
        assert " 50%|" in str(bar)
        _finish(tmp_path, run, 15.0)
        _wait(lambda: not display.bars)
    shown = console.getvalue()
    assert "train: grpo done in 15 s, runs left: 0" in shown
    assert "train: grpo 12/60" not in shown
