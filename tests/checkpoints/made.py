"""Small checkpoints made by hand: names and shapes that libraries leave behind, with values that tell."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from threegates.checkpoints.tensors import INDEX, SINGLE, Checkpoint

HIDDEN, INNER, ROWS = 6, 10, 14
DECODER = {
    "self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "self_attn.k_proj.weight": (2, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.up_proj.weight": (INNER, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, INNER),
    "input_layernorm.weight": (HIDDEN,),
}


def values(name: str, shape: Sequence[int]) -> Tensor:
    """Values that depend on a name alone, so that who reads the wrong tensor is found out."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(*shape, generator=generator)


def decoder(front: str = "model.", blocks: int = 2, head: bool = True) -> dict[str, Tensor]:
    """A decoder in Llama's names, under some other prefix than `model.` if one is given."""
    shapes = {"embed_tokens.weight": (ROWS, HIDDEN), "norm.weight": (HIDDEN,)}
    shapes |= {f"layers.{n}.{name}": shape for n in range(blocks) for name, shape in DECODER.items()}
    tensors = {front + name: values(name, shape) for name, shape in shapes.items()}
    return tensors | ({"lm_head.weight": values("lm_head", (ROWS, HIDDEN))} if head else {})


def written(folder: Path, tensors: Mapping[str, Tensor], file: str = SINGLE, **config: Any) -> Checkpoint:
    """A checkpoint of these tensors in one file, opened."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / file)
    told = {"model_type": "unheard_of", "tie_word_embeddings": False} | config
    (folder / "config.json").write_text(json.dumps(told))
    return Checkpoint.open(folder)


def in_codes(folder: Path, method: str) -> Path:
    """A folder whose matrices are codes of 32 bits, packed as by a quantiser of that name."""
    for path in [
        folder / name for name in set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    ]:
        held = load_file(path)
        save_file({name: x.to(torch.int32) if x.dim() > 1 else x for name, x in held.items()}, path)
    config = json.loads((folder / "config.json").read_text())
    told = config | {"quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(told))
    return folder
