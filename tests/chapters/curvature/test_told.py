"""What the page on curvature says, on tables whose truth is planted: each sentence, and its contrary."""

from __future__ import annotations

import pandas as pd
import pytest

from tests.planted.planted_curvature import steepness, table
from threegates.chapters.curvature.told import beside_sft, gate_ii, neutral_noise

HONEST = (
    "The premise of Gate II holds, its conclusion does not: principal directions are steep, "
    "and RL walks on them all the same."
)
TOLERANCE = 1.25


def scaled(frame: pd.DataFrame, direction: str, by: float, column: str = "curvature") -> pd.DataFrame:
    """One direction's curvature, or another column of it, times a number."""
    frame.loc[frame["direction"] == direction, column] *= by
    return frame


def walking(share: float = 3.0, noise: float = 0.25) -> pd.DataFrame:
    """Updates along which noise meets twice `noise` times the curvature; the block's share times `share`."""
    return scaled(scaled(table(), "noise", noise), "principal", share, "share")


def test_a_steep_block_that_rl_walks_on_is_told_in_the_honest_sentence():
    assert gate_ii(walking(), steepness(), TOLERANCE) == HONEST
    few = scaled(scaled(walking(share=1.0), "principal", 0.5, "share"), "block_noise", 0.1, "share")
    # The whole update has all of its squared norm; a quarter of it lies in the block, twice as steep.
    told = gate_ii(scaled(few, "update", 2.0, "share"), steepness(), TOLERANCE)
    elsewhere = "with most of its squared norm elsewhere"
    alone = "its part in the block gives 50 % of the curvature that it meets by itself"
    assert told == HONEST.replace("same.", f"same, {elsewhere}; {alone}.")


def test_where_rl_is_off_the_block_or_flat_or_the_block_is_not_steep_it_says_so_instead():
    told = gate_ii(walking(share=0.1), steepness(), TOLERANCE)
    assert told.endswith("and RL walks where it is steeper than along noise, off them.")
    told = gate_ii(table(), steepness(), TOLERANCE)
    assert told.startswith("The premise of Gate II holds: ") and told.endswith("RL walks where it is flat.")
    told = gate_ii(walking(noise=0.52), steepness(), TOLERANCE)
    assert told.endswith("that RL walks where it is flat is not shown.")
    told = gate_ii(walking(), scaled(steepness(), "block", 0.5), TOLERANCE)
    assert told.startswith("The premise of Gate II does not hold: that principal directions are steep is not")
    assert told.endswith("RL walks where it is steeper than along noise.")
    told = gate_ii(walking(), scaled(steepness(), "block", 0.1), TOLERANCE)
    assert "principal directions are flat" in told


def test_where_noise_meets_a_negative_curvature_it_says_that_it_cannot_be_told():
    below = scaled(steepness(), "noise", -1)
    told = gate_ii(walking(), below, TOLERANCE)
    assert told.startswith("Whether the premise of Gate II holds cannot be told here: 5 of 5 draws of noise")
    assert HONEST not in told
    told = neutral_noise(walking(), below)
    assert told.startswith("In the principal block noise meets a multiple that cannot be told")
    assert "On principal weights it meets 2 [2, 2] times (Hessian of the loss, 5 draws" in told


def test_multiples_are_told_with_their_draws_and_batches():
    frame = steepness()
    frame.loc[(frame["batch"] == 1) & (frame["direction"] == "block"), "curvature"] *= 2
    told = neutral_noise(table(), frame)
    assert "draws; batch by batch 2 to 4)" in told and "(Fisher matrix, 5 draws" in told


def test_beside_sft_the_page_says_what_is_held_fixed():
    frame = table()
    frame.loc[frame["method"] == "sft", ["norm", "learning_rate"]] *= [40, 60]
    told = beside_sft(frame)
    assert "SFT's are 40 long, 40 times as long as RL's, and their learning rate was 60 times RL's" in told
    assert "not an equal path" in told


@pytest.mark.parametrize("method", ["rl", "sft"])
def test_without_runs_of_both_nothing_is_said_of_sft(method):
    frame = table()
    assert beside_sft(frame[frame["method"] == method]) == ""
