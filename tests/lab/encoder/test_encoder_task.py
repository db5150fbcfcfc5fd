"""The encoder's items: one right answer each, and facts kept apart between training and evaluation."""

from __future__ import annotations

from collections import Counter

import pytest

from threegates.errors import RecipeError
from threegates.lab.encoder.task import CANDIDATES, is_held_out, items, split
from threegates.lab.encoder.words import CAPITALS, OPPOSITES, number_word

ALL = items("words")
VALUES = {number_word(value): value for value in range(100)}


def test_every_word_of_a_list_stands_in_it_once():
    for pairs in (OPPOSITES, CAPITALS):
        words = [word for pair in pairs for word in pair]
        assert [word for word, count in Counter(words).items() if count > 1] == []
        assert all(word and word == word.strip() for word in words)
    assert len(OPPOSITES) >= 100
    assert len(CAPITALS) >= 100


def test_numbers_in_words_are_distinct_and_read_as_they_should():
    assert len(VALUES) == 100
    assert [number_word(n) for n in (0, 7, 13, 20, 36, 99)] == [
        "zero", "seven", "thirteen", "twenty", "thirty six", "ninety nine",
    ]  # fmt: skip
    for value in (-1, 100):
        with pytest.raises(ValueError, match="only 0..99"):
            number_word(value)


def test_there_are_several_hundred_queries_and_no_two_are_alike():
    assert len(ALL) > 600
    assert len({item.query for item in ALL}) == len(ALL)
    assert {item.family for item in ALL} == {"plus", "minus", "times", "opposite", "capital"}


def test_answers_of_arithmetic_are_right_by_arithmetic():
    """An oracle that reads the words back."""
    apply = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    checked = 0
    for item in ALL:
        if item.family in apply:
            left, right = item.query.split(f" {item.family} ")
            assert apply[item.family](VALUES[left], VALUES[right]) == VALUES[item.answer]
            checked += 1
    assert checked > 250


def test_answers_in_words_are_those_of_the_lists():
    opposite = {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}
    capital = dict(CAPITALS)
    for item in ALL:
        last = item.query.split(" of ")[-1]
        if item.family == "opposite":
            assert item.answer == opposite[last]
        elif item.family == "capital":
            assert item.answer == capital[last]


def test_candidates_are_distinct_and_one_of_them_answers():
    for item in ALL:
        assert len(set(item.candidates)) == len(item.candidates) == CANDIDATES
        assert item.candidates.count(item.answer) == 1
    places = Counter(item.right for item in ALL)
    assert set(places) == set(range(CANDIDATES))
    assert max(places.values()) < 1.6 * len(ALL) / CANDIDATES


def test_training_and_held_out_items_share_no_fact_and_no_query():
    train, held_out = split("words")
    assert {item.fact for item in train}.isdisjoint(item.fact for item in held_out)
    assert {item.query for item in train}.isdisjoint(item.query for item in held_out)
    assert len(train) + len(held_out) == len(ALL)
    assert 0.2 < len(held_out) / len(ALL) < 0.3
    assert {item.family for item in held_out} == {item.family for item in train}


def test_a_fact_goes_with_all_its_forms():
    """3 + 4, 4 + 3, 7 − 3 and 7 − 4 are one fact; so are both directions of an opposite."""
    same = [
        ("three plus four", "four plus three", "seven minus three", "seven minus four"),
        ("six times nine", "nine times six"),
        ("opposite of hot", "opposite of cold"),
    ]
    by_query = {item.query: item for item in ALL}
    for queries in same:
        assert len({by_query[query].fact for query in queries}) == 1
        assert len({is_held_out(by_query[query]) for query in queries}) == 1


def test_numbers_alone_are_a_part_of_words():
    assert set(items("numbers")) <= set(ALL)


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="no data set 'verbs'") as caught:
        items("verbs")
    assert "numbers | words" in str(caught.value)
