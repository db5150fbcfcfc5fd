"""Writes the tables of tests/checkpoints/families: what transformers calls, shapes and fuses in each family.

Give it under either generation of transformers, then once more, with safetensors alone:

    OLDER/bin/python -m scripts.write_family_tables save SAVES
    NEWER/bin/python -m scripts.write_family_tables save SAVES
    NEWER/bin/python -m scripts.write_family_tables write SAVES

The older one makes a tiny model of each family, in which no two entries are equal. Both load and save it: as
files are written by default, by a model that was loaded and by one made anew with these weights; and as it is
held in memory, which is what a trainer with a state dict of its own leaves (`save_original_format=False`).
Which part of one file is which part of another is then read from the entries: nobody has to be believed.
`book/families.json`, for the page on which pairs work, is written from all tables.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.family_tables import (
    INNER,
    SQUARES,
    TABLES,
    Family,
    family_of_table,
    layout_facts,
    moved,
    resized,
)

FACTS = Path(__file__).resolve().parents[1] / "book" / "families.json"
MEMORY, ANEW, SINGLE = ", in memory", ", made anew", "model.safetensors"
#: What experts have inside is INNER: no other size here equals it, or its double.
TEXT = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 6}
SMALL_HEADS = {"head_dim": 4}
MIXTURE = TEXT | {
    "num_experts": 3,
    "num_local_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": INNER,
    "intermediate_size": INNER,
    "shared_expert_intermediate_size": 6,
}
DEEP = TEXT | {
    "moe_intermediate_size": INNER,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 8,
    "intermediate_size": 18,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
CLIP = SIGLIP | {"model_type": "clip_vision_model", "projection_dim": 8}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 8,
    "embed_dim": 8,
    "intermediate_size": 18,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "out_hidden_size": 16,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [1],
}
MROPE = {"rope_type": "default", "type": "default", "mrope_section": [1, 1, 1], "rope_theta": 1e4}
QWEN_TEXT = TEXT | {"rope_scaling": MROPE}
HYBRID = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "linear_conv_kernel_dim": 4,
}
CAUSAL, IMAGES = "AutoModelForCausalLM", "AutoModelForImageTextToText"
MASKED, SEQ2SEQ = "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM"


def _images(text: Mapping, vision: Mapping, **more: Any) -> tuple[str, dict]:
    return IMAGES, {"text_config": dict(text), "vision_config": dict(vision), **more}


_GPT2 = {"vocab_size": 48, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 36}
_BERT = TEXT | {"type_vocab_size": 2}
_PHI4 = {"partial_rotary_factor": 0.5}
#: Families by model_type: the class that makes a model, and what its config is made from.
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": (CAUSAL, TEXT | HEADS),
    "mistral": (CAUSAL, TEXT | HEADS),
    "ministral": (CAUSAL, TEXT | HEADS),
    "qwen2": (CAUSAL, TEXT),
    "qwen3": (CAUSAL, TEXT | HEADS),
    "gemma": (CAUSAL, TEXT | HEADS),
    "gemma2": (CAUSAL, TEXT | HEADS),
    "gemma3_text": (CAUSAL, TEXT | HEADS),
    "phi": (CAUSAL, TEXT),
    "phi3": (CAUSAL, TEXT),
    "gpt2": (CAUSAL, _GPT2),
    "gpt_neox": (CAUSAL, TEXT),
    "opt": (CAUSAL, TEXT | {"ffn_dim": 36, "word_embed_proj_dim": 16}),
    "falcon": (CAUSAL, TEXT),
    "olmo2": (CAUSAL, TEXT),
    "olmo3": (CAUSAL, TEXT),
    "smollm3": (CAUSAL, TEXT),
    "granite": (CAUSAL, TEXT),
    "glm4": (CAUSAL, TEXT | SMALL_HEADS),
    "starcoder2": (CAUSAL, TEXT),
    "mamba2": (CAUSAL, TEXT | {"num_heads": 4, "head_dim": 8, "state_size": 6, "n_groups": 2, "expand": 2}),
    "mixtral": (CAUSAL, MIXTURE),
    "qwen2_moe": (CAUSAL, MIXTURE | SMALL_HEADS),
    "qwen3_moe": (CAUSAL, MIXTURE | HEADS),
    "olmoe": (CAUSAL, MIXTURE),
    "deepseek_v3": (
        CAUSAL,
        DEEP
        | {
            "q_lora_rank": 6,
            "kv_lora_rank": 7,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 5,
            "v_head_dim": 7,
            "num_key_value_heads": 4,
        },
    ),
    "glm4_moe": (CAUSAL, DEEP | SMALL_HEADS),
    "ernie4_5_moe": (
        CAUSAL,
        MIXTURE | {"moe_num_experts": 3, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 0},
    ),
    "jamba": (
        CAUSAL,
        MIXTURE
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 3,
            "use_mamba_kernels": False,
        },
    ),
    "granitemoe": (CAUSAL, MIXTURE),
    "phimoe": (CAUSAL, MIXTURE),
    "qwen3_next": (CAUSAL, MIXTURE | HEADS | HYBRID),
    "gpt_oss": (CAUSAL, MIXTURE | HEADS),
    "llama4_text": (CAUSAL, MIXTURE | HEADS | {"intermediate_size_mlp": 36, "interleave_moe_layer_step": 2}),
    "bert": (MASKED, _BERT),
    "roberta": (MASKED, _BERT),
    "modernbert": (MASKED, TEXT | {"cls_token_id": 1, "sep_token_id": 2}),
    "t5": (
        SEQ2SEQ,
        {
            "vocab_size": 48,
            "d_model": 16,
            "d_kv": 6,
            "d_ff": 36,
            "num_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "llama4": _images(
        MIXTURE | HEADS | {"model_type": "llama4_text", "intermediate_size_mlp": 36},
        {
            "hidden_size": 8,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
            "vision_output_dim": 8,
            "projector_input_dim": 8,
            "projector_output_dim": 8,
        },
    ),
    "gemma3": _images(TEXT | HEADS | {"model_type": "gemma3_text"}, SIGLIP, mm_tokens_per_image=1),
    "gemma3n_text": (
        CAUSAL,
        TEXT
        | HEADS
        | {
            "vocab_size_per_layer_input": 40,
            "hidden_size_per_layer_input": 4,
            "laurel_rank": 3,
            "num_kv_shared_layers": 0,
            "intermediate_size": [36, 36],
            "layer_types": ["sliding_attention", "full_attention"],
            "activation_sparsity_pattern": [0.0, 0.0],
            "altup_num_inputs": 2,
        },
    ),
    "llava": _images(TEXT | {"model_type": "llama"}, CLIP, image_token_index=5),
    "llava_next": _images(TEXT | {"model_type": "llama"}, CLIP, image_token_index=5),
    "mistral3": _images(
        TEXT | HEADS | {"model_type": "mistral"},
        {
            "model_type": "pixtral",
            "hidden_size": 8,
            "intermediate_size": 18,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "head_dim": 4,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=5,
    ),
    "paligemma": _images(
        TEXT | HEADS | {"model_type": "gemma"}, SIGLIP, image_token_index=5, projection_dim=16, hidden_size=16
    ),
    "internvl": _images(
        TEXT | {"model_type": "qwen2"},
        {
            "model_type": "internvl_vision",
            "hidden_size": 8,
            "intermediate_size": 18,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [28, 28],
            "patch_size": [14, 14],
        },
        image_token_id=5,
    ),
    "idefics3": _images(
        TEXT | {"model_type": "llama"}, SIGLIP | {"model_type": "idefics3_vision"}, image_token_id=5
    ),
    "qwen2_vl": _images(QWEN_TEXT | {"model_type": "qwen2_vl_text"}, QWEN_VISION | {"hidden_size": 16}),
    "qwen2_5_vl": _images(QWEN_TEXT | {"model_type": "qwen2_5_vl_text"}, QWEN_VISION),
    "qwen3_vl": _images(QWEN_TEXT | HEADS | {"model_type": "qwen3_vl_text"}, QWEN_VISION),
    "qwen3_vl_moe": _images(
        MIXTURE | HEADS | {"model_type": "qwen3_vl_moe_text", "rope_scaling": MROPE}, QWEN_VISION
    ),
    "qwen3_5": _images(QWEN_TEXT | HEADS | HYBRID | {"model_type": "qwen3_5_text"}, QWEN_VISION),
    "qwen3_5_moe": _images(
        MIXTURE | HEADS | HYBRID | {"model_type": "qwen3_5_moe_text", "rope_scaling": MROPE}, QWEN_VISION
    ),
}


#: What the newer generation looks for under another name than the older one stores, and does not find.
RENAMED = {"gemma3n_text": ("per_layer_model.language_model_projection", "per_layer_model_projection")}

#: Where the newer generation tells a transposed stack by its shape, and takes a square one as it lies.
BY_SHAPE = ("qwen3_vl_moe",)


# Saving


def save(saves: Path, names: Sequence[str]) -> None:
    """Make or load each family's model by this transformers, and save it as files are written and as held."""
    for name in names:
        for inner in (INNER, *SQUARES) if _has_experts(name) else (INNER,):
            try:
                _save(saves / name / str(inner), name, inner)
            # A family that one generation does not have is left to the other one.
            except (ValueError, KeyError) as error:
                print(f"{name} ({inner}): {str(error)[:80]}")


def _has_experts(name: str) -> bool:
    return f'"moe_intermediate_size": {INNER}' in json.dumps(FAMILIES[name][1])


def _save(folder: Path, name: str, inner: int) -> None:
    import transformers

    kind, settings = FAMILIES[name]
    version = transformers.__version__
    text = json.dumps(settings).replace(f'intermediate_size": {INNER}', f'intermediate_size": {inner}')
    maker = getattr(transformers, kind)
    older = next((path for path in folder.glob("[0-9]*") if path.name < version[0]), None)
    first = folder / "first"
    if older is None:
        config = transformers.AutoConfig.for_model(name, **json.loads(text))
        _numbered(maker.from_config(config)).save_pretrained(first)
    elif name in RENAMED:
        _rename(first, *RENAMED[name])
    same = True
    for dtype in ("float32", "bfloat16"):
        model = maker.from_pretrained(first, dtype=getattr(torch, dtype))
        model.save_pretrained(folder / version / dtype)
        anew = maker.from_config(model.config, dtype=getattr(torch, dtype))
        anew.load_state_dict(model.state_dict())
        held = anew.state_dict()
        # One whose config ties what is stored apart, and which loads untied, is another model when made anew.
        if dtype == "float32":
            same = all(torch.equal(held[key], value) for key, value in model.state_dict().items())
        if same:
            anew.save_pretrained(folder / f"{version}{ANEW}" / dtype)
        _save_held(model, folder / f"{version}{MEMORY}" / dtype)


def _save_held(model: Any, folder: Path) -> None:
    """A model's tensors as it names them itself, each once."""
    held: dict[int, str] = {}
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if tensor.data_ptr() not in held or not tensor.numel():
            held[tensor.data_ptr()] = name
            tensors[name] = tensor.data.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SINGLE)
    model.config.save_pretrained(folder)


def _rename(folder: Path, old: str, new: str) -> None:
    tensors = {name.replace(old, new): value for name, value in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / SINGLE, {"format": "pt"})


def _numbered(model: Any) -> Any:
    """A model of which every entry of a weight is another whole number, beginning with 1."""
    first, seen = 1, set()
    for tensor in model.state_dict(keep_vars=True).values():
        if not tensor.is_floating_point() or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        if first + tensor.numel() > 1 << 24:
            raise OverflowError("float32 has no room for so many numbers")
        tensor.data.copy_(torch.arange(first, first + tensor.numel()).reshape(tensor.shape))
        first += tensor.numel()
    return model


# Comparing


@dataclass(frozen=True)
class Part:
    """A tensor of the first layout within one of another: which rows of it, and of which matrix of a stack.

    turned : it is held transposed, and the rows are columns.
    """

    name: str
    number: int | None = None
    rows: tuple[int, int] | None = None
    turned: bool = False

    def text(self, holder: str) -> str:
        """As the table has it, for the name of the tensor that holds it: `*` is one of its numbers."""
        numbers = re.findall(r"\d+", holder)
        words = []
        for word in self.name.split("."):
            if word.isdecimal() and numbers and word == numbers[0]:
                words.append("*")
                numbers.pop(0)
            else:
                words.append("#" if word.isdecimal() and word == str(self.number) else word)
        at = "" if self.rows is None else f" @{self.rows[0]}:{self.rows[1]}"
        return ".".join(words) + at + (" T" if self.turned else "")


def write(saves: Path, names: Sequence[str]) -> None:
    """Write each family's table from its saves, if weights made from it are the saves."""
    TABLES.mkdir(exist_ok=True)
    for name in names:
        told = family_table(saves / name / str(INNER))
        for inner in (INNER, *SQUARES) if _has_experts(name) and name not in BY_SHAPE else (INNER,):
            _check(family_of_table(name, resized(told, inner)), saves / name / str(inner))
        _write(TABLES / f"{name}.json", told)
    tables = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(TABLES.glob("*.json"))
    }
    _write(FACTS, {name: layout_facts(told) for name, told in tables.items()})


def _write(path: Path, told: Any) -> None:
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _check(family: Family, folder: Path) -> None:
    values: dict = {}
    for layout in family.layouts:
        saved = load_file(folder / layout / "float32" / SINGLE)
        values = values or saved
        made = family.built(layout, values, exact=True)
        if made.keys() != saved.keys() or not all(torch.equal(made[one], saved[one]) for one in saved):
            raise ValueError(f"{folder}: the table does not say what {layout} is")


def family_table(folder: Path) -> dict[str, Any]:
    """What one family's saves say: its config, and its tensors in each layout.

    The first layout is told whole, of the others what differs from it.
    """
    found = {path.name: path for path in sorted(folder.glob("[0-9]*"))}
    first, *others = found
    read = {name: _read(path) for name, path in found.items()}
    layouts: dict[str, Any] = {first: _first(read[first])}
    layouts |= {name: _other(read[first], read[name]) for name in others}
    configs = {name: _config(path / "bfloat16" / "config.json") for name, path in found.items()}
    return {"config": configs[first], "layouts": layouts}


@dataclass(frozen=True)
class _Stored:
    """A tensor of a save: its entries' numbers, and the type that it is stored in when the model is bf16."""

    numbers: np.ndarray
    dtype: str

    @property
    def told(self) -> str:
        return f"{self.dtype} {','.join(map(str, self.numbers.shape))}".strip()


def _read(folder: Path) -> dict[str, _Stored]:
    values = {name: one.numpy() for name, one in load_file(folder / "float32" / SINGLE).items()}
    dtypes = _dtypes(folder / "bfloat16" / SINGLE)
    return {name: _Stored(value, dtypes[name]) for name, value in sorted(values.items())}


def _dtypes(path: Path) -> dict[str, str]:
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: told["dtype"] for name, told in header.items() if name != "__metadata__"}


def _config(path: Path) -> dict[str, Any]:
    """Sizes and kinds of a config: numbers, truths and model_type, of the text's part too."""
    config = json.loads(path.read_text(encoding="utf-8"))
    return {
        key: _kept(value) if key == "text_config" else value for key, value in sorted(_kept(config).items())
    }


def _kept(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _kept(value) if isinstance(value, dict) else value
        for key, value in sorted(config.items())
        if type(value) in (int, bool) or key in ("model_type", "text_config")
    }


def _first(tensors: Mapping[str, _Stored]) -> dict[str, str]:
    return _grouped({name: one.told for name, one in tensors.items()})


def _other(first: Mapping[str, _Stored], tensors: Mapping[str, _Stored]) -> dict[str, Any]:
    """What differs: prefixes in another's place, other types, tensors made of parts of the first layout's."""
    owners = {int(number): name for name, one in first.items() for number in one.numbers.flat}
    moves = _moves(first, tensors)
    expected = {moved(name, moves): Part(name) for name in first}
    told: dict[str, Any] = {}
    for name, one in tensors.items():
        parts = list(_parts(one.numbers, first, owners))
        whole = expected.get(name)
        if parts != [whole] or whole is None or first[whole.name].told != one.told:
            told[name] = [one.told, *_texts(name, parts)]
    held = {owners[int(number)] for one in tensors.values() for number in one.numbers.flat}
    lacks = sorted(name for name in first if name not in held)
    more = {"moved": moves, "lacks": lacks}
    return {key: value for key, value in more.items() if value} | _grouped(told)


def _moves(first: Mapping[str, _Stored], tensors: Mapping[str, _Stored]) -> dict[str, str]:
    """Prefixes that most tensors under them have exchanged for another one, of some tensors at least."""
    where = {int(one.numbers.flat[0]): name for name, one in first.items() if one.numbers.size}
    votes: Counter[tuple[str, str]] = Counter()
    for name, one in tensors.items():
        old = where.get(int(one.numbers.flat[0])) if one.numbers.size else None
        if old is not None and old != name:
            votes[_fronts(old, name)] += 1
    found: dict[str, str] = {}
    for (old, new), _ in sorted(votes.items(), key=lambda vote: -len(vote[0][0])):
        under = [name for name in first if name.startswith(old) and moved(name, found) == name]
        hits = [name for name in under if _is_at(first[name], tensors.get(new + name.removeprefix(old)))]
        if len(hits) > 2 and 2 * len(hits) > len(under):
            found[old] = new
    return dict(sorted(found.items()))


def _fronts(old: str, new: str) -> tuple[str, str]:
    """What stands in front of the end that two names share, in whole words."""
    ends = [word.split(".")[::-1] for word in (old, new)]
    common = sum(1 for _ in itertools.takewhile(lambda two: two[0] == two[1], zip(*ends, strict=False)))
    fronts = [".".join(words[: len(words) - common]) for words in (old.split("."), new.split("."))]
    return fronts[0] + "." * bool(fronts[0]), fronts[1] + "." * bool(fronts[1])


def _is_at(one: _Stored, other: _Stored | None) -> bool:
    return other is not None and np.array_equal(one.numbers, other.numbers)


def _texts(holder: str, parts: Sequence[Part]) -> list[str]:
    """Parts as the table has them: of a stack, what its first matrix holds is said of all."""
    texts = [part.text(holder) for part in parts]
    return [] if texts == [holder] else list(dict.fromkeys(texts))


def _parts(numbers: np.ndarray, first: Mapping[str, _Stored], owners: Mapping[int, str]) -> Iterator[Part]:
    """Which tensors of the first layout one holds, and where."""
    names = np.array([owners[int(number)] for number in numbers.flat], dtype=object).reshape(numbers.shape)
    for name in dict.fromkeys(names.flat):
        whole = first[name].numbers
        if np.array_equal(whole, numbers):
            yield Part(name)
            continue
        at = np.argwhere(names == name)
        low, high = at.min(axis=0), at.max(axis=0) + 1
        box = numbers[tuple(map(slice, low, high))]
        stacked = whole.ndim < numbers.ndim
        held = box[0] if stacked else box
        turned = not np.array_equal(held, whole)
        if turned and not np.array_equal(np.swapaxes(held, -1, -2), whole):
            raise ValueError(f"{name}: held in another way than as rows or columns")
        axis = -1 if turned else -2
        rows = (int(low[axis]), int(high[axis]))
        cut = rows != (0, numbers.shape[axis])
        yield Part(name, int(low[0]) if stacked else None, rows if cut else None, turned)


# Telling many names in one


def _grouped(told: Mapping[str, Any]) -> dict[str, Any]:
    """Names that differ in numbers alone and say the same, as one: ``layers.{0,1}.norm.weight``."""
    groups: dict[tuple[str, str], list[tuple[str, ...]]] = defaultdict(list)
    for name, one in told.items():
        words = name.split(".")
        pattern = ".".join("*" if word.isdecimal() else word for word in words)
        groups[pattern, json.dumps(one)].append(tuple(word for word in words if word.isdecimal()))
    return {
        _filled(pattern, choice): json.loads(one)
        for (pattern, one), numbers in groups.items()
        for choice in _products(numbers)
    }


def _products(numbers: Sequence[tuple[str, ...]]) -> list[tuple[tuple[str, ...], ...]]:
    """Tuples of numbers as products of choices, one for each place."""
    choices = tuple(tuple(dict.fromkeys(one)) for one in zip(*numbers, strict=True))
    if len(numbers) == len(list(itertools.product(*choices))):
        return [choices]
    by_first: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for one in numbers:
        by_first[one[0]].append(one)
    if len(by_first) == 1:
        return [tuple((word,) for word in one) for one in numbers]
    return [choice for group in by_first.values() for choice in _products(group)]


def _filled(pattern: str, choice: Iterable[Sequence[str]]) -> str:
    for words in choice:
        told = words[0] if len(words) == 1 else "{" + ",".join(words) + "}"
        pattern = pattern.replace("*", told, 1)
    return pattern


def main() -> None:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("save", "write"))
    parser.add_argument("saves", type=Path, help="the folder of models that were saved")
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES), help="this one alone; repeat")
    asked = parser.parse_args()
    {"save": save, "write": write}[asked.what](asked.saves, asked.family or list(FAMILIES))


if __name__ == "__main__":
    main()
