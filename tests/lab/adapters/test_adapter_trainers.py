"""Training of adapters: what moves, what is written, and that a resumed run gives the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.lab.tiny import TINY, random_weights
from threegates.checkpoints.formats.roles import LINEAR
from threegates.checkpoints.tensors import Checkpoint
from threegates.digest import file_digest
from threegates.errors import RecipeError
from threegates.lab import training
from threegates.lab.adapters.files import FOLDER
from threegates.lab.adapters.trainers import AdapterPolicyTrainer, AdapterSupervisedTrainer
from threegates.lab.recipe import AdapterRLRecipe, AdapterSFTRecipe, Init, PretrainRecipe
from threegates.lab.rollout import Rollout
from threegates.lab.runs import Run, execute, make_run
from threegates.lab.trainer import Trainer

INITS = get_args(Init)
COMMON: dict[str, Any] = {"seed": 3, "evaluate_prompts": 8, "evaluate_every": 2, "warmup": 1}
TUNED: dict[str, Any] = COMMON | {
    "base": "base", "data": "arith-4", "steps": 3, "learning_rate": 3e-3, "minibatches": 2, "samples": 4,
    "rank": 2, "alpha": 2.0,
}  # fmt: skip
BASE = PretrainRecipe(name="base", steps=3, batch=8, shape=TINY, **COMMON)


@pytest.fixture(autouse=True)
def rewarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny base is never right: every other sample counts as right, so that there is a gradient."""

    def verify(rollout: Rollout, *_: object) -> Tensor:
        return torch.arange(len(rollout)) % 2 == 0

    monkeypatch.setattr("threegates.lab.rl.verify", verify)


def rl(init: Init, **changes: Any) -> AdapterRLRecipe:
    return AdapterRLRecipe(name=f"{init}-rl", algorithm="grpo", init=init, prompts=4, **{**TUNED, **changes})


def sft(init: Init) -> AdapterSFTRecipe:
    return AdapterSFTRecipe(name=f"{init}-sft", source="teacher", init=init, batch=8, **TUNED)


def trainer(kind: str, init: Init) -> Trainer:
    base = random_weights(TINY, seed=2)
    if kind == "rl":
        return AdapterPolicyTrainer(rl(init), TINY, base)
    return AdapterSupervisedTrainer(sft(init), TINY, base)


KINDS = pytest.mark.parametrize("kind", ["rl", "sft"])
EVERY_INIT = pytest.mark.parametrize("init", INITS)


@KINDS
@EVERY_INIT
def test_training_moves_the_linear_layers_alone_and_logs_their_change(kind, init):
    one = trainer(kind, init)
    before = one.weights.saved("float32")
    row = [one.logged_step(index) for index in range(1, 3)][-1]
    after = one.weights.saved("float32")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(one.weights.starts)
    difference = torch.cat([(after[name].double() - before[name].double()).flatten() for name in changed])
    assert row["delta_norm"] == pytest.approx(float(difference.norm()), rel=1e-3)
    assert row["pass_at_1"] >= 0 and row["grad_norm"] > 0


@EVERY_INIT
def test_before_its_first_step_a_policy_is_the_base(init):
    """The first samples have no divergence from the base beyond what float32 rounds."""
    row = trainer("rl", init).logged_step(1)
    assert row["kl"] == pytest.approx(0.0, abs=1e-6)


@KINDS
@EVERY_INIT
def test_a_resumed_trainer_continues_bit_for_bit(kind, init):
    whole, before, after = (trainer(kind, init) for _ in range(3))
    for index in range(1, 4):
        expected = whole.logged_step(index)
    before.logged_step(1)
    torch.manual_seed(99)
    after.load_state({name: tensor.clone() for name, tensor in before.state().items()}, before.updates)
    for index in range(2, 4):
        resumed = after.logged_step(index)
    assert torch.equal(whole.weights.master, after.weights.master)
    assert str(resumed) == str(expected)


def test_seeds_draw_factors_of_their_own():
    base = random_weights(TINY, seed=2)
    one, other = (AdapterPolicyTrainer(rl("lora", seed=seed), TINY, base) for seed in (3, 4))
    name = next(iter(one.weights.starts))
    assert not torch.equal(one.weights.starts[name].down, other.weights.starts[name].down)


def test_a_rank_that_no_matrix_has_is_refused_before_training():
    with pytest.raises(RecipeError, match="rank exceeds its matrix"):
        AdapterPolicyTrainer(rl("lora", rank=64, alpha=64.0), TINY, random_weights(TINY))


# ----------------------------------------------------------------------------------------- as a run


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab folder with a tiny base."""
    folder = tmp_path_factory.mktemp("lab")
    execute(folder, make_run(BASE, None))
    return folder


def lab_with_base(lab: Path, folder: Path) -> Path:
    (folder / "runs").mkdir(parents=True)
    name = make_run(BASE, None).folder
    (folder / "runs" / name).symlink_to(lab / "runs" / name)
    return folder


def planned(recipe: AdapterRLRecipe | AdapterSFTRecipe) -> Run:
    return make_run(recipe, make_run(BASE, None))


@pytest.mark.parametrize("init", ["lora", "pissa"])
def test_a_run_leaves_the_merged_checkpoint_and_the_adapter_that_gives_it(tmp_path, lab, init):
    run, folder = planned(rl(init)), lab_with_base(lab, tmp_path)
    execute(folder, run)
    base, tuned = folder / str(run.base_folder), folder / run.checkpoint(3)
    assert sorted(path.name for path in (tuned / FOLDER).iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    before, after = Checkpoint.open(base), Checkpoint.open(tuned)
    for name, info in after.infos.items():
        assert info.dtype == "F32"
        same = torch.equal(before.stored(name).float(), after.stored(name))
        assert same == (not any(f".{part}_proj." in name for part in LINEAR)), name
    tokens = torch.arange(1, 25).view(2, 12)
    model = PeftModel.from_pretrained(
        LlamaForCausalLM.from_pretrained(base, dtype=torch.float32), tuned / FOLDER
    )
    merged = LlamaForCausalLM.from_pretrained(tuned, dtype=torch.float32)
    with torch.no_grad():
        found, expected = (one.eval()(tokens).logits for one in (model, merged))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("recipe", [rl("pissa"), sft("orthonormal")], ids=["rl", "sft"])
def test_a_killed_run_resumes_to_the_same_bytes(monkeypatch, tmp_path, lab, recipe):
    class Killed(BaseException):
        """Stands for a signal: no code of ours catches it."""

    monkeypatch.setattr(training, "SNAPSHOT_SECONDS", 0.0)
    run = planned(recipe)
    whole, broken = (lab_with_base(lab, tmp_path / name) for name in ("whole", "broken"))
    execute(whole, run)
    step = Trainer.logged_step

    def killed(self: Trainer, index: int) -> dict[str, float]:
        if index == 3:
            raise Killed
        return step(self, index)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "logged_step", killed)
        execute(broken, run)
    execute(broken, run)
    one, other = (digests(folder / "runs" / run.folder) for folder in (whole, broken))
    assert one == other and any(FOLDER in name for name in one)


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "when.json"]
    return {str(path.relative_to(folder)): file_digest(path) for path in files}
