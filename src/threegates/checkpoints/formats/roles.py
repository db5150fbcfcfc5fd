"""What a tensor does in a transformer, read from its Hugging Face name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

# The last module name before ".weight"; families differ (GPT-NeoX, OPT, Phi), their meaning does not.
MODULES = {
    "q": ("q_proj", "query"),
    "k": ("k_proj", "key"),
    "v": ("v_proj", "value"),
    "o": ("o_proj", "out_proj"),
    "gate": ("gate_proj",),
    "up": ("up_proj",),
    "down": ("down_proj",),
    "embedding": ("embed_tokens", "wte", "word_embeddings", "embed_in"),
    "head": ("lm_head", "embed_out"),
}
# BERT and its kin call every layer after the first three "dense"; what stands before it tells them apart.
DENSE = {"attention.output": "o", "intermediate": "up", "output": "down"}
#: Roles of the linear layers in blocks.
LINEAR = ("q", "k", "v", "o", "gate", "up", "down")
ROLE_OF_MODULE = {module: role for role, modules in MODULES.items() for module in modules}
LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")


def role(name: str, shape: Sequence[int]) -> str:
    """Role of a tensor: q, k, v, o, gate, up, down, embedding, head, norm, bias or other."""
    parts = name.split(".")
    if parts[-1] == "bias":
        return "bias"
    known = _dense(parts) or ROLE_OF_MODULE.get(parts[-2] if len(parts) > 1 else parts[-1])
    if known is not None and len(shape) == 2:
        return known
    # q_norm and input_layernorm are norms; a router or a mixture's "norm"-named matrix is not.
    return "norm" if len(shape) == 1 and "norm" in name.lower() else "other"


def linear_layers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of the linear layers in blocks, by name, in the order of `weights`."""
    return {name: weight for name, weight in weights.items() if role(name, weight.shape) in LINEAR}


def _dense(parts: list[str]) -> str | None:
    """Role of a dense layer of BERT by the modules that hold it."""
    if parts[-2:-1] != ["dense"]:
        return None
    holders = (".".join(parts[-4:-2]), *parts[-3:-2])
    return next((DENSE[holder] for holder in holders if holder in DENSE), None)


def layer(name: str) -> int | None:
    """Number of the block a tensor belongs to, None for the embedding, the head and the last norm."""
    found = LAYER.search(name)
    return int(found.group(1)) if found else None
