"""A Llama or Qwen2 of two narrow layers with random weights, as transformers' model and as a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from threegates.checkpoints.writer import write_checkpoint
from threegates.lab.lm.tiny import CHARACTERS, tokenizer_files

SIZES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "intermediate_size": 40, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "rope_theta": 5000.0,
    "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
}  # fmt: skip
FAMILIES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A model of transformers; biases and norms are drawn too, which it would start at 0 and 1."""
    config_class, model_class = FAMILIES[family]
    sizes = {"vocab_size": len(CHARACTERS) + 2, "tie_word_embeddings": True} | SIZES | changes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**sizes)).eval()
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.data += 0.3 * torch.randn(parameter.shape)
    return model


def weights_of(model: Any) -> dict[str, Tensor]:
    """Its parameters by name, to be trained apart from it."""
    return {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}


def write_tiny_lm(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Write such a model in bf16 with the tokenizer of single characters."""
    model = tiny_model(seed=seed, **changes)
    tensors = {name: tensor.detach().bfloat16() for name, tensor in model.named_parameters()}
    config = {**model.config.to_dict(), "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    write_checkpoint(folder, tensors, config, tokenizer_files())
    return folder
