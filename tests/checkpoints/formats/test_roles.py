from __future__ import annotations

from collections import Counter

import pytest

from threegates.checkpoints.formats.roles import layer, role
from threegates.checkpoints.tensors import Checkpoint


@pytest.mark.parametrize(
    ("name", "shape", "expected", "block"),
    [
        ("model.embed_tokens.weight", (48, 16), "embedding", None),
        ("transformer.wte.weight", (48, 16), "embedding", None),
        ("lm_head.weight", (48, 16), "head", None),
        ("lm_head.bias", (48,), "bias", None),
        ("model.norm.weight", (16,), "norm", None),
        ("model.layers.0.input_layernorm.weight", (16,), "norm", 0),
        ("model.layers.11.self_attn.q_norm.weight", (4,), "norm", 11),
        ("model.layers.11.self_attn.q_proj.weight", (16, 16), "q", 11),
        ("model.layers.11.self_attn.q_proj.bias", (16,), "bias", 11),
        ("model.layers.3.mlp.experts.17.down_proj.weight", (16, 24), "down", 3),
        ("model.layers.3.mlp.gate.weight", (8, 16), "other", 3),
        ("encoder.layer.5.attention.self.key.weight", (16, 16), "k", 5),
        ("encoder.layer.5.attention.output.dense.weight", (16, 16), "o", 5),
        ("encoder.layer.5.intermediate.dense.weight", (64, 16), "up", 5),
        ("encoder.layer.5.output.dense.weight", (16, 64), "down", 5),
        ("encoder.layer.5.output.dense.bias", (16,), "bias", 5),
        ("encoder.layer.5.attention.output.LayerNorm.weight", (16,), "norm", 5),
        ("pooler.dense.weight", (16, 16), "other", None),
        ("transformer.h.2.attn.out_proj.weight", (16, 16), "o", 2),
        ("weight", (2, 2), "other", None),
    ],
)
def test_role_and_layer(name, shape, expected, block):
    assert role(name, shape) == expected
    assert layer(name) == block


def test_every_tensor_of_a_llama_has_a_role(llama):
    infos = Checkpoint.open(llama[0]).infos.values()
    assert Counter(role(info.name, info.shape) for info in infos) == Counter(
        embedding=1, head=1, norm=5, q=2, k=2, v=2, o=2, gate=2, up=2, down=2
    )
    assert Counter(layer(info.name) for info in infos) == Counter({None: 3, 0: 9, 1: 9})
