"""Steepness at a base: neutral directions, and a loss whose Hessian is known by hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tests.planted.planted_tables import Given
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.writer import write_checkpoint
from threegates.geometry.nulls.noise import Real
from threegates.judging import claims
from threegates.judging.verdicts import Judgement
from threegates.measures import steepness
from threegates.measures.batch import Batch, Losses
from threegates.measures.steepness import DIRECTIONS, measure_steepness, neutral_directions, principal_places
from threegates.register import estimate

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"self_attn.q_proj": (32, 32), "mlp.up_proj": (48, 32)}
NAMES = tuple(f"model.layers.0.{name}.weight" for name in SHAPES)
BLOCK, WEIGHTS = "steepness_principal_over_noise", "steepness_principal_weights_over_others"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Checkpoint:
    """Two matrices of one block, and an embedding and a norm that are no part of any direction."""
    generator = torch.Generator().manual_seed(5)
    tensors = {
        name: torch.randn(shape, generator=generator).bfloat16()
        for name, shape in zip(NAMES, SHAPES.values(), strict=True)
    }
    tensors |= {"model.embed_tokens.weight": torch.ones(8, 32).bfloat16()}
    tensors |= {"model.layers.0.input_layernorm.weight": torch.ones(32).bfloat16()}
    folder = tmp_path_factory.mktemp("base")
    write_checkpoint(folder, tensors, {"model_type": "llama"})
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def frames(base) -> dict[str, tuple[Tensor, Tensor]]:
    """Projections on the leading singular directions of each matrix, from a plain SVD."""
    found = {}
    for name in NAMES:
        u, _, vt = torch.linalg.svd(base.stored(name).double())
        k = min(base.info(name).shape) // 8
        found[name] = (u[:, :k] @ u[:, :k].T, vt[:k].T @ vt[:k])
    return found


def draw_of(base, number: int = 0, seed: int = 0, name: str = "b") -> dict[str, dict[str, Tensor]]:
    return neutral_directions(principal_places(base), name, seed, number)


# ------------------------------------------------------------------------------------------- directions


def test_directions_of_a_draw_lie_in_the_blocks_and_have_one_norm_in_every_matrix(base):
    found = draw_of(base)
    assert tuple(found) == DIRECTIONS
    for name in NAMES:
        norms = [float(tensors[name].norm()) for tensors in found.values()]
        assert norms == pytest.approx([norms[0]] * 4, rel=1e-5)
        assert norms[0] == pytest.approx(math.sqrt(base.info(name).shape[0] * 32), rel=0.1)
    assert all(set(tensors) == set(NAMES) for tensors in found.values())


def test_the_blocks_part_is_the_noises_own_in_the_leading_singular_directions(base, frames):
    found = draw_of(base)
    for name, (left, right) in frames.items():
        noise, part = (found[one][name].double() for one in ("noise", "block"))
        wanted = left @ noise @ right
        assert torch.allclose(part, wanted * (noise.norm() / wanted.norm()), atol=1e-4)


def test_weights_are_halves_of_the_noise_and_the_principal_half_is_large_in_the_leading_part(base, frames):
    found = draw_of(base)
    for name, (left, right) in frames.items():
        on, off = (found[one][name] for one in ("principal_weights", "other_weights"))
        assert torch.equal(on != 0, off == 0) and int((on != 0).sum()) == on.numel() // 2
        leading = (left @ base.stored(name).double() @ right).abs()
        assert float(leading[on != 0].min()) >= float(leading[off != 0].max()) - 1e-9
        for half in (on, off):
            noise = found["noise"][name]
            scale = half[half != 0] / noise[half != 0]
            assert torch.allclose(scale, scale[0].expand_as(scale), rtol=1e-4)


def test_draws_differ_by_number_seed_and_base_and_by_nothing_else(base):
    def noise(**what) -> Tensor:
        return draw_of(base, **what)["noise"][NAMES[0]]

    assert torch.equal(noise(), noise())
    for other in ({"number": 1}, {"seed": 1}, {"name": "c"}):
        assert not torch.equal(noise(), noise(**other))


# -------------------------------------------------------------------------------- a Hessian that is known


def planted(base: Checkpoint, inside: Callable[[str, Tensor], Tensor], steep: Real, flat: Real) -> Losses:
    """½ (steep ‖W inside‖² + flat ‖W outside‖²): its Hessian is `steep` inside and `flat` outside, anywhere.

    Each batch has it times its number plus one. Of two classes at one position, the logit is the sum of W.
    """
    point = {name: base.stored(name).float() for name in NAMES}

    def batch(number: int) -> Batch:
        def loss(weights: Mapping[str, Tensor]) -> Tensor:
            parts = [(weights[name], inside(name, weights[name])) for name in NAMES]
            values = [steep * (part**2).sum() + flat * ((w - part) ** 2).sum() for w, part in parts]
            return (number + 1) / 2 * torch.stack(values).sum()

        def log_probs(weights: Mapping[str, Tensor]) -> Tensor:
            logit = torch.stack([weights[name].sum() for name in NAMES]).sum() / 100
            return torch.log_softmax(torch.stack([logit, torch.zeros_like(logit)])[None], 1)

        return Batch(loss, loss, log_probs)

    return Losses(point, batch)


def measured(base: Checkpoint, losses: Losses, monkeypatch) -> pd.DataFrame:
    monkeypatch.setattr(steepness, "base_losses", lambda _: losses)
    monkeypatch.setattr(steepness, "BATCHES", 2)
    return measure_steepness(base, name="b")["steepness"]


@pytest.fixture
def in_block(frames) -> Callable[[str, Tensor], Tensor]:
    return lambda name, w: frames[name][0].float() @ w @ frames[name][1].float()


@pytest.fixture
def on_weights(base) -> Callable[[str, Tensor], Tensor]:
    masks = {name: place.weights.float() for name, place in principal_places(base).items()}
    return lambda name, w: masks[name] * w


def judged(claim: str, table: pd.DataFrame) -> claims.Verdict:
    known = {one.id: one for one in claims.read_claims(ROOT / "claims.yaml").claims}
    return claims.judge(known[claim], Given({"steepness": table}), "planted")


def test_a_block_that_was_planted_steep_is_found_draw_by_draw(base, in_block, frames, monkeypatch):
    table = measured(base, planted(base, in_block, 11, 1), monkeypatch)
    loss = table[table["function"] == "loss"].set_index(["direction", "batch", "draw"])["curvature"]
    # The block's curvature is 11; noise has 1 and ten times the share of its squared norm that lies there.
    expected = []
    for draw in range(steepness.DRAWS):
        noise = draw_of(base, draw)["noise"]
        total = sum(float(part.double().square().sum()) for part in noise.values())
        share = sum(float(in_block(n, part).double().square().sum()) for n, part in noise.items()) / total
        expected.append(11 / (1 + 10 * share))
        for batch in (0, 1):
            assert loss["block", batch, draw] == pytest.approx(11 * (batch + 1), rel=1e-4)
            assert loss["noise", batch, draw] == pytest.approx((1 + 10 * share) * (batch + 1), rel=1e-4)
    found = estimate(BLOCK, Given({"steepness": table}))
    assert found.value == pytest.approx(float(np.exp(np.log(expected).mean())), rel=1e-4)
    assert found.n == steepness.DRAWS >= 20 and found.unit == "draws" and found.low < found.value < found.high
    assert judged("principal-directions-are-steep", table).judgement is Judgement.reproduced


def test_principal_weights_that_were_planted_steep_are_found(base, on_weights, monkeypatch):
    table = measured(base, planted(base, on_weights, 3, 1), monkeypatch)
    assert estimate(WEIGHTS, Given({"steepness": table})).value == pytest.approx(3, rel=1e-4)
    assert judged("principal-weights-are-steep", table).judgement is Judgement.reproduced


def test_a_loss_that_bends_alike_everywhere_gives_one_for_both(base, in_block, monkeypatch):
    table = measured(base, planted(base, in_block, 2, 2), monkeypatch)
    for name in (BLOCK, WEIGHTS):
        found = estimate(name, Given({"steepness": table}))
        assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1), rel=1e-4)
    assert judged("principal-directions-are-steep", table).judgement is Judgement.no_effect


def test_a_block_that_was_planted_flat_contradicts(base, in_block, monkeypatch):
    table = measured(base, planted(base, in_block, 0.1, 1), monkeypatch)
    assert judged("principal-directions-are-steep", table).judgement is Judgement.contradicted


def test_where_noise_meets_a_negative_curvature_it_cannot_be_told(base, in_block, monkeypatch):
    table = measured(base, planted(base, in_block, 11, -1), monkeypatch)
    found = estimate(BLOCK, Given({"steepness": table}))
    assert math.isnan(found.value) and not found.has_interval
    assert found.reason.startswith(f"{steepness.DRAWS} of {steepness.DRAWS} draws of noise meet a curvature")
    verdict = judged("principal-directions-are-steep", table)
    assert verdict.judgement is Judgement.cannot_tell and "no ratio says" in verdict.reason


def test_one_draw_below_zero_is_enough_and_a_batch_below_zero_is_not(base, in_block, monkeypatch):
    table = measured(base, planted(base, in_block, 11, 1), monkeypatch)
    of_noise = (table["function"] == "loss") & (table["direction"] == "noise") & (table["draw"] == 3)
    table.loc[of_noise & (table["batch"] == 0), "curvature"] = -0.1
    assert estimate(BLOCK, Given({"steepness": table})).has_interval
    table.loc[of_noise, "curvature"] = -0.1
    assert "1 of 20 draws" in estimate(BLOCK, Given({"steepness": table})).reason
    # Principal weights are not held against noise anywhere.
    assert estimate(WEIGHTS, Given({"steepness": table})).has_interval


def test_the_fisher_matrix_is_that_of_the_bases_outputs(base, in_block, monkeypatch):
    table = measured(base, planted(base, in_block, 1, 1), monkeypatch)
    logit = sum(float(base.stored(name).double().sum()) for name in NAMES) / 100
    p = 1 / (1 + math.exp(-logit))
    fisher = table[table["function"] == "fisher"].set_index(["direction", "batch", "draw"])
    for direction, tensors in draw_of(base, 2).items():
        slope = sum(float(part.double().sum()) for part in tensors.values()) / 100
        size = sum(float(part.double().square().sum()) for part in tensors.values())
        row = fisher.loc[(direction, 1, 2)]
        assert row["curvature"] == pytest.approx(p * (1 - p) * slope**2 / size, rel=1e-3, abs=1e-12)
        assert row["norm"] == pytest.approx(math.sqrt(size), rel=1e-5)


def test_without_a_record_of_noise_the_reason_says_so():
    empty = pd.DataFrame(columns=list(steepness.STEEPNESS_COLUMNS))
    assert estimate(BLOCK, Given({"steepness": empty})).reason == "no noise was measured at the base"
