"""Two builds that differ in known ways: what moved is found, and nothing else."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.judging.test_cards import CLAIM
from threegates.book.compare import compare_builds, largest_change, moved_numbers
from threegates.book.compare_page import comparison_page, comparison_text
from threegates.book.summary import FILE, read_summary, write_summary
from threegates.cli import app
from threegates.errors import RecordError

SVG = '<svg xmlns="http://www.w3.org/2000/svg"><!--{}--></svg>'


def row(claim="one", kind="rule", estimate="gap", value=1.0, error=0.1, half=0.25, **facts):
    numbers = {"value": value, "low": value - half, "high": value + half, "error": error, "scale": "linear"}
    rule = {"rule": "whole interval at or above 0.5", "neutral": 0.0, "contradicted_below": None}
    named = {"claim": claim, "kind": kind, "estimate": estimate, "title": f"Title of {claim}", "about": "lab"}
    return CLAIM | {"verdict": "reproduced", "reason": "it holds"} | named | numbers | rule | facts


def build(folder, rows, figures=None, values=None, profile="mini"):
    """A finished build of these verdicts, with figures of these numbers."""
    for name, numbers in (figures or {}).items():
        place = folder / "book-src" / "figures" / f"{name}.csv"
        place.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(numbers).to_csv(place, index=False)
        place.with_suffix(".svg").write_text(SVG.format(f"{folder.name} {name}"))
    folder.mkdir(parents=True, exist_ok=True)
    write_summary(folder, folder / "book-src", profile, pd.DataFrame(rows), values or {"a.value": "1"})
    return folder


def both(tmp_path, first, second, **options):
    one, two = options.get("figures", ({}, {}))
    return compare_builds(build(tmp_path / "a", first, one), build(tmp_path / "b", second, two))


def test_equal_builds_differ_in_nothing(tmp_path):
    figures = {"chapter/dots": {"x": [1.0, 2.0]}}
    found = both(tmp_path, [row()], [row()], figures=(figures, figures))
    tables = (found.verdicts, found.rules, found.numbers, found.claims, found.values)
    assert all(table.empty for table in tables) and not found.moved
    assert found.figures["state"].tolist() == ["same"]
    assert "verdicts that moved: none" in comparison_text(found)


def test_a_verdict_that_moved_is_found_and_a_changed_rule_is_flagged_apart(tmp_path):
    first = [row("one"), row("two"), row("three")]
    second = [
        row("one", verdict="not reproduced", reason="it does not"),
        row("two", verdict="contradicted", rule="whole interval at or above 0.7"),
        row("three", contrary=-0.5),
    ]
    found = both(tmp_path, first, second)
    told = found.verdicts.set_index("claim")
    assert told["after"].to_dict() == {"one": "not reproduced", "two": "contradicted"}
    assert told["rule_changed"].to_dict() == {"one": False, "two": True}
    assert found.rules["claim"].tolist() == ["two", "three"]
    assert found.moved
    text = comparison_text(found)
    assert "two: reproduced → contradicted (its rule changed)" in text
    assert text.index("verdicts that moved: 2") < text.index("numbers beyond")


@pytest.mark.parametrize(
    ("value", "errors", "beyond"),
    [(1.1, 0.1 / math.hypot(0.1, 0.2), False), (2.0, 1 / math.hypot(0.1, 0.2), True)],
)
def test_a_number_is_held_against_both_standard_errors_and_intervals(value, errors, beyond):
    # Half intervals are 0.25 and 0.5: together 0.559.
    moved = moved_numbers(pd.DataFrame([row()]), pd.DataFrame([row(value=value, error=0.2, half=0.5)]))
    assert moved["errors"].iloc[0] == pytest.approx(errors)
    assert bool(moved["beyond"].iloc[0]) is beyond
    assert moved["share"].iloc[0] == pytest.approx((value - 1) / math.hypot(0.25, 0.5))


def test_ratios_are_compared_by_their_logarithms():
    ratio = {"scale": "log", "error": 0.1}
    first = row(value=2.0) | ratio | {"low": 1.0, "high": 4.0}
    second = row(value=4.0) | ratio | {"low": 2.0, "high": 8.0}
    moved = moved_numbers(pd.DataFrame([first]), pd.DataFrame([second]))
    assert moved["errors"].iloc[0] == pytest.approx(math.log(2) / (0.1 * math.sqrt(2)))
    assert moved["share"].iloc[0] == pytest.approx(1 / math.sqrt(2))


def test_exact_numbers_that_differ_are_beyond_and_missing_ones_are_not_compared():
    exact = row("exact", value=0.5, error=0.0, half=0.0)
    lost = row("lost", value=math.nan, error=math.nan, half=math.nan)
    first = pd.DataFrame([exact, row("lost")])
    second = pd.DataFrame([exact | {"value": 0.6, "low": 0.6, "high": 0.6}, lost])
    moved = moved_numbers(first, second).set_index("claim")
    assert moved.loc["exact", "errors"] == np.inf and moved.loc["exact", "beyond"]
    assert np.isnan(moved.loc["lost", "errors"]) and not moved.loc["lost", "beyond"]


def test_a_claim_of_one_build_alone_is_named_and_so_is_that_of_another_subject(tmp_path):
    found = both(tmp_path, [row("one"), row("old")], [row("one"), row("one", about="encoder")])
    only = {(one["about"], one["claim"]): one["only"] for one in found.claims.to_dict("records")}
    assert only == {("lab", "old"): "first", ("encoder", "one"): "second"}
    assert found.moved and found.verdicts.empty


def test_columns_that_one_build_lacks_do_no_harm(tmp_path):
    found = both(tmp_path, [row()], [row(p=0.01, p_holm=0.02, cells=4)])
    assert not found.moved and found.numbers.empty


def test_the_largest_relative_change_of_a_figure_names_its_column():
    first = pd.DataFrame({"x": [1.0, 2.0], "y": [10.0, -20.0], "name": ["a", "b"]})
    assert largest_change(first, first) == (0.0, "x")
    assert largest_change(first, first.assign(y=[10.0, -15.0])) == (pytest.approx(0.25), "y")
    assert largest_change(first, first.assign(name=["a", "c"])) == (np.inf, "name")
    assert largest_change(first, first.iloc[:1]) == (np.inf, "rows differ")
    assert largest_change(first, first.drop(columns="x")) == (np.inf, "columns differ")
    gone = first.assign(x=[1.0, np.nan])
    assert largest_change(first, gone) == (np.inf, "x") and largest_change(gone, gone)[0] == 0


def test_figures_that_changed_stand_side_by_side_inside_the_page(tmp_path):
    first = {"chapter/dots": {"x": [1.0, 2.0]}, "chapter/same": {"x": [1.0]}, "chapter/old": {"x": [1.0]}}
    second = {"chapter/dots": {"x": [1.0, 3.0]}, "chapter/same": {"x": [1.0]}}
    found = both(tmp_path, [row()], [row()], figures=(first, second))
    states = found.figures.set_index("figure")["state"].to_dict()
    assert states == {"chapter/dots": "changed", "chapter/same": "same", "chapter/old": "only first"}
    assert "chapter/dots: x: at most 50 % of the column" in comparison_text(found)
    page = comparison_page(found)
    assert page.count('<img src="data:image/svg+xml;base64,') == 3
    assert 'alt="chapter/dots in the second build"' in page and "chapter/same" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_a_page_escapes_what_claims_say(tmp_path):
    first, second = row(title="a < b"), row(title="a < b", verdict="contradicted", reason="<b>no</b>")
    page = comparison_page(both(tmp_path, [first], [second]))
    assert "a &lt; b" in page and "&lt;b&gt;no&lt;/b&gt;" in page


def test_a_summary_comes_back_as_it_was_written(tmp_path):
    table = pd.DataFrame([row(), row("two", value=math.nan, error=math.nan, half=math.nan)])
    build(tmp_path / "a", table.to_dict("records"), values={"one.value": "1"})
    again = read_summary(tmp_path / "a")
    pd.testing.assert_frame_equal(again.verdicts[table.columns], table, check_dtype=False)
    assert again.profile == "mini" and again.values == {"one.value": "1"}
    assert set(again.made) == {"time", "commit", "dirty"} and "torch" in again.versions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "that folder is no finished build"),
        ("{", "the summary of a build cannot be read"),
        ("[]", "the summary of a build cannot be read"),
        (json.dumps({"version": 0}), "of another version"),
        (json.dumps({"version": 1}), "KeyError"),
    ],
)
def test_what_is_no_build_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / FILE).write_text(content)
    with pytest.raises(RecordError) as failure:
        read_summary(tmp_path)
    assert message in str(failure.value)


def test_a_folder_that_is_not_there_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(RecordError, match="there is no such folder") as failure:
        read_summary(tmp_path / "nowhere")
    assert "threegates book" in str(failure.value)


def test_the_command_writes_a_page_and_its_status_says_whether_a_verdict_moved(tmp_path):
    one = build(tmp_path / "a", [row()])
    two = build(tmp_path / "b", [row(value=1.1)])
    three = build(tmp_path / "c", [row(verdict="not reproduced")])
    page = tmp_path / "moved.html"
    calm = CliRunner().invoke(app, ["compare", str(one), str(two), "--out", str(page), "--check"])
    assert calm.exit_code == 0 and "numbers beyond their intervals (of 1 that moved): none" in calm.output
    assert page.read_text().startswith("<!doctype html>")
    assert CliRunner().invoke(app, ["compare", str(one), str(three), "--check"]).exit_code == 1
    assert CliRunner().invoke(app, ["compare", str(one), str(three)]).exit_code == 0
