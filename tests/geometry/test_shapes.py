"""Tests of the geometry check the shapes of what they hand over; whole ways through the product do not."""

from __future__ import annotations

from pathlib import Path

import jaxtyping
import pytest
import torch

from tests.conftest import WHOLE_WAYS, shapes_are_checked
from threegates.geometry.angles import principal_angles

TESTS = Path(__file__).resolve().parents[1]


def test_a_vector_in_place_of_a_frame_is_refused_before_anything_is_computed():
    with pytest.raises(jaxtyping.TypeCheckError):
        principal_angles(torch.eye(6, dtype=torch.float64), torch.ones(6, dtype=torch.float64))


def test_every_wing_is_checked_but_for_whole_ways():
    assert shapes_are_checked(TESTS / "measures" / "test_drift.py")
    assert shapes_are_checked(TESTS / "lab" / "adapters" / "test_adapters.py")
    assert not shapes_are_checked(TESTS / "pages" / "test_asked.py")
    assert not shapes_are_checked(TESTS / "test_cli.py")


def test_whole_ways_are_folders_of_tests():
    assert all((TESTS / folder).is_dir() for folder in WHOLE_WAYS)
