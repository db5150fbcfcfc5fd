"""Models of somebody else's: a Llama whose matrices are longer than a map's side, and what was made of it.

Everything is as published checkpoints have it: nothing but folders and a manifest, stored in bf16 but for the
kept steps of one run, no logs, no labels, and of the recipes no more than a model card says.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.planted import planted
from threegates.checkpoints.manifests.manifest import Entry, Folder, Manifest, write_manifest

WIDTH, LONG, HEAD, HEADS, GROUPS, LAYERS, VOCABULARY = 32, 576, 64, 9, 3, 4, 16
#: As Qwen 3 has it, heads are no parts of the residual stream: Q is long, and K and V are short.
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "tie_word_embeddings": False,
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": LONG,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": HEAD,
    "vocab_size": VOCABULARY,
}
SHAPES = {
    "self_attn.q_proj": (HEADS * HEAD, WIDTH),
    "self_attn.k_proj": (GROUPS * HEAD, WIDTH),
    "self_attn.v_proj": (GROUPS * HEAD, WIDTH),
    "self_attn.o_proj": (WIDTH, HEADS * HEAD),
    "mlp.gate_proj": (LONG, WIDTH),
    "mlp.up_proj": (LONG, WIDTH),
    "mlp.down_proj": (WIDTH, LONG),
}
#: Two tuned models, and kept steps of one run with the scale of their updates.
PAIRS = ("their-rl", "their-sft")
STEPS = {10: 1e-4, 20: 2e-4, 40: 3e-4}
NAMED_STEPS = tuple(f"their-run-{step}" for step in STEPS)
#: Another adapter, and a repository that holds the base's weights once more.
OTHERS = ("their-sft-2", "their-copy")
#: Adapters are on these alone, merged into the base.
ADAPTED = ("q_proj", "v_proj")


def base_tensors(seed: int = 1) -> dict[str, Tensor]:
    """bf16 weights; every matrix has a few leading directions, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, rank: int = 4) -> Tensor:
        noise = torch.randn(rows, columns, generator=generator) / columns**0.5
        left, right = (torch.randn(side, rank, generator=generator) / side**0.5 for side in (rows, columns))
        return (noise + 6 * left @ right.T).to(torch.bfloat16)

    tensors = {name: matrix(VOCABULARY, WIDTH) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    for number in range(LAYERS):
        block = f"model.layers.{number}"
        tensors |= {f"{block}.{name}.weight": matrix(*shape) for name, shape in SHAPES.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{block}.{name}.weight"] = torch.ones(WIDTH, dtype=torch.bfloat16)
    return tensors | {"model.norm.weight": torch.ones(WIDTH, dtype=torch.bfloat16)}


def with_adapter(base: dict[str, Tensor], scale: float, seed: int, rank: int = 4) -> dict[str, Tensor]:
    """A merged adapter: an update of low rank on the matrices of `ADAPTED`, and none on the others."""
    generator = torch.Generator().manual_seed(seed)
    tuned = dict(base)
    for name, weight in base.items():
        if any(part in name for part in ADAPTED):
            left, right = (torch.randn(side, rank, generator=generator) for side in weight.shape)
            tuned[name] = (weight.float() + scale * left @ right.T).to(weight.dtype)
    return tuned


def tuned_tensors(base: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Weights of every tuned entry by its name."""
    rl = planted.with_stripes(base, 1e-4, seed=3, store=torch.bfloat16)
    steps = {
        name: planted.with_stripes(base, scale, seed=7)
        for name, scale in zip(NAMED_STEPS, STEPS.values(), strict=True)
    }
    adapters = {name: with_adapter(base, 1e-3, seed=len(name)) for name in ("their-sft", "their-sft-2")}
    return {"their-rl": rl, **adapters, "their-copy": base, **steps}


def write_models(root: Path, base: dict[str, Tensor], tuned: dict[str, dict[str, Tensor]]) -> None:
    """Folders of the base and of the tuned models, and ``data_manifest.yaml`` as their owner writes it."""
    for name, tensors in {"their-base": base, **tuned}.items():
        planted.write(root / "theirs" / name, tensors, CONFIG)
    known = {"data": "math", "seed": 1}
    facts = {
        "their-base": {"method": "pretrain"},
        "their-rl": {"method": "rl", "algorithm": "grpo", **known},
        "their-sft": {"method": "sft", "algorithm": "LoRA", **known},
        "their-sft-2": {"method": "sft", "algorithm": "LoRA"},
        "their-copy": {"method": "mixed"},
        **{
            name: {"method": "rl", "algorithm": "PPO", "run": "their-run", "step": step, "updates": step}
            for name, step in zip(NAMED_STEPS, STEPS, strict=True)
        },
    }
    entries = [
        Entry(
            name=name,
            source=Folder(path=f"theirs/{name}"),
            base=None if name == "their-base" else "their-base",
            **own,
        )
        for name, own in facts.items()
    ]
    write_manifest(root / "data_manifest.yaml", Manifest(version=1, profile="paper", checkpoints=entries))
