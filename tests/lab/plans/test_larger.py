"""Profile `gpu`: what it plans, that every kind of its recipes trains and resumes, and what it needs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.lab.tiny import BIGRAM, guessing_weights
from threegates.errors import RecipeError
from threegates.lab import pretrain
from threegates.lab.plans.larger import CHOSEN, SHAPE, larger_name
from threegates.lab.plans.plan import manifest, plan
from threegates.lab.recipe import AnyRecipe, LanguageRecipe, PretrainRecipe, RotatedBaseRecipe
from threegates.lab.runs import execute, make_run, make_trainer
from threegates.lab.subjects import LARGER
from threegates.lab.task import data_set
from threegates.lab.train import train
from threegates.lab.trainer import Producer

PLANNED = plan("gpu")
KINDS = ("rl", "masked-rl", "sft", "rft", "rotated-base")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
TINY_SHAPE = dataclasses.replace(BIGRAM, layers=3, positions=SHAPE.positions)
SMALL: dict[str, Any] = {
    "device": "cpu", "steps": 4, "evaluate_prompts": 8, "evaluate_every": 4, "checkpoint_steps": (),
    "final_prompts": 8, "final_samples": 2, "prompts": 4, "samples": 2, "batch": 64, "shape": TINY_SHAPE,
    "minibatches": 2, "leash": True,
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- plan


def _recipe(kind: str) -> AnyRecipe:
    """The first of the profile's recipes of a kind; ``rft`` stands for SFT on accepted samples."""
    return next(
        item.draft.recipe
        for item in PLANNED
        if ("rft" if item.draft.method == "rft" else item.draft.recipe.kind) == kind
    )


def test_there_are_at_most_twelve_runs_of_one_seed_and_none_has_a_name_of_the_labs():
    assert {item.run.name for item in PLANNED} == {larger_name(name) for name in CHOSEN}
    assert len(PLANNED) <= 12 and len({item.run.digest for item in PLANNED}) == len(PLANNED)
    assert {item.draft.recipe.seed for item in PLANNED} == {101}
    lab = {item.run.name for name in ("smoke", "mini", "full") for item in plan(name)}
    assert not lab & {item.run.name for item in PLANNED}
    assert all(item.run.name.startswith("larger-") for item in PLANNED)


def test_the_model_has_24_million_parameters():
    parameters = sum(math.prod(size) for size in SHAPE.parameter_shapes().values())
    assert parameters == 23_650_816
    assert SHAPE.positions == data_set("pretraining-8").positions


def test_runs_are_minis_in_rate_steps_and_chapters_and_larger_in_all_else():
    mini = {larger_name(item.run.name): item for item in plan("mini")}
    for item in PLANNED:
        ours, theirs = item.draft.recipe, mini[item.run.name].draft.recipe
        assert (item.draft.chapters, item.draft.rate) == (
            mini[item.run.name].draft.chapters, mini[item.run.name].draft.rate
        )  # fmt: skip
        assert item.draft.subject == LARGER and ours.data.endswith("-8")
        if isinstance(ours, PretrainRecipe):
            assert (ours.batch, ours.shape) == (512, SHAPE)
        elif isinstance(ours, LanguageRecipe):
            assert (ours.learning_rate, ours.steps) == (theirs.learning_rate, theirs.steps)
        if isinstance(ours, LanguageRecipe):
            assert (ours.device, ours.evaluation_data) == ("cuda", "arith-8")


def test_every_run_starts_from_a_base_that_is_planned_before_it():
    before: set[str | None] = {None}
    for item in PLANNED:
        assert item.draft.recipe.base in before
        before.add(item.run.name)


def test_every_entry_has_the_subject_and_only_the_encoder_is_a_third_partys():
    entries = manifest("gpu", PLANNED).checkpoints
    assert {entry.labels["subject"] for entry in entries} == {LARGER}
    assert {entry.note for entry in entries} == {None}


# ------------------------------------------------------------------------------------------ training


def _small(recipe: AnyRecipe, **changes: object) -> AnyRecipe:
    fields = {name: value for name, value in SMALL.items() if name in type(recipe).model_fields}
    fields |= {"base": None if recipe.base is None else "base"}
    if isinstance(recipe, RotatedBaseRecipe):
        fields = {"base": "base"}
    if isinstance(recipe, PretrainRecipe):
        fields |= {"minibatches": 1}
    return type(recipe).model_validate(recipe.model_dump() | fields | changes)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lab folder with a small base that guesses."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "initial_weights", lambda *_: _guessing())
        execute(folder, _base())
    return folder


def _base():
    recipe = _small(_recipe("pretrain"), name="base", learning_rate=1e-9, batch=8)
    return make_run(recipe, None)


def _guessing() -> dict[str, torch.Tensor]:
    """The guessing model with two more layers, silent as its own; small values keep their spectra apart."""
    generator = torch.Generator().manual_seed(0)
    own, weights = guessing_weights(), {}
    for name, size in TINY_SHAPE.parameter_shapes().items():
        quiet = 1e-3 * torch.randn(size, generator=generator)
        weights[name] = own[name] if name in own and "layers" not in name else quiet
        if len(size) == 1:
            weights[name] = torch.ones(size)
    return weights


def _trainer(lab: Path, recipe: AnyRecipe) -> Producer:
    return make_trainer(lab, make_run(recipe, None if recipe.base is None else _base()))


@pytest.mark.parametrize("kind", ("pretrain", *KINDS[:-1]))
def test_every_kind_resumes_from_its_snapshot_bit_for_bit(lab, tmp_path, kind):
    recipe = _small(_recipe(kind))
    whole, before, after = (_trainer(lab, recipe) for _ in range(3))
    for index in range(1, 5):
        expected = whole.logged_step(index)
    for index in range(1, 3):
        before.logged_step(index)
    save_file(before.state(), tmp_path / "snapshot.safetensors")
    after.load_state(load_file(tmp_path / "snapshot.safetensors"), before.updates)
    for index in range(3, 5):
        resumed = after.logged_step(index)
    assert str(resumed) == str(expected) and "pass_at_1" in expected
    assert all(tensor.device.type == "cpu" for tensor in after.state().values())
    for name, tensor in whole.state().items():
        assert torch.equal(tensor, after.state()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_writes_a_checkpoint_that_transformers_loads(lab, kind):
    recipe = _small(_recipe(kind))
    folder = execute(lab, make_run(recipe, _base())) / f"step-{recipe.steps:06d}"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.max_position_embeddings == 96
    assert model.generation_config.max_new_tokens == 52
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 96
    told = json.loads((folder.parent / "run.json").read_text())["recipe"]
    assert told.get("device", "cpu") == "cpu"
    with torch.no_grad():
        assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


# -------------------------------------------------------------------------------------------- device


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_the_profile_is_refused_before_any_work(tmp_path):
    with pytest.raises(RecipeError, match="asks for a device that is not here") as caught:
        train("gpu", tmp_path)
    for part in ("where: larger-base", "expected: a CUDA device", "found: torch", "what to do: Train on"):
        assert part in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_a_trainer_is_refused(lab):
    with pytest.raises(RecipeError, match="asks for a device that is not here"):
        _trainer(lab, _small(_recipe("rl"), device="cuda"))


@CUDA
@pytest.mark.parametrize("kind", ("pretrain", *KINDS[:-1]))
def test_on_cuda_every_kind_trains_and_resumes_on_either_device(lab, kind):
    recipe = _small(_recipe(kind), device="cuda")
    trainer = _trainer(lab, recipe)
    trainer.logged_step(1)
    state = trainer.state()
    assert all(
        tensor.device.type == "cpu" for tensor in (*state.values(), *trainer.contents().tensors.values())
    )
    for device in ("cpu", "cuda"):
        after = _trainer(lab, _small(recipe, device=device))
        after.load_state({name: tensor.clone() for name, tensor in state.items()}, trainer.updates)
        assert after.logged_step(4)["delta_norm"] > 0
        assert after.final_evaluation() is not None or not recipe.final_prompts
