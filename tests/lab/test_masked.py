"""Masked training: which weights may move, that the others keep their bits, and resumes to the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from tests.lab.tiny import TINY, random_weights
from threegates.checkpoints.formats.roles import LINEAR, role
from threegates.checkpoints.tensors import Checkpoint
from threegates.digest import file_digest
from threegates.geometry.principal import headline_rank
from threegates.lab import training
from threegates.lab.masked import MaskedPolicyTrainer, MaskedWeights, update_mask, update_masks
from threegates.lab.recipe import Mask, MaskedRLRecipe, PretrainRecipe
from threegates.lab.rollout import Rollout
from threegates.lab.runs import Run, execute, make_run
from threegates.lab.trainer import Trainer

MASKS = get_args(Mask)
LOW = 0.5859
SETTINGS: dict[str, Any] = {
    "base": "base", "algorithm": "grpo", "data": "arith-4", "learning_rate": 1e-2, "minibatches": 2,
    "prompts": 4, "samples": 4, "warmup": 1, "evaluate_prompts": 8, "evaluate_every": 2, "steps": 3,
}  # fmt: skip
BASE = PretrainRecipe(
    name="base", steps=4, batch=8, shape=TINY, seed=3, evaluate_prompts=8, evaluate_every=2, warmup=2
)


def recipe(mask: Mask, seed: int = 3, **changes: Any) -> MaskedRLRecipe:
    return MaskedRLRecipe(name=mask, mask=mask, seed=seed, **{**SETTINGS, **changes})


def brute_masks(weight: Tensor, share: float, low_share: float) -> dict[str, Tensor]:
    """Oracle: M_princ and M_low by sorting a full SVD's reconstruction; no entries tie in random weights."""
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    k = headline_rank(weight.shape)
    rebuilt = ((u[:, :k] * s[:k]) @ vt[:k]).abs().flatten()
    principal, low = (torch.zeros(weight.numel(), dtype=torch.bool) for _ in range(2))
    principal[rebuilt.argsort(descending=True)[: int(share * weight.numel() + 0.5)]] = True
    low[weight.abs().flatten().argsort()[: int(low_share * weight.numel() + 0.5)]] = True
    masks = {"principal": principal, "off-principal": ~principal, "low": low, "safe": low | ~principal}
    return {name: mask.view_as(weight) for name, mask in masks.items()}


# ---------------------------------------------------------------------------------------- the masks


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_masks_are_those_of_a_sorted_reconstruction_with_exact_counts(share):
    for name, weight in random_weights(TINY, seed=1).items():
        if role(name, weight.shape) not in LINEAR:
            continue
        for mask, expected in brute_masks(weight, share, LOW).items():
            found = update_mask(recipe(mask, share=share, low_share=LOW), weight, name)
            assert torch.equal(found, expected), (name, mask)
        marked = int(update_mask(recipe("principal", share=share), weight, name).sum())
        assert marked == int(share * weight.numel() + 0.5)


def test_every_linear_layer_and_nothing_else_has_a_mask():
    base = random_weights(TINY)
    masks = update_masks(recipe("dense"), base)
    assert set(masks) == {name for name, tensor in base.items() if role(name, tensor.shape) in LINEAR}
    assert all(mask.all() for mask in masks.values())
    left = {role(name, tensor.shape) for name, tensor in base.items() if name not in masks}
    assert left == {"embedding", "head", "norm"}


def test_halves_share_no_weight_and_the_safe_mask_holds_both_of_its_parts():
    base = random_weights(TINY, seed=2)
    masks = {mask: update_masks(recipe(mask), base) for mask in MASKS}
    for name in masks["dense"]:
        principal, off, low, safe, random = (
            masks[mask][name] for mask in ("principal", "off-principal", "low", "safe", "random")
        )
        assert not (principal & off).any() and (principal | off).all()
        assert torch.equal(safe, low | off)
        assert int(random.sum()) == int(safe.sum()) and not torch.equal(random, safe)


def test_the_random_mask_lies_elsewhere_for_every_seed_and_matrix_and_is_the_same_again():
    base = {f"model.layers.{n}.mlp.up_proj.weight": random_weights(TINY)[UP] for n in range(2)}
    one, again, other = (update_masks(recipe("random", seed), base) for seed in (3, 3, 4))
    first, second = base
    for name in base:
        assert torch.equal(one[name], again[name])
        assert int(one[name].sum()) == int(other[name].sum())
        # Independent places agree on the square of the density, up to the noise of counting.
        density = float(one[name].float().mean())
        assert float((one[name] & other[name]).float().mean()) == pytest.approx(density**2, abs=0.05)
    assert torch.equal(base[first], base[second]) and not torch.equal(one[first], one[second])


UP = "model.layers.0.mlp.up_proj.weight"


# --------------------------------------------------------------------------------------- the weights


def test_the_norm_that_clips_counts_free_gradients_alone():
    initial = {"a": torch.zeros(4), "b": torch.zeros(3)}
    free = torch.tensor([True, False, True, False])
    weights = MaskedWeights(initial, {"a": free}, master="float32", storage="float32")
    sum((weights.named[name] * scale).sum() for name, scale in (("a", 3.0), ("b", 100.0))).backward()
    assert weights.hand_over_gradient(1e9) == pytest.approx(3 * 2**0.5)
    assert weights.master.grad.tolist() == [3, 0, 3, 0, 0, 0, 0]


@pytest.mark.parametrize("mask", MASKS)
def test_bits_and_moments_outside_a_mask_stay_and_weights_inside_move(rewarded, mask):
    base = random_weights(TINY, seed=2)
    trainer = MaskedPolicyTrainer(recipe(mask), TINY, base)
    for index in range(1, 4):
        trainer.step(index)
    after = trainer.weights.saved("float32")
    masks = update_masks(recipe(mask), base)
    moved = 0
    for name, tensor in base.items():
        free = masks.get(name, torch.zeros_like(tensor, dtype=torch.bool))
        differs = _bits(after[name]) != _bits(tensor)
        assert not (differs & ~free).any(), name
        moved += int(differs.sum())
    assert moved > 0
    open_or_shut = [masks.get(name, torch.zeros_like(base[name], dtype=torch.bool)) for name in base]
    frozen = ~torch.cat([mask.flatten() for mask in open_or_shut])
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (trainer.state()[moment][frozen] == 0).all(), moment


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32)


# ----------------------------------------------------------------------------------------- as a run


class Killed(BaseException):
    """Stands for a signal: no code of ours catches it."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab folder with a tiny base."""
    folder = tmp_path_factory.mktemp("lab")
    execute(folder, _base())
    return folder


def _base() -> Run:
    return make_run(BASE, None)


def _run(mask: Mask) -> Run:
    return make_run(recipe(mask, samples=8, prompts=8, final_prompts=8), _base())


@pytest.fixture
def rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny base is never right: every other sample counts as right, so that there is a gradient."""

    def verify(rollout: Rollout, *_: object) -> Tensor:
        return torch.arange(len(rollout)) % 2 == 0

    monkeypatch.setattr("threegates.lab.rl.verify", verify)


@pytest.mark.parametrize("mask", MASKS)
def test_stored_checkpoints_keep_the_bases_bits_outside_the_mask(tmp_path, rewarded, lab, mask):
    run, folder = _run(mask), _lab_with_base(lab, tmp_path)
    execute(folder, run)
    before, after = (Checkpoint.open(folder / one) for one in (_base().checkpoint(4), run.checkpoint(3)))
    base = {name: before.stored(name).float() for name in before.infos}
    masks = update_masks(run.recipe, base)
    moved = 0
    for name, tensor in base.items():
        differs = _bits(after.stored(name)) != _bits(tensor)
        free = masks.get(name, torch.zeros_like(tensor, dtype=torch.bool))
        assert not (differs & ~free).any(), name
        moved += int(differs.sum())
    assert moved > 0


@pytest.mark.parametrize("mask", ["safe", "random"])
def test_a_killed_run_resumes_to_the_same_bytes(monkeypatch, tmp_path, rewarded, lab, mask):
    monkeypatch.setattr(training, "SNAPSHOT_SECONDS", 0.0)
    whole, broken = (_lab_with_base(lab, tmp_path / name) for name in ("whole", "broken"))
    execute(whole, _run(mask))
    with monkeypatch.context() as patch:
        step = Trainer.logged_step

        def killed(self: Trainer, index: int) -> dict[str, float]:
            if index == 3:
                raise Killed
            return step(self, index)

        patch.setattr(Trainer, "logged_step", killed)
        with pytest.raises(Killed):
            execute(broken, _run(mask))
    assert (broken / "partial" / _run(mask).folder / "snapshot.safetensors").is_file()
    execute(broken, _run(mask))
    one, other = (_digests(folder / "runs" / _run(mask).folder) for folder in (whole, broken))
    assert one == other and len(one) > 4


def _lab_with_base(lab: Path, folder: Path) -> Path:
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / _base().folder).symlink_to(lab / "runs" / _base().folder)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "when.json"]
    return {str(path.relative_to(folder)): file_digest(path) for path in files}
