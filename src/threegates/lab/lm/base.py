"""The language model as it was installed, on the grid of its storage: what every run of it starts from.

Its four-bit codes become float32 numbers, which are rounded once. So a difference from this base is one of
training, and never one of rounding the base.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from threegates.checkpoints.gguf import metadata_of, open_gguf
from threegates.lab.lm.conversion import config_of, tokenizer_files
from threegates.lab.lm.evaluate import negative_log_likelihood
from threegates.lab.lm.package import verified_file
from threegates.lab.lm.tokenizer import Tokenizer
from threegates.lab.recipe import LmBaseRecipe
from threegates.lab.trainer import Contents, Metrics, Producer
from threegates.lab.weights import dtype

HEAD = "lm_head.weight"
# Three files; the embedding lies in the first.
SHARD_BYTES = 120_000_000
#: Plain English, written for this check.
TEXT = (
    "The sun is a star, and the planets move around it. It gives them light and heat. Plants use the "
    "energy of sunlight to make sugar from water and carbon dioxide. Animals eat the plants, and other "
    "animals eat those animals. Without the sun there would be no life on Earth. The Earth moves around "
    "the sun once a year, and it turns around its own axis once a day. When it is day on one side, it is "
    "night on the other. The moon moves around the Earth about once a month. When the moon comes between "
    "the Earth and the sun, it can hide the sun for a few minutes. People were afraid of this for a long "
    "time, because nobody could tell them when the light would come back. Today we know the day and the "
    "hour of every eclipse for hundreds of years."
)


class Untrained(Producer):
    """A checkpoint that nothing trains; its one row says how well it predicts `TEXT`."""

    extra_columns = ("perplexity",)

    def __init__(self, contents: Contents) -> None:
        self._contents = contents

    def logged_step(self, index: int) -> Metrics:
        loss = text_loss(self._contents)
        metrics = {"loss": loss, "perplexity": math.exp(loss)}
        return metrics | {"step": index, "updates": 0, "delta_norm": 0.0}

    def state(self) -> dict[str, Tensor]:
        return {}

    def load_state(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Nothing is loaded: this run has no state."""

    def contents(self) -> Contents:
        return self._contents

    def final_evaluation(self) -> pd.DataFrame | None:
        """None: what samples of it are worth is measured beside its tuned ones."""
        return None


class LmBase(Untrained):
    """The package's weights in the recipe's format."""

    @classmethod
    def start(cls, recipe: Any, base: Path | None) -> Self:
        return cls(converted(verified_file(), recipe))


def converted(file: Path, recipe: LmBaseRecipe) -> Contents:
    """A GGUF file of a Llama as a Hugging Face folder, its tensors made floats one by one and rounded.

    Raises
    ------
    CheckpointError : it is no such file, or the extra `gguf` is missing.
    """
    stored = dtype(recipe.save_dtype)
    found, told = open_gguf(file), metadata_of(file)
    own = [name for name, info in found.infos.items() if not info.alias_of]
    tensors = {name: found.stored(name).to(stored) for name in own}
    config = config_of(told, tied=HEAD not in own, stored_dtype=recipe.save_dtype)
    return Contents(tensors, config, tokenizer_files(told), SHARD_BYTES)


def text_loss(contents: Contents) -> float:
    """Mean −log p of the tokens of `TEXT` in nats, computed in float32 from the weights as stored."""
    tokenizer = Tokenizer.of_text(str(contents.files["tokenizer.json"]))
    ids = torch.tensor(tokenizer.encode(TEXT))
    with torch.no_grad():
        logits = module_of(contents)(ids[None]).logits[0]
    return negative_log_likelihood(logits, ids)


def module_of(contents: Contents) -> PreTrainedModel:
    """The model of transformers in float32, with copies of a checkpoint's weights."""
    # The constructor draws initial weights, which are replaced: keep the global generator out of it.
    with torch.random.fork_rng(devices=[]):
        config = dict(contents.config)
        module = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config.pop("model_type"), **config), dtype=torch.float32
        )
    parameters = dict(module.named_parameters())
    assert parameters.keys() == contents.tensors.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(contents.tensors[name])
    return module.eval()
