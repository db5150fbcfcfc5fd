"""What lies in a folder beside the weights that are read, and what is found where none can be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints.made import HIDDEN, decoder, written
from tests.hub.loopback import LoopbackHub
from threegates.checkpoints.beside import whole_shards
from threegates.checkpoints.hub.ranged import open_ranged
from threegates.checkpoints.notes import folder_notes, pair_notes
from threegates.checkpoints.tensors import INDEX, SINGLE, Checkpoint
from threegates.checkpoints.views import canonical, chosen
from threegates.errors import CheckpointError


@pytest.fixture
def folder(tmp_path) -> Path:
    return written(tmp_path / "model", decoder()).folder


def put(folder: Path, name: str, later: int = 0) -> None:
    """A file that is not read, so many seconds younger than the weights."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("nothing that is read")
    time = max(file.stat().st_mtime for file in folder.glob("*.safetensors")) if later else 0
    os.utime(path, (time + later, time + later))


def test_a_folder_of_one_model_has_nothing_to_tell(folder):
    for name in ("tokenizer.json", "README.md", "training_args.bin", "optimizer.pt"):
        put(folder, name)
    (folder / "logs").mkdir()
    assert Checkpoint.open(folder).notes == ()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("adapter_config.json", "adapter_config.json beside the weights: transformers loads that adapter"),
        ("adapter_model.safetensors", "adapter_model.safetensors beside the weights"),
        ("adapter_model.bin", "adapter_model.bin beside the weights"),
        ("model.fp16.safetensors", "not read: model.fp16.safetensors"),
        ("model.bf16-00001-of-00002.safetensors", "not read: model.bf16-00001-of-00002.safetensors"),
        ("consolidated.safetensors", "not read: consolidated.safetensors"),
        ("value_head.safetensors", "not read: value_head.safetensors"),
        ("checkpoint-500/model.safetensors", "not read: weights in checkpoint-500/"),
        ("original/consolidated.safetensors", "not read: weights in original/"),
        ("epoch_1/pytorch_model.bin", "not read: weights in epoch_1/"),
    ],
)
def test_weights_that_are_not_read_are_named(folder, name, told):
    put(folder, name)
    (note,) = Checkpoint.open(folder).notes
    assert note.startswith(told)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "pytorch_model.fp16.bin"]
)
def test_a_pickle_is_named_where_it_is_younger(folder, name):
    put(folder, name, later=-60)
    assert Checkpoint.open(folder).notes == ()
    put(folder, name, later=60)
    (note,) = Checkpoint.open(folder).notes
    assert note == f"{name} changed later than the safetensors files that are read in its place"


def test_many_files_end_in_a_count_and_views_tell_of_them_too(folder):
    for number in range(8):
        put(folder, f"step-{number}/model.safetensors")
    (note,) = folder_notes(chosen(canonical(Checkpoint.open(folder)), [0]))
    assert note == "not read: weights in step-0/, step-1/, step-2/, step-3/, step-4/ and 3 more"


def test_a_repository_that_is_read_by_ranges_tells_the_same(folder, tmp_path):
    for name in ("adapter_config.json", "model.fp16.safetensors", "checkpoint-500/model.safetensors"):
        put(folder, name)
    with LoopbackHub({"org/model": folder}) as hub:
        ranged = open_ranged("org/model", endpoint=hub.url, cache=tmp_path / "ranges")
        assert ranged.notes == Checkpoint.open(folder).notes and len(ranged.notes) == 3
        assert not hub.served["model.fp16.safetensors"]


# Indexes and shards


def sharded(folder: Path, count: int, index: bool) -> None:
    """The folder's one file as some shards."""
    tensors, map_ = decoder(), {}
    (folder / SINGLE).unlink()
    for number in range(count):
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
        part = {name: x.contiguous() for name, x in list(tensors.items())[number::count]}
        save_file(part, folder / file)
        map_ |= dict.fromkeys(part, file)
    if index:
        (folder / INDEX).write_text(json.dumps({"weight_map": map_}))


def whole(checkpoint: Checkpoint) -> bool:
    tensors = decoder()
    return checkpoint.infos.keys() == tensors.keys() and all(
        torch.equal(checkpoint.stored(name), value) for name, value in tensors.items()
    )


@pytest.mark.parametrize("count", [1, 2, 5])
def test_all_shards_of_a_model_are_read_without_an_index(folder, tmp_path, count):
    sharded(folder, count, index=False)
    assert whole(Checkpoint.open(folder))
    with LoopbackHub({"org/model": folder}) as hub:
        assert whole(open_ranged("org/model", endpoint=hub.url, cache=tmp_path / "ranges"))


def test_shards_are_whole_where_each_number_is_there_once():
    name = "model-{:05d}-of-{:05d}.safetensors".format
    assert whole_shards([name(2, 2), "config.json", name(1, 2)]) == [name(1, 2), name(2, 2)]
    assert whole_shards([name(1, 2)]) == whole_shards([name(1, 1), name(1, 2), name(2, 2)]) == []
    assert whole_shards(["model.safetensors", "consolidated-00001-of-00001.safetensors"]) == []


def test_a_tensor_in_two_shards_without_an_index_is_refused(folder):
    sharded(folder, 2, index=False)
    first = folder / "model-00001-of-00002.safetensors"
    (folder / "model-00002-of-00002.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="two shards hold tensor"):
        Checkpoint.open(folder)


def test_an_index_whose_shards_are_all_gone_is_left_over(folder, tmp_path):
    content = (folder / SINGLE).read_bytes()
    sharded(folder, 3, index=True)
    for path in folder.glob("model-*"):
        path.unlink()
    (folder / SINGLE).write_bytes(content)
    told = f"{INDEX} is left over: none of its shards is there, and {SINGLE} is read"
    assert Checkpoint.open(folder).notes == (told,) and whole(Checkpoint.open(folder))
    with LoopbackHub({"org/model": folder}) as hub:
        ranged = open_ranged("org/model", endpoint=hub.url, cache=tmp_path / "ranges")
        assert whole(ranged) and ranged.notes == (told,)


def test_an_index_of_which_one_shard_is_left_is_not(folder):
    content = (folder / SINGLE).read_bytes()
    sharded(folder, 3, index=True)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match="1 of 3 shards are missing"):
        Checkpoint.open(folder)
    (folder / SINGLE).write_bytes(content)
    with pytest.raises(CheckpointError, match="1 of 3 shards are missing"):
        Checkpoint.open(folder)


# Where nothing can be read


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.fp16.safetensors", "model.fp16.safetensors is a variant: copy it as model.safetensors"),
        ("consolidated.safetensors", "in the layout of Mistral's or Meta's own code"),
        ("model-00002-of-00003.safetensors", "one of several shards: copy the others"),
        ("weights.safetensors", "if weights.safetensors is the model, rename it"),
        ("checkpoint-500/model.safetensors", "weights lie below: give model/checkpoint-500"),
        ("snapshots/0123/model.safetensors", "weights lie below: give model/snapshots/0123"),
        ("adapter_model.safetensors", "give it as the tuned side"),
        ("model.gguf", "a quantised GGUF file"),
    ],
)
def test_what_is_there_is_named_with_what_to_do(tmp_path, name, remedy):
    folder = tmp_path / "model"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("")
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="has no safetensors weights") as caught:
        Checkpoint.open(folder)
    assert name.removesuffix("/model.safetensors") in str(caught.value.found)
    assert remedy in str(caught.value.remedy)


def test_an_empty_folder_holds_neither(tmp_path):
    with pytest.raises(CheckpointError, match="has no safetensors weights") as caught:
        Checkpoint.open(tmp_path)
    assert caught.value.found == "neither"
    assert "save_pretrained" in str(caught.value.remedy)


# Config and files that disagree


@pytest.mark.parametrize(
    ("ties", "head", "read", "told"),
    [
        (True, "another", True, "another head is stored"),
        (True, "another", False, "a head is stored, perhaps another one"),
        (True, "equal", True, None),
        (True, "equal", False, "a head is stored, perhaps another one"),
        (True, "shorter", True, "another head is stored"),
        (True, None, True, None),
        (False, "another", True, None),
    ],
)
def test_a_config_that_ties_a_head_that_is_stored(tmp_path, ties, head, read, told):
    tensors = decoder(head=False)
    embedding = tensors["model.embed_tokens.weight"]
    heads = {"another": embedding + 1, "equal": embedding.clone(), "shorter": torch.ones(3, HIDDEN)}
    tensors |= {"lm_head.weight": heads[head]} if head else {}
    one = written(tmp_path / "a", tensors, tie_word_embeddings=ties)
    notes = pair_notes(one, written(tmp_path / "b", decoder()), read)
    assert notes == ([] if told is None else notes) and len(notes) == (told is not None)
    if told:
        assert notes[0].startswith(f"the base's config.json ties the head to the embedding, and {told}:")
