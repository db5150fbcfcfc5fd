"""Checkpoints we write: read back by ourselves and by transformers, whole or not at all."""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from threegates.checkpoints import writer
from threegates.checkpoints.tensors import INDEX, SINGLE, Checkpoint
from threegates.checkpoints.writer import write_checkpoint
from threegates.errors import CheckpointError

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TENSORS = {"a.weight": torch.arange(6.0), "b.weight": torch.ones(2, 3)}


def contents(folder) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
specs = st.dictionaries(
    st.from_regex(r"[a-z]{1,6}(\.[a-z0-9]{1,4}){0,2}", fullmatch=True),
    st.tuples(shapes, st.sampled_from(DTYPES)),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None)
@given(specs, st.integers(1, 400), st.integers(0, 2**31))
def test_what_is_written_reads_back(tmp_path_factory, spec, limit, seed):
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(s, generator=generator).to(d) for n, (s, d) in spec.items()}
    folder = tmp_path_factory.getbasetemp() / "written"
    write_checkpoint(folder, tensors, {"tie_word_embeddings": False}, {"tokenizer.json": "{}"}, limit)
    checkpoint = Checkpoint.open(folder)
    assert list(checkpoint.infos) == sorted(tensors)
    for name, tensor in tensors.items():
        stored = checkpoint.stored(name)
        assert stored.dtype == tensor.dtype
        assert torch.equal(stored, tensor)
    first = contents(folder)
    write_checkpoint(
        folder, dict(reversed(tensors.items())), checkpoint.config, {"tokenizer.json": "{}"}, limit
    )
    assert contents(folder) == first


def test_shards_are_named_as_the_hub_names_them_and_kept_below_the_limit(tmp_path):
    tensors = {f"x{i}": torch.ones(10) for i in range(5)} | {"large": torch.ones(100)}
    write_checkpoint(tmp_path / "c", tensors, {}, {}, 80)
    index = json.loads((tmp_path / "c" / INDEX).read_text())
    assert index["metadata"] == {"total_size": 600}
    assert sorted(set(index["weight_map"].values())) == [
        f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)
    ]
    held = [
        {n for n, f in index["weight_map"].items() if f == file} for file in set(index["weight_map"].values())
    ]
    assert all(len(names) <= 2 for names in held)
    assert {"large"} in held


def test_one_shard_needs_no_index(tmp_path):
    write_checkpoint(tmp_path / "c", TENSORS, {"a": 1}, {"generation_config.json": b"{}"}, 10**6)
    assert sorted(os.listdir(tmp_path / "c")) == ["config.json", "generation_config.json", SINGLE]


def test_every_file_may_be_read_by_whom_the_umask_allows(tmp_path):
    write_checkpoint(tmp_path / "c", TENSORS, {}, {"t.json": "{}"}, 30)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "c").iterdir()}
    (tmp_path / "plain").write_text("")
    assert modes == {stat.S_IMODE((tmp_path / "plain").stat().st_mode)}


def test_transformers_loads_it_and_computes_the_same(llama, tmp_path):
    from transformers import AutoModelForCausalLM

    source = Checkpoint.open(llama[0])
    write_checkpoint(tmp_path / "c", llama[1], source.config, {}, 4000)
    assert (tmp_path / "c" / INDEX).is_file()
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "c", dtype=torch.bfloat16)
    theirs = AutoModelForCausalLM.from_pretrained(llama[0], dtype=torch.bfloat16)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)


def test_views_and_parameters_are_stored_whole(tmp_path):
    matrix = torch.arange(12.0).reshape(3, 4)
    tensors = {"t": matrix.T, "row": matrix[1], "p": torch.nn.Parameter(matrix)}
    write_checkpoint(tmp_path / "c", tensors, {}, {}, 10**6)
    checkpoint = Checkpoint.open(tmp_path / "c")
    assert torch.equal(checkpoint.stored("t"), matrix.T)
    assert torch.equal(checkpoint.stored("row"), matrix[1])
    assert torch.equal(checkpoint.stored("p"), matrix)


@pytest.mark.parametrize("moment", ["save_file", "_write_extra", "_put_in_place"])
def test_a_write_that_fails_leaves_the_old_checkpoint_and_nothing_else(tmp_path, monkeypatch, moment):
    write_checkpoint(tmp_path / "c", TENSORS, {"old": True}, {}, 30)
    before = contents(tmp_path / "c")

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(writer, moment, fail)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path / "c", TENSORS, {"old": False}, {"t.json": "{}"}, 30)
    assert contents(tmp_path / "c") == before
    assert os.listdir(tmp_path) == ["c"]


def test_a_second_write_leaves_no_shard_of_the_first(tmp_path):
    write_checkpoint(tmp_path / "c", TENSORS, {}, {}, 10)
    write_checkpoint(tmp_path / "c", TENSORS, {}, {}, 10**6)
    assert sorted(os.listdir(tmp_path / "c")) == ["config.json", SINGLE]
    assert os.listdir(tmp_path) == ["c"]


def test_what_a_killed_write_left_is_cleared_away(tmp_path):
    for name in (".c.part", ".c.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / SINGLE).write_bytes(b"half")
    write_checkpoint(tmp_path / "c", TENSORS, {}, {}, 10**6)
    assert os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("name", ["../x", "/x", "config.json", INDEX, "model-00009-of-00009.safetensors"])
def test_extra_files_may_not_leave_or_replace(tmp_path, name):
    with pytest.raises(CheckpointError, match="an extra file cannot be called"):
        write_checkpoint(tmp_path / "c", TENSORS, {}, {name: "x"}, 10**6)
    assert os.listdir(tmp_path) == []


def test_no_tensors(tmp_path):
    with pytest.raises(CheckpointError, match="at least one tensor"):
        write_checkpoint(tmp_path / "c", {}, {}, {}, 10**6)
