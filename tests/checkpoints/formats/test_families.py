"""Names and fused matrices of each family, held against what transformers' own models save and compute."""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from threegates.checkpoints.formats.families import Family, family_of, naming, table
from threegates.checkpoints.formats.headers import BITS
from threegates.checkpoints.formats.roles import LINEAR, block, layer, role
from threegates.checkpoints.pairs import align
from threegates.checkpoints.tensors import SINGLE, Checkpoint
from threegates.checkpoints.views import canonical, naming_digest
from threegates.errors import CheckpointError

TINY = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
# transformers' Phi has no head_dim of its own.
WITHOUT_HEAD_DIM = {key: value for key, value in TINY.items() if key != "head_dim"}
MIXTURE = TINY | {
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 8,
}
SETTINGS = {
    "llama": TINY,
    "mistral": TINY,
    "qwen2": WITHOUT_HEAD_DIM,
    "qwen3": TINY,
    "gemma": TINY,
    "gemma2": TINY,
    "gemma3_text": TINY,
    "phi": WITHOUT_HEAD_DIM,
    "phi3": WITHOUT_HEAD_DIM,
    "qwen2_moe": MIXTURE | {"head_dim": 4},
    "qwen3_moe": MIXTURE,
    "mixtral": MIXTURE,
}
#: Stored as Llama's: nothing to rename.
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "qwen2_moe", "qwen3_moe")
# Linear layers of a block; a mixture has them once an expert.
BLOCK = Counter(q=1, k=1, v=1, o=1, gate=1, up=1, down=1)
THREE_EXPERTS = BLOCK + Counter(gate=2, up=2, down=2)
LINEAR_OF = dict.fromkeys(SETTINGS, BLOCK) | {
    "phi": BLOCK - Counter(gate=1),
    "qwen3_moe": THREE_EXPERTS,
    "mixtral": THREE_EXPERTS,
    "qwen2_moe": THREE_EXPERTS + Counter(gate=1, up=1, down=1),
}
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def model_of(kind: str, **changes):
    """A tiny model of transformers, every parameter drawn."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in SETTINGS[kind].items() if key != "attn_implementation"}
    config = AutoConfig.for_model(kind, **(settings | changes))
    return drawn(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())


def drawn(model):
    torch.manual_seed(11)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """The model of a family and the checkpoint that it saves, made once."""
    made = {}

    def save(kind: str, **options):
        key = (kind, *options.items())
        if key not in made:
            folder, model = tmp_path_factory.mktemp(kind), model_of(kind)
            model.save_pretrained(folder, **options)
            made[key] = (model, Checkpoint.open(folder))
        return made[key]

    return save


@pytest.fixture
def write(tmp_path):
    """A checkpoint of these tensors and this config."""

    def build(tensors: dict[str, torch.Tensor], name: str = "made", **config) -> Checkpoint:
        folder = tmp_path / name
        folder.mkdir()
        save_file(tensors, folder / SINGLE)
        (folder / "config.json").write_text(json.dumps({"tie_word_embeddings": False} | config))
        return Checkpoint.open(folder)

    return build


def refusal(checkpoint: Checkpoint) -> str:
    with pytest.raises(CheckpointError) as caught:
        canonical(checkpoint)
    assert caught.value.remedy
    return str(caught.value)


# Every family, as transformers saves it


@pytest.mark.parametrize("kind", SETTINGS)
def test_roles_and_layers_of_canonical_names(saved, kind):
    infos = canonical(saved(kind)[1]).infos
    for number in range(TINY["num_hidden_layers"]):
        linear = [role(name, info.shape) for name, info in infos.items() if layer(name) == number]
        assert Counter(one for one in linear if one in LINEAR) == LINEAR_OF[kind]
    outside = Counter(role(name, info.shape) for name, info in infos.items() if layer(name) is None)
    assert outside - Counter(bias=2) == Counter(embedding=1, head=1, norm=1)
    assert all(name.startswith(("model.", "lm_head.")) for name in infos)


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_a_family_is_called(saved, kind):
    family = family_of(saved(kind)[1])
    assert family.known
    assert family.model_type == kind
    assert family.note.startswith(family.name + ": ")
    assert (family.note == f"{family.name}: names as stored") is (kind in PLAIN)


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_families_stay_the_same_object(saved, kind):
    checkpoint = saved(kind)[1]
    assert canonical(checkpoint) is checkpoint
    assert naming_digest(checkpoint) == ""


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_stored_tensor_is_under_canonical_names_once_bit_for_bit(saved, kind):
    checkpoint = saved(kind)[1]
    view = canonical(checkpoint)
    own = [info for info in view.infos.values() if info.alias_of is None]
    stored = [info for info in checkpoint.infos.values() if info.alias_of is None]
    assert sum(info.size for info in own) == sum(info.size for info in stored)
    # Sorted by where their bytes lie, the parts are the file itself.
    both = [sorted(infos, key=lambda info: info.offsets) for infos in (own, stored)]
    read = [
        b"".join(one.stored(info.name).contiguous().view(torch.uint8).numpy().tobytes() for info in infos)
        for one, infos in zip((view, checkpoint), both, strict=True)
    ]
    assert read[0] == read[1]


@pytest.mark.parametrize("kind", SETTINGS)
def test_canonical_names_are_their_own_canonical_names(saved, kind):
    view = canonical(saved(kind)[1])
    assert canonical(view) is view
    assert not naming(view).changes


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_pair_of_one_family_aligns(saved, kind):
    view = canonical(saved(kind)[1])
    assert {row.status.value for row in align(view, view)} == {"compared"}


# What the model computes


def calls_of(model, *suffixes: str):
    """Input and output of every module whose name ends so, while the model reads some tokens."""
    seen, hooks = {}, []

    def watch(name: str):
        return lambda _module, inputs, output: seen.update({name: (inputs[0], output)})

    for name, module in model.named_modules():
        if name.endswith(suffixes):
            hooks.append(module.register_forward_hook(watch(name)))
    with torch.no_grad():
        model(TOKENS)
    for hook in hooks:
        hook.remove()
    return seen


def linear(view: Checkpoint, module: str, x: torch.Tensor) -> torch.Tensor:
    bias = view.stored(module + ".bias") if module + ".bias" in view.infos else None
    return F.linear(x, view.stored(module + ".weight"), bias)


@pytest.mark.parametrize("kind", [kind for kind in SETTINGS if kind not in ("phi3", "phi")])
def test_attention_projections_give_what_the_model_s_modules_give(saved, kind):
    model, checkpoint = saved(kind)
    view = canonical(checkpoint)
    seen = calls_of(model, "q_proj", "k_proj", "v_proj", "o_proj")
    assert len(seen) == 4 * TINY["num_hidden_layers"]
    for module, (x, y) in seen.items():
        assert torch.equal(linear(view, module, x), y), module


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("self_attn.dense", "self_attn.o_proj"),
        ("mlp.fc1", "mlp.up_proj"),
        ("mlp.fc2", "mlp.down_proj"),
        ("self_attn.q_proj", "self_attn.q_proj"),
    ],
)
def test_phi_s_renamed_modules_give_what_the_model_s_give(saved, stored, name):
    model, checkpoint = saved("phi")
    view = canonical(checkpoint)
    seen = calls_of(model, stored)
    assert len(seen) == TINY["num_hidden_layers"]
    for module, (x, y) in seen.items():
        assert torch.equal(linear(view, module.replace(stored, name), x), y), module


def test_phi_3_s_queries_keys_and_values_are_those_of_its_attention(saved, monkeypatch):
    from transformers.models.phi3 import modeling_phi3

    model, checkpoint = saved("phi3")
    view = canonical(checkpoint)
    found: list[tuple[torch.Tensor, ...]] = []
    rotate, attend = modeling_phi3.apply_rotary_pos_emb, modeling_phi3.eager_attention_forward

    def watched_rotate(q, k, *rest, **options):
        found.append((q, k))
        return rotate(q, k, *rest, **options)

    def watched_attend(module, q, k, v, *rest, **options):
        found[-1] += (v,)
        return attend(module, q, k, v, *rest, **options)

    monkeypatch.setattr(modeling_phi3, "apply_rotary_pos_emb", watched_rotate)
    monkeypatch.setattr(modeling_phi3, "eager_attention_forward", watched_attend)
    inputs = [x for x, _ in calls_of(model, "qkv_proj").values()]
    assert len(inputs) == len(found) == TINY["num_hidden_layers"]
    for number, (x, heads) in enumerate(zip(inputs, found, strict=True)):
        for letter, theirs in zip("qkv", heads, strict=True):
            ours = linear(view, f"model.layers.{number}.self_attn.{letter}_proj", x)
            flat = theirs.transpose(1, 2).flatten(2)
            assert torch.allclose(ours, flat, rtol=0, atol=1e-5), (number, letter)


def test_phi_3_s_gate_is_what_goes_into_the_activation(saved):
    model, checkpoint = saved("phi3")
    view = canonical(checkpoint)
    inside = calls_of(model, "gate_up_proj", "activation_fn", "down_proj")
    for number in range(TINY["num_hidden_layers"]):
        mlp = f"model.layers.{number}.mlp"
        x = inside[f"{mlp}.gate_up_proj"][0]
        gate, activated = inside[f"{mlp}.activation_fn"]
        assert torch.allclose(linear(view, f"{mlp}.gate_proj", x), gate, rtol=0, atol=1e-5)
        product = linear(view, f"{mlp}.up_proj", x) * activated
        assert torch.allclose(product, inside[f"{mlp}.down_proj"][0], rtol=0, atol=1e-5)


def test_phi_3_s_canonical_tensors_are_a_llama_with_the_same_logits(saved):
    from transformers import LlamaConfig, LlamaForCausalLM

    model, checkpoint = saved("phi3")
    view = canonical(checkpoint)
    config = LlamaConfig(**WITHOUT_HEAD_DIM, rms_norm_eps=model.config.rms_norm_eps)
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict({name: view.stored(name) for name in view.infos}, strict=True)
    with torch.no_grad():
        assert torch.allclose(llama(TOKENS).logits, model(TOKENS).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe", "mixtral"])
def test_stacked_experts_are_those_that_transformers_saves_one_by_one(saved, kind):
    stacked = saved(kind, save_original_format=False)[1]
    assert stacked.infos["model.layers.0.mlp.experts.gate_up_proj"].shape[0] == 3
    cut, single = canonical(stacked), canonical(saved(kind)[1])
    assert {name: info.shape for name, info in cut.infos.items()} == {
        name: info.shape for name, info in single.infos.items()
    }
    assert all(torch.equal(cut.stored(name), single.stored(name)) for name in cut.infos)
    assert "are cut into 18" in family_of(stacked).note


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe", "mixtral"])
def test_an_expert_computes_what_the_model_s_expert_computes(saved, kind):
    model, checkpoint = saved(kind)
    view = canonical(checkpoint)
    torch.manual_seed(5)
    x = torch.randn(4, TINY["hidden_size"])
    for number in range(3):
        at = torch.full((4, 1), number)
        with torch.no_grad():
            theirs = model.model.layers[1].mlp.experts(x, at, torch.ones(4, 1))
        expert = f"model.layers.1.mlp.experts.{number}"
        inner = F.silu(linear(view, f"{expert}.gate_proj", x)) * linear(view, f"{expert}.up_proj", x)
        assert torch.allclose(linear(view, f"{expert}.down_proj", inner), theirs, rtol=0, atol=1e-4)


def test_qwen_3_5_s_linear_attention_is_cut_where_the_model_cuts_it(tmp_path):
    linear_attention = {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 6,
    }
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in TINY.items() if key != "attn_implementation"}
    config = AutoConfig.for_model("qwen3_5_text", **settings, **linear_attention)
    model = drawn(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())
    model.save_pretrained(tmp_path)
    view = canonical(Checkpoint.open(tmp_path))
    ((module, (x, y)),) = calls_of(model, "in_proj_qkv").items()
    attention = model.get_submodule(module.removesuffix(".in_proj_qkv"))
    parts = y.split([attention.key_dim, attention.key_dim, attention.value_dim], dim=-1)
    for letter, theirs in zip("qkv", parts, strict=True):
        name = module.replace("in_proj_qkv", f"{letter}_proj")
        assert role(f"{name}.weight", (1, 1)) == letter
        assert torch.allclose(linear(view, name, x), theirs, rtol=0, atol=1e-5)


# The text part of a model of text and images


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Gemma 3 with a vision tower, saved under both of transformers' names; and its text part alone."""
    import transformers

    text = {key: value for key, value in TINY.items() if key != "attn_implementation"}
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = transformers.AutoConfig.for_model(
        "gemma3", text_config=text | {"model_type": "gemma3_text"}, vision_config=vision
    )
    whole = drawn(transformers.Gemma3ForConditionalGeneration(config).eval())
    alone = transformers.Gemma3ForCausalLM(config.text_config).eval()
    alone.model.load_state_dict(whole.model.language_model.state_dict())
    folder = tmp_path_factory.mktemp("images")
    whole.save_pretrained(folder / "old")
    whole.save_pretrained(folder / "new", save_original_format=False)
    alone.save_pretrained(folder / "text")
    return [Checkpoint.open(folder / name) for name in ("old", "new", "text")]


def test_the_text_part_aligns_with_the_text_model_under_both_prefixes(images):
    old, new, text = images
    assert "language_model.model.norm.weight" in old.infos
    assert "model.language_model.norm.weight" in new.infos
    assert canonical(text) is text
    for one in (old, new):
        view = canonical(one)
        outside = [name for name in view.infos if "multi_modal_projector" in name or "vision" in name]
        assert [name for name in view.infos if name not in outside] == list(text.infos)
        assert {block(name)[0] for name in outside if block(name)} == {"vision"}
        found = {row.name: row.status.value for row in align(text, view)}
        assert {found[name] for name in found if name in text.infos} == {"compared"}
        assert {found[name] for name in found if name not in text.infos} == {"only-in-tuned"}
        assert all(torch.equal(view.stored(name), text.stored(name)) for name in text.infos)


def test_a_tied_head_follows_the_renamed_embedding(images):
    for one in images[:2]:
        head = canonical(one).infos["lm_head.weight"]
        assert head.alias_of == "model.embed_tokens.weight"
        assert "model.embed_tokens.weight" in canonical(one).infos


def test_a_tower_s_tensors_are_rows_of_their_own_stack(images):
    old = images[0]
    view = canonical(old)
    tower = [name for name in view.infos if name.startswith("vision_tower.")]
    assert len(tower) == sum(name.startswith("vision_tower.") for name in old.infos) > 10
    assert all(layer(name) is None for name in tower)
    linear = [role(name, view.infos[name].shape) for name in tower if block(name)]
    assert Counter(one for one in linear if one in LINEAR) == BLOCK - Counter(gate=1)
    (up,) = (name for name in old.infos if name.endswith("layers.0.mlp.fc1.weight"))
    assert torch.equal(view.stored(up.replace("fc1", "up_proj")), old.stored(up))
    family = family_of(old)
    assert (family.name, family.model_type, family.known) == ("Gemma", "gemma3", True)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "never_heard_of"])
def test_a_tower_s_fused_queries_keys_and_values_are_cut_in_any_family(write, kind):
    fused = {"weight": torch.arange(72.0).reshape(18, 4), "bias": torch.arange(18.0)}
    names = {f"visual.blocks.1.attn.qkv.{what}": value for what, value in fused.items()}
    view = canonical(write(under("model.") | names, model_type=kind))
    for place, letter in enumerate("qkv"):
        for what, value in fused.items():
            part = view.stored(f"visual.blocks.1.attn.{letter}_proj.{what}")
            assert torch.equal(part, value[6 * place : 6 * place + 6])
    assert "qkv" not in " ".join(view.infos)
    assert ("tower" in family_of(view).note) is (kind == "never_heard_of")


@pytest.mark.parametrize("name", ["visual.blocks.1.attn.qkv.weight", "model.layers.0.attn.qkv.weight"])
def test_what_is_not_three_thirds_or_of_no_tower_is_not_cut(write, name):
    rows = 8 if "visual" in name else 9
    checkpoint = write({name: torch.ones(rows, 4)}, model_type="never_heard_of")
    assert canonical(checkpoint) is checkpoint


# Prefixes


BODY = {
    "model.embed_tokens.weight": (8, 4),
    "model.layers.0.self_attn.q_proj.weight": (4, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (8, 4),
}
PREFIXES = {
    "model.": ("model.", ""),
    "none": ("", ""),
    "transformer.": ("transformer.", ""),
    "language_model.model.": ("language_model.model.", "language_model."),
    "model.language_model.": ("model.language_model.", ""),
    "language_model.": ("language_model.", ""),
    "compiled": ("_orig_mod.model.", "_orig_mod."),
    "wrapped twice": ("module._orig_mod.model.", "module._orig_mod."),
}


def under(prefix: str) -> dict[str, torch.Tensor]:
    """The body's tensors under one of PREFIXES, each with values of its own."""
    body, head = PREFIXES[prefix]
    named = {
        name: head + name if name.startswith("lm_head") else body + name.removeprefix("model.")
        for name in BODY
    }
    return {
        named[name]: torch.full(shape, float(number)) for number, (name, shape) in enumerate(BODY.items())
    }


@pytest.mark.parametrize("prefix", PREFIXES)
def test_checkpoints_under_other_prefixes_align(write, prefix):
    base = canonical(write(under("model."), "base", model_type="llama"))
    tuned = canonical(write(under(prefix), "tuned", model_type="llama"))
    assert list(tuned.infos) == sorted(BODY)
    assert {row.status.value for row in align(base, tuned)} == {"compared"}
    assert all(torch.equal(base.stored(name), tuned.stored(name)) for name in BODY)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_without_a_stored_head_is_tied_or_lacks_one(write, prefix, tied):
    kept = {name: tensor for name, tensor in under(prefix).items() if "lm_head" not in name}
    view = canonical(write(kept, model_type="llama", tie_word_embeddings=tied))
    assert ("lm_head.weight" in view.infos) is tied
    if tied:
        assert view.infos["lm_head.weight"].alias_of == "model.embed_tokens.weight"
        assert torch.equal(view.stored("lm_head.weight"), view.stored("model.embed_tokens.weight"))


def test_a_stored_head_under_a_prefix_wins_over_the_alias(write):
    view = canonical(write(under("language_model.model."), model_type="llama", tie_word_embeddings=True))
    assert view.infos["lm_head.weight"].alias_of is None
    assert view.stored("lm_head.weight").unique().tolist() == [3.0]


def test_a_stored_head_is_compared_with_a_tied_one_and_a_vocabulary_is_resized(write):
    base = {name: tensor for name, tensor in under("none").items() if "lm_head" not in name}
    tuned = under("transformer.") | {"transformer.embed_tokens.weight": torch.ones(10, 4)}
    rows = align(
        canonical(write(base, "base", model_type="llama", tie_word_embeddings=True)),
        canonical(write(tuned, "tuned", model_type="llama")),
    )
    assert {row.name: row.status.value for row in rows} == dict.fromkeys(BODY, "compared") | {
        "lm_head.weight": "compared",
        "model.embed_tokens.weight": "resized",
    }


def test_two_tensors_that_mean_the_same_are_refused_by_name(write):
    tensors = under("model.") | {"language_model.model.norm.weight": torch.ones(4)}
    message = refusal(write(tensors, model_type="llama"))
    assert "'model.norm.weight'" in message
    assert "'language_model.model.norm.weight'" in message


def test_a_fused_tensor_beside_one_of_its_parts_is_refused_by_name(write):
    tensors = phi_3(heads=2, key_heads=1, head_dim=2, hidden=4, inner=3)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(3, 4)
    message = refusal(write(tensors, **phi_3_config(2, 1, 2, 4, 3)))
    assert "'model.layers.0.mlp.gate_up_proj.weight' and 'model.layers.0.mlp.up_proj.weight'" in message


# Unknown families


@pytest.mark.parametrize(
    "config", [{"model_type": "bert"}, {}, {"model_type": None}, {"model_type": ["llama"]}]
)
def test_an_unknown_family_is_taken_as_stored_and_says_so(write, config):
    tensors = {
        "transformer.h.0.attn.c_attn.weight": torch.ones(4, 12),
        "layers.0.mlp.fc1.weight": torch.ones(2, 2),
    }
    checkpoint = write(tensors, **config)
    assert canonical(checkpoint) is checkpoint
    family = family_of(checkpoint)
    assert (family.name, family.known) == ("unknown", False)
    assert "names they are stored under" in family.note
    assert ("'bert'" in family.note) is (config.get("model_type") == "bert")


def test_a_text_config_of_an_unknown_family_stays_unknown(write):
    family = family_of(write({"x": torch.ones(2, 2)}, model_type="new_vl", text_config={"model_type": "new"}))
    assert (family.known, family.model_type) == (False, "new_vl")


def test_the_family_of_a_view_is_that_of_its_checkpoint(saved):
    checkpoint = saved("phi3")[1]
    assert family_of(canonical(checkpoint)) == family_of(checkpoint)
    assert family_of(checkpoint) == Family("Phi-3", "phi3", True, "Phi-3: 4 fused tensors are cut into 10")


# Fused tensors


def phi_3_config(heads: int, key_heads: int, head_dim: int, hidden: int, inner: int) -> dict:
    return {
        "model_type": "phi3",
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": head_dim,
        "hidden_size": hidden,
        "intermediate_size": inner,
    }


def phi_3(heads, key_heads, head_dim, hidden, inner, dtype=torch.float32, seed=0) -> dict[str, torch.Tensor]:
    """A layer of Phi-3, weights and biases, of any bits (NaN among them)."""
    rows = {"self_attn.qkv_proj": (heads + 2 * key_heads) * head_dim, "mlp.gate_up_proj": 2 * inner}
    shapes = {f"{name}.weight": (count, hidden) for name, count in rows.items()}
    shapes |= {f"{name}.bias": (count,) for name, count in rows.items()}
    generator = torch.Generator().manual_seed(seed)
    return {f"model.layers.0.{name}": any_bits(shape, dtype, generator) for name, shape in shapes.items()}


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    width = torch.empty(0, dtype=dtype).element_size()
    wide = (*shape[:-1], shape[-1] * width)
    return torch.randint(0, 256, wide, dtype=torch.uint8, generator=generator).view(dtype)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


small = st.integers(1, 5)
stored_types = st.sampled_from(
    [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)


@given(small, small, small, st.integers(1, 9), small, stored_types, st.integers(0, 9))
def test_parts_put_together_are_the_fused_tensor_bit_for_bit(
    tmp_path_factory, heads, key_heads, head_dim, hidden, inner, dtype, seed
):
    tensors = phi_3(heads, key_heads, head_dim, hidden, inner, dtype, seed)
    folder = tmp_path_factory.mktemp("fused")
    save_file(tensors, folder / SINGLE)
    config = phi_3_config(heads, key_heads, head_dim, hidden, inner) | {"tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    view = canonical(Checkpoint.open(folder))
    assert len(view.infos) == 10
    for kind in ("weight", "bias"):
        parts = [view.stored(f"model.layers.0.self_attn.{letter}_proj.{kind}") for letter in "qkv"]
        assert [part.shape[0] for part in parts] == [
            heads * head_dim,
            key_heads * head_dim,
            key_heads * head_dim,
        ]
        assert same_bits(torch.cat(parts), tensors[f"model.layers.0.self_attn.qkv_proj.{kind}"])
        parts = [view.stored(f"model.layers.0.mlp.{half}_proj.{kind}") for half in ("gate", "up")]
        assert same_bits(torch.cat(parts), tensors[f"model.layers.0.mlp.gate_up_proj.{kind}"])


@given(small, small, small, stored_types, st.integers(0, 9))
def test_experts_put_together_are_the_stack_bit_for_bit(
    tmp_path_factory, experts, inner, hidden, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    stacks = {
        "gate_up_proj": any_bits((experts, 2 * inner, hidden), dtype, generator),
        "down_proj": any_bits((experts, hidden, inner), dtype, generator),
    }
    folder = tmp_path_factory.mktemp("stacked")
    save_file({f"model.layers.7.mlp.experts.{name}": one for name, one in stacks.items()}, folder / SINGLE)
    sizes = {"num_experts": experts, "moe_intermediate_size": inner, "hidden_size": hidden}
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_moe", **sizes}))
    view = canonical(Checkpoint.open(folder))

    def of(number: int, name: str) -> torch.Tensor:
        return view.stored(f"model.layers.7.mlp.experts.{number}.{name}_proj.weight")

    pairs = [torch.cat([of(number, "gate"), of(number, "up")]) for number in range(experts)]
    assert same_bits(torch.stack(pairs), stacks["gate_up_proj"])
    assert same_bits(torch.stack([of(number, "down") for number in range(experts)]), stacks["down_proj"])
    assert len(view.infos) == 3 * experts


@pytest.mark.parametrize(
    ("changes", "expected", "found"),
    [
        ({"num_key_value_heads": 2}, "shape [12, 4], rows being q_proj heads * head_dim", "shape [8, 4]"),
        ({"head_dim": 3}, "shape [12, 4]", "shape [8, 4]"),
        ({"hidden_size": 5}, "shape [6, 5]", "shape [6, 4]"),
        (
            {"intermediate_size": 4},
            "shape [8, 4], rows being gate_proj inner + up_proj inner",
            "shape [6, 4]",
        ),
        (
            {"num_attention_heads": None},
            "num_attention_heads, a whole number above 0",
            "num_attention_heads: None",
        ),
        ({"num_attention_heads": True}, "a whole number above 0", "num_attention_heads: True"),
        ({"num_attention_heads": 3, "head_dim": None}, "hidden_size / num_attention_heads", "4 / 3"),
        ({"num_key_value_heads": None, "num_attention_heads": 1}, "shape [6, 4]", "shape [8, 4]"),
        ({"intermediate_size": "3"}, "intermediate_size, a whole number above 0", "intermediate_size: 3"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_by_name(write, changes, expected, found):
    tensors = {name: one for name, one in phi_3(2, 1, 2, 4, 3).items() if name.endswith(".weight")}
    message = refusal(write(tensors, **(phi_3_config(2, 1, 2, 4, 3) | changes)))
    assert "_proj.weight'" in message
    assert expected in message
    assert found in message


@pytest.mark.parametrize("missing", ["num_key_value_heads", "head_dim"])
def test_what_a_config_leaves_out_has_transformers_defaults(write, missing):
    whole = phi_3_config(2, 2, 2, 4, 3)
    config = {key: value for key, value in whole.items() if key != missing}
    assert canonical(write(phi_3(2, 2, 2, 4, 3), **config)).infos[
        "model.layers.0.self_attn.k_proj.weight"
    ].shape == (
        4,
        4,
    )


def test_a_text_config_says_how_the_text_part_is_cut(write):
    tensors = {
        name.replace("model.", "language_model.model."): one for name, one in phi_3(2, 1, 2, 4, 3).items()
    }
    outer = {"hidden_size": 7, "num_attention_heads": 5, "intermediate_size": 9, "head_dim": 11}
    view = canonical(
        write(tensors, **outer | {"model_type": "new_vl", "text_config": phi_3_config(2, 1, 2, 4, 3)})
    )
    assert view.infos["model.layers.0.self_attn.q_proj.weight"].shape == (4, 4)
    assert family_of(view).name == "Phi-3"


@pytest.mark.parametrize("shape", [(3, 4, 6), (2, 6, 4), (18, 4), (3, 6, 4, 1)])
def test_a_stack_of_experts_of_another_layout_is_refused_by_name(write, shape):
    sizes = {"num_experts": 3, "moe_intermediate_size": 3, "hidden_size": 4}
    tensors = {"model.layers.0.mlp.experts.gate_up_proj": torch.ones(shape)}
    message = refusal(write(tensors, model_type="qwen3_moe", **sizes))
    assert "'model.layers.0.mlp.experts.gate_up_proj'" in message
    assert "shape [3, 6, 4]" in message
    assert f"shape {list(shape)}" in message
    assert "transposed" in message


# Hostile and odd input


def test_names_that_only_look_like_the_family_s_are_left_alone(write):
    odd = [
        "model.layers.x.self_attn.qkv_proj.weight",
        "model.layers.0.self_attn.qkv_proj.weight.extra",
        "model.layers.0.self_attn.qkv_proj.weight_scale_inv",
        "model.layers.٣.self_attn.qkv_proj.weight",
        "model.layers.0.self_attn.qkv_proj.weight\n",
        "model.layers..self_attn.qkv_proj.weight",
        "model.layers.0.self_attn_qkv_proj.weight",
        "decoder.layers.0.self_attn.qkv_proj.weight",
        "../model.layers.0.self_attn.qkv_proj.weight",
        "*",
        "#",
        "",
        "model.",
    ]
    checkpoint = write({name: torch.ones(3) for name in odd}, **phi_3_config(2, 1, 2, 4, 3))
    assert canonical(checkpoint) is checkpoint


def test_layer_numbers_of_ten_digits_stay_as_they_are_written(write):
    tensors = {
        f"layers.{number}.self_attn.dense.weight": torch.ones(2, 2) for number in ("9999999999", "007")
    }
    view = canonical(write(tensors, model_type="phi"))
    assert list(view.infos) == [
        "model.layers.007.self_attn.o_proj.weight",
        "model.layers.9999999999.self_attn.o_proj.weight",
    ]
    assert [layer(name) for name in view.infos] == [7, 9999999999]


def test_kernels_of_convolutions_and_scalars_stay_as_they_are(write):
    tensors = {
        "model.layers.0.conv.weight": torch.ones(2, 3, 4),
        "model.layers.0.scale": torch.tensor(2.0),
        "model.layers.0.empty.weight": torch.ones(0, 3),
    }
    checkpoint = write(tensors, model_type="llama")
    assert canonical(checkpoint) is checkpoint
    assert {role(name, info.shape) for name, info in checkpoint.infos.items()} == {"other"}


def test_a_fused_tensor_of_half_bytes_stays_whole(tmp_path):
    name = "model.layers.0.mlp.gate_up_proj.weight"
    header = json.dumps({name: {"dtype": "F4", "shape": [6, 4], "data_offsets": [0, 12]}}).encode()
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    (tmp_path / "config.json").write_text(json.dumps(phi_3_config(2, 1, 2, 4, 3)))
    checkpoint = Checkpoint.open(tmp_path)
    assert BITS["F4"] < 8
    assert canonical(checkpoint) is checkpoint


def test_a_checkpoint_released_without_weights_keeps_its_names_and_refuses_tensors(write, tmp_path):
    from threegates.checkpoints.tensors import WITHOUT_WEIGHTS, without_weights

    whole = write(phi_3(2, 1, 2, 4, 3), **phi_3_config(2, 1, 2, 4, 3))
    released = tmp_path / "released"
    released.mkdir()
    (released / "config.json").write_bytes((whole.folder / "config.json").read_bytes())
    (released / WITHOUT_WEIGHTS).write_text(json.dumps(without_weights(whole)))
    view = canonical(Checkpoint.open(released))
    assert list(view.infos) == list(canonical(whole).infos)
    assert view.digest() == whole.digest()
    assert {info.offsets for info in view.infos.values()} == {(0, 0)}
    with pytest.raises(CheckpointError, match="released without its weights"):
        view.stored("model.layers.0.mlp.up_proj.weight")


# The table itself


def test_the_table_is_whole():
    entries = table().families
    kinds = [kind for entry in entries.values() for kind in entry.model_types]
    assert len(kinds) == len(set(kinds))
    assert set(SETTINGS) <= set(kinds)
    for entry in entries.values():
        for fused in entry.fused.values():
            products = [*fused.into.values(), fused.columns, *([fused.over] if fused.over else [])]
            assert {name.strip() for text in products for name in text.split("*")} <= set(table().sizes)
            assert all(("#" in name) == bool(fused.over) for name in fused.into)
        names = list(entry.rename.items()) + [
            (one, name) for one, two in entry.fused.items() for name in two.into
        ]
        assert all(stored.count("*") == name.count("*") for stored, name in names)


#: Canonical modules that are no linear layer of a block.
OTHERS = {
    "norm": ("norm", None),
    "lm_head": ("head", None),
    "per_layer_model_projection": ("other", None),
    "layers.*.mlp.gate": ("other", 1),
    "layers.*.mlp.router": ("other", 1),
}


def test_every_canonical_module_of_the_table_has_a_role():
    for entry in table().families.values():
        named = list(entry.rename.values()) + [name for fused in entry.fused.values() for name in fused.into]
        for name in named:
            full = f"model.{name.replace('*', '1').replace('#', '2')}.weight"
            expected, number = OTHERS.get(name, (None, 1))
            shape = (4,) if expected == "norm" else (4, 4)
            assert role(full, shape) in ((expected,) if expected else LINEAR), name
            assert layer(full) == number


def test_every_module_of_a_tower_has_a_role():
    towers = table().towers
    named = [*towers.rename.values(), *(name for names in towers.thirds.values() for name in names)]
    assert {role(f"visual.blocks.0.{name}.weight", (4, 4)) for name in named} <= set(LINEAR)


def test_an_unknown_key_in_the_table_is_refused():
    from pydantic import ValidationError

    content = table().model_dump()
    content["families"]["Llama"]["renmae"] = {}
    with pytest.raises(ValidationError, match="renmae"):
        type(table()).model_validate(content)


def test_all_data_files_of_the_package_are_installed():
    import fnmatch
    import tomllib

    root = Path(__file__).resolve().parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]
    found = 0
    for folder, _, files in os.walk(root / "src" / "threegates"):
        package = ".".join(Path(folder).relative_to(root / "src").parts)
        for file in files:
            if not file.endswith((".py", ".pyc")):
                found += 1
                assert any(fnmatch.fnmatch(file, one) for one in patterns.get(package, [])), file
    assert found


def test_names_as_stored_are_read_from_the_file_that_transformers_wrote(saved):
    checkpoint = saved("phi3")[1]
    raw = load_file(checkpoint.folder / SINGLE)
    fused = raw["model.layers.1.self_attn.qkv_proj.weight"]
    assert torch.equal(canonical(checkpoint).stored("model.layers.1.self_attn.k_proj.weight"), fused[16:24])
