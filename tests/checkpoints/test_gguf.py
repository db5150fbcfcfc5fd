"""GGUF files as checkpoints: against the model that was converted, and against transformers' own reading."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from tests.checkpoints.coded import converted, write_gguf
from tests.checkpoints.made import values, written
from threegates.checkpoints.coded import ERRORS, GAPS, reading, rounded_kinds
from threegates.checkpoints.gguf import _BLOCKS, PLAIN, is_gguf, metadata_of, open_gguf, open_local, row_order
from threegates.checkpoints.matching import brought_together
from threegates.checkpoints.pairs import Status, align
from threegates.checkpoints.places import Place, place_of
from threegates.checkpoints.rows import rows_of
from threegates.checkpoints.views import canonical
from threegates.errors import CheckpointError

SIZES = {"hidden": 64, "inner": 96, "blocks": 2, "heads": 4, "key_heads": 2, "vocabulary": 64}
Q, K = (f"model.layers.1.self_attn.{kind}_proj.weight" for kind in "qk")
#: Architectures that transformers loads too, and what its configs call them.
LOADED = {"llama": "llama", "qwen2": "qwen2", "gemma2": "gemma2", "gemma3": "gemma3_text"}
#: The types that the issue names, and those that the package writes besides.
WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_1", "Q4_0", "Q5_0", "Q5_1")
#: Blocks of 256 that llama.cpp alone writes.
SUPER = tuple(kind for kind in _BLOCKS if kind.endswith("_K"))


def model_of(kind: str, tie: bool = False) -> dict[str, Tensor]:
    """State dict of a tiny model with weights that tell every row from every other."""
    config = AutoConfig.for_model(
        kind,
        vocab_size=SIZES["vocabulary"],
        hidden_size=SIZES["hidden"],
        intermediate_size=SIZES["inner"],
        num_hidden_layers=SIZES["blocks"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=SIZES["key_heads"],
        head_dim=16,
        tie_word_embeddings=tie,
        pad_token_id=0,
    )
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    return {
        name: values(name, one.shape)
        for name, one in shapes.items()
        if not (tie and name == "lm_head.weight")
    }


@pytest.fixture(scope="module")
def llama() -> dict[str, Tensor]:
    return model_of("llama")


# Values and names


def test_q_and_k_are_turned_back_and_all_is_as_it_was_converted_from(llama, tmp_path):
    biases = {name: Q.replace("q_proj.weight", f"{name}_proj.bias") for name in "qk"}
    tensors = llama | {biases["q"]: values("q", (64,)), biases["k"]: values("k", (32,))}
    found = open_local(write_gguf(tmp_path / "m.gguf", tensors, SIZES))
    for name in (Q, K, *biases.values()):
        assert not torch.equal(converted(name, tensors[name], SIZES, "llama"), tensors[name])
    assert found.infos.keys() == tensors.keys()
    for name, weight in tensors.items():
        assert torch.equal(found.stored(name), weight), name
        assert found.info(name).shape == tuple(weight.shape)
    assert torch.equal(rows_of(found, K, 3, 20), llama[K][3:20])


def test_metadata_are_told_by_key(llama, tmp_path):
    told = metadata_of(write_gguf(tmp_path / "m.gguf", llama, SIZES))
    assert (told("general.architecture"), told("llama.embedding_length")) == ("llama", 64)
    assert told("tokenizer.ggml.tokens") == [f"t{number}" for number in range(64)]
    assert told("no.such.key") is None


@given(st.integers(1, 6), st.integers(1, 8))
def test_the_order_of_rows_undoes_the_converter_s(heads, half):
    rows = np.arange(heads * 2 * half)
    stored = rows.reshape(heads, 2, half).swapaxes(1, 2).reshape(-1)
    assert (stored[row_order(len(rows), heads)] == rows).all()


@pytest.mark.parametrize("architecture", sorted(LOADED))
def test_transformers_reads_the_same(architecture, tmp_path):
    tensors = model_of(LOADED[architecture], tie=architecture.startswith("gemma"))
    write_gguf(tmp_path / "m.gguf", tensors, SIZES, architecture, "Q8_0")
    found = open_gguf(tmp_path / "m.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32)
    theirs = loaded.state_dict()
    assert found.config["model_type"] == loaded.config.model_type
    assert {name for name, info in found.infos.items() if not info.alias_of} == tensors.keys()
    for name in tensors:
        assert torch.equal(found.stored(name), theirs[name]), name


def test_norms_of_gemma_lose_the_one_that_was_added(tmp_path):
    tensors = model_of("gemma", tie=True)
    found = open_gguf(write_gguf(tmp_path / "m.gguf", tensors, SIZES, "gemma"))
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        torch.testing.assert_close(found.stored(name), tensors[name], rtol=0, atol=2e-7)
    assert torch.equal(found.stored(Q), tensors[Q])
    assert found.info("lm_head.weight").alias_of == "model.embed_tokens.weight"


def test_what_phi_3_fuses_is_cut_by_its_sizes(tmp_path):
    tensors = model_of("phi3")
    found = canonical(open_gguf(write_gguf(tmp_path / "m.gguf", tensors, SIZES, "phi3", "Q8_0")))
    q, k, v = tensors["model.layers.1.self_attn.qkv_proj.weight"].split([64, 32, 32])
    for name, weight in (("q", q), ("k", k), ("v", v)):
        stored = found.stored(f"model.layers.1.self_attn.{name}_proj.weight")
        assert torch.equal(stored, dequantised(weight, "Q8_0"))
    up = tensors["model.layers.0.mlp.gate_up_proj.weight"][96:]
    assert torch.equal(found.stored("model.layers.0.mlp.up_proj.weight"), dequantised(up, "Q8_0"))


@pytest.mark.parametrize(
    ("architecture", "family", "stored"),
    [
        ("qwen3moe", "qwen3_moe", "mlp.experts.{n}.{kind}"),
        ("llama", "mixtral", "block_sparse_moe.experts.{n}.{kind}"),
    ],
)
def test_stacked_experts_are_those_of_the_other_side(tmp_path, architecture, family, stored):
    shapes = {"gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}
    called = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if family == "mixtral" else {}
    experts = {(n, kind): values(f"{n} {kind}", shapes[kind]) for n in range(3) for kind in shapes}
    front = "model.layers.0."
    stacked = {
        f"{front}mlp.experts.{kind}.weight": torch.stack([experts[n, kind] for n in range(3)])
        for kind in shapes
    }
    single = {
        front + stored.format(n=n, kind=called.get(kind, kind)) + ".weight": one
        for (n, kind), one in experts.items()
    }
    path = write_gguf(tmp_path / "m.gguf", stacked, SIZES | {"experts": 3}, architecture, "Q8_0")
    base = open_gguf(path)
    assert base.config["model_type"] == family
    tuned = written(tmp_path / "tuned", single, model_type=family)
    seen, other = brought_together(canonical(base), canonical(tuned))
    assert {row.status for row in align(seen, other)} == {Status.compared}
    for (n, kind), weight in experts.items():
        name = f"{front}mlp.experts.{n}.{kind}.weight"
        assert torch.equal(seen.stored(name), dequantised(weight, "Q8_0"))
        assert torch.equal(other.stored(name), weight)


# Codes


def dequantised(weight: Tensor, kind: str) -> Tensor:
    """What a tensor comes back as, by the package alone."""
    code = gguf.GGMLQuantizationType[kind]
    stored = gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), code), code)
    return torch.from_numpy(stored.reshape(weight.shape))


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_type_reads_as_the_package_decodes_it(llama, tmp_path, kind):
    found = open_gguf(write_gguf(tmp_path / "m.gguf", llama, SIZES, kind=kind))
    for name in (Q, "model.layers.0.mlp.down_proj.weight", "lm_head.weight"):
        assert torch.equal(found.stored(name).float(), dequantised(llama[name], kind))
        assert found.info(name).dtype == (kind if kind in PLAIN else "F32")
    assert rounded_kinds(found) == ({} if kind in PLAIN else {kind: 16})
    gaps = reading(found, GAPS).stored(Q)
    if kind in PLAIN:
        assert not gaps.any()
        return
    away = (found.stored(Q) - llama[Q]).abs()
    assert float((away <= gaps * 0.57).double().mean()) > 0.99
    assert torch.allclose(reading(found, ERRORS).stored(Q) * 12**0.5, gaps)


@pytest.mark.parametrize("kind", _BLOCKS)
def test_values_of_one_scale_lie_whole_gaps_apart(kind):
    """Of blocks of random bytes, scales with some sane exponent: all that is not the code stays."""
    from threegates.checkpoints.gguf import _gaps

    code = gguf.GGMLQuantizationType[kind]
    entries, size = gguf.GGML_QUANT_SIZES[code]
    blocks = np.random.default_rng(5).integers(0, 256, (64, size), dtype=np.uint8)
    halves = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind, (0, 2))
    halves = halves[:1] if kind in ("Q4_0", "Q5_0", "Q8_0") else halves
    for start in halves:
        blocks[:, start : start + 2] = np.full((64, 1), 0.0078125, np.float16).view(np.uint8)
    decoded = gguf.quants.dequantize(blocks, code)
    gaps = _gaps(blocks.copy(), code).numpy()
    group = 16 if kind in ("Q2_K", "Q3_K", "Q6_K") else 32
    shaped = (64, entries // group, group)
    values_, gaps = decoded.reshape(shaped), gaps.reshape(shaped)
    assert (gaps == gaps[..., :1]).all()
    some = gaps[..., 0] > 0
    steps = (values_ - values_[..., :1])[some] / gaps[some]
    assert np.allclose(steps, steps.round(), atol=1e-3)
    assert np.gcd.reduce(np.abs(steps.round()).astype(int), axis=None) == 1
    assert (values_[~some] == values_[~some][..., :1]).all()


# As a checkpoint


def test_a_place_opens_the_file_anew_and_its_bytes_are_its_digest(llama, tmp_path):
    path = write_gguf(tmp_path / "m.gguf", llama, SIZES, kind="Q8_0")
    found = open_gguf(path)
    place = place_of(canonical(found))
    assert Place.parse(place.text()) == place and not place.dequantised
    assert torch.equal(place.open().stored(Q), found.stored(Q))
    other = open_gguf(write_gguf(tmp_path / "n.gguf", llama, SIZES, kind="Q4_1"))
    assert place.open().digest() == found.digest() != other.digest()
    copy = tmp_path / "another name.gguf"
    copy.write_bytes(path.read_bytes())
    assert open_gguf(copy).digest() == found.digest()
    assert found.files() == [path] and is_gguf(path) and not is_gguf(tmp_path)


def test_without_the_package_the_extra_is_named(llama, tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "m.gguf", llama, SIZES)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"threegates\[gguf\]"):
        open_local(path)


# Refused


def test_what_the_converter_did_to_others_is_not_guessed(llama, tmp_path):
    with pytest.raises(CheckpointError, match="architecture 'bloom' is not known here") as caught:
        open_gguf(write_gguf(tmp_path / "m.gguf", {"x.weight": llama[Q]}, SIZES, "bloom"))
    assert "llama, qwen2" in str(caught.value)


@pytest.mark.parametrize("cut", [3, 40, 4000, 60_000])
def test_a_file_that_is_cut_short_is_refused(llama, tmp_path, cut):
    path = write_gguf(tmp_path / "m.gguf", llama, SIZES)
    (tmp_path / "cut.gguf").write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match="cut.gguf cannot be read"):
        open_gguf(tmp_path / "cut.gguf")


def bare(path: Path, **numbers: int) -> gguf.GGUFWriter:
    """A writer of a file with these numbers and no tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, number in numbers.items():
        writer.add_uint32(name.replace("__", "."), number)
    return writer


def finished(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_codes_without_equal_gaps_are_refused_by_their_types(tmp_path):
    writer = bare(tmp_path / "m.gguf", llama__block_count=2)
    kind = gguf.GGMLQuantizationType.IQ4_NL
    writer.add_tensor("blk.0.attn_v.weight", np.zeros((4, 18), np.uint8), raw_dtype=kind)
    finished(writer)
    with pytest.raises(CheckpointError, match="types of codes that are not read here") as caught:
        open_gguf(tmp_path / "m.gguf")
    assert "IQ4_NL" in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ({"llama__block_count": 2, "split__count": 3}, "m.gguf is one of 3 files"),
        ({}, "how many blocks its model has"),
    ],
)
def test_a_file_that_is_not_all_of_a_model_is_refused(tmp_path, numbers, told):
    writer = bare(tmp_path / "m.gguf", **numbers)
    writer.add_tensor("blk.0.attn_v.weight", np.zeros((4, 32), np.float32))
    finished(writer)
    with pytest.raises(CheckpointError, match=told):
        open_gguf(tmp_path / "m.gguf")


def test_heads_that_do_not_fit_the_rows_are_refused(llama, tmp_path):
    with pytest.raises(CheckpointError, match="grouped into heads"):
        open_gguf(write_gguf(tmp_path / "m.gguf", llama, SIZES | {"told_key_heads": 3}))
