"""The encoder and the policy it defines: π(c|q) = softmax over candidates of cos(e_q, e_c)/τ.

e is the mean of the last hidden states over a string's tokens, scaled to length one: the pooling that
sentence-transformers documents for this model. Dropout is off. The embeddings and the pooler, which this
pooling does not use, are frozen; the six blocks are trained.

**Source** mean pooling: Reimers and Gurevych (2019), arXiv 1908.10084; the model: Wang et al. (2020),
arXiv 2002.10957.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from threegates.checkpoints.tensors import Checkpoint
from threegates.lab.encoder.task import Item

TEMPERATURE = 0.05
TRAINED = "encoder."
# Tokenizer and pooling: transformers and sentence-transformers open our checkpoints as they open the base.
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
CHUNK = 128

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Encoder:
    """A frozen BERT in float32 with tokenizer and files; weights that train are given at each call."""

    module: BertModel
    tokenizer: Tokenizer
    config: Mapping[str, Any]
    files: Mapping[str, bytes]

    @classmethod
    def open(cls, folder: Path) -> Encoder:
        """Read a checkpoint's folder; what is stored is computed with in float32."""
        checkpoint = Checkpoint.open(folder)
        # The constructor draws initial weights, which are replaced: keep the global generator out of it.
        with torch.random.fork_rng(devices=[]):
            module = BertModel(BertConfig(**checkpoint.config)).eval().requires_grad_(False)
        stored = {name: checkpoint.stored(name).float() for name, _ in module.named_parameters()}
        module.load_state_dict(stored, strict=True)
        files = {name: (folder / name).read_bytes() for name in COPIED if (folder / name).is_file()}
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(module, tokenizer, checkpoint.config, files)

    def trained(self) -> dict[str, Tensor]:
        """The parameters that training moves, by name."""
        return {name: t for name, t in self.module.named_parameters() if name.startswith(TRAINED)}

    def frozen(self) -> dict[str, Tensor]:
        """All others."""
        return {name: t for name, t in self.module.named_parameters() if not name.startswith(TRAINED)}

    def embed(self, weights: Weights, strings: Sequence[str]) -> Tensor:
        """Unit vectors of strings, (strings, width).

        Strings of one length in tokens share a batch, so that nothing is padded.
        """
        rows = [self.tokenizer.encode(string).ids for string in strings]
        parts = [part for batch in _by_length(rows) for part in batch]
        vectors = [self._embed(weights, torch.tensor([rows[place] for place in part])) for part in parts]
        order = torch.tensor([place for part in parts for place in part]).argsort()
        return torch.cat(vectors)[order]

    def _embed(self, weights: Weights, ids: Tensor) -> Tensor:
        hidden = functional_call(self.module, dict(weights), (ids,)).last_hidden_state
        return F.normalize(hidden.mean(1), dim=-1)


def _by_length(rows: Sequence[Sequence[int]]) -> Iterator[list[list[int]]]:
    """Places of rows of one length, at most `CHUNK` at a time; short ones first."""
    for length in sorted({len(row) for row in rows}):
        places = [place for place, row in enumerate(rows) if len(row) == length]
        yield [places[start : start + CHUNK] for start in range(0, len(places), CHUNK)]


def log_policy(encoder: Encoder, weights: Weights, items: Sequence[Item]) -> Tensor:
    """log π of every candidate of every item, (items, candidates); each string is embedded once."""
    strings = sorted({string for item in items for string in (item.query, *item.candidates)})
    place = {string: index for index, string in enumerate(strings)}
    vectors = encoder.embed(weights, strings)
    queries = vectors[[place[item.query] for item in items]]
    candidates = vectors[torch.tensor([[place[word] for word in item.candidates] for item in items])]
    return ((queries[:, None] * candidates).sum(-1) / TEMPERATURE).log_softmax(-1)


def right_places(items: Sequence[Item]) -> Tensor:
    """Place of the right candidate of each item, (items,)."""
    return torch.tensor([item.right for item in items])
