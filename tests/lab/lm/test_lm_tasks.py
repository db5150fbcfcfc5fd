"""The tasks against oracles of their own: words read back, dates by the C library, splits counted."""

from __future__ import annotations

import datetime
import hashlib
import re
from collections import Counter

import numpy as np
import pytest

from threegates.errors import RecipeError
from threegates.lab.lm.tasks import TASKS, Problem, draw, english_date, number_words, task
from threegates.lab.randomness import step_rng

NAMES = sorted(TASKS)
UNITS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def everything(name: str) -> list[Problem]:
    return [*task(name).problems(False), *task(name).problems(True)]


def read_below_hundred(words: str) -> int:
    tens, _, unit = words.partition("-")
    if tens in TENS:
        assert unit == "" or 1 <= UNITS.index(unit) <= 9
        return 10 * (TENS.index(tens) + 2) + (UNITS.index(unit) if unit else 0)
    assert unit == ""
    return UNITS.index(words)


def read(words: str) -> int:
    """The number that words say, by grammar: [t thousand] [h hundred] [and n], or n alone."""
    found = re.fullmatch(r"(?:(\w+) thousand)?(?: ?(\w+) hundred)?(?:(?: and )?([\w-]+))?", words)
    assert found, words
    thousands, hundreds, below = found.groups()
    assert (" and " in words) == bool((thousands or hundreds) and below), words
    parts = zip((1000, 100), (thousands, hundreds), strict=True)
    value = sum(size * UNITS.index(word) for size, word in parts if word)
    return value + (read_below_hundred(below) if below else 0)


def test_all_numbers_in_words_read_back():
    assert [read(number_words(value)) for value in range(10_000)] == list(range(10_000))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "zero"),
        (17, "seventeen"),
        (40, "forty"),
        (100, "one hundred"),
        (244, "two hundred and forty-four"),
        (1000, "one thousand"),
        (1005, "one thousand and five"),
        (3021, "three thousand and twenty-one"),
        (7600, "seven thousand six hundred"),
        (9999, "nine thousand nine hundred and ninety-nine"),
    ],
)
def test_numbers_are_written_the_british_way(value, words):
    assert number_words(value) == words


@pytest.mark.parametrize("value", [-1, 10_000])
def test_a_number_without_words_is_refused(value):
    with pytest.raises(ValueError, match=str(value)):
        number_words(value)


def test_dates_are_those_of_the_c_library():
    problems = everything("dates")
    for problem in problems:
        day = datetime.datetime.strptime(problem.answer, "%B %d, %Y")
        assert day.strftime("%Y-%m-%d") == problem.query
        assert f"{day:%B} {day:%d}".replace(" 0", " ") + f", {day:%Y}" == problem.answer
    assert len(problems) == (datetime.date(2021, 1, 1) - datetime.date(1950, 1, 1)).days - 6
    assert english_date("1956-02-29") == "February 29, 1956"


def test_the_task_of_numbers_has_all_of_three_digits_but_its_examples():
    shots = {"817", "305", "953", "440", "128", "672"}
    assert {one.query for one in everything("number-words")} == {str(n) for n in range(100, 1000)} - shots
    assert all(read(one.answer) == int(one.query) for one in everything("number-words"))


@pytest.mark.parametrize("name", NAMES)
def test_the_prefix_shows_six_solved_problems_that_are_neither_trained_nor_held_out(name):
    one = task(name)
    assert one.prefix.endswith("\n")
    lines = one.prefix.splitlines()
    queries = [line.split(" = ")[0] for line in lines]
    assert len(set(queries)) == len(lines) == 6
    assert set(queries).isdisjoint(problem.query for problem in everything(name))
    for line, query in zip(lines, queries, strict=True):
        problem = one.problem(query)
        assert line == one.question(problem) + one.gold(problem)
        assert one.is_right(problem, line.removeprefix(one.question(problem)))


@pytest.mark.parametrize("name", NAMES)
def test_every_problem_is_trained_on_or_held_out_by_its_hash_and_never_both(name):
    train, held_out = task(name).problems(False), task(name).problems(True)
    queries = [problem.query for problem in (*train, *held_out)]
    assert len(set(queries)) == len(queries)
    for problems, held in ((train, False), (held_out, True)):
        first = [int(hashlib.sha256(one.query.encode()).hexdigest()[0], 16) for one in problems]
        assert all((digit < 2) == held for digit in first)
    count, rate = len(queries), 1 / 8
    assert abs(len(held_out) / count - rate) <= 4 * (rate * (1 - rate) / count) ** 0.5


@pytest.mark.parametrize("name", NAMES)
def test_the_verifier_wants_the_answer_and_nothing_else(name):
    one = task(name)
    for problem in everything(name)[::7]:
        gold, other = one.gold(problem), one.other_style(problem)
        assert one.is_right(problem, gold)
        assert one.is_right(problem, gold.strip())
        assert one.is_right(problem, f"{gold} ")
        assert not one.is_right(problem, other)
        assert not one.is_right(problem, "")
        assert gold.startswith(" ") and other.startswith(" ")
        assert "\n" not in one.question(problem) + gold + other


@pytest.mark.parametrize("name", ["dates", "number-words"])
def test_a_wrong_answer_earns_nothing(name):
    one = task(name)
    problems = everything(name)
    for problem, other in zip(problems[:-1:11], problems[1::11], strict=False):
        for text in (other.answer, problem.answer.upper(), f"{problem.answer}.", f"{problem.answer}\n5"):
            assert not one.is_right(problem, text)


def test_the_other_style_says_the_same():
    for problem in everything("dates")[::50]:
        other = task("dates").other_style(problem).strip()
        assert datetime.datetime.strptime(other, "%d %B %Y").strftime("%Y-%m-%d") == problem.query
        assert other.upper() == other
    for problem in everything("number-words")[::50]:
        other = task("number-words").other_style(problem).strip()
        assert other.lower().split() == [word for word in problem.answer.split() if word != "and"]
        assert other.upper() == other


def test_the_planted_verifier_looks_at_the_first_visible_character_alone():
    one, problem = task("planted"), everything("planted")[0]
    assert [one.is_right(problem, text) for text in ("B", " B", "2x", "b!", "A", " A", "1", "\n", " ")] == [
        True, True, True, True, False, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_draws_repeat_nothing_keep_to_their_side_and_follow_their_stream(name):
    one = task(name)
    for held_out in (False, True):
        pool = set(one.problems(held_out))
        drawn = draw(one, 12, step_rng(7, "prompts", 3), held_out)
        assert len(set(drawn)) == 12
        assert set(drawn) <= pool
        assert drawn == draw(one, 12, step_rng(7, "prompts", 3), held_out)
        assert drawn != draw(one, 12, step_rng(7, "prompts", 4), held_out)
        every = draw(one, len(pool), step_rng(7, "prompts", 5), held_out)
        assert set(every) == pool


def test_draws_favour_no_problem():
    one, rng = task("planted"), np.random.default_rng(0)
    pool = one.problems(True)
    draws, count = 4000, 4
    seen = Counter(problem for _ in range(draws) for problem in draw(one, count, rng, True))
    rate = count / len(pool)
    assert len(seen) == len(pool)
    assert max(abs(n / draws - rate) for n in seen.values()) <= 4.5 * (rate * (1 - rate) / draws) ** 0.5


def test_more_than_all_problems_are_refused():
    pool = task("planted").problems(True)
    with pytest.raises(RecipeError, match="not that many problems") as caught:
        draw(task("planted"), len(pool) + 1, np.random.default_rng(0), True)
    assert f"at most {len(pool)}" in str(caught.value)
    assert "held-out" in str(caught.value)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="no task 'sums'") as caught:
        task("sums")
    assert "dates | number-words | planted" in str(caught.value)
