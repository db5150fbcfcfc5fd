"""What a finished table says of its pair: unchanged, unrelated, permuted, and how much it does not cover."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from tests.checkpoints.made import HIDDEN, ROWS, decoder, written
from threegates.checkpoints.views import chosen
from threegates.jobs.pair_files import Written, measure_to_files
from threegates.jobs.sanity import coverage, sanity
from threegates.jobs.sources import own_pair


def table(*rows: dict) -> pd.DataFrame:
    """Rows of a table, of matrices that moved a little unless they say otherwise."""
    whole = {
        "status": "compared",
        "role": "q",
        "shape": [4, 4],
        "size": 16,
        "changed": 3,
        "changed_stored": 5,
        "norm_base": 1.0,
        "norm_delta": 0.01,
        "spectra": "measured",
        "nss": 1e-3,
    }
    return pd.DataFrame([whole | {"tensor": f"t{number}"} | row for number, row in enumerate(rows)])


def test_an_ordinary_pair_is_not_talked_about():
    assert sanity(table({}, {}, {"shape": [4], "norm_delta": 3.0})) == []
    assert sanity(table({}, {"norm_base": 0.0, "norm_delta": 1.0})) == []
    assert sanity(table({}, {"norm_delta": 1.0})) == []


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"changed": 0, "changed_stored": 0}] * 2, "nothing changed in what is compared: if the tuned"),
        ([{"changed": 0}, {"changed": 0}], "nothing changed in bf16; as stored 10 weights did"),
        ([{"status": "only-in-base", "changed": math.nan}], "no weight is compared"),
        ([{"size": 0, "changed": 0, "changed_stored": 0}], "no weight is compared"),
        ([{"norm_delta": 1.4, "nss": 0.02}] * 3, "in 3 of 3 matrices (q): these are unrelated"),
        ([{"norm_delta": 1.4, "nss": 0.02}, {}, {}], "in 1 of 3 matrices (q): these are unrelated"),
        ([{"norm_delta": 1.4}, {"norm_delta": 1.2, "role": "k"}, {}], "in 2 of 3 matrices (q, k), whose"),
        ([{"norm_delta": 1.4, "nss": 1e-9}] * 2, "whose singular values stay"),
        ([{"norm_delta": 1.4, "spectra": "not asked for", "nss": math.nan}, {}], "unrelated, or their rows"),
    ],
)
def test_what_is_odd_is_told_in_a_sentence(rows, told):
    (said,) = sanity(table(*rows))
    assert told in said


def measured(tmp_path, base, tuned, spectra: bool = True, **config) -> Written:
    sides = [written(tmp_path / name, x, **config).folder for name, x in (("b", base), ("t", tuned))]
    pair = own_pair(*map(str, sides))
    return measure_to_files(pair, tmp_path / "t.parquet", masks=None, axis=None, seed=0, spectra=spectra)


def moved(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1)))


def order(x: torch.Tensor) -> torch.Tensor:
    return x.roll(1, 0) if x.dim() == 2 else x


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda name, x: x, "look twice: nothing changed"),
        (lambda name, x: moved(x), None),
        (lambda name, x: torch.randn(x.shape), "these are unrelated"),
        (lambda name, x: moved(order(x) if "q_proj" in name else x), "in 2 of 12 matrices (q), whose"),
        (lambda name, x: order(x), "whose singular values stay"),
        (lambda name, x: moved(x.flip(1) if "up_proj" in name else x), "(up), whose singular values stay"),
    ],
)
def test_the_summary_of_a_measurement_says_so(tmp_path, change, told):
    torch.manual_seed(3)
    base = decoder()
    summary = measured(tmp_path, base, {name: change(name, x) for name, x in base.items()}).summary()
    assert (told in summary) if told else ("look twice" not in summary)
    assert "not covered" not in summary


def test_what_is_not_covered_is_counted_in_weights(tmp_path):
    """Of the tuned side: a head that is new, a vocabulary with more rows, a tower that the base lacks."""
    base, tuned = decoder(), decoder()
    tuned |= {"score.weight": torch.ones(2, HIDDEN), "vision_tower.x": torch.ones(50)}
    tuned["lm_head.weight"] = torch.ones(20, HIDDEN)
    found = measured(tmp_path, base, tuned, spectra=False, model_type="llama")
    stored = sum(x.numel() for x in tuned.values())
    # Of the head the rows are compared that both sides have.
    rest = 2 * HIDDEN + 50 + (20 - ROWS) * HIDDEN
    (told,) = [line for line in found.summary().splitlines() if line.startswith("not covered")]
    assert told.startswith(f"not covered: {rest} of the {stored} weights that the tuned side stores (")
    part = chosen(written(tmp_path / "t", tuned), [0])
    few = found.tensor[found.tensor["tensor"].isin(part.infos)]
    (said,) = coverage(few, {"tuned": part})
    assert f"not covered: {stored - sum(info.size for info in part.infos.values())} of the {stored}" in said


def test_a_tied_head_counts_once(tmp_path):
    base, tuned = decoder(), decoder(head=False)
    found = measured(tmp_path, base, tuned, spectra=False, tie_word_embeddings=True)
    assert set(found.tensor["status"]) == {"compared"}
    assert "not covered" not in found.summary()
