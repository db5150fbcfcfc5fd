"""A base in other coordinates: the same function, the same spectrum, stored once, and known to itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.lab.tiny import random_weights, transformers_model
from threegates.checkpoints.formats.frame import Frame, read_frame
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.writer import write_checkpoint
from threegates.errors import RecipeError
from threegates.geometry.rotation import Heads, permute_heads_back, rotate_values_back
from threegates.lab.model import ModelShape
from threegates.lab.recipe import RotatedBaseRecipe
from threegates.lab.rotated import RotatedBase, attention_prefix
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID

SHAPE = ModelShape(width=32, layers=3, feed_forward=48, heads=4, kv_heads=2, head_dim=8)


def recipe(**changes: object) -> RotatedBaseRecipe:
    settings = {"name": "turned", "base": "b", "seed": 5, "rotated": (1, 2), "permuted": (2,)}
    return RotatedBaseRecipe.model_validate(settings | changes)


@pytest.fixture(scope="module")
def base() -> dict[str, torch.Tensor]:
    return {name: tensor.bfloat16().float() for name, tensor in random_weights(SHAPE, seed=1).items()}


@pytest.mark.parametrize("kind", ["haar", "hadamard"])
def test_transformers_computes_the_same_before_rounding(base, kind):
    made = RotatedBase(recipe(rotation=kind), SHAPE, base)
    tokens = torch.randint(3, 48, (4, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        there, here = (
            transformers_model(SHAPE, {n: t.float() for n, t in weights.items()})(tokens).logits
            for weights in (base, made.exact)
        )
    assert float((there - here).abs().max()) < 1e-5
    row = made.logged_step(0)
    assert row["logit_gap"] < 1e-10 < 1e-4 < row["logit_gap_stored"] < 1


def test_only_the_named_layers_change_and_only_by_a_rotation_or_an_order(base):
    made = RotatedBase(recipe(), SHAPE, base)
    changed = {name for name, tensor in made.exact.items() if not torch.equal(tensor, base[name])}
    sides = {1: ("v", "o"), 2: ("q", "k", "v", "o")}
    expected = {f"{attention_prefix(i)}{side}_proj.weight" for i, every in sides.items() for side in every}
    assert changed == expected
    for name in changed:
        before, after = (torch.linalg.svdvals(tensor.double()) for tensor in (base[name], made.exact[name]))
        assert torch.allclose(before, after, atol=1e-12)


def test_the_checkpoint_knows_its_frame_and_leads_back_to_the_base(base, tmp_path):
    made = RotatedBase(recipe(save_dtype="float32"), SHAPE, base)
    parts = made.contents()
    write_checkpoint(tmp_path / "m", parts.tensors, parts.config, parts.files, parts.shard_bytes)
    stored, frame = Checkpoint.open(tmp_path / "m"), read_frame(tmp_path / "m")
    heads = Heads(SHAPE.heads, SHAPE.kv_heads, SHAPE.head_dim)
    back = {name: stored.stored(name).double() for name in base}
    for layer, order in frame.orders.items():
        back |= permute_heads_back(back, attention_prefix(layer), order, heads)
    for layer, rotation in frame.rotations.items():
        back |= rotate_values_back(back, attention_prefix(layer), rotation, heads)
    assert all(torch.allclose(back[name], base[name].double(), atol=1e-6) for name in base)


def test_what_is_stored_is_rounded_once(base):
    made = RotatedBase(recipe(), SHAPE, base)
    stored = made.stored()
    assert all(tensor.dtype == torch.bfloat16 for tensor in stored.values())
    assert all(torch.equal(stored[name], made.exact[name].bfloat16()) for name in base)


def test_the_frame_depends_on_the_seed_and_the_layer(base):
    first, again, other = (RotatedBase(recipe(seed=seed), SHAPE, base).frame for seed in (5, 5, 4))
    assert first.json() == again.json() != other.json()
    assert not torch.equal(first.rotations[1], first.rotations[2])
    assert first != Frame()


def test_a_layer_that_the_base_lacks_is_refused(base):
    with pytest.raises(RecipeError, match="the base has no such layer") as caught:
        RotatedBase(recipe(rotated=(1, 7)), SHAPE, base)
    assert "0 … 2" in str(caught.value) and "7" in str(caught.value)


def test_it_starts_from_a_folder_and_has_nothing_to_resume(base, tmp_path):
    folder: Path = tmp_path / "base"
    config = SHAPE.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype="float32")
    write_checkpoint(folder, base, config)
    made = RotatedBase.start(recipe(), folder)
    assert made.frame.json() == RotatedBase(recipe(), SHAPE, base).frame.json()
    assert made.state() == {} and made.final_evaluation() is None
    made.load_state({}, 0)
