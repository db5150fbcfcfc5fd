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
#: Parameters of a recurrence, which multiply no activations as a matrix does.
STATE = ("A_log", "D", "dt_bias")
#: Roles of what may have two axes and maps nothing: one row an expert, a head or a distance.
TABLES = ("bias", "state", "conv")
_TABLE_MODULES = ("relative_attention_bias",)
ROLE_OF_MODULE = {module: role for role, modules in MODULES.items() for module in modules}
#: What counts the blocks of a stack. Of nested counters the outermost counts: ``block.3.layer.1`` is block 3.
COUNTERS = ("layers", "layer", "h", "blocks", "block", "resblocks", "albert_layer_groups")
_BLOCK = re.compile(rf"(?:^|\.)(?:{'|'.join(COUNTERS)})\.(\d+)\.")
#: Stacks by the words that stand in front of a counter, the first that is found; all others are the decoder.
_STACKS = {
    "mtp": ("mtp",),
    "vision": ("visual", "vision", "vision_tower", "vision_model", "vision_encoder", "image_encoder"),
    "audio": ("audio", "audio_tower", "audio_model", "audio_encoder", "speech_encoder"),
    "encoder": ("encoder",),
}
#: Stacks of the text model, whose blocks are its layers.
TEXT = ("decoder", "encoder")


def role(name: str, shape: Sequence[int]) -> str:
    """Role of a tensor: q, k, v, o, gate, up, down, embedding, head, norm, bias, state, conv or other."""
    parts = name.split(".")
    if parts[-1] in STATE:
        return "state"
    if parts[-1] == "bias" or parts[-1].endswith("_bias"):
        return "bias"
    if "conv1d" in parts[-2:]:
        return "conv"
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


def block(name: str) -> tuple[str, int] | None:
    """Stack and number of the block that a tensor belongs to; None for one that lies in no block.

    Stacks: decoder, encoder, vision, audio and mtp, the heads that predict several tokens.
    """
    found = _BLOCK.search(name)
    if found is None:
        return None
    before = set(name[: found.start()].split("."))
    stack = next((one for one, words in _STACKS.items() if before & set(words)), "decoder")
    return stack, int(found.group(1))


def layer(name: str) -> int | None:
    """Number of the text model's block that a tensor belongs to; None outside of its stacks.

    The embedding, the head and the last norm lie in no block; a vision tower's blocks are not the text
    model's, whatever their numbers.
    """
    found = block(name)
    return found[1] if found is not None and found[0] in TEXT else None


def is_matrix(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor maps activations: two axes, and no table of biases or states."""
    table = role(name, shape) in TABLES or bool(set(_TABLE_MODULES) & set(name.split(".")))
    return len(shape) == 2 and not table
