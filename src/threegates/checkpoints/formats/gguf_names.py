"""What a GGUF file calls tensors and sizes, and what llama.cpp's converter does to values, by architecture.

Names come from the `gguf` package's own map from a model's names to GGUF's, asked for Llama's. Here stands
what that map does not say: which architectures are known, and what is to be undone for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture.

    model_type : as configs of transformers have it. turned : whether rows of q and k stand in the order of
    pairs that llama.cpp rotates. shifted : whether norms are stored with one added.
    """

    model_type: str
    turned: bool = False
    shifted: bool = False


#: By ``general.architecture``. Mistral and Mixtral are called llama there.
ARCHITECTURES = {
    "llama": Architecture("llama", turned=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "qwen3moe": Architecture("qwen3_moe"),
    "gemma": Architecture("gemma", shifted=True),
    "gemma2": Architecture("gemma2", shifted=True),
    "gemma3": Architecture("gemma3_text", shifted=True),
    "phi3": Architecture("phi3"),
}
#: Keys of configs, and those of a file's metadata after the architecture's name.
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "num_experts": "expert_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
_OUTSIDE = ("model.embed_tokens", "model.norm", "lm_head")
# Where two modules are one to the map, the first one that a file can have counts.
_IN_BLOCKS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "self_attn.q_norm",
    "self_attn.k_norm",
    "mlp.up_proj",
    "mlp.gate_proj",
    "mlp.down_proj",
    "mlp.gate",
    "mlp.experts.gate_proj",
    "mlp.experts.up_proj",
    "mlp.experts.down_proj",
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)
# Phi-3 fuses these two under the name of the second.
_FUSED = {"phi3": {"mlp.up_proj": "mlp.gate_up_proj"}}


def module_names(architecture: str, blocks: int, map_name: Callable[[str], str | None]) -> dict[str, str]:
    """Llama's name of each module by GGUF's.

    map_name : GGUF's name of a module by a model's, None where the architecture has none.
    """
    found: dict[str, str] = {}
    for name in _modules(architecture, blocks):
        if (stored := map_name(name)) is not None:
            found.setdefault(stored, name)
    return found


def _modules(architecture: str, blocks: int) -> Iterator[str]:
    fused = _FUSED.get(architecture, {})
    yield from _OUTSIDE
    for number in range(blocks):
        yield from (f"model.layers.{number}.{fused.get(name, name)}" for name in _IN_BLOCKS)
