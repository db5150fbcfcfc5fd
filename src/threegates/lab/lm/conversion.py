"""What a GGUF file of a Llama says besides its weights, as the files of a Hugging Face folder.

Weights are read by `threegates.checkpoints.gguf`. The tokenizer is made from the file's tokens and merges,
with the pre-tokenizer that the file names: digits stand alone before anything is merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from threegates.errors import CheckpointError

#: The metadata of a file as a function of its key.
Metadata = Callable[[str], Any]
#: Keys of config.json, and those of a Llama's metadata.
SIZES = {
    "vocab_size": "llama.vocab_size",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.rope.dimension_count",
    "max_position_embeddings": "llama.context_length",
}
#: Names of special tokens, and the keys of their ids.
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}
# A token of this type is never made by a merge.
_CONTROL = 3


def config_of(told: Metadata, *, tied: bool, stored_dtype: str) -> dict[str, Any]:
    """config.json of a Llama without biases and with plain rotary positions.

    tied : whether the head is the embedding.

    Raises
    ------
    CheckpointError : the file is of another architecture, or scales its positions.
    """
    _require(told, "general.architecture", ("llama",))
    _require(told, "llama.rope.scaling.type", (None, "none"))
    base = _decimal(told("llama.rope.freq_base"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{name: told(key) for name, key in SIZES.items()},
        "rope_theta": base,
        "rope_parameters": {"rope_type": "default", "rope_theta": base},
        "rms_norm_eps": _decimal(told("llama.attention.layer_norm_rms_epsilon")),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": tied,
        "use_cache": True,
        **{f"{name}_token_id": _special(told, name) for name in ("bos", "eos", "pad")},
        "dtype": stored_dtype,
    }


def tokenizer_files(told: Metadata) -> dict[str, str]:
    """tokenizer.json, tokenizer_config.json and generation_config.json by name.

    Raises
    ------
    CheckpointError : the file's tokenizer is of another kind.
    """
    tokens, ids = told("tokenizer.ggml.tokens"), {name: _special(told, name) for name in SPECIAL}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": tokens[place] for name, place in ids.items()},
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": told(SIZES["max_position_embeddings"]),
        "chat_template": told("tokenizer.chat_template"),
    }
    generation = {f"{name}_token_id": ids[name] for name in ("bos", "eos", "pad")}
    return {
        "tokenizer.json": tokenizer_of(told).to_str(pretty=True) + "\n",
        "tokenizer_config.json": _json(settings),
        "generation_config.json": _json(generation),
    }


def tokenizer_of(told: Metadata) -> tokenizers.Tokenizer:
    """The byte-level tokenizer of a file, which takes every digit alone.

    Raises
    ------
    CheckpointError : the file's tokenizer is of another kind.
    """
    _require(told, "tokenizer.ggml.model", ("gpt2",))
    _require(told, "tokenizer.ggml.pre", ("smollm",))
    tokens, kinds = told("tokenizer.ggml.tokens"), told("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in told("tokenizer.ggml.merges")]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL])
    return tokenizer


def _special(told: Metadata, name: str) -> int:
    return told(f"tokenizer.ggml.{SPECIAL[name]}")


def _decimal(value: float) -> float:
    """The shortest decimal of a number that was stored in float32: 1e-05 for 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _require(told: Metadata, key: str, known: tuple[str | None, ...]) -> None:
    if told(key) not in known:
        raise CheckpointError(
            "This GGUF file is not of a kind that is converted here.",
            where=key,
            expected=" | ".join(str(one) for one in known),
            found=told(key),
            remedy="Take the model's own repository, which has the files that this would make.",
        )
