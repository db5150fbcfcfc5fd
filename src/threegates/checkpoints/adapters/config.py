"""What an adapter's ``adapter_config.json`` says of its arithmetic: rank, scaling, start."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threegates.checkpoints.beside import (
    ADAPTER_CONFIG,
    ADAPTER_PICKLE,
    ADAPTER_WEIGHTS,
    INDEX,
    SINGLE,
    whole_shards,
)
from threegates.checkpoints.formats.families import table
from threegates.checkpoints.formats.headers import read_json
from threegates.checkpoints.formats.wrappers import unwrapped
from threegates.errors import CheckpointError

CONFIG, WEIGHTS, PICKLE = ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_PICKLE
#: What is read of an adapter.
FILES = (CONFIG, WEIGHTS)
#: Starts at which BA = 0, or the base's weights stay as they are: ΔW is s·BA.
PLAIN = (True, False, "gaussian", "eva", "orthogonal", "mica")
#: Starts that follow from the base's weights alone.
COMPUTED = ("pissa", "olora")
#: Families whose linear layers of these names are stored (in, out): transformers' Conv1D.
TURNED_KINDS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
TURNED = ("c_attn", "c_proj", "c_fc", "q_attn")
#: Options of LoRA under which the weights are no longer W₀ + s·BA, and what each does.
_OTHERWISE = {
    "use_qalora": "pools inputs before A",
    "alora_invocation_tokens": "acts after certain tokens alone",
    "arrow_config": "chooses among several adapters token by token",
    "layer_replication": "repeats blocks of the base",
    "kasa_config": "removes singular directions of the base first",
    "monteclora_config": "draws its factors",
    "use_bdlora": "has block-diagonal factors",
}


@dataclass(frozen=True)
class AdapterConfig:
    """A LoRA's settings.

    rank, alpha : r and α; patterns give some modules their own. scaled_by_root : rsLoRA, s = α/√r in place of
    α/r. magnitudes : DoRA. turned : weights are stored (in, out), as GPT-2's, by the config, which has one
    word for all of its modules. start : `init_lora_weights`.
    parameters : names of adapted tensors that are no module's weight, such as stacks of experts. tokens :
    rows that are replaced, by the end of the embedding's name, "" for whichever there is. base : what the
    adapter was trained on.
    """

    folder: Path
    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    scaled_by_root: bool = False
    magnitudes: bool = False
    turned: bool = False
    start: bool | str = True
    parameters: tuple[str, ...] = ()
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    base: str = ""
    revision: str = ""

    def scaling(self, name: str, rank: int) -> float:
        """s of a module or parameter by its name and the rank that its factors have.

        **Source** Hu et al. (2021), arXiv 2106.09685, §4.1; Kalajdzievski (2023), arXiv 2312.03732.
        """
        alpha = float(_by_pattern(self.alpha_pattern, name, self.alpha))
        return alpha / math.sqrt(rank) if self.scaled_by_root else alpha / rank

    def declared(self, name: str) -> int:
        """r that the config gives a module or parameter."""
        return int(_by_pattern(self.rank_pattern, name, self.rank))

    @property
    def kind(self) -> str:
        """What people call it."""
        names = ["DoRA" if self.magnitudes else "LoRA"]
        names += ["rank-stabilised scaling"] if self.scaled_by_root else []
        names += [] if self.start in PLAIN else [f"start {self.start}"]
        return ", ".join(names)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model's weights beside it."""
    if not (folder / CONFIG).is_file():
        return False
    names = [path.name for path in folder.iterdir()]
    return not ({SINGLE, INDEX} & set(names) or whole_shards(names))


def read_config(folder: Path) -> AdapterConfig:
    """Settings of the adapter in a folder.

    Raises
    ------
    CheckpointError : it is of another kind than LoRA, or of one whose weights are not W₀ + s·BA; or a setting
        has no meaning.
    """
    told = read_json(folder / CONFIG)
    _refuse_kinds(folder, told)
    try:
        return AdapterConfig(
            folder,
            _positive(told["r"]),
            float(told["lora_alpha"]),
            {_pattern(key): _positive(value) for key, value in (told.get("rank_pattern") or {}).items()},
            {_pattern(key): float(value) for key, value in (told.get("alpha_pattern") or {}).items()},
            bool(told.get("use_rslora")),
            bool(told.get("use_dora")),
            bool(told.get("fan_in_fan_out")),
            _start(told.get("init_lora_weights", True)),
            tuple(told.get("target_parameters") or ()),
            _tokens(told.get("trainable_token_indices")),
            str(told.get("base_model_name_or_path") or ""),
            str(told.get("revision") or ""),
        )
    except (KeyError, TypeError, ValueError, AttributeError, re.error) as error:
        raise CheckpointError(
            "the adapter's config cannot be understood",
            where=folder / CONFIG,
            expected="what peft writes for a LoRA: r, lora_alpha and the settings beside them",
            found=f"{type(error).__name__}: {error}",
            remedy="save the adapter anew with peft's save_pretrained",
        ) from None


def _positive(value: Any) -> int:
    if int(value) < 1:
        raise ValueError(f"a rank of {value}")
    return int(value)


def _pattern(key: str) -> str:
    re.compile(key)
    return key


def _start(word: Any) -> bool | str:
    return word if isinstance(word, bool) else str(word).lower()


def _tokens(told: Any) -> dict[str, tuple[int, ...]]:
    """Rows by the end of the embedding's name; a list is of the input embedding, whatever its name."""
    if not told:
        return {}
    named = told if isinstance(told, dict) else {"": told}
    return {str(name): tuple(map(int, rows)) for name, rows in named.items()}


def _refuse_kinds(folder: Path, told: Mapping[str, Any]) -> None:
    kind = str(told.get("peft_type", "none")).upper()
    otherwise = [f"{name} {what}" for name, what in _OTHERWISE.items() if told.get(name)]
    if kind == "LORA" and not otherwise:
        return
    raise CheckpointError(
        "this kind of adapter is not read without being merged",
        where=folder / CONFIG,
        expected="LoRA, rsLoRA, PiSSA or DoRA: weights that base and factors alone decide",
        found=f"peft_type {kind}" if kind != "LORA" else "; ".join(otherwise),
        remedy="merge it with peft (merge_and_unload), save the model, and give that folder",
    )


def _by_pattern(patterns: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """The value of the first pattern that a name ends in, as peft reads patterns.

    Patterns were written for the model that was trained: what wrapped it when it was saved is taken off.
    """
    bare = unwrapped([name], table().wrappers)[name]
    for known in dict.fromkeys((bare, name)):
        found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", known))
        if (value := next(found, None)) is not None:
            return value
    return otherwise
