"""Embeddings against transformers' own forward pass and the documented pooling; π against its formula."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from tests.lab.encoder.tiny_encoder import write_tiny_encoder
from threegates.lab.encoder import policy as module
from threegates.lab.encoder.package import package_folder
from threegates.lab.encoder.policy import Encoder, log_policy, right_places
from threegates.lab.encoder.task import items
from threegates.lab.encoder.words import number_word

STRINGS = [
    "seven",
    "three plus four",
    "opposite of happy",
    "capital of Burkina Faso",
    "Ouagadougou",
    "thirty six",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("tiny") / "encoder")


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Encoder:
    return Encoder.open(tiny)


@torch.no_grad()
def _documented(folder: Path, strings: list[str]) -> torch.Tensor:
    """The model card's own formula: mean of token states over the attention mask, then length one."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).float().eval()
    given = tokenizer(strings, padding=True, truncation=True, return_tensors="pt")
    mask = given["attention_mask"]
    states = model(input_ids=given["input_ids"], attention_mask=mask)[0]
    wide = mask.unsqueeze(-1).expand(states.size()).float()
    pooled = torch.sum(states * wide, 1) / torch.clamp(wide.sum(1), min=1e-9)
    return torch.nn.functional.normalize(pooled, p=2, dim=1)


@pytest.mark.parametrize("which", ["tiny", "package"])
def test_embeddings_are_those_of_the_documented_pooling(tiny, which):
    folder = tiny if which == "tiny" else package_folder()
    ours = Encoder.open(folder).embed({}, STRINGS)
    torch.testing.assert_close(ours, _documented(folder, STRINGS), atol=2e-6, rtol=1e-5)
    assert ours.norm(dim=1).tolist() == pytest.approx([1.0] * len(STRINGS), abs=1e-6)


def test_the_package_answers_as_a_good_encoder_should():
    """A truncated or misread model would not: a word's nearest neighbour is its own kind."""
    encoder = Encoder.open(package_folder())
    france, paris, tokyo, bread = encoder.embed({}, ["capital of France", "Paris", "Tokyo", "bread"])
    assert float(france @ paris) > float(france @ tokyo) > float(france @ bread)


def test_embeddings_do_not_depend_on_what_shares_the_batch(encoder):
    together = encoder.embed({}, STRINGS)
    for place, string in enumerate(STRINGS):
        torch.testing.assert_close(encoder.embed({}, [string])[0], together[place], atol=1e-6, rtol=1e-5)


def test_strings_of_one_length_may_fill_several_batches(encoder, monkeypatch):
    strings = [number_word(value) for value in range(60)]
    expected = encoder.embed({}, strings)
    monkeypatch.setattr(module, "CHUNK", 7)
    torch.testing.assert_close(encoder.embed({}, strings), expected, atol=1e-6, rtol=1e-5)


def test_the_policy_is_a_softmax_of_cosines_over_the_temperature(encoder):
    some = items("words")[::97]
    found = log_policy(encoder, {}, some)
    for row, item in zip(found, some, strict=True):
        query, *candidates = encoder.embed({}, [item.query, *item.candidates])
        odds = [math.exp(float(query @ vector) / 0.05) for vector in candidates]
        assert row.exp().tolist() == pytest.approx([o / sum(odds) for o in odds], rel=1e-3)
    assert [
        item.candidates[place] for item, place in zip(some, right_places(some).tolist(), strict=True)
    ] == [item.answer for item in some]


def test_blocks_train_and_everything_else_is_frozen(encoder):
    trained, frozen = encoder.trained(), encoder.frozen()
    assert trained.keys().isdisjoint(frozen)
    assert {name.split(".")[0] for name in frozen} == {"embeddings", "pooler"}
    assert trained.keys() | frozen.keys() == {name for name, _ in encoder.module.named_parameters()}
    assert not any(t.requires_grad for t in encoder.module.parameters())


def test_the_gradient_through_given_weights_equals_finite_differences(tiny):
    some = items("words")[::131]
    wide = Encoder.open(tiny)
    wide.module.double()
    weights = {name: t.clone().requires_grad_() for name, t in wide.trained().items()}
    direction = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(len(name)),
                                   dtype=torch.float64) for name, t in weights.items()}  # fmt: skip

    def surprise(step: float) -> torch.Tensor:
        moved = {name: t + step * direction[name] for name, t in weights.items()}
        return -log_policy(wide, moved, some).gather(1, right_places(some)[:, None]).mean()

    surprise(0.0).backward()
    slope = sum(float((t.grad * direction[name]).sum()) for name, t in weights.items() if t.grad is not None)
    with torch.no_grad():
        numerical = float((surprise(1e-5) - surprise(-1e-5)) / 2e-5)
    assert slope == pytest.approx(numerical, rel=1e-5)
    assert abs(slope) > 1e-2


def test_opening_an_encoder_leaves_the_global_generator_alone(tiny):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Encoder.open(tiny)
    assert torch.equal(torch.rand(4), expected)
