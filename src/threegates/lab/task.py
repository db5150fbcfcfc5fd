"""The lab's task: chained arithmetic modulo ten, with a verifier, four response styles and side tasks.

A prompt reads ``<bos> cot : 4 + 7 * 3 - 5 =`` and is evaluated strictly from left to right modulo 10.
A response earns the reward if and only if it ends in ``A d <eos>`` with the right digit d.
A base model that mixes good and bad styles leaves reinforcement learning something to sharpen.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from threegates.errors import RecipeError

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
DIGITS = tuple("0123456789")
OPERATORS = ("+", "-", "*")
_WORDS = (PAD, BOS, EOS, *DIGITS, *OPERATORS, "=", ";", ":", "A", "cot", "reverse", "sort", "max")
_TEACHER_WORDS = ("let", "r", "then", "get", "so")
VOCABULARY_SIZE = 48
VOCABULARY: tuple[str, ...] = (
    *_WORDS,
    *_TEACHER_WORDS,
    *(f"<unused{i}>" for i in range(VOCABULARY_SIZE - len(_WORDS) - len(_TEACHER_WORDS))),
)
TOKEN_ID = {word: index for index, word in enumerate(VOCABULARY)}
PAD_ID, BOS_ID, EOS_ID, ANSWER_ID = (TOKEN_ID[word] for word in (PAD, BOS, EOS, "A"))

# Operations of the lab's longest chains; larger models have data sets with longer ones.
LONGEST = 5

Words = list[str]


@dataclass(frozen=True)
class Problem:
    """A chain of operations: ``digits[0] operators[0] digits[1] …``, evaluated left to right modulo 10."""

    digits: tuple[int, ...]
    operators: tuple[str, ...]

    def running_values(self) -> list[int]:
        """Value after each operation, each in 0..9."""
        values = [self.digits[0]]
        for operator, digit in zip(self.operators, self.digits[1:], strict=True):
            values.append(apply_operator(values[-1], operator, digit))
        return values[1:]

    @property
    def answer(self) -> int:
        return self.running_values()[-1]

    def prompt(self) -> Words:
        chain = [str(self.digits[0])]
        for operator, digit in zip(self.operators, self.digits[1:], strict=True):
            chain += [operator, str(digit)]
        return [BOS, "cot", ":", *chain, "="]


def apply_operator(left: int, operator: str, right: int) -> int:
    """``left operator right`` modulo 10."""
    results = {"+": left + right, "-": left - right, "*": left * right}
    return results[operator] % 10


def encode(words: Sequence[str]) -> list[int]:
    """Token ids of words; raises KeyError for a word outside the vocabulary."""
    return [TOKEN_ID[word] for word in words]


def is_held_out(prompt: Sequence[str]) -> bool:
    """Whether a prompt belongs to the eighth that no training of any kind ever sees."""
    return zlib.crc32(" ".join(prompt).encode()) % 8 == 0


def is_correct(response: Sequence[int], answer: int) -> bool:
    """Whether token ids end in ``A d <eos>`` with the right digit; anything after <eos> is ignored."""
    tokens = list(response)
    if EOS_ID not in tokens:
        return False
    end = tokens.index(EOS_ID)
    return end >= 2 and tokens[end - 2 : end] == [ANSWER_ID, TOKEN_ID[str(answer)]]


# ---------------------------------------------------------------------------------------- data sets


@dataclass(frozen=True)
class DataSet:
    """A distribution of problems: numbers of operations and operators, both drawn uniformly.

    longest : operations of the longest chain that its base is trained on, which bounds every length.
    """

    name: str
    operations: tuple[int, ...]
    operators: tuple[str, ...]
    longest: int = LONGEST

    @property
    def response_length(self) -> int:
        """Most tokens of a response: a full chain, six an operation and three, and one to spare."""
        return 6 * self.longest + 4

    @property
    def positions(self) -> int:
        """Positions that a model of it needs: the longest prompt and response, up to a multiple of 32."""
        return -(-(2 * self.longest + 5 + self.response_length) // 32) * 32

    def draw(self, rng: np.random.Generator) -> Problem:
        count = int(rng.choice(self.operations))
        digits = tuple(int(d) for d in rng.integers(0, 10, size=count + 1))
        operators = tuple(self.operators[i] for i in rng.integers(0, len(self.operators), size=count))
        return Problem(digits, operators)


DATA_SETS = {
    data.name: data
    for data in (
        DataSet("arith-4", (4,), OPERATORS),
        DataSet("addsub-4", (4,), ("+", "-")),
        DataSet("arith-3to5", (3, 4, 5), OPERATORS),
        DataSet("pretraining", (1, 2, 3, 4, 5), OPERATORS),
        DataSet("arith-8", (8,), OPERATORS, longest=8),
        DataSet("pretraining-8", tuple(range(1, 9)), OPERATORS, longest=8),
    )
}
RESPONSE_LENGTH = DATA_SETS["pretraining"].response_length


def data_set(name: str) -> DataSet:
    """The named data set; raises RecipeError that lists the known ones."""
    if name not in DATA_SETS:
        raise RecipeError(
            f"There is no data set {name!r}.",
            expected=" | ".join(sorted(DATA_SETS)),
            found=name,
            remedy="Correct the recipe, or add the data set in threegates/lab/task.py.",
        )
    return DATA_SETS[name]


def draw_problems(data: DataSet, count: int, rng: np.random.Generator, *, held_out: bool) -> list[Problem]:
    """``count`` problems, all from the held-out eighth or all outside it."""

    def stream() -> Iterator[Problem]:
        while True:
            yield data.draw(rng)

    wanted = (problem for problem in stream() if is_held_out(problem.prompt()) == held_out)
    return [next(wanted) for _ in range(count)]


# ------------------------------------------------------------------------------------------- styles


def _slip(value: int, rate: float, rng: np.random.Generator) -> int:
    """``value``, or with probability ``rate`` another digit."""
    return int((value + rng.integers(1, 10)) % 10) if rng.random() < rate else value


def _noisy_values(problem: Problem, error: float, rng: np.random.Generator) -> list[int]:
    """Running values in which each step slips with probability ``error`` and the slip is carried on."""
    values, current = [], problem.digits[0]
    for operator, digit in zip(problem.operators, problem.digits[1:], strict=True):
        current = _slip(apply_operator(current, operator, digit), error, rng)
        values.append(current)
    return values


def full_chain(problem: Problem, error: float, rng: np.random.Generator) -> Words:
    """``4 + 7 = 1 ; 1 * 3 = 3 ; … A d``."""
    words: Words = []
    values, current = _noisy_values(problem, error, rng), problem.digits[0]
    for value, operator, digit in zip(values, problem.operators, problem.digits[1:], strict=True):
        words += [str(current), operator, str(digit), "=", str(value), ";"]
        current = value
    return [*words, "A", str(values[-1]), EOS]


def short_chain(problem: Problem, error: float, rng: np.random.Generator) -> Words:
    """Running values alone: ``1 3 8 … A d``."""
    values = _noisy_values(problem, error, rng)
    return [*map(str, values), "A", str(values[-1]), EOS]


def direct(problem: Problem, error: float, rng: np.random.Generator) -> Words:
    """The answer alone: ``A d``."""
    return ["A", str(_slip(problem.answer, error, rng)), EOS]


def teacher(problem: Problem, error: float, rng: np.random.Generator) -> Words:
    """A format the base never saw: ``let r 4 then + 7 get 1 … so A d``."""
    words: Words = ["let", "r", str(problem.digits[0])]
    values = _noisy_values(problem, error, rng)
    for value, operator, digit in zip(values, problem.operators, problem.digits[1:], strict=True):
        words += ["then", operator, str(digit), "get", str(value)]
    return [*words, "so", "A", str(values[-1]), EOS]


Style = Callable[[Problem, float, np.random.Generator], Words]
# (style, share of the arithmetic examples, error rate in pre-training)
BASE_STYLES: tuple[tuple[Style, float, float], ...] = (
    (full_chain, 0.25, 0.06),
    (short_chain, 0.30, 0.12),
    (direct, 0.45, 0.50),
)
SIDE_TASK_SHARE = 0.25


def base_style(problem: Problem, rng: np.random.Generator, *, errors: bool) -> Words:
    """A response in one of the base's styles, with the base's errors or without any."""
    pick = rng.choice(len(BASE_STYLES), p=[share for _, share, _ in BASE_STYLES])
    style, _, error = BASE_STYLES[pick]
    return style(problem, error if errors else 0.0, rng)


def side_task(rng: np.random.Generator) -> tuple[Words, Words]:
    """Prompt and response of reverse, sort or max on two to six digits."""
    digits = [int(d) for d in rng.integers(0, 10, size=int(rng.integers(2, 7)))]
    name = str(rng.choice(["reverse", "sort", "max"]))
    results = {"reverse": digits[::-1], "sort": sorted(digits), "max": [max(digits)]}
    return [BOS, name, ":", *map(str, digits), "="], [*map(str, results[name]), EOS]


def pretraining_example(data: DataSet, rng: np.random.Generator) -> tuple[Words, Words]:
    """One example of the pre-training mixture, never a held-out prompt."""
    if rng.random() < SIDE_TASK_SHARE:
        return side_task(rng)
    problem = draw_problems(data, 1, rng, held_out=False)[0]
    return problem.prompt(), base_style(problem, rng, errors=True)
