"""The empirical Fisher matrix of a base: scores against differences, eigenvalues against the plain matrix."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.planted import planted
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.errors import PairError
from threegates.jobs.kinds.known import jobs_of
from threegates.jobs.sources import chapter_pairs, own_pair
from threegates.lab.evaluate import held_out_problems, sample_problems
from threegates.lab.language import load_weights
from threegates.lab.model import ModelShape
from threegates.lab.randomness import step_generator
from threegates.lab.rollout import response_log_probs, token_log_probs
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID
from threegates.measures import fisher

SHAPE = ModelShape(width=8, layers=1, feed_forward=8, heads=2, kv_heads=1, head_dim=4)


def checkpoint(folder, scale=0.5):
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: (scale * torch.randn(shape, generator=generator)).to(torch.bfloat16)
        for name, shape in SHAPE.parameter_shapes().items()
    }
    config = SHAPE.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype="bfloat16")
    return planted.write(folder, weights, config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("fisher") / "base")


@pytest.fixture(scope="module")
def sampled(folder):
    shape, weights = load_weights(folder)
    generator = step_generator(0, "fisher/arith-4", 0)
    return shape, weights, sample_problems(weights, shape, held_out_problems("arith-4", 6), 1, generator)


def log_likelihood(weights, shape, rollout):
    everything = response_log_probs(weights, shape, rollout.prompts, rollout.responses)
    return (token_log_probs(everything, rollout.responses) * rollout.mask).sum(1)


def test_a_score_is_the_slope_of_its_responses_likelihood(sampled):
    shape, weights, rollout = sampled
    scores = fisher.response_scores(weights, shape, rollout).double()
    assert scores.shape == (6, sum(weight.numel() for weight in weights.values()))
    generator = torch.Generator().manual_seed(1)
    direction = {name: torch.randn(w.shape, generator=generator).double() for name, w in weights.items()}
    step = 1e-5
    moved = [
        log_likelihood(
            {n: w.double() + sign * step * direction[n] for n, w in weights.items()}, shape, rollout
        )
        for sign in (1, -1)
    ]
    slope = (moved[0] - moved[1]) / (2 * step)
    flat = torch.cat([direction[name].flatten() for name in weights])
    assert (scores @ flat).tolist() == pytest.approx(slope.tolist(), rel=1e-3, abs=1e-3)


def test_the_table_has_the_eigenvalues_of_the_plain_matrix(folder, sampled):
    shape, weights, rollout = sampled
    scores = fisher.response_scores(weights, shape, rollout).double().numpy()
    values = np.linalg.eigvalsh(scores.T @ scores / len(scores))[::-1][: len(scores)]
    row = fisher.measure_fisher(folder, base="b", data="arith-4", responses=6)["fisher"].iloc[0]
    assert list(row.index) == list(fisher.FISHER_COLUMNS)
    assert row["responses"] == row["rank"] == 6 and row["parameters"] == scores.shape[1]
    assert row["largest"] == pytest.approx(values[0], rel=1e-5)
    assert row["smallest"] == pytest.approx(values[5], rel=1e-4)
    assert row["trace"] == pytest.approx((scores**2).sum() / 6, rel=1e-5)
    assert row["norm"] == pytest.approx(
        math.sqrt(sum(float((w**2).sum()) for w in weights.values())), rel=1e-5
    )


def test_more_responses_find_a_flatter_direction_and_the_seed_decides(folder):
    few, more, other = (
        fisher.measure_fisher(folder, base="b", data="arith-4", responses=n, seed=s)["fisher"].iloc[0]
        for n, s in ((4, 0), (12, 0), (4, 1))
    )
    assert more["smallest"] < few["smallest"] and other["largest"] != few["largest"]


def test_a_base_that_cannot_move_is_refused(folder, monkeypatch):
    monkeypatch.setattr(fisher, "response_scores", lambda *_: torch.zeros(3, 5))
    with pytest.raises(PairError, match="the Fisher matrix is zero"):
        fisher.measure_fisher(folder, base="b", data="arith-4", responses=3)


def test_one_job_a_base_of_rl_and_none_for_pairs_of_ones_own(tmp_path, project):
    base = planted.base_tensors()
    runs = {
        name: (
            planted.with_noise(base, 1e-3, number),
            planted.entry(name, method, ["kl-leash"], algorithm=algorithm, seed=1, data="arith-4"),
        )
        for number, (name, method, algorithm) in enumerate(
            (("g", "rl", "grpo"), ("d", "rl", "dapo"), ("s", "sft", "sft-teacher"))
        )
    }
    pairs = chapter_pairs("kl-leash", read_manifest(planted.write_study(tmp_path, base, runs)))
    jobs = jobs_of(["fisher"], pairs, 0)
    assert len(jobs) == 1 and set(jobs[0].arguments["places"]) == {"base"}
    assert jobs[0].arguments["responses"] == fisher.RESPONSES and jobs[0].arguments["data"] == "arith-4"
    assert jobs_of(["fisher"], [p for p in pairs if p.name == "s"], 0) == []
    own = own_pair(str(tmp_path / "base"), str(tmp_path / "g"))
    assert jobs_of(["fisher"], [own], 0) == []
