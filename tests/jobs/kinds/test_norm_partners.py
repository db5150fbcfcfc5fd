"""Which runs a run is measured with."""

from __future__ import annotations

import pytest

from tests.planted import planted
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.jobs.kinds.known import jobs_of
from threegates.jobs.kinds.norm_partners import norm_partner
from threegates.jobs.sources import chapter_pairs, own_pair

RUNS = {
    "dapo-1": ("rl", "dapo", 1),
    "grpo-1": ("rl", "grpo", 1),
    "dapo-2": ("rl", "dapo", 2),
    "sft-1": ("sft", "sft-teacher", 1),
    "rft-2": ("rft", "rft", 2),
    "sft-3": ("sft", "sft-teacher", 3),
}


@pytest.fixture
def pairs(tmp_path):
    base = planted.base_tensors()
    runs = {
        name: (
            planted.with_noise(base, 1e-3, number),
            planted.entry(name, method, ["spectral-drift"], algorithm=algorithm, seed=seed),
        )
        for number, (name, (method, algorithm, seed)) in enumerate(RUNS.items())
    }
    return chapter_pairs("spectral-drift", read_manifest(planted.write_study(tmp_path, base, runs)))


def test_a_run_takes_the_norms_of_the_rl_run_of_its_seed(pairs):
    found = {pair.name: norm_partner(pair, pairs) for pair in pairs}
    names = {name: partner.name if partner else None for name, partner in found.items()}
    assert names == dict.fromkeys(RUNS) | {"sft-1": "grpo-1", "rft-2": "dapo-2"}


def test_the_partner_is_part_of_what_decides_a_drift_job(pairs):
    jobs = {job.name: job for job in jobs_of(["drift"], pairs, 0)}
    assert set(jobs) == set(RUNS)
    assert "partner" in jobs["sft-1"].inputs["checkpoints"]
    assert "partner" not in jobs["grpo-1"].inputs["checkpoints"]
    alone = [pair for pair in pairs if pair.name != "grpo-1"]
    other = {job.name: job for job in jobs_of(["drift"], alone, 0)}
    assert other["sft-1"].arguments["partner_name"] == "dapo-1"
    assert other["sft-1"].digest != jobs["sft-1"].digest
    assert other["dapo-2"].digest == jobs["dapo-2"].digest


def test_overlaps_are_measured_with_the_same_partner(pairs):
    jobs = {job.name: job for job in jobs_of(["overlap"], pairs, 0)}
    assert jobs["sft-1"].arguments["partner_name"] == "grpo-1"
    assert "partner" in jobs["sft-1"].inputs["checkpoints"]
    assert jobs["grpo-1"].arguments["partner_name"] == "" == jobs["sft-3"].arguments["partner_name"]


def test_a_pair_of_ones_own_has_no_partner(pairs, project):
    base, tuned = pairs[0].base.checkpoint.folder, pairs[3].tuned.checkpoint.folder
    own = own_pair(str(base), str(tuned))
    assert norm_partner(own, [own, *pairs]) is None
    job = next(iter(jobs_of(["drift"], [own], 0)))
    assert set(job.arguments["places"]) == {"base", "tuned"}
