"""Small checkpoints as transformers itself writes them, and a way to break copies of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

LLAMA = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
QWEN2 = LLAMA | {"num_hidden_layers": 1, "tie_word_embeddings": True}


def _save(kind: str, settings: dict, folder: Path, dtype: torch.dtype, shard: str) -> dict[str, torch.Tensor]:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings)).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """An untied Llama in bf16, several shards with an index; folder and state dict."""
    folder = tmp_path_factory.mktemp("llama")
    return folder, _save("llama", LLAMA, folder, torch.bfloat16, "4KB")


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tied Qwen2 in fp32, one file; folder and state dict."""
    folder = tmp_path_factory.mktemp("qwen2")
    return folder, _save("qwen2", QWEN2, folder, torch.float32, "1GB")


@pytest.fixture
def copy_of(tmp_path) -> Callable[..., Path]:
    """Copies a checkpoint to a folder of its own that the test may break."""

    def copy(folder: Path, name: str = "copy") -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    return copy
