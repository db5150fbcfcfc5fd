"""The word-level tokenizer as files that transformers' AutoTokenizer reads."""

from __future__ import annotations

import json

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from threegates.lab.task import BOS, EOS, PAD, TOKEN_ID, VOCABULARY, DataSet


def tokenizer_files(data: DataSet) -> dict[str, str]:
    """tokenizer.json, tokenizer_config.json and generation_config.json by name; the same text each time.

    data : what the model is for; its lengths are the limits.
    """
    tokenizer = Tokenizer(WordLevel(TOKEN_ID, unk_token=VOCABULARY[-1]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([PAD, BOS, EOS])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": PAD,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": VOCABULARY[-1],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_max_length": data.positions,
    }
    generation = {
        "pad_token_id": TOKEN_ID[PAD],
        "bos_token_id": TOKEN_ID[BOS],
        "eos_token_id": TOKEN_ID[EOS],
        "max_new_tokens": data.response_length,
        "do_sample": True,
        "temperature": 1.0,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2, sort_keys=True) + "\n",
        "generation_config.json": json.dumps(generation, indent=2, sort_keys=True) + "\n",
    }
