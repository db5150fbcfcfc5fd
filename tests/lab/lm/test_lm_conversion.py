"""GGUF's metadata as files: against the tokenizer it was written from, and transformers' reading."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, LlamaConfig

from tests.lab.lm.tiny_gguf import SPECIAL, tokens_and_merges, trained_tokenizer, write_tiny_gguf
from threegates.checkpoints.gguf import metadata_of
from threegates.errors import CheckpointError
from threegates.lab.lm.conversion import config_of, tokenizer_files, tokenizer_of


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf"))


TOKENS, MERGES = tokens_and_merges()
TOLD = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in TOKENS],
    "tokenizer.ggml.merges": MERGES,
}
MADE = tokenizer_of(TOLD.get)


@given(st.text(st.sampled_from(" \n0123456789athousndrEe-,=é") | st.characters(codec="utf-8"), max_size=40))
def test_the_tokenizer_is_the_one_that_was_written(text):
    assert MADE.encode(text).ids == trained_tokenizer().encode(text).ids
    assert MADE.decode(MADE.encode(text).ids, skip_special_tokens=False) == text


def test_every_digit_stands_alone_and_blanks_before_it_do_not_join():
    assert [MADE.id_to_token(i) for i in MADE.encode("12 345").ids] == ["1", "2", "Ġ", "3", "4", "5"]


def test_control_tokens_are_single_and_never_merged():
    for token in SPECIAL:
        (found,) = MADE.encode(token).ids
        assert found == TOKENS.index(token)
    assert MADE.decode([1, *MADE.encode("and").ids], skip_special_tokens=True) == "and"


def test_the_config_is_what_transformers_reads_out_of_the_file(file):
    pytest.importorskip("accelerate")
    ours = config_of(metadata_of(file), tied=True, stored_dtype="bfloat16")
    theirs = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    made = LlamaConfig(**{key: value for key, value in ours.items() if key != "model_type"})
    named = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for key in (*named, "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_parameters"):
        assert getattr(made, key) == getattr(theirs, key), key
    assert made.rms_norm_eps == pytest.approx(theirs.rms_norm_eps, rel=1e-7)
    assert (ours["rms_norm_eps"], ours["rope_theta"]) == (1e-5, 100_000.0)
    assert (made.tie_word_embeddings, ours["dtype"]) == (True, "bfloat16")
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (1, 2, 2)


def test_special_tokens_and_the_template_are_the_file_s(file):
    files = {name: json.loads(content) for name, content in tokenizer_files(metadata_of(file)).items()}
    settings = files["tokenizer_config.json"]
    named = [settings[f"{name}_token"] for name in ("bos", "eos", "pad", "unk")]
    assert named == ["<start>", "<end>", "<end>", "<unk>"]
    assert (settings["chat_template"], settings["model_max_length"]) == ("{{ messages }}", 64)
    assert files["generation_config.json"] == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}


@pytest.mark.parametrize(
    ("key", "value"),
    [("tokenizer.ggml.pre", "qwen2"), ("tokenizer.ggml.model", "llama"), ("tokenizer.ggml.pre", None)],
)
def test_another_tokenizer_is_refused_by_its_key(key, value):
    with pytest.raises(CheckpointError, match="not of a kind") as caught:
        tokenizer_of((TOLD | {key: value}).get)
    assert f"where: {key}" in str(caught.value)
    assert f"found: {value}" in str(caught.value) or value is None


@pytest.mark.parametrize(
    ("key", "value"), [("general.architecture", "gemma2"), ("llama.rope.scaling.type", "yarn")]
)
def test_another_architecture_and_scaled_positions_are_refused(file, key, value):
    told = metadata_of(file)
    with pytest.raises(CheckpointError, match="not of a kind") as caught:
        config_of(lambda one: value if one == key else told(one), tied=True, stored_dtype="bfloat16")
    assert key in str(caught.value) and value in str(caught.value)
