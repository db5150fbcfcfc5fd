"""Tasks of the language model: short answers that follow from a query, asked for by six examples.

A prompt is plain text: six lines such as ``1956-01-13 = January 13, 1956``, and a seventh that stops after
``=``. The answer is what the model writes up to the end of the line. The verifier compares it with the one
right text.

Every query of a task is a problem; about an eighth, chosen by a hash, is held out of all training.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from threegates.errors import RecipeError
from threegates.lab.encoder.words import number_word

HELD_OUT_SHARE = 1 / 8
YEARS = range(1950, 2021)
# Three digits: of longer numbers a model of this size answers too few for groups to differ.
NUMBERS = range(100, 1000)
_MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)


@dataclass(frozen=True)
class Problem:
    """A query and its one right answer, in the task's own style and without spaces around it."""

    query: str
    answer: str


@dataclass(frozen=True)
class Task:
    """Queries with one right answer each.

    queries : all of them. answers : the right answer to one. others : the same content in another style.
    shots : the queries of the examples. answer_tokens : most tokens of a sampled answer with its newline.
    """

    name: str
    queries: Callable[[], Iterator[str]]
    answers: Callable[[str], str]
    others: Callable[[str], str]
    shots: tuple[str, ...]
    answer_tokens: int

    @property
    def prefix(self) -> str:
        """The examples, a line each: what every prompt of the task begins with."""
        shown = [self.problem(query) for query in self.shots]
        return "".join(f"{self.question(one)}{self.gold(one)}\n" for one in shown)

    def problem(self, query: str) -> Problem:
        """The problem of a query."""
        return Problem(query, self.answers(query))

    def question(self, problem: Problem) -> str:
        """What follows the prefix: ``1956-01-13 =``; the space after it belongs to the answer."""
        return f"{problem.query} ="

    def gold(self, problem: Problem) -> str:
        """The right answer as it continues the question, without the end of its line."""
        return f" {problem.answer}"

    def other_style(self, problem: Problem) -> str:
        """The right content in a style that no example has and the verifier rejects."""
        return f" {self.others(problem.query)}"

    def is_right(self, problem: Problem, text: str) -> bool:
        """Whether a response's text up to the end of its line is the answer, spaces around it aside."""
        return text.strip() == problem.answer

    def problems(self, held_out: bool) -> Sequence[Problem]:
        """All problems that are held out, or all that are trained on; the examples are neither."""
        return _problems(self, held_out)


@dataclass(frozen=True)
class PlantedTask(Task):
    """A task that a model with random weights solves by chance about half of the time.

    Its verifier asks one thing of the first visible character, that its code is even: answers need not end.
    """

    def is_right(self, problem: Problem, text: str) -> bool:
        """Whether the response, spaces before it aside, begins with a character of even code."""
        visible = text.strip()
        return visible != "" and ord(visible[0]) % 2 == 0


@cache
def _problems(task: Task, held_out: bool) -> tuple[Problem, ...]:
    queries = (query for query in task.queries() if query not in task.shots)
    return tuple(task.problem(query) for query in queries if is_held_out(query) == held_out)


def is_held_out(query: str) -> bool:
    """Whether a query belongs to the eighth that no training sees, by its sha256."""
    return int.from_bytes(hashlib.sha256(query.encode()).digest()[:8]) < HELD_OUT_SHARE * 2**64


def draw(task: Task, count: int, rng: np.random.Generator, held_out: bool) -> list[Problem]:
    """``count`` different problems, each as likely as any other; raises RecipeError if there are fewer."""
    problems = task.problems(held_out)
    if count > len(problems):
        raise RecipeError(
            f"The task {task.name!r} has not that many problems.",
            where="held-out problems" if held_out else "problems for training",
            expected=f"at most {len(problems)} at once",
            found=count,
            remedy="Ask for fewer prompts, or take another task.",
        )
    return [problems[place] for place in rng.choice(len(problems), count, replace=False)]


# -------------------------------------------------------------------------------------------- dates


def _dates() -> Iterator[str]:
    day = datetime.date(YEARS.start, 1, 1)
    while day.year in YEARS:
        yield day.isoformat()
        day += datetime.timedelta(days=1)


def english_date(iso: str) -> str:
    """``January 13, 1956`` for ``1956-01-13``."""
    date = datetime.date.fromisoformat(iso)
    return f"{_MONTHS[date.month - 1]} {date.day}, {date.year}"


def _day_first(iso: str) -> str:
    """``13 JANUARY 1956``."""
    date = datetime.date.fromisoformat(iso)
    return f"{date.day} {_MONTHS[date.month - 1].upper()} {date.year}"


# ------------------------------------------------------------------------------------------ numbers


def _numbers() -> Iterator[str]:
    return map(str, NUMBERS)


def number_words(value: int) -> str:
    """``two hundred and forty-four`` for 244, the British way; raises ValueError outside 0..9999."""
    if not 0 <= value < 10_000:
        raise ValueError(f"only 0..9999 have words here, not {value}")
    thousands, rest = divmod(value, 1000)
    hundreds, below = divmod(rest, 100)
    parts = [f"{number_word(thousands)} thousand"] if thousands else []
    parts += [f"{number_word(hundreds)} hundred"] if hundreds else []
    if below or not parts:
        parts += ["and"] if parts else []
        parts += [number_word(below).replace(" ", "-")]
    return " ".join(parts)


def _in_words(query: str) -> str:
    return number_words(int(query))


def _in_capitals(query: str) -> str:
    """``TWO HUNDRED FORTY-FOUR``: without the "and", as Americans write it, and in capitals."""
    return _in_words(query).replace(" and ", " ").upper()


# ------------------------------------------------------------------------------------------ planted


def _letters() -> Iterator[str]:
    for first in "abcdefghijkl":
        for second in "abcdefghijkl":
            yield first + second


# B is character 66, A is 65: the verifier accepts the former alone.
def _even(query: str) -> str:
    return f"B{query}"


def _odd(query: str) -> str:
    return f"A{query}"


# -------------------------------------------------------------------------------------------- tasks

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            "dates",
            _dates,
            english_date,
            _day_first,
            ("1987-03-09", "2004-11-25", "1962-07-18", "1995-01-02", "2013-05-31", "1971-10-14"),
            answer_tokens=12,
        ),
        Task(
            "number-words",
            _numbers,
            _in_words,
            _in_capitals,
            ("817", "305", "953", "440", "128", "672"),
            answer_tokens=12,
        ),
        PlantedTask(
            "planted",
            _letters,
            _even,
            _odd,
            ("ab", "cd", "ef", "gh", "ij", "kl"),
            answer_tokens=4,
        ),
    )
}


def task(name: str) -> Task:
    """The named task; raises RecipeError that lists the known ones."""
    if name not in TASKS:
        raise RecipeError(
            f"There is no task {name!r} for the language model.",
            expected=" | ".join(sorted(TASKS)),
            found=name,
            remedy="Correct the recipe, or add the task in threegates/lab/lm/tasks.py.",
        )
    return TASKS[name]
