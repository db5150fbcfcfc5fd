"""Which tensors of two checkpoints are compared, which are only listed, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from threegates.checkpoints import pairs
from threegates.checkpoints.pairs import (
    AlignedTensor,
    Status,
    TensorPair,
    align,
    check_finite,
    load_finite,
    load_pair,
    load_rows,
    row_ranges,
    rows_of_pair,
)
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
    ("base_tied", "tuned_tied"), [(False, False), (True, False), (False, True), (True, True)]
)
def test_a_tied_head_is_compared_with_the_head_that_the_other_side_stores(make, base_tied, tuned_tied):
    base, tuned = make("base", tie=base_tied), make("tuned", tie=tuned_tied)
    rows = {row.name: row for row in align(base, tuned)}
    assert rows[EMBEDDING].status == Status.compared
    assert (HEAD in rows) is not (base_tied and tuned_tied)
    if HEAD in rows:
        assert rows[HEAD] == AlignedTensor(HEAD, Status.compared, (6, 4), (6, 4), "F32", "F32")


def test_the_tied_side_s_head_is_its_embedding(make):
    tuned = make("tuned", lm_head__weight=torch.full((6, 4), 2.0))
    pair = load_pair(make("base", tie=True, model__embed_tokens__weight=torch.full((6, 4), 3.0)), tuned, HEAD)
    assert (pair.base.unique().tolist(), pair.tuned.unique().tolist()) == ([3.0], [2.0])


def test_a_padded_vocabulary_is_resized(make):
    tuned = make("tuned", model__embed_tokens__weight=torch.ones(8, 4), lm_head__weight=torch.ones(8, 4))
    assert statuses(make("base"), tuned) == {EMBEDDING: "resized", HEAD: "resized", Q: "compared"}


def many(name: str = "x", count: int = 4, shape: tuple[int, ...] = (2, 3)) -> dict[str, torch.Tensor]:
    """Matrices that both sides have, so that one that is odd is no reason to refuse the pair."""
    return {f"{name}{number:02d}": torch.ones(shape) for number in range(count)}


@pytest.mark.parametrize(
    ("base", "tuned", "expected"),
    [
        (torch.ones(6, 4), torch.ones(6, 5), "resized"),
        (torch.ones(2, 8), torch.ones(8, 2), "resized"),
        (torch.ones(4), torch.ones(4, 1), "resized"),
        (torch.ones(4, 4), torch.ones(0), "empty"),
        (torch.ones(0, 4), torch.ones(3, 4), "empty"),
        (torch.ones(0, 4), torch.ones(0, 4), "compared"),
        (torch.ones(4, 4), torch.ones(4, 4, dtype=torch.int8), "not-a-float"),
        (torch.arange(4), torch.arange(4), "not-a-float"),
        (torch.ones(1, 1, 4, 4, dtype=torch.bool), torch.ones(1, 1, 4, 4), "not-a-float"),
        (torch.ones(4, 4).to(torch.float8_e4m3fn), torch.ones(4, 4), "not-a-float"),
        (torch.ones(4, 4), None, "only-in-base"),
        (None, torch.ones(()), "only-in-tuned"),
        (torch.ones(2, 2, dtype=torch.float16), torch.ones(2, 2, dtype=torch.float64), "compared"),
    ],
)
def test_one_odd_tensor_has_its_status_and_costs_no_other_one(make, base, tuned, expected):
    found = statuses(make("base", odd=base, **many()), make("tuned", odd=tuned, **many()))
    assert found.pop("odd") == expected
    assert set(found.values()) == {"compared"} and len(found) == 7


def test_a_pair_is_refused_where_less_than_half_of_the_smaller_side_is_common(make):
    base, without = (
        make("base", **many("x", 12)),
        {"model__embed_tokens__weight": None, "lm_head__weight": None},
    )
    for common in (0, 3, 4, 9):
        # Ten matrices on the tuned side: Q and some of these are common.
        own = {**many("x", common), **many("z", 9 - common), **without}
        tuned = make(f"tuned{common}", **own)
        if common < 4:
            assert f"of the smaller side's 10 matrices {common + 1} can be compared" in refusal(base, tuned)
        else:
            assert list(statuses(base, tuned).values()).count("compared") == common + 1


def test_missing_extra_and_other_shapes_are_all_named_in_a_refusal(make):
    base = make("base", **many("a", 6), b=torch.ones(6, 4))
    tuned = make("tuned", **many("c", 6), b=torch.ones(6, 5))
    message = refusal(base, tuned)
    assert "of the smaller side's 10 matrices 3 can be compared" in message
    assert "a00: missing in tuned" in message
    assert "b: shape [6, 4] in base, [6, 5] in tuned" in message
    assert "c00: missing in base" in message
    assert "two kinds (base and tuned)" in message
    assert (
        "names were tried as stored, without wrappers' words, and with one prefix in another's place"
        in message
    )


def test_a_long_list_ends_in_a_count(make):
    message = refusal(make("base", **many("x", 14)), make("tuned", **many("y", 14)))
    assert "x09: missing" in message
    assert "x10: missing" not in message
    assert "and 18 more" in message


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.uint8])
def test_a_quantised_side_is_refused_with_the_remedy_for_it(make, dtype):
    codes = {name: value.to(dtype) for name, value in many("x", 8).items()}
    base, tuned = make("base", **many("x", 8)), make("tuned", **codes)
    message = refusal(base, tuned)
    assert "most matrices of the pair are codes of few bits" in message
    assert f"x00: stored as F32 in base, {tuned.infos['x00'].dtype} in tuned" in message
    assert "take the unquantised checkpoints" in message
    assert "trained from this base" not in message
    with pytest.raises(PairError, match="take the unquantised checkpoint"):
        load_pair(base, tuned, "x00")


@pytest.mark.parametrize("scales", ["weight_scale_inv", "weight_scale", "scales"])
def test_scales_of_a_quantised_pair_are_not_what_it_has_in_common(make, scales):
    """Both sides in FP8, each with a scale a matrix: the scales are floats of equal shape, and no weights."""
    both = {}
    for number in range(6):
        both[f"l{number}__weight"] = torch.ones(4, 4).to(torch.float8_e4m3fn)
        both[f"l{number}__{scales}"] = torch.ones(2, 2)
    assert "codes of few bits" in refusal(make("base", **both), make("tuned", **both))


@pytest.mark.parametrize("word", ["lora_A.default", "lora_B", "lora_magnitude_vector"])
def test_an_adapter_beside_its_base_weights_is_to_be_merged_first(make, word):
    tuned = make("tuned", **{f"x00.{word}.weight": torch.ones(2, 2)}, **many())
    message = refusal(make("base", **many()), tuned)
    assert "one side holds an adapter that is not merged" in message
    assert "merge it and save the model" in message


def test_the_adapters_that_both_sides_have_are_compared(make):
    both = {"x00.lora_A.weight": torch.ones(2, 2), **many()}
    assert set(statuses(make("base", **both), make("tuned", **both)).values()) == {"compared"}


def test_weights_that_were_not_gathered_are_told_as_such(make):
    empty = {name: torch.ones(0) for name in many("x", 8)}
    message = refusal(make("base", **many("x", 8)), make("tuned", **empty))
    assert "saved before they were gathered (ZeRO-3, FSDP)" in message
    assert "trained from this base" not in message


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


SHAPES = st.lists(st.integers(0, 12), max_size=3).map(tuple)


@given(SHAPES, st.integers(1, 200))
def test_ranges_of_rows_cover_a_tensor_once_in_blocks_that_keep_to_their_size(shape, entries):
    ranges = row_ranges(shape, entries)
    x = torch.arange(int(np.prod(shape))).reshape(shape)
    blocks = [x[start:stop] if shape else x for start, stop in ranges]
    assert torch.equal(torch.cat([block.reshape(-1) for block in blocks]), x.reshape(-1))
    width = int(np.prod(shape[1:]))
    assert all(block.numel() <= max(entries, width) for block in blocks)
    assert len(ranges) == 1 if x.numel() <= entries else len(ranges) > 1 or width * shape[0] == width


SIDES = ("base", "tuned", "base_stored", "tuned_stored")


def put_together(rows):
    """The whole pair from its blocks."""
    blocks = list(rows)
    parts = [[getattr(block, side) for block in blocks] for side in SIDES]
    return [side[0] if not side[0].dim() else torch.cat(side) for side in parts]


@pytest.mark.parametrize("entries", [1, 5, 16, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rows_read_block_by_block_are_those_of_the_whole_pair(make, entries, dtype):
    tensors = {
        "a": torch.randn(7, 3),
        "b": torch.randn(2, 3, 4),
        "c": torch.tensor(2.5),
        "d": torch.zeros(0, 3),
    }
    base = make("base", **tensors)
    tuned = make("tuned", **{name: (tensor * 1.01).to(dtype) for name, tensor in tensors.items()})
    for name, tensor in tensors.items():
        pair = load_pair(base, tuned, name)
        for rows in (load_rows(base, tuned, name, entries), rows_of_pair(pair, entries)):
            assert (rows.name, rows.shape, rows.size) == (name, tuple(tensor.shape), tensor.numel())
            for side, found in zip(SIDES, put_together(rows), strict=True):
                whole = getattr(pair, side)
                assert found.dtype == whole.dtype and torch.equal(found, whole)


def test_a_held_pair_is_cut_without_copies_and_a_file_is_read_as_one_goes_along(make, monkeypatch):
    base, tuned = make("base"), make("tuned")
    pair = load_pair(base, tuned, Q)
    first = next(iter(rows_of_pair(pair, 4)))
    assert isinstance(first, TensorPair) and first.base.data_ptr() == pair.base.data_ptr()
    read: list[tuple[int, int]] = []
    whole = pairs._rows_of
    monkeypatch.setattr(pairs, "_rows_of", lambda c, n, *part: read.append(part) or whole(c, n, *part))
    rows = iter(load_rows(base, tuned, Q, 4))
    assert read == []
    next(rows)
    assert read == [(0, 1)] * 2


@pytest.fixture
def small_blocks(monkeypatch):
    original = row_ranges
    monkeypatch.setattr(pairs, "row_ranges", lambda shape, entries=6: original(shape, min(entries, 6)))


def test_a_damaged_tensor_is_described_alike_whole_and_by_blocks(make, small_blocks):
    value = torch.ones(6, 4)
    value[3, 2], value[5, 0] = torch.inf, torch.nan
    base, tuned = make("base"), make("tuned", **{EMBEDDING.replace(".", "__"): value})
    for look in (
        lambda: load_finite(tuned, EMBEDDING, "tuned"),
        lambda: check_finite(tuned, EMBEDDING, "tuned"),
        lambda: list(load_rows(base, tuned, EMBEDDING)),
    ):
        with pytest.raises(PairError) as caught:
            look()
        said = str(caught.value)
        assert f"tensor '{EMBEDDING}' of the tuned has values that are not finite" in said
        assert "expected: 24 finite values" in said
        assert "found: 2 of them not finite, the first inf at index [3, 2]" in said
    check_finite(base, EMBEDDING, "base")


def test_float64_is_rounded_once_by_blocks_too(make, small_blocks):
    halfway = 1 + 2.0**-8 + 2.0**-40  # rounding to float32 first would make a tie of it
    value = torch.full((6, 4), halfway, dtype=torch.float64)
    base, tuned = make("base"), make("tuned", **{EMBEDDING.replace(".", "__"): value})
    assert (load_pair(base, tuned, EMBEDDING).tuned == 1 + 2.0**-7).all()


def test_rows_of_two_shapes_or_of_whole_numbers_are_refused_before_they_are_read(make):
    tuned = make("tuned", model__embed_tokens__weight=torch.ones(8, 4))
    with pytest.raises(PairError, match="has two shapes") as caught:
        load_rows(make("base"), tuned, EMBEDDING)
    assert "expected: shape [6, 4], as in base" in str(caught.value)
    whole = make("codes", **{Q.replace(".", "__"): torch.ones(4, 4, dtype=torch.int8)})
    with pytest.raises(PairError, match="of the base is stored as I8"):
        load_rows(whole, tuned, Q)
    # Among whole numbers there is nothing that could be infinite.
    check_finite(whole, Q, "base")
