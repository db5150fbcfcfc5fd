"""What storage shows and hides, against counts taken in a plainer way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.planted import planted
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.checkpoints.tensors import Checkpoint
from threegates.errors import PairError
from threegates.jobs.kinds.known import jobs_of
from threegates.jobs.sources import chapter_pairs, own_pair
from threegates.measures import lens

RATE = 2e-5
NAME = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lens")
    base = planted.base_tensors()
    early = planted.with_noise(base, 6e-5, seed=1)
    late = {name: early[name] + 2e-4 * torch.sign(early[name] - base[name].float()) for name in base}
    planted.write(path / "base", base)
    planted.write(path / "early", early)
    planted.write(path / "late", late)
    planted.write(path / "rounded", {name: value.to(torch.bfloat16) for name, value in late.items()})
    return path


def opened(folder, *names):
    kept = [lens.Kept(n, 4 * (i + 1), Checkpoint.open(folder / n)) for i, n in enumerate(names)]
    return Checkpoint.open(folder / "base"), kept


@pytest.fixture(scope="module")
def tables(folder):
    base, kept = opened(folder, "early", "late")
    return lens.measure_lens(base, kept, run="r", rate=RATE)


def test_counts_are_those_of_plain_arithmetic(folder, tables):
    base, kept = opened(folder, "early", "late")
    before = base.stored(NAME).float().numpy().astype(np.float64)
    after = [one.checkpoint.stored(NAME).numpy().astype(np.float64) for one in kept]
    changed = [one.checkpoint.bf16(NAME).float().numpy() != before for one in kept]
    moved = after[0] - before
    rows = tables["lens"][tables["lens"]["tensor"] == NAME].set_index("pair")
    early, late = rows.loc["early"], rows.loc["late"]
    assert early["changed"] == changed[0].sum() and late["changed"] == changed[1].sum()
    assert early["moved"] == (moved != 0).sum() and early["size"] == before.size
    hidden = (moved != 0) & ~changed[0]
    assert early["hidden"] == hidden.sum() and early["hidden_later"] == (hidden & changed[1]).sum()
    assert early["reverted_later"] == (changed[0] & ~changed[1]).sum()
    assert early["energy"] == pytest.approx((moved**2).sum())
    assert early["energy_hidden"] == pytest.approx((moved**2)[~changed[0]].sum())
    stored = kept[0].checkpoint.bf16(NAME).float().numpy() - before
    assert early["energy_stored"] == pytest.approx((stored**2).sum())
    assert early["energy_common"] == pytest.approx((moved * stored).sum())
    assert bool(late["last"]) and not bool(early["last"]) and late["hidden_later"] == 0


def test_the_half_gap_says_exactly_which_weights_changed(tables):
    rows = tables["lens"]
    assert (rows["gap_exceptions"] == 0).all() and (rows["half_ulp_exceptions"] > 0).any()
    assert (rows["half_ulp_exceptions"] - rows["half_ulp_exceptions_at_powers"] <= rows["ties"]).all()


def test_what_updates_of_the_rate_reach_follows_from_the_gaps(folder, tables):
    base, kept = opened(folder, "early")
    before = base.bf16(NAME).double()
    up = kept[0].checkpoint.stored(NAME).double() >= before
    away = up == (before >= 0)
    # Half a gap from first principles: a power of two by logarithm, halved at a power towards zero.
    exponent = before.abs().log2().floor()
    power = before.abs() == 2.0**exponent
    gap = 2.0 ** (exponent - 8 - (power & ~away).double())
    row = tables["lens"].query("pair == 'early' and tensor == @NAME").iloc[0]
    assert row["single_step"] == int((gap <= RATE).sum())
    assert row["aligned_path"] == int((gap <= RATE * 4).sum())


def test_noise_has_the_norm_of_the_update_and_is_hidden_in_its_own_way(tables):
    rows = tables["lens"]
    matrices = rows[rows["size"] >= 1024]
    assert matrices["noise_energy"].tolist() == pytest.approx(matrices["energy"].tolist(), rel=0.2)
    # The early checkpoint is itself Gaussian noise, so that storage hides as much of it.
    early = matrices[matrices["pair"] == "early"].sum(numeric_only=True)
    assert early["noise_changed"] == pytest.approx(early["changed"], rel=0.05)
    assert early["noise_energy_hidden"] == pytest.approx(early["energy_hidden"], rel=0.1)


def test_bins_hold_every_weight_that_has_a_logarithm(tables):
    rows, bins = tables["lens"].groupby("pair"), tables["lens_bins"].groupby(["quantity", "pair"])
    for pair, total in rows[["size", "moved", "changed"]].sum().iterrows():
        weight, ratio = bins[["count", "changed"]].sum().loc[[("weight", pair), ("ratio", pair)]].values
        assert weight.tolist() == [total["size"], total["changed"]]
        assert ratio.tolist() == [total["moved"], total["changed"]]
    ratios = tables["lens_bins"].query("quantity == 'ratio'")
    assert ratios.loc[ratios["log2"] < -(lens.PER_OCTAVE**-1), "changed"].sum() == 0
    above = ratios[ratios["log2"] >= 0]
    # A tie at an even code lies at one and is kept.
    assert (above["count"] - above["changed"]).sum() <= tables["lens"]["ties"].sum()


def test_a_tensor_in_pieces_is_counted_like_a_whole_one(folder, tables, monkeypatch):
    monkeypatch.setattr(lens, "_PIECE", 100)
    base, kept = opened(folder, "early", "late")
    again = lens.measure_lens(base, kept, run="r", rate=RATE)["lens"]
    counted = [name for name in lens.COUNTS if name != "noise_changed"]
    assert again[counted].equals(tables["lens"][counted])


def test_a_checkpoint_in_bf16_moves_by_whole_gaps(folder):
    base, kept = opened(folder, "rounded")
    rows = lens.measure_lens(base, kept, run="r", rate=None)["lens"]
    assert (rows["hidden"] == 0).all() and (rows["moved"] == rows["changed"]).all()
    assert (rows["energy"] == rows["energy_stored"]).all()
    assert (rows[["single_step", "aligned_path"]] == 0).all().all()
    assert set(rows["stored_dtype_tuned"]) == {"BF16"}


def test_a_run_without_checkpoints_is_refused(folder):
    base, _ = opened(folder)
    with pytest.raises(PairError, match="without checkpoints"):
        lens.measure_lens(base, [], run="r", rate=None)


def test_a_job_takes_a_runs_checkpoints_in_their_order_and_a_pair_of_ones_own_alone(tmp_path, project):
    base = planted.base_tensors()
    facts = {"algorithm": "grpo", "run": "r"}
    runs = {
        name: (
            planted.with_noise(base, 1e-4, step),
            planted.entry(
                name, "rl", ["precision-lens"], step=step, updates=4 * step, final=step == 9, **facts
            ),
        )
        for name, step in (("r", 9), ("r-step4", 4), ("r-step2", 2))
    }
    manifest = read_manifest(planted.write_study(tmp_path, base, runs))
    pairs = chapter_pairs("precision-lens", manifest, every_step=True)
    assert {pair.name for pair in pairs} == set(runs)
    assert [pair.name for pair in chapter_pairs("precision-lens", manifest)] == ["r"]
    job = next(iter(jobs_of(["lens"], pairs, 0)))
    assert job.arguments["named"] == [["r-step2", 8], ["r-step4", 16], ["r", 36]]
    assert job.arguments["rate"] == 1e-5
    own = own_pair(str(tmp_path / "base"), str(tmp_path / "r"))
    alone = next(iter(jobs_of(["lens"], [own], 0)))
    assert alone.arguments["named"] == [[own.name, None]] and alone.arguments["rate"] is None
