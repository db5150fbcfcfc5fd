"""The tokenizer files, read by transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import AutoTokenizer, GenerationConfig

from threegates.lab.task import EOS_ID, PAD_ID, RESPONSE_LENGTH, VOCABULARY, data_set, encode, full_chain
from threegates.lab.tokenizer import tokenizer_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    for name, text in tokenizer_files(data_set("arith-4")).items():
        (path / name).write_text(text)
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return path


def test_transformers_gives_the_same_ids(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(0)
    for _ in range(20):
        problem = data_set("arith-3to5").draw(rng)
        for words in (problem.prompt(), full_chain(problem, 0.1, rng)):
            assert tokenizer(" ".join(words))["input_ids"] == encode(words)
            assert tokenizer.decode(encode(words)).split() == words
    assert tokenizer.convert_ids_to_tokens(range(48)) == list(VOCABULARY)
    assert len(tokenizer) == 48


def test_transformers_pads_on_the_left_with_our_padding(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(["A 1", "A"], padding=True)["input_ids"]
    assert ids[1] == [PAD_ID, encode(["A"])[0]]
    assert tokenizer.eos_token_id == EOS_ID


def test_generation_ends_where_the_lab_ends(folder):
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.max_new_tokens == RESPONSE_LENGTH
    assert (generation.pad_token_id, generation.eos_token_id) == (PAD_ID, EOS_ID)
    assert generation.do_sample


def test_the_files_are_the_same_text_each_time():
    assert tokenizer_files(data_set("arith-4")) == tokenizer_files(data_set("arith-4"))
