"""Sizes of a Llama-shaped model, read from the `config.json` of a Hugging Face folder.

Families: `llama`, and `qwen2`, which is Llama with biases on queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from threegates.errors import CheckpointError

#: Projections that carry a bias, by family, whatever else the config says.
BIASED: Mapping[str, tuple[str, ...]] = {"llama": (), "qwen2": ("q_proj", "k_proj", "v_proj")}
EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@dataclass(frozen=True)
class LlamaShape:
    """Sizes of a Llama-shaped model.

    biases : the projections with a bias. tied : whether the head is the embedding's transpose.
    """

    vocabulary: int
    width: int
    layers: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_theta: float
    norm_epsilon: float
    biases: tuple[str, ...] = ()
    tied: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LlamaShape:
        """The shape that a `config.json` states.

        Raises
        ------
        CheckpointError : another family; rotary positions that are scaled or partial; another activation; a
            sliding window.
        """
        _refuse_what_is_not_computed(config)
        heads = config["num_attention_heads"]
        return cls(
            vocabulary=config["vocab_size"],
            width=config["hidden_size"],
            layers=config["num_hidden_layers"],
            feed_forward=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            rope_theta=float(_rope(config).get("rope_theta", 10000.0)),
            norm_epsilon=config["rms_norm_eps"],
            biases=_biases(config),
            tied=bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def head(self) -> str:
        """Name of the matrix that maps the last hidden state to logits."""
        return EMBEDDING if self.tied else HEAD

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's shape under its name in transformers, in a fixed order."""
        shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (self.vocabulary, self.width)}
        for layer in range(self.layers):
            shapes |= {f"model.layers.{layer}.{name}": size for name, size in self._layer().items()}
        shapes[LAST_NORM] = (self.width,)
        return shapes if self.tied else shapes | {HEAD: (self.vocabulary, self.width)}

    def _layer(self) -> dict[str, tuple[int, ...]]:
        width, queries, keys = self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = {
            "self_attn.q_proj": (queries, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, queries),
            "mlp.gate_proj": (self.feed_forward, width),
            "mlp.up_proj": (self.feed_forward, width),
            "mlp.down_proj": (width, self.feed_forward),
        }
        found: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (width,)}
        for name, size in matrices.items():
            found[f"{name}.weight"] = size
            if name.rpartition(".")[2] in self.biases:
                found[f"{name}.bias"] = size[:1]
        return found | {"post_attention_layernorm.weight": (width,)}


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the config says of rotary positions; older ones say it on their own level."""
    return {"rope_theta": config.get("rope_theta", 10000.0)} | (config.get("rope_parameters") or {})


def _biases(config: Mapping[str, Any]) -> tuple[str, ...]:
    attention = ("q_proj", "k_proj", "v_proj", "o_proj") if config.get("attention_bias") else ()
    feed_forward = ("gate_proj", "up_proj", "down_proj") if config.get("mlp_bias") else ()
    return tuple(dict.fromkeys((*BIASED[config["model_type"]], *attention, *feed_forward)))


def _refuse_what_is_not_computed(config: Mapping[str, Any]) -> None:
    rope = _rope(config)
    scaling = config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or scaling.get("rope_type") or scaling.get("type") or "default"
    asked = {
        "model_type": (config.get("model_type"), tuple(BIASED)),
        "rope_type": (kind, ("default",)),
        "partial_rotary_factor": (
            rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1,
            (1,),
        ),
        "hidden_act": (config.get("hidden_act", "silu"), ("silu",)),
        "use_sliding_window": (bool(config.get("use_sliding_window")), (False,)),
    }
    for key, (found, known) in asked.items():
        if found not in known:
            raise CheckpointError(
                "This model is not of the shape that is trained here.",
                where=f"config.json, {key}",
                expected=" | ".join(map(str, known)),
                found=found,
                remedy="Take a Llama or Qwen2 checkpoint with plain rotary positions.",
            )
