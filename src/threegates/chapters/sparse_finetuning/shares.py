"""How many weights of the linear layers each mask of a chapter's runs leaves free."""

from __future__ import annotations

import json
from collections.abc import Iterable

import pandas as pd

from threegates.checkpoints.tensors import Checkpoint
from threegates.jobs.sources import StudyPair
from threegates.measures.by_tensor import typed

COLUMNS = {"mask": "str", "share": "str", "weights": "int64", "free": "int64", "free_share": "float64"}


def mask_shares(pairs: Iterable[StudyPair]) -> pd.DataFrame:
    """Weights of the linear layers and those that may change, counted in the masks themselves.

    A mask is made again from the base by the recipe that the run kept; how many weights it leaves free does
    not depend on the seed, so one run of each mask and α is looked at. Runs without a mask are left out.

    Returns
    -------
    one row a mask and share: mask, share (α of M_princ), weights, free, free_share = free/weights.
    """
    found: dict[tuple[str, str], dict] = {}
    for pair in pairs:
        facts = pair.facts()
        key = (facts.get("mask", ""), facts.get("share", ""))
        folder = pair.tuned.run_folder
        if not all(key) or key in found or folder is None:
            continue
        recipe = json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"]
        weights, free = count_free(recipe, pair.base.checkpoint)
        found[key] = {"mask": key[0], "share": key[1], "weights": weights, "free": free}
    return typed([{**row, "free_share": row["free"] / row["weights"]} for row in found.values()], COLUMNS)


def count_free(recipe: dict, base: Checkpoint) -> tuple[int, int]:
    """Number of linear weights of a base, and of those that a recipe of masked training leaves free."""
    from threegates.lab.language import load_weights
    from threegates.lab.masked import update_masks
    from threegates.lab.recipe import MaskedRLRecipe

    masks = update_masks(MaskedRLRecipe.model_validate(recipe), load_weights(base.folder)[1])
    return sum(mask.numel() for mask in masks.values()), sum(int(mask.sum()) for mask in masks.values())
