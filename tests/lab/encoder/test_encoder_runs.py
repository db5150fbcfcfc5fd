"""Encoder runs as folders: resumed to the same bytes, read by transformers, refused without the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.lab.encoder.tiny_encoder import write_tiny_encoder
from threegates.checkpoints.tensors import Checkpoint
from threegates.digest import file_digest
from threegates.errors import RecipeError
from threegates.lab import runs as module
from threegates.lab import train as training
from threegates.lab import training as loop
from threegates.lab.columns import LOG_COLUMNS
from threegates.lab.encoder import base as base_module
from threegates.lab.encoder import package
from threegates.lab.encoder import trainer as encoder_trainer
from threegates.lab.encoder.policy import Encoder, log_policy, right_places
from threegates.lab.encoder.task import split
from threegates.lab.recipe import EncoderBaseRecipe, EncoderRLRecipe, EncoderSFTRecipe
from threegates.lab.runs import Run, execute, make_run
from threegates.lab.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "base": "encoder-base", "data": "numbers", "seed": 3, "steps": 4, "learning_rate": 1e-3, "minibatches": 2,
    "prompts": 16, "samples": 8, "evaluate_every": 2,
}  # fmt: skip
BASE = EncoderBaseRecipe(name="encoder-base", data="numbers")
RL = EncoderRLRecipe(name="rl", **SETTINGS)
SFT = EncoderSFTRecipe(name="sft", source="answers", **SETTINGS)
RFT = EncoderSFTRecipe(name="rft", source="rft", **SETTINGS)


class Killed(BaseException):
    """Stands for a signal: no code of ours catches it."""


def _runs() -> list[Run]:
    base = make_run(BASE, None)
    return [base, *(make_run(recipe, base) for recipe in (RL, SFT, RFT))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder", seed=2, stored=torch.float32)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    """The tiny encoder in place of the package, several shards, a snapshot after every step."""
    monkeypatch.setattr(base_module, "verified_folder", lambda: tiny)
    monkeypatch.setattr(encoder_trainer, "SHARD_BYTES", 8000)
    monkeypatch.setattr(loop, "SNAPSHOT_SECONDS", 0.0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """A lab folder in which one run of every kind was trained without a break."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_module, "verified_folder", lambda: tiny)
        patch.setattr(encoder_trainer, "SHARD_BYTES", 8000)
        for run in _runs():
            execute(folder, run)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "when.json")
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def test_a_finished_run_has_exactly_these_files(lab):
    for run in _runs():
        names = {path.name for path in (lab / "runs" / run.folder).iterdir()}
        step = f"step-{run.recipe.steps:06d}"
        assert names == {"run.json", "when.json", "log.parquet", "evaluation.parquet", step}
    assert list((lab / "partial").iterdir()) == []


def test_the_base_is_the_package_rounded_to_bf16(lab, tiny):
    base = _runs()[0]
    given, written = Checkpoint.open(tiny), Checkpoint.open(lab / base.checkpoint(0))
    assert given.infos.keys() == written.infos.keys()
    for name in given.infos:
        assert torch.equal(written.stored(name), given.bf16(name)), name
    assert written.config["dtype"] == "bfloat16"
    log = pd.read_parquet(lab / "runs" / base.folder / "log.parquet")
    assert log[["step", "updates", "delta_norm", "kl"]].to_numpy().tolist() == [[0, 0, 0, 0]]
    assert log[["pass_at_1", "greedy", "pass_at_1_train", "greedy_train"]].notna().all().all()


@torch.no_grad()
def test_evaluations_are_those_of_the_saved_weights_rounded_to_bf16(lab):
    held_out = split("numbers")[1]
    for run in _runs():
        encoder = Encoder.open(lab / run.checkpoint(run.recipe.steps))
        rounded = {name: tensor.bfloat16().float() for name, tensor in encoder.trained().items()}
        expected = log_policy(encoder, rounded, held_out).exp().gather(1, right_places(held_out)[:, None])
        frame = pd.read_parquet(lab / "runs" / run.folder / "evaluation.parquet")
        assert frame["probability"].tolist() == expected[:, 0].tolist()


def test_logs_have_every_column_of_the_lab_and_the_encoders_own(lab):
    for run in _runs()[1:]:
        log = pd.read_parquet(lab / "runs" / run.folder / "log.parquet")
        assert tuple(log.columns) == (*LOG_COLUMNS, "greedy", "pass_at_1_train", "greedy_train")
        assert log["step"].tolist() == [1, 2, 3, 4]
        assert log["pass_at_1"].notna().tolist() == [False, True, False, True]
        assert log["delta_norm"].is_monotonic_increasing


def test_tuned_checkpoints_are_float32_start_from_the_base_and_keep_what_is_frozen(lab):
    base, rl, *_ = _runs()
    start, end = Checkpoint.open(lab / base.checkpoint(0)), Checkpoint.open(lab / rl.checkpoint(4))
    assert {info.dtype for info in end.infos.values()} == {"F32"}
    assert len(list((lab / rl.checkpoint(4)).glob("model-*-of-*.safetensors"))) > 2
    squared = 0.0
    for name in start.infos:
        delta = end.stored(name) - start.stored(name).float()
        squared += float(delta.double().square().sum())
        assert name.startswith("encoder.") or not delta.any()
    log = pd.read_parquet(lab / "runs" / rl.folder / "log.parquet")
    assert squared**0.5 == pytest.approx(log["delta_norm"].iloc[-1], rel=1e-4)
    assert end.config["dtype"] == "float32"


@torch.no_grad()
def test_checkpoints_load_in_transformers_and_embed_the_same(lab):
    for run in _runs()[:2]:
        folder = lab / run.checkpoint(run.recipe.steps)
        model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        tokens = AutoTokenizer.from_pretrained(folder)("nine plus two", return_tensors="pt")
        pooled = model.float().eval()(tokens["input_ids"])[0].mean(1)
        ours = Encoder.open(folder).embed({}, ["nine plus two"])
        torch.testing.assert_close(ours, pooled / pooled.norm(), atol=1e-5, rtol=1e-4)


def test_run_json_names_the_weights_it_started_from(lab):
    base, rl, *_ = _runs()
    facts = json.loads((lab / "runs" / base.folder / "run.json").read_text())
    assert facts["recipe"]["weights"] == package.FILES["model.safetensors"]
    assert json.loads((lab / "runs" / rl.folder / "run.json").read_text())["base"] == base.checkpoint(0)
    other = make_run(BASE.model_copy(update={"weights": "0" * 64}), None)
    assert other.digest != base.digest
    assert make_run(RL, other).digest != rl.digest


# ------------------------------------------------------------------------------- resumed, not repeated


def _other_lab(lab: Path, folder: Path) -> Path:
    base = _runs()[0]
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / base.folder).symlink_to(lab / "runs" / base.folder)
    return folder


@pytest.mark.parametrize("index", [1, 2, 3], ids=["rl", "sft", "rft"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_killed_run_resumes_to_the_same_bytes(monkeypatch, tmp_path, lab, index, steps):
    run, other = _runs()[index], _other_lab(lab, tmp_path)
    step, done = Trainer.logged_step, []

    def limited(self: Trainer, index: int) -> dict[str, float]:
        if not resumed and index > steps:
            raise Killed
        done.append(index)
        return step(self, index)

    monkeypatch.setattr(Trainer, "logged_step", limited)
    resumed = False
    with pytest.raises(Killed):
        execute(other, run)
    resumed = True
    execute(other, run)
    assert done == [1, 2, 3, 4]
    assert _digests(other / "runs" / run.folder) == _digests(lab / "runs" / run.folder)


@pytest.mark.parametrize("place", ["write_checkpoint", "_write_parquet", "write_json", "_tidy"])
def test_a_base_killed_while_it_is_written_comes_out_the_same(monkeypatch, tmp_path, lab, place):
    run = _runs()[0]

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with pytest.raises(Killed), monkeypatch.context() as patch:
        patch.setattr(loop if place.startswith(("write_ch", "_write")) else module, place, killed)
        execute(tmp_path, run)
    execute(tmp_path, run)
    assert _digests(tmp_path / "runs" / run.folder) == _digests(lab / "runs" / run.folder)


# ------------------------------------------------------------------------------- the package, or none


@pytest.mark.slow
def test_the_installed_package_trains_into_a_checkpoint_that_transformers_opens(monkeypatch, tmp_path):
    monkeypatch.setattr(base_module, "verified_folder", package.verified_folder)
    monkeypatch.setattr(encoder_trainer, "SHARD_BYTES", 16_000_000)
    base = make_run(BASE, None)
    recipe = {"steps": 2, "evaluate_every": 2, "learning_rate": 2e-5}
    run = make_run(RL.model_copy(update=recipe), base)
    for each in (base, run):
        execute(tmp_path, each)
    folder = tmp_path / run.checkpoint(2)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert sum(tensor.numel() for tensor in model.parameters()) == 22_713_216
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    given = json.loads((package.package_folder() / "tokenizer.json").read_text())
    assert json.loads((folder / "tokenizer.json").read_text()) == given
    strings = ["nine plus two", "eleven"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert [tokenizer(s)["input_ids"] for s in strings] == [
        Encoder.open(folder).tokenizer.encode(s).ids for s in strings
    ]
    log = pd.read_parquet(tmp_path / "runs" / run.folder / "log.parquet")
    assert log["delta_norm"].iloc[-1] > 0.05
    assert log["advantage_scale"].iloc[-1] > 0.3
    held_out = pd.read_parquet(tmp_path / "runs" / run.folder / "evaluation.parquet")
    assert len(held_out) == len(split("numbers")[1])


def test_a_profile_without_the_package_stops_before_anything_trains(monkeypatch, tmp_path):
    monkeypatch.setattr(package, "DISTRIBUTION", "gt-not-installed")
    monkeypatch.setattr(training, "execute", lambda *_: pytest.fail("something was trained"))
    with pytest.raises(RecipeError, match="encoder's package is not installed"):
        training.train("smoke", tmp_path, workers=1)
    assert not (tmp_path / "lab" / "runs").exists()
