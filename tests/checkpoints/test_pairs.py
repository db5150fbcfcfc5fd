"""Which tensors of two checkpoints are compared, which are only listed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from threegates.checkpoints.pairs import AlignedTensor, Status, align, load_pair
from threegates.checkpoints.rounding import round_to_bf16
from threegates.checkpoints.tensors import INDEX, SINGLE, Checkpoint
from threegates.errors import PairError

Q = "model.layers.0.self_attn.q_proj.weight"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def make(tmp_path):
    """A checkpoint of one Q matrix and an embedding, with changes; None removes a tensor."""

    def build(name: str, tie: bool = False, **changes: torch.Tensor | None) -> Checkpoint:
        tensors = {Q: torch.ones(4, 4), EMBEDDING: torch.ones(6, 4), HEAD: None if tie else torch.ones(6, 4)}
        tensors |= {key.replace("__", "."): value for key, value in changes.items()}
        folder = tmp_path / name
        folder.mkdir()
        save_file({key: value for key, value in tensors.items() if value is not None}, folder / SINGLE)
        (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": tie, "model_type": name}))
        return Checkpoint.open(folder)

    return build


def statuses(base: Checkpoint, tuned: Checkpoint) -> dict[str, str]:
    return {row.name: row.status.value for row in align(base, tuned)}


def refusal(base: Checkpoint, tuned: Checkpoint) -> str:
    with pytest.raises(PairError) as caught:
        align(base, tuned)
    assert str(base.folder) in str(caught.value)
    assert str(tuned.folder) in str(caught.value)
    return str(caught.value)


def rewrite(folder: Path, name: str, tensor: torch.Tensor) -> Path:
    """Put another tensor under that name into the shard that holds it; the shard."""
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    save_file(load_file(shard) | {name: tensor}, shard, metadata={"format": "pt"})
    return shard


# Alignment


def test_a_model_with_itself_is_all_compared_once(llama, qwen2):
    for folder, names in ((llama[0], set(llama[1])), (qwen2[0], set(qwen2[1]) - {HEAD})):
        checkpoint = Checkpoint.open(folder)
        rows = align(checkpoint, checkpoint)
        assert [row.name for row in rows] == sorted(names)
        assert {row.status for row in rows} == {Status.compared}


def test_rows_carry_shapes_and_stored_dtypes(make):
    base = make("base")
    tuned = make("tuned", **{Q.replace(".", "__"): torch.ones(4, 4, dtype=torch.float16)})
    assert align(base, tuned)[2] == AlignedTensor(Q, Status.compared, (4, 4), (4, 4), "F32", "F16")


@pytest.mark.parametrize(
    ("base_tied", "tuned_tied", "expected"),
    [
        (False, False, "compared"),
        (True, False, "only-in-tuned"),
        (False, True, "only-in-base"),
        (True, True, None),
    ],
)
def test_a_head_that_one_side_ties_is_listed_and_not_compared(make, base_tied, tuned_tied, expected):
    base, tuned = make("base", tie=base_tied), make("tuned", tie=tuned_tied)
    rows = {row.name: row for row in align(base, tuned)}
    assert rows[EMBEDDING].status == Status.compared
    assert (rows[HEAD].status.value if HEAD in rows else None) == expected
    if expected == "only-in-tuned":
        assert (rows[HEAD].shape_base, rows[HEAD].dtype_base) == (None, None)
        assert (rows[HEAD].shape_tuned, rows[HEAD].dtype_tuned) == ((6, 4), "F32")


def test_a_padded_vocabulary_is_resized(make):
    tuned = make("tuned", model__embed_tokens__weight=torch.ones(8, 4), lm_head__weight=torch.ones(8, 4))
    assert statuses(make("base"), tuned) == {EMBEDDING: "resized", HEAD: "resized", Q: "compared"}


def test_an_embedding_of_another_width_is_no_resize(make):
    message = refusal(make("base"), make("tuned", model__embed_tokens__weight=torch.ones(6, 5)))
    assert f"{EMBEDDING}: shape [6, 4] in base, [6, 5] in tuned" in message


def test_a_shape_that_differs(make):
    message = refusal(make("base"), make("tuned", **{Q.replace(".", "__"): torch.ones(4, 2)}))
    assert "1 tensor of the pair cannot be compared" in message
    assert f"{Q}: shape [4, 4] in base, [4, 2] in tuned" in message
    assert "expected: equal names and shapes" in message
    assert "what to do: " in message


def test_a_transposed_matrix_of_equal_size_is_refused(make):
    a = make("base", **{Q.replace(".", "__"): torch.ones(2, 8)})
    assert "shape [2, 8] in base, [8, 2] in tuned" in refusal(
        a, make("tuned", **{Q.replace(".", "__"): torch.ones(8, 2)})
    )


def test_missing_and_extra_tensors_are_all_named(make):
    base = make("base", model__norm__weight=torch.ones(4))
    tuned = make("tuned", model__extra__weight=torch.ones(4))
    message = refusal(base, tuned)
    assert "2 tensors of the pair cannot be compared" in message
    assert "model.norm.weight: missing in tuned" in message
    assert "model.extra.weight: missing in base" in message
    assert "two kinds (base and tuned)" in message


def test_a_long_list_ends_in_a_count(make):
    message = refusal(make("base", **{f"x{i:02d}": torch.ones(1) for i in range(14)}), make("tuned"))
    assert "x09: missing" in message
    assert "x10: missing" not in message
    assert "and 4 more" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.uint8])
def test_quantised_tensors_are_refused_by_name(make, dtype):
    tuned = make("tuned", **{Q.replace(".", "__"): torch.ones(4, 4).to(dtype)})
    base = make("base")
    message = refusal(base, tuned)
    assert f"{Q}: stored as F32 in base, {tuned.infos[Q].dtype} in tuned" in message
    assert "take the unquantised checkpoints" in message
    with pytest.raises(PairError, match="take the unquantised checkpoint"):
        load_pair(base, tuned, Q)


# Loading


def test_both_sides_are_rounded_and_kept_as_stored(make):
    value = torch.full((4, 4), 1 + 2.0**-8 + 2.0**-20)
    pair = load_pair(make("base"), make("tuned", **{Q.replace(".", "__"): value}), Q)
    assert pair.base.dtype == pair.tuned.dtype == torch.bfloat16
    assert torch.equal(pair.tuned_stored, value)
    assert torch.equal(pair.tuned, torch.full((4, 4), 1 + 2.0**-7, dtype=torch.bfloat16))
    assert torch.equal(pair.base_stored, torch.ones(4, 4))


def test_masks_of_two_foreign_folders_are_exact(qwen2, copy_of):
    folder, state = qwen2
    noise = torch.Generator().manual_seed(1)
    tuned = copy_of(folder)
    moved = {
        n: t + 1e-4 * torch.randn(t.shape, generator=noise) for n, t in load_file(folder / SINGLE).items()
    }
    save_file(moved, tuned / SINGLE, metadata={"format": "pt"})
    base_checkpoint, tuned_checkpoint = Checkpoint.open(folder), Checkpoint.open(tuned)
    changed = 0
    for row in align(base_checkpoint, tuned_checkpoint):
        pair = load_pair(base_checkpoint, tuned_checkpoint, row.name)
        expected = state[row.name].to(torch.bfloat16) != moved[row.name].to(torch.bfloat16)
        assert torch.equal(pair.base != pair.tuned, expected)
        changed += int(expected.sum())
    assert 0 < changed < sum(t.numel() for t in moved.values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_value_that_is_not_finite_is_named(llama, copy_of, side, value):
    folder, state = llama
    bad = state[Q].clone()
    bad[3, 5], bad[7, 0] = value, value
    broken = copy_of(folder)
    shard = rewrite(broken, Q, bad)
    whole, damaged = Checkpoint.open(folder), Checkpoint.open(broken)
    with pytest.raises(PairError) as caught:
        load_pair(*((damaged, whole) if side == "base" else (whole, damaged)), Q)
    message = str(caught.value)
    assert f"tensor '{Q}' of the {side} has values that are not finite" in message
    assert f"where: {shard}, tensor '{Q}'" in message
    assert "expected: 256 finite values" in message
    assert f"found: 2 of them not finite, the first {value} at index [3, 5]" in message
    assert "what to do: " in message


def test_a_finite_value_beyond_bf16_is_not_called_infinite(make):
    value = torch.ones(4, 4)
    value[0, 1] = torch.finfo(torch.float32).max
    assert round_to_bf16(value).isinf().any()
    with pytest.raises(PairError, match="values too large for bfloat16"):
        load_pair(make("base"), make("tuned", **{Q.replace(".", "__"): value}), Q)


def test_a_resized_tensor_is_not_loaded_as_a_pair(make):
    tuned = make("tuned", model__embed_tokens__weight=torch.ones(8, 4))
    with pytest.raises(PairError, match="has two shapes"):
        load_pair(make("base"), tuned, EMBEDDING)


def test_scalars_and_empty_tensors(make):
    names = {"a__scale": torch.tensor(2.0), "b__none": torch.zeros(0, 3)}
    base, tuned = make("base", **names), make("tuned", **names)
    assert statuses(base, tuned)["a.scale"] == "compared"
    assert load_pair(base, tuned, "a.scale").base.shape == ()
    assert load_pair(base, tuned, "b.none").base.shape == (0, 3)
    bad = make("bad", a__scale=torch.tensor(torch.nan), b__none=torch.zeros(0, 3))
    with pytest.raises(PairError, match=r"1 of them not finite, the first nan at index \[\]"):
        load_pair(base, bad, "a.scale")
