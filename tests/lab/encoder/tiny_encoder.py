"""A BERT of two narrow layers with random weights and a word-level tokenizer, as a checkpoint's folder."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel

from threegates.checkpoints.writer import write_checkpoint
from threegates.lab.encoder.task import items

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def tiny_tokenizer() -> Tokenizer:
    """Every word of the task is one token, framed as BERT's are, with the padding that such files set."""
    pieces = BertPreTokenizer()
    strings = {s.lower() for item in items("words") for s in (item.query, *item.candidates)}
    words = sorted({word for s in strings for word, _ in pieces.pre_tokenize_str(s)})
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate([*SPECIAL, *words])}, unk_token="[UNK]")
    )
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = pieces
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(16)
    return tokenizer


def write_tiny_encoder(folder: Path, seed: int = 0, stored: torch.dtype = torch.bfloat16) -> Path:
    """Write the folder, its weights with a standard deviation of 0.3."""
    tokenizer = tiny_tokenizer()
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertModel(config)
    tensors = {name: tensor.to(stored) for name, tensor in model.named_parameters()}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "model_max_length": 32}
    files = {"tokenizer.json": tokenizer.to_str(), "tokenizer_config.json": json.dumps(settings)}
    write_checkpoint(folder, tensors, {**config.to_dict(), "architectures": ["BertModel"]}, files)
    return folder
