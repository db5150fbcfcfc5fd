"""Small models for the lab's tests: random ones, and one whose every next token is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from threegates.lab.model import ModelShape, Weights, initial_weights
from threegates.lab.task import BOS_ID, EOS_ID, PAD_ID, TOKEN_ID, VOCABULARY

TINY = ModelShape(width=32, layers=1, feed_forward=48, heads=2, kv_heads=1, head_dim=16)
# One coordinate a token, so that a bigram model can be written down.
BIGRAM = ModelShape(width=48, layers=1, feed_forward=16, heads=2, kv_heads=1, head_dim=8)
DIGITS = {str(digit): 1.0 for digit in range(10)}


def random_weights(shape: ModelShape = TINY, seed: int = 0, sharpness: float = 1.0) -> dict[str, Tensor]:
    """Initial weights, norms off one too; ``sharpness`` multiplies the head."""
    generator = torch.Generator().manual_seed(seed)
    weights = initial_weights(shape, generator)
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            weights[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    weights["lm_head.weight"] = weights["lm_head.weight"] * sharpness
    return weights


def bigram_weights(following: Mapping[str, Mapping[str, float]]) -> dict[str, Tensor]:
    """A model of shape `BIGRAM` that follows a word by others with the given odds, and never by the rest.

    Attention and feed-forward are silent, so the last word alone decides.
    """
    weights = {name: torch.zeros(size) for name, size in BIGRAM.parameter_shapes().items()}
    for name in weights:
        if name.endswith("norm.weight"):
            weights[name] += 1
    weights["model.embed_tokens.weight"] = torch.eye(48)
    head = torch.full((48, 48), -30.0)
    for word, odds in following.items():
        for successor, share in odds.items():
            head[TOKEN_ID[successor], TOKEN_ID[word]] = torch.tensor(share).log()
    # RMS normalisation turns the one-hot vector into √width times itself.
    weights["lm_head.weight"] = head / 48**0.5
    return weights


def guessing_weights() -> dict[str, Tensor]:
    """A policy that always answers ``A d <eos>`` with a digit drawn uniformly."""
    return bigram_weights({"=": {"A": 1.0}, "A": DIGITS, **{digit: {"<eos>": 1.0} for digit in DIGITS}})


def transformers_model(shape: ModelShape, weights: Weights) -> PreTrainedModel:
    """The same model in transformers, float32, built from our configuration."""
    config = shape.config(pad=PAD_ID, bos=BOS_ID, eos=EOS_ID, stored_dtype="float32")
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    model.load_state_dict(dict(weights), strict=True)
    return model.float().eval()


def words(ids: Sequence[int] | Tensor) -> list[str]:
    """Words of token ids, padding left out."""
    return [VOCABULARY[int(token)] for token in ids if int(token) != PAD_ID]


def left_to_right(prompt: Sequence[str]) -> int:
    """Oracle: the answer to a prompt in exact integers, reduced modulo ten only at the end."""
    chain = list(prompt[prompt.index(":") + 1 : prompt.index("=")])
    value = int(chain[0])
    for operator, digit in zip(chain[1::2], chain[2::2], strict=True):
        value = {"+": value + int(digit), "-": value - int(digit), "*": value * int(digit)}[operator]
    return value % 10


def earns_reward(prompt: Sequence[str], response: Sequence[str]) -> bool:
    """Oracle: the response up to its first <eos> ends in ``A d`` with the right digit."""
    if "<eos>" not in response:
        return False
    before = list(response)[: list(response).index("<eos>")]
    return before[-2:] == ["A", str(left_to_right(prompt))]
