"""Pairs that people have, made by hand: what `book/pairs.yaml` says of each has to be what happens.

A situation is a function of a folder, in which it writes `base` and `tuned`. Its name is that of its entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.family_tables import family
from tests.checkpoints.made import HIDDEN, ROWS, decoder, values, written
from threegates.checkpoints.tensors import INDEX, SINGLE

SITUATIONS: dict[str, Callable[[Path], None]] = {}
NUMBERS = torch.arange(9).reshape(1, 9)


def situation(make: Callable[[Path], None]) -> Callable[[Path], None]:
    """Take a function among the situations, by its name."""
    SITUATIONS[make.__name__] = make
    return make


def pair(
    folder: Path, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], config: Mapping | None = None
) -> None:
    """Write both sides, with one config."""
    written(folder / "base", base, **(config or {}))
    written(folder / "tuned", tuned, **(config or {}))


def in_front(tensors: Mapping[str, Tensor], front: str) -> dict[str, Tensor]:
    """All names with something in front."""
    return {front + name: value for name, value in tensors.items()}


def renamed(tensors: Mapping[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    """All names with one word in another's place."""
    return {name.replace(old, new): value for name, value in tensors.items()}


def singles(inner: int = 5, count: int = 3) -> dict[str, Tensor]:
    """Experts of one block, one by one."""
    shapes = {"gate_proj": (inner, HIDDEN), "up_proj": (inner, HIDDEN), "down_proj": (HIDDEN, inner)}
    names = {
        f"model.layers.0.mlp.experts.{n}.{kind}.weight": shapes[kind] for n in range(count) for kind in shapes
    }
    return {name: values(name, shape) for name, shape in names.items()}


def stacks(
    one_by_one: Mapping[str, Tensor], apart: bool = False, transposed: bool = False, holder: str = "experts"
) -> dict[str, Tensor]:
    """These experts in one tensor each kind, gate and up in one of them or apart."""
    kinds = {
        kind: torch.stack([value for name, value in one_by_one.items() if f".{kind}." in name])
        for kind in ("gate_proj", "up_proj", "down_proj")
    }
    if not apart:
        kinds = {
            "gate_up_proj": torch.cat([kinds["gate_proj"], kinds["up_proj"]], dim=1),
            "down_proj": kinds["down_proj"],
        }
    turn: Callable[[Tensor], Tensor] = (lambda x: x.transpose(1, 2)) if transposed else (lambda x: x)
    end = ".weight" if holder == "switch_mlp" else ""
    return {f"model.layers.0.mlp.{holder}.{kind}{end}": turn(value) for kind, value in kinds.items()}


# Names


@situation
def wrappers(folder: Path) -> None:
    """What torch.compile and DDP put in front of names."""
    pair(folder, decoder(), in_front(decoder(), "module._orig_mod."))


@situation
def checkpointed_modules(folder: Path) -> None:
    """Activation checkpointing puts a word in the middle of names."""
    pair(folder, decoder(), renamed(decoder(), ".mlp.", ".mlp._checkpoint_wrapped_module."))


@situation
def prefix_of_the_model(folder: Path) -> None:
    """GPT-2 or BERT with and without the word of the model in front."""
    pair(folder, decoder(front="", head=False), decoder(front="transformer."))


@situation
def images_and_text_moved(folder: Path) -> None:
    """A model of images and text as files are written, and as it is held in memory."""
    one = family("llava_next")
    pair(folder, *(one.built(layout, one.values()) for layout in ("5.23.0", "5.23.0, in memory")), one.config)


@situation
def text_part_alone(folder: Path) -> None:
    """The text part of a model of images and text, tuned and saved alone."""
    one = family("qwen3_5")
    whole = one.built("5.23.0", one.values())
    text = {name: value for name, value in whole.items() if "visual" not in name}
    written(folder / "base", whole, **one.config)
    written(folder / "tuned", renamed(text, "model.language_model.", "model."), **one.config["text_config"])


@situation
def unknown_kind_of_model(folder: Path) -> None:
    """A config of its own kind, on the tuned side."""
    one = family("phi3")
    written(folder / "base", one.built("4.57.6", one.values()), **one.config)
    written(folder / "tuned", one.built("4.57.6", one.values()), **(one.config | {"model_type": "custom"}))


# What one side lacks


@situation
def reward_model(folder: Path) -> None:
    """A head of one output in the place of the language model's."""
    pair(folder, decoder(), decoder(head=False) | {"score.weight": torch.ones(1, HIDDEN)})


@situation
def value_head(folder: Path) -> None:
    """A value head beside the language model's."""
    more = {"v_head.summary.weight": torch.ones(1, HIDDEN), "v_head.summary.bias": torch.ones(1)}
    pair(folder, decoder(), decoder() | more)


@situation
def drafting_head_lost(folder: Path) -> None:
    """Heads that predict several tokens, which are not saved again."""
    block = {
        f"mtp.{name.removeprefix('model.')}": value for name, value in decoder().items() if "layers.0" in name
    }
    pair(folder, decoder() | block, decoder())


@situation
def fewer_blocks(folder: Path) -> None:
    """A model that lost blocks."""
    pair(folder, decoder(blocks=3), decoder(blocks=2))


@situation
def buffers_of_old_uploads(folder: Path) -> None:
    """Rotary frequencies that were once stored with the weights."""
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(3) for n in range(2)}
    pair(folder, decoder() | buffers, decoder())


@situation
def head_tied_and_stored(folder: Path) -> None:
    """A base whose head is its embedding, and a tuned model with a head of its own."""
    pair(folder, decoder(head=False), decoder(), {"tie_word_embeddings": True})


@situation
def tokens_added(folder: Path) -> None:
    """A vocabulary with more rows."""
    more = {
        name: torch.cat([value, value[:2]]) for name, value in decoder().items() if value.shape[0] == ROWS
    }
    pair(folder, decoder(), decoder() | more)


@situation
def other_labels(folder: Path) -> None:
    """Classifiers of two and of three classes."""
    body = decoder(head=False)
    sides = ({**body, "score.weight": values("score", (n, HIDDEN))} for n in (2, 3))
    pair(folder, *sides, {"vocab_size": ROWS})


# What is stored


@situation
def types_mixed(folder: Path) -> None:
    """A base in bf16, a tuned model in float32."""
    pair(folder, {name: value.bfloat16() for name, value in decoder().items()}, decoder())


@situation
def whole_numbers(folder: Path) -> None:
    """Positions that are stored beside the weights."""
    pair(*(folder, *[decoder() | {"embeddings.position_ids": NUMBERS}] * 2))


@situation
def values_not_finite(folder: Path) -> None:
    """One infinite entry in one norm."""
    name = "model.layers.0.input_layernorm.weight"
    broken = decoder()[name].clone()
    broken[0] = torch.inf
    pair(folder, decoder(), decoder() | {name: broken})


@situation
def not_gathered(folder: Path) -> None:
    """Weights that lie with other processes."""
    pair(folder, decoder(), {name: torch.zeros(0) for name in decoder()})


@situation
def codes_of_few_bits(folder: Path) -> None:
    """A quantised side."""
    codes = {name: value.to(torch.int8) if value.dim() > 1 else value for name, value in decoder().items()}
    pair(folder, decoder(), codes)


@situation
def quantization_left_over(folder: Path) -> None:
    """A config that names a quantiser, of a model that is in full precision again."""
    written(folder / "base", decoder())
    written(folder / "tuned", decoder(), quantization_config={"quant_method": "bitsandbytes"})


@situation
def adapter_unmerged(folder: Path) -> None:
    """A model that was saved with an adapter inside."""
    name = "model.layers.0.self_attn.q_proj.{}.weight"
    inside = {name.format(f"lora_{side}.default"): torch.ones(2, HIDDEN) for side in "AB"}
    pair(folder, decoder(), decoder() | inside)


# Mixtures of experts


@situation
def experts_stacked_on_one_side(folder: Path) -> None:
    """Experts one by one, as files have them, and stacked, as transformers 5 holds them."""
    pair(folder, decoder() | singles(), decoder() | stacks(singles()))


@situation
def experts_stacked_on_both_sides(folder: Path) -> None:
    """Experts stacked alike."""
    pair(*(folder, *[decoder() | stacks(singles())] * 2))


@situation
def experts_transposed(folder: Path) -> None:
    """Experts stacked on both sides, transposed on one."""
    pair(folder, decoder() | stacks(singles()), decoder() | stacks(singles(), transposed=True))


@situation
def square_experts_transposed(folder: Path) -> None:
    """The same with square matrices, of which no shape tells."""
    one = singles(inner=HIDDEN)
    pair(folder, decoder() | one, decoder() | stacks(one, apart=True, transposed=True))


@situation
def experts_of_mlx(folder: Path) -> None:
    """Experts stacked as mlx_lm names them."""
    pair(folder, decoder() | singles(), decoder() | stacks(singles(), apart=True, holder="switch_mlp"))


@situation
def experts_turned_by_transformers(folder: Path) -> None:
    """Qwen3-VL's mixture of the older generation and of the newer one."""
    one = family("qwen3_vl_moe")
    pair(folder, *(one.built(layout, one.values()) for layout in ("4.57.6", "5.23.0")), one.config)


# Towers


@situation
def projector_alone(folder: Path) -> None:
    """A model of images and text of which the projector was tuned."""
    one = family("llava")
    base, tuned = (one.built("4.57.6", one.values()) for _ in range(2))
    for name in [name for name in tuned if "projector" in name]:
        tuned[name] = tuned[name] * 2
    pair(folder, base, tuned, one.config)


@situation
def encoder_and_decoder(folder: Path) -> None:
    """T5, whose two stacks count their blocks alike."""
    one = family("t5")
    pair(*(folder, *[one.built("4.57.6", one.values())] * 2), one.config)


# Folders


@situation
def shards_without_an_index(folder: Path) -> None:
    """All shards of a model, whose index was not copied."""
    written(folder / "base", decoder())
    (folder / "tuned").mkdir()
    (folder / "tuned" / "config.json").write_bytes((folder / "base" / "config.json").read_bytes())
    names = sorted(decoder())
    for number, part in enumerate((names[:5], names[5:]), 1):
        shard = folder / "tuned" / f"model-0000{number}-of-00002.safetensors"
        save_file({name: decoder()[name] for name in part}, shard)


@situation
def index_left_over(folder: Path) -> None:
    """A folder that was saved to twice, in shards and then in one file."""
    pair(folder, decoder(), decoder())
    gone = {"weight_map": dict.fromkeys(decoder(), "model-00001-of-00001.safetensors")}
    (folder / "tuned" / INDEX).write_text(json.dumps(gone))


@situation
def adapter_beside(folder: Path) -> None:
    """An adapter in the folder of the full weights."""
    pair(folder, decoder(), decoder())
    (folder / "tuned" / "adapter_config.json").write_text("{}")
    save_file({"x": torch.ones(1)}, folder / "tuned" / "adapter_model.safetensors")


@situation
def variant(folder: Path) -> None:
    """Weights under a variant's name."""
    pair(folder, decoder(), decoder())
    (folder / "tuned" / SINGLE).rename(folder / "tuned" / "model.fp16.safetensors")


@situation
def consolidated(folder: Path) -> None:
    """Weights in the layout of Mistral's own code."""
    pair(folder, decoder(), decoder())
    (folder / "tuned" / SINGLE).rename(folder / "tuned" / "consolidated.safetensors")


@situation
def one_folder_down(folder: Path) -> None:
    """The folder above the one that holds the weights."""
    written(folder / "base", decoder())
    written(folder / "tuned" / "checkpoint-100", decoder())


@situation
def adapter(folder: Path) -> None:
    """A LoRA's folder as the tuned side."""
    written(folder / "base", decoder())
    lora(folder / "tuned")


@situation
def adapter_of_chance(folder: Path) -> None:
    """An adapter whose start chance decided, and nobody kept."""
    written(folder / "base", decoder())
    lora(folder / "tuned", init_lora_weights="pissa_niter_4")


def lora(folder: Path, **settings: object) -> None:
    """A LoRA of the queries of both blocks, as peft lays it down."""
    folder.mkdir(parents=True)
    told = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    front = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    factors = {front.format(n, "A"): values(f"A{n}", (2, HIDDEN)) for n in range(2)}
    factors |= {front.format(n, "B"): values(f"B{n}", (HIDDEN, 2)) for n in range(2)}
    save_file(factors, folder / "adapter_model.safetensors")


@situation
def block_fp8(folder: Path) -> None:
    """A base of block-FP8 codes with their scales, not asked to be read as floats."""
    codes = {name: x.to(torch.float8_e4m3fn) if x.dim() == 2 else x for name, x in decoder().items()}
    scales = {f"{name}_scale_inv": torch.ones(1, 1) for name, x in decoder().items() if x.dim() == 2}
    told = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    written(folder / "base", codes | scales, quantization_config=told)
    written(folder / "tuned", decoder())


# Pairs that are none


@situation
def strangers(folder: Path) -> None:
    """Two models that have nothing in common."""
    other = {f"blocks.{n}.mixer.w{k}.weight": torch.ones(5, 7) for n in range(4) for k in range(3)}
    pair(folder, decoder(), other)
