"""The coordinates of heads, beside a checkpoint: exact, and refused where they are something else."""

from __future__ import annotations

import json

import pytest
import torch

from threegates.checkpoints.formats.frame import NAME, Frame, read_frame
from threegates.errors import CheckpointError
from threegates.geometry.rotation import haar

ROTATION = haar(4, torch.Generator().manual_seed(0))


def test_a_frame_comes_back_to_the_last_bit(tmp_path):
    frame = Frame({1: ROTATION, 10: torch.eye(2, dtype=torch.float64)}, {1: [2, 3, 0, 1]})
    (tmp_path / NAME).write_text(frame.json())
    read = read_frame(tmp_path)
    assert {layer: list(order) for layer, order in read.orders.items()} == {1: [2, 3, 0, 1]}
    assert set(read.rotations) == {1, 10}
    assert all(torch.equal(read.rotations[layer], frame.rotations[layer]) for layer in frame.rotations)


def test_without_a_file_heads_stand_as_they_did(tmp_path):
    assert read_frame(tmp_path) == Frame()


@pytest.mark.parametrize(
    "content",
    [
        {"rotations": {}},
        {"rotations": {"1": [[1.0, 0.0]]}, "orders": {}},
        {"rotations": {"one": [[1.0]]}, "orders": {}},
        {"rotations": {}, "orders": {"1": ["first"]}},
        {"rotations": [], "orders": {}},
    ],
)
def test_what_is_no_frame_is_refused_with_its_file(tmp_path, content):
    (tmp_path / NAME).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="no frame of attention heads") as caught:
        read_frame(tmp_path)
    assert NAME in str(caught.value) and "write the checkpoint again" in str(caught.value)
