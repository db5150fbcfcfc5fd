"""The task against oracles of its own: exact integers, counted errors, words read back."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.lab.tiny import earns_reward, left_to_right
from threegates.errors import RecipeError
from threegates.lab.model import ModelShape
from threegates.lab.task import (
    BASE_STYLES,
    DATA_SETS,
    EOS_ID,
    PAD_ID,
    RESPONSE_LENGTH,
    SIDE_TASK_SHARE,
    VOCABULARY,
    Problem,
    base_style,
    data_set,
    direct,
    draw_problems,
    encode,
    full_chain,
    is_correct,
    is_held_out,
    pretraining_example,
    short_chain,
    side_task,
    teacher,
)

STYLES = (full_chain, short_chain, direct, teacher)
EQUATION = re.compile(r"(\d) ([-+*]) (\d) = (\d) ;")


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    count = draw(st.integers(1, 5))
    digits = draw(st.lists(st.integers(0, 9), min_size=count + 1, max_size=count + 1))
    operators = draw(st.lists(st.sampled_from("+-*"), min_size=count, max_size=count))
    return Problem(tuple(digits), tuple(operators))


def within(observed: float, rate: float, count: int) -> bool:
    """Whether a share of ``count`` independent trials lies within four standard errors of its rate."""
    return abs(observed - rate) <= 4 * (rate * (1 - rate) / count) ** 0.5


# -------------------------------------------------------------------------------- problems and answers


@given(problems())
def test_answers_are_left_to_right_modulo_ten(problem):
    assert problem.answer == left_to_right(problem.prompt())


def test_multiplication_does_not_bind_tighter():
    assert Problem((4, 7, 3), ("+", "*")).answer == 3  # (4 + 7) · 3 = 33, not 4 + 21 = 25
    assert Problem((2, 5, 4), ("-", "*")).running_values() == [7, 8]  # −3 ≡ 7, and 28 ≡ 8


def test_a_prompt_is_written_as_documented():
    prompt = Problem((4, 7, 3, 5), ("+", "*", "-")).prompt()
    assert " ".join(prompt) == "<bos> cot : 4 + 7 * 3 - 5 ="


# ----------------------------------------------------------------------------------------- vocabulary


def test_the_vocabulary_has_48_different_words():
    assert len(VOCABULARY) == 48
    assert len(set(VOCABULARY)) == 48
    assert VOCABULARY[PAD_ID] == "<pad>"
    assert VOCABULARY[EOS_ID] == "<eos>"


@given(st.lists(st.sampled_from(VOCABULARY)))
def test_ids_lead_back_to_their_words(words):
    assert [VOCABULARY[i] for i in encode(words)] == words


def test_a_word_outside_the_vocabulary_is_refused_by_name():
    with pytest.raises(KeyError, match="nonsense"):
        encode(["A", "nonsense"])


# --------------------------------------------------------------------------------------------- styles


@given(problems(), st.sampled_from(STYLES), st.integers(0, 2**32))
def test_every_style_without_errors_ends_in_the_right_answer(problem, style, seed):
    response = style(problem, 0.0, np.random.default_rng(seed))
    assert earns_reward(problem.prompt(), response)
    assert is_correct(encode(response), problem.answer)
    assert len(response) <= RESPONSE_LENGTH


@given(problems(), st.integers(0, 2**32))
def test_a_full_chain_holds_one_true_equation_an_operation(problem, seed):
    text = " ".join(full_chain(problem, 0.0, np.random.default_rng(seed)))
    equations = EQUATION.findall(text)
    assert [(op, int(right)) for _, op, right, _ in equations] == list(
        zip(problem.operators, problem.digits[1:], strict=True)
    )
    for left, operator, right, value in equations:
        assert int(value) == left_to_right([":", left, operator, right, "="])


@given(problems(), st.floats(0, 1), st.integers(0, 2**32))
def test_a_slip_is_carried_on(problem, error, seed):
    response = full_chain(problem, error, np.random.default_rng(seed))
    equations = EQUATION.findall(" ".join(response))
    for before, after in pairwise(equations):
        assert after[0] == before[3]
    assert response[-2] == equations[-1][3]


@given(problems(), st.sampled_from(STYLES), st.integers(0, 2**32))
def test_a_certain_slip_is_another_digit(problem, style, seed):
    one = Problem(problem.digits[:2], problem.operators[:1])
    assert style(one, 1.0, np.random.default_rng(seed))[-2] != str(one.answer)


def test_the_teacher_writes_a_format_of_its_own():
    response = teacher(Problem((4, 7, 3), ("+", "*")), 0.0, np.random.default_rng(0))
    assert " ".join(response) == "let r 4 then + 7 get 1 then * 3 get 3 so A 3 <eos>"
    rng = np.random.default_rng(1)
    own = {word for p in range(300) for word in base_style(Problem((1, p % 10), ("+",)), rng, errors=True)}
    assert not own & {"let", "r", "then", "get", "so"}


@pytest.mark.parametrize("rate", [0.06, 0.5])
def test_steps_of_a_chain_slip_at_the_stated_rate(rate):
    rng, slips, count = np.random.default_rng(3), 0, 0
    for problem in draw_problems(data_set("arith-4"), 2000, rng, held_out=False):
        for left, op, right, value in EQUATION.findall(" ".join(full_chain(problem, rate, rng))):
            slips += int(value) != left_to_right([":", left, op, right, "="])
            count += 1
    assert count == 8000
    assert within(slips / count, rate, count)


def _style_of(response: list[str], operations: int):
    return {3: direct, operations + 3: short_chain, 6 * operations + 3: full_chain}[len(response)]


def test_base_styles_come_in_their_shares_and_err_at_their_rates():
    rng, count = np.random.default_rng(4), 6000
    seen: dict = {style: [] for style, _, _ in BASE_STYLES}
    for _ in range(count):
        problem = Problem(tuple(int(d) for d in rng.integers(0, 10, 2)), ("+",))
        response = base_style(problem, rng, errors=True)
        seen[_style_of(response, 1)].append(earns_reward(problem.prompt(), response))
    for style, share, error in BASE_STYLES:
        assert within(len(seen[style]) / count, share, count), style.__name__
        assert within(1 - np.mean(seen[style]), error, len(seen[style])), style.__name__


def test_base_styles_without_errors_are_always_right():
    rng = np.random.default_rng(5)
    for problem in draw_problems(data_set("arith-3to5"), 300, rng, held_out=False):
        assert earns_reward(problem.prompt(), base_style(problem, rng, errors=False))


# ------------------------------------------------------------------------------------------- verifier

RIGHT = Problem((4, 7), ("+",)).answer


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("A 1 <eos>", True),
        ("4 + 7 = 1 ; A 1 <eos>", True),
        ("A 1 <eos> A 2 <eos>", True),
        ("A 1 <eos> <pad> <pad>", True),
        ("9 9 A 1 <eos>", True),
        ("A 1", False),
        ("A 2 <eos>", False),
        ("A 2 <eos> A 1 <eos>", False),
        ("1 <eos>", False),
        ("A 1 ; <eos>", False),
        ("A 1 1 <eos>", False),
        ("A <eos>", False),
        ("<eos>", False),
        ("<pad> A 1", False),
        ("", False),
    ],
)
def test_the_verifier_wants_the_answer_directly_before_the_end(response, verdict):
    assert RIGHT == 1
    assert is_correct(encode(response.split()), RIGHT) is verdict


# ------------------------------------------------------------------------------------- held-out eighth


@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_held_out_prompts_are_an_eighth_and_disjoint_from_training(name):
    rng = np.random.default_rng(6)
    drawn = {" ".join(data_set(name).draw(rng).prompt()) for _ in range(8000)}
    held_out = {prompt for prompt in drawn if is_held_out(prompt.split())}
    assert within(len(held_out) / len(drawn), 1 / 8, len(drawn))
    training = draw_problems(data_set(name), 500, rng, held_out=False)
    evaluation = draw_problems(data_set(name), 500, rng, held_out=True)
    assert not any(is_held_out(p.prompt()) for p in training)
    assert all(is_held_out(p.prompt()) for p in evaluation)
    assert len(training) == len(evaluation) == 500


def test_the_split_is_the_same_in_every_process():
    """CRC-32 of the text, not Python's salted hash: these verdicts are written down."""
    held_out = [d for d in range(10) if is_held_out(Problem((1, d, 3), ("*", "+")).prompt())]
    assert held_out == [5, 8]
    held_out = [d for d in range(10) if is_held_out(Problem((4, d, 3), ("-", "*")).prompt())]
    assert held_out == [1]


def test_held_out_answers_are_spread_over_all_digits():
    rng = np.random.default_rng(7)
    digits = [problem.answer for problem in draw_problems(data_set("addsub-4"), 2000, rng, held_out=True)]
    for digit in range(10):
        assert within(digits.count(digit) / 2000, 0.1, 2000)


def test_pretraining_never_sees_a_held_out_prompt_and_mixes_side_tasks():
    rng, count = np.random.default_rng(8), 3000
    examples = [pretraining_example(data_set("pretraining"), rng) for _ in range(count)]
    arithmetic = [prompt for prompt, _ in examples if prompt[1] == "cot"]
    assert not any(is_held_out(prompt) for prompt in arithmetic)
    assert within(1 - len(arithmetic) / count, SIDE_TASK_SHARE, count)
    assert {len(prompt) for prompt in arithmetic} == {7, 9, 11, 13, 15}


@given(st.integers(0, 2**32))
def test_side_tasks_are_solved(seed):
    prompt, response = side_task(np.random.default_rng(seed))
    name, given_digits, answer = prompt[1], prompt[3:-1], response[:-1]
    assert 2 <= len(given_digits) <= 6
    assert response[-1] == "<eos>"
    if name == "reverse":
        assert answer == [given_digits[-1 - i] for i in range(len(given_digits))]
    elif name == "sort":
        assert "".join(answer) == "".join(sorted("".join(given_digits)))
    else:
        assert answer == [max("".join(given_digits))]


# --------------------------------------------------------------------------------- data sets and draws


@pytest.mark.parametrize(
    ("name", "operations", "operators"),
    [
        ("arith-4", {4}, {"+", "-", "*"}),
        ("addsub-4", {4}, {"+", "-"}),
        ("arith-3to5", {3, 4, 5}, {"+", "-", "*"}),
        ("arith-8", {8}, {"+", "-", "*"}),
    ],
)
def test_data_sets_draw_what_their_names_say(name, operations, operators):
    drawn = draw_problems(data_set(name), 300, np.random.default_rng(9), held_out=False)
    assert {len(p.operators) for p in drawn} == operations
    assert {operator for p in drawn for operator in p.operators} == operators
    assert {digit for p in drawn for digit in p.digits} == set(range(10))


def test_lengths_follow_from_the_longest_chain():
    """Those of the lab's data sets are what its checkpoints say; longer chains have room for their own."""
    for name, data in DATA_SETS.items():
        expected = (52, 96) if name.endswith("-8") else (34, 64)
        assert (data.response_length, data.positions) == expected
        assert max(data.operations) <= data.longest
    assert ModelShape().positions == data_set("pretraining").positions
    longest = Problem((1,) * 9, ("*",) * 8)
    responses = [style(longest, 0.0, np.random.default_rng(0)) for style in STYLES]
    assert max(map(len, responses)) < 52
    assert len(longest.prompt()) + 52 <= 96


def test_an_unknown_data_set_is_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match="arith-9") as caught:
        data_set("arith-9")
    assert "addsub-4 | arith-3to5 | arith-4" in str(caught.value)
