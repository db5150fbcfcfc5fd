"""Names, labels, orders and colours of runs and methods."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.planted.frames import LABELS, OF_RUNS
from threegates.figures import names
from threegates.figures.style import METHOD_COLOURS


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"head_dim": 128, "hidden_size": 2560, "num_attention_heads": 32}, 128),
        ({"hidden_size": 128, "num_attention_heads": 4}, 32),
        ({"head_dim": None, "hidden_size": 128, "num_attention_heads": 4}, 32),
        ({"hidden_size": 128}, None),
    ],
)
def test_the_size_of_a_head_comes_from_the_config(config, expected):
    assert names.head_size(config) == expected


def test_a_method_the_study_does_not_know_keeps_its_name():
    assert names.method_name("dapo") == "DAPO"
    assert names.method_name("GRPO") == "GRPO"
    assert names.method_name("flow-grpo") == "flow-grpo"
    assert names.method_name(None) == "your pair"


def test_runs_are_labelled_by_method_data_and_seed_once_each():
    assert names.run_labels(pd.concat([OF_RUNS, OF_RUNS])) == LABELS


def test_runs_of_reinforcement_learning_come_first_in_the_colour_of_their_method():
    colours = names.run_colours(OF_RUNS)
    assert list(colours) == [LABELS[pair] for pair in ("g1", "g2", "x", "t")]
    assert colours[LABELS["g1"]] == colours[LABELS["g2"]] == METHOD_COLOURS["GRPO"]
    assert colours[LABELS["t"]] == METHOD_COLOURS["SFT (teacher)"]
    assert colours[LABELS["x"]] == "#000000"


def test_two_steps_of_one_run_do_not_share_a_label():
    step = {"algorithm": "grpo", "data": "arith-4", "seed": 101}
    labels = names.run_labels(pd.DataFrame([{"pair": "a-step0010", **step}, {"pair": "a", **step}]))
    assert labels == {"a-step0010": "GRPO · arith-4 · 101 · a-step0010", "a": "GRPO · arith-4 · 101 · a"}
