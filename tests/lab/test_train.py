"""A whole profile, made tiny: trained by two workers, then not trained again."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest

from tests.lab.encoder.tiny_encoder import write_tiny_encoder
from tests.lab.tiny import BIGRAM, guessing_weights
from threegates.checkpoints.hub.snapshots import open_entry
from threegates.checkpoints.manifests.manifest import read_manifest
from threegates.checkpoints.tensors import WITHOUT_WEIGHTS, Checkpoint, without_weights
from threegates.digest import file_digest
from threegates.errors import RecipeError
from threegates.lab import pretrain, progress
from threegates.lab import train as module
from threegates.lab.encoder import base as encoder_base
from threegates.lab.model import initial_weights
from threegates.lab.plans import interventions, profiles
from threegates.lab.plans import plan as planning
from threegates.lab.plans.plan import plan
from threegates.lab.plans.profiles import BASE, ENCODER_BASE, Arms, Profile
from threegates.lab.recipe import AdapterRLRecipe, MaskedRLRecipe, PretrainRecipe, RLRecipe, SFTRecipe
from threegates.lab.train import train

ARMS = Arms(1, masks=("dense", "random"), inits=("pissa",), ranks=(1,), adapter_rates=(1e-3,), sgd_rates=())
SMALL = {"evaluate_prompts": 4, "samples": 2, "minibatches": 2}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory):
    """A profile `tiny` beside the others, with the smallest recipes that still use every part.

    Its base guesses and learns next to nothing, so that one in ten of its samples is right. Bases are made in
    this process, alone in their waves; the workers see recipes and the bases' checkpoints.
    """
    base = functools.partial(PretrainRecipe, shape=BIGRAM, batch=8, learning_rate=1e-9)
    with pytest.MonkeyPatch.context() as patch:
        one = Profile("tiny", 2, 2, 1, (101,), (0.5, 1.0), 4, 1, ARMS)
        patch.setitem(profiles.PROFILES, "tiny", one)
        patch.setattr(planning, "PretrainRecipe", base)
        for place in (planning, interventions):
            patch.setattr(place, "RLRecipe", functools.partial(RLRecipe, prompts=2, **SMALL))
            patch.setattr(place, "SFTRecipe", functools.partial(SFTRecipe, batch=32, **SMALL))
        for kind in (MaskedRLRecipe, AdapterRLRecipe):
            patch.setattr(interventions, kind.__name__, functools.partial(kind, prompts=2, **SMALL))
        for name in ("ROTATED", "PERMUTED"):
            patch.setattr(interventions, name, (0,))
        small = {"prompts": 32, "samples": 8, "minibatches": 2}
        for name in ("EncoderRLRecipe", "EncoderSFTRecipe"):
            patch.setattr(planning, name, functools.partial(getattr(planning, name), **small))
        patch.setattr(planning, "ENCODER_DATA", "numbers")
        encoder = write_tiny_encoder(tmp_path_factory.mktemp("package") / "encoder")
        for place in (encoder_base, module):
            patch.setattr(place, "verified_folder", lambda: encoder)
        patch.setattr(pretrain, "initial_weights", lambda *_: guessing_weights())
        patch.setattr(progress, "POLL_SECONDS", 0.05)
        yield


@pytest.fixture(scope="module")
def build(tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build in which two workers trained the tiny profile."""
    folder = tmp_path_factory.mktemp("build")
    train("tiny", folder, workers=1, only=[BASE])
    assert train("tiny", folder, workers=2) == folder / "lab" / "manifest.yaml"
    return folder


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "when.json")
    return {str(path.relative_to(folder)): file_digest(path) for path in files}


def _refuse(*_: object) -> None:
    raise AssertionError("a finished run was trained again")


def test_every_checkpoint_of_the_manifest_opens(build):
    manifest = read_manifest(build / "lab" / "manifest.yaml")
    assert manifest.profile == "tiny"
    for entry in manifest.checkpoints:
        checkpoint = open_entry(manifest, entry)
        stored = {"bfloat16": "BF16", "float32": "F32"}[str(entry.stored_dtype)]
        assert {info.dtype for info in checkpoint.infos.values()} == {stored}
        assert stored == "BF16" or entry.base is not None
    runs = {path.name for path in (build / "lab" / "runs").iterdir()}
    assert runs == {item.run.folder for item in plan("tiny")}


def test_training_again_does_nothing_and_says_so(build, monkeypatch, capsys):
    before = _digests(build)
    times = {path: path.stat().st_mtime_ns for path in (build / "lab" / "runs").rglob("*")}
    monkeypatch.setattr(module, "execute", _refuse)
    train("tiny", build, workers=2)
    assert _digests(build) == before
    assert times == {path: path.stat().st_mtime_ns for path in (build / "lab" / "runs").rglob("*")}
    total = len(plan("tiny"))
    assert f"train: 0 of {total} runs to do, {total} finished before" in capsys.readouterr().err


def test_what_needs_no_long_base_trains_beside_it(tiny):
    """Bases without steps; the lab's base with every encoder run; what starts from the lab's base."""
    runs = [item.run for item in plan("tiny")]
    first, second, third, fourth = module._waves(runs)
    assert [run.name for run in first] == [ENCODER_BASE]
    assert {run.name for run in second} == {BASE} | {
        run.name for run in runs if run.name.startswith("encoder-") and run not in first
    }
    assert [run.name for run in third] == ["lab-base-haar"]
    assert {run.recipe.base for run in fourth} == {BASE, "lab-base-haar"}
    waves = (first, second, third, fourth)
    assert sorted(run.name for wave in waves for run in wave) == sorted(run.name for run in runs)
    tuned = [run for run in runs if run.recipe.steps and run.base_folder is not None]
    assert list(module._waves(tuned)) == [tuned]


def test_a_chosen_run_brings_every_base_that_it_starts_from(tiny):
    chosen = module._selected(plan("tiny"), ["grpo-haar-arith-4-s101"])
    assert [item.run.name for item in chosen] == [BASE, "lab-base-haar", "grpo-haar-arith-4-s101"]


def test_a_missing_run_alone_is_trained_anew_to_the_same_bytes(build, capsys):
    before = _digests(build)
    run = plan("tiny")[-1].run
    shutil.rmtree(build / "lab" / "runs" / run.folder)
    train("tiny", build, workers=1)
    assert _digests(build) == before
    lines = capsys.readouterr().err
    assert f"train: 1 of {len(plan('tiny'))} runs to do" in lines
    assert f"train: {run.name} done in" in lines
    assert "runs left: 0" in lines


def test_a_run_without_weights_is_trained_unless_its_subject_was_taken(build, capsys):
    """What was taken is listed as it was released, in a folder that the plan does not know."""
    before, manifest = _digests(build), build / "lab" / "manifest.yaml"
    run = next(item.run for item in plan("tiny") if item.draft.subject == "encoder" and item.run.recipe.base)
    listed = [entry for entry in read_manifest(manifest).checkpoints if entry.labels.get("subject")]
    older = [entry.model_copy(update={"learning_rate": 0.5}) for entry in listed if entry.base is None]
    taken = [*older, *(entry for entry in listed if entry.run == run.name)]
    folder = build / "lab" / run.checkpoint(max(run.recipe.saved_steps()))
    kept = without_weights(Checkpoint.open(folder))
    for path in folder.glob("*.safetensors"):
        path.unlink()
    (folder / WITHOUT_WEIGHTS).write_text(json.dumps(kept))
    train("tiny", build, workers=1, taken=taken)
    assert "train: 0 of" in capsys.readouterr().err and (folder / WITHOUT_WEIGHTS).is_file()
    found = read_manifest(manifest).checkpoints
    assert [entry for entry in found if entry.labels.get("subject") == "encoder"] == taken
    assert len(found) > len(taken)
    train("tiny", build, workers=1)
    assert f"train: {run.name} done in" in capsys.readouterr().err
    assert _digests(build) == before


def test_runs_that_a_release_has_are_not_trained_and_not_listed(tiny, tmp_path, monkeypatch):
    asked, runs = [], [item.run for item in plan("tiny")]
    monkeypatch.setattr(module, "_execute_all", lambda lab, missing, _: asked.extend(missing))
    released = {run.name for run in runs if run.recipe.base}
    path = train("tiny", tmp_path, released=released)
    assert asked == [run for run in runs if not run.recipe.base] and released
    assert read_manifest(path).checkpoints == []


def test_one_chosen_run_brings_its_base_and_leaves_the_manifest_alone(tiny, build, tmp_path):
    chosen = plan("tiny")[1].run
    train("tiny", tmp_path, workers=1, only=[chosen.name])
    base = plan("tiny")[0].run
    assert {path.name for path in (tmp_path / "lab" / "runs").iterdir()} == {base.folder, chosen.folder}
    assert not (tmp_path / "lab" / "manifest.yaml").exists()
    for run in (base, chosen):
        place = Path("lab") / "runs" / run.folder
        assert _digests(tmp_path / place) == _digests(build / place)


def test_an_unknown_run_is_refused_before_anything_is_trained(tiny, tmp_path):
    with pytest.raises(RecipeError, match="no such run") as caught:
        train("tiny", tmp_path, only=["grpo-arith-4-s101", "gpro-arith-4-s101"])
    assert "found: gpro-arith-4-s101" in str(caught.value)
    assert "lab-base, grpo-arith-4-s101" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_base_that_is_never_right_ends_the_build_in_words(tiny, monkeypatch, tmp_path):
    """Nothing is accepted, so rejection sampling has nothing to train on; what was finished stays."""
    monkeypatch.setattr(pretrain, "initial_weights", initial_weights)
    rft = next(item.run for item in plan("tiny") if item.draft.method == "rft")
    with pytest.raises(RecipeError, match="almost never right") as caught:
        train("tiny", tmp_path, workers=1, only=[rft.name])
    assert f"where: {rft.name}, step 1" in str(caught.value)
    assert [path.name for path in (tmp_path / "lab" / "runs").iterdir()] == [plan("tiny")[0].run.folder]
