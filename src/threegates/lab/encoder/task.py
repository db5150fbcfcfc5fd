"""The encoder's task: which of eight strings answers a query?

Queries ask for sums, differences and products of number words, opposites, and capitals.

Items that state one fact (three plus four, four plus three, seven minus four; hot and cold) stay together:
all of them are trained on, or none is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from threegates.errors import RecipeError
from threegates.lab.encoder.words import CAPITALS, OPPOSITES, number_word

CANDIDATES = 8
TERMS, FACTORS = range(1, 11), range(2, 10)


@dataclass(frozen=True)
class Item:
    """A query, its candidates, and the place of the one that is right.

    fact : what it asks, in a form that all items of the same fact share.
    """

    family: str
    fact: str
    query: str
    candidates: tuple[str, ...]
    right: int

    @property
    def answer(self) -> str:
        """The right candidate."""
        return self.candidates[self.right]


@dataclass(frozen=True)
class _Question:
    """An item without its candidates."""

    family: str
    fact: str
    query: str
    answer: str


def is_held_out(item: Item) -> bool:
    """Whether an item belongs to the quarter of all facts that no training sees."""
    return zlib.crc32(item.fact.encode()) % 4 == 0


@cache
def items(data: str) -> tuple[Item, ...]:
    """Every item of a data set, the same each time; raises RecipeError for a data set there is not."""
    if data not in _DATA_SETS:
        raise RecipeError(
            f"There is no data set {data!r} for the encoder.",
            expected=" | ".join(sorted(_DATA_SETS)),
            found=data,
            remedy="Correct the recipe, or add the data set in threegates/lab/encoder/task.py.",
        )
    questions = [question for family in _DATA_SETS[data] for question in family()]
    answers: dict[str, list[str]] = {}
    for question in questions:
        answers.setdefault(question.family, []).append(question.answer)
    pools = {family: sorted(set(found)) for family, found in answers.items()}
    return tuple(_item(question, pools[question.family]) for question in questions)


def split(data: str) -> tuple[list[Item], list[Item]]:
    """Items for training, and held-out ones."""
    everything = items(data)
    return [i for i in everything if not is_held_out(i)], [i for i in everything if is_held_out(i)]


def _item(question: _Question, pool: Sequence[str]) -> Item:
    """Wrong candidates are answers to other queries of the family, drawn by a hash of the query."""
    rng = np.random.default_rng(zlib.crc32(question.query.encode()))
    others = [word for word in pool if word != question.answer]
    wrong = [others[place] for place in rng.choice(len(others), CANDIDATES - 1, replace=False)]
    order = rng.permutation(CANDIDATES)
    candidates = [question.answer, *wrong]
    return Item(
        question.family,
        question.fact,
        question.query,
        tuple(candidates[place] for place in order),
        int(np.flatnonzero(order == 0)[0]),
    )


def _sums() -> Iterator[_Question]:
    for a in TERMS:
        for b in TERMS:
            fact = f"sum {min(a, b)} {max(a, b)}"
            first, second, total = number_word(a), number_word(b), number_word(a + b)
            yield _Question("plus", fact, f"{first} plus {second}", total)
            yield _Question("minus", fact, f"{total} minus {first}", second)


def _products() -> Iterator[_Question]:
    for a in FACTORS:
        for b in FACTORS:
            fact = f"product {min(a, b)} {max(a, b)}"
            yield _Question("times", fact, f"{number_word(a)} times {number_word(b)}", number_word(a * b))


def _opposites() -> Iterator[_Question]:
    for pair in OPPOSITES:
        for word, opposite in (pair, pair[::-1]):
            yield _Question("opposite", f"opposite {pair[0]}", f"opposite of {word}", opposite)


def _capitals() -> Iterator[_Question]:
    for country, capital in CAPITALS:
        yield _Question("capital", f"capital {country}", f"capital of {country}", capital)


_DATA_SETS = {"words": (_sums, _products, _opposites, _capitals), "numbers": (_sums, _products)}
