"""FP8 read as floats: against the formula on whole tensors, by rows, through views; and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config

from tests.checkpoints.coded import BLOCK, BLOCKS, ROWS, block_fp8, in_blocks, row_fp8
from tests.checkpoints.made import decoder, values, written
from threegates.checkpoints.coded import ERRORS, GAPS, reading, rounded_kinds
from threegates.checkpoints.dequantised import Dequantised, dequantised, expanded, tables
from threegates.checkpoints.formats.headers import read_header
from threegates.checkpoints.matching import brought_together
from threegates.checkpoints.pairs import Status, align
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.preflight import file_bytes, side
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import as_stored, canonical
from threegates.errors import CheckpointError

Q = "model.layers.1.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"


def by_hand(codes: Tensor, scales: Tensor, block: tuple[int, int]) -> Tensor:
    """Every scale repeated over its block, the last ones cut off."""
    wide = scales.float().repeat_interleave(block[0], -2).repeat_interleave(block[1], -1)
    return codes.float() * wide[..., : codes.shape[-2], : codes.shape[-1]]


def fp8(tmp_path, scaled=block_fp8, config=BLOCKS, name: str = "fp8") -> Checkpoint:
    return written(tmp_path / name, scaled(decoder()), **config)


# Values


def test_a_block_of_codes_is_multiplied_with_its_scale(tmp_path):
    found = dequantised(fp8(tmp_path))
    for name, weight in decoder().items():
        if "_proj." in name:
            codes, scales = in_blocks(weight)
            assert torch.equal(found.stored(name), by_hand(codes, scales, (BLOCK, BLOCK)))
        else:
            assert torch.equal(found.stored(name), weight)
    assert found.infos.keys() == decoder().keys()


def test_a_row_of_codes_is_multiplied_with_its_scale_in_any_type(tmp_path):
    stored = row_fp8(decoder())
    found = dequantised(fp8(tmp_path, row_fp8, ROWS))
    assert torch.equal(found.stored(Q), stored[Q].float() * stored[f"{Q}_scale"].float())
    assert found.infos.keys() == decoder().keys()


def test_scales_may_be_powers_of_two_of_eight_bits(tmp_path):
    tensors = block_fp8(decoder())
    for name in [name for name in tensors if name.endswith("_scale_inv")]:
        tensors[name] = tensors[name].log2().round().exp2().to(torch.float8_e8m0fnu)
    found = dequantised(written(tmp_path / "powers", tensors, **BLOCKS))
    assert torch.equal(
        found.stored(Q), by_hand(tensors[Q], tensors[f"{Q}_scale_inv"].float(), (BLOCK, BLOCK))
    )


def test_transformers_dequantises_the_same_where_all_blocks_are_full(tmp_path):
    """Where they are not it takes other blocks than the config's: findings/transformers_fp8_last_block.sh."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=24,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    tensors = block_fp8({name: values(name, one.shape) for name, one in shapes.items()})
    told = config.to_dict() | BLOCKS | {"architectures": ["LlamaForCausalLM"]}
    found = dequantised(written(tmp_path / "llama", tensors, **told))
    asked = FineGrainedFP8Config(dequantize=True, weight_block_size=(BLOCK, BLOCK))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "llama", dtype=torch.float32, quantization_config=asked
    ).state_dict()
    assert found.infos.keys() == theirs.keys()
    for name, weight in theirs.items():
        assert torch.equal(found.stored(name), weight.float()), name


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("codes", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_one_scale_may_be_a_whole_matrix_s(tmp_path, shape, codes):
    weight, scale = values("w", (5, 7)).to(codes), torch.full(shape, 0.25)
    tensors = {Q: weight, f"{Q}_scale": scale, Q.replace("weight", "input_scale"): torch.ones(())}
    found = dequantised(written(tmp_path / "one", tensors, quantization_config={"quant_method": "fp8"}))
    assert list(found.infos) == [Q]
    assert torch.equal(found.stored(Q), weight.float() / 4)


def test_a_stack_of_experts_has_the_scales_of_each(tmp_path):
    stack = [values(f"expert {number}", (11, 18)) for number in range(3)]
    codes, scales = (torch.stack(one) for one in zip(*map(in_blocks, stack), strict=True))
    name = "model.layers.0.mlp.experts.down_proj"
    found = dequantised(written(tmp_path / "s", {name: codes, f"{name}_scale_inv": scales}, **BLOCKS))
    whole = by_hand(codes, scales, (BLOCK, BLOCK))
    assert torch.equal(found.stored(name), whole)
    assert torch.equal(rows_of(found, name, 1, 3), whole[1:3])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(1, 12), st.data())
def test_rows_have_the_scales_of_their_place(out, width, down, across, data):
    scales = torch.rand(-(-out // down), -(-width // across))
    start = data.draw(st.integers(0, out))
    stop = data.draw(st.integers(start, out))
    found = expanded(scales, (out, width), (down, across), (start, stop)).expand(-1, width)
    assert torch.equal(found, by_hand(torch.ones(out, width), scales, (down, across))[start:stop])


def test_rows_are_those_of_the_whole(tmp_path):
    found = dequantised(fp8(tmp_path))
    assert torch.equal(rows_of(found, DOWN, 2, 5), found.stored(DOWN)[2:5])


# Gaps and errors


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_gaps_and_errors_are_those_of_sorted_values(dtype):
    """Errors: of what is rounded to a code, all of it equally likely, by sums over each cell."""
    kind = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}[dtype]
    known = torch.arange(128, dtype=torch.uint8).view(kind).double()
    known = known[known.isfinite()]
    gaps, errors = (tables(dtype)[what].double() for what in (GAPS, ERRORS))
    assert torch.equal(gaps[: len(known) - 1], known.diff())
    assert torch.equal(gaps[:128], gaps[128:]) and torch.equal(errors[:128], errors[128:])
    borders = (known[1:] + known[:-1]) / 2
    for code in range(len(known) - 1):
        low = -borders[0] if code == 0 else borders[code - 1]
        cell = torch.linspace(float(low), float(borders[code]), 4001, dtype=torch.float64)
        rms = (cell - known[code]).square().mean().sqrt()
        assert float(errors[code]) == pytest.approx(float(rms), rel=1e-3)


def test_gaps_are_scaled_as_their_values_are_and_zero_for_floats(tmp_path):
    found = dequantised(fp8(tmp_path))
    codes, scales = in_blocks(decoder()[Q])
    units = tables("F8_E4M3")[GAPS][codes.view(torch.uint8).long()]
    assert torch.equal(reading(found, GAPS).stored(Q), by_hand(units, scales, (BLOCK, BLOCK)))
    assert not reading(found, ERRORS).stored("model.norm.weight").any()
    away = (decoder()[Q] - found.stored(Q)).abs()
    assert (away <= reading(found, GAPS).stored(Q) / 2 * (1 + 1e-6)).all()


# As a checkpoint


def test_nothing_is_done_to_what_has_no_codes(tmp_path):
    plain = written(tmp_path / "plain", decoder())
    assert dequantised(plain) is plain
    whole = written(tmp_path / "i8", {Q: torch.zeros(4, 4, dtype=torch.int8), f"{Q}_scale": torch.ones(1)})
    assert dequantised(whole) is whole


def test_it_is_the_stored_checkpoint_in_digest_files_and_notes_but_not_quantised(tmp_path):
    stored = fp8(tmp_path)
    found = dequantised(stored)
    assert (found.digest(), found.files(), found.notes) == (stored.digest(), stored.files(), stored.notes)
    assert "quantization_config" in stored.config and "quantization_config" not in found.config
    assert {row.status for row in align(found, written(tmp_path / "plain", decoder()))} == {Status.compared}
    assert rounded_kinds(found) == {"F8_E4M3": 10}


def test_headers_tell_the_bytes_that_lie_there(tmp_path):
    found = dequantised(fp8(tmp_path))
    held = read_header(tmp_path / "fp8" / "model.safetensors").values()
    told = side(found, here=True)
    of_codes = sum(info.size for info in held if info.dtype == "F8_E4M3")
    of_scales = sum(4 * info.size for info in held if info.name.endswith("_scale_inv"))
    # A tensor's bytes are whole numbers, its share of scales need not be.
    assert told.dtypes["F8_E4M3"] == pytest.approx(of_codes + of_scales, abs=10)
    assert file_bytes(canonical(found)) == file_bytes(found.source)
    assert told.parameters == sum(weight.numel() for weight in decoder().values())


def test_a_tied_embedding_of_codes_is_its_head_too(tmp_path):
    name = "model.embed_tokens.weight"
    weight = values("embedding", (9, 16))
    codes, scales = in_blocks(weight)
    config = BLOCKS | {"tie_word_embeddings": True}
    found = dequantised(written(tmp_path / "t", {name: codes, f"{name}_scale_inv": scales}, **config))
    assert found.info("lm_head.weight").alias_of == name
    assert torch.equal(found.stored("lm_head.weight"), found.stored(name))


def test_a_place_opens_it_anew_in_whichever_process(tmp_path):
    found = canonical(dequantised(fp8(tmp_path)))
    place = place_of(found)
    assert place.dequantised and Place.parse(place.text()) == place
    assert torch.equal(place.open().stored(Q), found.stored(Q))
    assert place.open().digest() == found.digest()
    assert "dequantised" not in place_of(written(tmp_path / "plain", decoder())).text()
    with pytest.raises(CheckpointError, match="place cannot be read"):
        Place.parse('{"folder": "/a", "dequantised": 1}')


# Through views


def phi3(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "model.layers.0.self_attn.qkv_proj.weight": torch.cat([tensors[kind] for kind in "qkv"]),
        "model.layers.0.mlp.gate_up_proj.weight": torch.cat([tensors["gate"], tensors["up"]]),
    }


def test_fused_codes_are_cut_with_their_scales_and_gaps(tmp_path):
    """Blocks of 8 rows do not end where q, k and v do."""
    sizes = {"q": 12, "k": 6, "v": 6, "gate": 10, "up": 10}
    fused = phi3({kind: values(kind, (rows, 12)) for kind, rows in sizes.items()})
    config = {
        "model_type": "phi3",
        "hidden_size": 12,
        "intermediate_size": 10,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    found = canonical(dequantised(written(tmp_path / "phi3", block_fp8(fused), **config, **BLOCKS)))
    for what in (lambda one: one, lambda one: reading(one, GAPS)):
        seen, whole = what(found), what(as_stored(found))
        both = whole.stored("model.layers.0.self_attn.qkv_proj.weight")
        for kind, rows in (("q", (0, 12)), ("k", (12, 18)), ("v", (18, 24))):
            name = f"model.layers.0.self_attn.{kind}_proj.weight"
            assert torch.equal(seen.stored(name), both[slice(*rows)])
            assert torch.equal(rows_of(seen, name, 1, 5), both[slice(*rows)][1:5])
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(found.stored(name), as_stored(found).stored(name.replace("up", "gate_up"))[10:])


def test_stacked_codes_are_cut_into_the_other_side_s_experts(tmp_path):
    experts = [values(f"expert {number}", (11, 18)) for number in range(3)]
    codes, scales = (torch.stack(one) for one in zip(*map(in_blocks, experts), strict=True))
    front = "model.layers.0.mlp.experts"
    stacked = {f"{front}.down_proj": codes, f"{front}.down_proj_scale_inv": scales}
    single = {f"{front}.{number}.down_proj.weight": one for number, one in enumerate(experts)}
    base = dequantised(written(tmp_path / "stacked", stacked, **BLOCKS))
    seen, other = brought_together(canonical(base), written(tmp_path / "single", single))
    assert {row.status for row in align(seen, other)} == {Status.compared}
    whole = by_hand(codes, scales, (BLOCK, BLOCK))
    for number in range(3):
        assert torch.equal(seen.stored(f"{front}.{number}.down_proj.weight"), whole[number])
    gaps = reading(seen, GAPS).stored(f"{front}.2.down_proj.weight")
    assert torch.equal(gaps, reading(base, GAPS).stored(f"{front}.down_proj")[2])


# Refused


def test_scales_that_fit_no_way_to_share_them_are_refused_by_name(tmp_path):
    tensors = {Q: values("w", (20, 20)).to(torch.float8_e4m3fn), f"{Q}_scale_inv": torch.ones(2, 3)}
    with pytest.raises(CheckpointError, match="share a scale") as caught:
        dequantised(written(tmp_path / "odd", tensors, **BLOCKS))
    assert "8×8" in str(caught.value) and "shape [2, 3]" in str(caught.value)
    with pytest.raises(CheckpointError, match="weight_block_size"):
        dequantised(written(tmp_path / "untold", tensors))


def test_a_code_that_is_no_number_is_found_as_such(tmp_path):
    tensors = block_fp8(decoder())
    tensors[Q] = tensors[Q].view(torch.uint8).index_fill(0, torch.tensor([2]), 0x7F).view(torch.float8_e4m3fn)
    found = dequantised(written(tmp_path / "nan", tensors, **BLOCKS))
    assert isinstance(found, Dequantised)
    assert found.stored(Q)[2].isnan().all() and found.stored(Q)[3].isfinite().all()
