from __future__ import annotations

from collections import Counter

import pytest

from threegates.checkpoints.formats.roles import block, is_matrix, layer, role
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
        # Of nested counters the outermost counts.
        ("encoder.block.3.layer.1.DenseReluDense.wi.weight", (64, 16), "other", 3),
        ("decoder.block.2.layer.2.layer_norm.weight", (16,), "norm", 2),
        ("encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight", (16, 16), "q", 0),
        ("backbone.layers.7.mixer.A_log", (32, 16), "state", 7),
        ("backbone.layers.7.mixer.conv1d.weight", (32, 1, 4), "conv", 7),
        ("model.layers.1.mlp.experts.down_proj_bias", (8, 16), "bias", 1),
        # What lies in no block of the text model has no layer.
        ("visual.blocks.3.attn.q_proj.weight", (16, 16), "q", None),
        ("model.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight", (16, 16), "other", None),
        ("mtp.layers.0.self_attn.q_proj.weight", (16, 16), "q", None),
    ],
)
def test_role_and_layer(name, shape, expected, block):
    assert role(name, shape) == expected
    assert layer(name) == block


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.layers.3.mlp.up_proj.weight", ("decoder", 3)),
        ("model.language_model.layers.3.mlp.up_proj.weight", ("decoder", 3)),
        ("decoder.block.2.layer.0.SelfAttention.q.weight", ("decoder", 2)),
        ("encoder.block.2.layer.0.SelfAttention.q.weight", ("encoder", 2)),
        ("bert.encoder.layer.5.intermediate.dense.weight", ("encoder", 5)),
        ("visual.blocks.3.attn.qkv.weight", ("vision", 3)),
        ("model.vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight", ("vision", 1)),
        ("audio_tower.layers.4.self_attn.q_proj.weight", ("audio", 4)),
        ("mtp.layers.0.self_attn.q_proj.weight", ("mtp", 0)),
        ("model.norm.weight", None),
        ("multi_modal_projector.linear_1.weight", None),
    ],
)
def test_a_block_is_a_stack_and_a_number(name, expected):
    assert block(name) == expected


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.self_attn.q_proj.weight", (16, 16), True),
        ("model.layers.0.mlp.gate.weight", (8, 16), True),
        ("model.layers.0.self_attn.q_proj.bias", (16,), False),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (8, 32), False),
        ("model.layers.0.mlp.experts.gate_up_proj", (8, 32, 16), False),
        ("backbone.layers.0.mixer.A_log", (32, 16), False),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 4), False),
    ],
)
def test_a_matrix_maps_activations(name, shape, expected):
    assert is_matrix(name, shape) is expected


def test_every_tensor_of_a_llama_has_a_role(llama):
    infos = Checkpoint.open(llama[0]).infos.values()
    assert Counter(role(info.name, info.shape) for info in infos) == Counter(
        embedding=1, head=1, norm=5, q=2, k=2, v=2, o=2, gate=2, up=2, down=2
    )
    assert Counter(layer(info.name) for info in infos) == Counter({None: 3, 0: 9, 1: 9})
