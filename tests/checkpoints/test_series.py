"""Series of checkpoints: held against bash's own braces; ordered, bounded, cut into runs and steps."""

from __future__ import annotations

import shutil
import subprocess
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from threegates.checkpoints.series import MOST, as_one, is_series, members, natural
from threegates.errors import CheckpointError

BASH = shutil.which("bash")


def by_bash(*texts: str) -> list[list[str]]:
    """What bash makes of each text, in one process."""
    script = "\n".join(f"echo {text}" for text in texts)
    done = subprocess.run([BASH, "-c", script], capture_output=True, text=True, check=True)
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_braces_mean_what_bash_means_by_them():
    texts = [
        "org/repo@step_{1..500..50}",
        "a{9..1}b",
        "a{10..1..-4}b",
        "x{08..11}",
        "x{1..010}",
        "{a,b,c}",
        "seed{41,42}/step_{50..150..50}",
        "p{-2..2}q",
        "{7..7}",
        "{1..20..7}-{x,y}",
        "plain",
    ]
    for text, names in zip(texts, by_bash(*texts), strict=True):
        assert sorted(one.text for one in members(text)) == sorted(set(names)), text


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 60))
def test_a_range_has_both_ends_that_its_step_reaches_in_the_order_of_numbers(first, last, step):
    found = members(f"r@step_{{{first}..{last}..{step}}}")
    steps = [one.step for one in found]
    assert steps == sorted(steps) and first in steps
    low, high = sorted((first, last))
    assert len(steps) == (high - low) // step + 1 and min(steps) >= low and max(steps) <= high
    assert {b - a for a, b in pairwise(steps)} <= {step}
    assert [one.text for one in found] == [f"r@step_{number}" for number in steps]


@pytest.mark.parametrize(
    ("text", "run", "steps"),
    [
        ("org/repo@step_{20,3}", "org/repo", [3, 20]),
        ("org/repo:runs/seed41/global_step_{50..100..50}", "org/repo:runs/seed41", [50, 100]),
        ("RUN/checkpoint-{100,20}", "RUN", [20, 100]),
        ("org/Qwen2.5-model-step{5,10}", "org/Qwen2.5-model", [5, 10]),
        ("r@{step10-tokens2B,step9-tokens7B}", "r", [9, 10]),
        ("r@{early,late}", "r", [None, None]),
        ("checkpoint-{10,2}", "", [2, 10]),
    ],
)
def test_the_last_braces_count_steps_and_what_stands_before_them_is_the_run(text, run, steps):
    found = members(text)
    assert [one.step for one in found] == steps
    assert {one.run for one in found} == {run}


def test_braces_before_the_last_are_runs_of_their_own():
    found = members("a/seed{10,9}/step_{2,1}")
    assert [(one.run, one.step) for one in found] == [
        ("a/seed9", 1),
        ("a/seed9", 2),
        ("a/seed10", 1),
        ("a/seed10", 2),
    ]


def test_a_star_stands_for_what_there_is_and_no_slash():
    there = ["R/checkpoint-9", "R/checkpoint-10", "R/checkpoint-10/x", "R/other", "R/checkpoint-best"]
    found = members("R/checkpoint-*", lambda _: there)
    assert [(one.text, one.step) for one in found] == [
        ("R/checkpoint-9", 9),
        ("R/checkpoint-10", 10),
        ("R/checkpoint-best", None),
    ]
    both = members("R{1,2}/ckpt-*", lambda pattern: [pattern.replace("*", "7")])
    assert [(one.run, one.step) for one in both] == [("R1", 7), ("R2", 7)]
    behind = members("R-*/ckpt-{5,6}", lambda pattern: [pattern.replace("*", "3")])
    assert [(one.text, one.run, one.step) for one in behind] == [
        ("R-3/ckpt-5", "R-3", 5),
        ("R-3/ckpt-6", "R-3", 6),
    ]
    with pytest.raises(CheckpointError, match=r"nothing fits 'R/x-\*'"):
        members("R/x-*", lambda _: there)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a{}", "{}"),
        ("a{1}", "{1}"),
        ("a{,}", "{,}"),
        ("a{1..}", "{1..}"),
        ("a{a..e}", "{a..e}"),
        ("a{1..5..0}", "a step of 0"),
        ("a{1,2", "open or nested"),
        ("a{1,{2,3}}", "open or nested"),
        ("a}", "open or nested"),
        ("a{1..10001}", "10,001"),
        ("a{1..200}{1..200}", "40,000"),
        ("a{1..99999999999999999999}", "99,999,999,999,999,999,999"),
    ],
)
def test_what_is_no_series_says_what_is_wrong_and_what_to_do(text, says):
    with pytest.raises(CheckpointError) as caught:
        members(text)
    assert says in str(caught.value) and caught.value.remedy


def test_as_many_as_are_allowed():
    assert len(members(f"a{{1..{MOST}}}")) == MOST


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=9, unique=True), st.sampled_from(["", "-x", "9/y"])
)
def test_several_names_are_one_series_of_the_same_names_and_steps(numbers, end):
    texts = [f"org/Qwen2.5@step_{number}{end}" for number in numbers]
    found = members(as_one(texts))
    assert sorted(one.text for one in found) == sorted(texts)
    if len(texts) > 1 and not end.startswith("9"):
        assert [one.step for one in found] == sorted(numbers)


def test_evenly_spaced_numbers_are_a_range_again():
    assert as_one([f"a/c-{number}" for number in (30, 10, 20)]) == "a/c-{10..30..10}"
    assert as_one([f"o/r@s{number}" for number in range(3)]) == "o/r@s{0..2}"
    assert as_one(["c-1", "c-2", "c-4"]) == "c-{1,2,4}" and as_one(["c-1", "c-2"]) == "c-{1,2}"
    assert as_one(["c-01", "c-02", "c-03"]) == "c-{01,02,03}"


def test_names_that_have_nothing_in_common_and_names_that_are_series():
    assert [one.text for one in members(as_one(["a", "b"]))] == ["a", "b"]
    assert {one.text for one in members(as_one(["run", "run-2"]))} == {"run", "run-2"}
    with pytest.raises(CheckpointError, match="stands for itself"):
        as_one(["a{1,2}", "b"])
    assert as_one(["a{1,2}"]) == "a{1,2}" and is_series("a{1,2}") and not is_series("org/a@b:c")


def test_people_count_nine_before_ten():
    assert sorted(["s10", "s9", "s"], key=natural) == ["s", "s9", "s10"]
