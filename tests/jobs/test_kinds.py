"""What every kind of job has to keep, on planted runs that all kinds can look at."""

from __future__ import annotations

import importlib
import re
import sys

import pandas as pd
import pytest
import torch

from tests.planted import planted
from tests.planted.planted_runs import planted_pairs
from threegates.digest import code_digest, digest_versions, value_digest
from threegates.jobs.batches import opened, run_jobs
from threegates.jobs.kinds.known import BY_TENSOR, KINDS, jobs_of, run_job, tables_of, write_records
from threegates.jobs.nulls import with_nulls
from threegates.jobs.sources import StudyPair, narrowed, own_pair, own_pairs
from threegates.measures import curvature, fisher, losses, steepness
from threegates.measures.by_tensor import measure_all, typed
from threegates.records.store import Records

EVERY = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
WHOLE = pytest.mark.parametrize("name", [name for name in KINDS if name not in BY_TENSOR])
SEED = 5
#: Of a pair that is measured tensor by tensor, few are enough.
FEW = ([1], ["q", "down"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """All planted pairs, with fewer batches and responses than a study takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curvature, "BATCHES", 1)
        patch.setattr(steepness, "BATCHES", 1)
        patch.setattr(steepness, "DRAWS", 2)
        patch.setattr(losses, "EXAMPLES", 4)
        patch.setattr(losses, "PROMPTS", 2)
        patch.setattr(fisher, "RESPONSES", 6)
        yield planted_pairs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def tables(pairs):
    """The tables of the last job of each kind, measured once."""
    return {name: measured(jobs(name, pairs)[-1]) for name in KINDS}


def jobs(name, pairs):
    return jobs_of([name], narrowed(pairs, *FEW) if name in BY_TENSOR else pairs, SEED)


def measured(job):
    measure = KINDS[job.kind].measure
    return measure_all(opened(job)) if measure is None else measure(**with_nulls(job.arguments))


@EVERY
def test_it_goes_by_its_name_which_is_a_folders_too(kind):
    assert KINDS[kind.name] is kind and re.fullmatch(r"[a-z]+", kind.name)


@EVERY
def test_it_is_measured_whole_or_tensor_by_tensor(kind):
    assert (kind.measure is None) != (kind.by_tensor is None)
    assert BY_TENSOR.get(kind.name) is kind.by_tensor
    assert kind.by_tensor is not None or not kind.spectra


@EVERY
def test_its_columns_have_types(kind):
    assert kind.tables
    for table, columns in kind.tables.items():
        assert re.fullmatch(r"[a-z_]+", table) and columns
        for column in columns.values():
            pd.api.types.pandas_dtype(column)


@EVERY
def test_its_digest_starts_at_what_measures(kind):
    place, _, name = kind.root.rpartition(".")
    module = importlib.import_module(place)
    if kind.by_tensor is not None:
        assert getattr(module, name) is kind.by_tensor
    else:
        assert module in vars(sys.modules[kind.measure.__module__]).values()
        assert callable(getattr(module, name)) and name in kind.measure.__code__.co_names


@EVERY
def test_its_jobs_are_known_by_all_that_decides_them(kind, pairs):
    found = jobs(kind.name, pairs)
    names = [job.name for job in found]
    assert found and len(set(names)) == len(names)
    reach = kind.reach
    code = code_digest(*reach.roots, outside=reach.outside, inside=reach.inside)
    decides = {"code": code, "versions": digest_versions()}
    for job in found:
        assert job.digest == value_digest({"kind": kind.name, "inputs": job.inputs, **decides})
        assert {**job.inputs["parameters"], "places": job.arguments["places"]} == job.arguments
        assert set(job.inputs["checkpoints"]) == set(job.arguments["places"])
        assert job.kind == kind.name and job.tables == tuple(kind.tables) and not job.stale


@EVERY
def test_its_jobs_depend_on_the_weights_that_they_look_at_and_on_nothing_drawn(kind, pairs):
    digests = {job.name: job.digest for job in jobs(kind.name, pairs)}
    assert {job.name: job.digest for job in jobs(kind.name, pairs)} == digests
    other = [StudyPair(one.name, one.base, pairs[0].tuned) for one in pairs]
    moved = {job.name: job.digest for job in jobs(kind.name, other)}
    looks_at_bases_alone = kind.name in ("frame", "fisher", "steepness")
    assert (moved == digests) == looks_at_bases_alone


@EVERY
def test_a_job_gives_its_tables_with_their_columns_and_no_others(kind, tables):
    found = tables[kind.name]
    assert set(kind.tables) <= set(found) and any(len(found[table]) for table in kind.tables)
    # What a measure can give beside them was not asked for, and stays empty.
    assert not any(len(frame) for table, frame in found.items() if table not in kind.tables)
    for table, columns in kind.tables.items():
        assert list(found[table]) == list(columns), table
        assert found[table].dtypes.equals(typed([], columns).dtypes), table


@EVERY
def test_measuring_again_gives_the_same(kind, pairs, tables):
    again = measured(jobs(kind.name, pairs)[-1])
    for table, frame in tables[kind.name].items():
        pd.testing.assert_frame_equal(again[table], frame, check_exact=True)


@EVERY
def test_its_records_are_written_under_its_tables(kind, pairs, tables, tmp_path, project):
    job, records = jobs(kind.name, pairs)[-1], Records(tmp_path / "records")
    assert not job.is_done(records)
    write_records(job, records, tables[kind.name])
    assert job.is_done(records)
    for table, columns in tables_of([kind.name]).items():
        assert list(records.read(table, job.name, job.digest)) == list(columns)


@WHOLE
def test_one_that_is_measured_whole_writes_its_records_itself(name, pairs, tmp_path, project):
    job, records = jobs(name, pairs)[-1], Records(tmp_path / "records")
    run_job(job, records)
    assert job.is_done(records)


@pytest.mark.parametrize("name", BY_TENSOR)
def test_one_that_is_measured_by_tensor_takes_a_pair_alone(name, pairs):
    (cut,) = KINDS[name].cut(pairs[:1], {"seed": 0, **KINDS[name].asked()})
    sides = {place: source.checkpoint for place, source in cut.sources.items()}
    alone = BY_TENSOR[name](**sides, **with_nulls(cut.options))
    assert alone.names and KINDS[name].tables.items() <= dict(alone.tables).items()


@pytest.mark.parametrize("kind", ["pair", "drift", "overlap", "table"])
def test_what_a_folder_is_called_moves_no_number(kind, tmp_path, monkeypatch):
    """The same bytes in folders of two names, at one seed."""
    monkeypatch.chdir(tmp_path)
    base = planted.base_tensors()
    tuned = planted.with_noise(base, 2e-3, seed=3)
    planted.write(tmp_path / "base", base)
    found = {}
    for name in ("one", "another"):
        planted.write(tmp_path / name, tuned)
        pair = own_pair(str(tmp_path / "base"), str(tmp_path / name))
        (job,) = jobs_of([kind], [pair], seed=0)
        records = Records(tmp_path / "records")
        run_jobs([job], records, 1)
        found[name] = {table: records.read(table, job.name, job.digest) for table in job.tables}
        for table in found[name].values():
            assert set(table.get("pair", [])) <= {name}
    assert any(map(len, found["one"].values()))
    for table, frame in found["one"].items():
        other = found["another"][table]
        pd.testing.assert_frame_equal(frame.drop(columns="pair"), other.drop(columns="pair"))


@pytest.mark.parametrize("kind", ["group", "run", "lens"])
def test_a_tensor_that_is_not_finite_costs_several_runs_its_own_rows_alone(kind, tmp_path, monkeypatch):
    """Kinds that look at several checkpoints at once, as chapters on series of one's own do."""
    monkeypatch.chdir(tmp_path)
    base = planted.base_tensors()
    planted.write(tmp_path / "base", base)
    bad = "model.layers.0.self_attn.q_proj.weight"
    for step in (1, 2):
        tuned = planted.with_noise(base, 2e-3, seed=step)
        planted.write(tmp_path / "whole" / f"checkpoint-{step}", tuned)
        tuned[bad][0, 0] = torch.inf if step == 2 else 0
        planted.write(tmp_path / "torn" / f"checkpoint-{step}", tuned)
    found = {}
    for name in ("whole", "torn"):
        pairs = own_pairs(str(tmp_path / "base"), str(tmp_path / name / "checkpoint-*"))
        records = Records(tmp_path / f"records-{name}")
        jobs = jobs_of([kind], pairs, seed=SEED)
        run_jobs(jobs, records, 1)
        tables = [records.read(table, job.name, job.digest) for job in jobs for table in job.tables]
        found[name] = {one for table in tables if "tensor" in table for one in table["tensor"]}
    assert bad in found["whole"] and found["torn"] == found["whole"] - {bad}
