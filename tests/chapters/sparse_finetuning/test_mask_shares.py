"""How many weights masks leave free, counted from the recipes that runs keep."""

from __future__ import annotations

import json

import pytest

from tests.lab.tiny import TINY, random_weights
from threegates.chapters.sparse_finetuning.shares import mask_shares
from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, read_manifest, write_manifest
from threegates.checkpoints.writer import write_checkpoint
from threegates.jobs.sources import StudyPair, chapter_pairs
from threegates.lab.masked import update_masks
from threegates.lab.recipe import Mask, MaskedRLRecipe

CELLS: tuple[tuple[Mask, float, int], ...] = (
    ("dense", 0.5, 1), ("principal", 0.5, 1), ("principal", 0.25, 1), ("low", 0.5, 1), ("safe", 0.5, 1),
    ("random", 0.5, 1), ("random", 0.5, 2),
)  # fmt: skip
CHAPTER = "sparse-finetuning"


def recipe(mask: Mask, seed: int, share: float) -> MaskedRLRecipe:
    known = {"name": mask, "base": "base", "data": "arith-4", "steps": 3, "learning_rate": 1e-2}
    return MaskedRLRecipe(mask=mask, seed=seed, share=share, algorithm="grpo", **known)


@pytest.fixture
def pairs(tmp_path) -> list[StudyPair]:
    """A tiny base, and runs whose checkpoints are the base itself: only their recipes count."""
    config = TINY.config(pad=0, bos=1, eos=2, stored_dtype="float32")
    write_checkpoint(tmp_path / "base", random_weights(TINY), config, {}, 10**9)
    entries = [Entry(name="base", source=Folder(path="base"), method="pretrain")]
    for mask, share, seed in CELLS:
        name = f"mask-{mask}-{share:g}-s{seed}"
        made = recipe(mask, seed, share)
        write_checkpoint(tmp_path / name / "step-3", random_weights(TINY), config, {}, 10**9)
        (tmp_path / name / "run.json").write_text(json.dumps({"recipe": made.model_dump(mode="json")}))
        labels = {"mask": mask, "share": f"{share:g}", "rate": "0.01"}
        known = {"base": "base", "method": "rl", "run": name, "seed": seed, "labels": labels}
        known |= {"chapters": [CHAPTER], "final": True}
        entries.append(Entry(name=name, source=Folder(path=f"{name}/step-3"), **known))
    write_manifest(tmp_path / "manifest.yaml", Manifest(version=1, checkpoints=entries))
    return chapter_pairs(CHAPTER, read_manifest(tmp_path / "manifest.yaml"))


def test_shares_are_counted_once_for_every_mask_and_share(pairs):
    found = mask_shares(pairs).set_index(["mask", "share"])
    assert len(found) == len(CELLS) - 1
    base = random_weights(TINY)
    for mask, share, seed in CELLS[:-1]:
        masks = update_masks(recipe(mask, seed, share), base)
        row = found.loc[(mask, f"{share:g}")]
        assert row["weights"] == sum(one.numel() for one in masks.values())
        assert row["free"] == sum(int(one.sum()) for one in masks.values())
    assert found.loc[("dense", "0.5"), "free_share"] == 1
    assert found.loc[("principal", "0.25"), "free_share"] == 0.25
    assert found.loc[("random", "0.5"), "free"] == found.loc[("safe", "0.5"), "free"]


def test_runs_without_a_mask_are_left_out(pairs):
    assert mask_shares([]).empty and list(mask_shares([]).columns)[:2] == ["mask", "share"]
