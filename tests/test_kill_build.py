"""The script that kills builds: what it takes away, when it strikes, and what it would catch."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys

import pytest

from tests import kill_build
from threegates.jobs import batches

RUNS, PAGES = 9, 5
# Does as `make book` does, without training: runs, records and pages that are missing, then the book.
STAND_IN = """
import os, shutil, sys, time
from pathlib import Path
build, wrong = Path(sys.argv[1]), sys.argv[2]

def whole(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.partial")
    new.write_text(text)
    os.replace(new, path)

for number in range(RUNS):
    run, partial = build / f"lab/runs/run-{number}", build / f"lab/partial/run-{number}"
    if not run.exists() or wrong == "trains again" and number == 1:
        partial.mkdir(parents=True, exist_ok=True)
        time.sleep(0.1)
        (partial / "weights").write_text(f"{number}")
        shutil.rmtree(run, ignore_errors=True)
        run.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, run)
for number in range(RUNS):
    record, parts = build / f"records/tensor/{number}.parquet", build / f"records/partial/pair/{number}"
    if not record.exists():
        parts.mkdir(parents=True, exist_ok=True)
        (parts / "awaited").touch()
        time.sleep(0.1)
        whole(record, f"{number}" + "?" * (wrong == "differs" and (build / "lab/killed").exists()))
        shutil.rmtree(parts)
for number in range(PAGES):
    page, work = build / f"notebooks/{number}.ipynb", build / f"notebooks/.running-{number}"
    if not page.with_suffix(".json").exists():
        work.mkdir(parents=True, exist_ok=True)
        time.sleep(0.1)
        whole(build / f"notebooks/figures/{number}/one.svg", f"{number}")
        whole(page, f"{number}")
        whole(page.with_suffix(".json"), f"{time.time()}")
        if wrong != "leaves":
            shutil.rmtree(work)
shutil.rmtree(build / "records/partial", ignore_errors=True)
whole(build / "html/index.html", "book")
"""


def stand_in(monkeypatch, wrong):
    """Let a process that does as a build does stand in for it."""
    source = f"RUNS, PAGES = {RUNS}, {PAGES}\n{STAND_IN}"

    def start(profile, folder):
        command = [sys.executable, "-c", source, str(folder), wrong]
        return subprocess.Popen(command, start_new_session=True)

    monkeypatch.setattr(kill_build, "start", start)


def options(**given):
    return argparse.Namespace(profile="smoke", **{"kills": 3, "redo": 2, "span": 0.1, **given})


@pytest.fixture
def reference(tmp_path, monkeypatch):
    stand_in(monkeypatch, "nothing")
    kill_build.finish("smoke", tmp_path / "build")
    return tmp_path / "build"


def attacked(reference, folder, chosen, seed=1):
    """Problems of a copy that was killed, as the script finds them."""
    rng = random.Random(seed)
    kill_build.copy_less(reference, folder, chosen.redo, rng)
    left, done = kill_build.attack(chosen, rng, folder, chosen.kills)
    kill_build.finish(chosen.profile, folder)
    found = kill_build.repeated(folder, done) + kill_build.differences(reference, folder)
    return left, found + kill_build.leftovers(folder)


def test_every_nth_of_each_folder_is_taken_away_with_what_belongs_to_it(reference, tmp_path):
    before = kill_build.digests(reference)
    for seed in range(4):
        copy = tmp_path / f"copy-{seed}"
        kill_build.copy_less(reference, copy, 4, random.Random(seed))
        assert not (copy / "html").exists()
        runs = {path.name for path in (copy / "lab" / "runs").iterdir()}
        assert RUNS - 3 <= len(runs) <= RUNS - 2
        assert len(list(copy.glob("records/*/*.parquet"))) in (RUNS - 3, RUNS - 2)
        pages = {path.stem for path in copy.glob("notebooks/*.ipynb")}
        assert len(pages) in (PAGES - 2, PAGES - 1)
        assert pages == {path.stem for path in copy.glob("notebooks/*.json")}
        assert pages == {path.name for path in (copy / "notebooks" / "figures").iterdir()}
    assert kill_build.digests(reference) == before


def test_one_of_a_few_is_taken_away_however_many_stay_elsewhere(reference, tmp_path):
    kill_build.copy_less(reference, tmp_path / "copy", 1000, random.Random(1))
    assert len(list((tmp_path / "copy").glob("records/*/*.parquet"))) == RUNS - 1


def test_each_stage_is_struck_in_turn_and_a_good_build_has_no_problems(reference, tmp_path, capsys):
    assert attacked(reference, tmp_path / "copy", options()) == (0, [])
    said = capsys.readouterr().out
    assert [stage for stage in kill_build.STAGES if f"of {stage}: " in said] == list(kill_build.STAGES)
    assert said.count("the group") >= 2


def test_measuring_is_known_by_what_the_package_writes():
    assert kill_build.STAGES["measuring"][1] == f"records/{batches._PARTIAL}/**/{batches._AWAITED}"


def test_a_build_that_ends_before_its_kills_is_told_and_not_begun_again(
    reference, tmp_path, monkeypatch, capsys
):
    command = ["kill_build.py", "--redo", "2", "--span", "1000"]
    monkeypatch.setattr(
        sys, "argv", [*command, "--reference", str(reference), "--folder", str(tmp_path / "n")]
    )
    assert kill_build.main() == 1
    assert "the build ended before 20 of its kills" in capsys.readouterr().out


def test_without_a_copy_kills_come_at_any_moment(reference, tmp_path, capsys):
    rng = random.Random(2)
    left, done = kill_build.attack(options(redo=0, span=1.0, kills=2), rng, tmp_path / "new", 2)
    assert left == 0 and "of training" not in capsys.readouterr().out
    kill_build.finish("smoke", tmp_path / "new")
    assert kill_build.repeated(tmp_path / "new", done) == []
    assert kill_build.differences(reference, tmp_path / "new") == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("trains again", "lab/runs/run-1 was made again"),
        ("differs", "differs"),
        ("leaves", "notebooks/.running-"),
    ],
)
def test_what_a_build_does_wrong_after_a_kill_is_seen(reference, tmp_path, monkeypatch, wrong, said):
    stand_in(monkeypatch, wrong)
    if wrong == "differs":
        (reference / "lab" / "killed").touch()
    problems = attacked(reference, tmp_path / "copy", options(kills=1))[1]
    assert said in " ".join(problems)
