"""Files of byte tensors that are written piece by piece, against those that safetensors writes."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from threegates.checkpoints.formats.byte_tensors import write_byte_tensors
from threegates.errors import CheckpointError

TENSORS = {
    "model.b": torch.arange(37, dtype=torch.uint8),
    "model.a": torch.zeros(0, dtype=torch.uint8),
    'ä "quoted"': torch.full((5,), 255, dtype=torch.uint8),
    "one": torch.tensor([7], dtype=torch.uint8),
}
SIZES = {name: len(tensor) for name, tensor in TENSORS.items()}


@pytest.mark.parametrize("length", [1, 4, 100])
def test_the_file_is_byte_for_byte_that_of_safetensors(tmp_path, length):
    metadata = {"shapes": '{"a": [3]}'}
    write_byte_tensors(tmp_path / "ours", SIZES, lambda name: iter(TENSORS[name].split(length)), metadata)
    save_file(TENSORS, tmp_path / "theirs", metadata=metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    read = load_file(tmp_path / "ours")
    assert read.keys() == TENSORS.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == metadata


def test_tensors_are_asked_for_one_after_the_other(tmp_path):
    asked: list[str] = []

    def pieces(name):
        asked.append(name)
        yield TENSORS[name]
        asked.append(name)

    write_byte_tensors(tmp_path / "file", SIZES, pieces, {})
    assert asked == [name for name in sorted(TENSORS) for _ in range(2)]


@pytest.mark.parametrize("given", [[], [torch.zeros(3, dtype=torch.uint8)] * 3])
def test_a_tensor_of_another_size_than_was_said_is_refused_and_nothing_stays(tmp_path, given):
    with pytest.raises(CheckpointError, match="does not have the size") as caught:
        write_byte_tensors(tmp_path / "file", {"w": 4}, lambda name: iter(given), {})
    assert "tensor 'w'" in str(caught.value) and "expected: 4 bytes" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
