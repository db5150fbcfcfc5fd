"""Checkpoints as quantisers write them: FP8 with a scale a block or a row, and GGUF by llama.cpp's rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

BLOCK = 8
LARGEST = 448.0
#: As DeepSeek's checkpoints say it, with smaller blocks.
BLOCKS = {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}}
#: As compressed-tensors says it, with a scale a row.
ROWS = {
    "quantization_config": {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": {"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}},
    }
}


def in_blocks(weight: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Codes and scales of a matrix, block by block."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // block), -(-columns // block))
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            at = (slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scales[i, j] = weight[at].float().abs().max() / LARGEST
            codes[at] = (weight[at].float() / scales[i, j]).to(codes.dtype)
    return codes, scales


def block_fp8(tensors: Mapping[str, Tensor], block: int = BLOCK) -> dict[str, Tensor]:
    """The matrices of blocks as DeepSeek has them."""
    found: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        coded = "_proj." in name
        found |= {name: weight} if not coded else {}
        if coded:
            found[name], found[f"{name}_scale_inv"] = in_blocks(weight, block)
    return found


def row_fp8(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of blocks as compressed-tensors has them: a scale in bf16 for each row."""
    found: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        scale = (weight.float().abs().amax(-1, keepdim=True) / LARGEST).bfloat16()
        found[name] = weight
        if "_proj." in name:
            codes = (weight.float() / scale.float()).clamp(-LARGEST, LARGEST)
            found |= {name: codes.to(torch.float8_e4m3fn), f"{name}_scale": scale}
    return found


def write_gguf(
    path: Path,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, Any],
    architecture: str = "llama",
    kind: str = "F32",
    tell: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """A GGUF file of a model's tensors, matrices in one type of code and vectors in F32.

    sizes : hidden, inner, blocks, heads, key_heads and vocabulary; perhaps experts, and told_key_heads where
    the file is to say another number. tell : writes what the file says of its tokenizer, and what else.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(sizes["blocks"])
    writer.add_embedding_length(sizes["hidden"])
    writer.add_feed_forward_length(sizes["inner"])
    writer.add_head_count(sizes["heads"])
    writer.add_head_count_kv(sizes.get("told_key_heads", sizes["key_heads"]))
    if "experts" in sizes:
        writer.add_expert_count(sizes["experts"])
        writer.add_expert_feed_forward_length(sizes["inner"])
    writer.add_key_length(sizes["hidden"] // sizes["heads"])
    writer.add_value_length(sizes["hidden"] // sizes["heads"])
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(sizes["vocabulary"])
    if tell is None:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list([f"t{number}" for number in range(sizes["vocabulary"])])
    else:
        tell(writer)
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(arch, sizes["blocks"])
    for name, weight in tensors.items():
        module, _, last = name.rpartition(".")
        values = converted(name, weight, sizes, architecture).float().numpy()
        code = gguf.GGMLQuantizationType[kind if weight.dim() > 1 else "F32"]
        stored = names.get_name(module) or module
        writer.add_tensor(f"{stored}.{last}", gguf.quants.quantize(values, code), raw_dtype=code)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(name: str, weight: Tensor, sizes: Mapping[str, Any], architecture: str) -> Tensor:
    """What llama.cpp's converter makes of a tensor's values."""
    heads = {"q_proj": sizes["heads"], "k_proj": sizes["key_heads"]}.get(name.split(".")[-2])
    if architecture == "llama" and heads:
        halves = weight.reshape(heads, 2, len(weight) // heads // 2, math.prod(weight.shape[1:]))
        return halves.swapaxes(1, 2).reshape(weight.shape)
    return weight.float() + 1 if "gemma" in architecture and name.endswith("norm.weight") else weight
