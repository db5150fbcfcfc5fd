"""A page's sentences and its verdicts: on one side of no effect, or the page is refused."""

from __future__ import annotations

import ast
import json
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from threegates.errors import ClaimError
from threegates.judging.sides import agreed, apart, side
from threegates.records.provenance import project_root

NOTEBOOKS = sorted((project_root() / "notebooks").glob("*.ipynb"))


def frame(value: float, low: float, high: float, neutral: float = 0.0) -> pd.DataFrame:
    row = {"claim": "one", "estimate": "gap", "kind": "rule"}
    return pd.DataFrame([row | {"value": value, "low": low, "high": high, "neutral": neutral}])


def test_the_word_is_that_of_the_estimate_where_the_sentence_has_no_number_of_its_own():
    assert side(frame(0.2, 0.1, 0.3), "gap", "more", "less") == "more"
    assert side(frame(-0.2, -0.3, 0.1), "gap", "more", "less") == "less"
    assert side(frame(1.2, 1.1, 1.3, neutral=1), "gap", "more", "less") == "more"
    assert side(frame(0.8, 0.7, 1.3, neutral=1), "gap", "more", "less") == "less"


def test_a_sentence_on_the_other_side_of_a_whole_interval_is_refused():
    with pytest.raises(ClaimError, match="contradicts its verdict") as error:
        side(frame(0.2, 0.1, 0.3), "gap", "more", "less", from_neutral=-0.05)
    assert error.value.found == "−0.05, 'less'" and "one (gap)" in str(error.value)
    with pytest.raises(ClaimError, match="contradicts its verdict"):
        side(frame(0.8, 0.7, 0.9, neutral=1), "gap", "more", "less", from_neutral=0.01)
    with pytest.raises(ClaimError, match="contradicts its verdict"):
        agreed(frame(0.8, 0.7, 0.9, neutral=1), "gap", 1.1)


@pytest.mark.parametrize("ends", [(-0.1, 0.3), (math.nan, math.nan)])
def test_what_is_not_certain_contradicts_nothing(ends):
    for own, word in ((0.2, "more"), (-0.2, "less")):
        assert side(frame(0.1, *ends), "gap", "more", "less", from_neutral=own) == word
    for own in (0.2, -0.05):
        assert agreed(frame(0.1, *ends), "gap", own) == own


def test_a_number_of_other_runs_on_the_right_side_is_refused_too():
    with pytest.raises(ClaimError, match="contradicts its verdict") as error:
        agreed(frame(139.0, 62.8, 310.0, neutral=1), "gap", 11.0)
    assert error.value.found == "11" and "139" in str(error.value.expected)


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3), st.sampled_from((0.0, 1.0)), st.floats(-5, 5))
def test_numbers_outside_of_the_interval_are_refused_and_no_others(value, down, up, neutral, own):
    table = frame(value, value - down, value + up, neutral)
    rounding = 1e-9 * max(1.0, abs(own))
    if own < value - down - rounding or own > value + up + rounding:
        with pytest.raises(ClaimError):
            agreed(table, "gap", own)
    else:
        assert agreed(table, "gap", own) == own


def test_an_estimate_that_nothing_rests_on_and_a_check_are_refused():
    with pytest.raises(ClaimError, match="rests on such") as error:
        side(frame(0.2, 0.1, 0.3), "gaps", "more", "less")
    assert error.value.expected == "gap" and error.value.found == "gaps"
    with pytest.raises(ClaimError, match="no value without an effect"):
        agreed(frame(0.2, 0.1, 0.3, neutral=math.nan), "gap", 0.2)


#: Pairs of words that say which side something is on.
OPPOSITES = (
    {"above", "below"}, {"more", "less"}, {"more", "fewer"}, {"less", "not less"}, {"nearer", "not nearer"},
    {"larger", "not larger"}, {"steeper", "flatter"}, {"no harm", "harm"}, {"higher", "lower"},
)  # fmt: skip
#: Sentences of which no claim of their page speaks, by what they compare.
UNJUDGED = {
    (
        "learning-rate",
        "gap > 0",
    ): "runs and noise of equal norm; the claim is update-sparsity's",
    (
        "principal-overlap",
        "noise > 0",
    ): "noise and the density; the claim is computed, on the errata's page",
    (
        "rotation-ablation",
        "keeps",
    ): "rates along the residual stream and heads, which no claim compares",
    ("spectral-drift", "bounds['holds'].iloc[-2] == 1"): "a share of matrices that is the estimate itself",
}


def words_by_comparison() -> list[tuple[str, str]]:
    """Of every notebook's cells the comparisons that choose between two opposite words."""
    found = []
    for notebook in NOTEBOOKS:
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] != "code":
                continue
            tree = ast.parse("".join(cell["source"]))
            asked = _agreed(tree)
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.IfExp)
                    and _words(node) in OPPOSITES
                    and not _names(node.test) <= asked
                ):
                    found.append((notebook.stem, ast.unparse(node.test)))
    return found


def _agreed(tree: ast.AST) -> set[str]:
    """Names that a cell gives to numbers which agree with a verdict."""
    calls = [
        (node.targets[0].id, node.value.func.id)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Call)
        and isinstance(node.value.func, ast.Name)
    ]
    return {name for name, called in calls if called == "agreed"}


def _names(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _words(node: ast.IfExp) -> set[str]:
    arms = [arm.value for arm in (node.body, node.orelse) if isinstance(arm, ast.Constant)]
    return {arm for arm in arms if isinstance(arm, str)}


def test_every_word_for_a_side_agrees_with_a_verdict_or_no_verdict_speaks_of_it():
    assert set(words_by_comparison()) == set(UNJUDGED)


def test_a_missing_number_is_on_no_side_and_says_why():
    table = frame(math.nan, math.nan, math.nan).assign(missing="a single seed")
    with pytest.raises(ClaimError, match="lies on no side"):
        side(table, "gap", "more", "less")
    assert apart(table, "gap", "above", "below", "SFT") == "not compared with SFT (a single seed)"
    assert math.isnan(agreed(frame(0.2, 0.1, 0.3), "gap", math.nan))


def test_how_far_apart_with_its_side_and_interval():
    assert apart(frame(-0.2, -0.3, 0.1), "gap", "above", "below", "SFT") == "0.2 below SFT [−0.3, 0.1]"
