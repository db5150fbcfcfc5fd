"""An adapter as peft stores and loads it: on the original base, whatever its start.

A start that is not zero changes the base's weights, and an adapter saved as it is would need that very
residual to load. What is saved instead is ΔW itself, s (BA − B₀A₀) = s [B, −B₀] [A; A₀], a plain LoRA of
twice the rank.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor

from threegates.lab.adapters.factors import Start

FOLDER = "adapter"
_PREFIX = "base_model.model."


def adapter_files(
    factors: Mapping[str, tuple[Tensor, Tensor]], starts: Mapping[str, Start]
) -> dict[str, bytes]:
    """adapter_config.json and adapter_model.safetensors in a folder of their own, by name.

    factors : A (rank, columns) and B (rows, rank) by the name of the weight.
    """
    tensors: dict[str, Tensor] = {}
    for name, (down, up) in factors.items():
        sides = _plain(down, up, starts[name])
        for side, tensor in zip(("lora_A", "lora_B"), sides, strict=True):
            tensors[f"{_PREFIX}{name.removesuffix('.weight')}.{side}.weight"] = tensor.contiguous().cpu()
    first = next(iter(starts))
    rank = len(tensors[f"{_PREFIX}{first.removesuffix('.weight')}.lora_A.weight"])
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": starts[first].scaling * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-2] for name in starts}),
        "inference_mode": True,
        "init_lora_weights": True,
    }
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {
        f"{FOLDER}/adapter_config.json": text.encode(),
        f"{FOLDER}/adapter_model.safetensors": save(tensors, metadata={"format": "pt"}),
    }


def _plain(down: Tensor, up: Tensor, start: Start) -> tuple[Tensor, Tensor]:
    """A and B of a plain LoRA on the original base with the same ΔW."""
    if not start.up.any():
        return down, up
    return torch.cat([down, start.down]), torch.cat([up, -start.up], dim=1)
