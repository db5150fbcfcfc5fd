"""Tiny models with adapters that peft puts on, saves and merges."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from threegates.checkpoints.adapters.config import CONFIG
from threegates.checkpoints.tensors import Checkpoint
from threegates.checkpoints.views import canonical

warnings.filterwarnings("ignore", module="peft")
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 32,
    "max_position_embeddings": 32,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 32, "n_positions": 32, "bos_token_id": 0}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "head_dim": 4}


@dataclass(frozen=True)
class Saved:
    """Folders of the base, the adapter, its start, and the model that peft merges them into in float64."""

    base: Path
    adapter: Path
    start: Path
    merged: Path

    @property
    def opened(self) -> Checkpoint:
        """The base under canonical names."""
        return canonical(Checkpoint.open(self.base))


def model(kind: str, **sizes: Any) -> Any:
    """A model with random weights, the same at every call."""
    torch.manual_seed(0)
    told = (GPT2 if kind == "gpt2" else SIZES) | sizes
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **told))


def saved(
    folder: Path,
    base: Any,
    *,
    trained: float = 0.05,
    safe: bool = False,
    dtype: torch.dtype = torch.float64,
    as_stored: bool = True,
    rows: int = 0,
    embedding_layers: bool = False,
    **settings: Any,
) -> Saved:
    """An adapter that noise has moved away from its start, and its merge.

    rows : of the vocabulary, if it is resized after the base was saved. embedding_layers : whether peft saves
    the embeddings that it adapts. dtype : that merging is done in. as_stored : experts one by one, as files
    have them; else as in memory.
    """
    places = Saved(*(folder / name for name in ("base", "adapter", "start", "merged")))
    layout = {} if as_stored else {"save_original_format": False}
    base.save_pretrained(places.base, **layout)
    if rows:
        base.resize_token_embeddings(rows, mean_resizing=False)
    adapted = get_peft_model(base, LoraConfig(**settings))
    adapted.save_pretrained(places.start, save_embedding_layers=False)
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += trained * torch.randn_like(parameter)
    adapted.save_pretrained(places.adapter, save_embedding_layers=embedding_layers)
    merged = adapted.to(dtype).merge_and_unload(safe_merge=safe)
    merged.save_pretrained(places.merged, **layout)
    return places


def edited(adapter: Path, change: Callable[[dict], None]) -> Path:
    """The adapter with another config."""
    told = json.loads((adapter / CONFIG).read_text())
    change(told)
    (adapter / CONFIG).write_text(json.dumps(told))
    return adapter
