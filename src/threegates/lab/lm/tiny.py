"""A model of two narrow layers with random weights, and its tokenizer of single characters: for smoke tests.

A full run's code runs on it in seconds, on the same tasks as on a real model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

from threegates.lab.lm.base import Untrained
from threegates.lab.model import ModelShape, initial_weights
from threegates.lab.randomness import step_generator
from threegates.lab.recipe import LmTinyRecipe
from threegates.lab.trainer import Contents
from threegates.lab.weights import dtype

UNKNOWN, END_OF_TEXT = "<unk>", "<eos>"
#: Printable ASCII and the newline: half of the codes are even.
CHARACTERS = ("\n", *map(chr, range(32, 127)))
_END_ID = len(CHARACTERS) + 1
SHAPE = ModelShape(
    vocabulary=len(CHARACTERS) + 2,
    width=32,
    layers=2,
    feed_forward=48,
    heads=4,
    kv_heads=2,
    head_dim=8,
    positions=512,
)
# Several files, so that shards are tried too.
SHARD_BYTES = 16_000


class LmTiny(Untrained):
    """The random model as a run's base."""

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        return cls(tiny_contents(recipe))


def tiny_contents(recipe: LmTinyRecipe) -> Contents:
    """The checkpoint of the random model of a seed."""
    weights = initial_weights(SHAPE, step_generator(recipe.seed, "initial", 0))
    stored = dtype(recipe.save_dtype)
    config = SHAPE.config(pad=_END_ID, bos=_END_ID, eos=_END_ID, stored_dtype=recipe.save_dtype)
    tensors = {name: tensor.to(stored) for name, tensor in weights.items()}
    return Contents(tensors, config, tokenizer_files(), SHARD_BYTES)


def character_tokenizer() -> tokenizers.Tokenizer:
    """A token for each of `CHARACTERS`, one for any other, and one that ends a text."""
    words = [*CHARACTERS, UNKNOWN, END_OF_TEXT]
    model = models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=UNKNOWN)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([UNKNOWN, END_OF_TEXT])
    return tokenizer


def tokenizer_files() -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json by name, as transformers' AutoTokenizer reads them."""
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": UNKNOWN,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "tokenizer.json": character_tokenizer().to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True) + "\n",
    }
