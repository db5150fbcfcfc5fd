"""Batches: each base matrix decomposed once, whatever is killed repeats one tensor, records never differ."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.hub.loopback import LoopbackHub
from tests.planted import planted
from tests.planted.planted_null import FIFTH
from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, write_manifest
from threegates.checkpoints.places import Place
from threegates.geometry.nulls.table import NULLS
from threegates.jobs import batches as module
from threegates.jobs.batches import batches, opened, parts_of, run_jobs
from threegates.jobs.kinds.table import table_job
from threegates.jobs.memory import Need
from threegates.jobs.nulls import asked_for
from threegates.jobs.sources import own_pair
from threegates.measures import bases
from threegates.measures.drift import PairDrift
from threegates.records.store import Records
from threegates.study import Study

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ("spectral-drift", "principal-overlap", "update-sparsity")
SPECTRAL = CHAPTERS[:2]
MATRICES = 7
RUNS = {"grpo-1": "rl", "sft-1": "sft", "rft-1": "rft"}


def runs_of(base, names=RUNS):
    return {
        name: (
            planted.with_noise(base, 1e-3, number),
            planted.entry(name, RUNS[name], list(CHAPTERS), algorithm=name[:-2], seed=1),
        )
        for number, name in enumerate(names)
    }


@pytest.fixture
def lab(project):
    """A base and three runs from it, one the norm partner of the others."""
    base = planted.base_tensors()
    return planted.write_study(project / "lab", base, runs_of(base))


def study(manifest, records, chapter="spectral-drift", **options):
    return Study.open(chapter, manifest=manifest, records=records, **options)


@pytest.fixture
def decomposed(monkeypatch):
    """Counts decompositions of base matrices, by their content."""
    calls: Counter = Counter()
    original = bases.decompose_base

    def counted(weight, k, accuracy):
        calls[tuple(weight.shape), float(weight.double().sum()), k] += 1
        return original(weight, k, accuracy)

    monkeypatch.setattr(bases, "decompose_base", counted)
    return calls


def bytes_of(records):
    files = sorted(records.rglob("*.parquet"))
    return {path.relative_to(records).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("chapter", SPECTRAL)
def test_a_base_matrix_is_decomposed_once_for_all_its_tuned_checkpoints(chapter, lab, tmp_path, decomposed):
    opened = study(lab, tmp_path / "records", chapter).ensure()
    assert len(opened.jobs) == len(RUNS) and not opened.missing()
    # The sweep of the drift over ranks needs more triplets than its headline: a decomposition of its own.
    ranks = 2 if chapter == "spectral-drift" else 1
    assert set(decomposed.values()) == {1} and len(decomposed) == ranks * MATRICES
    assert set(opened.table(opened.jobs[0].tables[0])["pair"]) == set(RUNS)


def test_a_base_whose_bf16_copy_differs_is_decomposed_once_in_each(project, tmp_path, decomposed):
    base = {name: weight.float() * (1 + 2**-12) for name, weight in planted.base_tensors().items()}
    manifest = planted.write_study(project / "lab", base, runs_of(base))
    study(manifest, tmp_path / "records").ensure()
    assert set(decomposed.values()) == {1} and len(decomposed) == 2 * 2 * MATRICES


@pytest.fixture
def two_bases(project):
    """Two bases that differ in one tensor, and a run from each."""
    base = planted.base_tensors()
    other = {**base, "model.layers.0.mlp.up_proj.weight": base["model.layers.0.mlp.up_proj.weight"] * 2}
    manifest = planted.write_study(project / "lab", base, runs_of(base, ["grpo-1"]))
    planted.write(manifest.parent / "base-2", other)
    planted.write(manifest.parent / "sft-2", planted.with_noise(other, 1e-3, 5))
    (grpo,) = (entry for _, entry in runs_of(base, ["grpo-1"]).values())
    entries = [
        Entry(name="base", source=Folder(path="base"), method="pretrain"),
        Entry(name="base-2", source=Folder(path="base-2"), method="pretrain"),
        grpo,
        planted.entry("sft-2", "sft", list(CHAPTERS), base="base-2"),
    ]
    write_manifest(manifest, Manifest(version=1, profile="planted", checkpoints=entries))
    return manifest


def test_two_bases_share_the_tensors_that_are_equal(two_bases, tmp_path, decomposed):
    study(two_bases, tmp_path / "records").ensure()
    assert set(decomposed.values()) == {1} and len(decomposed) == 2 * (MATRICES + 1)


def folder_of(text: str) -> Path:
    return Path(Place.parse(text).folder)


@contextmanager
def on_a_hub(jobs, monkeypatch, folder):
    """A Hub with the jobs' checkpoints, and the same jobs with places on it."""
    repos = {
        f"org/{folder.name}": folder
        for job in jobs
        for folder in map(folder_of, job.arguments["places"].values())
    }
    monkeypatch.setenv("THREEGATES_RANGES", str(folder))
    # Equal places are opened once in a process, and another test's were on a Hub that is gone.
    for kept in (opened, module._open):
        kept.cache_clear()
    with LoopbackHub(repos) as hub:
        hub.stand_in(monkeypatch)
        places = {
            str(path): Place(repo=repo, revision=hub.commit(repo)).text() for repo, path in repos.items()
        }
        moved = [
            {side: places[str(folder_of(text))] for side, text in job.arguments["places"].items()}
            for job in jobs
        ]
        yield (
            hub,
            [
                replace(job, arguments=job.arguments | {"places": texts})
                for job, texts in zip(jobs, moved, strict=True)
            ],
        )


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_over_the_network_the_records_are_those_of_the_folders(chapter, lab, tmp_path, monkeypatch):
    local = study(lab, tmp_path / "local", chapter).ensure()
    with on_a_hub(local.jobs, monkeypatch, tmp_path / "ranges") as (hub, jobs):
        run_jobs(jobs, Records(tmp_path / "ranged"), 1)
        assert bytes_of(tmp_path / "ranged") == bytes_of(tmp_path / "local")
        assert hub.asked("model.safetensors") > MATRICES
        hub.requests.clear()
        run_jobs(jobs, Records(tmp_path / "again"), 1)
        assert bytes_of(tmp_path / "again") == bytes_of(tmp_path / "local")
        assert hub.requests == []


def test_over_the_network_no_tensor_is_read_to_see_whether_bases_share_it(two_bases, tmp_path, monkeypatch):
    local = study(two_bases, tmp_path / "records")
    with on_a_hub(local.jobs, monkeypatch, tmp_path / "ranges") as (hub, jobs):
        found = batches({job: parts_of(job, local.records) for job in jobs})
        assert sum(map(len, found)) == len(found) == sum(len(opened(job).names) for job in jobs)
        # One request each for the headers of four checkpoints.
        assert hub.asked("model.safetensors") == len(hub.repos) == 4


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_records_depend_neither_on_the_batch_nor_on_the_number_of_workers(chapter, lab, tmp_path):
    study(lab, tmp_path / "one", chapter).ensure()
    study(lab, tmp_path / "two", chapter).ensure(2)
    alone = study(lab, tmp_path / "alone", chapter)
    for job in reversed(alone.jobs):
        run_jobs([job], alone.records, 1)
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two") == bytes_of(tmp_path / "alone")
    assert not (tmp_path / "one" / "partial").exists()


def test_where_no_number_of_workers_is_given_there_are_as_many_as_pay(lab, tmp_path, monkeypatch):
    given = []

    def noted(work, tasks, needs, cap, workers, *_, **__):
        given.append(workers)

    monkeypatch.setattr(module, "run_within", noted)
    monkeypatch.setattr(module, "_finish", lambda *_: None)
    monkeypatch.setattr("threegates.workers.cores", lambda: 7)
    monkeypatch.setattr(module, "cores", lambda: 7)

    def workers_of(asked: int | None) -> int:
        opened = study(lab, tmp_path / "records")
        run_jobs(opened.jobs, opened.records, asked)
        return given.pop()

    assert workers_of(None) == 1 and workers_of(3) == 3
    monkeypatch.setattr("threegates.workers.WORTH_A_PROCESS", 1)
    assert workers_of(None) == 7
    monkeypatch.setattr("threegates.workers.WORTH_A_PROCESS", 1 << 40)
    # What a job about several runs reads is not known beforehand.
    assert module._fitting([Need("a", 5, read=5)]) == 1 and module._fitting([Need("a", 5)]) == 7


def test_another_checkpoint_leaves_the_records_of_the_others(project, tmp_path, decomposed):
    base = planted.base_tensors()
    manifest = planted.write_study(project / "lab", base, runs_of(base, ["grpo-1", "sft-1"]))
    study(manifest, tmp_path / "records").ensure()
    before = bytes_of(tmp_path / "records")
    manifest = planted.write_study(project / "lab", base, runs_of(base))
    more = study(manifest, tmp_path / "records")
    assert [job.name for job in more.missing()] == ["rft-1"]
    more.ensure()
    after = bytes_of(tmp_path / "records")
    assert after.items() > before.items()
    # The next run begins with the base again, once for each matrix.
    assert set(decomposed.values()) == {2}


CHILD = """
import sys, time
from pathlib import Path
from threegates.measures.drift import PairDrift
from threegates.study import Study

rows = PairDrift.rows
def noted(self, tensor, shared):
    with open(sys.argv[3], "a") as log:
        log.write(f"{self.name} {tensor}\\n")
    time.sleep(0.02)
    return rows(self, tensor, shared)
PairDrift.rows = noted
Study.open("spectral-drift", manifest=Path(sys.argv[1]), records=Path(sys.argv[2])).ensure()
"""


def killed(manifest, records, log, after):
    """Measure in a process that is killed while it is at the tensor after so many."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen([sys.executable, "-c", CHILD, manifest, records, log], env=environment)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        if log.exists() and log.read_text().count("\n") > after:
            break
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert child.returncode == -signal.SIGKILL


def test_a_killed_batch_goes_on_and_repeats_at_most_one_tensor(lab, tmp_path, monkeypatch, decomposed):
    whole = study(lab, tmp_path / "whole").ensure()
    bases_of_whole = sum(decomposed.values())
    decomposed.clear()
    log, records = tmp_path / "log", tmp_path / "records"
    killed(lab, records, log, after=9)
    begun = log.read_text().split("\n")[:-1]
    assert 9 < len(begun) < len(RUNS) * MATRICES and len(begun) == len(set(begun))
    assert not list(records.glob("drift/*")) and list(records.glob("partial/drift/*/*/*.json"))
    original = PairDrift.rows
    again = []

    def noted(self, tensor, shared):
        again.append(f"{self.name} {tensor}")
        return original(self, tensor, shared)

    monkeypatch.setattr(PairDrift, "rows", noted)
    study(lab, records).ensure()
    assert len(set(begun) & set(again)) <= 1 and len(again) == len(set(again))
    assert len(set(begun) | set(again)) == len(RUNS) * MATRICES
    assert set(decomposed.values()) == {1} and sum(decomposed.values()) < bases_of_whole
    assert bytes_of(records) == bytes_of(whole.records.folder) and not (records / "partial").exists()


def test_a_tensor_that_is_not_finite_costs_no_other_one_its_rows(lab, tmp_path):
    folder = lab.parent / "sft-1"
    tensor = "model.layers.0.self_attn.k_proj.weight"
    broken = planted.with_noise(planted.base_tensors(), 1e-3, 1)
    broken[tensor][1, 2] = torch.inf
    whole = study(lab, tmp_path / "whole").ensure().records.folder
    planted.write(folder, broken)
    records = study(lab, tmp_path / "records").ensure().records.folder
    # A record's name ends in its digest, which covers the checkpoint's.
    files = [sorted(one.rglob("*.parquet")) for one in (whole, records)]
    assert files[0] and len(files[0]) == len(files[1]) and not list(records.glob("partial"))
    for expected, found in zip(*([pd.read_parquet(path) for path in one] for one in files), strict=True):
        lost = (expected["tensor"] == tensor) & (expected["pair"] == "sft-1")
        pd.testing.assert_frame_equal(expected[~lost].reset_index(drop=True), found)


def test_masks_are_taken_into_a_tensor_s_memory_where_they_are_drawn_and_not_where_they_are_laws(
    lab, tmp_path, monkeypatch
):
    def drawn(job):
        return module._draws_masks(job)

    assert not any(map(drawn, study(lab, tmp_path / "records", "principal-overlap").jobs))
    pair = own_pair(*(str(lab.parent / side) for side in ("base", "grpo-1")))
    table = table_job(pair, {"seed": 0, "nulls": asked_for(), "axes": True, "spectra": True})
    monkeypatch.setitem(NULLS, FIFTH.name, FIFTH)
    five = replace(table, arguments=table.arguments | {"nulls": [*asked_for(), FIFTH.name]})
    assert not drawn(table) and drawn(five)


def test_the_largest_bases_come_first_and_only_what_is_missing_is_measured(lab, tmp_path):
    opened = study(lab, tmp_path / "records")
    records = Records(tmp_path / "records")
    places = {job: parts_of(job, records) for job in opened.jobs}
    found = batches(places)
    sizes = [planted.base_tensors()[batch[0].tensor].numel() for batch in found]
    assert len(found) == MATRICES and sizes == sorted(sizes, reverse=True)
    assert all([piece.job.name for piece in batch] == [job.name for job in opened.jobs] for batch in found)
    first = found[0][0]
    first.parts.write(first.tensor, {"drift": [], "spectrum": []})
    assert len(batches(places)[-1]) == len(RUNS) and sum(map(len, batches(places))) == 3 * MATRICES - 1
