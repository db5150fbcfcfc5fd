"""Curvature along updates: directions, their parts, losses, and the numbers that claims are judged by."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from tests.lab.encoder.tiny_encoder import write_tiny_encoder
from tests.planted import planted_curvature
from tests.planted.planted_tables import Given
from threegates.chapters.curvature import plots, views
from threegates.chapters.curvature.estimates import over_runs, ratio, sft_over_rl
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.writer import write_checkpoint
from threegates.errors import PairError
from threegates.judging.claims import read_claims
from threegates.lab.model import ModelShape, initial_weights
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID
from threegates.measures import curvature, encoder_losses, losses
from threegates.measures.curvature import Named, measure_curvature, update_directions
from threegates.register import ESTIMATES, estimate

CLAIMS = read_claims(Path(__file__).resolve().parents[2] / "claims.yaml").of("curvature")
SMALL = ModelShape(width=32, layers=2, feed_forward=48, heads=2, kv_heads=1, head_dim=16)


def written(folder: Path, weights: dict[str, Tensor], stored: torch.dtype = torch.float32) -> Checkpoint:
    config = SMALL.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype=str(stored).removeprefix("torch."))
    write_checkpoint(folder, {name: tensor.to(stored) for name, tensor in weights.items()}, config)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Checkpoint]:
    """A random model in bf16, and the same after a random move of every weight."""
    folder = tmp_path_factory.mktemp("pair")
    generator = torch.Generator().manual_seed(3)
    base = {name: t.bfloat16().float() for name, t in initial_weights(SMALL, generator).items()}
    tuned = {name: t + 1e-3 * torch.randn(t.shape, generator=generator) for name, t in base.items()}
    return written(folder / "base", base, torch.bfloat16), written(folder / "tuned", tuned)


@pytest.fixture(scope="module")
def directions(pair) -> dict[str, Named]:
    return {one.name: one for one in update_directions(*pair, "p", 0)}


def flat(one: Named) -> Tensor:
    return torch.cat([one.tensors[name].flatten().double() for name in sorted(one.tensors)])


def test_directions_lie_in_the_blocks_matrices_and_are_named_once(pair, directions):
    assert tuple(directions) == (*curvature.PARTS, *curvature.NOISE)
    names = set(directions["update"].tensors)
    assert names == {n for n in pair[0].infos if ".layers." in n and len(pair[0].info(n).shape) == 2}


def test_parts_add_up_to_the_update_and_are_orthogonal(pair, directions):
    whole = flat(directions["update"])
    for first, second in (("principal", "off_principal"), ("principal_weights", "other_weights")):
        one, other = flat(directions[first]), flat(directions[second])
        assert torch.allclose(one + other, whole, atol=1e-9)
        assert abs(float(one @ other)) < 1e-6 * float(whole @ whole)


def test_the_principal_part_lies_in_the_leading_singular_directions(pair, directions):
    name = "model.layers.0.mlp.up_proj.weight"
    base, part = pair[0].stored(name).double(), directions["principal"].tensors[name].double()
    k = max(1, min(base.shape) // 8)
    u, _, vt = torch.linalg.svd(base)
    assert float((u[:, k:].T @ part).norm()) < 1e-6 * float(part.norm())
    assert float((part @ vt[k:].T).norm()) < 1e-6 * float(part.norm())


def test_noise_has_the_updates_norm_in_every_matrix_and_the_masks_entries(pair, directions):
    for name, update in directions["update"].tensors.items():
        for kind in ("noise", "masked_noise"):
            assert float(directions[kind].tensors[name].norm()) == pytest.approx(
                float(update.norm()), rel=1e-5
            )
        changed = pair[0].stored(name) != pair[1].stored(name).bfloat16()
        assert not directions["masked_noise"].tensors[name][~changed].any()
        assert directions["noise"].tensors[name][~changed].any()


def test_parts_of_the_noise_are_parts_of_that_noise(pair, directions):
    noise = flat(directions["noise"])
    for kind in ("block_noise", "weights_noise"):
        part = flat(directions[kind])
        assert float(part @ (noise - part)) == pytest.approx(0, abs=1e-6 * float(noise @ noise))
        assert 0 < float(part @ part) < float(noise @ noise)


def test_noise_is_another_for_each_pair_and_seed(pair):
    def drawn(name: str, seed: int) -> Tensor:
        return flat({one.name: one for one in update_directions(*pair, name, seed)}["noise"])

    assert torch.equal(drawn("p", 0), drawn("p", 0))
    assert not torch.equal(drawn("p", 0), drawn("q", 0)) and not torch.equal(drawn("p", 0), drawn("p", 1))


@pytest.fixture(scope="module")
def measured(pair) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curvature, "BATCHES", 1)
        patch.setattr(losses, "EXAMPLES", 4)
        patch.setattr(losses, "PROMPTS", 2)
        return measure_curvature(*pair, name="p")["curvature"]


def test_the_table_has_every_function_and_direction(measured):
    assert measured.dtypes.astype(str).to_dict() == curvature.CURVATURE_COLUMNS
    counts = measured.groupby("function")["direction"].nunique().to_dict()
    assert counts == {"loss": 9, "fisher": 9, "reward": 2}
    assert (measured.loc[measured["function"] == "fisher", "curvature"] > 0).all()
    share = measured[measured["function"] == "loss"].set_index("direction")["share"]
    assert share["principal"] + share["off_principal"] == pytest.approx(1, rel=1e-5)
    assert share["noise"] == pytest.approx(1, rel=1e-5)


def test_curvature_is_the_second_difference_of_the_loss(pair, directions, measured, monkeypatch):
    monkeypatch.setattr(losses, "EXAMPLES", 4)
    monkeypatch.setattr(losses, "PROMPTS", 2)
    found = losses.base_losses(pair[0])
    batch, step = found.batch(0), 0.02
    exact = {name: tensor.double() for name, tensor in found.point.items()}
    for name in ("update", "noise", "principal"):
        own = directions[name].tensors
        size = float(flat(directions[name]).norm())

        def at(t: float, own=own, size=size) -> float:
            moved = {n: w + t * own[n].double() / size if n in own else w for n, w in exact.items()}
            return float(batch.loss(moved))

        second = (at(step) - 2 * at(0) + at(-step)) / step**2
        row = measured[(measured["function"] == "loss") & (measured["direction"] == name)]
        assert row["curvature"].iloc[0] == pytest.approx(second, rel=0.02, abs=2e-4)


def test_batches_depend_on_their_number_alone(pair):
    point = losses.base_losses(pair[0]).point
    first, again, other = (losses.base_losses(pair[0]).batch(number) for number in (0, 0, 1))
    assert float(first.loss(point)) == float(again.loss(point)) != float(other.loss(point))
    assert torch.equal(first.log_probs(point), again.log_probs(point))


def test_the_fishers_rows_are_distributions_over_the_vocabulary(pair):
    found = losses.base_losses(pair[0])
    rows = found.batch(0).log_probs(found.point)
    assert rows.shape[1] == SMALL.vocabulary
    assert torch.allclose(rows.exp().sum(1), torch.ones(len(rows)), atol=1e-5)


def test_the_encoder_has_its_own_losses(tmp_path):
    base = Checkpoint.open(write_tiny_encoder(tmp_path / "encoder"))
    found = losses.base_losses(base)
    batch = found.batch(0)
    rows = batch.log_probs(found.point)
    assert rows.shape == (encoder_losses.ITEMS, 8)
    assert float(batch.loss(found.point)) == pytest.approx(math.log(8), rel=0.5)
    # The expected reward of a right pick with probability p is 2p − 1.
    assert -1 <= -float(batch.reward(found.point)) <= 1


def test_a_study_is_opened_without_the_library_of_language_models():
    """Every notebook starts a process: what only the encoder needs must not be loaded by all of them."""
    code = "import sys, threegates.study; print('transformers' in sys.modules, 'peft' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_base_whose_loss_nobody_named_is_refused(tmp_path):
    write_checkpoint(tmp_path / "m", {"w": torch.ones(2, 2)}, {"model_type": "gpt2"})
    with pytest.raises(PairError, match="curvature needs a loss and data") as caught:
        losses.base_losses(Checkpoint.open(tmp_path / "m"))
    assert "losses.py" in str(caught.value) and "gpt2" in str(caught.value)


# -------------------------------------------------------------------------------------- estimates, views


def test_ratios_are_geometric_means_over_seeds_of_the_losses_curvature():
    found = estimate("curvature_noise_over_rl", Given({"curvature": planted_curvature.table()}))
    assert (found.value, found.n, found.scale) == (pytest.approx(2), 3, "log")
    assert sft_over_rl(planted_curvature.table(), 0.95).value == pytest.approx(2)


def test_a_curvature_below_zero_has_an_interval_too():
    """Along noise the loss may bend down: its logarithm is no reason to say nothing."""
    found = ratio(pd.Series({1: -0.1, 2: 0.2, 3: 0.1}), pd.Series({1: 1.0, 2: 1.0, 3: 1.0}), 0.95)
    assert (found.scale, found.n) == ("linear", 3) and found.low < found.value < found.high
    assert found.reason.startswith("an arithmetic mean")
    fewer = ratio(pd.Series({1: 1.0, 2: 2.0, 3: 3.0}), pd.Series({1: 1.0, 2: -1.0, 3: 1.0}), 0.95)
    assert fewer.n == 2 and fewer.reason == "1 seed without a positive curvature to compare with"
    lost = ratio(pd.Series({1: 1.0}), pd.Series({1: -1.0}), 0.95)
    assert not lost.has_interval and "positive" in lost.reason


def test_runs_of_a_seed_are_averaged_by_their_logarithms_where_they_have_any():
    rows = pd.DataFrame({"seed": [1, 1, 2, 2], "direction": "update", "curvature": [1.0, 4.0, -1.0, 3.0]})
    assert over_runs(rows, "update").to_dict() == {1: pytest.approx(2), 2: 1.0}


def test_without_rl_or_sft_the_reason_says_so():
    table = planted_curvature.table()
    for method in ("rl", "sft"):
        found = sft_over_rl(table[table["method"] != method], 0.95)
        assert not found.has_interval and "no runs of" in found.reason
    found = estimate("curvature_noise_over_rl", Given({"curvature": table[table["method"] == "sft"]}))
    assert not found.has_interval and "no runs of" in found.reason


def test_the_view_averages_batches_and_keeps_runs_apart():
    table = planted_curvature.table()
    view = views.curvature_view(table)
    assert len(view) == len(table) / 3
    own = view[(view["function"] == "loss") & (view["direction"] == "noise") & (view["method"] == "GRPO")]
    assert np.allclose(own["curvature"], 1.8) and list(own["seed"]) == [1, 2, 3]
    assert {*view["method"]} == {"GRPO", "DAPO", "REINFORCE++", "SFT (teacher)"}


def test_ratios_are_given_of_both_functions():
    tables = planted_curvature.table(), planted_curvature.steepness()
    view = views.ratio_view(*tables).set_index(["function", "name"])
    assert view.loc[("Hessian of the loss", "RL's ΔW: principal block / rest"), "value"] == pytest.approx(2)
    # The harmonic means over batches differ a little from the arithmetic ones.
    assert view.loc[("Fisher matrix", "RL's ΔW: principal block / rest"), "value"] == pytest.approx(0.5)
    for name in ("noise: principal block / anywhere", "noise: principal weights / others"):
        row = view.loc[("Hessian of the loss", name)]
        assert row["value"] == pytest.approx(2) and (row["n"], row["unit"]) == (5, "draws")
    assert len(view) == 14 and view["judged"].sum() == 8
    judged = {rule.estimate for claim in CLAIMS for rule in (claim.rule, *claim.controls)}
    assert set(views.JUDGED) == judged & set(ESTIMATES)


def test_batches_are_shown_beside_the_interval_over_draws():
    table = planted_curvature.steepness()
    table.loc[(table["batch"] == 1) & (table["direction"] == "block"), "curvature"] *= 3
    table.loc[(table["batch"] == 2) & (table["direction"] == "noise"), "curvature"] *= -1
    view = views.batch_view(table).set_index(["function", "name", "batch"])["value"]
    own = view["Hessian of the loss"]["noise: principal block / anywhere"]
    assert own[0] == pytest.approx(2) and own[1] == pytest.approx(6) and np.isnan(own[2])
    assert len(view) == 12


def test_steepness_compares_the_update_with_noise():
    found = views.along_rl(planted_curvature.table())
    assert found["times"] == pytest.approx(0.5) and found["noise"] == pytest.approx(2 * found["update"])
    below = planted_curvature.table()
    below.loc[(below["direction"] == "noise") & (below["seed"] == 1), "curvature"] *= -1
    assert np.isnan(views.along_rl(below)["times"])


def test_shares_in_the_block_are_rls_own_and_the_noises():
    table = planted_curvature.table()
    table.loc[table["direction"] == "principal", "share"] = 0.1
    table.loc[(table["direction"] == "principal") & (table["method"] == "sft"), "share"] = 0.9
    assert views.block_shares(table) == {"update": pytest.approx(0.1), "noise": 0.5}


def test_the_figures_draw_every_direction_and_a_value_below_zero():
    table = planted_curvature.table()
    table.loc[table["direction"] == "noise", "curvature"] *= -1
    fig = plots.along_directions(views.curvature_view(table))
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == list(views.DIRECTIONS.values())
    markers = {line.get_marker() for line in fig.axes[0].lines if len(line.get_xdata())}
    assert {"o", "<"} <= markers
    steepness = planted_curvature.steepness()
    shown = plots.ratios(views.ratio_view(table, steepness), views.batch_view(steepness), 1.25)
    assert len(shown.axes[0].get_yticklabels()) == 7
    assert not shown.axes[0].texts and {"<", "|"} <= {line.get_marker() for line in shown.axes[0].lines}
    steepness.loc[(steepness["direction"] == "noise") & (steepness["draw"] == 2), "curvature"] *= -1
    shown = plots.ratios(views.ratio_view(table, steepness), views.batch_view(steepness), 1.25)
    assert [text.get_text() for text in shown.axes[0].texts] == ["cannot be told"] * 2
