"""Numbers as people read them."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from threegates.figures.numbers import interval, number, span


def test_numbers_are_written_for_people():
    assert number(0.123456) == "0.123"
    assert number(-0.5) == "−0.5"
    assert number(None) == number(float("nan")) == "–"
    assert interval(0.1, 0.25) == "[0.1, 0.25]"
    assert interval(float("nan"), 0.2) == "no interval"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.12345, "0.123"),
        (-0.5, "−0.5"),
        (0, "0"),
        (1e-5, "1e−05"),
        (12.0, "12"),
        (1.0, "1"),
        (1 - 1e-12, "1"),
        (0.999588, "0.9996"),
        (0.99951, "0.9995"),
        (0.999999, "0.999999"),
        (1.0004, "1"),
        (np.float64(-2.0), "−2"),
        (math.nan, "–"),
        (None, "–"),
        (pd.NA, "–"),
    ],
)
def test_numbers_have_three_digits_a_true_minus_and_a_dash_for_none(value, text):
    assert number(value) == text


def test_digits_can_be_chosen():
    assert number(0.123456, 5) == "0.12346"
    assert number(0.97, 1) == "0.97"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.1, 0.25, "[−0.1, 0.25]"),
        (math.nan, 0.2, "no interval"),
        (0.1, math.nan, "no interval"),
        (math.nan, math.nan, "no interval"),
    ],
)
def test_an_interval_has_both_ends_or_says_that_there_is_none(low, high, text):
    assert interval(low, high) == text


@pytest.mark.parametrize(
    ("values", "text"),
    [([0.5, 0.25, math.nan], "0.25 to 0.5"), ([0.2, 0.2001], "0.2"), ([], "–"), ([-1.0, 0.0], "−1 to 0")],
)
def test_a_span_has_both_ends_unless_they_read_the_same(values, text):
    assert span(values) == text
