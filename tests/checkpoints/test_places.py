"""Places: a checkpoint as text, opened anew elsewhere with the same tensors, digest and names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.hub.loopback import LoopbackHub
from threegates.checkpoints.hub.ranged import RangedCheckpoint, open_ranged
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import canonical, chosen
from threegates.errors import CheckpointError

REPO = "org/llama"
COMMIT = "0123456789" * 4
Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def hub(llama, tmp_path, monkeypatch):
    """The Hub that HF_ENDPOINT would name."""
    monkeypatch.setenv("THREEGATES_RANGES", str(tmp_path / "ranges"))
    with LoopbackHub({REPO: llama[0]}) as hub:
        hub.stand_in(monkeypatch)
        yield hub


@pytest.fixture
def fused(tmp_path) -> Path:
    """A Phi-3 of one layer, whose projections are stored as one."""
    torch.manual_seed(3)
    block = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (12, 8),
        "lm_head.weight": (12, 8),
        "model.norm.weight": (8,),
        block + "self_attn.qkv_proj.weight": (16, 8),
        block + "self_attn.o_proj.weight": (8, 8),
        block + "mlp.gate_up_proj.weight": (20, 8),
        block + "mlp.down_proj.weight": (8, 10),
        block + "input_layernorm.weight": (8,),
        block + "post_attention_layernorm.weight": (8,),
    }
    config = {
        "model_type": "phi3",
        "hidden_size": 8,
        "intermediate_size": 10,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
        "vocab_size": 12,
        "tie_word_embeddings": False,
    }
    folder = tmp_path / "fused"
    folder.mkdir()
    save_file({name: torch.randn(shape) for name, shape in shapes.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (
        one.digest() == other.digest()
        and list(one.infos) == list(other.infos)
        and all(torch.equal(one.stored(name), other.stored(name)) for name in one.infos)
    )


PLACES = [
    Place(folder="/a/b c/ü"),
    Place(folder="/a", layers=(0, 13), matrices=("q", "down"), device="cuda:1"),
    Place(repo="org/model", revision=COMMIT),
    Place(repo="org/model", revision=COMMIT, layers=(), matrices=("embedding",)),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_text_gives_the_place_back_and_is_one_line(place):
    assert Place.parse(place.text()) == place
    assert "\n" not in place.text()
    assert json.loads(place.text()).keys() <= set(Place.__dataclass_fields__)


def test_the_text_is_canonical_and_leaves_defaults_out():
    assert Place(folder="/a").text() == '{"folder":"/a"}'
    assert (
        Place(repo="o/m", revision=COMMIT, layers=(1, 2)).text()
        == f'{{"layers":[1,2],"repo":"o/m","revision":"{COMMIT}"}}'
    )


def test_a_plain_path_is_a_folder(llama):
    assert Place.parse(str(llama[0])) == Place(folder=str(llama[0]))
    assert same(Place.parse(str(llama[0])).open(), Checkpoint.open(llama[0]))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"folder":"/a","colour":"red"}',
        '{"folder":3}',
        '{"folder":"/a","layers":["0"]}',
        '{"folder":"/a","layers":3}',
        '{"folder":"/a","matrices":[1]}',
        '{"folder":"/a","layers":[true]}',
    ],
)
def test_a_text_that_is_no_place(text):
    with pytest.raises(CheckpointError, match="a place cannot be read") as caught:
        Place.parse(text)
    assert caught.value.remedy


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"folder": "/a", "repo": "o/m", "revision": COMMIT},
        {"repo": "o/m"},
        {"repo": "o/m", "revision": "main"},
    ],
)
def test_a_place_is_one_of_two(settings):
    with pytest.raises(CheckpointError, match="a place is a folder, or a repository at a commit"):
        Place(**settings)


def test_a_folder_s_place_is_absolute(llama, monkeypatch):
    monkeypatch.chdir(llama[0].parent)
    place = place_of(Checkpoint.open(llama[0].name))
    assert place == Place(folder=str(llama[0]))
    assert same(place.open(), Checkpoint.open(llama[0]))


def test_a_repository_s_place_holds_no_address(hub, llama):
    place = place_of(open_ranged(REPO))
    assert place == Place(repo=REPO, revision=hub.commit(REPO))
    assert "127.0.0.1" not in place.text()
    opened = place.open()
    assert isinstance(opened, RangedCheckpoint)
    assert same(opened, Checkpoint.open(llama[0]))


SELECTIONS = [
    ((0,), None),
    (None, ("q", "embedding")),
    ((1,), ("q", "norm")),
    (None, ("embedding",)),
    ((0, 1), None),
    ((0, 1), ("down", "head")),
]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize("ranged", [False, True], ids=["folder", "ranged"])
def test_a_selection_comes_back(hub, llama, selection, ranged):
    whole = open_ranged(REPO) if ranged else Checkpoint.open(llama[0])
    part = chosen(canonical(whole), *selection)
    assert set(part.infos) < set(whole.infos)
    assert same(Place.parse(place_of(part).text()).open(), part)


def test_of_a_fused_tensor_only_the_part_comes_over_the_network(hub, fused, tmp_path):
    hub.repos = {REPO: fused}
    local = canonical(Checkpoint.open(fused))
    place = place_of(chosen(canonical(open_ranged(REPO)), None, ("k",)))
    hub.served.clear()
    (name,) = (opened := place.open()).infos
    assert torch.equal(opened.stored(name), local.stored(name))
    assert dict(hub.served) == {"model.safetensors": local.stored(name).nbytes}
    assert same(place_of(local).open(), local)
    assert opened.digest() == local.digest()


def test_another_process_opens_the_text(hub, llama, tmp_path):
    text = place_of(chosen(open_ranged(REPO), (1,), ("q",))).text()
    script = (
        "import sys; from threegates.checkpoints.places import Place\n"
        f"print(Place.parse(sys.argv[1]).open().stored({Q!r}).float().sum().item())"
    )
    settings = {"HF_ENDPOINT": hub.url, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script, text],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(done.stdout) == llama[1][Q].float().sum().item()


def test_tensors_that_were_picked_by_hand_have_no_place(llama):
    whole = Checkpoint.open(llama[0])
    part = chosen(whole, (0, 1), ("q",))
    part.infos.pop(Q)
    part.infos.update(
        {name: info for name, info in whole.infos.items() if name.endswith("1.mlp.up_proj.weight")}
    )
    with pytest.raises(CheckpointError, match="cannot be named by layers and roles"):
        place_of(part)
