"""A tokenizer of single characters, made on the spot: what a tiny random model reads and writes."""

from __future__ import annotations

import json

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers

UNKNOWN, END_OF_TEXT = "<unk>", "<eos>"
#: Printable ASCII and the newline: half of the codes are even.
CHARACTERS = ("\n", *map(chr, range(32, 127)))


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
