"""Checkpoints that transformers wrote, whole and broken."""

from __future__ import annotations

import json
import os
import pickle
import struct
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from threegates.checkpoints import tensors as tensors_module
from threegates.checkpoints.rounding import round_to_bf16
from threegates.checkpoints.tensors import INDEX, SINGLE, Checkpoint, sha256_of
from threegates.errors import CheckpointError


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    assert caught.value.remedy
    return str(caught.value)


def edit_index(folder: Path, changes: dict[str, str | None]) -> None:
    """Point tensors at other files; None drops one."""
    index = json.loads((folder / INDEX).read_text())
    weight_map = index["weight_map"] | changes
    index["weight_map"] = {name: file for name, file in weight_map.items() if file is not None}
    (folder / INDEX).write_text(json.dumps(index))


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


# Reading


def test_sharded_llama_reads_back_bit_for_bit(llama):
    folder, state = llama
    checkpoint = Checkpoint.open(folder)
    assert len({info.file for info in checkpoint.infos.values()}) > 2
    assert list(checkpoint.infos) == sorted(state)
    for name, tensor in state.items():
        assert checkpoint.infos[name].dtype == "BF16"
        assert checkpoint.infos[name].shape == tuple(tensor.shape)
        assert checkpoint.infos[name].alias_of is None
        assert torch.equal(checkpoint.stored(name), tensor)
        assert torch.equal(checkpoint.bf16(name), tensor)


def test_reads_the_same_as_safe_open(qwen2):
    checkpoint = Checkpoint.open(qwen2[0])
    with safe_open(qwen2[0] / SINGLE, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - this is no dict
            assert torch.equal(checkpoint.stored(name), file.get_tensor(name))


def test_a_tied_head_is_an_alias_of_the_embedding(qwen2):
    folder, state = qwen2
    checkpoint = Checkpoint.open(folder)
    assert "lm_head.weight" not in load_file(folder / SINGLE)
    assert checkpoint.infos["lm_head.weight"].alias_of == "model.embed_tokens.weight"
    assert torch.equal(checkpoint.stored("lm_head.weight"), state["model.embed_tokens.weight"])
    assert torch.equal(checkpoint.bf16("lm_head.weight"), round_to_bf16(state["model.embed_tokens.weight"]))


@pytest.mark.parametrize(("tie", "listed"), [(True, True), (None, True), (False, False)])
def test_a_head_is_aliased_only_where_the_config_may_tie_it(tmp_path, tie, listed):
    save_file({"model.embed_tokens.weight": torch.ones(3, 2)}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text(json.dumps({} if tie is None else {"tie_word_embeddings": tie}))
    assert ("lm_head.weight" in Checkpoint.open(tmp_path).infos) is listed


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.int64, torch.int8, torch.bool, torch.uint8, torch.float8_e4m3fn],
)
def test_every_dtype_is_read_as_stored(tmp_path, dtype):
    tensor = torch.tensor([[0, 1], [1, 0]]).to(dtype)
    save_file({"x": tensor, "empty": tensor[:0], "scalar": tensor[0, 0].clone()}, tmp_path / SINGLE)
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.stored("x").dtype == dtype
    assert torch.equal(checkpoint.stored("x").view(torch.uint8), tensor.view(torch.uint8))
    assert checkpoint.stored("empty").shape == (0, 2)
    assert checkpoint.stored("scalar").shape == ()


def test_one_tensor_is_read_from_a_file_far_larger_than_memory(tmp_path):
    large = 2**38
    header = {
        "large": {"dtype": "BF16", "shape": [large // 2], "data_offsets": [0, large]},
        "small": {"dtype": "F32", "shape": [1], "data_offsets": [large, large + 4]},
    }
    text = json.dumps(header).encode()
    with open(tmp_path / SINGLE, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.seek(large, os.SEEK_CUR)
        file.write(struct.pack("<f", 2.5))
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.infos["large"].size == 2**37
    assert checkpoint.stored("small").tolist() == [2.5]


def test_a_snapshot_of_links_into_blobs_is_read(llama, copy_of, tmp_path):
    blobs, snapshot = copy_of(llama[0], "blobs"), tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert Checkpoint.open(snapshot).digest() == Checkpoint.open(llama[0]).digest()


def test_a_checkpoint_travels_to_worker_processes(llama):
    checkpoint = pickle.loads(pickle.dumps(Checkpoint.open(llama[0])))
    assert torch.equal(checkpoint.stored("model.norm.weight"), llama[1]["model.norm.weight"])


def test_an_unknown_tensor(llama):
    with pytest.raises(CheckpointError, match="there is no tensor 'model.nrom.weight'"):
        Checkpoint.open(llama[0]).stored("model.nrom.weight")


def test_a_dtype_that_torch_cannot_hold(tmp_path):
    text = json.dumps({"x": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + bytes(3))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="stored as F6_E2M3, which is not read here"):
        Checkpoint.open(tmp_path).stored("x")


# Damage


def test_a_truncated_shard_names_file_and_tensor(llama, copy_of):
    folder = copy_of(llama[0])
    shard = shard_of(folder, "model.norm.weight")
    size = shard.stat().st_size
    os.truncate(shard, size - 1)
    message = refusal(folder)
    last = max(
        (info for info in Checkpoint.open(llama[0]).infos.values() if info.file.name == shard.name),
        key=lambda info: info.offsets,
    ).name
    assert f"{shard.name} is truncated: tensor '{last}' is not whole" in message
    assert f"where: {shard}, tensor '{last}'" in message
    assert f"expected: {size} bytes" in message
    assert f"found: {size - 1} bytes" in message
    assert "download or copy it again" in message


def test_a_shard_that_shrinks_after_it_was_opened(llama, copy_of):
    folder = copy_of(llama[0])
    checkpoint = Checkpoint.open(folder)
    info = checkpoint.infos["model.norm.weight"]
    os.truncate(info.file, info.offsets[1] - 2)
    with pytest.raises(CheckpointError, match="tensor 'model.norm.weight' is not whole"):
        checkpoint.stored("model.norm.weight")


def test_a_missing_shard_names_file_and_tensor(llama, copy_of):
    folder = copy_of(llama[0])
    shard = shard_of(folder, "model.layers.1.mlp.up_proj.weight")
    held = [name for name in llama[1] if shard_of(folder, name) == shard]
    shards = len({shard_of(folder, name) for name in llama[1]})
    shard.unlink()
    message = refusal(folder)
    assert f"1 of {shards} shards are missing" in message
    assert f"where: {shard}, tensor '{min(held)}'" in message
    assert f"expected: {shard.name} ({len(held)} tensors)" in message
    assert "found: no such file" in message


@pytest.mark.parametrize(
    "name",
    [
        "../other/model.safetensors",
        "/etc/passwd",
        "a/../../b.safetensors",
        "..\\b",
        "C:b.safetensors",
        "",
        ".",
    ],
)
def test_an_index_that_points_outside_is_refused_before_anything_is_read(llama, copy_of, name):
    folder = copy_of(llama[0])
    (folder.parent / "other").mkdir()
    save_file({"model.norm.weight": torch.ones(16)}, folder.parent / "other" / SINGLE)
    edit_index(folder, {"model.norm.weight": name})
    message = refusal(folder)
    assert "the index points outside the checkpoint's folder" in message
    assert f"{folder / INDEX}, tensor 'model.norm.weight'" in message
    assert "expected: the name of a file in the same folder" in message
    assert f"found: {name}" in message


def test_an_index_entry_whose_shard_lacks_it(llama, copy_of):
    folder = copy_of(llama[0])
    first = min(folder.glob("model-*")).name
    edit_index(folder, {"model.ghost.weight": first, "model.spectre.weight": first})
    message = refusal(folder)
    assert "tensor 'model.ghost.weight' is not in the file the index names, and 1 more are not" in message
    assert first in message


def test_a_tensor_that_the_index_leaves_out_is_not_dropped_in_silence(llama, copy_of):
    folder = copy_of(llama[0])
    shard = shard_of(folder, "model.norm.weight")
    edit_index(folder, {"model.norm.weight": None})
    message = refusal(folder)
    assert f"{shard.name} holds tensor 'model.norm.weight', which the index does not place there" in message
    assert "found: not in the index" in message


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}"])
def test_an_index_that_is_none(llama, copy_of, text):
    folder = copy_of(llama[0])
    (folder / INDEX).write_text(text)
    assert INDEX in refusal(folder)


def test_two_sets_of_weights(llama, copy_of):
    folder = copy_of(llama[0])
    save_file({"x": torch.ones(1)}, folder / SINGLE)
    assert "two sets of weights" in refusal(folder)


def test_a_missing_config(llama, copy_of):
    folder = copy_of(llama[0])
    (folder / "config.json").unlink()
    assert "has no config.json" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{'a': 1}", "[]", "null", '{"a": 1, "a": 2}'])
def test_a_config_that_is_no_json_object(llama, copy_of, text):
    folder = copy_of(llama[0])
    (folder / "config.json").write_text(text)
    message = refusal(folder)
    assert "config.json" in message
    assert str(folder) in message


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("pytorch_model.bin", "pickle, which can run code"),
        ("pytorch_model-00001-of-00002.bin", "pickle, which can run code"),
        ("model.pt", "pickle, which can run code"),
        ("consolidated.00.pth", "pickle, which can run code"),
        ("model-q4.gguf", "GGUF"),
        ("adapter_model.safetensors", "give it as the tuned side"),
        ("tf_model.h5", "TensorFlow"),
        ("README.md", "save_pretrained"),
    ],
)
def test_other_formats_are_refused_by_name(tmp_path, file, part):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(b"\x80\x04.")
    message = refusal(tmp_path)
    assert "the checkpoint has no safetensors weights" in message
    assert part in message
    assert file in message or file == "README.md"


def test_no_folder(tmp_path):
    assert "there is no checkpoint folder" in refusal(tmp_path / "nowhere")


# Digest


def test_the_digest_follows_content_not_place(llama, copy_of):
    copy = copy_of(llama[0])
    digest = Checkpoint.open(llama[0]).digest()
    (copy / "README.md").write_text("no part of the model")
    assert Checkpoint.open(copy).digest() == digest
    shard = shard_of(copy, "model.norm.weight")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    changed = Checkpoint.open(copy).digest()
    assert changed != digest
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 7}))
    assert Checkpoint.open(copy).digest() not in (digest, changed)


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    path, calls = tmp_path / "x", []
    real = tensors_module.hashlib.file_digest
    monkeypatch.setattr(
        tensors_module.hashlib, "file_digest", lambda *args: calls.append(args) or real(*args)
    )
    path.write_bytes(b"one")
    first = sha256_of(path)
    assert sha256_of(path) == first
    assert len(calls) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 0))
    assert sha256_of(path) != first
    assert len(calls) == 2
