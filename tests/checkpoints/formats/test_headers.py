"""Damaged and hostile safetensors files: each is refused with file, tensor, expected and found."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from threegates.checkpoints.formats.headers import LARGEST_HEADER, read_header, read_json
from threegates.errors import CheckpointError


def entry(first: int, last: int, shape=(2,), dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def write(folder: Path, header: object, body: int = 0) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(body))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert caught.value.remedy
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_reads_what_safetensors_wrote(tmp_path):
    tensors = {"b": torch.ones(3, 2), "a": torch.zeros(4, dtype=torch.bfloat16), "empty": torch.zeros(0, 5)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    infos = read_header(tmp_path / "x.safetensors")
    assert {name: (info.dtype, info.shape) for name, info in infos.items()} == {
        "a": ("BF16", (4,)),
        "b": ("F32", (3, 2)),
        "empty": ("F32", (0, 5)),
    }
    assert sum(info.offsets[1] - info.offsets[0] for info in infos.values()) == 32
    assert [info.size for info in (infos["a"], infos["b"], infos["empty"])] == [4, 6, 0]


def test_a_truncated_file_names_the_tensor_that_is_cut(tmp_path):
    path = write(tmp_path, {"a": entry(0, 8), "b": entry(8, 16)}, body=12)
    size = path.stat().st_size
    message = refusal(path)
    assert "model.safetensors is truncated: tensor 'b' is not whole" in message
    assert f"expected: {size + 4} bytes" in message
    assert f"found: {size} bytes" in message


def test_more_bytes_than_the_header_claims(tmp_path):
    assert "is longer than its header says" in refusal(write(tmp_path, {"a": entry(0, 8)}, body=9))


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ({"a": entry(0, 8), "b": entry(9, 17)}, "tensor 'b'"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "tensor 'b'"),
        ({"a": entry(4, 12)}, "where the one before it ends"),
        ({"a": entry(0, 12)}, "8 bytes for shape [2] of F32"),
        ({"a": entry(8, 0)}, "-8 bytes"),
        ({"a": entry(0, 8, dtype="PICKLE")}, "found: PICKLE"),
        ({"a": entry(0, 1, shape=(1,), dtype="F4")}, "0.5 bytes for shape [1] of F4"),
        ({"a": entry(0, 8, shape=(-1, -2))}, "whole numbers"),
        ({"a": entry(0, 8, shape=(2.0,))}, "whole numbers"),
        ({"a": entry(0, 4, shape=(True,))}, "whole numbers"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "two offsets"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8, 9]}}, "two offsets"),
        ({"a": 7}, "two offsets"),
        ({"a": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}, "two offsets"),
        (b"[1, 2]", "expected: an object"),
        (b"{nonsense}", "valid JSON"),
        (b'{"a": "\xff"}', "valid JSON"),
        (b"[" * 100_000, "valid JSON"),
    ],
)
def test_a_wrong_header_is_refused(tmp_path, header, part):
    assert part in refusal(write(tmp_path, header, body=16))


def test_a_name_that_is_listed_twice(tmp_path):
    one = json.dumps(entry(0, 8))
    path = write(tmp_path, f'{{"a": {one}, "a": {one}}}'.encode(), body=8)
    assert "lists 'a' twice" in refusal(path)


@pytest.mark.parametrize("length", [0, 1, 2**63, LARGEST_HEADER + 1, 17])
def test_an_absurd_header_length_is_refused_unread(tmp_path, length):
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + bytes(16))
    message = refusal(path)
    assert "has no readable safetensors header" in message
    assert f"found: {length} in a file of 24 bytes" in message


@pytest.mark.parametrize("content", [b"", b"\x02", b"\x02" + bytes(7)])
def test_a_file_too_short_for_a_header(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert "no readable safetensors header" in refusal(path)


def test_a_git_lfs_pointer_says_how_to_get_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    assert "git lfs pull" in refusal(path)


def test_json_that_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="No such file"):
        read_json(tmp_path / "config.json")


WHOLE = save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(5, dtype=torch.bfloat16)})


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, len(WHOLE) - 1))
def test_no_cut_goes_unnoticed(tmp_path_factory, cut):
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(WHOLE[:cut])
    refusal(path)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_changed_byte_is_refused_or_leads_nowhere_else(tmp_path_factory, at, byte):
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :])
    try:
        infos = read_header(path)
    except CheckpointError:
        return
    assert all(8 <= info.offsets[0] <= info.offsets[1] <= len(WHOLE) for info in infos.values())
