"""The script that kills measurements: what it would catch, on commands that do wrong, and one true kill."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from tests.kill_measure import ROOT, WAYS, Moves, Place, attack, left_behind, make_pair, place_of

# Does as `threegates measure` does, without measuring: parts, one after the other, then all in one file.
STAND_IN = """
import os, sys, time
from pathlib import Path
wrong, parts = sys.argv[1], Path("out.parquet.parts/digest")
begun_before = parts.exists()
parts.mkdir(parents=True, exist_ok=True)
for number in range(12):
    part = parts / f"{number}.json"
    if part.exists() and wrong != "repeats":
        continue
    time.sleep(0.03)
    new = part.with_suffix(".partial")
    new.write_text(str(number))
    os.replace(new, part)
if begun_before and wrong == "leaves":
    Path("hub").mkdir()
    Path("hub/.shard.123.partial").touch()
if begun_before and wrong == "fails":
    sys.exit("it cannot go on")
rows = [path.read_text() for path in sorted(parts.glob("*.json"))]
Path("out.parquet").write_text(" ".join(rows + ["again"] * (begun_before and wrong == "differs")))
if not (begun_before and wrong == "keeps parts"):
    for path in parts.glob("*.json"):
        path.unlink()
    parts.rmdir()
    parts.parent.rmdir()
if wrong == "stays":
    import subprocess
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
"""


def stand_in(folder, wrong: str) -> Place:
    return Place(folder, [sys.executable, "-c", STAND_IN, wrong], dict(os.environ), ("all",))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("nothing", ""),
        ("repeats", "finished tensors were measured again"),
        ("differs", "out.parquet differs"),
        ("leaves", "hub/.shard.123.partial was left behind"),
        ("keeps parts", "out.parquet.parts was left behind"),
        ("fails", "it cannot go on"),
    ],
)
def test_what_a_command_does_wrong_after_a_kill_is_seen(tmp_path, wrong, said):
    problems = attack(stand_in(tmp_path / "place", wrong), random.Random(1), 4)
    assert (said in " ".join(problems)) if said else problems == []
    assert bool(problems) == bool(said)


def test_a_process_that_stays_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.kill_measure.LEAVING", 0.5)
    place = stand_in(tmp_path / "place", "stays")
    place.clear()
    process = place.start()
    assert process.wait() == 0
    (problem,) = left_behind(place, {process.pid})
    assert "time.sleep(60)" in problem
    os.killpg(process.pid, 9)
    assert left_behind(place, {process.pid}) == []


def test_an_uninterrupted_run_that_fails_is_told(tmp_path):
    place = Place(
        tmp_path / "place", [sys.executable, "-c", "raise SystemExit('no')"], dict(os.environ), ("all",)
    )
    assert "no" in attack(place, random.Random(1), 1)[0]


def test_only_what_is_renamed_into_the_folder_of_parts_counts(tmp_path):
    parts = tmp_path / "out.parquet.parts" / "digest"
    parts.mkdir(parents=True)
    (parts / "old.json").touch()
    with Moves(tmp_path) as moves:
        (parts / ".new").touch()
        (parts / ".new").rename(parts / "new.json")
        (parts / "old.json").unlink()
    assert moves.names == {"new.json"}


def test_a_way_reads_folders_or_a_hub_and_has_caches_of_its_own(tmp_path):
    pair = make_pair(tmp_path, 1)
    with place_of(WAYS["dask"], tmp_path / "dask", pair) as place:
        assert str(pair["base"]) in place.command and place.environment["THREEGATES_BACKEND"] == "dask"
        assert "worker" in place.victims
    with place_of(WAYS["ranged"], tmp_path / "ranged", pair) as place:
        assert "lab/base" in place.command and set(WAYS["ranged"].options) <= set(place.command)
        assert place.environment["HF_ENDPOINT"].startswith("http://127.0.0.1:")
        assert place.environment["HF_HOME"].startswith(str(tmp_path / "ranged"))


@pytest.mark.slow
def test_a_true_measurement_goes_on_after_a_kill(tmp_path):
    with place_of(WAYS["local"], tmp_path / "local", make_pair(tmp_path, 2)) as place:
        assert attack(place, random.Random(3), 1) == []


def test_the_script_says_what_it_does():
    command = [sys.executable, "tests/kill_measure.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--way" in done.stdout and "SIGKILL" in done.stdout
