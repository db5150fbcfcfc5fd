"""What is known of a pair before a tensor is read, and what is refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.family_tables import family
from tests.checkpoints.made import written
from threegates.checkpoints.preflight import (
    Findings,
    by_role,
    file_bytes,
    look_at,
    side,
    stored_tensors,
)
from threegates.checkpoints.tensors import SINGLE, Checkpoint

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def tied(qwen2) -> Checkpoint:
    return Checkpoint.open(qwen2[0])


@pytest.fixture
def untied(llama) -> Checkpoint:
    return Checkpoint.open(llama[0])


def findings(base: Checkpoint, tuned: Checkpoint, here: tuple[bool, bool] = (True, True)) -> Findings:
    return look_at(base, tuned, here, (file_bytes(base), file_bytes(tuned)))


def rewritten(folder, config: dict | None = None, **tensors: torch.Tensor) -> Checkpoint:
    """A copy with other tensors, None for one that goes, and other entries of config.json."""
    held = load_file(folder / SINGLE) | {name.replace("__", "."): value for name, value in tensors.items()}
    save_file({name: value for name, value in held.items() if value is not None}, folder / SINGLE)
    told = json.loads((folder / "config.json").read_text()) | (config or {})
    (folder / "config.json").write_text(json.dumps(told))
    return Checkpoint.open(folder)


def test_a_side_is_counted_as_its_own_model_counts_itself(untied, tied, llama, qwen2):
    for checkpoint, weights in ((untied, llama[1]), (tied, {k: v for k, v in qwen2[1].items() if k != HEAD})):
        found = side(checkpoint, here=True)
        assert found.tensors == len(weights)
        assert found.parameters == sum(tensor.numel() for tensor in weights.values())
        assert found.size == sum(tensor.nbytes for tensor in weights.values())
    assert (side(untied, True).head, side(tied, True).head) == ("stored", "tied")
    assert (side(untied, True).blocks, side(tied, True).blocks) == (2, 1)
    assert side(untied, True).files == len(list(llama[0].glob("model-*.safetensors"))) > 1
    assert list(side(tied, True).dtypes) == ["F32"]


@pytest.mark.parametrize(
    ("name", "blocks", "others"),
    [("llama", 2, {}), ("t5", 4, {}), ("llava", 2, {"vision": 2}), ("qwen3_vl_moe", 2, {"vision": 2})],
)
def test_blocks_of_towers_are_counted_apart_from_the_text_model_s(tmp_path, name, blocks, others):
    one = family(name)
    found = side(written(tmp_path / "base", one.built("4.57.6", one.values()), **one.config), True)
    assert (found.blocks, found.others) == (blocks, others)


def test_the_bytes_of_the_files_are_those_on_disk(untied, tied, llama, qwen2):
    for checkpoint, folder in ((untied, llama[0]), (tied, qwen2[0])):
        assert file_bytes(checkpoint) == sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def test_only_what_is_elsewhere_has_to_be_fetched(untied):
    whole, chosen = file_bytes(untied), sum(info.stored_bytes for info in stored_tensors(untied))
    assert chosen < whole
    for here, sides in (((True, True), 0), ((True, False), 1), ((False, False), 2)):
        found = findings(untied, untied, here)
        assert (found.fetch_whole, found.fetch_ranges) == (sides * whole, sides * chosen)


def test_matrices_with_spectra_are_those_in_blocks(untied):
    found = findings(untied, untied)
    assert len(found.compared) == len(stored_tensors(untied))
    assert len(found.matrices) == 2 * 7
    assert {row.name for row in found.compared} - {row.name for row in found.matrices} >= {EMBEDDING, HEAD}
    assert by_role(found.matrices)["q"] == (2, 2 * 16 * 16)
    assert not found.problems
    assert not found.notes


def test_a_head_that_one_side_ties_and_a_resized_vocabulary_are_noted(qwen2, copy_of, tied):
    own = rewritten(copy_of(qwen2[0], "own"), lm_head__weight=torch.zeros(48, 16))
    notes = findings(tied, own).notes
    assert "the head is tied in the base and stored in the tuned checkpoint" in notes
    assert any(
        "ties the head to the embedding, and a head is stored, perhaps another" in one for one in notes
    )
    assert [row.status for row in findings(tied, own).aligned if row.name == HEAD] == ["compared"]
    grown = rewritten(copy_of(qwen2[0], "grown"), model__embed_tokens__weight=torch.zeros(64, 16))
    notes = findings(tied, grown).notes
    assert "the tuned's embedding has 64 rows, its config says 48" in notes
    assert f"1 resized, reported and not compared: {EMBEDDING}" in notes


def test_types_kinds_and_experts_that_differ_are_noted(qwen2, copy_of, tied):
    stored = {name: value.bfloat16() for name, value in load_file(qwen2[0] / SINGLE).items()}
    other = rewritten(
        copy_of(qwen2[0], "other"),
        {"model_type": "qwen3_moe", "num_experts": 8},
        **{name.replace(".", "__"): value for name, value in stored.items()},
    )
    notes = findings(tied, other).notes
    assert any(note.startswith("the base is stored in F32, the tuned one in BF16") for note in notes)
    assert "the configs name two kinds of model: qwen2 and qwen3_moe" in notes
    assert "the tuned is a mixture of 8 experts a block" in notes


def test_what_one_side_lacks_is_a_note_and_no_problem(qwen2, copy_of, tied):
    name = "model.layers.0.mlp.up_proj.weight"
    found = findings(tied, rewritten(copy_of(qwen2[0], "missing"), **{name.replace(".", "__"): None}))
    assert not found.problems
    assert f"1 only-in-base, reported and not compared: {name}" in found.notes


def test_a_pair_with_too_little_in_common_is_a_problem_with_a_remedy(qwen2, copy_of, tied):
    odd = {name.replace(".", "__"): torch.zeros(3, 5) for name in tied.infos if "_proj.weight" in name}
    (problem,) = findings(tied, rewritten(copy_of(qwen2[0], "odd"), **odd)).problems
    assert "of the smaller side's 8 matrices 1 can be compared" in problem.what
    assert "shape [24, 16] in base, [3, 5] in tuned" in problem.what
    assert "trained from this base" in problem.remedy


def test_a_quantised_side_is_a_problem_of_its_own(qwen2, copy_of, tied):
    eight = {
        name.replace(".", "__"): value.to(torch.float8_e4m3fn)
        for name, value in load_file(qwen2[0] / SINGLE).items()
        if "_proj.weight" in name
    }
    told = {"quantization_config": {"quant_method": "fp8"}}
    problems = findings(tied, rewritten(copy_of(qwen2[0], "coarse"), told, **eight)).problems
    assert any("stored as F32 in base, F8_E4M3 in tuned" in problem.what for problem in problems)
    assert any("coarse is quantised (quant_method fp8, " in problem.what for problem in problems)
    assert all("unquantised" in problem.remedy for problem in problems)


def test_one_tensor_of_codes_is_no_quantised_checkpoint(qwen2, copy_of, tied):
    name = "model.layers.0.mlp.up_proj.weight"
    eight = {name.replace(".", "__"): torch.zeros(24, 16, dtype=torch.float8_e4m3fn)}
    told = {"quantization_config": {"quant_method": "fp8"}}
    found = findings(tied, rewritten(copy_of(qwen2[0], "coarse"), told, **eight))
    assert not found.problems
    assert f"1 not-a-float, reported and not compared: {name}" in found.notes


@pytest.mark.parametrize("told", [{"quant_method": "bitsandbytes"}, {"bits": 4}, "awq"])
def test_a_quantization_config_that_was_left_over_is_a_note(qwen2, copy_of, tied, told):
    found = findings(tied, rewritten(copy_of(qwen2[0], "left"), {"quantization_config": told}))
    assert not found.problems
    assert [note for note in found.notes if "left over: no tensor is quantised" in note and "tuned" in note]


def test_more_than_two_dimensions_are_noted_by_name(qwen2, copy_of):
    conv = {"model__layers__0__conv__weight": torch.zeros(2, 3, 4)}
    deep = rewritten(copy_of(qwen2[0], "deep"), **conv)
    (note,) = [note for note in findings(deep, deep).notes if "dimensions" in note]
    assert "model.layers.0.conv.weight" in note
