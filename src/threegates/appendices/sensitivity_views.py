"""Tidy frames for the appendix on sensitivity: verdicts in every cell, sparsity over rates and steps."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from threegates.checkpoints.formats.roles import LINEAR
from threegates.estimates.verdict_frame import rules
from threegates.figures.names import method_name
from threegates.judging.verdicts import VERDICTS
from threegates.measures.whole_models import pair_sparsity
from threegates.study import Study


def all_verdicts(studies: Iterable[Study]) -> pd.DataFrame:
    """Rule rows of claims that were judged in more cells than the headline's, of all studies."""
    found = pd.concat([study.verdicts() for study in studies], ignore_index=True)
    if "cells" not in found:
        return found.assign(cells=0, cells_same=0)[:0]
    return rules(found[found["cells"] > 0]).reset_index(drop=True)


def all_cells(studies: Iterable[Study], verdicts: pd.DataFrame) -> pd.DataFrame:
    """Every cell of these claims, with what a figure says of it.

    Columns: those of `Study.cells`, and title, free, tolerance (the rule's bound; of an equivalence none),
    neutral, scale, letter (of the verdict), headline (the verdict at the headline), and margin: how far the
    estimate lies above the tolerance, as a logarithm of a ratio where the estimate is one.
    """
    cells = pd.concat([study.cells() for study in studies], ignore_index=True)
    # A figure frames the headline by its choices, and names the verdict there.
    cells = cells.drop(columns=["headline", "scale"])
    facts = verdicts[["claim", "about", "title", "free", "at_least", "lower", "upper", "neutral", "scale"]]
    facts = facts.assign(headline=verdicts["verdict"]).rename(columns={"at_least": "tolerance"})
    found = cells.merge(facts, on=["claim", "about"], how="inner", validate="many_to_one")
    ends = {name: found[name].where(found[name] > 0) for name in ("value", "tolerance")}
    ratio = pd.Series(np.log(ends["value"] / ends["tolerance"]), index=found.index)
    margin = ratio.where(found["scale"] == "log", found["value"] - found["tolerance"])
    letters = {word: verdict.letter for word, verdict in VERDICTS.items()}
    return found.assign(margin=margin, letter=found["verdict"].map(letters))


def moved(verdicts: pd.DataFrame) -> pd.DataFrame:
    """One row a claim and subject: its verdict, and in how many cells it stands, those that move first."""
    rows = verdicts.assign(share=verdicts["cells_same"] / verdicts["cells"])
    rows = rows.sort_values(["share", "title"], kind="stable")
    return rows[["title", "about", "free", "verdict", "cells", "cells_same"]].reset_index(drop=True)


def rate_view(tensor: pd.DataFrame) -> pd.DataFrame:
    """Sparsity of every run beside its learning rate: one row a run.

    Columns: method (its name on the page), rate, learning_rate, seed, updates, sparsity, noise (sparsity of
    noise of equal norm).
    """
    pairs = pair_sparsity(tensor)
    updates = tensor.drop_duplicates("pair").set_index("pair")["updates"]
    return pd.DataFrame(
        {
            "method": pairs["algorithm"].map(method_name),
            "rate": pairs["rate"],
            "learning_rate": pairs["learning_rate"],
            "seed": pairs["seed"],
            "updates": pairs["pair"].map(updates),
            "sparsity": pairs["sparsity"],
            "noise": pairs["sparsity_storage_norm"],
        }
    ).sort_values(["learning_rate", "method", "seed"], kind="stable")


def step_view(lens: pd.DataFrame) -> pd.DataFrame:
    """Runs along their kept checkpoints: one row a checkpoint of linear matrices.

    Columns: run, method, seed, updates, sparsity, noise (sparsity of noise of the update's norm), and
    norm (‖ΔW‖_F over all of them). Runs with one checkpoint and those with masters in bf16 are left out.
    """
    rows = lens[lens["role"].isin(LINEAR)]
    if "master" in rows:
        rows = rows[rows["master"].isna()]
    keys = ["run", "algorithm", "seed", "updates"]
    sums = (
        rows.groupby(keys, dropna=False)[["size", "changed", "noise_changed", "energy"]].sum().reset_index()
    )
    sums = sums[sums.groupby("run")["updates"].transform("size") > 1]
    return pd.DataFrame(
        {
            "run": sums["run"],
            "method": sums["algorithm"].map(method_name),
            "seed": sums["seed"],
            "updates": sums["updates"].astype(float),
            "sparsity": 1 - sums["changed"] / sums["size"],
            "noise": 1 - sums["noise_changed"] / sums["size"],
            "norm": np.sqrt(sums["energy"]),
        }
    )
