"""A GGUF file of a tiny Llama with random weights and a byte-level tokenizer trained on the tasks."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import gguf
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from tests.checkpoints.coded import write_gguf
from threegates.lab.lm.tasks import TASKS

SPECIAL = ("<unk>", "<start>", "<end>")
SIZES = {"hidden": 64, "inner": 96, "blocks": 2, "heads": 4, "key_heads": 2, "vocabulary": 320}
CONTROL, NORMAL = 3, 1


@cache
def trained_tokenizer() -> tokenizers.Tokenizer:
    """The oracle: what the library itself makes of the tasks' text, digits alone."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZES["vocabulary"],
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = [task.prefix + "\n\n" for task in TASKS.values()]
    tokenizer.train_from_iterator([*text, "seven hundred and seventy thousand\n\n"] * 4, trainer)
    return tokenizer


def tokens_and_merges() -> tuple[list[str], list[str]]:
    """The tokenizer as a GGUF file has it."""
    model = json.loads(trained_tokenizer().to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return tokens, merges


def tell(writer: gguf.GGUFWriter) -> None:
    """What SmolLM2's file says of its tokenizer and its positions."""
    tokens, merges = tokens_and_merges()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages }}")
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(SIZES["hidden"] // SIZES["heads"])


def write_tiny_gguf(folder: Path, kind: str = "Q4_1", tied: bool = True, seed: int = 0) -> Path:
    """Write the file, its matrices as codes of a kind; its weights have a standard deviation of 0.1."""
    assert len(tokens_and_merges()[0]) == SIZES["vocabulary"]
    config = LlamaConfig(
        vocab_size=SIZES["vocabulary"],
        hidden_size=SIZES["hidden"],
        intermediate_size=SIZES["inner"],
        num_hidden_layers=SIZES["blocks"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=SIZES["key_heads"],
        tie_word_embeddings=tied,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    tensors = {name: tensor.detach() for name, tensor in model.named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    return write_gguf(folder / "tiny.gguf", tensors, SIZES, kind=kind, tell=tell)
